//! Host ports.

use crate::cluster::Cluster;
use crate::framework::*;
use kelp_model::scheduling::{NodeInfo, PodInfo};

/// Avoids nodes on which a host port of the pod is in use.
pub struct NodePorts;

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }
}

impl PreFilter for NodePorts {
    fn pre_filter(&self, _: &mut CycleState, pod: &PodInfo, _: &Cluster) -> Result<PreFiltered, Rejection> {
        Ok(if pod.ports.is_empty() { PreFiltered::Skip } else { PreFiltered::Continue })
    }
}

impl Filter for NodePorts {
    fn filter(&self, _: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        if node.ports().are_free(&pod.ports) {
            Ok(())
        } else {
            Err(Rejection::new("node(s) didn't have free ports for the requested pod ports"))
        }
    }
}

impl EnqueueExtensions for NodePorts {
    fn may_help(&self, pod: &PodInfo, change: &Change<'_>, _: &Cluster) -> bool {
        match change {
            Change::Node { what, .. } => what.added,
            Change::PodRemoved(gone) => {
                gone.ports.iter().any(|freed| pod.ports.iter().any(|wanted| wanted.conflicts(freed)))
            }
            _ => false,
        }
    }
}
