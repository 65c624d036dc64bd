//! Built-in admission: changes and checks after authorization that need more than the object.

use crate::error::ApiError;
use crate::object::{list_at, map_mut, str_at};
use crate::registry::Resource;
use crate::server::Core;
use serde_json::{Value, json};

/// Runs at creation, after defaults.
pub(crate) async fn create(_core: &Core, resource: &Resource, object: &mut Value) -> Result<(), ApiError> {
    if resource.group.is_empty() && resource.kind == "Pod" {
        pod(object);
    }
    Ok(())
}

fn pod(object: &mut Value) {
    priority(object);
    default_tolerations(object);
    let spec = map_mut(object, "spec");
    let account = spec.get("serviceAccountName").and_then(Value::as_str).unwrap_or_default();
    let account = if account.is_empty() { "default".to_owned() } else { account.to_owned() };
    spec.insert("serviceAccountName".into(), account.clone().into());
    // The old name of the field is kept for old clients.
    spec.insert("serviceAccount".into(), account.into());
}

/// The built-in priority classes; others are objects of a later kind.
fn priority(object: &mut Value) {
    let value = match str_at(object, &["spec", "priorityClassName"]) {
        "system-node-critical" => 2_000_001_000,
        "system-cluster-critical" => 2_000_000_000,
        _ => 0,
    };
    let spec = map_mut(object, "spec");
    spec.insert("priority".into(), value.into());
    spec.entry("preemptionPolicy").or_insert_with(|| "PreemptLowerPriority".into());
}

/// A pod stays five minutes on a node that is not ready or not reachable.
fn default_tolerations(object: &mut Value) {
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerated = list_at(object, &["spec", "tolerations"]).iter().any(|t| {
            let own = str_at(t, &["key"]);
            let effect = str_at(t, &["effect"]);
            (own == key || own.is_empty()) && (effect.is_empty() || effect == "NoExecute")
        });
        if !tolerated {
            let spec = map_mut(object, "spec");
            let list = spec.entry("tolerations").or_insert_with(|| json!([]));
            if let Some(list) = list.as_array_mut() {
                list.push(json!({"key": key, "operator": "Exists", "effect": "NoExecute",
                    "tolerationSeconds": 300}));
            }
        }
    }
}
