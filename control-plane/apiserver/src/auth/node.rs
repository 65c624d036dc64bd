//! What nodes may do: with objects that their pods refer to, and by rules that hold for all nodes.

use super::references::{Referred, of_pod, of_volume};
use super::rule::Rule;
use super::{Attributes, Decision};
use crate::error::quote;
use crate::object::{get, meta, str_at};
use serde_json::Value;
use std::collections::{HashMap, HashSet};

/// Which objects lead to which nodes: secret, config map, claim, account → pod → node; volume → claim; secret → volume.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    /// Node and references of each pod that has a node, by `namespace/name`.
    pods: HashMap<String, (String, Vec<(Referred, String)>)>,
    /// How many pods of a node refer to an object (by kind and `namespace/name`).
    uses: HashMap<(Referred, String), HashMap<String, usize>>,
    /// Claim and secrets of each volume.
    volumes: HashMap<String, (Option<String>, Vec<String>)>,
    /// Volumes that need a secret.
    volume_secrets: HashMap<String, HashSet<String>>,
    /// Node of each VolumeAttachment.
    attachments: HashMap<String, String>,
    /// Node of each ResourceSlice.
    slices: HashMap<String, String>,
}

/// Kinds that the graph is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Pod,
    Volume,
    Attachment,
    Slice,
}

/// Whose relation to a node is asked for.
enum Vertex {
    Referred(Referred),
    Pod,
    Volume,
    Attachment,
    Slice,
}

impl Graph {
    /// Forgets all objects of a kind.
    pub(crate) fn clear(&mut self, part: Part) {
        match part {
            Part::Pod => {
                self.pods.clear();
                self.uses.clear();
            }
            Part::Volume => {
                self.volumes.clear();
                self.volume_secrets.clear();
            }
            Part::Attachment => self.attachments.clear(),
            Part::Slice => self.slices.clear(),
        }
    }

    /// Takes a new or changed object in.
    pub(crate) fn put(&mut self, part: Part, object: &Value) {
        let (namespace, name) = (meta(object, "namespace"), meta(object, "name"));
        match part {
            Part::Pod => {
                self.remove(part, namespace, name);
                let node = str_at(object, &["spec", "nodeName"]);
                if node.is_empty() {
                    return;
                }
                // A node makes its mirror pods by itself: they must not open anything to it.
                let mirror =
                    get(object, &["metadata", "annotations", "kubernetes.io/config.mirror"]).is_some();
                let mut refs = if mirror { Vec::new() } else { of_pod(object) };
                for (_, referred) in &mut refs {
                    *referred = format!("{namespace}/{referred}");
                }
                for key in &refs {
                    *self.uses.entry(key.clone()).or_default().entry(node.to_owned()).or_default() += 1;
                }
                self.pods.insert(format!("{namespace}/{name}"), (node.to_owned(), refs));
            }
            Part::Volume => {
                self.remove(part, "", name);
                let (claim, secrets) = of_volume(object);
                for secret in &secrets {
                    self.volume_secrets.entry(secret.clone()).or_default().insert(name.to_owned());
                }
                self.volumes.insert(name.to_owned(), (claim, secrets));
            }
            Part::Attachment => {
                self.attachments.insert(name.to_owned(), str_at(object, &["spec", "nodeName"]).to_owned());
            }
            Part::Slice => {
                self.slices.insert(name.to_owned(), str_at(object, &["spec", "nodeName"]).to_owned());
            }
        }
    }

    /// Forgets an object.
    pub(crate) fn remove(&mut self, part: Part, namespace: &str, name: &str) {
        match part {
            Part::Pod => {
                let Some((node, refs)) = self.pods.remove(&format!("{namespace}/{name}")) else { return };
                for key in refs {
                    let Some(nodes) = self.uses.get_mut(&key) else { continue };
                    if let Some(count) = nodes.get_mut(&node) {
                        *count -= 1;
                        if *count == 0 {
                            nodes.remove(&node);
                        }
                    }
                    if nodes.is_empty() {
                        self.uses.remove(&key);
                    }
                }
            }
            Part::Volume => {
                let Some((_, secrets)) = self.volumes.remove(name) else { return };
                for secret in secrets {
                    if let Some(volumes) = self.volume_secrets.get_mut(&secret) {
                        volumes.remove(name);
                        if volumes.is_empty() {
                            self.volume_secrets.remove(&secret);
                        }
                    }
                }
            }
            Part::Attachment => {
                self.attachments.remove(name);
            }
            Part::Slice => {
                self.slices.remove(name);
            }
        }
    }

    fn used(&self, kind: Referred, key: &str, node: &str) -> bool {
        self.uses.get(&(kind, key.to_owned())).is_some_and(|nodes| nodes.contains_key(node))
    }

