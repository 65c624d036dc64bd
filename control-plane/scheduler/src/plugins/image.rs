//! Images that are already there.

use crate::cluster::Cluster;
use crate::framework::*;
use kelp_model::scheduling::{NodeInfo, PodInfo, image};

/// Prefers nodes that have the pod's images.
pub struct ImageLocality;

/// Share of the nodes that have each image of the pod, in the order of `PodInfo::images`.
#[derive(Clone)]
struct Spread {
    nodes_with_it: Vec<usize>,
    nodes: usize,
}

impl Plugin for ImageLocality {
    fn name(&self) -> &'static str {
        "ImageLocality"
    }
}

impl PreScore for ImageLocality {
    fn pre_score(&self, state: &mut CycleState, pod: &PodInfo, cluster: &Cluster, _: &[&NodeInfo]) -> bool {
        let nodes_with_it = pod.images.iter().map(|name| cluster.nodes_with_image(name)).collect::<Vec<_>>();
        let anywhere = nodes_with_it.iter().any(|n| *n > 0);
        state.put(Spread { nodes_with_it, nodes: cluster.len() });
        anywhere
    }
}

impl Score for ImageLocality {
    fn score(&self, state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let Some(spread) = state.get::<Spread>() else { return 0 };
        let there = pod.images.iter().zip(&spread.nodes_with_it);
        let sum = there
            .filter_map(|(name, nodes)| Some(image::share(*node.images.get(name)?, *nodes, spread.nodes)))
            .fold(0i64, i64::saturating_add);
        image::score(sum, pod.images.len())
    }
}
