//! Values against schemas, with the words and in the order of upstream's validator (kube-openapi's `validation`).
//!
//! At an update a fault that the old value had, too, is passed over (ratcheting): where old and new values can be told
//! to be the same field and are equal.

use super::{ListType, Path, Structural, formats};
use crate::error::{FieldError, FieldErrorKind, quote};
use serde_json::{Map, Value};

/// Checks a value; `base` is where it stands, empty for a whole resource.
pub(crate) fn check(value: &Value, schema: &Structural, base: &str) -> Vec<FieldError> {
    let mut checker = Checker::new(base);
    checker.rules(value, None, schema);
    checker.errs
}

/// Checks a changed value.
pub(crate) fn check_update(value: &Value, old: &Value, schema: &Structural, base: &str) -> Vec<FieldError> {
    let mut checker = Checker::new(base);
    checker.node(value, Some(old), schema);
    checker.errs
}

struct Checker<'b> {
    base: &'b str,
    /// The value's name below the base.
    name: Path,
    errs: Vec<FieldError>,
    /// Checks that were made: of alternatives that all fail, the one with most checks is told about.
    made: usize,
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_i64() || n.is_u64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// The item of an old keyed list with the same keys.
pub(super) fn same_item<'v>(old: Option<&'v Value>, item: &Value, list: &Structural) -> Option<&'v Value> {
    if list.list != ListType::Map {
        return None;
    }
    let same = |other: &&Value| {
        list.list_keys.iter().all(|key| {
            let own = item.get(&**key).or(default_of(list, key));
            own == other.get(&**key).or(default_of(list, key))
        })
    };
    old?.as_array()?.iter().find(same)
}

fn default_of<'s>(list: &'s Structural, key: &str) -> Option<&'s Value> {
    list.items.as_ref()?.properties.get(key)?.default.as_ref()
}

impl<'b> Checker<'b> {
    fn new(base: &'b str) -> Self {
        Checker { base, name: Path::default(), errs: Vec::new(), made: 0 }
    }

    fn path(&self) -> String {
        self.path_of(self.name.as_str())
    }

    fn path_of(&self, name: &str) -> String {
        match (self.base, name) {
            ("", "") => "<nil>".to_owned(),
            ("", name) => name.to_owned(),
            (base, "") => base.to_owned(),
            (base, name) => format!("{base}.{name}"),
        }
    }

    fn bad(&mut self, value: &Value, detail: &str) {
        let detail = format!("{} in body {detail}", self.name.as_str());
        self.errs.push(FieldError::invalid(self.path(), value, detail));
    }

    /// A fault of the whole value, as upstream tells those of alternatives and ranges: without a place.
    fn apart(&mut self, detail: String) {
        let place = if self.base.is_empty() { "<nil>" } else { self.base };
        self.errs.push(FieldError::invalid(place, "", detail));
    }

    /// A value with the old one at the same place, if there is one.
    fn node(&mut self, value: &Value, old: Option<&Value>, schema: &Structural) {
        let before = self.errs.len();
        self.rules(value, old, schema);
        if self.errs.len() > before && old == Some(value) {
            self.errs.truncate(before);
        }
    }

    fn rules(&mut self, value: &Value, old: Option<&Value>, schema: &Structural) {
        if value.is_null() {
            self.types(value, schema);
            self.values(value, schema);
            return;
        }
        let format = formats::supported(schema);
        if !schema.kind.is_empty() || schema.int_or_string || !format.is_empty() {
            self.types(value, schema);
            self.made += 1;
        }
        self.alternatives(value, old, schema);
        self.made += 1;
        match value {
            Value::String(text) => {
                self.texts(value, text, schema);
                self.made += 1;
                if !format.is_empty() {
                    if !formats::is_valid(format, text) {
                        let name = self.name.as_str();
                        let detail = format!(
                            "{name} in body must be of type {}: {}",
                            schema.limits.format,
                            quote(text)
                        );
                        self.errs.push(FieldError::new(
                            FieldErrorKind::TypeInvalid,
                            self.path(),
                            value,
                            detail,
                        ));
                    }
                    self.made += 1;
                }
            }
            Value::Number(_) => {
                self.numbers(value, schema);
                self.made += 1;
            }
            Value::Array(items) => {
                self.items(items, old, schema);
                self.made += 1;
            }
            _ => {}
        }
        self.values(value, schema);
        self.made += 1;
        if let Value::Object(members) = value {
            self.members(members, old, schema);
            self.made += 1;
        }
    }

