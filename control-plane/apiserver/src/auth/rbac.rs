//! Role-based access control over an index in memory: who is bound to which role, and what roles allow.

use super::rule::Rule;
use super::{Attributes, Decision, UserInfo, account_name};
use crate::error::quote;
use crate::object::{list_at, meta, str_at};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// API group of roles and bindings.
pub(crate) const GROUP: &str = "rbac.authorization.k8s.io";

/// A subject of a binding.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Subject {
    kind: String,
    name: String,
    namespace: String,
}

impl Subject {
    /// Whether the subject is the user; service accounts without a namespace are of the binding's.
    fn is(&self, user: &UserInfo, namespace: &str) -> bool {
        match self.kind.as_str() {
            "User" => self.name == user.name,
            "Group" => user.in_group(&self.name),
            _ => self.account(namespace).is_some_and(|name| name == user.name),
        }
    }

    fn account(&self, namespace: &str) -> Option<String> {
        let namespace = if self.namespace.is_empty() { namespace } else { &self.namespace };
        (self.kind == "ServiceAccount" && !namespace.is_empty()).then(|| account_name(namespace, &self.name))
    }

    fn text(&self, namespace: &str) -> String {
        if self.kind == "ServiceAccount" {
            let namespace = if self.namespace.is_empty() { namespace } else { &self.namespace };
            return format!("ServiceAccount {}", quote(&format!("{}/{namespace}", self.name)));
        }
        format!("{} {}", self.kind, quote(&self.name))
    }
}

/// What a binding refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RoleRef {
    pub(crate) kind: String,
    pub(crate) name: String,
}

/// A RoleBinding or (without namespace) a ClusterRoleBinding.
#[derive(Debug)]
struct Binding {
    namespace: String,
    name: String,
    role: RoleRef,
    subjects: Vec<Subject>,
}

impl Binding {
    fn parse(object: &Value) -> Self {
        let subjects = list_at(object, &["subjects"]).iter();
        Binding {
            namespace: meta(object, "namespace").to_owned(),
            name: meta(object, "name").to_owned(),
            role: RoleRef {
                kind: str_at(object, &["roleRef", "kind"]).to_owned(),
                name: str_at(object, &["roleRef", "name"]).to_owned(),
            },
            subjects: subjects
                .map(|s| Subject {
                    kind: str_at(s, &["kind"]).to_owned(),
                    name: str_at(s, &["name"]).to_owned(),
                    namespace: str_at(s, &["namespace"]).to_owned(),
                })
                .collect(),
        }
    }

    /// Why a user has the role, as upstream says it in reviews.
    fn reason(&self, user: &UserInfo) -> String {
        let subject = self.subjects.iter().find(|s| s.is(user, &self.namespace));
        let subject = subject.map(|s| s.text(&self.namespace)).unwrap_or_default();
        let (kind, name) = if self.namespace.is_empty() {
            ("ClusterRoleBinding", self.name.clone())
        } else {
            ("RoleBinding", format!("{}/{}", self.name, self.namespace))
        };
        format!(
            "RBAC: allowed by {kind} {} of {} {} to {subject}",
            quote(&name),
            self.role.kind,
            quote(&self.role.name)
        )
    }
}

/// Bindings of one namespace, or of the cluster, by who they are for.
#[derive(Debug, Default)]
struct Index {
    all: HashMap<String, Arc<Binding>>,
    users: HashMap<String, Vec<Arc<Binding>>>,
    groups: HashMap<String, Vec<Arc<Binding>>>,
}

impl Index {
    fn remove(&mut self, name: &str) {
        let Some(old) = self.all.remove(name) else { return };
        for subject in &old.subjects {
            let (map, key) = match subject.kind.as_str() {
                "Group" => (&mut self.groups, Some(subject.name.clone())),
                "User" => (&mut self.users, Some(subject.name.clone())),
                _ => (&mut self.users, subject.account(&old.namespace)),
            };
            let Some(key) = key else { continue };
            if let Some(list) = map.get_mut(&key) {
                list.retain(|binding| !Arc::ptr_eq(binding, &old));
                if list.is_empty() {
                    map.remove(&key);
                }
            }
        }
    }

    fn insert(&mut self, binding: Binding) {
        self.remove(&binding.name);
        let binding = Arc::new(binding);
        for subject in &binding.subjects {
            let (map, key) = match subject.kind.as_str() {
                "Group" => (&mut self.groups, Some(subject.name.clone())),
                "User" => (&mut self.users, Some(subject.name.clone())),
                _ => (&mut self.users, subject.account(&binding.namespace)),
            };
            if let Some(key) = key {
                map.entry(key).or_default().push(binding.clone());
            }
        }
        self.all.insert(binding.name.clone(), binding);
    }

