//! The objects of the cache at a revision of the past: the present ones with the later events of the window undone. So
//! pages after the first and the first objects of a watch need no copy of the cache and no read of the store.

use super::{Cache, Cursor, Entry, Filter, State, entry_key};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What is asked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted<'a> {
    /// Revision; `None` is the newest.
    pub revision: Option<i64>,
    /// First key, relative to the filter's namespace.
    pub start: Option<&'a str>,
    /// At most this many objects; 0 is all.
    pub limit: usize,
    /// Count what remains after the limit.
    pub count: bool,
}

/// Selected objects at one revision.
#[derive(Debug)]
pub struct Slice {
    /// The objects in key order.
    pub entries: Vec<Arc<Entry>>,
    /// The revision.
    pub revision: i64,
    /// Where the rest begins, relative to the filter's namespace.
    pub next: Option<String>,
    /// Objects after the last one, when the filter selects by nothing but the namespace.
    pub remaining: Option<usize>,
    /// Events after the revision.
    pub cursor: Cursor,
}

/// Objects before the filter and the limit.
struct Range {
    entries: Vec<Arc<Entry>>,
    revision: i64,
    cursor: Cursor,
    /// Objects that were counted, not taken.
    uncounted: usize,
    more: bool,
}

/// Merges two sorted sequences; where both have a key, `over` counts.
fn merged<'a>(
    base: impl Iterator<Item = (&'a str, &'a Arc<Entry>)>,
    over: &BTreeMap<&'a str, Option<&'a Arc<Entry>>>,
) -> impl Iterator<Item = &'a Arc<Entry>> {
    let mut base = base.peekable();
    let mut over = over.iter().map(|(key, entry)| (*key, *entry)).peekable();
    std::iter::from_fn(move || {
        loop {
            let order = match (base.peek(), over.peek()) {
                (None, None) => return None,
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some((left, _)), Some((right, _))) => left.cmp(right),
            };
            if order.is_lt() {
                return base.next().map(|(_, entry)| entry);
            }
            if order.is_eq() {
                base.next();
            }
            if let Some((_, Some(entry))) = over.next() {
                return Some(entry);
            }
        }
    })
}

impl State {
    fn slice(&self, namespaced: bool, filter: &Filter, wanted: &Wanted<'_>) -> Option<Range> {
        use std::ops::Bound;
        let revision = wanted.revision.unwrap_or(self.revision);
        if revision > self.revision {
            return None;
        }
        let prefix = if namespaced && !filter.namespace.is_empty() {
            format!("{}/", filter.namespace)
        } else {
            String::new()
        };
        let from = format!("{prefix}{}", wanted.start.unwrap_or_default());
        // A name leaves one key; only without a namespace it may be in any.
        let whole_key = !namespaced || !filter.namespace.is_empty();
        let only = filter
            .fields
            .exact("metadata.name")
            .filter(|_| whole_key)
            .map(|name| entry_key(namespaced, &filter.namespace, name));
        let within = |key: &str| match &only {
            Some(only) => key == only && *key >= *from,
            None => key.starts_with(&prefix) && *key >= *from,
        };
        let sequence = self.window.sequence_after(revision)?;
        let mut over: BTreeMap<&str, Option<&Arc<Entry>>> = BTreeMap::new();
        if revision < self.revision {
            for event in self.window.since(sequence) {
                let key = &*event.object.key;
                if within(key) {
                    over.entry(key).or_insert(event.previous.as_ref());
                }
            }
        }
        let lowest = only.as_deref().unwrap_or(&from);
        let base = self
            .objects
            .range::<str, _>((Bound::Included(lowest), Bound::Unbounded))
            .map(|(key, entry)| (&**key, entry))
            .take_while(|(key, _)| within(key));
        let mut all = merged(base, &over);
        // A selector has to see every object; without one the limit is known here.
        let take = if wanted.limit == 0 || filter.selects() { usize::MAX } else { wanted.limit };
        let entries: Vec<Arc<Entry>> = all.by_ref().take(take).cloned().collect();
        let (uncounted, more) = match (take, wanted.count) {
            (usize::MAX, _) => (0, false),
            (_, true) => {
                let rest = all.count();
                (rest, rest > 0)
            }
            (_, false) => (0, all.next().is_some()),
        };
        let cursor = Cursor { epoch: self.epoch, sequence, after: revision };
        Some(Range { entries, revision, cursor, uncounted, more })
    }
}

impl Cache {
    /// Selected objects at a revision; `None`: the cache does not reach back (or not yet up) to it.
    pub fn slice(&self, filter: &Filter, wanted: &Wanted<'_>) -> Option<Slice> {
        let range = self.state.read().slice(self.resource.namespaced, filter, wanted)?;
        Some(cut(&self.resource, filter, wanted.limit, range))
    }
}

/// Applies the filter and the limit to objects that were read from elsewhere; `more`: number of objects that follow.
pub fn selected(
    resource: &crate::registry::Resource,
    filter: &Filter,
    limit: usize,
    entries: Vec<Arc<Entry>>,
    more: usize,
    revision: i64,
) -> Slice {
    let cursor = Cursor { epoch: 0, sequence: 0, after: revision };
    cut(resource, filter, limit, Range { entries, revision, cursor, uncounted: more, more: more > 0 })
}

fn cut(resource: &crate::registry::Resource, filter: &Filter, limit: usize, range: Range) -> Slice {
    let total = range.entries.len();
    let limit = if limit == 0 { usize::MAX } else { limit };
    let mut seen = total;
    let entries = if filter.selects() || limit < total {
        let mut entries = Vec::new();
        seen = 0;
        for entry in range.entries {
            if entries.len() == limit {
                break;
            }
            seen += 1;
            if filter.matches(resource, &entry) {
                entries.push(entry);
            }
        }
        entries
    } else {
        range.entries
    };
    let more = seen < total || range.more;
    let next = more.then(|| {
        let last = entries.last().map(|entry| &*entry.key).unwrap_or_default();
        let prefix = if filter.namespace.is_empty() { "" } else { filter.namespace.as_str() };
        let relative = last.strip_prefix(prefix).and_then(|rest| match prefix {
            "" => Some(rest),
            _ => rest.strip_prefix('/'),
        });
        format!("{}\0", relative.unwrap_or(last))
    });
    let remaining = (more && !filter.selects()).then(|| total - seen + range.uncounted);
    Slice { entries, revision: range.revision, next, remaining, cursor: range.cursor }
}

#[cfg(test)]
mod tests;
