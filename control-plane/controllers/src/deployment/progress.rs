//! Conditions of a Deployment.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus};

use super::Round;
use crate::error::Result;
use crate::write;

/// A condition of a deployment's status.
pub fn condition<'a>(deployment: &'a Deployment, kind: &str) -> Option<&'a DeploymentCondition> {
    find(deployment.status.as_ref()?, kind)
}

/// A condition of a status.
pub fn find<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.as_deref()?.iter().find(|c| c.type_ == kind)
}

/// Whether the deployment reports progress at all.
pub fn has_deadline(deployment: &Deployment) -> bool {
    deadline(deployment).is_some()
}

/// Seconds without progress after which a rollout counts as failed; the greatest number means never.
pub fn deadline(deployment: &Deployment) -> Option<i32> {
    deployment.spec.as_ref()?.progress_deadline_seconds.filter(|s| *s != i32::MAX)
}

/// Sets a condition of a deployment.
pub fn set_condition(deployment: &mut Deployment, kind: &str, status: &str, reason: &str, message: String) {
    let new = new_condition(kind, status, reason, message);
    put(deployment.status.get_or_insert_default(), new);
}

/// A condition as of now.
pub fn new_condition(kind: &str, status: &str, reason: &str, message: String) -> DeploymentCondition {
    DeploymentCondition {
        type_: kind.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_update_time: Some(write::now()),
        last_transition_time: Some(write::now()),
    }
}

/// Puts a condition in place of the one of its type, unless that has the same status and reason. The transition time
/// stays when the status does.
pub fn put(status: &mut DeploymentStatus, mut new: DeploymentCondition) {
    if let Some(current) = find(status, &new.type_) {
        if current.status == new.status && current.reason == new.reason {
            return;
        }
        if current.status == new.status {
            new.last_transition_time = current.last_transition_time.clone();
        }
    }
    remove(status, &new.type_);
    status.conditions.get_or_insert_default().push(new);
}

/// Removes the condition of a type.
pub fn remove(status: &mut DeploymentStatus, kind: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|c| c.type_ != kind);
        if conditions.is_empty() {
            status.conditions = None;
        }
    }
}

/// Whether `status` shows the deployment fully rolled out.
pub fn is_complete(deployment: &Deployment, replicas: i32, status: &DeploymentStatus) -> bool {
    status.updated_replicas.unwrap_or(0) == replicas
        && status.replicas.unwrap_or(0) == replicas
        && status.available_replicas.unwrap_or(0) == replicas
        && status.observed_generation.unwrap_or(0) >= deployment.metadata.generation.unwrap_or(0)
}

/// Whether `new` is a step forward from `old`: more updated, fewer old, more ready or more available replicas.
pub fn is_progressing(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let outdated = |s: &DeploymentStatus| s.replicas.unwrap_or(0) - s.updated_replicas.unwrap_or(0);
    new.updated_replicas.unwrap_or(0) > old.updated_replicas.unwrap_or(0)
        || outdated(new) < outdated(old)
        || new.ready_replicas.unwrap_or(0) > old.ready_replicas.unwrap_or(0)
        || new.available_replicas.unwrap_or(0) > old.available_replicas.unwrap_or(0)
}

/// Time left until the rollout counts as failed: negative when it does, `None` when no clock runs.
pub fn time_left(
    deployment: &Deployment,
    status: &DeploymentStatus,
    now: Timestamp,
) -> Option<SignedDuration> {
    let deadline = deadline(deployment)?;
    let progressing = find(status, "Progressing")?;
    match progressing.reason.as_deref() {
        Some("NewReplicaSetAvailable") => return None,
        Some("ProgressDeadlineExceeded") => return Some(SignedDuration::from_secs(-1)),
        _ => {}
    }
    let since = progressing.last_update_time.as_ref()?.0;
    Some(SignedDuration::from_secs(deadline.into()) - now.duration_since(since))
}

impl Round<'_> {
    /// Says in the conditions when the deployment is paused or resumed, so that its deadline does not run meanwhile.
    pub(super) async fn note_pause(&mut self) -> Result<()> {
        if !has_deadline(&self.deployment) {
            return Ok(());
        }
        let reason = condition(&self.deployment, "Progressing").and_then(|c| c.reason.as_deref());
        if reason == Some("ProgressDeadlineExceeded") {
            return Ok(());
        }
        let noted = reason == Some("DeploymentPaused");
        let (reason, message) = match (self.is_paused(), noted) {
            (true, false) => ("DeploymentPaused", "Deployment is paused"),
            (false, true) => ("DeploymentResumed", "Deployment is resumed"),
            _ => return Ok(()),
        };
        let mut deployment = self.deployment.clone();
        set_condition(&mut deployment, "Progressing", "Unknown", reason, message.into());
        self.write_deployment(deployment).await
    }
}
