//! Serialized JSON objects to protobuf messages in one pass, without a tree in between: how cached objects become the
//! answers of clients that ask for protobuf.
//!
//! The input is what this server wrote itself (checked JSON in canonical form). Values that do not fit the schema are
//! left out, as unset fields are.

mod apart;

use serde_json::Value;
use std::borrow::Cow;

use self::apart::Apart;
use super::encode;
use super::proto::MAGIC;
use super::scalar;
use super::wire::{put_bytes, put_double, put_message, put_number, put_varint, varint_len};
use crate::schema::{Type, TypeSchema};

/// Objects nested deeper than this are left out; no built-in type is recursive beyond it but schemas, which are
/// encoded from a tree.
const MAX_DEPTH: usize = 64;

/// The protobuf message of a serialized object.
pub(crate) fn message(json: &[u8], ty: &TypeSchema) -> Vec<u8> {
    // Protobuf takes about two thirds of JSON's bytes.
    let mut out = Vec::with_capacity(json.len() * 2 / 3);
    append_message(&mut out, json, ty);
    out
}

/// Appends the protobuf message of a serialized object.
pub(crate) fn append_message(out: &mut Vec<u8>, json: &[u8], ty: &TypeSchema) {
    Cursor { text: json, at: 0 }.object(out, ty, 0);
}

/// Appends a list item: the message as field 2.
pub(crate) fn append_item(out: &mut Vec<u8>, json: &[u8], ty: &TypeSchema) {
    put_message(out, 2, |out| append_message(out, json, ty));
}

/// Appends `k8s\0` and the envelope around a message that `write` makes.
pub(crate) fn append_envelope(
    out: &mut Vec<u8>,
    api_version: &str,
    kind: &str,
    write: impl FnOnce(&mut Vec<u8>),
) {
    out.extend_from_slice(&MAGIC);
    put_message(out, 1, |out| {
        put_bytes(out, 1, api_version.as_bytes());
        put_bytes(out, 2, kind.as_bytes());
    });
    put_message(out, 2, write);
    out.extend_from_slice(ENVELOPE_TAIL);
}

/// Ends an envelope: the two texts that say how the message is encoded, both empty.
pub(crate) const ENVELOPE_TAIL: &[u8] = &[3 << 3 | 2, 0, 4 << 3 | 2, 0];

/// Appends a list's metadata: field 1 of every list.
pub(crate) fn append_list_metadata(out: &mut Vec<u8>, json: &[u8]) {
    if let Some(ty) = crate::schema::by_name("meta.v1.ListMeta") {
        put_message(out, 1, |out| append_message(out, json, ty));
    }
}

/// A list whose items are sent one by one after its head, and [`ENVELOPE_TAIL`] after them.
pub(crate) struct ListEnvelope<'a, I> {
    /// `apiVersion` of the list.
    pub(crate) api_version: &'a str,
    /// Kind of the list.
    pub(crate) kind: &'a str,
    /// Serialized metadata.
    pub(crate) metadata: &'a [u8],
    /// Lengths of the items' messages.
    pub(crate) items: I,
}

impl<I: Iterator<Item = usize>> ListEnvelope<'_, I> {
    /// Everything before the first item.
    pub(crate) fn head(self) -> Vec<u8> {
        let mut metadata = Vec::new();
        append_list_metadata(&mut metadata, self.metadata);
        let items: usize = self.items.map(|item| 1 + varint_len(item as u64) + item).sum();
        let length = metadata.len() + items;
        let mut out = MAGIC.to_vec();
        put_message(&mut out, 1, |out| {
            put_bytes(out, 1, self.api_version.as_bytes());
            put_bytes(out, 2, self.kind.as_bytes());
        });
        put_varint(&mut out, 2 << 3 | 2);
        put_varint(&mut out, length as u64);
        out.extend_from_slice(&metadata);
        out
    }
}

