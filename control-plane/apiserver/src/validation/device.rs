//! Device classes, claims for devices, and slices of devices. Expressions are not compiled here.

mod slice;

use kelp_model::names;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

use super::storage::driver_name;
use super::{
    Errors, at, conditions, immutable, int, invalid_each, list, meta, net, same, selector, set, text, texts,
};
use crate::error::{BadValue, FieldError, FieldErrorKind};

/// Limits of upstream's API, in items or bytes.
const MAX_LIST: usize = 32;
const MAX_ALTERNATIVES: usize = 8;
const MAX_TOLERATIONS: usize = 16;
const MAX_RESERVED: usize = 256;
const MAX_OPAQUE: usize = 10 << 10;
const MAX_EXPRESSION: usize = 10 << 10;
const MAX_POOL: usize = 253;
const MAX_IDENTIFIER: usize = 32;

pub(super) fn create(kind: &str, object: &Value, errs: &mut Errors) {
    match kind {
        "DeviceClass" => class(object, errs),
        "ResourceClaim" => claim(at(object, "spec"), "spec", errs),
        "ResourceClaimTemplate" => template(object, errs),
        "ResourceSlice" => slice::check(object, errs),
        _ => {}
    }
}

pub(super) fn update(kind: &str, new: &Value, old: &Value, errs: &mut Errors) {
    match kind {
        "DeviceClass" => class(new, errs),
        "ResourceClaim" => {
            immutable(errs, "spec", at(new, "spec"), at(old, "spec"));
            claim(at(new, "spec"), "spec", errs);
        }
        "ResourceClaimTemplate" => {
            immutable(errs, "spec", at(new, "spec"), at(old, "spec"));
            template(new, errs);
        }
        "ResourceSlice" => slice::update(new, old, errs),
        _ => {}
    }
}

/// At most so many items.
fn at_most(holder: &Value, field: &str, path: &str, max: usize, errs: &mut Errors) {
    let count = list(holder, field).len();
    if count > max {
        errs.push(FieldError::too_many(format!("{path}.{field}"), count, max));
    }
}

fn class(object: &Value, errs: &mut Errors) {
    let spec = at(object, "spec");
    selectors(spec, "spec", errs);
    for (i, config) in list(spec, "config").iter().enumerate() {
        configuration(config, &format!("spec.config[{i}]"), errs);
    }
    at_most(spec, "config", "spec", MAX_LIST, errs);
    let name = text(spec, "extendedResourceName");
    if set(spec, "extendedResourceName") && !super::resources::extended(name) {
        let detail = "must be a valid extended resource name";
        errs.push(FieldError::invalid("spec.extendedResourceName", name, detail));
    }
}

fn template(object: &Value, errs: &mut Errors) {
    let spec = at(object, "spec");
    let metadata = at(spec, "metadata");
    meta::annotations(metadata, "spec.metadata.annotations", errs);
    meta::labels(metadata, "labels", "spec.metadata.labels", errs);
    claim(at(spec, "spec"), "spec.spec", errs);
}

/// Names of requests, with those of their alternatives.
struct Requests<'a>(BTreeMap<&'a str, BTreeSet<&'a str>>);

impl<'a> Requests<'a> {
    fn of(devices: &'a Value) -> Self {
        let alternatives = |r: &'a Value| list(r, "firstAvailable").iter().map(|s| text(s, "name")).collect();
        Requests(list(devices, "requests").iter().map(|r| (text(r, "name"), alternatives(r))).collect())
    }

    /// Checks a reference to a request.
    fn reference(&self, name: &str, path: &str, errs: &mut Errors) {
        const DETAIL: &str = "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";
        let parts: Vec<&str> = name.split('/').collect();
        let known = match parts.as_slice() {
            [request] => self.0.contains_key(request),
            [request, sub] => self.0.get(request).is_some_and(|subs| subs.contains(sub)),
            _ => {
                errs.push(FieldError::invalid(path, name, DETAIL));
                return;
            }
        };
        for part in parts {
            invalid_each(errs, path, part, names::dns1123_label(part));
        }
        if !known {
            errs.push(FieldError::invalid(path, name, DETAIL));
        }
    }

    /// Checks a list of references.
    fn references(&self, holder: &Value, path: &str, errs: &mut Errors) {
        for (i, name) in texts(holder, "requests").enumerate() {
            self.reference(name, &format!("{path}.requests[{i}]"), errs);
        }
        at_most(holder, "requests", path, MAX_LIST, errs);
        let mut seen = BTreeSet::new();
        for (i, name) in texts(holder, "requests").enumerate().filter(|(_, n)| !seen.insert(*n)) {
            errs.push(FieldError::duplicate(format!("{path}.requests[{i}]"), name));
        }
    }
}

