//! Storage classes, CSI drivers and nodes, capacities, attachments, attribute classes.

use kelp_model::names;
use kelp_model::quantity::Quantity;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

use super::{
    Errors, at, immutable, inline, int, invalid_each, list, map, nonnegative, same, selector, set, text,
    texts,
};
use crate::error::FieldError;

/// Parameters of a class: at most so many, and so many bytes.
const MAX_PARAMETERS: usize = 512;
const MAX_PARAMETER_BYTES: usize = 256 << 10;

pub(super) fn create(kind: &str, object: &Value, errs: &mut Errors) {
    match kind {
        "StorageClass" => storage_class(object, errs),
        "CSIDriver" => {
            driver_name(text(at(object, "metadata"), "name"), "name", errs);
            driver(at(object, "spec"), errs);
        }
        "CSINode" => node(at(object, "spec"), errs),
        "CSIStorageCapacity" => capacity(object, errs),
        "VolumeAttachment" => {
            attachment(object, errs);
            let spec = at(object, "spec");
            driver_name(text(spec, "attacher"), "spec.attacher", errs);
            if set(at(spec, "source"), "persistentVolumeName") {
                let name = text(at(spec, "source"), "persistentVolumeName");
                let path = "spec.source.persistentVolumeName";
                invalid_each(errs, path, name, names::dns1123_subdomain(name));
            }
        }
        "VolumeAttributesClass" => {
            provisioner(text(object, "driverName"), "driverName", errs);
            parameters(object, false, errs);
        }
        _ => {}
    }
}

pub(super) fn update(kind: &str, new: &Value, old: &Value, errs: &mut Errors) {
    let changed = |field: &str| !same(at(new, field), at(old, field));
    let mut forbid = |field: &str| {
        if changed(field) {
            errs.push(FieldError::forbidden(field, format!("updates to {field} are forbidden.")));
        }
    };
    let (after, before) = (at(new, "spec"), at(old, "spec"));
    match kind {
        "StorageClass" => {
            ["parameters", "provisioner", "reclaimPolicy"].into_iter().for_each(forbid);
            immutable(errs, "volumeBindingMode", at(new, "volumeBindingMode"), at(old, "volumeBindingMode"));
        }
        "VolumeAttributesClass" => ["driverName", "parameters"].into_iter().for_each(&mut forbid),
        "CSIDriver" => {
            // The first path is not the field's name, as upstream has it.
            for (field, path) in [
                ("attachRequired", "spec.attachedRequired"),
                ("fsGroupPolicy", "spec.fsGroupPolicy"),
                ("volumeLifecycleModes", "spec.volumeLifecycleModes"),
            ] {
                immutable(errs, path, at(after, field), at(before, field));
            }
            token_requests(after, errs);
            required_pointer(after, "seLinuxMount", "spec.seLinuxMount", errs);
            update_period(after, errs);
        }
        "CSINode" => {
            node(after, errs);
            for was in list(before, "drivers") {
                let rest = |driver: &Value| {
                    let mut driver = driver.clone();
                    if let Some(map) = driver.as_object_mut() {
                        map.remove("allocatable");
                    }
                    driver
                };
                let now = list(after, "drivers").iter().filter(|d| text(d, "name") == text(was, "name"));
                for now in now.filter(|now| !same(&rest(now), &rest(was))) {
                    errs.push(FieldError::invalid("CSINodeDriver", now, "field is immutable"));
                }
            }
        }
        "CSIStorageCapacity" => {
            capacity(new, errs);
            for field in ["nodeTopology", "storageClassName"] {
                immutable(errs, field, at(new, field), at(old, field));
            }
        }
        "VolumeAttachment" => {
            attachment(new, errs);
            if !same(after, before) {
                errs.push(FieldError::invalid("spec", after, "field is immutable"));
            }
        }
        _ => {}
    }
}

/// Attachments check all of the object again when their status is written.
pub(super) fn status(kind: &str, new: &Value, errs: &mut Errors) {
    if kind == "VolumeAttachment" {
        attachment(new, errs);
    }
}

fn storage_class(object: &Value, errs: &mut Errors) {
    provisioner(text(object, "provisioner"), "provisioner", errs);
    parameters(object, true, errs);
    let policy = text(object, "reclaimPolicy");
    if !policy.is_empty() && !matches!(policy, "Delete" | "Retain") {
        errs.push(FieldError::not_supported("reclaimPolicy", policy, &["Delete", "Retain"]));
    }
    const MODES: [&str; 2] = ["Immediate", "WaitForFirstConsumer"];
    let mode = text(object, "volumeBindingMode");
    if !set(object, "volumeBindingMode") {
        errs.push(FieldError::required("volumeBindingMode", ""));
    } else if !MODES.contains(&mode) {
        errs.push(FieldError::not_supported("volumeBindingMode", mode, &MODES));
    }
    topologies(object, errs);
}

