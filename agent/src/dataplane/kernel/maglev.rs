//! Tables of consistent hashing: a map of maps, from a slot table's id to an array of places. A table is filled before it
//! is put in the place of the former one, which takes one step: no packet meets half a table.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use kelp_common::maglev::{Row, SIZES, rows};
use kelp_common::maps;
use kelp_model::maglev::{Maglev, fingerprint_of};

use super::{Kernel, failed};
use crate::dataplane::DatapathError;
use crate::dataplane::maps::Refused;
use crate::dataplane::sys::{self, MapKind, query};

/// Tables that are made at once: each is a descriptor until it is in the map of maps. (The kernel waits once for each call
/// that changes a map of maps, until no program uses what was there: together they wait once.)
const TOGETHER: usize = 64;

/// Makes the map of maps and pins it, if there is none. The object declares its keys and values only: the loader does not
/// know how to make it.
pub fn ensure(directory: &Path, entries: u32) -> Result<(), DatapathError> {
    let pin = directory.join(maps::MAGLEV);
    if pin.exists() {
        return Ok(());
    }
    let make = || -> io::Result<()> {
        let inner = sys::map_create(MapKind::Rows, "maglev", rows(SIZES.0), None)?;
        let outer = sys::map_create(MapKind::Maps, maps::MAGLEV, entries, Some(inner.as_fd()))?;
        sys::pin(outer.as_fd(), &pin)
    };
    make().map_err(failed(format!("make the map {}", maps::MAGLEV)))
}

/// Takes over the tables of a map of maps that another replaces.
pub fn copy(old: BorrowedFd<'_>, new: BorrowedFd<'_>) -> io::Result<()> {
    let mut tables = Vec::new();
    sys::map_scan(old, |table: &u32, id: &u32| tables.push((*table, *id)))?;
    for (table, id) in tables {
        let Some(inner) = query::map(id)? else { continue };
        match sys::map_insert(new, &table, &inner.as_raw_fd().cast_unsigned()) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC)) => return Ok(()),
            result => result.map(drop)?,
        }
    }
    Ok(())
}

/// The tables in the kernel.
#[derive(Debug)]
pub struct Lookups {
    outer: OwnedFd,
}

impl Lookups {
    /// The tables of a loaded kernel side.
    ///
    /// # Errors
    /// When the map is missing.
    pub fn open(kernel: &Kernel) -> Result<Self, DatapathError> {
        Ok(Self { outer: kernel.map(maps::MAGLEV)? })
    }

    /// What each table was made of.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn read(&self) -> Result<BTreeMap<u32, u64>, DatapathError> {
        let read = || -> io::Result<BTreeMap<u32, u64>> {
            let mut ids = Vec::new();
            sys::map_scan(self.outer.as_fd(), |table: &u32, id: &u32| ids.push((*table, *id)))?;
            let mut found = BTreeMap::new();
            for (table, id) in ids {
                // One that is replaced at this moment has gone.
                let Some(inner) = query::map(id)? else { continue };
                let header: Row = sys::map_lookup(inner.as_fd(), &0_u32)?.unwrap_or_default();
                found.insert(table, fingerprint_of(&header));
            }
            Ok(found)
        };
        read().map_err(failed(format!("read the map {}", maps::MAGLEV)))
    }

    /// Makes tables and puts them in place, in their order.
    ///
    /// # Errors
    /// When there is no room, or the kernel refuses; the place of the first that is not there is told.
    pub fn put(&self, tables: &[(u32, &Arc<Maglev>)]) -> Result<(), Refused> {
        let mut done = 0;
        for some in tables.chunks(TOGETHER) {
            let mut inner = Vec::new();
            let mut refused = None;
            for (_, table) in some {
                match made(table) {
                    Ok(map) => inner.push(map),
                    Err(error) => {
                        refused = Some(error);
                        break;
                    }
                }
            }
            let keys: Vec<u32> = some.iter().map(|(table, _)| *table).collect();
            let values: Vec<u32> = inner.iter().map(|map| map.as_raw_fd().cast_unsigned()).collect();
            let written = sys::map_update_batch(self.outer.as_fd(), &keys, &values);
            let (before, error) = match (written, refused) {
                (Err((before, error)), _) => (before, error),
                (Ok(()), Some(error)) => (inner.len(), error),
                (Ok(()), None) => {
                    done += some.len();
                    continue;
                }
            };
            let error = match error.raw_os_error() {
                Some(libc::E2BIG | libc::ENOSPC) => DatapathError::Full { map: maps::MAGLEV },
                _ => failed(format!("write the map {}", maps::MAGLEV))(error),
            };
            return Err(Refused { done: done + before, error });
        }
        Ok(())
    }

    /// Removes tables, if they are there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete(&self, tables: &[u32]) -> Result<(), Refused> {
        sys::map_delete_batch(self.outer.as_fd(), tables).map_err(|(done, error)| Refused {
            done,
            error: failed(format!("change the map {}", maps::MAGLEV))(error),
        })
    }
}

/// A table, filled.
fn made(table: &Maglev) -> io::Result<OwnedFd> {
    let rows = table.rows();
    let map = sys::map_create(MapKind::Rows, "maglev", rows.len() as u32, None)?;
    let keys: Vec<u32> = (0..rows.len() as u32).collect();
    sys::map_update_batch(map.as_fd(), &keys, &rows).map_err(|(_, error)| error)?;
    Ok(map)
}
