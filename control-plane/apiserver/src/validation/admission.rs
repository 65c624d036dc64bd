//! Validating and mutating admission policies and their bindings. Expressions are not compiled here.

use kelp_model::names;
use serde_json::Value;
use std::collections::BTreeSet;

use super::webhook::{self, FAILURE_POLICIES, MATCH_POLICIES, REINVOCATION_POLICIES};
use super::{Errors, at, conditions, invalid_each, list, same, selector, set, text, texts};
use crate::error::FieldError;

pub(super) fn check(kind: &str, object: &Value, old: Option<&Value>, errs: &mut Errors) {
    match kind {
        "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration" => {
            webhook::configuration(object, old, errs);
        }
        "ValidatingAdmissionPolicy" => validating(object, old, errs),
        "MutatingAdmissionPolicy" => mutating(object, old, errs),
        "ValidatingAdmissionPolicyBinding" => {
            binding(object, errs);
            actions(at(object, "spec"), errs);
        }
        "MutatingAdmissionPolicyBinding" => binding(object, errs),
        _ => {}
    }
}

/// What both kinds of policies have in common before their own rules.
fn head(object: &Value, old: Option<&Value>, errs: &mut Errors) {
    let spec = at(object, "spec");
    if set(spec, "failurePolicy") {
        webhook::optional_one_of(spec, "failurePolicy", "spec", &FAILURE_POLICIES, errs);
    } else {
        errs.push(FieldError::required("spec.failurePolicy", ""));
    }
    if set(spec, "paramKind") {
        parameter_kind(at(spec, "paramKind"), errs);
    }
    let constraints = at(spec, "matchConstraints");
    if constraints.is_null() {
        errs.push(FieldError::required("spec.matchConstraints", ""));
    } else {
        match_resources(constraints, "spec.matchConstraints", errs);
        if list(constraints, "resourceRules").is_empty() {
            errs.push(FieldError::required("spec.matchConstraints.resourceRules", ""));
        }
    }
    let unchanged = old.is_some_and(|old| {
        let old = at(old, "spec");
        ["paramKind", "matchConditions"].into_iter().all(|field| same(at(spec, field), at(old, field)))
    });
    if !unchanged {
        webhook::match_conditions(spec, "spec.matchConditions", errs);
    }
    for (i, variable) in list(spec, "variables").iter().enumerate() {
        let path = format!("spec.variables[{i}]");
        let name = text(variable, "name");
        if name.trim().is_empty() {
            errs.push(FieldError::required(format!("{path}.name"), "name is not specified"));
        } else if !identifier(name) {
            let detail = "name is not a valid CEL identifier";
            errs.push(FieldError::invalid(format!("{path}.name"), name, detail));
        }
        expression(variable, "expression", &path, errs);
    }
}

/// A name that expressions may use.
fn identifier(name: &str) -> bool {
    let start = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    start
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && !crate::cel::RESERVED.contains(&name)
}

fn expression(holder: &Value, field: &str, path: &str, errs: &mut Errors) {
    if text(holder, field).trim().is_empty() {
        errs.push(FieldError::required(format!("{path}.{field}"), format!("{field} is not specified")));
    }
}

fn validating(object: &Value, old: Option<&Value>, errs: &mut Errors) {
    head(object, old, errs);
    let spec = at(object, "spec");
    let (validations, annotations) = (list(spec, "validations"), list(spec, "auditAnnotations"));
    if validations.is_empty() && annotations.is_empty() {
        for field in ["validations", "auditAnnotations"] {
            let detail = "validations or auditAnnotations must contain at least one item";
            errs.push(FieldError::required(format!("spec.{field}"), detail));
        }
        return;
    }
    for (i, validation) in validations.iter().enumerate() {
        let path = format!("spec.validations[{i}]");
        expression(validation, "expression", &path, errs);
        let (message, computed) = (text(validation, "message"), text(validation, "messageExpression"));
        if !computed.is_empty() && computed.trim().is_empty() {
            let path = format!("{path}.messageExpression");
            errs.push(FieldError::invalid(path, computed, "must be non-empty if specified"));
        }
        if !message.is_empty() && message.trim().is_empty() {
            let detail = "message must be non-empty if specified";
            errs.push(FieldError::invalid(format!("{path}.message"), message, detail));
        } else if message.trim().contains(['\n', '\r']) {
            let detail = "message must not contain line breaks";
            errs.push(FieldError::invalid(format!("{path}.message"), message, detail));
        }
        const REASONS: [&str; 3] = ["Forbidden", "Invalid", "RequestEntityTooLarge"];
        webhook::optional_one_of(validation, "reason", &path, &REASONS, errs);
    }
    audit_annotations(object, annotations, errs);
}

