//! HTTP answers.

use bytes::Bytes;
use futures::Stream;
use http::{HeaderValue, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use serde::Serialize;

/// What handlers answer.
pub type Answer = http::Response<UnsyncBoxBody<Bytes, std::io::Error>>;

/// No content.
pub fn empty(code: StatusCode) -> Answer {
    body(code, Bytes::new())
}

fn body(code: StatusCode, bytes: Bytes) -> Answer {
    let body = Full::new(bytes).map_err(|never| match never {}).boxed_unsync();
    let mut answer = http::Response::new(body);
    *answer.status_mut() = code;
    answer
}

/// Text of a type.
pub fn typed(code: StatusCode, kind: &'static str, text: impl Into<Bytes>) -> Answer {
    let mut answer = body(code, text.into());
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

/// Plain text.
pub fn text(code: StatusCode, text: impl Into<String>) -> Answer {
    typed(code, "text/plain; charset=utf-8", text.into())
}

/// JSON.
pub fn json<T: Serialize>(value: &T) -> Answer {
    match serde_json::to_vec(value) {
        Ok(bytes) => typed(StatusCode::OK, "application/json", bytes),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// Plain text that comes bit by bit; nothing at all has no type, as with servers that look at what they send.
pub async fn stream_of(chunks: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static) -> Answer {
    use futures::{StreamExt, future};
    let chunks = chunks.filter(|chunk| future::ready(!matches!(chunk, Ok(bytes) if bytes.is_empty())));
    let mut chunks = Box::pin(chunks.peekable());
    let is_empty = chunks.as_mut().peek().await.is_none();
    let mut answer = stream(chunks);
    if is_empty {
        answer.headers_mut().remove(header::CONTENT_TYPE);
    }
    answer
}

/// Plain text that comes bit by bit.
pub fn stream(chunks: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static) -> Answer {
    use futures::StreamExt;
    let mut answer = text(StatusCode::OK, "");
    let body = StreamBody::new(chunks.map(|chunk| chunk.map(Frame::data)));
    *answer.body_mut() = BodyExt::boxed_unsync(body);
    answer
}
