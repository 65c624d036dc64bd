//! Values against schemas, with the words of upstream's validator.

use serde_json::{Number, Value};

use crate::error::{FieldError, FieldErrorKind};
use crate::validation::{Errors, at, flag, list, set, text};

/// Why a regular expression cannot be used.
pub(super) fn pattern_fault(pattern: &str) -> Option<String> {
    let error = regex_syntax::Parser::new().parse(pattern).err()?;
    let (kind, span) = match &error {
        regex_syntax::Error::Parse(e) => (go_fault(e.kind()), e.span()),
        regex_syntax::Error::Translate(e) => ("invalid character class range", e.span()),
        _ => return Some("error parsing regexp: expression nests too deeply".to_owned()),
    };
    let whole = kind.starts_with("missing closing )") || kind.starts_with("unexpected )");
    let shown = match kind {
        _ if whole => pattern,
        "missing closing ]" => pattern.get(span.start.offset..).unwrap_or_default(),
        // The operator stands after the place where its argument is missed.
        "missing argument to repetition operator" => {
            let operator = pattern.get(span.end.offset..).and_then(|rest| rest.get(..1));
            operator.unwrap_or_default()
        }
        _ => pattern.get(span.start.offset..span.end.offset).unwrap_or_default(),
    };
    Some(format!("error parsing regexp: {kind}: `{shown}`"))
}

