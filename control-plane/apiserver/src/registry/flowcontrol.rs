//! Rows of the group `flowcontrol.apiserver.k8s.io`.

use super::core::{BASE, carry};
use super::*;
use crate::table;
use serde_json::json;

static CONFIGURATION: Strategy = Strategy {
    generation: Generation::Spec,
    prepare_create: |object| object["status"] = json!({}),
    prepare_update: |new, old| carry(new, old, &["status"]),
    unconditional_update: false,
    ..Strategy::PLAIN
};

const fn status(kind: &'static str) -> Subresource {
    Subresource {
        name: "status",
        does: SubresourceKind::Status,
        kind: Some(("flowcontrol.apiserver.k8s.io", "v1", kind)),
        verbs: &["get", "patch", "update"],
    }
}

static FLOW_SCHEMA_SUB: &[Subresource] = &[status("FlowSchema")];
static PRIORITY_LEVEL_SUB: &[Subresource] = &[status("PriorityLevelConfiguration")];

pub(super) fn rows() -> Vec<Row> {
    const GROUP: Row =
        Row { group: "flowcontrol.apiserver.k8s.io", namespaced: false, strategy: &CONFIGURATION, ..BASE };
    vec![
        Row {
            plural: "flowschemas",
            singular: "flowschema",
            kind: "FlowSchema",
            subresources: FLOW_SCHEMA_SUB,
            storage_prefix: "/registry/flowcontrol.apiserver.k8s.io/flowschemas/",
            table: &table::FLOW_SCHEMA_TABLE,
            ..GROUP
        },
        Row {
            plural: "prioritylevelconfigurations",
            singular: "prioritylevelconfiguration",
            kind: "PriorityLevelConfiguration",
            subresources: PRIORITY_LEVEL_SUB,
            storage_prefix: "/registry/flowcontrol.apiserver.k8s.io/prioritylevelconfigurations/",
            table: &table::PRIORITY_LEVEL_TABLE,
            ..GROUP
        },
    ]
}
