//! The bytes of a segment.
//!
//! ```text
//! segment: "KELPLOG1" · salt u64 · frame…
//! frame:   magic u32 · payload length u32 · CRC-32 of (salt, offset of the frame, synced, payload) u32
//!          · synced u32 · payload
//! payload: entry…
//! entry:   1 · revision i64 · sub u32 · length u32 · CRC-32 of the record u32 · record      a record
//!          2 · revision i64 · sub u32                                                       a record is not needed
//!          3 · name length u16 · name · length u32 · value                                  a fact
//!          4 · name length u16 · name                                                       a fact is gone
//!          5                                                                                all facts are gone
//!          6 · segment u32                                                                  a segment is not needed
//! ```
//! Numbers are little-endian. A frame is one commit: it counts whole or not at all. The salt (random) and the offset
//! keep bytes that look like a frame, inside a value or left over from an older file, from being taken for one.
//! Everything before the offset `synced` was durable when the frame was written: what is broken there is damage, what
//! is broken after it may be the torn tail of a log that lost power.

use crate::record::RevKey;
use std::hash::{BuildHasher, Hasher, RandomState};

pub(super) const SEGMENT_HEADER: usize = 16;
pub(super) const FRAME_HEADER: usize = 16;
/// Bytes of a record entry before the record.
pub(super) const RECORD_HEADER: usize = 21;
/// Bytes of a removal entry.
pub(super) const REMOVAL: usize = 13;
/// Longest payload: what is longer is not a frame.
pub(super) const MAX_PAYLOAD: usize = 1 << 30;

const SEGMENT_MAGIC: &[u8; 8] = b"KELPLOG1";
const FRAME_MAGIC: u32 = 0x4b4c_5046;

