//! Persistent volumes and claims, and templates of claims.

use kelp_model::names;
use kelp_model::quantity::Quantity;
use serde_json::{Value, json};

use super::selector::{label_selector, node_selector};
use super::{
    Errors, at, immutable, internal, invalid_each, list, map, meta, resources, same, set, sources, text,
    texts,
};
use crate::error::FieldError;

const MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
const VOLUME_MODES: [&str; 2] = ["Block", "Filesystem"];
const OLD_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

fn quantity(value: &Value) -> Option<Quantity> {
    value.as_str().and_then(|text| Quantity::parse(text).ok())
}

/// How a volume may be used at once.
pub(super) fn access_modes(spec: &Value, path: &str, missing: &str, errs: &mut Errors) {
    let path = format!("{path}.accessModes");
    let modes: Vec<&str> = texts(spec, "accessModes").collect();
    if modes.is_empty() {
        errs.push(FieldError::required(path.as_str(), missing));
    }
    for mode in modes.iter().filter(|m| !MODES.contains(m)) {
        errs.push(FieldError::not_supported(path.as_str(), *mode, &MODES));
    }
    let alone = modes.contains(&"ReadWriteOncePod");
    if alone && modes.iter().any(|m| *m != "ReadWriteOncePod" && MODES.contains(m)) {
        errs.push(FieldError::forbidden(path, "may not use ReadWriteOncePod with other access modes"));
    }
}

fn class_name(spec: &Value, field: &str, path: &str, errs: &mut Errors) {
    let name = text(spec, field);
    if !name.is_empty() {
        invalid_each(errs, &format!("{path}.{field}"), name, names::dns1123_subdomain(name));
    }
}

fn volume_mode(spec: &Value, path: &str, errs: &mut Errors) {
    let mode = text(spec, "volumeMode");
    if set(spec, "volumeMode") && !VOLUME_MODES.contains(&mode) {
        errs.push(FieldError::not_supported(format!("{path}.volumeMode"), mode, &VOLUME_MODES));
    }
}

/// An amount that fits a whole number of units.
fn basic(value: &Value, path: &str, errs: &mut Errors) -> bool {
    match quantity(value) {
        Some(amount) if amount.value() < 0 => {
            errs.push(FieldError::invalid(path, amount.value(), "must be a valid resource quantity"));
            false
        }
        _ => true,
    }
}

fn positive(value: &Value, path: &str, errs: &mut Errors) -> bool {
    match quantity(value) {
        Some(amount) if amount.signum() <= 0 => {
            errs.push(FieldError::invalid(path, amount.to_string(), "must be greater than zero"));
            false
        }
        _ => true,
    }
}

/// A volume's spec; `old` at an update.
pub(super) fn volume(object: &Value, old: Option<&Value>, errs: &mut Errors) {
    let spec = at(object, "spec");
    access_modes(spec, "spec", "", errs);
    let capacity = at(spec, "capacity");
    if map(spec, "capacity").next().is_none() {
        errs.push(FieldError::required("spec.capacity", ""));
    }
    if capacity.get("storage").is_none() || map(spec, "capacity").count() > 1 {
        errs.push(FieldError::not_supported("spec.capacity", capacity, &["storage"]));
    }
    for (name, amount) in map(spec, "capacity") {
        let path = format!("spec.capacity[{name}]");
        basic(amount, &path, errs);
        positive(amount, &path, errs);
    }
    let reclaim = text(spec, "persistentVolumeReclaimPolicy");
    let policies = ["Delete", "Recycle", "Retain"];
    if !reclaim.is_empty() && !policies.contains(&reclaim) {
        let path = "spec.persistentVolumeReclaimPolicy";
        errs.push(FieldError::not_supported(path, reclaim, &policies));
    }
    let affinity = at(spec, "nodeAffinity");
    if !affinity.is_null() {
        if set(affinity, "required") {
            node_selector(at(affinity, "required"), "spec.nodeAffinity.required", errs);
        } else {
            let detail = "must specify required node constraints";
            errs.push(FieldError::required("spec.nodeAffinity.required", detail));
        }
    }
    let name = text(at(object, "metadata"), "name");
    sources::persistent(spec, name, "spec", errs);
    if reclaim == "Recycle" && set(spec, "hostPath") && is_root(text(at(spec, "hostPath"), "path")) {
        let detail = "may not be 'recycle' for a hostPath mount of '/'";
        errs.push(FieldError::forbidden("spec.persistentVolumeReclaimPolicy", detail));
    }
    class_name(spec, "storageClassName", "spec", errs);
    volume_mode(spec, "spec", errs);
    if set(spec, "volumeAttributesClassName") {
        if text(spec, "volumeAttributesClassName").is_empty() {
            let detail = "an empty string is disallowed";
            errs.push(FieldError::required("spec.volumeAttributesClassName", detail));
        }
        class_name(spec, "volumeAttributesClassName", "spec", errs);
        if !set(spec, "csi") {
            let detail = "has to be specified when using volumeAttributesClassName";
            errs.push(FieldError::required("spec.csi", detail));
        }
    }
    if let Some(old) = old {
        volume_changes(spec, at(old, "spec"), errs);
    }
}

