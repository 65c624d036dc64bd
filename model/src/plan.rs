//! From the state the maps have to the state they should have, without losing a connection on the way.
//!
//! The order: backends, then slots, tables of consistent hashing and client ranges, then frontends, then what is stale:
//! frontends, ranges, tables of consistent hashing, slots and backends. So at every step a frontend leads to slots that exist, a slot to a backend that exists, and a restricted frontend
//! knows its clients. Ids are stable: a backend and a table keep the id they have in the maps, also after a restart of
//! the agent. (The reverse of a translation is kept with the flow, so there is no table of it to keep in step.)

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kelp_common::service::BACKEND_DRAINING;
use kelp_common::{Backend, FrontendKey, FrontendValue, SlotKey, SourceRangeKey};

use crate::hash::HashMap;
use crate::maglev::{Maglev, Member};
use crate::service::{BackendKey, Desired, Lookup, TableName};

mod changes;

use changes::slots_of;
pub use changes::{Ids, plan_changes};

/// The content of the maps.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Actual {
    /// Frontends.
    pub frontends: BTreeMap<FrontendKey, FrontendValue>,
    /// Slot → backend id.
    pub slots: BTreeMap<SlotKey, u32>,
    /// Backend id → backend.
    pub backends: BTreeMap<u32, Backend>,
    /// Clients of restricted frontends.
    pub ranges: BTreeSet<SourceRangeKey>,
    /// Table → [`Maglev::fingerprint`] of its table of consistent hashing.
    pub lookups: BTreeMap<u32, u64>,
}

/// One change of one map. Each can be repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MapOp {
    /// Writes a backend.
    PutBackend(u32, Backend),
    /// Writes a slot.
    PutSlot(SlotKey, u32),
    /// Makes a table of consistent hashing and puts it in the place of the one that is there.
    PutLookup(u32, Arc<Maglev>),
    /// Writes a range of clients.
    PutRange(SourceRangeKey),
    /// Writes a frontend.
    PutFrontend(FrontendKey, FrontendValue),
    /// Removes a frontend.
    DeleteFrontend(FrontendKey),
    /// Removes a range of clients.
    DeleteRange(SourceRangeKey),
    /// Removes a table of consistent hashing.
    DeleteLookup(u32),
    /// Removes a slot.
    DeleteSlot(SlotKey),
    /// Removes a backend.
    DeleteBackend(u32),
}

impl MapOp {
    /// Whether this is of the same kind as another: the same change of the same map. Operations of a plan that follow each
    /// other and are alike may be executed in any order, or together.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

impl Actual {
    /// What the maps hold after many operations.
    pub fn apply_all(&mut self, ops: &[MapOp]) {
        for run in ops.chunk_by(MapOp::is_like) {
            match run.first() {
                Some(MapOp::PutBackend(..)) => merge(&mut self.backends, run, |op| match op {
                    MapOp::PutBackend(id, backend) => Some((*id, *backend)),
                    _ => None,
                }),
                Some(MapOp::PutSlot(..)) => merge(&mut self.slots, run, |op| match op {
                    MapOp::PutSlot(key, backend) => Some((*key, *backend)),
                    _ => None,
                }),
                Some(MapOp::PutFrontend(..)) => merge(&mut self.frontends, run, |op| match op {
                    MapOp::PutFrontend(key, value) => Some((*key, *value)),
                    _ => None,
                }),
                _ => run.iter().for_each(|op| self.apply(op)),
            }
        }
    }

    /// What the maps hold after an operation.
    pub fn apply(&mut self, op: &MapOp) {
        match op {
            MapOp::PutBackend(id, backend) => {
                self.backends.insert(*id, *backend);
            }
            MapOp::PutSlot(key, backend) => {
                self.slots.insert(*key, *backend);
            }
            MapOp::PutLookup(table, lookup) => {
                self.lookups.insert(*table, lookup.fingerprint());
            }
            MapOp::PutRange(key) => {
                self.ranges.insert(*key);
            }
            MapOp::PutFrontend(key, value) => {
                self.frontends.insert(*key, *value);
            }
            MapOp::DeleteFrontend(key) => {
                self.frontends.remove(key);
            }
            MapOp::DeleteRange(key) => {
                self.ranges.remove(key);
            }
            MapOp::DeleteLookup(table) => {
                self.lookups.remove(table);
            }
            MapOp::DeleteSlot(key) => {
                self.slots.remove(key);
            }
            MapOp::DeleteBackend(id) => {
                self.backends.remove(id);
            }
        }
    }