/// One entry of a frame; offsets are relative to the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry<'a> {
    Record { at: RevKey, offset: usize, crc: u32, record: &'a [u8] },
    Removal { at: RevKey },
    Fact { name: &'a str, value: &'a [u8] },
    NoFact { name: &'a str },
    NoFacts,
    DropSegment { id: u32 },
}

/// A new salt and the segment header that holds it.
pub(super) fn segment_header() -> (u64, [u8; SEGMENT_HEADER]) {
    let salt = RandomState::new().build_hasher().finish();
    let mut header = [0; SEGMENT_HEADER];
    header[..8].copy_from_slice(SEGMENT_MAGIC);
    header[8..].copy_from_slice(&salt.to_le_bytes());
    (salt, header)
}

/// The salt in a segment's header; `None`: not a segment.
pub(super) fn salt_of(segment: &[u8]) -> Option<u64> {
    let header = segment.get(..SEGMENT_HEADER)?;
    let salt = header.strip_prefix(SEGMENT_MAGIC)?;
    Some(u64::from_le_bytes(salt.try_into().ok()?))
}

/// A frame under construction.
pub(super) struct FrameWriter {
    bytes: Vec<u8>,
}

impl FrameWriter {
    pub(super) fn new() -> Self {
        FrameWriter { bytes: vec![0; FRAME_HEADER] }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.len() == FRAME_HEADER
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Adds a record; returns its offset in the frame.
    pub(super) fn record(&mut self, at: RevKey, record: &[u8]) -> usize {
        self.bytes.push(1);
        self.at(at);
        self.bytes.extend_from_slice(&(record.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(&crc32fast::hash(record).to_le_bytes());
        let offset = self.bytes.len();
        self.bytes.extend_from_slice(record);
        offset
    }

    pub(super) fn removal(&mut self, at: RevKey) {
        self.bytes.push(2);
        self.at(at);
    }

    pub(super) fn fact(&mut self, name: &str, value: Option<&[u8]>) {
        self.bytes.push(if value.is_some() { 3 } else { 4 });
        self.bytes.extend_from_slice(&(name.len() as u16).to_le_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        if let Some(value) = value {
            self.bytes.extend_from_slice(&(value.len() as u32).to_le_bytes());
            self.bytes.extend_from_slice(value);
        }
    }

    pub(super) fn no_facts(&mut self) {
        self.bytes.push(5);
    }

    pub(super) fn drop_segment(&mut self, id: u32) {
        self.bytes.push(6);
        self.bytes.extend_from_slice(&id.to_le_bytes());
    }

    fn at(&mut self, at: RevKey) {
        self.bytes.extend_from_slice(&at.main.to_le_bytes());
        self.bytes.extend_from_slice(&at.sub.to_le_bytes());
    }

    /// The frame's bytes for its place, when everything before `synced` is durable.
    pub(super) fn finish(mut self, salt: u64, offset: u64, synced: u64) -> Vec<u8> {
        let synced = u32::try_from(synced).unwrap_or(u32::MAX);
        let (header, payload) = self.bytes.split_at_mut(FRAME_HEADER);
        header[..4].copy_from_slice(&FRAME_MAGIC.to_le_bytes());
        header[4..8].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        header[8..12].copy_from_slice(&checksum(salt, offset, synced, payload).to_le_bytes());
        header[12..].copy_from_slice(&synced.to_le_bytes());
        self.bytes
    }
}

fn checksum(salt: u64, offset: u64, synced: u32, payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&salt.to_le_bytes());
    crc.update(&offset.to_le_bytes());
    crc.update(&synced.to_le_bytes());
    crc.update(payload);
    crc.finalize()
}

/// The payload of the frame at `offset` in `bytes`, which begin at `base` in their segment, if there is a whole one.
pub(super) fn frame_at(bytes: &[u8], salt: u64, base: u64, offset: usize) -> Option<&[u8]> {
    frame_and_synced(bytes, salt, base, offset).map(|(payload, _)| payload)
}

fn frame_and_synced(bytes: &[u8], salt: u64, base: u64, offset: usize) -> Option<(&[u8], u32)> {
    let rest = bytes.get(offset..)?;
    let header = rest.get(..FRAME_HEADER)?;
    let number = |at: usize| header.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    let len = number(4)? as usize;
    if number(0)? != FRAME_MAGIC || len > MAX_PAYLOAD {
        return None;
    }
    let payload = rest.get(FRAME_HEADER..FRAME_HEADER + len)?;
    let synced = number(12)?;
    (number(8)? == checksum(salt, base + offset as u64, synced, payload)).then_some((payload, synced))
}

/// What is broken at `offset` was durable: a whole frame that was written later says so.
pub(super) fn was_synced(segment: &[u8], salt: u64, offset: usize) -> bool {
    let magic = FRAME_MAGIC.to_le_bytes();
    let tail = segment.get(offset + 1..).unwrap_or_default();
    let mut starts = tail.windows(magic.len()).enumerate().filter(|(_, window)| *window == magic);
    starts.any(|(at, _)| {
        let later = frame_and_synced(segment, salt, 0, offset + 1 + at);
        later.is_some_and(|(_, synced)| synced as usize > offset)
    })
}

/// The entries of a payload; ends with `None` instead of an entry if it is malformed.
pub(super) fn entries(payload: &[u8]) -> impl Iterator<Item = Option<Entry<'_>>> {
    let mut reader = Reader { payload, offset: 0 };
    std::iter::from_fn(move || {
        if reader.offset >= reader.payload.len() {
            return None;
        }
        let entry = reader.entry();
        if entry.is_none() {
            reader.offset = reader.payload.len();
        }
        Some(entry)
    })
}

struct Reader<'a> {
    payload: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let bytes = self.payload.get(self.offset..self.offset.checked_add(len)?)?;
        self.offset += len;
        Some(bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn at(&mut self) -> Option<RevKey> {
        let main = i64::from_le_bytes(self.take(8)?.try_into().ok()?);
        Some(RevKey { main, sub: self.u32()? })
    }

    fn name(&mut self) -> Option<&'a str> {
        let len = u16::from_le_bytes(self.take(2)?.try_into().ok()?);
        std::str::from_utf8(self.take(len.into())?).ok()
    }

    fn entry(&mut self) -> Option<Entry<'a>> {
        Some(match self.take(1)?.first()? {
            1 => {
                let at = self.at()?;
                let (len, crc) = (self.u32()? as usize, self.u32()?);
                let offset = self.offset;
                Entry::Record { at, offset, crc, record: self.take(len)? }
            }
            2 => Entry::Removal { at: self.at()? },
            3 => {
                let name = self.name()?;
                let len = self.u32()? as usize;
                Entry::Fact { name, value: self.take(len)? }
            }
            4 => Entry::NoFact { name: self.name()? },
            5 => Entry::NoFacts,
            6 => Entry::DropSegment { id: self.u32()? },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn segment(payloads: usize) -> (u64, Vec<u8>, Vec<usize>) {
        let (salt, header) = segment_header();
        let mut bytes = header.to_vec();
        let mut offsets = Vec::new();
        for n in 0..payloads {
            let mut frame = FrameWriter::new();
            frame.record(RevKey { main: n as i64, sub: 1 }, &[b'r'; 20]);
            frame.removal(RevKey { main: n as i64, sub: 2 });
            frame.fact("name", Some(b"value"));
            frame.fact("name", None);
            frame.no_facts();
            frame.drop_segment(7);
            offsets.push(bytes.len());
            // The first two are durable, the others are not yet.
            let synced = offsets.get(2).copied().unwrap_or(bytes.len());
            bytes.extend(frame.finish(salt, bytes.len() as u64, synced as u64));
        }
        (salt, bytes, offsets)
    }

    #[test]
    fn entries_come_back_as_they_were_written() {
        let (salt, bytes, offsets) = segment(1);
        assert_eq!(salt_of(&bytes), Some(salt));
        let payload = frame_at(&bytes, salt, 0, offsets[0]).unwrap();
        let at = |sub| RevKey { main: 0, sub };
        let record = [b'r'; 20];
        let expected = [
            Entry::Record {
                at: at(1),
                offset: RECORD_HEADER,
                crc: crc32fast::hash(&record),
                record: &record,
            },
            Entry::Removal { at: at(2) },
            Entry::Fact { name: "name", value: b"value" },
            Entry::NoFact { name: "name" },
            Entry::NoFacts,
            Entry::DropSegment { id: 7 },
        ];
        assert_eq!(entries(payload).collect::<Option<Vec<_>>>().unwrap(), expected);
    }

    #[test]
    fn a_torn_tail_is_told_from_damage() {
        let (salt, bytes, offsets) = segment(5);
        let torn = &bytes[..bytes.len() - 1];
        assert!(frame_at(torn, salt, 0, offsets[4]).is_none() && !was_synced(torn, salt, offsets[4]));
        for (n, offset) in offsets.iter().enumerate() {
            let mut broken = bytes.clone();
            broken[offset + 20] ^= 1;
            assert!(frame_at(&broken, salt, 0, *offset).is_none());
            // Later frames are whole in any case; what counts is whether this one was durable before them.
            assert_eq!(was_synced(&broken, salt, *offset), n < 2, "{n}");
        }
    }

    #[test]
    fn a_frame_counts_at_its_own_place_only() {
        let (salt, bytes, offsets) = segment(2);
        let mut moved = bytes.clone();
        moved.insert(SEGMENT_HEADER, 0);
        assert!(frame_at(&moved, salt, 0, offsets[0] + 1).is_none());
        assert!(frame_at(&bytes, salt ^ 1, 0, offsets[0]).is_none());
    }

    proptest! {
        #[test]
        fn any_payload_is_read_without_panic(payload: Vec<u8>) {
            let _ = entries(&payload).count();
        }

        #[test]
        fn any_flipped_bit_is_noticed(at in 0usize..200, bit in 0u8..8) {
            let (salt, mut bytes, offsets) = segment(1);
            let at = offsets[0] + at % (bytes.len() - offsets[0]);
            bytes[at] ^= 1 << bit;
            prop_assert!(frame_at(&bytes, salt, 0, offsets[0]).is_none());
        }
    }
}
