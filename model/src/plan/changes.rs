//! Plans for a change: as [`super::plan`], but only what the change touched is looked at, so that one endpoint of one
//! Service costs as much in a cluster of ten thousand Services as in one of ten.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kelp_common::service::BACKEND_DRAINING;
use kelp_common::{Backend, FrontendValue, SlotKey, SourceRangeKey};

use super::{Actual, Fresh, MapOp};
use crate::hash::HashMap;
use crate::service::{BackendKey, Desired, TableName, Touched};

/// The ids that tables and backends have in the maps.
#[derive(Debug, Clone, Default)]
pub struct Ids {
    pub(super) tables: BTreeMap<TableName, u32>,
    pub(super) backends: HashMap<BackendKey, u32>,
    /// The table of each id.
    names: BTreeMap<u32, TableName>,
    pub(super) fresh_tables: Fresh,
    pub(super) fresh_backends: Fresh,
}

impl Ids {
    pub(super) fn new(
        (tables, fresh_tables): (BTreeMap<TableName, u32>, Fresh),
        (backends, fresh_backends): (HashMap<BackendKey, u32>, Fresh),
    ) -> Self {
        let names = tables.iter().map(|(name, id)| (*id, name.clone())).collect();
        Self { tables, backends, names, fresh_tables, fresh_backends }
    }

    /// The tables and their ids.
    pub fn tables(&self) -> impl Iterator<Item = (&TableName, u32)> {
        self.tables.iter().map(|(name, id)| (name, *id))
    }

    /// The id of a table, if it has one.
    #[must_use]
    pub fn table_id(&self, name: &TableName) -> Option<u32> {
        self.tables.get(name).copied()
    }

    fn table(&mut self, name: &TableName) -> u32 {
        if let Some(id) = self.tables.get(name) {
            return *id;
        }
        let id = self.fresh_tables.next();
        self.tables.insert(name.clone(), id);
        self.names.insert(id, name.clone());
        id
    }

    fn forget_table(&mut self, id: u32) {
        if let Some(name) = self.names.remove(&id)
            && self.tables.get(&name) == Some(&id)
        {
            self.tables.remove(&name);
        }
        self.fresh_tables.taken.remove(&id);
    }

    fn backend(&mut self, key: BackendKey) -> u32 {
        let fresh = &mut self.fresh_backends;
        *self.backends.entry(key).or_insert_with(|| fresh.next())
    }
}

/// Operations by kind, put in order at the end.
#[derive(Default)]
struct Ops {
    puts: Vec<MapOp>,
    slots: Vec<MapOp>,
    lookups: Vec<MapOp>,
    ranges: Vec<MapOp>,
    frontends: Vec<MapOp>,
    stale_frontends: Vec<MapOp>,
    stale_ranges: Vec<MapOp>,
    stale_lookups: Vec<MapOp>,
    stale_slots: Vec<MapOp>,
    stale_backends: Vec<MapOp>,
}

impl Ops {
    fn in_order(self) -> Vec<MapOp> {
        let parts = [
            self.puts,
            self.slots,
            self.lookups,
            self.ranges,
            self.frontends,
            self.stale_frontends,
            self.stale_ranges,
            self.stale_lookups,
            self.stale_slots,
            self.stale_backends,
        ];
        parts.concat()
    }
}

/// Ids of tables that must not be written again, since a frontend that uses them is to lead elsewhere or to go: for a
/// moment it would lead to backends that were never its own.
fn left(desired: &Desired, actual: &Actual, touched: &Touched, ids: &Ids) -> BTreeSet<u32> {
    let moved = touched.frontends.iter().filter_map(|key| {
        let before = actual.frontends.get(key)?.table;
        let after = desired.frontends.get(key).map(|frontend| &frontend.table);
        (ids.names.get(&before) != after).then_some(before)
    });
    moved.collect()
}

pub(super) fn slots_of(actual: &Actual, table: u32) -> impl Iterator<Item = (SlotKey, u32)> {
    let range = SlotKey { table, slot: 0 }..=SlotKey { table, slot: u32::MAX };
    actual.slots.range(range).map(|(key, id)| (*key, *id))
}

