//! Structural schemas: what a custom resource definition says of its objects, in a form that values are pruned,
//! defaulted and checked by. A schema is read once, when its definition is served.
//!
//! Source: <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/>.

mod defaults;
mod formats;
mod lists;
mod metadata;
mod prune;
mod typed;
mod value;

pub(crate) use formats::{duration, is_valid as is_format};
pub(crate) use lists::check as check_lists;
pub(crate) use metadata::{coerce_embedded, decode as decode_metadata, validate_embedded};
pub(crate) use prune::prune;
pub(crate) use typed::types;
pub(crate) use value::{check as check_value, check_update};

use regex::Regex;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// Values of properties that no schema names.
#[derive(Debug, Clone)]
pub(crate) enum Additional {
    /// Of any kind.
    Any,
    /// By a schema.
    Schema(Box<Structural>),
}

/// `x-kubernetes-list-type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum ListType {
    /// Replaced as a whole, also when nothing is said.
    #[default]
    Atomic,
    /// Scalars, each once.
    Set,
    /// Objects that keys identify.
    Map,
}

/// A regular expression that is compiled when it is first needed.
#[derive(Debug, Clone)]
pub(crate) struct Pattern {
    text: Box<str>,
    compiled: OnceLock<Option<Regex>>,
}

impl Pattern {
    /// Whether a text matches; an expression that cannot be used matches all.
    fn matches(&self, text: &str) -> bool {
        let compiled = self.compiled.get_or_init(|| Regex::new(&self.text).ok());
        compiled.as_ref().is_none_or(|regex| regex.is_match(text))
    }
}

/// Restrictions of values.
#[derive(Debug, Clone, Default)]
pub(crate) struct Limits {
    pub(crate) format: Box<str>,
    /// As written, for messages; and whether the limit itself is excluded.
    maximum: Option<(Value, bool)>,
    minimum: Option<(Value, bool)>,
    multiple_of: Option<Value>,
    max_length: Option<u64>,
    min_length: Option<u64>,
    pattern: Option<Pattern>,
    max_items: Option<u64>,
    min_items: Option<u64>,
    max_properties: Option<u64>,
    min_properties: Option<u64>,
    values: Vec<Value>,
    required: Vec<Box<str>>,
    pub(crate) all_of: Vec<Structural>,
    any_of: Vec<Structural>,
    one_of: Vec<Structural>,
    not: Option<Box<Structural>>,
}

/// A rule of `x-kubernetes-validations`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rule {
    pub(crate) rule: Box<str>,
    pub(crate) message: Box<str>,
    pub(crate) message_expression: Box<str>,
    pub(crate) reason: Box<str>,
    pub(crate) field_path: Box<str>,
    pub(crate) optional_old_self: bool,
}

/// A schema.
#[derive(Debug, Clone, Default)]
pub(crate) struct Structural {
    /// `type`, empty when nothing is said.
    pub(crate) kind: Box<str>,
    pub(crate) nullable: bool,
    pub(crate) default: Option<Value>,
    pub(crate) preserve_unknown: bool,
    pub(crate) embedded: bool,
    pub(crate) int_or_string: bool,
    pub(crate) list: ListType,
    pub(crate) list_keys: Vec<Box<str>>,
    /// `x-kubernetes-map-type: atomic`.
    pub(crate) atomic: bool,
    pub(crate) properties: BTreeMap<Box<str>, Structural>,
    pub(crate) additional: Option<Additional>,
    pub(crate) items: Option<Box<Structural>>,
    pub(crate) limits: Limits,
    pub(crate) rules: Vec<Rule>,
}

impl Structural {
    /// Reads a schema as it stands in a definition.
    pub(crate) fn parse(schema: &Value) -> Self {
        let flag = |name: &str| schema.get(name).and_then(Value::as_bool) == Some(true);
        let text = |name: &str| schema.get(name).and_then(Value::as_str).unwrap_or_default();
        let texts = |name: &str| -> Vec<Box<str>> {
            list(schema, name).iter().filter_map(Value::as_str).map(Into::into).collect()
        };
        let additional = match schema.get("additionalProperties") {
            Some(Value::Bool(true)) => Some(Additional::Any),
            Some(inner @ Value::Object(_)) => Some(Additional::Schema(Box::new(Self::parse(inner)))),
            _ => None,
        };
        let properties = schema.get("properties").and_then(Value::as_object).into_iter().flatten();
        Structural {
            kind: text("type").into(),
            nullable: flag("nullable"),
            default: schema.get("default").filter(|default| !default.is_null()).cloned(),
            preserve_unknown: flag("x-kubernetes-preserve-unknown-fields"),
            embedded: flag("x-kubernetes-embedded-resource"),
            int_or_string: flag("x-kubernetes-int-or-string"),
            list: match text("x-kubernetes-list-type") {
                "set" => ListType::Set,
                "map" => ListType::Map,
                _ => ListType::Atomic,
            },
            list_keys: texts("x-kubernetes-list-map-keys"),
            atomic: text("x-kubernetes-map-type") == "atomic",
            properties: properties.map(|(name, inner)| (name.as_str().into(), Self::parse(inner))).collect(),
            additional,
            items: schema.get("items").filter(|items| items.is_object()).map(|i| Box::new(Self::parse(i))),
            limits: Limits::parse(schema),
            rules: list(schema, "x-kubernetes-validations").iter().map(Rule::parse).collect(),
        }
    }

