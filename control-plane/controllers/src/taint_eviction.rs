//! Pods leave nodes with NoExecute taints they do not tolerate, at once or when their toleration ends.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use kelp_model::controllers::pods;
use kelp_model::controllers::taints::{Stay, stay};
use kube::ResourceExt;
use kube::api::Api;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::context::Context;
use crate::error::Result;
use crate::events::Recorder;
use crate::informer::{Change, Informer, key_of};
use crate::node_lifecycle::{NODE, by_node};
use crate::pod_gc::disrupt;
use crate::queue::{Key, Queue};
use crate::write;

struct TaintEviction {
    context: Arc<Context>,
    nodes: Arc<Informer<Node>>,
    pods: Arc<Informer<Pod>>,
    queue: Queue,
    /// UID of a pod that will leave, and since when the taints are known.
    leaving: Mutex<HashMap<Key, (Option<String>, Instant)>>,
    events: Recorder,
}

fn no_execute(node: &Node) -> Vec<Taint> {
    let taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    taints.filter(|t| t.effect == "NoExecute").cloned().collect()
}

/// Starts the controller. Reads Nodes and Pods; deletes Pods.
pub fn start(context: &Arc<Context>) -> Result<()> {
    let controller = Arc::new(TaintEviction {
        context: context.clone(),
        nodes: context.informer(),
        pods: context.informer(),
        queue: Queue::new(),
        leaving: Mutex::default(),
        events: context.recorder("taint-eviction-controller"),
    });
    controller.pods.add_index(NODE, by_node);
    let c = controller.clone();
    controller.nodes.on_change(move |change| {
        let changed = match change {
            Change::Added(node) => !no_execute(node).is_empty(),
            Change::Updated { old, new } => no_execute(old) != no_execute(new),
            Change::Deleted(_) => true,
        };
        if changed {
            let name = change.object().name_any();
            c.pods.by_index(NODE, &name).iter().for_each(|p| c.queue.add(key_of(&p.metadata)));
        }
    });
    let c = controller.clone();
    controller.pods.on_change(move |change| {
        let placed = |p: &Pod| p.spec.as_ref().map(|s| (s.node_name.clone(), s.tolerations.clone()));
        let matters = match change {
            Change::Added(pod) => !by_node(pod).is_empty(),
            Change::Updated { old, new } => placed(old) != placed(new),
            Change::Deleted(_) => true,
        };
        if matters {
            c.queue.add(key_of(&change.object().metadata));
        }
    });
    let (queue, c) = (controller.queue.clone(), controller);
    context.workers("taint-eviction", &queue, 4, move |key| {
        let c = c.clone();
        async move { c.sync(&key).await }
    });
    Ok(())
}

impl TaintEviction {
    async fn sync(&self, key: &Key) -> Result<()> {
        let pod = self.pods.get(key).filter(|p| !pods::is_terminating(p) && !pods::is_terminal(p));
        let node = pod.as_ref().and_then(|p| by_node(p).first().and_then(|name| self.nodes.get(name)));
        let (Some(pod), Some(node)) = (pod, node) else {
            self.leaving.lock().remove(key);
            return Ok(());
        };
        match stay(&pod, &no_execute(&node)) {
            Stay::No => self.evict(key, &pod).await,
            Stay::Forever => {
                if self.leaving.lock().remove(key).is_some() {
                    let message = format!("Cancelling deletion of Pod {key}");
                    self.events.normal(&*pod, "TaintManagerEviction", message);
                }
                Ok(())
            }
            Stay::For(time) => {
                let time = Duration::try_from(time).unwrap_or_default();
                let since = {
                    let mut leaving = self.leaving.lock();
                    let entry = leaving
                        .entry(key.clone())
                        .or_insert_with(|| (pod.metadata.uid.clone(), Instant::now()));
                    if entry.0 != pod.metadata.uid {
                        *entry = (pod.metadata.uid.clone(), Instant::now());
                    }
                    entry.1
                };
                let left = time.saturating_sub(since.elapsed());
                if left.is_zero() {
                    self.evict(key, &pod).await
                } else {
                    self.queue.add_after(key.clone(), left);
                    Ok(())
                }
            }
        }
    }

    async fn evict(&self, key: &Key, pod: &Pod) -> Result<()> {
        self.events.normal(pod, "TaintManagerEviction", format!("Marking for deletion Pod {key}"));
        let api: Api<Pod> =
            Api::namespaced(self.context.client.clone(), &pod.namespace().unwrap_or_default());
        let mut wanted = pod.clone();
        disrupt(&mut wanted, "DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint");
        match write::update_status(&api, pod, &wanted).await {
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
            Ok(_) => write::delete(&api, pod, None).await?,
        }
        self.leaving.lock().remove(key);
        Ok(())
    }
}