fn topologies(object: &Value, errs: &mut Errors) {
    let mut terms: Vec<BTreeMap<&str, BTreeSet<&str>>> = Vec::new();
    for (i, term) in list(object, "allowedTopologies").iter().enumerate() {
        let mut keys: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (j, e) in list(term, "matchLabelExpressions").iter().enumerate() {
            // Upstream leaves the number of the term out of these paths.
            let path = format!("allowedTopologies.matchLabelExpressions[{j}]");
            let mut values = BTreeSet::new();
            if list(e, "values").is_empty() {
                errs.push(FieldError::required(format!("{path}.values"), ""));
            }
            for (k, value) in texts(e, "values").enumerate() {
                if !values.insert(value) {
                    errs.push(FieldError::duplicate(format!("{path}.values[{k}]"), value));
                }
            }
            let key = text(e, "key");
            invalid_each(errs, &format!("{path}.key"), key, names::qualified_name(key));
            if keys.insert(key, values).is_some() {
                errs.push(FieldError::duplicate(format!("{path}.key"), key));
            }
        }
        if terms.contains(&keys) {
            errs.push(FieldError::duplicate(format!("allowedTopologies[{i}].matchLabelExpressions"), ""));
        }
        terms.push(keys);
    }
}

fn provisioner(value: &str, path: &str, errs: &mut Errors) {
    if value.is_empty() {
        errs.push(FieldError::required(path, ""));
    } else {
        invalid_each(errs, path, value, names::qualified_name(&value.to_lowercase()));
    }
}

fn parameters(object: &Value, may_be_empty: bool, errs: &mut Errors) {
    const PATH: &str = "parameters";
    let count = map(object, "parameters").count();
    if count == 0 && !may_be_empty {
        errs.push(FieldError::required(PATH, "must contain at least one key/value pair"));
        return;
    }
    if count > MAX_PARAMETERS {
        errs.push(FieldError::too_long(PATH, MAX_PARAMETERS));
        return;
    }
    sized_map(object, "parameters", PATH, errs);
}

/// Keys are not empty, and all together is not too large.
fn sized_map(holder: &Value, field: &str, path: &str, errs: &mut Errors) {
    let mut size = 0;
    for (key, value) in map(holder, field) {
        if key.is_empty() {
            errs.push(FieldError::invalid(path, "", "field can not be empty."));
        }
        size += key.len() + value.as_str().unwrap_or_default().len();
    }
    if size > MAX_PARAMETER_BYTES {
        errs.push(FieldError::too_long(path, MAX_PARAMETER_BYTES));
    }
}

/// The name of a CSI driver (and of a device driver).
pub(super) fn driver_name(name: &str, path: &str, errs: &mut Errors) {
    const MAX: usize = 63;
    if name.is_empty() {
        errs.push(FieldError::required(path, ""));
    }
    if name.len() > MAX {
        errs.push(FieldError::too_long(path, MAX));
    }
    invalid_each(errs, path, name, names::dns1123_subdomain(&name.to_lowercase()));
}

fn required_pointer(holder: &Value, field: &str, path: &str, errs: &mut Errors) {
    if !set(holder, field) {
        errs.push(FieldError::required(path, ""));
    }
}

fn driver(spec: &Value, errs: &mut Errors) {
    required_pointer(spec, "attachRequired", "spec.attachedRequired", errs);
    required_pointer(spec, "podInfoOnMount", "spec.podInfoOnMount", errs);
    required_pointer(spec, "storageCapacity", "spec.storageCapacity", errs);
    const POLICIES: [&str; 3] = ["File", "None", "ReadWriteOnceWithFSType"];
    let policy = text(spec, "fsGroupPolicy");
    if !set(spec, "fsGroupPolicy") {
        errs.push(FieldError::required("spec.fsGroupPolicy", ""));
    } else if !POLICIES.contains(&policy) {
        errs.push(FieldError::not_supported("spec.fsGroupPolicy", policy, &POLICIES));
    }
    token_requests(spec, errs);
    for mode in texts(spec, "volumeLifecycleModes").filter(|m| !matches!(*m, "Ephemeral" | "Persistent")) {
        let supported = ["Ephemeral", "Persistent"];
        errs.push(FieldError::not_supported("spec.volumeLifecycleModes", mode, &supported));
    }
    required_pointer(spec, "seLinuxMount", "spec.seLinuxMount", errs);
    update_period(spec, errs);
}

fn update_period(spec: &Value, errs: &mut Errors) {
    const LEAST: i64 = 10;
    if let Some(seconds) = int(spec, "nodeAllocatableUpdatePeriodSeconds").filter(|s| *s < LEAST) {
        let path = "spec.nodeAllocatableUpdatePeriodSeconds";
        errs.push(FieldError::invalid(path, seconds, "must be greater than or equal to 10 seconds"));
    }
}

