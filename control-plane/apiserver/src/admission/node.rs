//! What a node's own identity may write: its Node, its pods, its Lease, tokens of its pods, and nothing of other nodes
//! (upstream's `NodeRestriction`).

use crate::auth::UserInfo;
use crate::auth::references::{Referred, of_pod};
use crate::error::{ApiError, quote};
use crate::handlers::Context;
use crate::object::{bool_at, get, list_at, meta, str_at};
use crate::registry::Resource;
use crate::server::Core;
use crate::storage;
use serde_json::Value;

/// Labels that a node may give itself although they are of Kubernetes' own domains (`k8s.io/kubelet/pkg/apis`).
const OWN_LABELS: &[&str] = &[
    "kubernetes.io/hostname",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "kubernetes.io/os",
    "kubernetes.io/arch",
];
/// Domains whose labels a node may give itself.
const OWN_DOMAINS: &[&str] = &["kubelet.kubernetes.io", "node.kubernetes.io"];
/// Domain whose labels are there to keep nodes from choosing their pods.
const RESTRICTION: &str = "node-restriction.kubernetes.io";
const MIRROR: &str = "kubernetes.io/config.mirror";
const LEASES: &str = "kube-node-lease";

fn refuse(resource: &Resource, name: &str, why: &str) -> ApiError {
    ApiError::forbidden(resource.group(), resource.plural(), name, why)
}

fn own_node(resource: &Resource, node: &str, name: &str) -> Result<(), ApiError> {
    if node == name {
        return Ok(());
    }
    let why = format!("node {} is not allowed to modify node {}", quote(node), quote(name));
    Err(refuse(resource, name, &why))
}

/// Lease names are those of nodes in the node leases' namespace.
fn own_lease(resource: &Resource, node: &str, lease: &Value) -> Result<(), ApiError> {
    let name = meta(lease, "name");
    if meta(lease, "namespace") != LEASES {
        let why = "can only access leases in the \"kube-node-lease\" system namespace";
        return Err(refuse(resource, name, why));
    }
    if name != node {
        let why = "can only access node lease with the same name as the requesting node";
        return Err(refuse(resource, name, why));
    }
    Ok(())
}

fn own_csi_node(resource: &Resource, node: &str, name: &str) -> Result<(), ApiError> {
    if name == node {
        return Ok(());
    }
    Err(refuse(resource, name, "can only access CSINode with the same name as the requesting node"))
}

fn own_slice(resource: &Resource, node: &str, slice: &Value, action: &str) -> Result<(), ApiError> {
    if str_at(slice, &["spec", "nodeName"]) == node {
        return Ok(());
    }
    let why = format!("can only {action} ResourceSlice with the same NodeName as the requesting node");
    Err(refuse(resource, meta(slice, "name"), &why))
}

fn within(domain: &str, parent: &str) -> bool {
    domain == parent || domain.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.'))
}

/// Whether only others may give a node this label.
fn is_forbidden(label: &str) -> bool {
    let Some((domain, _)) = label.split_once('/') else { return false };
    let reserved = within(domain, "kubernetes.io") || within(domain, "k8s.io");
    let own = OWN_LABELS.contains(&label) || OWN_DOMAINS.iter().any(|parent| within(domain, parent));
    within(domain, RESTRICTION) || (reserved && !own)
}

/// Labels that differ and that a node may not change.
fn forbidden_labels(new: &Value, old: Option<&Value>) -> Option<String> {
    let labels = |object: &Value| object.pointer("/metadata/labels").and_then(Value::as_object).cloned();
    let new = labels(new).unwrap_or_default();
    let old = old.and_then(labels).unwrap_or_default();
    let mut changed: Vec<String> = new
        .keys()
        .chain(old.keys())
        .filter(|key| new.get(*key) != old.get(*key) && is_forbidden(key))
        .cloned()
        .collect();
    changed.sort();
    changed.dedup();
    if changed.is_empty() { None } else { Some(changed.join(", ")) }
}

