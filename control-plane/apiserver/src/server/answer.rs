//! Answers as HTTP responses: headers, compression.

use crate::handlers::{Reply, ReplyBody};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::StreamExt;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use std::convert::Infallible;
use std::io::Write;

/// Body of an answer; never fails.
pub type AnswerBody = UnsyncBoxBody<Bytes, Infallible>;

/// Answers larger than this are compressed for clients that accept it, in bytes.
const GZIP_FROM: usize = 128 << 10;

fn gzip(bytes: &Bytes) -> Option<Bytes> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 6), Compression::fast());
    encoder.write_all(bytes).ok()?;
    encoder.finish().ok().map(Bytes::from)
}

/// The response to a request with these headers.
pub(super) fn render(request: &HeaderMap, reply: Reply) -> Response<AnswerBody> {
    let mut response = Response::builder()
        .status(StatusCode::from_u16(reply.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR));
    if let Some(headers) = response.headers_mut() {
        let audit = request
            .get("audit-id")
            .cloned()
            .filter(|id| id.len() <= 64)
            .or_else(|| HeaderValue::from_str(&uuid::Uuid::new_v4().to_string()).ok());
        if let Some(audit) = audit {
            headers.insert("audit-id", audit);
        }
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        if !reply.content_type.is_empty() {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(reply.content_type));
        }
        for warning in &reply.warnings {
            let text = warning.replace('\\', "\\\\").replace('"', "\\\"").replace(['\n', '\r'], " ");
            if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
                headers.append(header::WARNING, value);
            }
        }
        if let Some(seconds) = reply.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
    }
    let body = match reply.body {
        ReplyBody::Stream(stream) => {
            StreamBody::new(stream.map(|bytes| Ok(Frame::data(bytes)))).boxed_unsync()
        }
        ReplyBody::Full(bytes) => {
            let accepts = request
                .get(header::ACCEPT_ENCODING)
                .and_then(|value| value.to_str().ok())
                .is_some_and(|value| value.split(',').any(|part| part.trim().starts_with("gzip")));
            let packed = if accepts && bytes.len() >= GZIP_FROM { gzip(&bytes) } else { None };
            if packed.is_some()
                && let Some(headers) = response.headers_mut()
            {
                headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
                headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
            }
            Full::new(packed.unwrap_or(bytes)).boxed_unsync()
        }
    };
    // The parts were made here and are valid.
    response.body(body).unwrap_or_default()
}
