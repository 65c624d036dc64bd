//! Rows of priority classes and runtime classes.

use super::core::BASE;
use super::*;
use crate::table;

static PRIORITY_CLASS: Strategy = Strategy { generation: Generation::Once, ..Strategy::PLAIN };

static RUNTIME_CLASS: Strategy = Strategy { unconditional_update: false, ..Strategy::PLAIN };

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row {
            group: "scheduling.k8s.io",
            plural: "priorityclasses",
            singular: "priorityclass",
            kind: "PriorityClass",
            namespaced: false,
            short_names: &["pc"],
            storage_prefix: "/registry/scheduling.k8s.io/priorityclasses/",
            table: &table::PRIORITY_CLASS_TABLE,
            strategy: &PRIORITY_CLASS,
            ..BASE
        },
        Row {
            group: "node.k8s.io",
            plural: "runtimeclasses",
            singular: "runtimeclass",
            kind: "RuntimeClass",
            namespaced: false,
            storage_prefix: "/registry/node.k8s.io/runtimeclasses/",
            table: &table::RUNTIME_CLASS_TABLE,
            strategy: &RUNTIME_CLASS,
            ..BASE
        },
    ]
}
