//! One task a pod: observes it, asks the model what to do, does it, reports its status.
//!
//! Reads: the newest Pod (a latest-wins slot), its inbox (runtime events, probe verdicts, hooks), the runtime.
//! Writes: the runtime, the pod's files, its network, the status manager. Nobody else touches the pod.

mod end;
mod expand;
mod pull;
mod resize;
mod run;
mod start;
mod usage;
mod watchers;

use crate::metrics;
use crate::network::{Bandwidth, PodNetwork};
use crate::pod::context::Context;
use crate::pod::reference::PodRef;
use crate::pod::static_pods::{SEEN, SOURCE};
use crate::pod::termination;
use crate::pod::volumes::Paths;
use crate::probe::Verdict;
use crate::runtime::{ContainerState, ContainerStatus, Runtime, SandboxStatus};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kelp_model::cpus::CpuSet;
use kelp_model::pod::admission::is_static;
use kelp_model::pod::spec;
use kelp_model::pod::status::{self, pod_status};
use kelp_model::pod::view::{Exit, Memories, Observed, Record, Sandbox, State};
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

/// What the API server says about a pod.
#[derive(Debug, Clone)]
pub struct Slot {
    /// The newest Pod.
    pub pod: Arc<Pod>,
    /// The API server does not have it any more; of a static pod: its manifest is gone.
    pub gone: bool,
    /// How the API server shows a static pod.
    pub mirror: Option<Arc<Pod>>,
}

/// What happens to a worker from inside the agent.
#[derive(Debug)]
pub enum Message {
    /// The runtime noticed something.
    Runtime,
    /// A probe has a result.
    Probe(Verdict),
    /// A postStart hook ended.
    PostStart {
        /// Container name.
        name: String,
        /// Its attempt.
        attempt: u32,
        /// The text of a failure.
        result: Result<(), String>,
    },
    /// The node ends the pod.
    Terminate(Termination),
}

/// Why and how the node ends a pod that nobody asked to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Termination {
    /// `status.reason`.
    pub reason: String,
    /// `status.message`.
    pub message: String,
    /// Seconds to stop in, if the pod's own grace period is not shorter.
    pub grace: i64,
}

/// Where the pod is on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It shall run.
    Sync,
    /// It shall end.
    Terminating,
    /// Nothing of it runs; its status is final.
    Terminated,
    /// Nothing of it is left.
    Done,
}

/// A running pod worker's state.
pub struct Worker<R, N> {
    context: Arc<Context<R, N>>,
    /// The pod with the resources that it is allowed.
    pod: Arc<Pod>,
    /// The newest Pod, as it is asked for.
    wanted: Arc<Pod>,
    /// How the API server shows it, for a static pod.
    mirror: Option<Arc<Pod>>,
    /// When this agent saw it first, as its annotations tell the containers.
    seen: String,
    resize: resize::Resize,
    /// When this worker began.
    born: std::time::Instant,
    /// How long its images took to be pulled.
    pulling: Duration,
    /// Exits that were counted: container and attempt.
    counted: HashSet<(String, u32)>,
    /// The node ends the pod: reason and message.
    evicted: Option<(String, String)>,
    /// It does so for its own sake: message of the condition.
    disruption: Option<String>,
    /// Seconds to stop in, when the pod is not asked.
    grace: Option<i64>,
    /// CPUs that are shared on the node.
    shared_cpus: watch::Receiver<CpuSet>,
    /// CPUs that containers are held to: of an attempt.
    held_cpus: HashMap<String, (u32, Option<String>)>,
    /// When its use of the disk is looked at next.
    measure_at: Wake,
    /// When its volumes are looked at next, whether they have grown.
    expand_at: Wake,
    reference: PodRef,
    gone: bool,
    phase: Phase,
    slot: watch::Receiver<Slot>,
    inbox: mpsc::Receiver<Message>,
    sender: mpsc::Sender<Message>,
    objects_changed: Arc<Notify>,
    shutdown: CancellationToken,
    /// The status last reported (or found), without gaps.
    last: PodStatus,
    memories: Memories,
    /// The attempt that each memory is about.
    attempts: HashMap<String, u32>,
    /// Nothing was observed yet.
    first: bool,
    pod_ips: Vec<IpAddr>,
    volumes: Option<Paths>,
    /// Volumes that are images, as far as they are mounted.
    image_volumes: Paths,
    failure: Option<(String, String)>,
    /// Exits as they were first seen: the message file may vanish later.
    messages: HashMap<String, String>,
    probes: watchers::Probes,
    kills: end::Kills,
    image_backoff: HashMap<String, start::ImageBackoff>,
    /// Back-offs already told.
    told: HashSet<(String, Timestamp)>,
    errors: u32,
    /// Failed attempts to make or start something, in a row.
    failures: u32,
    /// A sandbox that was lost is being replaced: upstream shows what ran in it until something runs again.
    replacing: bool,
}

