//! Reading the index, with or without changes that are not durable yet on top.

use crate::index::{Entry, History, Index, bounds, newest_at};
use crate::{RangeEnd, RangeRequest, StoreError};
use bytes::Bytes;

/// The index with the pending changes of the writer on top.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub base: &'a Index,
    pub pending: Option<&'a History>,
    /// Newest revision, pending ones included.
    pub revision: i64,
}

/// What a range found, without values.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub keys: Vec<(Bytes, Entry)>,
    pub count: usize,
    pub more: bool,
}

impl<'a> View<'a> {
    pub(crate) fn of(base: &'a Index) -> Self {
        View { base, pending: None, revision: base.revision }
    }

    /// The key at `revision`, if it existed then.
    pub(crate) fn entry(&self, key: &[u8], revision: i64) -> Option<&'a Entry> {
        let newest = |history: &'a History| newest_at(history.get(key)?, revision);
        self.pending.and_then(newest).or_else(|| newest(&self.base.keys)).filter(|entry| !entry.deleted)
    }

    /// Visits the keys of a range that existed at `revision`, in order.
    pub(crate) fn visit(
        &self,
        key: &[u8],
        end: &RangeEnd,
        revision: i64,
        mut found: impl FnMut(&'a Bytes, &'a Entry),
    ) {
        let Some(bounds) = bounds(key, end) else { return };
        if let RangeEnd::Single = end {
            let stored = |history: &'a History| history.get_key_value(key).map(|(key, _)| key);
            if let Some(entry) = self.entry(key, revision)
                && let Some(key) = stored(&self.base.keys).or_else(|| self.pending.and_then(stored))
            {
                found(key, entry);
            }
            return;
        }
        let mut base = self.base.keys.range::<[u8], _>(bounds).peekable();
        let mut pending = self.pending.map(|pending| pending.range::<[u8], _>(bounds).peekable());
        loop {
            let order = match (base.peek(), pending.as_mut().and_then(|pending| pending.peek())) {
                (None, None) => return,
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some((left, _)), Some((right, _))) => left.cmp(right),
            };
            let below = if order.is_le() { base.next() } else { None };
            let above = if order.is_ge() { pending.as_mut().and_then(Iterator::next) } else { None };
            let newest = |row: Option<(&'a Bytes, &'a Vec<Entry>)>| {
                let (key, entries) = row?;
                newest_at(entries, revision).map(|entry| (key, entry))
            };
            if let Some((key, entry)) = newest(above).or_else(|| newest(below))
                && !entry.deleted
            {
                found(key, entry);
            }
        }
    }

    /// The revision a range reads at, checked against what is readable.
    pub(crate) fn readable(&self, revision: i64) -> Result<i64, StoreError> {
        match revision {
            ..0 => Err(StoreError::Invalid("revision must not be negative")),
            0 => Ok(self.revision),
            _ if revision > self.revision => Err(StoreError::FutureRevision { revision: self.revision }),
            _ if revision < self.base.compacted => {
                Err(StoreError::Compacted { compact_revision: self.base.compacted })
            }
            _ => Ok(revision),
        }
    }

    /// The keys of a range at a revision that was checked.
    pub(crate) fn find(&self, req: &RangeRequest, revision: i64) -> Found {
        let mut found = Found::default();
        self.visit(&req.key, &req.end, revision, |key, entry| {
            if !req.count_only && (req.limit == 0 || found.count < req.limit) {
                found.keys.push((key.clone(), *entry));
            }
            found.count += 1;
        });
        found.more = !req.count_only && found.count > found.keys.len();
        found
    }
}

/// What etcd refuses in a range before looking at any key.
pub(crate) fn check_range(req: &RangeRequest) -> Result<(), StoreError> {
    if req.key.is_empty() && req.end == RangeEnd::Single {
        return Err(StoreError::Invalid("key is not provided"));
    }
    Ok(())
}
