//! Priorities of pods, out of PriorityClasses.

use super::classes;
use crate::error::ApiError;
use crate::object::{bool_at, get, int_at, map_mut, meta, str_at};
use crate::server::Core;
use serde_json::Value;

const GROUP: &str = "scheduling.k8s.io";
const PLURAL: &str = "priorityclasses";

async fn defaults(core: &Core) -> Result<Vec<Value>, ApiError> {
    let mut all = classes::mentioning(core, GROUP, PLURAL, "\"globalDefault\":true").await?;
    all.retain(|class| bool_at(class, &["globalDefault"]));
    Ok(all)
}

/// Fills in priority and preemption policy of a new pod, and the class where there is a default one.
pub(super) async fn pod(core: &Core, pod: &mut Value) -> Result<(), ApiError> {
    let name = str_at(pod, &["spec", "priorityClassName"]).to_owned();
    let class = if name.is_empty() {
        // More than one class may say that it is the default: the lowest value counts.
        defaults(core).await?.into_iter().min_by_key(|class| int_at(class, &["value"]).unwrap_or_default())
    } else {
        let Some(class) = classes::find(core, GROUP, PLURAL, &name).await? else {
            return Err(super::forbidden(pod, &format!("no PriorityClass with name {name} was found")));
        };
        Some(class)
    };
    let (value, policy) = match &class {
        Some(class) => {
            (int_at(class, &["value"]).unwrap_or_default(), str_at(class, &["preemptionPolicy"]).to_owned())
        }
        None => (0, "PreemptLowerPriority".to_owned()),
    };
    if let Some(own) = int_at(pod, &["spec", "priority"]).filter(|own| *own != value) {
        let why = format!(
            "the integer value of priority ({own}) must not be provided in pod spec; priority admission \
             controller computed {value} from the given PriorityClass name"
        );
        return Err(super::forbidden(pod, &why));
    }
    let own = str_at(pod, &["spec", "preemptionPolicy"]);
    if !policy.is_empty() && get(pod, &["spec", "preemptionPolicy"]).is_some() && own != policy {
        let why = format!(
            "the string value of PreemptionPolicy ({own}) must not be provided in pod spec; priority \
             admission controller computed {policy} from the given PriorityClass name"
        );
        return Err(super::forbidden(pod, &why));
    }
    let spec = map_mut(pod, "spec");
    if let Some(class) = class.filter(|_| name.is_empty()) {
        spec.insert("priorityClassName".into(), meta(&class, "name").into());
    }
    spec.insert("priority".into(), value.into());
    if !policy.is_empty() {
        spec.insert("preemptionPolicy".into(), policy.into());
    }
    Ok(())
}

/// Only one class may be the default.
pub(super) async fn class(core: &Core, class: &Value) -> Result<(), ApiError> {
    if !bool_at(class, &["globalDefault"]) {
        return Ok(());
    }
    let name = meta(class, "name");
    let Some(other) = defaults(core).await?.into_iter().find(|other| meta(other, "name") != name) else {
        return Ok(());
    };
    let why = format!(
        "PriorityClass {} is already marked as default. Only one default can exist",
        meta(&other, "name")
    );
    Err(ApiError::forbidden(GROUP, PLURAL, name, &why))
}
