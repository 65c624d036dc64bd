//! Label and field selectors: upstream's grammar, messages and matching.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::Value;

use crate::names;

mod field;
mod parse;

pub use field::{FieldSelector, FieldTerm};

/// Why a selector text is not a selector. The text is upstream's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(pub(crate) String);

/// How a requirement relates a label to its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operator {
    /// The label has one of the values.
    In,
    /// The label is absent or has none of the values.
    NotIn,
    /// `=`.
    Equals,
    /// `==`.
    DoubleEquals,
    /// `!=`: the label is absent or has another value.
    NotEquals,
    /// The label is present.
    Exists,
    /// The label is absent.
    DoesNotExist,
    /// The label is an integer greater than the value.
    GreaterThan,
    /// The label is an integer less than the value.
    LessThan,
}

/// A set of labels that a selector can be matched against.
pub trait Labels {
    /// The value of a label, none when it is absent.
    fn get_label(&self, key: &str) -> Option<&str>;
}

impl Labels for BTreeMap<String, String> {
    fn get_label(&self, key: &str) -> Option<&str> {
        self.get(key).map(String::as_str)
    }
}
impl Labels for HashMap<String, String> {
    fn get_label(&self, key: &str) -> Option<&str> {
        self.get(key).map(String::as_str)
    }
}
impl<T: Labels> Labels for Option<T> {
    fn get_label(&self, key: &str) -> Option<&str> {
        self.as_ref().and_then(|l| l.get_label(key))
    }
}
impl<T: Labels + ?Sized> Labels for &T {
    fn get_label(&self, key: &str) -> Option<&str> {
        (**self).get_label(key)
    }
}
impl Labels for [(String, String)] {
    fn get_label(&self, key: &str) -> Option<&str> {
        self.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }
}
impl Labels for Vec<(String, String)> {
    fn get_label(&self, key: &str) -> Option<&str> {
        self.as_slice().get_label(key)
    }
}
impl Labels for serde_json::Map<String, Value> {
    fn get_label(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Value::as_str)
    }
}
/// A JSON object of strings (`metadata.labels`); anything else has no labels.
impl Labels for Value {
    fn get_label(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Value::as_str)
    }
}

/// One requirement of a label selector.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Requirement {
    key: String,
    operator: Operator,
    values: BTreeSet<String>,
}

impl Requirement {
    /// A checked requirement.
    ///
    /// # Errors
    /// When the key or a value is not a label's, or the number of values does not fit the operator.
    pub fn new(
        key: impl Into<String>,
        operator: Operator,
        values: impl IntoIterator<Item = String>,
    ) -> Result<Self, SelectorError> {
        let r = Self { key: key.into(), operator, values: values.into_iter().collect() };
        let mut errs = Vec::new();
        if let Some(e) = parse::key_error(&r.key, "key") {
            errs.push(e);
        }
        let list = || serde_json::to_string(&r.values).unwrap_or_default();
        match operator {
            Operator::In | Operator::NotIn if r.values.is_empty() => errs.push(format!(
                "values: Invalid value: {}: for 'in', 'notin' operators, values set can't be empty",
                list()
            )),
            Operator::Equals | Operator::DoubleEquals | Operator::NotEquals if r.values.len() != 1 => errs
                .push(format!(
                    "values: Invalid value: {}: exact-match compatibility requires one single value",
                    list()
                )),
            Operator::Exists | Operator::DoesNotExist if !r.values.is_empty() => errs.push(format!(
                "values: Invalid value: {}: values set must be empty for exists and does not exist",
                list()
            )),
            Operator::GreaterThan | Operator::LessThan => {
                if r.values.len() != 1 {
                    errs.push(format!(
                        "values: Invalid value: {}: for 'Gt', 'Lt' operators, exactly one value is required",
                        list()
                    ));
                }
                for (i, v) in r.values.iter().enumerate().filter(|(_, v)| go_int(v).is_none()) {
                    errs.push(format!(
                        "values[{i}]: Invalid value: {v:?}: for 'Gt', 'Lt' operators, the value must be an integer"
                    ));
                }
            }
            _ => {}
        }
        for (i, v) in r.values.iter().enumerate() {
            let bad = names::label_value(v);
            if !bad.is_empty() {
                errs.push(format!("values[{i}][{}]: Invalid value: {v:?}: {}", r.key, bad.join("; ")));
            }
        }
        if errs.is_empty() { Ok(r) } else { Err(SelectorError(aggregate(errs))) }
    }

    /// The label's key.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The operator.
    #[must_use]
    pub fn operator(&self) -> Operator {
        self.operator
    }

    /// The values, sorted.
    pub fn values(&self) -> impl Iterator<Item = &str> {
        self.values.iter().map(String::as_str)
    }

    /// True when the labels fulfil the requirement.
    pub fn matches(&self, labels: &(impl Labels + ?Sized)) -> bool {
        let label = labels.get_label(&self.key);
        match self.operator {
            Operator::In | Operator::Equals | Operator::DoubleEquals => {
                label.is_some_and(|v| self.values.contains(v))
            }
            Operator::NotIn | Operator::NotEquals => !label.is_some_and(|v| self.values.contains(v)),
            Operator::Exists => label.is_some(),
            Operator::DoesNotExist => label.is_none(),
            Operator::GreaterThan | Operator::LessThan => {
                let (Some(have), Some(want)) =
                    (label.and_then(go_int), self.values.first().and_then(|v| go_int(v)))
                else {
                    return false;
                };
                if self.operator == Operator::GreaterThan { have > want } else { have < want }
            }
        }
    }
}

