//! Device claims and slices.

use serde_json::Value;

use super::{default, default_pointer, items, text};

pub(super) fn claim(object: &mut Value) {
    if let Some(spec) = object.get_mut("spec") {
        claim_spec(spec);
    }
}

pub(super) fn template(object: &mut Value) {
    if let Some(spec) = object.pointer_mut("/spec/spec") {
        claim_spec(spec);
    }
}

fn claim_spec(spec: &mut Value) {
    let Some(devices) = spec.get_mut("devices") else { return };
    for request in items(devices, "requests") {
        if let Some(exactly) = request.get_mut("exactly").filter(|e| e.is_object()) {
            count(exactly);
        }
        items(request, "firstAvailable").for_each(count);
    }
}

/// One device, when nothing else is said.
fn count(request: &mut Value) {
    default(request, "allocationMode", "ExactCount");
    let none = request.get("count").is_none_or(|c| c.is_null() || c == 0);
    if text(request, "allocationMode") == "ExactCount" && none {
        request["count"] = 1.into();
    }
}

/// A taint begins now.
pub(super) fn slice(object: &mut Value) {
    let Some(spec) = object.get_mut("spec") else { return };
    for taint in items(spec, "devices").flat_map(|d| items(d, "taints")) {
        default_pointer(taint, "timeAdded", crate::object::now());
    }
}
