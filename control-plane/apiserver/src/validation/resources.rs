//! Resource names and quantities: containers, nodes, quotas, limit ranges.

use std::cmp::Ordering;

use kelp_model::names;
use kelp_model::quantity::Quantity;
use serde_json::Value;

use super::{Errors, at, internal, invalid_each, list, map, nonnegative, set, text, texts};
use crate::error::{FieldError, FieldErrorKind};

const NOT_NEGATIVE: &str = "must be greater than or equal to 0";

fn quantity(value: &Value) -> Quantity {
    value.as_str().and_then(|s| Quantity::parse(s).ok()).unwrap_or(Quantity::ZERO)
}

const COUNTED: [&str; 9] = [
    "pods",
    "services",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];

fn standard(name: &str) -> bool {
    COUNTED.contains(&name)
        || name.starts_with("hugepages-")
        || matches!(
            name,
            "cpu"
                | "memory"
                | "ephemeral-storage"
                | "storage"
                | "requests.cpu"
                | "requests.memory"
                | "requests.storage"
                | "requests.ephemeral-storage"
                | "limits.cpu"
                | "limits.memory"
                | "limits.ephemeral-storage"
        )
}

fn standard_for_quota(name: &str) -> bool {
    COUNTED.contains(&name)
        || name.starts_with("requests.hugepages-")
        || matches!(
            name,
            "cpu"
                | "memory"
                | "ephemeral-storage"
                | "requests.cpu"
                | "requests.memory"
                | "requests.storage"
                | "requests.ephemeral-storage"
                | "limits.cpu"
                | "limits.memory"
                | "limits.ephemeral-storage"
        )
        || name.starts_with("hugepages-")
}

fn native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

pub(super) fn extended(name: &str) -> bool {
    !native(name)
        && !name.starts_with("requests.")
        && names::qualified_name(&format!("requests.{name}")).is_empty()
}

/// More of the resource may be promised than there is.
fn overcommitted(name: &str) -> bool {
    native(name) && !name.starts_with("hugepages-")
}

fn resource_name(name: &str, path: &str, errs: &mut Errors) -> bool {
    let bad = names::qualified_name(name);
    if !bad.is_empty() {
        invalid_each(errs, path, name, bad);
        return false;
    }
    if !name.contains('/') && !standard(name) {
        errs.push(FieldError::invalid(path, name, "must be a standard resource type or fully qualified"));
    }
    true
}

/// The name of a resource that a container may ask for.
pub(super) fn container_resource_name(name: &str, path: &str, errs: &mut Errors) {
    resource_name(name, path, errs);
    if !name.contains('/') {
        if !(matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-")) {
            errs.push(FieldError::invalid(path, name, "must be a standard resource for containers"));
        }
    } else if !native(name) && !extended(name) {
        errs.push(FieldError::invalid(path, name, "doesn't follow extended resource name standard"));
    }
}

/// A quantity that fits its resource.
pub(super) fn quantity_value(name: &str, value: &Value, path: &str, errs: &mut Errors) {
    let q = quantity(value);
    if q.signum() < 0 {
        errs.push(FieldError::invalid(path, q.to_string(), NOT_NEGATIVE));
    }
    if (COUNTED.contains(&name) || extended(name)) && !q.is_multiple_of_scale(0) {
        errs.push(FieldError::invalid(path, q.to_string(), "must be an integer"));
    }
}

/// The resources of a container; `claims` are the names of the pod's claims.
pub(super) fn requirements(resources: &Value, claims: &[&str], path: &str, errs: &mut Errors) {
    let (limits, requests) = (at(resources, "limits"), at(resources, "requests"));
    let (mut pages, mut compute) = (false, false);
    for (field, values) in [("limits", limits), ("requests", requests)] {
        for (name, value) in values.as_object().into_iter().flatten() {
            let at_name = format!("{path}.{field}[{name}]");
            container_resource_name(name, &at_name, errs);
            quantity_value(name, value, &at_name, errs);
            let q = quantity(value);
            if field == "requests" {
                let whole = format!("{path}.requests");
                match limits.get(name).map(quantity) {
                    Some(limit) if q != limit && !overcommitted(name) => errs.push(FieldError::invalid(
                        whole,
                        q.to_string(),
                        format!("must be equal to {name} limit of {limit}"),
                    )),
                    Some(limit) if q.cmp(&limit) == Ordering::Greater => errs.push(FieldError::invalid(
                        whole,
                        q.to_string(),
                        format!("must be less than or equal to {name} limit of {limit}"),
                    )),
                    None if !overcommitted(name) => errs.push(FieldError::required(
                        format!("{path}.limits"),
                        "Limit must be set for non overcommitable resources",
                    )),
                    _ => {}
                }
            }
            if name.starts_with("hugepages-") {
                pages = true;
                huge_page(name, q, &at_name, errs);
            }
            compute |= matches!(name.as_str(), "cpu" | "memory");
        }
    }
    if pages && !compute {
        errs.push(FieldError::forbidden(path, "HugePages require cpu or memory"));
    }
    claim_names(list(resources, "claims"), claims, &format!("{path}.claims"), errs);
}