/// No two items of a list have the same name.
fn unique_names(holder: &Value, field: &str, path: &str, errs: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (i, item) in list(holder, field).iter().enumerate() {
        if !seen.insert(text(item, "name")) {
            errs.push(FieldError::duplicate(format!("{path}.{field}[{i}].name"), text(item, "name")));
        }
    }
}

fn claim(spec: &Value, path: &str, errs: &mut Errors) {
    let devices = at(spec, "devices");
    let path = format!("{path}.devices");
    let requests = Requests::of(devices);
    for (i, r) in list(devices, "requests").iter().enumerate() {
        request(r, &format!("{path}.requests[{i}]"), errs);
    }
    at_most(devices, "requests", &path, MAX_LIST, errs);
    unique_names(devices, "requests", &path, errs);
    for (i, constraint) in list(devices, "constraints").iter().enumerate() {
        let path = format!("{path}.constraints[{i}]");
        requests.references(constraint, &path, errs);
        let mut given = false;
        for field in ["matchAttribute", "distinctAttribute"] {
            if set(constraint, field) {
                given = true;
                fully_qualified(text(constraint, field), &format!("{path}.{field}"), errs);
            }
        }
        if !given {
            errs.push(FieldError::required(format!("{path}.matchAttribute"), ""));
        }
    }
    at_most(devices, "constraints", &path, MAX_LIST, errs);
    for (i, config) in list(devices, "config").iter().enumerate() {
        let path = format!("{path}.config[{i}]");
        requests.references(config, &path, errs);
        configuration(config, &path, errs);
    }
    at_most(devices, "config", &path, MAX_LIST, errs);
}

fn request(request: &Value, path: &str, errs: &mut Errors) {
    const ONE: &str = "exactly one of `exactly` or `firstAvailable` is required";
    let name = text(request, "name");
    invalid_each(errs, &format!("{path}.name"), name, names::dns1123_label(name));
    let alternatives = list(request, "firstAvailable");
    for (i, sub) in alternatives.iter().enumerate() {
        let path = format!("{path}.firstAvailable[{i}]");
        let name = text(sub, "name");
        invalid_each(errs, &format!("{path}.name"), name, names::dns1123_label(name));
        devices_wanted(sub, &path, errs);
    }
    at_most(request, "firstAvailable", path, MAX_ALTERNATIVES, errs);
    unique_names(request, "firstAvailable", path, errs);
    if set(request, "exactly") {
        devices_wanted(at(request, "exactly"), &format!("{path}.exactly"), errs);
    }
    match (set(request, "exactly"), alternatives.is_empty()) {
        (false, true) => errs.push(FieldError::required(path, ONE)),
        (true, false) => {
            let detail = format!("{ONE}, but multiple fields are set");
            errs.push(FieldError::invalid(path, BadValue::Text("null".to_owned()), detail));
        }
        _ => {}
    }
}

fn devices_wanted(wanted: &Value, path: &str, errs: &mut Errors) {
    let class = text(wanted, "deviceClassName");
    let class_path = format!("{path}.deviceClassName");
    if class.is_empty() {
        errs.push(FieldError::required(class_path, ""));
    } else {
        invalid_each(errs, &class_path, class, names::dns1123_subdomain(class));
    }
    selectors(wanted, path, errs);
    let count = int(wanted, "count").unwrap_or_default();
    match text(wanted, "allocationMode") {
        "All" if count != 0 => {
            let detail = "must not be specified when allocationMode is 'All'";
            errs.push(FieldError::invalid(format!("{path}.count"), count, detail));
        }
        "ExactCount" if count <= 0 => {
            errs.push(FieldError::invalid(format!("{path}.count"), count, "must be greater than zero"));
        }
        "All" | "ExactCount" => {}
        other => {
            let supported = ["All", "ExactCount"];
            errs.push(FieldError::not_supported(format!("{path}.allocationMode"), other, &supported));
        }
    }
    for (i, toleration) in list(wanted, "tolerations").iter().enumerate() {
        tolerates(toleration, &format!("{path}.tolerations[{i}]"), errs);
    }
    at_most(wanted, "tolerations", path, MAX_TOLERATIONS, errs);
}

fn selectors(holder: &Value, path: &str, errs: &mut Errors) {
    for (i, selector) in list(holder, "selectors").iter().enumerate() {
        let path = format!("{path}.selectors[{i}].cel");
        if !set(selector, "cel") {
            errs.push(FieldError::required(path, ""));
        } else if text(at(selector, "cel"), "expression").len() > MAX_EXPRESSION {
            errs.push(FieldError::too_long(format!("{path}.expression"), MAX_EXPRESSION));
        }
    }
    at_most(holder, "selectors", path, MAX_LIST, errs);
}

