//! Rows of the group `storage.k8s.io`.

use super::core::{BASE, carry};
use super::*;
use crate::object::{int_at, meta_mut};
use crate::table;
use serde_json::json;

/// Classes answer a deletion with what they were.
static CLASS: Strategy = Strategy { delete_returns_object: true, ..Strategy::PLAIN };

static NODE: Strategy = Strategy { unconditional_update: false, ..CLASS };

static CAPACITY: Strategy = Strategy { unconditional_update: false, ..Strategy::PLAIN };

static DRIVER: Strategy = Strategy { prepare_update: driver_update, ..NODE };

static ATTACHMENT: Strategy = Strategy {
    prepare_create: |object| object["status"] = json!({"attached": false}),
    prepare_update: |new, old| carry(new, old, &["status"]),
    ..NODE
};

/// A driver has no generation until one of the fields changes that may change.
fn driver_update(new: &mut Value, old: &Value) {
    let same = |field: &str| {
        let of =
            |object: &Value| object.pointer("/spec").and_then(|s| s.get(field)).cloned().unwrap_or_default();
        of(new) == of(old)
    };
    if ["tokenRequests", "requiresRepublish", "seLinuxMount"].into_iter().all(same) {
        return;
    }
    let generation = int_at(old, &["metadata", "generation"]).unwrap_or_default() + 1;
    meta_mut(new).insert("generation".into(), generation.into());
}

static ATTACHMENT_SUB: &[Subresource] = &[Subresource {
    name: "status",
    does: SubresourceKind::Status,
    kind: Some(("storage.k8s.io", "v1", "VolumeAttachment")),
    verbs: &["get", "patch", "update"],
}];

pub(super) fn rows() -> Vec<Row> {
    const GROUP: Row = Row { group: "storage.k8s.io", namespaced: false, ..BASE };
    vec![
        Row {
            plural: "csidrivers",
            singular: "csidriver",
            kind: "CSIDriver",
            storage_prefix: "/registry/storage.k8s.io/csidrivers/",
            table: &table::CSI_DRIVER_TABLE,
            strategy: &DRIVER,
            ..GROUP
        },
        Row {
            plural: "csinodes",
            singular: "csinode",
            kind: "CSINode",
            storage_prefix: "/registry/storage.k8s.io/csinodes/",
            table: &table::CSI_NODE_TABLE,
            strategy: &NODE,
            ..GROUP
        },
        Row {
            plural: "csistoragecapacities",
            singular: "csistoragecapacity",
            kind: "CSIStorageCapacity",
            namespaced: true,
            storage_prefix: "/registry/storage.k8s.io/csistoragecapacities/",
            table: &table::CSI_STORAGE_CAPACITY_TABLE,
            strategy: &CAPACITY,
            ..GROUP
        },
        Row {
            plural: "storageclasses",
            singular: "storageclass",
            kind: "StorageClass",
            short_names: &["sc"],
            storage_prefix: "/registry/storage.k8s.io/storageclasses/",
            table: &table::STORAGE_CLASS_TABLE,
            strategy: &CLASS,
            ..GROUP
        },
        Row {
            plural: "volumeattachments",
            singular: "volumeattachment",
            kind: "VolumeAttachment",
            subresources: ATTACHMENT_SUB,
            storage_prefix: "/registry/storage.k8s.io/volumeattachments/",
            table: &table::VOLUME_ATTACHMENT_TABLE,
            strategy: &ATTACHMENT,
            ..GROUP
        },
        Row {
            plural: "volumeattributesclasses",
            singular: "volumeattributesclass",
            kind: "VolumeAttributesClass",
            short_names: &["vac"],
            storage_prefix: "/registry/storage.k8s.io/volumeattributesclasses/",
            table: &table::VOLUME_ATTRIBUTES_CLASS_TABLE,
            strategy: &CLASS,
            ..GROUP
        },
    ]
}
