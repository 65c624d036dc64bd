//! One connection and its streams.

use super::frame::{Decoder, Encoder, Frame, status};
use super::{Headers, SpdyError};
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Frames that wait to be written.
const OUTGOING: usize = 32;
/// Pieces of data that wait for the reader of one stream. A stream that is not read holds up its connection.
const INCOMING: usize = 16;
/// Streams of a connection at a time.
const STREAMS: usize = 1024;
/// Bytes collected before they are written.
const BATCH: usize = 64 << 10;
/// How long the other side may take to close after us.
const LINGER: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Open {
    /// Gone once the other side has said its last.
    data: Option<mpsc::Sender<Bytes>>,
    reset: CancellationToken,
    /// Cancelled once the other side has accepted a stream of ours.
    accepted: CancellationToken,
}

type Streams = Arc<Mutex<HashMap<u32, Open>>>;

/// A connection. Dropping it, its streams and writers closes it after what was written is sent.
pub struct Connection {
    incoming: mpsc::Receiver<Stream>,
    closed: CancellationToken,
    frames: mpsc::Sender<Frame>,
    streams: Streams,
    /// Number of the next stream of ours.
    next: u32,
}

/// Which side of a connection this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Server,
}

impl Side {
    /// Whether a stream or ping of this number was made by the other side: clients use odd numbers.
    fn is_theirs(self, id: u32) -> bool {
        (id % 2 == 1) == (self == Side::Server)
    }
}

/// A stream of either side.
#[derive(Debug)]
pub struct Stream {
    id: u32,
    headers: Headers,
    data: mpsc::Receiver<Bytes>,
    reset: CancellationToken,
    accepted: CancellationToken,
    frames: mpsc::Sender<Frame>,
    streams: Streams,
}

/// The sending side of a stream.
#[derive(Debug, Clone)]
pub struct Writer {
    id: u32,
    frames: mpsc::Sender<Frame>,
    reset: CancellationToken,
}

impl Writer {
    /// Sends bytes. `false` when nobody receives them any more.
    pub async fn write(&self, bytes: Bytes) -> bool {
        if self.reset.is_cancelled() {
            return false;
        }
        self.frames.send(Frame::Data { id: self.id, fin: false, bytes }).await.is_ok()
    }

    /// Says that nothing more comes.
    pub async fn close(&self) {
        let _ = self.frames.send(Frame::Data { id: self.id, fin: true, bytes: Bytes::new() }).await;
    }

    /// Ends the stream in both directions.
    pub async fn reset(&self) {
        let _ = self.frames.send(Frame::Reset { id: self.id, status: status::CANCEL }).await;
    }
}

impl Stream {
    /// Its number.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// What it is for.
    pub fn headers(&self) -> &Headers {
        &self.headers
    }

    /// Tells the other side that the stream is accepted.
    pub async fn accept(&self) {
        let reply = Frame::SynReply { id: self.id, fin: false, headers: Headers::default() };
        let _ = self.frames.send(reply).await;
    }

    /// Waits until the other side has accepted this stream of ours; `false` when it has refused it, or is gone.
    pub async fn is_accepted(&self) -> bool {
        tokio::select! {
            biased;
            () = self.accepted.cancelled() => true,
            () = self.reset.cancelled() => false,
        }
    }

    /// Resets the stream.
    pub async fn refuse(self) {
        self.writer().reset().await;
    }

    /// The sending side.
    pub fn writer(&self) -> Writer {
        Writer { id: self.id, frames: self.frames.clone(), reset: self.reset.clone() }
    }

    /// Cancelled when the other side resets the stream, or the connection is gone.
    pub fn reset(&self) -> &CancellationToken {
        &self.reset
    }

    /// What comes next; `None` after the last.
    pub async fn read(&mut self) -> Option<Bytes> {
        self.data.recv().await
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.streams.lock().remove(&self.id);
    }
}

