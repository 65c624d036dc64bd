//! The Kubernetes protobuf encoding: `k8s\0`, a `runtime.Unknown` envelope, and messages whose field numbers are in the
//! type table.

use serde_json::{Map, Value};

use super::node;
use super::scalar;
use super::typed;
use crate::schema::{Type, TypeSchema};

/// What every body of this encoding starts with.
pub(crate) const MAGIC: [u8; 4] = *b"k8s\0";

/// Messages may be nested this deep.
const MAX_NESTING: usize = 100;

/// Messages that one body may hold; an empty one takes two bytes here and hundreds in memory.
const MAX_MESSAGES: usize = 200_000;

/// The envelope of a body.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Unknown<'a> {
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) raw: &'a [u8],
    pub(crate) content_type: String,
}

type Result<T> = std::result::Result<T, String>;

/// One field of a message.
#[derive(Debug, Clone, Copy)]
enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32(u32),
}

impl<'a> Wire<'a> {
    fn bytes(self) -> Result<&'a [u8]> {
        match self {
            Wire::Bytes(b) => Ok(b),
            _ => Err("proto: wrong wireType".to_owned()),
        }
    }

    fn varint(self) -> Result<u64> {
        match self {
            Wire::Varint(v) => Ok(v),
            _ => Err("proto: wrong wireType".to_owned()),
        }
    }

    fn text(self) -> Result<String> {
        Ok(String::from_utf8_lossy(self.bytes()?).into_owned())
    }
}

/// Reads the fields of a message one by one.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn varint(&mut self) -> Result<u64> {
        let mut out = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or("unexpected EOF")?;
            self.0 = rest;
            out |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(out);
            }
        }
        Err("proto: integer overflow".to_owned())
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8]> {
        let count = usize::try_from(count).map_err(|_| "unexpected EOF")?;
        let (head, rest) = self.0.split_at_checked(count).ok_or("unexpected EOF")?;
        self.0 = rest;
        Ok(head)
    }

    fn next(&mut self) -> Result<Option<(u32, Wire<'a>)>> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).ok().filter(|n| *n > 0);
        let number = number.ok_or_else(|| format!("proto: illegal tag {tag}"))?;
        let wire = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(self.take(8)?.try_into().map(u64::from_le_bytes).unwrap_or_default()),
            2 => {
                let length = self.varint()?;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Fixed32(self.take(4)?.try_into().map(u32::from_le_bytes).unwrap_or_default()),
            other => return Err(format!("proto: illegal wireType {other}")),
        };
        Ok(Some((number, wire)))
    }
}

/// Reads the envelope.
pub(crate) fn unwrap(body: &[u8]) -> Result<Unknown<'_>> {
    let rest = body
        .strip_prefix(&MAGIC[..])
        .ok_or("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")?;
    let mut out = Unknown::default();
    let mut reader = Reader(rest);
    while let Some((number, wire)) = reader.next()? {
        match number {
            1 => {
                let mut meta = Reader(wire.bytes()?);
                while let Some((number, wire)) = meta.next()? {
                    match number {
                        1 => out.api_version = wire.text()?,
                        2 => out.kind = wire.text()?,
                        _ => {}
                    }
                }
            }
            2 => out.raw = wire.bytes()?,
            4 => out.content_type = wire.text()?,
            _ => {}
        }
    }
    Ok(out)
}

/// Decodes a message of the given type.
pub(crate) fn decode(raw: &[u8], ty: &TypeSchema) -> Result<Value> {
    let object = message(raw, ty, &Depth::default())?;
    if node::is_too_deep(&object) { Err(node::TOO_DEEP.to_owned()) } else { Ok(object) }
}

/// How deep a message is, and how many there are so far.
#[derive(Default)]
struct Depth<'a> {
    level: usize,
    outer: Option<&'a Depth<'a>>,
    messages: std::cell::Cell<usize>,
}

