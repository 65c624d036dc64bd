//! Rows of API services and custom resource definitions.

use super::*;
use crate::object::{list_at, str_at};

/// APIServices.
pub static API_SERVICE_TABLE: TableSpec = TableSpec {
    columns: &[
        Column::NAME,
        Column::new("Service", "string", "The reference to the service that hosts this API endpoint."),
        Column::new("Available", "string", "Whether this service is available."),
        Column::AGE,
    ],
    cells: api_service,
    conditions: no_conditions,
};
/// Kinds without columns of their own outside the main API: name and time of creation.
pub static CREATED_AT_TABLE: TableSpec = TableSpec {
    columns: &[Column::NAME, Column::new("Created At", "date", AGE_DOC)],
    cells: created_at,
    conditions: no_conditions,
};

fn api_service(object: &Value, now: Timestamp) -> Vec<Value> {
    let service = match get(object, &["spec", "service"]) {
        None => "Local".to_owned(),
        Some(service) => format!("{}/{}", str_at(service, &["namespace"]), str_at(service, &["name"])),
    };
    let available =
        list_at(object, &["status", "conditions"]).iter().find(|c| str_at(c, &["type"]) == "Available");
    let available = match available.map(|c| (str_at(c, &["status"]), str_at(c, &["reason"]))) {
        None => "Unknown".to_owned(),
        Some((status @ "True", _) | (status, "")) => status.to_owned(),
        Some((status, reason)) => format!("{status} ({reason})"),
    };
    vec![meta(object, "name").into(), service.into(), available.into(), age(object, now)]
}

fn created_at(object: &Value, _: Timestamp) -> Vec<Value> {
    vec![meta(object, "name").into(), meta(object, "creationTimestamp").into()]
}