/// Wait after an error of the runtime, doubled up to [`MAX_ERROR_DELAY`].
const ERROR_DELAY: Duration = Duration::from_millis(250);
const MAX_ERROR_DELAY: Duration = Duration::from_secs(10);
/// Longest time after which a failed volume, network or configuration is tried again without a change.
const RETRY: Duration = Duration::from_secs(10);

/// The sending ends of a worker.
pub struct Handle {
    /// Newest Pod.
    pub slot: watch::Sender<Slot>,
    /// Messages.
    pub inbox: mpsc::Sender<Message>,
}

/// When to look again without being woken.
type Wake = Option<Timestamp>;

impl<R: Runtime, N: PodNetwork> Worker<R, N> {
    /// A worker and its handle. [`Worker::run`] it.
    pub fn new(context: Arc<Context<R, N>>, slot: Slot, shutdown: CancellationToken) -> (Self, Handle) {
        let (slot_sender, slot_receiver) = watch::channel(slot.clone());
        let (sender, inbox) = mpsc::channel(64);
        let reference = PodRef::from(slot.pod.as_ref());
        let last = slot.pod.status.clone().unwrap_or_default();
        let file = context.config.pod_dir(&reference.uid).join("allocated.json");
        let resize = resize::Resize::load(&file, &slot.pod);
        let seen = Timestamp::now().to_string();
        let shared_cpus = context.cpus.follow();
        let worker = Self {
            context,
            shared_cpus,
            held_cpus: HashMap::new(),
            reference,
            gone: slot.gone,
            phase: Phase::Sync,
            slot: slot_receiver,
            inbox,
            sender: sender.clone(),
            objects_changed: Arc::default(),
            shutdown,
            last,
            memories: Memories::new(),
            attempts: HashMap::new(),
            first: true,
            pod_ips: Vec::new(),
            volumes: None,
            image_volumes: Paths::new(),
            failure: None,
            messages: HashMap::new(),
            probes: watchers::Probes::default(),
            kills: end::Kills::default(),
            image_backoff: HashMap::new(),
            told: HashSet::new(),
            errors: 0,
            failures: 0,
            replacing: false,
            pod: as_seen(resize.view(&slot.pod), &seen),
            seen,
            mirror: slot.mirror,
            wanted: slot.pod,
            resize,
            born: std::time::Instant::now(),
            pulling: Duration::ZERO,
            counted: HashSet::new(),
            evicted: None,
            disruption: None,
            grace: None,
            measure_at: None,
            expand_at: None,
        };
        (worker, Handle { slot: slot_sender, inbox: sender })
    }

    /// Runs until nothing of the pod is left, or the agent shuts down (which leaves the pod as it is).
    pub async fn run(mut self) {
        self.declare();
        loop {
            let begin = std::time::Instant::now();
            let step = self.step().await;
            crate::metrics::POD_WORKER.observe(&["sync"], begin.elapsed().as_secs_f64());
            let wake = match step {
                Ok(wake) => {
                    self.errors = 0;
                    wake
                }
                Err(error) => {
                    self.errors = self.errors.saturating_add(1);
                    let delay = (ERROR_DELAY * 2u32.saturating_pow(self.errors.min(8))).min(MAX_ERROR_DELAY);
                    tracing::warn!(pod = %self.reference, error, ?delay, "pod not synced, trying again");
                    after(delay)
                }
            };
            if self.phase == Phase::Done {
                self.context.objects.declare(&self.reference.uid, &Default::default(), &self.objects_changed);
                self.context.objects.tokens.forget(&self.reference.uid);
                self.context.devices.release(&self.reference.uid);
                self.context.cpus.release(&self.reference.uid);
                crate::metrics::forget_pod(&self.reference);
                self.resize.end();
                self.context.status.forget(&self.reference.uid);
                if let Some(pulls) = self.context.images.pulls() {
                    pulls.forget(&self.reference.uid);
                }
                return;
            }
            if !self.wait(wake).await {
                return;
            }
        }
    }

