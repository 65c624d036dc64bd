//! Acting as somebody else, by request headers.
//!
//! As upstream's constrained impersonation (KEP-5284, on by default since 1.36): narrow modes that also name the action
//! are tried before the old `impersonate` verb, and the first refusal is what the client sees.

use super::policy::Policy;
use super::{
    ANONYMOUS, AUTHENTICATED, Attributes, MASTERS, NODES, UNAUTHENTICATED, UserInfo, account_groups,
    split_account, split_node,
};
use crate::error::{ApiError, quote};
use crate::request::percent_decode;
use http::HeaderMap;
use std::collections::BTreeMap;

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";
/// API group of what is impersonated in the narrow modes.
const AUTHENTICATION: &str = "authentication.k8s.io";
/// Key under which a token says which node its pod runs on.
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// The user that headers ask for, as they say it; `None` without any.
///
/// # Errors
/// 400 for groups, uid or extra without a user.
fn wanted(headers: &HeaderMap) -> Result<Option<UserInfo>, ApiError> {
    let values =
        |name: &str| headers.get_all(name).into_iter().filter_map(|v| v.to_str().ok()).map(str::to_owned);
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for name in headers.keys() {
        if let Some(key) = name.as_str().strip_prefix(EXTRA) {
            extra.entry(percent_decode(key, false)).or_default().extend(values(name.as_str()));
        }
    }
    let user = UserInfo {
        name: values(USER).next().unwrap_or_default(),
        uid: values(UID).next().unwrap_or_default(),
        groups: values(GROUP).collect(),
        extra,
    };
    if !user.name.is_empty() {
        return Ok(Some(user));
    }
    if only_name(&user) {
        return Ok(None);
    }
    Err(ApiError::bad_request(format!("requested {} without impersonating a user name", go_syntax(&user))))
}

/// A user as Go's `%#v` prints it.
fn go_syntax(user: &UserInfo) -> String {
    let list = |list: &[String]| {
        if list.is_empty() {
            return "[]string(nil)".to_owned();
        }
        format!("[]string{{{}}}", list.iter().map(|text| quote(text)).collect::<Vec<_>>().join(", "))
    };
    let extra = if user.extra.is_empty() {
        "map[string][]string(nil)".to_owned()
    } else {
        let entries: Vec<String> =
            user.extra.iter().map(|(key, values)| format!("{}:{}", quote(key), list(values))).collect();
        format!("map[string][]string{{{}}}", entries.join(", "))
    };
    format!(
        "&user.DefaultInfo{{Name:{}, UID:{}, Groups:{}, Extra:{extra}}}",
        quote(&user.name),
        quote(&user.uid),
        list(&user.groups)
    )
}

fn only_name(user: &UserInfo) -> bool {
    user.uid.is_empty() && user.groups.is_empty() && user.extra.is_empty()
}

/// A way to impersonate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    AssociatedNode,
    ArbitraryNode,
    ServiceAccount,
    UserInfo,
    Legacy,
}

