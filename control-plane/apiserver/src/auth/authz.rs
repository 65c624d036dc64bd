//! Who may do what.

use super::{AUTHENTICATED, MASTERS, UserInfo};
use crate::error::ApiError;
use crate::request::RequestInfo;

/// Decides whether a user may do what a request asks for.
pub trait Authorizer: Send + Sync + 'static {
    /// `true`: allowed.
    fn allows(&self, user: &UserInfo, info: &RequestInfo) -> bool;
}

/// A rule: verbs on resources of groups; `*` matches all. A resource with a subresource is `pods/status`.
struct Rule {
    groups: &'static [&'static str],
    resources: &'static [&'static str],
    verbs: &'static [&'static str],
}

const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];
const EVENTS: Rule =
    Rule { groups: &["", "events.k8s.io"], resources: &["events"], verbs: &["create", "patch", "update"] };
const REVIEWS: Rule = Rule {
    groups: &["authentication.k8s.io", "authorization.k8s.io"],
    resources: &["selfsubjectreviews", "selfsubjectaccessreviews", "selfsubjectrulesreviews"],
    verbs: &["create"],
};

static SCHEDULER: &[Rule] = &[
    EVENTS,
    Rule { groups: &["*"], resources: &["*"], verbs: READ },
    Rule { groups: &[""], resources: &["pods/binding", "bindings"], verbs: &["create"] },
    Rule { groups: &[""], resources: &["pods"], verbs: &["delete"] },
    Rule { groups: &[""], resources: &["pods/status"], verbs: &["patch", "update"] },
    Rule { groups: &["coordination.k8s.io"], resources: &["leases"], verbs: WRITE },
];
static CONTROLLER_MANAGER: &[Rule] = &[Rule { groups: &["*"], resources: &["*"], verbs: WRITE }];
static NODE: &[Rule] = &[
    EVENTS,
    Rule {
        groups: &["", "discovery.k8s.io"],
        resources: &[
            "services",
            "endpoints",
            "endpointslices",
            "nodes",
            "pods",
            "configmaps",
            "secrets",
            "namespaces",
            "serviceaccounts",
        ],
        verbs: READ,
    },
    Rule { groups: &[""], resources: &["nodes", "nodes/status"], verbs: &["create", "update", "patch"] },
    Rule { groups: &[""], resources: &["pods"], verbs: &["create", "delete"] },
    Rule { groups: &[""], resources: &["pods/status"], verbs: &["update", "patch", "get"] },
    Rule { groups: &[""], resources: &["pods/eviction"], verbs: &["create"] },
    Rule { groups: &["coordination.k8s.io"], resources: &["leases"], verbs: WRITE },
];
static EVERYONE: &[Rule] = &[REVIEWS];

fn has(list: &[&str], value: &str) -> bool {
    list.iter().any(|entry| *entry == "*" || *entry == value)
}

fn permitted(rules: &[Rule], info: &RequestInfo) -> bool {
    let resource = if info.subresource.is_empty() {
        info.resource.clone()
    } else {
        format!("{}/{}", info.resource, info.subresource)
    };
    rules.iter().any(|rule| {
        has(rule.groups, &info.group) && has(rule.resources, &resource) && has(rule.verbs, info.verb)
    })
}

/// A fixed policy for the cluster's own components: `system:masters` may do everything, the scheduler, the controller
/// manager and nodes what their work needs, and nobody else anything but look at the API's description.
#[derive(Debug, Default, Clone, Copy)]
pub struct ComponentPolicy;

fn public(path: &str) -> bool {
    let under =
        |root: &str| path == root || path.strip_prefix(root).is_some_and(|rest| rest.starts_with('/'));
    under("/healthz") || under("/livez") || under("/readyz") || under("/version")
}

fn discovery(path: &str) -> bool {
    ["/api", "/apis", "/openapi", "/version"]
        .iter()
        .any(|root| path == *root || path.strip_prefix(root).is_some_and(|rest| rest.starts_with('/')))
}

impl Authorizer for ComponentPolicy {
    fn allows(&self, user: &UserInfo, info: &RequestInfo) -> bool {
        if user.in_group(MASTERS) {
            return true;
        }
        if !info.is_resource {
            return info.verb == "get"
                && (public(&info.path) || (user.in_group(AUTHENTICATED) && discovery(&info.path)));
        }
        if !user.in_group(AUTHENTICATED) {
            return false;
        }
        let own: &[Rule] = match user.name.as_str() {
            "system:kube-scheduler" => SCHEDULER,
            "system:kube-controller-manager" => CONTROLLER_MANAGER,
            _ if user.in_group("system:nodes") => NODE,
            _ => &[],
        };
        permitted(own, info) || permitted(EVERYONE, info)
    }
}

/// The answer to a request that is not allowed.
pub fn denied(user: &UserInfo, info: &RequestInfo) -> ApiError {
    let name = crate::error::quote(&user.name);
    if !info.is_resource {
        let why = format!("User {name} cannot {} path {}", info.verb, crate::error::quote(&info.path));
        return ApiError::forbidden("", "", "", &why);
    }
    let resource = if info.subresource.is_empty() {
        info.resource.clone()
    } else {
        format!("{}/{}", info.resource, info.subresource)
    };
    let place = if info.namespace.is_empty() || info.resource == "namespaces" {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {}", crate::error::quote(&info.namespace))
    };
    let place = if info.resource == "namespaces" && !info.namespace.is_empty() {
        format!("in the namespace {}", crate::error::quote(&info.namespace))
    } else {
        place
    };
    let why = format!(
        "User {name} cannot {} resource {} in API group {} {place}",
        info.verb,
        crate::error::quote(&resource),
        crate::error::quote(&info.group)
    );
    ApiError::forbidden(&info.group, &info.resource, &info.name, &why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Query;

    fn ask(user: &UserInfo, method: &str, path: &str) -> bool {
        let method = http::Method::from_bytes(method.as_bytes()).expect("method");
        ComponentPolicy.allows(user, &RequestInfo::parse(&method, path, &Query::default()))
    }

    #[test]
    fn policy() {
        let admin = UserInfo::admin("admin");
        let node = UserInfo::authenticated("system:node:a", ["system:nodes".to_owned()]);
        let scheduler = UserInfo::authenticated("system:kube-scheduler", []);
        let bob = UserInfo::authenticated("bob", []);
        let anonymous = UserInfo::anonymous();
        assert!(ask(&admin, "DELETE", "/api/v1/namespaces/x"));
        assert!(ask(&node, "PATCH", "/api/v1/nodes/a/status"));
        assert!(!ask(&node, "POST", "/apis/apps/v1/namespaces/x/deployments"));
        assert!(ask(&scheduler, "POST", "/api/v1/namespaces/x/pods/p/binding"));
        assert!(!ask(&scheduler, "POST", "/api/v1/namespaces/x/pods"));
        assert!(!ask(&bob, "GET", "/api/v1/pods"));
        assert!(ask(&bob, "GET", "/apis"));
        assert!(ask(&anonymous, "GET", "/readyz/ping"));
        assert!(!ask(&anonymous, "GET", "/apis"));
        assert!(!ask(&anonymous, "GET", "/readyzz"));
        let info = RequestInfo::parse(&http::Method::GET, "/api/v1/namespaces/d/pods", &Query::default());
        assert_eq!(
            denied(&bob, &info).message(),
            "pods is forbidden: User \"bob\" cannot list resource \"pods\" in API group \"\" in the namespace \"d\""
        );
    }
}
