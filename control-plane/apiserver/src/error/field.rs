//! Errors about fields: what validation finds.

use super::Cause;
use serde_json::Value;
use std::fmt::{self, Write as _};

/// What kind of rule a field breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "upstream's names say all")]
pub enum FieldErrorKind {
    NotFound,
    Required,
    Duplicate,
    Invalid,
    NotSupported,
    Forbidden,
    TooLong,
    TooMany,
    Internal,
    TypeInvalid,
}

impl FieldErrorKind {
    fn text(self) -> &'static str {
        match self {
            Self::NotFound => "Not found",
            Self::Required => "Required value",
            Self::Duplicate => "Duplicate value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::Internal => "Internal error",
        }
    }

    fn reason(self) -> &'static str {
        match self {
            Self::NotFound => "FieldValueNotFound",
            Self::Required => "FieldValueRequired",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::Internal => "InternalError",
            Self::TypeInvalid => "FieldValueTypeInvalid",
        }
    }
}

/// The value an error shows.
#[derive(Debug, Clone, PartialEq)]
pub enum BadValue {
    /// None is shown.
    Omitted,
    /// Strings are quoted as Go quotes them, the rest is compact JSON.
    Json(Value),
    /// Shown as it is.
    Text(String),
}

impl From<Value> for BadValue {
    fn from(value: Value) -> Self {
        BadValue::Json(value)
    }
}

impl From<&Value> for BadValue {
    fn from(value: &Value) -> Self {
        BadValue::Json(value.clone())
    }
}

impl From<&str> for BadValue {
    fn from(value: &str) -> Self {
        BadValue::Json(value.into())
    }
}

impl From<&String> for BadValue {
    fn from(value: &String) -> Self {
        BadValue::Json(value.as_str().into())
    }
}

impl From<String> for BadValue {
    fn from(value: String) -> Self {
        BadValue::Json(value.into())
    }
}

impl From<i64> for BadValue {
    fn from(value: i64) -> Self {
        BadValue::Json(value.into())
    }
}

/// A rule that a field of an object breaks.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldError {
    /// Rule.
    pub kind: FieldErrorKind,
    /// Path, e.g. `spec.containers[0].name`.
    pub field: String,
    /// The value found.
    pub bad_value: BadValue,
    /// More words, may be empty.
    pub detail: String,
}

impl FieldError {
    /// An error of the given kind.
    pub fn new(
        kind: FieldErrorKind,
        field: impl Into<String>,
        bad_value: impl Into<BadValue>,
        detail: impl Into<String>,
    ) -> Self {
        FieldError { kind, field: field.into(), bad_value: bad_value.into(), detail: detail.into() }
    }

    /// `Invalid value: …: detail`.
    pub fn invalid(field: impl Into<String>, value: impl Into<BadValue>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Invalid, field, value, detail)
    }

    /// `Required value: detail`.
    pub fn required(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Required, field, BadValue::Omitted, detail)
    }

    /// `Forbidden: detail`.
    pub fn forbidden(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Forbidden, field, BadValue::Omitted, detail)
    }

    /// `Duplicate value: …`.
    pub fn duplicate(field: impl Into<String>, value: impl Into<BadValue>) -> Self {
        Self::new(FieldErrorKind::Duplicate, field, value, "")
    }

    /// `Not found: …`.
    pub fn not_found(field: impl Into<String>, value: impl Into<BadValue>) -> Self {
        Self::new(FieldErrorKind::NotFound, field, value, "")
    }

    /// `Unsupported value: …: supported values: "a", "b"`.
    pub fn not_supported(field: impl Into<String>, value: impl Into<BadValue>, supported: &[&str]) -> Self {
        let detail = if supported.is_empty() {
            String::new()
        } else {
            let quoted: Vec<String> = supported.iter().map(|s| quote(s)).collect();
            format!("supported values: {}", quoted.join(", "))
        };
        Self::new(FieldErrorKind::NotSupported, field, value, detail)
    }

    /// `Too long: may not be more than N bytes`.
    pub fn too_long(field: impl Into<String>, max_bytes: usize) -> Self {
        let detail = if max_bytes == 1 {
            "may not be more than 1 byte".to_owned()
        } else {
            format!("may not be more than {max_bytes} bytes")
        };
        Self::new(FieldErrorKind::TooLong, field, BadValue::Omitted, detail)
    }

    /// `Too many: N: must have at most M items`.
    pub fn too_many(field: impl Into<String>, actual: usize, max: usize) -> Self {
        let detail = if max == 1 {
            "must have at most 1 item".to_owned()
        } else {
            format!("must have at most {max} items")
        };
        Self::new(FieldErrorKind::TooMany, field, BadValue::Text(actual.to_string()), detail)
    }

    /// `Internal error: detail`.
    pub fn internal(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Internal, field, BadValue::Omitted, detail)
    }

    /// The text without the field.
    pub fn body(&self) -> String {
        use FieldErrorKind as K;
        let mut out = self.kind.text().to_owned();
        let bare = matches!(self.kind, K::Required | K::Forbidden | K::TooLong | K::Internal);
        match &self.bad_value {
            _ if bare => {}
            BadValue::Omitted => {}
            BadValue::Text(text) => {
                let _ = write!(out, ": {text}");
            }
            BadValue::Json(Value::String(text)) => {
                let _ = write!(out, ": {}", quote(text));
            }
            BadValue::Json(value) => {
                let _ = write!(out, ": {value}");
            }
        }
        if !self.detail.is_empty() {
            let _ = write!(out, ": {}", self.detail);
        }
        out
    }

    pub(super) fn cause(&self) -> Cause {
        Cause { reason: self.kind.reason().into(), message: self.body(), field: self.field.clone() }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

/// Quotes a string as Go's `%q` does.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
