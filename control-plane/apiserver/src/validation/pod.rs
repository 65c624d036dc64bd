//! Pods: creation, the few fields that may change, status, subresources.

use kelp_model::names;
use serde_json::{Value, json};

use super::{
    Errors, annotations, at, container, immutable, int, internal, invalid_each, list, map, meta, net,
    podspec, same, set, text,
};
use crate::error::FieldError;
use crate::gvk::GroupVersionKind;

pub(super) use super::annotations::MIRROR;

/// The rules for creations (and, but for the last, for every later state).
pub(super) fn create(object: &Value, errs: &mut Errors) {
    whole(object, errs);
    let spec = at(object, "spec");
    if !list(spec, "ephemeralContainers").is_empty() {
        errs.push(FieldError::forbidden("spec.ephemeralContainers", "cannot be set on create"));
    }
    if !text(spec, "nodeName").is_empty() && !list(spec, "schedulingGates").is_empty() {
        let detail = "cannot be set until all schedulingGates have been cleared";
        errs.push(FieldError::forbidden("spec.nodeName", detail));
    }
    annotations::match_fields(at(at(object, "metadata"), "annotations"), spec, "spec", errs);
}

/// The rules for every state of a pod.
pub(super) fn whole(object: &Value, errs: &mut Errors) {
    let spec = at(object, "spec");
    let kept = at(at(object, "metadata"), "annotations");
    annotations::check(kept, spec, "metadata.annotations", errs);
    podspec::pod_spec(spec, Some(text(at(object, "metadata"), "name")), "spec", errs);
    if text(spec, "serviceAccountName").is_empty() {
        for (i, volume) in list(spec, "volumes").iter().enumerate() {
            for (j, source) in list(at(volume, "projected"), "sources").iter().enumerate() {
                if set(source, "serviceAccountToken") {
                    errs.push(FieldError::forbidden(
                        format!("spec.volumes[{i}].projected.sources[{j}].serviceAccountToken"),
                        "must not be specified when serviceAccountName is not set",
                    ));
                }
            }
        }
    }
    for field in ["containers", "initContainers"] {
        for (i, c) in list(spec, field).iter().enumerate() {
            container::image_padding(c, &format!("spec.{field}[{i}]"), errs);
        }
    }
}

pub(super) fn update(gvk: &GroupVersionKind, new: &Value, old: &Value, errs: &mut Errors) {
    meta::create(gvk, new, errs);
    whole(new, errs);
    annotations::changes(new, old, errs);
    let (after, before) = (at(new, "spec"), at(old, "spec"));
    for field in ["containers", "initContainers"] {
        let (n, o) = (list(after, field), list(before, field));
        if n.len() != o.len() {
            let detail = "pod updates may not add or remove containers";
            errs.push(FieldError::forbidden(format!("spec.{field}"), detail));
            return;
        }
        for (i, c) in n.iter().enumerate() {
            if text(c, "image").is_empty() {
                errs.push(FieldError::required(format!("spec.{field}[{i}].image"), ""));
            }
            container::image_padding(c, &format!("spec.{field}[{i}]"), errs);
        }
    }
    const DEADLINE: &str = "spec.activeDeadlineSeconds";
    match (int(after, "activeDeadlineSeconds"), int(before, "activeDeadlineSeconds")) {
        (Some(n), _) if !(0..=i64::from(i32::MAX)).contains(&n) => {
            errs.push(FieldError::invalid(DEADLINE, n, names::range_error(0, i64::from(i32::MAX))));
            return;
        }
        (Some(n), Some(o)) if o < n => {
            errs.push(FieldError::invalid(DEADLINE, n, "must be less than or equal to previous value"));
            return;
        }
        (None, Some(_)) => errs.push(FieldError::invalid(
            DEADLINE,
            Value::Null,
            "must not update from a positive integer to nil value",
        )),
        _ => {}
    }
    tolerations(after, before, errs);
    gates(after, before, errs);
    if !same(after, before) {
        unchanged(after, before, errs);
    }
}

