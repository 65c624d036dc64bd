//! Follows the node's pods and keeps one worker for each.
//!
//! Reads: Pods with `spec.nodeName` of this node, the runtime's list and events. Writes: the workers' slots and
//! inboxes. Pods that the API server does not have are ended only after its first complete list.

use crate::metrics;
use crate::network::PodNetwork;
use crate::pod::context::Context;
use crate::pod::events::Kind;
use crate::pod::mirror::is_mirror;
use crate::pod::reference::PodRef;
use crate::pod::static_pods::{self, StaticPods};
use crate::pod::worker::{Handle, Message, Slot, Termination, Worker};
use crate::runtime::{Runtime, RuntimeEvent};
use crate::server::PodIndex;
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Node, Pod, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kelp_model::eviction;
use kelp_model::pod::admission::{self, Rejection};
use kelp_model::pod::conditions;
use kelp_model::pod::qos::qos_class;
use kelp_model::pod::spec;
use kelp_model::pod::status::now_seconds;
use kelp_model::scheduling::{NodeInfo, PodInfo};
use kube::Api;
use kube::runtime::{WatchStreamExt, watcher};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

mod statics;

/// The pods of this node.
pub struct Manager<R, N> {
    context: Arc<Context<R, N>>,
    workers: HashMap<String, Handle>,
    tasks: JoinSet<String>,
    /// UIDs of pods that were turned away and are not yet over for the API server.
    rejected: HashSet<String>,
    /// UIDs of the list that is coming in.
    listing: HashSet<String>,
    /// The API server's pods, for those who ask this node.
    pods: PodIndex,
    /// Pods of manifests of this node.
    statics: StaticPods,
    /// How the API server shows them, by their own UID.
    mirrors: HashMap<String, Arc<Pod>>,
    shutdown: CancellationToken,
    synced: watch::Sender<bool>,
    /// Pods that the node wants to end, by UID.
    orders: (mpsc::Sender<Order>, mpsc::Receiver<Order>),
}

/// A pod that the node wants to end: UID, and why and how.
pub type Order = (String, Termination);

impl<R: Runtime, N: PodNetwork> Manager<R, N> {
    /// A manager without pods.
    pub fn new(context: Arc<Context<R, N>>, pods: PodIndex, shutdown: CancellationToken) -> Self {
        Self {
            context,
            workers: HashMap::new(),
            tasks: JoinSet::new(),
            rejected: HashSet::new(),
            statics: StaticPods::new(),
            mirrors: HashMap::new(),
            listing: HashSet::new(),
            pods,
            shutdown,
            synced: watch::channel(false).0,
            orders: mpsc::channel(16),
        }
    }

    /// Takes orders to end pods.
    pub fn orders(&self) -> mpsc::Sender<Order> {
        self.orders.0.clone()
    }

    /// Turns `true` with the first complete list of pods.
    pub fn synced(&self) -> watch::Receiver<bool> {
        self.synced.subscribe()
    }

