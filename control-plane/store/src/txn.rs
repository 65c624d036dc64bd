//! Evaluating transactions against the index and the changes that are not durable yet.

mod check;

pub(crate) use check::{check_txn, writes};

use crate::index::{Entry, History, Index};
use crate::record::{Record, RevKey};
use crate::values::{Values, bare};
use crate::view::View;
use crate::{
    Compare, CompareOp, CompareTarget, Event, KeyValue, Op, OpResult, RangeEnd, RangeRequest, RangeResponse,
    StoreError, TxnRequest, TxnResponse,
};
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap};

/// All events of one revision, with the keys before them.
#[derive(Debug)]
pub(crate) struct RevisionEvents {
    pub revision: i64,
    pub events: Vec<Event>,
}

/// Changes that are evaluated but not durable yet.
#[derive(Default)]
pub(crate) struct Pending {
    pub history: History,
    pub records: BTreeMap<RevKey, Bytes>,
    pub events: Vec<RevisionEvents>,
    /// Leases granted (with their seconds) or ended.
    pub leases: HashMap<i64, Option<i64>>,
    /// Newest revision, pending ones included.
    pub revision: i64,
}

impl Pending {
    pub(crate) fn new(index: &Index) -> Self {
        Pending { revision: index.revision, ..Pending::default() }
    }

    pub(crate) fn view<'a>(&'a self, base: &'a Index) -> View<'a> {
        View { base, pending: Some(&self.history), revision: self.revision }
    }
}

/// Which branch runs, for the transaction and the ones nested in that branch.
struct Path {
    succeeded: bool,
    nested: Vec<Path>,
}

/// Evaluates transactions one after the other.
pub(crate) struct Evaluator<'a> {
    pub base: &'a Index,
    pub values: &'a Values,
    pub pending: &'a mut Pending,
}

/// One transaction that is being evaluated; nothing of it stays if it fails.
struct Running {
    revision: i64,
    events: Vec<Event>,
}

