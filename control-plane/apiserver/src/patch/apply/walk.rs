//! Walks over typed values: which fields one has, what differs between two, their merge, removal of fields.

use std::borrow::Cow;
use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::set::FieldSet;
use crate::schema::{Field, ListKind, Type, TypeSchema};

/// A type with what its field says of it.
#[derive(Clone, Copy)]
pub(super) struct Typed<'a> {
    ty: &'a Type,
    list: &'a ListKind,
    atomic: bool,
}

/// How values of a type merge.
#[derive(Clone, Copy)]
enum Shape<'a> {
    /// As a whole.
    Leaf,
    Struct(&'a TypeSchema),
    Map(&'a Type),
    Set,
    Keyed(&'a [Cow<'static, str>], &'a Type),
}

static UNSET: ListKind = ListKind::Unset;
static ANY: Type = Type::Json;

impl<'a> Typed<'a> {
    fn field(field: &'a Field) -> Self {
        Typed { ty: &field.ty, list: &field.list, atomic: field.atomic }
    }

    fn plain(ty: &'a Type) -> Self {
        Typed { ty, list: &UNSET, atomic: false }
    }

    fn shape(self) -> Shape<'a> {
        match self.ty {
            Type::Object(r) if !self.atomic && !r.get().atomic => Shape::Struct(r.get()),
            Type::Map(t) if !self.atomic => Shape::Map(t),
            Type::List(t) | Type::Wrapped(t) => match self.list {
                ListKind::Set => Shape::Set,
                ListKind::Map(keys) => Shape::Keyed(keys, t),
                _ => Shape::Leaf,
            },
            _ => Shape::Leaf,
        }
    }
}

fn member<'a>(schema: &'a TypeSchema, name: &str) -> Typed<'a> {
    schema.field(name).map_or(Typed::plain(&ANY), Typed::field)
}

/// The edge that leads to a list item. Keys that the item leaves out have their default.
fn edge(item: &Value, keys: &[Cow<'static, str>], ty: &Type) -> String {
    let mut out = Map::new();
    for key in keys {
        let value = item.get(key.as_ref()).filter(|v| !v.is_null()).cloned().or_else(|| {
            let field = ty.object()?.field(key)?;
            field.default.as_deref().and_then(|d| serde_json::from_str(d).ok())
        });
        out.insert(key.to_string(), value.unwrap_or(Value::Null));
    }
    format!("k:{}", Value::Object(out))
}

fn value_edge(item: &Value) -> String {
    format!("v:{item}")
}

/// A merging list's items with their edges; none for other values.
fn edges<'v>(value: Option<&'v Value>, shape: Shape<'_>) -> Vec<(String, &'v Value)> {
    let items = value.and_then(Value::as_array).into_iter().flatten();
    match shape {
        Shape::Keyed(keys, ty) => items.map(|i| (edge(i, keys, ty), i)).collect(),
        _ => items.map(|i| (value_edge(i), i)).collect(),
    }
}

/// The fields that a value has.
pub(super) fn field_set(value: &Value, schema: &TypeSchema) -> FieldSet {
    let mut set = FieldSet::default();
    struct_set(value, schema, &mut set);
    set.compact()
}

fn struct_set(value: &Value, schema: &TypeSchema, set: &mut FieldSet) {
    for (name, v) in value.as_object().into_iter().flatten() {
        let child = set.children.entry(format!("f:{name}")).or_default();
        to_set(v, member(schema, name), child);
        if v.is_null() || v.as_object().is_some_and(Map::is_empty) {
            child.member = true;
        }
    }
}

fn to_set(value: &Value, typed: Typed<'_>, set: &mut FieldSet) {
    match typed.shape() {
        Shape::Leaf => set.member = true,
        Shape::Struct(schema) => struct_set(value, schema, set),
        Shape::Map(ty) => {
            for (name, v) in value.as_object().into_iter().flatten() {
                let child = set.children.entry(format!("f:{name}")).or_default();
                to_set(v, Typed::plain(ty), child);
                child.member = true;
            }
        }
        shape @ (Shape::Set | Shape::Keyed(..)) => {
            for (edge, item) in edges(Some(value), shape) {
                let child = set.children.entry(edge).or_default();
                if let Shape::Keyed(_, ty) = shape {
                    to_set(item, Typed::plain(ty), child);
                }
                child.member = true;
            }
        }
    }
}

