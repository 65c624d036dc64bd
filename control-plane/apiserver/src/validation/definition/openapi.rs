//! What schemas of definitions may contain at all.

use serde_json::Value;
use std::collections::BTreeSet;

use super::{columns, expressions};
use crate::error::{BadValue, FieldError};
use crate::validation::{Errors, at, flag, list, set, text, texts};

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];

/// Formats that values are checked against, without dashes where they may have some.
pub(super) const FORMATS: [&str; 26] = [
    "bsonobjectid",
    "uri",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "cidr",
    "mac",
    "uuid",
    "uuid3",
    "uuid4",
    "uuid5",
    "isbn",
    "isbn10",
    "isbn13",
    "creditcard",
    "ssn",
    "hexcolor",
    "rgbcolor",
    "byte",
    "password",
    "date",
    "duration",
    "datetime",
    "k8s-short-name",
    "k8s-long-name",
];

/// Members of an object by name, in the order of their names.
pub(super) fn sorted<'a>(value: &'a Value, field: &str) -> Vec<(&'a String, &'a Value)> {
    let mut all: Vec<_> = at(value, field).as_object().into_iter().flatten().collect();
    all.sort_by_key(|(key, _)| *key);
    all
}

/// Calls a function with a schema and all schemas in it.
pub(super) fn visit(schema: &Value, seen: &mut dyn FnMut(&Value)) {
    if !schema.is_object() {
        return;
    }
    seen(schema);
    match at(schema, "items") {
        Value::Array(all) => all.iter().for_each(|s| visit(s, seen)),
        one => visit(one, seen),
    }
    for field in ["allOf", "anyOf", "oneOf"] {
        list(schema, field).iter().for_each(|s| visit(s, seen));
    }
    for field in ["not", "additionalProperties", "additionalItems"] {
        visit(at(schema, field), seen);
    }
    for field in ["properties", "patternProperties", "definitions", "dependencies"] {
        for (_, inner) in sorted(schema, field) {
            visit(inner, seen);
        }
    }
}

/// Whether a default is anywhere in the schema.
pub(super) fn has_defaults(schema: &Value) -> bool {
    let mut found = false;
    visit(schema, &mut |s| found |= set(s, "default"));
    found
}

/// Where a schema stands.
#[derive(Clone, Copy)]
struct Place<'a> {
    root: bool,
    /// Below metadata, kind or apiVersion.
    inside_meta: bool,
    /// Why defaults are forbidden here, when they are.
    no_defaults: Option<&'a str>,
    /// Expressions are compiled here: not in parts that say what a value must not be, or may be else.
    expressions: bool,
    /// The outermost list that has no keys, when the schema is inside one: its items have no old values.
    unkeyed: Option<&'a str>,
}

/// What a walk finds; faults of expressions are told after those of schemas.
#[derive(Default)]
struct Found {
    schema: Errors,
    expressions: Errors,
}

/// Checks a root schema.
pub(super) fn check(schema: &Value, path: &str, errs: &mut Errors) {
    let place = Place { root: true, inside_meta: false, no_defaults: None, expressions: true, unkeyed: None };
    let mut found = Found::default();
    walk(schema, path, place, &mut found);
    errs.append(&mut found.schema);
    errs.append(&mut found.expressions);
}

