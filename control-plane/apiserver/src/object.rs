//! Objects as JSON: access to metadata, and the byte layout used in the store and the cache.
//!
//! Stored bytes always begin with `{"kind":…,"apiVersion":…,"metadata":{`, and carry no resourceVersion (the store's
//! revision is it). So the served form is made by inserting one field at a known offset, and a list item by
//! leaving the first bytes out, without parsing.

use bytes::Bytes;
pub use kelp_model::json::{bool_at, get, int_at, list_at, str_at};
use serde_json::{Map, Value};

/// A field of the metadata as a string, empty when absent.
pub fn meta<'a>(object: &'a Value, field: &str) -> &'a str {
    str_at(object, &["metadata", field])
}

/// The metadata for changing; made when absent or of the wrong type.
pub fn meta_mut(object: &mut Value) -> &mut Map<String, Value> {
    map_mut(object, "metadata")
}

/// A member that is a map, made when absent or of the wrong type.
pub fn map_mut<'a>(object: &'a mut Value, field: &str) -> &'a mut Map<String, Value> {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let Value::Object(map) = object else { unreachable!("made an object above") };
    let member = map.entry(field).or_insert_with(|| Value::Object(Map::new()));
    if !member.is_object() {
        *member = Value::Object(Map::new());
    }
    let Value::Object(member) = member else { unreachable!("made an object above") };
    member
}

/// Sets or (with `None`) removes a field of a map.
pub fn set_or_remove(map: &mut Map<String, Value>, field: &str, value: Option<Value>) {
    match value {
        Some(value) => {
            map.insert(field.to_owned(), value);
        }
        None => {
            map.remove(field);
        }
    }
}

/// Finalizers of an object.
pub fn finalizers(object: &Value) -> impl Iterator<Item = &str> {
    list_at(object, &["metadata", "finalizers"]).iter().filter_map(Value::as_str)
}

/// Whether deletion has begun.
pub fn is_deleting(object: &Value) -> bool {
    get(object, &["metadata", "deletionTimestamp"]).is_some()
}

/// The time of now as the API writes it, in seconds.
pub fn now() -> String {
    format_time(jiff::Timestamp::now())
}

