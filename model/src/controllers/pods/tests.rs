use std::collections::HashMap;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn now() -> Timestamp {
    "2026-01-01T12:00:00Z".parse().unwrap()
}

/// A running, ready pod on node `n`, `ready_for` seconds ready, created twice as long ago.
fn pod(name: &str, ready_for: i64, change: impl FnOnce(&mut serde_json::Value)) -> Arc<Pod> {
    let at = |seconds: i64| (now() - SignedDuration::from_secs(seconds)).to_string();
    let mut value = json!({
        "metadata": {"name": name, "uid": format!("uid-{name}"), "creationTimestamp": at(ready_for * 2)},
        "spec": {"nodeName": "n", "containers": []},
        "status": {"phase": "Running",
                   "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": at(ready_for)}],
                   "containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 0}]},
    });
    change(&mut value);
    Arc::new(serde_json::from_value(value).unwrap())
}

fn order(mut pods: Vec<Arc<Pod>>) -> Vec<String> {
    sort_for_deletion(&mut pods, &HashMap::new(), now());
    pods.iter().map(|p| p.metadata.name.clone().unwrap()).collect()
}

#[test]
fn each_criterion_beats_those_after_it() {
    let unbound = pod("unbound", 100, |p| {
        p["spec"]["nodeName"] = json!(null);
        p["status"]["phase"] = json!("Pending");
    });
    let pending = pod("pending", 100, |p| p["status"]["phase"] = json!("Pending"));
    let unready = pod("unready", 100, |p| p["status"]["conditions"][0]["status"] = json!("False"));
    let cheap = pod("cheap", 100, |p| p["metadata"]["annotations"] = json!({POD_DELETION_COST: "-10"}));
    let young = pod("young", 2, |_| {});
    let restarted = pod("restarted", 100, |p| p["status"]["containerStatuses"][0]["restartCount"] = json!(3));
    let dear = pod("dear", 1, |p| p["metadata"]["annotations"] = json!({POD_DELETION_COST: "10"}));
    assert_eq!(
        order(vec![dear, restarted, young, cheap, unready, pending, unbound]),
        ["unbound", "pending", "unready", "cheap", "young", "restarted", "dear"]
    );
}

#[test]
fn crowded_nodes_are_thinned_first() {
    let mut pods = vec![pod("alone", 3, |p| p["spec"]["nodeName"] = json!("m")), pod("crowded", 300, |_| {})];
    sort_for_deletion(&mut pods, &HashMap::from([("n".into(), 2), ("m".into(), 1)]), now());
    assert_eq!(pods[0].metadata.name.as_deref(), Some("crowded"));
}

#[test]
fn deletion_cost_reads_integers_only() {
    let cost = |v: &str| {
        deletion_cost(&pod("p", 1, |p| p["metadata"]["annotations"] = json!({POD_DELETION_COST: v})))
    };
    assert_eq!([cost("7"), cost("-7"), cost("0")], [7, -7, 0]);
    assert_eq!([cost("+7"), cost("07"), cost("x"), cost("99999999999")], [0; 4]);
}

#[test]
fn availability_waits_for_min_ready_seconds() {
    let p = pod("p", 10, |_| {});
    assert_eq!(availability(&p, 0, now()), Ok(()));
    assert_eq!(availability(&p, 10, now()), Ok(()));
    assert_eq!(availability(&p, 25, now()), Err(Some(SignedDuration::from_secs(15))));
    let unready = pod("u", 10, |p| p["status"]["conditions"][0]["status"] = json!("False"));
    assert_eq!(availability(&unready, 0, now()), Err(None));
}

proptest! {
    /// A comparison that is no order makes `sort_by` panic or depend on the order of its input.
    #[test]
    fn the_order_is_total_and_does_not_depend_on_the_input_order(
        seeds in prop::collection::vec((0u8..3, any::<bool>(), -1i32..2, 0i64..40, 0i32..3), 0..12),
        turn in 0usize..12,
    ) {
        let pods: Vec<Arc<Pod>> = seeds.iter().enumerate().map(|(i, (phase, ready, cost, age, restarts))| {
            pod(&format!("p{i}"), *age, |p| {
                p["status"]["phase"] = json!(["Pending", "Unknown", "Running"][usize::from(*phase)]);
                p["status"]["conditions"][0]["status"] = json!(if *ready { "True" } else { "False" });
                p["metadata"]["annotations"] = json!({POD_DELETION_COST: cost.to_string()});
                p["status"]["containerStatuses"][0]["restartCount"] = json!(restarts);
            })
        }).collect();
        let mut turned = pods.clone();
        if !turned.is_empty() { let len = turned.len(); turned.rotate_left(turn % len); }
        prop_assert_eq!(order(pods), order(turned));
    }
}
