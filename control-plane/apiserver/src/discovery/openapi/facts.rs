//! The facts of `facts.tbl`: what the published documents say and no rule over the type table gives.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

/// A union: one field of several is set, as a discriminator says.
#[derive(Debug)]
pub(super) struct Union {
    /// Field that says which, if any.
    pub(super) discriminator: Option<&'static str>,
    /// Field and the discriminator's value for it.
    pub(super) fields: Vec<(&'static str, &'static str)>,
}

/// The parsed table.
#[derive(Debug, Default)]
pub(super) struct Facts {
    enums: BTreeMap<&'static str, Vec<&'static str>>,
    defaults: BTreeMap<&'static str, Value>,
    plain: BTreeSet<&'static str>,
    granular: BTreeSet<&'static str>,
    replaced: BTreeSet<&'static str>,
    unions: BTreeMap<&'static str, Union>,
    options: BTreeMap<&'static str, Vec<(&'static str, &'static str)>>,
}

impl Facts {
    /// The table, parsed at first use.
    pub(super) fn get() -> &'static Self {
        static FACTS: OnceLock<Facts> = OnceLock::new();
        FACTS.get_or_init(|| parse(include_str!("facts.tbl")))
    }

    /// Values of a named string type such as `v1.PullPolicy`.
    pub(super) fn values(&self, go_type: &str) -> Option<&[&'static str]> {
        self.enums.get(go_type).map(Vec::as_slice)
    }

    /// The default of a field, when no rule gives it.
    pub(super) fn default_of(&self, path: &str) -> Option<&Value> {
        self.defaults.get(path)
    }

    /// The field is a reference without text.
    pub(super) fn is_plain(&self, path: &str) -> bool {
        self.plain.contains(path)
    }

    /// The field merges by its members.
    pub(super) fn is_granular(&self, path: &str) -> bool {
        self.granular.contains(path)
    }

    /// Strategic merge patch replaces the field, and says so.
    pub(super) fn is_replaced(&self, path: &str) -> bool {
        self.replaced.contains(path)
    }

    /// The union that a type is.
    pub(super) fn union(&self, name: &str) -> Option<&Union> {
        self.unions.get(name)
    }

    /// Query parameters (name, type) of a kind of connection.
    pub(super) fn options(&self, kind: &str) -> &[(&'static str, &'static str)] {
        self.options.get(kind).map(Vec::as_slice).unwrap_or_default()
    }
}

fn pairs(words: std::str::Split<'static, char>, by: char) -> Vec<(&'static str, &'static str)> {
    words.filter_map(|word| word.split_once(by)).collect()
}

fn parse(text: &'static str) -> Facts {
    let mut facts = Facts::default();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((what, rest)) = line.split_once(' ') else { continue };
        match what {
            "enum" => {
                if let Some((name, values)) = rest.split_once('=') {
                    facts.enums.insert(name, values.split('|').collect());
                }
            }
            "default" => {
                if let Some((path, json)) = rest.split_once(' ')
                    && let Ok(value) = serde_json::from_str(json)
                {
                    facts.defaults.insert(path, value);
                }
            }
            "plain" => {
                facts.plain.insert(rest);
            }
            "granular" => {
                facts.granular.insert(rest);
            }
            "replaced" => {
                facts.replaced.insert(rest);
            }
            "union" => {
                let mut words = rest.split(' ');
                if let (Some(name), Some(by)) = (words.next(), words.next()) {
                    let discriminator = (by != "-").then_some(by);
                    facts.unions.insert(name, Union { discriminator, fields: pairs(words, '=') });
                }
            }
            "options" => {
                let mut words = rest.split(' ');
                if let Some(kind) = words.next() {
                    facts.options.insert(kind, pairs(words, ':'));
                }
            }
            _ => {}
        }
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_understood() {
        let facts = Facts::get();
        let lines = include_str!("facts.tbl").lines().filter(|l| !l.starts_with('#')).count();
        let parsed = facts.enums.len()
            + facts.defaults.len()
            + facts.plain.len()
            + facts.granular.len()
            + facts.replaced.len()
            + facts.unions.len()
            + facts.options.len();
        assert_eq!(parsed, lines);
        assert_eq!(facts.values("v1.HostPathType").map(|v| v[0]), Some(""));
        assert_eq!(facts.options("PodPortForwardOptions"), [("ports", "integer")]);
        let paths = facts.defaults.keys().chain(&facts.plain).chain(&facts.granular).chain(&facts.replaced);
        for path in paths {
            let (name, field) = path.rsplit_once('.').expect("a type and a field");
            let schema = crate::schema::by_name(name).unwrap_or_else(|| panic!("{name}"));
            assert!(schema.field(field).is_some(), "{path}");
        }
    }
}
