//! Priority classes and runtime classes.

use kelp_model::names;
use serde_json::{Value, json};

use super::{Errors, at, flag, immutable, int, invalid_each, list, meta, podspec, resources, set, text};
use crate::error::FieldError;

/// Priorities above this are the system's.
const HIGHEST_USER_PRIORITY: i64 = 1_000_000_000;

/// The classes that the system needs, with their values.
pub(crate) const SYSTEM_CLASSES: [(&str, i64); 2] =
    [("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];

/// Why a class with a reserved name is none of the system's.
fn not_systems(name: &str, value: i64, default: bool) -> Option<String> {
    let Some((_, known)) = SYSTEM_CLASSES.iter().find(|(known, _)| *known == name) else {
        return Some(format!("{name} is not a known system priority class"));
    };
    if value != *known {
        return Some(format!("value of {name} PriorityClass must be {known}"));
    }
    default.then(|| format!("globalDefault of {name} PriorityClass must be false"))
}

pub(super) fn priority_class(object: &Value, errs: &mut Errors) {
    let name = text(at(object, "metadata"), "name");
    let value = int(object, "value").unwrap_or_default();
    if name.starts_with("system-") {
        if let Some(why) = not_systems(name, value, flag(object, "globalDefault")) {
            let detail = format!(
                "priority class names with 'system-' prefix are reserved for system use only. error: {why}"
            );
            errs.push(FieldError::forbidden("metadata.name", detail));
        }
    } else if value > HIGHEST_USER_PRIORITY {
        let detail = format!("maximum allowed value of a user defined priority is {HIGHEST_USER_PRIORITY}");
        errs.push(FieldError::forbidden("value", detail));
    }
    if set(object, "preemptionPolicy") {
        let supported = ["PreemptLowerPriority", "Never"];
        super::one_of(errs, "preemptionPolicy", text(object, "preemptionPolicy"), &supported);
    }
}

pub(super) fn priority_class_update(new: &Value, old: &Value, errs: &mut Errors) {
    if int(new, "value") != int(old, "value") {
        errs.push(FieldError::forbidden("value", "may not be changed in an update."));
    }
    immutable(errs, "preemptionPolicy", at(new, "preemptionPolicy"), at(old, "preemptionPolicy"));
}

pub(super) fn runtime_class(object: &Value, errs: &mut Errors) {
    let handler = text(object, "handler");
    invalid_each(errs, "handler", handler, names::dns1123_label(handler));
    if set(object, "overhead") {
        let limits = json!({"limits": at(at(object, "overhead"), "podFixed")});
        resources::requirements(&limits, &[], "overhead", errs);
    }
    let scheduling = at(object, "scheduling");
    if scheduling.is_null() {
        return;
    }
    meta::labels(scheduling, "nodeSelector", "scheduling.nodeSelector", errs);
    // Upstream names the field twice here.
    podspec::tolerations(scheduling, "scheduling.tolerations.tolerations", errs);
    let all = list(scheduling, "tolerations");
    for (i, toleration) in all.iter().enumerate() {
        if all.get(..i).is_some_and(|before| before.contains(toleration)) {
            errs.push(FieldError::duplicate(format!("scheduling.tolerations[{i}]"), toleration));
        }
    }
}

pub(super) fn runtime_class_update(new: &Value, old: &Value, errs: &mut Errors) {
    immutable(errs, "handler", at(new, "handler"), at(old, "handler"));
}
