//! Verb and resource from method and path.

use super::Query;

/// What a path and method ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// `false`: discovery, health and the like.
    pub is_resource: bool,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; the lower-case method for
    /// other paths.
    pub verb: &'static str,
    /// Path.
    pub path: String,
    /// API group, empty for the core group.
    pub group: String,
    /// Version.
    pub version: String,
    /// Namespace, empty for none.
    pub namespace: String,
    /// Plural name.
    pub resource: String,
    /// Subresource, empty for none.
    pub subresource: String,
    /// Name, empty for collections.
    pub name: String,
    /// More path elements than a resource has.
    pub surplus: bool,
}

fn method_verb(method: &http::Method) -> &'static str {
    match method.as_str() {
        "GET" => "get",
        "HEAD" => "get",
        "POST" => "create",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        _ => "",
    }
}

fn lower(method: &http::Method) -> &'static str {
    match method.as_str() {
        "GET" => "get",
        "HEAD" => "head",
        "POST" => "post",
        "PUT" => "put",
        "PATCH" => "patch",
        "DELETE" => "delete",
        "OPTIONS" => "options",
        _ => "other",
    }
}

/// The one name that the field selector leaves, if it can be part of a path.
fn selected_name(query: &Query) -> Option<String> {
    let selector = crate::selector::FieldSelector::parse(query.get("fieldSelector")?).ok()?;
    let name = selector.exact("metadata.name")?;
    let segment = !name.is_empty() && !matches!(name, "." | "..") && !name.contains(['/', '%']);
    segment.then(|| name.to_owned())
}

impl RequestInfo {
    /// Parses; never fails: what is no resource path is a non-resource request.
    pub fn parse(method: &http::Method, path: &str, query: &Query) -> Self {
        let mut info = RequestInfo { verb: lower(method), path: path.to_owned(), ..Self::default() };
        let parts: Vec<String> = path
            .split('/')
            .filter(|part| !part.is_empty())
            .map(|part| super::percent_decode(part, false))
            .collect();
        let mut parts = parts.as_slice();
        match parts {
            [api, version, rest @ ..] if api == "api" => {
                info.version.clone_from(version);
                parts = rest;
            }
            [api, group, version, rest @ ..] if api == "apis" => {
                info.group.clone_from(group);
                info.version.clone_from(version);
                parts = rest;
            }
            _ => return info,
        }
        if parts.is_empty() {
            return info;
        }
        info.is_resource = true;
        info.verb = method_verb(method);
        let mut old_watch = false;
        if let [first, rest @ ..] = parts
            && first == "watch"
            && !rest.is_empty()
        {
            old_watch = true;
            parts = rest;
        }
        if let [first, namespace, rest @ ..] = parts
            && first == "namespaces"
        {
            info.namespace.clone_from(namespace);
            let own = matches!(rest.first().map(String::as_str), Some("status" | "finalize"));
            if !rest.is_empty() && !own {
                parts = rest;
            }
        }
        if let [resource, rest @ ..] = parts {
            info.resource.clone_from(resource);
            if let [name, rest @ ..] = rest {
                info.name.clone_from(name);
                if let [subresource, rest @ ..] = rest {
                    info.subresource.clone_from(subresource);
                    // Only what is proxied has a path of its own.
                    info.surplus = !rest.is_empty() && subresource != "proxy";
                }
            }
        }
        if info.resource == "namespaces" {
            // A namespace is not in a namespace, but authorization sees it there.
            info.namespace.clone_from(&info.name);
        }
        if old_watch {
            info.verb = "watch";
        } else if info.name.is_empty() && info.verb == "get" {
            info.verb = if query.flag("watch") { "watch" } else { "list" };
            // Who may read only an object by this name may list and watch it by a selector, too.
            if let Some(name) = selected_name(query) {
                info.name = name;
            }
        } else if info.name.is_empty() && info.verb == "delete" {
            info.verb = "deletecollection";
        }
        info
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(method: &str, path: &str, query: &str) -> RequestInfo {
        let method = http::Method::from_bytes(method.as_bytes()).expect("method");
        RequestInfo::parse(&method, path, &Query::parse(query))
    }

    #[test]
    fn verbs_and_parts() {
        let info = parse("GET", "/api/v1/namespaces/default/pods/a/log", "");
        assert_eq!((info.verb, &*info.namespace, &*info.resource), ("get", "default", "pods"));
        assert_eq!((&*info.name, &*info.subresource), ("a", "log"));
        let info = parse("GET", "/apis/apps/v1/deployments", "watch=true");
        assert_eq!((info.verb, &*info.group, &*info.resource), ("watch", "apps", "deployments"));
        let info = parse("DELETE", "/api/v1/namespaces/x/pods", "");
        assert_eq!(info.verb, "deletecollection");
        let info = parse("PUT", "/api/v1/namespaces/x/finalize", "");
        assert_eq!((&*info.resource, &*info.name, &*info.subresource), ("namespaces", "x", "finalize"));
        let info = parse("GET", "/api/v1/namespaces/x", "");
        assert_eq!((info.verb, &*info.resource, &*info.name), ("get", "namespaces", "x"));
        let info = parse("GET", "/api/v1/watch/namespaces/x/pods/p", "");
        assert_eq!((info.verb, &*info.namespace, &*info.name), ("watch", "x", "p"));
        let info =
            parse("GET", "/api/v1/namespaces/x/pods", "fieldSelector=metadata.name%3Dp,spec.nodeName%3Dn");
        assert_eq!((info.verb, &*info.namespace, &*info.name), ("list", "x", "p"));
        let info = parse("GET", "/api/v1/pods", "fieldSelector=metadata.name!%3Dp&watch=1");
        assert_eq!((info.verb, &*info.name), ("watch", ""));
        let info = parse("GET", "/apis/apps", "");
        assert!(!info.is_resource);
        assert_eq!(info.verb, "get");
    }

    proptest! {
        #[test]
        fn no_path_panics(path in "(/[a-z%0-9]{0,6}){0,9}") {
            let _ = parse("GET", &path, "watch=1");
        }
    }
}
