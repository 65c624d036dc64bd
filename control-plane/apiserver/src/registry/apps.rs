//! Rows of the group `apps`.

use super::core::{BASE, carry};
use super::fields::STATEFUL_SET_FIELDS;
use super::*;
use crate::table;

const STATUS_VERBS: &[&str] = &["get", "patch", "update"];

static DEPLOYMENT: Strategy = Strategy {
    generation: Generation::SpecAndAnnotations,
    prepare_create: super::deployment::prepare_create,
    prepare_update: |new, old| carry(new, old, &["status"]),
    prepare_status: super::deployment::prepare_deployment_status,
    generation_warnings: super::warnings::of_owner,
    ..Strategy::PLAIN
};

static REPLICA_SET: Strategy = Strategy {
    generation: Generation::Spec,
    prepare_create: super::deployment::prepare_replica_set,
    prepare_status: |_, _| {},
    ..DEPLOYMENT
};

static STATEFUL_SET: Strategy = Strategy {
    prepare_create: |object| object["status"] = crate::codec::zero_object("apps.v1.StatefulSetStatus"),
    generation_warnings: super::warnings::of_set,
    warnings: super::warnings::of_stateful_set,
    ..REPLICA_SET
};

static DAEMON_SET: Strategy = Strategy {
    prepare_create: |object| {
        object["status"] = crate::codec::zero_object("apps.v1.DaemonSetStatus");
        let given = template_generation(object).filter(|generation| *generation >= 1);
        set_template_generation(object, given.unwrap_or(1));
    },
    prepare_update: |new, old| {
        carry(new, old, &["status"]);
        let present = template_generation(old).unwrap_or(1);
        let changed = new.pointer("/spec/template") != old.pointer("/spec/template");
        set_template_generation(new, if changed { present + 1 } else { present });
    },
    generation_warnings: super::warnings::of_set,
    ..REPLICA_SET
};

/// The annotation that stands for a field of an old version of the API.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

fn template_generation(object: &Value) -> Option<i64> {
    crate::object::str_at(object, &["metadata", "annotations", TEMPLATE_GENERATION]).parse().ok()
}

fn set_template_generation(object: &mut Value, generation: i64) {
    let annotations = crate::object::map_mut(object, "metadata")
        .entry("annotations")
        .or_insert_with(|| serde_json::json!({}));
    if !annotations.is_object() {
        *annotations = serde_json::json!({});
    }
    annotations[TEMPLATE_GENERATION] = generation.to_string().into();
}

static DAEMON_SET_SUB: &[Subresource] = &[Subresource {
    name: "status",
    does: SubresourceKind::Status,
    kind: Some(("apps", "v1", "DaemonSet")),
    verbs: STATUS_VERBS,
}];
static STATEFUL_SET_SUB: &[Subresource] = &[
    Subresource {
        name: "scale",
        does: SubresourceKind::Scale,
        kind: Some(("autoscaling", "v1", "Scale")),
        verbs: STATUS_VERBS,
    },
    Subresource {
        name: "status",
        does: SubresourceKind::Status,
        kind: Some(("apps", "v1", "StatefulSet")),
        verbs: STATUS_VERBS,
    },
];

static SCALABLE_DEPLOYMENT: &[Subresource] = &[
    Subresource {
        name: "scale",
        does: SubresourceKind::Scale,
        kind: Some(("autoscaling", "v1", "Scale")),
        verbs: STATUS_VERBS,
    },
    Subresource {
        name: "status",
        does: SubresourceKind::Status,
        kind: Some(("apps", "v1", "Deployment")),
        verbs: STATUS_VERBS,
    },
];
static SCALABLE_REPLICA_SET: &[Subresource] = &[
    Subresource {
        name: "scale",
        does: SubresourceKind::Scale,
        kind: Some(("autoscaling", "v1", "Scale")),
        verbs: STATUS_VERBS,
    },
    Subresource {
        name: "status",
        does: SubresourceKind::Status,
        kind: Some(("apps", "v1", "ReplicaSet")),
        verbs: STATUS_VERBS,
    },
];

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row {
            group: "apps",
            plural: "controllerrevisions",
            singular: "controllerrevision",
            kind: "ControllerRevision",
            storage_prefix: "/registry/controllerrevisions/",
            table: &table::CONTROLLER_REVISION_TABLE,
            ..BASE
        },
        Row {
            group: "apps",
            plural: "daemonsets",
            singular: "daemonset",
            kind: "DaemonSet",
            short_names: &["ds"],
            categories: &["all"],
            subresources: DAEMON_SET_SUB,
            storage_prefix: "/registry/daemonsets/",
            table: &table::DAEMON_SET_TABLE,
            strategy: &DAEMON_SET,
            ..BASE
        },
        Row {
            group: "apps",
            plural: "deployments",
            singular: "deployment",
            kind: "Deployment",
            short_names: &["deploy"],
            categories: &["all"],
            subresources: SCALABLE_DEPLOYMENT,
            storage_prefix: "/registry/apps/deployments/",
            table: &table::DEPLOYMENT_TABLE,
            strategy: &DEPLOYMENT,
            ..BASE
        },
        Row {
            group: "apps",
            plural: "replicasets",
            singular: "replicaset",
            kind: "ReplicaSet",
            short_names: &["rs"],
            categories: &["all"],
            subresources: SCALABLE_REPLICA_SET,
            storage_prefix: "/registry/apps/replicasets/",
            table: &table::REPLICA_SET_TABLE,
            strategy: &REPLICA_SET,
            ..BASE
        },
        Row {
            group: "apps",
            plural: "statefulsets",
            singular: "statefulset",
            kind: "StatefulSet",
            short_names: &["sts"],
            categories: &["all"],
            subresources: STATEFUL_SET_SUB,
            storage_prefix: "/registry/statefulsets/",
            fields: STATEFUL_SET_FIELDS,
            field_label_error: Some(("field label not supported for appsv1.StatefulSet: ", "")),
            table: &table::STATEFUL_SET_TABLE,
            strategy: &STATEFUL_SET,
            ..BASE
        },
    ]
}
