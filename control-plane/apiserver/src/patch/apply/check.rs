//! What is wrong with an applied configuration: unknown fields, wrong types, repeated list items. The texts are
//! those of structured-merge-diff's `typed` package.

use std::collections::BTreeSet;

use serde_json::Value;

use super::set::shown;
use super::shape::{Shape, Typed};
use crate::patch::go_value;
use crate::schema::{Type, TypeSchema};

/// Errors beyond this number are not reported.
const MAX_ERRORS: usize = 100;

/// Checks a configuration against its type.
pub(super) fn check(value: &Value, schema: &TypeSchema) -> Result<(), String> {
    let mut errors = Vec::new();
    structure(value, schema, "", &mut errors);
    match errors.as_slice() {
        [] => Ok(()),
        [one] => Err(one.clone()),
        many => Err(format!("errors:\n  {}", many.join("\n  "))),
    }
}

fn push(errors: &mut Vec<String>, path: &str, what: String) {
    if errors.len() < MAX_ERRORS {
        errors.push(if path.is_empty() { what } else { format!("{path}: {what}") });
    }
}

/// A value as Go's `%#v` prints it.
fn go_syntax(value: &Value) -> String {
    match value {
        Value::Null => "interface {}(nil)".to_owned(),
        Value::String(s) => crate::error::quote(s),
        Value::Array(items) => {
            format!("[]interface {{}}{{{}}}", items.iter().map(go_syntax).collect::<Vec<_>>().join(", "))
        }
        Value::Object(map) => {
            let mut members: Vec<String> =
                map.iter().map(|(k, v)| format!("{}:{}", crate::error::quote(k), go_syntax(v))).collect();
            members.sort();
            format!("map[string]interface {{}}{{{}}}", members.join(", "))
        }
        other => other.to_string(),
    }
}

/// The Go type of a value.
fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::String(_) => "string",
        Value::Number(n) if n.is_i64() || n.is_u64() => "int64",
        Value::Number(_) => "float64",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

fn structure(value: &Value, schema: &TypeSchema, path: &str, errors: &mut Vec<String>) {
    let map = match value {
        Value::Null => return,
        Value::Object(map) => map,
        other => return push(errors, path, format!("expected map, got &{{{}}}", go_value(other))),
    };
    for (name, v) in map {
        let path = format!("{path}.{name}");
        match schema.field(name) {
            Some(field) => check_value(v, Typed::field(field), &path, errors),
            None if schema.preserve_unknown => {}
            None => push(errors, &path, "field not declared in schema".to_owned()),
        }
    }
}

fn check_value(value: &Value, typed: Typed<'_>, path: &str, errors: &mut Vec<String>) {
    if value.is_null() {
        return;
    }
    let got = || format!("&{{{}}}", go_value(value));
    match (typed.ty, value) {
        (Type::Object(r), v) => structure(v, r.get(), path, errors),
        (Type::Map(t), Value::Object(map)) => {
            for (k, v) in map {
                check_value(v, Typed::plain(t), &format!("{path}.{k}"), errors);
            }
        }
        (Type::Map(_), _) => push(errors, path, format!("expected map, got {}", got())),
        (Type::List(t) | Type::Wrapped(t), Value::Array(list)) => items(list, t, typed, path, errors),
        (Type::List(_) | Type::Wrapped(_), _) => push(errors, path, format!("expected list, got {}", got())),
        (Type::String(_) | Type::Bytes, Value::String(_)) | (Type::Bool, Value::Bool(_)) => {}
        (Type::Int32 | Type::Int64 | Type::Float64, Value::Number(_)) => {}
        (Type::String(_) | Type::Bytes, v) => push(
            errors,
            path,
            format!("expected string, got &value.valueUnstructured{{Value:{}}}", go_syntax(v)),
        ),
        (Type::Bool, _) => push(errors, path, format!("expected boolean, got {}", got())),
        (Type::Int32 | Type::Int64 | Type::Float64, v) => {
            push(errors, path, format!("expected numeric (int or float), got {}", go_type(v)));
        }
        (
            Type::Time | Type::MicroTime | Type::Quantity | Type::IntOrString,
            Value::Object(_) | Value::Array(_),
        ) => push(errors, path, format!("expected any scalar, got {}", got())),
        _ => {}
    }
}

fn items(list: &[Value], ty: &Type, typed: Typed<'_>, path: &str, errors: &mut Vec<String>) {
    let shape = typed.shape();
    let merges = matches!(shape, Shape::Set | Shape::Keyed(..));
    let mut seen = BTreeSet::new();
    for (i, item) in list.iter().enumerate() {
        let at = if merges {
            match shape.edge(item) {
                Ok(edge) => {
                    let at = shown(&edge);
                    if !seen.insert(edge) {
                        push(errors, path, format!("duplicate entries for key {at}"));
                    }
                    at
                }
                Err(why) => return push(errors, path, format!("element {i}: {why}")),
            }
        } else {
            format!("[{i}]")
        };
        check_value(item, Typed::plain(ty), &format!("{path}{at}"), errors);
    }
}