fn audit_annotations(object: &Value, annotations: &[Value], errs: &mut Errors) {
    const PATH: &str = "spec.auditAnnotations";
    const MAX: usize = 20;
    const MAX_EXPRESSION: usize = 5 * 1024;
    if annotations.len() > MAX {
        let shown = at(at(object, "spec"), "auditAnnotations");
        let detail = format!("must not have more than {MAX} auditAnnotations");
        errs.push(FieldError::invalid(PATH, shown, detail));
    }
    let policy = text(at(object, "metadata"), "name");
    let mut keys = BTreeSet::new();
    for (i, annotation) in annotations.iter().enumerate() {
        let path = format!("{PATH}[{i}]");
        let key = text(annotation, "key");
        let key_path = format!("{path}.key");
        if policy.is_empty() {
            errs.push(FieldError::invalid(key_path.as_str(), key, "requires metadata.name be non-empty"));
        } else {
            let full = format!("{policy}/{key}");
            invalid_each(errs, &key_path, &full, names::qualified_name(&full));
        }
        expression(annotation, "valueExpression", &path, errs);
        if text(annotation, "valueExpression").trim().len() > MAX_EXPRESSION {
            let detail = format!("must not exceed {MAX_EXPRESSION} bytes in length");
            errs.push(FieldError::required(format!("{path}.valueExpression"), detail));
        }
        if !keys.insert(key) {
            errs.push(FieldError::duplicate(key_path, key));
        }
    }
}

fn mutating(object: &Value, old: Option<&Value>, errs: &mut Errors) {
    head(object, old, errs);
    let spec = at(object, "spec");
    let mutations = list(spec, "mutations");
    if mutations.is_empty() {
        errs.push(FieldError::required("spec.mutations", "mutations must contain at least one item"));
    }
    for (i, mutation) in mutations.iter().enumerate() {
        mutation_rules(mutation, &format!("spec.mutations[{i}]"), errs);
    }
    if text(spec, "reinvocationPolicy").is_empty() {
        errs.push(FieldError::required("spec.reinvocationPolicy", ""));
    } else {
        webhook::optional_one_of(spec, "reinvocationPolicy", "spec", &REINVOCATION_POLICIES, errs);
    }
}

fn mutation_rules(mutation: &Value, path: &str, errs: &mut Errors) {
    const KINDS: [(&str, &str); 2] =
        [("ApplyConfiguration", "applyConfiguration"), ("JSONPatch", "jsonPatch")];
    let kind = text(mutation, "patchType");
    if kind.is_empty() {
        errs.push(FieldError::required(format!("{path}.patchType"), ""));
        return;
    }
    if !KINDS.iter().any(|(known, _)| *known == kind) {
        let supported = KINDS.map(|(known, _)| known);
        errs.push(FieldError::not_supported(format!("{path}.patchType"), kind, &supported));
        return;
    }
    for (own, field) in KINDS {
        let path = format!("{path}.{field}");
        match (own == kind, set(mutation, field)) {
            (true, false) => {
                errs.push(FieldError::required(path, format!("must be specified when patchType is {kind}")));
            }
            (true, true) => expression(at(mutation, field), "expression", &path, errs),
            (false, true) => {
                let detail = format!("must not be specified when patchType is {kind}");
                errs.push(FieldError::invalid(path, at(mutation, field), detail));
            }
            (false, false) => {}
        }
    }
}

fn parameter_kind(kind: &Value, errs: &mut Errors) {
    const PATH: &str = "spec.paramKind";
    let path = format!("{PATH}.apiVersion");
    let api_version = text(kind, "apiVersion");
    if api_version.is_empty() {
        errs.push(FieldError::required(path, ""));
    } else if api_version.matches('/').count() > 1 {
        let detail = format!("unexpected GroupVersion string: {api_version}");
        errs.push(FieldError::invalid(path, api_version, detail));
    } else {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let messages = if group.is_empty() { Vec::new() } else { names::dns1123_subdomain(group) };
        if !messages.is_empty() {
            errs.push(FieldError::invalid(path.as_str(), group, messages.join(",")));
        }
        if version.is_empty() {
            errs.push(FieldError::invalid(path, api_version, "version must be specified"));
        } else {
            let messages = names::dns1035_label(version);
            if !messages.is_empty() {
                errs.push(FieldError::invalid(path, version, messages.join(",")));
            }
        }
    }
    let path = format!("{PATH}.kind");
    let kind = text(kind, "kind");
    if kind.is_empty() {
        errs.push(FieldError::required(path, ""));
        return;
    }
    let messages = names::dns1035_label(&kind.to_lowercase());
    if !messages.is_empty() {
        let detail = format!("may have mixed case, but should otherwise match: {}", messages.join(","));
        errs.push(FieldError::invalid(path, kind, detail));
    }
}

