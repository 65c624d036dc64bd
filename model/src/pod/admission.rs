//! Whether a node takes a pod that was bound to it, by upstream's rules and texts.
//!
//! The scheduler asks most of this already; a pod may have been bound by somebody else, or the node may have changed.

use crate::scheduling::score::{Lack, insufficient};
use crate::scheduling::{Effect, NodeInfo, PodInfo, Taint};
use k8s_openapi::api::core::v1::Pod;
use std::sync::Arc;

/// Why a pod is turned away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// `status.reason` and the event's reason.
    pub reason: String,
    /// The event's text; `status.message` is "Pod was rejected: " and this.
    pub message: String,
}

impl Rejection {
    fn new(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self { reason: reason.into(), message: message.into() }
    }

    fn predicate(name: &str, why: &str) -> Self {
        Self::new(name, format!("Predicate {name} failed: {why}"))
    }
}

/// Sysctls that a pod may set on every node: namespaced, and without effect beyond the pod.
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// Whether the pod may run on the node, beside the pods that `node` has already. `unsafe_sysctls` are those that the
/// node's administrator allows (`name` or `prefix*`).
///
/// # Errors
/// It may not.
pub fn admit(pod: &Pod, node: &NodeInfo, unsafe_sysctls: &[String]) -> Result<(), Rejection> {
    sysctls(pod, unsafe_sysctls)?;
    operating_system(pod, node)?;
    let mut info = PodInfo::from_api(pod);
    // An extended resource that the node does not have at all is not the node's to refuse: a device plugin may be late.
    info.requests.scalars.retain(|(name, _)| {
        !name.contains('/') || node.allocatable.scalars.iter().any(|(known, _)| known == name)
    });
    fits(&info, node)?;
    if !info.node_selector.matches_node(node) {
        return Err(Rejection::predicate(
            "NodeAffinity",
            "node(s) didn't match Pod's node affinity/selector",
        ));
    }
    if info.node_name.as_deref().is_some_and(|name| name != &*node.name) {
        return Err(Rejection::predicate("NodeName", "node(s) didn't match the requested node name"));
    }
    if !node.ports().are_free(&info.ports) {
        let why = "node(s) didn't have free ports for the requested pod ports";
        return Err(Rejection::predicate("NodePorts", why));
    }
    let repels = |taint: &&Taint| {
        taint.effect == Effect::NoExecute && !info.tolerations.iter().any(|t| t.tolerates(taint))
    };
    if !is_static(pod) && node.taints.iter().any(|taint| repels(&taint)) {
        let why = "node(s) had taints that the pod didn't tolerate";
        return Err(Rejection::predicate("TaintToleration", why));
    }
    Ok(())
}

/// The pod comes from a file of the node, not from the API server.
pub fn is_static(pod: &Pod) -> bool {
    let source = pod.metadata.annotations.as_ref().and_then(|a| a.get("kubernetes.io/config.source"));
    source.is_some_and(|source| source != "api")
}

fn sysctls(pod: &Pod, allowed: &[String]) -> Result<(), Rejection> {
    let Some(spec) = &pod.spec else { return Ok(()) };
    let list = spec.security_context.iter().flat_map(|s| s.sysctls.iter().flatten());
    for sysctl in list {
        let name = sysctl.name.replace('/', ".");
        let refuse = |why: &str| {
            Err(Rejection::new("SysctlForbidden", format!("forbidden sysctl: {:?} {why}", sysctl.name)))
        };
        let by_administrator = allowed.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => *pattern == name,
        });
        if !SAFE_SYSCTLS.contains(&name.as_str()) && !by_administrator {
            return refuse("not allowlisted");
        }
        let of_ipc = ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."];
        if name.starts_with("net.") && spec.host_network == Some(true) {
            return refuse("not allowed with host net enabled");
        }
        if of_ipc.iter().any(|prefix| name.starts_with(prefix)) && spec.host_ipc == Some(true) {
            return refuse("not allowed with host ipc enabled");
        }
    }
    Ok(())
}

fn operating_system(pod: &Pod, node: &NodeInfo) -> Result<(), Rejection> {
    let Some(spec) = &pod.spec else { return Ok(()) };
    let label = "kubernetes.io/os";
    let wanted = spec.node_selector.as_ref().and_then(|s| s.get(label));
    let has = node.labels.get(label).map(|l| l.to_string());
    if wanted.is_some() && has.as_ref().is_some() && wanted != has.as_ref() {
        let text = "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label";
        return Err(Rejection::new("PodOSSelectorNodeLabelDoesNotMatch", text));
    }
    if spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        return Err(Rejection::new(
            "PodOSNotSupported",
            "Failed to admit pod as the OS field doesn't match node OS",
        ));
    }
    Ok(())
}

