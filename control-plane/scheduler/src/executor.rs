//! Carries outcomes out: bindings, pod conditions, evictions, events.

use crate::app::WaitingPods;
use crate::core::{Event, Outcome, Placement, Reason};
use crate::recorder::{Note, Recorder};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kelp_model::scheduling::PodInfo;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::Notify;
use tokio::sync::mpsc::Sender;
use tokio_util::task::TaskTracker;

/// Carries outcomes out in tasks of their own.
#[derive(Clone)]
pub struct Executor {
    /// Speaks to the API server.
    pub client: Client,
    /// Takes the results.
    pub events: Sender<Event>,
    /// Writes events about pods.
    pub recorder: Recorder,
    /// Pods that wait for permission.
    pub waiting: WaitingPods,
    /// All running tasks.
    pub tasks: TaskTracker,
    /// Notified when a task ends.
    pub done: Arc<Notify>,
}

impl Executor {
    /// Begins to carry an outcome out.
    pub fn start(&self, outcome: Outcome) {
        let this = self.clone();
        match outcome {
            Outcome::Bind(placement) => self.spawn(this.bind(placement)),
            Outcome::Failed { pod, reason, message, nominated } => {
                self.spawn(this.tell_failure(pod, reason, message, nominated));
            }
            Outcome::Preempt { pod, node, victims } => {
                for victim in victims {
                    self.spawn(self.clone().evict(pod.clone(), node.clone(), victim));
                }
            }
            Outcome::ClearNomination(pod) => self.spawn(async move {
                this.patch_status(&pod, json!({"nominatedNodeName": null})).await;
            }),
        }
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let done = self.done.clone();
        self.tasks.spawn(async move {
            task.await;
            done.notify_one();
        });
    }

    async fn bind(self, placement: Box<Placement>) {
        let pod = placement.queued.pod.clone();
        if let Some(wait) = placement.wait
            && let Err(error) = self.waiting.wait(&pod.uid, wait).await
        {
            drop(self.events.send(Event::BindFailed(placement, error)).await);
            return;
        }
        match placement.profile.run_bind(&self.client, &pod, &placement.node).await {
            Ok(()) => {
                let text = format!("Successfully assigned {pod} to {}", placement.node);
                let reason = "Scheduled";
                self.recorder.record(Note {
                    pod,
                    related: None,
                    warning: false,
                    reason,
                    action: "Binding",
                    text,
                });
            }
            Err(error) => {
                tracing::info!(%pod, node = %placement.node, %error, "cannot bind");
                drop(self.events.send(Event::BindFailed(placement, error)).await);
            }
        }
    }

    async fn tell_failure(
        self,
        pod: Arc<PodInfo>,
        reason: Reason,
        message: String,
        nominated: Option<Arc<str>>,
    ) {
        self.recorder.record(Note {
            pod: pod.clone(),
            related: None,
            warning: true,
            reason: "FailedScheduling",
            action: "Scheduling",
            text: message.clone(),
        });
        let nomination_changed = nominated.is_some() && nominated != pod.nominated_node;
        if pod.unschedulable_message.as_deref() == Some(message.as_str()) && !nomination_changed {
            return;
        }
        let mut condition = json!({
            "type": "PodScheduled",
            "status": "False",
            "reason": match reason {
                Reason::Unschedulable => "Unschedulable",
                Reason::SchedulerError => "SchedulerError",
            },
            "message": message,
            "lastProbeTime": null,
        });
        if pod.unschedulable_message.is_none() {
            condition["lastTransitionTime"] = now();
        }
        if let Some(generation) = pod.generation {
            condition["observedGeneration"] = generation.into();
        }
        let mut status = json!({"conditions": [condition]});
        if let Some(node) = nominated {
            status["nominatedNodeName"] = (*node).into();
        }
        self.patch_status(&pod, status).await;
    }

    async fn evict(self, pod: Arc<PodInfo>, node: Arc<str>, victim: Arc<PodInfo>) {
        let mut condition = json!({
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "PreemptionByScheduler",
            "message": format!("{}: preempting to accommodate a higher priority pod", pod.scheduler_name),
            "lastProbeTime": null,
            "lastTransitionTime": now(),
        });
        if let Some(generation) = victim.generation {
            condition["observedGeneration"] = generation.into();
        }
        self.patch_status(&victim, json!({"conditions": [condition]})).await;
        let api = Api::<Pod>::namespaced(self.client.clone(), &victim.namespace);
        let preconditions = Preconditions { uid: Some(victim.uid.to_string()), resource_version: None };
        let options = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match api.delete(&victim.name, &options).await {
            Ok(_) => {
                let text = format!("Preempted by pod {} on node {node}", pod.uid);
                let (reason, action) = ("Preempted", "Preempting");
                self.recorder.record(Note {
                    pod: victim,
                    related: Some(pod),
                    warning: false,
                    reason,
                    action,
                    text,
                });
            }
            Err(error) => tracing::warn!(%victim, %pod, %error, "cannot evict a pod"),
        }
    }

    async fn patch_status(&self, pod: &PodInfo, status: Value) {
        let api = Api::<Pod>::namespaced(self.client.clone(), &pod.namespace);
        // The UID keeps the patch from a pod that was made anew under the name.
        let patch = Patch::Strategic(json!({"metadata": {"uid": &*pod.uid}, "status": status}));
        match api.patch_status(&pod.name, &PatchParams::default(), &patch).await {
            Ok(_) => {}
            Err(kube::Error::Api(answer)) if matches!(answer.code, 404 | 409) => {
                tracing::debug!(%pod, "the pod whose status was to be written is gone");
            }
            Err(error) => tracing::warn!(%pod, %error, "cannot write a pod's status"),
        }
    }
}

fn now() -> Value {
    // Whole seconds, as the API's Time has them.
    format!("{:.0}", Timestamp::now()).into()
}
