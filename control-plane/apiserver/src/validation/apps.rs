//! Workload controllers: Deployment, ReplicaSet, StatefulSet, DaemonSet, ReplicationController.

use kelp_model::names;
use kelp_model::selector::Selector;
use serde_json::Value;

use super::resources::nonnegative_fields;
use super::selector::label_selector;
use super::{
    Errors, at, claims, immutable, int, internal, invalid_each, list, map, nonnegative, podspec, same, set,
    text,
};
use crate::error::FieldError;

/// The rules for creations and updates; `old` at an update.
pub(super) fn create(kind: &str, object: &Value, old: Option<&Value>, errs: &mut Errors) {
    let spec = at(object, "spec");
    let count = |field: &str, errs: &mut Errors| {
        nonnegative(errs, &format!("spec.{field}"), int(spec, field).unwrap_or_default());
    };
    match kind {
        "Deployment" => {
            count("replicas", errs);
            selector_and_template(spec, "deployment", "ReplicaSet", errs);
            strategy(at(spec, "strategy"), errs);
            count("minReadySeconds", errs);
            count("revisionHistoryLimit", errs);
            if let Some(seconds) = int(spec, "progressDeadlineSeconds") {
                count("progressDeadlineSeconds", errs);
                if seconds <= int(spec, "minReadySeconds").unwrap_or_default() {
                    errs.push(FieldError::invalid(
                        "spec.progressDeadlineSeconds",
                        seconds,
                        "must be greater than minReadySeconds",
                    ));
                }
            }
        }
        "ReplicaSet" => {
            count("replicas", errs);
            count("minReadySeconds", errs);
            selector_and_template(spec, "deployment", "ReplicaSet", errs);
        }
        "StatefulSet" => stateful_set(object, old, errs),
        "ControllerRevision" => revision(object, old, errs),
        "DaemonSet" => {
            daemon_selector(spec, errs);
            template(spec, &Selector::everything(), "DaemonSet", errs);
            count("minReadySeconds", errs);
            daemon_strategy(at(spec, "updateStrategy"), errs);
            count("revisionHistoryLimit", errs);
        }
        "ReplicationController" => {
            count("minReadySeconds", errs);
            if map(spec, "selector").next().is_none() {
                errs.push(FieldError::required("spec.selector", ""));
            }
            count("replicas", errs);
            if !set(spec, "template") {
                errs.push(FieldError::required("spec.template", ""));
                return;
            }
            let labels = map(spec, "selector").map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default()));
            template(spec, &Selector::from_set(labels), "ReplicationController", errs);
        }
        _ => {}
    }
}

/// A daemon set's selector: a missing one matches no template, an empty one is refused.
fn daemon_selector(spec: &Value, errs: &mut Errors) {
    let selector = at(spec, "selector");
    label_selector(selector, "spec.selector", errs);
    let labels = at(at(at(spec, "template"), "metadata"), "labels");
    let parsed = Selector::from_label_selector_value(Some(selector).filter(|s| !s.is_null()));
    if parsed.is_ok_and(|parsed| !parsed.matches(labels)) {
        let detail = "`selector` does not match template `labels`";
        errs.push(FieldError::invalid("spec.template.metadata.labels", labels, detail));
    }
    if !selector.is_null()
        && map(selector, "matchLabels").count() + list(selector, "matchExpressions").len() == 0
    {
        let detail = "empty selector is invalid for daemonset";
        errs.push(FieldError::invalid("spec.selector", selector, detail));
    }
}

/// A controller's revision: its data never change.
fn revision(object: &Value, old: Option<&Value>, errs: &mut Errors) {
    let data = at(object, "data");
    if data.is_null() {
        errs.push(FieldError::required("data", "data is mandatory"));
    }
    nonnegative(errs, "revision", int(object, "revision").unwrap_or_default());
    if let Some(old) = old {
        immutable(errs, "data", data, at(old, "data"));
    }
}

