//! Rows of the group `policy`.

use super::core::{BASE, carry};
use super::*;
use crate::table;

static BUDGET: Strategy = Strategy {
    generation: Generation::Spec,
    prepare_create: |object| {
        object["status"] = crate::codec::zero_object("policy.v1.PodDisruptionBudgetStatus");
    },
    prepare_update: |new, old| carry(new, old, &["status"]),
    unconditional_update: false,
    ..Strategy::PLAIN
};

static BUDGET_SUB: &[Subresource] = &[Subresource {
    name: "status",
    does: SubresourceKind::Status,
    kind: Some(("policy", "v1", "PodDisruptionBudget")),
    verbs: &["get", "patch", "update"],
}];

pub(super) fn rows() -> Vec<Row> {
    vec![Row {
        group: "policy",
        plural: "poddisruptionbudgets",
        singular: "poddisruptionbudget",
        kind: "PodDisruptionBudget",
        short_names: &["pdb"],
        subresources: BUDGET_SUB,
        storage_prefix: "/registry/poddisruptionbudgets/",
        table: &table::BUDGET_TABLE,
        strategy: &BUDGET,
        ..BASE
    }]
}
