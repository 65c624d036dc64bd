//! Admission webhooks, and what they share with admission policies: rules, conditions, clients.

use kelp_model::names;
use serde_json::Value;
use std::collections::BTreeSet;

use super::{Errors, at, int, invalid_each, list, same, selector, set, text, texts};
use crate::error::FieldError;

pub(super) const FAILURE_POLICIES: [&str; 2] = ["Fail", "Ignore"];
pub(super) const MATCH_POLICIES: [&str; 2] = ["Equivalent", "Exact"];
pub(super) const REINVOCATION_POLICIES: [&str; 2] = ["IfNeeded", "Never"];
const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
/// Review versions that the release before this one speaks.
const REVIEWS: [&str; 2] = ["v1", "v1beta1"];
/// Side effects of webhooks that may be called for dry runs, and all there are.
const NO_EFFECTS: [&str; 2] = ["None", "NoneOnDryRun"];
const EFFECTS: [&str; 4] = ["None", "NoneOnDryRun", "Some", "Unknown"];

/// A pointer that is unset is no error, another value than the supported ones is.
pub(super) fn optional_one_of(
    holder: &Value,
    field: &str,
    path: &str,
    supported: &[&str],
    errs: &mut Errors,
) {
    let value = text(holder, field);
    if set(holder, field) && !supported.contains(&value) {
        errs.push(FieldError::not_supported(format!("{path}.{field}"), value, supported));
    }
}

/// A configuration of webhooks; `old` is the stored one: what it does wrong already may stay so.
pub(super) fn configuration(object: &Value, old: Option<&Value>, errs: &mut Errors) {
    let before = old.map(|o| list(o, "webhooks"));
    let all = |holds: &dyn Fn(&Value) -> bool| before.is_none_or(|hooks| hooks.iter().all(holds));
    let quiet = |hook: &Value| NO_EFFECTS.contains(&text(hook, "sideEffects"));
    let effects: &[&str] = if all(&quiet) { &NO_EFFECTS } else { &EFFECTS };
    let spoken = |hook: &Value| {
        list(hook, "admissionReviewVersions").is_empty()
            || texts(hook, "admissionReviewVersions").any(|v| REVIEWS.contains(&v))
    };
    let reviews = all(&spoken);
    let unique = before.is_none_or(|hooks| {
        hooks.iter().map(|h| text(h, "name")).collect::<BTreeSet<_>>().len() == hooks.len()
    });
    let hooks = list(object, "webhooks");
    let conditions_changed = before.is_none_or(|before| {
        before.len() != hooks.len()
            || before
                .iter()
                .zip(hooks)
                .any(|(b, h)| !same(at(b, "matchConditions"), at(h, "matchConditions")))
    });
    let mut seen = BTreeSet::new();
    for (i, hook) in hooks.iter().enumerate() {
        let path = format!("webhooks[{i}]");
        let name = text(hook, "name");
        qualified_name(name, &format!("{path}.name"), errs);
        for (j, rule) in list(hook, "rules").iter().enumerate() {
            operations_rule(rule, &format!("{path}.rules[{j}]"), errs);
        }
        optional_one_of(hook, "failurePolicy", &path, &FAILURE_POLICIES, errs);
        optional_one_of(hook, "matchPolicy", &path, &MATCH_POLICIES, errs);
        if set(hook, "sideEffects") {
            optional_one_of(hook, "sideEffects", &path, effects, errs);
        } else {
            let detail = format!("must specify one of {}", effects.join(", "));
            errs.push(FieldError::required(format!("{path}.sideEffects"), detail));
        }
        if let Some(seconds) = int(hook, "timeoutSeconds").filter(|s| !(1..=30).contains(s)) {
            let detail = "the timeout value must be between 1 and 30 seconds";
            errs.push(FieldError::invalid(format!("{path}.timeoutSeconds"), seconds, detail));
        }
        for field in ["namespaceSelector", "objectSelector"] {
            selector::label_selector(at(hook, field), &format!("{path}.{field}"), errs);
        }
        optional_one_of(hook, "reinvocationPolicy", &path, &REINVOCATION_POLICIES, errs);
        client(at(hook, "clientConfig"), &format!("{path}.clientConfig"), errs);
        if conditions_changed {
            match_conditions(hook, &format!("{path}.matchConditions"), errs);
        }
        const VERSIONS: &str = "admissionReviewVersions";
        review_versions(hook, VERSIONS, reviews, &format!("{path}.{VERSIONS}"), errs);
        if unique && !name.is_empty() && !seen.insert(name) {
            errs.push(FieldError::duplicate(format!("{path}.name"), name));
        }
    }
}

