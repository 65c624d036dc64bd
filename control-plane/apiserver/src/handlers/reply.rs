//! Answers before they become HTTP responses.

use crate::cache::FrameKey;
use crate::error::ApiError;
use crate::object::Encoded;
use crate::registry::Resource;
use crate::request::{Accepted, Format, View};
use crate::table::{self, IncludeObject};
use bytes::Bytes;
use futures::Stream;
use http::header::{HeaderName, HeaderValue};
use serde_json::Value;
use std::pin::Pin;

/// The body of an answer.
pub enum ReplyBody {
    /// All of it.
    Full(Bytes),
    /// Parts of a long answer, made when the client has taken the ones before.
    Chunks(Box<dyn Iterator<Item = Bytes> + Send>),
    /// Frames of a watch.
    Stream(Pin<Box<dyn Stream<Item = Bytes> + Send>>),
}

/// An answer.
pub struct Reply {
    /// HTTP status.
    pub code: u16,
    /// Media type.
    pub content_type: &'static str,
    /// Texts for `Warning` headers.
    pub warnings: Vec<String>,
    /// Seconds for `Retry-After`.
    pub retry_after: Option<u32>,
    /// Other headers; they replace what every answer has.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Body.
    pub body: ReplyBody,
}

const JSON: &str = "application/json";

impl Reply {
    /// Bytes of a media type.
    pub fn bytes(code: u16, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        Reply {
            code,
            content_type,
            warnings: Vec::new(),
            retry_after: None,
            headers: Vec::new(),
            body: ReplyBody::Full(body.into()),
        }
    }

    /// Plain text.
    pub fn text(code: u16, body: impl Into<Bytes>) -> Self {
        Self::bytes(code, "text/plain; charset=utf-8", body)
    }

    /// A value in the accepted format.
    pub fn value(code: u16, value: &Value, accepted: Accepted) -> Self {
        match accepted.format {
            Format::Yaml => match serde_norway::to_string(value) {
                Ok(text) => Self::bytes(code, "application/yaml", text),
                Err(error) => Self::error(&ApiError::internal(error), Accepted::JSON),
            },
            Format::Protobuf => match crate::codec::encode_protobuf(value) {
                Some(body) => Self::bytes(code, accepted.format.media_type(), body),
                // What has no protobuf form goes out as the default.
                None => Self::value(code, value, Accepted { format: Format::Json, ..accepted }),
            },
            Format::Json => {
                let body = if accepted.pretty {
                    serde_json::to_vec_pretty(value)
                } else {
                    serde_json::to_vec(value)
                };
                let mut body = body.unwrap_or_default();
                if !accepted.pretty {
                    body.push(b'\n');
                }
                Self::bytes(code, JSON, body)
            }
        }
    }

    /// A Status of failure.
    pub fn error(error: &ApiError, accepted: Accepted) -> Self {
        let accepted = Accepted { view: View::Object, ..accepted };
        let mut reply = Self::value(error.code(), &error.to_status(), accepted);
        reply.retry_after = error.retry_after();
        reply
    }

    /// An object in the accepted form.
    pub fn object(
        code: u16,
        resource: &Resource,
        encoded: &Encoded,
        accepted: Accepted,
        include: IncludeObject,
    ) -> Self {
        let Accepted { format, view, .. } = accepted;
        let body = match accepted {
            // People's and YAML answers are made from a value.
            Accepted { pretty: true, format: Format::Json, .. } | Accepted { format: Format::Yaml, .. } => {
                None
            }
            _ => super::view::append_object(resource, encoded, FrameKey { format, view, include }, true),
        };
        match body {
            Some(mut body) => {
                if format == Format::Json {
                    body.push(b'\n');
                }
                Self::bytes(code, format.media_type(), body)
            }
            None => Self::of_value(code, resource, &encoded.parse(), accepted, include),
        }
    }

    /// An object given as a value.
    pub fn of_value(
        code: u16,
        resource: &Resource,
        object: &Value,
        accepted: Accepted,
        include: IncludeObject,
    ) -> Self {
        match accepted.view {
            View::Object => Self::value(code, object, accepted),
            View::Partial(version) => Self::value(code, &table::partial(object, version), accepted),
            View::Table(version) => {
                let row = table::row(&resource.table, object, include, version, jiff::Timestamp::now());
                let value = serde_json::json!({"kind": "Table",
                    "apiVersion": format!("meta.k8s.io/{version}"),
                    "metadata": {"resourceVersion": crate::object::meta(object, "resourceVersion")},
                    "columnDefinitions": resource.table.definitions(), "rows": [row]});
                Self::value(code, &value, accepted)
            }
        }
    }

    /// Sets a header.
    pub fn set(&mut self, name: HeaderName, value: HeaderValue) {
        self.headers.retain(|(present, _)| *present != name);
        self.headers.push((name, value));
    }

    /// With more warnings.
    pub fn warn(mut self, warnings: Vec<String>) -> Self {
        self.warnings.extend(warnings);
        self
    }
}
