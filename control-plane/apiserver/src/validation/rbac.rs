//! Roles and their bindings.

use kelp_model::names;
use serde_json::{Value, json};

use super::{Errors, at, invalid_each, list, selector, text, texts};
use crate::error::FieldError;

const GROUP: &str = "rbac.authorization.k8s.io";

pub(super) fn role(kind: &str, object: &Value, errs: &mut Errors) {
    for (i, rule) in list(object, "rules").iter().enumerate() {
        policy_rule(rule, kind == "Role", &format!("rules[{i}]"), errs);
    }
    let aggregation = at(object, "aggregationRule");
    if kind == "Role" || aggregation.is_null() {
        return;
    }
    let path = "aggregationRule.clusterRoleSelectors";
    if list(aggregation, "clusterRoleSelectors").is_empty() {
        let why = "at least one clusterRoleSelector required if aggregationRule is non-nil";
        errs.push(FieldError::required(path, why));
    }
    for (i, labels) in list(aggregation, "clusterRoleSelectors").iter().enumerate() {
        selector::label_selector(labels, &format!("{path}[{i}]"), errs);
    }
}

fn policy_rule(rule: &Value, namespaced: bool, path: &str, errs: &mut Errors) {
    if list(rule, "verbs").is_empty() {
        errs.push(FieldError::required(format!("{path}.verbs"), "verbs must contain at least one value"));
    }
    let urls = at(rule, "nonResourceURLs");
    if !list(rule, "nonResourceURLs").is_empty() {
        let mut refuse = |why: &str| {
            errs.push(FieldError::invalid(format!("{path}.nonResourceURLs"), urls, why));
        };
        if namespaced {
            refuse("namespaced rules cannot apply to non-resource URLs");
        }
        if ["apiGroups", "resources", "resourceNames"].iter().any(|field| !list(rule, field).is_empty()) {
            refuse("rules cannot apply to both regular resources and non-resource URLs");
        }
        return;
    }
    if texts(rule, "apiGroups").next().is_none() {
        let why = "resource rules must supply at least one api group";
        errs.push(FieldError::required(format!("{path}.apiGroups"), why));
    }
    if texts(rule, "resources").next().is_none() {
        let why = "resource rules must supply at least one resource";
        errs.push(FieldError::required(format!("{path}.resources"), why));
    }
}

pub(super) fn binding(kind: &str, object: &Value, errs: &mut Errors) {
    let namespaced = kind == "RoleBinding";
    let role = at(object, "roleRef");
    if text(role, "apiGroup") != GROUP {
        errs.push(FieldError::not_supported("roleRef.apiGroup", text(role, "apiGroup"), &[GROUP]));
    }
    let kinds: &[&str] = if namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    if !kinds.contains(&text(role, "kind")) {
        errs.push(FieldError::not_supported("roleRef.kind", text(role, "kind"), kinds));
    }
    match text(role, "name") {
        "" => errs.push(FieldError::required("roleRef.name", "")),
        name => invalid_each(errs, "roleRef.name", name, names::path_segment_name(name)),
    }
    for (i, subject) in list(object, "subjects").iter().enumerate() {
        self::subject(subject, namespaced, &format!("subjects[{i}]"), errs);
    }
}

fn subject(subject: &Value, namespaced: bool, path: &str, errs: &mut Errors) {
    let (name, group) = (text(subject, "name"), text(subject, "apiGroup"));
    if name.is_empty() {
        errs.push(FieldError::required(format!("{path}.name"), ""));
    }
    match text(subject, "kind") {
        "ServiceAccount" => {
            if !name.is_empty() {
                invalid_each(errs, &format!("{path}.name"), name, names::dns1123_subdomain(name));
            }
            if !group.is_empty() {
                errs.push(FieldError::not_supported(format!("{path}.apiGroup"), group, &[""]));
            }
            if !namespaced && text(subject, "namespace").is_empty() {
                errs.push(FieldError::required(format!("{path}.namespace"), ""));
            }
        }
        "User" | "Group" => {
            if group != GROUP {
                errs.push(FieldError::not_supported(format!("{path}.apiGroup"), group, &[GROUP]));
            }
        }
        kind => {
            let kinds = &["ServiceAccount", "User", "Group"];
            errs.push(FieldError::not_supported(format!("{path}.kind"), kind, kinds));
        }
    }
}

/// A binding's role is what it is.
pub(super) fn binding_update(new: &Value, old: &Value, errs: &mut Errors) {
    let role = |object: &Value| {
        let role = at(object, "roleRef");
        json!({"APIGroup": text(role, "apiGroup"), "Kind": text(role, "kind"), "Name": text(role, "name")})
    };
    let new = role(new);
    if new != role(old) {
        errs.push(FieldError::invalid("roleRef", &new, "cannot change roleRef"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(check: impl Fn(&mut Errors)) -> Vec<String> {
        let mut errs = Errors::new();
        check(&mut errs);
        errs.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rules() {
        let role =
            |kind: &str, rule: Value| errors(|errs| super::role(kind, &json!({"rules": [rule]}), errs));
        assert_eq!(
            role("Role", json!({"nonResourceURLs": ["/x"], "resources": ["y"]})),
            [
                "rules[0].verbs: Required value: verbs must contain at least one value",
                "rules[0].nonResourceURLs: Invalid value: [\"/x\"]: namespaced rules cannot apply to non-resource URLs",
                "rules[0].nonResourceURLs: Invalid value: [\"/x\"]: rules cannot apply to both regular resources and non-resource URLs"
            ]
        );
        assert_eq!(
            role("ClusterRole", json!({"verbs": ["get"]})),
            [
                "rules[0].apiGroups: Required value: resource rules must supply at least one api group",
                "rules[0].resources: Required value: resource rules must supply at least one resource"
            ]
        );
        let empty = json!({"aggregationRule": {}});
        assert_eq!(errors(|errs| super::role("ClusterRole", &empty, errs)).len(), 1);
    }

    #[test]
    fn bindings() {
        let object = json!({"roleRef": {"apiGroup": GROUP, "kind": "Role"}, "subjects": [
            {"kind": "ServiceAccount", "name": "A", "apiGroup": "x"}, {"kind": "User"}]});
        let found = errors(|errs| binding("ClusterRoleBinding", &object, errs));
        assert_eq!(found.len(), 7, "{found:?}");
        assert_eq!(found[0], "roleRef.kind: Unsupported value: \"Role\": supported values: \"ClusterRole\"");
        assert_eq!(found[1], "roleRef.name: Required value");
        assert_eq!(found[4], "subjects[0].namespace: Required value");
        let mut other = object.clone();
        other["roleRef"]["name"] = "n".into();
        assert_eq!(
            errors(|errs| binding_update(&other, &object, errs)),
            [
                "roleRef: Invalid value: {\"APIGroup\":\"rbac.authorization.k8s.io\",\"Kind\":\"Role\",\"Name\":\"n\"}: cannot change roleRef"
            ]
        );
    }
}
