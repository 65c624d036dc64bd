//! Pod disruption budgets.

use kelp_model::names;
use serde_json::Value;

use super::selector::label_selector;
use super::{Errors, at, int, internal, invalid_each, meta, nonnegative, set, text};
use crate::error::FieldError;

/// A budget's spec.
pub(super) fn budget(object: &Value, errs: &mut Errors) {
    let spec = at(object, "spec");
    if set(spec, "minAvailable") && set(spec, "maxUnavailable") {
        let shown = internal::bad("PodDisruptionBudgetSpec", spec);
        errs.push(FieldError::invalid("spec", shown, "minAvailable and maxUnavailable cannot be both set"));
    }
    for field in ["minAvailable", "maxUnavailable"] {
        let value = at(spec, field);
        let path = format!("spec.{field}");
        match value {
            Value::Null => {}
            Value::String(percent) => {
                let bad = names::percent(percent);
                let fine = bad.is_empty();
                invalid_each(errs, &path, percent, bad);
                let number: i64 = percent.trim_end_matches('%').parse().unwrap_or_default();
                if fine && number > 100 {
                    errs.push(FieldError::invalid(path, percent, "must not be greater than 100%"));
                }
            }
            number => nonnegative(errs, &path, number.as_i64().unwrap_or_default()),
        }
    }
    label_selector(at(spec, "selector"), "spec.selector", errs);
    let policy = text(spec, "unhealthyPodEvictionPolicy");
    let supported = ["AlwaysAllow", "IfHealthyBudget"];
    if set(spec, "unhealthyPodEvictionPolicy") && !supported.contains(&policy) {
        errs.push(FieldError::not_supported("spec.unhealthyPodEvictionPolicy", policy, &supported));
    }
}

/// Numbers and conditions of a budget's status.
pub(super) fn status(object: &Value, errs: &mut Errors) {
    let status = at(object, "status");
    meta::conditions(status, "status.conditions", errs);
    for field in ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"] {
        nonnegative(errs, &format!("status.{field}"), int(status, field).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn budgets() {
        let check = |spec: Value| {
            let mut errs = Errors::new();
            budget(&json!({"spec": spec}), &mut errs);
            errs.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert!(check(json!({"minAvailable": "50%", "selector": {}})).is_empty());
        assert_eq!(
            check(json!({"minAvailable": -1, "unhealthyPodEvictionPolicy": "Never"})),
            [
                "spec.minAvailable: Invalid value: -1: must be greater than or equal to 0",
                "spec.unhealthyPodEvictionPolicy: Unsupported value: \"Never\": supported values: \"AlwaysAllow\", \"IfHealthyBudget\"",
            ]
        );
        assert_eq!(
            check(json!({"maxUnavailable": "101%"})),
            ["spec.maxUnavailable: Invalid value: \"101%\": must not be greater than 100%"]
        );
        assert_eq!(
            check(json!({"minAvailable": 1, "maxUnavailable": 1})),
            [
                "spec: Invalid value: {\"MinAvailable\":1,\"Selector\":null,\"MaxUnavailable\":1,\"UnhealthyPodEvictionPolicy\":null}: minAvailable and maxUnavailable cannot be both set"
            ]
        );
    }
}
