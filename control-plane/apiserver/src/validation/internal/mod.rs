//! Objects as upstream's internal types show in messages: members have Go's names, stand in the order of the Go
//! structs, and are written even when they are empty.
//!
//! `types.tbl` holds one type after another: `GoName jsonName KIND` a line, `< Type` for an embedded struct. KIND is
//! `s` a string, `b` a bool, `i` a number, `q` a quantity (zero when absent), `p` anything that is null when absent,
//! `?` left out when absent, `T` a struct, `*T` a pointer to one, `[]T` a list of them. `^` before a name: a member of the
//! object around, which the served form has one level higher.

mod diff;

use crate::error::BadValue;
use serde_json::Value;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::OnceLock;

#[derive(Debug, Clone, Copy)]
enum Kind {
    Text,
    Flag,
    Number,
    Quantity,
    Nullable,
    Omitted,
    OmittedList(&'static str),
    Struct(&'static str),
    Pointer(&'static str),
    List(&'static str),
}

#[derive(Debug)]
enum Line {
    Member { go: &'static str, json: &'static str, outer: bool, kind: Kind },
    Embedded { name: &'static str, member: Option<&'static str> },
}

type Types = HashMap<&'static str, Vec<Line>>;

fn types() -> &'static Types {
    static TYPES: OnceLock<Types> = OnceLock::new();
    TYPES.get_or_init(|| parse(include_str!("types.tbl")))
}

fn parse(text: &'static str) -> Types {
    let mut types = Types::new();
    let mut current = "";
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("type ") {
            current = name;
            types.entry(current).or_default();
            continue;
        }
        let mut words = line.split_whitespace();
        let (Some(first), Some(second)) = (words.next(), words.next()) else { continue };
        let third = words.next();
        let line = if first == "<" {
            Line::Embedded { name: second, member: third.and_then(|m| m.strip_prefix('.')) }
        } else {
            let (json, outer) = match second.strip_prefix('^') {
                Some(name) => (name, true),
                None => (second, false),
            };
            Line::Member { go: first, json, outer, kind: kind(third.unwrap_or("p")) }
        };
        types.entry(current).or_default().push(line);
    }
    types
}

fn kind(text: &'static str) -> Kind {
    match text {
        "s" => Kind::Text,
        "b" => Kind::Flag,
        "i" => Kind::Number,
        "q" => Kind::Quantity,
        "p" => Kind::Nullable,
        "?" => Kind::Omitted,
        _ => match (text.strip_prefix("?[]"), text.strip_prefix("[]"), text.strip_prefix('*')) {
            (Some(name), _, _) => Kind::OmittedList(name),
            (_, Some(name), _) => Kind::List(name),
            (_, _, Some(name)) => Kind::Pointer(name),
            _ => Kind::Struct(text),
        },
    }
}

/// Writes JSON, with one blank a level when `indent` says so.
struct Writer {
    out: String,
    level: usize,
    indent: bool,
}

impl Writer {
    fn line(&mut self) {
        if self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', self.level));
        }
    }

    fn open(&mut self, bracket: char) {
        self.out.push(bracket);
        self.level += 1;
    }

    fn close(&mut self, bracket: char, empty: bool) {
        self.level = self.level.saturating_sub(1);
        if !empty {
            self.line();
        }
        self.out.push(bracket);
    }

    fn next(&mut self, first: &mut bool) {
        if !*first {
            self.out.push(',');
        }
        *first = false;
        self.line();
    }

    fn key(&mut self, key: &str) {
        self.text(key);
        self.out.push(':');
        if self.indent {
            self.out.push(' ');
        }
    }

    /// A string as Go's encoder writes it, which escapes what HTML would take for its own.
    fn text(&mut self, text: &str) {
        let quoted = Value::from(text).to_string();
        for c in quoted.chars() {
            match c {
                '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                    let _ = write!(self.out, "\\u{:04x}", c as u32);
                }
                c => self.out.push(c),
            }
        }
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::String(text) => self.text(text),
            Value::Array(items) => {
                self.open('[');
                let mut first = true;
                for item in items {
                    self.next(&mut first);
                    self.value(item);
                }
                self.close(']', first);
            }
            Value::Object(map) => {
                let mut entries: Vec<_> = map.iter().collect();
                entries.sort_by_key(|(key, _)| *key);
                self.open('{');
                let mut first = true;
                for (key, value) in entries {
                    self.next(&mut first);
                    self.key(key);
                    self.value(value);
                }
                self.close('}', first);
            }
            other => {
                let _ = write!(self.out, "{other}");
            }
        }
    }

    fn object(&mut self, name: &str, value: &Value, outer: &Value) {
        self.open('{');
        let mut first = true;
        self.members(name, value, outer, &mut first);
        self.close('}', first);
    }

    fn members(&mut self, name: &str, value: &Value, outer: &Value, first: &mut bool) {
        for line in types().get(name).map(Vec::as_slice).unwrap_or_default() {
            match line {
                Line::Embedded { name, member } => {
                    let of = member.map_or(value, |member| super::at(value, member));
                    self.members(name, of, value, first);
                }
                Line::Member { go, json, outer: from_outer, kind } => {
                    let member = super::at(if *from_outer { outer } else { value }, json);
                    let absent = member.is_null();
                    if absent && matches!(kind, Kind::Omitted | Kind::OmittedList(_)) {
                        continue;
                    }
                    self.next(first);
                    self.key(go);
                    match kind {
                        Kind::Text if absent => self.out.push_str("\"\""),
                        Kind::Flag if absent => self.out.push_str("false"),
                        Kind::Number if absent => self.out.push('0'),
                        Kind::Quantity if absent => self.out.push_str("\"0\""),
                        Kind::Struct(name) => self.object(name, member, value),
                        Kind::Pointer(name) if !absent => self.object(name, member, value),
                        Kind::List(name) | Kind::OmittedList(name) if !absent => {
                            self.list(name, member, value);
                        }
                        _ => self.value(member),
                    }
                }
            }
        }
    }

    fn list(&mut self, name: &str, items: &Value, outer: &Value) {
        self.open('[');
        let mut first = true;
        for item in items.as_array().into_iter().flatten() {
            self.next(&mut first);
            self.object(name, item, outer);
        }
        self.close(']', first);
    }
}

