//! The status of a pod from what is observed of it.

use crate::pod::conditions::{self, Summary};
use crate::pod::qos::qos_class;
use crate::pod::resources::{status_allocated, status_resources};
use crate::pod::restart;
use crate::pod::spec::{
    Kind, containers, ephemeral as ephemeral_containers, host_network, is_terminal_phase, restarts,
};
use crate::pod::view::{Exit, Memories, Memory, Observed, Record, Sandbox, State};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, ContainerUser, HostIP, LinuxContainerUser, Pod, PodCondition, PodIP, PodSpec, PodStatus,
    VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::net::IpAddr;

/// What the status needs beside the pod and its containers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Context {
    /// Addresses of the node, primary first.
    pub host_ips: Vec<IpAddr>,
    /// Addresses of the pod; empty until its network is set up.
    pub pod_ips: Vec<IpAddr>,
    /// The agent ends the pod for this reason: `reason` and `message` of the status, phase `Failed`.
    pub failure: Option<(String, String)>,
    /// Nothing of the pod runs any more and nothing will: the terminal phase may be reported.
    pub stopped: bool,
    /// The agent is ending the pod (deleted, finished or failed): nothing is started again.
    pub ending: bool,
    /// Conditions about a change of resources that is not done.
    pub resize: Vec<PodCondition>,
    /// The agent ends the pod because it uses too much, with this reason and message: a pod whose containers all end
    /// well all the same has succeeded.
    pub evicted: Option<(String, String)>,
    /// Message of the condition DisruptionTarget, when the node ends the pod for its own sake.
    pub disruption: Option<String>,
}

