//! Rows of API services and custom resource definitions.

use super::core::{BASE, carry};
use super::*;
use crate::object::{bool_at, get, list_at, str_at};
use crate::table;
use serde_json::json;

static API_SERVICE: Strategy = Strategy {
    prepare_create: |object| {
        object["status"] = json!({});
        if get(object, &["spec", "service"]).is_none() {
            object["status"]["conditions"] = json!([local_is_available()]);
        }
    },
    prepare_update: |new, old| carry(new, old, &["status"]),
    unconditional_update: false,
    ..Strategy::PLAIN
};

static DEFINITION: Strategy = Strategy {
    generation: Generation::Spec,
    prepare_create: |object| {
        object["status"] =
            json!({"conditions": null, "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": null});
        note_stored_version(object);
    },
    prepare_update: |new, old| {
        carry(new, old, &["status"]);
        note_stored_version(new);
    },
    unconditional_update: false,
    warnings: crate::validation::definition_warnings,
    warn_at_creation_only: true,
    ..Strategy::PLAIN
};

/// The condition of an API that this server serves itself.
pub(crate) fn local_is_available() -> Value {
    json!({"type": "Available", "status": "True", "lastTransitionTime": crate::object::now(),
        "reason": "Local", "message": "Local APIServices are always available"})
}

/// Objects may be stored in the storage version from now on.
fn note_stored_version(object: &mut Value) {
    let versions = list_at(object, &["spec", "versions"]);
    let Some(version) = versions.iter().find(|v| bool_at(v, &["storage"])) else { return };
    let name = Value::from(str_at(version, &["name"]));
    let mut stored = list_at(object, &["status", "storedVersions"]).to_vec();
    if !stored.contains(&name) {
        stored.push(name);
        object["status"]["storedVersions"] = stored.into();
    }
}

const fn status(group: &'static str, kind: &'static str) -> Subresource {
    let verbs = &["get", "patch", "update"];
    Subresource { name: "status", does: SubresourceKind::Status, kind: Some((group, "v1", kind)), verbs }
}

static API_SERVICE_SUB: &[Subresource] = &[status("apiregistration.k8s.io", "APIService")];
static DEFINITION_SUB: &[Subresource] = &[status("apiextensions.k8s.io", "CustomResourceDefinition")];

pub(super) fn rows() -> Vec<Row> {
    const BOTH: Row = Row { namespaced: false, categories: &["api-extensions"], ..BASE };
    vec![
        Row {
            group: "apiregistration.k8s.io",
            plural: "apiservices",
            singular: "apiservice",
            kind: "APIService",
            subresources: API_SERVICE_SUB,
            storage_prefix: "/registry/apiregistration.k8s.io/apiservices/",
            table: &table::API_SERVICE_TABLE,
            strategy: &API_SERVICE,
            ..BOTH
        },
        Row {
            group: "apiextensions.k8s.io",
            plural: "customresourcedefinitions",
            singular: "customresourcedefinition",
            kind: "CustomResourceDefinition",
            short_names: &["crd", "crds"],
            subresources: DEFINITION_SUB,
            storage_prefix: "/registry/apiextensions.k8s.io/customresourcedefinitions/",
            table: &table::CREATED_AT_TABLE,
            strategy: &DEFINITION,
            ..BOTH
        },
    ]
}