/// A watch event with its length in front, as `stream=watch` frames it. `object` is a body with its envelope.
pub(crate) fn watch_frame(kind: &str, object: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(object.len() + 32);
    out.extend_from_slice(&[0; 4]);
    put_bytes(&mut out, 1, kind.as_bytes());
    put_message(&mut out, 2, |out| put_bytes(out, 1, object));
    let length = u32::try_from(out.len() - 4).unwrap_or(u32::MAX).to_be_bytes();
    for (slot, byte) in out.iter_mut().zip(length) {
        *slot = byte;
    }
    out
}

/// The value of a member of a serialized object, as it is written; only members of the outermost object are looked at.
pub(crate) fn raw_member<'a>(json: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let mut cursor = Cursor { text: json, at: 0 };
    let mut found = None;
    cursor.members(|cursor, key| {
        let start = cursor.at;
        cursor.skip();
        if key == name.as_bytes() {
            found = json.get(start..cursor.at);
        }
        found.is_none()
    });
    found
}

/// A serialized object without `metadata.managedFields`, which is half of many objects and of no use to selectors and
/// tables.
pub(crate) fn without_managed_fields(json: &[u8]) -> Cow<'_, [u8]> {
    const KEY: &[u8] = b"\"managedFields\":";
    let mut cursor = Cursor { text: json, at: 0 };
    let mut found = None;
    cursor.members(|cursor, key| {
        if key != b"metadata" {
            cursor.skip();
            return true;
        }
        cursor.members(|cursor, key| {
            let start = cursor.at;
            cursor.skip();
            if key == b"managedFields" {
                found = Some((start, cursor.at));
            }
            found.is_none()
        });
        false
    });
    // Only as this server writes it; what another has written stays whole.
    let cut = found.and_then(|(start, end)| {
        let before = json.get(..start)?.strip_suffix(KEY)?;
        let after = json.get(end..)?;
        match (before.strip_suffix(b","), after.strip_prefix(b",")) {
            (Some(before), _) => Some([before, after].concat()),
            (None, Some(after)) => Some([before, after].concat()),
            (None, None) => Some([before, after].concat()),
        }
    });
    cut.map_or(Cow::Borrowed(json), Cow::Owned)
}