fn selector_and_template(spec: &Value, name: &str, owner: &str, errs: &mut Errors) {
    let selector = at(spec, "selector");
    if selector.is_null() {
        errs.push(FieldError::required("spec.selector", ""));
    } else {
        label_selector(selector, "spec.selector", errs);
        if map(selector, "matchLabels").count() + list(selector, "matchExpressions").len() == 0 {
            let detail = format!("empty selector is invalid for {name}");
            errs.push(FieldError::invalid("spec.selector", selector, detail));
        }
    }
    match Selector::from_label_selector_value(Some(selector)) {
        Ok(selector) => template(spec, &selector, owner, errs),
        Err(_) => errs.push(FieldError::invalid("spec.selector", selector, "invalid label selector")),
    }
}

fn template(spec: &Value, selector: &Selector, owner: &str, errs: &mut Errors) {
    let template = at(spec, "template");
    let labels = at(at(template, "metadata"), "labels");
    if !selector.is_everything() && !selector.matches(labels) {
        let detail = "`selector` does not match template `labels`";
        errs.push(FieldError::invalid("spec.template.metadata.labels", labels, detail));
    }
    podspec::template(template, "spec.template", errs);
    let pod = at(template, "spec");
    let policy = text(pod, "restartPolicy");
    if policy != "Always" && !policy.is_empty() {
        errs.push(FieldError::not_supported("spec.template.spec.restartPolicy", policy, &["Always"]));
    }
    if set(pod, "activeDeadlineSeconds") {
        errs.push(FieldError::forbidden(
            "spec.template.spec.activeDeadlineSeconds",
            format!("activeDeadlineSeconds in {owner} is not Supported"),
        ));
    }
}

/// The percentage of a text such as `25%`.
fn percentage(value: &Value) -> Option<i64> {
    value.as_str()?.strip_suffix('%')?.parse().ok()
}

/// A whole number that is not negative, or a percentage.
fn int_or_percent(value: &Value, path: &str, errs: &mut Errors) {
    match value {
        Value::String(s) => invalid_each(errs, path, s, names::percent(s)),
        other => nonnegative(errs, path, other.as_i64().unwrap_or_default()),
    }
}

fn at_most_100_percent(value: &Value, path: &str, errs: &mut Errors) {
    if percentage(value).is_some_and(|p| p > 100) {
        errs.push(FieldError::invalid(path, value, "must not be greater than 100%"));
    }
}

fn is_zero(value: &Value) -> bool {
    value.is_null() || *value == 0 || percentage(value) == Some(0)
}

fn strategy(strategy: &Value, errs: &mut Errors) {
    let rolling = at(strategy, "rollingUpdate");
    match text(strategy, "type") {
        "Recreate" => {
            if !rolling.is_null() {
                errs.push(FieldError::forbidden(
                    "spec.strategy.rollingUpdate",
                    "may not be specified when strategy `type` is 'Recreate'",
                ));
            }
        }
        "RollingUpdate" => {
            const PATH: &str = "spec.strategy.rollingUpdate";
            if rolling.is_null() {
                errs.push(FieldError::required(PATH, "this should be defaulted and never be nil"));
                return;
            }
            let (unavailable, surge) = (at(rolling, "maxUnavailable"), at(rolling, "maxSurge"));
            int_or_percent(unavailable, &format!("{PATH}.maxUnavailable"), errs);
            int_or_percent(surge, &format!("{PATH}.maxSurge"), errs);
            if is_zero(unavailable) && is_zero(surge) {
                let detail = "may not be 0 when `maxSurge` is 0";
                errs.push(FieldError::invalid(format!("{PATH}.maxUnavailable"), unavailable, detail));
            }
            at_most_100_percent(unavailable, &format!("{PATH}.maxUnavailable"), errs);
        }
        _ => {
            let shown = internal::bad("DeploymentStrategy", strategy);
            errs.push(FieldError::not_supported("spec.strategy", shown, &["Recreate", "RollingUpdate"]));
        }
    }
}

