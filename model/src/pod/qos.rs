//! Quality-of-service classes.

use crate::json::{get, list_at, str_at};
use crate::pod::quantity;
use k8s_openapi::api::core::v1::{Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::Value;
use std::collections::BTreeMap;

/// QoS class of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qos {
    /// Every container has cpu and memory limits equal to its requests.
    Guaranteed,
    /// Neither.
    Burstable,
    /// No container asks for cpu or memory.
    BestEffort,
}

impl Qos {
    /// The text of `status.qosClass`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// The class of a pod: what the API server recorded, else computed from the spec.
pub fn qos_class(pod: &Pod) -> Qos {
    match pod.status.as_ref().and_then(|s| s.qos_class.as_deref()) {
        Some("Guaranteed") => Qos::Guaranteed,
        Some("Burstable") => Qos::Burstable,
        Some("BestEffort") => Qos::BestEffort,
        _ => compute(pod),
    }
}

fn positive(map: Option<&BTreeMap<String, Quantity>>, key: &str) -> Option<i128> {
    map?.get(key).and_then(quantity::milli).filter(|m| *m > 0)
}

fn compute(pod: &Pod) -> Qos {
    let Some(spec) = &pod.spec else { return Qos::BestEffort };
    let of_containers = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
        .map(|c| c.resources.clone().unwrap_or_default())
        .collect::<Vec<_>>();
    let all: Vec<ResourceRequirements> = match &spec.resources {
        Some(pod_level) if pod_level.limits.is_some() || pod_level.requests.is_some() => {
            vec![pod_level.clone()]
        }
        _ => of_containers,
    };
    let mut any = false;
    let mut guaranteed = !all.is_empty();
    for resources in &all {
        for key in ["cpu", "memory"] {
            let limit = positive(resources.limits.as_ref(), key);
            // A missing request is the limit: the API server's defaulting may not have run.
            let request = positive(resources.requests.as_ref(), key).or(limit);
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && limit == request;
        }
    }
    match (any, guaranteed) {
        (false, _) => Qos::BestEffort,
        (true, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
    }
}

/// The class of a pod as JSON, from its spec alone: `Guaranteed`, `Burstable` or `BestEffort`; what the pod says as a whole counts before what its containers say.
#[must_use]
pub fn class_of_json(pod: &Value) -> &'static str {
    let own = get(pod, &["spec", "resources"]).filter(|r| !r.is_null());
    let all: Vec<&Value> = match own {
        Some(resources) => vec![resources],
        None => list_at(pod, &["spec", "containers"])
            .iter()
            .chain(list_at(pod, &["spec", "initContainers"]))
            .map(|c| get(c, &["resources"]).unwrap_or(&Value::Null))
            .collect(),
    };
    let amount = |resources: &Value, list: &str, name: &str| {
        let text = str_at(resources, &[list, name]);
        crate::quantity::Quantity::parse(text).ok().filter(|q| q.signum() > 0)
    };
    let sum = |list: &str, name: &str| {
        all.iter().filter_map(|r| amount(r, list, name)).reduce(|sum, more| sum + more)
    };
    let sums = ["cpu", "memory"].map(|name| (sum("requests", name), sum("limits", name)));
    if sums.iter().all(|(requests, limits)| requests.is_none() && limits.is_none()) {
        return "BestEffort";
    }
    let limited =
        all.iter().all(|r| ["cpu", "memory"].iter().all(|name| amount(r, "limits", name).is_some()));
    let exact = sums.iter().all(|(requests, limits)| requests.is_some() && requests == limits);
    if limited && exact { "Guaranteed" } else { "Burstable" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn class(containers: serde_json::Value) -> Qos {
        qos_class(&serde_json::from_value(json!({"spec": {"containers": containers}})).unwrap())
    }

    #[test]
    fn classes() {
        assert_eq!(class(json!([{"name": "c"}])), Qos::BestEffort);
        let full = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1024Mi"}});
        assert_eq!(class(json!([{"name": "c", "resources": full}])), Qos::Guaranteed);
        assert_eq!(class(json!([{"name": "c", "resources": full}, {"name": "d"}])), Qos::Burstable);
        assert_eq!(
            class(json!([{"name": "c", "resources": {"limits": {"cpu": "1", "memory": "1"}}}])),
            Qos::Guaranteed
        );
        assert_eq!(class(json!([{"name": "c", "resources": {"requests": {"cpu": "1"}}}])), Qos::Burstable);
        assert_eq!(class(json!([{"name": "c", "resources": {"requests": {"cpu": "0"}}}])), Qos::BestEffort);
        assert_eq!(
            class(json!([{"name": "c", "resources": {"limits": {"ephemeral-storage": "1"}}}])),
            Qos::BestEffort
        );
    }

    #[test]
    fn classes_of_json() {
        let pod = |resources: serde_json::Value| json!({"spec": {"containers": [{"resources": resources}]}});
        assert_eq!(class_of_json(&pod(json!({}))), "BestEffort");
        assert_eq!(class_of_json(&pod(json!({"requests": {"cpu": "1"}}))), "Burstable");
        let limits = json!({"limits": {"cpu": "500m", "memory": "64Mi"},
            "requests": {"cpu": "0.5", "memory": "65536Ki"}});
        assert_eq!(class_of_json(&pod(limits)), "Guaranteed");
        let one = json!({"limits": {"cpu": "500m"}});
        assert_eq!(class_of_json(&pod(one)), "Burstable");
        let whole = json!({"spec": {"containers": [{}], "resources": {"limits": {"cpu": "1", "memory": "1Gi"},
            "requests": {"cpu": "1", "memory": "1Gi"}}}});
        assert_eq!(class_of_json(&whole), "Guaranteed");
    }
}
