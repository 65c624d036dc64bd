use super::*;
use crate::registry::Registry;
use serde_json::json;
use std::sync::Arc;

fn row(plural: &str) -> Arc<Resource> {
    Registry::builtin().find("", "v1", plural).expect("row").clone()
}

fn pod(spec: Value) -> Value {
    json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec})
}

fn small() -> Value {
    pod(json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "100m", "e.com/gpu": "2"},
        "limits": {"memory": "1Mi"}}}]}))
}

fn check(quota: Value, object: &Value, old: Option<&Value>) -> Result<Vec<String>, String> {
    let row = row(if object["spec"].get("containers").is_some() { "pods" } else { "services" });
    let evaluator = Evaluator::of(row.group(), row.plural()).expect("counted");
    let request = Request { resource: &row, subresource: "", object, old, dry: false };
    let stored = Stored::for_test(quota, 7);
    match counted(&evaluator, &request, &[stored]) {
        Ok(changed) => Ok(changed
            .iter()
            .flat_map(|(_, used)| used.iter().map(|(name, q)| format!("{name}={q}")))
            .collect()),
        Err(error) => Err(error.to_status()["message"].as_str().unwrap_or_default().to_owned()),
    }
}

fn quota(hard: Value, used: Value) -> Value {
    json!({"metadata": {"name": "q"}, "status": {"hard": hard, "used": used}})
}

#[test]
fn counted_and_refused() {
    let hard = json!({"pods": "2", "requests.cpu": "1", "secrets": "1"});
    let ok = check(
        quota(hard.clone(), json!({"pods": "1", "requests.cpu": "500m", "secrets": "0"})),
        &small(),
        None,
    );
    assert_eq!(ok, Ok(vec!["pods=2".into(), "requests.cpu=600m".into(), "secrets=0".into()]));
    let full = check(
        quota(hard.clone(), json!({"pods": "2", "requests.cpu": "950m", "secrets": "0"})),
        &small(),
        None,
    );
    assert_eq!(
        full,
        Err("pods \"p\" is forbidden: exceeded quota: q, requested: pods=1,requests.cpu=100m, used: \
             pods=2,requests.cpu=950m, limited: pods=2,requests.cpu=1"
            .into())
    );
    let unknown = check(quota(hard, json!({"pods": "1"})), &small(), None);
    assert_eq!(
        unknown,
        Err("pods \"p\" is forbidden: status unknown for quota: q, resources: pods,requests.cpu".into())
    );
    let silent = pod(json!({"containers": [{"name": "b"}], "initContainers": [{"name": "a"}]}));
    let silent = check(quota(json!({"limits.memory": "1Gi", "requests.cpu": "1"}), json!({})), &silent, None);
    assert_eq!(
        silent,
        Err("pods \"p\" is forbidden: failed quota: q: must specify limits.memory for: a,b; requests.cpu for: a,b"
            .into())
    );
    assert_eq!(
        check(quota(json!({"secrets": "0"}), json!({"secrets": "0"})), &small(), None),
        Ok(Vec::new())
    );
}

#[test]
fn scopes() {
    let scoped = |scopes: Value, selector: Value| {
        let mut quota = quota(json!({"pods": "5"}), json!({"pods": "0"}));
        quota["spec"] = json!({"scopes": scopes, "scopeSelector": {"matchExpressions": selector}});
        quota
    };
    let counts = |quota: Value, pod: &Value| check(quota, pod, None).map(|c| !c.is_empty());
    let mut classed = small();
    classed["spec"]["priorityClassName"] = "high".into();
    let best = pod(json!({"containers": [{"name": "c"}], "activeDeadlineSeconds": 5}));
    for (scope, small_in, best_in) in [
        ("BestEffort", false, true),
        ("NotBestEffort", true, false),
        ("Terminating", false, true),
        ("NotTerminating", true, false),
    ] {
        assert_eq!(counts(scoped(json!([scope]), json!([])), &small()), Ok(small_in), "{scope}");
        assert_eq!(counts(scoped(json!([scope]), json!([])), &best), Ok(best_in), "{scope}");
    }
    let class = |operator: &str, values: Value| {
        scoped(json!([]), json!([{"scopeName": "PriorityClass", "operator": operator, "values": values}]))
    };
    assert_eq!(counts(class("In", json!(["high"])), &classed), Ok(true));
    assert_eq!(counts(class("In", json!(["low"])), &classed), Ok(false));
    assert_eq!(counts(class("Exists", json!([])), &small()), Ok(false));
    assert_eq!(counts(class("NotIn", json!(["high"])), &small()), Ok(true));
    let mut far = small();
    far["spec"]["affinity"] = json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
        [{"topologyKey": "k", "namespaceSelector": {}}]}});
    let crossing = || scoped(json!(["CrossNamespacePodAffinity"]), json!([]));
    assert_eq!(counts(crossing(), &far), Ok(true));
    assert_eq!(counts(crossing(), &small()), Ok(false));
}

#[test]
fn an_update_pays_the_difference() {
    let service = |kind: &str, ports: usize| json!({"metadata": {"name": "s"}, "spec": {"type": kind, "ports": vec![json!({"port": 1}); ports]}});
    let quota = || {
        quota(
            json!({"services": "1", "services.nodeports": "3"}),
            json!({"services": "1", "services.nodeports": "1"}),
        )
    };
    let more = check(quota(), &service("NodePort", 3), Some(&service("NodePort", 1)));
    assert_eq!(more, Ok(vec!["services=1".into(), "services.nodeports=3".into()]));
    assert_eq!(check(quota(), &service("NodePort", 1), Some(&service("NodePort", 3))), Ok(Vec::new()));
    let beyond = check(quota(), &service("NodePort", 4), Some(&service("NodePort", 1)));
    assert_eq!(
        beyond,
        Err("services \"s\" is forbidden: exceeded quota: q, requested: services.nodeports=3, used: \
             services.nodeports=1, limited: services.nodeports=3"
            .into())
    );
}

#[test]
fn a_deadline_moves_a_pod_between_scopes() {
    let scoped = |scope: &str| {
        let mut quota = quota(json!({"pods": "5"}), json!({"pods": "1"}));
        quota["spec"] = json!({"scopes": [scope]});
        quota
    };
    let old = small();
    let mut new = small();
    new["spec"]["activeDeadlineSeconds"] = 5.into();
    assert_eq!(check(scoped("Terminating"), &new, Some(&old)), Ok(vec!["pods=2".into()]));
    assert_eq!(check(scoped("NotTerminating"), &new, Some(&old)), Ok(Vec::new()));
}