fn tolerations(after: &Value, before: &Value, errs: &mut Errors) {
    let new = list(after, "tolerations");
    let without_seconds = |t: &Value| {
        let mut t = t.clone();
        if let Value::Object(map) = &mut t {
            map.remove("tolerationSeconds");
        }
        t
    };
    for old in list(before, "tolerations") {
        if !new.iter().any(|n| without_seconds(n) == without_seconds(old)) {
            let detail = "existing toleration can not be modified except its tolerationSeconds";
            errs.push(FieldError::forbidden("spec.tolerations", detail));
            return;
        }
    }
    podspec::tolerations(after, "spec.tolerations", errs);
}

fn gates(after: &Value, before: &Value, errs: &mut Errors) {
    let old: Vec<&str> = list(before, "schedulingGates").iter().map(|g| text(g, "name")).collect();
    for (i, gate) in list(after, "schedulingGates").iter().enumerate() {
        let name = text(gate, "name");
        if !old.contains(&name) {
            errs.push(FieldError::forbidden(
                format!("spec.schedulingGates[{i}].name"),
                format!("only deletion is allowed, but found new scheduling gate '{name}'"),
            ));
        }
    }
}

/// Everything that may change is put back; then nothing may differ.
fn unchanged(after: &Value, before: &Value, errs: &mut Errors) {
    const MUTABLE: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
    let mut munged = after.clone();
    let Value::Object(spec) = &mut munged else { return };
    for field in ["containers", "initContainers"] {
        if let Some(Value::Array(list_)) = spec.get_mut(field) {
            for (c, old) in list_.iter_mut().zip(list(before, field)) {
                c["image"] = at(old, "image").clone();
            }
        }
    }
    for field in ["activeDeadlineSeconds", "schedulingGates", "tolerations"] {
        spec.insert(field.to_owned(), at(before, field).clone());
    }
    const GRACE: &str = "terminationGracePeriodSeconds";
    let grace = int(before, GRACE);
    if grace.is_some_and(|g| g < 0) && spec.get(GRACE) == Some(&json!(1)) {
        spec.insert(GRACE.to_owned(), json!(grace));
    }
    if !list(before, "schedulingGates").is_empty() {
        gated(after, before, spec, errs);
    }
    if !same(&munged, before) {
        let diff = internal::difference("PodSpec", before, &munged);
        errs.push(FieldError::forbidden(
            "spec",
            format!("pod updates may not change fields other than {MUTABLE}\n{diff}"),
        ));
    }
}

/// A gated pod may get a narrower node selector and node affinity.
fn gated(after: &Value, before: &Value, munged: &mut serde_json::Map<String, Value>, errs: &mut Errors) {
    for (key, value) in map(before, "nodeSelector") {
        if at(after, "nodeSelector").get(key) != Some(value) {
            errs.push(FieldError::invalid(
                "spec.nodeSelector",
                at(after, "nodeSelector"),
                "only additions to spec.nodeSelector are allowed (no mutations or deletions)",
            ));
            break;
        }
    }
    munged.insert("nodeSelector".to_owned(), at(before, "nodeSelector").clone());
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    let node = |s: &Value| at(at(s, "affinity"), "nodeAffinity").clone();
    let (new, old) = (node(after), node(before));
    if same(&new, &old) {
        return;
    }
    let path = format!("spec.affinity.nodeAffinity.{REQUIRED}.nodeSelectorTerms");
    let terms = |a: &Value| list(at(a, REQUIRED), "nodeSelectorTerms").to_vec();
    let (new_terms, old_terms) = (terms(&new), terms(&old));
    if !old_terms.is_empty() {
        if new_terms.len() != old_terms.len() {
            let detail = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
            errs.push(FieldError::invalid(path.as_str(), json!(new_terms), detail));
        }
        for (i, (n, o)) in new_terms.iter().zip(&old_terms).enumerate() {
            let kept = ["matchExpressions", "matchFields"]
                .iter()
                .all(|f| list(n, f).starts_with(list(o, f)) || list(o, f).is_empty());
            if !kept {
                errs.push(FieldError::invalid(
                    format!("{path}[{i}]"),
                    n,
                    "only additions are allowed (no mutations or deletions)",
                ));
            }
        }
    }
    let rest = |s: &Value| {
        let mut affinity = at(s, "affinity").clone();
        if let Value::Object(map) = &mut affinity {
            map.remove("nodeAffinity");
        }
        affinity
    };
    if same(&rest(after), &rest(before)) {
        munged.insert("affinity".to_owned(), at(before, "affinity").clone());
    }
}

