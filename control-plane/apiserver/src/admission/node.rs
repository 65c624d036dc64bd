//! What a node's own identity may write: its Node, its pods, its Lease, and nothing of other nodes.

use crate::auth::UserInfo;
use crate::error::{ApiError, quote};
use crate::object::{get, meta, str_at};
use crate::registry::Resource;
use serde_json::Value;

/// Prefixes of labels that say what a node may be used for; only others may set them.
const ROLE_PREFIXES: &[&str] = &["node-role.kubernetes.io/", "node-restriction.kubernetes.io/"];

/// Name of the node that a user is, if it is one.
fn node_of(user: &UserInfo) -> Option<&str> {
    user.name.strip_prefix("system:node:").filter(|_| user.in_group("system:nodes"))
}

fn refuse(resource: &Resource, name: &str, why: &str) -> ApiError {
    ApiError::forbidden(resource.group, resource.plural, name, why)
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
    if meta(lease, "namespace") != "kube-node-lease" {
        let why = "can only access leases in the \"kube-node-lease\" system namespace";
        return Err(refuse(resource, name, why));
    }
    if name != node {
        let why = "can only access node lease with the same name as the requesting node";
        return Err(refuse(resource, name, why));
    }
    Ok(())
}

/// Restricted labels whose value differs between two nodes.
fn changed_roles(new: &Value, old: Option<&Value>) -> Vec<String> {
    let labels = |object: &Value| object.pointer("/metadata/labels").and_then(Value::as_object).cloned();
    let new = labels(new).unwrap_or_default();
    let old = old.and_then(labels).unwrap_or_default();
    let mut changed: Vec<String> = new
        .keys()
        .chain(old.keys())
        .filter(|key| ROLE_PREFIXES.iter().any(|p| key.starts_with(p)) && new.get(*key) != old.get(*key))
        .cloned()
        .collect();
    changed.sort();
    changed.dedup();
    changed
}

/// Checks a creation.
pub(crate) fn create(user: &UserInfo, resource: &Resource, object: &Value) -> Result<(), ApiError> {
    let Some(node) = node_of(user) else { return Ok(()) };
    let name = meta(object, "name");
    match (resource.group, resource.kind) {
        ("", "Node") => {
            own_node(resource, node, name)?;
            let roles = changed_roles(object, None);
            if roles.is_empty() {
                return Ok(());
            }
            let why = format!("is not allowed to set the following labels: {}", roles.join(", "));
            Err(refuse(resource, name, &why))
        }
        ("", "Pod") => {
            if get(object, &["metadata", "annotations", "kubernetes.io/config.mirror"]).is_none() {
                let why = format!(
                    "pod does not have \"kubernetes.io/config.mirror\" annotation, node {} can only create \
                     mirror pods",
                    quote(node)
                );
                return Err(refuse(resource, name, &why));
            }
            if str_at(object, &["spec", "nodeName"]) != node {
                let why =
                    format!("node {} can only create pods with spec.nodeName set to itself", quote(node));
                return Err(refuse(resource, name, &why));
            }
            Ok(())
        }
        ("coordination.k8s.io", "Lease") => own_lease(resource, node, object),
        _ => Ok(()),
    }
}

/// Checks a change of an object or its status.
pub(crate) fn update(user: &UserInfo, resource: &Resource, new: &Value, old: &Value) -> Result<(), ApiError> {
    let Some(node) = node_of(user) else { return Ok(()) };
    let name = meta(old, "name");
    match (resource.group, resource.kind) {
        ("", "Node") => {
            own_node(resource, node, name)?;
            let roles = changed_roles(new, Some(old));
            if !roles.is_empty() {
                let why = format!("is not allowed to modify labels: {}", roles.join(", "));
                return Err(refuse(resource, name, &why));
            }
            if get(new, &["spec", "taints"]) != get(old, &["spec", "taints"]) {
                let why = format!("node {} is not allowed to modify taints", quote(node));
                return Err(refuse(resource, name, &why));
            }
            Ok(())
        }
        ("", "Pod") if str_at(old, &["spec", "nodeName"]) != node => {
            let why = format!(
                "node {} can only update pod status for pods with spec.nodeName set to itself",
                quote(node)
            );
            Err(refuse(resource, name, &why))
        }
        ("coordination.k8s.io", "Lease") => own_lease(resource, node, old),
        _ => Ok(()),
    }
}

/// Checks a deletion.
pub(crate) fn delete(user: &UserInfo, resource: &Resource, old: &Value) -> Result<(), ApiError> {
    let Some(node) = node_of(user) else { return Ok(()) };
    let name = meta(old, "name");
    match (resource.group, resource.kind) {
        ("", "Node") => own_node(resource, node, name),
        ("", "Pod") if str_at(old, &["spec", "nodeName"]) != node => {
            let why = format!("node {} can only delete pods with spec.nodeName set to itself", quote(node));
            Err(refuse(resource, name, &why))
        }
        ("coordination.k8s.io", "Lease") => own_lease(resource, node, old),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Registry;
    use serde_json::json;

    #[test]
    fn a_node_keeps_to_itself() {
        let registry = Registry::builtin();
        let row = |group: &str, plural: &str| registry.find(group, "v1", plural).expect("row").clone();
        let (nodes, pods) = (row("", "nodes"), row("", "pods"));
        let leases = row("coordination.k8s.io", "leases");
        let node = UserInfo::authenticated("system:node:n", ["system:nodes".to_owned()]);
        let admin = UserInfo::admin("a");
        let mine = json!({"metadata": {"name": "n"}, "spec": {}});
        let other = json!({"metadata": {"name": "o"}, "spec": {}});
        let labelled =
            json!({"metadata": {"name": "n", "labels": {"node-role.kubernetes.io/x": ""}}, "spec": {}});
        let tainted = json!({"metadata": {"name": "n"}, "spec": {"taints": [{"key": "a"}]}});
        assert!(create(&node, &nodes, &mine).is_ok());
        assert!(create(&node, &nodes, &other).is_err());
        assert!(create(&admin, &nodes, &other).is_ok());
        assert!(update(&node, &nodes, &labelled, &mine).is_err());
        assert!(update(&node, &nodes, &tainted, &mine).is_err());
        assert!(update(&node, &nodes, &labelled, &labelled).is_ok());
        assert!(update(&node, &nodes, &other, &other).is_err());
        let pod = |on: &str| json!({"metadata": {"name": "p"}, "spec": {"nodeName": on}});
        assert!(create(&node, &pods, &pod("n")).is_err());
        assert!(update(&node, &pods, &pod("n"), &pod("n")).is_ok());
        assert!(update(&node, &pods, &pod("o"), &pod("o")).is_err());
        assert!(delete(&node, &pods, &pod("o")).is_err());
        assert!(delete(&node, &pods, &pod("n")).is_ok());
        let lease = |ns: &str, name: &str| json!({"metadata": {"name": name, "namespace": ns}});
        assert!(create(&node, &leases, &lease("kube-node-lease", "n")).is_ok());
        assert!(create(&node, &leases, &lease("kube-node-lease", "o")).is_err());
        assert!(update(&node, &leases, &json!({}), &lease("kube-system", "n")).is_err());
    }
}
