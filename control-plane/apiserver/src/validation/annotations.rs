//! Annotations of pods and of templates that have rules of their own; some of them stand for fields.

use serde_json::{Value, json};

use super::podspec::{each_container, tolerations};
use super::volume::descending_path;
use super::{Errors, at, map, set, text};
use crate::error::FieldError;

/// Marks the object of a static pod.
pub(super) const MIRROR: &str = "kubernetes.io/config.mirror";
const TOLERATIONS: &str = "scheduler.alpha.kubernetes.io/tolerations";
const COST: &str = "controller.kubernetes.io/pod-deletion-cost";
const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP: &str = "container.seccomp.security.alpha.kubernetes.io/";
const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

/// The annotations at `path` of a pod or a template with this spec.
pub(super) fn check(annotations: &Value, spec: &Value, path: &str, errs: &mut Errors) {
    let value = |key: &str| annotations.get(key).and_then(Value::as_str);
    if let Some(mirror) = value(MIRROR)
        && text(spec, "nodeName").is_empty()
    {
        let detail = "must set spec.nodeName if mirror pod annotation is set";
        errs.push(FieldError::invalid(format!("{path}[{MIRROR}]"), mirror, detail));
    }
    if let Some(given) = value(TOLERATIONS).filter(|given| !given.is_empty()) {
        match serde_json::from_str::<Vec<Value>>(given) {
            Ok(list) => tolerations(&json!({"tolerations": list}), &format!("{path}.{TOLERATIONS}"), errs),
            Err(error) => errs.push(FieldError::invalid(path, TOLERATIONS, error.to_string())),
        }
    }
    if let Some(cost) = value(COST) {
        let valid =
            cost.parse::<i32>().is_ok() && !cost.starts_with('+') && (cost == "0" || !cost.starts_with('0'));
        if !valid {
            errs.push(FieldError::invalid(format!("{path}[{COST}]"), cost, "must be a 32bit integer"));
        }
    }
    for (key, profile) in annotations.as_object().into_iter().flatten() {
        if key == SECCOMP_POD || key.starts_with(SECCOMP) {
            seccomp(profile.as_str().unwrap_or_default(), &format!("{path}.{key}"), errs);
        }
    }
    for (key, profile) in annotations.as_object().into_iter().flatten() {
        let Some(container) = key.strip_prefix(APP_ARMOR) else { continue };
        let profile = profile.as_str().unwrap_or_default();
        let path = format!("{path}[{key}]");
        if !each_container(spec, "").any(|(c, _)| text(c, "name") == container) {
            errs.push(FieldError::invalid(path.as_str(), container, "container not found"));
        }
        if !matches!(profile, "" | "runtime/default" | "unconfined") && !profile.starts_with("localhost/") {
            let detail = format!("invalid AppArmor profile name: {}", crate::error::quote(profile));
            errs.push(FieldError::invalid(path, profile, detail));
        }
    }
}

fn seccomp(profile: &str, path: &str, errs: &mut Errors) {
    match profile.strip_prefix("localhost/") {
        Some(file) => descending_path(file, path, errs),
        None if matches!(profile, "runtime/default" | "docker/default" | "unconfined") => {}
        None => errs.push(FieldError::invalid(path, profile, "must be a valid seccomp profile")),
    }
}

/// Where an annotation and a field tell a profile, both must tell the same.
pub(super) fn match_fields(annotations: &Value, spec: &Value, path: &str, errs: &mut Errors) {
    let value = |key: &str| annotations.get(key).and_then(Value::as_str);
    let profile = |holder: &'_ Value, field: &str| at(at(holder, "securityContext"), field).clone();
    let seccomp = |key: &str, holder: &Value, path: &str, errs: &mut Errors| {
        let field = profile(holder, "seccompProfile");
        if let Some(annotated) = value(key).filter(|_| !field.is_null()) {
            differs(annotated, &field, "seccomp", &format!("{path}.securityContext.seccompProfile"), errs);
        }
    };
    seccomp(SECCOMP_POD, spec, path, errs);
    for (c, at_c) in each_container(spec, path) {
        seccomp(&format!("{SECCOMP}{}", text(c, "name")), c, &at_c, errs);
    }
    if text(at(spec, "os"), "name") == "windows" {
        return;
    }
    let of_pod = profile(spec, "appArmorProfile");
    for (c, at_c) in each_container(spec, path) {
        let own = profile(c, "appArmorProfile");
        let field = if own.is_null() { &of_pod } else { &own };
        if let Some(annotated) =
            value(&format!("{APP_ARMOR}{}", text(c, "name"))).filter(|_| !field.is_null())
        {
            differs(annotated, field, "apparmor", &format!("{at_c}.securityContext.appArmorProfile"), errs);
        }
    }
}

fn differs(annotated: &str, field: &Value, what: &str, path: &str, errs: &mut Errors) {
    let kind = match text(field, "type") {
        "Unconfined" => annotated == "unconfined",
        "RuntimeDefault" => {
            annotated == "runtime/default" || (what == "seccomp" && annotated == "docker/default")
        }
        "Localhost" => annotated.starts_with("localhost/"),
        _ => return,
    };
    if !kind {
        let detail = format!("{what} type in annotation and field must match");
        errs.push(FieldError::forbidden(format!("{path}.type"), detail));
    } else if let Some(file) = annotated.strip_prefix("localhost/")
        && (!set(field, "localhostProfile") || text(field, "localhostProfile") != file)
    {
        let detail = format!("{what} profile in annotation and field must match");
        errs.push(FieldError::forbidden(format!("{path}.localhostProfile"), detail));
    }
}