pub(super) fn status(new: &Value, old: &Value, errs: &mut Errors) {
    annotations::changes(new, old, errs);
    let (status, before) = (at(new, "status"), at(old, "status"));
    for (i, condition) in list(status, "conditions").iter().enumerate() {
        let kind = text(condition, "type");
        // Upstream's path.
        let path = format!("metadata.conditions[{i}].Type");
        invalid_each(errs, &path, kind, names::qualified_name(kind));
    }
    if text(at(new, "spec"), "nodeName") != text(at(old, "spec"), "nodeName") {
        errs.push(FieldError::forbidden("status.nodeName", "may not be changed directly"));
    }
    let nominated = text(status, "nominatedNodeName");
    if !nominated.is_empty() && nominated != text(before, "nominatedNodeName") {
        invalid_each(errs, "status.nominatedNodeName", nominated, names::dns1123_subdomain(nominated));
    }
    if set(before, "qosClass") {
        immutable(errs, "status.qosClass", at(status, "qosClass"), at(before, "qosClass"));
    }
    let spec = at(old, "spec");
    let policy = text(spec, "restartPolicy");
    let sidecar = |name: &str| {
        list(spec, "initContainers")
            .iter()
            .any(|c| text(c, "name") == name && text(c, "restartPolicy") == "Always")
    };
    for (field, policy) in [
        ("containerStatuses", policy),
        ("initContainerStatuses", policy),
        ("ephemeralContainerStatuses", "Never"),
    ] {
        if policy == "Always" {
            continue;
        }
        for (i, old) in list(before, field).iter().enumerate() {
            let ended = at(at(old, "state"), "terminated");
            let name = text(old, "name");
            let may_restart = policy == "OnFailure" && int(ended, "exitCode").unwrap_or_default() != 0;
            if ended.is_null() || may_restart || (field == "initContainerStatuses" && sidecar(name)) {
                continue;
            }
            let back = |n: &&Value| text(n, "name") == name && at(at(n, "state"), "terminated").is_null();
            if list(status, field).iter().any(|n| back(&n)) {
                let detail = "may not be transitioned to non-terminated state";
                errs.push(FieldError::forbidden(format!("status.{field}[{i}].state"), detail));
            }
        }
    }
    claims(status, at(new, "spec"), errs);
    addresses(status, "podIPs", errs);
    addresses(status, "hostIPs", errs);
    for field in ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"] {
        users(status, field, text(at(at(new, "spec"), "os"), "name"), errs);
    }
}

/// The claims a pod's resources were made of.
fn claims(status: &Value, spec: &Value, errs: &mut Errors) {
    let all = list(status, "resourceClaimStatuses");
    for (i, claim) in all.iter().enumerate() {
        let path = format!("status.resourceClaimStatuses[{i}].name");
        let name = text(claim, "name");
        if !list(spec, "resourceClaims").iter().any(|c| text(c, "name") == name) {
            let detail = "must match the name of an entry in `spec.resourceClaims`";
            errs.push(FieldError::invalid(path.as_str(), name, detail));
        }
        if all[..i].iter().any(|c| text(c, "name") == name) {
            errs.push(FieldError::duplicate(path.as_str(), name));
        }
        if let Some(name) = at(claim, "resourceClaimName").as_str() {
            invalid_each(errs, &path, name, names::dns1123_subdomain(name));
        }
    }
}

