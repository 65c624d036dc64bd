//! Hooks of deployments and replica sets.

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
