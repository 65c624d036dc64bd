//! The handlers' view of the schema-driven parts: decoding, patches, defaults, validation by kind.

pub use crate::codec::{Decoded, FieldValidation};
pub use crate::patch::PatchKind;

use crate::custom::Version;
use crate::error::{ApiError, FieldError};
use crate::gvk::GroupVersionKind;
use crate::registry::Resource;
use crate::schema::{self, TypeSchema};
use crate::{codec, defaults, patch, validation};
use serde_json::Value;

/// The type of a kind.
pub fn schema_of(gvk: &GroupVersionKind) -> Result<&'static TypeSchema, ApiError> {
    schema::by_gvk(gvk).ok_or_else(|| ApiError::internal(format!("no schema for {gvk}")))
}

/// Reads a server-side apply configuration. Repeated names are told or refused as `validation` says.
pub fn decode_configuration(body: &[u8], validation: FieldValidation) -> Result<Decoded, ApiError> {
    codec::decode_configuration(body, validation)
}

/// What is known of the objects of a resource: a built-in kind has its type and rules in this program, a custom one
/// in its definition.
#[derive(Debug)]
pub(crate) enum Model<'a> {
    BuiltIn(GroupVersionKind),
    Custom(&'a Version),
}

impl<'a> Model<'a> {
    pub(crate) fn of(resource: &'a Resource) -> Self {
        match resource.custom.as_deref() {
            Some(version) => Model::Custom(version),
            None => Model::BuiltIn(resource.gvk()),
        }
    }

    pub(crate) fn gvk(&self) -> GroupVersionKind {
        match self {
            Model::BuiltIn(gvk) => gvk.clone(),
            Model::Custom(version) => {
                GroupVersionKind::from_api_version(&version.api_version(), &version.definition().kind)
            }
        }
    }

    /// The type.
    pub(crate) fn schema(&self) -> Result<&'a TypeSchema, ApiError> {
        match self {
            Model::BuiltIn(gvk) => schema_of(gvk),
            Model::Custom(version) => Ok(&version.types),
        }
    }

    /// Decodes a body.
    pub(crate) fn decode(
        &self,
        content_type: Option<&str>,
        body: &[u8],
        validation: FieldValidation,
    ) -> Result<Decoded, ApiError> {
        match self {
            Model::BuiltIn(gvk) => codec::decode_body(content_type, body, gvk, schema_of(gvk)?, validation),
            Model::Custom(version) => version.decode_body(content_type, body, validation),
        }
    }

    /// Decodes what was computed as if it had been sent.
    pub(crate) fn decode_value(&self, value: Value) -> Result<(Value, Vec<String>), String> {
        match self {
            Model::BuiltIn(gvk) => {
                codec::decode_value(value, schema_of(gvk).map_err(|error| error.to_string())?)
            }
            Model::Custom(version) => version.decode_value(value),
        }
    }

    /// Applies a patch; the outcome is decoded as a body would be.
    pub(crate) fn apply_patch(
        &self,
        kind: PatchKind,
        body: &[u8],
        current: &Value,
        validation: FieldValidation,
    ) -> Result<Decoded, ApiError> {
        match self {
            Model::BuiltIn(gvk) => patch::apply_checked(kind, body, current, schema_of(gvk)?, validation),
            Model::Custom(version) => {
                let decode = |value| version.decode_value(value);
                patch::apply_decoded(kind, body, current, None, validation, &decode)
            }
        }
    }

    /// Makes an object what it is after it was stored.
    pub(crate) fn as_stored(&self, object: &mut Value) {
        // Definitions of custom resources, and these, are stored as JSON, which keeps all.
        if let Model::BuiltIn(gvk) = self
            && gvk.group != crate::custom::GROUP
            && let Some(schema) = schema::by_gvk(gvk)
        {
            codec::as_stored(object, schema);
        }
    }

    /// Sets defaults.
    pub(crate) fn apply_defaults(&self, object: &mut Value) {
        match self {
            Model::BuiltIn(gvk) => defaults::apply(gvk, object),
            Model::Custom(version) => version.apply_defaults(object),
        }
    }

    /// Checks a new object.
    pub(crate) fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        match self {
            Model::BuiltIn(gvk) => validation::create(gvk, object),
            Model::Custom(version) => version.validate_create(object),
        }
    }

    /// Checks a changed object.
    pub(crate) fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        match self {
            Model::BuiltIn(gvk) => validation::update(gvk, new, old),
            Model::Custom(version) => version.validate_update(new, old),
        }
    }

    /// Checks a changed status.
    pub(crate) fn validate_status(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        match self {
            Model::BuiltIn(gvk) => validation::update_status(gvk, new, old),
            Model::Custom(version) => version.validate_status(new, old),
        }
    }
}

/// 422 about an object. Custom ones are called by the kind that they claim to be.
pub(crate) fn invalid(resource: &Resource, name: &str, object: &Value, errors: &[FieldError]) -> ApiError {
    let kind = match resource.custom {
        Some(_) => object.get("kind").and_then(Value::as_str).unwrap_or_default(),
        None => resource.kind(),
    };
    ApiError::invalid(resource.error_group(), kind, name, errors)
}
