//! Making room by evicting pods of lower priority.

use crate::cluster::{Cluster, NodeId};
use crate::framework::*;
use kelp_model::scheduling::{NodeInfo, PodInfo};
use std::sync::Arc;

mod candidate;

use candidate::Candidate;

/// Looks at no more candidates than this share of the nodes, in percent…
const MIN_CANDIDATES_PERCENTAGE: usize = 10;
/// …and at least at this many.
const MIN_CANDIDATES: usize = 100;

/// Evicts the least important pods of one node.
pub struct DefaultPreemption;

impl Plugin for DefaultPreemption {
    fn name(&self) -> &'static str {
        "DefaultPreemption"
    }
}

impl PostFilter for DefaultPreemption {
    fn post_filter(&self, cycle: &PostFilterCycle<'_>) -> PostFiltered {
        if let Err(reason) = eligible(cycle.pod, cycle.cluster) {
            return PostFiltered::Nothing(Some(format!("preemption: {reason}")));
        }
        let mut candidates = Vec::new();
        let mut reasons = Vec::new();
        let all = cycle.diagnosis.nodes;
        let enough = (all * MIN_CANDIDATES_PERCENTAGE / 100).max(MIN_CANDIDATES);
        let mut unhelpful = all;
        for (id, _) in cycle.diagnosis.rejected.iter().filter(|(_, rejection)| rejection.resolvable) {
            unhelpful -= 1;
            if candidates.len() >= enough {
                continue;
            }
            match dry_run(cycle, *id) {
                Ok(candidate) => candidates.push(candidate),
                Err(rejection) => reasons.extend(rejection.reasons),
            }
        }
        match Candidate::best(candidates) {
            Some(Candidate { node, victims }) => PostFiltered::Preempt { node, victims },
            None => {
                let help = (unhelpful > 0).then_some(("Preemption is not helpful for scheduling", unhelpful));
                let text = histogram(reasons.iter().map(|reason| (reason.as_ref(), 1)).chain(help));
                PostFiltered::Nothing(Some(format!("preemption: 0/{all} nodes are available: {text}.")))
            }
        }
    }
}

/// Whether the pod may evict others now.
fn eligible(pod: &PodInfo, cluster: &Cluster) -> Result<(), &'static str> {
    if !pod.preempts {
        return Err("not eligible due to preemptionPolicy=Never.");
    }
    let leaving = |node: NodeId| {
        cluster.node(node).pods().iter().any(|other| other.terminating && other.priority < pod.priority)
    };
    match cluster.nomination(&pod.uid).and_then(|node| cluster.find(node)) {
        Some(node) if leaving(node) => Err("not eligible due to a terminating pod on the nominated node."),
        _ => Ok(()),
    }
}

/// Finds the fewest and least important pods of a node whose going lets the pod fit.
fn dry_run(cycle: &PostFilterCycle<'_>, id: NodeId) -> Result<Candidate, Rejection> {
    let PostFilterCycle { profile, pod, cluster, .. } = *cycle;
    let mut node: NodeInfo = cluster.node(id).clone();
    let mut lower =
        node.pods().iter().filter(|other| other.priority < pod.priority).cloned().collect::<Vec<_>>();
    if lower.is_empty() {
        return Err(Rejection::new("No preemption victims found for incoming pod"));
    }
    let mut state = cycle.state.clone();
    for other in &lower {
        node.remove_pod(&other.uid);
        profile.remove_pod(&mut state, pod, other, &node, cluster);
    }
    fits(profile, &state, pod, &node, cluster)?;
    // The most important ones stay if they can, the longest running first among equals.
    lower.sort_by(candidate::most_important_first);
    let mut victims = Vec::new();
    for other in lower {
        node.add_pod(other.clone());
        profile.add_pod(&mut state, pod, &other, &node, cluster);
        if fits(profile, &state, pod, &node, cluster).is_err() {
            node.remove_pod(&other.uid);
            profile.remove_pod(&mut state, pod, &other, &node, cluster);
            victims.push(other);
        }
    }
    Ok(Candidate { node: node.name.clone(), victims })
}

fn fits(
    profile: &Profile,
    state: &CycleState,
    pod: &PodInfo,
    node: &NodeInfo,
    cluster: &Cluster,
) -> Result<(), Rejection> {
    filter_with_nominated(profile, state, pod, node, cluster).map_err(|(_, rejection)| rejection)
}

/// Runs the filters as if the pods were there for which room is being made on the node, if they are at least as
/// important, and once more without them (an affinity must not hang on a pod that may not come).
pub fn filter_with_nominated(
    profile: &Profile,
    state: &CycleState,
    pod: &PodInfo,
    node: &NodeInfo,
    cluster: &Cluster,
) -> Result<(), (PluginId, Rejection)> {
    if cluster.has_nominations() {
        let coming = |other: &&Arc<PodInfo>| other.priority >= pod.priority && other.uid != pod.uid;
        let coming = cluster.nominated(&node.name).iter().filter(coming).collect::<Vec<_>>();
        if !coming.is_empty() {
            let (mut node, mut state) = (node.clone(), state.clone());
            for other in coming {
                node.add_pod(other.clone());
                profile.add_pod(&mut state, pod, other, &node, cluster);
            }
            profile.run_filter(&state, pod, &node)?;
        }
    }
    profile.run_filter(state, pod, node)
}