/// The words of Go for a fault.
fn go_fault(kind: &regex_syntax::ast::ErrorKind) -> &'static str {
    use regex_syntax::ast::ErrorKind as K;
    match kind {
        K::ClassUnclosed => "missing closing ]",
        K::ClassRangeInvalid | K::ClassRangeLiteral => "invalid character class range",
        K::ClassEscapeInvalid | K::EscapeUnrecognized | K::EscapeHexInvalid | K::EscapeHexEmpty => {
            "invalid escape sequence"
        }
        K::EscapeUnexpectedEof => "trailing backslash at end of expression",
        K::GroupUnclosed => "missing closing )",
        K::GroupUnopened => "unexpected )",
        K::GroupNameDuplicate { .. } | K::GroupNameEmpty | K::GroupNameInvalid => "invalid named capture",
        K::GroupNameUnexpectedEof => "invalid named capture",
        K::RepetitionMissing => "missing argument to repetition operator",
        K::RepetitionCountInvalid | K::RepetitionCountDecimalEmpty => "invalid repeat count",
        K::UnsupportedLookAround | K::UnsupportedBackreference => "invalid or unsupported Perl syntax",
        _ => "invalid or unsupported Perl syntax",
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_i64() || n.is_u64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Whether a value has a type; whole numbers are integers however they are written.
fn has_type(value: &Value, kind: &str) -> bool {
    let whole = |n: &Number| n.as_f64().is_some_and(|f| f.fract() == 0.0);
    match (kind, value) {
        ("number", Value::Number(_)) => true,
        ("integer", Value::Number(n)) => whole(n),
        _ => type_of(value) == kind,
    }
}

fn number(schema: &Value, field: &str) -> Option<f64> {
    at(schema, field).as_f64()
}

/// Checks a value; `path` is that of the whole, `name` of the value below it, empty or beginning with a dot or bracket.
pub(super) fn check(value: &Value, schema: &Value, path: &str, name: &str, errs: &mut Errors) {
    let inner = name.trim_start_matches('.');
    let path_of = |name: &str| match name.trim_start_matches('.') {
        "" => path.to_owned(),
        inner => format!("{path}.{inner}"),
    };
    let own = path_of(name);
    if value.is_null() && flag(schema, "nullable") {
        return;
    }
    let kind = text(schema, "type");
    let fits = if flag(schema, "x-kubernetes-int-or-string") {
        has_type(value, "integer") || has_type(value, "string")
    } else {
        kind.is_empty() || has_type(value, kind)
    };
    if !fits {
        let wanted = if kind.is_empty() { "integer,string" } else { kind };
        let found = crate::error::quote(type_of(value));
        let detail = format!("{inner} in body must be of type {wanted}: {found}");
        errs.push(FieldError::new(FieldErrorKind::TypeInvalid, own, type_of(value), detail));
        return;
    }
    let allowed = list(schema, "enum");
    if !allowed.is_empty() && !allowed.contains(value) {
        let shown = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
        let names: Vec<String> = allowed.iter().map(shown).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        errs.push(FieldError::not_supported(own.as_str(), value, &names));
    }
    let mut bad = |detail: String| {
        errs.push(FieldError::invalid(own.as_str(), value, format!("{inner} in body {detail}")));
    };
    match value {
        Value::Number(n) => numbers(n, schema, &mut bad),
        Value::String(s) => {
            let length = s.chars().count() as f64;
            if number(schema, "minLength").is_some_and(|min| length < min) {
                bad(format!("should be at least {} chars long", at(schema, "minLength")));
            }
            let pattern = text(schema, "pattern");
            if !pattern.is_empty() && regex::Regex::new(pattern).is_ok_and(|r| !r.is_match(s)) {
                bad(format!("should match '{pattern}'"));
            }
            if let Some(max) = number(schema, "maxLength").filter(|max| length > *max) {
                errs.push(FieldError::too_long(own.as_str(), max as usize));
            }
        }
        Value::Array(items) => {
            if number(schema, "minItems").is_some_and(|min| (items.len() as f64) < min) {
                bad(format!("should have at least {} items", at(schema, "minItems")));
            }
            if let Some(max) = number(schema, "maxItems").filter(|max| items.len() as f64 > *max) {
                errs.push(FieldError::too_many(own.as_str(), items.len(), max as usize));
            }
            for (i, item) in items.iter().enumerate() {
                check(item, at(schema, "items"), path, &format!("{name}[{i}]"), errs);
            }
        }
        Value::Object(members) => {
            if number(schema, "minProperties").is_some_and(|min| (members.len() as f64) < min) {
                bad(format!("should have at least {} properties", at(schema, "minProperties")));
            }
            if let Some(max) = number(schema, "maxProperties").filter(|max| members.len() as f64 > *max) {
                errs.push(FieldError::too_many(own.as_str(), members.len(), max as usize));
            }
            for required in list(schema, "required").iter().filter_map(Value::as_str) {
                if !members.contains_key(required) {
                    errs.push(FieldError::required(path_of(&format!("{name}.{required}")), ""));
                }
            }
            let additional = at(schema, "additionalProperties");
            for (key, member) in members {
                match at(schema, "properties").get(key) {
                    Some(property) => check(member, property, path, &format!("{name}.{key}"), errs),
                    None if additional.is_object() => {
                        check(member, additional, path, &format!("{name}.{key}"), errs);
                    }
                    None => {}
                }
            }
        }
        Value::Null | Value::Bool(_) => {}
    }
    quantifiers(value, schema, path, name, errs);
}

fn numbers(n: &Number, schema: &Value, bad: &mut impl FnMut(String)) {
    let value = n.as_f64().unwrap_or_default();
    if let Some(max) = number(schema, "maximum") {
        let exclusive = flag(schema, "exclusiveMaximum");
        if value > max || (exclusive && value == max) {
            let than = if exclusive { "less than" } else { "less than or equal to" };
            bad(format!("should be {than} {}", at(schema, "maximum")));
        }
    }
    if let Some(min) = number(schema, "minimum") {
        let exclusive = flag(schema, "exclusiveMinimum");
        if value < min || (exclusive && value == min) {
            let than = if exclusive { "greater than" } else { "greater than or equal to" };
            bad(format!("should be {than} {}", at(schema, "minimum")));
        }
    }
    if let Some(of) = number(schema, "multipleOf").filter(|of| *of != 0.0)
        && (value / of).fract() != 0.0
    {
        bad(format!("should be a multiple of {}", at(schema, "multipleOf")));
    }
}

/// `allOf` and its kin.
fn quantifiers(value: &Value, schema: &Value, path: &str, name: &str, errs: &mut Errors) {
    let fits = |part: &Value| {
        let mut found = Errors::new();
        check(value, part, path, name, &mut found);
        found.is_empty()
    };
    let quoted = crate::error::quote(name.trim_start_matches('.'));
    let own = match name.trim_start_matches('.') {
        "" => path.to_owned(),
        inner => format!("{path}.{inner}"),
    };
    let mut bad = |detail: String| errs.push(FieldError::invalid(own.as_str(), value, detail));
    let any = list(schema, "anyOf");
    if !any.is_empty() && !any.iter().any(&fits) {
        bad(format!("{quoted} must validate at least one schema (anyOf)"));
    }
    let one = list(schema, "oneOf");
    let count = one.iter().filter(|part| fits(part)).count();
    if !one.is_empty() && count != 1 {
        let found = if count == 0 {
            "Found none valid".to_owned()
        } else {
            format!("Found {count} valid alternatives")
        };
        bad(format!("{quoted} must validate one and only one schema (oneOf). {found}"));
    }
    let all = list(schema, "allOf");
    if !all.iter().all(&fits) {
        bad(format!("{quoted} must validate all the schemas (allOf)"));
    }
    if set(schema, "not") && fits(at(schema, "not")) {
        bad(format!("{quoted} must not validate the schema (not)"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn faults(value: &Value, schema: &Value) -> Vec<String> {
        let mut errs = Errors::new();
        check(value, schema, "d", "", &mut errs);
        errs.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn values() {
        let schema = json!({"type": "object", "required": ["a"], "properties": {
            "a": {"type": "integer", "maximum": 3}, "b": {"type": "string", "pattern": "^x", "enum": ["x", "xy"]},
            "c": {"type": "array", "items": {"type": "boolean"}}, "p": {"x-kubernetes-int-or-string": true},
            "n": {"type": "string", "nullable": true}}});
        assert_eq!(faults(&json!({"a": 1, "b": "x", "c": [true], "p": "1", "n": null}), &schema), [""; 0]);
        assert_eq!(
            faults(&json!({"b": "z", "c": [1], "p": 1.5}), &schema),
            [
                "d.a: Required value",
                "d.b: Unsupported value: \"z\": supported values: \"x\", \"xy\"",
                "d.b: Invalid value: \"z\": b in body should match '^x'",
                "d.c[0]: Invalid value: \"integer\": c[0] in body must be of type boolean: \"integer\"",
                "d.p: Invalid value: \"number\": p in body must be of type integer,string: \"number\"",
            ]
        );
        assert_eq!(
            faults(&json!("x"), &json!({"type": "integer"})),
            ["d: Invalid value: \"string\":  in body must be of type integer: \"string\""]
        );
        assert_eq!(
            faults(&json!({"a": 4}), &schema),
            ["d.a: Invalid value: 4: a in body should be less than or equal to 3"]
        );
    }

    #[test]
    fn patterns() {
        assert_eq!(pattern_fault("^a+$"), None);
        assert_eq!(pattern_fault("[").as_deref(), Some("error parsing regexp: missing closing ]: `[`"));
        assert_eq!(pattern_fault("(a").as_deref(), Some("error parsing regexp: missing closing ): `(a`"));
        assert_eq!(
            pattern_fault("*").as_deref(),
            Some("error parsing regexp: missing argument to repetition operator: `*`")
        );
    }
}
