//! Rows of the group `apps`.

use super::core::{BASE, carry};
use super::*;
use crate::table;

const STATUS_VERBS: &[&str] = &["get", "patch", "update"];

static DEPLOYMENT: Strategy = Strategy {
    generation: Generation::Spec,
    prepare_create: super::deployment::prepare_create,
    prepare_update: |new, old| carry(new, old, &["status"]),
    prepare_status: super::deployment::prepare_deployment_status,
    ..Strategy::PLAIN
};

static REPLICA_SET: Strategy = Strategy {
    prepare_create: super::deployment::prepare_replica_set,
    prepare_status: |_, _| {},
    ..DEPLOYMENT
};

static SCALABLE_DEPLOYMENT: &[Subresource] = &[
    Subresource {
        name: "scale",
        does: SubresourceKind::Scale,
        kind: ("autoscaling", "v1", "Scale"),
        verbs: STATUS_VERBS,
    },
    Subresource {
        name: "status",
        does: SubresourceKind::Status,
        kind: ("apps", "v1", "Deployment"),
        verbs: STATUS_VERBS,
    },
];
static SCALABLE_REPLICA_SET: &[Subresource] = &[
    Subresource {
        name: "scale",
        does: SubresourceKind::Scale,
        kind: ("autoscaling", "v1", "Scale"),
        verbs: STATUS_VERBS,
    },
    Subresource {
        name: "status",
        does: SubresourceKind::Status,
        kind: ("apps", "v1", "ReplicaSet"),
        verbs: STATUS_VERBS,
    },
];

pub(super) fn rows() -> Vec<Resource> {
    vec![
        Resource {
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
        Resource {
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
    ]
}
