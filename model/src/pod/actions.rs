//! What to do next for a pod that shall run.

use crate::pod::backoff;
use crate::pod::restart;
use crate::pod::spec::{Kind, RestartPolicy, containers, ephemeral, restarts};
use crate::pod::view::{Exit, Memories, Memory, Observed, Record, Sandbox, State};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodStatus};

/// One step. The executor does them in order and has no choices left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// End the containers of a sandbox whose shim is gone, and remove what is left of it.
    RemoveSandbox,
    /// Start a sandbox, with volumes and network.
    CreateSandbox,
    /// Forget an attempt that ended: a newer one and its predecessor are kept for the status.
    RemoveContainer {
        /// Name in the Pod spec.
        name: String,
        /// Which attempt.
        attempt: u32,
    },
    /// Kill what is left of a container and forget it: all of the pod begin anew.
    ResetContainer {
        /// Name in the Pod spec.
        name: String,
        /// Which attempt.
        attempt: u32,
    },
    /// Kill a container that shall be started again.
    KillContainer {
        /// Name in the Pod spec.
        name: String,
        /// Which attempt.
        attempt: u32,
        /// Text of the `Killing` event.
        message: String,
    },
    /// Start a container.
    StartContainer {
        /// Name in the Pod spec.
        name: String,
        /// Restart count of the new attempt.
        attempt: u32,
        /// End of the attempt before, if there was one: raises the back-off.
        after: Option<Timestamp>,
    },
}

/// A restart that has to wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackOff {
    /// Name in the Pod spec.
    pub name: String,
    /// Present delay, whole seconds.
    pub seconds: i64,
    /// End of the wait.
    pub until: Timestamp,
}

/// Outcome of [`pod_actions`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// To do now, in order.
    pub actions: Vec<Action>,
    /// Containers that wait for their back-off.
    pub backoffs: Vec<BackOff>,
    /// Look again at this time at the latest.
    pub wake_at: Option<Timestamp>,
    /// No container will ever run again: stop what is left (sidecars) and report the final phase.
    pub finished: bool,
}

impl Plan {
    /// Another sandbox takes the place of one that is lost.
    pub fn replace_sandbox() -> Self {
        Self { actions: vec![Action::RemoveSandbox, Action::CreateSandbox], ..Self::default() }
    }

    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |w| w.min(at)));
    }
}

/// What an attempt that ran in a sandbox without a shim counts as.
fn lost(at: Timestamp) -> Exit {
    Exit {
        exit_code: 137,
        reason: "ContainerStatusUnknown".into(),
        message: "The container could not be located when the pod was terminated".into(),
        started_at: at,
        finished_at: at,
    }
}

/// The end of the newest attempt, if it ended; an attempt in a lost sandbox always did.
fn ended(sandbox: Sandbox, record: &Record, now: Timestamp) -> Option<Exit> {
    match &record.state {
        State::Exited(exit) => Some(exit.clone()),
        State::Running(at) if sandbox == Sandbox::Lost => Some(lost(*at)),
        State::Created if sandbox == Sandbox::Lost => Some(lost(now)),
        _ => None,
    }
}

/// Restart count of the next attempt. Attempts of an earlier sandbox are known from the status alone.
pub fn next_attempt(status: Option<&PodStatus>, observed: &Observed, name: &str) -> u32 {
    if let Some(record) = observed.latest(name) {
        return record.attempt.saturating_add(1);
    }
    let reported = status.and_then(|s| {
        let all = s.init_container_statuses.iter().flatten().chain(s.container_statuses.iter().flatten());
        all.into_iter().find(|c| c.name == name)
    });
    match reported {
        Some(c) if c.container_id.as_deref().is_some_and(|id| !id.is_empty()) => {
            u32::try_from(c.restart_count).unwrap_or(0).saturating_add(1)
        }
        Some(c) => u32::try_from(c.restart_count).unwrap_or(0),
        None => 0,
    }
}

/// Decides the next steps for a pod that shall run: not deleted, not evicted, not in a terminal phase, and within its
/// active deadline. `status` is the newest status the agent itself reported.
pub fn pod_actions(
    pod: &Pod,
    status: Option<&PodStatus>,
    observed: &Observed,
    memories: &Memories,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::default();
    let Some(spec) = &pod.spec else { return plan };
    if observed.sandbox == Sandbox::Ready && restart::is_restarting(spec, status, observed) {
        let reset = |r: &&Record| Action::ResetContainer { name: r.name.clone(), attempt: r.attempt };
        plan.actions = restart::to_remove(spec, observed).iter().map(reset).collect();
        return plan;
    }
    if is_finished(spec, observed, now) {
        plan.finished = true;
        return plan;
    }
    match observed.sandbox {
        Sandbox::Lost => {
            return Plan::replace_sandbox();
        }
        Sandbox::Absent | Sandbox::Created => {
            plan.actions = vec![Action::CreateSandbox];
            return plan;
        }
        Sandbox::Ready => {}
    }
    for record in &observed.containers {
        let newer =
            observed.containers.iter().filter(|o| o.name == record.name && o.attempt > record.attempt);
        if newer.count() >= 2 && matches!(record.state, State::Exited(_)) {
            plan.actions.push(Action::RemoveContainer { name: record.name.clone(), attempt: record.attempt });
        }
    }
    // A hook that runs blocks further starts: upstream starts the next container after the hook.
    let hook_runs = memories.values().any(|m| m.in_post_start);
    let mut step = Step { spec, status, observed, now, may_start: !hook_runs, plan };
    let none = Memory::default();
    let main_started = spec.containers.iter().any(|c| observed.latest(&c.name).is_some());
    for (kind, container) in containers(spec) {
        let memory = memories.get(&container.name).unwrap_or(&none);
        let done = match kind {
            Kind::Init if main_started => true,
            Kind::Init => step.init(container, memory),
            Kind::Sidecar => step.long_running(kind, container, memory) || main_started,
            Kind::Main | Kind::Ephemeral => {
                step.long_running(kind, container, memory);
                true
            }
        };
        if !done {
            break;
        }
    }
    for container in ephemeral(spec) {
        let memory = memories.get(&container.name).unwrap_or(&none);
        if observed.latest(&container.name).is_none() {
            step.start(&container, memory, None);
        }
    }
    if step.plan.finished {
        step.plan.actions.clear();
    }
    step.plan
}

