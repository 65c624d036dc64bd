//! How values of a type merge, and the edges that lead to list items.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::Value;

use super::set::FieldSet;
use crate::schema::{Field, ListKind, Type, TypeSchema};

/// A type with what its field says of it.
#[derive(Clone, Copy)]
pub(super) struct Typed<'a> {
    pub(super) ty: &'a Type,
    list: &'a ListKind,
    atomic: bool,
}

/// How values of a type merge.
#[derive(Clone, Copy)]
pub(super) enum Shape<'a> {
    /// As a whole.
    Leaf,
    /// Field by field.
    Struct(&'a TypeSchema),
    /// Key by key.
    Map(&'a Type),
    /// A set of scalars.
    Set,
    /// Items that some fields identify.
    Keyed(&'a [Cow<'static, str>], &'a Type),
}

static UNSET: ListKind = ListKind::Unset;
static ANY: Type = Type::Json;
static DEDUCED: Type = Type::Deduced;

impl<'a> Typed<'a> {
    pub(super) fn field(field: &'a Field) -> Self {
        Typed { ty: &field.ty, list: &field.list, atomic: field.atomic }
    }

    pub(super) fn plain(ty: &'a Type) -> Self {
        Typed { ty, list: &UNSET, atomic: false }
    }

    /// How this value merges.
    pub(super) fn shape_of(self, value: Option<&Value>) -> Shape<'a> {
        match self.ty {
            // Lists and scalars whose type nothing says are one value.
            Type::Deduced if !value.is_some_and(Value::is_object) => Shape::Leaf,
            _ => self.shape(),
        }
    }

    pub(super) fn shape(self) -> Shape<'a> {
        match self.ty {
            Type::Deduced if !self.atomic => Shape::Map(&DEDUCED),
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

/// The type of a struct's field; unknown fields are leaves, unless the struct keeps them.
pub(super) fn member<'a>(schema: &'a TypeSchema, name: &str) -> Typed<'a> {
    let other = if schema.preserve_unknown { &DEDUCED } else { &ANY };
    schema.field(name).map_or(Typed::plain(other), Typed::field)
}

impl<'a> Shape<'a> {
    /// The type of what an object of this shape has under a name.
    pub(super) fn member(self, name: &str) -> Typed<'a> {
        match self {
            Shape::Struct(schema) => member(schema, name),
            Shape::Map(ty) => Typed::plain(ty),
            _ => Typed::plain(&ANY),
        }
    }

    /// The type of a list's items.
    pub(super) fn item(self) -> Typed<'a> {
        match self {
            Shape::Keyed(_, ty) => Typed::plain(ty),
            _ => Typed::plain(&ANY),
        }
    }

    /// The edge to an item, or why it has none. Keys that the item leaves out have their default, or are left out.
    pub(super) fn edge(self, item: &Value) -> Result<String, String> {
        let (keys, ty) = match self {
            Shape::Keyed(keys, ty) => (keys, ty),
            _ => return set_edge(item),
        };
        match item {
            Value::Object(_) => {}
            Value::Null => return Err("associative list with keys may not have a null element".to_owned()),
            _ => return Err("associative list with keys may not have non-map elements".to_owned()),
        }
        let mut out: BTreeMap<&str, Cow<'_, Value>> = BTreeMap::new();
        for key in keys {
            if let Some(value) = item.get(key.as_ref()) {
                out.insert(key, Cow::Borrowed(value));
            } else if let Some(default) = default_of(ty, key) {
                out.insert(key, Cow::Owned(default));
            }
        }
        if out.is_empty() && !keys.is_empty() {
            let names: Vec<String> = keys.iter().map(|k| crate::error::quote(k)).collect();
            return Err(format!(
                "associative list with keys has an element that omits all key fields [{}] (and doesn't have default \
                 values for any key fields)",
                names.join(" ")
            ));
        }
        // Serializing strings and values that were parsed does not fail.
        serde_json::to_string(&out).map(|keys| format!("k:{keys}")).map_err(|e| e.to_string())
    }

    /// A merging list's items with their edges, without items that have none; nothing for other values.
    pub(super) fn edges(self, value: Option<&Value>) -> Vec<(String, &Value)> {
        let items = value.and_then(Value::as_array).into_iter().flatten();
        items.filter_map(|item| Some((self.edge(item).ok()?, item))).collect()
    }
}

fn default_of(ty: &Type, key: &str) -> Option<Value> {
    let field = ty.object()?.field(key)?;
    field.default.as_deref().and_then(|d| serde_json::from_str(d).ok())
}

fn set_edge(item: &Value) -> Result<String, String> {
    match item {
        Value::Object(_) => Err("associative list without keys has an element that's a map type".to_owned()),
        Value::Array(_) => Err("not supported: associative list with lists as elements".to_owned()),
        Value::Null => Err("associative list without keys has an element that's an explicit null".to_owned()),
        other => Ok(format!("v:{other}")),
    }
}

/// The fields that a value has.
pub(super) fn field_set(value: &Value, schema: &TypeSchema) -> FieldSet {
    members(value, Shape::Struct(schema))
}

fn members(value: &Value, shape: Shape<'_>) -> FieldSet {
    let mut set = FieldSet::default();
    for (name, v) in value.as_object().into_iter().flatten() {
        let mut child = to_set(v, shape.member(name));
        let known = matches!(shape, Shape::Struct(schema) if schema.field(name).is_some());
        child.member |= !known || v.is_null() || v.as_object().is_some_and(serde_json::Map::is_empty);
        set.attach(|| format!("f:{name}"), child);
    }
    set
}

fn to_set(value: &Value, typed: Typed<'_>) -> FieldSet {
    let shape = typed.shape_of(Some(value));
    match shape {
        Shape::Leaf => FieldSet { member: true, ..FieldSet::default() },
        Shape::Struct(_) | Shape::Map(_) => members(value, shape),
        Shape::Set | Shape::Keyed(..) => {
            let mut set = FieldSet::default();
            for (edge, item) in shape.edges(Some(value)) {
                // An item that occurs twice is owned as a whole.
                let twice = set.children.contains_key(&edge);
                let mut child = if twice { FieldSet::default() } else { to_set(item, shape.item()) };
                child.member = true;
                set.children.insert(edge, child);
            }
            set
        }
    }
}

/// The set with every field of a struct that something below is in, too.
pub(super) fn with_parents(set: &FieldSet, schema: &TypeSchema) -> FieldSet {
    parents(set, Some(Shape::Struct(schema)))
}

fn parents(set: &FieldSet, shape: Option<Shape<'_>>) -> FieldSet {
    let mut out = FieldSet { member: set.member, ..FieldSet::default() };
    for (edge, child) in &set.children {
        let name = edge.strip_prefix("f:");
        let typed = match (shape, name) {
            (Some(Shape::Struct(schema)), Some(name)) => schema.field(name).map(Typed::field),
            (Some(Shape::Map(ty)), Some(_)) => Some(Typed::plain(ty)),
            (Some(Shape::Keyed(_, ty)), None) => Some(Typed::plain(ty)),
            _ => None,
        };
        let mut below = parents(child, typed.map(Typed::shape));
        below.member |= typed.is_some() && matches!(shape, Some(Shape::Struct(_)));
        out.children.insert(edge.clone(), below);
    }
    out
}
