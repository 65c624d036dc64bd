//! Documents to objects, by schema: unknown and repeated fields, type errors with Go's texts, and the object as Go would
//! write it back (zero values left out or filled in, quantities, times and bytes in canonical form).

use kelp_model::quantity::Quantity;
use serde_json::{Map, Value};
use std::collections::BTreeSet;

use super::node::{self, Node};
use super::scalar;
use crate::schema::{Field, Type, TypeSchema};

/// Unknown and repeated fields beyond this number are not reported.
const MAX_STRICT: usize = 100;

/// The outcome of decoding a document.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// The first error, if any.
    pub(crate) error: Option<String>,
    /// Unknown and repeated fields, in the order of the document.
    pub(crate) strict: Vec<String>,
}

struct Decoder {
    out: Outcome,
    /// Path with indexes and map keys, for strict errors.
    path: String,
    /// Field names only, for type errors.
    fields: Vec<String>,
    /// The innermost Go struct, for type errors.
    owner: String,
    /// Type errors are worded as upstream's conversion from unstructured objects does.
    unstructured: bool,
}

/// Decodes an object of the given type.
pub(crate) fn decode(node: Node, ty: &TypeSchema) -> (Value, Outcome) {
    run(node, ty, false)
}

/// Decodes the outcome of a strategic merge patch.
pub(crate) fn decode_unstructured(node: Node, ty: &TypeSchema) -> (Value, Outcome) {
    run(node, ty, true)
}

fn run(node: Node, ty: &TypeSchema, unstructured: bool) -> (Value, Outcome) {
    let mut d = Decoder {
        out: Outcome::default(),
        path: String::new(),
        fields: Vec::new(),
        owner: String::new(),
        unstructured,
    };
    let value = match node {
        Node::Object(members) => d.object(members, ty),
        Node::Null => finish(Map::new(), ty),
        other => {
            d.type_error(other.go_kind(), &ty.go_name());
            Value::Null
        }
    };
    (value, d.out)
}

impl Decoder {
    fn error(&mut self, message: String) {
        self.out.error.get_or_insert(message);
    }

    fn type_error(&mut self, found: &str, want: &str) {
        if self.out.error.is_some() {
            return;
        }
        if self.unstructured {
            let message = conversion_error(found, want);
            return self.error(message);
        }
        let message = if self.fields.is_empty() {
            format!("json: cannot unmarshal {found} into Go value of type {want}")
        } else {
            format!(
                "json: cannot unmarshal {found} into Go struct field {}.{} of type {want}",
                self.owner,
                self.fields.join(".")
            )
        };
        self.error(message);
    }

    fn strict(&mut self, what: &str) {
        if self.out.strict.len() < MAX_STRICT {
            let message = format!("{what} field {}", crate::error::quote(self.path.trim_start_matches('.')));
            if !self.out.strict.contains(&message) {
                self.out.strict.push(message);
            }
        }
    }

    /// Runs `f` with `segment` added to the path.
    fn at<T>(&mut self, segment: std::fmt::Arguments<'_>, f: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.path.len();
        let _ = std::fmt::Write::write_fmt(&mut self.path, segment);
        let out = f(self);
        self.path.truncate(length);
        out
    }

    fn object(&mut self, members: Vec<(String, Node)>, ty: &TypeSchema) -> Value {
        let owner = std::mem::replace(&mut self.owner, ty.short_name().to_owned());
        let mut out = Map::new();
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        for (name, node) in members {
            let Some(field) = ty.field(&name) else {
                if ty.preserve_unknown {
                    out.insert(name, node.into_value());
                } else {
                    self.at(format_args!(".{name}"), |d| d.strict("unknown"));
                }
                continue;
            };
            let value = self.at(format_args!(".{name}"), |d| {
                if !seen.insert(field.name.as_ref()) {
                    d.strict("duplicate");
                }
                d.fields.push(name.clone());
                let value = d.value(node, &field.ty);
                d.fields.pop();
                value
            });
            if let Some(value) = value {
                out.insert(name, value);
            }
        }
        self.owner = owner;
        finish(out, ty)
    }

