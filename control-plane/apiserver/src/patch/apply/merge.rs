//! The merge of two values of a type, and the removal of fields.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::set::FieldSet;
use super::shape::{Shape, Typed};
use crate::schema::TypeSchema;

/// Puts the fields of `new` into `old`.
pub(super) fn merge(old: &Value, new: &Value, schema: &TypeSchema) -> Value {
    members(Some(old), new, Shape::Struct(schema))
}

fn members(old: Option<&Value>, new: &Value, shape: Shape<'_>) -> Value {
    let mut out = old.and_then(Value::as_object).cloned().unwrap_or_default();
    for (name, v) in new.as_object().into_iter().flatten() {
        let merged = value(out.get(name), v, shape.member(name));
        out.insert(name.clone(), merged);
    }
    Value::Object(out)
}

fn value(old: Option<&Value>, new: &Value, typed: Typed<'_>) -> Value {
    let shape = typed.shape_of(if new.is_null() { old } else { Some(new) });
    match (shape, new) {
        (Shape::Struct(_) | Shape::Map(_), Value::Object(_)) => members(old, new, shape),
        // What the new value leaves empty, the old one keeps.
        (Shape::Struct(_) | Shape::Map(_), Value::Null) if old.is_some_and(filled) => {
            old.cloned().unwrap_or_default()
        }
        (Shape::Set | Shape::Keyed(..), Value::Array(_)) => lists(old, new, shape),
        (Shape::Set | Shape::Keyed(..), Value::Null) if old.is_some_and(filled) => {
            old.cloned().unwrap_or_default()
        }
        _ => new.clone(),
    }
}

fn filled(value: &Value) -> bool {
    match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    }
}

/// Items of both lists: those of `new` in its order, those of `old` alone kept where they were among them.
fn lists(old: Option<&Value>, new: &Value, shape: Shape<'_>) -> Value {
    let (left, right) = (shape.edges(old), shape.edges(Some(new)));
    // Of an item that occurs twice on the left, nothing is merged into the new one.
    let mut on_left: HashMap<&str, Option<&Value>> = HashMap::new();
    for (edge, item) in &left {
        on_left.entry(edge).and_modify(|twice| *twice = None).or_insert(Some(*item));
    }
    let on_right: HashSet<&str> = right.iter().map(|(edge, _)| edge.as_str()).collect();
    let item = |edge: &str, new: &Value| match shape {
        Shape::Keyed(..) => value(on_left.get(edge).copied().flatten(), new, shape.item()),
        _ => new.clone(),
    };
    let mut shared = right.iter().map(|(e, _)| e.as_str()).filter(|e| on_left.contains_key(e)).peekable();
    let mut merged: HashSet<&str> = HashSet::new();
    let mut out = Vec::with_capacity(left.len().max(right.len()));
    let (mut l, mut r) = (0, 0);
    loop {
        let (of_left, of_right) = (left.get(l), right.get(r));
        if let (Some((le, _)), Some((re, new))) = (of_left, of_right) {
            if le == re {
                merged.insert(re);
                out.push(item(re, new));
                l += 1;
                r += 1;
                shared.next();
                continue;
            }
            if on_right.contains(le.as_str()) && shared.peek().is_some_and(|next| next != le) {
                // Shared, but another shared item comes first in the new order.
                l += 1;
                continue;
            }
        }
        if let Some((le, old)) = of_left {
            if !on_right.contains(le.as_str()) {
                out.push((*old).clone());
                l += 1;
                continue;
            }
            if merged.contains(le.as_str()) {
                l += 1;
            }
        }
        match of_right {
            Some((re, new)) => {
                merged.insert(re);
                out.push(item(re, new));
                r += 1;
                if shared.peek() == Some(&re.as_str()) {
                    shared.next();
                }
            }
            // A shared item that was merged before its turn on the left.
            None if of_left.is_some_and(|(le, _)| !merged.contains(le.as_str())) => l += 1,
            None if of_left.is_none() => break,
            None => {}
        }
    }
    out.into()
}

/// Removes the fields of the set; maps and lists that become empty become null.
pub(super) fn remove(object: &mut Value, set: &FieldSet, schema: &TypeSchema) {
    remove_members(object, set, Shape::Struct(schema));
}

fn remove_members(value: &mut Value, set: &FieldSet, shape: Shape<'_>) {
    let Value::Object(map) = value else { return };
    let before = std::mem::take(map);
    let mut kept = Map::new();
    for (name, mut v) in before {
        match set.children.get(&format!("f:{name}")) {
            Some(child) if child.member => continue,
            Some(child) => remove_value(&mut v, child, shape.member(&name)),
            None => {}
        }
        kept.insert(name, v);
    }
    *value = if kept.is_empty() { Value::Null } else { Value::Object(kept) };
}

fn remove_value(value: &mut Value, set: &FieldSet, typed: Typed<'_>) {
    let shape = typed.shape_of(Some(value));
    match shape {
        Shape::Leaf => {
            // Something below an atomic value was to go: nothing of it is kept. Scalars have nothing below.
            if value.is_object() || value.is_array() {
                *value = Value::Null;
            }
        }
        Shape::Struct(_) | Shape::Map(_) => remove_members(value, set, shape),
        Shape::Set | Shape::Keyed(..) => {
            let Value::Array(items) = value else { return };
            let mut kept = Vec::with_capacity(items.len());
            for mut item in std::mem::take(items) {
                let below = shape.edge(&item).ok().and_then(|edge| set.children.get(&edge));
                match below {
                    Some(child) if child.member => continue,
                    Some(child) => remove_value(&mut item, child, shape.item()),
                    None => {}
                }
                kept.push(item);
            }
            *value = if kept.is_empty() { Value::Null } else { kept.into() };
        }
    }
}
