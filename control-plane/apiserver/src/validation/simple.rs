//! ConfigMap, Secret, Namespace, Lease.

use kelp_model::names;
use serde_json::Value;

use super::{Errors, at, flag, immutable, int, invalid_each, map, same, set, text, texts};
use crate::codec;
use crate::error::FieldError;
use crate::gvk::GroupVersionKind;

/// All values of a ConfigMap or Secret together may have this many bytes.
const MAX_DATA: usize = 1 << 20;

const IMMUTABLE: &str = "field is immutable when `immutable` is set";

pub(super) fn config_map(object: &Value, errs: &mut Errors) {
    let mut size = 0;
    for (key, value) in map(object, "data") {
        let path = format!("data[{key}]");
        invalid_each(errs, &path, key, names::config_map_key(key));
        if at(object, "binaryData").get(key).is_some() {
            errs.push(FieldError::invalid(path, key, "duplicate of key present in binaryData"));
        }
        size += value.as_str().unwrap_or_default().len();
    }
    for (key, value) in map(object, "binaryData") {
        let path = format!("binaryData[{key}]");
        invalid_each(errs, &path, key, names::config_map_key(key));
        size += base64_length(value);
    }
    if size > MAX_DATA {
        errs.push(FieldError::too_long("", MAX_DATA));
    }
}

/// The number of bytes that a base64 text stands for.
pub(super) fn base64_length(value: &Value) -> usize {
    let text = value.as_str().unwrap_or_default();
    (text.len() / 4 * 3).saturating_sub(text.bytes().rev().take_while(|b| *b == b'=').count())
}

pub(super) fn config_map_update(gvk: &GroupVersionKind, new: &Value, old: &Value, errs: &mut Errors) {
    frozen(new, old, &["data", "binaryData"], errs);
    super::meta::create(gvk, new, errs);
    config_map(new, errs);
}

/// What `immutable` forbids to change.
fn frozen(new: &Value, old: &Value, fields: &[&str], errs: &mut Errors) {
    if !flag(old, "immutable") {
        return;
    }
    if !flag(new, "immutable") {
        errs.push(FieldError::forbidden("immutable", IMMUTABLE));
    }
    for field in fields {
        if !same(at(new, field), at(old, field)) {
            errs.push(FieldError::forbidden(*field, IMMUTABLE));
        }
    }
}

/// Go's name for what is read in place of an object.
fn not_a_map(value: &Value) -> Option<&'static str> {
    match value {
        Value::Array(_) => Some("array"),
        Value::String(_) => Some("string"),
        Value::Number(_) => Some("number"),
        Value::Bool(_) => Some("bool"),
        Value::Null | Value::Object(_) => None,
    }
}

pub(super) fn secret(object: &Value, errs: &mut Errors) {
    let mut size = 0;
    for (key, value) in map(object, "data") {
        invalid_each(errs, &format!("data[{key}]"), key, names::config_map_key(key));
        size += base64_length(value);
    }
    if size > MAX_DATA {
        errs.push(FieldError::too_long("data", MAX_DATA));
    }
    let data = at(object, "data");
    let missing = |key: &str| data.get(key).is_none();
    let mut require = |keys: &[&str]| {
        for key in keys.iter().filter(|k| missing(k)) {
            errs.push(FieldError::required(format!("data[{key}]"), ""));
        }
    };
    match text(object, "type") {
        "kubernetes.io/service-account-token" => {
            const NAME: &str = "kubernetes.io/service-account.name";
            if text(at(at(object, "metadata"), "annotations"), NAME).is_empty() {
                errs.push(FieldError::required(format!("metadata.annotations[{NAME}]"), ""));
            }
        }
        kind @ ("kubernetes.io/dockercfg" | "kubernetes.io/dockerconfigjson") => {
            let key = if kind.ends_with("json") { ".dockerconfigjson" } else { ".dockercfg" };
            require(&[key]);
            let bytes = data.get(key).and_then(Value::as_str).and_then(|t| codec::decode_base64(t).ok());
            let why = match bytes.map(|b| codec::parse_json(&b)) {
                Some(Err(why)) => Some(why),
                Some(Ok(other)) => not_a_map(&other).map(|kind| {
                    format!("json: cannot unmarshal {kind} into Go value of type map[string]interface {{}}")
                }),
                None => None,
            };
            if let Some(why) = why {
                errs.push(FieldError::invalid(format!("data[{key}]"), "<secret contents redacted>", why));
            }
        }
        "kubernetes.io/basic-auth" if missing("username") && missing("password") => {
            require(&["username", "password"]);
        }
        "kubernetes.io/ssh-auth" if text(data, "ssh-privatekey").is_empty() => {
            errs.push(FieldError::required("data[ssh-privatekey]", ""));
        }
        "kubernetes.io/tls" => require(&["tls.crt", "tls.key"]),
        _ => {}
    }
}

pub(super) fn secret_update(gvk: &GroupVersionKind, new: &Value, old: &Value, errs: &mut Errors) {
    immutable(errs, "type", at(new, "type"), at(old, "type"));
    frozen(new, old, &["data"], errs);
    super::meta::create(gvk, new, errs);
    secret(new, errs);
}

pub(super) fn namespace(object: &Value, errs: &mut Errors) {
    for finalizer in texts(at(object, "spec"), "finalizers") {
        finalizer_name(finalizer, "spec.finalizers", errs);
    }
}

/// The body of the `finalize` subresource.
pub(super) fn namespace_finalizers(object: &Value, errs: &mut Errors) {
    for (i, finalizer) in texts(at(object, "spec"), "finalizers").enumerate() {
        finalizer_name(finalizer, &format!("spec.finalizers[{i}]"), errs);
    }
}

fn finalizer_name(name: &str, path: &str, errs: &mut Errors) {
    invalid_each(errs, path, name, names::qualified_name(name));
    if !name.contains('/') && !matches!(name, "kubernetes" | "orphan" | "foregroundDeletion") {
        let detail = "name is neither a standard finalizer name nor is it fully qualified";
        errs.push(FieldError::invalid(path, name, detail));
    }
}

pub(super) fn namespace_status(object: &Value, errs: &mut Errors) {
    let phase = text(at(object, "status"), "phase");
    let (want, when) = if set(at(object, "metadata"), "deletionTimestamp") {
        ("Terminating", "is not empty")
    } else {
        ("Active", "is empty")
    };
    if phase != want {
        let detail = format!("may only be '{want}' if `deletionTimestamp` {when}");
        errs.push(FieldError::invalid("status.Phase", phase, detail));
    }
}

pub(super) fn lease(object: &Value, errs: &mut Errors) {
    let spec = at(object, "spec");
    if let Some(seconds) = int(spec, "leaseDurationSeconds").filter(|s| *s <= 0) {
        errs.push(FieldError::invalid("spec.leaseDurationSeconds", seconds, "must be greater than 0"));
    }
    if let Some(transitions) = int(spec, "leaseTransitions").filter(|t| *t < 0) {
        errs.push(FieldError::invalid(
            "spec.leaseTransitions",
            transitions,
            "must be greater than or equal to 0",
        ));
    }
}