/// The claims a container uses, or single requests of them.
fn claim_names(used: &[Value], known: &[&str], path: &str, errs: &mut Errors) {
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for (i, claim) in used.iter().enumerate() {
        let path = format!("{path}[{i}]");
        let (name, request) = (text(claim, "name"), text(claim, "request"));
        if name.is_empty() {
            errs.push(FieldError::required(format!("{path}.name"), ""));
            continue;
        }
        if !request.is_empty() {
            invalid_each(errs, &format!("{path}.request"), request, names::dns1123_label(request));
        }
        if seen.contains(&(name, request)) || seen.contains(&(name, "")) {
            let shown = if request.is_empty() { name.to_owned() } else { format!("{name}/{request}") };
            errs.push(FieldError::duplicate(path.as_str(), shown));
        } else {
            seen.push((name, request));
        }
        if !known.contains(&name) {
            let mut sorted = known.to_vec();
            sorted.sort_unstable();
            sorted.dedup();
            let all = if sorted.is_empty() {
                " which is empty".to_owned()
            } else {
                format!(": {}", sorted.join(", "))
            };
            let detail = format!("must be one of the names in pod.spec.resourceClaims{all}");
            errs.push(FieldError::new(FieldErrorKind::NotFound, format!("{path}.name"), name, detail));
        }
    }
}

fn huge_page(name: &str, q: Quantity, path: &str, errs: &mut Errors) {
    let size = name.strip_prefix("hugepages-").and_then(|size| Quantity::parse(size).ok());
    let pages = size.filter(|page| page.signum() > 0 && page.is_multiple_of_scale(0));
    if pages.is_none_or(|page| q.value() % page.value().max(1) != 0) {
        let detail = format!("{q} is not positive integer multiple of {name}");
        errs.push(FieldError::invalid(path, q.to_string(), detail));
    }
}

/// Resources that a whole pod may ask for.
pub(super) fn pod_level(spec: &Value, path: &str, errs: &mut Errors) {
    let resources = at(spec, "resources");
    if set(resources, "claims") {
        errs.push(FieldError::forbidden(
            format!("{path}.claims"),
            "claims cannot be set for Resources at pod-level",
        ));
    }
    for field in ["limits", "requests"] {
        for (name, value) in map(resources, field) {
            let at_name = format!("{path}.{field}[{name}]");
            if !resource_name(name, &at_name, errs) {
                continue;
            }
            if !matches!(name.as_str(), "cpu" | "memory") && !name.starts_with("hugepages-") {
                errs.push(FieldError::not_supported(
                    at_name.as_str(),
                    name,
                    &["cpu", "hugepages-", "memory"],
                ));
            }
            quantity_value(name, value, &at_name, errs);
            let limit = at(resources, "limits").get(name).map(quantity);
            if let Some(limit) = limit.filter(|l| field == "requests" && quantity(value) > *l) {
                errs.push(FieldError::invalid(
                    format!("{path}.requests"),
                    quantity(value).to_string(),
                    format!("must be less than or equal to {name} limit of {limit}"),
                ));
            }
        }
    }
    for (i, c) in list(spec, "containers").iter().enumerate() {
        for (name, limit) in map(at(c, "resources"), "limits") {
            let Some(pod) = at(resources, "limits").get(name).map(quantity) else { continue };
            if quantity(limit) > pod {
                errs.push(FieldError::invalid(
                    format!("{path}.containers[{i}][{name}].limits"),
                    quantity(limit).to_string(),
                    format!("must be less than or equal to pod limits of {pod}"),
                ));
            }
        }
    }
}

const SCOPES: [&str; 7] = [
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
    "VolumeAttributesClass",
];

/// A quota's spec; `old` at an update.
pub(super) fn quota(object: &Value, old: Option<&Value>, errs: &mut Errors) {
    let spec = at(object, "spec");
    quota_amounts(spec, "hard", "spec.hard", errs);
    quota_scopes(spec, errs);
    scope_selector(spec, errs);
    if let Some(old) = old {
        let sorted = |spec: &Value| {
            let mut scopes: Vec<String> = texts(spec, "scopes").map(str::to_owned).collect();
            scopes.sort();
            scopes.dedup();
            scopes
        };
        if sorted(spec) != sorted(at(old, "spec")) {
            errs.push(FieldError::invalid("spec.scopes", at(spec, "scopes"), "field is immutable"));
        }
    }
}

