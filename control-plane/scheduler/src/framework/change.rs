//! What happened in the cluster, as far as it can make room for a pod.

use kelp_model::scheduling::{NodeInfo, PodInfo};

/// What changed of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NodeChange {
    /// It is new.
    pub added: bool,
    /// What it offers.
    pub allocatable: bool,
    /// Its labels.
    pub labels: bool,
    /// Its taints.
    pub taints: bool,
    /// Whether it is cordoned.
    pub unschedulable: bool,
}

impl NodeChange {
    /// A new node.
    pub const ADDED: Self =
        Self { added: true, allocatable: true, labels: true, taints: true, unschedulable: true };

    /// What differs between two states of a node.
    pub fn between(old: &NodeInfo, new: &NodeInfo) -> Self {
        Self {
            added: false,
            allocatable: old.allocatable != new.allocatable || old.allowed_pods != new.allowed_pods,
            labels: old.labels != new.labels,
            taints: old.taints != new.taints,
            unschedulable: old.unschedulable != new.unschedulable,
        }
    }

    /// Whether anything changed.
    pub fn any(self) -> bool {
        self != Self::default()
    }
}

/// Something that may let a waiting pod fit.
#[derive(Debug, Clone, Copy)]
pub enum Change<'a> {
    /// A node came or changed.
    Node {
        /// The node now.
        node: &'a NodeInfo,
        /// What changed.
        what: NodeChange,
    },
    /// A node went.
    NodeRemoved,
    /// A pod was placed.
    PodPlaced(&'a PodInfo),
    /// The labels of a placed pod changed, or it takes less.
    PodChanged {
        /// Before.
        old: &'a PodInfo,
        /// Now.
        new: &'a PodInfo,
    },
    /// A placed pod went.
    PodRemoved(&'a PodInfo),
    /// The labels of a namespace changed.
    Namespace,
    /// A claim (by `namespace/name`) came or changed.
    Claim(&'a str),
    /// A volume came or changed.
    Volume,
    /// A storage class came or changed.
    StorageClass,
    /// What drivers say about a node came or changed.
    CsiNode,
    /// What a driver says about its room came or changed.
    Capacity,
}
