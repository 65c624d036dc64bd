//! Flow schemas and priority levels.

use kelp_model::names;
use serde_json::{Value, json};

use super::{Errors, at, flag, int, invalid_each, list, same, set, text, texts};
use crate::error::FieldError;

const MAX_PRECEDENCE: i64 = 10_000;
const MAX_QUEUES: i64 = 10_000_000;
/// Bits of the hash that a hand of queues is dealt from.
const HASH_BITS: f64 = 60.0;

pub(super) fn check(kind: &str, object: &Value, errs: &mut Errors) {
    match kind {
        "FlowSchema" => flow_schema(object, errs),
        "PriorityLevelConfiguration" => priority_level(object, errs),
        _ => {}
    }
    status(object, errs);
}

pub(super) fn status(object: &Value, errs: &mut Errors) {
    let conditions = list(at(object, "status"), "conditions");
    for (i, condition) in conditions.iter().enumerate() {
        let path = format!("status.conditions[{i}].type");
        let kind = text(condition, "type");
        if conditions.iter().take(i).any(|c| text(c, "type") == kind) {
            errs.push(FieldError::duplicate(path.as_str(), kind));
        }
        if kind.is_empty() {
            errs.push(FieldError::required(path, "must not be empty"));
        }
    }
}

/// The object that upstream fixes under this name, if there is one.
fn mandatory(kind: &str, object: &Value) -> Option<Value> {
    let name = text(at(object, "metadata"), "name");
    crate::bootstrap::flowcontrol::mandatory(kind, name).map(|fixed| at(&fixed, "spec").clone())
}

fn flow_schema(object: &Value, errs: &mut Errors) {
    let spec = at(object, "spec");
    let name = text(at(object, "metadata"), "name");
    let precedence = int(spec, "matchingPrecedence").unwrap_or_default();
    let mut bad =
        |detail: String| errs.push(FieldError::invalid("spec.matchingPrecedence", precedence, detail));
    if precedence <= 0 {
        bad("must be a positive value".to_owned());
    }
    if precedence > MAX_PRECEDENCE {
        bad(format!("must not be greater than {MAX_PRECEDENCE}"));
    }
    if precedence == 1 && name != "exempt" {
        bad("only the schema named 'exempt' may have matchingPrecedence 1".to_owned());
    }
    let method = at(spec, "distinguisherMethod");
    if !method.is_null() && !matches!(text(method, "type"), "ByNamespace" | "ByUser") {
        errs.push(FieldError::not_supported(
            "spec.distinguisherMethod.type",
            json!({"Type": text(method, "type")}),
            &["ByNamespace", "ByUser"],
        ));
    }
    let level = text(at(spec, "priorityLevelConfiguration"), "name");
    let path = "spec.priorityLevelConfiguration.name";
    if level.is_empty() {
        errs.push(FieldError::required(path, "must reference a priority level"));
    } else {
        invalid_each(errs, path, level, names::dns1123_subdomain(level));
    }
    for (i, rules) in list(spec, "rules").iter().enumerate() {
        policy_rules(rules, &format!("spec.rules[{i}]"), errs);
    }
    if mandatory("FlowSchema", object).is_some_and(|fixed| !same(&fixed, spec)) {
        let detail = format!("spec of '{name}' must equal the fixed value");
        errs.push(FieldError::invalid("spec", spec, detail));
    }
}

fn policy_rules(rules: &Value, path: &str, errs: &mut Errors) {
    if list(rules, "subjects").is_empty() {
        let detail = "subjects must contain at least one value";
        errs.push(FieldError::required(format!("{path}.subjects"), detail));
    }
    for (i, s) in list(rules, "subjects").iter().enumerate() {
        subject(s, &format!("{path}.subjects[{i}]"), errs);
    }
    let (resources, others) = (list(rules, "resourceRules"), list(rules, "nonResourceRules"));
    if resources.is_empty() && others.is_empty() {
        let detail = "at least one of resourceRules and nonResourceRules has to be non-empty";
        errs.push(FieldError::required(path, detail));
    }
    for (i, rule) in resources.iter().enumerate() {
        resource_rule(rule, &format!("{path}.resourceRules[{i}]"), errs);
    }
    for (i, rule) in others.iter().enumerate() {
        non_resource_rule(rule, &format!("{path}.nonResourceRules[{i}]"), errs);
    }
}