/// A time as the API writes it, in seconds.
pub fn format_time(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The first bytes of every stored object of a kind.
pub fn head(kind: &str, api_version: &str) -> String {
    format!("{{\"kind\":{},\"apiVersion\":{},\"metadata\":{{", Value::from(kind), Value::from(api_version))
}

/// Offset of `"metadata"` in bytes that begin with this head.
fn metadata_offset(head: &str) -> usize {
    head.len() - "\"metadata\":{".len()
}

/// Serializes an object for the store.
pub fn encode(head: &str, object: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    out.extend_from_slice(head.as_bytes());
    let empty = Map::new();
    let object = object.as_object().unwrap_or(&empty);
    let metadata = object.get("metadata").and_then(Value::as_object).unwrap_or(&empty);
    members(&mut out, metadata, &["resourceVersion", "selfLink"], true);
    out.push(b'}');
    members(&mut out, object, &["kind", "apiVersion", "metadata"], false);
    out.push(b'}');
    out
}

fn members(out: &mut Vec<u8>, map: &Map<String, Value>, without: &[&str], mut first: bool) {
    for (key, value) in map {
        if without.contains(&key.as_str()) {
            continue;
        }
        if !first {
            out.push(b',');
        }
        first = false;
        // Writing JSON into a Vec cannot fail: the keys are strings and the sink does not err.
        let _ = serde_json::to_writer(&mut *out, key);
        out.push(b':');
        let _ = serde_json::to_writer(&mut *out, value);
    }
}

/// Serialized objects as they are served, with their resourceVersion.
#[derive(Debug, Clone)]
pub struct Encoded {
    bytes: Bytes,
    /// Offset of `"metadata"`.
    metadata: u32,
    /// Offset after `"metadata":{`.
    inner: u32,
    /// Length of the resourceVersion member with its comma.
    version: u32,
}

impl Encoded {
    /// From stored bytes and their revision; bytes of another layout are written anew. `None` if they are no object.
    pub fn from_stored(head: &str, stored: &[u8], revision: i64) -> Option<Encoded> {
        if stored.starts_with(head.as_bytes()) {
            return Some(Self::splice(head.len(), metadata_offset(head), stored, head.len(), revision));
        }
        let object: Value = serde_json::from_slice(stored).ok()?;
        object.as_object()?;
        let stored = encode(head, &object);
        Some(Self::splice(head.len(), metadata_offset(head), &stored, head.len(), revision))
    }

    fn splice(inner: usize, metadata: usize, source: &[u8], rest: usize, revision: i64) -> Encoded {
        let rest = source.get(rest..).unwrap_or_default();
        let mut out = Vec::with_capacity(inner + rest.len() + 40);
        out.extend_from_slice(source.get(..inner).unwrap_or_default());
        out.extend_from_slice(format!("\"resourceVersion\":\"{revision}\"").as_bytes());
        if rest.first() != Some(&b'}') {
            out.push(b',');
        }
        let version = out.len() - inner;
        out.extend_from_slice(rest);
        Encoded { bytes: out.into(), metadata: metadata as u32, inner: inner as u32, version: version as u32 }
    }

    /// The same object at another revision.
    pub fn at_revision(&self, revision: i64) -> Encoded {
        let inner = self.inner as usize;
        Self::splice(inner, self.metadata as usize, &self.bytes, inner + self.version as usize, revision)
    }

    /// The whole object.
    pub fn full(&self) -> &Bytes {
        &self.bytes
    }

    /// What follows `{` of the object as a list item, which has no kind and apiVersion.
    pub fn item_tail(&self) -> &[u8] {
        self.bytes.get(self.metadata as usize..).unwrap_or_default()
    }

    /// The metadata as JSON.
    pub fn metadata(&self) -> &[u8] {
        crate::codec::transcode::raw_member(&self.bytes, "metadata").unwrap_or(b"{}")
    }

    /// Parses the object, but for its managed fields.
    pub fn parse_lean(&self) -> Value {
        let lean = crate::codec::transcode::without_managed_fields(&self.bytes);
        serde_json::from_slice(&lean).unwrap_or_default()
    }

    /// Parses the object.
    pub fn parse(&self) -> Value {
        // Made by our own writer or checked by a parse in `from_stored`; damaged bytes become null.
        serde_json::from_slice(&self.bytes).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Value {
        json!({"apiVersion": "v1", "kind": "Pod", "spec": {"a": 1},
               "metadata": {"name": "x", "resourceVersion": "7"}})
    }

    #[test]
    fn served_bytes_have_the_revision_and_no_other_change() {
        let head = head("Pod", "v1");
        let stored = encode(&head, &pod());
        assert!(!String::from_utf8_lossy(&stored).contains("resourceVersion"));
        let served = Encoded::from_stored(&head, &stored, 42).expect("object");
        let mut want = pod();
        want["metadata"]["resourceVersion"] = "42".into();
        assert_eq!(served.parse(), want);
        let later = served.at_revision(1_000_000);
        want["metadata"]["resourceVersion"] = "1000000".into();
        assert_eq!(later.parse(), want);
        let item: Value = serde_json::from_slice(&[b"{", later.item_tail()].concat()).expect("item is JSON");
        assert_eq!(item, json!({"metadata": want["metadata"], "spec": {"a": 1}}));
    }

    #[test]
    fn foreign_layout_and_empty_metadata_are_understood() {
        let head = head("Pod", "v1");
        let served = Encoded::from_stored(&head, br#"{"metadata":{}, "x":1}"#, 3).expect("object");
        assert_eq!(
            served.parse(),
            json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"resourceVersion": "3"}, "x": 1})
        );
        assert_eq!(served.at_revision(4).parse()["metadata"]["resourceVersion"], "4");
        assert!(Encoded::from_stored(&head, b"[]", 3).is_none());
        assert!(Encoded::from_stored(&head, b"\xff", 3).is_none());
    }
}
