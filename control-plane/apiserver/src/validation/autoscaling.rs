//! Horizontal pod autoscalers, in the form that is stored.

use kelp_model::names;
use kelp_model::quantity::Quantity;
use serde_json::Value;

use super::{Errors, at, int, invalid_each, list, nonnegative, resources, set, text};
use crate::error::FieldError;

const MAX_WINDOW: i64 = 3600;
const MAX_PERIOD: i64 = 1800;
const ABOVE_ZERO: &str = "must be greater than zero";

/// A new autoscaler, or one that changes.
pub(super) fn autoscaler(object: &Value, old: Option<&Value>, errs: &mut Errors) {
    let stored = crate::registry::autoscaler_stored(object);
    let spec = at(&stored, "spec");
    let zero_before = old.is_some_and(|old| int(at(old, "spec"), "minReplicas") == Some(0));
    let least = i64::from(!zero_before);
    let (min, max) = (int(spec, "minReplicas"), int(spec, "maxReplicas").unwrap_or_default());
    if let Some(min) = min.filter(|min| *min < least) {
        let detail = format!("must be greater than or equal to {least}");
        errs.push(FieldError::invalid("spec.minReplicas", min, detail));
    }
    if max < 1 {
        errs.push(FieldError::invalid("spec.maxReplicas", max, "must be greater than 0"));
    }
    if min.is_some_and(|min| max < min) {
        errs.push(FieldError::invalid(
            "spec.maxReplicas",
            max,
            "must be greater than or equal to `minReplicas`",
        ));
    }
    reference(at(spec, "scaleTargetRef"), "spec.scaleTargetRef", errs);
    let metrics = list(spec, "metrics");
    for (i, item) in metrics.iter().enumerate() {
        metric(item, &format!("spec.metrics[{i}]"), errs);
    }
    let scales_from_zero = metrics.iter().any(|m| matches!(text(m, "type"), "Object" | "External"));
    if min == Some(0) && !scales_from_zero {
        let detail =
            "must specify at least one Object or External metric to support scaling to zero replicas";
        errs.push(FieldError::forbidden("spec.metrics", detail));
    }
    for direction in ["scaleUp", "scaleDown"] {
        let value = at(at(spec, "behavior"), direction);
        if !value.is_null() {
            rules(value, &format!("spec.behavior.{direction}"), errs);
        }
    }
}

/// Both numbers of a status.
pub(super) fn status(object: &Value, errs: &mut Errors) {
    for field in ["currentReplicas", "desiredReplicas"] {
        nonnegative(errs, &format!("status.{field}"), int(at(object, "status"), field).unwrap_or_default());
    }
}

fn reference(value: &Value, path: &str, errs: &mut Errors) {
    // Upstream reads the version apart from its group.
    let api_version = text(value, "apiVersion");
    if api_version.matches('/').count() > 1 {
        let detail = format!("unexpected GroupVersion string: {api_version}");
        errs.push(FieldError::invalid(format!("{path}.apiVersion"), api_version, detail));
    }
    for field in ["kind", "name"] {
        let path = format!("{path}.{field}");
        match text(value, field) {
            "" => errs.push(FieldError::required(path, "")),
            name => invalid_each(errs, &path, name, names::path_segment_name(name)),
        }
    }
}

fn rules(value: &Value, path: &str, errs: &mut Errors) {
    if let Some(seconds) = int(value, "stabilizationWindowSeconds") {
        let path = format!("{path}.stabilizationWindowSeconds");
        if seconds < 0 {
            errs.push(FieldError::invalid(path.as_str(), seconds, "must be greater than or equal to zero"));
        }
        if seconds > MAX_WINDOW {
            let detail = format!("must be less than or equal to {MAX_WINDOW}");
            errs.push(FieldError::invalid(path, seconds, detail));
        }
    }
    let select = text(value, "selectPolicy");
    let supported = ["Disabled", "Max", "Min"];
    if set(value, "selectPolicy") && !supported.contains(&select) {
        errs.push(FieldError::not_supported(format!("{path}.selectPolicy"), select, &supported));
    }
    let policies = list(value, "policies");
    if policies.is_empty() {
        errs.push(FieldError::required(format!("{path}.policies"), "must specify at least one Policy"));
    }
    for (i, policy) in policies.iter().enumerate() {
        let path = format!("{path}.policies[{i}]");
        let kind = text(policy, "type");
        if !matches!(kind, "Pods" | "Percent") {
            errs.push(FieldError::not_supported(format!("{path}.type"), kind, &["Percent", "Pods"]));
        }
        for field in ["value", "periodSeconds"] {
            let number = int(policy, field).unwrap_or_default();
            if number <= 0 {
                errs.push(FieldError::invalid(format!("{path}.{field}"), number, ABOVE_ZERO));
            }
        }
        if let Some(period) = int(policy, "periodSeconds").filter(|p| *p > MAX_PERIOD) {
            let detail = format!("must be less than or equal to {MAX_PERIOD}");
            errs.push(FieldError::invalid(format!("{path}.periodSeconds"), period, detail));
        }
    }
    if let Some(tolerance) = at(value, "tolerance").as_str().and_then(|t| Quantity::parse(t).ok())
        && tolerance.signum() < 0
    {
        let path = format!("{path}.tolerance");
        errs.push(FieldError::invalid(path, tolerance.to_string(), "must be greater than or equal to 0"));
    }
}

