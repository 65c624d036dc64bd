//! The handlers' view of the schema-driven parts: decoding, patches, defaults, validation by kind.

pub use crate::codec::{Decoded, FieldValidation};
pub use crate::patch::PatchKind;

use crate::error::{ApiError, FieldError};
use crate::gvk::GroupVersionKind;
use crate::schema::{self, TypeSchema};
use crate::{codec, defaults, patch, validation};
use serde_json::Value;

/// The type of a kind.
pub fn schema_of(gvk: &GroupVersionKind) -> Result<&'static TypeSchema, ApiError> {
    schema::by_gvk(gvk).ok_or_else(|| ApiError::internal(format!("no schema for {gvk}")))
}

/// Decodes a body of an expected kind.
pub fn decode(
    content_type: Option<&str>,
    body: &[u8],
    expected: &GroupVersionKind,
    validation: FieldValidation,
) -> Result<Decoded, ApiError> {
    codec::decode_body(content_type, body, expected, schema_of(expected)?, validation)
}

/// Reads a server-side apply configuration. Repeated names are told or refused as `validation` says.
pub fn decode_configuration(body: &[u8], validation: FieldValidation) -> Result<Decoded, ApiError> {
    codec::decode_configuration(body, validation)
}

/// Applies a patch; the outcome is decoded as a body would be.
pub fn apply_patch(
    kind: PatchKind,
    body: &[u8],
    current: &Value,
    gvk: &GroupVersionKind,
    validation: FieldValidation,
) -> Result<Decoded, ApiError> {
    patch::apply_checked(kind, body, current, schema_of(gvk)?, validation)
}

/// Makes an object what it is after it was stored.
pub fn as_stored(gvk: &GroupVersionKind, object: &mut Value) {
    // Definitions of custom resources are stored as JSON, which keeps all.
    if gvk.group != "apiextensions.k8s.io"
        && let Some(schema) = schema::by_gvk(gvk)
    {
        codec::as_stored(object, schema);
    }
}

/// Sets defaults.
pub fn apply_defaults(gvk: &GroupVersionKind, object: &mut Value) {
    defaults::apply(gvk, object);
}

/// Checks a new object.
pub fn validate_create(gvk: &GroupVersionKind, object: &Value) -> Vec<FieldError> {
    validation::create(gvk, object)
}

/// Checks a changed object.
pub fn validate_update(gvk: &GroupVersionKind, new: &Value, old: &Value) -> Vec<FieldError> {
    validation::update(gvk, new, old)
}

/// Checks a changed status.
pub fn validate_status(gvk: &GroupVersionKind, new: &Value, old: &Value) -> Vec<FieldError> {
    validation::update_status(gvk, new, old)
}
