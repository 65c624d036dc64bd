//! A document as it was sent: keys in order, repeated keys kept, numbers as text. Read from JSON with Go's messages
//! for malformed text, or from YAML.

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::cell::Cell;
use std::fmt;

/// Deepest nesting that is read; deeper documents are refused: they could be stored, but not be read again by parsers
/// that stop at 128, as this server's and many clients' do.
pub(crate) const MAX_DEPTH: usize = 120;

/// A document may have this many objects and lists. Each takes much more memory than its two bytes of text.
const MAX_CONTAINERS: usize = 200_000;

/// Bytes that a YAML document may take for each of its text's: aliases multiply it.
const MAX_EXPANSION: usize = 8;

pub(crate) const TOO_DEEP: &str = "exceeded max depth";

/// A parsed document.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Node {
    Null,
    Bool(bool),
    /// The number's text.
    Number(String),
    String(String),
    Array(Vec<Node>),
    /// Members in order; a name may occur more than once.
    Object(Vec<(String, Node)>),
}

impl Node {
    /// What Go's JSON errors call the value.
    pub(crate) fn go_kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "bool",
            Self::Number(_) => "number",
            Self::String(_) => "string",
            Self::Array(_) => "array",
            Self::Object(_) => "object",
        }
    }

    /// The last member of this name.
    pub(crate) fn get(&self, name: &str) -> Option<&Node> {
        match self {
            Self::Object(members) => members.iter().rev().find(|(k, _)| k == name).map(|(_, v)| v),
            _ => None,
        }
    }

    pub(crate) fn from_value(value: Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(b) => Self::Bool(b),
            Value::Number(n) => Self::Number(n.to_string()),
            Value::String(s) => Self::String(s),
            Value::Array(a) => Self::Array(a.into_iter().map(Self::from_value).collect()),
            Value::Object(o) => Self::Object(o.into_iter().map(|(k, v)| (k, Self::from_value(v))).collect()),
        }
    }

    /// The value without a schema; of repeated names the last counts.
    pub(crate) fn into_value(self) -> Value {
        match self {
            Self::Null => Value::Null,
            Self::Bool(b) => Value::Bool(b),
            Self::Number(text) => number(&text),
            Self::String(s) => Value::String(s),
            Self::Array(a) => a.into_iter().map(Self::into_value).collect(),
            Self::Object(o) => {
                Value::Object(o.into_iter().map(|(k, v)| (k, v.into_value())).collect::<Map<_, _>>())
            }
        }
    }
}

/// A number without a schema: an integer where the text is one, as Go's unstructured objects have it.
pub(crate) fn number(text: &str) -> Value {
    if let Ok(i) = text.parse::<i64>() {
        return i.into();
    }
    if let Ok(u) = text.parse::<u64>() {
        return u.into();
    }
    float(text.parse().unwrap_or(0.0))
}

/// A floating point number as Go writes it: whole numbers without a point.
pub(crate) fn float(f: f64) -> Value {
    if f.fract() == 0.0 && f.abs() < 9e15 {
        return Value::from(f as i64);
    }
    Number::from_f64(f).map_or(Value::Null, Value::Number)
}

/// Reads JSON.
pub(crate) fn parse_json(text: &[u8]) -> Result<Node, String> {
    let mut p = Parser { text, at: 0, containers: 0 };
    let node = p.value(0)?;
    match p.peek() {
        None => Ok(node),
        Some(c) => Err(invalid(c, "after top-level value")),
    }
}

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
    containers: usize,
}

fn too_many() -> String {
    format!("a document has at most {MAX_CONTAINERS} objects and lists")
}

fn end() -> String {
    "unexpected end of JSON input".to_owned()
}

fn invalid(c: u8, context: &str) -> String {
    let shown = match c {
        b'\'' => "'\\''".to_owned(),
        b'"' => "'\"'".to_owned(),
        b'\n' => "'\\n'".to_owned(),
        b'\r' => "'\\r'".to_owned(),
        b'\t' => "'\\t'".to_owned(),
        b'\\' => "'\\\\'".to_owned(),
        0..0x20 | 0x7f => format!("'\\x{c:02x}'"),
        0x80..0xa0 => format!("'\\u{c:04x}'"),
        c => format!("'{}'", char::from(c)),
    };
    format!("invalid character {shown} {context}")
}