fn go_int(s: &str) -> Option<i64> {
    s.parse().ok()
}

/// Several messages as upstream joins them: alone as it is, else `[a, b]`, each once.
fn aggregate(errs: Vec<String>) -> String {
    let mut seen: Vec<String> = Vec::new();
    for e in errs {
        if !seen.contains(&e) {
            seen.push(e);
        }
    }
    if seen.len() == 1 { seen.remove(0) } else { format!("[{}]", seen.join(", ")) }
}

/// A label selector: all requirements must be fulfilled.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Selector {
    nothing: bool,
    requirements: Vec<Requirement>,
}

impl Selector {
    /// Matches every object.
    #[must_use]
    pub fn everything() -> Self {
        Self::default()
    }

    /// Matches no object.
    #[must_use]
    pub fn nothing() -> Self {
        Self { nothing: true, requirements: Vec::new() }
    }

    /// Reads a selector such as `a=b,c in (d,e),!f`.
    ///
    /// # Errors
    /// With upstream's message.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        parse::parse(text).map(Self::from_requirements)
    }

    /// All of these requirements.
    #[must_use]
    pub fn from_requirements(mut requirements: Vec<Requirement>) -> Self {
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Self { nothing: false, requirements }
    }

    /// Exactly these labels (a Service's or ReplicationController's selector); no label matches everything.
    pub fn from_set<K: Into<String>, V: Into<String>>(set: impl IntoIterator<Item = (K, V)>) -> Self {
        Self::from_requirements(
            set.into_iter()
                .map(|(k, v)| Requirement {
                    key: k.into(),
                    operator: Operator::Equals,
                    values: BTreeSet::from([v.into()]),
                })
                .collect(),
        )
    }

    /// The API type's selector. Absent (none) matches nothing, empty matches everything.
    ///
    /// # Errors
    /// When an expression is invalid.
    pub fn from_label_selector(selector: Option<&LabelSelector>) -> Result<Self, SelectorError> {
        let Some(s) = selector else { return Ok(Self::nothing()) };
        let mut out = Vec::new();
        for (k, v) in s.match_labels.iter().flatten() {
            out.push(Requirement::new(k.clone(), Operator::Equals, [v.clone()])?);
        }
        for e in s.match_expressions.iter().flatten() {
            out.push(expression(&e.key, &e.operator, e.values.iter().flatten().cloned())?);
        }
        Ok(Self::from_requirements(out))
    }

    /// As [`Selector::from_label_selector`], from the JSON form; `null` and absent are none.
    ///
    /// # Errors
    /// When an expression is invalid.
    pub fn from_label_selector_value(selector: Option<&Value>) -> Result<Self, SelectorError> {
        let Some(Value::Object(s)) = selector else { return Ok(Self::nothing()) };
        let mut out = Vec::new();
        for (k, v) in s.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
            out.push(Requirement::new(
                k.clone(),
                Operator::Equals,
                [v.as_str().unwrap_or_default().to_owned()],
            )?);
        }
        for e in s.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let text = |name| e.get(name).and_then(Value::as_str).unwrap_or_default();
            let values = e.get("values").and_then(Value::as_array).into_iter().flatten();
            let values = values.filter_map(|v| v.as_str().map(str::to_owned));
            out.push(expression(text("key"), text("operator"), values)?);
        }
        Ok(Self::from_requirements(out))
    }

    /// True when the selector matches every object.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    /// True when the selector was made to match nothing.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.nothing
    }

    /// The requirements, sorted by key.
    #[must_use]
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// True when the labels fulfil every requirement.
    pub fn matches(&self, labels: &(impl Labels + ?Sized)) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(labels))
    }
}

fn expression(
    key: &str,
    operator: &str,
    values: impl Iterator<Item = String>,
) -> Result<Requirement, SelectorError> {
    let op = match operator {
        "In" => Operator::In,
        "NotIn" => Operator::NotIn,
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        "Gt" => Operator::GreaterThan,
        "Lt" => Operator::LessThan,
        other => return Err(SelectorError(format!("{other:?} is not a valid label selector operator"))),
    };
    Requirement::new(key, op, values)
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values: Vec<Cow<'_, str>> = self.values().map(Cow::Borrowed).collect();
        let values = values.join(",");
        let key = &self.key;
        match self.operator {
            Operator::In => write!(f, "{key} in ({values})"),
            Operator::NotIn => write!(f, "{key} notin ({values})"),
            Operator::Equals => write!(f, "{key}={values}"),
            Operator::DoubleEquals => write!(f, "{key}=={values}"),
            Operator::NotEquals => write!(f, "{key}!={values}"),
            Operator::Exists => write!(f, "{key}"),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::GreaterThan => write!(f, "{key}>{values}"),
            Operator::LessThan => write!(f, "{key}<{values}"),
        }
    }
}

impl fmt::Display for Selector {
    /// The text form; what [`Selector::parse`] reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            write!(f, "{r}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
