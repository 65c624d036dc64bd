//! What all Services and Pods ask for together, kept while each of them changes: a change costs what it concerns, not
//! what the cluster has.
//!
//! Each owner (a Service, or a Pod with a `hostPort`) says what it would have alone. A frontend goes to the first owner
//! that wants it, a table exists while a frontend leads to it, and a backend while a table or an established connection
//! may use it. [`Merged::set`] says what a change touched, so that a plan need not look at the rest.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use kelp_common::service::{FRONTEND_MAGLEV, FRONTEND_SOURCE_RANGES, SCOPE_CLUSTER};
use kelp_common::{Address, FrontendKey};

use crate::hash::{HashMap, HashSet};

use super::{BackendKey, Conflict, Desired, ObjectName, TableName};

/// Who wants something, in the order in which they get it: Services before Pods, the older ones first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Owner {
    pub is_pod: bool,
    /// When it was created, microseconds.
    pub created: i64,
    pub name: ObjectName,
}

/// What may differ from what was before.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Touched {
    /// Frontends.
    pub frontends: BTreeSet<FrontendKey>,
    /// Tables, their clients included.
    pub tables: BTreeSet<TableName>,
    /// Backends.
    pub backends: HashSet<BackendKey>,
}

impl Touched {
    /// Whether nothing may differ.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frontends.is_empty() && self.tables.is_empty() && self.backends.is_empty()
    }
}

/// How a frontend uses a table: its flags.
fn use_of(frontend: &super::DesiredFrontend) -> (TableName, u32) {
    (frontend.table.clone(), frontend.flags)
}

/// Frontends that lead to a table.
#[derive(Debug, Clone, Copy, Default)]
struct Users {
    all: usize,
    /// Those for the clients of ranges only.
    restricted: usize,
    /// Those with consistent hashing.
    consistent: usize,
}

impl Users {
    /// Counts a frontend with these flags.
    fn add(&mut self, flags: u32) {
        self.all += 1;
        self.restricted += usize::from(flags & FRONTEND_SOURCE_RANGES != 0);
        self.consistent += usize::from(flags & FRONTEND_MAGLEV != 0);
    }

    /// Counts a frontend with these flags no longer.
    fn remove(&mut self, flags: u32) {
        self.all = self.all.saturating_sub(1);
        self.restricted = self.restricted.saturating_sub(usize::from(flags & FRONTEND_SOURCE_RANGES != 0));
        self.consistent = self.consistent.saturating_sub(usize::from(flags & FRONTEND_MAGLEV != 0));
    }
}

/// What uses a backend.
#[derive(Debug, Clone, Copy, Default)]
struct Uses {
    tables: usize,
    /// Owners whose established connections may.
    lasting: usize,
}

impl Uses {
    /// Whether the backend is there, and then whether for established connections only.
    fn draining(self) -> Option<bool> {
        (self.tables > 0 || self.lasting > 0).then_some(self.tables == 0)
    }
}

/// All owners, and what they have together.
#[derive(Debug, Clone, Default)]
pub(super) struct Merged {
    pub desired: Desired,
    /// What each owner would have alone.
    alone: BTreeMap<Owner, Desired>,
    /// Names are unique among Services and among Pods.
    owners: BTreeMap<(bool, ObjectName), Owner>,
    claims: BTreeMap<FrontendKey, BTreeSet<Owner>>,
    contended: BTreeSet<FrontendKey>,
    owner_of: BTreeMap<TableName, Owner>,
    users: BTreeMap<TableName, Users>,
    uses: HashMap<BackendKey, Uses>,
    opted_out: BTreeMap<Address, usize>,
}

