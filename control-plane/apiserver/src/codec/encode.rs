//! Objects to the Kubernetes protobuf encoding, the inverse of [`super::proto`].

use serde_json::Value;

use super::proto::MAGIC;
use super::scalar;
use super::wire::{put_bytes, put_double, put_number};
use crate::schema::{Type, TypeSchema};

/// The object as a protobuf body: envelope and message. Values that do not fit the schema are left out.
pub(crate) fn encode(object: &Value, ty: &TypeSchema) -> Vec<u8> {
    let text = |name: &str| object.get(name).and_then(Value::as_str).unwrap_or_default();
    let mut meta = Vec::new();
    put_bytes(&mut meta, 1, text("apiVersion").as_bytes());
    put_bytes(&mut meta, 2, text("kind").as_bytes());
    let mut out = MAGIC.to_vec();
    put_bytes(&mut out, 1, &meta);
    put_bytes(&mut out, 2, &message(object, ty));
    put_bytes(&mut out, 3, b"");
    put_bytes(&mut out, 4, b"");
    out
}

/// The message of an object.
pub(crate) fn message(object: &Value, ty: &TypeSchema) -> Vec<u8> {
    let mut out = Vec::new();
    let mut fields: Vec<_> = ty.fields.iter().filter(|f| f.number > 0).collect();
    fields.sort_by_key(|f| f.number);
    for field in fields {
        let Some(value) = object.get(field.name.as_ref()).filter(|v| !v.is_null()) else { continue };
        match &field.ty {
            Type::List(item) => {
                for v in value.as_array().into_iter().flatten() {
                    put(&mut out, field.number, v, item);
                }
            }
            Type::Map(item) => {
                for (k, v) in value.as_object().into_iter().flatten() {
                    let mut entry = Vec::new();
                    put_bytes(&mut entry, 1, k.as_bytes());
                    put(&mut entry, 2, v, item);
                    put_bytes(&mut out, field.number, &entry);
                }
            }
            other => put(&mut out, field.number, value, other),
        }
    }
    for (number, inlined) in ty.inlined.iter().filter(|(n, _)| *n > 0) {
        put_bytes(&mut out, *number, &message(object, inlined.get()));
    }
    out
}

/// Appends a value as a field.
pub(super) fn put(out: &mut Vec<u8>, number: u32, value: &Value, ty: &Type) {
    let text = || value.as_str().unwrap_or_default();
    let mut inner = Vec::new();
    match ty {
        Type::String(_) => return put_bytes(out, number, text().as_bytes()),
        Type::Bool => return put_number(out, number, i64::from(value.as_bool() == Some(true))),
        Type::Int32 | Type::Int64 => return put_number(out, number, value.as_i64().unwrap_or_default()),
        Type::Float64 => {
            return put_double(out, number, value.as_f64().unwrap_or_default());
        }
        Type::Bytes => {
            return put_bytes(out, number, &scalar::decode_base64(text()).unwrap_or_default());
        }
        Type::Quantity => put_bytes(&mut inner, 1, text().as_bytes()),
        Type::IntOrString => match value {
            Value::String(s) => {
                put_number(&mut inner, 1, 1);
                put_number(&mut inner, 2, 0);
                put_bytes(&mut inner, 3, s.as_bytes());
            }
            other => {
                put_number(&mut inner, 1, 0);
                put_number(&mut inner, 2, other.as_i64().unwrap_or_default());
                put_bytes(&mut inner, 3, b"");
            }
        },
        Type::Time | Type::MicroTime => {
            if let Ok(time) = text().parse::<jiff::Timestamp>() {
                put_number(&mut inner, 1, time.as_second());
                put_number(&mut inner, 2, i64::from(time.subsec_nanosecond()));
            }
        }
        Type::Raw | Type::FieldsV1 | Type::Json | Type::Deduced => {
            put_bytes(&mut inner, 1, value.to_string().as_bytes());
        }
        Type::SchemaOrArray(r) => match value {
            Value::Array(items) => {
                items.iter().for_each(|s| put_bytes(&mut inner, 2, &message(s, r.get())));
            }
            schema => put_bytes(&mut inner, 1, &message(schema, r.get())),
        },
        Type::SchemaOrBool(r) => match value {
            Value::Object(_) => {
                put_number(&mut inner, 1, 1);
                put_bytes(&mut inner, 2, &message(value, r.get()));
            }
            allows => put_number(&mut inner, 1, i64::from(allows.as_bool() == Some(true))),
        },
        Type::SchemaOrStrings(r) => match value {
            Value::Array(items) => {
                items
                    .iter()
                    .for_each(|s| put_bytes(&mut inner, 2, s.as_str().unwrap_or_default().as_bytes()));
            }
            schema => put_bytes(&mut inner, 1, &message(schema, r.get())),
        },
        Type::Wrapped(item) => {
            value.as_array().into_iter().flatten().for_each(|v| put(&mut inner, 1, v, item));
        }
        Type::Object(r) => inner = message(value, r.get()),
        Type::List(_) | Type::Map(_) => return,
    }
    put_bytes(out, number, &inner);
}