impl Depth<'_> {
    fn inside(&self) -> Depth<'_> {
        Depth { level: self.level + 1, outer: Some(self.outermost()), messages: std::cell::Cell::new(0) }
    }

    fn outermost(&self) -> &Depth<'_> {
        self.outer.unwrap_or(self)
    }

    fn check(&self) -> Result<()> {
        let messages = &self.outermost().messages;
        messages.set(messages.get() + 1);
        if self.level > MAX_NESTING {
            return Err("proto: message is nested too deep".to_owned());
        }
        if messages.get() > MAX_MESSAGES {
            return Err(format!("proto: a body has at most {MAX_MESSAGES} messages"));
        }
        Ok(())
    }
}

fn message(raw: &[u8], ty: &TypeSchema, depth: &Depth<'_>) -> Result<Value> {
    let mut out = Map::new();
    fields(raw, ty, &mut out, depth)?;
    Ok(typed::finish(out, ty))
}

fn fields(raw: &[u8], ty: &TypeSchema, out: &mut Map<String, Value>, depth: &Depth<'_>) -> Result<()> {
    depth.check()?;
    let mut reader = Reader(raw);
    while let Some((number, wire)) = reader.next()? {
        if let Some((_, inlined)) = ty.inlined.iter().find(|(n, _)| *n == number) {
            fields(wire.bytes()?, inlined.get(), out, &depth.inside())?;
        } else if let Some(field) = ty.fields.iter().find(|f| f.number == number) {
            let at = |e: String| format!("{}: {e}", field.name);
            match &field.ty {
                Type::List(item) => {
                    let list = out.entry(field.name.as_ref()).or_insert_with(|| Value::Array(Vec::new()));
                    if let Value::Array(list) = list {
                        repeated(wire, item, list, depth).map_err(at)?;
                    }
                }
                Type::Map(item) => {
                    let map = out.entry(field.name.as_ref()).or_insert_with(|| Value::Object(Map::new()));
                    let (key, value) = entry(wire.bytes()?, item, depth).map_err(at)?;
                    if let Value::Object(map) = map {
                        map.insert(key, value);
                    }
                }
                other => {
                    let value = value(wire, other, depth).map_err(at)?;
                    out.insert(field.name.as_ref().to_owned(), value);
                }
            }
        }
    }
    Ok(())
}

fn repeated(wire: Wire<'_>, item: &Type, out: &mut Vec<Value>, depth: &Depth<'_>) -> Result<()> {
    match (item, wire) {
        // Packed numbers.
        (Type::Int32 | Type::Int64 | Type::Bool, Wire::Bytes(packed)) => {
            let mut reader = Reader(packed);
            while !reader.0.is_empty() {
                out.push(value(Wire::Varint(reader.varint()?), item, depth)?);
            }
        }
        _ => out.push(value(wire, item, depth)?),
    }
    Ok(())
}

fn entry(raw: &[u8], item: &Type, depth: &Depth<'_>) -> Result<(String, Value)> {
    let (mut key, mut found) = (String::new(), None);
    let mut reader = Reader(raw);
    while let Some((number, wire)) = reader.next()? {
        match number {
            1 => key = wire.text()?,
            2 => found = Some(value(wire, item, depth)?),
            _ => {}
        }
    }
    Ok((key, found.unwrap_or_else(|| typed::zero(item))))
}