impl Evaluator<'_> {
    /// Evaluates a checked transaction.
    pub(crate) fn txn(
        &mut self,
        req: &TxnRequest,
        lease_exists: impl Fn(i64) -> bool,
    ) -> Result<TxnResponse, StoreError> {
        let path = self.path(req)?;
        self.check_path(req, &path, &lease_exists)?;
        self.run(|this, running| this.branch(req, &path, running)).map(|(mut response, _)| {
            set_revision(&mut response, self.pending.revision);
            response
        })
    }

    /// Deletes the keys bound to a lease as one revision.
    pub(crate) fn delete_keys(&mut self, keys: Vec<Bytes>) -> Result<(), StoreError> {
        self.run(|this, running| {
            for key in keys {
                this.delete(&key, &RangeEnd::Single, running)?;
            }
            Ok(())
        })
        .map(|_| ())
    }

    /// Runs a change as one revision, or undoes it.
    fn run<T>(
        &mut self,
        change: impl FnOnce(&mut Self, &mut Running) -> Result<T, StoreError>,
    ) -> Result<(T, i64), StoreError> {
        let mut running = Running { revision: self.pending.revision + 1, events: Vec::new() };
        match change(self, &mut running) {
            Ok(result) => {
                if !running.events.is_empty() {
                    self.pending.revision = running.revision;
                    self.pending
                        .events
                        .push(RevisionEvents { revision: running.revision, events: running.events });
                }
                Ok((result, self.pending.revision))
            }
            Err(error) => {
                for event in &running.events {
                    if let Some(entries) = self.pending.history.get_mut(&event.kv.key) {
                        entries.retain(|entry| entry.at.main != running.revision);
                        if entries.is_empty() {
                            self.pending.history.remove(&event.kv.key);
                        }
                    }
                }
                self.pending.records.split_off(&RevKey { main: running.revision, sub: 0 });
                Err(error)
            }
        }
    }

    fn path(&self, req: &TxnRequest) -> Result<Path, StoreError> {
        let mut succeeded = true;
        for compare in &req.compares {
            succeeded = succeeded && self.holds(compare)?;
        }
        let ops = if succeeded { &req.then } else { &req.or_else };
        let nested = ops
            .iter()
            .filter_map(|op| if let Op::Txn(inner) = op { Some(self.path(inner)) } else { None })
            .collect::<Result<_, _>>()?;
        Ok(Path { succeeded, nested })
    }

    fn holds(&self, compare: &Compare) -> Result<bool, StoreError> {
        let view = self.pending.view(self.base);
        let mut entries = Vec::new();
        view.visit(&compare.key, &compare.end, i64::MAX, |_, entry| entries.push(*entry));
        if let CompareTarget::Value(expected) = &compare.target {
            for entry in &entries {
                if !compared(self.value(entry.at)?.cmp(expected), compare.op) {
                    return Ok(false);
                }
            }
            return Ok(!entries.is_empty());
        }
        let number = |entry: Option<&Entry>| match compare.target {
            CompareTarget::Version(expected) => entry.map_or(0, |entry| entry.version).cmp(&expected),
            CompareTarget::CreateRevision(expected) => entry.map_or(0, |entry| entry.create).cmp(&expected),
            CompareTarget::ModRevision(expected) => entry.map_or(0, |entry| entry.at.main).cmp(&expected),
            CompareTarget::Lease(expected) => entry.map_or(0, |entry| entry.lease).cmp(&expected),
            CompareTarget::Value(_) => std::cmp::Ordering::Equal,
        };
        if entries.is_empty() {
            return Ok(compared(number(None), compare.op));
        }
        Ok(entries.iter().all(|entry| compared(number(Some(entry)), compare.op)))
    }

    /// What depends on the branch that runs: readable revisions and existing leases.
    fn check_path(
        &self,
        req: &TxnRequest,
        path: &Path,
        lease_exists: &impl Fn(i64) -> bool,
    ) -> Result<(), StoreError> {
        let mut nested = path.nested.iter();
        for op in branch_ops(req, path) {
            match op {
                Op::Range(range) => {
                    self.pending.view(self.base).readable(range.revision)?;
                }
                Op::Put { lease, .. } if *lease != 0 => {
                    let exists = match self.pending.leases.get(lease) {
                        Some(change) => change.is_some(),
                        None => lease_exists(*lease),
                    };
                    if !exists {
                        return Err(StoreError::LeaseNotFound);
                    }
                }
                Op::Txn(inner) => {
                    if let Some(path) = nested.next() {
                        self.check_path(inner, path, lease_exists)?;
                    }
                }
                Op::Put { .. } | Op::Delete { .. } => {}
            }
        }
        Ok(())
    }

    fn branch(
        &mut self,
        req: &TxnRequest,
        path: &Path,
        running: &mut Running,
    ) -> Result<TxnResponse, StoreError> {
        let mut nested = path.nested.iter();
        let mut results = Vec::new();
        for op in branch_ops(req, path) {
            results.push(match op {
                Op::Put { key, value, lease } => {
                    OpResult::Put { prev: self.put(key, value, *lease, running)? }
                }
                Op::Delete { key, end } => OpResult::Delete { prev: self.delete(key, end, running)? },
                Op::Range(range) => OpResult::Range(self.range(range, running)?),
                Op::Txn(inner) => match nested.next() {
                    Some(path) => OpResult::Txn(self.branch(inner, path, running)?),
                    None => return Err(StoreError::Invalid("nested transaction without a branch")),
                },
            });
        }
        Ok(TxnResponse { revision: running.revision, succeeded: path.succeeded, results })
    }

    fn put(
        &mut self,
        key: &Bytes,
        value: &Bytes,
        lease: i64,
        running: &mut Running,
    ) -> Result<Option<KeyValue>, StoreError> {
        let before = self.pending.view(self.base).entry(key, i64::MAX).copied();
        let prev = before.map(|entry| self.key_value(entry.at)).transpose()?;
        let at = RevKey { main: running.revision, sub: running.events.len() as u32 };
        let (create, version) = before.map_or((at.main, 1), |entry| (entry.create, entry.version + 1));
        let entry = Entry { at, deleted: false, create, version, lease };
        let record =
            Record { deleted: false, create, version, lease, key: key.clone(), value: value.clone() }
                .encode();
        let kv = self.values.decode(at, &record)?;
        self.change(kv, entry, record, prev.clone(), running);
        Ok(prev)
    }

    fn delete(
        &mut self,
        key: &[u8],
        end: &RangeEnd,
        running: &mut Running,
    ) -> Result<Vec<KeyValue>, StoreError> {
        let mut doomed = Vec::new();
        self.pending
            .view(self.base)
            .visit(key, end, i64::MAX, |key, entry| doomed.push((key.clone(), *entry)));
        let mut deleted = Vec::with_capacity(doomed.len());
        for (key, before) in doomed {
            let prev = self.key_value(before.at)?;
            let at = RevKey { main: running.revision, sub: running.events.len() as u32 };
            let entry = Entry { at, deleted: true, create: 0, version: 0, lease: 0 };
            let record = Record { deleted: true, create: 0, version: 0, lease: 0, key, value: Bytes::new() };
            let bytes = record.encode();
            self.change(record.into_kv(at.main), entry, bytes, Some(prev.clone()), running);
            deleted.push(prev);
        }
        Ok(deleted)
    }

    fn change(
        &mut self,
        kv: KeyValue,
        entry: Entry,
        record: Bytes,
        prev: Option<KeyValue>,
        running: &mut Running,
    ) {
        self.pending.records.insert(entry.at, record);
        self.pending.history.entry(kv.key.clone()).or_default().push(entry);
        running.events.push(Event { deleted: entry.deleted, kv, prev_kv: prev });
    }

    fn range(&self, req: &RangeRequest, running: &Running) -> Result<RangeResponse, StoreError> {
        let revision = if running.events.is_empty() { self.pending.revision } else { running.revision };
        let at = if req.revision == 0 { i64::MAX } else { req.revision };
        let found = self.pending.view(self.base).find(req, at);
        let kvs = found
            .keys
            .into_iter()
            .map(|(key, entry)| if req.keys_only { Ok(bare(key, &entry)) } else { self.key_value(entry.at) })
            .collect::<Result<_, _>>()?;
        Ok(RangeResponse { revision, kvs, more: found.more, count: found.count })
    }

    fn value(&self, at: RevKey) -> Result<Bytes, StoreError> {
        Ok(self.key_value(at)?.value)
    }

    fn key_value(&self, at: RevKey) -> Result<KeyValue, StoreError> {
        match self.pending.records.get(&at) {
            Some(record) => self.values.decode(at, record),
            // The writer alone removes records, and never those of the newest revision.
            None => match self.values.key_value(at)? {
                Some(kv) => Ok(kv),
                None => Err(StoreError::Engine(format!(
                    "the record of revision {}.{} is missing",
                    at.main, at.sub
                ))),
            },
        }
    }
}

fn branch_ops<'r>(req: &'r TxnRequest, path: &Path) -> &'r [Op] {
    if path.succeeded { &req.then } else { &req.or_else }
}

fn compared(stored_to_given: std::cmp::Ordering, op: CompareOp) -> bool {
    match op {
        CompareOp::Equal => stored_to_given.is_eq(),
        CompareOp::NotEqual => stored_to_given.is_ne(),
        CompareOp::Greater => stored_to_given.is_gt(),
        CompareOp::Less => stored_to_given.is_lt(),
    }
}

fn set_revision(response: &mut TxnResponse, revision: i64) {
    response.revision = revision;
    for result in &mut response.results {
        if let OpResult::Txn(inner) = result {
            set_revision(inner, revision);
        }
    }
}
