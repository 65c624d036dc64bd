//! In-place resize of a pod: requests and limits of CPU and memory may change, within the pod's quality of service.

use serde_json::Value;

use super::{Errors, at, list, map, meta, pod, same, set, text};
use crate::error::FieldError;
use crate::gvk::GroupVersionKind;

const RESIZABLE: [&str; 2] = ["cpu", "memory"];
const LISTS: [(&str, &str); 2] = [("requests", "resource requests"), ("limits", "resource limits")];

pub(super) fn resize(gvk: &GroupVersionKind, new: &Value, old: &Value, errs: &mut Errors) {
    let (after, before) = (at(new, "spec"), at(old, "spec"));
    let refused = if set(at(at(old, "metadata"), "annotations"), pod::MIRROR) {
        Some("static pods cannot be resized")
    } else if text(at(before, "os"), "name") == "windows" {
        Some("windows pods cannot be resized")
    } else {
        None
    };
    if let Some(why) = refused {
        *errs = vec![FieldError::forbidden("", why)];
        return;
    }
    meta::create(gvk, new, errs);
    pod::whole(new, errs);
    let present = text(at(old, "status"), "qosClass");
    let class = if present.is_empty() { crate::registry::pod::qos_class(old) } else { present };
    if crate::registry::pod::qos_class(new) != class {
        let detail = "Pod QOS Class may not change as a result of resizing";
        errs.push(FieldError::invalid("spec", text(at(new, "status"), "qosClass"), detail));
    }
    if !node_resizes(old) {
        errs.push(FieldError::forbidden("spec", "Pod running on node without support for resize"));
    }
    if reordered(after, before, errs) {
        return;
    }
    for field in ["initContainers", "containers"] {
        for (i, (n, o)) in list(after, field).iter().zip(list(before, field)).enumerate() {
            removed(at(n, "resources"), at(o, "resources"), &format!("spec.{field}[{i}].resources"), errs);
        }
    }
    removed(at(after, "resources"), at(before, "resources"), "spec.resources", errs);
    let changes_more = |n: &Value, o: &Value| !same(&resized_back(n, o), o);
    for (n, o) in list(after, "containers").iter().zip(list(before, "containers")) {
        if changes_more(n, o) {
            errs.push(FieldError::forbidden("spec", "only cpu and memory resources are mutable"));
        }
    }
    for (n, o) in list(after, "initContainers").iter().zip(list(before, "initContainers")) {
        if text(n, "restartPolicy") != "Always" {
            if !same(n, o) {
                let detail = "resources for non-sidecar init containers are immutable";
                errs.push(FieldError::forbidden("spec", detail));
            }
        } else if changes_more(n, o) {
            let detail = "only cpu and memory resources for sidecar containers are mutable";
            errs.push(FieldError::forbidden("spec", detail));
        }
    }
    if errs.is_empty() && changes_more(after, before) {
        let diff = super::internal::difference("PodSpec", before, &resized_back(after, before));
        errs.push(FieldError::forbidden(
            "spec",
            format!("only cpu and memory resources are mutable\n{diff}"),
        ));
    }
}

/// Refuses containers that come, go or move.
fn reordered(after: &Value, before: &Value, errs: &mut Errors) -> bool {
    let known = errs.len();
    for field in ["containers", "initContainers"] {
        let (n, o) = (list(after, field), list(before, field));
        if n.len() != o.len() {
            let detail = format!("{field} may not be added or removed on resize");
            errs.push(FieldError::forbidden(format!("spec.{field}"), detail));
            continue;
        }
        for (i, _) in n.iter().zip(o).enumerate().filter(|(_, (n, o))| text(n, "name") != text(o, "name")) {
            let detail = format!("{field} may not be renamed or reordered on resize");
            errs.push(FieldError::forbidden(format!("spec.{field}[{i}].name"), detail));
        }
    }
    errs.len() > known
}

/// Whether the pod's node does as told: one that does reports the resources of what runs.
fn node_resizes(old: &Value) -> bool {
    let running = list(at(old, "status"), "containerStatuses")
        .iter()
        .find(|status| set(at(status, "state"), "running"));
    running.is_none_or(|status| set(status, "resources"))
}

