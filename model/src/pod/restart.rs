//! Starting all containers of a pod anew because of how one ended (KEP-5532): they are removed whatever they do, the
//! sandbox and the volumes stay, and the pod begins with its first init container.

use crate::pod::spec::{Kind, containers, may_restart_all, restarts_all};
use crate::pod::view::{Observed, Record, State};
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    PodCondition, PodSpec, PodStatus,
};

/// Condition of a pod that may start anew as a whole.
pub const CONDITION: &str = "AllContainersRestarting";
/// Why a container that was removed for it waits.
const REASON: &str = "RestartingAllContainers";
const MESSAGE: &str = "The container is removed because RestartAllContainers in place";

/// Whether the pod is starting anew as a whole: a container has ended in a way that asks for it, or the last status that
/// was told says so. `false` once nothing of the earlier containers is left.
pub fn is_restarting(spec: &PodSpec, status: Option<&PodStatus>, observed: &Observed) -> bool {
    may_restart_all(spec)
        && own(spec, observed).next().is_some()
        && (was_told(status) || has_trigger(spec, observed))
}

/// What is observed of the pod's containers but for ephemeral ones, which are left alone.
fn own<'a>(spec: &PodSpec, observed: &'a Observed) -> impl Iterator<Item = &'a Record> {
    observed.containers.iter().filter(move |record| containers(spec).any(|(_, c)| c.name == record.name))
}

fn was_told(status: Option<&PodStatus>) -> bool {
    let conditions = status.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|c| c.type_ == CONDITION && c.status == "True")
}

fn has_trigger(spec: &PodSpec, observed: &Observed) -> bool {
    let ended_so = |container: &Container| {
        let record = observed.latest(&container.name);
        matches!(record.map(|r| &r.state), Some(State::Exited(exit)) if restarts_all(container, exit.exit_code))
    };
    containers(spec).any(|(_, container)| ended_so(container))
}

/// What has to be removed, in order: what asked for the restart goes last, so that a cut in between loses nothing.
pub fn to_remove<'a>(spec: &PodSpec, observed: &'a Observed) -> Vec<&'a Record> {
    let is_trigger = |record: &&Record| {
        let of_spec = containers(spec).find(|(_, c)| c.name == record.name);
        match (&record.state, of_spec) {
            (State::Exited(exit), Some((_, container))) => restarts_all(container, exit.exit_code),
            _ => false,
        }
    };
    let (last, mut first): (Vec<&Record>, Vec<&Record>) = own(spec, observed).partition(is_trigger);
    first.extend(last);
    first
}

/// Status of a container that was removed; `None` when it was not, or had nothing to remove. `old` is what was told last
/// and `waiting` what a container shows that was never started.
pub fn removed(
    told: &PodStatus,
    old: &ContainerStatus,
    waiting: &ContainerStatus,
    kind: Kind,
) -> Option<ContainerStatus> {
    let waits = old.state.as_ref().is_none_or(|s| s.running.is_none() && s.terminated.is_none());
    if kind == Kind::Ephemeral || waits || !was_told(Some(told)) {
        return None;
    }
    Some(ContainerStatus {
        state: Some(ContainerState {
            waiting: Some(ContainerStateWaiting {
                reason: Some(REASON.into()),
                message: Some(MESSAGE.into()),
            }),
            ..ContainerState::default()
        }),
        last_state: Some(ContainerState {
            terminated: Some(ContainerStateTerminated {
                exit_code: 137,
                reason: Some(REASON.into()),
                message: Some(MESSAGE.into()),
                ..ContainerStateTerminated::default()
            }),
            ..ContainerState::default()
        }),
        restart_count: old.restart_count.saturating_add(1),
        ..waiting.clone()
    })
}

/// A container that was removed and has not been started since.
pub fn is_removed(status: &ContainerStatus) -> bool {
    let last = status.last_state.as_ref().and_then(|s| s.terminated.as_ref());
    let waits = status.state.as_ref().is_some_and(|s| s.waiting.is_some());
    waits && last.is_some_and(|t| t.reason.as_deref() == Some(REASON))
}

/// The condition, of a pod that may start anew as a whole.
pub fn condition(spec: &PodSpec, phase: &str, restarting: bool) -> Option<PodCondition> {
    let (status, reason, message) = match phase {
        "Succeeded" => ("False", Some("PodCompleted"), None),
        "Failed" => ("False", Some("PodFailed"), None),
        _ if restarting => {
            ("True", Some("RestartAllContainersStarted"), Some("container exited with restart policy rule"))
        }
        _ => ("False", None, None),
    };
    may_restart_all(spec).then(|| PodCondition {
        type_: CONDITION.into(),
        status: status.into(),
        reason: reason.map(str::to_owned),
        message: message.map(str::to_owned),
        ..PodCondition::default()
    })
}