fn subject(subject: &Value, path: &str, errs: &mut Errors) {
    const KINDS: [(&str, &str); 3] =
        [("ServiceAccount", "serviceAccount"), ("User", "user"), ("Group", "group")];
    let kind = text(subject, "kind");
    let Some((_, own)) = KINDS.iter().find(|(k, _)| *k == kind) else {
        let supported = ["Group", "ServiceAccount", "User"];
        errs.push(FieldError::not_supported(format!("{path}.kind"), kind, &supported));
        return;
    };
    let value = at(subject, own);
    let own_path = format!("{path}.{own}");
    if value.is_null() {
        errs.push(FieldError::required(own_path, format!("{own} is required when subject kind is '{kind}'")));
    } else {
        let name = text(value, "name");
        if name.is_empty() {
            errs.push(FieldError::required(format!("{own_path}.name"), ""));
        } else if kind == "ServiceAccount" && name != "*" {
            invalid_each(errs, &format!("{own_path}.name"), name, names::dns1123_subdomain(name));
        }
        if kind == "ServiceAccount" {
            let namespace = text(value, "namespace");
            let path = format!("{own_path}.namespace");
            if namespace.is_empty() {
                errs.push(FieldError::required(path, "must specify namespace for service account"));
            } else {
                invalid_each(errs, &path, namespace, names::dns1123_label(namespace));
            }
        }
    }
    for (other, field) in KINDS.iter().filter(|(k, field)| *k != kind && set(subject, field)) {
        let detail = format!("{field} is forbidden when subject kind is not '{other}'");
        errs.push(FieldError::forbidden(format!("{path}.{field}"), detail));
    }
}

const VERBS: [&str; 9] =
    ["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];

fn verbs(rule: &Value, path: &str, errs: &mut Errors) {
    let path = format!("{path}.verbs");
    let count = list(rule, "verbs").len();
    if count == 0 {
        errs.push(FieldError::required(path, "verbs must contain at least one value"));
    } else if texts(rule, "verbs").any(|v| v == "*") {
        if count > 1 {
            let detail = "if '*' is present, must not specify other verbs";
            errs.push(FieldError::invalid(path, at(rule, "verbs"), detail));
        }
    } else if !texts(rule, "verbs").all(|v| VERBS.contains(&v)) {
        errs.push(FieldError::not_supported(path, at(rule, "verbs"), &VERBS));
    }
}

fn non_resource_rule(rule: &Value, path: &str, errs: &mut Errors) {
    verbs(rule, path, errs);
    let urls_path = format!("{path}.nonResourceURLs");
    let urls: Vec<&str> = texts(rule, "nonResourceURLs").collect();
    if urls.is_empty() {
        errs.push(FieldError::required(urls_path, "nonResourceURLs must contain at least one value"));
    } else if urls.contains(&"*") {
        if urls.len() > 1 {
            let detail = "if '*' is present, must not specify other non-resource URLs";
            errs.push(FieldError::invalid(urls_path, at(rule, "nonResourceURLs"), detail));
        }
    } else {
        for (i, url) in urls.into_iter().enumerate() {
            if let Some(why) = url_fault(url) {
                errs.push(FieldError::invalid(format!("{urls_path}[{i}]"), url, why));
            }
        }
    }
}

fn url_fault(url: &str) -> Option<&'static str> {
    let stars = url.matches('*').count();
    if url.is_empty() {
        Some("must not be empty")
    } else if url == "/" {
        None
    } else if !url.starts_with('/') {
        Some("must start with slash")
    } else if url.contains(' ') {
        Some("must not contain white-space")
    } else if url.contains("//") {
        Some("must not contain double slash")
    } else if stars > 1 || (stars == 1 && !url.ends_with("/*")) {
        Some("wildcard can only do suffix matching")
    } else {
        None
    }
}

fn resource_rule(rule: &Value, path: &str, errs: &mut Errors) {
    verbs(rule, path, errs);
    for (field, one, other) in
        [("apiGroups", "api group", "api groups"), ("resources", "resource", "resources")]
    {
        let count = list(rule, field).len();
        let path = format!("{path}.{field}");
        if count == 0 {
            errs.push(FieldError::required(path, format!("resource rules must supply at least one {one}")));
        } else if count > 1 && texts(rule, field).any(|v| v == "*") {
            let detail = format!("if '*' is present, must not specify other {other}");
            errs.push(FieldError::invalid(path, at(rule, field), detail));
        }
    }
    let namespaces: Vec<&str> = texts(rule, "namespaces").collect();
    let path = format!("{path}.namespaces");
    if namespaces.is_empty() && !flag(rule, "clusterScope") {
        let detail = "resource rules that are not cluster scoped must supply at least one namespace";
        errs.push(FieldError::required(path, detail));
    } else if namespaces.contains(&"*") {
        if namespaces.len() > 1 {
            let detail = "if '*' is present, must not specify other namespaces";
            errs.push(FieldError::invalid(path, at(rule, "namespaces"), detail));
        }
    } else {
        for (i, namespace) in namespaces.into_iter().enumerate() {
            for message in names::dns1123_label(namespace) {
                let detail = format!("each member of this list must be '*' or a DNS-1123 label; {message}");
                errs.push(FieldError::invalid(format!("{path}[{i}]"), namespace, detail));
            }
        }
    }
}