    /// Follows the API server until shutdown. Running pods are left as they are.
    pub async fn run(mut self, client: kube::Client) {
        let selector = format!("spec.nodeName={}", self.context.config.node_name);
        let config = watcher::Config::default().fields(&selector);
        let mut pods = watcher(Api::<Pod>::all(client.clone()), config).default_backoff().boxed();
        let mut events = self.context.runtime.events();
        let (sender, mut statics) = watch::channel(None);
        if let Some(dir) = self.context.config.static_pods.clone() {
            let name = self.context.config.node_name.clone();
            tokio::spawn(static_pods::follow(dir, name, sender, self.shutdown.clone()));
            // Those that ran before are not to be taken for nobody's.
            tokio::select! {
                () = self.shutdown.cancelled() => return,
                _ = statics.wait_for(Option::is_some) => {}
            }
        }
        // Whether the node takes a pod is judged by the Node; a pod that is bound to it is not older than it.
        let mut node = self.context.node.clone();
        tokio::select! {
            () = self.shutdown.cancelled() => return,
            _ = node.wait_for(Option::is_some) => {}
        }
        let set = statics.borrow_and_update().clone().unwrap_or_default();
        self.take_statics(set);
        // At most one request about mirrors at a time.
        let mut mirroring = JoinSet::new();
        loop {
            if let Some(step) = self.next_step().filter(|_| mirroring.is_empty()) {
                mirroring.spawn(step.carry_out(client.clone()));
            }
            tokio::select! {
                () = self.shutdown.cancelled() => break,
                Some(_) = mirroring.join_next() => {}
                event = pods.next() => match event {
                    Some(Ok(event)) => self.take(event).await,
                    Some(Err(error)) => tracing::warn!(%error, "watch of pods failed, trying again"),
                    None => break,
                },
                event = events.recv() => match event {
                    Ok(RuntimeEvent::ContainerExited { sandbox, .. } | RuntimeEvent::SandboxLost { sandbox }) => {
                        self.wake(&sandbox);
                    }
                    Err(broadcast::error::RecvError::Lagged(_)) => {
                        self.wake_all();
                    }
                    Err(broadcast::error::RecvError::Closed) => events = self.context.runtime.events(),
                },
                Some((uid, order)) = self.orders.1.recv() => self.pass_on(&uid, order).await,
                Ok(()) = statics.changed() => {
                    let set = statics.borrow_and_update().clone().unwrap_or_default();
                    self.take_statics(set);
                }
                Some(ended) = self.tasks.join_next() => match ended {
                    Ok(uid) => {
                        self.workers.remove(&uid);
                        // A manifest that changed while its pod was ending.
                        self.start_statics();
                    }
                    Err(error) => tracing::error!(%error, "a pod worker failed"),
                },
            }
        }
        // Workers see the shutdown themselves.
        self.workers.clear();
        while self.tasks.join_next().await.is_some() {}
    }

    async fn take(&mut self, event: watcher::Event<Pod>) {
        match event {
            watcher::Event::Init => self.listing.clear(),
            watcher::Event::InitApply(pod) => {
                self.listing.extend(pod.metadata.uid.clone());
                self.apply(pod);
            }
            watcher::Event::InitDone => {
                let listed = std::mem::take(&mut self.listing);
                self.reset(&listed).await;
                self.synced.send_replace(true);
            }
            watcher::Event::Apply(pod) => self.apply(pod),
            watcher::Event::Delete(pod) => self.delete(pod),
        }
    }

    /// A pod is new or changed.
    pub fn apply(&mut self, pod: Pod) {
        if is_mirror(&pod) {
            self.take_mirror(pod);
            return;
        }
        let Some(uid) = pod.metadata.uid.clone() else { return };
        let seen = Instant::now();
        let slot = Slot { pod: Arc::new(pod), gone: false, mirror: None };
        self.pods.write().insert(name_of(&slot.pod), slot.pod.clone());
        match self.workers.get(&uid) {
            Some(worker) => {
                let _ = worker.slot.send(slot);
            }
            None => {
                if let Err(rejection) = self.admit(&uid, &slot.pod) {
                    self.reject(uid, &slot.pod, &rejection);
                    return;
                }
                self.rejected.remove(&uid);
                let containers = slot.pod.spec.as_ref().map_or(0, |s| s.containers.len());
                metrics::CONTAINERS_PER_POD.observe(&[], containers as f64);
                self.start(uid, slot);
                metrics::POD_WORKER_START.took(&[], seen);
            }
        }
    }

