//! Affinity between pods.

use crate::cluster::Cluster;
use crate::framework::*;
use kelp_model::scheduling::interpod::{self, Counts, Rules, Violation};
use kelp_model::scheduling::{NodeInfo, PodInfo};

/// Keeps pods near those they want to be near, and away from others.
pub struct InterPodAffinity;

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }
}

impl PreFilter for InterPodAffinity {
    fn pre_filter(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        cluster: &Cluster,
    ) -> Result<PreFiltered, Rejection> {
        let has_rules = !pod.affinity.is_empty() || !pod.anti_affinity.is_empty();
        if !has_rules && !cluster.has_anti_affinity() {
            return Ok(PreFiltered::Skip);
        }
        let rules = Rules::count(pod, cluster.nodes(), cluster.namespaces());
        if rules.is_empty(pod) {
            return Ok(PreFiltered::Skip);
        }
        state.put(rules);
        Ok(PreFiltered::Continue)
    }

    fn add_pod(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        other: &PodInfo,
        node: &NodeInfo,
        cluster: &Cluster,
    ) {
        if let Some(rules) = state.get_mut::<Rules>() {
            rules.change(pod, other, node, 1, cluster.namespaces());
        }
    }

    fn remove_pod(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        other: &PodInfo,
        node: &NodeInfo,
        cluster: &Cluster,
    ) {
        if let Some(rules) = state.get_mut::<Rules>() {
            rules.change(pod, other, node, -1, cluster.namespaces());
        }
    }
}

impl Filter for InterPodAffinity {
    fn filter(&self, state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        let Some(rules) = state.get::<Rules>() else { return Ok(()) };
        rules.check(pod, node).map_err(|violation| match violation {
            Violation::Affinity => Rejection::unresolvable("node(s) didn't match pod affinity rules"),
            Violation::AntiAffinity => Rejection::new("node(s) didn't match pod anti-affinity rules"),
            Violation::ExistingAntiAffinity => {
                Rejection::new("node(s) didn't satisfy existing pods anti-affinity rules")
            }
        })
    }
}

impl PreScore for InterPodAffinity {
    fn pre_score(&self, state: &mut CycleState, pod: &PodInfo, cluster: &Cluster, _: &[&NodeInfo]) -> bool {
        if pod.preferred_affinity.is_empty() && !cluster.has_affinity() {
            return false;
        }
        match interpod::wishes(pod, cluster.nodes(), cluster.namespaces()) {
            Some(weights) => {
                state.put(weights);
                true
            }
            None => false,
        }
    }
}

impl Score for InterPodAffinity {
    fn score(&self, state: &CycleState, _: &PodInfo, node: &NodeInfo) -> i64 {
        state.get::<Counts>().map_or(0, |weights| interpod::score(weights, node))
    }

    fn normalize(&self, _: &CycleState, _: &PodInfo, scores: &mut [i64]) {
        interpod::normalize(scores);
    }
}

impl EnqueueExtensions for InterPodAffinity {
    fn may_help(&self, pod: &PodInfo, change: &Change<'_>, cluster: &Cluster) -> bool {
        let namespaces = cluster.namespaces();
        let wanted = |other: &PodInfo| pod.affinity.iter().any(|term| term.matches(other, namespaces));
        let keeps_away = |other: &PodInfo| {
            pod.anti_affinity.iter().any(|term| term.matches(other, namespaces))
                || other.anti_affinity.iter().any(|term| term.matches(pod, namespaces))
        };
        match change {
            Change::PodPlaced(other) => wanted(other),
            Change::PodRemoved(other) => keeps_away(other),
            Change::PodChanged { old, new } => {
                wanted(old) != wanted(new) || keeps_away(old) != keeps_away(new)
            }
            Change::Node { what, .. } => what.labels,
            Change::Namespace => true,
            Change::NodeRemoved
            | Change::Claim(_)
            | Change::Volume
            | Change::StorageClass
            | Change::CsiNode
            | Change::Capacity => false,
        }
    }
}
