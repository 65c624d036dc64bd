//! Hooks of deployments and replica sets.

use super::core::carry;
use crate::object::meta_mut;
use serde_json::{Value, json};

pub(super) fn prepare_create(object: &mut Value) {
    object["status"] = json!({});
}

pub(super) fn prepare_replica_set(object: &mut Value) {
    object["status"] = json!({"replicas": 0});
}

/// A deployment's status writer changes no labels.
pub(super) fn prepare_deployment_status(new: &mut Value, old: &Value) {
    let labels = old.pointer("/metadata/labels").cloned();
    crate::object::set_or_remove(meta_mut(new), "labels", labels);
}

/// Scale view of an object with `spec.replicas` and `spec.selector`.
pub(crate) fn scale_of(object: &Value) -> Value {
    use crate::object::{int_at, meta};
    let metadata = object.get("metadata").cloned().unwrap_or_default();
    let mut out = json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": meta(object, "name"), "namespace": meta(object, "namespace"),
            "uid": meta(object, "uid"), "resourceVersion": meta(object, "resourceVersion"),
            "creationTimestamp": metadata.get("creationTimestamp").cloned().unwrap_or_default(),
        },
        "spec": {},
        "status": {"replicas": int_at(object, &["status", "replicas"]).unwrap_or_default()},
    });
    if let Some(replicas) = int_at(object, &["spec", "replicas"]).filter(|r| *r != 0) {
        out["spec"]["replicas"] = replicas.into();
    }
    let selector = match object.get("kind").and_then(Value::as_str) {
        Some("ReplicationController") => crate::table::pairs(object.pointer("/spec/selector")),
        _ => crate::table::selector(object.pointer("/spec/selector")),
    };
    if selector != "<none>" {
        out["status"]["selector"] = selector.into();
    }
    out
}

/// An object with the replica count of a Scale.
pub(crate) fn with_scale(old: &Value, scale: &Value) -> Value {
    let mut new = old.clone();
    carry(&mut new, old, &[]);
    new["spec"]["replicas"] = crate::object::int_at(scale, &["spec", "replicas"]).unwrap_or_default().into();
    let version = crate::object::meta(scale, "resourceVersion");
    if !version.is_empty() {
        meta_mut(&mut new).insert("resourceVersion".into(), version.into());
    }
    new
}
