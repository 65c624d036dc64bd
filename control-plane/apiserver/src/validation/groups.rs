//! Which rules hold for the kinds of networking, storage, scheduling, devices, flow control, admission and extension.

use serde_json::Value;

use super::{
    Errors, admission, definition, device, extensions, flowcontrol, meta, networking, scheduling, storage,
};
use crate::gvk::GroupVersionKind;

const GROUPS: [&str; 9] = [
    "networking.k8s.io",
    "storage.k8s.io",
    "scheduling.k8s.io",
    "node.k8s.io",
    "resource.k8s.io",
    "flowcontrol.apiserver.k8s.io",
    "admissionregistration.k8s.io",
    "apiregistration.k8s.io",
    "apiextensions.k8s.io",
];

/// True for the groups of this module.
pub(super) fn handles(gvk: &GroupVersionKind) -> bool {
    GROUPS.contains(&gvk.group.as_str())
}

/// What a kind's own rules check of the metadata when an object is updated; all kinds have the common check besides.
#[derive(PartialEq)]
enum OwnMetadata {
    /// That nothing fixed changes.
    Update,
    /// The same as of a new object.
    Create,
    /// Nothing.
    None,
}

fn own_metadata(gvk: &GroupVersionKind, status: bool) -> OwnMetadata {
    match (gvk.group.as_str(), gvk.kind.as_str()) {
        ("flowcontrol.apiserver.k8s.io" | "admissionregistration.k8s.io", _) if status => OwnMetadata::None,
        ("flowcontrol.apiserver.k8s.io" | "admissionregistration.k8s.io", _) => OwnMetadata::Create,
        ("storage.k8s.io", "CSINode" | "CSIStorageCapacity" | "VolumeAttachment") => OwnMetadata::Create,
        _ => OwnMetadata::Update,
    }
}

fn metadata_update(gvk: &GroupVersionKind, new: &Value, old: &Value, status: bool, errs: &mut Errors) {
    meta::update(new, old, errs);
    match own_metadata(gvk, status) {
        OwnMetadata::Update => meta::update(new, old, errs),
        OwnMetadata::Create => meta::create(gvk, new, errs),
        OwnMetadata::None => {}
    }
}

/// Rules of a new object.
pub(super) fn create(gvk: &GroupVersionKind, object: &Value, errs: &mut Errors) {
    let kind = gvk.kind.as_str();
    match (gvk.group.as_str(), kind) {
        // These name the name's faults themselves, and are told of the rest only when all else is well.
        ("storage.k8s.io", "CSIDriver") => {
            storage::create(kind, object, errs);
            if errs.is_empty() {
                meta::create(gvk, object, errs);
            }
            return;
        }
        ("apiregistration.k8s.io", _) => return extensions::api_service(gvk, object, errs),
        ("apiextensions.k8s.io", _) => return definition::create(gvk, object, errs),
        _ => {}
    }
    meta::create(gvk, object, errs);
    match (gvk.group.as_str(), kind) {
        ("networking.k8s.io", _) => networking::create(gvk, object, errs),
        ("storage.k8s.io", _) => storage::create(kind, object, errs),
        ("scheduling.k8s.io", _) => scheduling::priority_class(object, errs),
        ("node.k8s.io", _) => scheduling::runtime_class(object, errs),
        ("resource.k8s.io", _) => device::create(kind, object, errs),
        ("flowcontrol.apiserver.k8s.io", _) => flowcontrol::check(kind, object, errs),
        ("admissionregistration.k8s.io", _) => admission::check(kind, object, None, errs),
        _ => {}
    }
}

/// Rules of a changed object.
pub(super) fn update(gvk: &GroupVersionKind, new: &Value, old: &Value, errs: &mut Errors) {
    let kind = gvk.kind.as_str();
    metadata_update(gvk, new, old, false, errs);
    match gvk.group.as_str() {
        "networking.k8s.io" => networking::update(gvk, new, old, errs),
        "storage.k8s.io" => storage::update(kind, new, old, errs),
        "scheduling.k8s.io" => scheduling::priority_class_update(new, old, errs),
        "node.k8s.io" => scheduling::runtime_class_update(new, old, errs),
        "resource.k8s.io" => device::update(kind, new, old, errs),
        "flowcontrol.apiserver.k8s.io" => flowcontrol::check(kind, new, errs),
        "admissionregistration.k8s.io" => admission::check(kind, new, Some(old), errs),
        "apiregistration.k8s.io" => extensions::api_service(gvk, new, errs),
        "apiextensions.k8s.io" => definition::update(new, old, errs),
        _ => {}
    }
}

/// Rules of a changed status.
pub(super) fn status(gvk: &GroupVersionKind, new: &Value, old: &Value, errs: &mut Errors) {
    let kind = gvk.kind.as_str();
    metadata_update(gvk, new, old, true, errs);
    match (gvk.group.as_str(), kind) {
        ("networking.k8s.io", _) => networking::status(gvk, new, errs),
        ("storage.k8s.io", _) => storage::status(kind, new, errs),
        ("resource.k8s.io", _) => device::status(new, old, errs),
        ("flowcontrol.apiserver.k8s.io", _) => flowcontrol::status(new, errs),
        ("admissionregistration.k8s.io", _) => admission::status(new, errs),
        ("apiextensions.k8s.io", _) => definition::status(new, errs),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
