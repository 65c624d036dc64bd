//! What a pod asks for and is limited to as a whole.

use crate::json::{get, list_at, str_at};
use crate::quantity::Quantity;
use serde_json::Value;
use std::collections::BTreeMap;

/// Amounts by resource name.
pub type Amounts = BTreeMap<String, Quantity>;

/// Amounts of a map of quantities; what is no quantity is left out.
#[must_use]
pub fn amounts(value: Option<&Value>) -> Amounts {
    let map = value.and_then(Value::as_object).into_iter().flatten();
    map.filter_map(|(name, q)| Some((name.clone(), Quantity::parse(q.as_str()?).ok()?))).collect()
}

/// Adds amounts to others.
pub fn add(to: &mut Amounts, more: &Amounts) {
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

/// Which amounts of a container count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// What the spec says.
    Spec,
    /// The largest of what the spec says, what the node has set aside and what it has set: a resize counts at once when
    /// it asks for more, and once it is done when it asks for less. One that the node can never do does not count.
    Status,
}

/// `requests` or `limits` of the pod: what its containers and sidecars sum up to, or the largest init container beside
/// the sidecars before it; what the pod says itself counts instead.
#[must_use]
pub fn pod_amounts(pod: &Value, field: &str, source: Source) -> Amounts {
    let of = |container: &Value| match source {
        Source::Spec => amounts(get(container, &["resources", field])),
        Source::Status => effective(pod, container, field),
    };
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

/// What counts of a container whose resources may be being changed.
fn effective(pod: &Value, container: &Value, field: &str) -> Amounts {
    let spec = amounts(get(container, &["resources", field]));
    let statuses = ["containerStatuses", "initContainerStatuses"];
    let mut all = statuses.iter().flat_map(|list| list_at(pod, &["status", list]));
    let name = str_at(container, &["name"]);
    let Some(status) = all.find(|status| str_at(status, &["name"]) == name) else { return spec };
    let actual = get(status, &["resources", field]);
    let allocated = get(status, &["allocatedResources"]).filter(|_| field == "requests");
    if actual.is_none() && allocated.is_none() {
        return spec;
    }
    let mut out = amounts(actual);
    maximum(&mut out, &amounts(allocated));
    let mut conditions = list_at(pod, &["status", "conditions"]).iter();
    let impossible = conditions
        .any(|c| str_at(c, &["type"]) == "PodResizePending" && str_at(c, &["reason"]) == "Infeasible");
    if !impossible {
        maximum(&mut out, &spec);
    }
    out
}

/// Adds the pod's overhead: to every request, and to limits that exist.
#[must_use]
pub fn with_overhead(pod: &Value, field: &str, mut sum: Amounts) -> Amounts {
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
#[must_use]
pub fn set_at_pod_level(pod: &Value) -> bool {
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
        assert_eq!(shown(&pod_amounts(&pod, "requests", Source::Spec)), ["cpu=2100m", "memory=1Mi"]);
        let pod = json!({"spec": {"containers": [c("1")], "initContainers": [c("2"), sidecar]}});
        assert_eq!(shown(&pod_amounts(&pod, "requests", Source::Spec)), ["cpu=2", "memory=1Mi"]);
        assert!(pod_amounts(&pod, "limits", Source::Spec).is_empty());
    }

    #[test]
    fn a_resize_counts_as_soon_as_it_takes_more() {
        let pod = |spec: &str, allocated: &str, actual: &str, reason: &str| {
            json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": spec}, "limits": {"cpu": spec}}}]},
                "status": {"conditions": [{"type": "PodResizePending", "reason": reason}],
                    "containerStatuses": [{"name": "c", "allocatedResources": {"cpu": allocated},
                        "resources": {"requests": {"cpu": actual}, "limits": {"cpu": actual}}}]}})
        };
        let cpu = |pod: &Value, field| shown(&pod_amounts(pod, field, Source::Status)).join("");
        let more = pod("2", "1", "1", "Deferred");
        assert_eq!((cpu(&more, "requests"), cpu(&more, "limits")), ("cpu=2".into(), "cpu=2".into()));
        let less = pod("1", "1", "3", "");
        assert_eq!((cpu(&less, "requests"), cpu(&less, "limits")), ("cpu=3".into(), "cpu=3".into()));
        let never = pod("9", "1", "1", "Infeasible");
        assert_eq!((cpu(&never, "requests"), cpu(&never, "limits")), ("cpu=1".into(), "cpu=1".into()));
        let silent = json!({"spec": more["spec"], "status": {"containerStatuses": [{"name": "c"}]}});
        assert_eq!(cpu(&silent, "requests"), "cpu=2");
    }

    #[test]
    fn the_pods_own_amounts_and_its_overhead() {
        let pod = json!({"spec": {"containers": [{"resources": {"requests": {"cpu": "1"}}}],
            "resources": {"requests": {"cpu": "3", "storage": "1"}}, "overhead": {"cpu": "250m"}}});
        assert!(set_at_pod_level(&pod));
        let sum = pod_amounts(&pod, "requests", Source::Spec);
        assert_eq!(shown(&sum), ["cpu=3"]);
        assert_eq!(shown(&with_overhead(&pod, "requests", sum)), ["cpu=3250m"]);
        assert!(with_overhead(&pod, "limits", Amounts::new()).is_empty());
    }
}