fn configuration(config: &Value, path: &str, errs: &mut Errors) {
    let path = format!("{path}.opaque");
    let opaque = at(config, "opaque");
    if opaque.is_null() {
        errs.push(FieldError::required(path, ""));
        return;
    }
    driver_name(text(opaque, "driver"), &format!("{path}.driver"), errs);
    raw(at(opaque, "parameters"), &format!("{path}.parameters"), MAX_OPAQUE, errs);
}

/// An object of any shape.
fn raw(value: &Value, path: &str, max: usize, errs: &mut Errors) {
    if value.is_null() {
        errs.push(FieldError::required(path, ""));
    } else if value.to_string().len() > max {
        errs.push(FieldError::too_long(path, max));
    } else if !value.is_object() {
        let detail = "parameters must be a valid JSON object";
        errs.push(FieldError::invalid(path, "<value omitted>", detail));
    }
}

const EFFECTS: [&str; 3] = ["NoExecute", "NoSchedule", "None"];

fn tolerates(toleration: &Value, path: &str, errs: &mut Errors) {
    let (key, value) = (text(toleration, "key"), text(toleration, "value"));
    if !key.is_empty() {
        invalid_each(errs, &format!("{path}.key"), key, names::qualified_name(key));
    }
    match text(toleration, "operator") {
        "Exists" if !value.is_empty() => {
            let detail = "must be empty for operator `Exists`";
            errs.push(FieldError::invalid(format!("{path}.value"), value, detail));
        }
        "Exists" => {}
        "Equal" => invalid_each(errs, &format!("{path}.value"), value, names::label_value(value)),
        other => super::one_of(errs, &format!("{path}.operator"), other, &["Equal", "Exists"]),
    }
    let effect = text(toleration, "effect");
    if !effect.is_empty() && !EFFECTS.contains(&effect) {
        errs.push(FieldError::not_supported(format!("{path}.effect"), effect, &EFFECTS));
    }
}

fn pool_name(name: &str, path: &str, errs: &mut Errors) {
    if name.is_empty() {
        errs.push(FieldError::required(path, ""));
        return;
    }
    if name.len() > MAX_POOL {
        errs.push(FieldError::too_long(path, MAX_POOL));
    }
    for part in name.split('/') {
        invalid_each(errs, path, part, names::dns1123_subdomain(part));
    }
}

/// The name of an attribute or capacity, with or without a domain.
fn qualified(name: &str, path: &str, errs: &mut Errors) {
    let parts: Vec<&str> = name.split('/').collect();
    match parts.as_slice() {
        [""] => errs.push(FieldError::required(path, "name required")),
        [id] => identifier(id, path, errs),
        [domain, id] => {
            if domain.is_empty() {
                errs.push(FieldError::required(path, "the domain must not be empty"));
            } else {
                driver_name(domain, path, errs);
            }
            if id.is_empty() {
                errs.push(FieldError::required(path, "the name must not be empty"));
            } else {
                identifier(id, path, errs);
            }
        }
        _ => {}
    }
}

fn fully_qualified(name: &str, path: &str, errs: &mut Errors) {
    qualified(name, path, errs);
    if !name.is_empty() && !name.contains('/') {
        errs.push(FieldError::invalid(path, name, "must include a domain"));
    }
}

fn identifier(id: &str, path: &str, errs: &mut Errors) {
    if id.len() > MAX_IDENTIFIER {
        errs.push(FieldError::too_long(path, MAX_IDENTIFIER));
    }
    let start = id.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    if !start || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        let detail = names::regex_error(
            "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_'",
            "[A-Za-z_][A-Za-z0-9_]*",
            &["my_name", "MY_NAME", "MyName"],
        );
        errs.push(FieldError::new(FieldErrorKind::TypeInvalid, path, id, detail));
    }
}

/// The status of a claim.
pub(super) fn status(new: &Value, old: &Value, errs: &mut Errors) {
    let (after, before) = (at(new, "status"), at(old, "status"));
    reserved(new, after, before, errs);
    let allocation = at(after, "allocation");
    let devices = at(allocation, "devices");
    let id = |d: &Value| ["driver", "pool", "device"].map(|field| text(d, field).to_owned());
    let allocated: BTreeSet<[String; 3]> = list(devices, "results").iter().map(id).collect();
    let mut seen = BTreeSet::new();
    for (i, device) in list(after, "devices").iter().enumerate() {
        let path = format!("status.devices[{i}]");
        device_status(device, &path, allocated.contains(&id(device)), errs);
        if !seen.insert(id(device)) {
            let shown = BadValue::Text(id(device).join("/"));
            errs.push(FieldError::new(FieldErrorKind::Duplicate, format!("{path}.deviceID"), shown, ""));
        }
    }
    if set(before, "allocation") && !allocation.is_null() {
        immutable(errs, "status.allocation", allocation, at(before, "allocation"));
    } else if !allocation.is_null() {
        allocation_rules(new, allocation, errs);
    }
}

