//! Conditions of the common form.

use kelp_model::names;
use serde_json::Value;
use std::collections::BTreeSet;

use super::{Errors, int, invalid_each, set, text};
use crate::error::FieldError;

const MAX_REASON: usize = 1024;
const MAX_MESSAGE: usize = 32 << 10;

/// Checks a list of `metav1.Condition`.
pub(super) fn check(conditions: &[Value], path: &str, errs: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (i, condition) in conditions.iter().enumerate() {
        let path = format!("{path}[{i}]");
        let kind = text(condition, "type");
        if !seen.insert(kind) {
            errs.push(FieldError::duplicate(path.as_str(), kind));
        }
        one(condition, &path, errs);
    }
}

fn one(condition: &Value, path: &str, errs: &mut Errors) {
    let field = |name: &str| format!("{path}.{name}");
    let (kind, reason) = (text(condition, "type"), text(condition, "reason"));
    if kind.is_empty() {
        errs.push(FieldError::required(field("type"), "is required"));
    } else {
        invalid_each(errs, &field("type"), kind, names::qualified_name(kind));
    }
    super::one_of(errs, &field("status"), text(condition, "status"), &["False", "True", "Unknown"]);
    if let Some(generation) = int(condition, "observedGeneration").filter(|g| *g < 0) {
        let detail = "must be greater than or equal to zero";
        errs.push(FieldError::invalid(field("observedGeneration"), generation, detail));
    }
    if !set(condition, "lastTransitionTime") {
        errs.push(FieldError::required(field("lastTransitionTime"), ""));
    }
    if reason.is_empty() {
        errs.push(FieldError::required(field("reason"), ""));
    } else {
        if !reason_shape(reason) {
            let detail = names::regex_error(
                "a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric characters or '_,:', and must end with an alphanumeric character or '_'",
                "[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?",
                &["my_name", "MY_NAME", "MyName", "ReasonA,ReasonB", "ReasonA:ReasonB"],
            );
            errs.push(FieldError::invalid(field("reason"), reason, detail));
        }
        if reason.len() > MAX_REASON {
            errs.push(FieldError::too_long(field("reason"), MAX_REASON));
        }
    }
    if text(condition, "message").len() > MAX_MESSAGE {
        errs.push(FieldError::too_long(field("message"), MAX_MESSAGE));
    }
}

fn reason_shape(reason: &str) -> bool {
    let bytes = reason.as_bytes();
    let word = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
    bytes.first().is_some_and(u8::is_ascii_alphabetic)
        && bytes.last().is_some_and(word)
        && bytes.iter().all(|b| word(b) || matches!(b, b',' | b':'))
}
