//! Objects in other versions of their definition, and as they are stored. Source: `apiserver/conversion` and
//! `customresource_handler.go` of apiextensions-apiserver.

use super::definition::Conversion;
use super::{Definition, Version};
use crate::error::ApiError;
use crate::object;
use crate::schema::TypeSchema;
use serde_json::Value;

impl Definition {
    /// Makes an object one of another version.
    fn convert(&self, object: &mut Value, api_version: &str) -> Result<(), ApiError> {
        if object.get("apiVersion").and_then(Value::as_str) == Some(api_version) {
            return Ok(());
        }
        match self.conversion {
            Conversion::None => {
                object["apiVersion"] = api_version.into();
                Ok(())
            }
            Conversion::Webhook => Err(ApiError::internal(format!(
                "conversion webhook for {api_version}, Kind={} failed: conversion webhooks are not called",
                self.kind
            ))),
        }
    }
}

impl Version {
    /// The object in another version of the definition, with its type; none when there is no such version.
    pub(crate) fn converted(&self, object: &Value, api_version: &str) -> Option<(Value, &TypeSchema)> {
        let facts = self.definition().version_of(api_version)?;
        let mut out = object.clone();
        if let Some(map) = out.as_object_mut() {
            map.entry("kind").or_insert_with(|| Value::from(&*self.definition().kind));
        }
        self.definition().convert(&mut out, api_version).ok()?;
        self.definition().coerce(&mut out, true).ok()?;
        Some((out, &facts.types))
    }

    /// The bytes that are stored of an object of this version.
    pub(crate) fn to_stored(&self, object: &Value) -> Result<Vec<u8>, ApiError> {
        let stored = self.definition().stored_api_version();
        let head = object::head(&self.definition().kind, &stored);
        if self.is_stored() {
            return Ok(object::encode(&head, object));
        }
        let mut object = object.clone();
        self.definition().convert(&mut object, &stored)?;
        self.definition().coerce(&mut object, true).map_err(ApiError::internal)?;
        Ok(object::encode(&head, &object))
    }

    /// Makes an object that was read one of this version, with the defaults of its own and of this version.
    pub(crate) fn read(&self, object: &mut Value) -> Result<(), ApiError> {
        let definition = self.definition();
        let wanted = self.api_version();
        definition.coerce(object, true).map_err(ApiError::internal)?;
        definition.apply_defaults(object);
        if object.get("apiVersion").and_then(Value::as_str) != Some(&wanted) {
            definition.convert(object, &wanted)?;
            definition.coerce(object, true).map_err(ApiError::internal)?;
            definition.apply_defaults(object);
        }
        // Objects of old servers have none.
        object::meta_mut(object).entry("generation").or_insert_with(|| 1.into());
        Ok(())
    }
}
