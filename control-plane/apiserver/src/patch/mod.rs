//! Patches: JSON patch, JSON merge patch, strategic merge patch.

pub mod apply;
mod strategic;

use serde_json::{Map, Value};

use crate::codec::{self, Decoded, FieldValidation, Node};
use crate::error::{ApiError, FieldError, quote};
use crate::gvk::GroupVersionKind;
use crate::schema::TypeSchema;

/// A JSON patch may have this many operations.
const MAX_OPERATIONS: usize = 10_000;

/// Bytes that the copy operations of one JSON patch may add, as upstream limits them.
const MAX_COPIED: usize = 3 << 20;

/// The patch formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchKind {
    /// `application/json-patch+json`, RFC 6902.
    Json,
    /// `application/merge-patch+json`, RFC 7386.
    Merge,
    /// `application/strategic-merge-patch+json`.
    StrategicMerge,
    /// `application/apply-patch+yaml`: server-side apply, which is not a patch of this module.
    Apply,
}

impl PatchKind {
    /// The kind of a request's content type (parameters are ignored), none when it is no patch.
    #[must_use]
    pub fn from_content_type(content_type: &str) -> Option<Self> {
        match content_type.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => Some(Self::Json),
            "application/merge-patch+json" => Some(Self::Merge),
            "application/strategic-merge-patch+json" => Some(Self::StrategicMerge),
            "application/apply-patch+yaml" => Some(Self::Apply),
            _ => None,
        }
    }
}

/// Applies a patch to an object and drops fields that the schema does not know.
///
/// # Errors
/// As [`apply_checked`].
pub fn apply(kind: PatchKind, patch: &[u8], current: &Value, schema: &TypeSchema) -> Result<Value, ApiError> {
    apply_checked(kind, patch, current, schema, FieldValidation::Ignore).map(|d| d.object)
}

/// Applies a patch to an object; the outcome is in canonical form, without new defaults. What `field_validation` asks
/// for is done about unknown fields in the outcome and repeated ones in the patch.
///
/// # Errors
/// With upstream's status and text: 400 for a malformed patch, 422 when it cannot be applied or its outcome is no
/// object of the type, 500 for a strategic merge patch whose directives or merge keys do not fit.
pub fn apply_checked(
    kind: PatchKind,
    patch: &[u8],
    current: &Value,
    schema: &TypeSchema,
    field_validation: FieldValidation,
) -> Result<Decoded, ApiError> {
    let mut strict = Vec::new();
    let text = |name: &str| current.get(name).and_then(Value::as_str).unwrap_or_default();
    let expected = GroupVersionKind::from_api_version(text("apiVersion"), text("kind"));
    // What the error shows as the bad value.
    let (patched, shown) = match kind {
        PatchKind::Json => {
            let patched = json_patch(patch, current)?;
            let shown = patched.to_string();
            (patched, shown)
        }
        PatchKind::Merge => {
            let patch = parse_object(patch, &mut strict)
                .map_err(|e| ApiError::bad_request(format!("error decoding patch: {e}")))?;
            let mut patched = current.clone();
            json_patch::merge(&mut patched, &Value::Object(patch));
            let shown = patched.to_string();
            (patched, shown)
        }
        PatchKind::StrategicMerge => {
            let patch = parse_object(patch, &mut strict).map_err(ApiError::bad_request)?;
            let shown = go_map(&patch);
            let original = current.as_object().cloned().unwrap_or_default();
            (Value::Object(strategic::merge(original, patch, schema)?), shown)
        }
        PatchKind::Apply => return Err(ApiError::unsupported_patch_type()),
    };
    let wrong =
        |why: &str| ApiError::invalid("", "", "", &[FieldError::invalid("patch", shown.as_str(), why)]);
    let decoded = if kind == PatchKind::StrategicMerge {
        codec::decode_unstructured(patched, schema)
    } else {
        codec::same_kind(&patched, &expected).map_err(|e| wrong(&e))?;
        codec::decode_value(patched, schema)
    };
    let (mut object, unknown) = decoded.map_err(|e| wrong(&e))?;
    codec::set_kind(&mut object, &expected);
    strict.extend(unknown);
    match field_validation {
        FieldValidation::Ignore => strict.clear(),
        FieldValidation::Warn => {}
        FieldValidation::Strict if strict.is_empty() => {}
        FieldValidation::Strict => {
            return Err(wrong(&format!("strict decoding error: {}", strict.join(", "))));
        }
    }
    Ok(Decoded { object, warnings: strict })
}