fn priority_level(object: &Value, errs: &mut Errors) {
    let spec = at(object, "spec");
    let name = text(at(object, "metadata"), "name");
    let kind = text(spec, "type");
    if (name == "exempt") != (kind == "Exempt") {
        let detail = "type must be 'Exempt' if and only if name is 'exempt'";
        errs.push(FieldError::invalid("spec.type", kind, detail));
    }
    let (limited, exempt) = (at(spec, "limited"), at(spec, "exempt"));
    match kind {
        "Exempt" => {
            if !limited.is_null() {
                errs.push(FieldError::forbidden("spec.limited", "must be nil if the type is not Limited"));
            }
            if exempt.is_null() {
                let detail = "must not be empty if priority level is Exempt";
                errs.push(FieldError::required("spec.exempt", detail));
            } else {
                shares(exempt, "spec.exempt", errs);
                lendable(exempt, "spec.exempt", errs);
            }
        }
        "Limited" => {
            if !exempt.is_null() {
                errs.push(FieldError::forbidden("spec.exempt", "must be nil if the type is Limited"));
            }
            if limited.is_null() {
                errs.push(FieldError::required("spec.limited", "must not be empty when type is Limited"));
            } else {
                limit(limited, errs);
            }
        }
        other => errs.push(FieldError::not_supported("spec.type", other, &["Exempt", "Limited"])),
    }
    let Some(fixed) = mandatory("PriorityLevelConfiguration", object) else { return };
    let mut spec_seen = spec.clone();
    if name == "exempt" {
        // Its numbers are the administrator's.
        spec_seen["exempt"] = at(&fixed, "exempt").clone();
    }
    if !same(&fixed, &spec_seen) {
        let except = if name == "exempt" { " except the 'spec.exempt' field" } else { "" };
        let detail = format!("spec of '{name}'{except} must equal the fixed value");
        errs.push(FieldError::invalid("spec", spec, detail));
    }
}

fn shares(holder: &Value, path: &str, errs: &mut Errors) {
    if let Some(shares) = int(holder, "nominalConcurrencyShares").filter(|s| *s < 0) {
        let path = format!("{path}.nominalConcurrencyShares");
        errs.push(FieldError::invalid(path, shares, "must be a non-negative integer"));
    }
}

fn lendable(holder: &Value, path: &str, errs: &mut Errors) {
    if let Some(percent) = int(holder, "lendablePercent").filter(|p| !(0..=100).contains(p)) {
        let path = format!("{path}.lendablePercent");
        errs.push(FieldError::invalid(path, percent, "must be between 0 and 100, inclusive"));
    }
}

fn limit(limited: &Value, errs: &mut Errors) {
    const PATH: &str = "spec.limited";
    shares(limited, PATH, errs);
    let response = at(limited, "limitResponse");
    let path = format!("{PATH}.limitResponse");
    let queuing = at(response, "queuing");
    match text(response, "type") {
        "Reject" => {
            if !queuing.is_null() {
                let detail = "must be nil if limited.limitResponse.type is not Limited";
                errs.push(FieldError::forbidden(format!("{path}.queuing"), detail));
            }
        }
        "Queue" if queuing.is_null() => {
            let detail = "must not be empty if limited.limitResponse.type is Limited";
            errs.push(FieldError::required(format!("{path}.queuing"), detail));
        }
        "Queue" => queues(queuing, &format!("{path}.queuing"), errs),
        other => errs.push(FieldError::not_supported(format!("{path}.type"), other, &["Queue", "Reject"])),
    }
    lendable(limited, PATH, errs);
    if let Some(percent) = int(limited, "borrowingLimitPercent").filter(|p| *p < 0) {
        let path = format!("{PATH}.borrowingLimitPercent");
        errs.push(FieldError::invalid(path, percent, "if specified, must be a non-negative integer"));
    }
}

fn queues(queuing: &Value, path: &str, errs: &mut Errors) {
    let number = |field: &str| int(queuing, field).unwrap_or_default();
    let mut bad = |field: &str, detail: String| {
        errs.push(FieldError::invalid(format!("{path}.{field}"), number(field), detail));
    };
    if number("queueLengthLimit") <= 0 {
        bad("queueLengthLimit", "must be positive".to_owned());
    }
    let (queues, hand) = (number("queues"), number("handSize"));
    if queues <= 0 {
        bad("queues", "must be positive".to_owned());
    } else if queues > MAX_QUEUES {
        bad("queues", format!("must not be greater than {MAX_QUEUES}"));
    }
    if hand <= 0 {
        bad("handSize", "must be positive".to_owned());
    } else if hand > queues {
        bad("handSize", format!("should not be greater than queues ({queues})"));
    } else if ((queues as f64).log2() * hand as f64).ceil() > HASH_BITS {
        bad(
            "handSize",
            format!(
                "required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {HASH_BITS}"
            ),
        );
    }
}
