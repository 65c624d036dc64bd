//! Rows of the group `autoscaling`: version 2, which is stored, and version 1 of the same objects.

use super::core::{BASE, carry};
use super::*;
use crate::table;

mod convert;

use convert::from_stored;
pub(super) use convert::to_stored;

static STORED: Strategy = Strategy {
    prepare_create: |object| {
        object["status"] = crate::codec::zero_object("autoscaling.v2.HorizontalPodAutoscalerStatus");
    },
    prepare_update: |new, old| carry(new, old, &["status"]),
    ..Strategy::PLAIN
};

/// Hooks see the form that is stored; what it loses or fills in shows in the answer.
fn through_stored(object: &mut Value, hook: impl FnOnce(&mut Value)) {
    to_stored(object);
    hook(object);
    from_stored(object);
}

static FIRST: Strategy = Strategy {
    prepare_create: |object| through_stored(object, STORED.prepare_create),
    prepare_update: |new, old| {
        let mut old = old.clone();
        to_stored(&mut old);
        through_stored(new, |new| (STORED.prepare_update)(new, &old));
    },
    prepare_status: |new, _| through_stored(new, |_| {}),
    ..STORED
};

static STORED_SUB: &[Subresource] = &[Subresource {
    name: "status",
    does: SubresourceKind::Status,
    kind: Some(("autoscaling", "v2", "HorizontalPodAutoscaler")),
    verbs: &["get", "patch", "update"],
}];
static FIRST_SUB: &[Subresource] = &[Subresource {
    name: "status",
    does: SubresourceKind::Status,
    kind: Some(("autoscaling", "v1", "HorizontalPodAutoscaler")),
    verbs: &["get", "patch", "update"],
}];

pub(super) fn rows() -> Vec<Row> {
    let stored = || Row {
        group: "autoscaling",
        version: "v2",
        plural: "horizontalpodautoscalers",
        singular: "horizontalpodautoscaler",
        kind: "HorizontalPodAutoscaler",
        short_names: &["hpa"],
        categories: &["all"],
        subresources: STORED_SUB,
        storage_prefix: "/registry/horizontalpodautoscalers/",
        table: &table::AUTOSCALER_TABLE,
        strategy: &STORED,
        ..BASE
    };
    vec![
        stored(),
        Row {
            version: "v1",
            subresources: FIRST_SUB,
            stored_as: Some(StoredAs {
                kind: "HorizontalPodAutoscaler",
                api_version: "autoscaling/v2",
                encode: to_stored,
                decode: from_stored,
            }),
            strategy: &FIRST,
            ..stored()
        },
    ]
}