fn json_patch(patch: &[u8], current: &Value) -> Result<Value, ApiError> {
    let value = codec::parse_json(patch).map_err(ApiError::bad_request)?;
    let count = match &value {
        Value::Array(operations) => operations.len(),
        other => {
            let found = Node::from_value(other.clone()).go_kind();
            let message = format!("json: cannot unmarshal {found} into Go value of type jsonpatch.Patch");
            return Err(ApiError::bad_request(message));
        }
    };
    if count > MAX_OPERATIONS {
        return Err(ApiError::request_too_large(MAX_OPERATIONS));
    }
    let operations: json_patch::Patch =
        serde_json::from_value(value).map_err(|_| ApiError::unprocessable())?;
    let mut patched = current.clone();
    let mut copied = 0;
    for operation in &operations.0 {
        if let json_patch::PatchOperation::Copy(copy) = operation {
            // A few copies of copies would fill the memory.
            copied += copy.from.resolve(&patched).map_or(0, size);
            if copied > MAX_COPIED {
                return Err(ApiError::unprocessable());
            }
        }
        json_patch::patch(&mut patched, std::slice::from_ref(operation))
            .map_err(|_| ApiError::unprocessable())?;
    }
    Ok(patched)
}

/// Bytes of a value as JSON, roughly.
fn size(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len() + 2,
        Value::Array(items) => 2 + items.iter().map(|item| 1 + size(item)).sum::<usize>(),
        Value::Object(map) => 2 + map.iter().map(|(key, item)| 4 + key.len() + size(item)).sum::<usize>(),
        _ => 4,
    }
}

/// Reads a patch that is an object; repeated fields are noted.
fn parse_object(patch: &[u8], strict: &mut Vec<String>) -> Result<Map<String, Value>, String> {
    let node = codec::parse_node(patch)?;
    match node {
        Node::Object(_) => {}
        Node::Null => return Ok(Map::new()),
        other => {
            let found = other.go_kind();
            return Err(format!(
                "json: cannot unmarshal {found} into Go value of type map[string]interface {{}}"
            ));
        }
    }
    repeated(&node, &mut String::new(), strict);
    match node.into_value() {
        Value::Object(map) => Ok(map),
        _ => Ok(Map::new()),
    }
}

fn repeated(node: &Node, path: &mut String, out: &mut Vec<String>) {
    let length = path.len();
    match node {
        Node::Object(members) => {
            let mut seen = std::collections::HashSet::with_capacity(members.len());
            for (name, value) in members {
                path.push('.');
                path.push_str(name);
                if !seen.insert(name.as_str()) && out.len() < 100 {
                    out.push(format!("duplicate field {}", quote(path.trim_start_matches('.'))));
                }
                repeated(value, path, out);
                path.truncate(length);
            }
        }
        Node::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                path.push_str(&format!("[{i}]"));
                repeated(item, path, out);
                path.truncate(length);
            }
        }
        _ => {}
    }
}

/// A value as Go's `%v` prints it.
pub(crate) fn go_value(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(s) => s.clone(),
        Value::Array(items) => {
            format!("[{}]", items.iter().map(go_value).collect::<Vec<_>>().join(" "))
        }
        Value::Object(map) => go_map(map),
        other => other.to_string(),
    }
}

/// A map as Go's `%v` prints it: `map[a:1 b:map[c:x]]`, keys sorted.
fn go_map(map: &Map<String, Value>) -> String {
    let mut keys: Vec<_> = map.iter().collect();
    keys.sort_by_key(|(k, _)| *k);
    let members: Vec<String> = keys.into_iter().map(|(k, v)| format!("{k}:{}", go_value(v))).collect();
    format!("map[{}]", members.join(" "))
}

#[cfg(test)]
mod tests;