/// A path that means the root directory.
fn is_root(path: &str) -> bool {
    path.starts_with('/')
        && path.split('/').fold(0_usize, |depth, part| match part {
            "" | "." => depth,
            ".." => depth.saturating_sub(1),
            _ => depth + 1,
        }) == 0
}

fn volume_changes(new: &Value, old: &Value, errs: &mut Errors) {
    const EXPAND: &str = "controllerExpandSecretRef";
    let of = |spec: &Value| -> Value {
        let kinds = sources::PERSISTENT.iter().filter(|kind| set(spec, kind));
        kinds
            .map(|kind| ((*kind).to_owned(), at(spec, kind).clone()))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    let (mut source, before) = (of(new), of(old));
    // A secret for growing may be named later.
    if set(&before, "csi")
        && !set(at(&before, "csi"), EXPAND)
        && let Some(csi) = source.get_mut("csi").and_then(Value::as_object_mut)
    {
        csi.remove(EXPAND);
    }
    if !same(&source, &before) {
        let diff = internal::difference("PersistentVolumeSource", &before, &source);
        errs.push(FieldError::forbidden(
            "spec.persistentvolumesource",
            format!("spec.persistentvolumesource is immutable after creation\n{diff}"),
        ));
    }
    immutable(errs, "volumeMode", at(new, "volumeMode"), at(old, "volumeMode"));
    let affinity = |spec: &Value| at(spec, "nodeAffinity").clone();
    if !affinity(old).is_null() && !same(&affinity(new), &affinity(old)) {
        let shown = internal::bad("VolumeNodeAffinity", &affinity(new));
        errs.push(FieldError::invalid("nodeAffinity", shown, "field is immutable"));
    }
    if set(old, "volumeAttributesClassName") && !set(new, "volumeAttributesClassName") {
        let detail = "update from non-nil value to nil is forbidden";
        errs.push(FieldError::forbidden("spec.volumeAttributesClassName", detail));
    }
}

/// A claim; `old` at an update.
pub(super) fn claim(object: &Value, old: Option<&Value>, errs: &mut Errors) {
    claim_spec(at(object, "spec"), "spec", old.map(|old| at(old, "spec")), errs);
    if let Some(old) = old {
        claim_changes(object, old, errs);
    }
}

/// The spec of a claim or of a template of claims.
pub(super) fn claim_spec(spec: &Value, path: &str, old: Option<&Value>, errs: &mut Errors) {
    if texts(spec, "accessModes").next().is_none() {
        errs.push(FieldError::required(format!("{path}.accessModes"), "at least 1 access mode is required"));
    }
    label_selector(at(spec, "selector"), &format!("{path}.selector"), errs);
    if texts(spec, "accessModes").next().is_some() {
        access_modes(spec, path, "", errs);
    }
    let at_storage = format!("{path}.resources[storage]");
    match at(at(spec, "resources"), "requests").get("storage") {
        None => errs.push(FieldError::required(at_storage, "")),
        Some(amount) => {
            if positive(amount, &at_storage, errs) {
                resources::quantity_value("storage", amount, &at_storage, errs);
            }
        }
    }
    class_name(spec, "storageClassName", path, errs);
    volume_mode(spec, path, errs);
    // Groups that an old object named are taken as they are.
    let lenient = old.is_some_and(|old| {
        ["dataSource", "dataSourceRef"].iter().any(|field| set(at(old, field), "apiGroup"))
    });
    for field in ["dataSource", "dataSourceRef"] {
        if set(spec, field) {
            data_source(at(spec, field), &format!("{path}.{field}"), lenient, errs);
        }
    }
    let (source, reference) = (at(spec, "dataSource"), at(spec, "dataSourceRef"));
    let mut mismatch = |detail: &str| {
        errs.push(FieldError::invalid(path, json!({}), detail));
    };
    if !text(reference, "namespace").is_empty() {
        if !source.is_null() {
            mismatch("may not be specified when dataSourceRef.namespace is specified");
        }
    } else if !source.is_null() && !reference.is_null() {
        let equal = ["apiGroup", "kind", "name"].iter().all(|f| at(source, f) == at(reference, f));
        if !equal {
            mismatch("must match dataSourceRef");
        }
    }
    class_name(spec, "volumeAttributesClassName", path, errs);
}

fn data_source(value: &Value, path: &str, lenient: bool, errs: &mut Errors) {
    for field in ["name", "kind"] {
        if text(value, field).is_empty() {
            errs.push(FieldError::required(format!("{path}.{field}"), ""));
        }
    }
    let (group, kind) = (text(value, "apiGroup"), text(value, "kind"));
    if group.is_empty() && kind != "PersistentVolumeClaim" {
        let detail = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
        errs.push(FieldError::invalid(path, kind, detail));
    }
    if !group.is_empty() && !lenient {
        invalid_each(errs, &format!("{path}.apiGroup"), group, names::dns1123_subdomain(group));
    }
    let namespace = text(value, "namespace");
    if !namespace.is_empty() {
        invalid_each(errs, &format!("{path}.namespace"), namespace, names::dns1123_label(namespace));
    }
}

/// A template of claims inside a pod: labels, annotations and spec count, nothing else may be said.
pub(super) fn template(value: &Value, path: &str, errs: &mut Errors) {
    let metadata = at(value, "metadata");
    let at_meta = format!("{path}.metadata");
    meta::annotations(metadata, &format!("{at_meta}.annotations"), errs);
    meta::labels(metadata, "labels", &format!("{at_meta}.labels"), errs);
    for (field, go) in [("name", "name"), ("generateName", "generateName"), ("namespace", "namespace")] {
        if !text(metadata, field).is_empty() {
            errs.push(FieldError::forbidden(format!("{at_meta}.{go}"), "cannot be set"));
        }
    }
    for field in ["ownerReferences", "finalizers"] {
        if !list(metadata, field).is_empty() {
            errs.push(FieldError::forbidden(format!("{at_meta}.{field}"), "cannot be set"));
        }
    }
    claim_spec(at(value, "spec"), &format!("{path}.spec"), None, errs);
}

fn claim_changes(object: &Value, old: &Value, errs: &mut Errors) {
    let (mut spec, mut before) = (at(object, "spec").clone(), at(old, "spec").clone());
    let class =
        |object: &Value| at(at(at(object, "metadata"), "annotations"), OLD_CLASS).as_str().map(str::to_owned);
    let copy = |to: &mut Value, from: &Value, field: &str| {
        if let Value::Object(map) = to {
            let value = Some(at(from, field).clone()).filter(|v| !v.is_null());
            crate::object::set_or_remove(map, field, value);
        }
    };
    // The binder names the volume once.
    if text(&before, "volumeName").is_empty() {
        copy(&mut before, &spec, "volumeName");
    }
    let (old_note, new_note) = (class(old), class(object));
    let (old_name, new_name) =
        (at(&before, "storageClassName").clone(), at(&spec, "storageClassName").clone());
    let named = new_name.as_str();
    let moved_to_field = old_note.is_some()
        && old_name.is_null()
        && named == old_note.as_deref()
        && (new_note.is_none() || new_note == old_note);
    if moved_to_field {
        copy(&mut spec, &before, "storageClassName");
    } else {
        if new_note != old_note {
            let path = format!("metadata.annotations.{OLD_CLASS}");
            errs.push(FieldError::invalid(path, new_note.clone().unwrap_or_default(), "field is immutable"));
        }
        let from_nothing =
            named.is_some() && old_name.is_null() && (old_note.is_none() || named == old_note.as_deref());
        if from_nothing {
            copy(&mut spec, &before, "storageClassName");
        }
    }
    let size = |object: &Value| {
        at(at(at(object, "spec"), "resources"), "requests").get("storage").and_then(quantity)
    };
    let bound = text(at(object, "status"), "phase") == "Bound";
    if bound && let Some(requests) = spec.pointer_mut("/resources/requests").and_then(Value::as_object_mut) {
        let value = before.pointer("/resources/requests/storage").cloned();
        crate::object::set_or_remove(requests, "storage", value);
    }
    copy(&mut spec, &before, "volumeAttributesClassName");
    if !same(&spec, &before) {
        let diff = internal::difference("PersistentVolumeClaimSpec", &before, &spec);
        errs.push(FieldError::forbidden(
            "spec",
            format!(
                "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n{diff}"
            ),
        ));
    }
    let (new_size, old_size) = (size(object), size(old));
    let capacity = at(at(at(old, "status"), "capacity"), "storage");
    if new_size < old_size && new_size <= Some(quantity(capacity).unwrap_or(Quantity::ZERO)) {
        let detail = "field can not be less than status.capacity";
        errs.push(FieldError::forbidden("spec.resources.requests.storage", detail));
    }
    immutable(errs, "volumeMode", at(&spec, "volumeMode"), at(&before, "volumeMode"));
    const ATTRIBUTES: &str = "volumeAttributesClassName";
    let (new_class, old_class) = (at(at(object, "spec"), ATTRIBUTES), at(at(old, "spec"), ATTRIBUTES));
    if !old_class.is_null() && new_class != old_class {
        let detail = match new_class.as_str() {
            None => "update from non-nil value to nil is forbidden",
            Some("") => "update from non-nil value to an empty string is forbidden",
            Some(_) => return,
        };
        errs.push(FieldError::forbidden(format!("spec.{ATTRIBUTES}"), detail));
    }
}

/// A claim's status.
pub(super) fn claim_status(object: &Value, errs: &mut Errors) {
    let status = at(object, "status");
    if texts(at(object, "spec"), "accessModes").next().is_none() {
        // Upstream's path.
        errs.push(FieldError::required("Spec.accessModes", ""));
    }
    for (name, amount) in map(status, "capacity") {
        basic(amount, &format!("status.capacity[{name}]"), errs);
    }
    const STATES: [&str; 5] = [
        "ControllerResizeInProgress",
        "ControllerResizeInfeasible",
        "NodeResizePending",
        "NodeResizeInProgress",
        "NodeResizeInfeasible",
    ];
    let mut sorted = STATES;
    sorted.sort_unstable();
    for (name, state) in map(status, "allocatedResourceStatuses") {
        let path = "status.allocatedResourceStatus";
        resource_key(name, path, errs);
        if !STATES.contains(&state.as_str().unwrap_or_default()) {
            errs.push(FieldError::not_supported(path, name, &sorted));
        }
    }
    for (name, amount) in map(status, "allocatedResources") {
        let path = "status.allocatedResources";
        if !resource_key(name, path, errs) {
            continue;
        }
        let path = format!("{path}[{name}]");
        if basic(amount, &path, errs) {
            resources::quantity_value("storage", amount, &path, errs);
        }
    }
}

/// The name of a resource of a claim: `storage`, or one with a prefix.
fn resource_key(name: &str, path: &str, errs: &mut Errors) -> bool {
    let bad = names::qualified_name(name);
    if !bad.is_empty() {
        invalid_each(errs, path, name, bad);
        return false;
    }
    if (!name.contains('/') || name.contains("kubernetes.io/")) && name != "storage" {
        errs.push(FieldError::not_supported(path, name, &["storage"]));
        return false;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(check: impl FnOnce(&mut Errors)) -> Vec<String> {
        let mut errs = Errors::new();
        check(&mut errs);
        errs.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn volumes() {
        let check = |spec: Value| {
            errors(|errs| volume(&json!({"metadata": {"name": "v"}, "spec": spec}), None, errs))
        };
        let good = json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/x", "type": ""}});
        assert!(check(good.clone()).is_empty());
        assert_eq!(
            check(json!({"capacity": {"cpu": "1"}, "volumeAttributesClassName": ""})),
            [
                "spec.accessModes: Required value",
                "spec.capacity: Unsupported value: {\"cpu\":\"1\"}: supported values: \"storage\"",
                "spec: Required value: must specify a volume type",
                "spec.volumeAttributesClassName: Required value: an empty string is disallowed",
                "spec.csi: Required value: has to be specified when using volumeAttributesClassName",
            ]
        );
        let mut two = good.clone();
        two["nfs"] = json!({"server": "s", "path": "p"});
        two["persistentVolumeReclaimPolicy"] = json!("Recycle");
        two["hostPath"]["path"] = json!("/.");
        assert_eq!(
            check(two),
            [
                "spec.nfs: Forbidden: may not specify more than 1 volume type",
                "spec.persistentVolumeReclaimPolicy: Forbidden: may not be 'recycle' for a hostPath mount of '/'",
            ]
        );
        let local =
            json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "0"}, "local": {"path": "/x"}});
        assert_eq!(
            check(local),
            [
                "spec.capacity[storage]: Invalid value: \"0\": must be greater than zero",
                "spec.nodeAffinity: Required value: Local volume requires node affinity",
            ]
        );
        let changed = |change: &dyn Fn(&mut Value)| {
            let old = json!({"metadata": {"name": "v"}, "spec": good});
            let mut new = old.clone();
            change(&mut new);
            errors(|errs| volume(&new, Some(&old), errs))
        };
        assert!(changed(&|v| v["spec"]["capacity"]["storage"] = json!("2Gi")).is_empty());
        let moved = changed(&|v| v["spec"]["hostPath"]["path"] = json!("/y"));
        assert!(
            moved[0].starts_with(
                "spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation\n@@ -2,7 +2,7 @@\n"
            ),
            "{moved:?}"
        );
    }

    #[test]
    fn claims() {
        let claim_of =
            |spec: Value| json!({"metadata": {"name": "c"}, "spec": spec, "status": {"phase": "Pending"}});
        let check = |spec: Value| errors(|errs| claim(&claim_of(spec), None, errs));
        let good = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
        assert!(check(good.clone()).is_empty());
        assert_eq!(
            check(json!({"volumeMode": "X", "dataSource": {"kind": "K", "name": ""}})),
            [
                "spec.accessModes: Required value: at least 1 access mode is required",
                "spec.resources[storage]: Required value",
                "spec.volumeMode: Unsupported value: \"X\": supported values: \"Block\", \"Filesystem\"",
                "spec.dataSource.name: Required value",
                "spec.dataSource: Invalid value: \"K\": must be 'PersistentVolumeClaim' when referencing the default apiGroup",
            ]
        );
        let changed = |bound: bool, change: &dyn Fn(&mut Value)| {
            let mut old = claim_of(good.clone());
            if bound {
                old["status"] = json!({"phase": "Bound", "capacity": {"storage": "1Gi"}});
            }
            let mut new = old.clone();
            change(&mut new);
            errors(|errs| claim(&new, Some(&old), errs))
        };
        let grow = |c: &mut Value| c["spec"]["resources"]["requests"]["storage"] = json!("2Gi");
        assert!(changed(true, &grow).is_empty());
        assert_eq!(changed(false, &grow).len(), 1);
        assert_eq!(
            changed(true, &|c| c["spec"]["resources"]["requests"]["storage"] = json!("512Mi")),
            ["spec.resources.requests.storage: Forbidden: field can not be less than status.capacity"]
        );
        assert!(changed(false, &|c| c["spec"]["volumeName"] = json!("v")).is_empty());
        assert!(changed(false, &|c| c["spec"]["storageClassName"] = json!("gold")).is_empty());
        assert!(changed(false, &|c| c["spec"]["volumeAttributesClassName"] = json!("gold")).is_empty());
    }

    #[test]
    fn statuses_of_claims() {
        let check = |status: Value| {
            let claim = json!({"spec": {"accessModes": ["ReadWriteOnce"]}, "status": status});
            errors(|errs| claim_status(&claim, errs))
        };
        assert!(
            check(json!({"capacity": {"storage": "1Gi"}, "allocatedResources": {"storage": "1Gi"}}))
                .is_empty()
        );
        assert_eq!(
            check(json!({"capacity": {"storage": "-1"}, "allocatedResources": {"cpu": "1"},
                "allocatedResourceStatuses": {"storage": "Done"}})),
            [
                "status.capacity[storage]: Invalid value: -1: must be a valid resource quantity",
                "status.allocatedResourceStatus: Unsupported value: \"storage\": supported values: \"ControllerResizeInProgress\", \"ControllerResizeInfeasible\", \"NodeResizeInProgress\", \"NodeResizeInfeasible\", \"NodeResizePending\"",
                "status.allocatedResources: Unsupported value: \"cpu\": supported values: \"storage\"",
            ]
        );
    }

    #[test]
    fn roots() {
        for root in ["/", "//", "/.", "/a/.."] {
            assert!(is_root(root), "{root}");
        }
        for other in ["/a", "a", "", "/a/../b"] {
            assert!(!is_root(other), "{other}");
        }
    }
}
