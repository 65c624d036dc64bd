//! Taints and tolerations.

use crate::cluster::Cluster;
use crate::framework::*;
use kelp_model::scheduling::{Effect, NodeInfo, PodInfo, score, taint};

/// Avoids nodes with taints that the pod does not tolerate.
pub struct TaintToleration;

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }
}

impl Filter for TaintToleration {
    fn filter(&self, _: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        if taint::tolerated(&node.taints, &pod.tolerations) {
            Ok(())
        } else {
            Err(Rejection::unresolvable("node(s) had untolerated taint(s)"))
        }
    }
}

impl PreScore for TaintToleration {
    fn pre_score(&self, _: &mut CycleState, _: &PodInfo, _: &Cluster, nodes: &[&NodeInfo]) -> bool {
        // Without such a taint every node gets the same score.
        nodes.iter().any(|node| node.taints.iter().any(|taint| taint.effect == Effect::PreferNoSchedule))
    }
}

impl Score for TaintToleration {
    fn score(&self, _: &CycleState, pod: &PodInfo, node: &NodeInfo) -> i64 {
        taint::intolerable_preferences(&node.taints, &pod.tolerations)
    }

    fn normalize(&self, _: &CycleState, _: &PodInfo, scores: &mut [i64]) {
        score::normalize(scores, true);
    }
}

impl EnqueueExtensions for TaintToleration {
    fn may_help(&self, pod: &PodInfo, change: &Change<'_>, _: &Cluster) -> bool {
        matches!(change, Change::Node { node, what } if what.taints && taint::tolerated(&node.taints, &pod.tolerations))
    }
}