    /// Whether this node takes a new pod. One that was started here before, or is over, was judged then.
    fn admit(&self, uid: &str, pod: &Pod) -> Result<(), Rejection> {
        let Some(node) = self.context.node.borrow().clone() else { return Ok(()) };
        let config = &self.context.config;
        let over = spec::is_terminal(pod) || pod.metadata.deletion_timestamp.is_some();
        if over || config.pod_dir(uid).exists() {
            return Ok(());
        }
        let begin = Instant::now();
        let judged = self.judge(pod, &node);
        metrics::TOPOLOGY.count(&[]);
        metrics::TOPOLOGY_DURATION.observe(&[], begin.elapsed().as_secs_f64() * 1e3);
        judged
    }

    fn judge(&self, pod: &Pod, node: &Node) -> Result<(), Rejection> {
        let config = &self.context.config;
        let mut node = NodeInfo::from_api(node);
        for other in self.pods.read().values() {
            let known = other.metadata.uid.as_ref().is_some_and(|u| self.workers.contains_key(u));
            if known && !spec::is_terminal(other) {
                node.add_pod(Arc::new(PodInfo::from_api(other)));
            }
        }
        let state = self.context.states.now();
        if state.shutting_down {
            let message = "Pod was rejected as the node is shutting down.";
            return Err(Rejection { reason: "NodeShutdown".into(), message: message.into() });
        }
        eviction::admit(pod, &state.pressure)?;
        admission::admit(pod, &node, &config.allowed_unsafe_sysctls)
    }

    /// Tells a worker to end its pod.
    async fn pass_on(&self, uid: &str, order: Termination) {
        if let Some(worker) = self.workers.get(uid) {
            // A worker empties its inbox in each of its rounds.
            let _ = worker.inbox.send(Message::Terminate(order)).await;
        }
    }

    /// Turns a pod away: told once, and it never starts here.
    fn reject(&mut self, uid: String, pod: &Pod, rejection: &Rejection) {
        if !self.rejected.insert(uid) {
            return;
        }
        let reference = PodRef::from(pod);
        let Rejection { reason, message } = rejection;
        metrics::REJECTIONS.count(&[reason]);
        tracing::info!(pod = %reference, reason, message, "pod rejected");
        self.context.events.pod(&reference, Kind::Warning, reason, message.clone());
        let old = pod.status.clone().unwrap_or_default();
        let foreign =
            old.conditions.into_iter().flatten().filter(|c| !conditions::OWNED.contains(&c.type_.as_str()));
        let foreign: Vec<_> = foreign.collect();
        let status = PodStatus {
            observed_generation: pod.metadata.generation,
            phase: Some("Failed".into()),
            reason: Some(reason.clone()),
            message: Some(format!("Pod was rejected: {message}")),
            qos_class: Some(qos_class(pod).as_str().to_owned()),
            start_time: Some(Time(now_seconds(Timestamp::now()))),
            conditions: (!foreign.is_empty()).then_some(foreign),
            ..PodStatus::default()
        };
        self.context.status.set(pod, status);
    }

    /// The API server does not have a pod any more.
    pub fn delete(&mut self, pod: Pod) {
        let mut pods = self.pods.write();
        if pods.get(&name_of(&pod)).is_some_and(|known| known.metadata.uid == pod.metadata.uid) {
            pods.remove(&name_of(&pod));
        }
        drop(pods);
        if is_mirror(&pod) {
            self.forget_mirror(&pod);
            return;
        }
        if let Some(uid) = &pod.metadata.uid {
            self.rejected.remove(uid);
        }
        if let Some(worker) = pod.metadata.uid.as_ref().and_then(|uid| self.workers.get(uid)) {
            let _ = worker.slot.send(Slot { pod: Arc::new(pod), gone: true, mirror: None });
        }
        // Somebody may wait for what it used.
        self.wake_all();
    }