/// Checks a creation.
pub(crate) async fn create(
    core: &Core,
    user: &UserInfo,
    resource: &Resource,
    object: &Value,
) -> Result<(), ApiError> {
    let Some(node) = user.node() else { return Ok(()) };
    let name = meta(object, "name");
    match (resource.group(), resource.kind()) {
        ("", "Node") => {
            own_node(resource, node, name)?;
            let Some(labels) = forbidden_labels(object, None) else { return Ok(()) };
            let why = format!("node {} is not allowed to set the following labels: {labels}", quote(node));
            Err(refuse(resource, name, &why))
        }
        ("", "Pod") => {
            mirror_pod(node, object).map_err(|why| refuse(resource, name, &why))?;
            owned_by(core, resource, node, object).await
        }
        ("coordination.k8s.io", "Lease") => own_lease(resource, node, object),
        ("storage.k8s.io", "CSINode") => own_csi_node(resource, node, name),
        ("resource.k8s.io", "ResourceSlice") => own_slice(resource, node, object, "create"),
        ("certificates.k8s.io", "CertificateSigningRequest") => {
            crate::registry::certificates::node_request(node, object)
                .map_err(|why| refuse(resource, name, &why))
        }
        _ => Ok(()),
    }
}

/// A node makes mirror pods only, and these refer to nothing: else it could give itself access.
fn mirror_pod(node: &str, pod: &Value) -> Result<(), String> {
    let node_text = quote(node);
    if get(pod, &["metadata", "annotations", MIRROR]).is_none() {
        return Err(format!(
            "pod does not have {} annotation, node {node_text} can only create mirror pods",
            quote(MIRROR)
        ));
    }
    if str_at(pod, &["spec", "nodeName"]) != node {
        return Err(format!("node {node_text} can only create pods with spec.nodeName set to itself"));
    }
    let only = |what: &str| Err(format!("node {node_text} can only create pods with {what} set to itself"));
    match list_at(pod, &["metadata", "ownerReferences"]) {
        [] => return only("an owner reference"),
        [owner] => {
            let own = |field: &str| str_at(owner, &[field]);
            if (own("apiVersion"), own("kind"), own("name")) != ("v1", "Node", node) {
                return only("an owner reference");
            }
            if !bool_at(owner, &["controller"]) {
                return only("a controller owner reference");
            }
            if bool_at(owner, &["blockOwnerDeletion"]) {
                return Err(format!(
                    "node {node_text} must not set blockOwnerDeletion on an owner reference"
                ));
            }
        }
        _ => return only("a single owner reference"),
    }
    let refers = |what: &str| Err(format!("node {node_text} can not create pods that reference {what}"));
    if !str_at(pod, &["spec", "serviceAccountName"]).is_empty() {
        return refers("a service account");
    }
    let references = of_pod(pod);
    let has = |kind: Referred| references.iter().any(|(own, _)| *own == kind);
    if has(Referred::Secret) {
        return refers("secrets");
    }
    if has(Referred::ConfigMap) {
        return refers("configmaps");
    }
    let volumes = list_at(pod, &["spec", "volumes"]);
    let bundle = |source: &Value| get(source, &["clusterTrustBundle"]).is_some();
    if volumes.iter().any(|volume| list_at(volume, &["projected", "sources"]).iter().any(bundle)) {
        return refers("clustertrustbundles");
    }
    if volumes.iter().any(|volume| get(volume, &["persistentVolumeClaim"]).is_some()) {
        return refers("persistentvolumeclaims");
    }
    Ok(())
}

