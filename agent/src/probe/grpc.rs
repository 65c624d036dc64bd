//! One unary call of gRPC's health protocol, `grpc.health.v1.Health/Check`, over plain HTTP/2.
//!
//! The messages are two fields in all; a gRPC library would be more than the protocol.

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;

/// `HealthCheckResponse.SERVING`.
const SERVING: u64 = 1;

/// Asks a server for the health of a service (empty: of the whole server).
///
/// # Errors
/// It does not serve; the text is that of upstream's probes.
pub async fn check(address: SocketAddr, service: &str, timeout: Duration) -> Result<(), String> {
    let unreachable = || {
        format!(
            "timeout: failed to connect service \"{address}\" within {}s: context deadline exceeded",
            timeout.as_secs()
        )
    };
    match tokio::time::timeout(timeout, call(address, service)).await {
        Ok(Ok(SERVING)) => Ok(()),
        Ok(Ok(status)) => {
            let name = match status {
                2 => "NOT_SERVING",
                3 => "SERVICE_UNKNOWN",
                _ => "UNKNOWN",
            };
            Err(format!("service unhealthy (responded with {name:?})"))
        }
        Ok(Err(Some(error))) => Err(format!("error: health rpc failed: {error}")),
        Ok(Err(None)) | Err(_) => Err(unreachable()),
    }
}

/// The status of the answer; `Err(None)` when there was no connection.
async fn call(address: SocketAddr, service: &str) -> Result<u64, Option<String>> {
    let stream = TcpStream::connect(address).await.map_err(|_| None)?;
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|_| None)?;
    let connection = tokio::spawn(connection);
    let result = async {
        let request = http::Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("user-agent", "kube-probe/1.36")
            .body(Full::new(request(service)))
            .map_err(|e| Some(e.to_string()))?;
        let response = sender.send_request(request).await.map_err(|e| Some(e.to_string()))?;
        let status = |headers: &http::HeaderMap| {
            let code = headers.get("grpc-status")?.to_str().ok()?.to_owned();
            let message = headers.get("grpc-message").and_then(|m| m.to_str().ok()).unwrap_or_default();
            (code != "0").then(|| format!("rpc error: code = {code} desc = {message}"))
        };
        if let Some(error) = status(response.headers()) {
            return Err(Some(error));
        }
        let body = Limited::new(response.into_body(), 4 << 10).collect().await;
        let body = body.map_err(|e| Some(e.to_string()))?;
        if let Some(error) = body.trailers().and_then(status) {
            return Err(Some(error));
        }
        answer(&body.to_bytes()).ok_or_else(|| Some("the answer is no HealthCheckResponse".to_owned()))
    };
    let result = result.await;
    connection.abort();
    result
}

/// A `HealthCheckRequest` in gRPC framing.
fn request(service: &str) -> Bytes {
    let service = &service.as_bytes()[..service.len().min(127)];
    let mut message = BytesMut::new();
    if let (false, Ok(length)) = (service.is_empty(), u8::try_from(service.len())) {
        message.put_u8(0x0a); // field 1, length-delimited
        message.put_u8(length);
        message.put_slice(service);
    }
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(0));
    frame.extend_from_slice(&message);
    frame.freeze()
}

/// The status of a `HealthCheckResponse` in gRPC framing; a missing field is 0.
fn answer(frame: &[u8]) -> Option<u64> {
    let (head, message) = frame.split_at_checked(5)?;
    if head.first() != Some(&0) {
        return None; // compressed, which we did not offer
    }
    match message {
        [] => Some(0),
        [0x08, value, ..] if *value < 0x80 => Some(u64::from(*value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages() {
        assert_eq!(&request("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&request("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(answer(&[0, 0, 0, 0, 2, 8, 1]), Some(1));
        assert_eq!(answer(&[0, 0, 0, 0, 0]), Some(0));
        assert_eq!(answer(&[1, 0, 0, 0, 0]), None);
        assert_eq!(answer(&[0, 0]), None);
    }
}
