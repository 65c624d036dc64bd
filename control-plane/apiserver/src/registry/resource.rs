//! Rows of the group `resource.k8s.io`: devices and the claims for them.

use super::core::{BASE, carry};
use super::fields::RESOURCE_SLICE_FIELDS;
use super::*;
use crate::table;
use serde_json::json;

static CLASS: Strategy =
    Strategy { generation: Generation::Spec, delete_returns_object: true, ..Strategy::PLAIN };

static TEMPLATE: Strategy = Strategy { delete_returns_object: true, ..Strategy::PLAIN };

static CLAIM: Strategy = Strategy {
    prepare_create: |object| object["status"] = json!({}),
    prepare_update: |new, old| carry(new, old, &["status"]),
    ..TEMPLATE
};

static CLAIM_SUB: &[Subresource] = &[Subresource {
    name: "status",
    does: SubresourceKind::Status,
    kind: Some(("resource.k8s.io", "v1", "ResourceClaim")),
    verbs: &["get", "patch", "update"],
}];

pub(super) fn rows() -> Vec<Row> {
    const GROUP: Row = Row { group: "resource.k8s.io", ..BASE };
    vec![
        Row {
            plural: "deviceclasses",
            singular: "deviceclass",
            kind: "DeviceClass",
            namespaced: false,
            storage_prefix: "/registry/resource.k8s.io/deviceclasses/",
            strategy: &CLASS,
            ..GROUP
        },
        Row {
            plural: "resourceclaims",
            singular: "resourceclaim",
            kind: "ResourceClaim",
            subresources: CLAIM_SUB,
            storage_prefix: "/registry/resource.k8s.io/resourceclaims/",
            table: &table::RESOURCE_CLAIM_TABLE,
            strategy: &CLAIM,
            ..GROUP
        },
        Row {
            plural: "resourceclaimtemplates",
            singular: "resourceclaimtemplate",
            kind: "ResourceClaimTemplate",
            storage_prefix: "/registry/resource.k8s.io/resourceclaimtemplates/",
            strategy: &TEMPLATE,
            ..GROUP
        },
        Row {
            plural: "resourceslices",
            singular: "resourceslice",
            kind: "ResourceSlice",
            namespaced: false,
            storage_prefix: "/registry/resource.k8s.io/resourceslices/",
            fields: RESOURCE_SLICE_FIELDS,
            field_label_error: Some((
                "field label not supported for resource.k8s.io/v1, Kind=ResourceSlice: ",
                "",
            )),
            table: &table::RESOURCE_SLICE_TABLE,
            strategy: &CLASS,
            ..GROUP
        },
    ]
}
