//! Unary gRPC calls over a Unix socket.
//!
//! hyper speaks the HTTP/2 of it already; what gRPC adds is five bytes of framing and a status in the trailers.

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::path::Path;
use std::time::Duration;
use tokio::net::UnixStream;

/// Largest answer, gRPC's usual limit.
const LARGEST: usize = 4 << 20;

/// A call that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("rpc error: code = {} desc = {message}", code_name(*code))]
pub struct Failure {
    /// gRPC's status code.
    pub code: u32,
    /// What the server says.
    pub message: String,
}

impl Failure {
    /// `Unavailable`.
    const UNAVAILABLE: u32 = 14;
    /// `DeadlineExceeded`.
    const DEADLINE_EXCEEDED: u32 = 4;
    /// `Unimplemented`.
    pub const UNIMPLEMENTED: u32 = 12;
    /// `NotFound`.
    pub const NOT_FOUND: u32 = 5;

    fn unavailable(error: impl std::fmt::Display) -> Self {
        Self { code: Self::UNAVAILABLE, message: error.to_string() }
    }

    fn internal(message: &str) -> Self {
        Self { code: 13, message: message.to_owned() }
    }
}

/// Name of a status code as Go prints it.
fn code_name(code: u32) -> &'static str {
    const NAMES: [&str; 17] = [
        "OK",
        "Canceled",
        "Unknown",
        "InvalidArgument",
        "DeadlineExceeded",
        "NotFound",
        "AlreadyExists",
        "PermissionDenied",
        "ResourceExhausted",
        "FailedPrecondition",
        "Aborted",
        "OutOfRange",
        "Unimplemented",
        "Internal",
        "Unavailable",
        "DataLoss",
        "Unauthenticated",
    ];
    usize::try_from(code).ok().and_then(|code| NAMES.get(code)).copied().unwrap_or("Unknown")
}

/// Calls `method` (`package.Service/Method`) of the server at `socket` and returns the answer's message.
///
/// # Errors
/// There is no server, it gave no answer in time, or it refused.
pub async fn call(
    socket: &Path,
    method: &str,
    message: &[u8],
    timeout: Duration,
) -> Result<Vec<u8>, Failure> {
    match tokio::time::timeout(timeout, unary(socket, method, message)).await {
        Ok(result) => result,
        Err(_) => {
            Err(Failure { code: Failure::DEADLINE_EXCEEDED, message: "context deadline exceeded".to_owned() })
        }
    }
}

async fn unary(socket: &Path, method: &str, message: &[u8]) -> Result<Vec<u8>, Failure> {
    let stream = UnixStream::connect(socket).await.map_err(|error| {
        let text = format!(
            "connection error: desc = \"transport: Error while dialing: dial unix {}: {error}\"",
            socket.display()
        );
        Failure::unavailable(text)
    })?;
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(Failure::unavailable)?;
    // Ends with the last sender.
    tokio::spawn(connection);
    let request = http::Request::post(format!("http://localhost/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(framed(message)))
        .map_err(Failure::unavailable)?;
    let response = sender.send_request(request).await.map_err(Failure::unavailable)?;
    if response.status() != http::StatusCode::OK {
        return Err(Failure::unavailable(format!("the server answered {}", response.status())));
    }
    if let Some(failure) = failure(response.headers()) {
        return Err(failure);
    }
    let body = Limited::new(response.into_body(), LARGEST).collect().await.map_err(Failure::unavailable)?;
    if let Some(failure) = body.trailers().and_then(failure) {
        return Err(failure);
    }
    let frame = body.to_bytes();
    unframed(&frame).map(<[u8]>::to_vec).ok_or_else(|| Failure::internal("the answer is no gRPC message"))
}

/// A message in gRPC's framing.
#[must_use]
pub fn framed(message: &[u8]) -> Bytes {
    let mut frame = vec![0];
    frame.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    frame.extend_from_slice(message);
    frame.into()
}

/// The message in a frame; `None` if it is compressed or cut off.
#[must_use]
pub fn unframed(frame: &[u8]) -> Option<&[u8]> {
    let (head, message) = frame.split_at_checked(5)?;
    let length = u32::from_be_bytes(head.get(1..)?.try_into().ok()?);
    (head.first() == Some(&0)).then(|| message.get(..usize::try_from(length).ok()?))?
}

fn failure(headers: &http::HeaderMap) -> Option<Failure> {
    let code = headers.get("grpc-status")?.to_str().ok()?.parse().unwrap_or(2);
    let message = headers.get("grpc-message").and_then(|m| m.to_str().ok()).unwrap_or_default();
    (code != 0).then(|| Failure { code, message: percent_decoded(message) })
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        let hex = more.get(..2).filter(|_| *first == b'%').and_then(|h| std::str::from_utf8(h).ok());
        match hex.and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = more.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = more;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_and_failures() {
        assert_eq!(&framed(b"ab")[..], b"\0\0\0\0\x02ab");
        assert_eq!(unframed(b"\0\0\0\0\x02ab"), Some(&b"ab"[..]));
        assert_eq!(
            (unframed(b"\x01\0\0\0\0"), unframed(b"\0\0\0\0\x03ab"), unframed(b"\0")),
            (None, None, None)
        );
        let failure = Failure { code: 5, message: percent_decoded("no%20such%25 volume") };
        assert_eq!(failure.to_string(), "rpc error: code = NotFound desc = no such% volume");
        assert_eq!(percent_decoded("100%"), "100%");
    }

    #[tokio::test]
    async fn no_server_is_unavailable() {
        let failure =
            call(Path::new("/no/such.sock"), "a.B/C", b"", Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(failure.code, 14);
    }
}
