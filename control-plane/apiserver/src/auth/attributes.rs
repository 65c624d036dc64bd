//! What is asked of authorization, and its answer.

use super::UserInfo;
use crate::error::{ApiError, quote};
use crate::request::{Query, RequestInfo};
use crate::selector::FieldSelector;
use std::borrow::Cow;

/// A question: may this user do this?
#[derive(Debug, Clone)]
pub struct Attributes<'a> {
    /// Who.
    pub user: &'a UserInfo,
    /// Resource or path.
    pub is_resource: bool,
    /// Verb.
    pub verb: Cow<'a, str>,
    /// API group.
    pub group: Cow<'a, str>,
    /// Version.
    pub version: Cow<'a, str>,
    /// Plural name.
    pub resource: Cow<'a, str>,
    /// Subresource, empty for none.
    pub subresource: Cow<'a, str>,
    /// Namespace, empty for none or all.
    pub namespace: Cow<'a, str>,
    /// Name, empty for all.
    pub name: Cow<'a, str>,
    /// Path of what is no resource.
    pub path: Cow<'a, str>,
    /// Fields that a list or watch is restricted to.
    pub fields: FieldSelector,
}

impl<'a> Attributes<'a> {
    /// Nothing of anything, to be filled in.
    pub fn empty(user: &'a UserInfo) -> Self {
        Attributes {
            user,
            is_resource: true,
            verb: "".into(),
            group: "".into(),
            version: "".into(),
            resource: "".into(),
            subresource: "".into(),
            namespace: "".into(),
            name: "".into(),
            path: "".into(),
            fields: FieldSelector::default(),
        }
    }

    /// What a request asks for. A list or watch that a field selector restricts to one name asks for that name, as
    /// upstream's request info has it.
    pub fn of(user: &'a UserInfo, info: &'a RequestInfo, query: &'a Query) -> Self {
        let collection = info.is_resource && matches!(info.verb, "list" | "watch" | "deletecollection");
        let fields = match query.get("fieldSelector").filter(|_| collection) {
            // A malformed selector is refused later, when it is used.
            Some(text) => FieldSelector::parse(text).unwrap_or_default(),
            None => FieldSelector::default(),
        };
        let named =
            fields.exact("metadata.name").filter(|_| info.name.is_empty() && info.verb != "deletecollection");
        let name = match named {
            Some(name) => Cow::Owned(name.to_owned()),
            None => Cow::Borrowed(info.name.as_str()),
        };
        Attributes {
            user,
            is_resource: info.is_resource,
            verb: Cow::Borrowed(info.verb),
            group: Cow::Borrowed(&info.group),
            version: Cow::Borrowed(&info.version),
            resource: Cow::Borrowed(&info.resource),
            subresource: Cow::Borrowed(&info.subresource),
            namespace: Cow::Borrowed(&info.namespace),
            name,
            path: Cow::Borrowed(&info.path),
            fields,
        }
    }

    /// 403 with upstream's words (`responsewriters.ForbiddenStatusError`), which escape what HTML would interpret.
    pub fn forbidden(&self, reason: &str) -> ApiError {
        let user = quote(&self.user.name);
        let verb = &self.verb;
        let text = if !self.is_resource {
            format!("User {user} cannot {verb} path {}", quote(&self.path))
        } else {
            let resource = if self.subresource.is_empty() {
                quote(&self.resource)
            } else {
                quote(&format!("{}/{}", self.resource, self.subresource))
            };
            let place = if self.namespace.is_empty() {
                "at the cluster scope".to_owned()
            } else {
                format!("in the namespace {}", quote(&self.namespace))
            };
            format!(
                "User {user} cannot {verb} resource {resource} in API group {} {place}",
                quote(&self.group)
            )
        };
        let mut why = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        if !reason.is_empty() {
            why.push_str(": ");
            why.push_str(reason);
        }
        ApiError::forbidden(&self.group, &self.resource, &self.name, &why)
    }
}

/// The answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// Allowed; otherwise nobody had an opinion, which is a refusal.
    pub allowed: bool,
    /// Why, may be empty.
    pub reason: String,
}

impl Decision {
    /// Allowed, with the reason.
    pub fn allow(reason: impl Into<String>) -> Self {
        Decision { allowed: true, reason: reason.into() }
    }

    /// No opinion, with the reason.
    pub fn pass(reason: impl Into<String>) -> Self {
        Decision { allowed: false, reason: reason.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(method: &str, path: &str, query: &str) -> String {
        let bob = UserInfo::authenticated("bob", []);
        let query = Query::parse(query);
        let method = http::Method::from_bytes(method.as_bytes()).expect("method");
        let info = RequestInfo::parse(&method, path, &query);
        Attributes::of(&bob, &info, &query).forbidden("").message().to_owned()
    }

    #[test]
    fn upstream_texts() {
        assert_eq!(
            refusal("GET", "/api/v1/namespaces/d/pods", ""),
            "pods is forbidden: User \"bob\" cannot list resource \"pods\" in API group \"\" in the namespace \"d\""
        );
        assert_eq!(
            refusal("DELETE", "/api/v1/nodes/n", ""),
            "nodes \"n\" is forbidden: User \"bob\" cannot delete resource \"nodes\" in API group \"\" at the cluster scope"
        );
        assert_eq!(
            refusal("GET", "/api/v1/namespaces/d", ""),
            "namespaces \"d\" is forbidden: User \"bob\" cannot get resource \"namespaces\" in API group \"\" in the namespace \"d\""
        );
        assert_eq!(refusal("GET", "/metrics", ""), "forbidden: User \"bob\" cannot get path \"/metrics\"");
        assert_eq!(
            refusal("GET", "/apis/apps/v1/deployments", "watch=1&fieldSelector=metadata.name%3Dx"),
            "deployments.apps \"x\" is forbidden: User \"bob\" cannot watch resource \"deployments\" in API group \"apps\" at the cluster scope"
        );
    }
}