    fn types(&mut self, value: &Value, schema: &Structural) {
        let wanted: &[&str] = match &*schema.kind {
            _ if schema.int_or_string => &["integer", "string"],
            "" => &[],
            kind => &[kind],
        };
        let found = type_of(value);
        let wrong = |checker: &mut Self, wanted: &str, found: &str| {
            let name = checker.name.as_str();
            let detail = format!("{name} in body must be of type {wanted}: {}", quote(found));
            let path = checker.path();
            checker.errs.push(FieldError::new(FieldErrorKind::TypeInvalid, path, found, detail));
        };
        if value.is_null() {
            if !wanted.is_empty() && !schema.nullable {
                wrong(self, &wanted.join(","), found);
            }
            return;
        }
        let whole = value.as_f64().is_some_and(|f| f.fract() == 0.0);
        let fits = wanted.contains(&found)
            || (found == "number" && whole && wanted.contains(&"integer"))
            || (found == "integer" && wanted.contains(&"number"));
        let format = formats::supported(schema);
        if !format.is_empty() && !matches!(value, Value::String(_) | Value::Array(_)) {
            let own = match value {
                Value::Number(n) if n.is_i64() || n.is_u64() => "int64",
                Value::Number(_) => "float64",
                _ => "",
            };
            if !fits && own != format {
                wrong(self, &schema.limits.format, own);
            }
            return;
        }
        if !fits && !wanted.is_empty() {
            wrong(self, &wanted.join(","), found);
        }
    }

    fn values(&mut self, value: &Value, schema: &Structural) {
        let allowed = &schema.limits.values;
        if allowed.is_empty() || allowed.iter().any(|allowed| equal(allowed, value)) {
            return;
        }
        let shown = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
        let names: Vec<String> = allowed.iter().map(shown).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        self.errs.push(FieldError::not_supported(self.path(), value, &names));
    }

    fn texts(&mut self, value: &Value, text: &str, schema: &Structural) {
        let limits = &schema.limits;
        let length = text.chars().count() as u64;
        if let Some(max) = limits.max_length.filter(|max| length > *max) {
            self.errs.push(FieldError::too_long(self.path(), usize::try_from(max).unwrap_or(usize::MAX)));
        } else if let Some(min) = limits.min_length.filter(|min| length < *min) {
            self.bad(value, &format!("should be at least {min} chars long"));
        } else if let Some(pattern) = limits.pattern.as_ref().filter(|pattern| !pattern.matches(text)) {
            self.bad(value, &format!("should match '{}'", pattern.text));
        }
    }

    fn numbers(&mut self, value: &Value, schema: &Structural) {
        let limits = &schema.limits;
        let number = value.as_f64().unwrap_or_default();
        if let Some(why) = out_of_range(value, schema, self.name.as_str()) {
            self.apart(why);
        }
        if let Some(of) = &limits.multiple_of
            && let Some(factor) = of.as_f64().filter(|factor| *factor != 0.0)
            && (number / factor).fract() != 0.0
        {
            self.bad(value, &format!("should be a multiple of {of}"));
        }
        if let Some((limit, excluded)) = &limits.minimum {
            let min = limit.as_f64().unwrap_or_default();
            if number < min || (*excluded && number == min) {
                let than = if *excluded { "greater than" } else { "greater than or equal to" };
                self.bad(value, &format!("should be {than} {limit}"));
            }
        }
        if let Some((limit, excluded)) = &limits.maximum {
            let max = limit.as_f64().unwrap_or_default();
            if number > max || (*excluded && number == max) {
                let than = if *excluded { "less than" } else { "less than or equal to" };
                self.bad(value, &format!("should be {than} {limit}"));
            }
        }
    }

    fn items(&mut self, items: &[Value], old: Option<&Value>, schema: &Structural) {
        if let Some(inner) = &schema.items {
            for (at, item) in items.iter().enumerate() {
                let place = self.name.len();
                self.name.push_index(at);
                self.node(item, same_item(old, item, schema), inner);
                self.name.truncate(place);
            }
        }
        let count = items.len() as u64;
        if let Some(min) = schema.limits.min_items.filter(|min| count < *min) {
            let value = Value::from(items.len());
            self.bad(&value, &format!("should have at least {min} items"));
        }
        if let Some(max) = schema.limits.max_items.filter(|max| count > *max) {
            let max = usize::try_from(max).unwrap_or(usize::MAX);
            self.errs.push(FieldError::too_many(self.path(), items.len(), max));
        }
    }