/// What may not change in a pod's annotations; they are checked as a whole once more.
pub(super) fn changes(new: &Value, old: &Value, errs: &mut Errors) {
    let (after, before) = (at(new, "metadata"), at(old, "metadata"));
    let fixed = |key: &str| match key {
        MIRROR => Some("mirror pod annotation"),
        key if key.starts_with(APP_ARMOR) => Some("AppArmor annotations"),
        _ => None,
    };
    let path = |key: &str| format!("metadata.annotations[{key}]");
    for (key, value) in map(before, "annotations") {
        if let Some(what) = fixed(key).filter(|_| at(after, "annotations").get(key) != Some(value)) {
            errs.push(FieldError::forbidden(path(key), format!("may not remove or update {what}")));
        }
    }
    for (key, _) in map(after, "annotations") {
        if let Some(what) = fixed(key).filter(|_| at(before, "annotations").get(key).is_none()) {
            errs.push(FieldError::forbidden(path(key), format!("may not add {what}")));
        }
    }
    check(at(after, "annotations"), at(new, "spec"), "metadata.annotations", errs);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(errs: &Errors) -> Vec<String> {
        errs.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn values_are_checked() {
        let spec = json!({"containers": [{"name": "c"}]});
        let annotations = json!({MIRROR: "x", COST: "+1", SECCOMP_POD: "bad",
            (format!("{SECCOMP}c")): "localhost/../x", (format!("{APP_ARMOR}d")): "runtime/default",
            (format!("{APP_ARMOR}c")): "bad", TOLERATIONS: "[{\"operator\":\"Equal\"}]"});
        let mut errs = Errors::new();
        check(&annotations, &spec, "metadata.annotations", &mut errs);
        assert_eq!(
            told(&errs),
            [
                "metadata.annotations[kubernetes.io/config.mirror]: Invalid value: \"x\": must set spec.nodeName if mirror pod annotation is set",
                "metadata.annotations.scheduler.alpha.kubernetes.io/tolerations[0].operator: Invalid value: \"Equal\": operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
                "metadata.annotations[controller.kubernetes.io/pod-deletion-cost]: Invalid value: \"+1\": must be a 32bit integer",
                "metadata.annotations.container.seccomp.security.alpha.kubernetes.io/c: Invalid value: \"../x\": must not contain '..'",
                "metadata.annotations.seccomp.security.alpha.kubernetes.io/pod: Invalid value: \"bad\": must be a valid seccomp profile",
                "metadata.annotations[container.apparmor.security.beta.kubernetes.io/c]: Invalid value: \"bad\": invalid AppArmor profile name: \"bad\"",
                "metadata.annotations[container.apparmor.security.beta.kubernetes.io/d]: Invalid value: \"d\": container not found",
            ]
        );
    }

    #[test]
    fn annotations_and_fields_agree() {
        let spec = json!({"securityContext": {"seccompProfile": {"type": "RuntimeDefault"},
                "appArmorProfile": {"type": "Localhost", "localhostProfile": "a"}},
            "initContainers": [{"name": "i", "securityContext": {"appArmorProfile": {"type": "Unconfined"}}}],
            "containers": [{"name": "c"}]});
        let mut errs = Errors::new();
        let annotations = json!({SECCOMP_POD: "unconfined", (format!("{APP_ARMOR}c")): "localhost/b",
            (format!("{APP_ARMOR}i")): "unconfined"});
        match_fields(&annotations, &spec, "spec", &mut errs);
        assert_eq!(
            told(&errs),
            [
                "spec.securityContext.seccompProfile.type: Forbidden: seccomp type in annotation and field must match",
                "spec.containers[0].securityContext.appArmorProfile.localhostProfile: Forbidden: apparmor profile in annotation and field must match",
            ]
        );
        let mut errs = Errors::new();
        match_fields(&json!({SECCOMP_POD: "docker/default"}), &spec, "spec", &mut errs);
        assert!(errs.is_empty(), "{errs:?}");
    }

    #[test]
    fn some_never_change() {
        let pod = |annotations: Value| json!({"metadata": {"annotations": annotations}, "spec": {"nodeName": "n", "containers": [{"name": "c"}]}});
        let key = format!("{APP_ARMOR}c");
        let mut errs = Errors::new();
        changes(&pod(json!({(key.clone()): "unconfined", "a": "b"})), &pod(json!({MIRROR: "x"})), &mut errs);
        assert_eq!(
            told(&errs),
            [
                "metadata.annotations[kubernetes.io/config.mirror]: Forbidden: may not remove or update mirror pod annotation",
                "metadata.annotations[container.apparmor.security.beta.kubernetes.io/c]: Forbidden: may not add AppArmor annotations",
            ]
        );
        let mut errs = Errors::new();
        changes(&pod(json!({(key.clone()): "unconfined"})), &pod(json!({key: "unconfined"})), &mut errs);
        assert!(errs.is_empty(), "{errs:?}");
    }
}
