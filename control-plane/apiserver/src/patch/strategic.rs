//! Strategic merge patch: lists merge by key, and directives (`$patch`, `$retainKeys`, `$setElementOrder/…`,
//! `$deleteFromPrimitiveList/…`) say what plain merging cannot.

use std::cmp::Ordering;

use serde_json::{Map, Value};

use super::{go_map, go_value};
use crate::error::ApiError;
use crate::schema::{Field, Type, TypeSchema};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const SET_ORDER: &str = "$setElementOrder/";

type Object = Map<String, Value>;
type Result<T> = std::result::Result<T, ApiError>;

/// Errors that upstream answers with 500 and no reason.
fn internal(message: impl Into<String>) -> ApiError {
    ApiError::plain_internal(message)
}

fn bad_format(what: &str) -> ApiError {
    ApiError::bad_request(format!("invalid patch format of {what}"))
}

/// Merges a patch into an object of the given type.
pub(super) fn merge(original: Object, patch: Object, schema: &TypeSchema) -> Result<Object> {
    merge_map(original, patch, Schema::Object(schema))
}

/// What is known of the value being merged.
#[derive(Clone, Copy)]
enum Schema<'a> {
    Object(&'a TypeSchema),
    Other(&'a Type),
}

impl<'a> Schema<'a> {
    fn of(ty: &'a Type) -> Self {
        match ty.object() {
            Some(schema) => Self::Object(schema),
            None => Self::Other(ty),
        }
    }

    fn field(self, name: &str) -> Result<&'a Field> {
        match self {
            Self::Object(schema) => schema.field(name).ok_or_else(|| {
                internal(format!(
                    "unable to find api field in struct {} for the json field {name:?}",
                    schema.short_name()
                ))
            }),
            Self::Other(ty) => Err(internal(format!(
                "merging an object in json but data type is not struct, instead is: {}",
                match ty {
                    Type::Map(_) => "map",
                    _ => "struct",
                }
            ))),
        }
    }
}

fn merge_map(mut original: Object, mut patch: Object, schema: Schema<'_>) -> Result<Object> {
    if let Some(directive) = patch.remove(DIRECTIVE) {
        return match directive.as_str() {
            Some("replace") => Ok(patch),
            Some("delete") => Ok(Object::new()),
            _ => {
                patch.insert(DIRECTIVE.to_owned(), directive.clone());
                Err(internal(format!(
                    "unknown patch type: {} in map: {}",
                    go_value(&directive),
                    go_map(&patch)
                )))
            }
        };
    }
    retain_keys(&mut original, &mut patch)?;
    set_element_order(&mut original, &mut patch, schema)?;
    for (key, value) in patch {
        let (key, deletes) = match key.strip_prefix(DELETE_FROM) {
            Some(key) => (key.to_owned(), true),
            None => (key, false),
        };
        if value.is_null() {
            original.remove(&key);
            continue;
        }
        let merged = match (original.remove(&key), value) {
            (None, value) => {
                if deletes {
                    continue;
                }
                take(value)
            }
            (Some(Value::Object(old)), Value::Object(new)) => {
                // A map of strings has no fields to look up, an object has.
                let field = schema.field(&key)?;
                Some(Value::Object(merge_map(old, new, Schema::of(&field.ty))?))
            }
            (Some(Value::Array(old)), Value::Array(new)) => {
                let field = schema.field(&key)?;
                Some(Value::Array(merge_list(old, new, field, deletes)?))
            }
            (Some(old), _) if deletes => Some(old),
            (Some(_), value) => take(value),
        };
        if let Some(merged) = merged {
            original.insert(key, merged);
        }
    }
    Ok(original)
}

/// A patch's value where the object has none: nulls are dropped, and so is everything that carries a directive.
fn take(mut value: Value) -> Option<Value> {
    drop_nulls(&mut value);
    without_directives(value)
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

fn without_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(map) if map.contains_key(DIRECTIVE) => None,
        Value::Object(map) => Some(Value::Object(
            map.into_iter().filter_map(|(k, v)| without_directives(v).map(|v| (k, v))).collect(),
        )),
        Value::Array(items) => Some(items.into_iter().filter_map(without_directives).collect()),
        other => Some(other),
    }
}

fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<()> {
    let Some(keys) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let Value::Array(keys) = keys else { return Err(bad_format("retainKeys")) };
    let keeps = |key: &str| keys.iter().any(|k| k == key);
    for (key, value) in patch.iter() {
        let directive = key.starts_with(DELETE_FROM) || key.starts_with(SET_ORDER);
        if !value.is_null() && !directive && !keeps(key) {
            return Err(bad_format("retainKeys"));
        }
    }
    original.retain(|key, _| keeps(key));
    Ok(())
}

fn as_list(value: Option<Value>) -> Result<Option<Vec<Value>>> {
    match value {
        None => Ok(None),
        Some(Value::Array(items)) => Ok(Some(items)),
        Some(other) => {
            let found = match other {
                Value::Object(_) => "map[string]interface {}",
                Value::String(_) => "string",
                Value::Number(n) if n.is_i64() => "int64",
                Value::Number(_) => "float64",
                Value::Bool(_) => "bool",
                _ => "%!s(<nil>)",
            };
            Err(internal(format!("expected a []interface {{}}, but received a {found}")))
        }
    }
}

/// Merges the lists that have an order directive, and puts them in that order.
fn set_element_order(original: &mut Object, patch: &mut Object, schema: Schema<'_>) -> Result<()> {
    let directives: Vec<String> = patch.keys().filter(|k| k.starts_with(SET_ORDER)).cloned().collect();
    for directive in directives {
        let order = as_list(patch.remove(&directive))?.unwrap_or_default();
        let key = directive.strip_prefix(SET_ORDER).unwrap_or_default();
        let field = schema.field(key)?;
        let merge_key = field.merge_key.as_deref();
        let old = match original.get(key) {
            Some(Value::Null) | None => None,
            Some(value) => as_list(Some(value.clone()))?,
        };
        let new = match patch.get(key) {
            Some(Value::Null) => continue,
            value => as_list(value.cloned())?,
        };
        check_order(new.as_deref().unwrap_or_default(), &order, merge_key)?;
        let merged = match (old.clone(), new) {
            (None, None) => continue,
            (Some(old), None) => old,
            (None, Some(new)) => match without_directives(Value::Array(new)) {
                Some(Value::Array(items)) => items,
                _ => continue,
            },
            (Some(old), Some(new)) => merge_list(old, new, field, false)?,
        };
        let ordered = in_order(merged, &order, &old.unwrap_or_default(), merge_key)?;
        original.insert(key.to_owned(), Value::Array(ordered));
        patch.remove(key);
    }
    Ok(())
}

fn no_merge_key(item: &Object, key: &str) -> ApiError {
    internal(format!("map: {} does not contain declared merge key: {key}", go_map(item)))
}

fn item_key<'a>(item: &'a Value, merge_key: &str) -> Result<&'a Value> {
    match item {
        Value::Object(map) => map.get(merge_key).ok_or_else(|| no_merge_key(map, merge_key)),
        other => Err(internal(format!(
            "expected a map[string]interface {{}}, but received a {}",
            match other {
                Value::String(_) => "string",
                Value::Array(_) => "[]interface {}",
                Value::Bool(_) => "bool",
                Value::Number(_) => "int64",
                _ => "%!s(<nil>)",
            }
        ))),
    }
}

/// The items of the patch must come in the order that the directive lists them.
fn check_order(items: &[Value], order: &[Value], merge_key: Option<&str>) -> Result<()> {
    if items.is_empty() || order.is_empty() {
        return Ok(());
    }
    let mut at = order.iter();
    for item in items.iter().filter(|i| i.get(DIRECTIVE).is_none()) {
        loop {
            let Some(place) = at.next() else {
                return Err(internal(format!(
                    "The order in patch list:\n{}\n doesn't match {} list:\n{}\n",
                    go_value(&Value::Array(items.to_vec())),
                    SET_ORDER.trim_end_matches('/'),
                    go_value(&Value::Array(order.to_vec()))
                )));
            };
            let same = match merge_key {
                Some(key) => item_key(item, key)? == item_key(place, key)?,
                None => item == place,
            };
            if same {
                break;
            }
        }
    }
    Ok(())
}