/// The owner of a mirror pod is the node as it is stored.
async fn owned_by(core: &Core, resource: &Resource, node: &str, pod: &Value) -> Result<(), ApiError> {
    let nodes = core.builtin.find("", "v1", "nodes").ok_or_else(ApiError::unknown_resource)?;
    let found = storage::read(&core.store, nodes, &nodes.key("", node)).await?;
    let stored = found.ok_or_else(|| ApiError::not_found("", "nodes", node))?.object;
    let owner = list_at(pod, &["metadata", "ownerReferences"]).first();
    let uid = owner.map(|owner| str_at(owner, &["uid"])).unwrap_or_default();
    if uid == meta(&stored, "uid") {
        return Ok(());
    }
    let why = format!("node {node} UID mismatch: expected {uid} got {}", meta(&stored, "uid"));
    Err(refuse(resource, meta(pod, "name"), &why))
}

/// Checks a change of an object or of its `subresource`.
pub(crate) fn update(
    user: &UserInfo,
    resource: &Resource,
    subresource: &str,
    new: &Value,
    old: &Value,
) -> Result<(), ApiError> {
    let Some(node) = user.node() else { return Ok(()) };
    let name = meta(old, "name");
    let refuse = |why: &str| Err(refuse(resource, name, why));
    let node_text = quote(node);
    match (resource.group(), resource.kind(), subresource) {
        ("", "Node", _) => {
            own_node(resource, node, name)?;
            if get(new, &["spec", "taints"]) != get(old, &["spec", "taints"]) {
                return refuse(&format!("node {node_text} is not allowed to modify taints"));
            }
            match forbidden_labels(new, Some(old)) {
                Some(labels) => refuse(&format!("is not allowed to modify labels: {labels}")),
                None => Ok(()),
            }
        }
        ("", "Pod", "status") => {
            if str_at(old, &["spec", "nodeName"]) != node {
                return refuse(&format!(
                    "node {node_text} can only update pod status for pods with spec.nodeName set to itself"
                ));
            }
            if get(new, &["metadata", "labels"]) != get(old, &["metadata", "labels"]) {
                return refuse(&format!("node {node_text} cannot update labels through pod status"));
            }
            let claims = ["status", "resourceClaimStatuses"];
            if get(new, &claims) != get(old, &claims) {
                return refuse(&format!("node {node_text} cannot update resource claim statues"));
            }
            Ok(())
        }
        ("", "Pod", "") => refuse(&format!(
            "unexpected operation \"UPDATE\", node {node_text} can only create and delete mirror pods"
        )),
        ("", "Pod", other) => refuse(&format!(
            "unexpected pod subresource {}, only 'status' and 'eviction' are allowed",
            quote(other)
        )),
        ("", "PersistentVolumeClaim", "status") => {
            if claim_without_status(new) == claim_without_status(old) {
                return Ok(());
            }
            refuse(&format!(
                "node {node_text} is not allowed to update fields other than status.quantity and status.conditions"
            ))
        }
        ("", "PersistentVolumeClaim", _) => refuse("may only update PVC status"),
        ("coordination.k8s.io", "Lease", _) => own_lease(resource, node, old),
        ("storage.k8s.io", "CSINode", _) => own_csi_node(resource, node, name),
        _ => Ok(()),
    }
}

/// A claim without what a node reports about it.
fn claim_without_status(claim: &Value) -> Value {
    let mut claim = claim.clone();
    let metadata = crate::object::meta_mut(&mut claim);
    metadata.remove("resourceVersion");
    metadata.remove("managedFields");
    let status = crate::object::map_mut(&mut claim, "status");
    for field in ["capacity", "conditions", "allocatedResourceStatuses", "allocatedResources"] {
        status.remove(field);
    }
    claim
}