    /// None when the value is null or wrong.
    fn value(&mut self, node: Node, ty: &Type) -> Option<Value> {
        if matches!(node, Node::Null) {
            return None;
        }
        match (ty, node) {
            (Type::String(_), Node::String(s)) => Some(s.into()),
            (Type::Bool, Node::Bool(b)) => Some(b.into()),
            (Type::Int32, Node::Number(n)) => self.integer::<i32>(&n, ty),
            (Type::Int64, Node::Number(n)) => self.integer::<i64>(&n, ty),
            (Type::Float64, Node::Number(n)) => match n.parse::<f64>() {
                Ok(f) if f.is_finite() => Some(node::float(f)),
                _ => {
                    self.type_error(&format!("number {n}"), "float64");
                    None
                }
            },
            (Type::Bytes, Node::String(s)) => match scalar::decode_base64(&s) {
                Ok(bytes) => Some(scalar::encode_base64(&bytes).into()),
                Err(e) => {
                    self.error(e);
                    None
                }
            },
            (Type::Quantity, node) => {
                let text = match &node {
                    Node::String(s) | Node::Number(s) => s.trim(),
                    // Any other value has a text that is no quantity.
                    _ => "{",
                };
                match Quantity::parse(text) {
                    Ok(q) => Some(q.to_string().into()),
                    Err(e) => {
                        self.error(e.to_string());
                        None
                    }
                }
            }
            (Type::IntOrString, Node::String(s)) => Some(s.into()),
            (Type::IntOrString, Node::Number(n)) => match n.parse::<i32>() {
                Ok(i) => Some(i.into()),
                Err(_) => {
                    self.error(format!("json: cannot unmarshal number {n} into Go value of type int32"));
                    None
                }
            },
            (Type::IntOrString, other) => {
                self.error(format!("json: cannot unmarshal {} into Go value of type int32", other.go_kind()));
                None
            }
            (Type::Time | Type::MicroTime, Node::String(s)) => {
                let micro = matches!(ty, Type::MicroTime);
                match scalar::parse_time(&s, micro) {
                    Ok(t) => Some(scalar::format_time(t, micro).into()),
                    Err(e) => {
                        self.error(e);
                        None
                    }
                }
            }
            (Type::Time | Type::MicroTime, other) => {
                self.error(format!(
                    "json: cannot unmarshal {} into Go value of type string",
                    other.go_kind()
                ));
                None
            }
            (Type::Raw | Type::FieldsV1 | Type::Json | Type::Deduced, node) => Some(node.into_value()),
            (Type::SchemaOrArray(r), Node::Array(items)) => {
                Some(items.into_iter().map(|n| self.schema(n, r.get())).collect())
            }
            (Type::SchemaOrArray(r), Node::Object(o)) => Some(self.object(o, r.get())),
            (Type::SchemaOrBool(_), Node::Bool(b)) => Some(b.into()),
            (Type::SchemaOrBool(r) | Type::SchemaOrStrings(r), Node::Object(o)) => {
                Some(self.object(o, r.get()))
            }
            (Type::SchemaOrStrings(_), Node::Array(items)) => {
                Some(items.into_iter().map(|n| self.item(n, &Type::String(None))).collect())
            }
            (Type::SchemaOrArray(_) | Type::SchemaOrBool(_) | Type::SchemaOrStrings(_), other) => {
                self.error(format!(
                    "json: cannot unmarshal {} into Go value of type v1.JSONSchemaProps",
                    other.go_kind()
                ));
                None
            }
            (Type::List(t) | Type::Wrapped(t), Node::Array(items)) => {
                let mut out = Vec::with_capacity(items.len());
                for (i, item) in items.into_iter().enumerate() {
                    out.push(self.at(format_args!("[{i}]"), |d| d.item(item, t)));
                }
                Some(out.into())
            }
            (Type::Map(t), Node::Object(members)) => {
                let mut out = Map::new();
                for (key, node) in members {
                    let value = self.at(format_args!(".{key}"), |d| {
                        if out.contains_key(&key) {
                            d.strict("duplicate");
                        }
                        d.item(node, t)
                    });
                    out.insert(key, value);
                }
                Some(out.into())
            }
            (Type::Object(r), Node::Object(members)) => Some(self.object(members, r.get())),
            (ty, other) => {
                let mut found = other.go_kind().to_owned();
                let mut want = ty.go_name();
                if self.unstructured {
                    if let Node::Number(n) = &other {
                        found = format!("number {n}");
                    }
                    if matches!(ty, Type::Object(_)) {
                        want = "struct ".into();
                    }
                }
                self.type_error(&found, &want);
                None
            }
        }
    }

