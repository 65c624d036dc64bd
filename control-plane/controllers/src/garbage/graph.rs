//! Who owns whom, and what a change calls for.

use std::collections::{HashMap, HashSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

/// Finalizer of an object that waits for its dependents' deletion.
pub const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of an object whose dependents are to be left alone.
pub const ORPHAN: &str = "orphan";

/// Where an object is found.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    /// `apps/v1`, `v1`.
    pub api_version: String,
    /// Kind.
    pub kind: String,
    /// Namespace; of an owner known only by reference: that of the dependent.
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
}

/// An object, or an owner known only by reference.
#[derive(Debug, Clone)]
pub struct Node {
    /// Where it is found.
    pub identity: Identity,
    /// Its owners.
    pub owners: Vec<OwnerReference>,
    /// UIDs of objects that name it as an owner.
    pub dependents: HashSet<String>,
    /// Whether its deletion was asked for.
    pub deleting: bool,
    /// Whether it waits for its dependents to go.
    pub foreground: bool,
    /// Whether its dependents are to be released.
    pub orphaning: bool,
    /// Whether it was only seen in references so far.
    pub is_virtual: bool,
}

/// Something to look at again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// Whether this object (UID) should go.
    Check(String),
    /// The dependents of this object (UID) are to be released.
    Orphan(String),
}

/// The ownership graph, by UID.
#[derive(Debug, Default)]
pub struct Graph {
    nodes: HashMap<String, Node>,
}

impl Graph {
    /// The node of a UID.
    pub fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    /// Dependents that keep an owner with the foreground finalizer waiting. One that waits for the owner in turn does not: in a
    /// circle neither would ever go.
    pub fn blocking_dependents(&self, uid: &str) -> Vec<&Node> {
        self.blocking(uid).filter(|d| !self.waits_for(d, uid)).collect()
    }

