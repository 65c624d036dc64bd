//! Reading request bodies: bounded in size and time.

use crate::error::ApiError;
use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Body;
use std::pin::Pin;
use std::time::Duration;

/// Of a body that is too large, this much is still taken after the answer: a client that sends first and reads later
/// would otherwise see a broken connection instead of it.
const LINGER_BYTES: usize = 8 << 20;
/// And for this long.
const LINGER_TIME: Duration = Duration::from_secs(5);

/// Reads a body of at most `limit` bytes in at most `timeout`.
///
/// # Errors
/// 413, 400 for a body that breaks off, 504 for one that does not end.
pub(super) async fn read<B>(limit: usize, timeout: Duration, body: B) -> Result<Bytes, ApiError>
where
    B: Body + Send + 'static,
    B::Data: Buf + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut body = Box::pin(body);
    if usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX) > limit {
        tokio::spawn(linger(body));
        return Err(ApiError::request_too_large(limit));
    }
    match tokio::time::timeout(timeout, collect(body.as_mut(), limit)).await {
        Ok(Ok(Some(bytes))) => Ok(bytes),
        Ok(Ok(None)) => {
            tokio::spawn(linger(body));
            Err(ApiError::request_too_large(limit))
        }
        Ok(Err(error)) => Err(ApiError::bad_request(format!("the body could not be read: {}", error.into()))),
        Err(_) => Err(ApiError::timeout("request did not complete within the allotted timeout", 0)),
    }
}

/// The whole body, `None` if it is larger than the limit.
async fn collect<B: Body>(mut body: Pin<&mut B>, limit: usize) -> Result<Option<Bytes>, B::Error> {
    let mut first: Option<Bytes> = None;
    let mut all = BytesMut::new();
    while let Some(frame) = body.as_mut().frame().await {
        let Ok(mut data) = frame?.into_data() else { continue };
        let length = data.remaining();
        if all.len() + first.as_ref().map_or(0, Bytes::len) + length > limit {
            return Ok(None);
        }
        let data = data.copy_to_bytes(length);
        match first.take() {
            // Most bodies come in one piece, which is not copied.
            None if all.is_empty() => first = Some(data),
            before => {
                all.extend_from_slice(&before.unwrap_or_default());
                all.extend_from_slice(&data);
            }
        }
    }
    Ok(Some(first.unwrap_or_else(|| all.freeze())))
}

async fn linger<B: Body>(mut body: Pin<Box<B>>) {
    let drain = async {
        let mut taken = 0;
        while taken < LINGER_BYTES
            && let Some(Ok(frame)) = body.frame().await
        {
            taken += frame.into_data().map_or(0, |data| data.remaining());
        }
    };
    let _ = tokio::time::timeout(LINGER_TIME, drain).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;
    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn parts(
        count: usize,
        size: usize,
        taken: Arc<AtomicUsize>,
    ) -> impl Body<Data = Bytes, Error = Infallible> {
        let stream = futures::stream::iter(0..count).map(move |_| {
            taken.fetch_add(size, Ordering::SeqCst);
            Ok(Frame::data(Bytes::from(vec![7; size])))
        });
        StreamBody::new(stream)
    }

    #[tokio::test]
    async fn bodies_are_read_whole_or_not_at_all() {
        let soon = Duration::from_secs(5);
        let taken = Arc::new(AtomicUsize::new(0));
        for count in 0..4 {
            let body = read(100, soon, parts(count, 25, taken.clone())).await.expect("small enough");
            assert_eq!(body, vec![7; 25 * count]);
        }
        let error = read(100, soon, parts(5, 25, taken.clone())).await.expect_err("too large");
        assert_eq!((error.code(), error.message()), (413, "Request entity too large: limit is 100"));
    }

    #[tokio::test]
    async fn an_endless_body_is_not_read() {
        let taken = Arc::new(AtomicUsize::new(0));
        let body = parts(usize::MAX, 1 << 20, taken.clone());
        let error = read(3 << 20, Duration::from_secs(5), body).await.expect_err("too large");
        assert_eq!(error.code(), 413);
        tokio::task::yield_now().await;
        assert!(taken.load(Ordering::SeqCst) <= (3 << 20) + LINGER_BYTES + (2 << 20));
    }

    #[tokio::test]
    async fn a_body_that_never_comes_times_out() {
        let body = StreamBody::new(futures::stream::pending::<Result<Frame<Bytes>, Infallible>>());
        let error = read(100, Duration::from_millis(10), body).await.expect_err("late");
        assert_eq!(error.code(), 504);
    }
}
