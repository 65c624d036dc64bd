//! Label selectors inside objects.

use kelp_model::names;
use serde_json::Value;

use super::{Errors, at, int, invalid_each, list, meta, set, text, texts};
use crate::error::FieldError;

/// A `metav1.LabelSelector`.
pub(super) fn label_selector(selector: &Value, path: &str, errs: &mut Errors) {
    meta::labels(selector, "matchLabels", &format!("{path}.matchLabels"), errs);
    for (i, e) in list(selector, "matchExpressions").iter().enumerate() {
        let path = format!("{path}.matchExpressions[{i}]");
        match text(e, "operator") {
            "In" | "NotIn" if list(e, "values").is_empty() => errs.push(FieldError::required(
                format!("{path}.values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "Exists" | "DoesNotExist" if !list(e, "values").is_empty() => errs.push(FieldError::forbidden(
                format!("{path}.values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errs.push(FieldError::invalid(
                format!("{path}.operator"),
                other,
                "not a valid selector operator",
            )),
        }
        let key = text(e, "key");
        invalid_each(errs, &format!("{path}.key"), key, names::qualified_name(key));
        for (j, v) in texts(e, "values").enumerate() {
            invalid_each(errs, &format!("{path}.values[{j}]"), v, names::label_value(v));
        }
    }
}

pub(super) fn affinity(affinity: &Value, path: &str, errs: &mut Errors) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    let weight = |item: &Value, path: &str, errs: &mut Errors| {
        let weight = int(item, "weight").unwrap_or_default();
        if !(1..=100).contains(&weight) {
            errs.push(FieldError::invalid(format!("{path}.weight"), weight, "must be in the range 1-100"));
        }
    };
    let node = at(affinity, "nodeAffinity");
    if set(node, REQUIRED) {
        node_selector(at(node, REQUIRED), &format!("{path}.nodeAffinity.{REQUIRED}"), errs);
    }
    for (i, term) in list(node, PREFERRED).iter().enumerate() {
        let path = format!("{path}.nodeAffinity.{PREFERRED}[{i}]");
        weight(term, &path, errs);
        node_term(at(term, "preference"), false, &format!("{path}.preference"), errs);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        for (i, term) in list(at(affinity, kind), REQUIRED).iter().enumerate() {
            pod_term(term, &format!("{path}.{kind}.{REQUIRED}[{i}]"), errs);
        }
        for (i, term) in list(at(affinity, kind), PREFERRED).iter().enumerate() {
            let path = format!("{path}.{kind}.{PREFERRED}[{i}]");
            weight(term, &path, errs);
            pod_term(at(term, "podAffinityTerm"), &format!("{path}.podAffinityTerm"), errs);
        }
    }
}

pub(super) fn node_selector(selector: &Value, path: &str, errs: &mut Errors) {
    let terms = list(selector, "nodeSelectorTerms");
    let path = format!("{path}.nodeSelectorTerms");
    if terms.is_empty() {
        errs.push(FieldError::required(path, "must have at least one node selector term"));
        return;
    }
    for (i, term) in terms.iter().enumerate() {
        node_term(term, true, &format!("{path}[{i}]"), errs);
    }
}

fn node_term(term: &Value, check_values: bool, path: &str, errs: &mut Errors) {
    for (i, e) in list(term, "matchExpressions").iter().enumerate() {
        let path = format!("{path}.matchExpressions[{i}]");
        let count = list(e, "values").len();
        match text(e, "operator") {
            "In" | "NotIn" if count == 0 => errs.push(FieldError::required(
                format!("{path}.values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "Exists" | "DoesNotExist" if count > 0 => errs.push(FieldError::forbidden(
                format!("{path}.values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "Gt" | "Lt" if count != 1 => errs.push(FieldError::required(
                format!("{path}.values"),
                "must be specified single value when `operator` is 'Lt' or 'Gt'",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            other => {
                let path = format!("{path}.operator");
                errs.push(FieldError::invalid(path, other, "not a valid selector operator"));
            }
        }
        let key = text(e, "key");
        invalid_each(errs, &format!("{path}.key"), key, names::qualified_name(key));
        if check_values {
            for (j, v) in texts(e, "values").enumerate() {
                invalid_each(errs, &format!("{path}.values[{j}]"), v, names::label_value(v));
            }
        }
    }
    for (i, e) in list(term, "matchFields").iter().enumerate() {
        let path = format!("{path}.matchFields[{i}]");
        match text(e, "operator") {
            "In" | "NotIn" if list(e, "values").len() != 1 => errs.push(FieldError::required(
                format!("{path}.values"),
                "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
            )),
            "In" | "NotIn" => {}
            other => {
                let path = format!("{path}.operator");
                errs.push(FieldError::invalid(path, other, "not a valid selector operator"));
            }
        }
        if text(e, "key") == "metadata.name" {
            for (j, v) in texts(e, "values").enumerate() {
                invalid_each(errs, &format!("{path}.values[{j}]"), v, names::dns1123_subdomain(v));
            }
        } else {
            let path = format!("{path}.key");
            errs.push(FieldError::invalid(path, text(e, "key"), "not a valid field selector key"));
        }
    }
}

fn pod_term(term: &Value, path: &str, errs: &mut Errors) {
    label_selector(at(term, "labelSelector"), &format!("{path}.labelSelector"), errs);
    label_selector(at(term, "namespaceSelector"), &format!("{path}.namespaceSelector"), errs);
    for name in texts(term, "namespaces") {
        invalid_each(errs, &format!("{path}.namespace"), name, names::dns1123_label(name));
    }
    for keys in ["matchLabelKeys", "mismatchLabelKeys"] {
        if list(term, keys).is_empty() {
            continue;
        }
        let path = format!("{path}.{keys}");
        if !set(term, "labelSelector") {
            errs.push(FieldError::forbidden(path, "must not be specified when labelSelector is not set"));
            continue;
        }
        for (i, key) in texts(term, keys).enumerate() {
            invalid_each(errs, &format!("{path}[{i}]"), key, names::qualified_name(key));
        }
    }
    for (i, key) in texts(term, "matchLabelKeys").enumerate() {
        if texts(term, "mismatchLabelKeys").any(|k| k == key) {
            errs.push(FieldError::invalid(
                format!("{path}.matchLabelKeys[{i}]"),
                key,
                "exists in both matchLabelKeys and mismatchLabelKeys",
            ));
        }
    }
    let key = text(term, "topologyKey");
    let path = format!("{path}.topologyKey");
    if key.is_empty() {
        errs.push(FieldError::required(path.as_str(), "can not be empty"));
    }
    invalid_each(errs, &path, key, names::qualified_name(key));
}