/// A name of at least three labels.
fn qualified_name(name: &str, path: &str, errs: &mut Errors) {
    if name.is_empty() {
        errs.push(FieldError::required(path, ""));
        return;
    }
    let messages = names::dns1123_subdomain(name);
    if !messages.is_empty() {
        errs.push(FieldError::invalid(path, name, messages.join(",")));
    } else if name.split('.').count() < 3 {
        let detail = "should be a domain with at least three segments separated by dots";
        errs.push(FieldError::invalid(path, name, detail));
    }
}

/// Versions of reviews, some of which this server speaks if it has to (`known`).
pub(super) fn review_versions(hook: &Value, field: &str, known: bool, path: &str, errs: &mut Errors) {
    let versions: Vec<&str> = texts(hook, field).collect();
    if versions.is_empty() {
        let detail = format!("must specify one of {}", REVIEWS.join(", "));
        errs.push(FieldError::required(path, detail));
        return;
    }
    let mut seen = BTreeSet::new();
    for (i, version) in versions.iter().enumerate() {
        let path = format!("{path}[{i}]");
        if seen.insert(version) {
            invalid_each(errs, &path, version, names::dns1035_label(version));
        } else {
            errs.push(FieldError::invalid(path, *version, "duplicate version"));
        }
    }
    if known && !versions.iter().any(|v| REVIEWS.contains(v)) {
        let detail = format!("must include at least one of {}", REVIEWS.join(", "));
        errs.push(FieldError::invalid(path, at(hook, field), detail));
    }
}

/// A rule with operations of a webhook or policy.
pub(super) fn operations_rule(rule: &Value, path: &str, errs: &mut Errors) {
    let operations: Vec<&str> = texts(rule, "operations").collect();
    let own = format!("{path}.operations");
    if operations.is_empty() {
        errs.push(FieldError::required(own.as_str(), ""));
    }
    if operations.len() > 1 && operations.contains(&"*") {
        let detail = "if '*' is present, must not specify other operations";
        errs.push(FieldError::invalid(own.as_str(), at(rule, "operations"), detail));
    }
    for (i, operation) in operations.iter().enumerate().filter(|(_, o)| !OPERATIONS.contains(o)) {
        errs.push(FieldError::not_supported(format!("{own}[{i}]"), *operation, &OPERATIONS));
    }
    for (field, what) in [("apiGroups", "API groups"), ("apiVersions", "API versions")] {
        let path = format!("{path}.{field}");
        let count = list(rule, field).len();
        if count == 0 {
            errs.push(FieldError::required(path.as_str(), ""));
        }
        if count > 1 && texts(rule, field).any(|v| v == "*") {
            let detail = format!("if '*' is present, must not specify other {what}");
            errs.push(FieldError::invalid(path.as_str(), at(rule, field), detail));
        }
        if field == "apiVersions" {
            for (i, _) in texts(rule, field).enumerate().filter(|(_, v)| v.is_empty()) {
                errs.push(FieldError::required(format!("{path}[{i}]"), ""));
            }
        }
    }
    resources(rule, &format!("{path}.resources"), errs);
    optional_one_of(rule, "scope", path, &["*", "Cluster", "Namespaced"], errs);
}

fn resources(rule: &Value, path: &str, errs: &mut Errors) {
    let all: Vec<&str> = texts(rule, "resources").collect();
    if all.is_empty() {
        errs.push(FieldError::required(path, ""));
    }
    let (mut whole, mut everywhere) = (BTreeSet::new(), BTreeSet::new());
    let mut plain = false;
    for (i, name) in all.iter().enumerate() {
        let path = format!("{path}[{i}]");
        if name.is_empty() {
            errs.push(FieldError::required(path, ""));
            continue;
        }
        let Some((resource, sub)) = name.split_once('/') else {
            plain = *name != "*";
            continue;
        };
        if whole.contains(resource) {
            let detail = format!("if '{resource}/*' is present, must not specify {name}");
            errs.push(FieldError::invalid(path.as_str(), *name, detail));
        }
        if everywhere.contains(sub) {
            let detail = format!("if '*/{sub}' is present, must not specify {name}");
            errs.push(FieldError::invalid(path, *name, detail));
        }
        if sub == "*" {
            whole.insert(resource);
        }
        if resource == "*" {
            everywhere.insert(sub);
        }
    }
    let shown = at(rule, "resources");
    if all.len() > 1 && all.contains(&"*/*") {
        let detail = "if '*/*' is present, must not specify other resources";
        errs.push(FieldError::invalid(path, shown, detail));
    }
    if plain && all.contains(&"*") {
        let detail = "if '*' is present, must not specify other resources without subresources";
        errs.push(FieldError::invalid(path, shown, detail));
    }
}

