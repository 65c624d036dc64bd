//! Sets of fields, in the shape of `fieldsV1`: a tree whose edges are `f:NAME`, `k:{KEYS}` and `v:VALUE`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// A node of the tree: whether the path to it is in the set, and what is below.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct FieldSet {
    pub(super) member: bool,
    pub(super) children: BTreeMap<String, FieldSet>,
}

/// An edge in its normal form: `k:` and `v:` hold JSON without white space and with sorted names. None for edges of
/// no known type, an error for those that cannot be read.
fn normal(edge: &str) -> Result<Option<String>, ()> {
    let (kind, rest) = edge.split_once(':').ok_or(())?;
    match kind {
        "f" => Ok(Some(edge.to_owned())),
        "v" => {
            let value: Value = serde_json::from_str(rest).map_err(|_| ())?;
            Ok(Some(format!("v:{value}")))
        }
        "k" => {
            // Names are sorted: the map is a BTreeMap.
            let keys: BTreeMap<String, Value> = serde_json::from_str(rest).map_err(|_| ())?;
            Ok(Some(format!("k:{}", Value::Object(keys.into_iter().collect()))))
        }
        "i" => rest.parse::<i64>().map(|_| Some(edge.to_owned())).map_err(|_| ()),
        _ => Ok(None),
    }
}

impl FieldSet {
    /// Reads `fieldsV1`; nothing is an empty set.
    pub(super) fn from_value(value: &Value) -> Result<Self, ()> {
        let mut set = Self::default();
        let map = match value {
            Value::Null => return Ok(set),
            Value::Object(map) => map,
            _ => return Err(()),
        };
        for (edge, below) in map {
            if edge == "." {
                set.member = true;
                continue;
            }
            let Some(edge) = normal(edge)? else { continue };
            let mut child = Self::from_value(below)?;
            child.member |= child.children.is_empty();
            set.children.insert(edge, child);
        }
        Ok(set)
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

    /// The set of some paths of field names.
    pub(super) fn of_fields(paths: &[&[&str]]) -> Self {
        let mut set = Self::default();
        for path in paths {
            let mut node = &mut set;
            for name in *path {
                node = node.children.entry(format!("f:{name}")).or_default();
            }
            node.member = true;
        }
        set
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.member && self.children.values().all(Self::is_empty)
    }

    /// Hangs a subtree below an edge, unless it is empty.
    pub(super) fn attach(&mut self, edge: impl FnOnce() -> String, child: Self) {
        if !child.is_empty() {
            self.children.insert(edge(), child);
        }
    }

    /// Whether the path of field names is in the set.
    pub(super) fn has(&self, path: &[&str]) -> bool {
        match path.split_first() {
            None => self.member,
            Some((name, rest)) => self.children.get(&format!("f:{name}")).is_some_and(|c| c.has(rest)),
        }
    }

    pub(super) fn union(mut self, other: &Self) -> Self {
        self.add(other);
        self
    }

    fn add(&mut self, other: &Self) {
        self.member |= other.member;
        for (edge, child) in &other.children {
            match self.children.get_mut(edge) {
                Some(own) => own.add(child),
                None => {
                    self.children.insert(edge.clone(), child.clone());
                }
            }
        }
    }

    fn combine(&self, other: &Self, keep: fn(bool, bool) -> bool) -> Self {
        let empty = Self::default();
        let mut out = Self { member: keep(self.member, other.member), children: BTreeMap::new() };
        for (edge, child) in &self.children {
            let below = child.combine(other.children.get(edge).unwrap_or(&empty), keep);
            out.attach(|| edge.clone(), below);
        }
        out
    }

    pub(super) fn intersection(&self, other: &Self) -> Self {
        self.combine(other, |a, b| a && b)
    }

    pub(super) fn difference(&self, other: &Self) -> Self {
        self.combine(other, |a, b| a && !b)
    }

    /// Without everything at and below the paths.
    pub(super) fn without(mut self, paths: &[&[&str]]) -> Self {
        for path in paths {
            remove(&mut self, path);
        }
        self
    }

    /// Only what is at or below one of the paths, in which `*` is any edge.
    pub(super) fn only(self, paths: &[&[&str]]) -> Self {
        if paths.iter().any(|p| p.is_empty()) {
            return self;
        }
        let mut out = Self::default();
        for (edge, child) in self.children {
            let below: Vec<&[&str]> = paths
                .iter()
                .filter_map(|p| p.split_first())
                .filter(|(first, _)| **first == "*" || edge.strip_prefix("f:") == Some(**first))
                .map(|(_, rest)| rest)
                .collect();
            out.attach(|| edge, child.only(&below));
        }
        out
    }

    /// Every path of the set as conflicts show it, `.spec.ports[name="a"].port`: the members of a level before what is
    /// below them.
    pub(super) fn paths(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.collect("", &mut out);
        out
    }

    fn collect(&self, path: &str, out: &mut Vec<String>) {
        let below = |edge: &str| format!("{path}{}", shown(edge));
        out.extend(self.children.iter().filter(|(_, c)| c.member).map(|(edge, _)| below(edge)));
        for (edge, child) in &self.children {
            child.collect(&below(edge), out);
        }
    }
}

fn remove(set: &mut FieldSet, path: &[&str]) {
    let Some((first, rest)) = path.split_first() else { return };
    let edge = format!("f:{first}");
    let gone = match set.children.get_mut(&edge) {
        None => return,
        Some(_) if rest.is_empty() => true,
        Some(child) => {
            remove(child, rest);
            child.is_empty()
        }
    };
    if gone {
        set.children.remove(&edge);
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
    if let Some(index) = edge.strip_prefix("i:") {
        return format!("[{index}]");
    }
    let keys = edge.strip_prefix("k:").and_then(|k| serde_json::from_str::<BTreeMap<String, Value>>(k).ok());
    let keys: Vec<String> =
        keys.into_iter().flatten().map(|(name, value)| format!("{name}={value}")).collect();
    format!("[{}]", keys.join(","))
}