struct Cursor<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn peek(&mut self) -> u8 {
        while let Some(&byte) = self.text.get(self.at) {
            if !matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
                return byte;
            }
            self.at += 1;
        }
        0
    }

    fn eat(&mut self, byte: u8) -> bool {
        let found = self.peek() == byte;
        self.at += usize::from(found);
        found
    }

    /// The content of a string between its quotes, with its escapes; `None` if there is no string.
    fn raw_string(&mut self) -> Option<&'a [u8]> {
        if !self.eat(b'"') {
            return None;
        }
        let start = self.at;
        loop {
            match self.text.get(self.at)? {
                b'"' => break,
                b'\\' => self.at += 2,
                _ => self.at += 1,
            }
        }
        self.at += 1;
        self.text.get(start..self.at - 1)
    }

    /// Passes over a value of any kind without recursion.
    fn skip(&mut self) {
        let mut depth = 0usize;
        loop {
            match self.peek() {
                b'"' => {
                    if self.raw_string().is_none() {
                        self.at = self.text.len();
                    }
                }
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                    continue;
                }
                b'}' | b']' => {
                    // The end of an empty container, or after a value that was no scalar.
                    depth = depth.saturating_sub(1);
                    self.at += 1;
                }
                0 => {
                    // The end of the text, or a byte that no JSON has.
                    self.at = self.text.len();
                    return;
                }
                _ => {
                    while let Some(byte) = self.text.get(self.at)
                        && !matches!(byte, b',' | b'}' | b']' | b':' | b' ' | b'\n' | b'\r' | b'\t' | b'"')
                    {
                        self.at += 1;
                    }
                }
            }
            loop {
                if depth == 0 {
                    return;
                }
                match self.peek() {
                    b',' | b':' => {
                        self.at += 1;
                        break;
                    }
                    b'}' | b']' => {
                        depth -= 1;
                        self.at += 1;
                    }
                    0 => {
                        self.at = self.text.len();
                        return;
                    }
                    _ => break,
                }
            }
        }
    }

    /// The bytes of the next value, which is passed over.
    fn raw(&mut self) -> &'a [u8] {
        self.peek();
        let start = self.at;
        self.skip();
        self.text.get(start..self.at).unwrap_or_default()
    }

    /// Calls `each` with every key; it must pass over the value and may end the walk. Keys with escapes come as they
    /// are written: no field has one.
    fn members(&mut self, mut each: impl FnMut(&mut Self, &'a [u8]) -> bool) {
        if !self.eat(b'{') {
            return self.skip();
        }
        while !self.eat(b'}') {
            let Some(key) = self.raw_string() else {
                self.at = self.text.len();
                return;
            };
            if !self.eat(b':') || self.peek() == 0 {
                self.at = self.text.len();
                return;
            }
            if !each(self, key) {
                return;
            }
            self.eat(b',');
        }
    }

    fn items(&mut self, mut each: impl FnMut(&mut Self)) {
        if !self.eat(b'[') {
            return self.skip();
        }
        while !self.eat(b']') {
            if self.peek() == 0 {
                return;
            }
            let before = self.at;
            each(self);
            self.eat(b',');
            if self.at == before {
                // Nothing was read: no JSON.
                self.at = self.text.len();
                return;
            }
        }
    }

    fn object(&mut self, out: &mut Vec<u8>, ty: &TypeSchema, depth: usize) {
        if depth > MAX_DEPTH {
            return self.skip();
        }
        let mut apart = Apart::default();
        self.members(|cursor, key| {
            cursor.member(out, ty, key, &mut apart, depth);
            true
        });
        apart.put(out, ty);
    }

    fn member(&mut self, out: &mut Vec<u8>, ty: &TypeSchema, key: &[u8], apart: &mut Apart, depth: usize) {
        let Some(field) = std::str::from_utf8(key).ok().and_then(|name| ty.field(name)) else {
            return self.skip();
        };
        if field.number > 0 {
            return self.field(out, field.number, &field.ty, depth);
        }
        match apart.place(ty, &field.name) {
            Some((part, field)) => self.field(part, field.number, &field.ty, depth),
            None => self.skip(),
        }
    }

    fn field(&mut self, out: &mut Vec<u8>, number: u32, ty: &Type, depth: usize) {
        match ty {
            Type::List(item) => self.items(|cursor| cursor.value(out, number, item, depth)),
            Type::Map(item) => self.members(|cursor, key| {
                put_message(out, number, |out| {
                    put_text(out, 1, key);
                    cursor.value(out, 2, item, depth);
                });
                true
            }),
            other => self.value(out, number, other, depth),
        }
    }

    fn value(&mut self, out: &mut Vec<u8>, number: u32, ty: &Type, depth: usize) {
        let first = self.peek();
        if first == b'n' {
            return self.skip();
        }
        match ty {
            Type::String(_) => match first {
                b'"' => put_text(out, number, self.raw_string().unwrap_or_default()),
                _ => self.skip(),
            },
            Type::Bool => {
                let value = self.raw() == b"true";
                put_number(out, number, i64::from(value));
            }
            Type::Int32 | Type::Int64 => put_number(out, number, integer(self.raw())),
            Type::Float64 => put_double(out, number, parsed(self.raw()).unwrap_or_default()),
            Type::Bytes => {
                let text = unescaped(self.raw_string_or_skip());
                put_bytes(out, number, &scalar::decode_base64(&text).unwrap_or_default());
            }
            Type::Quantity => {
                let text = if first == b'"' { self.raw_string().unwrap_or_default() } else { self.raw() };
                put_message(out, number, |out| put_text(out, 1, text));
            }
            Type::IntOrString => put_message(out, number, |out| {
                if first == b'"' {
                    put_number(out, 1, 1);
                    put_number(out, 2, 0);
                    put_text(out, 3, self.raw_string().unwrap_or_default());
                } else {
                    put_number(out, 1, 0);
                    put_number(out, 2, integer(self.raw()));
                    put_bytes(out, 3, b"");
                }
            }),
            Type::Time | Type::MicroTime => {
                let text = self.raw_string_or_skip();
                put_message(out, number, |out| {
                    if let Some((seconds, nanos)) = time(text) {
                        put_number(out, 1, seconds);
                        put_number(out, 2, nanos);
                    }
                });
            }
            Type::Raw | Type::FieldsV1 | Type::Json | Type::Deduced => {
                let raw = self.raw();
                put_message(out, number, |out| put_bytes(out, 1, raw));
            }
            Type::Wrapped(item) => put_message(out, number, |out| {
                self.items(|cursor| cursor.value(out, 1, item, depth));
            }),
            Type::Object(inner) => {
                let inner = inner.get();
                if first == b'{' {
                    put_message(out, number, |out| self.object(out, inner, depth + 1));
                } else {
                    self.skip();
                }
            }
            Type::SchemaOrArray(_) | Type::SchemaOrBool(_) | Type::SchemaOrStrings(_) => {
                if let Ok(value) = super::parse_json(self.raw()) {
                    encode::put(out, number, &value, ty);
                }
            }
            // Lists and maps directly inside lists and maps do not exist in protobuf.
            Type::List(_) | Type::Map(_) => self.skip(),
        }
    }

    fn raw_string_or_skip(&mut self) -> &'a [u8] {
        if self.peek() == b'"' {
            return self.raw_string().unwrap_or_default();
        }
        self.skip();
        b""
    }
}