fn token_requests(spec: &Value, errs: &mut Errors) {
    let mut audiences = BTreeSet::new();
    for (i, request) in list(spec, "tokenRequests").iter().enumerate() {
        let path = format!("spec.tokenRequests[{i}]");
        let audience = text(request, "audience");
        if !audiences.insert(audience) {
            errs.push(FieldError::duplicate(format!("{path}.audience"), audience));
            continue;
        }
        let Some(seconds) = int(request, "expirationSeconds") else { continue };
        let path = format!("{path}.expirationSeconds");
        if seconds < 600 {
            let detail = "may not specify a duration less than 10 minutes";
            errs.push(FieldError::invalid(path.as_str(), seconds, detail));
        }
        if seconds > 1 << 32 {
            let detail = "may not specify a duration larger than 2^32 seconds";
            errs.push(FieldError::invalid(path, seconds, detail));
        }
    }
}

fn node(spec: &Value, errs: &mut Errors) {
    const MAX_ID: usize = 192;
    let mut seen = BTreeSet::new();
    for (i, driver) in list(spec, "drivers").iter().enumerate() {
        let path = format!("spec.drivers[{i}]");
        let (name, id) = (text(driver, "name"), text(driver, "nodeID"));
        driver_name(name, &format!("{path}.name"), errs);
        if id.is_empty() {
            errs.push(FieldError::required(format!("{path}.nodeID"), ""));
        }
        if id.len() > MAX_ID {
            let detail = format!("must be {MAX_ID} characters or less");
            errs.push(FieldError::invalid(format!("{path}.nodeID"), id, detail));
        }
        let count = int(at(driver, "allocatable"), "count").unwrap_or_default();
        nonnegative(errs, &format!("{path}.allocatable.count"), count);
        if !seen.insert(name) {
            errs.push(FieldError::duplicate(format!("{path}.name"), name));
        }
        let mut keys = BTreeSet::new();
        for key in texts(driver, "topologyKeys") {
            if key.is_empty() {
                errs.push(FieldError::required(path.as_str(), ""));
            }
            if !keys.insert(key) {
                errs.push(FieldError::duplicate(path.as_str(), key));
            }
            for message in names::qualified_name(key) {
                errs.push(FieldError::invalid(path.as_str(), at(driver, "topologyKeys"), message));
            }
        }
    }
}

fn capacity(object: &Value, errs: &mut Errors) {
    selector::label_selector(at(object, "nodeTopology"), "nodeTopology", errs);
    let class = text(object, "storageClassName");
    invalid_each(errs, "storageClassName", class, names::dns1123_subdomain(class));
    for field in ["capacity", "maximumVolumeSize"] {
        let value = text(object, field);
        if Quantity::parse(value).is_ok_and(|q| q < Quantity::from_milli(0)) {
            errs.push(FieldError::invalid(field, value, "must be greater than or equal to 0"));
        }
    }
}

fn attachment(object: &Value, errs: &mut Errors) {
    const ONE: &str = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    const SOURCE: &str = "spec.source";
    let spec = at(object, "spec");
    if text(spec, "attacher").is_empty() {
        errs.push(FieldError::required("spec.attacher", ""));
    }
    let source = at(spec, "source");
    match (set(source, "inlineVolumeSpec"), set(source, "persistentVolumeName")) {
        (false, false) => errs.push(FieldError::required(SOURCE, ONE)),
        (true, true) => errs.push(FieldError::forbidden(SOURCE, ONE)),
        (false, true) if text(source, "persistentVolumeName").is_empty() => {
            let detail = "must specify non empty persistentVolumeName";
            errs.push(FieldError::required(format!("{SOURCE}.persistentVolumeName"), detail));
        }
        (true, false) => {
            inline::volume(at(source, "inlineVolumeSpec"), &format!("{SOURCE}.inlineVolumeSpec"), errs)
        }
        _ => {}
    }
    let node = text(spec, "nodeName");
    invalid_each(errs, "spec.nodeName", node, names::dns1123_subdomain(node));
    let status = at(object, "status");
    sized_map(status, "attachmentMetadata", "status.attachmentMetadata", errs);
    const MAX_MESSAGE: usize = 1024;
    for field in ["attachError", "detachError"] {
        let error = at(status, field);
        if text(error, "message").len() > MAX_MESSAGE {
            errs.push(FieldError::too_long(format!("status.{field}.message"), MAX_MESSAGE));
        }
        nonnegative(errs, &format!("status.{field}.errorCode"), int(error, "errorCode").unwrap_or_default());
    }
}
