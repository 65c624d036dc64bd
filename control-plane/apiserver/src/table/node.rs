//! Rows of nodes.

use super::*;
use crate::object::{bool_at, list_at, str_at};
use std::collections::BTreeSet;

/// Nodes.
pub static NODE_TABLE: TableSpec = TableSpec { columns: NODE, cells: node, conditions: no_conditions };

fn roles(object: &Value) -> String {
    let mut roles = BTreeSet::new();
    for (key, value) in object.pointer("/metadata/labels").and_then(Value::as_object).into_iter().flatten() {
        if let Some(role) = key.strip_prefix("node-role.kubernetes.io/").filter(|role| !role.is_empty()) {
            roles.insert(role.to_owned());
        } else if key == "kubernetes.io/role" {
            roles.insert(value.as_str().unwrap_or_default().to_owned());
        }
    }
    roles.remove("");
    if roles.is_empty() { "<none>".to_owned() } else { roles.into_iter().collect::<Vec<_>>().join(",") }
}

fn node(object: &Value, now: Timestamp) -> Vec<Value> {
    let ready = list_at(object, &["status", "conditions"])
        .iter()
        .find(|c| str_at(c, &["type"]) == "Ready")
        .map(|c| if str_at(c, &["status"]) == "True" { "Ready" } else { "NotReady" });
    let mut status = ready.unwrap_or("Unknown").to_owned();
    if bool_at(object, &["spec", "unschedulable"]) {
        status.push_str(",SchedulingDisabled");
    }
    let address = |kind: &str| {
        list_at(object, &["status", "addresses"])
            .iter()
            .find(|a| str_at(a, &["type"]) == kind)
            .map_or("<none>", |a| str_at(a, &["address"]))
            .to_owned()
    };
    let info = |field: &str, none: &str| match str_at(object, &["status", "nodeInfo", field]) {
        "" => none.to_owned(),
        text => text.to_owned(),
    };
    vec![
        meta(object, "name").into(),
        status.into(),
        roles(object).into(),
        age(object, now),
        info("kubeletVersion", "").into(),
        address("InternalIP").into(),
        address("ExternalIP").into(),
        info("osImage", "<unknown>").into(),
        info("kernelVersion", "<unknown>").into(),
        info("containerRuntimeVersion", "<unknown>").into(),
    ]
}