fn value(wire: Wire<'_>, ty: &Type, depth: &Depth<'_>) -> Result<Value> {
    Ok(match ty {
        Type::String(_) => wire.text()?.into(),
        Type::Bool => (wire.varint()? != 0).into(),
        // Negative numbers come sign-extended to 64 bits.
        Type::Int32 => (wire.varint()? as i32).into(),
        Type::Int64 => (wire.varint()? as i64).into(),
        Type::Float64 => match wire {
            Wire::Fixed64(bits) => node::float(f64::from_bits(bits)),
            Wire::Fixed32(bits) => node::float(f64::from(f32::from_bits(bits))),
            _ => return Err("proto: wrong wireType".to_owned()),
        },
        Type::Bytes => scalar::encode_base64(wire.bytes()?).into(),
        Type::Quantity => {
            let mut text = String::new();
            let mut reader = Reader(wire.bytes()?);
            while let Some((number, wire)) = reader.next()? {
                if number == 1 {
                    text = wire.text()?;
                }
            }
            if text.is_empty() {
                "0".into()
            } else {
                kelp_model::quantity::Quantity::parse(&text).map_err(|e| e.to_string())?.to_string().into()
            }
        }
        Type::IntOrString => int_or_string(wire.bytes()?)?,
        Type::Time | Type::MicroTime => time(wire.bytes()?, matches!(ty, Type::MicroTime))?,
        Type::Raw | Type::FieldsV1 | Type::Json | Type::Deduced => {
            let mut raw: &[u8] = &[];
            let mut reader = Reader(wire.bytes()?);
            while let Some((number, wire)) = reader.next()? {
                if number == 1 {
                    raw = wire.bytes()?;
                }
            }
            if raw.is_empty() { Value::Null } else { node::parse_json(raw)?.into_value() }
        }
        Type::SchemaOrArray(r) | Type::SchemaOrBool(r) | Type::SchemaOrStrings(r) => {
            schema_or(wire.bytes()?, ty, r.get(), depth)?
        }
        Type::Wrapped(item) => {
            let mut out = Vec::new();
            let mut reader = Reader(wire.bytes()?);
            while let Some((number, wire)) = reader.next()? {
                if number == 1 {
                    repeated(wire, item, &mut out, &depth.inside())?;
                }
            }
            out.into()
        }
        Type::Object(r) => message(wire.bytes()?, r.get(), &depth.inside())?,
        // Lists and maps directly inside lists and maps do not exist in protobuf.
        Type::List(_) | Type::Map(_) => return Err("proto: nested list".to_owned()),
    })
}

fn int_or_string(raw: &[u8]) -> Result<Value> {
    let (mut is_string, mut int, mut text) = (false, 0i32, String::new());
    let mut reader = Reader(raw);
    while let Some((number, wire)) = reader.next()? {
        match number {
            1 => is_string = wire.varint()? == 1,
            2 => int = wire.varint()? as i32,
            3 => text = wire.text()?,
            _ => {}
        }
    }
    Ok(if is_string { text.into() } else { int.into() })
}

fn time(raw: &[u8], micro: bool) -> Result<Value> {
    if raw.is_empty() {
        return Ok(Value::Null);
    }
    let (mut seconds, mut nanos) = (0i64, 0i32);
    let mut reader = Reader(raw);
    while let Some((number, wire)) = reader.next()? {
        match number {
            1 => seconds = wire.varint()? as i64,
            2 => nanos = wire.varint()? as i32,
            _ => {}
        }
    }
    let nanos = if micro { nanos / 1000 * 1000 } else { 0 };
    let time = jiff::Timestamp::new(seconds, nanos).map_err(|_| "time is out of range")?;
    Ok(scalar::format_time(time, micro).into())
}

fn schema_or(raw: &[u8], ty: &Type, schema: &TypeSchema, depth: &Depth<'_>) -> Result<Value> {
    let mut list = Vec::new();
    let (mut single, mut allows) = (None, false);
    let mut reader = Reader(raw);
    while let Some((number, wire)) = reader.next()? {
        match (ty, number) {
            (Type::SchemaOrBool(_), 1) => allows = wire.varint()? != 0,
            (Type::SchemaOrBool(_), 2) | (_, 1) => {
                single = Some(message(wire.bytes()?, schema, &depth.inside())?)
            }
            (Type::SchemaOrStrings(_), 2) => list.push(wire.text()?.into()),
            (Type::SchemaOrArray(_), 2) => list.push(message(wire.bytes()?, schema, &depth.inside())?),
            _ => {}
        }
    }
    Ok(match (ty, single) {
        (_, Some(schema)) => schema,
        (Type::SchemaOrBool(_), None) => allows.into(),
        (_, None) => list.into(),
    })
}