fn match_resources(resources: &Value, path: &str, errs: &mut Errors) {
    if set(resources, "matchPolicy") {
        webhook::optional_one_of(resources, "matchPolicy", path, &MATCH_POLICIES, errs);
    } else {
        errs.push(FieldError::required(format!("{path}.matchPolicy"), ""));
    }
    for field in ["namespaceSelector", "objectSelector"] {
        let path = format!("{path}.{field}");
        if set(resources, field) {
            selector::label_selector(at(resources, field), &path, errs);
        } else {
            errs.push(FieldError::required(path, ""));
        }
    }
    for field in ["resourceRules", "excludeResourceRules"] {
        for (i, rule) in list(resources, field).iter().enumerate() {
            let path = format!("{path}.{field}[{i}]");
            let mut seen = BTreeSet::new();
            for (j, name) in texts(rule, "resourceNames").enumerate() {
                let path = format!("{path}.resourceNames[{j}]");
                invalid_each(errs, &path, name, names::path_segment_name(name));
                if !seen.insert(name) {
                    errs.push(FieldError::duplicate(path, name));
                }
            }
            webhook::operations_rule(rule, &path, errs);
        }
    }
}

fn binding(object: &Value, errs: &mut Errors) {
    let spec = at(object, "spec");
    let policy = text(spec, "policyName");
    if policy.is_empty() {
        errs.push(FieldError::required("spec.policyName", ""));
    } else {
        invalid_each(errs, "spec.policyName", policy, names::dns1123_subdomain(policy));
    }
    parameter_reference(at(spec, "paramRef"), errs);
    if set(spec, "matchResources") {
        match_resources(at(spec, "matchResources"), "spec.matchResources", errs);
    }
}

fn parameter_reference(reference: &Value, errs: &mut Errors) {
    const PATH: &str = "spec.paramRef";
    const BOTH: &str = "name and selector are mutually exclusive";
    if reference.is_null() {
        return;
    }
    let (name, selects) = (text(reference, "name"), set(reference, "selector"));
    if !name.is_empty() {
        invalid_each(errs, &format!("{PATH}.name"), name, names::path_segment_name(name));
        if selects {
            errs.push(FieldError::forbidden(format!("{PATH}.name"), BOTH));
        }
    }
    if selects {
        selector::label_selector(at(reference, "selector"), &format!("{PATH}.selector"), errs);
        if !name.is_empty() {
            errs.push(FieldError::forbidden(format!("{PATH}.selector"), BOTH));
        }
    }
    if name.is_empty() && !selects {
        errs.push(FieldError::required(PATH, "one of name or selector must be specified"));
    }
    super::one_of(
        errs,
        &format!("{PATH}.parameterNotFoundAction"),
        text(reference, "parameterNotFoundAction"),
        &["Deny", "Allow"],
    );
}

fn actions(spec: &Value, errs: &mut Errors) {
    const PATH: &str = "spec.validationActions";
    const ACTIONS: [&str; 3] = ["Audit", "Deny", "Warn"];
    let mut seen = BTreeSet::new();
    for (i, action) in texts(spec, "validationActions").enumerate() {
        let path = format!("{PATH}[{i}]");
        if !ACTIONS.contains(&action) {
            errs.push(FieldError::not_supported(path.as_str(), action, &ACTIONS));
        }
        if !seen.insert(action) {
            errs.push(FieldError::duplicate(path, action));
        }
    }
    if seen.contains("Deny") && seen.contains("Warn") {
        let detail = "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)";
        errs.push(FieldError::invalid(PATH, at(spec, "validationActions"), detail));
    }
    if seen.is_empty() {
        errs.push(FieldError::required(PATH, "at least one validation action is required"));
    }
}

/// The status of a validating policy.
pub(super) fn status(object: &Value, errs: &mut Errors) {
    let status = at(object, "status");
    let warnings = list(at(status, "typeChecking"), "expressionWarnings");
    for (i, warning) in warnings.iter().enumerate() {
        let path = format!("status.typeChecking.expressionWarnings[{i}]");
        for field in ["warning", "fieldRef"] {
            if text(warning, field).trim().is_empty() {
                errs.push(FieldError::required(format!("{path}.{field}"), ""));
            }
        }
    }
    conditions::check(list(status, "conditions"), "status.conditions", errs);
}