    /// The schema of a property, if it has one.
    pub(crate) fn property(&self, name: &str) -> Option<&Structural> {
        self.properties.get(name).or_else(|| self.additional_schema())
    }

    /// The schema of properties that are not named.
    pub(crate) fn additional_schema(&self) -> Option<&Structural> {
        match self.additional.as_ref() {
            Some(Additional::Schema(schema)) => Some(schema.as_ref()),
            _ => None,
        }
    }
}

fn list<'a>(schema: &'a Value, name: &str) -> &'a [Value] {
    schema.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

impl Limits {
    fn parse(schema: &Value) -> Self {
        let flag = |name: &str| schema.get(name).and_then(Value::as_bool) == Some(true);
        let text = |name: &str| schema.get(name).and_then(Value::as_str).unwrap_or_default();
        let count = |name: &str| {
            // A negative limit is none that could be exceeded or missed.
            let number = schema.get(name)?;
            number.as_u64().or_else(|| number.as_f64().map(|f| if f > 0.0 { f as u64 } else { 0 }))
        };
        let number = |name: &str| schema.get(name).filter(|value| value.is_number()).cloned();
        let schemas = |name: &str| list(schema, name).iter().map(Structural::parse).collect();
        let pattern = text("pattern");
        Limits {
            format: text("format").into(),
            maximum: number("maximum").map(|max| (max, flag("exclusiveMaximum"))),
            minimum: number("minimum").map(|min| (min, flag("exclusiveMinimum"))),
            multiple_of: number("multipleOf"),
            max_length: count("maxLength"),
            min_length: count("minLength"),
            pattern: (!pattern.is_empty())
                .then(|| Pattern { text: pattern.into(), compiled: OnceLock::new() }),
            max_items: count("maxItems"),
            min_items: count("minItems"),
            max_properties: count("maxProperties"),
            min_properties: count("minProperties"),
            values: list(schema, "enum").to_vec(),
            required: list(schema, "required").iter().filter_map(Value::as_str).map(Into::into).collect(),
            all_of: schemas("allOf"),
            any_of: schemas("anyOf"),
            one_of: schemas("oneOf"),
            not: schema.get("not").filter(|not| not.is_object()).map(|n| Box::new(Structural::parse(n))),
        }
    }
}

impl Rule {
    fn parse(rule: &Value) -> Self {
        let text = |name: &str| rule.get(name).and_then(Value::as_str).unwrap_or_default().into();
        Rule {
            rule: text("rule"),
            message: text("message"),
            message_expression: text("messageExpression"),
            reason: text("reason"),
            field_path: text("fieldPath"),
            optional_old_self: rule.get("optionalOldSelf").and_then(Value::as_bool) == Some(true),
        }
    }
}

/// A path inside a value: `spec.list[0].name`.
#[derive(Debug, Default, Clone)]
pub(crate) struct Path(String);

impl Path {
    /// Length, for [`truncate`](Self::truncate).
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Goes back to where the path was this long.
    pub(crate) fn truncate(&mut self, length: usize) {
        self.0.truncate(length);
    }

    /// Goes into a field.
    pub(crate) fn push_field(&mut self, name: &str) {
        if !self.0.is_empty() {
            self.0.push('.');
        }
        self.0.push_str(name);
    }

    /// Goes into a list's item.
    pub(crate) fn push_index(&mut self, at: usize) {
        self.0.push_str(&format!("[{at}]"));
    }

    /// Goes to a key of a map: `labels[a.b]`.
    pub(crate) fn push_key(&mut self, name: &str) {
        self.0.push('[');
        self.0.push_str(name);
        self.0.push(']');
    }

    /// Runs `f` one field deeper.
    pub(crate) fn field<T>(&mut self, name: &str, f: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.len();
        self.push_field(name);
        let out = f(self);
        self.truncate(length);
        out
    }

    /// Runs `f` at a key of a map.
    pub(crate) fn key<T>(&mut self, name: &str, f: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.len();
        self.push_key(name);
        let out = f(self);
        self.truncate(length);
        out
    }

    /// Runs `f` one item deeper.
    pub(crate) fn index<T>(&mut self, at: usize, f: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.len();
        self.push_index(at);
        let out = f(self);
        self.truncate(length);
        out
    }

    /// The path as text, empty at the root.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The path as faults show it: upstream prints the root so.
    pub(crate) fn shown(&self) -> String {
        if self.0.is_empty() { "<nil>".to_owned() } else { self.0.clone() }
    }
}

#[cfg(test)]
mod tests;