/// The users containers run as.
fn users(status: &Value, field: &str, os: &str, errs: &mut Errors) {
    for (i, container) in list(status, field).iter().enumerate() {
        let linux = at(at(container, "user"), "linux");
        let path = format!("status.{field}[{i}].linux");
        if linux.is_null() {
            continue;
        }
        if os == "windows" {
            errs.push(FieldError::forbidden(path, "cannot be set for a windows pod"));
            continue;
        }
        for field in ["uid", "gid"] {
            container::id(linux, field, &path, errs);
        }
        for (j, group) in list(linux, "supplementalGroups").iter().enumerate() {
            let group = group.as_i64().unwrap_or_default();
            if !(0..=i64::from(i32::MAX)).contains(&group) {
                let path = format!("{path}.supplementalGroups[{j}]");
                errs.push(FieldError::invalid(path, group, names::range_error(0, i64::from(i32::MAX))));
            }
        }
    }
}

fn addresses(status: &Value, field: &str, errs: &mut Errors) {
    let path = format!("status.{field}");
    let all: Vec<&str> = list(status, field).iter().map(|a| text(a, "ip")).collect();
    if field == "hostIPs"
        && let Some(first) = all.first().filter(|f| **f != text(status, "hostIP"))
    {
        errs.push(FieldError::invalid(format!("{path}[0].ip"), *first, "must be equal to `hostIP`"));
    }
    for (i, ip) in all.iter().enumerate() {
        net::ip(errs, &format!("{path}[{i}]"), ip);
    }
    if all.len() > 1 {
        if !net::dual_stack(&all) || all.len() > 2 {
            let detail = "may specify no more than one IP for each IP family";
            errs.push(FieldError::invalid(path.as_str(), at(status, field), detail));
        }
        for (i, ip) in all.iter().enumerate().filter(|(i, ip)| all[..*i].contains(ip)) {
            errs.push(FieldError::duplicate(format!("{path}[{i}]"), json!({"ip": ip})));
        }
    }
}

pub(super) fn binding(object: &Value, errs: &mut Errors) {
    let target = at(object, "target");
    let kind = text(target, "kind");
    if !kind.is_empty() && kind != "Node" {
        errs.push(FieldError::not_supported("target.kind", kind, &["Node", "<empty>"]));
    }
    if text(target, "name").is_empty() {
        errs.push(FieldError::required("target.name", ""));
    }
}

pub(super) fn ephemeral_containers(gvk: &GroupVersionKind, new: &Value, old: &Value, errs: &mut Errors) {
    if set(at(at(old, "metadata"), "annotations"), MIRROR) {
        *errs = vec![FieldError::forbidden("", "static pods do not support ephemeral containers")];
        return;
    }
    meta::create(gvk, new, errs);
    whole(new, errs);
    annotations::changes(new, old, errs);
    const PATH: &str = "spec.ephemeralContainers";
    let added = list(at(new, "spec"), "ephemeralContainers");
    for before in list(at(old, "spec"), "ephemeralContainers") {
        let name = text(before, "name");
        let quoted = crate::error::quote(name);
        match added.iter().find(|c| text(c, "name") == name) {
            None => errs.push(FieldError::forbidden(
                PATH,
                format!("existing ephemeral containers {quoted} may not be removed\n"),
            )),
            Some(after) if !same(after, before) => errs.push(FieldError::forbidden(
                PATH,
                format!(
                    "existing ephemeral containers {quoted} may not be changed\n{}",
                    internal::difference("EphemeralContainer", before, after)
                ),
            )),
            Some(_) => {}
        }
    }
}
