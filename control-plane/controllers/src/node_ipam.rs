//! Pod address ranges of nodes: one a family, kept in the Node's spec and never given twice.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use kelp_model::controllers::cidr::{Cidr, CidrPool};
use kube::api::{Api, Patch};
use parking_lot::Mutex;
use serde_json::json;

use crate::context::Context;
use crate::error::{Error, Result, ignore_not_found};
use crate::informer::{Change, key_of};
use crate::queue::Queue;
use crate::write;

struct State {
    pools: Vec<CidrPool>,
    /// By node.
    given: HashMap<String, Vec<Cidr>>,
}

/// The ranges a node has.
fn ranges(node: &Node) -> Vec<Cidr> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let listed: Vec<&String> = spec.pod_cidrs.iter().flatten().collect();
    let all = if listed.is_empty() { spec.pod_cidr.iter().collect() } else { listed };
    all.into_iter().filter_map(|c| c.parse().ok()).collect()
}

impl State {
    /// Notes ranges a node has already; those of another node are reported.
    fn occupy(&mut self, name: &str, ranges: &[Cidr]) {
        if self.given.contains_key(name) {
            return;
        }
        for range in ranges {
            for pool in self.pools.iter_mut().filter(|p| p.cluster().overlaps(*range)) {
                if !pool.occupy(*range) {
                    tracing::error!(node = name, %range, "the node's pod range is also another node's: delete one of the nodes");
                }
            }
        }
        self.given.insert(name.to_owned(), ranges.to_vec());
    }

    fn release(&mut self, name: &str) {
        for range in self.given.remove(name).into_iter().flatten() {
            // Two nodes that had the same range from elsewhere keep it occupied until both are gone.
            if !self.given.values().flatten().any(|r| r.overlaps(range)) {
                self.pools.iter_mut().for_each(|p| p.release(range));
            }
        }
    }

    /// The ranges of a node, taken now or by an earlier attempt. `None` when a pool is empty.
    fn allocate(&mut self, name: &str) -> Option<Vec<Cidr>> {
        if let Some(given) = self.given.get(name) {
            return Some(given.clone());
        }
        let mut ranges = Vec::new();
        for i in 0..self.pools.len() {
            match self.pools[i].allocate() {
                Some(range) => ranges.push(range),
                None => {
                    for (pool, range) in self.pools.iter_mut().zip(ranges) {
                        pool.release(range);
                    }
                    return None;
                }
            }
        }
        self.given.insert(name.to_owned(), ranges.clone());
        Some(ranges)
    }
}

/// Starts the controller, if the cluster has ranges to give. Reads Nodes; writes `spec.podCIDR` and `spec.podCIDRs`.
pub fn start(context: &Arc<Context>) -> Result<()> {
    let config = &context.config;
    if config.cluster_cidrs.is_empty() {
        return Ok(());
    }
    let mut pools = Vec::new();
    for cluster in &config.cluster_cidrs {
        let mask = if cluster.is_ipv6() { config.node_mask_v6 } else { config.node_mask_v4 };
        let pool = CidrPool::new(*cluster, mask).ok_or_else(|| {
            Error::Failed(format!("a node's range of /{mask} does not fit into the cluster range {cluster}"))
        })?;
        pools.push(pool);
    }
    for service in &config.service_cidrs {
        for pool in pools.iter_mut().filter(|p| p.cluster().overlaps(*service)) {
            pool.occupy(*service);
        }
    }
    let state = Arc::new(Mutex::new(State { pools, given: HashMap::new() }));
    let nodes = context.informer::<Node>();
    let queue = Queue::new();
    let (q, s) = (queue.clone(), state.clone());
    nodes.on_change(move |change| {
        let node = change.object();
        let name = key_of(&node.metadata);
        match change {
            Change::Deleted(_) => s.lock().release(&name),
            _ => {
                // All existing ranges are noted before the first worker runs, which waits for the complete cache.
                let ranges = ranges(node);
                if ranges.is_empty() { q.add(name) } else { s.lock().occupy(&name, &ranges) }
            }
        }
    });
    let (client, events) = (context.client.clone(), context.recorder("cidrAllocator"));
    let retry = queue.clone();
    context.workers("node-ipam", &queue, 1, move |name| {
        let (nodes, state, client, events) = (nodes.clone(), state.clone(), client.clone(), events.clone());
        let retry = retry.clone();
        async move {
            let Some(node) = nodes.get(&name) else { return Ok(()) };
            if !ranges(&node).is_empty() {
                return Ok(());
            }
            let Some(ranges) = state.lock().allocate(&name) else {
                let message = format!("Node {name} status is now: CIDRNotAvailable");
                events.normal(&*node, "CIDRNotAvailable", message);
                // A node that leaves gives its range back: look again then, or in a while.
                retry.add_after(name, std::time::Duration::from_secs(30));
                return Ok(());
            };
            let all: Vec<String> = ranges.iter().map(ToString::to_string).collect();
            let patch = json!({
                "metadata": {"uid": node.metadata.uid},
                "spec": {"podCIDR": all.first(), "podCIDRs": all},
            });
            let api: Api<Node> = Api::all(client);
            ignore_not_found(api.patch(&name, &write::patch_params(), &Patch::Merge(patch)).await)?;
            Ok(())
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        let pool = |cluster: &str, mask| CidrPool::new(cluster.parse().unwrap(), mask).unwrap();
        State { pools: vec![pool("10.244.0.0/23", 24), pool("fd00::/63", 64)], given: HashMap::new() }
    }

    fn texts(ranges: Option<Vec<Cidr>>) -> Vec<String> {
        ranges.unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn both_families_and_what_a_restart_finds() {
        let mut s = state();
        s.occupy("old", &["10.244.0.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()]);
        assert_eq!(texts(s.allocate("new")), ["10.244.1.0/24", "fd00:0:0:1::/64"]);
        assert_eq!(texts(s.allocate("new")), ["10.244.1.0/24", "fd00:0:0:1::/64"], "a second attempt");
        assert_eq!(s.allocate("third"), None);
        s.release("old");
        assert_eq!(texts(s.allocate("third")), ["10.244.0.0/24", "fd00::/64"]);
    }

    #[test]
    fn a_range_two_nodes_share_is_free_only_when_both_left() {
        let mut s = state();
        for name in ["a", "b"] {
            s.occupy(name, &["10.244.0.0/23".parse().unwrap()]);
        }
        s.release("a");
        assert_eq!(s.allocate("c"), None);
        s.release("b");
        assert!(s.allocate("c").is_some());
    }
}
