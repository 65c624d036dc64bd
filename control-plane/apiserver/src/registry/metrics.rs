//! Rows of the group `metrics.k8s.io`: what nodes and pods use, asked of the nodes and not stored.

use super::core::BASE;
use super::*;

const ROW: Row = Row {
    group: GROUP,
    version: "v1beta1",
    verbs: &["get", "list"],
    storage_prefix: "/registry/metrics.k8s.io/",
    ..BASE
};

/// The group.
pub(crate) const GROUP: &str = "metrics.k8s.io";

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row { plural: "nodes", singular: "node", kind: "NodeMetrics", namespaced: false, ..ROW },
        Row { plural: "pods", singular: "pod", kind: "PodMetrics", ..ROW },
    ]
}