fn daemon_strategy(strategy: &Value, errs: &mut Errors) {
    const PATH: &str = "spec.updateStrategy.rollingUpdate";
    let rolling = at(strategy, "rollingUpdate");
    match text(strategy, "type") {
        "OnDelete" => {}
        "RollingUpdate" => {
            if rolling.is_null() {
                errs.push(FieldError::required(PATH, ""));
                return;
            }
            let (unavailable, surge) = (at(rolling, "maxUnavailable"), at(rolling, "maxSurge"));
            int_or_percent(unavailable, &format!("{PATH}.maxUnavailable"), errs);
            at_most_100_percent(unavailable, &format!("{PATH}.maxUnavailable"), errs);
            int_or_percent(surge, &format!("{PATH}.maxSurge"), errs);
            at_most_100_percent(surge, &format!("{PATH}.maxSurge"), errs);
            if !is_zero(unavailable) && !is_zero(surge) {
                let detail = "may not be set when maxUnavailable is non-zero";
                errs.push(FieldError::invalid(format!("{PATH}.maxSurge"), surge, detail));
            } else if is_zero(unavailable) && is_zero(surge) {
                let detail = "cannot be 0 when maxSurge is 0";
                errs.push(FieldError::required(format!("{PATH}.maxUnavailable"), detail));
            }
        }
        _ => errs.push(FieldError::not_supported(
            "spec.updateStrategy",
            internal::bad("DeploymentStrategy", strategy),
            &["RollingUpdate", "OnDelete"],
        )),
    }
}

fn stateful_set(object: &Value, old: Option<&Value>, errs: &mut Errors) {
    let spec = at(object, "spec");
    match text(spec, "podManagementPolicy") {
        "" => errs.push(FieldError::required("spec.podManagementPolicy", "")),
        "OrderedReady" | "Parallel" => {}
        other => errs.push(FieldError::invalid(
            "spec.podManagementPolicy",
            other,
            "must be 'OrderedReady' or 'Parallel'",
        )),
    }
    let strategy = at(spec, "updateStrategy");
    let rolling = at(strategy, "rollingUpdate");
    match text(strategy, "type") {
        "" => errs.push(FieldError::required("spec.updateStrategy", "")),
        "OnDelete" => {
            if !rolling.is_null() {
                errs.push(FieldError::invalid(
                    "spec.updateStrategy.rollingUpdate",
                    internal::bad("RollingUpdateStatefulSet", rolling),
                    "only allowed for updateStrategy 'RollingUpdate'",
                ));
            }
        }
        "RollingUpdate" => {
            const PATH: &str = "spec.updateStrategy.rollingUpdate";
            nonnegative(errs, &format!("{PATH}.partition"), int(rolling, "partition").unwrap_or_default());
            let unavailable = at(rolling, "maxUnavailable");
            if !unavailable.is_null() {
                let path = format!("{PATH}.maxUnavailable");
                int_or_percent(unavailable, &path, errs);
                if is_zero(unavailable) {
                    errs.push(FieldError::invalid(path.as_str(), unavailable, "cannot be 0"));
                }
                at_most_100_percent(unavailable, &path, errs);
            }
        }
        _ => errs.push(FieldError::invalid(
            "spec.updateStrategy",
            internal::bad("StatefulSetUpdateStrategy", strategy),
            "must be 'RollingUpdate' or 'OnDelete'",
        )),
    }
    let retention = at(spec, "persistentVolumeClaimRetentionPolicy");
    for field in ["whenDeleted", "whenScaled"] {
        let policy = text(retention, field);
        if !retention.is_null() && !matches!(policy, "Retain" | "Delete") {
            errs.push(FieldError::not_supported(
                format!("spec.persistentVolumeClaimRetentionPolicy.{field}"),
                policy,
                &["Retain", "Delete"],
            ));
        }
    }
    for field in ["replicas", "minReadySeconds"] {
        nonnegative(errs, &format!("spec.{field}"), int(spec, field).unwrap_or_default());
    }
    if let Some(start) = int(at(spec, "ordinals"), "start") {
        nonnegative(errs, "spec.ordinals.start", start);
    }
    let service = text(spec, "serviceName");
    if old.is_none() && !service.is_empty() {
        invalid_each(errs, "spec.serviceName", service, names::dns1123_label(service));
    }
    // A stored template or claim that breaks today's rules does not keep the set from changing in other ways.
    let stored_is_valid = |check: fn(&Value, &mut Errors)| {
        old.is_none_or(|old| {
            let mut stored = Errors::new();
            check(at(old, "spec"), &mut stored);
            stored.is_empty()
        })
    };
    if stored_is_valid(claim_templates) {
        claim_templates(spec, errs);
    }
    if stored_is_valid(set_template) {
        set_template(spec, errs);
    }
}

