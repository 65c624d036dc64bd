//! Schemas as types for server-side apply and managed fields. The rules are those of kube-openapi's `schemaconv`: what
//! a schema does not describe merges by what it turns out to be.

use super::{Additional, ListType, Structural};
use crate::schema::{self, Field, ListKind, Type, TypeRef, TypeSchema};
use std::borrow::Cow;
use std::sync::Arc;

/// The type of a resource with this schema.
pub(crate) fn types(schema: &Structural, kind: &str, preserve_all: bool) -> TypeSchema {
    let mut root = object(schema, preserve_all);
    root.name = Cow::Owned(kind.to_owned());
    for name in ["apiVersion", "kind"] {
        put(&mut root.fields, field(name, Type::String(None)));
    }
    if let Some(metadata) = schema::reference("meta.v1.ObjectMeta") {
        put(&mut root.fields, field("metadata", Type::Object(metadata)));
    }
    root
}

fn put(fields: &mut Vec<Field>, field: Field) {
    match fields.binary_search_by(|f| f.name.cmp(&field.name)) {
        Ok(at) => {
            if let Some(slot) = fields.get_mut(at) {
                *slot = field;
            }
        }
        Err(at) => fields.insert(at, field),
    }
}

fn field(name: &str, ty: Type) -> Field {
    Field {
        name: Cow::Owned(name.to_owned()),
        ty,
        number: 0,
        pointer: true,
        omit_empty: true,
        omit_zero: false,
        required: false,
        list: ListKind::Unset,
        atomic: false,
        patch_merge: false,
        patch_retain_keys: false,
        merge_key: None,
        default: None,
    }
}

/// `preserve`: an enclosing schema keeps unknown fields, which counts for all below it.
fn object(schema: &Structural, preserve: bool) -> TypeSchema {
    let preserve = preserve || schema.preserve_unknown;
    let mut fields: Vec<Field> = Vec::with_capacity(schema.properties.len());
    // The properties come sorted, as the fields must be.
    for (name, property) in &schema.properties {
        let mut own = field(name, of(property, preserve));
        own.list = match property.list {
            ListType::Atomic => ListKind::Atomic,
            ListType::Set => ListKind::Set,
            ListType::Map => {
                ListKind::Map(property.list_keys.iter().map(|key| Cow::Owned(key.to_string())).collect())
            }
        };
        own.atomic = property.atomic;
        own.default = property.default.as_ref().map(|default| Cow::Owned(default.to_string()));
        fields.push(own);
    }
    if schema.embedded {
        for name in ["apiVersion", "kind"] {
            put(&mut fields, field(name, Type::String(None)));
        }
        if let Some(metadata) = schema::reference("meta.v1.ObjectMeta") {
            put(&mut fields, field("metadata", Type::Object(metadata)));
        }
    }
    TypeSchema { fields, atomic: schema.atomic, preserve_unknown: preserve, ..TypeSchema::default() }
}

fn of(schema: &Structural, preserve: bool) -> Type {
    if schema.int_or_string {
        return Type::IntOrString;
    }
    match &*schema.kind {
        "string" => Type::String(None),
        "boolean" => Type::Bool,
        "integer" => Type::Int64,
        "number" => Type::Float64,
        "array" => {
            let items = schema.items.as_deref();
            Type::List(Box::new(
                items.map_or(Type::Deduced, |items| of(items, preserve || schema.preserve_unknown)),
            ))
        }
        "object" => match schema.additional.as_ref() {
            Some(Additional::Schema(inner)) if schema.properties.is_empty() => {
                Type::Map(Box::new(of(inner, preserve || schema.preserve_unknown)))
            }
            Some(Additional::Any) => Type::Deduced,
            // An object of which nothing is said has any fields.
            _ if schema.properties.is_empty() && !schema.embedded => Type::Deduced,
            _ => Type::Object(TypeRef::Owned(Arc::new(object(schema, preserve)))),
        },
        _ => Type::Deduced,
    }
}
