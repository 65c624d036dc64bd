//! Where YAML repeats a key, which Go's strict reader tells with the line.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Repeated keys beyond this number are not told.
const MAX: usize = 20;

/// Line and quoted name of every key that its object has already.
///
/// The reader has no positions but those of errors: each pass fails at the next repeated key.
pub(super) fn repeated_keys(text: &[u8]) -> Vec<(usize, String)> {
    let mut out = Vec::new();
    while out.len() < MAX {
        let found = RefCell::new(Found { skip: out.len(), key: None });
        let outcome = Value(&found).deserialize(serde_norway::Deserializer::from_slice(text));
        let (Err(error), Some(key)) = (outcome, found.into_inner().key) else { break };
        out.push((error.location().map_or(0, |l| l.line()), key));
    }
    out
}

/// How many repeated keys to pass over, and the one after them.
struct Found {
    skip: usize,
    key: Option<String>,
}

#[derive(Clone, Copy)]
struct Value<'a>(&'a RefCell<Found>);

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(self)?.is_some() {}
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let seen = RefCell::new(HashSet::new());
        while map.next_key_seed(Key { found: self.0, seen: &seen })?.is_some() {
            map.next_value_seed(self)?;
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
struct Key<'a> {
    found: &'a RefCell<Found>,
    seen: &'a RefCell<HashSet<String>>,
}

impl Key<'_> {
    fn note<E: Error>(self, key: String) -> Result<(), E> {
        if self.seen.borrow_mut().insert(key.clone()) {
            return Ok(());
        }
        let mut found = self.found.borrow_mut();
        if found.skip > 0 {
            found.skip -= 1;
            return Ok(());
        }
        found.key = Some(key);
        Err(E::custom("repeated key"))
    }
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Key<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }
    fn visit_bool<E: Error>(self, v: bool) -> Result<(), E> {
        self.note(v.to_string())
    }
    fn visit_i64<E: Error>(self, v: i64) -> Result<(), E> {
        self.note(v.to_string())
    }
    fn visit_u64<E: Error>(self, v: u64) -> Result<(), E> {
        self.note(v.to_string())
    }
    fn visit_f64<E: Error>(self, v: f64) -> Result<(), E> {
        self.note(v.to_string())
    }
    fn visit_str<E: Error>(self, v: &str) -> Result<(), E> {
        self.note(crate::error::quote(v))
    }
    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.note("<nil>".to_owned())
    }
    fn visit_none<E: Error>(self) -> Result<(), E> {
        self.note("<nil>".to_owned())
    }
    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_keys_have_their_lines() {
        let text = b"a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\nlist:\n- x: 1\n  x: 2\n- x: 3\na: 2\n";
        let want = [(5, "\"c\""), (8, "\"x\""), (10, "\"a\"")].map(|(line, key)| (line, key.to_owned()));
        assert_eq!(repeated_keys(text), want);
        assert_eq!(repeated_keys(b"a: 1\nb: 2\n"), []);
        assert_eq!(repeated_keys(b"a: [\n"), []);
    }
}
