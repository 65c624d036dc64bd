//! Structural schemas: every field has a type outside of `allOf` and its kin, which only restrict values.

use serde_json::{Value, json};

use super::openapi::sorted;
use crate::error::FieldError;
use crate::validation::{Errors, at, flag, list, set, text};

const PRESERVE: &str = "x-kubernetes-preserve-unknown-fields";
const EMBEDDED: &str = "x-kubernetes-embedded-resource";
const INT_OR_STRING: &str = "x-kubernetes-int-or-string";
const VALIDATIONS: &str = "x-kubernetes-validations";

/// Where a schema stands.
#[derive(Clone, Copy, PartialEq)]
enum Level {
    Root,
    Item,
    Field,
}

/// The first part of a schema that no structural schema may have.
pub(super) fn unsupported(schema: &Value) -> Option<String> {
    if !schema.is_object() {
        return None;
    }
    let any = |field: &str| !sorted(schema, field).is_empty();
    let faults = [
        (!text(schema, "id").is_empty(), "id"),
        (!text(schema, "$schema").is_empty(), "schema"),
        (!text(schema, "$ref").is_empty(), "$ref"),
        (any("patternProperties"), "patternProperties"),
        (any("dependencies"), "dependencies"),
        (set(schema, "additionalItems"), "additionalItems"),
        (any("definitions"), "definitions"),
    ];
    if let Some((_, field)) = faults.into_iter().find(|(is, _)| *is) {
        return Some(format!("OpenAPIV3Schema '{field}' is not supported"));
    }
    if *at(schema, PRESERVE) == Value::Bool(false) {
        return Some(format!("internal error: '{PRESERVE}' must be true or undefined"));
    }
    if !list(schema, "items").is_empty() {
        return Some("OpenAPIV3Schema 'items' must be a schema, but is an array".to_owned());
    }
    let parts = ["allOf", "anyOf", "oneOf"].into_iter().flat_map(|field| list(schema, field));
    let single = ["not", "items", "additionalProperties"].into_iter().map(|field| at(schema, field));
    let named = sorted(schema, "properties").into_iter().map(|(_, property)| property);
    parts.chain(single).chain(named).find_map(unsupported)
}

/// Checks a root schema; faults come in the order of their texts.
pub(super) fn check(schema: &Value, path: &str, errs: &mut Errors) {
    let mut found = Errors::new();
    invariants(schema, Level::Root, path, &mut found);
    complete_values(schema, schema, path, path, &mut found);
    found.sort_by_key(ToString::to_string);
    errs.extend(found);
}

fn invariants(schema: &Value, level: Level, path: &str, errs: &mut Errors) {
    if !schema.is_object() {
        return;
    }
    let kind = text(schema, "type");
    let child = |name: &str| format!("{path}.{name}");
    if kind == "array" && !set(schema, "items") {
        errs.push(FieldError::required(child("items"), "must be specified"));
    }
    invariants(at(schema, "items"), Level::Item, &child("items"), errs);
    for (name, property) in sorted(schema, "properties") {
        invariants(property, Level::Field, &format!("{path}.properties[{name}]"), errs);
    }
    let embedded = flag(schema, EMBEDDED);
    let (preserves, either) = (flag(schema, PRESERVE), flag(schema, INT_OR_STRING));
    let additional = at(schema, "additionalProperties");
    if !additional.is_null() {
        if level == Level::Root {
            errs.push(FieldError::forbidden(child("additionalProperties"), "must not be used at the root"));
        }
        invariants(additional, Level::Field, &child("additionalProperties"), errs);
    }
    for (is, extension) in [(preserves, PRESERVE), (embedded, EMBEDDED)] {
        if either && is {
            let detail = "must be false if x-kubernetes-int-or-string is true";
            errs.push(FieldError::invalid(child(extension), Value::Bool(true), detail));
        }
    }
    // An integer or a string may say so with types below anyOf.
    let pair = json!([{"type": "integer"}, {"type": "string"}]);
    let skip_any = *at(schema, "anyOf") == pair;
    let skip_first = list(schema, "allOf").first().is_some_and(|first| *at(first, "anyOf") == pair);
    values(schema, skip_any, skip_first, path, errs);

    let at_root = level == Level::Root;
    if embedded && kind != "object" {
        let detail = "must be object if x-kubernetes-embedded-resource is true";
        errs.push(match kind {
            "" => FieldError::required(child("type"), detail),
            kind => FieldError::invalid(child("type"), kind, detail),
        });
    } else if kind.is_empty() && !either && !preserves {
        let detail = match level {
            Level::Root => "must not be empty at the root",
            Level::Item => "must not be empty for specified array items",
            Level::Field => "must not be empty for specified object fields",
        };
        errs.push(FieldError::required(child("type"), detail));
    }
    if embedded && !additional.is_null() {
        let detail = "must not be used if x-kubernetes-embedded-resource is set";
        errs.push(FieldError::forbidden(child("additionalProperties"), detail));
    }
    if at_root && !kind.is_empty() && kind != "object" {
        errs.push(FieldError::invalid(child("type"), kind, "must be object at the root"));
    }
    let properties = at(schema, "properties");
    for name in ["kind", "apiVersion"] {
        if let Some(property) = properties.get(name).filter(|_| at_root || embedded)
            && text(property, "type") != "string"
        {
            let path = format!("{path}.properties[{name}].type");
            errs.push(FieldError::invalid(path, text(property, "type"), "must be string"));
        }
    }
    if let Some(metadata) = properties.get("metadata") {
        metadata_rules(metadata, at_root || embedded, at_root, &format!("{path}.properties[metadata]"), errs);
    }
    if embedded && !preserves && sorted(schema, "properties").is_empty() {
        let detail = "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
        errs.push(FieldError::required(child("properties"), detail));
    }
}