    /// Bindings of a user and its groups.
    fn of<'a>(&'a self, user: &'a UserInfo) -> impl Iterator<Item = &'a Arc<Binding>> {
        let own = self.users.get(&user.name).into_iter().flatten();
        own.chain(user.groups.iter().filter_map(|group| self.groups.get(group)).flatten())
    }
}

/// Roles and bindings as they are in the store, indexed for decisions.
#[derive(Debug, Default)]
pub(crate) struct Rbac {
    cluster_roles: HashMap<String, Arc<[Rule]>>,
    roles: HashMap<String, HashMap<String, Arc<[Rule]>>>,
    cluster: Index,
    namespaces: HashMap<String, Index>,
}

/// Kinds that the index is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Role,
    ClusterRole,
    RoleBinding,
    ClusterRoleBinding,
}

impl Rbac {
    /// Forgets all objects of a kind.
    pub(crate) fn clear(&mut self, part: Part) {
        match part {
            Part::Role => self.roles.clear(),
            Part::ClusterRole => self.cluster_roles.clear(),
            Part::RoleBinding => self.namespaces.clear(),
            Part::ClusterRoleBinding => self.cluster = Index::default(),
        }
    }

    /// Takes a new or changed object in.
    pub(crate) fn put(&mut self, part: Part, object: &Value) {
        let (namespace, name) = (meta(object, "namespace").to_owned(), meta(object, "name").to_owned());
        match part {
            Part::Role => {
                self.roles.entry(namespace).or_default().insert(name, Rule::of_role(object).into());
            }
            Part::ClusterRole => {
                self.cluster_roles.insert(name, Rule::of_role(object).into());
            }
            Part::RoleBinding => self.namespaces.entry(namespace).or_default().insert(Binding::parse(object)),
            Part::ClusterRoleBinding => self.cluster.insert(Binding::parse(object)),
        }
    }

    /// Forgets an object.
    pub(crate) fn remove(&mut self, part: Part, namespace: &str, name: &str) {
        match part {
            Part::Role => {
                if let Some(roles) = self.roles.get_mut(namespace) {
                    roles.remove(name);
                }
            }
            Part::ClusterRole => {
                self.cluster_roles.remove(name);
            }
            Part::RoleBinding => {
                if let Some(index) = self.namespaces.get_mut(namespace) {
                    index.remove(name);
                }
            }
            Part::ClusterRoleBinding => self.cluster.remove(name),
        }
    }

    /// The rules of a role that something in a namespace refers to.
    ///
    /// # Errors
    /// Upstream's text when the role does not exist.
    pub(crate) fn rules_of(&self, role: &RoleRef, namespace: &str) -> Result<&Arc<[Rule]>, String> {
        let missing = |kind: &str| format!("{kind}.{GROUP} {} not found", quote(&role.name));
        match role.kind.as_str() {
            "Role" => self
                .roles
                .get(namespace)
                .and_then(|roles| roles.get(&role.name))
                .ok_or_else(|| missing("role")),
            "ClusterRole" => self.cluster_roles.get(&role.name).ok_or_else(|| missing("clusterrole")),
            other => Err(format!("unsupported role reference kind: {}", quote(other))),
        }
    }

    fn bindings<'a>(&'a self, user: &'a UserInfo, namespace: &str) -> impl Iterator<Item = &'a Arc<Binding>> {
        let local = if namespace.is_empty() { None } else { self.namespaces.get(namespace) };
        self.cluster.of(user).chain(local.into_iter().flat_map(move |index| index.of(user)))
    }

    /// Whether a role bound to the user allows what is asked; the reason names the binding, or the roles that are
    /// bound and missing.
    pub(crate) fn authorize(&self, a: &Attributes<'_>) -> Decision {
        let mut errors = BTreeSet::new();
        for binding in self.bindings(a.user, &a.namespace) {
            match self.rules_of(&binding.role, &binding.namespace) {
                Ok(rules) if rules.iter().any(|rule| rule.allows(a)) => {
                    return Decision::allow(binding.reason(a.user));
                }
                Ok(_) => {}
                Err(error) => {
                    errors.insert(error);
                }
            }
        }
        match aggregate(errors) {
            Some(text) => Decision::pass(format!("RBAC: {text}")),
            None => Decision::pass(""),
        }
    }

    /// All rules of a user in a namespace, and what could not be resolved.
    pub(crate) fn rules_for(&self, user: &UserInfo, namespace: &str) -> (Vec<Rule>, Option<String>) {
        let mut rules = Vec::new();
        let mut errors = BTreeSet::new();
        // Two groups of a user may lead to the same binding.
        let mut seen = BTreeMap::new();
        for binding in self.bindings(user, namespace) {
            seen.insert((binding.namespace.as_str(), binding.name.as_str()), binding);
        }
        for binding in seen.into_values() {
            match self.rules_of(&binding.role, &binding.namespace) {
                Ok(own) => rules.extend(own.iter().cloned()),
                Err(error) => {
                    errors.insert(error);
                }
            }
        }
        (rules, aggregate(errors))
    }
}