    /// Waits for something to do. `false`: the agent shuts down.
    async fn wait(&mut self, wake: Wake) -> bool {
        let sleep = async {
            match wake {
                Some(at) => {
                    let left = at.duration_since(Timestamp::now());
                    tokio::time::sleep(left.try_into().unwrap_or(Duration::ZERO)).await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.shutdown.cancelled() => return false,
            changed = self.slot.changed() => {
                if changed.is_err() {
                    return false; // the manager is gone
                }
                self.adopt();
            }
            Some(message) = self.inbox.recv() => self.take(message),
            Ok(()) = self.shared_cpus.changed() => {}
            () = self.objects_changed.notified() => {
                self.volumes = None;
                self.memories.values_mut().for_each(|m| m.retry_at = None);
            }
            () = sleep => {}
        }
        while let Ok(message) = self.inbox.try_recv() {
            self.take(message);
        }
        true
    }

    fn adopt(&mut self) {
        let slot = self.slot.borrow_and_update().clone();
        resize::count_requested(&self.wanted, &slot.pod);
        let meta = |pod: &Pod| (pod.metadata.labels.clone(), pod.metadata.annotations.clone());
        if meta(&self.wanted) != meta(&slot.pod) {
            self.volumes = None; // downwardAPI files show them
        }
        self.wanted = slot.pod;
        self.mirror = slot.mirror;
        self.pod = self.view();
        self.gone |= slot.gone;
        self.reference = PodRef::from(self.pod.as_ref());
    }

    /// The newest Pod with what it is allowed.
    fn view(&self) -> Arc<Pod> {
        as_seen(self.resize.view(&self.wanted), &self.seen)
    }

    /// The object of the API server that shows the pod; `None` when there is none (any more).
    fn shown(&self) -> Option<&Pod> {
        match is_static(&self.wanted) {
            true => self.mirror.as_deref(),
            false => (!self.gone).then_some(self.pod.as_ref()),
        }
    }

    fn declare(&self) {
        let mut keys = crate::pod::volumes::references(&self.pod);
        keys.extend(pull::secrets(&self.pod));
        self.context.objects.declare(&self.reference.uid, &keys, &self.objects_changed);
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Runtime => {}
            Message::Probe(verdict) => self.take_verdict(verdict),
            Message::PostStart { name, attempt, result } => self.take_post_start(&name, attempt, result),
            Message::Terminate(order) => self.take_order(order),
        }
    }

    /// The node wants the pod to end. One that ends already goes on doing so, at most faster.
    fn take_order(&mut self, order: Termination) {
        if self.phase == Phase::Sync && self.evicted.is_none() {
            self.evicted = Some((order.reason, order.message.clone()));
            self.disruption = Some(order.message);
        }
        self.grace = Some(self.grace.map_or(order.grace, |known| known.min(order.grace)));
    }

    /// One round. `Ok`: when to look again.
    async fn step(&mut self) -> Result<Wake, String> {
        loop {
            let before = self.phase;
            let wake = match self.phase {
                Phase::Sync => self.sync().await?,
                Phase::Terminating => self.terminate().await?,
                Phase::Terminated => self.finish().await?,
                Phase::Done => return Ok(None),
            };
            if self.phase == before {
                return Ok(wake);
            }
            tracing::debug!(pod = %self.reference, from = ?before, to = ?self.phase, "pod phase");
        }
    }

    /// What the runtime has of the pod.
    async fn observe(&mut self) -> Result<Observed, String> {
        let uid = self.reference.uid.clone();
        let found = self.context.runtime.status(&uid).await.map_err(|e| crate::network::chain(&e))?;
        let Some(sandbox) = found else {
            self.first = false;
            return Ok(Observed::default());
        };
        if self.first && sandbox.ready && self.pod_ips.is_empty() {
            self.reconnect(&sandbox).await;
        }
        // The last of what is made before containers may run: an agent that died earlier has left it to do.
        let prepared = self.context.config.pod_dir(&uid).join("resolv.conf").exists();
        let connected = spec::host_network(&self.pod) || !self.pod_ips.is_empty();
        let state = match (sandbox.ready, connected && prepared) {
            (false, _) => Sandbox::Lost,
            (true, false) => Sandbox::Created,
            (true, true) => Sandbox::Ready,
        };
        let observed = Observed {
            sandbox: state,
            containers: sandbox.containers.iter().map(|c| self.record(c)).collect(),
        };
        self.remember(&observed);
        self.first = false;
        Ok(observed)
    }

    /// Finds the network of a pod that ran before the agent started.
    async fn reconnect(&mut self, sandbox: &SandboxStatus) {
        let Some(netns) = &sandbox.netns else { return };
        // What was refused then has no sandbox; what became wrong since changes nothing.
        let bandwidth = Bandwidth::of(self.pod.metadata.annotations.as_ref()).unwrap_or_default();
        match self.context.network.connect(&self.facts(), bandwidth, netns).await {
            Ok(ips) => self.pod_ips = ips,
            Err(error) => {
                tracing::warn!(pod = %self.reference, error = %crate::network::chain(&error), "pod not reconnected")
            }
        }
    }

    fn record(&mut self, container: &ContainerStatus) -> Record {
        let state = match &container.state {
            ContainerState::Created => State::Created,
            ContainerState::Running { started_at, .. } => State::Running(*started_at),
            ContainerState::Exited(exit) if exit.reason == "StartError" => State::Exited(Exit {
                // Upstream's, whatever kept the command from starting.
                exit_code: 128,
                reason: exit.reason.clone(),
                message: format!("{}{}", start::START_ERROR, exit.message),
                started_at: exit.started_at,
                finished_at: exit.finished_at,
            }),
            ContainerState::Exited(exit) => State::Exited(Exit {
                exit_code: exit.exit_code,
                reason: exit.reason.clone(),
                message: match exit.message.is_empty() {
                    true => self.termination_message(container, exit.exit_code),
                    false => exit.message.clone(),
                },
                started_at: exit.started_at,
                finished_at: exit.finished_at,
            }),
        };
        Record {
            name: container.name.clone(),
            attempt: container.attempt,
            container_id: format!("kelp://{}_{}", self.reference.uid, container.id),
            image: container.image_ref.clone(),
            image_id: container.image_id.clone(),
            state,
        }
    }

    fn termination_message(&mut self, container: &ContainerStatus, exit_code: i32) -> String {
        if let Some(known) = self.messages.get(&container.id) {
            return known.clone();
        }
        let config = &self.context.config;
        let file = self.termination_file(&container.name, container.attempt);
        let of_spec = self.pod.spec.as_ref().and_then(|s| spec::find(s, &container.name)).map(|(_, c)| c);
        let fallback =
            of_spec.and_then(|c| c.termination_message_policy.as_deref()) == Some("FallbackToLogsOnError");
        let PodRef { namespace, name, uid, .. } = &self.reference;
        let log = config
            .pod_logs(namespace, name, uid)
            .join(&container.name)
            .join(format!("{}.log", container.attempt));
        let text = termination::message(&file, (fallback && exit_code != 0).then_some(log.as_path()));
        self.messages.insert(container.id.clone(), text.clone());
        text
    }

    fn termination_file(&self, name: &str, attempt: u32) -> std::path::PathBuf {
        let dir = self.context.config.pod_dir(&self.reference.uid);
        dir.join("containers").join(name).join(attempt.to_string())
    }

    /// Starts a new memory for each new attempt.
    fn remember(&mut self, observed: &Observed) {
        let names: HashSet<String> = observed.containers.iter().map(|c| c.name.clone()).collect();
        for name in names {
            let Some(record) = observed.latest(&name) else { continue };
            if let State::Exited(exit) = &record.state
                && self.counted.insert((name.clone(), record.attempt))
                && !self.first
            {
                let code = exit.exit_code.to_string();
                metrics::TERMINATED_CONTAINERS.count(&[self.container_type(&name), &code, &exit.reason]);
            }
            if let (State::Exited(_), Some(memory)) = (&record.state, self.memories.get_mut(&name)) {
                let hook_failed = memory.unhealthy.as_deref() == Some("FailedPostStartHook");
                if memory.killing && !hook_failed {
                    memory.killed = Some(record.attempt);
                }
                memory.killing = false;
                memory.unhealthy = None;
                memory.in_post_start = false;
                self.kills.ended(&format!("{name}.{}", record.attempt));
            }
            if self.attempts.get(&name) == Some(&record.attempt) {
                continue;
            }
            self.attempts.insert(name.clone(), record.attempt);
            let all = self.last.init_container_statuses.iter().flatten();
            let all = all.chain(self.last.container_statuses.iter().flatten());
            // A container that ran before the agent started is as healthy as it was then.
            let known = all
                .into_iter()
                .find(|s| s.name == name && s.container_id.as_deref() == Some(record.container_id.as_str()))
                .map(|s| (s.started == Some(true), s.ready));
            let of_spec = self.pod.spec.as_ref().and_then(|s| spec::find(s, &name)).map(|(_, c)| c);
            let user = match record.state {
                State::Created => None,
                _ => self.user_of(&format!("{name}.{}", record.attempt)),
            };
            let memory = self.memories.entry(name).or_default();
            memory.user = user.or(memory.user.take());
            let (started, ready) = known.filter(|_| self.first).unwrap_or((false, false));
            memory.started = started || of_spec.is_none_or(|c| c.startup_probe.is_none());
            memory.ready = ready || of_spec.is_none_or(|c| c.readiness_probe.is_none());
            memory.unhealthy = None;
            memory.killing = false;
        }
    }

    fn status_context(&self, ending: bool, stopped: bool) -> status::Context {
        status::Context {
            host_ips: self.context.config.node_ips.clone(),
            pod_ips: self.pod_ips.clone(),
            failure: self.failure.clone(),
            stopped,
            ending,
            resize: self.resize.conditions.clone(),
            evicted: self.evicted.clone(),
            disruption: self.disruption.clone(),
        }
    }

    /// When to try again what just failed: after a second at first, later after [`RETRY`].
    fn retry(&mut self) -> Wake {
        let delay = Duration::from_secs(1) * 2u32.saturating_pow(self.failures.min(8));
        self.failures = self.failures.saturating_add(1);
        after(delay.min(RETRY))
    }

    /// Reports the status if it changed.
    fn publish(&mut self, observed: &Observed, ending: bool, stopped: bool) {
        self.note(observed, ending, stopped);
        self.report(self.last.clone());
    }

    /// Keeps what a pod's status is without telling it.
    fn note(&mut self, observed: &Observed, ending: bool, stopped: bool) {
        let context = self.status_context(ending, stopped);
        let new = pod_status(&self.pod, &self.last, observed, &self.memories, &context, Timestamp::now());
        let runs = |status: &PodStatus| status.phase.as_deref() == Some("Running");
        if runs(&new) && !runs(&self.last) {
            self.count_start(observed);
        }
        self.last = new;
    }

    /// The pod runs: how long that took.
    fn count_start(&self, observed: &Observed) {
        metrics::POD_START.took(&[], self.born);
        let Some(created) = &self.pod.metadata.creation_timestamp else { return };
        let total = Timestamp::now().duration_since(created.0).as_secs_f64().max(0.0);
        metrics::POD_START_TOTAL.observe(&[], total);
        let prepared =
            observed.containers.iter().filter(|c| self.container_type(&c.name) == "init_container");
        let prepared: f64 = prepared
            .filter_map(|c| match &c.state {
                State::Exited(exit) => Some(exit.finished_at.duration_since(exit.started_at).as_secs_f64()),
                _ => None,
            })
            .sum();
        let own = (total - prepared - self.pulling.as_secs_f64()).max(0.0);
        metrics::POD_START_SLI.observe(&[], own);
        if !spec::host_network(&self.pod) {
            metrics::FIRST_NETWORK_POD.set_once(own);
        }
    }

    /// As metrics name it.
    fn container_type(&self, name: &str) -> &'static str {
        let kind = self.pod.spec.as_ref().and_then(|s| spec::find_any(s, name)).map(|(kind, _)| kind);
        match kind {
            Some(spec::Kind::Init | spec::Kind::Sidecar) => "init_container",
            Some(spec::Kind::Ephemeral) => "ephemeral_container",
            Some(spec::Kind::Main) | None => "container",
        }
    }

