//! Taints a node's conditions ask for, and how long a pod tolerates them.

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint, Toleration};

/// The node reports that it is not ready.
pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
/// The node fell silent.
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// `spec.unschedulable` is set.
pub const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

const NO_SCHEDULE: &str = "NoSchedule";
const NO_EXECUTE: &str = "NoExecute";

/// Conditions that ask for a NoSchedule taint: type, status, taint.
const BY_CONDITION: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
];

/// A condition of a node.
#[must_use]
pub fn node_condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.as_deref()?.iter().find(|c| c.type_ == kind)
}

/// The taints of a node after its conditions were looked at, or `None` when they are right already.
///
/// Only the taints this module names are added or removed. NoExecute taints (which make pods leave) are added only when
/// `evict` allows.
#[must_use]
pub fn wanted_taints(node: &Node, evict: bool) -> Option<Vec<Taint>> {
    let current = node.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    let mut managed: Vec<(&str, &str)> = vec![(UNSCHEDULABLE, NO_SCHEDULE)];
    for (kind, status, key) in BY_CONDITION {
        let holds = node_condition(node, kind).is_some_and(|c| c.status == status);
        managed.push((key, NO_SCHEDULE));
        if holds {
            wanted.push((key, NO_SCHEDULE));
        }
        if kind == "Ready" {
            managed.push((key, NO_EXECUTE));
            let present = current.iter().any(|t| t.key == key && t.effect == NO_EXECUTE);
            if holds && (evict || present) {
                wanted.push((key, NO_EXECUTE));
            }
        }
    }
    if node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true) {
        wanted.push((UNSCHEDULABLE, NO_SCHEDULE));
    }
    // A node that never said whether it is ready keeps the taint it registered with.
    if node_condition(node, "Ready").is_none() {
        wanted.push((NOT_READY, NO_SCHEDULE));
        if !current.iter().any(|t| t.key == NOT_READY && t.effect == NO_SCHEDULE) {
            wanted.pop();
        }
    }
    let mut taints: Vec<Taint> = current
        .iter()
        .filter(|t| {
            let id = (t.key.as_str(), t.effect.as_str());
            !managed.contains(&id) || wanted.contains(&id)
        })
        .cloned()
        .collect();
    for (key, effect) in wanted {
        if !taints.iter().any(|t| t.key == key && t.effect == effect) {
            taints.push(Taint { key: key.into(), effect: effect.into(), value: None, time_added: None });
        }
    }
    (taints != current).then_some(taints)
}

/// How long a pod may stay on a node with NoExecute taints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stay {
    /// Every taint is tolerated without a limit, or there is none.
    Forever,
    /// All are tolerated, for this long from when the taints were first seen.
    For(SignedDuration),
    /// A taint is not tolerated.
    No,
}

/// How long `pod` may stay under `taints` (effects other than NoExecute do not matter).
#[must_use]
pub fn stay(pod: &Pod, taints: &[Taint]) -> Stay {
    let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
    let mut limit: Option<i64> = None;
    for taint in taints.iter().filter(|t| t.effect == NO_EXECUTE) {
        let mut matching = tolerations.iter().filter(|t| tolerates(t, taint)).peekable();
        if matching.peek().is_none() {
            return Stay::No;
        }
        // Of several tolerations for one taint the shortest counts, as of tolerations for several taints.
        for seconds in matching.filter_map(|t| t.toleration_seconds) {
            limit = Some(limit.map_or(seconds, |l| l.min(seconds)));
        }
    }
    match limit {
        None => Stay::Forever,
        Some(seconds) if seconds <= 0 => Stay::No,
        Some(seconds) => Stay::For(SignedDuration::from_secs(seconds)),
    }
}

/// Whether a toleration covers a taint.
#[must_use]
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    if !effect.is_empty() && effect != taint.effect || !key.is_empty() && key != taint.key {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or_default() {
        "Exists" => true,
        "" | "Equal" => {
            !key.is_empty()
                && toleration.value.as_deref().unwrap_or_default()
                    == taint.value.as_deref().unwrap_or_default()
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(ready: &str, spec: Value) -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": "n"}, "spec": spec,
            "status": {"conditions": [{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": ready}]},
        }))
        .unwrap()
    }

    fn taints(node: &Node, evict: bool) -> Option<Vec<String>> {
        Some(wanted_taints(node, evict)?.iter().map(|t| format!("{}:{}", t.key, t.effect)).collect())
    }

    #[test]
    fn a_silent_node_is_tainted_and_a_healthy_one_cleared() {
        let silent = node("Unknown", json!({}));
        let both = [format!("{UNREACHABLE}:NoSchedule"), format!("{UNREACHABLE}:NoExecute")];
        assert_eq!(taints(&silent, true).unwrap(), both);
        assert_eq!(taints(&silent, false).unwrap(), both[..1]);
        let back = node(
            "True",
            json!({"taints": [
            {"key": UNREACHABLE, "effect": "NoSchedule"}, {"key": UNREACHABLE, "effect": "NoExecute"},
            {"key": "mine", "effect": "NoExecute"}]}),
        );
        assert_eq!(taints(&back, true).unwrap(), ["mine:NoExecute"]);
        assert_eq!(taints(&node("True", json!({})), true), None);
    }

    #[test]
    fn from_silent_to_not_ready_swaps_the_taints() {
        let node = node("False", json!({"taints": [{"key": UNREACHABLE, "effect": "NoExecute"}]}));
        assert_eq!(
            taints(&node, true).unwrap(),
            [format!("{NOT_READY}:NoSchedule"), format!("{NOT_READY}:NoExecute")]
        );
    }

    #[test]
    fn cordoned() {
        assert_eq!(
            taints(&node("True", json!({"unschedulable": true})), true).unwrap(),
            [format!("{UNSCHEDULABLE}:NoSchedule")]
        );
    }

    #[test]
    fn the_shortest_toleration_counts() {
        let pod = |tolerations: Value| -> Pod {
            serde_json::from_value(
                json!({"metadata": {}, "spec": {"containers": [], "tolerations": tolerations}}),
            )
            .unwrap()
        };
        let taint =
            |key: &str, effect: &str| Taint { key: key.into(), effect: effect.into(), ..Taint::default() };
        let on = [taint("a", NO_EXECUTE), taint("b", NO_EXECUTE), taint("c", NO_SCHEDULE)];
        let a = json!({"key": "a", "operator": "Exists", "effect": NO_EXECUTE, "tolerationSeconds": 300});
        let b = json!({"key": "b", "operator": "Exists", "tolerationSeconds": 2});
        assert_eq!(stay(&pod(json!([a])), &on), Stay::No);
        assert_eq!(stay(&pod(json!([a, b])), &on), Stay::For(SignedDuration::from_secs(2)));
        assert_eq!(stay(&pod(json!([{"operator": "Exists"}])), &on), Stay::Forever);
        assert_eq!(stay(&pod(json!([])), &on[2..]), Stay::Forever);
        assert_eq!(stay(&pod(json!([{"key": "a", "value": "x"}])), &on[..1]), Stay::No);
    }
}