const MODES: [Mode; 5] =
    [Mode::AssociatedNode, Mode::ArbitraryNode, Mode::ServiceAccount, Mode::UserInfo, Mode::Legacy];

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Mode::AssociatedNode => "associated-node",
            Mode::ArbitraryNode => "arbitrary-node",
            Mode::ServiceAccount => "serviceaccount",
            Mode::UserInfo => "user-info",
            Mode::Legacy => "",
        }
    }

    /// Whether this way leads to the wanted user at all.
    fn fits(self, caller: &UserInfo, wanted: &UserInfo) -> bool {
        let node = split_node(&wanted.name);
        let account = split_account(&wanted.name).is_some();
        match self {
            Mode::AssociatedNode => {
                let own = caller.extra.get(NODE_NAME).map(Vec::as_slice);
                only_name(wanted)
                    && split_account(&caller.name).is_some()
                    && matches!((node, own), (Some(node), Some([own])) if own == node)
            }
            Mode::ArbitraryNode => only_name(wanted) && node.is_some(),
            Mode::ServiceAccount => only_name(wanted) && account,
            Mode::UserInfo => node.is_none() && !account,
            Mode::Legacy => true,
        }
    }

    /// What must be allowed for the wanted user; an error refuses at once.
    fn checks<'a>(self, caller: &'a UserInfo, wanted: &UserInfo) -> Result<Vec<Attributes<'a>>, ApiError> {
        let legacy = self == Mode::Legacy;
        let verb = if legacy { "impersonate".to_owned() } else { format!("impersonate:{}", self.name()) };
        let ask = |group: &'static str, resource: &'static str, name: &str| {
            let mut a = Attributes::empty(caller);
            a.verb = verb.clone().into();
            (a.group, a.version, a.resource) = (group.into(), "v1".into(), resource.into());
            a.name = name.to_owned().into();
            a
        };
        let names_group = if legacy { "" } else { AUTHENTICATION };
        let mut user = ask(names_group, "users", &wanted.name);
        if let Some(node) = split_node(&wanted.name).filter(|_| !legacy) {
            let name = if self == Mode::AssociatedNode { "*" } else { node };
            user = ask(names_group, "nodes", name);
        }
        if let Some((namespace, name)) = split_account(&wanted.name) {
            user = ask(names_group, "serviceaccounts", name);
            user.namespace = namespace.to_owned().into();
        }
        let mut checks = vec![user];
        if !wanted.uid.is_empty() {
            checks.push(ask(AUTHENTICATION, "uids", &wanted.uid));
        }
        if !legacy {
            if wanted.groups.iter().any(String::is_empty) {
                let why = "impersonating the empty string group is not allowed";
                return Err(ask(names_group, "groups", "").forbidden(why));
            }
            if wanted.in_group(MASTERS) {
                let why = "impersonating the system:masters group is not allowed";
                return Err(ask(names_group, "groups", MASTERS).forbidden(why));
            }
        }
        checks.extend(wanted.groups.iter().map(|group| ask(names_group, "groups", group)));
        for (key, values) in &wanted.extra {
            if !legacy && (key.is_empty() || values.iter().any(String::is_empty)) {
                let what = if key.is_empty() { "key" } else { "value" };
                let why = format!("impersonating the empty string {what} in extra is not allowed");
                return Err(ask(AUTHENTICATION, "userextras", "").forbidden(&why));
            }
            for value in values {
                let mut a = ask(AUTHENTICATION, "userextras", value);
                a.subresource = key.clone().into();
                checks.push(a);
            }
        }
        Ok(checks)
    }

    /// The user that comes out.
    fn user(self, wanted: &UserInfo) -> UserInfo {
        let mut user = wanted.clone();
        if self != Mode::Legacy && split_node(&user.name).is_some() {
            user.groups = vec![NODES.to_owned()];
        }
        if user.groups.is_empty()
            && let Some((namespace, _)) = split_account(&wanted.name)
        {
            user.groups = account_groups(namespace).to_vec();
        }
        let group = if user.name == ANONYMOUS { UNAUTHENTICATED } else { AUTHENTICATED };
        if !user.in_group(group) && !user.in_group(UNAUTHENTICATED) {
            user.groups.push(group.to_owned());
        }
        user
    }
}

async fn attempt(
    policy: &Policy,
    mode: Mode,
    wanted: &UserInfo,
    request: &Attributes<'_>,
) -> Result<UserInfo, ApiError> {
    let mut checks = Vec::new();
    if mode != Mode::Legacy {
        let mut on = request.clone();
        on.verb = format!("impersonate-on:{}:{}", mode.name(), request.verb).into();
        checks.push(on);
    }
    // In the order of upstream: what is done, then what is refused outright, then who it is done as.
    for check in &checks {
        require(policy, check).await?;
    }
    for check in mode.checks(request.user, wanted)? {
        require(policy, &check).await?;
    }
    Ok(mode.user(wanted))
}