/// What differs between two values.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    pub(super) added: FieldSet,
    pub(super) modified: FieldSet,
    pub(super) removed: FieldSet,
}

/// Compares two objects of a type.
pub(super) fn compare(old: &Value, new: &Value, schema: &TypeSchema) -> Comparison {
    let mut out = Comparison::default();
    let mut path = Vec::new();
    members(Some(old), Some(new), &mut path, &mut out, |name| member(schema, name));
    out
}

fn members<'a>(
    old: Option<&Value>,
    new: Option<&Value>,
    path: &mut Vec<String>,
    out: &mut Comparison,
    typed: impl Fn(&str) -> Typed<'a>,
) {
    let (old, new) = (old.and_then(Value::as_object), new.and_then(Value::as_object));
    let names: BTreeSet<&String> = old.into_iter().chain(new).flat_map(Map::keys).collect();
    for name in names {
        path.push(format!("f:{name}"));
        let get = |m: Option<&'_ Map<String, Value>>| m.and_then(|m| m.get(name)).cloned();
        differ(get(old).as_ref(), get(new).as_ref(), typed(name), path, out);
        path.pop();
    }
}

fn is_empty(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::Object(map)) => map.is_empty(),
        Some(Value::Array(items)) => items.is_empty(),
        Some(_) => false,
    }
}

fn differ(
    old: Option<&Value>,
    new: Option<&Value>,
    typed: Typed<'_>,
    path: &mut Vec<String>,
    out: &mut Comparison,
) {
    let shape = typed.shape();
    let leaf = matches!(shape, Shape::Leaf) || (is_empty(old) && is_empty(new));
    if leaf {
        match (old, new) {
            (None, Some(_)) => out.added.insert(path),
            (Some(_), None) => out.removed.insert(path),
            (old, new) if old != new => out.modified.insert(path),
            _ => {}
        }
        return;
    }
    match shape {
        Shape::Leaf => {}
        Shape::Struct(schema) => members(old, new, path, out, |name| member(schema, name)),
        Shape::Map(ty) => members(old, new, path, out, |_| Typed::plain(ty)),
        Shape::Set | Shape::Keyed(..) => {
            let (olds, news) = (edges(old, shape), edges(new, shape));
            let all: BTreeSet<&String> = olds.iter().chain(&news).map(|(e, _)| e).collect();
            for e in all {
                let get =
                    |list: &[(String, &Value)]| list.iter().find(|(k, _)| k == e).map(|(_, v)| (*v).clone());
                path.push(e.clone());
                let item = match shape {
                    Shape::Keyed(_, ty) => Typed::plain(ty),
                    _ => Typed::plain(&ANY),
                };
                differ(get(&olds).as_ref(), get(&news).as_ref(), item, path, out);
                path.pop();
            }
        }
    }
    match (old, new) {
        (None, _) => out.added.insert(path),
        (_, None) => out.removed.insert(path),
        _ => {}
    }
}

/// Puts the fields of `new` into `old`.
pub(super) fn merge(old: &Value, new: &Value, schema: &TypeSchema) -> Value {
    merge_members(Some(old), new, |name| member(schema, name))
}

fn merge_members<'a>(old: Option<&Value>, new: &Value, typed: impl Fn(&str) -> Typed<'a>) -> Value {
    let mut out = old.and_then(Value::as_object).cloned().unwrap_or_default();
    for (name, v) in new.as_object().into_iter().flatten() {
        let merged = merge_value(out.get(name), v, typed(name));
        out.insert(name.clone(), merged);
    }
    Value::Object(out)
}

fn merge_value(old: Option<&Value>, new: &Value, typed: Typed<'_>) -> Value {
    match (typed.shape(), new) {
        (Shape::Struct(schema), Value::Object(_)) => merge_members(old, new, |name| member(schema, name)),
        (Shape::Map(ty), Value::Object(_)) => merge_members(old, new, |_| Typed::plain(ty)),
        (shape @ (Shape::Set | Shape::Keyed(..)), Value::Array(_)) => merge_lists(old, new, shape),
        _ => new.clone(),
    }
}

