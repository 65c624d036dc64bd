//! The plugins, with upstream's names, weights and messages.

mod affinity;
mod basic;
mod image;
mod node_affinity;
mod ports;
pub mod preemption;
mod resources;
mod spread;
mod taints;
mod volumes;

pub use affinity::InterPodAffinity;
pub use basic::{
    DefaultBinder, DynamicResources, NodeName, NodeUnschedulable, PrioritySort, SchedulingGates,
};
pub use image::ImageLocality;
pub use node_affinity::NodeAffinity;
pub use ports::NodePorts;
pub use preemption::DefaultPreemption;
pub use resources::{BalancedAllocation, NodeResourcesFit};
pub use spread::PodTopologySpread;
pub use taints::TaintToleration;
pub use volumes::{NodeVolumeLimits, VolumeBinding, VolumeRestrictions, VolumeZone};

use crate::framework::{Profile, ProfileBuilder};
use std::sync::Arc;

/// The default profile: filters cheapest first, as upstream orders them.
pub fn default_profile() -> Profile {
    let gates = Arc::new(SchedulingGates);
    let sort = Arc::new(PrioritySort);
    let unschedulable = Arc::new(NodeUnschedulable);
    let name = Arc::new(NodeName);
    let taints = Arc::new(TaintToleration);
    let node_affinity = Arc::new(NodeAffinity);
    let ports = Arc::new(NodePorts);
    let fit = Arc::new(NodeResourcesFit);
    let balanced = Arc::new(BalancedAllocation);
    let restrictions = Arc::new(VolumeRestrictions);
    let limits = Arc::new(NodeVolumeLimits);
    let volumes = Arc::new(VolumeBinding::default());
    let zone = Arc::new(VolumeZone);
    let spread = Arc::new(PodTopologySpread);
    let affinity = Arc::new(InterPodAffinity);
    let image = Arc::new(ImageLocality);
    let claims = Arc::new(DynamicResources);
    let preemption = Arc::new(DefaultPreemption);
    let binder = Arc::new(DefaultBinder);
    ProfileBuilder::default()
        .pre_enqueue(&gates)
        .queue_sort(&sort)
        .pre_filter(&node_affinity)
        .pre_filter(&ports)
        .pre_filter(&fit)
        .pre_filter(&restrictions)
        .pre_filter(&limits)
        .pre_filter(&volumes)
        .pre_filter(&zone)
        .pre_filter(&spread)
        .pre_filter(&affinity)
        .filter(&unschedulable)
        .filter(&name)
        .filter(&taints)
        .filter(&node_affinity)
        .filter(&ports)
        .filter(&fit)
        .filter(&restrictions)
        .filter(&limits)
        .filter(&volumes)
        .filter(&zone)
        .filter(&spread)
        .filter(&affinity)
        .post_filter(&claims)
        .post_filter(&preemption)
        .pre_score(&taints)
        .pre_score(&node_affinity)
        .pre_score(&spread)
        .pre_score(&affinity)
        .pre_score(&image)
        .score(&taints, 3)
        .score(&node_affinity, 2)
        .score(&spread, 2)
        .score(&affinity, 2)
        .score(&fit, 1)
        .score(&balanced, 1)
        .score(&image, 1)
        .enqueue(&unschedulable)
        .enqueue(&name)
        .enqueue(&taints)
        .enqueue(&node_affinity)
        .enqueue(&ports)
        .enqueue(&fit)
        .enqueue(&restrictions)
        .enqueue(&limits)
        .enqueue(&volumes)
        .enqueue(&zone)
        .enqueue(&spread)
        .enqueue(&affinity)
        .reserve(&volumes)
        .pre_bind(&volumes)
        .bind(&binder)
        .build()
}
