//! Reads the table of built-in types.
//!
//! One line a type, `type NAME [gvk=GROUP/VERSION/KIND]… [atomic]`, followed by its fields, indented:
//! `JSONNAME TYPE NUMBER FLAGS [atomic|set|map=K,…] [patch=merge,retainKeys] [key=K] [default=JSON]` or
//! `< TYPE NUMBER` for an inlined type. Flags: `p` pointer, `o` omitempty, `z` omitzero, `r` required, `-` none.
//! Types: `[]T` list, `{}T` map, `&[]T` list that is a protobuf message, `string:NAME` named string, else a name.

use std::borrow::Cow;

use super::{Field, ListKind, Registry, Type, TypeRef, TypeSchema};
use crate::gvk::GroupVersionKind;

/// Parses the table. The table is part of the program; a mistake in it fails the first test.
pub(super) fn parse(text: &'static str) -> Registry {
    let mut names: Vec<&'static str> =
        text.lines().filter_map(|l| l.strip_prefix("type ")).filter_map(|l| l.split(' ').next()).collect();
    names.sort_unstable();
    let mut types: Vec<TypeSchema> = names.iter().map(|_| TypeSchema::default()).collect();
    let mut kinds = Vec::new();
    let mut current = 0;
    for line in text.lines() {
        if let Some(head) = line.strip_prefix("type ") {
            let mut words = head.split(' ');
            let name = words.next().unwrap_or_default();
            current = index(&names, name);
            let ty = &mut types[current];
            ty.name = Cow::Borrowed(name);
            for word in words {
                if let Some(gvk) = word.strip_prefix("gvk=") {
                    let mut parts = gvk.split('/');
                    let mut part = || parts.next().unwrap_or_default();
                    let gvk = GroupVersionKind::new(part(), part(), part());
                    ty.gvks.push(gvk.clone());
                    kinds.push((gvk, u16::try_from(current).unwrap_or(u16::MAX)));
                } else if word == "atomic" {
                    ty.atomic = true;
                }
            }
        } else if let Some(inline) = line.strip_prefix("  < ") {
            let (name, number) = inline.split_once(' ').unwrap_or((inline, "0"));
            let link = TypeRef::Builtin(u16::try_from(index(&names, name)).unwrap_or(u16::MAX));
            types[current].inlined.push((number.parse().unwrap_or(0), link));
        } else if let Some(field) = line.strip_prefix("  ") {
            let field = parse_field(field, &names);
            types[current].fields.push(field);
        }
    }
    for i in 0..types.len() {
        let mut fields = types[i].fields.clone();
        inline_fields(&types, i, &mut fields, 0);
        fields.sort_by(|a, b| a.name.cmp(&b.name));
        fields.shrink_to_fit();
        types[i].fields = fields;
    }
    kinds.sort();
    Registry { types, kinds }
}

/// Adds the fields of inlined types; their protobuf numbers belong to the inlined message, so they are dropped here.
fn inline_fields(types: &[TypeSchema], of: usize, out: &mut Vec<Field>, depth: usize) {
    for (_, link) in &types[of].inlined {
        let TypeRef::Builtin(i) = link else { continue };
        let i = usize::from(*i);
        // Inlined types come before their users only by chance: take fields already inlined there once.
        let own = types[i].fields.iter().filter(|f| !out.iter().any(|o| o.name == f.name));
        let own: Vec<Field> = own.cloned().map(|f| Field { number: 0, ..f }).collect();
        out.extend(own);
        if depth < 4 {
            inline_fields(types, i, out, depth + 1);
        }
    }
}

fn index(names: &[&str], name: &str) -> usize {
    names.binary_search(&name).unwrap_or_else(|_| panic!("the type table refers to {name:?}, which it lacks"))
}

fn parse_type(text: &'static str, names: &[&'static str]) -> Type {
    if let Some(t) = text.strip_prefix("&[]") {
        return Type::Wrapped(Box::new(parse_type(t, names)));
    }
    if let Some(t) = text.strip_prefix("[]") {
        return Type::List(Box::new(parse_type(t, names)));
    }
    if let Some(t) = text.strip_prefix("{}") {
        return Type::Map(Box::new(parse_type(t, names)));
    }
    let link = |name| TypeRef::Builtin(u16::try_from(index(names, name)).unwrap_or(u16::MAX));
    const SCHEMA: &str = "apiextensions.v1.JSONSchemaProps";
    let (base, go) = match text.split_once(':') {
        Some((base, go)) => (base, Some(go)),
        None => (text, None),
    };
    match base {
        "string" => Type::String(go),
        "bool" => Type::Bool,
        "int32" => Type::Int32,
        "int64" => Type::Int64,
        "float64" => Type::Float64,
        "bytes" => Type::Bytes,
        "quantity" => Type::Quantity,
        "intstr" => Type::IntOrString,
        "time" => Type::Time,
        "microtime" => Type::MicroTime,
        "raw" => Type::Raw,
        "fieldsv1" => Type::FieldsV1,
        "json" => Type::Json,
        "schemaorarray" => Type::SchemaOrArray(link(SCHEMA)),
        "schemaorbool" => Type::SchemaOrBool(link(SCHEMA)),
        "schemaorstrings" => Type::SchemaOrStrings(link(SCHEMA)),
        name => Type::Object(link(name)),
    }
}

fn parse_field(line: &'static str, names: &[&'static str]) -> Field {
    let mut words = line.split(' ');
    let mut word = || words.next().unwrap_or_default();
    let (name, ty, number, flags) = (word(), parse_type(word(), names), word(), word());
    let mut field = Field {
        name: Cow::Borrowed(name),
        ty,
        number: number.parse().unwrap_or(0),
        pointer: flags.contains('p'),
        omit_empty: flags.contains('o'),
        omit_zero: flags.contains('z'),
        required: flags.contains('r'),
        list: ListKind::Unset,
        atomic: false,
        patch_merge: false,
        patch_retain_keys: false,
        merge_key: None,
        default: None,
    };
    for word in words {
        if word == "atomic" {
            field.atomic = true;
            if field.ty.items().is_some() {
                field.list = ListKind::Atomic;
            }
        } else if word == "set" {
            field.list = ListKind::Set;
        } else if let Some(keys) = word.strip_prefix("map=") {
            field.list = ListKind::Map(keys.split(',').map(Cow::Borrowed).collect());
        } else if let Some(how) = word.strip_prefix("patch=") {
            field.patch_merge = how.split(',').any(|s| s == "merge");
            field.patch_retain_keys = how.split(',').any(|s| s == "retainKeys");
        } else if let Some(key) = word.strip_prefix("key=") {
            field.merge_key = Some(Cow::Borrowed(key));
        } else if let Some(default) = word.strip_prefix("default=") {
            field.default = Some(Cow::Borrowed(default));
        }
    }
    field
}
