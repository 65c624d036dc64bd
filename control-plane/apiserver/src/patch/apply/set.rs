//! Sets of fields, in the shape of `fieldsV1`: a tree whose edges are `f:NAME`, `k:{KEYS}` and `v:VALUE`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// A node of the tree: whether the path to it is in the set, and what is below.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct FieldSet {
    pub(super) member: bool,
    pub(super) children: BTreeMap<String, FieldSet>,
}

impl FieldSet {
    /// Reads `fieldsV1`; what is no set is empty.
    pub(super) fn from_value(value: &Value) -> Self {
        let mut set = Self::default();
        for (edge, below) in value.as_object().into_iter().flatten() {
            if edge == "." {
                set.member = true;
                continue;
            }
            let mut child = Self::from_value(below);
            if below.as_object().is_some_and(Map::is_empty) {
                child.member = true;
            }
            set.children.insert(edge.clone(), child);
        }
        set
    }

    /// Writes `fieldsV1`.
    pub(super) fn to_value(&self) -> Value {
        let mut out = Map::new();
        for (edge, child) in &self.children {
            let mut below = child.to_value();
            if child.member
                && !child.children.is_empty()
                && let Value::Object(map) = &mut below
            {
                map.insert(".".to_owned(), Value::Object(Map::new()));
            }
            out.insert(edge.clone(), below);
        }
        Value::Object(out)
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.member && self.children.values().all(FieldSet::is_empty)
    }

    /// Drops branches without members.
    pub(super) fn compact(mut self) -> Self {
        self.children = std::mem::take(&mut self.children)
            .into_iter()
            .map(|(edge, child)| (edge, child.compact()))
            .filter(|(_, child)| !child.is_empty())
            .collect();
        self
    }

    pub(super) fn insert(&mut self, path: &[String]) {
        let mut node = self;
        for edge in path {
            node = node.children.entry(edge.clone()).or_default();
        }
        node.member = true;
    }

    pub(super) fn union(&self, other: &Self) -> Self {
        let mut out = self.clone();
        out.member |= other.member;
        for (edge, child) in &other.children {
            let merged = match out.children.get(edge) {
                Some(own) => own.union(child),
                None => child.clone(),
            };
            out.children.insert(edge.clone(), merged);
        }
        out
    }

    fn combine(&self, other: &Self, keep: fn(bool, bool) -> bool) -> Self {
        let empty = Self::default();
        let children = self
            .children
            .iter()
            .map(|(edge, child)| {
                (edge.clone(), child.combine(other.children.get(edge).unwrap_or(&empty), keep))
            })
            .collect();
        Self { member: keep(self.member, other.member), children }.compact()
    }

    pub(super) fn intersection(&self, other: &Self) -> Self {
        self.combine(other, |a, b| a && b)
    }

    pub(super) fn difference(&self, other: &Self) -> Self {
        self.combine(other, |a, b| a && !b)
    }

    /// Removes everything at and below the paths.
    pub(super) fn without(mut self, paths: &[&[&str]]) -> Self {
        for path in paths {
            remove(&mut self, path);
        }
        self.compact()
    }

    /// Every path of the set, in order, as conflicts show it: `.spec.ports[name="a"].port`.
    pub(super) fn paths(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.collect(String::new(), &mut out);
        out
    }

    fn collect(&self, path: String, out: &mut Vec<String>) {
        if self.member {
            out.push(path.clone());
        }
        for (edge, child) in &self.children {
            child.collect(format!("{path}{}", shown(edge)), out);
        }
    }
}

fn remove(set: &mut FieldSet, path: &[&str]) {
    let Some((first, rest)) = path.split_first() else { return };
    let edge = format!("f:{first}");
    if rest.is_empty() {
        set.children.remove(&edge);
    } else if let Some(child) = set.children.get_mut(&edge) {
        remove(child, rest);
    }
}

/// An edge as messages show it.
pub(super) fn shown(edge: &str) -> String {
    if let Some(name) = edge.strip_prefix("f:") {
        return format!(".{name}");
    }
    if let Some(value) = edge.strip_prefix("v:") {
        return format!("[={value}]");
    }
    let keys = edge.strip_prefix("k:").and_then(|k| serde_json::from_str::<Map<String, Value>>(k).ok());
    let keys: Vec<String> =
        keys.into_iter().flatten().map(|(name, value)| format!("{name}={value}")).collect();
    format!("[{}]", keys.join(","))
}