    fn volume_leads(&self, name: &str, node: &str) -> bool {
        let claim = self.volumes.get(name).and_then(|(claim, _)| claim.as_deref());
        claim.is_some_and(|claim| self.used(Referred::Claim, claim, node))
    }

    fn leads(&self, vertex: &Vertex, namespace: &str, name: &str, node: &str) -> bool {
        let key = format!("{namespace}/{name}");
        match vertex {
            Vertex::Pod => self.pods.get(&key).is_some_and(|(own, _)| own == node),
            Vertex::Volume => self.volume_leads(name, node),
            Vertex::Attachment => self.attachments.get(name).is_some_and(|own| own == node),
            Vertex::Slice => self.slices.get(name).is_some_and(|own| own == node),
            Vertex::Referred(kind) => {
                self.used(*kind, &key, node)
                    || (*kind == Referred::Secret
                        && self.volume_secrets.get(&key).is_some_and(|volumes| {
                            volumes.iter().any(|volume| self.volume_leads(volume, node))
                        }))
            }
        }
    }

    /// Whether a node may do what it asks; no opinion about users that are no nodes.
    pub(crate) fn authorize(&self, rules: &[Rule], a: &Attributes<'_>) -> Decision {
        let Some(node) = a.user.node() else { return Decision::default() };
        if node.is_empty() {
            return Decision::pass(format!("unknown node for user {}", quote(&a.user.name)));
        }
        if a.is_resource {
            let special = match (&*a.group, &*a.resource) {
                ("", "secrets") => Some(self.read(node, &Vertex::Referred(Referred::Secret), a)),
                ("", "configmaps") => Some(self.read(node, &Vertex::Referred(Referred::ConfigMap), a)),
                ("", "persistentvolumeclaims") if a.subresource == "status" => {
                    Some(if matches!(&*a.verb, "update" | "patch") {
                        self.related(node, &Vertex::Referred(Referred::Claim), a)
                    } else {
                        Decision::pass("can only get/update/patch this type")
                    })
                }
                ("", "persistentvolumeclaims") => Some(self.get(node, &Vertex::Referred(Referred::Claim), a)),
                ("", "persistentvolumes") => Some(self.get(node, &Vertex::Volume, a)),
                ("resource.k8s.io", "resourceclaims") => {
                    Some(self.get(node, &Vertex::Referred(Referred::ResourceClaim), a))
                }
                ("storage.k8s.io", "volumeattachments") => Some(self.get(node, &Vertex::Attachment, a)),
                ("", "serviceaccounts") if a.verb == "get" => {
                    Some(self.get(node, &Vertex::Referred(Referred::Account), a))
                }
                ("", "serviceaccounts") => Some(self.token(node, a)),
                ("coordination.k8s.io", "leases") => Some(lease(node, a)),
                ("storage.k8s.io", "csinodes") => Some(csi_node(node, a)),
                ("resource.k8s.io", "resourceslices") => Some(self.slice(node, a)),
                ("", "nodes") => Some(own_node(node, a)),
                ("", "pods") => Some(self.pod(node, a)),
                _ => None,
            };
            if let Some(decision) = special {
                return decision;
            }
        }
        if rules.iter().any(|rule| rule.allows(a)) { Decision::allow("") } else { Decision::default() }
    }

    fn related(&self, node: &str, vertex: &Vertex, a: &Attributes<'_>) -> Decision {
        if a.name.is_empty() {
            return Decision::pass("No Object name found");
        }
        if self.leads(vertex, &a.namespace, &a.name, node) {
            return Decision::allow("");
        }
        Decision::pass(format!("no relationship found between node '{node}' and this object"))
    }

    fn get(&self, node: &str, vertex: &Vertex, a: &Attributes<'_>) -> Decision {
        if a.verb != "get" {
            return Decision::pass("can only get individual resources of this type");
        }
        if !a.subresource.is_empty() {
            return Decision::pass("cannot get subresource");
        }
        self.related(node, vertex, a)
    }

    fn read(&self, node: &str, vertex: &Vertex, a: &Attributes<'_>) -> Decision {
        if !matches!(&*a.verb, "get" | "list" | "watch") {
            return Decision::pass("can only read resources of this type");
        }
        if !a.subresource.is_empty() {
            return Decision::pass("cannot read subresource");
        }
        if a.namespace.is_empty() {
            return Decision::pass("can only read namespaced object of this type");
        }
        self.related(node, vertex, a)
    }

