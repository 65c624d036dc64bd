//! Node selectors and node affinity.

use crate::cluster::Cluster;
use crate::framework::*;
use kelp_model::scheduling::{NodeInfo, PodInfo, score};

/// Keeps pods to the nodes they select, and draws them to those they prefer.
pub struct NodeAffinity;

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }
}

impl PreFilter for NodeAffinity {
    fn pre_filter(&self, _: &mut CycleState, pod: &PodInfo, _: &Cluster) -> Result<PreFiltered, Rejection> {
        if pod.node_selector.is_everything() {
            return Ok(PreFiltered::Skip);
        }
        Ok(pod.node_selector.only_names().map_or(PreFiltered::Continue, PreFiltered::Only))
    }
}

impl Filter for NodeAffinity {
    fn filter(&self, _: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        if pod.node_selector.matches_node(node) {
            Ok(())
        } else {
            Err(Rejection::unresolvable("node(s) didn't match Pod's node affinity/selector"))
        }
    }
}

impl PreScore for NodeAffinity {
    fn pre_score(&self, _: &mut CycleState, pod: &PodInfo, _: &Cluster, _: &[&NodeInfo]) -> bool {
        !pod.preferred_nodes.is_empty()
    }
}

impl Score for NodeAffinity {
    fn score(&self, _: &CycleState, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let wanted = pod.preferred_nodes.iter().filter(|p| p.term.matches(&node.name, &node.labels));
        wanted.map(|p| p.weight).sum()
    }

    fn normalize(&self, _: &CycleState, _: &PodInfo, scores: &mut [i64]) {
        score::normalize(scores, false);
    }
}

impl EnqueueExtensions for NodeAffinity {
    fn may_help(&self, pod: &PodInfo, change: &Change<'_>, _: &Cluster) -> bool {
        matches!(change, Change::Node { node, what } if what.labels && pod.node_selector.matches_node(node))
    }
}