/// Items of both lists: those of `new` in its order, those of `old` alone kept where they were among them.
fn merge_lists(old: Option<&Value>, new: &Value, shape: Shape<'_>) -> Value {
    let (left, right) = (edges(old, shape), edges(Some(new), shape));
    let find =
        |list: &[(String, &Value)], e: &str| list.iter().find(|(k, _)| k == e).map(|(_, v)| (*v).clone());
    let item = |e: &str, value: &Value| match shape {
        Shape::Keyed(_, ty) => merge_value(find(&left, e).as_ref(), value, Typed::plain(ty)),
        _ => value.clone(),
    };
    let mut shared = right.iter().map(|(e, _)| e).filter(|e| left.iter().any(|(l, _)| l == *e)).peekable();
    let mut out = Vec::new();
    let (mut l, mut r) = (0, 0);
    while l < left.len() || r < right.len() {
        if let (Some((le, _)), Some((re, rv))) = (left.get(l), right.get(r)) {
            if le == re {
                out.push(item(re, rv));
                l += 1;
                r += 1;
                shared.next();
                continue;
            }
            let in_right = right.iter().any(|(e, _)| e == le);
            if in_right && shared.peek().is_some_and(|next| *next != le) {
                // Shared, but another shared item comes first in the new order.
                l += 1;
                continue;
            }
        }
        if let Some((le, lv)) = left.get(l)
            && !right.iter().any(|(e, _)| e == le)
        {
            out.push((*lv).clone());
            l += 1;
            continue;
        }
        if let Some((re, rv)) = right.get(r) {
            out.push(item(re, rv));
            r += 1;
            if shared.peek().is_some_and(|next| *next == re) {
                shared.next();
            }
            continue;
        }
        l += 1;
    }
    out.into()
}

/// Removes the fields of the set.
pub(super) fn remove(value: &mut Value, set: &FieldSet, schema: &TypeSchema) {
    remove_members(value, set, |name| member(schema, name));
}

fn remove_members<'a>(value: &mut Value, set: &FieldSet, typed: impl Fn(&str) -> Typed<'a>) {
    let Value::Object(map) = value else { return };
    for (edge, child) in &set.children {
        let Some(name) = edge.strip_prefix("f:") else { continue };
        if child.member {
            map.remove(name);
        } else if let Some(v) = map.get_mut(name) {
            remove_value(v, child, typed(name));
        }
    }
}

fn remove_value(value: &mut Value, set: &FieldSet, typed: Typed<'_>) {
    match typed.shape() {
        Shape::Leaf => {}
        Shape::Struct(schema) => remove_members(value, set, |name| member(schema, name)),
        Shape::Map(ty) => remove_members(value, set, |_| Typed::plain(ty)),
        shape @ (Shape::Set | Shape::Keyed(..)) => {
            let Value::Array(items) = value else { return };
            let edge_of = |item: &Value| match shape {
                Shape::Keyed(keys, ty) => edge(item, keys, ty),
                _ => value_edge(item),
            };
            items.retain(|i| !set.children.get(&edge_of(i)).is_some_and(|c| c.member));
            for item in items {
                if let (Some(child), Shape::Keyed(_, ty)) = (set.children.get(&edge_of(item)), shape) {
                    remove_value(item, child, Typed::plain(ty));
                }
            }
        }
    }
}

/// The set with every field of a struct that something below is in, too.
pub(super) fn with_parents(set: &FieldSet, schema: &TypeSchema) -> FieldSet {
    parents(set, |name| schema.field(name).map(Typed::field))
}

fn parents<'a>(set: &FieldSet, field: impl Fn(&str) -> Option<Typed<'a>>) -> FieldSet {
    let mut out = FieldSet { member: set.member, ..FieldSet::default() };
    for (edge, child) in &set.children {
        let typed = edge.strip_prefix("f:").and_then(&field);
        let mut below = match typed {
            Some(typed) => below(child, typed),
            None => child.clone(),
        };
        below.member |= typed.is_some();
        out.children.insert(edge.clone(), below);
    }
    out
}

