//! Pod conditions, in upstream's order and with upstream's texts: those of other writers, then those of a resize, then
//! the agent's own.

use crate::pod::restart;
use crate::pod::spec::{Kind, containers};
use crate::pod::status::now_seconds;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// The conditions that the agent writes, in order.
pub const OWNED: [&str; 8] = [
    "PodResizePending",
    "PodResizeInProgress",
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
    restart::CONDITION,
];

/// Whoever ends a pod that could have gone on says so; the agent is one of them.
const DISRUPTION: &str = "DisruptionTarget";

/// What the conditions summarize.
#[derive(Debug, Clone, Copy)]
pub struct Summary<'a> {
    /// Phase that is decided, though perhaps not yet reported.
    pub phase: &'a str,
    /// Init containers and sidecars.
    pub init: &'a [ContainerStatus],
    /// Main containers.
    pub main: &'a [ContainerStatus],
    /// A main container runs or ran.
    pub main_started: bool,
    /// The sandbox runs and has its network.
    pub network_ready: bool,
    /// All containers are being removed to start anew.
    pub restarting: bool,
    /// Generation of the pod.
    pub generation: Option<i64>,
    /// What became of a change of resources, when it is not done.
    pub resize: &'a [PodCondition],
    /// The node ends the pod to save itself, or because it shuts down: why.
    pub disruption: Option<&'a str>,
    /// Time of the observation.
    pub now: Timestamp,
}

/// All conditions of the status: those of other writers as they are, then the agent's own.
pub fn conditions(pod: &Pod, spec: &PodSpec, old: &PodStatus, of: &Summary<'_>) -> Vec<PodCondition> {
    let containers_ready = containers_ready(spec, of);
    let ready = ready(pod, spec, &containers_ready);
    let own = [
        condition("PodReadyToStartContainers", of.network_ready, None, None),
        initialized(spec, of),
        ready,
        containers_ready,
        condition("PodScheduled", true, None, None),
    ];
    let old_list = old.conditions.as_deref().unwrap_or_default();
    let disruption = of
        .disruption
        .map(|why| condition(DISRUPTION, true, Some("TerminationByKubelet"), Some(why.to_owned())));
    let all_anew = restart::condition(spec, of.phase, of.restarting);
    let own = own.into_iter().chain(all_anew).chain(disruption);
    let mine = of.resize.iter().cloned().chain(own).map(|mut c| {
        let before = old_list.iter().find(|o| o.type_ == c.type_);
        c.last_transition_time = match before {
            Some(o) if o.status == c.status => o.last_transition_time.clone(),
            _ => None,
        }
        .or_else(|| Some(Time(now_seconds(of.now))));
        c.last_probe_time = before.and_then(|o| o.last_probe_time.clone());
        c.observed_generation = of.generation;
        c
    });
    // Other writers' conditions are taken from the newest Pod, the agent's memory of them may be old.
    let theirs = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let is_mine = |type_: &str| OWNED.contains(&type_) || of.disruption.is_some() && type_ == DISRUPTION;
    theirs.iter().filter(|c| !is_mine(&c.type_)).cloned().chain(mine).collect()
}

fn condition(type_: &str, status: bool, reason: Option<&str>, message: Option<String>) -> PodCondition {
    PodCondition {
        type_: type_.to_owned(),
        status: if status { "True" } else { "False" }.to_owned(),
        reason: reason.map(str::to_owned),
        message,
        ..PodCondition::default()
    }
}

fn names(list: &[&str]) -> String {
    format!("[{}]", list.join(" "))
}

fn containers_ready(spec: &PodSpec, of: &Summary<'_>) -> PodCondition {
    const TYPE: &str = "ContainersReady";
    match of.phase {
        "Succeeded" => return condition(TYPE, false, Some("PodCompleted"), None),
        "Failed" => return condition(TYPE, false, Some("PodFailed"), None),
        _ => {}
    }
    let sidecars = containers(spec).filter(|(k, _)| *k != Kind::Main).zip(of.init);
    let counted = sidecars.filter(|((k, _), _)| *k == Kind::Sidecar).map(|(_, s)| s).chain(of.main);
    let unready: Vec<&str> = counted.filter(|s| !s.ready).map(|s| s.name.as_str()).collect();
    if unready.is_empty() {
        return condition(TYPE, true, None, None);
    }
    let message = format!("containers with unready status: {}", names(&unready));
    condition(TYPE, false, Some("ContainersNotReady"), Some(message))
}

fn ready(pod: &Pod, spec: &PodSpec, containers_ready: &PodCondition) -> PodCondition {
    if containers_ready.status != "True" {
        return PodCondition { type_: "Ready".into(), ..containers_ready.clone() };
    }
    let present = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let mut missing = Vec::new();
    for gate in spec.readiness_gates.iter().flatten() {
        let name = &gate.condition_type;
        match present.iter().find(|c| c.type_ == *name) {
            None => missing
                .push(format!("corresponding condition of pod readiness gate \"{name}\" does not exist.")),
            Some(c) if c.status != "True" => missing.push(format!(
                "the status of pod readiness gate \"{name}\" is not \"True\", but {}",
                c.status
            )),
            Some(_) => {}
        }
    }
    if missing.is_empty() {
        return condition("Ready", true, None, None);
    }
    condition("Ready", false, Some("ReadinessGatesNotReady"), Some(missing.join(", ")))
}

fn initialized(spec: &PodSpec, of: &Summary<'_>) -> PodCondition {
    const TYPE: &str = "Initialized";
    if of.phase == "Succeeded" {
        return condition(TYPE, true, Some("PodCompleted"), None);
    }
    let init = containers(spec).filter(|(k, _)| *k != Kind::Main).zip(of.init);
    let incomplete: Vec<&str> = init
        .filter(|((kind, _), s)| match kind {
            Kind::Sidecar => s.started != Some(true),
            _ => !s.ready,
        })
        .map(|(_, s)| s.name.as_str())
        .collect();
    // Once a main container ran, the init containers were complete, whatever became of the sidecars.
    if incomplete.is_empty() || of.main_started {
        return condition(TYPE, true, None, None);
    }
    let message = format!("containers with incomplete status: {}", names(&incomplete));
    condition(TYPE, false, Some("ContainersNotInitialized"), Some(message))
}