    fn integer<T: std::str::FromStr + Into<Value>>(&mut self, text: &str, ty: &Type) -> Option<Value> {
        match text.parse::<T>() {
            Ok(i) => Some(i.into()),
            Err(_) => {
                self.type_error(&format!("number {text}"), &ty.go_name());
                None
            }
        }
    }

    fn schema(&mut self, node: Node, ty: &TypeSchema) -> Value {
        match node {
            Node::Object(o) => self.object(o, ty),
            Node::Null => finish(Map::new(), ty),
            other => {
                self.type_error(other.go_kind(), &ty.go_name());
                Value::Null
            }
        }
    }

    /// A list item or map value: null is the type's zero value.
    fn item(&mut self, node: Node, ty: &Type) -> Value {
        self.value(node, ty).unwrap_or_else(|| zero(ty))
    }
}

/// How the conversion from unstructured objects words a type error; `found` and `want` are those of JSON's errors.
fn conversion_error(found: &str, want: &str) -> String {
    let kind = match found {
        "array" => "slice",
        "object" => "map",
        "bool" | "string" => found,
        number if number.contains(['.', 'e', 'E']) => "float64",
        _ => "int64",
    };
    if want.starts_with("[]") {
        format!("cannot restore slice from {kind}")
    } else if want.starts_with("map[") {
        format!("cannot restore map from {kind}")
    } else if matches!(want, "bool" | "int32" | "int64" | "float64") {
        format!("unrecognized type: {want}")
    } else if want.starts_with("struct ") {
        format!("cannot restore struct from: {kind}")
    } else if kind == "int64" {
        format!("cannot convert int64 to {want}")
    } else {
        "unrecognized type: string".to_owned()
    }
}

/// Go's zero value as JSON.
pub(crate) fn zero(ty: &Type) -> Value {
    match ty {
        Type::String(_) => "".into(),
        Type::Bool => false.into(),
        Type::Int32 | Type::Int64 | Type::Float64 | Type::IntOrString => 0.into(),
        Type::Quantity => "0".into(),
        Type::Object(r) => finish(Map::new(), r.get()),
        Type::SchemaOrBool(_) => false.into(),
        _ => Value::Null,
    }
}

/// True for types that Go's omitempty never leaves out.
fn is_struct(ty: &Type) -> bool {
    matches!(
        ty,
        Type::Object(_) | Type::Quantity | Type::IntOrString | Type::Time | Type::MicroTime | Type::Raw
    )
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
    }
}

/// Leaves out and fills in what Go would when it writes the struct.
pub(crate) fn finish(mut out: Map<String, Value>, ty: &TypeSchema) -> Value {
    for field in &ty.fields {
        finish_field(&mut out, field);
    }
    Value::Object(out)
}

/// Makes an object what it is after it was stored: protobuf does not tell an empty list from none.
pub(crate) fn as_stored(value: &mut Value, ty: &TypeSchema) {
    let Value::Object(map) = value else { return };
    for field in &ty.fields {
        let Some(value) = map.get_mut(field.name.as_ref()) else { continue };
        if !field.omit_empty && !matches!(field.ty, Type::Object(_)) && holds_nothing(value) {
            *value = Value::Null;
        } else {
            inner_as_stored(value, &field.ty);
        }
    }
}

fn inner_as_stored(value: &mut Value, ty: &Type) {
    match (ty, value) {
        (Type::Object(r), value) => as_stored(value, r.get()),
        (Type::List(t) | Type::Wrapped(t), Value::Array(items)) => {
            items.iter_mut().for_each(|item| inner_as_stored(item, t));
        }
        (Type::Map(t), Value::Object(map)) => map.values_mut().for_each(|item| inner_as_stored(item, t)),
        _ => {}
    }
}

/// An empty list or map.
fn holds_nothing(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

fn finish_field(out: &mut Map<String, Value>, field: &Field) {
    let name = field.name.as_ref();
    match out.get(name) {
        None | Some(Value::Null) => {
            let fills = !field.omit_zero && (!field.omit_empty || (!field.pointer && is_struct(&field.ty)));
            if fills {
                out.insert(name.to_owned(), if field.pointer { Value::Null } else { zero(&field.ty) });
            } else {
                out.remove(name);
            }
        }
        Some(value) => {
            // An empty list of managed fields says that tracking is to begin anew.
            let drops = !field.pointer
                && field.omit_empty
                && !is_struct(&field.ty)
                && is_empty(value)
                && !(name == "managedFields" && value.is_array());
            if drops {
                out.remove(name);
            }
        }
    }
}