fn walk(schema: &Value, path: &str, place: Place<'_>, found: &mut Found) {
    if !schema.is_object() {
        return;
    }
    let inner = Place { root: false, ..place };
    let aside = Place { expressions: false, ..inner };
    let before = found.schema.len();
    let errs = &mut found.schema;
    standard(schema, path, place, errs);
    if flag(schema, "uniqueItems") {
        let detail = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        errs.push(FieldError::forbidden(format!("{path}.uniqueItems"), detail));
    }
    let additional = at(schema, "additionalProperties");
    if !additional.is_null() {
        let has_properties = !sorted(schema, "properties").is_empty();
        if has_properties && *additional != Value::Bool(true) {
            let detail = "additionalProperties and properties are mutual exclusive";
            errs.push(FieldError::forbidden(format!("{path}.additionalProperties"), detail));
        }
        let reason = "inside additionalProperties applying to object metadata";
        let no_defaults = if place.inside_meta { Some(reason) } else { place.no_defaults };
        let path = format!("{path}.additionalProperties");
        walk(additional, &path, Place { no_defaults, ..inner }, found);
    }
    for (name, property) in sorted(schema, "properties") {
        let mut below = inner;
        let reason;
        let meta = matches!(name.as_str(), "metadata" | "kind" | "apiVersion");
        if meta && (place.root || flag(schema, "x-kubernetes-embedded-resource")) {
            below.inside_meta = true;
            if place.root {
                reason = format!("in top-level {name}");
                below.no_defaults = Some(&reason);
            }
        }
        walk(property, &format!("{path}.properties[{name}]"), below, found);
    }
    walk(at(schema, "not"), &format!("{path}.not"), aside, found);
    for field in ["allOf", "oneOf", "anyOf"] {
        for (i, part) in list(schema, field).iter().enumerate() {
            walk(part, &format!("{path}.{field}[{i}]"), aside, found);
        }
    }
    for (name, part) in sorted(schema, "definitions") {
        walk(part, &format!("{path}.definitions[{name}]"), aside, found);
    }
    let keyed = text(schema, "x-kubernetes-list-type") == "map";
    let items = Place { unkeyed: if keyed { inner.unkeyed } else { inner.unkeyed.or(Some(path)) }, ..inner };
    match at(schema, "items") {
        Value::Array(parts) => {
            for (i, part) in parts.iter().enumerate() {
                walk(part, &format!("{path}.items[{i}]"), items, found);
            }
        }
        part => walk(part, &format!("{path}.items"), items, found),
    }
    for (name, part) in sorted(schema, "dependencies") {
        walk(part, &format!("{path}.dependencies[{name}]"), aside, found);
    }
    extensions(schema, path, &mut found.schema);
    rules(schema, path, &mut found.schema);
    // The types of an expression's parts come from the schema: a faulty one gives faults that mean nothing.
    if place.expressions && found.schema.len() == before {
        expressions::check(schema, path, place.root, place.unkeyed, &mut found.expressions);
    }
}

fn standard(schema: &Value, path: &str, place: Place<'_>, errs: &mut Errors) {
    let kind = text(schema, "type");
    if !kind.is_empty() && !TYPES.contains(&kind) {
        errs.push(FieldError::not_supported(format!("{path}.type"), kind, &TYPES));
    }
    if let Some(reason) = place.no_defaults.filter(|_| set(schema, "default")) {
        errs.push(FieldError::forbidden(format!("{path}.default"), format!("must not be set {reason}")));
    }
    let mut forbid = |is: bool, field: &str, detail: &str| {
        if is {
            errs.push(FieldError::forbidden(format!("{path}.{field}"), detail));
        }
    };
    let any = |field: &str| !sorted(schema, field).is_empty();
    forbid(!text(schema, "id").is_empty(), "id", "id is not supported");
    forbid(set(schema, "additionalItems"), "additionalItems", "additionalItems is not supported");
    forbid(any("patternProperties"), "patternProperties", "patternProperties is not supported");
    forbid(any("definitions"), "definitions", "definitions is not supported");
    forbid(set(schema, "dependencies"), "dependencies", "dependencies is not supported");
    forbid(set(schema, "$ref"), "$ref", "$ref is not supported");
    forbid(kind == "null", "type", "type cannot be set to null, use nullable as an alternative");
    let many = !list(schema, "items").is_empty();
    forbid(many, "items", "items must be a schema object and not an array");
    let embedded = place.inside_meta && flag(schema, "x-kubernetes-embedded-resource");
    forbid(embedded, "x-kubernetes-embedded-resource", "must not be used inside of resource meta");
}