/// Metadata is known: a schema may restrict names alone.
fn metadata_rules(metadata: &Value, check: bool, root: bool, path: &str, errs: &mut Errors) {
    if check && text(metadata, "type") != "object" {
        let kind = text(metadata, "type");
        errs.push(FieldError::invalid(format!("{path}.type"), kind, "must be object"));
    }
    if !root {
        return;
    }
    let names = |(name, _): &(&String, &Value)| matches!(name.as_str(), "name" | "generateName");
    let only_names = sorted(metadata, "properties").iter().all(names);
    let said = |value: &Value| match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(s) => !s.is_empty(),
        Value::Array(a) => !a.is_empty(),
        Value::Object(o) => !o.is_empty(),
        Value::Number(_) | Value::Bool(true) => true,
    };
    let mut others = metadata.as_object().into_iter().flatten();
    let other = others
        .any(|(name, value)| !matches!(name.as_str(), "type" | "default" | "properties") && said(value));
    if other || !only_names {
        let detail = "must not specify anything other than name and generateName, but metadata is implicitly specified";
        errs.push(FieldError::forbidden(path, detail));
    }
}

/// The restrictions of values in a schema.
fn values(schema: &Value, skip_any: bool, skip_first: bool, path: &str, errs: &mut Errors) {
    if !skip_any {
        for (i, part) in list(schema, "anyOf").iter().enumerate() {
            nested(part, false, &format!("{path}.anyOf[{i}]"), errs);
        }
    }
    for (i, part) in list(schema, "allOf").iter().enumerate() {
        nested(part, skip_first && i == 0, &format!("{path}.allOf[{i}]"), errs);
    }
    for (i, part) in list(schema, "oneOf").iter().enumerate() {
        nested(part, false, &format!("{path}.oneOf[{i}]"), errs);
    }
    nested(at(schema, "not"), false, &format!("{path}.not"), errs);
    let pattern = text(schema, "pattern");
    if let Some(why) = super::value::pattern_fault(pattern) {
        let detail = format!("must be a valid regular expression, but isn't: {why}");
        errs.push(FieldError::invalid(format!("{path}.pattern"), pattern, detail));
    }
}

/// A schema below `allOf` and its kin.
fn nested(schema: &Value, skip_any: bool, path: &str, errs: &mut Errors) {
    if !schema.is_object() {
        return;
    }
    values(schema, skip_any, false, path, errs);
    nested(at(schema, "items"), false, &format!("{path}.items"), errs);
    for (name, property) in sorted(schema, "properties") {
        nested(property, false, &format!("{path}.properties[{name}]"), errs);
    }
    const EMPTY: &str = "must be empty to be structural";
    const UNDEFINED: &str = "must be undefined to be structural";
    const FALSE: &str = "must be false to be structural";
    let mut forbid = |is: bool, field: &str, detail: &str| {
        if is {
            errs.push(FieldError::forbidden(format!("{path}.{field}"), detail));
        }
    };
    forbid(!text(schema, "type").is_empty(), "type", EMPTY);
    let additional = at(schema, "additionalProperties");
    let defined = !additional.is_null() && *additional != Value::Bool(false);
    forbid(defined, "additionalProperties", UNDEFINED);
    forbid(set(schema, "default"), "default", UNDEFINED);
    forbid(!text(schema, "title").is_empty(), "title", EMPTY);
    forbid(!text(schema, "description").is_empty(), "description", EMPTY);
    forbid(flag(schema, "nullable"), "nullable", FALSE);
    for extension in [PRESERVE, EMBEDDED, INT_OR_STRING] {
        forbid(flag(schema, extension), extension, FALSE);
    }
    let keys = !list(schema, "x-kubernetes-list-map-keys").is_empty();
    forbid(keys, "x-kubernetes-list-map-keys", EMPTY);
    for extension in ["x-kubernetes-list-type", "x-kubernetes-map-type"] {
        forbid(set(schema, extension), extension, UNDEFINED);
    }
    forbid(!list(schema, VALIDATIONS).is_empty(), VALIDATIONS, EMPTY);
    let metadata = at(schema, "properties").get("metadata").is_some();
    forbid(metadata, "properties[metadata]", "must not be specified in a nested context");
}

/// What is restricted has to be there: `values_of` restricts values of `schema`.
fn complete_values(values_of: &Value, schema: &Value, path: &str, value_path: &str, errs: &mut Errors) {
    complete(at(values_of, "not"), schema, path, &format!("{value_path}.not"), errs);
    for field in ["allOf", "anyOf", "oneOf"] {
        for (i, part) in list(values_of, field).iter().enumerate() {
            complete(part, schema, path, &format!("{value_path}.{field}[{i}]"), errs);
        }
    }
}

fn complete(part: &Value, schema: &Value, path: &str, value_path: &str, errs: &mut Errors) {
    if !part.is_object() {
        return;
    }
    if !schema.is_object() {
        errs.push(FieldError::required(path, format!("because it is defined in {value_path}")));
        return;
    }
    complete_values(part, schema, path, value_path, errs);
    let (items, value_items) = (format!("{path}.items"), format!("{value_path}.items"));
    complete(at(part, "items"), at(schema, "items"), &items, &value_items, errs);
    for (name, inner) in sorted(part, "properties") {
        let value_path = format!("{value_path}.properties[{name}]");
        let path = format!("{path}.properties[{name}]");
        match at(schema, "properties").get(name) {
            Some(property) => complete(inner, property, &path, &value_path, errs),
            None => errs.push(FieldError::required(path, format!("because it is defined in {value_path}"))),
        }
    }
}