impl Merged {
    /// Takes over what an owner would have alone; nothing when it is gone. `touched` grows by what may differ.
    pub fn set(
        &mut self,
        (is_pod, name): (bool, &ObjectName),
        new: Option<(i64, Desired)>,
        touched: &mut Touched,
    ) {
        let old = self.owners.remove(&(is_pod, name.clone())).and_then(|owner| {
            let alone = self.alone.remove(&owner)?;
            Some((owner, alone))
        });
        let mut tables = BTreeSet::new();
        let mut frontends = BTreeSet::new();
        if let Some((owner, alone)) = &old {
            self.withdraw(owner, alone, touched);
            frontends.extend(alone.frontends.keys().copied());
            tables.extend(alone.tables.keys().cloned());
        }
        if let Some((created, alone)) = new {
            let owner = Owner { is_pod, created, name: name.clone() };
            self.put(&owner, &alone);
            frontends.extend(alone.frontends.keys().copied());
            tables.extend(alone.tables.keys().cloned());
            self.owners.insert((is_pod, name.clone()), owner.clone());
            self.alone.insert(owner, alone);
        }
        for key in &frontends {
            self.settle(*key, &mut tables);
        }
        for table in &tables {
            self.refresh(table, touched);
        }
        // After the tables: most of these are in one.
        let own = self.owners.get(&(is_pod, name.clone())).and_then(|owner| self.alone.get(owner));
        let lasting: Vec<BackendKey> = own.into_iter().flat_map(|own| own.backends.keys().copied()).collect();
        for backend in lasting {
            self.use_backend(backend, touched, |uses| uses.lasting += 1);
        }
        touched.frontends.extend(frontends);
        touched.tables.extend(tables);
        self.tell(name, is_pod);
    }

