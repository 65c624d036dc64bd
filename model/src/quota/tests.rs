use super::amounts::Amounts;
use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

fn shown(amounts: &Amounts) -> Vec<String> {
    amounts.iter().map(|(name, q)| format!("{name}={q}")).collect()
}

fn used(group: &str, plural: &str, object: &Value) -> Vec<String> {
    shown(&Evaluator::of(group, plural).expect("counted").usage(object, 0))
}

fn pod(spec: Value) -> Value {
    json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec})
}

fn small() -> Value {
    pod(json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "100m", "e.com/gpu": "2"},
        "limits": {"memory": "1Mi"}}}]}))
}

#[test]
fn usage_of_every_kind() {
    assert_eq!(
        used("", "pods", &small()),
        [
            "count/pods=1",
            "cpu=100m",
            "limits.memory=1Mi",
            "pods=1",
            "requests.cpu=100m",
            "requests.e.com/gpu=2"
        ]
    );
    let mut done = small();
    done["status"] = json!({"phase": "Succeeded"});
    assert_eq!(used("", "pods", &done), ["count/pods=1"]);
    let service = json!({"spec": {"type": "LoadBalancer", "ports": [{"nodePort": 1}, {}]}});
    assert_eq!(
        used("", "services", &service),
        ["count/services=1", "services=1", "services.loadbalancers=1", "services.nodeports=2"]
    );
    let claim = json!({"spec": {"storageClassName": "gold", "resources": {"requests": {"storage": "2Gi"}}},
        "status": {"allocatedResources": {"storage": "3Gi"}}});
    assert_eq!(
        used("", "persistentvolumeclaims", &claim),
        [
            "count/persistentvolumeclaims=1",
            "gold.storageclass.storage.k8s.io/persistentvolumeclaims=1",
            "gold.storageclass.storage.k8s.io/requests.storage=3Gi",
            "persistentvolumeclaims=1",
            "requests.storage=3Gi"
        ]
    );
    assert_eq!(used("apps", "deployments", &json!({})), ["count/deployments.apps=1"]);
    assert_eq!(used("", "secrets", &json!({})), ["count/secrets=1", "secrets=1"]);
    assert!(Evaluator::of("", "events").is_none());
    let devices = json!({"spec": {"devices": {"requests": [
        {"exactly": {"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 2}},
        {"firstAvailable": [{"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 1},
            {"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 3},
            {"deviceClassName": "nic", "allocationMode": "All"}]}]}}});
    assert_eq!(
        used("resource.k8s.io", "resourceclaims", &devices),
        [
            "count/resourceclaims.resource.k8s.io=1",
            "gpu.deviceclass.resource.k8s.io/devices=5",
            "nic.deviceclass.resource.k8s.io/devices=32"
        ]
    );
}

#[test]
fn a_pod_counts_until_its_grace_is_over() {
    let pods = Evaluator::of("", "pods").expect("counted");
    let mut leaving = small();
    leaving["metadata"]["deletionTimestamp"] = "1970-01-01T00:01:40Z".into();
    leaving["metadata"]["deletionGracePeriodSeconds"] = 30.into();
    assert_eq!(pods.expires(&leaving), Some(130));
    assert!(pods.usage(&leaving, 130).contains_key("pods"));
    assert!(!pods.usage(&leaving, 131).contains_key("pods"));
    leaving["status"]["phase"] = "Failed".into();
    assert_eq!((pods.expires(&leaving), pods.expires(&small())), (None, None));
}

fn kinds() -> Vec<Evaluator> {
    [("", "pods"), ("", "services"), ("", "secrets"), ("apps", "deployments")]
        .iter()
        .filter_map(|(group, plural)| Evaluator::of(group, plural))
        .collect()
}

/// Counts a quota over these pods, and two objects of each other kind.
fn recounted(quota: &Value, pods: &[Value]) -> Option<Status> {
    let kinds = kinds();
    recount(quota, 0, kinds.iter().map(|kind| (kind, kind)), |kind| {
        if kind.needs_number_only() {
            Objects::Number(2)
        } else if kind.counts("pods") {
            Objects::All(pods.to_vec())
        } else {
            Objects::All(vec![json!({"spec": {"type": "NodePort", "ports": [{}]}}); 2])
        }
    })
}

#[test]
fn everything_is_counted_anew() {
    let hard = json!({"pods": "9", "requests.cpu": "1", "services.nodeports": "3", "secrets": "5",
        "count/deployments.apps": "5", "count/widgets.example.com": "1", "limits.cpu": "1"});
    let quota = json!({"spec": {"hard": hard}, "status": {"hard": {"pods": "1"},
        "used": {"pods": "7", "count/widgets.example.com": "1", "configmaps": "1"}}});
    let status = recounted(&quota, &[small(), small()]).expect("changed");
    assert_eq!(
        shown(&status.used),
        [
            "count/deployments.apps=2",
            "count/widgets.example.com=1",
            "limits.cpu=0",
            "pods=2",
            "requests.cpu=200m",
            "secrets=2",
            "services.nodeports=2"
        ]
    );
    assert_eq!(status.hard.len(), 7);
}

#[test]
fn a_raise_lowers_nothing() {
    let quota = json!({"spec": {"hard": {"pods": "9", "secrets": "5"}},
        "status": {"hard": {"pods": "9", "secrets": "5"}, "used": {"pods": "1", "secrets": "4"}}});
    let raised =
        recounted(&quota, &[small(), small()]).and_then(|status| status.raised(&quota)).expect("more pods");
    assert_eq!(shown(&raised.used), ["pods=2", "secrets=4"]);
    assert_eq!(recounted(&quota, &[small()]).and_then(|status| status.raised(&quota)), None);
}

#[test]
fn changes_that_a_quota_feels() {
    let pods = Evaluator::of("", "pods").expect("counted");
    let quota = json!({"spec": {"hard": {"pods": "9"}, "scopes": ["Terminating"]}});
    let mut other = small();
    other["metadata"]["labels"] = json!({"a": "b"});
    assert!(!pods.differs(&quota, &small(), &other, 0));
    let mut ended = small();
    ended["status"] = json!({"phase": "Failed"});
    assert!(pods.differs(&quota, &small(), &ended, 0));
    other["spec"]["activeDeadlineSeconds"] = 1.into();
    assert!(pods.differs(&quota, &small(), &other, 0));
}

#[test]
fn scopes_choose_pods_and_nothing_else() {
    let quota = |scope: &str| json!({"spec": {"hard": {"pods": "9", "secrets": "5", "services": "1"}, "scopes": [scope]}});
    let idle = pod(json!({"containers": [{"name": "c"}]}));
    let of = |scope: &str| {
        shown(&recounted(&quota(scope), &[small(), idle.clone(), idle.clone()]).expect("new").used)
    };
    assert_eq!(of("BestEffort"), ["pods=2", "secrets=0", "services=0"]);
    assert_eq!(of("NotBestEffort"), ["pods=1", "secrets=0", "services=0"]);
    assert_eq!(of("Terminating"), ["pods=0", "secrets=0", "services=0"]);
}

/// The quota with a status.
fn with(quota: &Value, status: &Status) -> Value {
    let map = |amounts: &Amounts| -> Value {
        amounts
            .iter()
            .map(|(name, q)| (name.clone(), Value::from(q.to_string())))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    let mut out = quota.clone();
    out["status"] = json!({"hard": map(&status.hard), "used": map(&status.used)});
    out
}

proptest! {
    /// What is counted once is not counted differently again, whatever the status said before.
    #[test]
    fn a_recount_settles(pods in 0usize..5, before in 0i64..9, cpu in 0i64..3000) {
        let pods: Vec<Value> = (0..pods)
            .map(|i| pod(json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": format!("{}m", cpu + i as i64)}}}]})))
            .collect();
        let quota = json!({"spec": {"hard": {"pods": "3", "requests.cpu": "1"}},
            "status": {"hard": {"pods": "3"}, "used": {"pods": before.to_string()}}});
        let status = recounted(&quota, &pods).expect("the limits differ");
        prop_assert_eq!(status.used["pods"].value(), i64::try_from(pods.len()).unwrap());
        prop_assert_eq!(recounted(&with(&quota, &status), &pods), None);
        let reversed: Vec<Value> = pods.iter().rev().cloned().collect();
        prop_assert_eq!(recounted(&with(&quota, &status), &reversed), None);
    }
}