fn written(name: &str, value: &Value, indent: bool) -> String {
    if value.is_null() {
        return "null".to_owned();
    }
    let mut writer = Writer { out: String::new(), level: 0, indent };
    writer.object(name, value, &Value::Null);
    writer.out
}

/// A value of a message, as upstream's internal type shows it.
pub(super) fn bad(name: &str, value: &Value) -> BadValue {
    BadValue::Text(written(name, value, false))
}

/// A list of objects as an error shows it.
pub(super) fn bad_list(name: &str, values: &[Value]) -> BadValue {
    let shown: Vec<String> = values.iter().map(|value| written(name, value, false)).collect();
    BadValue::Text(format!("[{}]", shown.join(",")))
}

/// What differs between two states, line by line of their indented form.
pub(super) fn difference(name: &str, old: &Value, new: &Value) -> String {
    diff::unified(&written(name, old, true), &written(name, new, true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_type_that_is_named_is_there() {
        for (name, lines) in types() {
            assert!(!lines.is_empty(), "{name}");
            for line in lines {
                let used = match line {
                    Line::Embedded { name, .. } => name,
                    Line::Member { kind, .. } => match kind {
                        Kind::Struct(n) | Kind::Pointer(n) | Kind::List(n) | Kind::OmittedList(n) => n,
                        _ => continue,
                    },
                };
                assert!(types().contains_key(used), "{name} refers to {used}");
            }
        }
    }

    #[test]
    fn members_have_gos_names_and_order() {
        let budget =
            json!({"minAvailable": 1, "maxUnavailable": 1, "selector": {"matchLabels": {"app": "w"}}});
        assert_eq!(
            written("PodDisruptionBudgetSpec", &budget, false),
            r#"{"MinAvailable":1,"Selector":{"matchLabels":{"app":"w"}},"MaxUnavailable":1,"UnhealthyPodEvictionPolicy":null}"#
        );
        let toleration = json!({"key": "a", "operator": "Exists", "value": "<b>"});
        assert_eq!(
            written("Toleration", &toleration, false),
            "{\"Key\":\"a\",\"Operator\":\"Exists\",\"Value\":\"\\u003cb\\u003e\",\"Effect\":\"\",\"TolerationSeconds\":null}"
        );
    }

    #[test]
    fn the_recorded_difference_of_a_claim() {
        let claim = |mode: &str| {
            json!({"accessModes": [mode], "storageClassName": "sc", "volumeMode": "Filesystem",
                "resources": {"requests": {"storage": "1Gi"}}})
        };
        assert_eq!(
            difference("PersistentVolumeClaimSpec", &claim("ReadWriteOnce"), &claim("ReadWriteMany")),
            "@@ -1,6 +1,6 @@\n {\n  \"AccessModes\": [\n-  \"ReadWriteOnce\"\n+  \"ReadWriteMany\"\n  ],\n  \"Selector\": \
             null,\n  \"Resources\": {\n"
        );
    }

    #[test]
    fn the_recorded_difference_of_a_pod() {
        let source = |name: &str, key: &str| json!({"configMap": {"name": name, "items": [{"key": key, "path": key}]}});
        let pod = |command: Value| {
            json!({"volumes": [{"name": "v", "projected": {"defaultMode": 420, "sources": [
                    {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}}, source("a", "b"),
                    {"downwardAPI": {"items": [{"path": "n", "fieldRef": {"apiVersion": "v1", "fieldPath": "x"}}]}},
                    source("c", "d")]}}],
                "containers": [{"name": "c", "image": "registry.test/app:2", "resources": {}, "command": command}]})
        };
        assert_eq!(
            difference("PodSpec", &pod(Value::Null), &pod(json!(["x"]))),
            "@@ -111,7 +111,9 @@\n   {\n    \"Name\": \"c\",\n    \"Image\": \"registry.test/app:2\",\n-   \"Command\": \
             null,\n+   \"Command\": [\n+    \"x\"\n+   ],\n    \"Args\": null,\n    \"WorkingDir\": \"\",\n    \"Ports\": \
             null,\n"
        );
    }
}
