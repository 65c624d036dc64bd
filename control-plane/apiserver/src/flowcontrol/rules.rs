//! Which requests a FlowSchema is about.

use crate::auth::UserInfo;
use crate::object::{list_at, str_at};
use crate::request::RequestInfo;
use serde_json::Value;

/// A request as rules see it.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) user: &'a UserInfo,
    pub(crate) info: &'a RequestInfo,
}

#[derive(Debug)]
enum Subject {
    User(String),
    Group(String),
    /// Namespace and name.
    Account(String, String),
}

impl Subject {
    fn parse(value: &Value) -> Option<Self> {
        Some(match str_at(value, &["kind"]) {
            "User" => Subject::User(str_at(value, &["user", "name"]).to_owned()),
            "Group" => Subject::Group(str_at(value, &["group", "name"]).to_owned()),
            "ServiceAccount" => Subject::Account(
                str_at(value, &["serviceAccount", "namespace"]).to_owned(),
                str_at(value, &["serviceAccount", "name"]).to_owned(),
            ),
            _ => return None,
        })
    }

    fn is(&self, user: &UserInfo) -> bool {
        match self {
            Subject::User(name) => name == "*" || *name == user.name,
            Subject::Group(name) => name == "*" || user.in_group(name),
            Subject::Account(namespace, name) => user
                .name
                .strip_prefix("system:serviceaccount:")
                .and_then(|rest| rest.strip_prefix(namespace.as_str()))
                .and_then(|rest| rest.strip_prefix(':'))
                .is_some_and(|account| name == "*" || name == account),
        }
    }
}

#[derive(Debug)]
struct ResourceRule {
    verbs: Vec<String>,
    groups: Vec<String>,
    resources: Vec<String>,
    cluster_scope: bool,
    namespaces: Vec<String>,
}

#[derive(Debug)]
struct PathRule {
    verbs: Vec<String>,
    paths: Vec<String>,
}

/// One of a schema's rules.
#[derive(Debug)]
pub(super) struct Rule {
    subjects: Vec<Subject>,
    resources: Vec<ResourceRule>,
    paths: Vec<PathRule>,
}

fn strings(value: &Value, field: &str) -> Vec<String> {
    list_at(value, &[field]).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// The wildcard counts only when it is alone, which validation asks for.
fn contains(list: &[String], wildcard: &str, text: &str) -> bool {
    matches!(list, [one] if one == wildcard) || list.iter().any(|one| one == text)
}

impl Rule {
    pub(super) fn parse(value: &Value) -> Self {
        Rule {
            subjects: list_at(value, &["subjects"]).iter().filter_map(Subject::parse).collect(),
            resources: list_at(value, &["resourceRules"])
                .iter()
                .map(|rule| ResourceRule {
                    verbs: strings(rule, "verbs"),
                    groups: strings(rule, "apiGroups"),
                    resources: strings(rule, "resources"),
                    cluster_scope: crate::object::bool_at(rule, &["clusterScope"]),
                    namespaces: strings(rule, "namespaces"),
                })
                .collect(),
            paths: list_at(value, &["nonResourceRules"])
                .iter()
                .map(|rule| PathRule {
                    verbs: strings(rule, "verbs"),
                    paths: strings(rule, "nonResourceURLs"),
                })
                .collect(),
        }
    }

    pub(super) fn matches(&self, asked: &Asked<'_>) -> bool {
        if !self.subjects.iter().any(|subject| subject.is(asked.user)) {
            return false;
        }
        if asked.info.is_resource {
            self.resources.iter().any(|rule| rule.matches(asked.info))
        } else {
            self.paths.iter().any(|rule| rule.matches(asked.info))
        }
    }
}

impl ResourceRule {
    fn matches(&self, info: &RequestInfo) -> bool {
        let resource = || match info.subresource.as_str() {
            "" => contains(&self.resources, "*", &info.resource),
            sub => contains(&self.resources, "*", &format!("{}/{sub}", info.resource)),
        };
        contains(&self.verbs, "*", info.verb)
            && contains(&self.groups, "*", &info.group)
            && resource()
            && match info.namespace.as_str() {
                "" => self.cluster_scope,
                namespace => contains(&self.namespaces, "*", namespace),
            }
    }
}

impl PathRule {
    fn matches(&self, info: &RequestInfo) -> bool {
        contains(&self.verbs, "*", info.verb)
            && self.paths.iter().any(|path| {
                let prefix = path.strip_suffix('*').unwrap_or(path);
                path == "*"
                    || *path == info.path
                    || info
                        .path
                        .strip_prefix(prefix.strip_suffix('/').unwrap_or(prefix))
                        .is_some_and(|rest| rest.starts_with('/'))
            })
    }
}
