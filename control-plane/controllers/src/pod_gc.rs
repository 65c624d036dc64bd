//! Pods nobody will finish: of nodes that are gone or out of service, being deleted without ever having had a node, or ended long ago.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, PodCondition};
use kelp_model::controllers::pods;
use kelp_model::volume::attachment;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Preconditions};

use crate::context::Context;
use crate::error::{Result, ignore_not_found};
use crate::informer::{Change, Informer, key_of};
use crate::node_lifecycle::{NODE, by_node};
use crate::queue::{Key, Queue};
use crate::write;

struct PodGc {
    context: Arc<Context>,
    nodes: Arc<Informer<Node>>,
    pods: Arc<Informer<Pod>>,
    queue: Queue,
}

/// Index of ended pods (under one value).
const ENDED: &str = "ended";

/// What a pod's status says before it is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// What it says.
    AsItIs,
    /// It has failed.
    Failed,
    /// It has failed, stopped from outside for this reason.
    Disrupted(&'static str),
}

/// Sets the condition that says the pod was stopped from outside.
pub fn disrupt(pod: &mut Pod, reason: &str, message: &str) {
    let generation = pod.metadata.generation;
    let conditions = pod.status.get_or_insert_default().conditions.get_or_insert_default();
    conditions.retain(|c| c.type_ != "DisruptionTarget");
    conditions.push(PodCondition {
        type_: "DisruptionTarget".into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_transition_time: Some(write::now()),
        observed_generation: generation,
        ..PodCondition::default()
    });
}

/// Starts the controller. Reads Nodes and Pods; deletes Pods.
pub fn start(context: &Arc<Context>) -> Result<()> {
    let controller = Arc::new(PodGc {
        context: context.clone(),
        nodes: context.informer(),
        pods: context.informer(),
        queue: Queue::new(),
    });
    controller.pods.add_index(NODE, by_node);
    controller.pods.add_index(ENDED, |p| if pods::is_terminal(p) { vec![ENDED.into()] } else { Vec::new() });
    let grace = context.config.orphan_grace;
    let c = controller.clone();
    controller.nodes.on_change(move |change| {
        if let Change::Deleted(node) = change {
            let pods = c.pods.by_index(NODE, &node.name_any());
            pods.iter().for_each(|p| c.queue.add_after(key_of(&p.metadata), grace));
        } else if attachment::is_out_of_service(change.object()) {
            let pods = c.pods.by_index(NODE, &change.object().name_any());
            pods.iter().filter(|p| pods::is_terminating(p)).for_each(|p| c.queue.add(key_of(&p.metadata)));
        }
    });
    let c = controller.clone();
    controller.pods.on_change(move |change| {
        let pod = change.object();
        let key = key_of(&pod.metadata);
        match change {
            Change::Deleted(_) => {}
            _ if pods::is_terminating(pod) && by_node(pod).is_empty() => c.queue.add(key),
            _ if pods::is_terminal(pod) => c.queue.add(key),
            _ if pods::is_terminating(pod)
                && by_node(pod)
                    .first()
                    .and_then(|n| c.nodes.get(n))
                    .is_some_and(|n| attachment::is_out_of_service(&n)) =>
            {
                c.queue.add(key);
            }
            _ => {
                // The node's own event may come later than the pod's: the grace covers that.
                let gone = by_node(pod).first().is_some_and(|n| c.nodes.get(n).is_none());
                if gone {
                    c.queue.add_after(key, grace);
                }
            }
        }
    });
    let (queue, c) = (controller.queue.clone(), controller);
    context.workers("pod-gc", &queue, 2, move |key| {
        let c = c.clone();
        async move { c.sync(&key).await }
    });
    Ok(())
}

impl PodGc {
    async fn sync(&self, key: &Key) -> Result<()> {
        let Some(pod) = self.pods.get(key) else { return Ok(()) };
        match by_node(&pod).first() {
            None if pods::is_terminating(&pod) => return self.delete(&pod, End::AsItIs).await,
            None => {}
            Some(name) if self.nodes.get(name).is_none() => {
                let nodes: Api<Node> = Api::all(self.context.client.clone());
                if ignore_not_found(nodes.get_metadata(name).await)?.is_none() {
                    return self.delete(&pod, End::Disrupted("PodGC: node no longer exists")).await;
                }
            }
            Some(name) => {
                let lost = |node: &Node| attachment::is_out_of_service(node) && !attachment::is_healthy(node);
                if pods::is_terminating(&pod) && self.nodes.get(name).is_some_and(|n| lost(&n)) {
                    return self.delete(&pod, End::Failed).await;
                }
            }
        }
        if pods::is_terminal(&pod) { self.thin_out().await } else { Ok(()) }
    }

    /// Deletes the oldest ended pods beyond the threshold.
    async fn thin_out(&self) -> Result<()> {
        let threshold = self.context.config.terminated_pod_threshold;
        let mut ended = self.pods.by_index(ENDED, ENDED);
        ended.retain(|p| !pods::is_terminating(p));
        if threshold == 0 || ended.len() <= threshold {
            return Ok(());
        }
        ended.sort_by_cached_key(|p| (p.metadata.creation_timestamp.as_ref().map(|t| t.0), p.name_any()));
        for pod in ended.iter().take(ended.len() - threshold) {
            self.delete(pod, End::AsItIs).await?;
        }
        Ok(())
    }

    /// Deletes a pod without waiting for a node.
    async fn delete(&self, pod: &Pod, end: End) -> Result<()> {
        let api: Api<Pod> =
            Api::namespaced(self.context.client.clone(), &pod.namespace().unwrap_or_default());
        if end != End::AsItIs {
            let mut wanted = pod.clone();
            if !pods::is_terminal(pod) {
                wanted.status.get_or_insert_default().phase = Some("Failed".into());
            }
            if let End::Disrupted(message) = end {
                disrupt(&mut wanted, "DeletionByPodGC", message);
            }
            match write::update_status(&api, pod, &wanted).await {
                Err(error) if error.is_not_found() => return Ok(()),
                other => other.map(|_| ())?,
            }
        }
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: pod.metadata.uid.clone(), resource_version: None }),
            ..DeleteParams::default()
        };
        ignore_not_found(api.delete(&pod.name_any(), &params).await)?;
        Ok(())
    }
}
