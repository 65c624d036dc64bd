//! Channels in a WebSocket: the first byte of each message says which one it belongs to (upstream's `wsstream`). In the
//! `base64` variants a message is text: the digit of the channel, and the content in base64.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_util::sync::CancellationToken;

/// Longest message, bytes; clients send at most 32 KiB at a time.
const MAX_MESSAGE: usize = 4 << 20;
/// Messages that wait in each direction.
const QUEUE: usize = 32;
/// Channel of v5 whose content is the number of a channel that ends.
const CLOSE: u8 = 255;
/// How long the client may take to answer a close.
const LINGER: Duration = Duration::from_secs(10);

/// One of our channels.
pub type Outgoing = mpsc::Sender<(u8, Bytes)>;

/// How messages are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// Binary messages.
    Binary,
    /// Text messages in base64.
    Base64,
}

/// A WebSocket with channels. Dropping the senders closes it after what was written is sent.
pub struct Channels {
    /// Takes messages for the client.
    pub outgoing: Outgoing,
    /// What the client sends on the channels asked for.
    pub incoming: Vec<mpsc::Receiver<Bytes>>,
    /// Cancelled when the client is gone.
    pub closed: CancellationToken,
}

fn config() -> WebSocketConfig {
    WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE))
}

/// Serves a WebSocket; messages on other channels than `listen` are ignored.
pub async fn serve<T>(io: T, encoding: Encoding, listen: &[u8], idle: Duration) -> Channels
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config())).await;
    let (outgoing, queue) = mpsc::channel(QUEUE);
    let closed = CancellationToken::new();
    let mut senders = Vec::new();
    let mut incoming = Vec::new();
    for channel in listen {
        let (sender, receiver) = mpsc::channel(QUEUE);
        senders.push((*channel, Some(sender)));
        incoming.push(receiver);
    }
    tokio::spawn(run(socket, encoding, queue, senders, closed.clone(), idle));
    Channels { outgoing, incoming, closed }
}

type Listeners = Vec<(u8, Option<mpsc::Sender<Bytes>>)>;

/// Reads: the socket and the queue. Writes: the socket and the channels.
async fn run<T: AsyncRead + AsyncWrite + Unpin + Send>(
    socket: WebSocketStream<T>,
    encoding: Encoding,
    mut queue: mpsc::Receiver<(u8, Bytes)>,
    mut listeners: Listeners,
    closed: CancellationToken,
    idle: Duration,
) {
    let (mut sink, mut source) = socket.split();
    let send = async {
        while let Some((channel, bytes)) = queue.recv().await {
            if sink.send(message(encoding, channel, &bytes)).await.is_err() {
                return;
            }
        }
        let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        let _ = sink.send(Message::Close(Some(normal))).await;
        tokio::time::sleep(LINGER).await;
    };
    let receive = async {
        while let Ok(Some(Ok(message))) = tokio::time::timeout(idle, source.next()).await {
            if matches!(message, Message::Close(_)) {
                // One more look lets the answer out.
                let _ = source.next().await;
                return;
            }
            let Some((channel, bytes)) = content(encoding, &message) else { continue };
            let target = if channel == CLOSE { bytes.first().copied() } else { Some(channel) };
            let Some(listener) = listeners.iter_mut().find(|(c, _)| Some(*c) == target) else { continue };
            if channel == CLOSE {
                listener.1 = None;
            } else if let Some(sender) = &listener.1
                && !bytes.is_empty()
            {
                let _ = sender.send(bytes).await;
            }
        }
    };
    tokio::select! {
        () = send => {}
        () = receive => {}
    }
    closed.cancel();
}

fn message(encoding: Encoding, channel: u8, bytes: &[u8]) -> Message {
    match encoding {
        Encoding::Binary => {
            let mut content = Vec::with_capacity(bytes.len() + 1);
            content.push(channel);
            content.extend_from_slice(bytes);
            Message::Binary(content.into())
        }
        Encoding::Base64 => {
            let mut content = String::from(char::from(b'0'.saturating_add(channel)));
            BASE64.encode_string(bytes, &mut content);
            Message::Text(content.into())
        }
    }
}

/// Channel and content; `None` for what carries none.
fn content(encoding: Encoding, message: &Message) -> Option<(u8, Bytes)> {
    let all = match message {
        Message::Binary(bytes) => bytes.clone(),
        Message::Text(text) => Bytes::copy_from_slice(text.as_bytes()),
        _ => return None,
    };
    let (channel, _) = all.split_first()?;
    let rest = all.slice(1..);
    match encoding {
        Encoding::Binary => Some((*channel, rest)),
        Encoding::Base64 => {
            let channel = channel.checked_sub(b'0')?;
            Some((channel, BASE64.decode(&rest).ok()?.into()))
        }
    }
}

