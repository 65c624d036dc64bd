//! Header blocks of SPDY/3.1: name-value pairs, compressed by one zlib stream a direction with a dictionary that both
//! sides know (SPDY protocol draft 3, section 2.6.10).

use super::SpdyError;
use flate2::{Decompress, FlushDecompress, Status};
use std::sync::OnceLock;

/// Longest header block after decompression, bytes.
const MAX_BLOCK: usize = 64 << 10;
/// Adler-32 of the dictionary, which zlib streams name it by.
const DICTIONARY_ID: [u8; 4] = [0xe3, 0xc6, 0xa7, 0xc2];
/// An empty stored block: what a zlib flush leaves at the end of its output.
const FLUSH: [u8; 5] = [0, 0, 0, 0xff, 0xff];
/// Longest stored block.
const MAX_STORED: usize = u16::MAX as usize;

/// Words of the dictionary that come with their length before them.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
    accept-ranges age allow authorization cache-control connection content-base content-encoding content-language \
    content-length content-location content-md5 content-range content-type date etag expect expires from host \
    if-match if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma \
    proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
    user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie \
    keep-alive origin";
/// What follows them.
const TEXT: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 \
    Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 \
    Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept \
    Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,\
    application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=\
    utf-8charset=iso-8859-1,utf-,*,enq=0.";

fn dictionary() -> &'static [u8] {
    static DICTIONARY: OnceLock<Vec<u8>> = OnceLock::new();
    DICTIONARY.get_or_init(|| {
        let mut bytes = Vec::new();
        for word in WORDS.split_ascii_whitespace() {
            put(&mut bytes, word.replace('_', " ").as_bytes());
        }
        bytes.extend_from_slice(TEXT.as_bytes());
        bytes
    })
}

/// Length and bytes.
fn put(to: &mut Vec<u8>, bytes: &[u8]) {
    to.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    to.extend_from_slice(bytes);
}

/// Headers of a stream. Names are compared without regard to case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(String, String)>);

impl Headers {
    /// These headers.
    #[must_use]
    pub fn of(pairs: &[(&str, &str)]) -> Self {
        Self(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    /// The first value of a header; empty when there is none.
    pub fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&u32::try_from(self.0.len()).unwrap_or(u32::MAX).to_be_bytes());
        for (name, value) in &self.0 {
            put(&mut bytes, name.to_ascii_lowercase().as_bytes());
            put(&mut bytes, value.as_bytes());
        }
        bytes
    }

    fn decode(mut bytes: &[u8]) -> Option<Self> {
        let number = |bytes: &mut &[u8]| -> Option<usize> {
            let (head, rest) = bytes.split_first_chunk::<4>()?;
            *bytes = rest;
            usize::try_from(u32::from_be_bytes(*head)).ok()
        };
        let count = number(&mut bytes)?;
        let mut headers = Vec::new();
        for _ in 0..count {
            let mut text = || -> Option<String> {
                let length = number(&mut bytes)?;
                let (head, rest) = bytes.split_at_checked(length)?;
                bytes = rest;
                String::from_utf8(head.to_vec()).ok()
            };
            let (name, values) = (text()?, text()?);
            // Several values are separated by a zero byte.
            headers.extend(values.split('\0').map(|value| (name.clone(), value.to_owned())));
        }
        bytes.is_empty().then_some(Self(headers))
    }
}

/// Writes header blocks. They are stored, not compressed: they are few and short.
#[derive(Debug, Default)]
pub struct Encoder {
    started: bool,
}

impl Encoder {
    /// The next block of the stream.
    pub fn encode(&mut self, headers: &Headers) -> Vec<u8> {
        let mut out = Vec::new();
        if !self.started {
            self.started = true;
            // Deflate with a window of 32 KiB and a preset dictionary (RFC 1950).
            out.extend_from_slice(&[0x78, 0x20]);
            out.extend_from_slice(&DICTIONARY_ID);
        }
        stored(&mut out, &headers.encode());
        out.extend_from_slice(&FLUSH);
        out
    }
}

fn stored(out: &mut Vec<u8>, bytes: &[u8]) {
    for part in bytes.chunks(MAX_STORED) {
        let length = u16::try_from(part.len()).unwrap_or(u16::MAX);
        out.push(0);
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&(!length).to_le_bytes());
        out.extend_from_slice(part);
    }
}

/// Reads header blocks.
#[derive(Debug, Default)]
pub struct Decoder {
    inflate: Option<Decompress>,
}

