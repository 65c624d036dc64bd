//! What a RuntimeClass adds to pods: overhead, node selector, tolerations.

use super::classes;
use crate::error::{ApiError, quote};
use crate::object::{get, int_at, list_at, map_mut, str_at};
use crate::server::Core;
use kelp_model::quantity::Quantity;
use serde_json::{Map, Value};

async fn class_of(core: &Core, pod: &Value) -> Result<Option<Value>, ApiError> {
    let Some(name) = get(pod, &["spec", "runtimeClassName"]).and_then(Value::as_str) else { return Ok(None) };
    let found = classes::find(core, "node.k8s.io", "runtimeclasses", name).await?;
    let missing = || super::forbidden(pod, &format!("pod rejected: RuntimeClass {} not found", quote(name)));
    found.map(Some).ok_or_else(missing)
}

fn quantities(value: Option<&Value>) -> Map<String, Value> {
    value.and_then(Value::as_object).cloned().unwrap_or_default()
}

/// Whether two lists of resources ask for the same.
fn same_quantities(a: &Map<String, Value>, b: &Map<String, Value>) -> bool {
    let parse = |v: &Value| Quantity::parse(v.as_str().unwrap_or_default()).ok();
    a.len() == b.len() && a.iter().all(|(k, v)| b.get(k).is_some_and(|other| parse(v) == parse(other)))
}

const DIFFERENT: &str = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";

/// Fills in what the class of a new pod says.
pub(super) async fn mutate(core: &Core, pod: &mut Value) -> Result<(), ApiError> {
    let Some(class) = class_of(core, pod).await? else { return Ok(()) };
    if let Some(overhead) = get(&class, &["overhead"]) {
        let fixed = quantities(get(overhead, &["podFixed"]));
        let own = get(pod, &["spec", "overhead"]);
        if own.is_some() && !same_quantities(&quantities(own), &fixed) {
            return Err(super::forbidden(pod, DIFFERENT));
        }
        map_mut(pod, "spec").insert("overhead".into(), fixed.into());
    }
    let Some(scheduling) = get(&class, &["scheduling"]) else { return Ok(()) };
    node_selector(pod, scheduling)?;
    let merged = merge(list_at(pod, &["spec", "tolerations"]), list_at(scheduling, &["tolerations"]));
    if !merged.is_empty() {
        map_mut(pod, "spec").insert("tolerations".into(), merged.into());
    }
    Ok(())
}

fn node_selector(pod: &mut Value, scheduling: &Value) -> Result<(), ApiError> {
    let wanted = quantities(get(scheduling, &["nodeSelector"]));
    if wanted.is_empty() {
        return Ok(());
    }
    let mut own = quantities(get(pod, &["spec", "nodeSelector"]));
    for (key, value) in wanted {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        if let Some(other) = own.get(&key).filter(|other| **other != value) {
            let why = format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                text(&value),
                text(other)
            );
            return Err(super::forbidden(pod, &why));
        }
        own.insert(key, value);
    }
    map_mut(pod, "spec").insert("nodeSelector".into(), own.into());
    Ok(())
}

/// Whether the first toleration tolerates all that the second does.
fn covers(first: &Value, second: &Value) -> bool {
    let text = |t: &Value, field: &str| str_at(t, &[field]).to_owned();
    if first == second {
        return true;
    }
    let (key, operator) = (text(first, "key"), text(first, "operator"));
    let everything = key.is_empty() && operator == "Exists";
    if key != text(second, "key") && !everything {
        return false;
    }
    let effect = text(first, "effect");
    if !effect.is_empty() && effect != text(second, "effect") {
        return false;
    }
    if effect == "NoExecute"
        && let Some(seconds) = int_at(first, &["tolerationSeconds"])
        && int_at(second, &["tolerationSeconds"]).is_none_or(|other| other > seconds)
    {
        return false;
    }
    match operator.as_str() {
        "Equal" | "" => text(second, "operator") == "Equal" && text(first, "value") == text(second, "value"),
        other => other == "Exists",
    }
}

/// All tolerations but those that others cover.
fn merge(first: &[Value], second: &[Value]) -> Vec<Value> {
    let all: Vec<&Value> = first.iter().chain(second).collect();
    let mut merged: Vec<Value> = Vec::new();
    for (i, toleration) in all.iter().enumerate() {
        let later = all.iter().skip(i + 1).any(|other| other != toleration && covers(other, toleration));
        if !later && !merged.iter().any(|kept| covers(kept, toleration)) {
            merged.push((*toleration).clone());
        }
    }
    merged
}

/// Checks the overhead of a new pod once nothing changes it any more.
pub(super) async fn validate(core: &Core, pod: &Value) -> Result<(), ApiError> {
    let own = quantities(get(pod, &["spec", "overhead"]));
    let class = class_of(core, pod).await?;
    match class.as_ref().and_then(|class| get(class, &["overhead"])) {
        Some(overhead) if !same_quantities(&own, &quantities(get(overhead, &["podFixed"]))) => {
            Err(super::forbidden(pod, DIFFERENT))
        }
        None if !own.is_empty() => {
            let why = "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";
            Err(super::forbidden(pod, why))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tolerations_merge_without_what_others_cover() {
        let a = json!({"key": "a", "operator": "Exists"});
        let narrow = json!({"key": "a", "operator": "Equal", "value": "x", "effect": "NoSchedule"});
        let all = json!({"operator": "Exists"});
        let timed = json!({"key": "b", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5});
        let longer = json!({"key": "b", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 9});
        let check = |first: Vec<&Value>, second: Vec<&Value>, want: Vec<&Value>| {
            let own = |all: Vec<&Value>| all.into_iter().cloned().collect::<Vec<_>>();
            assert_eq!(merge(&own(first), &own(second)), own(want));
        };
        check(vec![&narrow], vec![&a], vec![&a]);
        check(vec![&a, &a], vec![], vec![&a]);
        check(vec![&timed], vec![&longer], vec![&longer]);
        check(vec![&a, &narrow, &timed, &longer], vec![&all], vec![&all]);
    }

    #[test]
    fn quantities_are_compared_by_value() {
        let map = |v: Value| v.as_object().cloned().unwrap_or_default();
        assert!(same_quantities(&map(json!({"cpu": "1000m"})), &map(json!({"cpu": "1"}))));
        assert!(!same_quantities(&map(json!({"cpu": "1"})), &map(json!({"memory": "1"}))));
    }
}
