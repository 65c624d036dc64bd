//! The reference: the whole store copied at every revision, everything done the plain way.

use crate::index::contains;
use crate::{
    Compare, CompareOp, CompareTarget, Event, KeyValue, Op, OpResult, RangeEnd, RangeRequest, RangeResponse,
    StoreError, TxnRequest, TxnResponse,
};
use bytes::Bytes;
use std::collections::BTreeMap;

type Keys = BTreeMap<Bytes, KeyValue>;

pub(crate) struct Model {
    /// State after each revision, from revision 1 on.
    states: Vec<Keys>,
    pub events: Vec<Event>,
    pub compacted: i64,
}

impl Model {
    pub(crate) fn new() -> Self {
        Model { states: vec![Keys::new()], events: Vec::new(), compacted: 0 }
    }

    pub(crate) fn revision(&self) -> i64 {
        self.states.len() as i64
    }

    fn at(&self, revision: i64) -> &Keys {
        &self.states[revision as usize - 1]
    }

    pub(crate) fn range(&self, req: &RangeRequest) -> Result<RangeResponse, StoreError> {
        let revision = self.revision();
        if req.revision > revision {
            return Err(StoreError::FutureRevision { revision });
        }
        if req.revision > 0 && req.revision < self.compacted {
            return Err(StoreError::Compacted { compact_revision: self.compacted });
        }
        let at = if req.revision == 0 { revision } else { req.revision };
        Ok(range_of(self.at(at), req, revision))
    }

    pub(crate) fn txn(&mut self, req: &TxnRequest) -> Result<TxnResponse, StoreError> {
        let before = self.at(self.revision()).clone();
        let mut run = Run { model: self, before: &before, keys: before.clone(), events: Vec::new() };
        let mut response = run.txn(req)?;
        let (keys, events) = (run.keys, run.events);
        if !events.is_empty() {
            self.states.push(keys);
            self.events.extend(events);
        }
        finish(&mut response, self.revision());
        Ok(response)
    }

    /// What a watch delivers from `start` on.
    pub(crate) fn watched(&self, key: &[u8], end: &RangeEnd, start: i64, prev_kv: bool) -> Vec<Event> {
        let wanted = |event: &&Event| event.kv.mod_revision >= start && contains(key, end, &event.kv.key);
        let mut events: Vec<_> = self.events.iter().filter(wanted).cloned().collect();
        if !prev_kv {
            events.iter_mut().for_each(|event| event.prev_kv = None);
        }
        events
    }
}

fn finish(response: &mut TxnResponse, revision: i64) {
    response.revision = revision;
    for result in &mut response.results {
        if let OpResult::Txn(inner) = result {
            finish(inner, revision);
        }
    }
}

fn range_of(keys: &Keys, req: &RangeRequest, revision: i64) -> RangeResponse {
    let all: Vec<_> = keys.values().filter(|kv| contains(&req.key, &req.end, &kv.key)).cloned().collect();
    let count = all.len();
    let mut kvs = all;
    if req.count_only {
        return RangeResponse { revision, kvs: Vec::new(), more: false, count };
    }
    if req.limit > 0 {
        kvs.truncate(req.limit);
    }
    if req.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
    }
    RangeResponse { revision, more: kvs.len() < count, kvs, count }
}

struct Run<'a> {
    model: &'a Model,
    before: &'a Keys,
    keys: Keys,
    events: Vec<Event>,
}

impl Run<'_> {
    fn txn(&mut self, req: &TxnRequest) -> Result<TxnResponse, StoreError> {
        let succeeded = req.compares.iter().all(|compare| self.holds(compare));
        let ops = if succeeded { &req.then } else { &req.or_else };
        let results = ops.iter().map(|op| self.op(op)).collect::<Result<_, _>>()?;
        Ok(TxnResponse { revision: 0, succeeded, results })
    }

    fn holds(&self, compare: &Compare) -> bool {
        let kvs: Vec<_> =
            self.before.values().filter(|kv| contains(&compare.key, &compare.end, &kv.key)).collect();
        if let CompareTarget::Value(value) = &compare.target {
            return !kvs.is_empty() && kvs.iter().all(|kv| ordered(&kv.value, value, compare.op));
        }
        let fact = |kv: Option<&KeyValue>| match compare.target {
            CompareTarget::Version(to) => ordered(&kv.map_or(0, |kv| kv.version), &to, compare.op),
            CompareTarget::CreateRevision(to) => {
                ordered(&kv.map_or(0, |kv| kv.create_revision), &to, compare.op)
            }
            CompareTarget::ModRevision(to) => ordered(&kv.map_or(0, |kv| kv.mod_revision), &to, compare.op),
            CompareTarget::Lease(to) => ordered(&kv.map_or(0, |kv| kv.lease), &to, compare.op),
            CompareTarget::Value(_) => false,
        };
        if kvs.is_empty() { fact(None) } else { kvs.into_iter().all(|kv| fact(Some(kv))) }
    }

    fn op(&mut self, op: &Op) -> Result<OpResult, StoreError> {
        let next = self.model.revision() + 1;
        Ok(match op {
            Op::Put { key, value, lease } => {
                let prev = self.keys.get(key).cloned();
                let kv = KeyValue {
                    key: key.clone(),
                    value: value.clone(),
                    create_revision: prev.as_ref().map_or(next, |prev| prev.create_revision),
                    mod_revision: next,
                    version: prev.as_ref().map_or(0, |prev| prev.version) + 1,
                    lease: *lease,
                };
                self.keys.insert(key.clone(), kv.clone());
                self.events.push(Event { deleted: false, kv, prev_kv: prev.clone() });
                OpResult::Put { prev }
            }
            Op::Delete { key, end } => {
                let doomed: Vec<_> =
                    self.keys.values().filter(|kv| contains(key, end, &kv.key)).cloned().collect();
                for kv in &doomed {
                    self.keys.remove(&kv.key);
                    let gone = KeyValue {
                        key: kv.key.clone(),
                        value: Bytes::new(),
                        create_revision: 0,
                        mod_revision: next,
                        version: 0,
                        lease: 0,
                    };
                    self.events.push(Event { deleted: true, kv: gone, prev_kv: Some(kv.clone()) });
                }
                OpResult::Delete { prev: doomed }
            }
            Op::Range(range) => {
                let revision = if self.events.is_empty() { next - 1 } else { next };
                OpResult::Range(match range.revision {
                    0 => range_of(&self.keys, range, revision),
                    _ => RangeResponse { revision, ..self.model.range(range)? },
                })
            }
            Op::Txn(inner) => OpResult::Txn(self.txn(inner)?),
        })
    }
}

fn ordered<T: Ord>(left: &T, right: &T, op: CompareOp) -> bool {
    match op {
        CompareOp::Equal => left == right,
        CompareOp::NotEqual => left != right,
        CompareOp::Greater => left > right,
        CompareOp::Less => left < right,
    }
}
