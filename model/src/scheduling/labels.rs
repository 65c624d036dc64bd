//! Labels as the scheduler keeps them: sorted, in one allocation, values shared.

use crate::selector::Labels;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Labels sorted by key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelMap(Box<[(Arc<str>, Arc<str>)]>);

impl LabelMap {
    /// The value of a label.
    pub fn get(&self, key: &str) -> Option<&Arc<str>> {
        // Few labels: a scan is faster than a search.
        self.0.iter().find(|(k, _)| &**k == key).map(|(_, value)| value)
    }

    /// The labels of an object's metadata.
    pub fn from_api(labels: Option<&BTreeMap<String, String>>) -> Self {
        Self(labels.into_iter().flatten().map(|(k, v)| (k.as_str().into(), v.as_str().into())).collect())
    }

    /// Keys and values, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (&**k, &**v))
    }
}

impl Labels for LabelMap {
    fn get_label(&self, key: &str) -> Option<&str> {
        self.get(key).map(|value| &**value)
    }
}

impl<'a> FromIterator<(&'a str, &'a str)> for LabelMap {
    fn from_iter<I: IntoIterator<Item = (&'a str, &'a str)>>(labels: I) -> Self {
        let sorted = labels.into_iter().collect::<BTreeMap<_, _>>();
        Self(sorted.into_iter().map(|(k, v)| (k.into(), v.into())).collect())
    }
}
