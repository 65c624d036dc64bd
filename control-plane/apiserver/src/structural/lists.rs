//! Sets and keyed lists hold each item once.

use super::{ListType, Path, Structural};
use crate::error::FieldError;
use serde_json::{Map, Value};
use std::collections::HashMap;

/// Checks all lists of an object.
pub(crate) fn check(object: &Value, schema: &Structural) -> Vec<FieldError> {
    let mut errs = Vec::new();
    walk(object, schema, &mut Path::default(), &mut errs);
    errs
}

fn walk(value: &Value, schema: &Structural, path: &mut Path, errs: &mut Vec<FieldError>) {
    match value {
        Value::Object(map) => {
            for (name, member) in map {
                if let Some(property) = schema.properties.get(name.as_str()) {
                    path.field(name, |path| walk(member, property, path, errs));
                } else if let Some(inner) = schema.additional_schema() {
                    path.key(name, |path| walk(member, inner, path, errs));
                }
            }
        }
        Value::Array(items) => {
            match schema.list {
                ListType::Set => {
                    for (at, item) in repeated(items.iter().map(|item| (item.to_string(), item))) {
                        path.index(at, |p| errs.push(FieldError::duplicate(p.as_str(), item)));
                    }
                }
                ListType::Map => keyed(items, schema, path, errs),
                ListType::Atomic => {}
            }
            if let Some(inner) = &schema.items {
                for (at, item) in items.iter().enumerate() {
                    path.index(at, |path| walk(item, inner, path, errs));
                }
            }
        }
        _ => {}
    }
}

fn keyed(items: &[Value], schema: &Structural, path: &mut Path, errs: &mut Vec<FieldError>) {
    if let Some(at) = items.iter().position(|item| !item.is_object() && !item.is_null()) {
        let detail = "must be an object for an array of list-type map";
        path.index(at, |p| {
            errs.push(FieldError::invalid(p.as_str(), items.get(at).cloned().unwrap_or_default(), detail))
        });
        return;
    }
    let keys = items.iter().map(|item| {
        let own = schema.list_keys.iter().filter_map(|key| {
            let value = item.get(&**key)?;
            Some((key.to_string(), value.clone()))
        });
        let keys = Value::Object(own.collect::<Map<_, _>>());
        (keys.to_string(), keys)
    });
    for (at, keys) in repeated(keys) {
        path.index(at, |p| errs.push(FieldError::duplicate(p.as_str(), keys)));
    }
}

/// The second occurrence of each item that occurs more than once.
fn repeated<T>(items: impl Iterator<Item = (String, T)>) -> Vec<(usize, T)> {
    let mut seen: HashMap<String, u32> = HashMap::new();
    let mut out = Vec::new();
    for (at, (text, item)) in items.enumerate() {
        let times = seen.entry(text).or_default();
        *times = times.saturating_add(1);
        if *times == 2 {
            out.push((at, item));
        }
    }
    out
}
