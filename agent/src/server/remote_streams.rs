//! Opening a client's streams for `exec` and `attach`, in the protocols that clients speak.

use super::answer::{Answer, text};
use super::channels::{self, Encoding};
use super::remote::{Dialect, Input, Output, Remote};
use super::spdy::{Connection, Stream};
use super::upgrade::{self, Kind, Refused};
use crate::runtime::Streams;
use http::{HeaderMap, StatusCode};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// The kubelet's default of `streamingConnectionIdleTimeout`.
pub const IDLE: Duration = Duration::from_secs(4 * 3600);
/// How long a client may take to open its streams.
const STREAM_CREATION: Duration = Duration::from_secs(30);

/// Protocols within SPDY, the newest first.
const SPDY: [&str; 4] = ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];
/// Protocols within WebSocket.
const WEBSOCKET: [&str; 5] = [
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
];

/// Channels of a WebSocket, by number.
mod channel {
    pub const STDIN: u8 = 0;
    pub const STDOUT: u8 = 1;
    pub const STDERR: u8 = 2;
    pub const ERROR: u8 = 3;
    pub const RESIZE: u8 = 4;
}

/// What was agreed on.
#[derive(Debug, Clone, Copy)]
pub struct Protocol {
    kind: Kind,
    name: &'static str,
}

/// Agrees with the client on a protocol; the answer confirms it.
///
/// # Errors
/// The client wants no upgrade, or speaks nothing that we do.
pub fn negotiate(headers: &HeaderMap) -> Result<(Answer, Protocol), Refused> {
    let kind = upgrade::wanted(headers).ok_or_else(|| {
        Refused(Box::new(text(StatusCode::INTERNAL_SERVER_ERROR, "Upgrade request required")))
    })?;
    let agreed = match kind {
        Kind::Spdy => upgrade::spdy(headers, &SPDY)?,
        Kind::WebSocket => upgrade::websocket(headers, &WEBSOCKET)?,
    };
    Ok((agreed.answer, Protocol { kind, name: agreed.protocol }))
}

/// Why a client's streams were not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Streams are missing.
    #[error("timed out waiting for client to create streams")]
    TimedOut,
    /// The client left.
    #[error("the client closed the connection before it had created its streams")]
    Closed,
}

impl Protocol {
    /// Whether the client speaks WebSocket.
    pub fn is_websocket(self) -> bool {
        self.kind == Kind::WebSocket
    }

    /// Opens the streams on an upgraded connection.
    ///
    /// # Errors
    /// The client does not create the streams that it has asked for.
    pub async fn open<T>(self, io: T, streams: Streams) -> Result<Remote, OpenError>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        match self.kind {
            Kind::WebSocket => Ok(self.websocket(io, streams).await),
            Kind::Spdy => {
                let gather = self.spdy(Connection::server(io, IDLE), streams);
                tokio::time::timeout(STREAM_CREATION, gather).await.map_err(|_| OpenError::TimedOut)?
            }
        }
    }

    fn dialect(self) -> Dialect {
        match self.name.split('.').next() {
            Some("v5") => Dialect::Translated,
            Some("v4") => Dialect::Status,
            _ => Dialect::Text,
        }
    }

    async fn websocket<T>(self, io: T, streams: Streams) -> Remote
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let encoding = if self.name.contains("base64") { Encoding::Base64 } else { Encoding::Binary };
        let opened = channels::serve(io, encoding, &[channel::STDIN, channel::RESIZE], IDLE).await;
        let output = |number| Output::Channel(number, opened.outgoing.clone());
        let mut incoming = opened.incoming.into_iter().map(Input::Channel);
        let (stdin, resize) = (incoming.next(), incoming.next());
        let remote = Remote {
            stdin: stdin.filter(|_| streams.stdin),
            stdout: streams.stdout.then(|| output(channel::STDOUT)),
            stderr: streams.stderr.then(|| output(channel::STDERR)),
            resize,
            error: output(channel::ERROR),
            dialect: self.dialect(),
            gone: opened.closed,
            _kept: None,
        };
        // An empty message tells the client that the connection works.
        let first = remote.stdout.as_ref().or(remote.stderr.as_ref()).unwrap_or(&remote.error);
        first.write(bytes::Bytes::new()).await;
        remote
    }

    async fn spdy(self, mut connection: Connection, streams: Streams) -> Result<Remote, OpenError> {
        let resizes = streams.tty && matches!(self.dialect(), Dialect::Status) || {
            // Resizing came with v3, the outcome as a Status only with v4.
            streams.tty && self.name.starts_with("v3")
        };
        let wanted = [true, streams.stdin, streams.stdout, streams.stderr, resizes];
        let expected = wanted.into_iter().filter(|w| *w).count();
        let (mut error, mut stdin, mut stdout, mut stderr, mut resize) = (None, None, None, None, None);
        let mut kept: Vec<Stream> = Vec::new();
        let mut received = 0;
        while received < expected {
            let stream = connection.accept().await.ok_or(OpenError::Closed)?;
            stream.accept().await;
            let place = match stream.headers().get("streamType") {
                "stdin" => {
                    stdin = Some(Input::Spdy(stream));
                    received += 1;
                    continue;
                }
                "resize" => {
                    resize = Some(Input::Spdy(stream));
                    received += 1;
                    continue;
                }
                "error" => &mut error,
                "stdout" => &mut stdout,
                "stderr" => &mut stderr,
                other => {
                    tracing::debug!(kind = other, "unexpected stream type");
                    continue;
                }
            };
            *place = Some(Output::Spdy(stream.writer()));
            kept.push(stream);
            received += 1;
        }
        Ok(Remote {
            stdin: stdin.filter(|_| streams.stdin),
            stdout: stdout.filter(|_| streams.stdout),
            stderr: stderr.filter(|_| streams.stderr),
            resize,
            error: error.ok_or(OpenError::Closed)?,
            dialect: self.dialect(),
            gone: connection.closed().clone(),
            _kept: Some((connection, kept)),
        })
    }
}
