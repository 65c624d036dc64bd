//! The status of a ReplicaSet or ReplicationController.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use kelp_model::controllers::pods;
use kelp_model::selector::Labels;

use super::kind::Replicas;
use crate::error::Error;
use crate::write;

/// The status after a round: `mine` are all pods of the set, `failure` what went wrong with creating or deleting.
pub fn next<K: Replicas>(
    set: &K,
    mine: &[Arc<Pod>],
    failure: Option<&Error>,
    now: Timestamp,
) -> ReplicaSetStatus {
    let min_ready = set.min_ready_seconds();
    let template = set.template().and_then(|t| t.metadata.as_ref()?.labels.clone()).unwrap_or_default();
    let count = |test: &dyn Fn(&Pod) -> bool| -> i32 {
        i32::try_from(mine.iter().filter(|p| test(p)).count()).unwrap_or(i32::MAX)
    };
    let some = |n: i32| (n != 0).then_some(n);
    let replicas = count(&pods::is_active);
    let mut conditions = set.status().conditions.unwrap_or_default();
    match failure {
        Some(error) => {
            if !conditions.iter().any(|c| c.type_ == "ReplicaFailure") {
                let wanted = set.replicas();
                conditions.push(ReplicaSetCondition {
                    type_: "ReplicaFailure".into(),
                    status: "True".into(),
                    reason: Some(if replicas < wanted { "FailedCreate" } else { "FailedDelete" }.into()),
                    message: Some(error.to_string()),
                    last_transition_time: Some(write::now()),
                });
            }
        }
        None => conditions.retain(|c| c.type_ != "ReplicaFailure"),
    }
    ReplicaSetStatus {
        replicas,
        fully_labeled_replicas: some(count(&|p| {
            pods::is_active(p) && template.iter().all(|(k, v)| p.metadata.labels.get_label(k) == Some(v))
        })),
        ready_replicas: some(count(&|p| pods::is_active(p) && pods::is_ready(p))),
        available_replicas: some(count(&|p| {
            pods::is_active(p) && pods::availability(p, min_ready, now).is_ok()
        })),
        terminating_replicas: K::COUNTS_TERMINATING
            .then(|| count(&|p| pods::is_terminating(p) && !pods::is_terminal(p))),
        observed_generation: set.meta().generation,
        conditions: (!conditions.is_empty()).then_some(conditions),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::ReplicaSet;
    use k8s_openapi::api::core::v1::ReplicationController;
    use serde_json::{Value, json};

    use super::*;

    fn pod(value: Value) -> Arc<Pod> {
        Arc::new(serde_json::from_value(value).unwrap())
    }

    #[test]
    fn counts_and_failure() {
        let mut set: ReplicaSet = serde_json::from_value(json!({
            "metadata": {"name": "w", "generation": 4},
            "spec": {"replicas": 4, "selector": {}, "template": {"metadata": {"labels": {"app": "w", "extra": "1"}}}},
        }))
        .unwrap();
        let ready = json!([{"type": "Ready", "status": "True"}]);
        let mine = [
            pod(json!({"metadata": {"labels": {"app": "w", "extra": "1"}}, "status": {"conditions": ready}})),
            pod(json!({"metadata": {"labels": {"app": "w"}}})),
            pod(
                json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": {"conditions": ready}}),
            ),
            pod(json!({"metadata": {}, "status": {"phase": "Failed"}})),
        ];
        let error = Error::Failed("no room".into());
        let status = next(&set, &mine, Some(&error), Timestamp::UNIX_EPOCH);
        let mut value = serde_json::to_value(&status).unwrap();
        value["conditions"][0]["lastTransitionTime"] = json!("t");
        assert_eq!(
            value,
            json!({"replicas": 2, "fullyLabeledReplicas": 1, "readyReplicas": 1, "availableReplicas": 1,
                   "terminatingReplicas": 1, "observedGeneration": 4,
                   "conditions": [{"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate",
                                   "message": "no room", "lastTransitionTime": "t"}]})
        );
        set.status = Some(status);
        assert_eq!(next(&set, &mine, None, Timestamp::UNIX_EPOCH).conditions, None);
    }

    #[test]
    fn a_replication_controller_has_the_same_but_for_pods_on_their_way_out() {
        let mut controller: ReplicationController = serde_json::from_value(json!({
            "metadata": {"name": "w", "generation": 4},
            "spec": {"replicas": 2, "selector": {"app": "w"}, "template": {"metadata": {"labels": {"app": "w"}}}},
        }))
        .unwrap();
        let mine = [
            pod(json!({"metadata": {"labels": {"app": "w"}},
                       "status": {"conditions": [{"type": "Ready", "status": "True"}]}})),
            pod(json!({"metadata": {"labels": {"app": "w"}, "deletionTimestamp": "2026-01-01T00:00:00Z"}})),
        ];
        let error = Error::Failed("no room".into());
        let status = next(&controller, &mine, Some(&error), Timestamp::UNIX_EPOCH);
        controller.set_status(status.clone());
        assert_eq!(controller.status(), status, "nothing is lost between the two forms");
        let mut value = serde_json::to_value(&controller.status).unwrap();
        value["conditions"][0]["lastTransitionTime"] = json!("t");
        assert_eq!(
            value,
            json!({"replicas": 1, "fullyLabeledReplicas": 1, "readyReplicas": 1, "availableReplicas": 1,
                   "observedGeneration": 4,
                   "conditions": [{"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate",
                                   "message": "no room", "lastTransitionTime": "t"}]})
        );
        assert_eq!(next(&controller, &mine, None, Timestamp::UNIX_EPOCH).conditions, None);
    }
}
