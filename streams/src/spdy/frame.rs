//! Frames of SPDY/3.1 (SPDY protocol draft 3, section 2.6).

use super::SpdyError;
use super::headers::{Decoder as HeaderDecoder, Encoder as HeaderEncoder, Headers};
use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Longest control frame that is read, bytes.
const MAX_CONTROL: usize = 64 << 10;
/// Longest piece of data handed on at once, bytes; frames may be 16 MiB long.
const CHUNK: usize = 32 << 10;
/// The protocol's version number.
const VERSION: u16 = 3;
/// Nothing more comes on the stream from this side.
const FIN: u8 = 1;

/// Why a stream is reset.
pub mod status {
    /// A frame for a stream that is not open.
    pub const INVALID_STREAM: u32 = 2;
    /// The stream was refused before anything was done.
    pub const REFUSED_STREAM: u32 = 3;
    /// Whoever made the stream does not want it any more.
    pub const CANCEL: u32 = 5;
}

/// A frame, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Opens a stream.
    SynStream {
        /// Odd from the client, even from the server, rising.
        id: u32,
        /// The sender sends nothing on it.
        fin: bool,
        /// Says what it is for.
        headers: Headers,
    },
    /// Accepts a stream.
    SynReply {
        /// Of this stream.
        id: u32,
        /// The sender sends nothing on it.
        fin: bool,
        /// More about it.
        headers: Headers,
    },
    /// Ends a stream in both directions.
    Reset {
        /// Of this stream.
        id: u32,
        /// One of [`status`].
        status: u32,
    },
    /// Is echoed by the other side.
    Ping(u32),
    /// No new streams are accepted.
    GoAway {
        /// The last stream that was.
        last: u32,
        /// 0 when all is well.
        status: u32,
    },
    /// More headers of a stream.
    Headers {
        /// Of this stream.
        id: u32,
        /// Nothing more comes.
        fin: bool,
        /// The headers.
        headers: Headers,
    },
    /// Settings and window updates: there is no flow control but TCP's, as in the implementation that clients of
    /// Kubernetes use, which neither sends them nor obeys them.
    FlowControl,
    /// Content of a stream.
    Data {
        /// Of this stream.
        id: u32,
        /// Nothing more comes.
        fin: bool,
        /// The content.
        bytes: Bytes,
    },
}

/// Writes frames.
#[derive(Debug, Default)]
pub struct Encoder {
    headers: HeaderEncoder,
}

impl Encoder {
    /// Appends a frame to `out`.
    pub fn encode(&mut self, frame: Frame, out: &mut BytesMut) {
        match frame {
            Frame::SynStream { id, fin, headers } => {
                let block = self.headers.encode(&headers);
                control(out, 1, u8::from(fin) * FIN, 10 + block.len());
                out.put_u32(id);
                out.put_u32(0);
                out.put_u16(0);
                out.put_slice(&block);
            }
            Frame::SynReply { id, fin, headers } => self.with_headers(out, 2, id, fin, &headers),
            Frame::Headers { id, fin, headers } => self.with_headers(out, 8, id, fin, &headers),
            Frame::Reset { id, status } => {
                control(out, 3, 0, 8);
                out.put_u32(id);
                out.put_u32(status);
            }
            Frame::Ping(id) => {
                control(out, 6, 0, 4);
                out.put_u32(id);
            }
            Frame::GoAway { last, status } => {
                control(out, 7, 0, 8);
                out.put_u32(last);
                out.put_u32(status);
            }
            Frame::FlowControl => {
                control(out, 4, 0, 4);
                out.put_u32(0);
            }
            Frame::Data { id, fin, bytes } => {
                // The length has 24 bits; writers send far less at once.
                let mut parts = bytes.chunks(1 << 20).peekable();
                if parts.peek().is_none() {
                    data(out, id, fin, &[]);
                }
                while let Some(part) = parts.next() {
                    data(out, id, fin && parts.peek().is_none(), part);
                }
            }
        }
    }

    fn with_headers(&mut self, out: &mut BytesMut, kind: u16, id: u32, fin: bool, headers: &Headers) {
        let block = self.headers.encode(headers);
        control(out, kind, u8::from(fin) * FIN, 4 + block.len());
        out.put_u32(id);
        out.put_slice(&block);
    }
}

fn control(out: &mut BytesMut, kind: u16, flags: u8, length: usize) {
    out.put_u16(0x8000 | VERSION);
    out.put_u16(kind);
    flags_and_length(out, flags, length);
}

fn data(out: &mut BytesMut, id: u32, fin: bool, bytes: &[u8]) {
    out.put_u32(id & 0x7fff_ffff);
    flags_and_length(out, u8::from(fin) * FIN, bytes.len());
    out.put_slice(bytes);
}

fn flags_and_length(out: &mut BytesMut, flags: u8, length: usize) {
    let length = u32::try_from(length).unwrap_or(0x00ff_ffff) & 0x00ff_ffff;
    out.put_u32(u32::from(flags) << 24 | length);
}

/// Reads frames.
#[derive(Debug, Default)]
pub struct Decoder {
    headers: HeaderDecoder,
    /// What is left of a long data frame: stream, last flag, bytes.
    rest: Option<(u32, bool, usize)>,
}

