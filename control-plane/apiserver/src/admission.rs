//! Built-in admission: changes and checks after authorization that need more than the object.

use crate::error::ApiError;
use crate::object::{list_at, map_mut, meta, str_at};
use crate::registry::Resource;
use crate::server::Core;
use serde_json::{Value, json};
use std::time::Duration;

/// How long a new pod waits for the default ServiceAccount of its namespace, which a controller makes.
const ACCOUNT_WAIT: Duration = Duration::from_secs(1);

/// Runs at creation, after defaults.
pub(crate) async fn create(core: &Core, resource: &Resource, object: &mut Value) -> Result<(), ApiError> {
    match (resource.group, resource.kind) {
        ("", "Pod") => {
            service_account(core, object).await?;
            priority(object)?;
            default_tolerations(object);
        }
        ("", "Node") => not_ready(object),
        _ => {}
    }
    Ok(())
}

fn forbidden(pod: &Value, why: &str) -> ApiError {
    ApiError::forbidden("", "pods", meta(pod, "name"), why)
}

/// A new node takes no pods until it said that it is ready.
fn not_ready(object: &mut Value) {
    let key = "node.kubernetes.io/not-ready";
    let present = list_at(object, &["spec", "taints"])
        .iter()
        .any(|t| str_at(t, &["key"]) == key && str_at(t, &["effect"]) == "NoSchedule");
    if present {
        return;
    }
    let taints = map_mut(object, "spec").entry("taints").or_insert_with(|| json!([]));
    if let Some(list) = taints.as_array_mut() {
        list.push(json!({"key": key, "effect": "NoSchedule"}));
    }
}

/// Every pod runs as a ServiceAccount that exists.
async fn service_account(core: &Core, object: &mut Value) -> Result<(), ApiError> {
    let spec = map_mut(object, "spec");
    let account = spec.get("serviceAccountName").and_then(Value::as_str).unwrap_or_default();
    let account = if account.is_empty() { "default".to_owned() } else { account.to_owned() };
    spec.insert("serviceAccountName".into(), account.clone().into());
    // The old name of the field is kept for old clients.
    spec.insert("serviceAccount".into(), account.clone().into());
    let namespace = meta(object, "namespace");
    if !account_exists(core, namespace, &account).await? {
        let why = format!(
            "error looking up service account {namespace}/{account}: serviceaccount {} not found",
            crate::error::quote(&account)
        );
        return Err(forbidden(object, &why));
    }
    Ok(())
}

async fn account_exists(core: &Core, namespace: &str, name: &str) -> Result<bool, ApiError> {
    let Some(accounts) = core.registry.find("", "v1", "serviceaccounts") else { return Ok(true) };
    let cache = core.cache(accounts);
    cache.wait_loaded().await?;
    if cache.get(namespace, name).is_some() {
        return Ok(true);
    }
    cache.wait_fresh().await?;
    if name != "default" {
        return Ok(cache.get(namespace, name).is_some());
    }
    let mut changes = cache.changes();
    let appears = async {
        loop {
            changes.mark_unchanged();
            if cache.get(namespace, name).is_some() {
                return true;
            }
            if changes.changed().await.is_err() {
                return false;
            }
        }
    };
    Ok(tokio::time::timeout(ACCOUNT_WAIT, appears).await.unwrap_or(false))
}

/// The built-in priority classes; others would be objects of a kind that is not served yet.
fn priority(object: &mut Value) -> Result<(), ApiError> {
    let class = str_at(object, &["spec", "priorityClassName"]);
    let value = match class {
        "" => 0,
        "system-node-critical" => 2_000_001_000,
        "system-cluster-critical" => 2_000_000_000,
        other => return Err(forbidden(object, &format!("no PriorityClass with name {other} was found"))),
    };
    let spec = map_mut(object, "spec");
    spec.insert("priority".into(), value.into());
    spec.entry("preemptionPolicy").or_insert_with(|| "PreemptLowerPriority".into());
    Ok(())
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