/// Several errors as one text, as upstream's aggregates print.
fn aggregate(errors: BTreeSet<String>) -> Option<String> {
    match errors.len() {
        0 => None,
        1 => errors.into_iter().next(),
        _ => Some(format!("[{}]", errors.into_iter().collect::<Vec<_>>().join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn role(name: &str, verb: &str) -> Value {
        json!({"metadata": {"name": name, "namespace": "ns"},
            "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": [verb]}]})
    }

    fn binding(name: &str, kind: &str, role: &str, subject: Value) -> Value {
        json!({"metadata": {"name": name, "namespace": "ns"}, "roleRef": {"kind": kind, "name": role},
            "subjects": [subject]})
    }

    fn ask(rbac: &Rbac, user: &UserInfo, verb: &str, namespace: &str) -> Decision {
        let mut a = Attributes::empty(user);
        (a.verb, a.resource, a.namespace) = (verb.into(), "pods".into(), namespace.into());
        rbac.authorize(&a)
    }

    #[test]
    fn bindings_give_and_their_removal_takes() {
        let mut rbac = Rbac::default();
        let alice = UserInfo::authenticated("alice", ["dev".to_owned()]);
        rbac.put(Part::Role, &role("r", "get"));
        assert_eq!(ask(&rbac, &alice, "get", "ns"), Decision::pass(""));
        rbac.put(Part::RoleBinding, &binding("b", "Role", "r", json!({"kind": "Group", "name": "dev"})));
        assert_eq!(
            ask(&rbac, &alice, "get", "ns"),
            Decision::allow("RBAC: allowed by RoleBinding \"b/ns\" of Role \"r\" to Group \"dev\"")
        );
        assert!(!ask(&rbac, &alice, "get", "other").allowed);
        assert!(!ask(&rbac, &alice, "list", "ns").allowed);
        rbac.put(Part::RoleBinding, &binding("b", "Role", "r", json!({"kind": "User", "name": "bob"})));
        assert!(!ask(&rbac, &alice, "get", "ns").allowed);
        rbac.put(Part::RoleBinding, &binding("b", "Role", "gone", json!({"kind": "User", "name": "alice"})));
        assert_eq!(
            ask(&rbac, &alice, "get", "ns").reason,
            "RBAC: role.rbac.authorization.k8s.io \"gone\" not found"
        );
        rbac.put(
            Part::RoleBinding,
            &binding("c", "ClusterRole", "x", json!({"kind": "User", "name": "alice"})),
        );
        assert_eq!(
            ask(&rbac, &alice, "get", "ns").reason,
            "RBAC: [clusterrole.rbac.authorization.k8s.io \"x\" not found, role.rbac.authorization.k8s.io \"gone\" not found]"
        );
        rbac.remove(Part::RoleBinding, "ns", "b");
        rbac.remove(Part::RoleBinding, "ns", "c");
        assert_eq!(ask(&rbac, &alice, "get", "ns"), Decision::pass(""));
    }

    #[test]
    fn service_accounts_are_of_the_bindings_namespace_unless_said() {
        let mut rbac = Rbac::default();
        rbac.put(Part::Role, &role("r", "get"));
        let account = json!({"kind": "ServiceAccount", "name": "a"});
        rbac.put(Part::RoleBinding, &binding("b", "Role", "r", account));
        let own = UserInfo::service_account("ns", "a", "");
        assert_eq!(
            ask(&rbac, &own, "get", "ns").reason,
            "RBAC: allowed by RoleBinding \"b/ns\" of Role \"r\" to ServiceAccount \"a/ns\""
        );
        assert!(!ask(&rbac, &UserInfo::service_account("other", "a", ""), "get", "ns").allowed);
    }

    proptest! {
        /// After any sequence of changes the index answers as one built from the objects that are left.
        #[test]
        fn changes_leave_no_trace(steps in proptest::collection::vec((0..3_usize, 0..3_usize, any::<bool>()), 0..30)) {
            let users: Vec<UserInfo> =
                ["u0", "u1", "u2"].iter().map(|u| UserInfo::authenticated(*u, [])).collect();
            let mut rbac = Rbac::default();
            rbac.put(Part::Role, &role("r", "get"));
            let mut left: HashMap<usize, usize> = HashMap::new();
            for (name, user, put) in steps {
                if put {
                    let subject = json!({"kind": "User", "name": format!("u{user}")});
                    rbac.put(Part::RoleBinding, &binding(&format!("b{name}"), "Role", "r", subject));
                    left.insert(name, user);
                } else {
                    rbac.remove(Part::RoleBinding, "ns", &format!("b{name}"));
                    left.remove(&name);
                }
                for (at, user) in users.iter().enumerate() {
                    prop_assert_eq!(ask(&rbac, user, "get", "ns").allowed, left.values().any(|u| *u == at));
                }
            }
        }
    }
}