impl Decoder {
    /// The next frame, a long data frame in pieces; `None` at the end of the connection.
    ///
    /// # Errors
    /// The connection failed, or what came is not SPDY/3.1: it cannot be read on then.
    pub async fn read<R: AsyncRead + Unpin>(&mut self, reader: &mut R) -> Result<Option<Frame>, SpdyError> {
        if let Some((id, fin, left)) = self.rest.take() {
            return self.data(reader, id, fin, left).await.map(Some);
        }
        let mut head = [0u8; 8];
        match reader.read(&mut head[..1]).await {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        reader.read_exact(&mut head[1..]).await?;
        let [a, b, c, d, flags, x, y, z] = head;
        let fin = flags & FIN != 0;
        let length = usize::try_from(u32::from_be_bytes([0, x, y, z])).map_err(|_| SpdyError::TooLong)?;
        if a & 0x80 == 0 {
            let id = u32::from_be_bytes([a, b, c, d]);
            return self.data(reader, id, fin, length).await.map(Some);
        }
        if u16::from_be_bytes([a & 0x7f, b]) != VERSION {
            return Err(SpdyError::Version);
        }
        if length > MAX_CONTROL {
            return Err(SpdyError::TooLong);
        }
        let mut body = vec![0u8; length];
        reader.read_exact(&mut body).await?;
        self.control(u16::from_be_bytes([c, d]), fin, &body).map(Some)
    }

    async fn data<R: AsyncRead + Unpin>(
        &mut self,
        reader: &mut R,
        id: u32,
        fin: bool,
        left: usize,
    ) -> Result<Frame, SpdyError> {
        let now = left.min(CHUNK);
        let mut bytes = vec![0u8; now];
        reader.read_exact(&mut bytes).await?;
        if left > now {
            self.rest = Some((id, fin, left - now));
        }
        Ok(Frame::Data { id, fin: fin && left == now, bytes: bytes.into() })
    }

    fn control(&mut self, kind: u16, fin: bool, body: &[u8]) -> Result<Frame, SpdyError> {
        let number = |at: usize| -> Result<u32, SpdyError> {
            let bytes = body.get(at..at + 4).and_then(|b| b.first_chunk::<4>()).ok_or(SpdyError::TooShort)?;
            Ok(u32::from_be_bytes(*bytes))
        };
        let id = || number(0).map(|id| id & 0x7fff_ffff);
        let after = |at: usize| body.get(at..).ok_or(SpdyError::TooShort);
        Ok(match kind {
            1 => Frame::SynStream { id: id()?, fin, headers: self.headers.decode(after(10)?)? },
            2 => Frame::SynReply { id: id()?, fin, headers: self.headers.decode(after(4)?)? },
            3 => Frame::Reset { id: id()?, status: number(4)? },
            6 => Frame::Ping(number(0)?),
            7 => Frame::GoAway { last: id()?, status: number(4)? },
            8 => Frame::Headers { id: id()?, fin, headers: self.headers.decode(after(4)?)? },
            // Unknown frames are to be ignored.
            _ => Frame::FlowControl,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    async fn read_all(mut bytes: &[u8]) -> Result<Vec<Frame>, SpdyError> {
        let mut decoder = Decoder::default();
        let mut frames = Vec::new();
        while let Some(frame) = decoder.read(&mut bytes).await? {
            frames.push(frame);
        }
        Ok(frames)
    }

    #[tokio::test]
    async fn frames_survive_a_round_trip() {
        let headers = Headers(vec![("streamtype".to_owned(), "stdin".to_owned())]);
        let frames = vec![
            Frame::SynStream { id: 1, fin: true, headers: headers.clone() },
            Frame::SynReply { id: 1, fin: false, headers: Headers::default() },
            Frame::Headers { id: 1, fin: false, headers },
            Frame::Data { id: 1, fin: false, bytes: Bytes::from_static(b"hello") },
            Frame::Data { id: 1, fin: true, bytes: Bytes::new() },
            Frame::Reset { id: 3, status: status::CANCEL },
            Frame::Ping(7),
            Frame::FlowControl,
            Frame::GoAway { last: 5, status: 0 },
        ];
        let (mut encoder, mut out) = (Encoder::default(), BytesMut::new());
        for frame in frames.clone() {
            encoder.encode(frame, &mut out);
        }
        assert_eq!(read_all(&out).await.unwrap(), frames);
    }

    #[tokio::test]
    async fn long_data_comes_in_pieces() {
        let mut out = BytesMut::new();
        let bytes = Bytes::from(vec![7u8; 3 << 20]);
        Encoder::default().encode(Frame::Data { id: 5, fin: true, bytes: bytes.clone() }, &mut out);
        let mut joined = Vec::new();
        let frames = read_all(&out).await.unwrap();
        let count = frames.len();
        for (index, frame) in frames.into_iter().enumerate() {
            let Frame::Data { id: 5, fin, bytes } = frame else { panic!("{frame:?}") };
            assert!(bytes.len() <= CHUNK);
            assert_eq!(fin, index == count - 1);
            joined.extend_from_slice(&bytes);
        }
        assert_eq!(joined, bytes);
    }

    #[tokio::test]
    async fn what_is_not_spdy_is_an_error() {
        let frames: [&[u8]; 5] = [
            b"GET / HTTP/1.1\r\n\r\n",
            &[0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1],
            &[0x80, 3, 0, 6, 0, 0, 0, 2, 0, 0],
            &[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff],
            &[0x80, 3, 0, 1, 0, 0, 0, 4, 0, 0, 0, 1],
        ];
        for bytes in frames {
            assert!(read_all(bytes).await.is_err(), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let _ = runtime.block_on(read_all(&bytes));
        }
    }
}