/// A type that an extension needs.
fn needs(schema: &Value, kind: &str, extension: &str, path: &str, errs: &mut Errors) -> bool {
    let own = text(schema, "type");
    if own == kind {
        return true;
    }
    let detail = format!("must be {kind} if {extension} is specified");
    let path = format!("{path}.type");
    errs.push(match own {
        "" => FieldError::required(path, detail),
        own => FieldError::invalid(path, own, detail),
    });
    false
}

fn extensions(schema: &Value, path: &str, errs: &mut Errors) {
    const PRESERVE: &str = "x-kubernetes-preserve-unknown-fields";
    const MAP: &str = "x-kubernetes-map-type";
    const LIST: &str = "x-kubernetes-list-type";
    const KEYS: &str = "x-kubernetes-list-map-keys";
    if *at(schema, PRESERVE) == Value::Bool(false) {
        let shown = Value::Bool(false);
        errs.push(FieldError::invalid(format!("{path}.{PRESERVE}"), shown, "must be true or undefined"));
    }
    let (map_type, list_type) = (text(schema, MAP), text(schema, LIST));
    if set(schema, MAP) {
        needs(schema, "object", MAP, path, errs);
        if !matches!(map_type, "atomic" | "granular") {
            errs.push(FieldError::not_supported(format!("{path}.{MAP}"), map_type, &["atomic", "granular"]));
        }
    }
    let items = at(schema, "items");
    if set(schema, LIST) {
        if needs(schema, "array", LIST, path, errs) && list_type == "set" && items.is_object() {
            let detail = "must be atomic as item of a list with x-kubernetes-list-type=set";
            let own = at(items, LIST);
            let shown = || if own.is_null() { BadValue::Text("null".to_owned()) } else { own.into() };
            match text(items, "type") {
                "array" if !matches!(text(items, LIST), "" | "atomic") => {
                    errs.push(FieldError::invalid(format!("{path}.items.{LIST}"), shown(), detail));
                }
                "object" if text(items, MAP) != "atomic" => {
                    errs.push(FieldError::invalid(format!("{path}.items.{MAP}"), shown(), detail));
                }
                _ => {}
            }
        }
        if !matches!(list_type, "atomic" | "set" | "map") {
            let supported = ["atomic", "set", "map"];
            errs.push(FieldError::not_supported(format!("{path}.{LIST}"), list_type, &supported));
        }
    }
    if !list(schema, KEYS).is_empty() && list_type != "map" {
        let detail = "must be map if x-kubernetes-list-map-keys is non-empty";
        let path = format!("{path}.{LIST}");
        errs.push(match set(schema, LIST) {
            false => FieldError::required(path, detail),
            true => FieldError::invalid(path, list_type, detail),
        });
    }
    if list_type == "map" {
        map_list(schema, items, path, errs);
    }
    keys_and_items(schema, items, list_type, path, errs);
}

/// A list whose items are identified by keys.
fn map_list(schema: &Value, items: &Value, path: &str, errs: &mut Errors) {
    const KEYS: &str = "x-kubernetes-list-map-keys";
    if list(schema, KEYS).is_empty() {
        let detail = "must not be empty if x-kubernetes-list-type is map";
        errs.push(FieldError::required(format!("{path}.{KEYS}"), detail));
    }
    let items_path = format!("{path}.items");
    if items.is_null() {
        let detail = "must have a schema if x-kubernetes-list-type is map";
        errs.push(FieldError::required(items_path, detail));
        return;
    }
    if !items.is_object() {
        let detail = "must only have a single schema if x-kubernetes-list-type is map";
        errs.push(FieldError::invalid(items_path, items, detail));
        return;
    }
    let kind = text(items, "type");
    if kind != "object" {
        let detail = "must be object if parent array's x-kubernetes-list-type is map";
        errs.push(FieldError::invalid(format!("{items_path}.type"), kind, detail));
        return;
    }
    let mut seen = BTreeSet::new();
    for key in texts(schema, KEYS) {
        match at(items, "properties").get(key) {
            Some(property) if matches!(text(property, "type"), "array" | "object") => {
                let detail = "must be a scalar type if parent array's x-kubernetes-list-type is map";
                errs.push(FieldError::invalid(format!("{items_path}.properties[{key}].type"), kind, detail));
            }
            Some(_) => {}
            None => {
                let detail = "entries must all be names of item properties";
                errs.push(FieldError::invalid(format!("{path}.{KEYS}"), at(schema, KEYS), detail));
            }
        }
        if !seen.insert(key) {
            let detail = "must not contain duplicate entries";
            errs.push(FieldError::invalid(format!("{path}.{KEYS}"), at(schema, KEYS), detail));
        }
    }
}

