//! Types of CEL expressions, and those of schemas.

use serde_json::Value;
use std::fmt;
use std::rc::Rc;

/// A type; objects are known by their schema.
#[derive(Debug, Clone)]
pub enum Type<'s> {
    /// Any value: checked when it is evaluated.
    Dyn,
    /// What an expression with a fault has: it causes no other fault.
    Error,
    /// The element of an empty list or map: fits everything.
    Free,
    /// A scalar or an opaque type, by its name.
    Named(&'static str),
    /// A list.
    List(Rc<Type<'s>>),
    /// A map.
    Map(Rc<Type<'s>>, Rc<Type<'s>>),
    /// A value that may be absent.
    Optional(Rc<Type<'s>>),
    /// A type as a value.
    Kind(Rc<Type<'s>>),
    /// An object with the fields of a schema.
    Object {
        /// The schema, of `type: object`.
        schema: &'s Value,
        /// The root of a resource, which has a kind, a version and a name whatever the schema says.
        root: bool,
    },
    /// The metadata every resource has.
    Metadata,
}

/// Names of the scalars.
pub(super) const BOOL: Type<'static> = Type::Named("bool");
pub(super) const INT: Type<'static> = Type::Named("int");
pub(super) const STRING: Type<'static> = Type::Named("string");

impl<'s> Type<'s> {
    /// A list of a type.
    pub fn list(of: Type<'s>) -> Self {
        Type::List(Rc::new(of))
    }

    /// A map.
    pub fn map(key: Type<'s>, value: Type<'s>) -> Self {
        Type::Map(Rc::new(key), Rc::new(value))
    }

    /// An optional value.
    pub fn optional(of: Type<'s>) -> Self {
        Type::Optional(Rc::new(of))
    }

    /// The type of values of a schema; `None` when expressions do not see them.
    pub fn of_schema(schema: &'s Value, root: bool) -> Option<Self> {
        let flag = |name: &str| schema.get(name).and_then(Value::as_bool) == Some(true);
        if flag("x-kubernetes-int-or-string") {
            return Some(Type::Dyn);
        }
        let child = |schema: &'s Value| Type::of_schema(schema, embedded(schema));
        match schema.get("type").and_then(Value::as_str).unwrap_or_default() {
            "array" => child(schema.get("items")?).map(Type::list),
            "object" => {
                let additional = schema.get("additionalProperties").filter(|a| a.is_object());
                match additional {
                    Some(values) if !root => child(values).map(|values| Type::map(STRING, values)),
                    _ => Some(Type::Object { schema, root }),
                }
            }
            "string" => {
                let format = schema.get("format").and_then(Value::as_str).unwrap_or_default();
                Some(Type::Named(match format {
                    "byte" => "bytes",
                    "duration" => "google.protobuf.Duration",
                    "date" | "date-time" => "google.protobuf.Timestamp",
                    _ => "string",
                }))
            }
            "boolean" => Some(BOOL),
            "number" => Some(Type::Named("double")),
            "integer" => Some(INT),
            _ if root => Some(Type::Object { schema, root }),
            _ => None,
        }
    }

    /// The type of a field as an expression spells it; `None` when there is no such field.
    pub fn field(&self, name: &str) -> Option<Type<'s>> {
        match self {
            Type::Metadata => matches!(name, "name" | "generateName").then_some(STRING),
            Type::Object { schema, root } => {
                let fixed = match name {
                    "kind" | "apiVersion" if *root => Some(STRING),
                    "metadata" if *root => Some(Type::Metadata),
                    _ => None,
                };
                if fixed.is_some() {
                    return fixed;
                }
                let properties = schema.get("properties").and_then(Value::as_object)?;
                let found = properties.get(name).filter(|_| escape(name).as_deref() == Some(name));
                let found = found.or_else(|| {
                    properties.iter().find(|(own, _)| escape(own).as_deref() == Some(name)).map(|(_, s)| s)
                })?;
                Type::of_schema(found, embedded(found))
            }
            _ => None,
        }
    }

    /// Whether this is the scalar or opaque type of that name.
    pub fn is(&self, name: &str) -> bool {
        matches!(self, Type::Named(own) if *own == name)
    }

    /// Nothing is known before evaluation.
    pub fn is_dynamic(&self) -> bool {
        matches!(self, Type::Dyn | Type::Error | Type::Free)
    }

    /// Whether a value of this type may stand where `other` is expected.
    pub fn fits(&self, other: &Type<'s>) -> bool {
        match (self, other) {
            (a, b) if a.is_dynamic() || b.is_dynamic() => true,
            (Type::Named(a), Type::Named(b)) => a == b,
            // Null is a value of every type that can be absent: objects, optional and wrapped values.
            (Type::Named("null_type"), Type::Object { .. } | Type::Metadata | Type::Optional(_)) => true,
            (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => a.fits(b),
            (Type::Map(a, b), Type::Map(c, d)) => a.fits(c) && b.fits(d),
            (Type::Kind(_), Type::Kind(_)) | (Type::Metadata, Type::Metadata) => true,
            (Type::Object { schema: a, .. }, Type::Object { schema: b, .. }) => std::ptr::eq(*a, *b),
            _ => false,
        }
    }
}

fn embedded(schema: &Value) -> bool {
    schema.get("x-kubernetes-embedded-resource").and_then(Value::as_bool) == Some(true)
}

/// Words of the language: no variable has such a name, and a field is spelled otherwise.
pub const RESERVED: &[&str] = &[
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// A property's name as expressions spell it; `None` for one that they cannot reach.
pub(super) fn escape(name: &str) -> Option<String> {
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    if RESERVED.contains(&name) {
        return Some(format!("__{name}__"));
    }
    let mut out = String::with_capacity(name.len());
    let mut rest = name.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '_' if rest.peek() == Some(&'_') => {
                rest.next();
                out.push_str("__underscores__");
            }
            '.' => out.push_str("__dot__"),
            '-' => out.push_str("__dash__"),
            '/' => out.push_str("__slash__"),
            c if c.is_ascii_alphanumeric() || c == '_' => out.push(c),
            _ => return None,
        }
    }
    Some(out)
}

impl fmt::Display for Type<'_> {
    /// As cel-go names types in its messages.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Dyn | Type::Free => f.write_str("dyn"),
            Type::Error => f.write_str("!error!"),
            Type::Named("null_type") => f.write_str("null"),
            Type::Named(name) => f.write_str(name),
            Type::List(of) => write!(f, "list({of})"),
            Type::Map(key, value) => write!(f, "map({key}, {value})"),
            Type::Optional(of) => write!(f, "optional_type({of})"),
            Type::Kind(of) => write!(f, "type({of})"),
            Type::Object { .. } | Type::Metadata => f.write_str("object"),
        }
    }
}
