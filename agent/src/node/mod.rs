//! The Node object and its Lease.
//!
//! | Task | Reads | Writes |
//! |---|---|---|
//! | [`run`] | the host, the images, its Node, readiness of the parts | the Node and its status |
//! | [`keep_lease`] | the clock | Lease `kube-node-lease/<node>` four times in its duration |

pub mod facts;
mod lease;
pub mod state;
pub mod status;

pub use lease::keep_lease;

use crate::config::AgentConfig;
use crate::image::ImageStore;
use crate::metrics;
use crate::network::ipam::Prefix;
use crate::pod::events::{Kind, Recorder};
use crate::server::host;
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeSpec, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::json;
use state::States;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The host is not looked at more often than this.
const LEAST: Duration = Duration::from_millis(100);
/// How long a restarted agent may take to be ready before a Node that was Ready becomes NotReady.
const RESTART: Duration = Duration::from_secs(20);

/// Readiness of the agent's parts: each `None` when ready, else why not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Name of the part and its reason.
    pub parts: BTreeMap<&'static str, String>,
}

impl Readiness {
    fn reason(&self) -> status::NotReady {
        let all: Vec<&str> = self.parts.values().map(String::as_str).collect();
        (!all.is_empty()).then(|| all.join(", "))
    }
}

/// What upstream tells of a host with control groups of version 1.
const CGROUP_V1: &str = "cgroup v1 detected. cgroup v1 support is deprecated and will be removed in a future release. \
    Please migrate to cgroup v2. More information at \
    https://git.k8s.io/enhancements/keps/sig-node/5573-remove-cgroup-v1";

/// What the node task needs.
pub struct NodeTask {
    /// The node's configuration.
    pub config: AgentConfig,
    /// The API server.
    pub client: kube::Client,
    /// The newest Node, for who decides by it.
    pub present: watch::Sender<Option<Arc<Node>>>,
    /// Images to list.
    pub images: ImageStore,
    /// Events about the node.
    pub events: Recorder,
    /// Readiness of the other parts.
    pub readiness: watch::Receiver<Readiness>,
    /// Attachable volumes that pods use.
    pub volumes_in_use: watch::Receiver<BTreeSet<String>>,
    /// Where the node's podCIDRs go.
    pub cidrs: watch::Sender<Vec<Prefix>>,
    /// What the node is short of, and whether it shuts down.
    pub states: States,
    /// Whether all pods together are held to what the node offers.
    pub enforced: bool,
    /// Devices of plugins.
    pub devices: watch::Receiver<Vec<facts::Devices>>,
}

/// Text of the Ready condition while there is no pod network.
pub fn network_not_ready(why: &str) -> String {
    format!(
        "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:{why}"
    )
}

/// Keeps the Node until `shutdown`.
pub async fn run(mut task: NodeTask, shutdown: CancellationToken) {
    let config = watcher::Config::default().fields(&format!("metadata.name={}", task.config.node_name));
    let mut own = watcher(Api::<Node>::all(task.client.clone()), config).default_backoff().boxed();
    let mut node: Option<Node> = None;
    let mut listed: Option<Node> = None;
    let settings = task.config.kubelet.settings.clone();
    let pace = settings.node_status_update_frequency.as_std().max(LEAST);
    let mut timer = tokio::time::interval(pace);
    let mut states = task.states.follow();
    let mut written: Option<Instant> = None;
    let mut was_ready: Option<bool> = None;
    let started = Instant::now();
    let mut known = false;
    task.tell_start();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            event = own.next() => match event {
                Some(Ok(watcher::Event::Init)) => listed = None,
                Some(Ok(watcher::Event::InitApply(found))) => listed = Some(found),
                Some(Ok(watcher::Event::InitDone)) => {
                    node = listed.take();
                    known = true;
                }
                Some(Ok(watcher::Event::Apply(found))) => node = Some(found),
                Some(Ok(watcher::Event::Delete(_))) => node = None,
                Some(Err(error)) => tracing::debug!(%error, "watch of the Node failed, trying again"),
                None => return,
            },
            changed = task.readiness.changed() => if changed.is_err() { return },
            changed = task.devices.changed() => if changed.is_err() { return },
            changed = states.changed() => if changed.is_err() { return },
            Ok(()) = task.volumes_in_use.changed() => {}
            _ = timer.tick() => {}
        }
        if !known {
            continue;
        }
        let result = match &node {
            // Somebody else makes it.
            None if !settings.register_node => continue,
            None => {
                written = None;
                task.register().await.map(|made| node = Some(made))
            }
            Some(present) => {
                task.take_cidrs(present);
                task.report(present, &mut written, &mut was_ready, started).await.map(|new| {
                    if let Some(new) = new {
                        node = Some(new);
                    }
                })
            }
        };
        if let Err(error) = result {
            tracing::warn!(%error, "Node not written, trying again");
        }
        // Newly assigned podCIDRs, and what came of the registration, are taken at once.
        if let Some(present) = &node {
            task.take_cidrs(present);
        }
        task.present.send_if_modified(|known| {
            let version = |n: &Node| n.metadata.resource_version.clone();
            let new = node.as_ref().map(version) != known.as_deref().map(version);
            if new {
                *known = node.clone().map(Arc::new);
            }
            new
        });
    }
}

