//! Who sends a request.

use crate::object::{get, list_at, str_at};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Who sent a request (`k8s.io/apiserver/pkg/authentication/user.Info`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserInfo {
    /// Name.
    pub name: String,
    /// Identity that outlives a reused name, empty when there is none.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// What an authenticator says beside, by key.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// Group of everybody who proved an identity.
pub const AUTHENTICATED: &str = "system:authenticated";
/// Group of everybody else.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// Group that may do everything.
pub const MASTERS: &str = "system:masters";
/// Group of nodes.
pub const NODES: &str = "system:nodes";
/// Name of who proved no identity.
pub const ANONYMOUS: &str = "system:anonymous";
/// What the names of nodes begin with.
const NODE_PREFIX: &str = "system:node:";
/// What the names of service accounts begin with.
const ACCOUNT_PREFIX: &str = "system:serviceaccount:";
/// Key of [`UserInfo::extra`]: which certificate or token proved the identity.
pub const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

impl UserInfo {
    /// A user who proved an identity.
    pub fn authenticated(name: impl Into<String>, groups: impl IntoIterator<Item = String>) -> Self {
        let mut groups: Vec<String> = groups.into_iter().collect();
        if !groups.iter().any(|g| g == AUTHENTICATED) {
            groups.push(AUTHENTICATED.to_owned());
        }
        UserInfo { name: name.into(), groups, ..Self::default() }
    }

    /// Somebody without an identity.
    pub fn anonymous() -> Self {
        UserInfo { name: ANONYMOUS.to_owned(), groups: vec![UNAUTHENTICATED.to_owned()], ..Self::default() }
    }

    /// A member of `system:masters`, for the server itself and for administrators.
    pub fn admin(name: &str) -> Self {
        Self::authenticated(name, [MASTERS.to_owned()])
    }

    /// A service account.
    pub fn service_account(namespace: &str, name: &str, uid: &str) -> Self {
        let user = Self::authenticated(account_name(namespace, name), account_groups(namespace));
        UserInfo { uid: uid.to_owned(), ..user }
    }

    /// Whether the user is in a group.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// Name of the node that the user is: `system:node:NAME` in the group `system:nodes`.
    pub fn node(&self) -> Option<&str> {
        self.name.strip_prefix(NODE_PREFIX).filter(|_| self.in_group(NODES))
    }

    /// As `userInfo` of reviews.
    pub fn to_value(&self) -> Value {
        let mut out = Map::new();
        let mut put = |key: &str, value: Value| {
            out.insert(key.to_owned(), value);
        };
        if !self.name.is_empty() {
            put("username", self.name.as_str().into());
        }
        if !self.uid.is_empty() {
            put("uid", self.uid.as_str().into());
        }
        if !self.groups.is_empty() {
            put("groups", self.groups.clone().into());
        }
        if !self.extra.is_empty() {
            put("extra", extra_value(&self.extra));
        }
        Value::Object(out)
    }

    /// From the `user`, `uid`, `groups` and `extra` of a SubjectAccessReview's spec.
    pub fn of_review(spec: &Value) -> Self {
        let texts = |list: &[Value]| list.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        let extra = get(spec, &["extra"]).and_then(Value::as_object).into_iter().flatten();
        UserInfo {
            name: str_at(spec, &["user"]).to_owned(),
            uid: str_at(spec, &["uid"]).to_owned(),
            groups: texts(list_at(spec, &["groups"])),
            extra: extra
                .map(|(key, values)| (key.clone(), texts(values.as_array().map_or(&[], Vec::as_slice))))
                .collect(),
        }
    }
}

/// `extra` as JSON.
pub(crate) fn extra_value(extra: &BTreeMap<String, Vec<String>>) -> Value {
    Value::Object(extra.iter().map(|(key, values)| (key.clone(), values.clone().into())).collect())
}

/// `system:serviceaccount:NAMESPACE:NAME`.
pub fn account_name(namespace: &str, name: &str) -> String {
    format!("{ACCOUNT_PREFIX}{namespace}:{name}")
}

/// Namespace and name of a service account's user name; `None` for other names.
pub fn split_account(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix(ACCOUNT_PREFIX)?.split_once(':')?;
    let valid = kelp_model::names::dns1123_label(namespace).is_empty()
        && kelp_model::names::dns1123_subdomain(name).is_empty();
    valid.then_some((namespace, name))
}

/// Name of the node that a user name belongs to, whatever the user's groups.
pub fn split_node(user: &str) -> Option<&str> {
    user.strip_prefix(NODE_PREFIX).filter(|name| kelp_model::names::dns1123_subdomain(name).is_empty())
}

/// Groups of a service account.
pub fn account_groups(namespace: &str) -> [String; 2] {
    ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_of_accounts_and_nodes() {
        assert_eq!(split_account("system:serviceaccount:ns:a.b"), Some(("ns", "a.b")));
        assert_eq!(split_account("system:serviceaccount:ns:"), None);
        assert_eq!(split_account("system:serviceaccount:ns:a:b"), None);
        let mut node = UserInfo::authenticated("system:node:n", [NODES.to_owned()]);
        assert_eq!(node.node(), Some("n"));
        node.groups.clear();
        assert_eq!(node.node(), None);
        assert_eq!(split_node("system:node:n"), Some("n"));
    }

    #[test]
    fn a_user_in_reviews() {
        let user = UserInfo::service_account("ns", "a", "u");
        assert_eq!(
            user.to_value(),
            json!({"username": "system:serviceaccount:ns:a", "uid": "u", "groups":
                ["system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated"]})
        );
        let spec = json!({"user": "u", "groups": ["g"], "extra": {"k": ["v"]}});
        let user = UserInfo::of_review(&spec);
        assert_eq!(
            (user.name.as_str(), &user.groups, &user.extra["k"]),
            ("u", &vec!["g".to_owned()], &vec!["v".to_owned()])
        );
    }
}