impl Connection {
    /// Serves the other side's streams on `io`. A connection on which nothing comes for `idle` is closed.
    pub fn server<T: AsyncRead + AsyncWrite + Send + 'static>(io: T, idle: Duration) -> Self {
        Self::start(io, idle, Side::Server)
    }

    /// Opens streams on `io`. A connection on which nothing comes for `idle` is closed.
    pub fn client<T: AsyncRead + AsyncWrite + Send + 'static>(io: T, idle: Duration) -> Self {
        Self::start(io, idle, Side::Client)
    }

    fn start<T: AsyncRead + AsyncWrite + Send + 'static>(io: T, idle: Duration, side: Side) -> Self {
        let (reader, writer) = tokio::io::split(io);
        let (frames, queue) = mpsc::channel(OUTGOING);
        let (accepted, incoming) = mpsc::channel(INCOMING);
        let closed = CancellationToken::new();
        let written = CancellationToken::new();
        let streams = Streams::default();
        let receive = Receive {
            side,
            frames: frames.downgrade(),
            accepted,
            streams: streams.clone(),
            last: 0,
            closed: closed.clone(),
        };
        tokio::spawn(write(writer, queue, closed.clone(), written.clone()));
        tokio::spawn(read(reader, receive, idle, written));
        // As long as somebody holds the connection, it is open even when it has no streams.
        Self { incoming, closed, frames, streams, next: 1 }
    }

    /// Opens a stream of a client; [`Stream::is_accepted`] waits for the answer.
    pub async fn open(&mut self, headers: Headers) -> Stream {
        let id = self.next;
        self.next = self.next.saturating_add(2);
        let (sender, data) = mpsc::channel(INCOMING);
        let (reset, accepted) = (CancellationToken::new(), CancellationToken::new());
        let open = Open { data: Some(sender), reset: reset.clone(), accepted: accepted.clone() };
        self.streams.lock().insert(id, open);
        let frame = Frame::SynStream { id, fin: false, headers };
        if self.closed.is_cancelled() || self.frames.send(frame).await.is_err() {
            reset.cancel();
        }
        Stream {
            id,
            headers: Headers::default(),
            data,
            reset,
            accepted,
            frames: self.frames.clone(),
            streams: self.streams.clone(),
        }
    }

    /// The next stream; `None` when no more come.
    pub async fn accept(&mut self) -> Option<Stream> {
        self.incoming.recv().await
    }

    /// Cancelled when the connection is gone.
    pub fn closed(&self) -> &CancellationToken {
        &self.closed
    }
}

/// Reads: the queue of frames. Writes: the connection.
async fn write<T: AsyncWrite>(
    mut io: WriteHalf<T>,
    mut queue: mpsc::Receiver<Frame>,
    closed: CancellationToken,
    written: CancellationToken,
) {
    let mut encoder = Encoder::default();
    let mut out = BytesMut::new();
    let result = async {
        while let Some(frame) = queue.recv().await {
            encoder.encode(frame, &mut out);
            while out.len() < BATCH
                && let Ok(frame) = queue.try_recv()
            {
                encoder.encode(frame, &mut out);
            }
            io.write_all(&out).await?;
            io.flush().await?;
            out.clear();
        }
        encoder.encode(Frame::GoAway { last: 0, status: 0 }, &mut out);
        io.write_all(&out).await?;
        io.shutdown().await
    };
    tokio::select! {
        () = closed.cancelled() => {}
        result = result => if let Err(error) = result {
            tracing::debug!(%error, "a SPDY connection cannot be written");
            closed.cancel();
        },
    }
    written.cancel();
}

struct Receive {
    side: Side,
    frames: mpsc::WeakSender<Frame>,
    accepted: mpsc::Sender<Stream>,
    streams: Streams,
    last: u32,
    closed: CancellationToken,
}