impl NodeTask {
    /// Events of a start, by upstream's words.
    fn tell_start(&self) {
        let name = &self.config.node_name;
        self.events.node(name, Kind::Normal, "Starting", "Starting kubelet.");
        if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            self.events.node(name, Kind::Warning, "CgroupV1", CGROUP_V1);
        }
        if self.enforced {
            let text = "Updated Node Allocatable limit across pods";
            self.events.node(name, Kind::Normal, "NodeAllocatableEnforced", text);
        }
    }

    async fn register(&self) -> Result<Node, kube::Error> {
        let begin = std::time::Instant::now();
        let registered = self.create().await;
        if registered.is_ok() {
            let since = host::process_started();
            let unregistered =
                Timestamp::now().duration_since(since).as_secs_f64() - begin.elapsed().as_secs_f64();
            metrics::STARTUP_UNREGISTERED.set_once(unregistered.max(0.0));
            metrics::STARTUP_REGISTRATION.set_once(begin.elapsed().as_secs_f64());
            let before = since.duration_since(host::usage().started).as_secs_f64();
            metrics::STARTUP_BEFORE.set_once(before.max(0.0));
        }
        registered
    }

    async fn create(&self) -> Result<Node, kube::Error> {
        let api: Api<Node> = Api::all(self.client.clone());
        let node = Node {
            metadata: ObjectMeta {
                name: Some(self.config.node_name.clone()),
                labels: Some(status::labels(&self.config)),
                annotations: Some(BTreeMap::from([(
                    "volumes.kubernetes.io/controller-managed-attach-detach".to_owned(),
                    "true".to_owned(),
                )])),
                ..ObjectMeta::default()
            },
            spec: self.spec(),
            status: Some(self.status(&NodeStatus::default()).await),
        };
        match api.create(&PostParams::default(), &node).await {
            Ok(made) => {
                tracing::info!(node = self.config.node_name, "Node registered");
                self.tell_pressure(&NodeStatus::default(), &made.status.clone().unwrap_or_default());
                Ok(made)
            }
            Err(kube::Error::Api(error)) if error.code == 409 => api.get(&self.config.node_name).await,
            Err(error) => Err(error),
        }
    }

    fn take_cidrs(&self, node: &Node) {
        let spec = node.spec.clone().unwrap_or_default();
        let texts = spec.pod_cidrs.unwrap_or_else(|| spec.pod_cidr.into_iter().collect());
        let mut cidrs = Vec::new();
        for text in &texts {
            match text.parse() {
                Ok(prefix) => cidrs.push(prefix),
                Err(error) => tracing::error!(error, "podCIDR of the Node"),
            }
        }
        self.cidrs.send_if_modified(|old| {
            let new = !cidrs.is_empty() && *old != cidrs;
            if new {
                old.clone_from(&cidrs);
            }
            new
        });
    }

    /// Spec of a new Node: taints and id, when they are configured.
    fn spec(&self) -> Option<NodeSpec> {
        let settings = &self.config.kubelet.settings;
        let (taints, id) = (&settings.register_with_taints, &settings.provider_id);
        (!taints.is_empty() || !id.is_empty()).then(|| NodeSpec {
            taints: (!taints.is_empty()).then(|| taints.clone()),
            provider_id: (!id.is_empty()).then(|| id.clone()),
            ..NodeSpec::default()
        })
    }

    async fn status(&self, old: &NodeStatus) -> NodeStatus {
        let mut readiness = self.readiness.borrow().clone();
        if self.cidrs.borrow().is_empty() {
            readiness.parts.insert("cidr", network_not_ready("the node has no podCIDR yet"));
        }
        let state = self.states.now();
        if state.shutting_down {
            readiness.parts.insert("shutdown", "node is shutting down".into());
        }
        let (data_dir, images) = (self.config.data_dir.clone(), self.images.clone());
        let read = tokio::task::spawn_blocking(move || {
            (facts::read_facts(&data_dir), images.list().unwrap_or_default())
        });
        let (mut facts, images) = read.await.unwrap_or_default();
        facts.devices.clone_from(&self.devices.borrow());
        let (pressure, reason, now) = (&state.pressure, readiness.reason(), Timestamp::now());
        let mut status = status::status(&self.config, &facts, &images, pressure, &reason, old, now);
        let in_use: Vec<String> = self.volumes_in_use.borrow().iter().cloned().collect();
        // An empty list takes the old one away.
        status.volumes_in_use = (!in_use.is_empty() || old.volumes_in_use.is_some()).then_some(in_use);
        // Another component's.
        status.volumes_attached = old.volumes_attached.clone();
        status
    }

    /// Writes the status when it is due. Returns the Node as it is then.
    async fn report(
        &self,
        node: &Node,
        written: &mut Option<Instant>,
        was_ready: &mut Option<bool>,
        started: Instant,
    ) -> Result<Option<Node>, kube::Error> {
        let old = node.status.clone().unwrap_or_default();
        let new = self.status(&old).await;
        let is_ready =
            |s: &NodeStatus| s.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
        // A restarted agent is ready in a moment: that moment is no outage.
        if is_ready(&old) && !is_ready(&new) && was_ready.is_none() && started.elapsed() < RESTART {
            return Ok(None);
        }
        let labels = self.missing_labels(node);
        let report = self.config.kubelet.settings.node_status_report_frequency.as_std();
        let due = written.is_none_or(|at| at.elapsed() >= report);
        if !due && status::is_same(&old, &new) && labels.is_none() {
            return Ok(None);
        }
        let api: Api<Node> = Api::all(self.client.clone());
        let name = &self.config.node_name;
        if let Some(labels) = labels {
            let patch = json!({"metadata": {"labels": labels}});
            api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        }
        let ready = is_ready(&new);
        let mut body = serde_json::to_value(&new).map_err(kube::Error::SerdeError)?;
        // Lists are replaced as a whole; the version keeps other writers' conditions from being lost.
        if let Some(fields) = body.as_object_mut() {
            fields.retain(|_, value| !value.is_null());
        }
        let mut metadata = json!({"uid": node.metadata.uid});
        if self.missing_labels(node).is_none() {
            metadata["resourceVersion"] = json!(node.metadata.resource_version);
        }
        let patch = json!({"metadata": metadata, "status": body});
        match api.patch_status(name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(answer) => {
                *written = Some(Instant::now());
                self.tell_pressure(&old, &new);
                if ready {
                    let now = Timestamp::now();
                    metrics::STARTUP_REGISTERED.set_once(started.elapsed().as_secs_f64());
                    let total = now.duration_since(host::usage().started).as_secs_f64();
                    metrics::STARTUP.set_once(total);
                }
                if *was_ready != Some(ready) {
                    let reason = if ready { "NodeReady" } else { "NodeNotReady" };
                    if was_ready.is_some() || is_ready(&old) != ready {
                        let text = format!("Node {name} status is now: {reason}");
                        self.events.node(name, Kind::Normal, reason, text);
                    }
                    *was_ready = Some(ready);
                }
                Ok(Some(answer))
            }
            Err(kube::Error::Api(error)) if error.code == 409 => api.get(name).await.map(Some),
            Err(error) => Err(error),
        }
    }

    /// Events about what the node is short of, or not any more, or what is known again.
    fn tell_pressure(&self, old: &NodeStatus, new: &NodeStatus) {
        let of = |status: &NodeStatus, type_: &str| {
            let conditions = status.conditions.iter().flatten();
            conditions.into_iter().find(|c| c.type_ == type_).map(|c| c.status.clone())
        };
        let name = &self.config.node_name;
        for (type_, yes, no) in [
            ("MemoryPressure", "NodeHasInsufficientMemory", "NodeHasSufficientMemory"),
            ("DiskPressure", "NodeHasDiskPressure", "NodeHasNoDiskPressure"),
            ("PIDPressure", "NodeHasInsufficientPID", "NodeHasSufficientPID"),
        ] {
            let (before, after) = (of(old, type_), of(new, type_));
            if before == after {
                continue;
            }
            let reason = if after.as_deref() == Some("True") { yes } else { no };
            let text = format!("Node {name} status is now: {reason}");
            self.events.node(name, Kind::Normal, reason, text);
        }
    }

    fn missing_labels(&self, node: &Node) -> Option<BTreeMap<String, String>> {
        let present = node.metadata.labels.clone().unwrap_or_default();
        let missing: BTreeMap<String, String> =
            status::labels(&self.config).into_iter().filter(|(k, v)| present.get(k) != Some(v)).collect();
        (!missing.is_empty()).then_some(missing)
    }
}
