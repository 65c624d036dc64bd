//! Watches over WebSocket: every event is a message, text for JSON and binary for protobuf, as upstream's `HandleWS`.

use crate::handlers::{Reply, ReplyBody};
use bytes::{Buf, Bytes};
use futures::{SinkExt, StreamExt};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

/// A client has nothing to say but that it goes away.
const LARGEST_MESSAGE: usize = 16 << 10;

fn has(headers: &HeaderMap, name: HeaderName, wanted: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|token| token.trim().eq_ignore_ascii_case(wanted))
}

/// Whether the client asks for a WebSocket.
pub(super) fn is_wanted(headers: &HeaderMap) -> bool {
    has(headers, header::CONNECTION, "upgrade") && has(headers, header::UPGRADE, "websocket")
}

/// The events of a piece of a watch stream.
fn messages(mut bytes: Bytes, text: bool) -> Vec<Message> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        if text {
            // JSON has no line ends inside.
            let end = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |at| at + 1);
            let line = bytes.split_to(end);
            out.push(Message::text(String::from_utf8_lossy(&line).into_owned()));
        } else {
            if bytes.len() < 4 {
                break;
            }
            // Messages have a length of their own; the one in front is left out.
            let length = usize::try_from(bytes.get_u32()).unwrap_or(usize::MAX).min(bytes.len());
            out.push(Message::binary(bytes.split_to(length)));
        }
    }
    out
}

/// Turns the answer of a watch into a WebSocket; other answers stay what they are.
pub(super) fn upgraded(headers: &HeaderMap, upgrade: OnUpgrade, reply: Reply) -> Reply {
    let Some(key) = headers.get(header::SEC_WEBSOCKET_KEY) else { return reply };
    let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) else { return reply };
    let text = reply.content_type == "application/json";
    let ReplyBody::Stream(mut events) = reply.body else { return reply };
    tokio::spawn(async move {
        let Ok(connection) = upgrade.await else { return };
        let limits = WebSocketConfig::default()
            .max_message_size(Some(LARGEST_MESSAGE))
            .max_frame_size(Some(LARGEST_MESSAGE));
        let mut socket =
            WebSocketStream::from_raw_socket(TokioIo::new(connection), Role::Server, Some(limits)).await;
        loop {
            tokio::select! {
                piece = events.next() => {
                    let Some(piece) = piece else { break };
                    for message in messages(piece, text) {
                        if socket.feed(message).await.is_err() {
                            return;
                        }
                    }
                    if socket.flush().await.is_err() {
                        return;
                    }
                }
                received = socket.next() => match received {
                    Some(Ok(message)) if !message.is_close() => {}
                    _ => break,
                },
            }
        }
        let _ = socket.close(None).await;
    });
    let mut out = Reply::bytes(101, "", Bytes::new());
    out.headers = reply.headers;
    out.headers.push((header::CONNECTION, HeaderValue::from_static("Upgrade")));
    out.headers.push((header::UPGRADE, HeaderValue::from_static("websocket")));
    out.headers.push((header::SEC_WEBSOCKET_ACCEPT, accept));
    if let Some(protocol) = headers.get(header::SEC_WEBSOCKET_PROTOCOL)
        && !protocol.as_bytes().contains(&b',')
    {
        out.headers.push((header::SEC_WEBSOCKET_PROTOCOL, protocol.clone()));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_wants_a_websocket() {
        let headers = |connection: &'static str, upgrade: &'static str| {
            let mut out = HeaderMap::new();
            out.insert(header::CONNECTION, HeaderValue::from_static(connection));
            out.insert(header::UPGRADE, HeaderValue::from_static(upgrade));
            out
        };
        assert!(is_wanted(&headers("keep-alive, Upgrade", "WebSocket")));
        assert!(!is_wanted(&headers("keep-alive", "websocket")));
        assert!(!is_wanted(&headers("Upgrade", "SPDY/3.1")));
        assert!(!is_wanted(&HeaderMap::new()));
    }

    #[test]
    fn every_event_is_a_message() {
        let json = messages(Bytes::from_static(b"{\"a\":1}\n{\"b\":2}\n"), true);
        assert_eq!(json, [Message::text("{\"a\":1}\n"), Message::text("{\"b\":2}\n")]);
        let proto = messages(Bytes::from_static(b"\0\0\0\x02ab\0\0\0\x01c"), false);
        assert_eq!(proto, [Message::binary(&b"ab"[..]), Message::binary(&b"c"[..])]);
        assert!(messages(Bytes::new(), true).is_empty());
        assert_eq!(messages(Bytes::from_static(b"\0\0\0\x09ab"), false).len(), 1);
    }
}