    fn blocking<'a>(&'a self, uid: &str) -> impl Iterator<Item = &'a Node> {
        let dependents = self.nodes.get(uid).into_iter().flat_map(|node| &node.dependents);
        dependents
            .filter_map(|d| self.nodes.get(d))
            .filter(move |d| d.owners.iter().any(|r| r.uid == uid && r.block_owner_deletion == Some(true)))
    }

    /// Whether an object waits, itself or through those it waits for, until the object of `uid` is gone.
    fn waits_for(&self, node: &Node, uid: &str) -> bool {
        let (mut ahead, mut seen) = (vec![node], HashSet::new());
        while let Some(node) = ahead.pop() {
            if node.identity.uid == uid {
                return true;
            }
            if node.foreground && seen.insert(node.identity.uid.as_str()) {
                ahead.extend(self.blocking(&node.identity.uid));
            }
        }
        false
    }

    /// An object was added or changed.
    pub fn present(&mut self, api_version: &str, kind: &str, meta: &ObjectMeta) -> Vec<Task> {
        let Some(uid) = meta.uid.clone() else { return Vec::new() };
        let mut tasks = Vec::new();
        let owners = meta.owner_references.clone().unwrap_or_default();
        let has = |f: &str| meta.finalizers.iter().flatten().any(|x| x == f);
        let deleting = meta.deletion_timestamp.is_some();
        let (foreground, orphaning) = (deleting && has(FOREGROUND), deleting && has(ORPHAN));
        let identity = Identity {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            namespace: meta.namespace.clone(),
            name: meta.name.clone().unwrap_or_default(),
            uid: uid.clone(),
        };
        let old = self.nodes.remove(&uid);
        let old_owners = old.as_ref().map(|o| o.owners.clone()).unwrap_or_default();
        let was = |f: fn(&Node) -> bool| old.as_ref().is_some_and(f);
        let (was_foreground, was_orphaning, was_virtual) =
            (was(|o| o.foreground), was(|o| o.orphaning), was(|o| o.is_virtual));
        let dependents = old.map(|o| o.dependents).unwrap_or_default();

        // Owners that lost this dependent, or are no longer blocked by it, may be waiting.
        for gone in old_owners.iter().filter(|o| !owners.iter().any(|n| n.uid == o.uid)) {
            self.unlink(&gone.uid, &uid);
            tasks.push(Task::Check(gone.uid.clone()));
        }
        for owner in &owners {
            let before = old_owners.iter().find(|o| o.uid == owner.uid);
            match before {
                None => {
                    if self.link(owner, &identity) {
                        // Only known by reference: look whether it exists.
                        tasks.push(Task::Check(owner.uid.clone()));
                    } else if self.nodes.get(&owner.uid).is_some_and(|n| {
                        n.foreground || !n.is_virtual && !same_place(&n.identity, owner, &identity)
                    }) {
                        tasks.push(Task::Check(uid.clone()));
                    }
                }
                Some(before) if before.block_owner_deletion != owner.block_owner_deletion => {
                    tasks.push(Task::Check(owner.uid.clone()));
                }
                Some(_) => {}
            }
        }
        if foreground && !was_foreground {
            tasks.extend(dependents.iter().cloned().map(Task::Check));
            tasks.push(Task::Check(uid.clone()));
        }
        if orphaning && !was_orphaning {
            tasks.push(Task::Orphan(uid.clone()));
        }
        if was_virtual {
            // Dependents whose reference is wrong (kind, name or namespace) are to be judged by what it really is.
            let wrong = dependents.iter().filter(|d| {
                self.nodes.get(*d).is_some_and(|d| {
                    d.owners.iter().any(|r| r.uid == uid && !same_place(&identity, r, &d.identity))
                })
            });
            tasks.extend(wrong.cloned().map(Task::Check));
        }
        let node = Node { identity, owners, dependents, deleting, foreground, orphaning, is_virtual: false };
        self.nodes.insert(uid, node);
        tasks
    }

    /// An object is gone, or an owner known by reference was found not to exist.
    pub fn gone(&mut self, uid: &str) -> Vec<Task> {
        let Some(node) = self.nodes.remove(uid) else { return Vec::new() };
        let mut tasks: Vec<Task> = node.dependents.into_iter().map(Task::Check).collect();
        for owner in &node.owners {
            self.unlink(&owner.uid, uid);
            if self.nodes.get(&owner.uid).is_some_and(|o| o.foreground) {
                tasks.push(Task::Check(owner.uid.clone()));
            }
        }
        tasks
    }

    /// Notes a dependent; whether the owner was unknown.
    fn link(&mut self, owner: &OwnerReference, dependent: &Identity) -> bool {
        let mut new = false;
        let node = self.nodes.entry(owner.uid.clone()).or_insert_with(|| {
            new = true;
            Node {
                identity: Identity {
                    api_version: owner.api_version.clone(),
                    kind: owner.kind.clone(),
                    namespace: dependent.namespace.clone(),
                    name: owner.name.clone(),
                    uid: owner.uid.clone(),
                },
                owners: Vec::new(),
                dependents: HashSet::new(),
                deleting: false,
                foreground: false,
                orphaning: false,
                is_virtual: true,
            }
        });
        node.dependents.insert(dependent.uid.clone());
        new
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(node) = self.nodes.get_mut(owner) {
            node.dependents.remove(dependent);
            if node.is_virtual && node.dependents.is_empty() {
                self.nodes.remove(owner);
            }
        }
    }
}