/// Reads: the connection. Writes: streams.
async fn read<T: AsyncRead>(
    mut io: ReadHalf<T>,
    mut receive: Receive,
    idle: Duration,
    written: CancellationToken,
) {
    let mut decoder = Decoder::default();
    loop {
        let frame = tokio::select! {
            biased;
            () = written.cancelled() => {
                let mut rest = vec![0u8; 4096];
                let drain = async { while io.read(&mut rest).await.is_ok_and(|n| n > 0) {} };
                let _ = tokio::time::timeout(LINGER, drain).await;
                break;
            }
            frame = tokio::time::timeout(idle, decoder.read(&mut io)) => frame,
        };
        match frame {
            Ok(Ok(Some(frame))) => receive.take(frame).await,
            Ok(Ok(None)) | Err(_) => break,
            Ok(Err(error)) => {
                tracing::debug!(%error, "a SPDY connection ends");
                break;
            }
        }
    }
    receive.closed.cancel();
    for (_, open) in receive.streams.lock().drain() {
        open.reset.cancel();
    }
}

impl Receive {
    async fn take(&mut self, frame: Frame) {
        match frame {
            Frame::SynStream { id, fin, headers } => self.opened(id, fin, headers).await,
            Frame::Data { id, fin, bytes } => self.data(id, fin, bytes).await,
            Frame::Reset { id, .. } => {
                if let Some(open) = self.streams.lock().remove(&id) {
                    open.reset.cancel();
                }
            }
            Frame::Ping(id) if self.side.is_theirs(id) => self.send(Frame::Ping(id)).await,
            Frame::SynReply { id, fin, .. } => {
                if let Some(open) = self.streams.lock().get(&id) {
                    open.accepted.cancel();
                }
                if fin {
                    self.half_close(id);
                }
            }
            Frame::Headers { id, fin: true, .. } => self.half_close(id),
            Frame::Headers { .. } | Frame::Ping(_) | Frame::GoAway { .. } | Frame::FlowControl => {}
        }
    }

    async fn send(&self, frame: Frame) {
        if let Some(frames) = self.frames.upgrade() {
            let _ = frames.send(frame).await;
        }
    }

    async fn opened(&mut self, id: u32, fin: bool, headers: Headers) {
        let room = self.streams.lock().len() < STREAMS;
        let fresh = self.side == Side::Server && self.side.is_theirs(id) && id > self.last;
        let (Some(frames), true, true) = (self.frames.upgrade(), room, fresh) else {
            return self.send(Frame::Reset { id, status: status::REFUSED_STREAM }).await;
        };
        self.last = id;
        let (sender, data) = mpsc::channel(INCOMING);
        let (reset, accepted) = (CancellationToken::new(), CancellationToken::new());
        let open = Open { data: (!fin).then_some(sender), reset: reset.clone(), accepted: accepted.clone() };
        self.streams.lock().insert(id, open);
        let stream = Stream { id, headers, data, reset, accepted, frames, streams: self.streams.clone() };
        if self.accepted.send(stream).await.is_err() {
            self.send(Frame::Reset { id, status: status::REFUSED_STREAM }).await;
        }
    }

    async fn data(&self, id: u32, fin: bool, bytes: Bytes) {
        let found = self.streams.lock().get(&id).map(|open| open.data.clone());
        match found {
            Some(Some(sender)) if !bytes.is_empty() => {
                // One who has stopped reading misses nothing.
                let _ = sender.send(bytes).await;
            }
            Some(_) => {}
            None if !fin => self.send(Frame::Reset { id, status: status::INVALID_STREAM }).await,
            None => {}
        }
        if fin {
            self.half_close(id);
        }
    }

    fn half_close(&self, id: u32) {
        if let Some(open) = self.streams.lock().get_mut(&id) {
            open.data = None;
        }
    }
}