impl Decoder {
    /// The headers in the next block of the stream.
    ///
    /// # Errors
    /// The block is damaged or too long. The stream cannot be read on then.
    pub fn decode(&mut self, block: &[u8]) -> Result<Headers, SpdyError> {
        let mut input = block;
        if self.inflate.is_none() {
            let (head, rest) = input.split_first_chunk::<6>().ok_or(SpdyError::Headers)?;
            let known = head[0] & 0x0f == 8
                && u16::from_be_bytes([head[0], head[1]]).is_multiple_of(31)
                && head[1] & 0x20 != 0
                && head[2..] == DICTIONARY_ID;
            if !known {
                return Err(SpdyError::Headers);
            }
            input = rest;
            // A dictionary is data that went before. The inflater has no call for it, so it reads it as such.
            let mut inflate = Decompress::new(false);
            let mut primer = Vec::new();
            stored(&mut primer, dictionary());
            run(&mut inflate, &primer)?;
            self.inflate = Some(inflate);
        }
        let inflate = self.inflate.as_mut().ok_or(SpdyError::Headers)?;
        Headers::decode(&run(inflate, input)?).ok_or(SpdyError::Headers)
    }
}

fn run(inflate: &mut Decompress, mut input: &[u8]) -> Result<Vec<u8>, SpdyError> {
    let mut out = Vec::new();
    let mut buffer = [0u8; 4096];
    loop {
        let (before_in, before_out) = (inflate.total_in(), inflate.total_out());
        let status =
            inflate.decompress(input, &mut buffer, FlushDecompress::Sync).map_err(|_| SpdyError::Headers)?;
        let taken = usize::try_from(inflate.total_in() - before_in).map_err(|_| SpdyError::Headers)?;
        let made = usize::try_from(inflate.total_out() - before_out).map_err(|_| SpdyError::Headers)?;
        input = input.get(taken..).ok_or(SpdyError::Headers)?;
        out.extend_from_slice(buffer.get(..made).ok_or(SpdyError::Headers)?);
        if out.len() > MAX_BLOCK || matches!(status, Status::StreamEnd) {
            return Err(SpdyError::Headers);
        }
        if taken == 0 && made == 0 {
            return if input.is_empty() { Ok(out) } else { Err(SpdyError::Headers) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What Python's zlib makes of `streamtype: error` and then `streamtype: data`, `port: 80` with the dictionary.
    const FIRST: &str = "78f9e3c6a7c202a62346703a2b294a4dcc851625aca9a08006000000ffff";
    const SECOND: &str = "02651c0c295029930829b08b40899bc9c200000000ffff";

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
    }

    #[test]
    fn the_dictionary_is_the_drafts() {
        assert_eq!(dictionary().len(), 1423);
        let (mut a, mut b) = (1u32, 0u32);
        for byte in dictionary() {
            a = (a + u32::from(*byte)) % 65_521;
            b = (b + a) % 65_521;
        }
        assert_eq!(((b << 16) | a).to_be_bytes(), DICTIONARY_ID);
    }

    #[test]
    fn blocks_of_a_real_compressor() {
        let mut decoder = Decoder::default();
        let first = decoder.decode(&bytes(FIRST)).unwrap();
        assert_eq!(first.0, [("streamtype".to_owned(), "error".to_owned())]);
        let second = decoder.decode(&bytes(SECOND)).unwrap();
        assert_eq!((second.get("streamType"), second.get("Port"), second.get("x")), ("data", "80", ""));
    }

    #[test]
    fn damaged_blocks_are_errors() {
        for bad in ["", "7820e3c6a7c3", "7820e3c6a7c200", "789c", "7820e3c6a7c2ffffffffff"] {
            assert!(Decoder::default().decode(&bytes(bad)).is_err(), "{bad}");
        }
        // A pair that claims to be longer than the block.
        let mut block = vec![0x78, 0x20];
        block.extend_from_slice(&DICTIONARY_ID);
        stored(&mut block, &[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]);
        assert!(Decoder::default().decode(&block).is_err());
    }

    #[test]
    fn a_bomb_is_refused() {
        let mut deflate = flate2::Compress::new(flate2::Compression::best(), false);
        let mut out = Vec::with_capacity(1 << 20);
        deflate.compress_vec(&vec![0; 8 << 20], &mut out, flate2::FlushCompress::Sync).unwrap();
        let mut block = vec![0x78, 0x20];
        block.extend_from_slice(&DICTIONARY_ID);
        block.extend_from_slice(&out);
        assert!(Decoder::default().decode(&block).is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(blocks in proptest::collection::vec(
            proptest::collection::vec(("[a-z-]{1,20}", "[ -~]{0,300}"), 0..5), 1..5)) {
            let (mut encoder, mut decoder) = (Encoder::default(), Decoder::default());
            for pairs in blocks {
                let headers = Headers(pairs);
                prop_assert_eq!(decoder.decode(&encoder.encode(&headers)).unwrap(), headers);
            }
        }

        #[test]
        fn nothing_panics(block in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut whole = vec![0x78, 0x20];
            whole.extend_from_slice(&DICTIONARY_ID);
            whole.extend_from_slice(&block);
            let _ = Decoder::default().decode(&whole);
            let _ = Headers::decode(&block);
        }
    }
}