/// The operations that lead from `actual` to `desired` where the two differ in nothing but what was `touched`. `ids`
/// are those of `actual`, and of `desired` afterwards.
#[must_use]
pub fn plan_changes(desired: &Desired, actual: &Actual, touched: &Touched, ids: &mut Ids) -> Vec<MapOp> {
    let mut ops = Ops::default();
    let mut backends: Vec<&BackendKey> = touched.backends.iter().collect();
    backends.sort_unstable();
    for key in backends {
        if let Some(draining) = desired.backends.get(key) {
            let id = ids.backend(*key);
            let flags = if *draining { BACKEND_DRAINING } else { 0 };
            let backend = Backend { address: key.address, port: key.port, protocol: key.protocol, flags };
            if actual.backends.get(&id) != Some(&backend) {
                ops.puts.push(MapOp::PutBackend(id, backend));
            }
        } else if let Some(id) = ids.backends.remove(key) {
            ids.fresh_backends.taken.remove(&id);
            ops.stale_backends.push(MapOp::DeleteBackend(id));
        }
    }
    let left = left(desired, actual, touched, ids);
    let mut gone = BTreeSet::new();
    let mut clients: BTreeSet<SourceRangeKey> = BTreeSet::new();
    let mut looked_at = BTreeSet::new();
    for name in &touched.tables {
        let old = ids.tables.get(name).copied();
        let Some(backends) = desired.tables.get(name) else {
            gone.extend(old);
            continue;
        };
        let new: Vec<u32> = backends.iter().map(|backend| ids.backend(*backend)).collect();
        if let Some(old) = old
            && left.contains(&old)
            && !slots_of(actual, old).map(|(_, id)| id).eq(new.iter().copied())
        {
            ids.tables.remove(name);
            gone.insert(old);
        }
        let table = ids.table(name);
        looked_at.insert(table);
        for (slot, id) in (0_u32..).zip(&new) {
            let key = SlotKey { table, slot };
            if actual.slots.get(&key) != Some(id) {
                ops.slots.push(MapOp::PutSlot(key, *id));
            }
        }
        let stale = slots_of(actual, table).skip(new.len()).map(|(key, _)| MapOp::DeleteSlot(key));
        ops.stale_slots.extend(stale);
        match desired.lookups.get(name) {
            Some(lookup) => {
                let made = super::made(lookup, backends, |backend| ids.backends.get(backend).copied());
                if actual.lookups.get(&table) != Some(&made.fingerprint()) {
                    ops.lookups.push(MapOp::PutLookup(table, Arc::new(made)));
                }
            }
            None if actual.lookups.contains_key(&table) => ops.stale_lookups.push(MapOp::DeleteLookup(table)),
            None => {}
        }
        for (network, prefix) in desired.ranges.get(name).into_iter().flatten() {
            clients.insert(SourceRangeKey::new(table, *network, u32::from(*prefix)));
        }
    }
    ops.ranges.extend(clients.difference(&actual.ranges).map(|key| MapOp::PutRange(*key)));
    for key in &touched.frontends {
        if let Some(frontend) = desired.frontends.get(key) {
            let count = desired.tables.get(&frontend.table).map_or(0, Vec::len);
            let value = FrontendValue {
                table: ids.table(&frontend.table),
                count: u32::try_from(count).unwrap_or(u32::MAX),
                affinity_seconds: frontend.affinity_seconds,
                flags: frontend.flags,
            };
            if actual.frontends.get(key) != Some(&value) {
                ops.frontends.push(MapOp::PutFrontend(*key, value));
            }
        } else if actual.frontends.contains_key(key) {
            ops.stale_frontends.push(MapOp::DeleteFrontend(*key));
        }
    }
    for id in &gone {
        ops.stale_slots.extend(slots_of(actual, *id).map(|(key, _)| MapOp::DeleteSlot(key)));
        ops.stale_lookups.extend(actual.lookups.contains_key(id).then_some(MapOp::DeleteLookup(*id)));
        ids.forget_table(*id);
    }
    // There are few ranges, if any, and they are not in the order of the tables.
    let stale = actual.ranges.iter().filter(|key| {
        gone.contains(&key.range.table) || looked_at.contains(&key.range.table) && !clients.contains(key)
    });
    ops.stale_ranges.extend(stale.map(|key| MapOp::DeleteRange(*key)));
    ops.in_order()
}