fn reserved(claim: &Value, after: &Value, before: &Value, errs: &mut Errors) {
    const PATH: &str = "status.reservedFor";
    let consumers = list(after, "reservedFor");
    for (i, consumer) in consumers.iter().enumerate() {
        for field in ["resource", "name", "uid"] {
            if text(consumer, field).is_empty() {
                errs.push(FieldError::required(format!("{PATH}[{i}].{field}"), ""));
            }
        }
    }
    at_most(after, "reservedFor", "status", MAX_RESERVED, errs);
    let mut seen = BTreeSet::new();
    for (i, consumer) in consumers.iter().enumerate() {
        if !seen.insert(text(consumer, "uid")) {
            errs.push(FieldError::duplicate(format!("{PATH}[{i}].uid"), text(consumer, "uid")));
        }
    }
    if consumers.is_empty() {
        return;
    }
    if !set(after, "allocation") {
        let detail = "may not be specified when `allocated` is not set";
        errs.push(FieldError::forbidden(PATH, detail));
        return;
    }
    let added = consumers.iter().any(|c| !list(before, "reservedFor").iter().any(|b| same(b, c)));
    if added && set(at(claim, "metadata"), "deletionTimestamp") {
        let detail =
            "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set";
        errs.push(FieldError::forbidden(PATH, detail));
    }
}

fn device_identity(device: &Value, path: &str, errs: &mut Errors) {
    driver_name(text(device, "driver"), &format!("{path}.driver"), errs);
    pool_name(text(device, "pool"), &format!("{path}.pool"), errs);
    let name = text(device, "device");
    invalid_each(errs, &format!("{path}.device"), name, names::dns1123_label(name));
}

fn device_status(device: &Value, path: &str, allocated: bool, errs: &mut Errors) {
    const MAX_CONDITIONS: usize = 8;
    const MAX_ADDRESSES: usize = 16;
    device_identity(device, path, errs);
    if !allocated {
        let id = ["driver", "pool", "device"].map(|field| text(device, field)).join("/");
        let detail = "must be an allocated device in the claim";
        errs.push(FieldError::invalid(path, BadValue::Text(id), detail));
    }
    at_most(device, "conditions", path, MAX_CONDITIONS, errs);
    conditions::check(list(device, "conditions"), &format!("{path}.conditions"), errs);
    if set(device, "data") {
        raw(at(device, "data"), &format!("{path}.data"), MAX_OPAQUE, errs);
    }
    let network = at(device, "networkData");
    let path = format!("{path}.networkData");
    for (field, max) in [("interfaceName", 256), ("hardwareAddress", 128)] {
        if text(network, field).len() > max {
            errs.push(FieldError::too_long(format!("{path}.{field}"), max));
        }
    }
    let mut seen = BTreeSet::new();
    for (i, address) in texts(network, "ips").enumerate() {
        net::interface_address(errs, &format!("{path}.ips[{i}]"), address);
    }
    at_most(network, "ips", &path, MAX_ADDRESSES, errs);
    for (i, address) in texts(network, "ips").enumerate().filter(|(_, a)| !seen.insert(*a)) {
        errs.push(FieldError::duplicate(format!("{path}.ips[{i}]"), address));
    }
}

fn allocation_rules(claim: &Value, allocation: &Value, errs: &mut Errors) {
    const PATH: &str = "status.allocation";
    let requests = Requests::of(at(at(claim, "spec"), "devices"));
    let devices = at(allocation, "devices");
    for (i, result) in list(devices, "results").iter().enumerate() {
        let path = format!("{PATH}.devices.results[{i}]");
        requests.reference(text(result, "request"), &format!("{path}.request"), errs);
        device_identity(result, &path, errs);
    }
    at_most(devices, "results", &format!("{PATH}.devices"), MAX_LIST, errs);
    for (i, config) in list(devices, "config").iter().enumerate() {
        let path = format!("{PATH}.devices.config[{i}]");
        super::one_of(errs, &format!("{path}.source"), text(config, "source"), &["FromClaim", "FromClass"]);
        requests.references(config, &path, errs);
        configuration(config, &path, errs);
    }
    at_most(devices, "config", &format!("{PATH}.devices"), 2 * MAX_LIST, errs);
    if set(allocation, "nodeSelector") {
        selector::node_selector(at(allocation, "nodeSelector"), &format!("{PATH}.nodeSelector"), errs);
    }
}
