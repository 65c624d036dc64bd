//! OpenAPI documents, made from the registry and the type table when they are first asked for: v3, an index and a
//! document for every group version, and v2, one for all. Only their compressed forms are kept.

mod custom;
mod descriptions;
mod document;
mod facts;
mod gnostic;
mod paths;
mod schema;
mod v2;

#[cfg(test)]
mod tests;

use crate::error::ApiError;
use crate::handlers::Reply;
use crate::registry::Registry;
use crate::request::Query;
use document::{About, Packed};
use http::header::{self, HeaderMap, HeaderValue};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// `api/v1` or `apis/apps/v1`.
fn root_of(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// A media type that documents have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Format {
    Json,
    Protobuf,
}

/// Name of the v2 document, beside those of v3.
const V2: &str = "v2";

/// Built documents by name and format, with the fingerprints that they were built for.
#[derive(Default)]
pub(crate) struct Documents(Mutex<HashMap<(String, Format), (String, Packed)>>);

fn failed(error: std::io::Error) -> ApiError {
    ApiError::internal(error)
}

/// Whether a path is of a document; they take time to build.
pub(crate) fn is_document(path: &str) -> bool {
    path == "/openapi/v2" || path == "/openapi/v3" || path.starts_with("/openapi/v3/")
}

/// A request for a document.
pub(crate) struct Request<'a> {
    /// Path.
    pub(crate) path: &'a str,
    /// Query.
    pub(crate) query: &'a Query,
    /// Headers: what is accepted, what is known already.
    pub(crate) headers: &'a HeaderMap,
}

impl Request<'_> {
    fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The first accepted format of a version, `None` when none is.
    fn format(&self, version: &str) -> Option<Format> {
        let accept = self.header(header::ACCEPT).filter(|a| !a.trim().is_empty()).unwrap_or("*/*");
        let protobuf = [
            format!("application/com.github.proto-openapi.spec.{version}@v1.0+protobuf"),
            format!("application/com.github.proto-openapi.spec.{version}.v1.0+protobuf"),
        ];
        accept.split(',').find_map(|clause| {
            let main = clause.split(';').next().unwrap_or_default().trim();
            match main {
                "application/json" | "application/*" | "*/*" => Some(Format::Json),
                _ if protobuf.iter().any(|p| p == main) => Some(Format::Protobuf),
                _ => None,
            }
        })
    }

    /// The answer with a document that `packed` makes when the client does not have it yet.
    fn answer(
        &self,
        hash: &str,
        (format, version): (Format, &str),
        packed: impl FnOnce() -> Result<Packed, ApiError>,
    ) -> Result<Reply, ApiError> {
        let media = match (format, version) {
            (Format::Json, _) => "application/json",
            (Format::Protobuf, "v2") => "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
            (Format::Protobuf, _) => "application/com.github.proto-openapi.spec.v3.v1.0+protobuf",
        };
        let mut reply = if super::is_known(self.headers, hash) {
            Reply::bytes(304, "", "")
        } else if super::accepts_gzip(self.headers) {
            let mut reply = Reply::bytes(200, media, packed()?.gzip);
            reply.set(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            reply
        } else {
            Reply::bytes(200, media, document::unpack(&packed()?.gzip).map_err(failed)?)
        };
        reply.set(header::VARY, HeaderValue::from_static("Accept, Accept-Encoding"));
        super::set_etag(&mut reply, hash);
        Ok(reply)
    }
}

impl Documents {
    /// Answers a document's path; `None` for others. Builds what is asked for, which takes a while.
    pub(crate) fn serve(
        &self,
        registry: &Registry,
        request: &Request<'_>,
    ) -> Option<Result<Reply, ApiError>> {
        let path = request.path;
        if path == "/openapi/v2" {
            return Some(self.v2(registry, request));
        }
        if path == "/openapi/v3" {
            return Some(Ok(self.index(registry, request)));
        }
        let name = path.strip_prefix("/openapi/v3/")?;
        let about = document::all(registry).remove(name)?;
        Some(self.version(registry, request, name, &about))
    }