fn removed(new: &Value, old: &Value, path: &str, errs: &mut Errors) {
    for (kind, what) in LISTS {
        let have = at(new, kind);
        if map(old, kind).any(|(name, _)| have.get(name).is_none()) {
            errs.push(FieldError::forbidden(format!("{path}.{kind}"), format!("{what} cannot be removed")));
        }
    }
}

/// What `new` would be if only CPU and memory had changed. A pod's containers are put back as they were.
fn resized_back(new: &Value, old: &Value) -> Value {
    let mut out = new.clone();
    let Value::Object(map) = &mut out else { return out };
    for field in ["containers", "initContainers"] {
        if let Some(containers) = map.get_mut(field) {
            *containers = at(old, field).clone();
        }
    }
    let Some(Value::Object(resources)) = map.get_mut("resources") else { return out };
    for (kind, _) in LISTS {
        let Some(Value::Object(before)) = at(old, "resources").get(kind) else {
            resources.remove(kind);
            continue;
        };
        let amounts = resources.entry(kind).or_insert_with(|| Value::Object(serde_json::Map::new()));
        if let Value::Object(amounts) = amounts {
            amounts.retain(|name, _| !RESIZABLE.contains(&name.as_str()));
            for name in RESIZABLE {
                if let Some(amount) = before.get(name) {
                    amounts.insert(name.to_owned(), amount.clone());
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(resources: Value) -> Value {
        let mut pod = json!({"metadata": {"name": "p", "namespace": "n"},
            "spec": {"containers": [{"name": "c", "image": "i", "imagePullPolicy": "Always",
                    "terminationMessagePolicy": "File", "resources": resources}],
                "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "terminationGracePeriodSeconds": 30}});
        pod["status"] = json!({"qosClass": crate::registry::pod::qos_class(&pod)});
        pod
    }

    fn texts(new: Value, old: Value) -> Vec<String> {
        let mut errs = Errors::new();
        resize(&GroupVersionKind::new("", "v1", "Pod"), &new, &old, &mut errs);
        errs.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn containers_stay_where_they_are() {
        let old = pod(json!({"requests": {"cpu": "1"}}));
        let mut renamed = old.clone();
        renamed["spec"]["containers"][0]["name"] = "d".into();
        assert_eq!(
            texts(renamed, old),
            ["spec.containers[0].name: Forbidden: containers may not be renamed or reordered on resize"]
        );
    }

    #[test]
    fn cpu_and_memory_may_change() {
        let with = |cpu: &str, memory: &str| pod(json!({"requests": {"cpu": cpu, "memory": memory}}));
        assert_eq!(texts(with("2", "1Gi"), with("1", "2Gi")), Vec::<String>::new());
    }

    #[test]
    fn other_changes_are_refused() {
        let old = pod(json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2"}}));
        assert_eq!(
            texts(pod(json!({"requests": {"cpu": "1"}})), old.clone()),
            ["spec.containers[0].resources.limits: Forbidden: resource limits cannot be removed"]
        );
        let disk = json!({"requests": {"cpu": "1", "ephemeral-storage": "1Gi"}, "limits": {"cpu": "2"}});
        assert_eq!(
            texts(pod(disk), old.clone()),
            ["spec: Forbidden: only cpu and memory resources are mutable"]
        );
        let none = pod(json!({}));
        let mut more = old.clone();
        // Writes of the subresource leave the status as it was.
        more["status"] = none["status"].clone();
        assert_eq!(
            texts(more, none),
            ["spec: Invalid value: \"BestEffort\": Pod QOS Class may not change as a result of resizing"]
        );
        let mut elsewhere = old.clone();
        elsewhere["status"]["containerStatuses"] = json!([{"name": "c", "state": {"running": {}}}]);
        assert_eq!(
            texts(elsewhere.clone(), elsewhere),
            ["spec: Forbidden: Pod running on node without support for resize"]
        );
    }
}
