//! Nodes that fall silent or say they are not ready: their conditions, taints and pods.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod};
use kelp_model::controllers::pods;
use kelp_model::controllers::taints::{node_condition, wanted_taints};
use kube::ResourceExt;
use kube::api::Api;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::context::Context;
use crate::error::Result;
use crate::events::Recorder;
use crate::informer::{Change, Informer, key_of};
use crate::queue::{Key, Queue};
use crate::write;

/// Namespace of the nodes' Leases.
const LEASES: &str = "kube-node-lease";
/// Index of pods by node.
pub const NODE: &str = "node";
/// Conditions a node reports; `Unknown` once it is silent.
const REPORTED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// The index [`NODE`].
pub fn by_node(pod: &Pod) -> Vec<String> {
    pod.spec.as_ref().and_then(|s| s.node_name.clone()).filter(|n| !n.is_empty()).into_iter().collect()
}

struct NodeLifecycle {
    context: Arc<Context>,
    nodes: Arc<Informer<Node>>,
    pods: Arc<Informer<Pod>>,
    queue: Queue,
    /// When something was last heard of each node, by this machine's clock: nodes' clocks may be off.
    heard: Mutex<HashMap<String, Instant>>,
    /// When pods were last told to leave a node.
    evicted: Mutex<Option<Instant>>,
    events: Recorder,
}

/// Starts the controller. Reads Nodes, Leases and Pods; writes Nodes' taints and status, and Pods' status.
pub fn start(context: &Arc<Context>) -> Result<()> {
    let controller = Arc::new(NodeLifecycle {
        context: context.clone(),
        nodes: context.informer(),
        pods: context.informer(),
        queue: Queue::new(),
        heard: Mutex::default(),
        evicted: Mutex::default(),
        events: context.recorder("node-controller"),
    });
    controller.pods.add_index(NODE, by_node);
    let c = controller.clone();
    context.informer::<Lease>().on_change(move |change| {
        let lease = change.object();
        let renewed = |l: &Lease| l.spec.as_ref().and_then(|s| s.renew_time.clone());
        let is_renewal = match change {
            Change::Added(_) => true,
            Change::Updated { old, new } => renewed(old) != renewed(new),
            Change::Deleted(_) => false,
        };
        // The timer of the node looks at this when it fires; a renewal itself is no work.
        if is_renewal && lease.metadata.namespace.as_deref() == Some(LEASES) {
            c.heard.lock().insert(lease.name_any(), Instant::now());
        }
    });
    let c = controller.clone();
    controller.nodes.on_change(move |change| c.node_changed(change));
    let (queue, c) = (controller.queue.clone(), controller);
    context.workers("node-lifecycle", &queue, 4, move |name| {
        let c = c.clone();
        async move { c.sync(&name).await }
    });
    Ok(())
}

fn status_of<'a>(node: &'a Node, kind: &str) -> &'a str {
    node_condition(node, kind).map_or("", |c| c.status.as_str())
}

impl NodeLifecycle {
    fn node_changed(&self, change: &Change<'_, Node>) {
        let node = change.object();
        let name = node.name_any();
        match change {
            Change::Added(_) => {
                self.heard.lock().insert(name.clone(), Instant::now());
                let message = format!("Node {name} event: Registered Node {name} in Controller");
                self.events.normal(&**node, "RegisteredNode", message);
                self.queue.add(name);
            }
            Change::Updated { old, new } => {
                let heartbeat =
                    |n: &Node| node_condition(n, "Ready").and_then(|c| c.last_heartbeat_time.clone());
                // This controller's own writes leave the heartbeat as it was.
                if heartbeat(old) != heartbeat(new) {
                    self.heard.lock().insert(name.clone(), Instant::now());
                }
                self.queue.add(name);
                if status_of(old, "Ready") != status_of(new, "Ready") {
                    // Whether others are told to leave depends on whether any node is well.
                    self.nodes.list().iter().for_each(|n| self.queue.add(key_of(&n.metadata)));
                }
            }
            Change::Deleted(_) => {
                self.heard.lock().remove(&name);
                let message = format!("Node {name} event: Removing Node {name} from Controller");
                self.events.normal(&**node, "RemovingNode", message);
            }
        }
    }

