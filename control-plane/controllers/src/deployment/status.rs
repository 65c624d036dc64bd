//! The status of a Deployment.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use kelp_model::controllers::deployment::{Bounds, size};
use kube::ResourceExt;

use super::Round;
use super::progress::{
    find, has_deadline, is_complete, is_progressing, new_condition, put, remove, time_left,
};
use crate::error::Result;

/// The counts and the Available condition, from the sets' status.
fn count<'a>(
    deployment: &Deployment,
    bounds: Bounds,
    new: Option<&ReplicaSet>,
    all: impl Iterator<Item = &'a ReplicaSet>,
) -> DeploymentStatus {
    let (mut asked, mut replicas, mut ready, mut available, mut terminating) = (0, 0, 0, 0, 0);
    for set in all {
        asked += size(set);
        let status = set.status.clone().unwrap_or_default();
        replicas += status.replicas;
        ready += status.ready_replicas.unwrap_or(0);
        available += status.available_replicas.unwrap_or(0);
        terminating += status.terminating_replicas.unwrap_or(0);
    }
    let some = |n: i32| (n != 0).then_some(n);
    let old = deployment.status.clone().unwrap_or_default();
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: some(replicas),
        updated_replicas: some(new.and_then(|s| s.status.as_ref()).map_or(0, |s| s.replicas)),
        ready_replicas: some(ready),
        available_replicas: some(available),
        unavailable_replicas: some((asked - available).max(0)),
        terminating_replicas: Some(terminating),
        collision_count: old.collision_count,
        conditions: old.conditions,
    };
    let (value, reason, message) = if available >= bounds.min_available() {
        ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    put(&mut status, new_condition("Available", value, reason, message.into()));
    status
}

/// The Progressing and ReplicaFailure conditions.
fn judge(
    deployment: &Deployment,
    bounds: Bounds,
    new: Option<&ReplicaSet>,
    failure: Option<DeploymentCondition>,
    mut status: DeploymentStatus,
    now: Timestamp,
) -> DeploymentStatus {
    let old = deployment.status.clone().unwrap_or_default();
    if !has_deadline(deployment) {
        remove(&mut status, "Progressing");
    }
    let current = find(&old, "Progressing");
    let finished = status.replicas == status.updated_replicas
        && current.and_then(|c| c.reason.as_deref()) == Some("NewReplicaSetAvailable");
    if has_deadline(deployment) && !finished {
        let subject = match new {
            Some(set) => format!("ReplicaSet {:?}", set.name_any()),
            None => format!("Deployment {:?}", deployment.name_any()),
        };
        if is_complete(deployment, bounds.replicas, &status) {
            let message = format!("{subject} has successfully progressed.");
            put(&mut status, new_condition("Progressing", "True", "NewReplicaSetAvailable", message));
        } else if is_progressing(&old, &status) {
            let message = format!("{subject} is progressing.");
            let mut progressing = new_condition("Progressing", "True", "ReplicaSetUpdated", message);
            // Each step forward starts the deadline anew, so the condition is replaced even when it says the same.
            if let Some(current) = current.filter(|c| c.status == "True") {
                progressing.last_transition_time = current.last_transition_time.clone();
            }
            remove(&mut status, "Progressing");
            put(&mut status, progressing);
        } else if time_left(deployment, &old, now).is_some_and(|left| left.is_negative()) {
            let message = format!("{subject} has timed out progressing.");
            put(&mut status, new_condition("Progressing", "False", "ProgressDeadlineExceeded", message));
        }
    }
    match failure {
        Some(failure) => put(&mut status, failure),
        None => remove(&mut status, "ReplicaFailure"),
    }
    status
}

impl Round<'_> {
    fn counted(&self) -> DeploymentStatus {
        count(&self.deployment, self.bounds, self.new.as_deref(), self.sets().map(|s| &**s))
    }

    pub(super) fn is_complete(&self) -> bool {
        let status = self.deployment.status.clone().unwrap_or_default();
        is_complete(&self.deployment, self.bounds.replicas, &status)
    }

    /// Writes the counts alone.
    pub(super) async fn write_status(&mut self) -> Result<()> {
        let mut deployment = self.deployment.clone();
        deployment.status = Some(self.counted());
        self.write_deployment(deployment).await
    }

    /// Writes counts and conditions, and comes back when the deadline is over.
    pub(super) async fn write_rollout_status(&mut self) -> Result<()> {
        let failure = self
            .new
            .iter()
            .chain(&self.old)
            .find_map(|s| {
                s.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == "ReplicaFailure")
            })
            .map(|c| {
                let mut out = new_condition(
                    "ReplicaFailure",
                    &c.status,
                    c.reason.as_deref().unwrap_or_default(),
                    c.message.clone().unwrap_or_default(),
                );
                out.last_transition_time = c.last_transition_time.clone();
                out
            });
        let now = Timestamp::now();
        let status = judge(&self.deployment, self.bounds, self.new.as_deref(), failure, self.counted(), now);
        let left = time_left(&self.deployment, &status, now).filter(|left| !left.is_negative());
        if let Some(left) = left.filter(|_| !is_complete(&self.deployment, self.bounds.replicas, &status)) {
            let left = Duration::try_from(left).unwrap_or_default();
            // Times are kept in whole seconds.
            self.c.queue.add_after(self.key.clone(), left + Duration::from_secs(1));
        }
        let mut deployment = self.deployment.clone();
        deployment.status = Some(status);
        self.write_deployment(deployment).await
    }
}

#[cfg(test)]
mod tests;
