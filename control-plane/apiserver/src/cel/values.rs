//! Objects as CEL values, by their schema: texts with a format become times, durations and bytes, numbers have the type
//! that the schema says, and fields are spelled as expressions spell them. Texts are borrowed, not copied.

use super::meter;
use super::types::escape;
use crate::structural::{Additional, ListType, Structural, duration};
use cel::ExecutionError;
use cel::common::traits::{Adder, Container, Indexer, Iterable, Sizer, Zeroer};
use cel::common::types::{
    CelBool, CelBytes, CelDouble, CelDuration, CelInt, CelList, CelMap, CelMapKey, CelNull, CelOptional,
    CelString, CelTimestamp, LIST_TYPE, Type,
};
use cel::common::value::{CowVal, Val};
use serde_json::{Map, Value};
use std::collections::HashMap;

type Boxed<'v> = Box<dyn Val + 'v>;

/// An object as a value; `root`: a resource, of which expressions see kind, version and names whatever the schema says.
pub(crate) fn value<'v>(value: &'v Value, schema: &Structural, root: bool) -> Boxed<'v> {
    of(value, Some(schema), root)
}

/// A value that may be absent, as the old one of a rule that asks for it so.
pub(crate) fn optional<'v>(value: Option<&(dyn Val + 'v)>) -> Boxed<'v> {
    Box::new(match value {
        Some(value) => CelOptional::of(value.clone_as_boxed()),
        None => CelOptional::none(),
    })
}

fn of<'v>(value: &'v Value, schema: Option<&Structural>, root: bool) -> Boxed<'v> {
    match value {
        Value::Null => Box::new(CelNull),
        Value::Bool(b) => Box::new(CelBool::from(*b)),
        Value::Number(n) => {
            let double = schema.is_some_and(|s| &*s.kind == "number");
            match n.as_i64().filter(|_| !double) {
                Some(i) => Box::new(CelInt::from(i)),
                None => {
                    let f = n.as_f64().unwrap_or_default();
                    let whole = schema.is_some_and(|s| &*s.kind == "integer") && f.fract() == 0.0;
                    if whole { Box::new(CelInt::from(f as i64)) } else { Box::new(CelDouble::from(f)) }
                }
            }
        }
        Value::String(text) => of_text(text, schema),
        Value::Array(items) => {
            let inner = schema.and_then(|s| s.items.as_deref());
            let embedded = inner.is_some_and(|s| s.embedded);
            let list: CelList<'v> =
                items.iter().map(|item| of(item, inner, embedded)).collect::<Vec<_>>().into();
            match schema.map(|s| s.list) {
                Some(ListType::Set) => Box::new(Keyed { list, keys: Vec::new() }),
                Some(ListType::Map) => {
                    let keys = schema.map(|s| s.list_keys.clone()).unwrap_or_default();
                    Box::new(Keyed {
                        list,
                        keys: keys.iter().map(|key| escape(key).unwrap_or_default()).collect(),
                    })
                }
                _ => Box::new(list),
            }
        }
        Value::Object(members) => Box::new(CelMap::from(of_members(members, schema, root))),
    }
}

fn of_members<'v>(
    members: &'v Map<String, Value>,
    schema: Option<&Structural>,
    root: bool,
) -> HashMap<CelMapKey<'v>, Boxed<'v>> {
    let mut out: HashMap<CelMapKey<'v>, Boxed<'v>> = HashMap::with_capacity(members.len());
    let additional = schema.filter(|_| !root).and_then(|s| s.additional.as_ref());
    for (name, member) in members {
        if root && name == "metadata" {
            out.insert(CelMapKey::from(name.as_str()), of_metadata(member));
            continue;
        }
        let (inner, is_field) = match schema.and_then(|s| s.properties.get(name.as_str())) {
            Some(property) => (Some(property), true),
            None => match additional {
                Some(Additional::Schema(inner)) => (Some(inner.as_ref()), false),
                Some(Additional::Any) => (None, false),
                None => (None, true),
            },
        };
        let key = match escape(name) {
            _ if !is_field => CelMapKey::from(name.as_str()),
            Some(escaped) if escaped == *name => CelMapKey::from(name.as_str()),
            Some(escaped) => CelMapKey::from(escaped),
            // No expression can name it.
            None => continue,
        };
        out.insert(key, of(member, inner, inner.is_some_and(|s| s.embedded)));
    }
    out
}

/// Of the metadata expressions see the names alone.
fn of_metadata(metadata: &Value) -> Boxed<'_> {
    let mut out: HashMap<CelMapKey<'_>, Boxed<'_>> = HashMap::new();
    for name in ["name", "generateName"] {
        if let Some(text) = metadata.get(name).and_then(Value::as_str) {
            out.insert(CelMapKey::from(name), Box::new(CelString::from(text)));
        }
    }
    Box::new(CelMap::from(out))
}

