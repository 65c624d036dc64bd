//! Turning an HTTP request into a connection of another protocol: SPDY/3.1 or WebSocket (RFC 6455).

use http::header::{
    CONNECTION, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    UPGRADE,
};
use http::{HeaderMap, StatusCode};
use std::borrow::Cow;

/// SPDY, as the `Upgrade` header names it.
pub const SPDY: &str = "SPDY/3.1";
/// Names the protocols within SPDY that a client speaks, and the one that the server chose.
pub const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// Names those that a server speaks when none fits.
const ACCEPTED_PROTOCOLS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");

/// What a client wants to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// SPDY/3.1.
    Spdy,
    /// WebSocket.
    WebSocket,
}

/// What a request asks to be upgraded to.
pub fn wanted(headers: &HeaderMap) -> Option<Kind> {
    if !values(headers, &CONNECTION).any(|v| v.eq_ignore_ascii_case("upgrade")) {
        return None;
    }
    values(headers, &UPGRADE).find_map(|v| {
        if v.eq_ignore_ascii_case("spdy/3.1") {
            Some(Kind::Spdy)
        } else if v.eq_ignore_ascii_case("websocket") {
            Some(Kind::WebSocket)
        } else {
            None
        }
    })
}

/// The values of a header that is a list.
pub fn values<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> + use<'a> {
    let lines = headers.get_all(name).into_iter().filter_map(|v| v.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|v| !v.is_empty())
}

/// A refused upgrade.
#[derive(Debug)]
pub struct Refused {
    /// Code of the answer.
    pub status: StatusCode,
    /// Its text.
    pub text: String,
    /// Further headers.
    pub headers: HeaderMap,
}

impl Refused {
    fn new(status: StatusCode, text: impl Into<String>) -> Box<Self> {
        Box::new(Refused { status, text: text.into(), headers: HeaderMap::new() })
    }
}

/// An upgrade that is agreed on.
#[derive(Debug)]
pub struct Agreed {
    /// Protocol within it; empty when the client named none.
    pub protocol: &'static str,
    /// Headers of the answer, whose code is 101.
    pub headers: HeaderMap,
}

fn switching(kind: &'static str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(kind));
    headers
}

/// Headers of the answer to a WebSocket handshake, but for the protocol within it.
///
/// # Errors
/// The request is no handshake.
pub fn websocket_handshake(request: &HeaderMap) -> Result<HeaderMap, Box<Refused>> {
    let missing = || Refused::new(StatusCode::BAD_REQUEST, "missing Sec-WebSocket-Key");
    let key = request.get(SEC_WEBSOCKET_KEY).ok_or_else(missing)?;
    let mut headers = switching("websocket");
    let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes());
    if let Ok(accept) = HeaderValue::try_from(accept) {
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    Ok(headers)
}

/// The protocols within WebSocket that a client speaks, without its token.
pub fn websocket_protocols(request: &HeaderMap) -> impl Iterator<Item = &str> {
    values(request, &SEC_WEBSOCKET_PROTOCOL).filter(|protocol| !is_token(protocol))
}

