//! The annotation that tells nodes how long they may cache Secrets and ConfigMaps: the larger the cluster, the longer.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch};
use parking_lot::Mutex;
use serde_json::json;

use crate::context::Context;
use crate::error::{Result, ignore_not_found};
use crate::informer::{Change, key_of};
use crate::queue::Queue;
use crate::write;

/// The annotation, in seconds.
const TTL: &str = "node.alpha.kubernetes.io/ttl";
/// Cluster sizes between which a step holds (they overlap, so that one node more or less changes nothing), and its TTL.
const STEPS: [(usize, usize, u32); 5] =
    [(0, 100, 0), (90, 500, 15), (450, 1000, 30), (900, 2000, 60), (1800, usize::MAX, 300)];

/// The step for a number of nodes, starting from the one that held.
fn step(mut current: usize, nodes: usize) -> usize {
    while nodes > STEPS[current].1 && current + 1 < STEPS.len() {
        current += 1;
    }
    while nodes < STEPS[current].0 && current > 0 {
        current -= 1;
    }
    current
}

/// Starts the controller. Reads Nodes; writes their annotation.
pub fn start(context: &Arc<Context>) -> Result<()> {
    let nodes = context.informer::<Node>();
    let queue = Queue::new();
    let (q, n) = (queue.clone(), nodes.clone());
    let current = Arc::new(Mutex::new(0));
    let held = current.clone();
    nodes.on_change(move |change| {
        let changed = {
            let mut held = held.lock();
            let now = step(*held, n.len());
            std::mem::replace(&mut *held, now) != now
        };
        if changed {
            n.list().iter().for_each(|node| q.add(key_of(&node.metadata)));
        } else if !matches!(change, Change::Deleted(_)) {
            q.add(key_of(&change.object().metadata));
        }
    });
    let client = context.client.clone();
    context.workers("ttl", &queue, 1, move |name| {
        let (nodes, current, client) = (nodes.clone(), current.clone(), client.clone());
        async move {
            let Some(node) = nodes.get(&name) else { return Ok(()) };
            let wanted = STEPS[*current.lock()].2.to_string();
            if node.metadata.annotations.as_ref().and_then(|a| a.get(TTL)) == Some(&wanted) {
                return Ok(());
            }
            let patch = json!({"metadata": {"annotations": {TTL: wanted}}});
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

    #[test]
    fn steps_overlap() {
        assert_eq!(step(0, 100), 0);
        assert_eq!(step(0, 101), 1);
        assert_eq!(step(1, 95), 1);
        assert_eq!(step(1, 89), 0);
        assert_eq!(step(0, 5000), 4);
    }
}