async fn require(policy: &Policy, check: &Attributes<'_>) -> Result<(), ApiError> {
    let decision = policy.authorize(check).await?;
    if decision.allowed { Ok(()) } else { Err(check.forbidden(&decision.reason)) }
}

/// The user that a request acts as; `None` when it does not ask for another. `request` is what the caller asks for.
///
/// # Errors
/// 403 when the caller may not act as that user; 400 for groups without a user.
pub(crate) async fn impersonated(
    policy: &Policy,
    headers: &HeaderMap,
    request: &Attributes<'_>,
) -> Result<Option<UserInfo>, ApiError> {
    let Some(wanted) = wanted(headers)? else { return Ok(None) };
    let mut first = None;
    for mode in MODES.into_iter().filter(|mode| mode.fits(request.user, &wanted)) {
        match attempt(policy, mode, &wanted, request).await {
            Ok(user) => return Ok(Some(user)),
            Err(error) => {
                first.get_or_insert(error);
            }
        }
    }
    Err(first.unwrap_or_else(|| ApiError::plain_internal("all impersonation modes failed")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            headers.append(*name, value.parse().expect("header"));
        }
        headers
    }

    #[test]
    fn what_headers_ask_for() {
        assert_eq!(wanted(&headers(&[])), Ok(None));
        let error = wanted(&headers(&[(GROUP, "g")])).expect_err("no user");
        assert_eq!(
            (error.code(), error.message()),
            (
                400,
                "requested &user.DefaultInfo{Name:\"\", UID:\"\", Groups:[]string{\"g\"}, Extra:map[string][]string(nil)} without impersonating a user name"
            )
        );
        let user = wanted(&headers(&[
            (USER, "u"),
            (UID, "1"),
            ("impersonate-extra-a%2fb", "x"),
            ("impersonate-extra-a%2fb", "y"),
        ]));
        let user = user.expect("valid").expect("a user");
        assert_eq!(user.extra["a/b"], ["x", "y"]);
    }

    #[test]
    fn groups_of_who_is_impersonated() {
        let named = |name: &str| UserInfo { name: name.to_owned(), ..UserInfo::default() };
        let groups = |mode: Mode, user: &UserInfo| mode.user(user).groups.join(",");
        assert_eq!(groups(Mode::Legacy, &named("bob")), "system:authenticated");
        assert_eq!(groups(Mode::Legacy, &named(ANONYMOUS)), "system:unauthenticated");
        assert_eq!(groups(Mode::ArbitraryNode, &named("system:node:n")), "system:nodes,system:authenticated");
        assert_eq!(
            groups(Mode::Legacy, &named("system:serviceaccount:ns:a")),
            "system:serviceaccounts,system:serviceaccounts:ns,system:authenticated"
        );
    }

    #[test]
    fn narrow_modes_fit_who_they_are_for() {
        let fits = |caller: &UserInfo, name: &str| {
            let wanted = UserInfo { name: name.to_owned(), ..UserInfo::default() };
            MODES.into_iter().filter(|m| m.fits(caller, &wanted)).collect::<Vec<_>>()
        };
        let bob = UserInfo::authenticated("bob", []);
        let mut agent = UserInfo::service_account("ns", "agent", "");
        agent.extra.insert(NODE_NAME.to_owned(), vec!["n".to_owned()]);
        assert_eq!(fits(&bob, "alice"), [Mode::UserInfo, Mode::Legacy]);
        assert_eq!(fits(&bob, "system:node:n"), [Mode::ArbitraryNode, Mode::Legacy]);
        assert_eq!(fits(&agent, "system:node:n"), [Mode::AssociatedNode, Mode::ArbitraryNode, Mode::Legacy]);
        assert_eq!(fits(&agent, "system:node:m"), [Mode::ArbitraryNode, Mode::Legacy]);
        assert_eq!(fits(&bob, "system:serviceaccount:ns:a"), [Mode::ServiceAccount, Mode::Legacy]);
    }
}