/// The first of the client's protocols that is ours.
fn choose<'a>(asked: impl Iterator<Item = &'a str>, ours: &[&'static str]) -> Option<&'static str> {
    asked.filter_map(|asked| ours.iter().find(|o| **o == asked)).next().copied()
}

/// Agrees on SPDY/3.1 with one of the protocols in `ours`.
///
/// # Errors
/// The client speaks none of them: 403, as the kubelet.
pub fn spdy(headers: &HeaderMap, ours: &[&'static str]) -> Result<Agreed, Box<Refused>> {
    let asked: Vec<&str> = values(headers, &STREAM_PROTOCOL).collect();
    let mut answer = switching(SPDY);
    let protocol = match choose(asked.iter().copied(), ours) {
        Some(chosen) => {
            answer.insert(STREAM_PROTOCOL, HeaderValue::from_static(chosen));
            chosen
        }
        None if asked.is_empty() => "",
        None => {
            let message = format!(
                "unable to upgrade: unable to negotiate protocol: client supports [{}], server accepts [{}]",
                asked.join(" "),
                ours.join(" ")
            );
            let mut refused = Refused::new(StatusCode::FORBIDDEN, message);
            for protocol in ours {
                refused.headers.append(ACCEPTED_PROTOCOLS, HeaderValue::from_static(protocol));
            }
            return Err(refused);
        }
    };
    Ok(Agreed { protocol, headers: answer })
}

/// Agrees on WebSocket with one of the protocols in `ours`.
///
/// # Errors
/// The request is no WebSocket handshake (400), or the client speaks none of the protocols (403).
pub fn websocket(headers: &HeaderMap, ours: &[&'static str]) -> Result<Agreed, Box<Refused>> {
    let mut answer = websocket_handshake(headers)?;
    let asked: Vec<&str> = websocket_protocols(headers).collect();
    let protocol = match choose(asked.iter().copied(), ours) {
        Some(chosen) => {
            answer.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(chosen));
            chosen
        }
        None if asked.is_empty() => "",
        None => {
            let message = format!("requested protocol(s) are not supported: {asked:?}; supports {ours:?}");
            return Err(Refused::new(StatusCode::FORBIDDEN, message));
        }
    };
    Ok(Agreed { protocol, headers: answer })
}

/// Browsers send their bearer token as a protocol of this name.
const TOKEN_PREFIX: &str = "base64url.bearer.authorization.k8s.io.";

fn is_token(protocol: &str) -> bool {
    protocol.starts_with(TOKEN_PREFIX)
}

/// The bearer token of a request, from its Authorization header or its WebSocket protocols.
pub fn bearer(headers: &HeaderMap) -> Option<Cow<'_, str>> {
    let header = headers.get(http::header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    if let Some((scheme, token)) = header.and_then(|h| h.trim().split_once(' '))
        && scheme.eq_ignore_ascii_case("bearer")
        && !token.trim().is_empty()
    {
        return Some(Cow::Borrowed(token.trim()));
    }
    if wanted(headers) != Some(Kind::WebSocket) {
        return None;
    }
    use base64::Engine;
    let encoded = values(headers, &SEC_WEBSOCKET_PROTOCOL).find_map(|p| p.strip_prefix(TOKEN_PREFIX))?;
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(encoded).ok()?;
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn what_is_asked_for() {
        assert_eq!(wanted(&headers(&[])), None);
        assert_eq!(wanted(&headers(&[("upgrade", "SPDY/3.1")])), None);
        assert_eq!(wanted(&headers(&[("upgrade", "SPDY/3.1"), ("connection", "Upgrade")])), Some(Kind::Spdy));
        let browser = headers(&[("upgrade", "WebSocket"), ("connection", "keep-alive, Upgrade")]);
        assert_eq!(wanted(&browser), Some(Kind::WebSocket));
    }

    #[test]
    fn the_clients_order_decides() {
        let ours = ["v4.channel.k8s.io", "channel.k8s.io"];
        let both = headers(&[
            ("x-stream-protocol-version", "v9.channel.k8s.io"),
            ("x-stream-protocol-version", "channel.k8s.io, v4.channel.k8s.io"),
        ]);
        assert_eq!(spdy(&both, &ours).ok().unwrap().protocol, "channel.k8s.io");
        assert_eq!(spdy(&headers(&[]), &ours).ok().unwrap().protocol, "");
        let none = spdy(&headers(&[("x-stream-protocol-version", "x")]), &ours).err().unwrap();
        assert_eq!(none.status, 403);
        assert_eq!(none.headers.get_all(ACCEPTED_PROTOCOLS).iter().count(), 2);
    }

    #[test]
    fn websocket_handshake_of_the_rfc() {
        let request = headers(&[
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-protocol", "v5.channel.k8s.io"),
        ]);
        let agreed = websocket(&request, &["v5.channel.k8s.io"]).ok().unwrap();
        assert_eq!(agreed.headers[SEC_WEBSOCKET_ACCEPT], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(agreed.headers[SEC_WEBSOCKET_PROTOCOL], "v5.channel.k8s.io");
        assert!(websocket(&request, &["v4.channel.k8s.io"]).is_err());
        assert!(websocket(&headers(&[]), &["v4.channel.k8s.io"]).is_err());
    }

    #[test]
    fn tokens() {
        assert_eq!(bearer(&headers(&[("authorization", "Bearer  abc ")])).unwrap(), "abc");
        assert_eq!(bearer(&headers(&[("authorization", "Basic abc")])), None);
        let browser = headers(&[
            ("upgrade", "websocket"),
            ("connection", "Upgrade"),
            ("sec-websocket-protocol", "base64url.bearer.authorization.k8s.io.YWJj, v4.channel.k8s.io"),
        ]);
        assert_eq!(bearer(&browser).unwrap(), "abc");
    }
}