    /// The backends a frontend leads to; `None` when a slot or a backend is missing.
    #[must_use]
    pub fn resolve(&self, frontend: &FrontendKey) -> Option<Vec<BackendKey>> {
        let value = self.frontends.get(frontend)?;
        (0..value.count)
            .map(|slot| {
                let id = self.slots.get(&SlotKey { table: value.table, slot })?;
                self.backends.get(id).map(key_of)
            })
            .collect()
    }
}

/// Takes over entries. When there are many, both sides are merged in order, which takes a fraction of the time that a
/// search for each place does.
fn merge<K: Ord, V>(map: &mut BTreeMap<K, V>, ops: &[MapOp], entry: impl Fn(&MapOp) -> Option<(K, V)>) {
    let new = ops.iter().filter_map(entry);
    if ops.len() > map.len() / 8 {
        map.append(&mut new.collect());
    } else {
        map.extend(new);
    }
}

fn key_of(backend: &Backend) -> BackendKey {
    BackendKey { address: backend.address, port: backend.port, protocol: backend.protocol }
}

/// The operations that lead from `actual` to `desired`, in an order that is safe to stop at any point. Planning
/// again from where it stopped leads to the same end. With them the ids that `desired` has afterwards.
#[must_use]
pub fn plan(desired: &Desired, actual: &Actual) -> (Vec<MapOp>, Ids) {
    let (table_ids, fresh_tables) = table_ids(desired, actual);
    let mut ops = Vec::new();
    let mut slots = Vec::new();
    let mut backend_ids = BackendIds::new(desired, actual);
    let mut lengths = HashMap::default();
    for (name, backends) in &desired.tables {
        let Some(table) = table_ids.get(name) else { continue };
        let mut present = slots_of(actual, *table).peekable();
        let mut slot = 0;
        for backend in backends {
            let Some(id) = backend_ids.of(backend, &mut ops) else { continue };
            let key = SlotKey { table: *table, slot };
            while present.next_if(|(present, _)| *present < key).is_some() {}
            if present.peek() != Some(&(key, id)) {
                slots.push(MapOp::PutSlot(key, id));
            }
            slot += 1;
        }
        lengths.insert(*table, slot);
    }
    let (backend_ids, fresh_backends) = backend_ids.with_the_rest(&mut ops);
    ops.append(&mut slots);
    let mut lookups = BTreeSet::new();
    for (name, lookup) in &desired.lookups {
        let (Some(table), Some(backends)) = (table_ids.get(name), desired.tables.get(name)) else { continue };
        lookups.insert(*table);
        let made = made(lookup, backends, |backend| backend_ids.get(backend).copied());
        if actual.lookups.get(table) != Some(&made.fingerprint()) {
            ops.push(MapOp::PutLookup(*table, Arc::new(made)));
        }
    }
    let mut ranges = BTreeSet::new();
    for (name, clients) in &desired.ranges {
        let Some(table) = table_ids.get(name) else { continue };
        for (network, prefix) in clients {
            let key = SourceRangeKey::new(*table, *network, u32::from(*prefix));
            ranges.insert(key);
            if !actual.ranges.contains(&key) {
                ops.push(MapOp::PutRange(key));
            }
        }
    }
    for (key, frontend) in &desired.frontends {
        let Some(table) = table_ids.get(&frontend.table) else { continue };
        let count = desired.tables.get(&frontend.table).map_or(0, Vec::len);
        let value = FrontendValue {
            table: *table,
            count: u32::try_from(count).unwrap_or(u32::MAX),
            affinity_seconds: frontend.affinity_seconds,
            flags: frontend.flags,
        };
        if actual.frontends.get(key) != Some(&value) {
            ops.push(MapOp::PutFrontend(*key, value));
        }
    }

    let stale = actual.frontends.keys().filter(|key| !desired.frontends.contains_key(key));
    ops.extend(stale.map(|key| MapOp::DeleteFrontend(*key)));
    ops.extend(actual.ranges.difference(&ranges).map(|key| MapOp::DeleteRange(*key)));
    let stale = actual.lookups.keys().filter(|table| !lookups.contains(table));
    ops.extend(stale.map(|table| MapOp::DeleteLookup(*table)));
    let stale = actual.slots.keys().filter(|key| lengths.get(&key.table).is_none_or(|end| key.slot >= *end));
    ops.extend(stale.map(|key| MapOp::DeleteSlot(*key)));
    let stale = actual.backends.iter().filter(|(id, backend)| backend_ids.get(&key_of(backend)) != Some(id));
    ops.extend(stale.map(|(id, _)| MapOp::DeleteBackend(*id)));
    (ops, Ids::new((table_ids, fresh_tables), (backend_ids, fresh_backends)))
}

/// A table of consistent hashing over backends with these ids.
fn made(lookup: &Lookup, backends: &[BackendKey], mut id: impl FnMut(&BackendKey) -> Option<u32>) -> Maglev {
    let members = backends.iter().zip(&lookup.weights);
    let members =
        members.filter_map(|(key, weight)| Some(Member { key: *key, weight: *weight, id: id(key)? }));
    Maglev::new(lookup.size, members)
}

/// Ids of backends: the one a backend has in the maps, else a new one. New ones are given in the order of the tables, so
/// that the backends of a service are next to each other.
struct BackendIds<'a> {
    desired: &'a Desired,
    /// The id and the flags of each backend in the maps.
    known: HashMap<BackendKey, (u32, u8)>,
    fresh: Fresh,
    ids: HashMap<BackendKey, u32>,
}

