//! Metadata of custom resources and of resources embedded in them: it has the type of every object's metadata, whatever
//! the schema says.

use super::{Path, Structural};
use crate::codec;
use crate::error::FieldError;
use crate::schema;
use crate::validation;
use kelp_model::names;
use serde_json::Value;

/// Metadata in canonical form, and what is wrong with it that can be passed over: `unknown field "metadata.x"`.
///
/// # Errors
/// The first type error, in Go's words.
pub(crate) fn decode(metadata: Value, path: &str) -> Result<(Value, Vec<String>), String> {
    let Some(ty) = schema::by_name("meta.v1.ObjectMeta") else { return Ok((metadata, Vec::new())) };
    let (value, strict) = codec::decode_value(metadata, ty)?;
    // The texts name fields of the metadata alone.
    let place = |text: String| match text.split_once(" field \"") {
        Some((what, field)) => format!("{what} field \"{path}.{field}"),
        None => text,
    };
    Ok((value, strict.into_iter().map(place).collect()))
}

/// Brings the metadata of embedded resources into canonical form. With `lenient`, what is malformed is dropped: objects
/// in the store are read, whatever an older server accepted.
///
/// # Errors
/// The first field that is malformed.
pub(crate) fn coerce_embedded(
    object: &mut Value,
    schema: &Structural,
    lenient: bool,
    unknown: &mut Vec<String>,
) -> Result<(), FieldError> {
    coerce(object, schema, false, lenient, &mut Path::default(), unknown)
}

fn coerce(
    value: &mut Value,
    schema: &Structural,
    embedded: bool,
    lenient: bool,
    path: &mut Path,
    unknown: &mut Vec<String>,
) -> Result<(), FieldError> {
    match value {
        Value::Object(map) => {
            if embedded {
                for name in ["apiVersion", "kind"] {
                    if map.get(name).is_some_and(|value| !value.is_string()) {
                        if lenient {
                            map.remove(name);
                        } else {
                            let bad = map.get(name).cloned().unwrap_or_default();
                            return path.field(name, |p| {
                                Err(FieldError::invalid(p.as_str(), bad, "must be a string"))
                            });
                        }
                    }
                }
                if let Some(metadata) = map.get("metadata").cloned() {
                    let at = path.field("metadata", |p| p.as_str().to_owned());
                    match decode(metadata.clone(), &at) {
                        Ok((metadata, strict)) => {
                            unknown.extend(strict);
                            map.insert("metadata".to_owned(), metadata);
                        }
                        Err(_) if lenient => {
                            map.remove("metadata");
                        }
                        Err(why) => return Err(FieldError::invalid(at, metadata, why)),
                    }
                }
            }
            for (name, member) in map {
                let place = path.len();
                let inner = match schema.properties.get(name.as_str()) {
                    Some(property) => {
                        path.push_field(name);
                        property
                    }
                    None => match schema.additional_schema() {
                        Some(inner) => {
                            path.push_key(name);
                            inner
                        }
                        None => continue,
                    },
                };
                coerce(member, inner, inner.embedded, lenient, path, unknown)?;
                path.truncate(place);
            }
        }
        Value::Array(items) => {
            let Some(inner) = schema.items.as_deref() else { return Ok(()) };
            for (at, item) in items.iter_mut().enumerate() {
                let place = path.len();
                path.push_index(at);
                coerce(item, inner, inner.embedded, lenient, path, unknown)?;
                path.truncate(place);
            }
        }
        _ => {}
    }
    Ok(())
}

/// Checks the kind, version and metadata of embedded resources.
pub(crate) fn validate_embedded(object: &Value, schema: &Structural) -> Vec<FieldError> {
    let mut errs = Vec::new();
    validate(object, schema, false, &mut Path::default(), &mut errs);
    errs
}

fn validate(value: &Value, schema: &Structural, embedded: bool, path: &mut Path, errs: &mut Vec<FieldError>) {
    match value {
        Value::Object(map) => {
            if embedded {
                resource(value, path, errs);
            }
            for (name, member) in map {
                if let Some(property) = schema.properties.get(name.as_str()) {
                    path.field(name, |path| validate(member, property, property.embedded, path, errs));
                } else if let Some(inner) = schema.additional_schema() {
                    path.key(name, |path| validate(member, inner, inner.embedded, path, errs));
                }
            }
        }
        Value::Array(items) => {
            if let Some(inner) = schema.items.as_deref() {
                for (at, item) in items.iter().enumerate() {
                    path.index(at, |path| validate(item, inner, inner.embedded, path, errs));
                }
            }
        }
        _ => {}
    }
}

fn resource(value: &Value, path: &mut Path, errs: &mut Vec<FieldError>) {
    let at = |path: &mut Path, name: &str| path.field(name, |p| p.as_str().to_owned());
    for name in ["apiVersion", "kind"] {
        if value.get(name).is_none() {
            errs.push(FieldError::required(at(path, name), ""));
        }
    }
    match value.get("apiVersion") {
        None => {}
        Some(Value::String(version)) if version.is_empty() => {
            errs.push(FieldError::invalid(at(path, "apiVersion"), "", "must not be empty"));
        }
        Some(Value::String(version)) if version.matches('/').count() > 1 => {
            let why = format!("unexpected GroupVersion string: {version}");
            errs.push(FieldError::invalid(at(path, "apiVersion"), version, why));
        }
        Some(Value::String(_)) => {}
        Some(other) => errs.push(FieldError::invalid(at(path, "apiVersion"), other, "must be a string")),
    }
    match value.get("kind") {
        None => {}
        Some(Value::String(kind)) if kind.is_empty() => {
            errs.push(FieldError::invalid(at(path, "kind"), "", "must not be empty"));
        }
        Some(Value::String(kind)) => {
            let faults = names::dns1035_label(&kind.to_lowercase());
            if !faults.is_empty() {
                let why = format!("may have mixed case, but should otherwise match: {}", faults.join(","));
                errs.push(FieldError::invalid(at(path, "kind"), kind, why));
            }
        }
        Some(other) => errs.push(FieldError::invalid(at(path, "kind"), other, "must be a string")),
    }
    let Some(metadata) = value.get("metadata") else { return };
    let place = at(path, "metadata");
    match decode(metadata.clone(), &place) {
        Ok((metadata, _)) => errs.extend(validation::embedded_metadata(&metadata, &place)),
        Err(why) => errs.push(FieldError::invalid(place, metadata, why)),
    }
}
