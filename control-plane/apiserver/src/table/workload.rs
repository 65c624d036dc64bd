//! Rows of deployments and replica sets.

use super::*;
use crate::object::int_at;

/// Deployments.
pub static DEPLOYMENT_TABLE: TableSpec =
    TableSpec { columns: DEPLOYMENT, cells: deployment, conditions: no_conditions };
/// ReplicaSets.
pub static REPLICA_SET_TABLE: TableSpec =
    TableSpec { columns: REPLICA_SET, cells: replica_set, conditions: no_conditions };

const TEMPLATE: &[&str] = &["spec", "template", "spec", "containers"];

fn number(object: &Value, path: &[&str]) -> i64 {
    int_at(object, path).unwrap_or_default()
}

fn deployment(object: &Value, now: Timestamp) -> Vec<Value> {
    let (names, images) = containers(object, TEMPLATE);
    let ready = number(object, &["status", "readyReplicas"]);
    let wanted = int_at(object, &["spec", "replicas"]).unwrap_or(1);
    vec![
        meta(object, "name").into(),
        format!("{ready}/{wanted}").into(),
        number(object, &["status", "updatedReplicas"]).into(),
        number(object, &["status", "availableReplicas"]).into(),
        age(object, now),
        names.into(),
        images.into(),
        selector(get(object, &["spec", "selector"])).into(),
    ]
}

fn replica_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let (names, images) = containers(object, TEMPLATE);
    vec![
        meta(object, "name").into(),
        int_at(object, &["spec", "replicas"]).unwrap_or(1).into(),
        number(object, &["status", "replicas"]).into(),
        number(object, &["status", "readyReplicas"]).into(),
        age(object, now),
        names.into(),
        images.into(),
        selector(get(object, &["spec", "selector"])).into(),
    ]
}