/// Checks a deletion, or an eviction.
pub(crate) fn delete(
    user: &UserInfo,
    resource: &Resource,
    subresource: &str,
    old: &Value,
) -> Result<(), ApiError> {
    let Some(node) = user.node() else { return Ok(()) };
    let name = meta(old, "name");
    match (resource.group(), resource.kind()) {
        ("", "Node") => own_node(resource, node, name),
        ("", "Pod") if str_at(old, &["spec", "nodeName"]) != node => {
            let why = if subresource == "eviction" {
                format!("node {node} can only evict pods with spec.nodeName set to itself")
            } else {
                format!("node {} can only delete pods with spec.nodeName set to itself", quote(node))
            };
            Err(refuse(resource, name, &why))
        }
        ("coordination.k8s.io", "Lease") => own_lease(resource, node, old),
        ("storage.k8s.io", "CSINode") => own_csi_node(resource, node, name),
        ("resource.k8s.io", "ResourceSlice") => own_slice(resource, node, old, "delete"),
        _ => Ok(()),
    }
}

/// Checks a token request: nodes get tokens that are bound to their own pods, for audiences that these ask for.
pub(crate) async fn token(context: &Context, request: &Value, bound: Option<&Value>) -> Result<(), ApiError> {
    let Some(node) = context.user.node() else { return Ok(()) };
    let refuse = |why: &str| Err(refuse(&context.resource, &context.info.name, why));
    let reference = |field: &str| str_at(request, &["spec", "boundObjectRef", field]);
    let pod = match bound {
        Some(pod) if (reference("apiVersion"), reference("kind")) == ("v1", "Pod") => pod,
        _ => return refuse("node requested token not bound to a pod"),
    };
    if reference("uid").is_empty() {
        return refuse("node requested token with a pod binding without a uid");
    }
    if reference("uid") != meta(pod, "uid") {
        return refuse(&format!(
            "the UID in the bound object reference ({}) does not match the UID in record. The object might have been \
             deleted and then recreated",
            reference("uid")
        ));
    }
    if str_at(pod, &["spec", "nodeName"]) != node {
        return refuse("node requested token bound to a pod scheduled on a different node");
    }
    let wanted: Vec<&str> =
        list_at(request, &["spec", "audiences"]).iter().filter_map(Value::as_str).collect();
    let own = context.core.tokens.audiences();
    match wanted.as_slice() {
        [one] if own.iter().any(|audience| audience == one) || asks_for(pod, one) => Ok(()),
        [] => Ok(()),
        [one] => refuse(&format!(
            "audience {} not found in pod spec volume, {} is not authorized to request tokens for this audience",
            quote(one),
            context.user.name
        )),
        _ => refuse("node may only request 0 or 1 audiences"),
    }
}

