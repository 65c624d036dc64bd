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

/// Compresses parts as they are taken.
struct Gzip<I> {
    parts: I,
    /// `None` after the end.
    encoder: Option<GzEncoder<Vec<u8>>>,
}

impl<I: Iterator<Item = Bytes>> Gzip<I> {
    fn new(parts: I) -> Self {
        Gzip { parts, encoder: Some(GzEncoder::new(Vec::new(), Compression::fast())) }
    }
}

impl<I: Iterator<Item = Bytes>> Iterator for Gzip<I> {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        loop {
            let encoder = self.encoder.as_mut()?;
            let Some(part) = self.parts.next() else {
                // Writing into a Vec cannot fail.
                return self.encoder.take()?.finish().ok().map(Bytes::from);
            };
            let _ = encoder.write_all(&part);
            let ready = std::mem::take(encoder.get_mut());
            if !ready.is_empty() {
                return Some(ready.into());
            }
        }
    }
}

/// Whether the client takes gzip: the bare word in its list, as upstream looks for it.
fn accepts_gzip(request: &HeaderMap) -> bool {
    request
        .get(header::ACCEPT_ENCODING)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.split(',').any(|part| part.trim() == "gzip"))
}

fn parts_body(parts: impl Iterator<Item = Bytes> + Send + 'static) -> AnswerBody {
    StreamBody::new(futures::stream::iter(parts.map(|part| Ok(Frame::data(part))))).boxed_unsync()
}

fn mark_gzip(response: &mut http::response::Builder) {
    if let Some(headers) = response.headers_mut() {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    }
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
        for warning in super::warnings::headers(&reply.warnings) {
            if let Ok(value) = HeaderValue::from_bytes(warning.as_bytes()) {
                headers.append(header::WARNING, value);
            }
        }
        if let Some(seconds) = reply.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        for (name, _) in &reply.headers {
            headers.remove(name);
        }
        for (name, value) in &reply.headers {
            headers.append(name, value.clone());
        }
    }
    let packed = reply.headers.iter().any(|(name, _)| *name == header::CONTENT_ENCODING);
    let body = match reply.body {
        ReplyBody::Stream(stream) => {
            StreamBody::new(stream.map(|bytes| Ok(Frame::data(bytes)))).boxed_unsync()
        }
        ReplyBody::Full(bytes) if bytes.len() > GZIP_FROM && !packed && accepts_gzip(request) => {
            mark_gzip(&mut response);
            parts_body(Gzip::new(std::iter::once(bytes)))
        }
        ReplyBody::Full(bytes) => Full::new(bytes).boxed_unsync(),
        ReplyBody::Chunks(parts) if accepts_gzip(request) => {
            mark_gzip(&mut response);
            parts_body(Gzip::new(parts))
        }
        ReplyBody::Chunks(parts) => parts_body(parts),
    };
    // The parts were made here and are valid.
    response.body(body).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn parts_are_compressed_one_by_one_and_come_out_whole() {
        let parts: Vec<Bytes> = (0..40u8).map(|n| Bytes::from(vec![n; 50_000])).collect();
        let packed: Vec<u8> = Gzip::new(parts.clone().into_iter()).flatten().collect();
        assert!(packed.len() < 100_000);
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(packed.as_slice()).read_to_end(&mut plain).expect("gzip");
        assert_eq!(plain, parts.concat());
    }

    #[test]
    fn who_takes_gzip() {
        let accepts = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(text));
            accepts_gzip(&headers)
        };
        assert!(accepts("gzip") && accepts("br, gzip ,x"));
        assert!(!accepts("gzipped") && !accepts("gzip;q=0") && !accepts("identity"));
        assert!(!accepts_gzip(&HeaderMap::new()));
    }
}
