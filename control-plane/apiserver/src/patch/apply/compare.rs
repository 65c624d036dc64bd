//! What differs between two values of a type.

use serde_json::Value;
use std::collections::BTreeMap;

use super::set::FieldSet;
use super::shape::{Shape, Typed};
use crate::schema::{Type, TypeSchema};

/// What differs between two values.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    pub(super) added: FieldSet,
    pub(super) modified: FieldSet,
    pub(super) removed: FieldSet,
}

impl Comparison {
    fn attach(&mut self, edge: impl Fn() -> String, child: Comparison) {
        self.added.attach(&edge, child.added);
        self.modified.attach(&edge, child.modified);
        self.removed.attach(&edge, child.removed);
    }

    /// Each of the three sets after a change.
    pub(super) fn map(self, change: impl Fn(FieldSet) -> FieldSet) -> Self {
        Comparison {
            added: change(self.added),
            modified: change(self.modified),
            removed: change(self.removed),
        }
    }

    /// What was set.
    pub(super) fn taken(&self) -> FieldSet {
        self.added.clone().union(&self.modified)
    }
}

/// Compares two objects of a type.
pub(super) fn compare(old: &Value, new: &Value, schema: &TypeSchema) -> Comparison {
    let mut out = Comparison::default();
    members(Some(old), Some(new), Shape::Struct(schema), &mut out);
    out
}

fn members(old: Option<&Value>, new: Option<&Value>, shape: Shape<'_>, out: &mut Comparison) {
    let (old, new) = (old.and_then(Value::as_object), new.and_then(Value::as_object));
    for (name, o) in old.into_iter().flatten() {
        let n = new.and_then(|m| m.get(name));
        out.attach(|| format!("f:{name}"), differ(Some(o), n, shape.member(name)));
    }
    for (name, n) in new.into_iter().flatten() {
        if !old.is_some_and(|m| m.contains_key(name)) {
            out.attach(|| format!("f:{name}"), differ(None, Some(n), shape.member(name)));
        }
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

fn differ(old: Option<&Value>, new: Option<&Value>, typed: Typed<'_>) -> Comparison {
    let mut out = Comparison::default();
    // Of two values without a type, one may be an object: its members come or go.
    let shape = match typed.shape_of(old) {
        Shape::Leaf => typed.shape_of(new),
        shape => shape,
    };
    if matches!(shape, Shape::Leaf) || (is_empty(old) && is_empty(new)) {
        match (old, new) {
            (None, Some(_)) => out.added.member = true,
            (Some(_), None) => out.removed.member = true,
            (old, new) => out.modified.member = old != new,
        }
        return out;
    }
    match shape {
        Shape::Set | Shape::Keyed(..) => items(old, new, shape, &mut out),
        _ => {
            members(old, new, shape, &mut out);
            let object = |value: Option<&Value>| value.is_some_and(Value::is_object);
            let mixed = old.is_some() && new.is_some() && object(old) != object(new);
            out.modified.member = mixed && matches!(typed.ty, Type::Deduced);
        }
    }
    match (old, new) {
        (None, _) => out.added.member = true,
        (_, None) => out.removed.member = true,
        _ => {}
    }
    out
}

fn items(old: Option<&Value>, new: Option<&Value>, shape: Shape<'_>, out: &mut Comparison) {
    let mut all: BTreeMap<String, (Vec<&Value>, Vec<&Value>)> = BTreeMap::new();
    for (edge, item) in shape.edges(old) {
        all.entry(edge).or_default().0.push(item);
    }
    for (edge, item) in shape.edges(new) {
        all.entry(edge).or_default().1.push(item);
    }
    for (edge, (olds, news)) in all {
        let (o, n) = (olds.first().copied(), news.first().copied());
        let marker = || FieldSet { member: true, ..FieldSet::default() };
        let mut child = Comparison::default();
        // Items that occur twice are compared as a whole.
        match (olds.len() > 1, news.len() > 1) {
            (false, false) => child = differ(o, n, shape.item()),
            (true, true) if olds != news => child.modified = marker(),
            (true, true) => {}
            (true, false) => {
                if n.is_some() {
                    child = differ(None, n, shape.item());
                }
                child.removed.member = true;
            }
            (false, true) => {
                if o.is_some() {
                    child = differ(o, None, shape.item());
                }
                child.added.member = true;
            }
        }
        out.attach(|| edge.clone(), child);
    }
}
