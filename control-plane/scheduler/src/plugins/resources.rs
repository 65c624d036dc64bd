//! Resources: what fits, and where it is best taken.

use crate::cluster::Cluster;
use crate::framework::*;
use kelp_model::scheduling::score::{self, Lack};
use kelp_model::scheduling::{NodeInfo, PodInfo, Resources};
use std::borrow::Cow;

/// Avoids nodes without room for the pod, and prefers those with much left.
pub struct NodeResourcesFit;

impl Plugin for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }
}

impl PreFilter for NodeResourcesFit {
    fn pre_filter(&self, _: &mut CycleState, _: &PodInfo, _: &Cluster) -> Result<PreFiltered, Rejection> {
        Ok(PreFiltered::Continue)
    }
}

impl Filter for NodeResourcesFit {
    fn filter(&self, _: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        let mut rejection: Option<Rejection> = None;
        score::insufficient(&pod.requests, node, |lack, never| {
            let reason: Cow<'static, str> = match lack {
                Lack::Pods => "Too many pods".into(),
                Lack::Cpu => "Insufficient cpu".into(),
                Lack::Memory => "Insufficient memory".into(),
                Lack::EphemeralStorage => "Insufficient ephemeral-storage".into(),
                Lack::Scalar(at) => match pod.requests.scalars.get(at) {
                    Some((name, _)) => format!("Insufficient {name}").into(),
                    None => return,
                },
            };
            let rejection = rejection.get_or_insert(Rejection { reasons: Vec::new(), resolvable: true });
            rejection.reasons.push(reason);
            rejection.resolvable &= !never;
        });
        rejection.map_or(Ok(()), Err)
    }
}

impl Score for NodeResourcesFit {
    fn score(&self, _: &CycleState, pod: &PodInfo, node: &NodeInfo) -> i64 {
        score::least_allocated(pod, node)
    }
}

/// Whether `freed` holds any of what `wanted` asks for.
fn frees(freed: &Resources, wanted: &Resources) -> bool {
    (freed.milli_cpu > 0 && wanted.milli_cpu > 0)
        || (freed.memory > 0 && wanted.memory > 0)
        || (freed.ephemeral_storage > 0 && wanted.ephemeral_storage > 0)
        || wanted.scalars.iter().any(|(name, amount)| *amount > 0 && freed.scalar(name) > 0)
}

impl EnqueueExtensions for NodeResourcesFit {
    fn may_help(&self, pod: &PodInfo, change: &Change<'_>, _: &Cluster) -> bool {
        match change {
            Change::Node { node, what } => {
                let mut fits = what.allocatable;
                score::insufficient(&pod.requests, node, |_, _| fits = false);
                fits
            }
            // A pod less is also a place more among those the node may run.
            Change::PodRemoved(_) => true,
            Change::PodChanged { old, new } => {
                let mut freed = old.requests.clone();
                freed.sub(&new.requests);
                frees(&freed, &pod.requests)
            }
            _ => false,
        }
    }
}

/// Prefers nodes on which resources are used evenly.
pub struct BalancedAllocation;

impl Plugin for BalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }
}

impl Score for BalancedAllocation {
    fn score(&self, _: &CycleState, pod: &PodInfo, node: &NodeInfo) -> i64 {
        score::balanced_allocation(pod, node)
    }
}