impl<'a> BackendIds<'a> {
    fn new(desired: &'a Desired, actual: &Actual) -> Self {
        let mut known = HashMap::with_capacity_and_hasher(actual.backends.len(), Default::default());
        for (id, backend) in actual.backends.iter().filter(|(id, _)| **id != 0) {
            // Two ids for one backend can only be left by a foreign writer: the lower stays.
            known.entry(key_of(backend)).or_insert((*id, backend.flags));
        }
        // An id that a slot still names is not free, even when its backend is gone.
        let taken: BTreeSet<u32> = actual.backends.keys().chain(actual.slots.values()).copied().collect();
        let ids = HashMap::with_capacity_and_hasher(desired.backends.len(), Default::default());
        Self { desired, known, fresh: Fresh::new(taken), ids }
    }

    /// The id of a backend, if it is to be there. What is to be written goes to `ops`.
    fn of(&mut self, key: &BackendKey, ops: &mut Vec<MapOp>) -> Option<u32> {
        let entry = match self.ids.entry(*key) {
            Entry::Occupied(entry) => return Some(*entry.get()),
            Entry::Vacant(entry) => entry,
        };
        let flags = if *self.desired.backends.get(key)? { BACKEND_DRAINING } else { 0 };
        let known = self.known.get(key);
        let id = known.map_or_else(|| self.fresh.next(), |(id, _)| *id);
        if known.is_none_or(|(_, before)| *before != flags) {
            let backend = Backend { address: key.address, port: key.port, protocol: key.protocol, flags };
            ops.push(MapOp::PutBackend(id, backend));
        }
        Some(*entry.insert(id))
    }

    /// All ids, with those of backends in no table.
    fn with_the_rest(mut self, ops: &mut Vec<MapOp>) -> (HashMap<BackendKey, u32>, Fresh) {
        let rest = self.desired.backends.keys().filter(|key| !self.ids.contains_key(key));
        let mut rest: Vec<BackendKey> = rest.copied().collect();
        rest.sort_unstable();
        for key in rest {
            self.of(&key, ops);
        }
        (self.ids, self.fresh)
    }
}

/// An id for every table. A table keeps the id in the maps when all frontends that use the id lead to this table:
/// otherwise a frontend of another service would, for a moment, lead to the new backends.
fn table_ids(desired: &Desired, actual: &Actual) -> (BTreeMap<TableName, u32>, Fresh) {
    let mut users: BTreeMap<u32, Option<&TableName>> = BTreeMap::new();
    for (key, value) in &actual.frontends {
        let name = desired.frontends.get(key).map(|frontend| &frontend.table);
        users
            .entry(value.table)
            .and_modify(|known| {
                if *known != name {
                    *known = None;
                }
            })
            .or_insert(name);
    }
    let mut ids = BTreeMap::new();
    for (id, name) in &users {
        if let Some(name) = name
            && *id != 0
        {
            ids.entry((*name).clone()).or_insert(*id);
        }
    }
    let taken = users
        .keys()
        .copied()
        .chain(actual.slots.keys().map(|key| key.table))
        .chain(actual.ranges.iter().map(|key| key.range.table))
        .chain(actual.lookups.keys().copied())
        .collect();
    let mut fresh = Fresh::new(taken);
    for name in desired.tables.keys() {
        if !ids.contains_key(name) {
            ids.insert(name.clone(), fresh.next());
        }
    }
    (ids, fresh)
}

/// Ids that are not in use: above all others first, so that an id is not reused soon.
#[derive(Debug, Clone, Default)]
struct Fresh {
    taken: BTreeSet<u32>,
    last: u32,
}

impl Fresh {
    fn new(taken: BTreeSet<u32>) -> Self {
        let last = taken.last().copied().unwrap_or(0);
        Self { taken, last }
    }

    fn next(&mut self) -> u32 {
        loop {
            self.last = self.last.wrapping_add(1);
            if self.last != 0 && self.taken.insert(self.last) {
                return self.last;
            }
        }
    }
}

#[cfg(test)]
mod tests;