fn below(set: &FieldSet, typed: Typed<'_>) -> FieldSet {
    match typed.shape() {
        Shape::Struct(schema) => parents(set, |name| schema.field(name).map(Typed::field)),
        Shape::Keyed(_, ty) => {
            let children =
                set.children.iter().map(|(e, c)| (e.clone(), below(c, Typed::plain(ty)))).collect();
            let mut out = FieldSet { member: set.member, children };
            for (edge, child) in &set.children {
                if let Some(own) = out.children.get_mut(edge) {
                    own.member = child.member;
                }
            }
            out
        }
        Shape::Map(ty) => {
            let children = set.children.iter().map(|(e, c)| {
                let mut own = below(c, Typed::plain(ty));
                own.member = c.member;
                (e.clone(), own)
            });
            FieldSet { member: set.member, children: children.collect() }
        }
        _ => set.clone(),
    }
}

/// What is wrong with a configuration: unknown fields, wrong types, repeated list items. The texts are upstream's.
pub(super) fn check(value: &Value, schema: &TypeSchema) -> Result<(), String> {
    check_struct(value, schema, "")
}

fn check_struct(value: &Value, schema: &TypeSchema, path: &str) -> Result<(), String> {
    let Value::Object(map) = value else {
        return if value.is_null() {
            Ok(())
        } else {
            Err(format!("{path}: expected map, got {}", got(value)))
        };
    };
    for (name, v) in map {
        let path = format!("{path}.{name}");
        match schema.field(name) {
            Some(field) => check_value(v, Typed::field(field), &path)?,
            None if schema.preserve_unknown => {}
            None => return Err(format!("{path}: field not declared in schema")),
        }
    }
    Ok(())
}

/// A value as upstream's errors show it.
fn got(value: &Value) -> String {
    format!("&value.valueUnstructured{{Value:{}}}", super::super::go_value(value))
}

fn check_value(value: &Value, typed: Typed<'_>, path: &str) -> Result<(), String> {
    if value.is_null() {
        return Ok(());
    }
    let kind = |v: &Value| match v {
        Value::String(_) => "string".to_owned(),
        other => got(other),
    };
    match (typed.ty, value) {
        (Type::Object(r), v) => check_struct(v, r.get(), path),
        (Type::Map(t), Value::Object(map)) => {
            map.iter().try_for_each(|(k, v)| check_value(v, Typed::plain(t), &format!("{path}.{k}")))
        }
        (Type::Map(_), v) => Err(format!("{path}: expected map, got {}", got(v))),
        (Type::List(t) | Type::Wrapped(t), Value::Array(items)) => {
            let shape = typed.shape();
            let mut seen = BTreeSet::new();
            for (i, item) in items.iter().enumerate() {
                let edge = match shape {
                    Shape::Keyed(keys, ty) => Some(edge(item, keys, ty)),
                    Shape::Set => Some(value_edge(item)),
                    _ => None,
                };
                let at = match &edge {
                    Some(edge) => format!("{path}{}", super::set::shown(edge)),
                    None => format!("{path}[{i}]"),
                };
                if let Some(edge) = edge {
                    let shown = super::set::shown(&edge);
                    if !seen.insert(edge) {
                        return Err(format!("{path}: duplicate entries for key {shown}"));
                    }
                }
                check_value(item, Typed::plain(t), &at)?;
            }
            Ok(())
        }
        (Type::List(_) | Type::Wrapped(_), v) => Err(format!("{path}: expected list, got {}", got(v))),
        (Type::String(_) | Type::Bytes | Type::Time | Type::MicroTime, Value::String(_)) => Ok(()),
        (Type::String(_) | Type::Bytes | Type::Time | Type::MicroTime, v) => {
            Err(format!("{path}: expected string, got {}", got(v)))
        }
        (Type::Bool, Value::Bool(_)) => Ok(()),
        (Type::Bool, v) => Err(format!("{path}: expected boolean, got {}", kind(v))),
        (Type::Int32 | Type::Int64 | Type::Float64, Value::Number(_)) => Ok(()),
        (Type::Int32 | Type::Int64 | Type::Float64, v) => {
            Err(format!("{path}: expected numeric (int or float), got {}", kind(v)))
        }
        _ => Ok(()),
    }
}
