//! Hooks of pods.

use super::core::carry;
use crate::object::{get, is_deleting, list_at, map_mut, meta_mut, str_at};
pub(crate) use kelp_model::pod::qos::class_of_json as qos_class;
use serde_json::{Value, json};

pub(super) fn prepare_create(object: &mut Value) {
    select_by_own_labels(object);
    profiles_of_annotations(object);
    let qos = qos_class(object);
    object["status"] = json!({"phase": "Pending", "qosClass": qos});
    let gated = !list_at(object, &["spec", "schedulingGates"]).is_empty();
    if gated {
        object["status"]["conditions"] = json!([{"type": "PodScheduled", "status": "False",
            "reason": "SchedulingGated", "message": "Scheduling is blocked due to non-empty scheduling gates",
            "lastProbeTime": null, "lastTransitionTime": crate::object::now()}]);
    }
}

/// Annotations of containers' AppArmor profiles, from before there was a field.
pub(super) const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

/// The profile an annotation names; none when it is no valid one.
pub(super) fn annotated_profile(annotation: &str) -> Option<Value> {
    match annotation {
        "unconfined" => Some(json!({"type": "Unconfined"})),
        "runtime/default" => Some(json!({"type": "RuntimeDefault"})),
        other => {
            let file = other.strip_prefix("localhost/")?;
            let valid = !file.is_empty() && file.trim() == file && file.len() <= 4095;
            valid.then(|| json!({"type": "Localhost", "localhostProfile": file}))
        }
    }
}

/// Profiles that only annotations name become fields.
fn profiles_of_annotations(object: &mut Value) {
    let Some(annotations) = object.pointer("/metadata/annotations").and_then(Value::as_object) else {
        return;
    };
    let named: Vec<(String, Value)> = annotations
        .iter()
        .filter_map(|(key, value)| {
            let container = key.strip_prefix(APP_ARMOR)?;
            Some((container.to_owned(), annotated_profile(value.as_str()?)?))
        })
        .collect();
    if named.is_empty() || str_at(object, &["spec", "os", "name"]) == "windows" {
        return;
    }
    let of_pod = object.pointer("/spec/securityContext/appArmorProfile").cloned();
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        let containers = object.pointer_mut(&format!("/spec/{list}")).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let name = str_at(container, &["name"]);
            let Some((_, profile)) = named.iter().find(|(named, _)| named == name) else { continue };
            let own = get(container, &["securityContext", "appArmorProfile"]).is_some_and(|p| !p.is_null());
            if !own && of_pod.as_ref() != Some(profile) && container.is_object() {
                map_mut(container, "securityContext").insert("appArmorProfile".into(), profile.clone());
            }
        }
    }
}

/// Selectors of pods that are to be like this one in some label get its value. One that selects nothing stays so.
fn select_by_own_labels(object: &mut Value) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    let labels = object.pointer("/metadata/labels").cloned().unwrap_or_default();
    for kind in ["podAffinity", "podAntiAffinity"] {
        for (list, term) in [(REQUIRED, ""), (PREFERRED, "podAffinityTerm")] {
            let terms =
                object.pointer_mut(&format!("/spec/affinity/{kind}/{list}")).and_then(Value::as_array_mut);
            for item in terms.into_iter().flatten() {
                let term = if term.is_empty() { Some(item) } else { item.get_mut(term) };
                if let Some(term) = term {
                    extend_selector(term, "matchLabelKeys", "In", &labels);
                    extend_selector(term, "mismatchLabelKeys", "NotIn", &labels);
                }
            }
        }
    }
    let spread = object.pointer_mut("/spec/topologySpreadConstraints").and_then(Value::as_array_mut);
    for constraint in spread.into_iter().flatten() {
        extend_selector(constraint, "matchLabelKeys", "In", &labels);
    }
}

fn extend_selector(term: &mut Value, keys: &str, operator: &str, labels: &Value) {
    let added: Vec<Value> = list_at(term, &[keys])
        .iter()
        .filter_map(|key| {
            let value = labels.get(key.as_str()?)?;
            Some(json!({"key": key, "operator": operator, "values": [value]}))
        })
        .collect();
    let Some(selector) = term.get_mut("labelSelector").filter(|s| s.is_object() && !added.is_empty()) else {
        return;
    };
    match selector.get_mut("matchExpressions").and_then(Value::as_array_mut) {
        Some(list) => list.extend(added),
        None => selector["matchExpressions"] = added.into(),
    }
}

pub(super) fn prepare_update(new: &mut Value, old: &Value) {
    carry(new, old, &["status"]);
}