impl Parser<'_> {
    /// The next byte that is not white space, left in place.
    fn peek(&mut self) -> Option<u8> {
        while matches!(self.text.get(self.at), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
        self.text.get(self.at).copied()
    }

    fn value(&mut self, depth: usize) -> Result<Node, String> {
        if depth > MAX_DEPTH {
            return Err(TOO_DEEP.to_owned());
        }
        if self.containers > MAX_CONTAINERS {
            return Err(too_many());
        }
        match self.peek().ok_or_else(end)? {
            b'{' => {
                self.containers += 1;
                self.object(depth)
            }
            b'[' => {
                self.containers += 1;
                self.array(depth)
            }
            b'"' => self.string().map(Node::String),
            b't' => self.literal("true", Node::Bool(true)),
            b'f' => self.literal("false", Node::Bool(false)),
            b'n' => self.literal("null", Node::Null),
            b'-' | b'0'..=b'9' => self.number(),
            c => Err(invalid(c, "looking for beginning of value")),
        }
    }

    fn literal(&mut self, word: &str, node: Node) -> Result<Node, String> {
        for want in word.bytes() {
            let c = *self.text.get(self.at).ok_or_else(end)?;
            if c != want {
                let context = format!("in literal {word} (expecting '{}')", char::from(want));
                return Err(invalid(c, &context));
            }
            self.at += 1;
        }
        Ok(node)
    }

    fn object(&mut self, depth: usize) -> Result<Node, String> {
        self.at += 1;
        let mut members = Vec::new();
        loop {
            match self.peek().ok_or_else(end)? {
                b'}' if members.is_empty() => break,
                b'"' => {}
                c => return Err(invalid(c, "looking for beginning of object key string")),
            }
            let key = self.string()?;
            match self.peek().ok_or_else(end)? {
                b':' => self.at += 1,
                c => return Err(invalid(c, "after object key")),
            }
            members.push((key, self.value(depth + 1)?));
            match self.peek().ok_or_else(end)? {
                b',' => self.at += 1,
                b'}' => break,
                c => return Err(invalid(c, "after object key:value pair")),
            }
        }
        self.at += 1;
        Ok(Node::Object(members))
    }

    fn array(&mut self, depth: usize) -> Result<Node, String> {
        self.at += 1;
        let mut items = Vec::new();
        loop {
            if items.is_empty() && self.peek() == Some(b']') {
                break;
            }
            items.push(self.value(depth + 1)?);
            match self.peek().ok_or_else(end)? {
                b',' => self.at += 1,
                b']' => break,
                c => return Err(invalid(c, "after array element")),
            }
        }
        self.at += 1;
        Ok(Node::Array(items))
    }

    fn digits(&mut self, context: &str) -> Result<(), String> {
        match self.text.get(self.at) {
            Some(b'0'..=b'9') => {}
            Some(c) => return Err(invalid(*c, context)),
            None => return Err(end()),
        }
        while matches!(self.text.get(self.at), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        Ok(())
    }

    fn number(&mut self) -> Result<Node, String> {
        let start = self.at;
        if self.text.get(self.at) == Some(&b'-') {
            self.at += 1;
        }
        if self.text.get(self.at) == Some(&b'0') {
            self.at += 1;
        } else {
            self.digits("in numeric literal")?;
        }
        if self.text.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.digits("after decimal point in numeric literal")?;
        }
        if matches!(self.text.get(self.at), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.text.get(self.at), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits("in exponent of numeric literal")?;
        }
        let text = self.text.get(start..self.at).unwrap_or_default();
        Ok(Node::Number(String::from_utf8_lossy(text).into_owned()))
    }

    fn hex4(&mut self) -> Result<u32, String> {
        let mut out = 0;
        for _ in 0..4 {
            let c = *self.text.get(self.at).ok_or_else(end)?;
            let digit = char::from(c)
                .to_digit(16)
                .ok_or_else(|| invalid(c, "in \\u hexadecimal character escape"))?;
            out = out * 16 + digit;
            self.at += 1;
        }
        Ok(out)
    }

    fn string(&mut self) -> Result<String, String> {
        self.at += 1;
        let mut out: Vec<u8> = Vec::new();
        loop {
            let c = *self.text.get(self.at).ok_or_else(end)?;
            self.at += 1;
            match c {
                b'"' => break,
                b'\\' => self.escape(&mut out)?,
                0..0x20 => return Err(invalid(c, "in string literal")),
                c => out.push(c),
            }
        }
        // As in Go, bytes that are not UTF-8 become U+FFFD.
        Ok(String::from_utf8(out).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
    }

    fn escape(&mut self, out: &mut Vec<u8>) -> Result<(), String> {
        let c = *self.text.get(self.at).ok_or_else(end)?;
        self.at += 1;
        let plain = match c {
            b'"' | b'\\' | b'/' => c,
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                let mut code = self.hex4()?;
                if (0xd800..0xdc00).contains(&code) && self.text.get(self.at..self.at + 2) == Some(b"\\u") {
                    let back = self.at;
                    self.at += 2;
                    let low = self.hex4()?;
                    if (0xdc00..0xe000).contains(&low) {
                        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
                    } else {
                        self.at = back;
                    }
                }
                let c = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
                out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            c => return Err(invalid(c, "in string escape code")),
        };
        out.push(plain);
        Ok(())
    }
}

/// Reads YAML (its first document).
pub(crate) fn parse_yaml(text: &[u8]) -> Result<Node, String> {
    if super::flow::is_deeper(text, 2 * MAX_DEPTH) {
        return Err(format!("yaml: {TOO_DEEP}"));
    }
    let wrong = |e: serde_norway::Error| format!("yaml: {e}");
    let Some(document) = serde_norway::Deserializer::from_slice(text).next() else { return Ok(Node::Null) };
    // What a node takes at least is counted, too: many small ones are as large as one long text.
    let left = Cell::new((text.len() + 1024).saturating_mul(MAX_EXPANSION));
    Seed { left: &left, depth: 0 }.deserialize(document).map_err(wrong)
}

/// Reads a node while there are bytes left for it.
#[derive(Clone, Copy)]
struct Seed<'b> {
    left: &'b Cell<usize>,
    depth: usize,
}