/// Computes the status. `old` is the last status that the agent reported (or found at its start): it carries what the
/// runtime forgot, transition times, the start time, and other writers' fields.
pub fn pod_status(
    pod: &Pod,
    old: &PodStatus,
    observed: &Observed,
    memories: &Memories,
    context: &Context,
    now: Timestamp,
) -> PodStatus {
    let Some(spec) = &pod.spec else { return old.clone() };
    let mut init = Vec::new();
    let mut main = Vec::new();
    let none = Memory::default();
    for (kind, container) in containers(spec) {
        let memory = memories.get(&container.name).unwrap_or(&none);
        let one = Of { pod, spec, kind, container, memory, observed, context, told: old };
        match kind {
            Kind::Main => main.push(one.status(find(old.container_statuses.as_deref(), &container.name))),
            _ => init.push(one.status(find(old.init_container_statuses.as_deref(), &container.name))),
        }
    }
    let own_ephemeral = ephemeral_containers(spec);
    let ephemeral = own_ephemeral.iter().map(|container| {
        let memory = memories.get(&container.name).unwrap_or(&none);
        let one = Of { pod, spec, kind: Kind::Ephemeral, container, memory, observed, context, told: old };
        let old = find(old.ephemeral_container_statuses.as_deref(), &container.name);
        ContainerStatus { ready: false, started: None, ..one.status(old) }
    });
    let ephemeral: Vec<ContainerStatus> = ephemeral.collect();
    let main_started = main.iter().any(has_run);
    let restarting = !context.ending && restart::is_restarting(spec, Some(old), observed);
    let begins_anew = restarting || !context.ending && main.iter().any(restart::is_removed);
    let computed = match &context.failure {
        Some(_) => "Failed",
        // However its containers ended: the pod goes on.
        None if begins_anew => "Running",
        // Also of a pod that its node ends: one whose containers take it well has succeeded, as upstream.
        None => phase(spec, &init, &main, main_started, context.ending),
    };
    let old_phase = old.phase.as_deref().unwrap_or("Pending");
    let phase = if is_terminal_phase(old_phase) {
        old_phase // never leaves a terminal phase
    } else if context.stopped && !is_terminal_phase(computed) {
        "Failed"
    } else if is_terminal_phase(computed) && !context.stopped {
        old_phase
    } else {
        computed
    };
    let generation = pod.metadata.generation;
    let network_ready = !context.stopped && observed.sandbox == Sandbox::Ready;
    // Conditions speak of the end as soon as it is decided; the phase waits until everything has stopped.
    let summary = Summary {
        phase: computed,
        init: &init,
        main: &main,
        main_started,
        network_ready,
        restarting,
        generation,
        resize: &context.resize,
        disruption: context.disruption.as_deref(),
        now,
    };
    let condition_list = conditions::conditions(pod, spec, old, &summary);
    if context.stopped {
        mark_unaccounted(&mut init, &mut main);
    }
    let pod_ips: Vec<IpAddr> =
        if host_network(pod) { context.host_ips.clone() } else { context.pod_ips.clone() };
    // The addresses of a pod's own network are told together with its first container.
    let begun = host_network(pod)
        || !observed.containers.is_empty()
        || memories.values().any(|m| m.waiting.is_some());
    let pod_ips: Vec<PodIP> = if pod_ips.is_empty() || !begun {
        old.pod_ips.clone().unwrap_or_default()
    } else {
        pod_ips.iter().map(|ip| PodIP { ip: ip.to_string() }).collect()
    };
    let (reason, message) = match &context.failure {
        Some((reason, message)) if context.stopped => (Some(reason.clone()), Some(message.clone())),
        None if context.stopped && phase == "Failed" && context.evicted.is_some() => {
            context.evicted.clone().unzip()
        }
        _ => (old.reason.clone(), old.message.clone()),
    };
    // Upstream shows main containers by name, init containers as they run.
    main.sort_by(|a, b| a.name.cmp(&b.name));
    let some = |list: Vec<ContainerStatus>| (!list.is_empty()).then_some(list);
    PodStatus {
        phase: Some(phase.to_owned()),
        reason,
        message,
        observed_generation: generation.or(old.observed_generation),
        conditions: Some(condition_list),
        host_ip: context.host_ips.first().map(ToString::to_string).or_else(|| old.host_ip.clone()),
        host_ips: if context.host_ips.is_empty() {
            old.host_ips.clone()
        } else {
            Some(context.host_ips.iter().map(|ip| HostIP { ip: ip.to_string() }).collect())
        },
        pod_ip: pod_ips.first().map(|ip| ip.ip.clone()),
        pod_ips: (!pod_ips.is_empty()).then_some(pod_ips),
        start_time: old.start_time.clone().or(Some(Time(now_seconds(now)))),
        init_container_statuses: some(init),
        container_statuses: some(main),
        ephemeral_container_statuses: some(ephemeral),
        qos_class: Some(qos_class(pod).as_str().to_owned()),
        allocated_resources: Some(status_allocated(pod)).filter(|list| !list.is_empty()),
        resources: Some(status_resources(pod, old)).filter(|r| r.limits.is_some() || r.requests.is_some()),
        ..old.clone()
    }
}

/// API times have whole seconds; rounding here keeps "unchanged" unchanged.
pub fn now_seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

fn find<'a>(list: Option<&'a [ContainerStatus]>, name: &str) -> Option<&'a ContainerStatus> {
    list?.iter().find(|s| s.name == name)
}

/// It runs or ran at least once.
fn has_run(status: &ContainerStatus) -> bool {
    let ran = |s: &Option<ContainerState>| {
        s.as_ref().is_some_and(|s| s.running.is_some() || s.terminated.is_some())
    };
    ran(&status.state) || ran(&status.last_state)
}

fn is_terminated(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|s| s.terminated.is_some())
}