    /// The complete list is in: everything else on this node has to go.
    pub async fn reset(&mut self, listed: &HashSet<String>) {
        self.retain_mirrors(listed);
        self.pods.write().retain(|_, pod| {
            pod.metadata
                .uid
                .as_ref()
                .is_some_and(|uid| listed.contains(uid) || self.statics.contains_key(uid))
        });
        for (uid, worker) in &self.workers {
            if !listed.contains(uid) && !self.statics.contains_key(uid) {
                worker.slot.send_modify(|slot| slot.gone = true);
            }
        }
        let orphans = self.orphans(listed).await;
        metrics::ORPHAN_VOLUMES.set(&[], orphans.len() as f64);
        for pod in orphans {
            metrics::ORPHANED_PODS.count(&[]);
            if let Some(uid) = pod.metadata.uid.clone() {
                tracing::info!(uid, name = pod.metadata.name, "ending a pod that was deleted meanwhile");
                self.start(uid, Slot { pod: Arc::new(pod), gone: true, mirror: None });
            }
        }
    }

    /// Pods with a sandbox or a directory here that neither the API server nor a worker knows.
    async fn orphans(&self, listed: &HashSet<String>) -> Vec<Pod> {
        let unknown = |uid: &String| !listed.contains(uid) && !self.workers.contains_key(uid);
        let mut found: HashMap<String, Pod> = HashMap::new();
        let pods = self.context.config.data_dir.join("pods");
        for entry in std::fs::read_dir(pods).into_iter().flatten().flatten() {
            let uid = entry.file_name().to_string_lossy().into_owned();
            if unknown(&uid) {
                let known = std::fs::read(entry.path().join("pod.json")).ok();
                let pod = known.and_then(|bytes| serde_json::from_slice::<Pod>(&bytes).ok());
                found.insert(uid.clone(), pod.unwrap_or_else(|| bare_pod(&uid, "", "", &[])));
            }
        }
        match self.context.runtime.list().await {
            Ok(sandboxes) => {
                for sandbox in sandboxes.into_iter().filter(|s| unknown(&s.id)) {
                    let names: Vec<String> = sandbox.containers.iter().map(|c| c.name.clone()).collect();
                    found
                        .entry(sandbox.id.clone())
                        .or_insert_with(|| bare_pod(&sandbox.id, &sandbox.namespace, &sandbox.name, &names));
                }
            }
            Err(error) => {
                tracing::warn!(%error, "sandboxes not listed: pods deleted meanwhile are looked for at the next list")
            }
        }
        found.into_values().collect()
    }

    fn start(&mut self, uid: String, slot: Slot) {
        let (worker, handle) = Worker::new(self.context.clone(), slot, self.shutdown.clone());
        self.workers.insert(uid.clone(), handle);
        self.tasks.spawn(async move {
            worker.run().await;
            uid
        });
    }

    fn wake(&self, uid: &str) {
        if let Some(worker) = self.workers.get(uid) {
            // A full inbox wakes the worker as well.
            let _ = worker.inbox.try_send(Message::Runtime);
        }
    }

    /// Events were missed: every pod is looked at.
    pub fn wake_all(&self) {
        self.workers.keys().for_each(|uid| self.wake(uid));
    }

    /// Waits until every worker has ended by itself.
    #[cfg(test)]
    pub async fn drain(&mut self) {
        while let Some(ended) = self.tasks.join_next().await {
            self.workers.remove(&ended.unwrap());
        }
    }
}

fn name_of(pod: &Pod) -> (String, String) {
    (pod.metadata.namespace.clone().unwrap_or_default(), pod.metadata.name.clone().unwrap_or_default())
}

/// As much of a pod as is needed to end it.
fn bare_pod(uid: &str, namespace: &str, name: &str, containers: &[String]) -> Pod {
    let mut names: Vec<&String> = containers.iter().collect();
    names.sort_unstable();
    names.dedup();
    Pod {
        metadata: ObjectMeta {
            uid: Some(uid.to_owned()),
            namespace: Some(namespace.to_owned()),
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            containers: names
                .into_iter()
                .map(|name| Container { name: name.clone(), ..Container::default() })
                .collect(),
            ..PodSpec::default()
        }),
        status: None,
    }
}
