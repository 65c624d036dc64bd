//! Rows of namespaces, configuration and events.

use super::*;
use crate::object::{int_at, str_at};

/// Namespaces.
pub static NAMESPACE_TABLE: TableSpec =
    TableSpec { columns: NAMESPACE, cells: namespace, conditions: no_conditions };
/// ConfigMaps.
pub static CONFIG_MAP_TABLE: TableSpec =
    TableSpec { columns: CONFIG_MAP, cells: config_map, conditions: no_conditions };
/// Secrets.
pub static SECRET_TABLE: TableSpec = TableSpec { columns: SECRET, cells: secret, conditions: no_conditions };
/// ServiceAccounts, and every kind that shows name and age only.
pub static SERVICE_ACCOUNT_TABLE: TableSpec =
    TableSpec { columns: SERVICE_ACCOUNT, cells: name_age, conditions: no_conditions };
/// Events.
pub static EVENT_TABLE: TableSpec = TableSpec { columns: EVENT, cells: event, conditions: no_conditions };
/// Leases.
pub static LEASE_TABLE: TableSpec = TableSpec { columns: LEASE, cells: lease, conditions: no_conditions };

fn name(object: &Value) -> Value {
    meta(object, "name").into()
}

fn namespace(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), str_at(object, &["status", "phase"]).into(), age(object, now)]
}

fn size(object: &Value, field: &str) -> usize {
    object.get(field).and_then(Value::as_object).map_or(0, Map::len)
}

fn config_map(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), (size(object, "data") + size(object, "binaryData")).into(), age(object, now)]
}

fn secret(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), str_at(object, &["type"]).into(), size(object, "data").into(), age(object, now)]
}

fn name_age(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), age(object, now)]
}

fn lease(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), str_at(object, &["spec", "holderIdentity"]).into(), age(object, now)]
}

/// Reads both forms of an Event: the core one and the one of `events.k8s.io`.
fn event(object: &Value, now: Timestamp) -> Vec<Value> {
    let either = |a: &'static [&'static str], b: &'static [&'static str]| {
        let first = str_at(object, a);
        if first.is_empty() { str_at(object, b) } else { first }
    };
    let event_time = str_at(object, &["eventTime"]);
    let mut first = either(&["firstTimestamp"], &["deprecatedFirstTimestamp"]);
    if first.is_empty() {
        first = event_time;
    }
    let mut last = either(&["lastTimestamp"], &["deprecatedLastTimestamp"]);
    let mut count =
        int_at(object, &["count"]).or(int_at(object, &["deprecatedCount"])).filter(|c| *c != 0).unwrap_or(1);
    if last.is_empty() {
        last = first;
    }
    if let Some(series) = get(object, &["series"]) {
        last = str_at(series, &["lastObservedTime"]);
        count = int_at(series, &["count"]).unwrap_or(count);
    }
    let about = if get(object, &["involvedObject"]).is_some() { "involvedObject" } else { "regarding" };
    let target = match (str_at(object, &[about, "kind"]), str_at(object, &[about, "name"])) {
        (kind, "") => kind.to_lowercase(),
        (kind, name) => format!("{}/{name}", kind.to_lowercase()),
    };
    let source = match either(&["source", "component"], &["deprecatedSource", "component"]) {
        "" => str_at(object, &["reportingComponent"]),
        component => component,
    };
    let source = if source.is_empty() { str_at(object, &["reportingController"]) } else { source };
    let source = match either(&["source", "host"], &["deprecatedSource", "host"]) {
        "" => source.to_owned(),
        host => format!("{source}, {host}"),
    };
    vec![
        since(last, now).into(),
        str_at(object, &["type"]).into(),
        str_at(object, &["reason"]).into(),
        target.into(),
        str_at(object, &[about, "fieldPath"]).into(),
        source.into(),
        either(&["message"], &["note"]).trim().into(),
        since(first, now).into(),
        count.into(),
        name(object),
    ]
}