impl From<SpdyError> for std::io::Error {
    fn from(error: SpdyError) -> Self {
        match error {
            SpdyError::Io(error) => error,
            other => Self::other(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(60);

    fn pair() -> (Connection, Connection) {
        let (a, b) = tokio::io::duplex(16 << 10);
        (Connection::client(a, IDLE), Connection::server(b, IDLE))
    }

    #[tokio::test]
    async fn streams_carry_data_both_ways_and_end() {
        let (mut client, mut server) = pair();
        let mut ours = client.open(Headers::of(&[("streamType", "data"), ("port", "80")])).await;
        let mut theirs = server.accept().await.unwrap();
        assert_eq!((theirs.id(), theirs.headers().get("streamtype")), (1, "data"));
        theirs.accept().await;
        assert!(ours.is_accepted().await);
        assert!(ours.writer().write(Bytes::from_static(b"ping")).await);
        ours.writer().close().await;
        assert_eq!(theirs.read().await.unwrap(), "ping");
        assert_eq!(theirs.read().await, None);
        let big = Bytes::from(vec![1u8; 1 << 20]);
        let writer = theirs.writer();
        let send = big.clone();
        tokio::spawn(async move {
            writer.write(send).await;
            writer.close().await;
        });
        let mut got = 0;
        while let Some(bytes) = ours.read().await {
            got += bytes.len();
        }
        assert_eq!(got, big.len());
    }

    #[tokio::test]
    async fn a_reset_reaches_the_other_side() {
        let (mut client, mut server) = pair();
        let ours = client.open(Headers::default()).await;
        let mut theirs = server.accept().await.unwrap();
        ours.writer().reset().await;
        theirs.reset().cancelled().await;
        assert_eq!(theirs.read().await, None);
        assert!(!theirs.writer().write(Bytes::from_static(b"x")).await);
        let second = client.open(Headers::default()).await;
        server.accept().await.unwrap().refuse().await;
        second.reset().cancelled().await;
        assert!(!second.is_accepted().await);
    }

    #[tokio::test]
    async fn dropping_everything_closes_the_connection_after_the_last_byte() {
        let (mut client, mut server) = pair();
        let mut ours = client.open(Headers::default()).await;
        let theirs = server.accept().await.unwrap();
        theirs.writer().write(Bytes::from_static(b"last")).await;
        theirs.writer().close().await;
        drop((theirs, server));
        assert_eq!(ours.read().await.unwrap(), "last");
        assert_eq!(ours.read().await, None);
        client.closed().cancelled().await;
        assert!(client.accept().await.is_none());
    }

    #[tokio::test]
    async fn pings_are_answered_and_bad_streams_refused() {
        use tokio::io::AsyncWriteExt;
        let (mut raw, other) = tokio::io::duplex(16 << 10);
        let mut server = Connection::server(other, IDLE);
        let (mut encoder, mut out) = (Encoder::default(), BytesMut::new());
        encoder.encode(Frame::Ping(3), &mut out);
        encoder.encode(Frame::Ping(4), &mut out);
        encoder.encode(Frame::FlowControl, &mut out);
        encoder.encode(Frame::SynStream { id: 2, fin: false, headers: Headers::default() }, &mut out);
        encoder.encode(Frame::SynStream { id: 5, fin: true, headers: Headers::default() }, &mut out);
        encoder.encode(Frame::SynStream { id: 3, fin: true, headers: Headers::default() }, &mut out);
        encoder.encode(Frame::Data { id: 9, fin: false, bytes: Bytes::from_static(b"?") }, &mut out);
        raw.write_all(&out).await.unwrap();
        let mut stream = server.accept().await.unwrap();
        assert_eq!((stream.id(), stream.read().await), (5, None));
        let mut decoder = Decoder::default();
        let mut seen = Vec::new();
        for _ in 0..4 {
            seen.push(decoder.read(&mut raw).await.unwrap().unwrap());
        }
        let expected = [
            Frame::Ping(3),
            Frame::Reset { id: 2, status: status::REFUSED_STREAM },
            Frame::Reset { id: 3, status: status::REFUSED_STREAM },
            Frame::Reset { id: 9, status: status::INVALID_STREAM },
        ];
        assert_eq!(seen, expected);
        drop(raw);
        server.closed().cancelled().await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_is_closed() {
        let (raw, other) = tokio::io::duplex(1024);
        let server = Connection::server(other, Duration::from_secs(5));
        server.closed().cancelled().await;
        drop(raw);
    }
}