fn claim_templates(spec: &Value, errs: &mut Errors) {
    for (i, claim) in list(spec, "volumeClaimTemplates").iter().enumerate() {
        claims::claim_spec(at(claim, "spec"), &format!("spec.volumeClaimTemplates[{i}].spec"), None, errs);
    }
}

/// The template of a stateful set, whose pods have the claims of the set among their volumes.
fn set_template(spec: &Value, errs: &mut Errors) {
    let mut whole = spec.clone();
    let claims: Vec<Value> = list(spec, "volumeClaimTemplates")
        .iter()
        .map(|claim| {
            let name = text(at(claim, "metadata"), "name");
            serde_json::json!({"name": name, "persistentVolumeClaim": {"claimName": name}})
        })
        .collect();
    if !claims.is_empty()
        && let Some(pod) = whole.pointer_mut("/template/spec").and_then(Value::as_object_mut)
    {
        let named = |name: &str| claims.iter().any(|claim| text(claim, "name") == name);
        let mut volumes: Vec<Value> =
            pod.get("volumes").and_then(Value::as_array).cloned().unwrap_or_default();
        volumes.retain(|volume| !named(text(volume, "name")));
        volumes.extend(claims);
        pod.insert("volumes".to_owned(), volumes.into());
    }
    selector_and_template(&whole, "statefulset", "StatefulSet", errs);
}

/// Fields that may not change.
pub(super) fn update(kind: &str, new: &Value, old: &Value, errs: &mut Errors) {
    let (after, before) = (at(new, "spec"), at(old, "spec"));
    if kind == "StatefulSet" {
        const MUTABLE: [&str; 8] = [
            "replicas",
            "ordinals",
            "template",
            "updateStrategy",
            "revisionHistoryLimit",
            "persistentVolumeClaimRetentionPolicy",
            "minReadySeconds",
            "status",
        ];
        let frozen = |spec: &Value| {
            let mut spec = spec.as_object().cloned().unwrap_or_default();
            spec.retain(|k, _| !MUTABLE.contains(&k.as_str()));
            Value::Object(spec)
        };
        if !same(&frozen(after), &frozen(before)) {
            errs.push(FieldError::forbidden(
                "spec",
                "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
            ));
        }
        return;
    }
    immutable(errs, "spec.selector", at(after, "selector"), at(before, "selector"));
}

pub(super) fn status(kind: &str, new: &Value, old: &Value, errs: &mut Errors) {
    let (status, before) = (at(new, "status"), at(old, "status"));
    let count = |field: &str| int(status, field).unwrap_or_default();
    let mut above = |field: &str, limit: &str, detail: &str| {
        if count(field) > count(limit) {
            errs.push(FieldError::invalid(format!("status.{field}"), count(field), detail));
        }
    };
    const TOTAL: &str = "cannot be greater than status.replicas";
    match kind {
        "Deployment" => {
            for field in ["updatedReplicas", "readyReplicas", "availableReplicas"] {
                above(field, "replicas", TOTAL);
            }
            above("availableReplicas", "readyReplicas", "cannot be greater than readyReplicas");
        }
        "ReplicaSet" | "ReplicationController" => {
            for field in ["fullyLabeledReplicas", "readyReplicas", "availableReplicas"] {
                above(field, "replicas", TOTAL);
            }
            above("availableReplicas", "readyReplicas", "cannot be greater than readyReplicas");
        }
        "StatefulSet" => {
            for field in ["readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"] {
                above(field, "replicas", TOTAL);
            }
            above("availableReplicas", "readyReplicas", "cannot be greater than status.readyReplicas");
        }
        _ => {}
    }
    const COUNTS: [&str; 12] = [
        "observedGeneration",
        "replicas",
        "fullyLabeledReplicas",
        "updatedReplicas",
        "readyReplicas",
        "availableReplicas",
        "unavailableReplicas",
        "terminatingReplicas",
        "currentReplicas",
        "currentNumberScheduled",
        "desiredNumberScheduled",
        "collisionCount",
    ];
    nonnegative_fields(status, "status", &COUNTS, errs);
    let collisions = |s: &Value| int(s, "collisionCount");
    if let Some(old) = collisions(before)
        && collisions(status).is_none_or(|new| new < old)
    {
        let shown = at(status, "collisionCount");
        errs.push(FieldError::invalid("status.collisionCount", shown, "cannot be decremented"));
    }
}