/// Types of metrics with the fields that hold their sources, in the order upstream looks at them.
const SOURCES: [(&str, &str); 5] = [
    ("Object", "object"),
    ("External", "external"),
    ("Pods", "pods"),
    ("Resource", "resource"),
    ("ContainerResource", "containerResource"),
];

fn metric(value: &Value, path: &str, errs: &mut Errors) {
    const TYPES: [&str; 5] = ["ContainerResource", "External", "Object", "Pods", "Resource"];
    let kind = text(value, "type");
    let at_type = format!("{path}.type");
    if kind.is_empty() {
        errs.push(FieldError::required(at_type.as_str(), "must specify a metric source type"));
    }
    let known = TYPES.contains(&kind);
    if !known {
        errs.push(FieldError::not_supported(at_type.as_str(), kind, &TYPES));
    }
    let present: Vec<&str> = SOURCES.iter().map(|(_, field)| *field).filter(|f| set(value, f)).collect();
    if let Some(field) = present.first() {
        source(field, at(value, field), &format!("{path}.{field}"), errs);
    }
    let expected = SOURCES.iter().find(|(name, _)| *name == kind).map(|(_, field)| *field);
    match expected {
        Some(field) if !set(value, field) => {
            let detail = "must populate information for the given metric source";
            errs.push(FieldError::required(format!("{path}.{field}"), detail));
        }
        None => errs.push(FieldError::not_supported(at_type, kind, &TYPES)),
        Some(_) => {}
    }
    if present.len() != 1 {
        for field in present.into_iter().filter(|f| Some(*f) != expected) {
            let detail = "must populate the given metric source only";
            errs.push(FieldError::forbidden(format!("{path}.{field}"), detail));
        }
    }
}

fn source(field: &str, value: &Value, path: &str, errs: &mut Errors) {
    let goal = at(value, "target");
    let has = |name: &str| set(goal, name);
    match field {
        "object" => {
            reference(at(value, "describedObject"), &format!("{path}.describedObject"), errs);
            identifier(value, path, errs);
            target(goal, path, errs);
            if !has("value") && !has("averageValue") {
                let detail = "must set either a target value or averageValue";
                errs.push(FieldError::required(format!("{path}.target.averageValue"), detail));
            }
        }
        "external" => {
            identifier(value, path, errs);
            target(goal, path, errs);
            if !has("value") && !has("averageValue") {
                let detail = "must set either a target value for metric or a per-pod target";
                errs.push(FieldError::required(format!("{path}.target.averageValue"), detail));
            }
            if has("value") && has("averageValue") {
                let detail = "may not set both a target value for metric and a per-pod target";
                errs.push(FieldError::forbidden(format!("{path}.target.value"), detail));
            }
        }
        "pods" => {
            identifier(value, path, errs);
            target(goal, path, errs);
            if !has("averageValue") {
                let detail = "must specify a positive target averageValue";
                errs.push(FieldError::required(format!("{path}.target.averageValue"), detail));
            }
        }
        _ => {
            let name = text(value, "name");
            if name.is_empty() {
                let detail = "must specify a resource name";
                errs.push(FieldError::required(format!("{path}.name"), detail));
            } else if field == "containerResource" {
                resources::container_resource_name(name, &format!("{path}.name"), errs);
            }
            if field == "containerResource" {
                let container = text(value, "container");
                let path = format!("{path}.container");
                if container.is_empty() {
                    errs.push(FieldError::required(path, "must specify a container"));
                } else {
                    invalid_each(errs, &path, container, names::dns1123_label(container));
                }
            }
            target(goal, path, errs);
            if !has("averageUtilization") && !has("averageValue") {
                let detail = "must set either a target raw value or a target utilization";
                errs.push(FieldError::required(format!("{path}.target.averageUtilization"), detail));
            }
            if has("averageUtilization") && has("averageValue") {
                let detail = "may not set both a target raw value and a target utilization";
                errs.push(FieldError::forbidden(format!("{path}.target.averageValue"), detail));
            }
        }
    }
}

