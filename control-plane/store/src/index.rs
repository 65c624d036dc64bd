//! Which revisions a key has: the in-memory index over the records of the engine.

use crate::RangeEnd;
use crate::record::RevKey;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Bound;

/// One change of a key, without its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub at: RevKey,
    pub deleted: bool,
    pub create: i64,
    pub version: i64,
    pub lease: i64,
}

/// Changes of keys, oldest first.
pub(crate) type History = BTreeMap<Bytes, Vec<Entry>>;

/// All keys with the changes that are still readable.
#[derive(Debug)]
pub(crate) struct Index {
    pub keys: History,
    /// Newest revision.
    pub revision: i64,
    /// Oldest revision that can be read; 0 before the first compaction.
    pub compacted: i64,
}

impl Default for Index {
    fn default() -> Self {
        Index { keys: History::new(), revision: 1, compacted: 0 }
    }
}

type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// The bounds of a key range; `None` if it is empty by construction.
pub(crate) fn bounds<'a>(key: &'a [u8], end: &'a RangeEnd) -> Option<Bounds<'a>> {
    match end {
        RangeEnd::Single => Some((Bound::Included(key), Bound::Included(key))),
        RangeEnd::Before(end) if key < end.as_ref() => {
            Some((Bound::Included(key), Bound::Excluded(end.as_ref())))
        }
        RangeEnd::Before(_) => None,
        RangeEnd::Unbounded => Some((Bound::Included(key), Bound::Unbounded)),
    }
}

/// `key` lies in the range.
pub(crate) fn contains(first: &[u8], end: &RangeEnd, key: &[u8]) -> bool {
    match end {
        RangeEnd::Single => key == first,
        RangeEnd::Before(end) => key >= first && key < end.as_ref(),
        RangeEnd::Unbounded => key >= first,
    }
}

/// The newest change at or before `revision`, deleted or not.
pub(crate) fn newest_at(entries: &[Entry], revision: i64) -> Option<&Entry> {
    let after = entries.partition_point(|entry| entry.at.main <= revision);
    entries.get(after.checked_sub(1)?)
}

/// The change right before the one at `revision`, if the key existed then.
pub(crate) fn before(entries: &[Entry], revision: i64) -> Option<&Entry> {
    newest_at(entries, revision - 1).filter(|entry| !entry.deleted)
}

impl Index {
    /// Adds a change; changes of a key come in the order of history.
    pub(crate) fn push(&mut self, key: &Bytes, entry: Entry) {
        self.revision = self.revision.max(entry.at.main);
        match self.keys.get_mut(key) {
            Some(entries) => entries.push(entry),
            None => {
                // A copy: the key given is a part of its record and would keep the value in memory.
                self.keys.insert(Bytes::copy_from_slice(key), vec![entry]);
            }
        }
    }

    /// Drops what no reader at `self.compacted` or later needs from at most `limit` keys after `cursor`; returns the
    /// dropped places and the cursor to go on from, `None` at the end.
    ///
    /// The newest put at or before the compacted revision stays; a deletion stays only at that very revision, so that
    /// a watch from there still sees it.
    pub(crate) fn sweep(&mut self, cursor: Option<&Bytes>, limit: usize) -> (Vec<RevKey>, Option<Bytes>) {
        let from = cursor.map_or(Bound::Unbounded, |cursor| Bound::Excluded(cursor.as_ref()));
        let mut dropped = Vec::new();
        let mut empty = Vec::new();
        let mut last = None;
        let mut seen = 0;
        for (key, entries) in self.keys.range_mut::<[u8], _>((from, Bound::Unbounded)) {
            seen += 1;
            let after = entries.partition_point(|entry| entry.at.main <= self.compacted);
            let keep_from = match after.checked_sub(1).and_then(|at| entries.get(at)) {
                None => 0,
                Some(entry) if entry.deleted && entry.at.main < self.compacted => after,
                Some(_) => after - 1,
            };
            dropped.extend(entries.drain(..keep_from).map(|entry| entry.at));
            if entries.is_empty() {
                empty.push(key.clone());
            } else if keep_from > 0 {
                entries.shrink_to_fit();
            }
            if seen == limit {
                last = Some(key.clone());
                break;
            }
        }
        for key in empty {
            self.keys.remove(&key);
        }
        (dropped, last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(main: i64) -> Entry {
        Entry { at: RevKey { main, sub: 0 }, deleted: false, create: 2, version: main - 1, lease: 0 }
    }

    fn deletion(main: i64) -> Entry {
        Entry { at: RevKey { main, sub: 0 }, deleted: true, create: 0, version: 0, lease: 0 }
    }

    fn swept(entries: &[Entry], compacted: i64) -> Vec<i64> {
        let mut index = Index { compacted, ..Index::default() };
        for entry in entries {
            index.push(&Bytes::from_static(b"k"), *entry);
        }
        index.sweep(None, 10);
        index.keys.get(&b"k"[..]).into_iter().flatten().map(|entry| entry.at.main).collect()
    }

    #[test]
    fn a_sweep_keeps_the_newest_put_and_a_deletion_only_at_the_compacted_revision() {
        assert_eq!(swept(&[put(2), put(4), put(6)], 5), [4, 6]);
        assert_eq!(swept(&[put(2), put(4), put(6)], 6), [6]);
        assert_eq!(swept(&[put(2), deletion(4), put(6)], 5), [6]);
        assert_eq!(swept(&[put(2), deletion(4), put(6)], 4), [4, 6]);
        assert_eq!(swept(&[put(2), deletion(4)], 5), [] as [i64; 0]);
    }

    #[test]
    fn a_sweep_goes_on_from_its_cursor() {
        let mut index = Index { compacted: 9, ..Index::default() };
        for key in ["a", "b", "c"] {
            index.push(&Bytes::from(key), put(2));
            index.push(&Bytes::from(key), put(3));
        }
        let (first, cursor) = index.sweep(None, 2);
        assert_eq!((first.len(), cursor.as_deref()), (2, Some(&b"b"[..])));
        let (second, cursor) = index.sweep(cursor.as_ref(), 2);
        assert_eq!((second.len(), cursor), (1, None));
    }

    #[test]
    fn bounds_of_an_inverted_range_are_empty() {
        assert!(bounds(b"b", &RangeEnd::Before(Bytes::from_static(b"a"))).is_none());
        assert!(bounds(b"b", &RangeEnd::Before(Bytes::from_static(b"b"))).is_none());
        assert!(!contains(b"b", &RangeEnd::Before(Bytes::from_static(b"a")), b"b"));
    }
}
