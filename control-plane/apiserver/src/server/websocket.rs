//! Answers that go on, over WebSocket. Of a watch every event is a message, text for JSON and binary for protobuf, as
//! upstream's `HandleWS`; of a log the bytes as they come, as its `wsstream.Reader`.

use crate::handlers::{Reply, ReplyBody};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, Bytes};
use futures::{SinkExt, StreamExt};
use http::header::{HeaderMap, SEC_WEBSOCKET_PROTOCOL};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use kelp_streams::upgrade::{self, Kind};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

/// A client has nothing to say but that it goes away.
const LARGEST_MESSAGE: usize = 16 << 10;

/// Protocols of a log: its bytes, or text with them in base64.
const LOG_PROTOCOLS: [&str; 2] = ["binary.k8s.io", BASE64];
const BASE64: &str = "base64.binary.k8s.io";

/// Whether the client asks for a WebSocket.
pub(super) fn is_wanted(headers: &HeaderMap) -> bool {
    upgrade::wanted(headers) == Some(Kind::WebSocket)
}

/// How an answer becomes messages.
#[derive(Clone, Copy)]
enum Framing {
    /// A watch in JSON.
    Lines,
    /// A watch in protobuf.
    Prefixed,
    /// A log.
    Bytes,
    /// A log for clients that want text.
    Base64,
}

impl Framing {
    fn messages(self, piece: Bytes) -> Vec<Message> {
        match self {
            Self::Lines => events(piece, true),
            Self::Prefixed => events(piece, false),
            Self::Bytes => vec![Message::binary(piece)],
            Self::Base64 => vec![Message::text(STANDARD.encode(piece))],
        }
    }
}

/// The events of a piece of a watch stream.
fn events(mut bytes: Bytes, text: bool) -> Vec<Message> {
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

/// Turns the answer of a watch or, when `is_log`, of a log into a WebSocket; answers that say what is wrong stay what they
/// are.
pub(super) fn upgraded(headers: &HeaderMap, upgrade: OnUpgrade, reply: Reply, is_log: bool) -> Reply {
    let agreed = if is_log {
        upgrade::websocket(headers, &LOG_PROTOCOLS).map(|agreed| {
            (agreed.headers, if agreed.protocol == BASE64 { Framing::Base64 } else { Framing::Bytes })
        })
    } else {
        upgrade::websocket_handshake(headers).map(|mut answer| {
            // Watches know no protocols: the only one that is named is taken.
            if let Some(protocol) = headers.get(SEC_WEBSOCKET_PROTOCOL)
                && !protocol.as_bytes().contains(&b',')
            {
                answer.insert(SEC_WEBSOCKET_PROTOCOL, protocol.clone());
            }
            let json = reply.content_type == "application/json";
            (answer, if json { Framing::Lines } else { Framing::Prefixed })
        })
    };
    let (answer, framing) = match agreed {
        Ok(agreed) => agreed,
        Err(refused) => return Reply::bytes(refused.status.as_u16(), "text/plain", refused.text),
    };
    let mut pieces = match reply.body {
        ReplyBody::Stream(pieces) => pieces,
        ReplyBody::Full(all) => futures::stream::iter([all]).boxed(),
        ReplyBody::Chunks(pieces) => futures::stream::iter(pieces).boxed(),
    };
    tokio::spawn(async move {
        let Ok(connection) = upgrade.await else { return };
        let limits = WebSocketConfig::default()
            .max_message_size(Some(LARGEST_MESSAGE))
            .max_frame_size(Some(LARGEST_MESSAGE));
        let mut socket =
            WebSocketStream::from_raw_socket(TokioIo::new(connection), Role::Server, Some(limits)).await;
        // The first message of a log is empty: it tells that the log is there, however long nothing is in it.
        if is_log && send(&mut socket, framing.messages(Bytes::new())).await.is_err() {
            return;
        }
        loop {
            tokio::select! {
                piece = pieces.next() => {
                    let Some(piece) = piece else { break };
                    if send(&mut socket, framing.messages(piece)).await.is_err() {
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
    out.headers.extend(answer.into_iter().filter_map(|(name, value)| Some((name?, value))));
    out
}

async fn send<S: SinkExt<Message> + Unpin>(socket: &mut S, messages: Vec<Message>) -> Result<(), S::Error> {
    for message in messages {
        socket.feed(message).await?;
    }
    socket.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_is_a_message() {
        let json = events(Bytes::from_static(b"{\"a\":1}\n{\"b\":2}\n"), true);
        assert_eq!(json, [Message::text("{\"a\":1}\n"), Message::text("{\"b\":2}\n")]);
        let proto = events(Bytes::from_static(b"\0\0\0\x02ab\0\0\0\x01c"), false);
        assert_eq!(proto, [Message::binary(&b"ab"[..]), Message::binary(&b"c"[..])]);
        assert!(events(Bytes::new(), true).is_empty());
        assert_eq!(events(Bytes::from_static(b"\0\0\0\x09ab"), false).len(), 1);
    }

    #[test]
    fn a_log_is_its_bytes() {
        let piece = Bytes::from_static(b"\0ab\n");
        assert_eq!(Framing::Bytes.messages(piece.clone()), [Message::binary(&b"\0ab\n"[..])]);
        assert_eq!(Framing::Base64.messages(piece), [Message::text("AGFiCg==")]);
    }
}
