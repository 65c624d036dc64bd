//! Protocol buffers on the wire, as far as plugins need them: strings, numbers, messages and maps of strings.
//!
//! The messages of the plugin protocols are a dozen, each of a few fields; a code generator would be more than they are.

use std::collections::BTreeMap;

/// Writes the fields of a message. Fields with their default value are left out, as proto3 has it.
#[derive(Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// The bytes of the message.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.0
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn delimited(&mut self, field: u32, bytes: &[u8]) {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    /// A string.
    #[must_use]
    pub fn string(mut self, field: u32, text: &str) -> Self {
        if !text.is_empty() {
            self.delimited(field, text.as_bytes());
        }
        self
    }

    /// A list of strings.
    #[must_use]
    pub fn strings<'a>(mut self, field: u32, texts: impl IntoIterator<Item = &'a str>) -> Self {
        texts.into_iter().for_each(|text| self.delimited(field, text.as_bytes()));
        self
    }

    /// A number, an enumeration or a truth.
    #[must_use]
    pub fn number(mut self, field: u32, value: u64) -> Self {
        if value != 0 {
            self.varint(u64::from(field) << 3);
            self.varint(value);
        }
        self
    }

    /// A message within the message; there even if it is empty.
    #[must_use]
    pub fn message(mut self, field: u32, message: Self) -> Self {
        self.delimited(field, &message.0);
        self
    }

    /// A map of strings.
    #[must_use]
    pub fn map(mut self, field: u32, map: &BTreeMap<String, String>) -> Self {
        for (key, value) in map {
            let entry = Self::default().string(1, key).string(2, value);
            self.delimited(field, &entry.0);
        }
        self
    }
}

/// A field's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// A number, an enumeration or a truth.
    Number(u64),
    /// A string, bytes or a message.
    Bytes(&'a [u8]),
}

/// Reads a message.
#[derive(Debug, Clone)]
pub struct Reader<'a>(Vec<(u32, Value<'a>)>);

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

impl<'a> Reader<'a> {
    /// The fields of a message; `None` if it is none.
    #[must_use]
    pub fn new(mut bytes: &'a [u8]) -> Option<Self> {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let tag = varint(&mut bytes)?;
            let field = u32::try_from(tag >> 3).ok()?;
            let value = match tag & 7 {
                0 => Value::Number(varint(&mut bytes)?),
                kind @ (1 | 2 | 5) => {
                    let length = match kind {
                        1 => 8,
                        5 => 4,
                        _ => usize::try_from(varint(&mut bytes)?).ok()?,
                    };
                    let (value, rest) = bytes.split_at_checked(length)?;
                    bytes = rest;
                    Value::Bytes(value)
                }
                _ => return None,
            };
            fields.push((field, value));
        }
        Some(Self(fields))
    }

    /// The values of a field in order.
    pub fn all(&self, field: u32) -> impl Iterator<Item = Value<'a>> {
        self.0.iter().filter(move |(number, _)| *number == field).map(|(_, value)| *value)
    }

    /// A number; 0 when it is not there.
    #[must_use]
    pub fn number(&self, field: u32) -> u64 {
        let numbers = self.all(field).filter_map(|v| match v {
            Value::Number(number) => Some(number),
            Value::Bytes(_) => None,
        });
        numbers.last().unwrap_or(0)
    }

    fn bytes(&self, field: u32) -> impl Iterator<Item = &'a [u8]> {
        self.all(field).filter_map(|v| match v {
            Value::Bytes(bytes) => Some(bytes),
            Value::Number(_) => None,
        })
    }

    /// The strings of a field.
    pub fn strings(&self, field: u32) -> impl Iterator<Item = String> {
        self.bytes(field).map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    /// A string; empty when it is not there.
    #[must_use]
    pub fn string(&self, field: u32) -> String {
        self.strings(field).last().unwrap_or_default()
    }

    /// The messages of a field.
    pub fn messages(&self, field: u32) -> impl Iterator<Item = Reader<'a>> {
        self.bytes(field).filter_map(Reader::new)
    }

    /// A map of strings.
    #[must_use]
    pub fn map(&self, field: u32) -> BTreeMap<String, String> {
        self.messages(field).map(|entry| (entry.string(1), entry.string(2))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bytes_are_those_of_the_specification() {
        let message = Writer::default().number(1, 150).string(2, "testing").finish();
        assert_eq!(message, b"\x08\x96\x01\x12\x07testing");
        assert_eq!(Writer::default().number(1, 0).string(2, "").finish(), b"");
        assert!(Reader::new(b"\x08").is_none() && Reader::new(b"\x12\x07test").is_none());
        assert!(Reader::new(b"\x0b").is_none(), "groups are gone");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(number in any::<u64>(), text in ".{0,20}", list in proptest::collection::vec(".{0,5}", 0..5),
            map in proptest::collection::btree_map("[a-z]{1,5}", ".{0,5}", 0..4)) {
            let inner = Writer::default().number(1, number);
            let bytes = Writer::default().string(1, &text).strings(2, list.iter().map(String::as_str)).map(3, &map)
                .message(4, inner).finish();
            let read = Reader::new(&bytes).unwrap();
            prop_assert_eq!(read.string(1), text);
            prop_assert_eq!(read.strings(2).collect::<Vec<_>>(), list);
            prop_assert_eq!(read.map(3), map);
            prop_assert_eq!(read.messages(4).next().map(|m| m.number(1)), Some(number));
        }

        #[test]
        fn rubbish_is_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Some(read) = Reader::new(&bytes) {
                let _ = (read.string(1), read.number(2), read.map(3), read.messages(4).count());
            }
        }
    }
}