pub(super) fn prepare_status(new: &mut Value, old: &Value) {
    let owners = old.pointer("/metadata/ownerReferences").cloned();
    crate::object::set_or_remove(meta_mut(new), "ownerReferences", owners);
    align_addresses(new);
    keep_observed(new, old);
    if let Some(qos) = old.pointer("/status/qosClass").cloned()
        && str_at(new, &["status", "qosClass"]).is_empty()
    {
        map_mut(new, "status").insert("qosClass".into(), qos);
    }
}

/// What the status and its conditions were made for is not forgotten by writers who do not say it.
fn keep_observed(new: &mut Value, old: &Value) {
    const OBSERVED: &str = "observedGeneration";
    let observed = |value: &Value| crate::object::int_at(value, &[OBSERVED]).filter(|g| *g != 0);
    let Some(before) = old.get("status") else { return };
    let mut conditions: Vec<&Value> = list_at(before, &["conditions"]).iter().collect();
    let status = map_mut(new, "status");
    if let Some(generation) = observed(before)
        && status.get(OBSERVED).and_then(Value::as_i64).unwrap_or_default() == 0
    {
        status.insert(OBSERVED.to_owned(), generation.into());
    }
    for condition in status.get_mut("conditions").and_then(Value::as_array_mut).into_iter().flatten() {
        let kind = str_at(condition, &["type"]).to_owned();
        let Some(at) = conditions.iter().position(|c| str_at(c, &["type"]) == kind) else { continue };
        let before = conditions.remove(at);
        if observed(condition).is_none()
            && let (Some(generation), Value::Object(map)) = (observed(before), condition)
        {
            map.insert(OBSERVED.to_owned(), generation.into());
        }
    }
}

/// Of a change through `ephemeralcontainers` or `resize`, what they are for.
pub(super) fn prepare_part(subresource: &str, new: &mut Value, old: &Value) {
    let names = |pod: &Value, list: &str| -> Vec<String> {
        list_at(pod, &["spec", list]).iter().map(|c| str_at(c, &["name"]).to_owned()).collect()
    };
    let lists = ["containers", "initContainers"];
    if subresource == "resize" && lists.iter().any(|list| names(new, list) != names(old, list)) {
        // Containers that come, go or move are left for validation to refuse.
        return;
    }
    let mut out = old.clone();
    for field in ["name", "namespace", "uid", "resourceVersion", "managedFields"] {
        let value = new.pointer("/metadata").and_then(|m| m.get(field)).cloned();
        crate::object::set_or_remove(meta_mut(&mut out), field, value);
    }
    if subresource == "resize" {
        for list in ["containers", "initContainers"] {
            resized(&mut out, new, list);
        }
        let resources = get(new, &["spec", "resources"]).cloned();
        crate::object::set_or_remove(map_mut(&mut out, "spec"), "resources", resources);
    } else {
        let containers = get(new, &["spec", "ephemeralContainers"]).cloned();
        crate::object::set_or_remove(map_mut(&mut out, "spec"), "ephemeralContainers", containers);
    }
    *new = out;
}

/// Takes resources and resize policies of the containers of one list over, by name.
fn resized(out: &mut Value, new: &Value, list: &str) {
    let Some(containers) = map_mut(out, "spec").get_mut(list).and_then(Value::as_array_mut) else { return };
    for container in containers {
        let name = str_at(container, &["name"]).to_owned();
        let wanted = list_at(new, &["spec", list]).iter().find(|c| str_at(c, &["name"]) == name);
        if let (Some(wanted), Some(map)) = (wanted, container.as_object_mut()) {
            for field in ["resources", "resizePolicy"] {
                crate::object::set_or_remove(map, field, wanted.get(field).cloned());
            }
        }
    }
}

/// Sets a condition of a status in the place of the one of its type; the time of its last change is now if its status
/// is another.
pub(crate) fn set_condition(status: &mut serde_json::Map<String, Value>, mut condition: Value) {
    let conditions = status.entry("conditions").or_insert_with(|| json!([]));
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    let Some(list) = conditions.as_array_mut() else { return };
    let kind = str_at(&condition, &["type"]).to_owned();
    let present = list.iter_mut().find(|c| str_at(c, &["type"]) == kind);
    let same = present.as_ref().is_some_and(|p| str_at(p, &["status"]) == str_at(&condition, &["status"]));
    let time = present.as_ref().filter(|_| same).and_then(|p| p.get("lastTransitionTime").cloned());
    condition["lastTransitionTime"] = time.unwrap_or_else(|| crate::object::now().into());
    match present {
        Some(present) => *present = condition,
        None => list.push(condition),
    }
}

