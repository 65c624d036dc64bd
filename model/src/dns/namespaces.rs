//! Which namespaces there are: the names of those without Services exist, too.

use std::collections::BTreeSet;

/// The names of all namespaces, or nothing before they were listed.
#[derive(Debug, Clone, Default)]
pub struct Namespaces {
    /// `None` until a list was received whole.
    known: Option<BTreeSet<Box<str>>>,
}

impl Namespaces {
    /// Replaces all names.
    pub fn reset(&mut self, names: impl IntoIterator<Item = String>) {
        self.known = Some(names.into_iter().map(String::into_boxed_str).collect());
    }

    /// Takes over a name. Before the first list it means nothing.
    pub fn add(&mut self, name: &str) {
        if let Some(known) = &mut self.known {
            known.insert(name.into());
        }
    }

    /// Forgets a name.
    pub fn remove(&mut self, name: &str) {
        if let Some(known) = &mut self.known {
            known.remove(name);
        }
    }

    /// Whether there is a namespace of this name, as far as that is known: any may be there before the first list.
    pub(super) fn may_have(&self, name: &str) -> bool {
        self.known.as_ref().is_none_or(|known| known.contains(name))
    }
}
