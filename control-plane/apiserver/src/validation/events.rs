//! Events of both groups. They are one kind with two sets of field names; errors name upstream's internal fields.

use kelp_model::names;
use serde_json::Value;

use super::{Errors, at, immutable, int, invalid_each, set, text};
use crate::error::FieldError;
use crate::gvk::GroupVersionKind;

/// The field names of a group: involved object, message, reporting controller and its path.
struct Names {
    involved: &'static str,
    message: &'static str,
    controller: &'static str,
}

fn names_of(gvk: &GroupVersionKind) -> Names {
    if gvk.group.is_empty() {
        Names { involved: "involvedObject", message: "message", controller: "reportingComponent" }
    } else {
        Names { involved: "regarding", message: "note", controller: "reportingController" }
    }
}

pub(super) fn create(gvk: &GroupVersionKind, object: &Value, errs: &mut Errors) {
    common(gvk, object, errs);
    if gvk.group.is_empty() {
        return;
    }
    series(object, errs);
    if !set(object, "eventTime") {
        errs.push(FieldError::required("eventTime", ""));
    }
    let kind = text(object, "type");
    if kind != "Normal" && kind != "Warning" {
        errs.push(FieldError::invalid("type", "", format!("has invalid value: {kind}")));
    }
    for (field, path) in [
        ("deprecatedFirstTimestamp", "firstTimestamp"),
        ("deprecatedLastTimestamp", "lastTimestamp"),
        ("deprecatedCount", "count"),
        ("deprecatedSource", "source"),
    ] {
        let value = at(object, field);
        let empty = value.is_null() || *value == 0 || value.as_object().is_some_and(|o| o.is_empty());
        if !empty {
            errs.push(FieldError::invalid(path, "", "needs to be unset"));
        }
    }
}

fn series(object: &Value, errs: &mut Errors) {
    let series = at(object, "series");
    if series.is_null() {
        return;
    }
    if int(series, "count").unwrap_or_default() < 2 {
        errs.push(FieldError::invalid("series.count", "", "should be at least 2"));
    }
    if !set(series, "lastObservedTime") {
        errs.push(FieldError::required("series.lastObservedTime", ""));
    }
}

fn common(gvk: &GroupVersionKind, object: &Value, errs: &mut Errors) {
    let n = names_of(gvk);
    let namespace = text(at(object, "metadata"), "namespace");
    let involved = text(at(object, n.involved), "namespace");
    let mut mismatch = || {
        errs.push(FieldError::invalid(
            "involvedObject.namespace",
            involved,
            "does not match event.namespace",
        ));
    };
    if !set(object, "eventTime") {
        let fits =
            if involved.is_empty() { matches!(namespace, "" | "default") } else { namespace == involved };
        if !fits {
            mismatch();
        }
    } else {
        if involved.is_empty() && !matches!(namespace, "default" | "kube-system") {
            mismatch();
        }
        let controller = text(object, n.controller);
        if controller.is_empty() {
            errs.push(FieldError::required(n.controller, ""));
        }
        invalid_each(errs, n.controller, controller, names::qualified_name(controller));
        for field in ["reportingInstance", "action", "reason"] {
            let value = text(object, field);
            if value.is_empty() {
                errs.push(FieldError::required(field, ""));
            }
            if value.len() > 128 {
                errs.push(FieldError::invalid(field, "", "can have at most 128 characters"));
            }
        }
        if text(object, n.message).len() > 1024 {
            errs.push(FieldError::invalid("message", "", "can have at most 1024 characters"));
        }
    }
    invalid_each(errs, "namespace", namespace, names::dns1123_subdomain(namespace));
}

pub(super) fn update(gvk: &GroupVersionKind, new: &Value, old: &Value, errs: &mut Errors) {
    common(gvk, new, errs);
    if gvk.group.is_empty() {
        return;
    }
    if at(new, "series") != at(old, "series") {
        series(new, errs);
    }
    for (field, path) in [
        ("regarding", "involvedObject"),
        ("reason", "reason"),
        ("note", "message"),
        ("deprecatedFirstTimestamp", "firstTimestamp"),
        ("deprecatedLastTimestamp", "lastTimestamp"),
        ("deprecatedCount", "count"),
        ("deprecatedSource", "source"),
        ("eventTime", "eventTime"),
        ("type", "type"),
        ("action", "action"),
        ("related", "related"),
        ("reportingController", "reportingController"),
        ("reportingInstance", "reportingInstance"),
    ] {
        immutable(errs, path, at(new, field), at(old, field));
    }
}
