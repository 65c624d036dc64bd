//! What the engine stores for one change of one key.
//!
//! ```text
//! flags u8 (1: deleted) · create_revision i64 · version i64 · lease i64 · key length u32 · key · value
//! ```
//! All numbers are little-endian. The place of a record in history is its [`RevKey`].

use crate::KeyValue;
use bytes::{BufMut, Bytes, BytesMut};

/// Place of a change in history: its revision and its number within that revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RevKey {
    /// The revision, at least 2.
    pub main: i64,
    /// Number of the change within the revision, from 0.
    pub sub: u32,
}

const HEADER: usize = 1 + 8 + 8 + 8 + 4;
const DELETED: u8 = 1;

/// A decoded record; key and value share the record's buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub deleted: bool,
    pub create: i64,
    pub version: i64,
    pub lease: i64,
    pub key: Bytes,
    pub value: Bytes,
}

impl Record {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(HEADER + self.key.len() + self.value.len());
        out.put_u8(if self.deleted { DELETED } else { 0 });
        out.put_i64_le(self.create);
        out.put_i64_le(self.version);
        out.put_i64_le(self.lease);
        out.put_u32_le(self.key.len() as u32);
        out.put_slice(&self.key);
        out.put_slice(&self.value);
        out.freeze()
    }

    /// `None`: not a record.
    pub(crate) fn decode(bytes: &Bytes) -> Option<Record> {
        let header = bytes.get(..HEADER)?;
        let number = |at: usize| Some(i64::from_le_bytes(header.get(at..at + 8)?.try_into().ok()?));
        let key_len = u32::from_le_bytes(header.get(25..29)?.try_into().ok()?) as usize;
        let key_end = HEADER.checked_add(key_len)?;
        if key_end > bytes.len() {
            return None;
        }
        Some(Record {
            deleted: header[0] & DELETED != 0,
            create: number(1)?,
            version: number(9)?,
            lease: number(17)?,
            key: bytes.slice(HEADER..key_end),
            value: bytes.slice(key_end..),
        })
    }

    pub(crate) fn into_kv(self, mod_revision: i64) -> KeyValue {
        KeyValue {
            key: self.key,
            value: self.value,
            create_revision: self.create,
            mod_revision,
            version: self.version,
            lease: self.lease,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn decodes_what_it_encoded(deleted: bool, create: i64, version: i64, lease: i64, key: Vec<u8>, value: Vec<u8>) {
            let record = Record { deleted, create, version, lease, key: key.into(), value: value.into() };
            prop_assert_eq!(Record::decode(&record.encode()), Some(record));
        }

        #[test]
        fn any_bytes_decode_or_not_without_panic(bytes: Vec<u8>) {
            let _ = Record::decode(&bytes.into());
        }
    }
}