fn merge_list(old: Vec<Value>, new: Vec<Value>, field: &Field, deletes: bool) -> Result<Vec<Value>> {
    if !field.patch_merge && !deletes {
        return Ok(new);
    }
    if old.is_empty() && new.is_empty() {
        return Ok(old);
    }
    let rank = |v: &Value| match v {
        Value::Object(_) => 0,
        Value::Array(_) => 1,
        Value::String(_) => 2,
        Value::Number(_) => 3,
        Value::Bool(_) => 4,
        Value::Null => 5,
    };
    let mut all = old.iter().chain(&new);
    let first = all.next().map(rank);
    if old.iter().chain(&new).any(Value::is_array) {
        // 422 with the generic text.
        return Err(ApiError::unprocessable());
    }
    if all.any(|v| Some(rank(v)) != first) {
        let lists = vec![Value::Array(old), Value::Array(new)];
        return Err(internal(format!(
            "list element types are not identical: {}",
            go_value(&Value::Array(lists))
        )));
    }
    if first != Some(0) {
        if deletes {
            return Ok(old.into_iter().filter(|v| !new.contains(v)).collect());
        }
        let mut merged: Vec<Value> = Vec::new();
        for item in old.iter().chain(&new) {
            if !merged.contains(item) {
                merged.push(item.clone());
            }
        }
        return in_order(merged, &new, &old, None);
    }
    let item_schema = match field.ty.items() {
        Some(ty) => Schema::of(ty),
        None => Schema::Other(&field.ty),
    };
    let Some(merge_key) = field.merge_key.as_deref() else {
        let name = match item_schema {
            Schema::Object(schema) => schema.short_name(),
            Schema::Other(_) => "",
        };
        return Err(internal(format!("cannot merge lists without merge key for {name}")));
    };
    let (old, new) = item_directives(old, new, merge_key)?;
    let mut merged = old.clone();
    for item in &new {
        let key = item_key(item, merge_key)?;
        match merged.iter_mut().find(|m| m.get(merge_key) == Some(key)) {
            Some(found) => {
                if let (Value::Object(old), Value::Object(new)) = (found.take(), item.clone()) {
                    *found = Value::Object(merge_map(old, new, item_schema)?);
                }
            }
            None => merged.push(item.clone()),
        }
    }
    in_order(merged, &new, &old, Some(merge_key))
}

/// Carries out `$patch` in list items; the rest of the patch is returned with the list it applies to.
fn item_directives(
    mut old: Vec<Value>,
    new: Vec<Value>,
    merge_key: &str,
) -> Result<(Vec<Value>, Vec<Value>)> {
    let (mut rest, mut replaces) = (Vec::new(), false);
    for item in new {
        let Some(directive) = item.get(DIRECTIVE) else {
            rest.push(item);
            continue;
        };
        match directive.as_str() {
            Some("delete") => {
                let key = item_key(&item, merge_key)?;
                old.retain(|o| o.get(merge_key) != Some(key));
            }
            Some("replace") => replaces = true,
            Some("merge") => return Err(internal("merging lists cannot yet be specified in the patch")),
            _ => {
                return Err(internal(format!(
                    "unknown patch type: {} in map: {}",
                    go_value(directive),
                    go_value(&item)
                )));
            }
        }
    }
    Ok(if replaces { (rest, Vec::new()) } else { (old, rest) })
}

/// Puts the items that the patch names in the patch's order and keeps the others at their old places among them.
fn in_order(
    items: Vec<Value>,
    patch_order: &[Value],
    old_order: &[Value],
    merge_key: Option<&str>,
) -> Result<Vec<Value>> {
    if let Some(key) = merge_key {
        for item in items.iter().chain(patch_order) {
            item_key(item, key)?;
        }
    }
    let place = |list: &[Value], item: &Value| {
        list.iter().position(|l| match merge_key {
            Some(key) => l.get(key) == item.get(key),
            None => l == item,
        })
    };
    let by = |order: &[Value], a: &Value, b: &Value| match (place(order, a), place(order, b)) {
        (Some(a), Some(b)) => a.cmp(&b),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => Ordering::Equal,
    };
    let (mut named, mut others): (Vec<Value>, Vec<Value>) =
        items.into_iter().partition(|i| place(patch_order, i).is_some());
    named.sort_by(|a, b| by(patch_order, a, b));
    others.sort_by(|a, b| by(old_order, a, b));
    let mut out = Vec::with_capacity(named.len() + others.len());
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    loop {
        let other_first = match (others.peek(), named.peek()) {
            (None, None) => return Ok(out),
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(other), Some(name)) => {
                matches!((place(old_order, other), place(old_order, name)), (Some(o), Some(n)) if o < n)
            }
        };
        out.extend(if other_first { others.next() } else { named.next() });
    }
}
