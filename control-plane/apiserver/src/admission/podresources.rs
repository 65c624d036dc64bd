//! What a pod asks for and is limited to as a whole.

use crate::object::{get, list_at, str_at};
use kelp_model::quantity::Quantity;
use serde_json::Value;
use std::collections::BTreeMap;

/// Amounts by resource name.
pub(crate) type Amounts = BTreeMap<String, Quantity>;

/// Amounts of a map of quantities; what is no quantity is left out.
pub(crate) fn amounts(value: Option<&Value>) -> Amounts {
    let map = value.and_then(Value::as_object).into_iter().flatten();
    map.filter_map(|(name, q)| Some((name.clone(), Quantity::parse(q.as_str()?).ok()?))).collect()
}

/// Adds amounts to others.
pub(crate) fn add(to: &mut Amounts, more: &Amounts) {
    for (name, q) in more {
        let sum = to.get(name).map_or(*q, |present| *present + *q);
        to.insert(name.clone(), sum);
    }
}

fn maximum(to: &mut Amounts, other: &Amounts) {
    for (name, q) in other {
        if to.get(name).is_none_or(|present| q > present) {
            to.insert(name.clone(), *q);
        }
    }
}

/// Whether a pod-level amount of the resource stands for the containers' sum.
fn at_pod_level(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || name.starts_with("hugepages-")
}

/// `requests` or `limits` of the pod: what its containers and sidecars sum up to, or the largest init container beside
/// the sidecars before it; what the pod says itself counts instead.
pub(crate) fn pod_amounts(pod: &Value, field: &str) -> Amounts {
    let of = |container: &Value| amounts(get(container, &["resources", field]));
    let mut sum = Amounts::new();
    for container in list_at(pod, &["spec", "containers"]) {
        add(&mut sum, &of(container));
    }
    let (mut sidecars, mut start) = (Amounts::new(), Amounts::new());
    for container in list_at(pod, &["spec", "initContainers"]) {
        let own = of(container);
        if str_at(container, &["restartPolicy"]) == "Always" {
            add(&mut sum, &own);
            add(&mut sidecars, &own);
            maximum(&mut start, &sidecars);
        } else {
            let mut together = own;
            add(&mut together, &sidecars);
            maximum(&mut start, &together);
        }
    }
    maximum(&mut sum, &start);
    for (name, q) in amounts(get(pod, &["spec", "resources", field])) {
        if at_pod_level(&name) {
            sum.insert(name, q);
        }
    }
    sum
}

/// Adds the pod's overhead: to every request, and to limits that exist.
pub(crate) fn with_overhead(pod: &Value, field: &str, mut sum: Amounts) -> Amounts {
    for (name, q) in amounts(get(pod, &["spec", "overhead"])) {
        match sum.get(&name) {
            Some(present) if !present.is_zero() || field == "requests" => {
                let total = *present + q;
                sum.insert(name, total);
            }
            None if field == "requests" => {
                sum.insert(name, q);
            }
            _ => {}
        }
    }
    sum
}

/// True when the pod itself asks for or is limited in a resource that it may.
pub(crate) fn set_at_pod_level(pod: &Value) -> bool {
    ["requests", "limits"]
        .iter()
        .any(|field| amounts(get(pod, &["spec", "resources", field])).keys().any(|name| at_pod_level(name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn shown(amounts: &Amounts) -> Vec<String> {
        amounts.iter().map(|(name, q)| format!("{name}={q}")).collect()
    }

    #[test]
    fn containers_sidecars_and_init_containers() {
        let c = |cpu: &str| json!({"resources": {"requests": {"cpu": cpu}}});
        let sidecar =
            json!({"restartPolicy": "Always", "resources": {"requests": {"cpu": "100m", "memory": "1Mi"}}});
        let pod = json!({"spec": {"containers": [c("1"), c("500m")], "initContainers": [sidecar, c("2")]}});
        assert_eq!(shown(&pod_amounts(&pod, "requests")), ["cpu=2100m", "memory=1Mi"]);
        let pod = json!({"spec": {"containers": [c("1")], "initContainers": [c("2"), sidecar]}});
        assert_eq!(shown(&pod_amounts(&pod, "requests")), ["cpu=2", "memory=1Mi"]);
        assert!(pod_amounts(&pod, "limits").is_empty());
    }

    #[test]
    fn the_pods_own_amounts_and_its_overhead() {
        let pod = json!({"spec": {"containers": [{"resources": {"requests": {"cpu": "1"}}}],
            "resources": {"requests": {"cpu": "3", "storage": "1"}}, "overhead": {"cpu": "250m"}}});
        assert!(set_at_pod_level(&pod));
        let sum = pod_amounts(&pod, "requests");
        assert_eq!(shown(&sum), ["cpu=3"]);
        assert_eq!(shown(&with_overhead(&pod, "requests", sum)), ["cpu=3250m"]);
        assert!(with_overhead(&pod, "limits", Amounts::new()).is_empty());
    }
}