fn identifier(value: &Value, path: &str, errs: &mut Errors) {
    let path = format!("{path}.metric.name");
    match text(at(value, "metric"), "name") {
        "" => errs.push(FieldError::required(path, "must specify a metric name")),
        name => invalid_each(errs, &path, name, names::path_segment_name(name)),
    }
}

fn target(value: &Value, path: &str, errs: &mut Errors) {
    let path = format!("{path}.target");
    let kind = text(value, "type");
    if kind.is_empty() {
        errs.push(FieldError::required(format!("{path}.type"), "must specify a metric target type"));
    }
    if !matches!(kind, "Utilization" | "Value" | "AverageValue") {
        let detail = "must be either Utilization, Value, or AverageValue";
        errs.push(FieldError::invalid(format!("{path}.type"), kind, detail));
    }
    for field in ["value", "averageValue"] {
        if let Some(amount) = at(value, field).as_str().and_then(|t| Quantity::parse(t).ok())
            && amount.signum() != 1
        {
            errs.push(FieldError::invalid(format!("{path}.{field}"), amount.to_string(), "must be positive"));
        }
    }
    if let Some(percent) = int(value, "averageUtilization").filter(|p| *p < 1) {
        errs.push(FieldError::invalid(
            format!("{path}.averageUtilization"),
            percent,
            "must be greater than 0",
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(spec: Value) -> Vec<String> {
        let mut whole = json!({"scaleTargetRef": {"kind": "Deployment", "name": "w"}, "maxReplicas": 3, "minReplicas": 1});
        for (key, value) in spec.as_object().expect("object") {
            whole[key] = value.clone();
        }
        let mut errs = Errors::new();
        autoscaler(&json!({"apiVersion": "autoscaling/v2", "spec": whole}), None, &mut errs);
        errs.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn numbers_and_references() {
        assert!(check(json!({})).is_empty());
        assert_eq!(
            check(json!({"minReplicas": 5})),
            ["spec.maxReplicas: Invalid value: 3: must be greater than or equal to `minReplicas`"]
        );
        assert_eq!(
            check(json!({"minReplicas": 0, "maxReplicas": 0, "scaleTargetRef": {"kind": "a/b"}})),
            [
                "spec.minReplicas: Invalid value: 0: must be greater than or equal to 1",
                "spec.maxReplicas: Invalid value: 0: must be greater than 0",
                "spec.scaleTargetRef.kind: Invalid value: \"a/b\": may not contain '/'",
                "spec.scaleTargetRef.name: Required value",
                "spec.metrics: Forbidden: must specify at least one Object or External metric to support scaling to zero replicas",
            ]
        );
    }

    #[test]
    fn metrics_and_behavior() {
        let cpu = json!({"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 0}});
        assert_eq!(
            check(json!({"metrics": [{"type": "Resource", "resource": cpu, "pods": {"metric": {"name": "m"},
                "target": {"type": "AverageValue", "averageValue": "1"}}}, {"type": ""}]})),
            [
                "spec.metrics[0].pods: Forbidden: must populate the given metric source only",
                "spec.metrics[1].type: Required value: must specify a metric source type",
                "spec.metrics[1].type: Unsupported value: \"\": supported values: \"ContainerResource\", \"External\", \"Object\", \"Pods\", \"Resource\"",
                "spec.metrics[1].type: Unsupported value: \"\": supported values: \"ContainerResource\", \"External\", \"Object\", \"Pods\", \"Resource\"",
            ]
        );
        assert_eq!(
            check(
                json!({"metrics": [{"type": "External", "external": {"metric": {"name": ""}, "target": {"type": "X"}}}]})
            ),
            [
                "spec.metrics[0].external.metric.name: Required value: must specify a metric name",
                "spec.metrics[0].external.target.type: Invalid value: \"X\": must be either Utilization, Value, or AverageValue",
                "spec.metrics[0].external.target.averageValue: Required value: must set either a target value for metric or a per-pod target",
            ]
        );
        assert_eq!(
            check(
                json!({"behavior": {"scaleUp": {"stabilizationWindowSeconds": 4000, "selectPolicy": "Any", "policies": []},
                "scaleDown": {"policies": [{"type": "Pods", "value": 0, "periodSeconds": 2000}]}}})
            ),
            [
                "spec.behavior.scaleUp.stabilizationWindowSeconds: Invalid value: 4000: must be less than or equal to 3600",
                "spec.behavior.scaleUp.selectPolicy: Unsupported value: \"Any\": supported values: \"Disabled\", \"Max\", \"Min\"",
                "spec.behavior.scaleUp.policies: Required value: must specify at least one Policy",
                "spec.behavior.scaleDown.policies[0].value: Invalid value: 0: must be greater than zero",
                "spec.behavior.scaleDown.policies[0].periodSeconds: Invalid value: 2000: must be less than or equal to 1800",
            ]
        );
    }
}
