//! Hooks of pods.

use super::core::carry;
use crate::object::{get, is_deleting, list_at, map_mut, meta_mut, str_at};
use serde_json::{Value, json};

pub(super) fn prepare_create(object: &mut Value) {
    let qos = qos_class(object);
    object["status"] = json!({"phase": "Pending", "qosClass": qos});
    let gated = !list_at(object, &["spec", "schedulingGates"]).is_empty();
    if gated {
        object["status"]["conditions"] = json!([{"type": "PodScheduled", "status": "False",
            "reason": "SchedulingGated", "message": "Scheduling is blocked due to non-empty scheduling gates",
            "lastProbeTime": null, "lastTransitionTime": crate::object::now()}]);
    }
}

pub(super) fn prepare_update(new: &mut Value, old: &Value) {
    carry(new, old, &["status"]);
}

pub(super) fn prepare_status(new: &mut Value, old: &Value) {
    let owners = old.pointer("/metadata/ownerReferences").cloned();
    crate::object::set_or_remove(meta_mut(new), "ownerReferences", owners);
    align_addresses(new);
    let qos = old.pointer("/status/qosClass").cloned();
    if let Some(qos) = qos {
        map_mut(new, "status").insert("qosClass".into(), qos);
    }
}

/// `status.podIP` is the first of `status.podIPs`; where they differ the older field counts.
fn align_addresses(pod: &mut Value) {
    let single = str_at(pod, &["status", "podIP"]).to_owned();
    let first = list_at(pod, &["status", "podIPs"]).first().map(|ip| str_at(ip, &["ip"]).to_owned());
    match (single.is_empty(), first) {
        (true, Some(first)) if !first.is_empty() => {
            map_mut(pod, "status").insert("podIP".into(), first.into());
        }
        (false, first) if first.as_ref() != Some(&single) => {
            map_mut(pod, "status").insert("podIPs".into(), json!([{"ip": single}]));
        }
        _ => {}
    }
}

/// Number of a quantity, for comparing request and limit only.
fn quantity(text: &str) -> Option<f64> {
    let split =
        text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
    let (number, suffix) = (text.get(..split)?, text.get(split..)?);
    let scale = match suffix {
        "" => 1.0,
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024.0,
        "Mi" => 1_048_576.0,
        "Gi" => 1_073_741_824.0,
        "Ti" => 1_099_511_627_776.0,
        "Pi" => 1_125_899_906_842_624.0,
        "Ei" => 1_152_921_504_606_846_976.0,
        _ => return text.parse().ok(),
    };
    number.parse::<f64>().ok().map(|n| n * scale)
}

fn amount(container: &Value, list: &str, resource: &str) -> Option<f64> {
    let value = get(container, &["resources", list, resource])?;
    let number = value.as_f64().or_else(|| value.as_str().and_then(quantity))?;
    (number != 0.0).then_some(number)
}

/// `Guaranteed`, `Burstable` or `BestEffort`.
pub(crate) fn qos_class(pod: &Value) -> &'static str {
    let containers =
        || list_at(pod, &["spec", "containers"]).iter().chain(list_at(pod, &["spec", "initContainers"]));
    let named = ["cpu", "memory"];
    let any = containers().any(|c| {
        named.iter().any(|r| amount(c, "requests", r).is_some() || amount(c, "limits", r).is_some())
    });
    if !any {
        return "BestEffort";
    }
    let exact = containers().all(|c| {
        named.iter().all(|r| {
            let limit = amount(c, "limits", r);
            limit.is_some() && amount(c, "requests", r).is_none_or(|request| Some(request) == limit)
        })
    });
    if exact { "Guaranteed" } else { "Burstable" }
}

/// How long a deletion waits for the node, in seconds; 0: remove the pod now.
pub(crate) fn deletion_grace(pod: &Value, asked: Option<i64>) -> i64 {
    let own = crate::object::int_at(pod, &["spec", "terminationGracePeriodSeconds"]).unwrap_or(30);
    let mut grace = asked.unwrap_or(own);
    if str_at(pod, &["spec", "nodeName"]).is_empty()
        || matches!(str_at(pod, &["status", "phase"]), "Failed" | "Succeeded")
    {
        grace = 0;
    }
    // A negative period, from the request or the pod, means one second.
    if grace < 0 { 1 } else { grace }
}

/// Binds a pod: sets its node, the annotations and labels given, and the PodScheduled condition.
pub(crate) fn bind(pod: &Value, binding: &Value) -> Result<Value, String> {
    let name = crate::object::meta(pod, "name");
    let kind = str_at(binding, &["target", "kind"]);
    let node = str_at(binding, &["target", "name"]);
    let _ = kind;
    if is_deleting(pod) {
        return Err(format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    let present = str_at(pod, &["spec", "nodeName"]);
    if !present.is_empty() {
        return Err(format!("pod {name} is already assigned to node {}", crate::error::quote(present)));
    }
    if !list_at(pod, &["spec", "schedulingGates"]).is_empty() {
        return Err(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    let mut new = pod.clone();
    map_mut(&mut new, "spec").insert("nodeName".into(), node.into());
    for field in ["annotations", "labels"] {
        for (key, value) in
            binding.pointer(&format!("/metadata/{field}")).and_then(Value::as_object).into_iter().flatten()
        {
            let metadata = meta_mut(&mut new);
            let map = metadata.entry(field).or_insert_with(|| json!({}));
            if !map.is_object() {
                *map = json!({});
            }
            map[key.as_str()] = value.clone();
        }
    }
    let condition = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null,
        "lastTransitionTime": crate::object::now()});
    let status = map_mut(&mut new, "status");
    let conditions = status.entry("conditions").or_insert_with(|| json!([]));
    match conditions.as_array_mut() {
        Some(list) => {
            list.retain(|c| str_at(c, &["type"]) != "PodScheduled");
            list.push(condition);
        }
        None => *conditions = json!([condition]),
    }
    status.remove("nominatedNodeName");
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quality_of_service() {
        let pod = |resources: Value| json!({"spec": {"containers": [{"resources": resources}]}});
        assert_eq!(qos_class(&pod(json!({}))), "BestEffort");
        assert_eq!(qos_class(&pod(json!({"requests": {"cpu": "1"}}))), "Burstable");
        let limits = json!({"limits": {"cpu": "500m", "memory": "64Mi"}, "requests": {"cpu": "0.5"}});
        assert_eq!(qos_class(&pod(limits)), "Guaranteed");
        let one = json!({"limits": {"cpu": "500m"}});
        assert_eq!(qos_class(&pod(one)), "Burstable");
    }

    #[test]
    fn grace() {
        let pod = json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 5}});
        assert_eq!(deletion_grace(&pod, None), 5);
        assert_eq!(deletion_grace(&pod, Some(0)), 0);
        assert_eq!(deletion_grace(&pod, Some(-5)), 1);
        assert_eq!(deletion_grace(&json!({"spec": {}}), Some(7)), 0);
    }

    #[test]
    fn binding_happens_once() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {}, "status": {"phase": "Pending"}});
        let binding = json!({"target": {"kind": "Node", "name": "n1"}});
        let bound = bind(&pod, &binding).expect("binds");
        assert_eq!(bound["spec"]["nodeName"], "n1");
        assert_eq!(bound["status"]["conditions"][0]["type"], "PodScheduled");
        assert!(bind(&bound, &binding).is_err());
    }
}