    fn token(&self, node: &str, a: &Attributes<'_>) -> Decision {
        if a.verb != "create" || a.name.is_empty() {
            return Decision::pass("can only create tokens for individual service accounts");
        }
        if a.subresource != "token" {
            return Decision::pass("can only create token subresource of serviceaccount");
        }
        self.related(node, &Vertex::Referred(Referred::Account), a)
    }

    fn slice(&self, node: &str, a: &Attributes<'_>) -> Decision {
        if !a.subresource.is_empty() {
            return Decision::pass("cannot authorize ResourceSlice subresources");
        }
        match &*a.verb {
            // Admission checks the node of a new object.
            "create" => Decision::allow(""),
            "get" | "update" | "patch" | "delete" => self.related(node, &Vertex::Slice, a),
            "watch" | "list" | "deletecollection" if a.fields.exact("spec.nodeName") == Some(node) => {
                Decision::allow("")
            }
            "watch" | "list" | "deletecollection" => Decision::pass(
                "can only list/watch/deletecollection resourceslices with nodeName field selector",
            ),
            _ => Decision::pass(
                "only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, \
                 delete, deletecollection",
            ),
        }
    }

    fn pod(&self, node: &str, a: &Attributes<'_>) -> Decision {
        match (&*a.subresource, &*a.verb) {
            ("", "get") => self.related(node, &Vertex::Pod, a),
            ("", "list" | "watch") if a.fields.exact("spec.nodeName") == Some(node) => Decision::allow(""),
            ("", "list" | "watch") => {
                Decision::pass("can only list/watch pods with spec.nodeName field selector")
            }
            // Admission checks whose pod it is.
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => {
                Decision::allow("")
            }
            _ => Decision::default(),
        }
    }
}

fn lease(node: &str, a: &Attributes<'_>) -> Decision {
    if !matches!(&*a.verb, "get" | "create" | "update" | "patch" | "delete") {
        return Decision::pass("can only get, create, update, patch, or delete a node lease");
    }
    if a.namespace != "kube-node-lease" {
        return Decision::pass("can only access leases in the \"kube-node-lease\" system namespace");
    }
    if a.verb != "create" && a.name != node {
        return Decision::pass("can only access node lease with the same name as the requesting node");
    }
    Decision::allow("")
}

fn csi_node(node: &str, a: &Attributes<'_>) -> Decision {
    if !matches!(&*a.verb, "get" | "create" | "update" | "patch" | "delete") {
        return Decision::pass("can only get, create, update, patch, or delete a CSINode");
    }
    if !a.subresource.is_empty() {
        return Decision::pass("cannot authorize CSINode subresources");
    }
    if a.verb != "create" && a.name != node {
        return Decision::pass("can only access CSINode with the same name as the requesting node");
    }
    Decision::allow("")
}