/// A WebSocket as a plain byte stream: binary messages, joined. What SPDY is tunnelled in.
pub async fn tunnel<T>(io: T) -> DuplexStream
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config())).await;
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    tokio::spawn(async move {
        let (mut sink, mut source) = socket.split();
        let (mut reader, mut writer) = tokio::io::split(theirs);
        let inward = async {
            while let Some(Ok(message)) = source.next().await {
                let written = match message {
                    Message::Binary(bytes) => writer.write_all(&bytes).await.is_ok(),
                    Message::Close(_) => false,
                    _ => true,
                };
                if !written {
                    break;
                }
            }
            let _ = writer.shutdown().await;
        };
        let outward = async {
            let mut buffer = vec![0u8; 32 << 10];
            while let Ok(n) = reader.read(&mut buffer).await {
                let Some(bytes) = buffer.get(..n).filter(|b| !b.is_empty()) else { break };
                if sink.send(Message::Binary(Bytes::copy_from_slice(bytes))).await.is_err() {
                    break;
                }
            }
            let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
            let _ = sink.send(Message::Close(Some(normal))).await;
        };
        tokio::pin!(inward, outward);
        tokio::select! {
            () = &mut inward => { let _ = tokio::time::timeout(LINGER, outward).await; }
            () = &mut outward => { let _ = tokio::time::timeout(LINGER, inward).await; }
        }
    });
    ours
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(60);

    async fn client(io: DuplexStream) -> WebSocketStream<DuplexStream> {
        WebSocketStream::from_raw_socket(io, Role::Client, None).await
    }

    #[tokio::test]
    async fn channels_both_ways_and_the_close_signal() {
        for encoding in [Encoding::Binary, Encoding::Base64] {
            let (near, far) = tokio::io::duplex(4096);
            let mut channels = serve(far, encoding, &[0, 4], IDLE).await;
            let mut client = client(near).await;
            client.send(message(encoding, 0, b"in")).await.unwrap();
            client.send(message(encoding, 1, b"ignored")).await.unwrap();
            client.send(message(encoding, 4, b"{}")).await.unwrap();
            assert_eq!(channels.incoming[0].recv().await.unwrap(), "in");
            assert_eq!(channels.incoming[1].recv().await.unwrap(), "{}");
            if encoding == Encoding::Binary {
                client.send(message(encoding, CLOSE, &[0])).await.unwrap();
                assert_eq!(channels.incoming[0].recv().await, None);
            }
            channels.outgoing.send((1, Bytes::from_static(b"out"))).await.unwrap();
            let got = client.next().await.unwrap().unwrap();
            assert_eq!(content(encoding, &got).unwrap(), (1, Bytes::from_static(b"out")));
            let closed = channels.closed.clone();
            drop(channels);
            assert!(
                matches!(client.next().await.unwrap().unwrap(), Message::Close(Some(f)) if f.code == CloseCode::Normal)
            );
            drop(client);
            closed.cancelled().await;
        }
    }

    #[tokio::test]
    async fn pings_are_answered_while_nothing_else_happens() {
        let (near, far) = tokio::io::duplex(4096);
        let _channels = serve(far, Encoding::Binary, &[0], IDLE).await;
        let mut client = client(near).await;
        client.send(Message::Ping(Bytes::from_static(b"x"))).await.unwrap();
        assert_eq!(client.next().await.unwrap().unwrap(), Message::Pong(Bytes::from_static(b"x")));
    }

    #[tokio::test]
    async fn a_tunnel_joins_messages() {
        let (near, far) = tokio::io::duplex(4096);
        let mut stream = tunnel(far).await;
        let mut client = client(near).await;
        client.send(Message::Binary(Bytes::from_static(b"ab"))).await.unwrap();
        client.send(Message::Binary(Bytes::from_static(b"cd"))).await.unwrap();
        let mut bytes = [0u8; 4];
        stream.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"abcd");
        stream.write_all(b"back").await.unwrap();
        assert_eq!(client.next().await.unwrap().unwrap(), Message::Binary(Bytes::from_static(b"back")));
        client.close(None).await.unwrap();
        assert_eq!(stream.read(&mut bytes).await.unwrap(), 0);
    }

    #[test]
    fn strange_messages_carry_nothing() {
        assert!(content(Encoding::Binary, &Message::Binary(Bytes::new())).is_none());
        assert!(content(Encoding::Base64, &Message::Text("0!!".into())).is_none());
        assert!(content(Encoding::Base64, &Message::Text("\u{1}aa".into())).is_none());
        assert!(content(Encoding::Binary, &Message::Pong(Bytes::new())).is_none());
    }
}