/// `status.podIP` is the first of `status.podIPs`; where they differ the older field counts.
pub(crate) fn align_addresses(pod: &mut Value) {
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
    let condition = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null});
    let status = map_mut(&mut new, "status");
    set_condition(status, condition);
    status.remove("nominatedNodeName");
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_once_observed_stay() {
        let old = json!({"status": {"observedGeneration": 3, "conditions": [
            {"type": "Ready", "observedGeneration": 2}, {"type": "Other"}]}});
        let mut new = json!({"status": {"conditions": [{"type": "Other"}, {"type": "Ready"}]}});
        keep_observed(&mut new, &old);
        let want = json!({"observedGeneration": 3, "conditions": [
            {"type": "Other"}, {"type": "Ready", "observedGeneration": 2}]});
        assert_eq!(new["status"], want);
    }

    #[test]
    fn selectors_by_own_labels() {
        let mut pod = json!({"metadata": {"labels": {"a": "1", "b": "2"}}, "spec": {
            "affinity": {"podAntiAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": [
                    {"labelSelector": {}, "matchLabelKeys": ["a", "none"], "mismatchLabelKeys": ["b"]},
                    {"labelSelector": null, "matchLabelKeys": ["a"]}],
                "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "podAffinityTerm":
                    {"labelSelector": {"matchExpressions": [{"key": "x", "operator": "Exists"}]},
                     "mismatchLabelKeys": ["a"]}}]}},
            "topologySpreadConstraints": [{"labelSelector": {"matchLabels": {"x": "y"}}, "matchLabelKeys": ["b"]}]}});
        select_by_own_labels(&mut pod);
        let anti = &pod["spec"]["affinity"]["podAntiAffinity"];
        let requirement = |key: &str, operator: &str, value: &str| json!({"key": key, "operator": operator, "values": [value]});
        let required = &anti["requiredDuringSchedulingIgnoredDuringExecution"];
        assert_eq!(
            required[0]["labelSelector"],
            json!({"matchExpressions": [requirement("a", "In", "1"), requirement("b", "NotIn", "2")]})
        );
        assert!(required[1]["labelSelector"].is_null());
        let preferred = &anti["preferredDuringSchedulingIgnoredDuringExecution"][0]["podAffinityTerm"];
        assert_eq!(preferred["labelSelector"]["matchExpressions"][1], requirement("a", "NotIn", "1"));
        let spread = &pod["spec"]["topologySpreadConstraints"][0]["labelSelector"];
        assert_eq!(spread["matchExpressions"], json!([requirement("b", "In", "2")]));
        assert_eq!(spread["matchLabels"], json!({"x": "y"}));
    }

    #[test]
    fn profiles_become_fields() {
        let key = |name: &str| format!("{APP_ARMOR}{name}");
        let mut pod = json!({"metadata": {"annotations": {key("a"): "runtime/default", key("b"): "localhost/p",
            key("c"): "localhost/", key("d"): "unconfined"}}, "spec": {
            "securityContext": {"appArmorProfile": {"type": "Unconfined"}},
            "initContainers": [{"name": "a"}],
            "containers": [{"name": "b"}, {"name": "c"}, {"name": "d"}, {"name": "e"}]}});
        profiles_of_annotations(&mut pod);
        let profile =
            |pointer: &str| pod.pointer(pointer).map(|c| c["securityContext"]["appArmorProfile"].clone());
        assert_eq!(profile("/spec/initContainers/0"), Some(json!({"type": "RuntimeDefault"})));
        let local = json!({"type": "Localhost", "localhostProfile": "p"});
        assert_eq!(profile("/spec/containers/0"), Some(local));
        for i in 1..4 {
            assert_eq!(profile(&format!("/spec/containers/{i}")), Some(Value::Null), "{i}");
        }
    }

    #[test]
    fn observed_generations_stay() {
        let old = json!({"status": {"observedGeneration": 3, "conditions": [
            {"type": "A", "observedGeneration": 1}, {"type": "A", "observedGeneration": 2}, {"type": "B"}]}});
        let mut new = json!({"status": {"conditions": [
            {"type": "A"}, {"type": "B"}, {"type": "A", "observedGeneration": 5}]}});
        keep_observed(&mut new, &old);
        assert_eq!(
            new,
            json!({"status": {"observedGeneration": 3, "conditions": [
                {"type": "A", "observedGeneration": 1}, {"type": "B"}, {"type": "A", "observedGeneration": 5}]}})
        );
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