    fn members(&mut self, members: &Map<String, Value>, old: Option<&Value>, schema: &Structural) {
        let count = members.len() as u64;
        if let Some(min) = schema.limits.min_properties.filter(|min| count < *min) {
            let value = Value::from(members.len());
            return self.bad(&value, &format!("should have at least {min} properties"));
        }
        if let Some(max) = schema.limits.max_properties.filter(|max| count > *max) {
            let max = usize::try_from(max).unwrap_or(usize::MAX);
            self.errs.push(FieldError::too_many(self.path(), members.len(), max));
            return;
        }
        let root = self.name.len() == 0 && self.base.is_empty();
        let old = old.and_then(Value::as_object);
        let visit = |checker: &mut Self, name: &str, member: &Value, inner: &Structural| {
            let place = checker.name.len();
            checker.name.push_field(name);
            // The version and kind of the old object are shown as the new ones: nothing is known of them.
            let before = old
                .and_then(|old| old.get(name))
                .filter(|_| !(root && matches!(name, "kind" | "apiVersion")));
            checker.node(member, before, inner);
            checker.name.truncate(place);
        };
        if let Some(inner) = schema.additional_schema() {
            for (name, member) in
                members.iter().filter(|(name, _)| !schema.properties.contains_key(name.as_str()))
            {
                visit(self, name, member, inner);
            }
        }
        for (name, property) in &schema.properties {
            if let Some(member) = members.get(&**name) {
                visit(self, name, member, property);
            }
        }
        for required in schema.limits.required.iter().filter(|name| !members.contains_key(&***name)) {
            let name = self.name.as_str();
            let name = if name.is_empty() { required.to_string() } else { format!("{name}.{required}") };
            self.errs.push(FieldError::required(self.path_of(&name), ""));
        }
    }

    /// The faults of one part, and how many checks it took.
    fn part(&mut self, value: &Value, old: Option<&Value>, schema: &Structural) -> (Vec<FieldError>, usize) {
        let errs = std::mem::take(&mut self.errs);
        let made = std::mem::take(&mut self.made);
        self.rules(value, old, schema);
        (std::mem::replace(&mut self.errs, errs), std::mem::replace(&mut self.made, made))
    }

    /// `anyOf` and its kin.
    fn alternatives(&mut self, value: &Value, old: Option<&Value>, schema: &Structural) {
        let limits = &schema.limits;
        let quoted = quote(self.name.as_str());
        if !limits.any_of.is_empty() {
            let (valid, best) = self.best(value, old, &limits.any_of, true);
            if valid == 0 {
                self.apart(format!("{quoted} must validate at least one schema (anyOf)"));
                self.errs.extend(best);
            }
        }
        if !limits.one_of.is_empty() {
            let (valid, best) = self.best(value, old, &limits.one_of, false);
            if valid != 1 {
                let found = match valid {
                    0 => "Found none valid".to_owned(),
                    valid => format!("Found {valid} valid alternatives"),
                };
                self.apart(format!("{quoted} must validate one and only one schema (oneOf). {found}"));
                self.errs.extend(best);
            }
        }
        let mut valid = 0;
        for part in &limits.all_of {
            let (faults, made) = self.part(value, old, part);
            valid += usize::from(faults.is_empty());
            self.errs.extend(faults);
            self.made += made;
        }
        if valid != limits.all_of.len() {
            let none = if valid == 0 { ". None validated" } else { "" };
            self.apart(format!("{quoted} must validate all the schemas (allOf){none}"));
        }
        if let Some(not) = &limits.not
            && self.part(value, old, not).0.is_empty()
        {
            self.apart(format!("{quoted} must not validate the schema (not)"));
        }
        self.made += 1;
    }

    /// How many alternatives fit, and the faults of the one that comes nearest when none does.
    fn best(
        &mut self,
        value: &Value,
        old: Option<&Value>,
        parts: &[Structural],
        first: bool,
    ) -> (usize, Vec<FieldError>) {
        let (mut valid, mut best, mut most): (usize, Vec<FieldError>, Option<usize>) = (0, Vec::new(), None);
        for part in parts {
            let (faults, made) = self.part(value, old, part);
            if faults.is_empty() {
                valid += 1;
                best.clear();
                if first {
                    break;
                }
            } else if valid == 0 && most.is_none_or(|most| made > most) {
                (best, most) = (faults, Some(made));
            }
        }
        (valid, best)
    }
}

/// Equality of JSON values: 1 and 1.0 are the same number.
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => x == y || x.as_f64() == y.as_f64(),
        _ => a == b,
    }
}

/// What is wrong with a number that its type or format does not hold.
fn out_of_range(value: &Value, schema: &Structural, name: &str) -> Option<String> {
    let format = formats::supported(schema);
    let fits = match (&*schema.kind, format) {
        ("integer", "int32") => {
            value.as_f64().is_some_and(|f| f >= f64::from(i32::MIN) && f <= f64::from(i32::MAX))
        }
        ("integer", _) => value.is_i64() || value.as_f64().is_some_and(|f| f.abs() < 9.3e18),
        ("number", "float") => value.as_f64().is_some_and(|f| f.abs() <= f64::from(f32::MAX)),
        _ => true,
    };
    (!fits).then(|| {
        let format =
            if format.is_empty() { "(default format)".to_owned() } else { format!("with format {format}") };
        format!("Checked value must be of type {} {format} in {name}", schema.kind)
    })
}
