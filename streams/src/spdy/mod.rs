//! SPDY/3.1: streams multiplexed over one connection, what `exec`, `attach` and `port-forward` speak. The framing and
//! the meaning of frames are those of the SPDY protocol draft 3; the clients' counterpart is moby/spdystream.

mod connection;
pub mod frame;
pub mod headers;

pub use connection::{Connection, Stream, Writer};
pub use headers::Headers;

/// What ends a connection.
#[derive(Debug, thiserror::Error)]
pub enum SpdyError {
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Io(#[from] std::io::Error),
    /// A header block is damaged.
    #[error("a header block cannot be read")]
    Headers,
    /// A frame is longer than is accepted.
    #[error("a frame is too long")]
    TooLong,
    /// A frame is shorter than its kind must be.
    #[error("a frame is too short")]
    TooShort,
    /// Not SPDY/3.1.
    #[error("a frame is of another version of the protocol")]
    Version,
}
