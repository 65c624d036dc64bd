//! Workload controllers.

use serde_json::{Value, json};

use super::{default, default_pointer, items, member, pod, text};

fn spec_with_template(object: &mut Value) -> Option<&mut Value> {
    let spec = member(object, "spec")?;
    pod::template(spec.get_mut("template"));
    Some(spec)
}

pub(super) fn deployment(object: &mut Value) {
    let Some(spec) = spec_with_template(object) else { return };
    default_pointer(spec, "replicas", 1);
    if let Some(strategy) = member(spec, "strategy") {
        default(strategy, "type", "RollingUpdate");
        if text(strategy, "type") == "RollingUpdate"
            && let Some(rolling) = member(strategy, "rollingUpdate")
        {
            default_pointer(rolling, "maxUnavailable", "25%");
            default_pointer(rolling, "maxSurge", "25%");
        }
    }
    default_pointer(spec, "revisionHistoryLimit", 10);
    default_pointer(spec, "progressDeadlineSeconds", 600);
}

pub(super) fn replica_set(object: &mut Value) {
    if let Some(spec) = spec_with_template(object) {
        default_pointer(spec, "replicas", 1);
    }
}

pub(super) fn replication_controller(object: &mut Value) {
    let labels = object.pointer("/spec/template/metadata/labels").cloned();
    if let Some(spec) = spec_with_template(object) {
        default_pointer(spec, "replicas", 1);
        if let Some(labels) = &labels {
            default_pointer(spec, "selector", labels.clone());
        }
    }
    if let (Some(labels), Some(meta)) = (labels, member(object, "metadata")) {
        default_pointer(meta, "labels", labels);
    }
}

pub(super) fn stateful_set(object: &mut Value) {
    let Some(spec) = spec_with_template(object) else { return };
    default(spec, "podManagementPolicy", "OrderedReady");
    if let Some(strategy) = member(spec, "updateStrategy") {
        default(strategy, "type", "RollingUpdate");
        if text(strategy, "type") == "RollingUpdate"
            && let Some(rolling) = member(strategy, "rollingUpdate")
        {
            default_pointer(rolling, "partition", 0);
        }
    }
    if let Some(retention) = member(spec, "persistentVolumeClaimRetentionPolicy") {
        default(retention, "whenDeleted", "Retain");
        default(retention, "whenScaled", "Retain");
    }
    for claim in items(spec, "volumeClaimTemplates") {
        super::core::claim(claim);
    }
    default_pointer(spec, "replicas", 1);
    default_pointer(spec, "revisionHistoryLimit", 10);
}

/// The annotation that shows a field of the internal form, which is 0 where it is not given.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

pub(super) fn daemon_set(object: &mut Value) {
    let annotations = crate::object::meta_mut(object).entry("annotations").or_insert(Value::Null);
    if annotations.is_null() {
        *annotations = serde_json::json!({});
    }
    if annotations.get(TEMPLATE_GENERATION).and_then(Value::as_str).is_none_or(|g| g.parse::<i64>().is_err())
        && annotations.is_object()
    {
        annotations[TEMPLATE_GENERATION] = "0".into();
    }
    let Some(spec) = spec_with_template(object) else { return };
    if let Some(strategy) = member(spec, "updateStrategy") {
        default(strategy, "type", "RollingUpdate");
        if text(strategy, "type") == "RollingUpdate"
            && let Some(rolling) = member(strategy, "rollingUpdate")
        {
            default_pointer(rolling, "maxUnavailable", 1);
            default_pointer(rolling, "maxSurge", 0);
        }
    }
    default_pointer(spec, "revisionHistoryLimit", 10);
}

pub(super) fn job(object: &mut Value) {
    let labels = object.pointer("/spec/template/metadata/labels").cloned();
    let Some(spec) = spec_with_template(object) else { return };
    if spec.get("completions").is_none() && spec.get("parallelism").is_none() {
        default_pointer(spec, "completions", 1);
    }
    default_pointer(spec, "parallelism", 1);
    let limit = if spec.get("backoffLimitPerIndex").is_some() { i32::MAX } else { 6 };
    default_pointer(spec, "backoffLimit", limit);
    default_pointer(spec, "completionMode", "NonIndexed");
    default_pointer(spec, "suspend", false);
    default_pointer(spec, "manualSelector", false);
    let replacement = if spec.get("podFailurePolicy").is_some() { "Failed" } else { "TerminatingOrFailed" };
    default_pointer(spec, "podReplacementPolicy", replacement);
    for rule in spec.get_mut("podFailurePolicy").into_iter().flat_map(|p| items(p, "rules")) {
        for condition in items(rule, "onPodConditions") {
            default(condition, "status", "True");
        }
    }
    if let (Some(labels), Some(meta)) = (labels, member(object, "metadata"))
        && meta.get("labels").is_none_or(|l| l == &json!({}))
    {
        meta["labels"] = labels;
    }
}

pub(super) fn cron_job(object: &mut Value) {
    let Some(spec) = member(object, "spec") else { return };
    default(spec, "concurrencyPolicy", "Allow");
    default_pointer(spec, "suspend", false);
    default_pointer(spec, "successfulJobsHistoryLimit", 3);
    default_pointer(spec, "failedJobsHistoryLimit", 1);
    pod::template(spec.pointer_mut("/jobTemplate/spec/template"));
}