/// A pod that stopped has no waiting containers except those that were never due.
fn mark_unaccounted(init: &mut [ContainerStatus], main: &mut [ContainerStatus]) {
    let initialized = init.is_empty() || main.iter().any(has_run);
    let unknown = || ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code: 137,
            reason: Some("ContainerStatusUnknown".into()),
            message: Some("The container could not be located when the pod was terminated".into()),
            ..ContainerStateTerminated::default()
        }),
        ..ContainerState::default()
    };
    if initialized {
        for status in main.iter_mut().filter(|s| !is_terminated(s)) {
            status.state = Some(unknown());
            status.ready = false;
            status.started = Some(false);
        }
    }
    // Init containers before the last one that ran must have ended.
    let last = init.iter().rposition(has_run).map_or(0, |i| i + 1);
    for status in init.iter_mut().take(last).filter(|s| !is_terminated(s)) {
        status.state = Some(unknown());
        status.ready = false;
        status.started = Some(false);
    }
}

struct Of<'a> {
    pod: &'a Pod,
    spec: &'a PodSpec,
    kind: Kind,
    container: &'a Container,
    memory: &'a Memory,
    observed: &'a Observed,
    context: &'a Context,
    /// The status that was told last.
    told: &'a PodStatus,
}

impl Of<'_> {
    fn status(&self, old: Option<&ContainerStatus>) -> ContainerStatus {
        let record = self.observed.latest(&self.container.name);
        let mut status = match record {
            Some(record) => self.of_record(record, old),
            None => self.without_record(old),
        };
        self.explain_waiting(record, &mut status);
        status.volume_mounts = self.volume_mounts();
        status
    }

    fn waiting(&self) -> ContainerState {
        let reason = if self.spec.init_containers.as_ref().is_some_and(|i| !i.is_empty()) {
            "PodInitializing"
        } else {
            "ContainerCreating"
        };
        ContainerState {
            waiting: Some(ContainerStateWaiting { reason: Some(reason.into()), message: None }),
            ..ContainerState::default()
        }
    }

    /// Nothing in the runtime: never started, or of a sandbox that is gone.
    fn without_record(&self, old: Option<&ContainerStatus>) -> ContainerStatus {
        let mut status = ContainerStatus {
            name: self.container.name.clone(),
            image: self.container.image.clone().unwrap_or_default(),
            state: Some(self.waiting()),
            last_state: Some(ContainerState::default()),
            started: Some(false),
            ..ContainerStatus::default()
        };
        let Some(old) = old else { return status };
        if self.context.ending || self.context.stopped {
            // The sandbox is gone because the pod ended: what was reported stays true.
            if is_terminated(old) {
                return ContainerStatus { ready: self.kind == Kind::Init && old.ready, ..old.clone() };
            }
        }
        if let Some(removed) = restart::removed(self.told, old, &status, self.kind) {
            return removed;
        }
        status.restart_count = old.restart_count;
        let was = old.state.as_ref();
        status.last_state = match was {
            Some(s) if s.terminated.is_some() => old.state.clone(),
            Some(ContainerState { running: Some(running), .. }) => Some(ContainerState {
                terminated: Some(ContainerStateTerminated {
                    exit_code: 137,
                    reason: Some("ContainerStatusUnknown".into()),
                    message: Some(
                        "The container could not be located when the pod was deleted.  The container used to be Running"
                            .into(),
                    ),
                    started_at: running.started_at.clone(),
                    container_id: old.container_id.clone(),
                    ..ContainerStateTerminated::default()
                }),
                ..ContainerState::default()
            }),
            _ => old.last_state.clone().or(Some(ContainerState::default())),
        };
        status
    }

    fn of_record(&self, record: &Record, old: Option<&ContainerStatus>) -> ContainerStatus {
        let mut status = ContainerStatus {
            name: self.container.name.clone(),
            image: record.image.clone(),
            image_id: record.image_id.clone(),
            container_id: Some(record.container_id.clone()),
            restart_count: i32::try_from(record.attempt).unwrap_or(i32::MAX),
            resources: Some(self.container.resources.clone().unwrap_or_default()),
            allocated_resources: self.container.resources.as_ref().and_then(|r| r.requests.clone()),
            started: Some(false),
            ..ContainerStatus::default()
        };
        status.resources = status.resources.map(|mut r| {
            r.claims = None;
            r
        });
        status.last_state = Some(match self.observed.before(&record.name, record.attempt) {
            Some(Record { state: State::Exited(exit), container_id, .. }) => terminated(exit, container_id),
            _ => old
                .filter(|o| o.container_id.as_deref() == Some(record.container_id.as_str()))
                .map(|o| o.last_state.clone().unwrap_or_default())
                .or_else(|| {
                    // The attempt before was in another sandbox.
                    let old = old.filter(|o| o.restart_count < status.restart_count || !is_terminated(o))?;
                    let ended = old.state.clone().filter(|s| s.terminated.is_some());
                    ended.or_else(|| old.last_state.clone())
                })
                .unwrap_or_default(),
        });
        match &record.state {
            State::Created => status.state = Some(self.waiting()),
            State::Running(_) if self.memory.in_post_start => status.state = Some(self.waiting()),
            State::Running(at) => {
                let running = ContainerStateRunning { started_at: Some(Time(now_seconds(*at))) };
                status.state = Some(ContainerState { running: Some(running), ..ContainerState::default() });
                let started = self.kind == Kind::Init || self.memory.started;
                status.started = Some(started);
                status.ready = self.kind != Kind::Init && started && self.memory.ready;
            }
            State::Exited(exit) => {
                status.state = Some(terminated(exit, &record.container_id));
                status.ready = self.kind == Kind::Init && exit.exit_code == 0;
            }
        }
        status.user = self.user(record, old);
        status
    }

    fn user(&self, record: &Record, old: Option<&ContainerStatus>) -> Option<ContainerUser> {
        let of_old = || {
            old.filter(|o| o.container_id.as_deref() == Some(record.container_id.as_str()))
                .and_then(|o| o.user.clone())
        };
        match &self.memory.user {
            Some((uid, gid, groups)) => Some(ContainerUser {
                linux: Some(LinuxContainerUser {
                    uid: *uid,
                    gid: *gid,
                    supplemental_groups: Some(groups.clone()),
                }),
            }),
            None => of_old(),
        }
    }

    /// A container that should run but does not waits for the reason its last start failed.
    fn explain_waiting(&self, record: Option<&Record>, status: &mut ContainerStatus) {
        let Some((reason, message)) = &self.memory.waiting else { return };
        if self.context.ending || self.pod.metadata.deletion_timestamp.is_some() {
            return;
        }
        let restart = match record.map(|r| &r.state) {
            None | Some(State::Created) => true,
            Some(State::Running(_)) => false,
            Some(State::Exited(exit)) => restarts(self.spec, self.kind, self.container, exit.exit_code),
        };
        if !restart {
            return;
        }
        if is_terminated(status) {
            status.last_state = status.state.take();
        }
        status.state = Some(ContainerState {
            waiting: Some(ContainerStateWaiting {
                reason: Some(reason.clone()),
                message: (!message.is_empty()).then(|| message.clone()),
            }),
            ..ContainerState::default()
        });
    }

    fn volume_mounts(&self) -> Option<Vec<VolumeMountStatus>> {
        let mounts = self.container.volume_mounts.as_ref().filter(|m| !m.is_empty())?;
        let of = |mount: &k8s_openapi::api::core::v1::VolumeMount| {
            let read_only = mount.read_only.unwrap_or(false);
            VolumeMountStatus {
                name: mount.name.clone(),
                mount_path: mount.mount_path.clone(),
                read_only: read_only.then_some(true),
                recursive_read_only: read_only.then(|| {
                    let all = crate::pod::spec::is_recursive_read_only(mount);
                    if all { "Enabled" } else { "Disabled" }.to_owned()
                }),
                ..VolumeMountStatus::default()
            }
        };
        Some(mounts.iter().map(of).collect())
    }
}