fn fits(pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
    match lacks(&pod.requests, node).into_iter().next() {
        Some((resource, text)) => Err(Rejection::new(format!("OutOf{resource}"), text)),
        None => Ok(()),
    }
}

/// What the node lacks for these requests: resource and upstream's text.
pub fn lacks(requests: &crate::scheduling::Resources, node: &NodeInfo) -> Vec<(Arc<str>, String)> {
    let mut found = Vec::new();
    let (have, used) = (&node.allocatable, node.requested());
    insufficient(requests, node, |lack, _| {
        let (name, requested, used, capacity): (Arc<str>, i64, i64, i64) = match lack {
            Lack::Pods => ("pods".into(), 1, node.pods().len() as i64, node.allowed_pods),
            Lack::Cpu => ("cpu".into(), requests.milli_cpu, used.milli_cpu, have.milli_cpu),
            Lack::Memory => ("memory".into(), requests.memory, used.memory, have.memory),
            Lack::EphemeralStorage => (
                "ephemeral-storage".into(),
                requests.ephemeral_storage,
                used.ephemeral_storage,
                have.ephemeral_storage,
            ),
            Lack::Scalar(index) => match requests.scalars.get(index) {
                Some((name, amount)) => (name.clone(), *amount, used.scalar(name), have.scalar(name)),
                None => return,
            },
        };
        let text = format!(
            "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"
        );
        found.push((name, text));
    });
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn node() -> NodeInfo {
        let node = serde_json::from_value(
            json!({"metadata": {"name": "n1", "labels": {"kubernetes.io/os": "linux"}},
            "spec": {"taints": [{"key": "k", "effect": "NoExecute"}]},
            "status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "2"}}}),
        )
        .unwrap();
        NodeInfo::from_api(&node)
    }

    fn reason(spec: Value) -> (String, String) {
        let mut spec = spec;
        if spec["containers"].is_null() {
            spec["containers"] = json!([{"name": "c"}]);
        }
        let pod =
            serde_json::from_value(json!({"metadata": {"name": "p", "uid": "u"}, "spec": spec})).unwrap();
        match admit(&pod, &node(), &["kernel.msg*".into()]) {
            Ok(()) => (String::new(), String::new()),
            Err(rejection) => (rejection.reason, rejection.message),
        }
    }

    fn tolerant(mut spec: Value) -> Value {
        spec["tolerations"] = json!([{"operator": "Exists"}]);
        spec
    }

    #[test]
    fn upstreams_reasons_and_texts() {
        assert_eq!(reason(tolerant(json!({}))).0, "");
        let sysctl = |name: &str| json!({"securityContext": {"sysctls": [{"name": name, "value": "1"}]}});
        assert_eq!(
            reason(sysctl("vm.swappiness")),
            ("SysctlForbidden".into(), "forbidden sysctl: \"vm.swappiness\" not allowlisted".into())
        );
        assert_eq!(reason(tolerant(sysctl("kernel.msgmax"))).0, "");
        let mut host = sysctl("net.ipv4.tcp_syncookies");
        host["hostNetwork"] = json!(true);
        assert!(reason(host).1.ends_with("not allowed with host net enabled"));
        assert_eq!(reason(json!({"os": {"name": "windows"}})).0, "PodOSNotSupported");
        let memory = json!({"containers": [{"name": "c", "resources": {"requests": {"memory": "2Gi"}}}]});
        assert_eq!(
            reason(memory),
            (
                "OutOfmemory".into(),
                "Node didn't have enough resource: memory, requested: 2147483648, used: 0, capacity: 1073741824".into()
            )
        );
        assert_eq!(
            reason(json!({"nodeSelector": {"no": "such"}})).1,
            "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"
        );
        assert_eq!(reason(json!({})).0, "TaintToleration");
        let device =
            json!({"containers": [{"name": "c", "resources": {"requests": {"example.test/gpu": "1"}}}]});
        assert_eq!(reason(tolerant(device)).0, "");
    }

    #[test]
    fn a_host_port_is_taken_once() {
        let pod = |name: &str| -> Pod {
            serde_json::from_value(json!({"metadata": {"name": name, "uid": name}, "spec": {"containers":
                [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 8080}]}], "tolerations": [{"operator": "Exists"}]}}))
            .unwrap()
        };
        let mut node = node();
        assert!(admit(&pod("a"), &node, &[]).is_ok());
        node.add_pod(Arc::new(PodInfo::from_api(&pod("a"))));
        assert_eq!(admit(&pod("b"), &node, &[]).unwrap_err().reason, "NodePorts");
    }
}
