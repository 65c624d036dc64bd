//! Answers to requests that want another protocol on their connection.

use super::answer::{Answer, empty, text};
use http::{HeaderMap, StatusCode};
use kelp_streams::upgrade as protocols;

pub use protocols::{Kind, bearer, wanted};

/// A refused upgrade.
pub struct Refused(pub Box<Answer>);

/// An upgrade that is agreed on.
pub struct Agreed {
    /// Protocol within it; empty when the client named none.
    pub protocol: &'static str,
    /// 101 with all headers.
    pub answer: Answer,
}

fn answered(result: Result<protocols::Agreed, Box<protocols::Refused>>) -> Result<Agreed, Refused> {
    match result {
        Ok(agreed) => {
            let mut answer = empty(StatusCode::SWITCHING_PROTOCOLS);
            answer.headers_mut().extend(agreed.headers);
            Ok(Agreed { protocol: agreed.protocol, answer })
        }
        Err(refused) => {
            let mut answer = text(refused.status, refused.text);
            answer.headers_mut().extend(refused.headers);
            Err(Refused(Box::new(answer)))
        }
    }
}

/// Agrees on SPDY/3.1 with one of the protocols in `ours`.
///
/// # Errors
/// The client speaks none of them: 403, as the kubelet.
pub fn spdy(headers: &HeaderMap, ours: &[&'static str]) -> Result<Agreed, Refused> {
    answered(protocols::spdy(headers, ours))
}

/// Agrees on WebSocket with one of the protocols in `ours`.
///
/// # Errors
/// The request is no WebSocket handshake (400), or the client speaks none of the protocols (403).
pub fn websocket(headers: &HeaderMap, ours: &[&'static str]) -> Result<Agreed, Refused> {
    answered(protocols::websocket(headers, ours))
}