/// Every container that has to end has ended for good.
fn is_finished(spec: &PodSpec, observed: &Observed, now: Timestamp) -> bool {
    let over = |kind: Kind, container: &Container| {
        let record = observed.latest(&container.name)?;
        let exit = ended(observed.sandbox, record, now)?;
        (!restarts(spec, kind, container, exit.exit_code)).then_some(exit.exit_code)
    };
    let init_failed = containers(spec)
        .filter(|(kind, _)| *kind == Kind::Init)
        .any(|(kind, c)| over(kind, c).is_some_and(|code| code != 0));
    let all_main_over = spec.containers.iter().all(|c| over(Kind::Main, c).is_some());
    init_failed || all_main_over && !spec.containers.is_empty()
}

struct Step<'a> {
    spec: &'a PodSpec,
    status: Option<&'a PodStatus>,
    observed: &'a Observed,
    now: Timestamp,
    may_start: bool,
    plan: Plan,
}

impl Step<'_> {
    /// `true` when this init container has completed.
    fn init(&mut self, container: &Container, memory: &Memory) -> bool {
        match self.observed.latest(&container.name).map(|r| &r.state) {
            Some(State::Exited(exit)) if exit.exit_code == 0 => true,
            Some(State::Exited(exit)) => {
                if restarts(self.spec, Kind::Init, container, exit.exit_code) {
                    self.start(container, memory, Some(exit));
                }
                false
            }
            Some(State::Created | State::Running(_)) => false,
            None => {
                self.start(container, memory, None);
                false
            }
        }
    }

    /// `true` when this container runs and has started up, so that the next one may start.
    fn long_running(&mut self, kind: Kind, container: &Container, memory: &Memory) -> bool {
        match self.observed.latest(&container.name) {
            Some(Record { state: State::Exited(exit), attempt, .. }) => {
                if restarts(self.spec, kind, container, exit.exit_code) {
                    // Upstream starts what it killed itself in the same round, when it only knows of the end before.
                    let before = match memory.killed {
                        Some(killed) if killed == *attempt => {
                            match self.observed.before(&container.name, *attempt).map(|r| &r.state) {
                                Some(State::Exited(before)) => Some(before),
                                _ => None,
                            }
                        }
                        _ => Some(exit),
                    };
                    self.start(container, memory, before);
                }
                false
            }
            Some(record @ Record { state: State::Running(_), .. }) => {
                // The image is the one part of a running container that an update may change; what restarts anyway
                // is restarted for it.
                let new_image = container.image.as_ref().is_some_and(|image| *image != record.image)
                    && restarts(self.spec, kind, container, 0);
                let changed = new_image
                    .then(|| format!("Container {} definition changed, will be restarted", container.name));
                if let (Some(message), false) = (memory.unhealthy.clone().or(changed), memory.killing) {
                    let probed = message.ends_with(" probe");
                    let again =
                        RestartPolicy::parse(self.spec.restart_policy.as_deref()) != RestartPolicy::Never;
                    if probed && !again && kind == Kind::Main && self.is_last(container) {
                        self.plan.finished = true;
                        return false;
                    }
                    let message =
                        if probed && again { format!("{message}, will be restarted") } else { message };
                    self.plan.actions.push(Action::KillContainer {
                        name: container.name.clone(),
                        attempt: record.attempt,
                        message,
                    });
                }
                memory.started && !memory.in_post_start
            }
            // Prepared but not started: a start that was cut off. Starting is idempotent.
            Some(record @ Record { state: State::Created, .. }) => {
                let (name, attempt) = (container.name.clone(), record.attempt);
                if self.may_start && memory.retry_at.is_none_or(|at| at <= self.now) {
                    self.plan.actions.push(Action::StartContainer { name, attempt, after: None });
                }
                false
            }
            None => {
                self.start(container, memory, None);
                false
            }
        }
    }

    /// No other main container runs or will.
    fn is_last(&self, container: &Container) -> bool {
        let mut others = self.spec.containers.iter().filter(|c| c.name != container.name);
        others.all(|c| match self.observed.latest(&c.name).map(|r| &r.state) {
            Some(State::Exited(exit)) => !restarts(self.spec, Kind::Main, c, exit.exit_code),
            _ => false,
        })
    }

    fn start(&mut self, container: &Container, memory: &Memory, exit: Option<&Exit>) {
        if let Some(exit) = exit
            && let Some(until) = backoff::blocked_until(memory.backoff.as_ref(), exit.finished_at, self.now)
        {
            let seconds = memory.backoff.map_or(0, |b| b.delay.as_secs());
            self.plan.backoffs.push(BackOff { name: container.name.clone(), seconds, until });
            self.plan.wake(until);
            return;
        }
        if let Some(at) = memory.retry_at.filter(|at| *at > self.now) {
            self.plan.wake(at);
            return;
        }
        if !self.may_start || memory.killing {
            return;
        }
        self.plan.actions.push(Action::StartContainer {
            name: container.name.clone(),
            attempt: next_attempt(self.status, self.observed, &container.name),
            after: exit.map(|e| e.finished_at),
        });
    }
}

#[cfg(test)]
mod tests;
