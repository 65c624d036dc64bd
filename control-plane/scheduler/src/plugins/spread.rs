//! Spreading over topologies.

use crate::cluster::Cluster;
use crate::framework::*;
use kelp_model::scheduling::spread::{Domains, SetWish, Violation, Wishes};
use kelp_model::scheduling::{NodeInfo, PodInfo};

/// Spreads pods over zones, hosts or whatever label their constraints name.
pub struct PodTopologySpread;

impl Plugin for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }
}

impl PreFilter for PodTopologySpread {
    fn pre_filter(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        cluster: &Cluster,
    ) -> Result<PreFiltered, Rejection> {
        match Domains::count(pod, cluster.nodes()) {
            Some(domains) => {
                state.put(domains);
                Ok(PreFiltered::Continue)
            }
            None => Ok(PreFiltered::Skip),
        }
    }

    fn add_pod(&self, state: &mut CycleState, pod: &PodInfo, other: &PodInfo, node: &NodeInfo, _: &Cluster) {
        if let Some(domains) = state.get_mut::<Domains>() {
            domains.change(pod, other, node, 1);
        }
    }

    fn remove_pod(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        other: &PodInfo,
        node: &NodeInfo,
        _: &Cluster,
    ) {
        if let Some(domains) = state.get_mut::<Domains>() {
            domains.change(pod, other, node, -1);
        }
    }
}

impl Filter for PodTopologySpread {
    fn filter(&self, state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        let Some(domains) = state.get::<Domains>() else { return Ok(()) };
        domains.check(pod, node).map_err(|violation| match violation {
            Violation::MissingLabel => Rejection::unresolvable(
                "node(s) didn't match pod topology spread constraints (missing required label)",
            ),
            Violation::Skew => Rejection::new("node(s) didn't match pod topology spread constraints"),
        })
    }
}

impl PreScore for PodTopologySpread {
    fn pre_score(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        cluster: &Cluster,
        nodes: &[&NodeInfo],
    ) -> bool {
        if pod.spread.is_empty()
            && let Some(group) = &pod.group
        {
            state.put(SetWish::count(pod, nodes, cluster.group(group)));
            return true;
        }
        match Wishes::count(pod, &pod.spread, true, nodes, cluster.nodes()) {
            Some(wishes) => {
                state.put(wishes);
                true
            }
            None => false,
        }
    }
}

/// Stands for "takes no part" between scoring and normalizing; real scores are not negative.
const NO_PART: i64 = -1;

impl Score for PodTopologySpread {
    fn score(&self, state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> i64 {
        if let Some(wish) = state.get::<SetWish>() {
            return wish.score(node);
        }
        state.get::<Wishes>().and_then(|wishes| wishes.score(pod, node)).unwrap_or(NO_PART)
    }

    fn normalize(&self, _: &CycleState, _: &PodInfo, scores: &mut [i64]) {
        let mut parts = scores.iter().map(|s| Some(*s).filter(|s| *s != NO_PART)).collect::<Vec<_>>();
        Wishes::normalize(&mut parts);
        for (score, part) in scores.iter_mut().zip(parts) {
            *score = part.unwrap_or(0);
        }
    }
}

impl EnqueueExtensions for PodTopologySpread {
    fn may_help(&self, pod: &PodInfo, change: &Change<'_>, _: &Cluster) -> bool {
        let counted = |other: &PodInfo| {
            other.namespace == pod.namespace && pod.spread.iter().any(|c| c.selector.matches(&other.labels))
        };
        match change {
            Change::PodPlaced(other) | Change::PodRemoved(other) => counted(other),
            Change::PodChanged { old, new } => counted(old) != counted(new),
            Change::Node { what, .. } => what.labels || what.taints,
            Change::NodeRemoved => true,
            Change::Namespace
            | Change::Claim(_)
            | Change::Volume
            | Change::StorageClass
            | Change::CsiNode
            | Change::Capacity => false,
        }
    }
}
