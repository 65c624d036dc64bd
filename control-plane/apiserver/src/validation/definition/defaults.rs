//! Defaults in schemas: they have no unknown fields, and the schema they stand in allows them.

use serde_json::Value;

use super::openapi::sorted;
use super::value;
use crate::error::FieldError;
use crate::validation::{Errors, at, flag};

/// Checks the defaults of a structural schema and of what is in it.
pub(super) fn check(schema: &Value, path: &str, root: bool, errs: &mut Errors) {
    if !schema.is_object() {
        return;
    }
    let default = at(schema, "default");
    if !default.is_null() {
        let path = format!("{path}.default");
        if has_unknown_fields(default, schema) {
            errs.push(FieldError::invalid(path.as_str(), default, "must not have unknown fields"));
        }
        value::check(default, schema, &path, "", errs);
    }
    // Below additionalProperties defaults have no effect that could be checked.
    check(at(schema, "items"), &format!("{path}.items"), false, errs);
    for (name, property) in sorted(schema, "properties") {
        let meta = matches!(name.as_str(), "metadata" | "kind" | "apiVersion");
        if meta && (root || flag(schema, "x-kubernetes-embedded-resource")) {
            continue;
        }
        check(property, &format!("{path}.properties[{name}]"), false, errs);
    }
}

/// Whether pruning by the schema would take something away.
fn has_unknown_fields(value: &Value, schema: &Value) -> bool {
    match value {
        Value::Array(items) => {
            let inner = at(schema, "items");
            items.iter().any(|item| inner.is_object() && has_unknown_fields(item, inner))
        }
        Value::Object(members) => {
            let preserves = flag(schema, "x-kubernetes-preserve-unknown-fields");
            let embedded = flag(schema, "x-kubernetes-embedded-resource");
            let additional = at(schema, "additionalProperties");
            members.iter().any(|(name, member)| {
                if embedded && matches!(name.as_str(), "kind" | "apiVersion" | "metadata") {
                    return false;
                }
                match at(schema, "properties").get(name) {
                    Some(property) => has_unknown_fields(member, property),
                    None if additional.is_object() => has_unknown_fields(member, additional),
                    None => !preserves && *additional != Value::Bool(true),
                }
            })
        }
        _ => false,
    }
}