fn parsed<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn integer(text: &[u8]) -> i64 {
    parsed(text).or_else(|| parsed::<f64>(text).map(|f| f as i64)).unwrap_or_default()
}

/// The text of a string's content.
fn unescaped(raw: &[u8]) -> String {
    if !raw.contains(&b'\\') {
        return String::from_utf8_lossy(raw).into_owned();
    }
    let quoted = [b"\"", raw, b"\""].concat();
    serde_json::from_slice::<Value>(&quoted)
        .ok()
        .and_then(|v| v.as_str().map(str::to_owned))
        .unwrap_or_default()
}

fn put_text(out: &mut Vec<u8>, number: u32, raw: &[u8]) {
    if raw.contains(&b'\\') {
        put_bytes(out, number, unescaped(raw).as_bytes());
    } else {
        put_bytes(out, number, raw);
    }
}

/// Seconds and nanoseconds of a time: the canonical form by arithmetic, others by the parser.
fn time(text: &[u8]) -> Option<(i64, i64)> {
    let digits = |from: usize, to: usize| -> Option<i64> {
        text.get(from..to)?
            .iter()
            .try_fold(0i64, |sum, b| b.is_ascii_digit().then(|| sum * 10 + i64::from(b - b'0')))
    };
    let plain = text.len() == 20
        && [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':'), (19, b'Z')]
            .iter()
            .all(|(at, byte)| text.get(*at) == Some(byte));
    if plain
        && let (Some(year), Some(month), Some(day)) = (digits(0, 4), digits(5, 7), digits(8, 10))
        && let (Some(hour), Some(minute), Some(second)) = (digits(11, 13), digits(14, 16), digits(17, 19))
        && (1..=12).contains(&month)
        && year > 0
    {
        // Days of the civil calendar before a date; the year begins in March.
        let year = if month <= 2 { year - 1 } else { year };
        let era = year.div_euclid(400);
        let of_era = year - era * 400;
        let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
        let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
        return Some((days * 86_400 + hour * 3600 + minute * 60 + second, 0));
    }
    let time: jiff::Timestamp = std::str::from_utf8(text).ok()?.parse().ok()?;
    Some((time.as_second(), i64::from(time.subsec_nanosecond())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema;
    use proptest::prelude::*;
    use serde_json::json;

    /// Messages are equal when the decoder reads the same from both: the order of fields may differ.
    fn agree(value: &Value, ty: &TypeSchema) {
        let apart = encode::message(value, ty);
        let direct = message(&serde_json::to_vec(value).expect("JSON"), ty);
        let left = super::super::proto::decode(&apart, ty).expect("decodes");
        let right = super::super::proto::decode(&direct, ty).expect("decodes");
        assert_eq!(left, right, "{value}");
    }

    #[test]
    fn a_pod_with_every_kind_of_field() {
        let pod = json!({"kind": "Pod", "apiVersion": "v1",
            "metadata": {"name": "a", "creationTimestamp": "2024-02-29T23:59:59Z", "labels": {"a\"b": "c\u{e9}\n"},
                "managedFields": [{"manager": "m", "fieldsV1": {"f:spec": {".": {}}}, "time": "1969-12-31T23:59:59Z"}]},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "100m"}},
                    "livenessProbe": {"httpGet": {"port": "http", "path": "/\u{1F600}"}, "periodSeconds": 3},
                    "ports": [{"containerPort": 80, "hostPort": -1}], "env": [], "stdin": true}],
                "volumes": [{"name": "v", "configMap": {"name": "x", "defaultMode": 420}}],
                "terminationGracePeriodSeconds": 9_007_199_254_740_993i64, "hostNetwork": null, "unknown": [1, {"a": []}]},
            "status": {"startTime": null, "conditions": [{"type": "Ready", "lastProbeTime": null}]}});
        agree(&pod, schema::by_name("core.v1.Pod").expect("type"));
        let secret = json!({"data": {"a": "aGk=", "b": ""}, "immutable": false});
        agree(&secret, schema::by_name("core.v1.Secret").expect("type"));
        let lease = json!({"spec": {"renewTime": "2024-01-02T03:04:05.123456Z", "leaseDurationSeconds": 0}});
        agree(&lease, schema::by_name("coordination.v1.Lease").expect("type"));
        let crd = json!({"spec": {"versions": [{"schema": {"openAPIV3Schema": {"type": "object", "minimum": 1.5,
            "properties": {"x": {"items": {"type": "string"}, "additionalProperties": true, "default": {"a": [1]}}}}}}]}});
        agree(&crd, schema::by_name("apiextensions.v1.CustomResourceDefinition").expect("type"));
        // Messages that JSON inlines, one of them within another.
        let policy = json!({"spec": {"matchConstraints": {"resourceRules": [{"resourceNames": ["n"], "apiGroups": ["apps"],
            "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["deployments"], "scope": "*"}]}}});
        let ty = schema::by_name("admissionregistration.v1.ValidatingAdmissionPolicy").expect("type");
        agree(&policy, ty);
        let decoded =
            super::super::proto::decode(&message(policy.to_string().as_bytes(), ty), ty).expect("decodes");
        let rules = |value: &Value| value["spec"]["matchConstraints"]["resourceRules"].clone();
        assert_eq!(rules(&decoded), rules(&policy));
    }

    #[test]
    fn every_list_has_its_metadata_first_and_its_items_second() {
        let mut lists = 0;
        for ty in schema::types().filter(|t| t.name.ends_with("List") && !t.gvks.is_empty()) {
            let (Some(items), Some(metadata)) = (ty.field("items"), ty.field("metadata")) else { continue };
            assert_eq!((metadata.number, items.number), (1, 2), "{}", ty.name);
            lists += 1;
        }
        assert!(lists > 40, "{lists}");
    }

    #[test]
    fn frames_have_their_length_in_front() {
        let frame = watch_frame("ADDED", b"k8s\0xyz");
        assert_eq!(frame.get(..4), Some(&[0u8, 0, 0, 18][..]));
        assert_eq!(frame.len(), 22);
        assert_eq!(frame.get(4..11), Some(&b"\x0a\x05ADDED"[..]));
    }

    #[test]
    fn members_of_the_outermost_object() {
        let json = br#"{"kind":"A","metadata":{"x":{"spec":1},"y":["}",{}]},"spec" : [1,2 ] ,"z":true}"#;
        let text = |name| raw_member(json, name).map(|b| String::from_utf8_lossy(b).into_owned());
        assert_eq!(text("metadata").as_deref(), Some(r#"{"x":{"spec":1},"y":["}",{}]}"#));
        assert_eq!(text("z").as_deref(), Some("true"));
        assert_eq!(text("x"), None);
    }

    #[test]
    fn managed_fields_are_left_out() {
        for (json, want) in [
            (
                r#"{"metadata":{"managedFields":[{"a":"}"}],"name":"x"},"spec":1}"#,
                r#"{"metadata":{"name":"x"},"spec":1}"#,
            ),
            (
                r#"{"metadata":{"name":"x","managedFields":[]},"spec":1}"#,
                r#"{"metadata":{"name":"x"},"spec":1}"#,
            ),
            (r#"{"metadata":{"a":1,"managedFields":[],"name":"x"}}"#, r#"{"metadata":{"a":1,"name":"x"}}"#),
            (r#"{"metadata":{"managedFields":null}}"#, r#"{"metadata":{}}"#),
            (
                r#"{"metadata":{"name":"x"},"managedFields":1}"#,
                r#"{"metadata":{"name":"x"},"managedFields":1}"#,
            ),
            (r#"{"spec":{"managedFields":1}}"#, r#"{"spec":{"managedFields":1}}"#),
        ] {
            assert_eq!(String::from_utf8_lossy(&without_managed_fields(json.as_bytes())), want);
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(|f| json!(f)),
            ".{0,12}".prop_map(Value::from),
        ];
        let names = prop_oneof![
            "(metadata|spec|name|labels|containers|volumes|resources|limits|ports|data|items|status)",
            ".{0,6}"
        ];
        leaf.prop_recursive(5, 40, 5, move |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                proptest::collection::vec((names.clone(), inner), 0..5)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// Skipping a value lands where a parser does.
        #[test]
        fn skipping_ends_where_the_value_ends(value in any_json(), pretty in any::<bool>()) {
            let text = if pretty { format!("{value:#}") } else { value.to_string() };
            let padded = format!("{text},1");
            let mut cursor = Cursor { text: padded.as_bytes(), at: 0 };
            cursor.skip();
            prop_assert_eq!(cursor.at, text.len());
        }

        #[test]
        fn no_object_panics(value in any_json()) {
            let ty = schema::by_name("core.v1.Pod").expect("type");
            let _ = message(value.to_string().as_bytes(), ty);
        }

        /// Not even what is no JSON, which a damaged store might hold.
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(prop_oneof![Just(b'{'), Just(b'}'), Just(b'['),
            Just(b']'), Just(b'"'), Just(b':'), Just(b','), Just(b'\\'), any::<u8>()], 0..60)) {
            let ty = schema::by_name("core.v1.Pod").expect("type");
            let _ = message(&bytes, ty);
            let _ = raw_member(&bytes, "metadata");
            let _ = without_managed_fields(&bytes);
        }

        #[test]
        fn times_by_arithmetic(second in -62_135_596_800i64..253_402_300_799) {
            let time_of = jiff::Timestamp::from_second(second).expect("in range");
            let text = scalar::format_time(time_of, false);
            prop_assert_eq!(time(text.as_bytes()), Some((second, 0)));
        }
    }
}