/// Whether a volume of the pod asks for tokens of an audience. CSI drivers say theirs elsewhere.
fn asks_for(pod: &Value, audience: &str) -> bool {
    list_at(pod, &["spec", "volumes"]).iter().any(|volume| {
        let projected = list_at(volume, &["projected", "sources"]).iter();
        projected
            .map(|source| str_at(source, &["serviceAccountToken", "audience"]))
            .any(|own| own == audience)
            || ["csi", "persistentVolumeClaim", "ephemeral"].iter().any(|kind| get(volume, &[kind]).is_some())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Registry;
    use serde_json::json;

    fn mirror() -> Value {
        json!({"metadata": {"name": "p", "annotations": {MIRROR: "x"}, "ownerReferences":
            [{"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "u", "controller": true}]},
            "spec": {"nodeName": "n"}})
    }

    #[test]
    fn mirror_pods_refer_to_nothing() {
        assert_eq!(mirror_pod("n", &mirror()), Ok(()));
        let with = |change: &dyn Fn(&mut Value)| {
            let mut pod = mirror();
            change(&mut pod);
            mirror_pod("n", &pod).expect_err("refused")
        };
        assert!(with(&|p| p["metadata"]["annotations"] = json!({})).contains("can only create mirror pods"));
        assert!(with(&|p| p["spec"]["nodeName"] = "o".into()).contains("spec.nodeName set to itself"));
        assert!(with(&|p| p["metadata"]["ownerReferences"] = json!([])).contains("an owner reference set"));
        assert!(
            with(&|p| p["metadata"]["ownerReferences"][0]["controller"] = false.into())
                .contains("a controller")
        );
        assert!(
            with(&|p| p["spec"]["serviceAccountName"] = "x".into()).ends_with("reference a service account")
        );
        let volume = json!([{"secret": {"secretName": "s"}}]);
        assert!(with(&|p| p["spec"]["volumes"] = volume.clone()).ends_with("reference secrets"));
    }

    #[test]
    fn labels_of_kubernetes_are_not_for_nodes() {
        for label in
            ["node-role.kubernetes.io/x", "a.k8s.io/b", "node-restriction.kubernetes.io/x", "kubernetes.io/z"]
        {
            assert!(is_forbidden(label), "{label}");
        }
        for label in [
            "example.com/x",
            "plain",
            "kubernetes.io/hostname",
            "node.kubernetes.io/y",
            "a.kubelet.kubernetes.io/y",
            "xkubernetes.io/z",
        ] {
            assert!(!is_forbidden(label), "{label}");
        }
    }

    #[test]
    fn a_node_keeps_to_itself() {
        let registry = Registry::builtin();
        let row = |group: &str, plural: &str| registry.find(group, "v1", plural).expect("row").clone();
        let (nodes, pods) = (row("", "nodes"), row("", "pods"));
        let leases = row("coordination.k8s.io", "leases");
        let node = UserInfo::authenticated("system:node:n", ["system:nodes".to_owned()]);
        let mine = json!({"metadata": {"name": "n"}, "spec": {}});
        let other = json!({"metadata": {"name": "o"}, "spec": {}});
        let labelled =
            json!({"metadata": {"name": "n", "labels": {"node-role.kubernetes.io/x": ""}}, "spec": {}});
        let tainted = json!({"metadata": {"name": "n"}, "spec": {"taints": [{"key": "a"}]}});
        assert!(update(&node, &nodes, "", &labelled, &mine).is_err());
        assert!(update(&node, &nodes, "status", &tainted, &mine).is_err());
        assert!(update(&node, &nodes, "", &labelled, &labelled).is_ok());
        assert!(update(&node, &nodes, "", &other, &other).is_err());
        let pod = |on: &str| json!({"metadata": {"name": "p"}, "spec": {"nodeName": on}});
        assert!(update(&node, &pods, "status", &pod("n"), &pod("n")).is_ok());
        assert!(update(&node, &pods, "", &pod("n"), &pod("n")).is_err());
        assert!(update(&node, &pods, "status", &pod("o"), &pod("o")).is_err());
        let mut relabelled = pod("n");
        relabelled["metadata"]["labels"] = json!({"a": "b"});
        assert!(update(&node, &pods, "status", &relabelled, &pod("n")).is_err());
        assert!(delete(&node, &pods, "", &pod("o")).is_err());
        assert!(delete(&node, &pods, "", &pod("n")).is_ok());
        let evicted = delete(&node, &pods, "eviction", &pod("o")).expect_err("refused");
        assert!(evicted.message().ends_with("node n can only evict pods with spec.nodeName set to itself"));
        let lease = |ns: &str, name: &str| json!({"metadata": {"name": name, "namespace": ns}});
        assert!(update(&node, &leases, "", &json!({}), &lease("kube-node-lease", "n")).is_ok());
        assert!(update(&node, &leases, "", &json!({}), &lease("kube-system", "n")).is_err());
        let claims = row("", "persistentvolumeclaims");
        let claim = |capacity: &str, mode: &str| json!({"metadata": {"name": "c"}, "spec": {"volumeMode": mode}, "status": {"capacity": {"storage": capacity}}});
        assert!(update(&node, &claims, "status", &claim("2", "x"), &claim("1", "x")).is_ok());
        assert!(update(&node, &claims, "status", &claim("1", "y"), &claim("1", "x")).is_err());
        assert!(update(&node, &claims, "", &claim("1", "x"), &claim("1", "x")).is_err());
    }
}