    async fn sync(&self, name: &Key) -> Result<()> {
        let Some(cached) = self.nodes.get(name) else { return Ok(()) };
        let mut node = Node::clone(&cached);
        let config = &self.context.config;
        let reported = node_condition(&node, "Ready").is_some();
        let grace = if reported { config.node_monitor_grace } else { config.node_startup_grace };
        let heard = self.heard.lock().get(&**name).copied().unwrap_or_else(Instant::now);
        let left = grace.saturating_sub(heard.elapsed());
        if left.is_zero() {
            node = self.mark_silent(node).await?;
            self.mark_pods(name).await?;
        } else {
            self.queue.add_after(name.clone(), left + Duration::from_millis(1));
        }
        self.taint(name, &node).await
    }

    /// Turns what the node reported into `Unknown`.
    async fn mark_silent(&self, node: Node) -> Result<Node> {
        let mut wanted = node.clone();
        let conditions = wanted.status.get_or_insert_default().conditions.get_or_insert_default();
        for kind in REPORTED {
            match conditions.iter_mut().find(|c| c.type_ == kind) {
                None => conditions.push(NodeCondition {
                    type_: kind.into(),
                    status: "Unknown".into(),
                    reason: Some("NodeStatusNeverUpdated".into()),
                    message: Some("Kubelet never posted node status.".into()),
                    last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                    last_transition_time: Some(write::now()),
                }),
                Some(condition) if condition.status != "Unknown" => {
                    condition.status = "Unknown".into();
                    condition.reason = Some("NodeStatusUnknown".into());
                    condition.message = Some("Kubelet stopped posting node status.".into());
                    condition.last_transition_time = Some(write::now());
                }
                Some(_) => {}
            }
        }
        let api: Api<Node> = Api::all(self.context.client.clone());
        let Some(written) = write::update_status(&api, &node, &wanted).await? else { return Ok(node) };
        if status_of(&node, "Ready") == "True" {
            let message = format!("Node {} status is now: NodeNotReady", node.name_any());
            self.events.normal(&node, "NodeNotReady", message);
        }
        Ok(written)
    }

    /// Nobody else says that the pods of a silent node are not ready.
    async fn mark_pods(&self, name: &str) -> Result<()> {
        for pod in self.pods.by_index(NODE, name) {
            if !pods::is_ready(&pod) {
                continue;
            }
            let mut wanted = Pod::clone(&pod);
            let conditions = wanted.status.iter_mut().filter_map(|s| s.conditions.as_mut()).flatten();
            for condition in conditions.filter(|c| c.type_ == "Ready") {
                condition.status = "False".into();
                condition.last_transition_time = Some(write::now());
            }
            let api: Api<Pod> =
                Api::namespaced(self.context.client.clone(), &pod.namespace().unwrap_or_default());
            match write::update_status(&api, &*pod, &wanted).await {
                Ok(_) => self.events.warning(&*pod, "NodeNotReady", "Node is not ready".into()),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn taint(&self, name: &Key, node: &Node) -> Result<()> {
        // When no node at all is well, the fault is likely here or in the network: pods stay where they are.
        let any_ready = self.nodes.list().iter().any(|n| status_of(n, "Ready") == "True");
        let Some(mut taints) = wanted_taints(node, any_ready) else { return Ok(()) };
        let current = node.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
        let is_new = |t: &k8s_openapi::api::core::v1::Taint| {
            !current.iter().any(|c| c.key == t.key && c.effect == t.effect)
        };
        if taints.iter().any(|t| t.effect == "NoExecute" && is_new(t)) {
            let wait = {
                let mut evicted = self.evicted.lock();
                let interval = self.context.config.node_eviction_interval;
                let wait = evicted.map_or(Duration::ZERO, |at| interval.saturating_sub(at.elapsed()));
                if wait.is_zero() {
                    *evicted = Some(Instant::now());
                }
                wait
            };
            if !wait.is_zero() {
                // Nodes are emptied one after the other.
                taints.retain(|t| t.effect != "NoExecute" || !is_new(t));
                self.queue.add_after(name.clone(), wait);
            }
        }
        for taint in taints.iter_mut().filter(|t| is_new(t)) {
            taint.time_added = Some(write::now());
        }
        let mut wanted = node.clone();
        wanted.spec.get_or_insert_default().taints = (!taints.is_empty()).then_some(taints);
        let api: Api<Node> = Api::all(self.context.client.clone());
        write::update(&api, node, &wanted).await?;
        Ok(())
    }
}
