//! Printer columns, subresources and selectable fields of definitions.

use serde_json::Value;
use std::collections::BTreeSet;

use crate::error::FieldError;
use crate::validation::{Errors, at, text};

const TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
const FORMATS: [&str; 8] = ["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];
const MAX_SELECTABLE: usize = 8;

pub(super) fn columns(columns: &[Value], path: &str, errs: &mut Errors) {
    for (i, column) in columns.iter().enumerate() {
        let path = format!("{path}[{i}]");
        if text(column, "name").is_empty() {
            errs.push(FieldError::required(format!("{path}.name"), ""));
        }
        let kind = text(column, "type");
        let types = format!("must be one of {}", TYPES.join(","));
        if kind.is_empty() {
            errs.push(FieldError::required(format!("{path}.type"), types));
        } else if !TYPES.contains(&kind) {
            errs.push(FieldError::invalid(format!("{path}.type"), kind, types));
        }
        let format = text(column, "format");
        if !format.is_empty() && !FORMATS.contains(&format) {
            let detail = format!("must be one of {}", FORMATS.join(","));
            errs.push(FieldError::invalid(format!("{path}.format"), format, detail));
        }
        let json_path = text(column, "jsonPath");
        if json_path.is_empty() {
            errs.push(FieldError::required(format!("{path}.JSONPath"), ""));
        } else {
            dotted(json_path, &format!("{path}.JSONPath"), errs);
        }
    }
}

/// A path that begins with a dot; false when it does not.
fn dotted(value: &str, path: &str, errs: &mut Errors) -> bool {
    if value.starts_with('.') {
        return true;
    }
    errs.push(FieldError::invalid(path, value, "must be a simple json path starting with ."));
    false
}

pub(super) fn subresources(subresources: &Value, path: &str, errs: &mut Errors) {
    let scale = at(subresources, "scale");
    if scale.is_null() {
        return;
    }
    for (field, root) in [("specReplicasPath", "spec"), ("statusReplicasPath", "status")] {
        let path = format!("{path}.scale.{field}");
        let value = text(scale, field);
        if value.is_empty() {
            errs.push(FieldError::required(path, ""));
        } else if dotted(value, &path, errs) && !value.starts_with(&format!(".{root}.")) {
            errs.push(FieldError::invalid(path, value, format!("should be a json path under .{root}")));
        }
    }
    let selector = text(scale, "labelSelectorPath");
    let path = format!("{path}.scale.labelSelectorPath");
    let below = |root: &str| selector.starts_with(root);
    if !selector.is_empty() && dotted(selector, &path, errs) && !below(".spec.") && !below(".status.") {
        let detail = "should be a json path under either .spec or .status";
        errs.push(FieldError::invalid(path, selector, detail));
    }
}

pub(super) fn selectable(fields: &[Value], schema: &Value, path: &str, errs: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (i, field) in fields.iter().enumerate() {
        let path = format!("{path}[{i}].jsonPath");
        let value = text(field, "jsonPath");
        if value.is_empty() {
            errs.push(FieldError::required(path, ""));
            continue;
        }
        let (parts, found) = match resolve(value, schema, false) {
            Ok(found) => found,
            Err(why) => {
                errs.push(FieldError::invalid(path, value, format!("is an invalid path: {why}")));
                continue;
            }
        };
        if parts.first().is_some_and(|root| root == "metadata") {
            errs.push(FieldError::invalid(path.as_str(), value, "must not point to fields in metadata"));
        }
        if !matches!(text(found, "type"), "string" | "boolean" | "integer") {
            let detail = "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.";
            errs.push(FieldError::invalid(path.as_str(), value, detail));
        }
        if !seen.insert(parts) {
            errs.push(FieldError::duplicate(path, value));
        }
    }
    if seen.len() > MAX_SELECTABLE {
        errs.push(FieldError::too_many(path, seen.len(), MAX_SELECTABLE));
    }
}

/// Follows a path such as `.spec.a['b']` through a schema: its parts and the schema it leads to.
pub(super) fn resolve<'a>(
    path: &str,
    schema: &'a Value,
    brackets: bool,
) -> Result<(Vec<String>, &'a Value), String> {
    const END: &str = "unexpected end of JSON path";
    const NOWHERE: &str = "does not refer to a valid field";
    let (mut rest, mut at_schema, mut parts) = (path, schema, Vec::new());
    while !rest.is_empty() {
        let name = if let Some(after) = rest.strip_prefix('.') {
            let end = after.find(['.', '[', ']']).unwrap_or(after.len());
            // A delimiter right after the dot is taken for a name, as upstream's scanner does.
            let end = if end == 0 { usize::from(!after.is_empty()) } else { end };
            if end == 0 {
                return Err(END.to_owned());
            }
            rest = after.get(end..).unwrap_or_default();
            after.get(..end).unwrap_or_default().to_owned()
        } else if let Some(after) = rest.strip_prefix('[') {
            if !brackets {
                return Err("array notation is not allowed".to_owned());
            }
            let quoted = after.strip_prefix('\'').and_then(|inner| {
                let mut escaped = false;
                let end = inner.char_indices().find(|(_, c)| {
                    let ends = *c == '\'' && !escaped;
                    escaped = *c == '\\' && !escaped;
                    ends
                })?;
                Some((inner.get(..end.0)?, inner.get(end.0 + 1..)?))
            });
            let Some((name, after)) = quoted else {
                let token = after.split(['.', '[', ']']).next().unwrap_or_default();
                return Err(match token {
                    "" => END.to_owned(),
                    token => format!("expected single quoted string but got {token}"),
                });
            };
            let Some(after) = after.strip_prefix(']') else {
                return Err(match after {
                    "" => END.to_owned(),
                    after => format!("expected ] but got {after}"),
                });
            };
            rest = after;
            name.replace("\\'", "'").replace("\\\\", "\\")
        } else {
            let token = rest.split(['.', '[']).next().unwrap_or_default();
            return Err(format!("expected [ or . but got: {token}"));
        };
        let properties = at(at_schema, "properties");
        at_schema = if properties.is_object() {
            properties.get(&name).ok_or(NOWHERE)?
        } else if at(at_schema, "additionalProperties").is_object() {
            at(at_schema, "additionalProperties")
        } else {
            return Err(NOWHERE.to_owned());
        };
        parts.push(name);
    }
    Ok((parts, at_schema))
}

/// Whether a rule's field path leads anywhere in its schema.
pub(super) fn is_field_path(path: &str, schema: &Value) -> bool {
    resolve(path, schema, true).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths() {
        let schema = json!({"properties": {"spec": {"properties": {"a": {"type": "string"},
            "m": {"additionalProperties": {"type": "integer"}}}}}});
        let found = |path: &str| resolve(path, &schema, true).map(|(_, s)| text(s, "type").to_owned());
        assert_eq!(found(".spec.a"), Ok("string".to_owned()));
        assert_eq!(found(".spec['a']"), Ok("string".to_owned()));
        assert_eq!(found(".spec.m.anything"), Ok("integer".to_owned()));
        for (path, why) in [
            ("spec", "expected [ or . but got: spec"),
            (".spec.b", "does not refer to a valid field"),
            (".spec.", "unexpected end of JSON path"),
            (".spec[0]", "expected single quoted string but got 0"),
            (".spec['a", "expected single quoted string but got 'a"),
            (".spec['a'", "unexpected end of JSON path"),
        ] {
            assert_eq!(found(path), Err(why.to_owned()), "{path}");
        }
        assert!(resolve(".spec['a']", &schema, false).is_err());
    }
}
