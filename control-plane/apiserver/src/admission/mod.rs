//! Built-in admission: changes and checks after authorization that need more than the object.

mod account;
pub(crate) mod certificates;
mod classes;
mod limits;
pub(crate) mod node;
mod priority;
mod quota;
mod runtime;

use crate::auth::UserInfo;
use crate::error::ApiError;
use crate::object::{list_at, map_mut, meta, str_at};
use crate::registry::Resource;
use crate::server::Core;
use serde_json::{Value, json};

/// Runs at creation, after defaults and before the kind's hooks: fills in, and refuses what is hopeless.
pub(crate) async fn create(
    core: &Core,
    user: &UserInfo,
    resource: &Resource,
    object: &mut Value,
) -> Result<(), ApiError> {
    node::create(core, user, resource, object).await?;
    match (resource.group(), resource.kind()) {
        ("", "Pod") => {
            limits::mutate(core, resource, object).await?;
            account::admit(core, object).await?;
            priority::pod(core, object).await?;
            default_tolerations(object);
            runtime::mutate(core, object).await?;
        }
        ("", "Node") => not_ready(object),
        ("certificates.k8s.io", _) => crate::registry::certificates::set_requester(user, object),
        ("", "PersistentVolume") => crate::registry::protect(resource.kind(), object),
        ("", "PersistentVolumeClaim") => {
            classes::default_storage_class(core, object).await?;
            crate::registry::protect(resource.kind(), object);
        }
        ("networking.k8s.io", "Ingress") => classes::default_ingress_class(core, object).await?,
        _ => {}
    }
    Ok(())
}

/// Runs at an update of the object itself, before it is checked: fills in what creation fills in, for kinds that may lose
/// it by an update.
pub(crate) fn update(resource: &Resource, object: &mut Value) {
    if (resource.group(), resource.kind()) == ("", "Pod") {
        default_tolerations(object);
    }
}

/// Runs before a valid object is written: checks that do not change it. `old` is the stored object at an update.
pub(crate) async fn validate(
    core: &Core,
    resource: &Resource,
    subresource: &str,
    object: &Value,
    old: Option<&Value>,
    dry: bool,
) -> Result<(), ApiError> {
    limits::validate(core, resource, subresource, object, old).await?;
    match (resource.group(), resource.kind(), old) {
        _ if !subresource.is_empty() => {}
        ("", "Pod", None) => runtime::validate(core, object).await?,
        ("", "PersistentVolumeClaim", Some(old)) => classes::claim_growth(core, object, old).await?,
        ("scheduling.k8s.io", "PriorityClass", _) => priority::class(core, object).await?,
        _ => {}
    }
    // The last of all, as it counts what nothing else refuses.
    quota::charge(core, &quota::Request { resource, subresource, object, old, dry }).await
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