    /// A document in its compressed form, built when it is asked for first, and again when the definitions that it
    /// describes have changed. One is built at a time, since that takes memory.
    fn packed(
        &self,
        registry: &Registry,
        (name, hash): (&str, &str),
        format: Format,
        build: impl FnOnce() -> std::io::Result<Packed>,
    ) -> Result<Packed, ApiError> {
        let mut built = self.0.lock();
        let key = (name.to_owned(), format);
        if let Some((of, packed)) = built.get(&key)
            && of == hash
        {
            return Ok(packed.clone());
        }
        let packed = build().map_err(failed)?;
        built.insert(key, (hash.to_owned(), packed.clone()));
        // Documents of groups that are served no more.
        let all = document::all(registry);
        built.retain(|(name, _), _| name == V2 || all.contains_key(name));
        Ok(packed)
    }

    fn index(&self, registry: &Registry, request: &Request<'_>) -> Reply {
        let paths: Map<String, Value> = document::all(registry)
            .iter()
            .map(|(name, about)| {
                let hash = document::tag(name, document::definitions(registry, about));
                (name.clone(), json!({"serverRelativeURL": url(name, &hash)}))
            })
            .collect();
        let body = json!({"paths": paths}).to_string();
        let hash = document::fingerprint(body.as_bytes());
        let mut reply = if super::is_known(request.headers, &hash) {
            Reply::bytes(304, "", "")
        } else {
            Reply::bytes(200, "application/json", body)
        };
        super::set_etag(&mut reply, &hash);
        reply
    }

    fn v2(&self, registry: &Registry, request: &Request<'_>) -> Result<Reply, ApiError> {
        let format = request.format(V2).ok_or_else(|| ApiError::not_acceptable(SERVED_V2))?;
        let hash = document::tag(V2, document::all_definitions(registry));
        request.answer(&hash, (format, V2), || {
            self.packed(registry, (V2, &hash), format, || match format {
                Format::Json => document::v2_json(registry),
                Format::Protobuf => document::v2_protobuf(registry),
            })
        })
    }

    /// A document of v3. An address with its hash never changes what it leads to, so such an answer may be kept; one
    /// with an old hash leads to the present one.
    fn version(
        &self,
        registry: &Registry,
        request: &Request<'_>,
        name: &str,
        about: &About,
    ) -> Result<Reply, ApiError> {
        let format = request.format("v3").ok_or_else(|| ApiError::not_acceptable(SERVED_V3))?;
        let asked = request.query.text("hash");
        let hash = document::tag(name, document::definitions(registry, about));
        if !asked.is_empty() && asked != hash {
            let mut reply = Reply::text(301, "");
            let place = HeaderValue::from_str(&url(name, &hash)).map_err(ApiError::internal)?;
            reply.set(header::LOCATION, place);
            return Ok(reply);
        }
        let mut reply = request.answer(&hash, (format, "v3"), || {
            self.packed(registry, (name, &hash), format, || match format {
                Format::Json => document::v3_json(registry, about),
                Format::Protobuf => document::v3_protobuf(registry, about),
            })
        })?;
        if !asked.is_empty() {
            reply.set(header::CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
            let year = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(365 * 24);
            let expires = year.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
            if let Ok(value) = HeaderValue::from_str(&expires) {
                reply.set(header::EXPIRES, value);
            }
        }
        Ok(reply)
    }
}

const SERVED_V2: &[&str] =
    &["application/json", "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"];
const SERVED_V3: &[&str] =
    &["application/json", "application/com.github.proto-openapi.spec.v3@v1.0+protobuf"];

fn url(name: &str, hash: &str) -> String {
    format!("/openapi/v3/{name}?hash={hash}")
}