fn of_text<'v>(text: &'v str, schema: Option<&Structural>) -> Boxed<'v> {
    let plain = || -> Boxed<'v> { Box::new(CelString::from(text)) };
    let Some(schema) = schema.filter(|s| &*s.kind == "string") else { return plain() };
    match &*schema.limits.format {
        "byte" => match crate::codec::decode_base64(text) {
            Ok(bytes) => Box::new(CelBytes::from(bytes)),
            Err(_) => plain(),
        },
        "duration" => match duration(text) {
            Some(nanos) => Box::new(CelDuration::from(chrono::Duration::nanoseconds(nanos))),
            None => plain(),
        },
        "date-time" => match chrono::DateTime::parse_from_rfc3339(text) {
            Ok(time) => Box::new(CelTimestamp::from(time)),
            Err(_) => plain(),
        },
        "date" => match chrono::DateTime::parse_from_rfc3339(&format!("{text}T00:00:00Z")) {
            Ok(time) => Box::new(CelTimestamp::from(time)),
            Err(_) => plain(),
        },
        _ => plain(),
    }
}

/// A set, or a list that keys identify the items of: its order does not count, and adding replaces what is the same.
#[derive(Debug, Clone)]
struct Keyed<'v> {
    list: CelList<'v>,
    /// Empty for a set.
    keys: Vec<String>,
}

/// The elements of a value that is a list.
pub(super) fn elements<'b, 'v>(value: &'b (dyn Val + 'v)) -> Option<Vec<&'b (dyn Val + 'v)>> {
    let mut items = value.as_iterable()?.iter();
    let mut out = Vec::new();
    while let Some(item) = items.next() {
        out.push(item);
    }
    Some(out)
}

impl Keyed<'_> {
    fn is_same(&self, a: &dyn Val, b: &dyn Val) -> bool {
        if self.keys.is_empty() {
            return a.equals(b);
        }
        let (Some(a), Some(b)) = (a.downcast_ref::<CelMap>(), b.downcast_ref::<CelMap>()) else {
            return false;
        };
        self.keys.iter().all(|key| {
            let key = CelMapKey::from(key.as_str());
            match (a.inner().get(&key), b.inner().get(&key)) {
                (Some(a), Some(b)) => a.equals(b.as_ref()),
                (None, None) => true,
                _ => false,
            }
        })
    }
}

impl<'v> Val for Keyed<'v> {
    fn get_type(&self) -> &Type {
        &LIST_TYPE
    }

    fn cel_type() -> &'static Type {
        &LIST_TYPE
    }

    fn as_adder<'b, 'w>(&'b self) -> Option<&'b (dyn Adder + 'w)>
    where
        Self: 'w,
    {
        Some(self)
    }

    fn as_container(&self) -> Option<&dyn Container> {
        self.list.as_container()
    }

    fn as_indexer<'b, 'w>(&'b self) -> Option<&'b (dyn Indexer + 'w)>
    where
        Self: 'w,
    {
        self.list.as_indexer()
    }

    fn as_iterable<'b, 'w>(&'b self) -> Option<&'b (dyn Iterable + 'w)>
    where
        Self: 'w,
    {
        self.list.as_iterable()
    }

    fn as_sizer(&self) -> Option<&dyn Sizer> {
        self.list.as_sizer()
    }

    fn as_zeroer(&self) -> Option<&dyn Zeroer> {
        self.list.as_zeroer()
    }

    fn equals(&self, other: &dyn Val) -> bool {
        let Some(others) = elements(other) else { return false };
        others.len() == self.list.inner().len()
            && self.list.inner().iter().zip(&others).all(|(item, opposite)| {
                // Mostly the order is the same.
                item.equals(*opposite)
                    || (meter::spend(1 + others.len() as u64 / meter::PAIRS_PER_UNIT).is_ok()
                        && others.iter().any(|other| item.equals(*other)))
            })
    }

    fn clone_as_boxed<'w>(&self) -> Box<dyn Val + 'w>
    where
        Self: 'w,
    {
        Box::new(self.clone())
    }
}

impl<'own> Adder for Keyed<'own> {
    fn add<'b, 'v>(&'b self, rhs: &(dyn Val + 'v)) -> Result<CowVal<'b, 'v>, ExecutionError>
    where
        Self: 'v,
    {
        let Some(new) = elements(rhs) else {
            return Err(ExecutionError::no_such_overload(
                "_+_",
                vec!["list".into(), rhs.get_type().name().into()],
            ));
        };
        let mut out: Vec<Box<dyn Val + 'v>> =
            self.list.inner().iter().map(|item| item.clone_as_boxed()).collect();
        for item in new {
            meter::spend(1 + out.len() as u64 / meter::PAIRS_PER_UNIT)?;
            match out.iter().position(|known| self.is_same(known.as_ref(), item)) {
                // A set keeps what it has; of keyed items the new one counts.
                Some(_) if self.keys.is_empty() => {}
                Some(at) => {
                    if let Some(slot) = out.get_mut(at) {
                        *slot = item.clone_as_boxed();
                    }
                }
                None => out.push(item.clone_as_boxed()),
            }
        }
        let list: CelList<'v> = out.into();
        Ok(CowVal::owned(Keyed { list, keys: self.keys.clone() }))
    }
}