/// What a quota allows and what is used of it.
pub(super) fn quota_status(object: &Value, errs: &mut Errors) {
    for field in ["hard", "used"] {
        quota_amounts(at(object, "status"), field, &format!("status.{field}"), errs);
    }
}

fn quota_amounts(holder: &Value, field: &str, path: &str, errs: &mut Errors) {
    for (name, value) in map(holder, field) {
        let path = format!("{path}[{name}]");
        resource_name(name, &path, errs);
        if !name.contains('/') && !standard_for_quota(name) {
            errs.push(FieldError::invalid(path.as_str(), name, "must be a standard resource for quota"));
        }
        quantity_value(name, value, &path, errs);
    }
}

/// Whether objects of a scope use a resource.
fn in_scope(scope: &str, resource: &str) -> bool {
    let compute = matches!(
        resource,
        "cpu" | "memory" | "limits.cpu" | "limits.memory" | "requests.cpu" | "requests.memory"
    );
    match scope {
        "BestEffort" => resource == "pods",
        "Terminating"
        | "NotTerminating"
        | "NotBestEffort"
        | "PriorityClass"
        | "CrossNamespacePodAffinity" => resource == "pods" || compute,
        "VolumeAttributesClass" => matches!(resource, "persistentvolumeclaims" | "requests.storage"),
        _ => true,
    }
}

const OPPOSITES: [(&str, &str); 2] = [("BestEffort", "NotBestEffort"), ("Terminating", "NotTerminating")];

fn quota_scopes(spec: &Value, errs: &mut Errors) {
    let scopes: Vec<&str> = texts(spec, "scopes").collect();
    let mut bad = |detail: &str| errs.push(FieldError::invalid("spec.scopes", at(spec, "scopes"), detail));
    for scope in &scopes {
        if !SCOPES.contains(scope) {
            bad("unsupported scope");
        }
        for (name, _) in map(spec, "hard").filter(|(name, _)| standard_for_quota(name)) {
            if !in_scope(scope, name) {
                bad("unsupported scope applied to resource");
            }
        }
    }
    for (one, other) in OPPOSITES {
        if scopes.contains(&one) && scopes.contains(&other) {
            bad("conflicting scopes");
        }
    }
}

