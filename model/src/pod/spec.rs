//! Questions about a Pod's specification.

use jiff::{Timestamp, ToSpan};
use k8s_openapi::api::core::v1::{
    Container, ContainerRestartRule, EphemeralContainer, Pod, PodSpec, VolumeMount,
};
use std::borrow::Cow;

/// Which list of the Pod spec a container is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Runs to completion before the next one starts.
    Init,
    /// An init container with `restartPolicy: Always`: keeps running beside the main containers.
    Sidecar,
    /// A main container.
    Main,
    /// Added to a pod that runs, to look into it: never restarted, and without a say in what becomes of the pod.
    Ephemeral,
}

/// Pod-wide restart policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Restart whatever the exit code.
    Always,
    /// Restart after a non-zero exit code.
    OnFailure,
    /// Never restart.
    Never,
}

impl RestartPolicy {
    /// Of the API's text; anything unknown or missing is `Always`, the API's default.
    pub fn parse(text: Option<&str>) -> Self {
        match text {
            Some("Never") => Self::Never,
            Some("OnFailure") => Self::OnFailure,
            _ => Self::Always,
        }
    }
}

/// All containers in the order in which they start.
pub fn containers(spec: &PodSpec) -> impl Iterator<Item = (Kind, &Container)> {
    let init = spec.init_containers.iter().flatten().map(|c| {
        let sidecar = c.restart_policy.as_deref() == Some("Always");
        (if sidecar { Kind::Sidecar } else { Kind::Init }, c)
    });
    init.chain(spec.containers.iter().map(|c| (Kind::Main, c)))
}

/// The ephemeral containers, as the ordinary containers that they are but for their target.
pub fn ephemeral(spec: &PodSpec) -> Vec<Container> {
    let as_container = |e: &EphemeralContainer| {
        let mut value = serde_json::to_value(e).ok()?;
        value.as_object_mut()?.remove("targetContainerName");
        serde_json::from_value(value).ok()
    };
    spec.ephemeral_containers.iter().flatten().filter_map(as_container).collect()
}

/// A container of any kind by name.
pub fn find_any<'a>(spec: &'a PodSpec, name: &str) -> Option<(Kind, Cow<'a, Container>)> {
    let ordinary = find(spec, name).map(|(kind, container)| (kind, Cow::Borrowed(container)));
    ordinary.or_else(|| {
        let mut all = ephemeral(spec).into_iter();
        all.find(|c| c.name == name).map(|c| (Kind::Ephemeral, Cow::Owned(c)))
    })
}

/// A container by name, but for ephemeral ones.
pub fn find<'a>(spec: &'a PodSpec, name: &str) -> Option<(Kind, &'a Container)> {
    containers(spec).find(|(_, c)| c.name == name)
}

/// Is this container started again after it ended with `exit_code`?
///
/// Order of upstream: the container's restart rules, the container's own policy, the pod's policy.
pub fn restarts(spec: &PodSpec, kind: Kind, container: &Container, exit_code: i32) -> bool {
    match kind {
        Kind::Sidecar => return true,
        Kind::Ephemeral => return false,
        Kind::Init | Kind::Main => {}
    }
    if let Some(action) = rule(container, exit_code) {
        return action == "Restart";
    }
    let policy = RestartPolicy::parse(container.restart_policy.as_deref().or(spec.restart_policy.as_deref()));
    match policy {
        // An init container that succeeded is done under every policy.
        RestartPolicy::Always => kind == Kind::Main || exit_code != 0,
        RestartPolicy::OnFailure => exit_code != 0,
        RestartPolicy::Never => false,
    }
}

/// Action of the first of a container's restart rules that is about `exit_code`.
fn rule(container: &Container, exit_code: i32) -> Option<&str> {
    let is_about = |rule: &&ContainerRestartRule| {
        let Some(codes) = &rule.exit_codes else { return false };
        let listed = codes.values.iter().flatten().any(|v| *v == exit_code);
        match codes.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        }
    };
    let mut rules = container.restart_policy_rules.iter().flatten();
    rules.find(is_about).map(|rule| rule.action.as_str())
}

/// This end of a container makes the whole pod start anew, in the sandbox and with the volumes that it has.
pub fn restarts_all(container: &Container, exit_code: i32) -> bool {
    rule(container, exit_code) == Some(RESTART_ALL)
}

/// A container may end in a way that makes the whole pod start anew.
pub fn may_restart_all(spec: &PodSpec) -> bool {
    let rules = |container: &Container| {
        container.restart_policy_rules.iter().flatten().any(|rule| rule.action == RESTART_ALL)
    };
    containers(spec).any(|(_, container)| rules(container))
}

/// Action of a restart rule.
const RESTART_ALL: &str = "RestartAllContainers";

/// A read-only mount that is read-only all the way down: asked for, and this runtime can.
pub fn is_recursive_read_only(mount: &VolumeMount) -> bool {
    matches!(mount.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible"))
}

/// The pod shares the node's network.
pub fn host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|s| s.host_network).unwrap_or(false)
}

/// `phase` is `Succeeded` or `Failed`.
pub fn is_terminal_phase(phase: &str) -> bool {
    phase == "Succeeded" || phase == "Failed"
}

/// The phase that the API server has is terminal.
pub fn is_terminal(pod: &Pod) -> bool {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).is_some_and(is_terminal_phase)
}

/// When the pod's activeDeadlineSeconds ends; counted from the start time.
pub fn active_deadline(pod: &Pod, start: Option<Timestamp>) -> Option<Timestamp> {
    let seconds = pod.spec.as_ref()?.active_deadline_seconds?;
    start?.checked_add(seconds.clamp(0, 1 << 31).seconds()).ok()
}

/// Seconds that containers get to stop: of the deletion if the pod is being deleted, else of the spec.
pub fn grace_seconds(pod: &Pod) -> i64 {
    let of_spec = pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds).unwrap_or(30);
    if pod.metadata.deletion_timestamp.is_some() {
        pod.metadata.deletion_grace_period_seconds.unwrap_or(of_spec)
    } else {
        of_spec
    }
    .max(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(value: serde_json::Value) -> PodSpec {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn restart_policy_of_every_kind() {
        for (policy, code, main, init) in [
            ("Always", 0, true, false),
            ("Always", 1, true, true),
            ("OnFailure", 0, false, false),
            ("OnFailure", 1, true, true),
            ("Never", 0, false, false),
            ("Never", 1, false, false),
        ] {
            let s = spec(json!({"restartPolicy": policy, "containers": [{"name": "c"}]}));
            assert_eq!(restarts(&s, Kind::Main, &s.containers[0], code), main, "{policy} {code}");
            assert_eq!(restarts(&s, Kind::Init, &s.containers[0], code), init, "{policy} {code}");
            assert!(restarts(&s, Kind::Sidecar, &s.containers[0], code));
        }
    }

    #[test]
    fn container_rules_win() {
        let s = spec(json!({"restartPolicy": "Never", "containers": [{"name": "c", "restartPolicy": "Never",
            "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]}]}));
        assert!(restarts(&s, Kind::Main, &s.containers[0], 42));
        assert!(!restarts(&s, Kind::Main, &s.containers[0], 41));
    }
}
