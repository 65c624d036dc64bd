//! What types and their fields are, in upstream's words: `build/descriptions.rs` takes them from k8s-openapi.

use flate2::read::GzDecoder;
use std::io::{self, Read};
use std::ops::Range;

/// The texts, unpacked. They take nearly a megabyte: they are unpacked to build a document and dropped behind it.
pub(super) struct Descriptions {
    text: String,
    /// Names (`TYPE` or `TYPE/FIELD`) and their texts, sorted by name.
    entries: Vec<(Range<usize>, Range<usize>)>,
}

impl Descriptions {
    /// Unpacks the table.
    ///
    /// # Errors
    /// The table is damaged.
    pub(super) fn unpack() -> io::Result<Self> {
        let mut text = String::new();
        GzDecoder::new(PACKED).read_to_string(&mut text)?;
        let mut entries = Vec::new();
        let mut at = 0;
        for entry in text.split_terminator('\x01') {
            let name = entry.find('\0').unwrap_or(entry.len());
            let (middle, end) = (at + name, at + entry.len());
            entries.push((at..middle, (middle + 1).min(end)..end));
            at = end + 1;
        }
        Ok(Descriptions { text, entries })
    }

    fn part(&self, range: &Range<usize>) -> &str {
        self.text.get(range.clone()).unwrap_or_default()
    }

    fn find(&self, name: &str) -> Option<&str> {
        let at = self.entries.binary_search_by(|(key, _)| self.part(key).cmp(name)).ok()?;
        self.entries.get(at).map(|(_, text)| self.part(text))
    }

    /// The text of a type with this name in documents, such as `io.k8s.api.core.v1.Pod`.
    pub(super) fn of_type(&self, name: &str) -> Option<&str> {
        self.find(name)
    }

    /// The text of a field of such a type.
    pub(super) fn of_field(&self, name: &str, field: &str) -> Option<&str> {
        self.find(&format!("{name}/{field}"))
    }
}

/// See `build/descriptions.rs` for the form.
const PACKED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptions.gz"));