fn own_node(node: &str, a: &Attributes<'_>) -> Decision {
    match (&*a.subresource, &*a.verb) {
        // Admission checks which node is written.
        ("", "create" | "update" | "patch") | ("status", "update" | "patch") => Decision::allow(""),
        ("", "get" | "list" | "watch") if a.name == node => Decision::allow(""),
        ("", "get" | "list" | "watch") if a.name.is_empty() => {
            Decision::pass(format!("node '{node}' cannot read all nodes, only its own Node object"))
        }
        ("", "get" | "list" | "watch") => {
            Decision::pass(format!("node '{node}' cannot read '{}', only its own Node object", a.name))
        }
        _ => Decision::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::UserInfo;
    use crate::request::{Query, RequestInfo};
    use proptest::prelude::*;
    use serde_json::json;

    fn node(name: &str) -> UserInfo {
        UserInfo::authenticated(format!("system:node:{name}"), ["system:nodes".to_owned()])
    }

    fn ask(graph: &Graph, user: &UserInfo, method: &str, path: &str) -> Decision {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let query = Query::parse(query);
        let method = http::Method::from_bytes(method.as_bytes()).expect("method");
        let info = RequestInfo::parse(&method, path, &query);
        graph.authorize(&[], &Attributes::of(user, &info, &query))
    }

    fn pod(name: &str, on: &str, secret: &str) -> Value {
        json!({"metadata": {"namespace": "ns", "name": name}, "spec": {"nodeName": on, "serviceAccountName": "sa",
            "volumes": [{"secret": {"secretName": secret}}, {"persistentVolumeClaim": {"claimName": "c"}}]}})
    }

    #[test]
    fn a_node_reads_what_its_pods_use() {
        let mut graph = Graph::default();
        let (a, b) = (node("a"), node("b"));
        let secret = "/api/v1/namespaces/ns/secrets/s";
        assert_eq!(
            ask(&graph, &a, "GET", secret).reason,
            "no relationship found between node 'a' and this object"
        );
        graph.put(Part::Pod, &pod("p", "a", "s"));
        assert!(ask(&graph, &a, "GET", secret).allowed);
        assert!(
            ask(&graph, &a, "GET", "/api/v1/namespaces/ns/secrets?watch=1&fieldSelector=metadata.name%3Ds")
                .allowed
        );
        assert!(!ask(&graph, &a, "GET", "/api/v1/namespaces/ns/secrets").allowed);
        assert!(!ask(&graph, &a, "PUT", secret).allowed);
        assert!(!ask(&graph, &b, "GET", secret).allowed);
        assert!(ask(&graph, &a, "GET", "/api/v1/namespaces/ns/pods/p").allowed);
        assert!(!ask(&graph, &b, "GET", "/api/v1/namespaces/ns/pods/p").allowed);
        assert!(ask(&graph, &a, "POST", "/api/v1/namespaces/ns/serviceaccounts/sa/token").allowed);
        assert!(!ask(&graph, &b, "POST", "/api/v1/namespaces/ns/serviceaccounts/sa/token").allowed);
        graph.put(Part::Volume, &json!({"metadata": {"name": "v"}, "spec": {
            "claimRef": {"namespace": "ns", "name": "c"}, "csi": {"nodeStageSecretRef": {"namespace": "x", "name": "t"}}}}));
        assert!(ask(&graph, &a, "GET", "/api/v1/persistentvolumes/v").allowed);
        assert!(ask(&graph, &a, "GET", "/api/v1/namespaces/x/secrets/t").allowed);
        assert!(!ask(&graph, &b, "GET", "/api/v1/persistentvolumes/v").allowed);
        graph.remove(Part::Pod, "ns", "p");
        assert!(!ask(&graph, &a, "GET", secret).allowed);
        assert!(!ask(&graph, &a, "GET", "/api/v1/persistentvolumes/v").allowed);
        let mut mirror = pod("m", "a", "s");
        mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
        graph.put(Part::Pod, &mirror);
        assert!(!ask(&graph, &a, "GET", secret).allowed);
    }

    #[test]
    fn own_objects_only() {
        let graph = Graph::default();
        let a = node("a");
        assert!(ask(&graph, &a, "GET", "/api/v1/nodes/a").allowed);
        assert!(ask(&graph, &a, "GET", "/api/v1/nodes?watch=1&fieldSelector=metadata.name%3Da").allowed);
        assert_eq!(
            ask(&graph, &a, "GET", "/api/v1/nodes").reason,
            "node 'a' cannot read all nodes, only its own Node object"
        );
        assert_eq!(
            ask(&graph, &a, "GET", "/api/v1/nodes/b").reason,
            "node 'a' cannot read 'b', only its own Node object"
        );
        assert!(!ask(&graph, &a, "DELETE", "/api/v1/nodes/a").allowed);
        assert!(ask(&graph, &a, "GET", "/api/v1/pods?fieldSelector=spec.nodeName%3Da").allowed);
        assert!(!ask(&graph, &a, "GET", "/api/v1/pods?fieldSelector=spec.nodeName%3Db").allowed);
        assert!(!ask(&graph, &a, "GET", "/api/v1/pods").allowed);
        let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
        assert!(ask(&graph, &a, "PUT", &format!("{lease}/a")).allowed);
        assert!(!ask(&graph, &a, "PUT", &format!("{lease}/b")).allowed);
        assert_eq!(ask(&graph, &UserInfo::admin("x"), "GET", "/api/v1/nodes/a"), Decision::default());
    }

    proptest! {
        /// After any sequence of pods coming, moving and going, a node reads exactly what its pods use.
        #[test]
        fn the_graph_forgets(steps in proptest::collection::vec((0..3_u8, 0..2_u8, 0..3_u8, any::<bool>()), 0..40)) {
            let mut graph = Graph::default();
            let mut left = HashMap::new();
            for (name, on, secret, put) in steps {
                let (name, on, secret) = (format!("p{name}"), format!("n{on}"), format!("s{secret}"));
                if put {
                    graph.put(Part::Pod, &pod(&name, &on, &secret));
                    left.insert(name, (on, secret));
                } else {
                    graph.remove(Part::Pod, "ns", &name);
                    left.remove(&name);
                }
                for on in ["n0", "n1"] {
                    for secret in ["s0", "s1", "s2"] {
                        let path = format!("/api/v1/namespaces/ns/secrets/{secret}");
                        let want = left.values().any(|(n, s)| n == on && s == secret);
                        prop_assert_eq!(ask(&graph, &node(on), "GET", &path).allowed, want);
                    }
                }
            }
            if left.is_empty() {
                prop_assert!(graph.uses.is_empty());
            }
        }
    }
}
