//! Patches: JSON patch, JSON merge patch, strategic merge patch.

pub mod apply;
mod json;
mod strategic;

use serde_json::{Map, Value};

use crate::codec::{self, Decoded, FieldValidation, Node};
use crate::error::{ApiError, FieldError};
use crate::gvk::GroupVersionKind;
use crate::schema::TypeSchema;

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
    let text = |name: &str| current.get(name).and_then(Value::as_str).unwrap_or_default();
    let expected = GroupVersionKind::from_api_version(text("apiVersion"), text("kind"));
    let decode = |patched: Value| {
        let (mut object, unknown) = if kind == PatchKind::StrategicMerge {
            codec::decode_unstructured(patched, schema)?
        } else {
            codec::same_kind(&patched, &expected)?;
            codec::decode_value(patched, schema)?
        };
        codec::set_kind(&mut object, &expected);
        Ok((object, unknown))
    };
    apply_decoded(kind, patch, current, Some(schema), field_validation, &decode)
}

/// Decodes the outcome of a patch: the object, and what is unknown in it.
pub(crate) type Decode<'a> = dyn Fn(Value) -> Result<(Value, Vec<String>), String> + 'a;

/// As [`apply_checked`] for any way to decode the outcome. Without a schema there is no strategic merge patch.
pub(crate) fn apply_decoded(
    kind: PatchKind,
    patch: &[u8],
    current: &Value,
    schema: Option<&TypeSchema>,
    field_validation: FieldValidation,
    decode: &Decode<'_>,
) -> Result<Decoded, ApiError> {
    let mut strict = Vec::new();
    // What the error shows as the bad value.
    let (patched, shown) = match kind {
        PatchKind::Json => {
            let patched = json::patch(patch, current, field_validation, &mut strict)?;
            let shown = patched.to_string();
            (patched, shown)
        }
        PatchKind::Merge => {
            let invalid = || ApiError::bad_request("Invalid JSON Patch");
            let patch = parse_object(patch, &mut strict)
                .map_err(|e| match field_validation {
                    // Without checks the patch is read at another place.
                    FieldValidation::Ignore => invalid(),
                    _ => ApiError::bad_request(format!("error decoding patch: {e}")),
                })?
                .ok_or_else(invalid)?;
            let mut patched = current.clone();
            json_patch::merge(&mut patched, &Value::Object(patch));
            let shown = patched.to_string();
            (patched, shown)
        }
        PatchKind::StrategicMerge => {
            let patch = parse_object(patch, &mut strict).map_err(ApiError::bad_request)?.unwrap_or_default();
            let shown = go_map(&patch);
            let original = current.as_object().cloned().unwrap_or_default();
            let schema = schema.ok_or_else(ApiError::unsupported_patch_type)?;
            (Value::Object(strategic::merge(original, patch, schema)?), shown)
        }
        PatchKind::Apply => return Err(ApiError::unsupported_patch_type()),
    };
    let wrong =
        |why: &str| ApiError::invalid("", "", "", &[FieldError::invalid("patch", shown.as_str(), why)]);
    let (object, unknown) = decode(patched).map_err(|e| wrong(&e))?;
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

/// Reads a patch that is an object, or null; repeated fields are noted.
fn parse_object(patch: &[u8], strict: &mut Vec<String>) -> Result<Option<Map<String, Value>>, String> {
    let node = codec::parse_node(patch)?;
    match node {
        Node::Object(_) => {}
        Node::Null => return Ok(None),
        other => {
            let found = other.go_kind();
            return Err(format!(
                "json: cannot unmarshal {found} into Go value of type map[string]interface {{}}"
            ));
        }
    }
    codec::repeated(&node, &mut String::new(), strict);
    match node.into_value() {
        Value::Object(map) => Ok(Some(map)),
        _ => Ok(None),
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
mod roundtrip;
#[cfg(test)]
mod tests;