impl Seed<'_> {
    fn take<E: serde::de::Error>(self, bytes: usize) -> Result<(), E> {
        let left = self.left.get().checked_sub(bytes + 4);
        self.left.set(left.ok_or_else(|| E::custom("document contains excessive aliasing"))?);
        Ok(())
    }

    fn inside<E: serde::de::Error>(self) -> Result<Self, E> {
        if self.depth >= MAX_DEPTH {
            return Err(E::custom(TOO_DEEP));
        }
        Ok(Seed { depth: self.depth + 1, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Node, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_bool<E: serde::de::Error>(self, v: bool) -> Result<Node, E> {
        self.take(0)?;
        Ok(Node::Bool(v))
    }
    fn visit_i64<E: serde::de::Error>(self, v: i64) -> Result<Node, E> {
        self.take(0)?;
        Ok(Node::Number(v.to_string()))
    }
    fn visit_u64<E: serde::de::Error>(self, v: u64) -> Result<Node, E> {
        self.take(0)?;
        Ok(Node::Number(v.to_string()))
    }
    fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<Node, E> {
        self.take(0)?;
        Ok(if v.is_finite() { Node::Number(float(v).to_string()) } else { Node::Null })
    }
    fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<Node, E> {
        self.take(v.len())?;
        Ok(Node::String(v.to_owned()))
    }
    fn visit_unit<E: serde::de::Error>(self) -> Result<Node, E> {
        self.take(0)?;
        Ok(Node::Null)
    }
    fn visit_none<E: serde::de::Error>(self) -> Result<Node, E> {
        self.visit_unit()
    }
    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Node, D::Error> {
        self.deserialize(d)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let (mut out, inner) = (Vec::new(), self.inside()?);
        self.take(0)?;
        while let Some(item) = seq.next_element_seed(inner)? {
            out.push(item);
        }
        Ok(Node::Array(out))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let (mut out, inner) = (Vec::new(), self.inside()?);
        self.take(0)?;
        while let Some((key, value)) = map.next_entry_seed(inner, inner)? {
            let key = match key {
                Node::String(s) | Node::Number(s) => s,
                Node::Bool(b) => b.to_string(),
                Node::Null => "null".to_owned(),
                other => return Err(serde::de::Error::custom(format!("{} is no key", other.go_kind()))),
            };
            out.push((key, value));
        }
        Ok(Node::Object(out))
    }
}

/// Whether a value is nested deeper than what can be stored.
pub(crate) fn is_too_deep(value: &Value) -> bool {
    fn deeper(value: &Value, left: usize) -> bool {
        let Some(left) = left.checked_sub(1) else { return true };
        match value {
            Value::Array(items) => items.iter().any(|item| deeper(item, left)),
            Value::Object(members) => members.values().any(|member| deeper(member, left)),
            _ => false,
        }
    }
    deeper(value, MAX_DEPTH + 2)
}
