//! Bodies of custom resources. What upstream's decoder does with built-in types by their Go structs is done by the
//! schema here: metadata is brought into canonical form, unknown fields and nulls are removed. Wrong types stay: they
//! are the validation's.

use super::{Definition, Version};
use crate::codec::{self, Decoded, FieldValidation};
use crate::error::{ApiError, quote};
use crate::gvk::GroupVersionKind;
use crate::structural;
use serde_json::Value;

/// What the Go type is called for which there is no protobuf form.
const NO_PROTOBUF: &str = "object *unstructured.Unstructured does not implement the protobuf marshalling interface \
                           and cannot be encoded to a protobuf message";

impl Definition {
    /// Brings an object into the form of its version; what was unknown in it (`unknown field "spec.x"`). With
    /// `lenient` what is malformed is dropped, as from objects of older servers.
    ///
    /// # Errors
    /// What is malformed, in upstream's words.
    pub(super) fn coerce(&self, object: &mut Value, lenient: bool) -> Result<Vec<String>, String> {
        let mut unknown = Vec::new();
        if let Some(metadata) = object.get("metadata").cloned() {
            match structural::decode_metadata(metadata, "metadata") {
                Ok((metadata, strict)) => {
                    unknown.extend(strict);
                    object["metadata"] = metadata;
                }
                Err(_) if lenient => object["metadata"] = repaired(object.get("metadata")),
                Err(why) => return Err(why),
            }
        }
        let text = |name: &str| object.get(name).and_then(Value::as_str).unwrap_or_default();
        let facts = self.version_of(text("apiVersion")).filter(|_| text("kind") == &*self.kind);
        let Some(facts) = facts else { return Ok(unknown) };
        if !self.preserve_all {
            let gone = structural::prune(object, &facts.schema);
            unknown.extend(gone.iter().map(|path| format!("unknown field {}", quote(path))));
            // The metadata is not the schema's.
            let metadata = object.get_mut("metadata").map(Value::take);
            facts.schema.drop_nulls(object);
            if let Some(metadata) = metadata {
                object["metadata"] = metadata;
            }
        }
        let mut embedded = Vec::new();
        structural::coerce_embedded(object, &facts.schema, lenient, &mut embedded)
            .map_err(|error| error.to_string())?;
        embedded.sort();
        unknown.extend(embedded);
        Ok(unknown)
    }

    /// Sets the defaults of the object's version.
    pub(super) fn apply_defaults(&self, object: &mut Value) {
        let text = |name: &str| object.get(name).and_then(Value::as_str).unwrap_or_default();
        if text("kind") != &*self.kind {
            return;
        }
        if let Some(facts) = self.version_of(text("apiVersion")) {
            facts.schema.apply_defaults(object);
        }
    }
}

/// Metadata of which the members are kept that are well-formed one by one.
fn repaired(metadata: Option<&Value>) -> Value {
    let members = metadata.and_then(Value::as_object).into_iter().flatten();
    let mut out = serde_json::Map::new();
    for (name, value) in members {
        let one = serde_json::json!({ (name): value });
        if let Ok((Value::Object(one), _)) = structural::decode_metadata(one, "") {
            out.extend(one);
        }
    }
    Value::Object(out)
}

impl Version {
    /// Decodes a request body.
    ///
    /// # Errors
    /// 415 for an unknown content type, 400 for what is malformed, of another version, or (strictly) unknown.
    pub(crate) fn decode_body(
        &self,
        content_type: Option<&str>,
        body: &[u8],
        validation: FieldValidation,
    ) -> Result<Decoded, ApiError> {
        let kind = &*self.definition().kind;
        let unrecognized = |why: String| codec::unrecognized(kind, &why, body);
        let node = codec::untyped(content_type, body, kind)?;
        let actual = match &node {
            Some(node) => codec::kind_of(node).map_err(unrecognized)?,
            None => GroupVersionKind::from_api_version(&self.api_version(), kind),
        };
        let handled = |why: &str| {
            let version = quote(&actual.version);
            ApiError::bad_request(format!(
                "{} in version {version} cannot be handled as a {kind}: {why}",
                actual.kind
            ))
        };
        let Some(node) = node else { return Err(handled(NO_PROTOBUF)) };
        if actual.kind.is_empty() {
            let text = String::from_utf8_lossy(body);
            return Err(unrecognized(format!("Object 'Kind' is missing in '{text}'")));
        }
        let mut strict = Vec::new();
        codec::repeated(&node, &mut String::new(), &mut strict);
        let mut object = node.into_value();
        strict.extend(self.definition().coerce(&mut object, false).map_err(|why| handled(&why))?);
        let warnings = match validation {
            FieldValidation::Ignore => Vec::new(),
            FieldValidation::Warn => strict,
            FieldValidation::Strict if strict.is_empty() => strict,
            FieldValidation::Strict => {
                return Err(handled(&format!("strict decoding error: {}", strict.join(", "))));
            }
        };
        self.definition().apply_defaults(&mut object);
        if actual.api_version() != self.api_version() {
            return Err(ApiError::bad_request(format!(
                "the API version in the data ({}) does not match the expected API version ({})",
                actual.api_version(),
                self.api_version()
            )));
        }
        Ok(Decoded { object, warnings })
    }

    /// The outcome of a patch or of an apply as if it had been sent; and what was unknown in it.
    ///
    /// # Errors
    /// What is malformed, in Go's words.
    pub(crate) fn decode_value(&self, mut value: Value) -> Result<(Value, Vec<String>), String> {
        if codec::is_too_deep(&value) {
            return Err(codec::TOO_DEEP.to_owned());
        }
        let unknown = self.definition().coerce(&mut value, false)?;
        Ok((value, unknown))
    }

    /// Sets the defaults of the object's version.
    pub(crate) fn apply_defaults(&self, object: &mut Value) {
        self.definition().apply_defaults(object);
    }
}