/// Conditions of a webhook or policy; expressions are not compiled here.
pub(super) fn match_conditions(holder: &Value, path: &str, errs: &mut Errors) {
    const MAX: usize = 64;
    let conditions = list(holder, "matchConditions");
    if conditions.len() > MAX {
        errs.push(FieldError::too_many(path, conditions.len(), MAX));
    }
    let mut seen = BTreeSet::new();
    for (i, condition) in conditions.iter().enumerate() {
        let path = format!("{path}[{i}]");
        if text(condition, "expression").trim().is_empty() {
            errs.push(FieldError::required(format!("{path}.expression"), ""));
        }
        let name = text(condition, "name");
        let path = format!("{path}.name");
        if name.is_empty() {
            errs.push(FieldError::required(path, ""));
            continue;
        }
        invalid_each(errs, &path, name, names::qualified_name(name));
        if !seen.insert(name) {
            errs.push(FieldError::duplicate(path, name));
        }
    }
}

/// How a webhook is reached.
pub(super) fn client(config: &Value, path: &str, errs: &mut Errors) {
    match (set(config, "url"), set(config, "service")) {
        (true, false) => url(text(config, "url"), &format!("{path}.url"), errs),
        (false, true) => service(at(config, "service"), &format!("{path}.service"), errs),
        _ => errs.push(FieldError::required(path, "exactly one of url or service is required")),
    }
}

/// The URL of a webhook.
pub(super) fn url(value: &str, path: &str, errs: &mut Errors) {
    const FORM: &str = "; desired format: https://host[/path]";
    // Read as Go reads references: nothing is required of them.
    let (scheme, rest) = match value.split_once(':') {
        Some((scheme, rest)) if scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b)) => {
            (scheme.to_lowercase(), rest)
        }
        Some(_) if value.starts_with(':') => {
            let parse = format!("parse {}: missing protocol scheme", crate::error::quote(value));
            errs.push(FieldError::required(path, format!("url must be a valid URL: {parse}{FORM}")));
            return;
        }
        _ => (String::new(), value),
    };
    if value.bytes().any(|b| b < 0x20 || b == 0x7f) {
        let parse =
            format!("parse {}: net/url: invalid control character in URL", crate::error::quote(value));
        errs.push(FieldError::required(path, format!("url must be a valid URL: {parse}{FORM}")));
        return;
    }
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority =
        rest.strip_prefix("//").map(|r| r.split('/').next().unwrap_or_default()).unwrap_or_default();
    let (user, host) = match authority.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, authority),
    };
    let mut bad = |shown: &str, detail: String| errs.push(FieldError::invalid(path, shown, detail));
    if scheme != "https" {
        bad(&scheme, format!("'https' is the only allowed URL scheme{FORM}"));
    }
    if host.is_empty() {
        bad(host, format!("host must be specified{FORM}"));
    }
    if let Some(user) = user {
        bad(user, "user information is not permitted in the URL".to_owned());
    }
    if !fragment.is_empty() {
        bad(fragment, "fragments are not permitted in the URL".to_owned());
    }
    if !query.is_empty() {
        bad(query, "query parameters are not permitted in the URL".to_owned());
    }
}

/// The service of a webhook.
pub(super) fn service(service: &Value, path: &str, errs: &mut Errors) {
    // Upstream mixes the two names up: a missing name is told of the namespace.
    for (value, field) in [("namespace", "name"), ("name", "namespace")] {
        if text(service, value).is_empty() {
            errs.push(FieldError::required(format!("{path}.{field}"), ""));
        }
    }
    let port = int(service, "port").unwrap_or_default();
    let messages = names::port_number(port);
    if !messages.is_empty() {
        let detail = format!("port is not valid: {}", messages.join(", "));
        errs.push(FieldError::invalid(format!("{path}.port"), port, detail));
    }
    let value = text(service, "path");
    let mut bad = |detail: String| errs.push(FieldError::invalid(format!("{path}.path"), value, detail));
    match value {
        "" | "/" => return,
        "//" => return bad("segment[0] may not be empty".to_owned()),
        _ => {}
    }
    if !value.starts_with('/') {
        bad("must start with a '/'".to_owned());
    }
    let rest: String = value.chars().skip(1).collect();
    let rest = rest.strip_suffix('/').unwrap_or(&rest);
    for (i, step) in rest.split('/').enumerate() {
        if step.is_empty() {
            bad(format!("segment[{i}] may not be empty"));
            continue;
        }
        for message in names::dns1123_subdomain(step) {
            bad(format!("segment[{i}]: {message}"));
        }
    }
}