    /// Takes back what counts by owner.
    fn withdraw(&mut self, owner: &Owner, alone: &Desired, touched: &mut Touched) {
        for key in alone.frontends.keys() {
            if let Some(owners) = self.claims.get_mut(key) {
                owners.remove(owner);
                if owners.is_empty() {
                    self.claims.remove(key);
                }
            }
        }
        for table in alone.tables.keys() {
            self.owner_of.remove(table);
        }
        for backend in alone.backends.keys() {
            self.use_backend(*backend, touched, |uses| uses.lasting = uses.lasting.saturating_sub(1));
        }
        for address in &alone.opted_out {
            if let Some(count) = self.opted_out.get_mut(address) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    self.opted_out.remove(address);
                    self.desired.opted_out.remove(address);
                }
            }
        }
        let without = &mut self.desired.without_local_endpoints;
        without.0 = without.0.saturating_sub(alone.without_local_endpoints.0);
        without.1 = without.1.saturating_sub(alone.without_local_endpoints.1);
    }

    /// Takes over what counts by owner.
    fn put(&mut self, owner: &Owner, alone: &Desired) {
        for key in alone.frontends.keys() {
            self.claims.entry(*key).or_default().insert(owner.clone());
        }
        for table in alone.tables.keys() {
            self.owner_of.insert(table.clone(), owner.clone());
        }
        for address in &alone.opted_out {
            *self.opted_out.entry(*address).or_default() += 1;
            self.desired.opted_out.insert(*address);
        }
        let without = &mut self.desired.without_local_endpoints;
        without.0 += alone.without_local_endpoints.0;
        without.1 += alone.without_local_endpoints.1;
    }

    /// Counts the uses of a backend. In a large cluster this is most of what the first list costs: the ordered map is left
    /// alone where the outcome is what it was.
    fn use_backend(&mut self, backend: BackendKey, touched: &mut Touched, change: impl FnOnce(&mut Uses)) {
        let (before, after) = match self.uses.entry(backend) {
            Entry::Occupied(mut entry) => {
                let before = entry.get().draining();
                change(entry.get_mut());
                let after = entry.get().draining();
                if after.is_none() {
                    entry.remove();
                }
                (before, after)
            }
            Entry::Vacant(entry) => {
                let mut uses = Uses::default();
                change(&mut uses);
                let after = uses.draining();
                if after.is_some() {
                    entry.insert(uses);
                }
                (None, after)
            }
        };
        if before == after {
            return;
        }
        match after {
            Some(draining) => self.desired.backends.insert(backend, draining),
            None => self.desired.backends.remove(&backend),
        };
        touched.backends.insert(backend);
    }

    /// Gives a frontend to the first who wants it; `tables` grows by those that it led or leads to.
    fn settle(&mut self, key: FrontendKey, tables: &mut BTreeSet<TableName>) {
        let claims = self.claims.get(&key);
        if claims.is_some_and(|owners| owners.len() > 1) && key.scope == SCOPE_CLUSTER {
            self.contended.insert(key);
        } else {
            self.contended.remove(&key);
        }
        let winner = claims.and_then(BTreeSet::first);
        let new = winner.and_then(|owner| self.alone.get(owner)?.frontends.get(&key)).cloned();
        let new_use = new.as_ref().map(use_of);
        let old = match new {
            Some(new) => self.desired.frontends.insert(key, new),
            None => self.desired.frontends.remove(&key),
        };
        let old_use = old.as_ref().map(use_of);
        if let Some((table, flags)) = new_use {
            self.users.entry(table.clone()).or_default().add(flags);
            tables.insert(table);
        }
        if let Some((table, flags)) = old_use {
            if let Some(users) = self.users.get_mut(&table) {
                users.remove(flags);
                if users.all == 0 {
                    self.users.remove(&table);
                }
            }
            tables.insert(table);
        }
    }

    /// Makes a table what its owner says, if a frontend leads to it.
    fn refresh(&mut self, name: &TableName, touched: &mut Touched) {
        let users = self.users.get(name).copied().unwrap_or_default();
        let alone = self.owner_of.get(name).filter(|_| users.all > 0).and_then(|owner| self.alone.get(owner));
        let ranges = alone.filter(|_| users.restricted > 0).and_then(|alone| alone.ranges.get(name)).cloned();
        let lookup =
            alone.filter(|_| users.consistent > 0).and_then(|alone| alone.lookups.get(name)).cloned();
        let new = alone.and_then(|alone| alone.tables.get(name)).cloned();
        match ranges {
            Some(ranges) => self.desired.ranges.insert(name.clone(), ranges),
            None => self.desired.ranges.remove(name),
        };
        match lookup {
            Some(lookup) => self.desired.lookups.insert(name.clone(), lookup),
            None => self.desired.lookups.remove(name),
        };
        let old = match &new {
            Some(new) => self.desired.tables.insert(name.clone(), new.clone()),
            None => self.desired.tables.remove(name),
        };
        if old == new {
            return;
        }
        // First those that come: a backend that stays is used all the time.
        for backend in new.into_iter().flatten() {
            self.use_backend(backend, touched, |uses| uses.tables += 1);
        }
        for backend in old.into_iter().flatten() {
            self.use_backend(backend, touched, |uses| uses.tables = uses.tables.saturating_sub(1));
        }
    }

    /// What is told of one owner, and of those who want the same.
    fn tell(&mut self, name: &ObjectName, is_pod: bool) {
        let owner = self.owners.get(&(is_pod, name.clone()));
        let check = owner.and_then(|owner| self.alone.get(owner)?.health_checks.get(name)).copied();
        if !is_pod {
            match check {
                Some(check) => self.desired.health_checks.insert(name.clone(), check),
                None => self.desired.health_checks.remove(name),
            };
        }
        let mut conflicts = Vec::new();
        for key in &self.contended {
            let mut owners = self.claims.get(key).into_iter().flatten();
            let Some(holder) = owners.next() else { continue };
            conflicts.extend(owners.map(|loser| Conflict {
                frontend: *key,
                holder: holder.name.clone(),
                loser: loser.name.clone(),
                loser_is_pod: loser.is_pod,
            }));
        }
        self.desired.conflicts = conflicts;
    }
}

#[cfg(test)]
mod tests;