    fn report(&self, status: PodStatus) {
        if let Some(pod) = self.shown() {
            self.context.status.set(pod, status);
        }
    }

    fn field_path(&self, name: &str) -> String {
        let kind = self.pod.spec.as_ref().and_then(|s| spec::find_any(s, name)).map(|(kind, _)| kind);
        match kind {
            Some(spec::Kind::Ephemeral) => format!("spec.ephemeralContainers{{{name}}}"),
            Some(spec::Kind::Init | spec::Kind::Sidecar) => format!("spec.initContainers{{{name}}}"),
            _ => format!("spec.containers{{{name}}}"),
        }
    }
}

/// The pod with what its annotations say on its node: when and where it was found. `Arc`s of others are not changed.
fn as_seen(mut pod: Arc<Pod>, seen: &str) -> Arc<Pod> {
    if is_static(&pod) {
        return pod;
    }
    let annotations = Arc::make_mut(&mut pod).metadata.annotations.get_or_insert_default();
    annotations.entry(SEEN.into()).or_insert_with(|| seen.to_owned());
    annotations.entry(SOURCE.into()).or_insert_with(|| "api".into());
    pod
}

/// A time from now.
fn after(delay: Duration) -> Wake {
    Timestamp::now().checked_add(jiff::SignedDuration::try_from(delay).ok()?).ok()
}

/// The earlier of two times.
fn earlier(a: Wake, b: Wake) -> Wake {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests;