fn terminated(exit: &Exit, container_id: &str) -> ContainerState {
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code: exit.exit_code,
            reason: Some(exit.reason.clone()).filter(|r| !r.is_empty()),
            message: Some(exit.message.clone()).filter(|m| !m.is_empty()),
            started_at: Some(Time(now_seconds(exit.started_at))),
            finished_at: Some(Time(now_seconds(exit.finished_at))),
            container_id: Some(container_id.to_owned()),
            signal: None,
        }),
        ..ContainerState::default()
    }
}

/// Where the pod is in its life, by its containers alone.
fn phase(
    spec: &PodSpec,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
    main_started: bool,
    ending: bool,
) -> &'static str {
    let policy = crate::pod::spec::RestartPolicy::parse(spec.restart_policy.as_deref());
    let (mut pending_init, mut failed_init, mut pending_sidecars) = (0, 0, 0);
    let (mut running, mut waiting, mut stopped, mut succeeded) = (0, 0, 0, 0);
    let last_exit =
        |s: &ContainerStatus| s.last_state.as_ref().and_then(|l| l.terminated.as_ref()).map(|t| t.exit_code);
    let kinds = containers(spec).filter(|(k, _)| *k != Kind::Main);
    for ((kind, _), status) in kinds.zip(init) {
        let state = status.state.clone().unwrap_or_default();
        match kind {
            Kind::Init if state.running.is_some() => pending_init += 1,
            Kind::Init => match (state.terminated.map(|t| t.exit_code), last_exit(status)) {
                (Some(0), _) => {}
                (Some(_), _) => failed_init += 1,
                (None, Some(code)) if code != 0 => failed_init += 1,
                (None, Some(_)) => {}
                (None, None) => pending_init += 1,
            },
            _ if state.running.is_some() => {
                pending_sidecars += usize::from(status.started != Some(true));
                running += 1;
            }
            _ if state.terminated.is_some() || last_exit(status).is_some() => {}
            _ => {
                pending_sidecars += 1;
                waiting += 1;
            }
        }
    }
    for status in main {
        let state = status.state.clone().unwrap_or_default();
        if state.running.is_some() {
            running += 1;
        } else if let Some(t) = state.terminated {
            stopped += 1;
            succeeded += usize::from(t.exit_code == 0);
        } else if last_exit(status).is_some() {
            stopped += 1;
        } else {
            waiting += 1;
        }
    }
    use crate::pod::spec::RestartPolicy::{Always, Never};
    if failed_init > 0 && policy == Never {
        return "Failed";
    }
    // A failed init container that will be restarted keeps the main containers waiting, which is Pending below.
    if pending_init > 0 || !main_started && pending_sidecars > 0 || waiting > 0 {
        return "Pending";
    }
    let over = main.iter().all(|s| s.state.as_ref().is_some_and(|s| s.terminated.is_some()));
    let sidecars_only = running > 0 && over && running == running_sidecars(init);
    let for_good = ending
        || over
            && spec.containers.iter().zip(main).all(|(c, s)| {
                let code = s.state.as_ref().and_then(|s| s.terminated.as_ref()).map_or(0, |t| t.exit_code);
                !restarts(spec, Kind::Main, c, code)
            });
    match (running, stopped) {
        // Sidecars do not keep a pod alive whose main containers are over.
        (r, s) if r > 0 && !(sidecars_only && for_good && s > 0) => "Running",
        (_, s) if s > 0 => match (for_good, stopped == succeeded) {
            (true, true) => "Succeeded",
            (true, false) => "Failed",
            (false, _) if policy == Always => "Running",
            (false, true) => "Succeeded",
            (false, false) if policy == Never => "Failed",
            (false, false) => "Running",
        },
        _ => "Pending",
    }
}

fn running_sidecars(init: &[ContainerStatus]) -> usize {
    init.iter().filter(|s| s.state.as_ref().is_some_and(|s| s.running.is_some())).count()
}

#[cfg(test)]
mod tests;