/// Keys are never missing, and items of sets and keyed lists never null.
fn keys_and_items(schema: &Value, items: &Value, list_type: &str, path: &str, errs: &mut Errors) {
    if !items.is_object() || !matches!(list_type, "set" | "map") {
        return;
    }
    let path = format!("{path}.items");
    if flag(items, "nullable") {
        let detail = format!("cannot be nullable when x-kubernetes-list-type is {list_type}");
        errs.push(FieldError::forbidden(format!("{path}.nullable"), detail));
    }
    if list_type != "map" {
        return;
    }
    for key in texts(schema, "x-kubernetes-list-map-keys") {
        let Some(property) = at(items, "properties").get(key) else { continue };
        let path = format!("{path}.properties[{key}]");
        if !texts(items, "required").any(|r| r == key) && !set(property, "default") {
            let detail = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
            errs.push(FieldError::required(format!("{path}.default"), detail));
        }
        if flag(property, "nullable") {
            let detail = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
            errs.push(FieldError::forbidden(format!("{path}.nullable"), detail));
        }
    }
}

/// Validation rules, but for their expressions.
fn rules(schema: &Value, path: &str, errs: &mut Errors) {
    const BREAKS: [char; 2] = ['\n', '\r'];
    const REASONS: [&str; 4] =
        ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];
    for (i, rule) in list(schema, "x-kubernetes-validations").iter().enumerate() {
        let path = format!("{path}.x-kubernetes-validations[{i}]");
        let (expression, message) = (text(rule, "rule").trim(), text(rule, "message"));
        if expression.is_empty() {
            errs.push(FieldError::required(format!("{path}.rule"), "rule is not specified"));
        } else if !message.is_empty() && message.trim().is_empty() {
            let detail = "must be non-empty if specified";
            errs.push(FieldError::invalid(format!("{path}.message"), message, detail));
        } else if message.trim().contains(BREAKS) {
            let detail = "must not contain line breaks";
            errs.push(FieldError::invalid(format!("{path}.message"), message, detail));
        } else if expression.contains(BREAKS) && message.trim().is_empty() {
            let detail = "message must be specified if rule contains line breaks";
            errs.push(FieldError::required(format!("{path}.message"), detail));
        }
        let computed = text(rule, "messageExpression");
        if !computed.is_empty() && computed.trim().is_empty() {
            let detail = "messageExpression must be non-empty if specified";
            errs.push(FieldError::required(format!("{path}.messageExpression"), detail));
        }
        let reason = text(rule, "reason");
        if set(rule, "reason") && !REASONS.contains(&reason) {
            errs.push(FieldError::not_supported(format!("{path}.reason"), reason, &REASONS));
        }
        let field = text(rule, "fieldPath");
        let path = format!("{path}.fieldPath");
        if field.is_empty() {
            continue;
        }
        if field.trim().is_empty() {
            errs.push(FieldError::invalid(path.as_str(), field, "must be non-empty if specified"));
        }
        if field.contains(BREAKS) {
            errs.push(FieldError::invalid(path.as_str(), field, "must not contain line breaks"));
        }
        if !columns::is_field_path(field, schema) {
            errs.push(FieldError::invalid(path, field, "must be a valid path"));
        }
    }
}
