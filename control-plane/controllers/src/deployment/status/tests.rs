use serde_json::{Value, json};

use super::*;

fn deployment(status: Value) -> Deployment {
    serde_json::from_value(json!({
        "metadata": {"name": "w", "generation": 1},
        "spec": {"replicas": 2, "selector": {}, "template": {}, "progressDeadlineSeconds": 10},
        "status": status,
    }))
    .unwrap()
}

fn set(replicas: i32, available: i32) -> ReplicaSet {
    serde_json::from_value(json!({"metadata": {"name": "w-1"}, "spec": {"replicas": 2, "selector": {}},
        "status": {"replicas": replicas, "readyReplicas": available, "availableReplicas": available}}))
    .unwrap()
}

fn next(deployment: &Deployment, set: &ReplicaSet, now: &str) -> (DeploymentStatus, Vec<String>) {
    let bounds = Bounds { replicas: 2, surge: 1, unavailable: 0, rolling: true };
    let counted = count(deployment, bounds, Some(set), std::iter::once(set));
    let status = judge(deployment, bounds, Some(set), None, counted, now.parse().unwrap());
    let conditions = status.conditions.iter().flatten();
    let conditions =
        conditions.map(|c| format!("{}={}/{}", c.type_, c.status, c.reason.as_deref().unwrap())).collect();
    (status, conditions)
}

/// The conditions recorded while a deployment of two comes up.
#[test]
fn from_created_to_available() {
    let progressing = json!({"type": "Progressing", "status": "True", "reason": "NewReplicaSetCreated",
                             "lastUpdateTime": "2026-01-01T00:00:00Z"});
    let mut d = deployment(json!({"conditions": [progressing]}));
    let (status, conditions) = next(&d, &set(0, 0), "2026-01-01T00:00:01Z");
    assert_eq!(
        conditions,
        ["Progressing=True/NewReplicaSetCreated", "Available=False/MinimumReplicasUnavailable"]
    );
    assert_eq!(
        (status.replicas, status.unavailable_replicas, status.terminating_replicas),
        (None, Some(2), Some(0))
    );
    d.status = Some(status);
    let (status, conditions) = next(&d, &set(2, 1), "2026-01-01T00:00:02Z");
    assert_eq!(
        conditions,
        ["Available=False/MinimumReplicasUnavailable", "Progressing=True/ReplicaSetUpdated"]
    );
    d.status = Some(status);
    let (status, conditions) = next(&d, &set(2, 2), "2026-01-01T00:00:03Z");
    assert_eq!(
        conditions,
        ["Available=True/MinimumReplicasAvailable", "Progressing=True/NewReplicaSetAvailable"]
    );
    assert_eq!(status.unavailable_replicas, None);
    // A pod that fails later does not start a rollout again.
    d.status = Some(status);
    let (_, conditions) = next(&d, &set(2, 1), "2026-01-01T01:00:00Z");
    assert_eq!(
        conditions,
        ["Progressing=True/NewReplicaSetAvailable", "Available=False/MinimumReplicasUnavailable"]
    );
}

#[test]
fn without_progress_the_deadline_ends_it() {
    let d = deployment(json!({"replicas": 2, "updatedReplicas": 2, "conditions": [
        {"type": "Progressing", "status": "True", "reason": "ReplicaSetUpdated", "lastUpdateTime": "2026-01-01T00:00:00Z"}]}));
    let (status, _) = next(&d, &set(2, 0), "2026-01-01T00:00:09Z");
    assert_eq!(time_left(&d, &status, "2026-01-01T00:00:09Z".parse().unwrap()).unwrap().as_secs(), 1);
    let (status, conditions) = next(&d, &set(2, 0), "2026-01-01T00:00:11Z");
    assert_eq!(
        conditions,
        ["Available=False/MinimumReplicasUnavailable", "Progressing=False/ProgressDeadlineExceeded"]
    );
    let message = find(&status, "Progressing").unwrap().message.as_deref();
    assert_eq!(message, Some("ReplicaSet \"w-1\" has timed out progressing."));
}