/// Whether a reference from `dependent` means `owner`: group, kind and name, and the same namespace unless the owner has
/// none.
pub fn same_place(owner: &Identity, reference: &OwnerReference, dependent: &Identity) -> bool {
    let group = |v: &str| v.split_once('/').map_or(String::new(), |(g, _)| g.to_owned());
    owner.kind == reference.kind
        && group(&owner.api_version) == group(&reference.api_version)
        && owner.name == reference.name
        && (owner.namespace.is_none() || owner.namespace == dependent.namespace)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn meta(uid: &str, owners: &[(&str, bool)], extra: Value) -> ObjectMeta {
        let owners: Vec<Value> = owners
            .iter()
            .map(|(o, block)| {
                json!({"apiVersion": "v1", "kind": "K", "name": o, "uid": o, "blockOwnerDeletion": block})
            })
            .collect();
        let mut value = json!({"name": uid, "uid": uid, "namespace": "n", "ownerReferences": owners});
        for (k, v) in extra.as_object().cloned().unwrap_or_default() {
            value[k] = v;
        }
        serde_json::from_value(value).unwrap()
    }

    fn present(g: &mut Graph, uid: &str, owners: &[(&str, bool)], extra: Value) -> Vec<Task> {
        g.present("v1", "K", &meta(uid, owners, extra))
    }

    fn check(uid: &str) -> Task {
        Task::Check(uid.into())
    }

    #[test]
    fn an_owner_seen_late_is_looked_for_once() {
        let mut g = Graph::default();
        assert_eq!(present(&mut g, "child", &[("owner", false)], json!({})), [check("owner")]);
        assert!(g.get("owner").unwrap().is_virtual);
        assert_eq!(present(&mut g, "owner", &[], json!({})), []);
        assert!(!g.get("owner").unwrap().is_virtual);
        assert_eq!(g.gone("owner"), [check("child")]);
    }

    #[test]
    fn an_absent_owner_calls_for_its_dependents() {
        let mut g = Graph::default();
        present(&mut g, "child", &[("owner", false)], json!({}));
        assert_eq!(g.gone("owner"), [check("child")]);
        assert!(g.get("owner").is_none());
    }

    #[test]
    fn foreground_deletion_waits_for_blocking_dependents() {
        let mut g = Graph::default();
        present(&mut g, "owner", &[], json!({}));
        present(&mut g, "a", &[("owner", true)], json!({}));
        present(&mut g, "b", &[("owner", false)], json!({}));
        let deleting = json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [FOREGROUND]});
        let tasks = present(&mut g, "owner", &[], deleting.clone());
        assert!(["a", "b", "owner"].iter().all(|u| tasks.contains(&check(u))));
        let blocking: Vec<_> =
            g.blocking_dependents("owner").iter().map(|n| n.identity.uid.clone()).collect();
        assert_eq!(blocking, ["a"]);
        assert_eq!(present(&mut g, "owner", &[], deleting), [], "only once");
        assert_eq!(g.gone("a"), [check("owner")]);
        assert!(g.blocking_dependents("owner").is_empty());
        // A dependent that appears now goes too.
        assert_eq!(present(&mut g, "late", &[("owner", true)], json!({})), [check("late")]);
    }

    #[test]
    fn nothing_waits_for_itself() {
        let mut g = Graph::default();
        let deleting = || json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [FOREGROUND]});
        let circle = [("a", "c"), ("b", "a"), ("c", "b")];
        for (uid, owner) in circle {
            present(&mut g, uid, &[(owner, true)], json!({}));
        }
        let blocking = |g: &Graph, uid: &str| -> Vec<String> {
            let mut uids: Vec<_> =
                g.blocking_dependents(uid).iter().map(|n| n.identity.uid.clone()).collect();
            uids.sort();
            uids
        };
        present(&mut g, "a", &[("c", true)], deleting());
        present(&mut g, "b", &[("a", true)], deleting());
        assert_eq!((blocking(&g, "a"), blocking(&g, "b")), (vec!["b".to_owned()], vec!["c".to_owned()]));
        // The last one closes the circle, and is told to look at itself.
        let tasks = present(&mut g, "c", &[("b", true)], deleting());
        assert!(tasks.contains(&check("c")));
        assert!(circle.iter().all(|(uid, _)| blocking(&g, uid).is_empty()));
        // What hangs on the circle is waited for as ever, and so is the rest of it once it is broken.
        present(&mut g, "d", &[("a", true)], json!({}));
        assert_eq!(blocking(&g, "a"), ["d"]);
        g.gone("c");
        assert_eq!((blocking(&g, "a"), blocking(&g, "b")), (vec!["b".to_owned(), "d".to_owned()], vec![]));
    }

    #[test]
    fn orphaning_and_release() {
        let mut g = Graph::default();
        present(&mut g, "owner", &[], json!({}));
        present(&mut g, "a", &[("owner", true)], json!({}));
        let orphan = json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [ORPHAN]});
        assert_eq!(present(&mut g, "owner", &[], orphan), [Task::Orphan("owner".into())]);
        assert_eq!(present(&mut g, "a", &[], json!({})), [check("owner")]);
        assert!(g.get("owner").unwrap().dependents.is_empty());
    }

    #[test]
    fn a_reference_into_another_namespace_is_checked() {
        let mut g = Graph::default();
        present(&mut g, "owner", &[], json!({"namespace": "other"}));
        assert_eq!(present(&mut g, "child", &[("owner", false)], json!({})), [check("child")]);
    }
}
