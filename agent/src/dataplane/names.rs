//! Writes the names of Services and Pods beside the maps that hold them, for those who look at the maps; see
//! [`super::view`]. A name that cannot be written costs nobody a connection: it is told in the log and tried again.

use std::collections::{BTreeMap, BTreeSet};

use kelp_common::{Address, PodName, PolicyNames, ServiceName, maps, name};
use kelp_model::plan::Ids;
use kelp_model::policy::TablePolicies;
use kelp_model::service::{ObjectName, TableName};

use super::DatapathError;
use super::kernel::Kernel;
use super::maps::Table;
use super::sys::Plain;

// SAFETY: an array of bytes: no padding, and every bit pattern is a value.
unsafe impl Plain for ServiceName {}
// SAFETY: as above.
unsafe impl Plain for PodName {}
// SAFETY: as above.
unsafe impl Plain for PolicyNames {}

/// The names of the tables of slots.
#[derive(Debug)]
pub struct ServiceNames {
    map: Table<u32, ServiceName>,
    /// What the map holds; `None` when that is not known.
    known: Option<BTreeMap<TableName, u32>>,
}

/// The name of a table, as it is kept.
fn service_name(table: &TableName) -> ServiceName {
    ServiceName::of(&[&table.service.namespace, &table.service.name, &table.port])
}

impl ServiceNames {
    /// The names in the maps of a loaded kernel side.
    ///
    /// # Errors
    /// When the map is missing or has another layout.
    pub fn open(kernel: &Kernel) -> Result<Self, DatapathError> {
        Ok(Self { map: Table::open(kernel, maps::SERVICE_NAMES)?, known: None })
    }

    /// Takes over the ids of tables; only those in `touched` can have changed, if it is given.
    pub fn follow(&mut self, ids: &Ids, touched: Option<&BTreeSet<TableName>>) {
        let result = match (&mut self.known, touched) {
            (Some(known), Some(touched)) => change(&self.map, known, ids, touched),
            _ => self.write_all(ids),
        };
        if let Err(error) = result {
            tracing::debug!(error = %super::chain(&error), "names of services not written");
            self.known = None;
        }
    }

    fn write_all(&mut self, ids: &Ids) -> Result<(), DatapathError> {
        let known: BTreeMap<TableName, u32> = ids.tables().map(|(name, id)| (name.clone(), id)).collect();
        let mut missing: BTreeMap<u32, ServiceName> =
            known.iter().map(|(table, id)| (*id, service_name(table))).collect();
        let mut stale = Vec::new();
        self.map.scan(|id, name| match missing.get(id) {
            Some(wanted) if wanted == name => {
                missing.remove(id);
            }
            Some(_) => {}
            None => stale.push(*id),
        })?;
        // Where batches do not work the kernel may show an entry twice.
        let used: BTreeSet<u32> = known.values().copied().collect();
        stale.retain(|id| !used.contains(id));
        self.map.delete_all(&stale)?;
        for (id, name) in &missing {
            self.map.put(id, name)?;
        }
        self.known = Some(known);
        Ok(())
    }
}

fn change(
    map: &Table<u32, ServiceName>,
    known: &mut BTreeMap<TableName, u32>,
    ids: &Ids,
    touched: &BTreeSet<TableName>,
) -> Result<(), DatapathError> {
    for table in touched {
        let (old, new) = (known.get(table).copied(), ids.table_id(table));
        if old == new {
            continue;
        }
        if let Some(old) = old {
            map.delete(&old)?;
            known.remove(table);
        }
        if let Some(new) = new {
            map.put(&new, &service_name(table))?;
            known.insert(table.clone(), new);
        }
    }
    Ok(())
}

/// The names of the node's pods.
#[derive(Debug)]
pub(super) struct PodNames(Table<Address, PodName>);

impl PodNames {
    pub fn open(kernel: &Kernel) -> Result<Self, DatapathError> {
        Ok(Self(Table::open(kernel, maps::POD_NAMES)?))
    }

    /// Names a pod by its addresses.
    pub fn attach(&self, addresses: &[Address], pod: &ObjectName) {
        let name = PodName::of(&[&pod.namespace, &pod.name]);
        for address in addresses {
            if let Err(error) = self.0.put(address, &name) {
                tracing::debug!(error = %super::chain(&error), %pod, "name of a pod not written");
            }
        }
    }

    /// Forgets pods by their addresses.
    pub fn detach(&self, addresses: &[Address]) {
        if let Err(error) = self.0.delete_all(addresses) {
            tracing::debug!(error = %super::chain(&error), "names of pods not removed");
        }
    }
}

/// The names of the tables of policies.
#[derive(Debug)]
pub(super) struct TableNames {
    map: Table<u64, PolicyNames>,
    /// Space and names of what the map holds; `None` when that is not known.
    known: Option<(u32, TablePolicies)>,
}

impl TableNames {
    pub fn open(kernel: &Kernel) -> Result<Self, DatapathError> {
        Ok(Self { map: Table::open(kernel, maps::POLICY_NAMES)?, known: None })
    }

    /// Writes the names of the tables of a space, and forgets all others of it; those of other spaces too, unless they are
    /// `in_use` still.
    pub fn follow(&mut self, space: u32, tables: TablePolicies, in_use: bool) {
        let known = self.known.take().filter(|(known, _)| *known == space);
        match self.write(space, &tables, known.as_ref().map(|(_, tables)| tables), in_use) {
            Ok(()) => self.known = (!in_use).then_some((space, tables)),
            Err(error) => tracing::debug!(error = %super::chain(&error), "names of policies not written"),
        }
    }

    fn write(
        &self,
        space: u32,
        tables: &TablePolicies,
        known: Option<&TablePolicies>,
        in_use: bool,
    ) -> Result<(), DatapathError> {
        let mut stale = Vec::new();
        match known {
            Some(known) => {
                let gone = known.keys().filter(|table| !tables.contains_key(table));
                stale.extend(gone.map(|table| name::policy_key(space, *table)));
            }
            None => self.map.scan(|key, _| {
                let (of, table) = ((key >> 32) as u32, *key as u32);
                let is_stale = if of == space { !tables.contains_key(&table) } else { !in_use };
                if is_stale {
                    stale.push(*key);
                }
            })?,
        }
        self.map.delete_all(&stale)?;
        for (table, policies) in tables {
            if known.and_then(|known| known.get(table)) == Some(policies) {
                continue;
            }
            let namespace = policies.first().map_or("", |policy| &*policy.namespace);
            let parts: Vec<&str> =
                std::iter::once(namespace).chain(policies.iter().map(|policy| &*policy.name)).collect();
            self.map.put(&name::policy_key(space, *table), &PolicyNames::of(&parts))?;
        }
        Ok(())
    }
}