fn scope_selector(spec: &Value, errs: &mut Errors) {
    const PATH: &str = "spec.scopeSelector.matchExpressions";
    let selector = at(spec, "scopeSelector");
    let mut seen: Vec<&str> = Vec::new();
    for requirement in list(selector, "matchExpressions") {
        let (scope, operator) = (text(requirement, "scopeName"), text(requirement, "operator"));
        if !SCOPES.contains(&scope) {
            errs.push(FieldError::invalid(format!("{PATH}.scopeName"), scope, "unsupported scope"));
        }
        for (name, _) in map(spec, "hard").filter(|(name, _)| standard_for_quota(name)) {
            if !in_scope(scope, name) {
                let shown = internal::bad("ScopeSelector", selector);
                errs.push(FieldError::invalid(PATH, shown, "unsupported scope applied to resource"));
            }
        }
        let valued = matches!(scope, "PriorityClass" | "VolumeAttributesClass");
        if !valued && SCOPES.contains(&scope) && operator != "Exists" {
            let detail = "must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
            errs.push(FieldError::invalid(format!("{PATH}.operator"), operator, detail));
        }
        let empty = list(requirement, "values").is_empty();
        match operator {
            "In" | "NotIn" if empty => errs.push(FieldError::required(
                format!("{PATH}.values"),
                "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
            )),
            "Exists" | "DoesNotExist" if !empty => errs.push(FieldError::invalid(
                format!("{PATH}.values"),
                at(requirement, "values"),
                "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => {
                let detail = "not a valid selector operator";
                errs.push(FieldError::invalid(format!("{PATH}.operator"), other, detail));
            }
        }
        seen.push(scope);
    }
    for (one, other) in OPPOSITES {
        if seen.contains(&one) && seen.contains(&other) {
            errs.push(FieldError::invalid(PATH, at(spec, "scopes"), "conflicting scopes"));
        }
    }
}

pub(super) fn limit_range(object: &Value, errs: &mut Errors) {
    let mut types: Vec<&str> = Vec::new();
    for (i, limit) in list(at(object, "spec"), "limits").iter().enumerate() {
        let path = format!("spec.limits[{i}]");
        let kind = text(limit, "type");
        let bad = names::qualified_name(kind);
        if bad.is_empty() {
            if !kind.contains('/') && !matches!(kind, "Pod" | "Container" | "PersistentVolumeClaim") {
                let detail = "must be a standard limit type or fully qualified";
                errs.push(FieldError::invalid(format!("{path}.type"), kind, detail));
            }
        } else {
            invalid_each(errs, &format!("{path}.type"), kind, bad);
        }
        if types.contains(&kind) {
            errs.push(FieldError::duplicate(format!("{path}.type"), kind));
        }
        types.push(kind);
        limit_item(limit, kind, &path, errs);
    }
}

/// The name of a resource that a limit of this type may be about.
fn limit_name(name: &str, kind: &str, path: &str, errs: &mut Errors) {
    if matches!(kind, "Pod" | "Container") {
        container_resource_name(name, path, errs);
    } else {
        resource_name(name, path, errs);
    }
}

/// The ratio of the greatest to the smallest allowed amount, as upstream computes it: exactly, where it can.
fn range_ratio(ratio: Quantity, min: Quantity, max: Quantity) -> (f64, f64) {
    const EXACT: i64 = i64::MAX / 1000;
    if [ratio, min, max].iter().all(|q| q.value() < EXACT) {
        (ratio.milli_value() as f64 / 1000.0, max.milli_value() as f64 / min.milli_value() as f64)
    } else {
        (ratio.value() as f64, max.value() as f64 / min.value() as f64)
    }
}

fn limit_item(limit: &Value, kind: &str, path: &str, errs: &mut Errors) {
    let mut keys: Vec<&String> = Vec::new();
    for field in ["max", "min", "default", "defaultRequest"] {
        if kind == "Pod" && field.starts_with("default") {
            if map(limit, field).next().is_some() {
                let detail = "may not be specified when `type` is 'Pod'";
                errs.push(FieldError::forbidden(format!("{path}.{field}"), detail));
            }
            continue;
        }
        for (name, _) in map(limit, field) {
            let at_name = format!("{path}.{field}[{name}]");
            limit_name(name, kind, &at_name, errs);
            keys.push(name);
        }
    }
    if kind == "PersistentVolumeClaim" {
        let storage = |field: &str| at(limit, field).get("storage").is_some();
        if !storage("min") && !storage("max") {
            errs.push(FieldError::required(
                format!("{path}.limits"),
                "either minimum or maximum storage value is required, but neither was provided",
            ));
        }
    }
    for (name, _) in map(limit, "maxLimitRequestRatio") {
        limit_name(name, kind, &format!("{path}.maxLimitRequestRatio[{name}]"), errs);
        keys.push(name);
    }
    keys.sort();
    keys.dedup();
    for key in keys {
        let get = |field: &str| at(limit, field).get(key).map(quantity);
        let (min, max) = (get("min"), get("max"));
        let (standard, request) = (get("default"), get("defaultRequest"));
        let mut bad = |field: &str, q: Quantity, detail: String| {
            errs.push(FieldError::invalid(format!("{path}.{field}[{key}]"), q.to_string(), detail));
        };
        let above = |a: Option<Quantity>, b: Option<Quantity>| a.zip(b).filter(|(a, b)| a > b);
        if let Some((min, max)) = above(min, max) {
            bad("min", min, format!("min value {min} is greater than max value {max}"));
        }
        if let Some((min, request)) = above(min, request) {
            bad(
                "defaultRequest",
                request,
                format!("min value {min} is greater than default request value {request}"),
            );
        }
        if let Some((request, max)) = above(request, max) {
            bad(
                "defaultRequest",
                request,
                format!("default request value {request} is greater than max value {max}"),
            );
        }
        if let Some((request, standard)) = above(request, standard) {
            let detail =
                format!("default request value {request} is greater than default limit value {standard}");
            bad("defaultRequest", request, detail);
        }
        if let Some((min, standard)) = above(min, standard) {
            bad("default", min, format!("min value {min} is greater than default value {standard}"));
        }
        if let Some((standard, max)) = above(standard, max) {
            // Upstream shows the limit.
            bad("default", max, format!("default value {standard} is greater than max value {max}"));
        }
        if let Some(ratio) = get("maxLimitRequestRatio").filter(|r| *r < Quantity::from_milli(1000)) {
            bad("maxLimitRequestRatio", ratio, format!("ratio {ratio} is less than 1"));
        }
        if let (Some(ratio), Some(min), Some(max)) = (get("maxLimitRequestRatio"), min, max) {
            let (asked, possible) = range_ratio(ratio, min, max);
            if asked > possible {
                let detail = format!("ratio {ratio} is greater than max/min = {possible:.6}");
                bad("maxLimitRequestRatio", ratio, detail);
            }
        }
        if let (Some(standard), Some(request)) = (standard, request)
            && !overcommitted(key)
            && standard != request
        {
            let detail =
                format!("default value {standard} must equal to defaultRequest value {request} in {key}");
            bad("defaultRequest", request, detail);
        }
    }
}

/// Whole numbers of a status that may not be negative.
pub(super) fn nonnegative_fields(status: &Value, path: &str, fields: &[&str], errs: &mut Errors) {
    for field in fields {
        let value = super::int(status, field).unwrap_or_default();
        nonnegative(errs, &format!("{path}.{field}"), value);
    }
}
