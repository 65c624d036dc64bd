//! The policy maps in the kernel.

use kelp_common::{IdentityKey, PortKey, PrefixKey, RuleKey, maps};
use kelp_model::policy::{Op, Tables};

use crate::dataplane::DatapathError;
use crate::dataplane::kernel::Kernel;
use crate::dataplane::maps::Table;
use crate::dataplane::sys::Plain;

/// The maps but that of endpoints.
#[derive(Debug)]
pub struct PolicyMaps {
    identities: Table<IdentityKey, u32>,
    prefixes: Table<PrefixKey, u32>,
    rules: Table<RuleKey, u32>,
    ports: Table<PortKey, u32>,
    revision: Table<u32, u32>,
}

impl PolicyMaps {
    /// The maps of a loaded kernel side.
    ///
    /// # Errors
    /// When a map is missing or has another layout.
    pub fn open(kernel: &Kernel) -> Result<Self, DatapathError> {
        Ok(Self {
            identities: Table::open(kernel, maps::IDENTITIES)?,
            prefixes: Table::open(kernel, maps::PREFIXES)?,
            rules: Table::open(kernel, maps::RULES)?,
            ports: Table::open(kernel, maps::PORTS)?,
            revision: Table::open(kernel, maps::REVISION)?,
        })
    }

    /// Executes an operation; those on endpoints are not the maps'.
    ///
    /// # Errors
    /// When a map is full or the kernel refuses.
    pub fn apply(&self, op: &Op) -> Result<(), DatapathError> {
        match op {
            Op::PutPorts(key) => self.ports.put(key, &1),
            Op::PutRule(key, set) => self.rules.put(key, set),
            Op::PutIdentity(key, identity) => self.identities.put(key, identity),
            Op::PutPrefix(key, identity) => self.prefixes.put(key, identity),
            Op::DeleteIdentity(key) => self.identities.delete(key),
            Op::DeletePrefix(key) => self.prefixes.delete(key),
            Op::DeleteRule(key) => self.rules.delete(key),
            Op::DeletePorts(key) => self.ports.delete(key),
            Op::Revise => {
                let revision = self.revision.get(&0)?.unwrap_or(0);
                // 0 says that there never was a policy.
                self.revision.put(&0, &revision.wrapping_add(1).max(1))
            }
            Op::SetEndpoint(_) => Ok(()),
        }
    }

    /// Removes what is in other spaces.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn retain_space(&self, space: u32) -> Result<(), DatapathError> {
        remove(&self.identities, |key| key.space != space)?;
        remove(&self.prefixes, |key| key.network.space != space)?;
        remove(&self.rules, |key| key.space != space)?;
        remove(&self.ports, |key| key.number.space != space)
    }

    /// What the maps hold.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn read(&self) -> Result<Tables, DatapathError> {
        let mut tables = Tables { revision: self.revision.get(&0)?.unwrap_or(0), ..Tables::default() };
        self.identities.scan(|key, identity| {
            tables.identities.insert(*key, *identity);
        })?;
        self.prefixes.scan(|key, identity| {
            tables.prefixes.insert(*key, *identity);
        })?;
        self.rules.scan(|key, set| {
            tables.rules.insert(*key, *set);
        })?;
        self.ports.scan(|key, _| {
            tables.ports.insert(*key);
        })?;
        Ok(tables)
    }
}

fn remove<K: Plain, V: Plain>(table: &Table<K, V>, is_old: impl Fn(&K) -> bool) -> Result<(), DatapathError> {
    let mut old = Vec::new();
    table.scan(|key, _| {
        if is_old(key) {
            old.push(*key);
        }
    })?;
    table.delete_all(&old)
}
