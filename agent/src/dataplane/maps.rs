//! Typed maps, and the seam between plans and the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use kelp_common::maps;
use kelp_common::{AffinityKey, AffinityValue, Backend, FrontendKey, FrontendValue, SlotKey, SourceRangeKey};
use kelp_model::plan::{Actual, MapOp};
use parking_lot::Mutex;

use super::DatapathError;
use super::kernel::maglev::Lookups;
use super::kernel::{Kernel, check_shape, failed};
use super::sys::{self, Plain};

/// A hash or array map with keys `K` and values `V`.
#[derive(Debug)]
pub struct Table<K, V> {
    name: &'static str,
    map: OwnedFd,
    layout: PhantomData<fn(K) -> V>,
}

impl<K: Plain, V: Plain> Table<K, V> {
    /// The map of this name.
    ///
    /// # Errors
    /// When the map is missing or has another layout.
    pub fn open(kernel: &Kernel, name: &'static str) -> Result<Self, DatapathError> {
        let map = kernel.map(name)?;
        check_shape::<K, V>(map.as_fd(), name)?;
        Ok(Self { name, map, layout: PhantomData })
    }

    /// The map of this name among the pins in `directory`, as an agent made them that may be gone; `None` when it is not
    /// there.
    ///
    /// # Errors
    /// When the map has another layout, or the caller may not open it.
    pub fn open_pin(directory: &Path, name: &'static str) -> Result<Option<Self>, DatapathError> {
        let map = match sys::open_pin(&directory.join("maps").join(name)) {
            Ok(map) => map,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(format!("open the map {name}"))(error)),
        };
        check_shape::<K, V>(map.as_fd(), name)?;
        Ok(Some(Self { name, map, layout: PhantomData }))
    }

    /// The map's descriptor.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }

    /// Reads an entry.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn get(&self, key: &K) -> Result<Option<V>, DatapathError> {
        sys::map_lookup(self.map.as_fd(), key).map_err(failed(format!("read the map {}", self.name)))
    }

    /// Writes an entry.
    ///
    /// # Errors
    /// When the map is full or the kernel refuses.
    pub fn put(&self, key: &K, value: &V) -> Result<(), DatapathError> {
        sys::map_update(self.map.as_fd(), key, value).map_err(|error| self.refused(error))
    }

    /// Writes many entries in their order. Where one is refused, those before it are written and those behind it are not.
    ///
    /// # Errors
    /// When the map is full or the kernel refuses an entry; its place is told.
    pub fn put_all(&self, keys: &[K], values: &[V]) -> Result<(), Refused> {
        sys::map_update_batch(self.map.as_fd(), keys, values)
            .map_err(|(done, error)| Refused { done, error: self.refused(error) })
    }

    fn refused(&self, error: std::io::Error) -> DatapathError {
        match error.raw_os_error() {
            Some(libc::E2BIG | libc::ENOSPC) => DatapathError::Full { map: self.name },
            _ => failed(format!("write the map {}", self.name))(error),
        }
    }

    /// Writes an entry unless it is there. Returns whether it was written.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn insert(&self, key: &K, value: &V) -> Result<bool, DatapathError> {
        sys::map_insert(self.map.as_fd(), key, value).map_err(failed(format!("write the map {}", self.name)))
    }

    /// The number of entries the map can hold.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn capacity(&self) -> Result<u32, DatapathError> {
        let shape = sys::map_shape(self.map.as_fd());
        shape.map(|(_, _, entries)| entries).map_err(failed(format!("look at the map {}", self.name)))
    }

    /// Removes an entry, if it is there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete(&self, key: &K) -> Result<(), DatapathError> {
        sys::map_delete(self.map.as_fd(), key).map_err(failed(format!("change the map {}", self.name)))
    }

    /// Removes entries of which `still` holds when they are looked at once more, right before; returns how many went. For
    /// maps that programs write: since the entries were found, others may have got their keys.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_if(&self, keys: &[K], still: impl Fn(&K, &V) -> bool) -> Result<usize, DatapathError> {
        let mut deleted = 0;
        for key in keys {
            if self.get(key)?.is_some_and(|value| still(key, &value)) {
                self.delete(key)?;
                deleted += 1;
            }
        }
        Ok(deleted)
    }

    /// Removes many entries, if they are there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_all(&self, keys: &[K]) -> Result<(), DatapathError> {
        self.delete_in_order(keys).map_err(|refused| refused.error)
    }

    /// [`Self::delete_all`], which tells how far it came.
    fn delete_in_order(&self, keys: &[K]) -> Result<(), Refused> {
        sys::map_delete_batch(self.map.as_fd(), keys).map_err(|(done, error)| Refused {
            done,
            error: failed(format!("change the map {}", self.name))(error),
        })
    }

    /// Visits every entry of a hash map.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn scan(&self, visit: impl FnMut(&K, &V)) -> Result<(), DatapathError> {
        sys::map_scan(self.map.as_fd(), visit).map_err(failed(format!("read the map {}", self.name)))
    }
}

/// An operation, or an entry, that was refused.
#[derive(Debug)]
pub struct Refused {
    /// How many before it were done. None behind it was.
    pub done: usize,
    /// Why.
    pub error: DatapathError,
}

/// The maps of services. Each operation can be repeated.
pub trait Datapath: Send + 'static {
    /// The content of the maps.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn read(&mut self) -> Result<Actual, DatapathError>;

    /// Executes operations in their order, those of one kind together.
    ///
    /// # Errors
    /// When a map is full or the kernel refuses: the first that was not executed is told, and none behind it was.
    fn apply(&mut self, ops: &[MapOp]) -> Result<(), Refused>;

    /// Forgets the clients of session affinity but those of these tables and backends.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn retain_clients(&mut self, keep: &Stickiness) -> Result<(), DatapathError>;
}

/// The tables with session affinity, and the backends that clients may stay with.
pub type Stickiness = BTreeMap<u32, BTreeSet<u32>>;

/// The maps in the kernel.
#[derive(Debug)]
pub struct KernelDatapath {
    frontends: Table<FrontendKey, FrontendValue>,
    slots: Table<SlotKey, u32>,
    backends: Table<u32, Backend>,
    ranges: Table<SourceRangeKey, u32>,
    lookups: Lookups,
    clients: Table<AffinityKey, AffinityValue>,
}

impl KernelDatapath {
    /// The maps of a loaded kernel side.
    ///
    /// # Errors
    /// When a map is missing or has another layout.
    pub fn open(kernel: &Kernel) -> Result<Self, DatapathError> {
        Ok(Self {
            frontends: Table::open(kernel, maps::FRONTENDS)?,
            slots: Table::open(kernel, maps::SLOTS)?,
            backends: Table::open(kernel, maps::BACKENDS)?,
            ranges: Table::open(kernel, maps::SOURCE_RANGES)?,
            lookups: Lookups::open(kernel)?,
            clients: Table::open(kernel, maps::AFFINITIES)?,
        })
    }

    /// Executes operations of one kind.
    fn apply_run(&self, ops: &[MapOp]) -> Result<(), Refused> {
        match ops.first() {
            None => Ok(()),
            Some(MapOp::PutBackend(..)) => put(&self.backends, ops, |op| match op {
                MapOp::PutBackend(id, backend) => Some((*id, *backend)),
                _ => None,
            }),
            Some(MapOp::PutSlot(..)) => put(&self.slots, ops, |op| match op {
                MapOp::PutSlot(key, backend) => Some((*key, *backend)),
                _ => None,
            }),
            Some(MapOp::PutLookup(..)) => {
                let tables: Vec<_> = ops
                    .iter()
                    .filter_map(|op| match op {
                        MapOp::PutLookup(table, lookup) => Some((*table, lookup)),
                        _ => None,
                    })
                    .collect();
                self.lookups.put(&tables)
            }
            Some(MapOp::PutRange(_)) => put(&self.ranges, ops, |op| match op {
                MapOp::PutRange(key) => Some((*key, 1)),
                _ => None,
            }),
            Some(MapOp::PutFrontend(..)) => put(&self.frontends, ops, |op| match op {
                MapOp::PutFrontend(key, value) => Some((*key, *value)),
                _ => None,
            }),
            Some(MapOp::DeleteFrontend(_)) => delete(&self.frontends, ops, |op| match op {
                MapOp::DeleteFrontend(key) => Some(*key),
                _ => None,
            }),
            Some(MapOp::DeleteRange(_)) => delete(&self.ranges, ops, |op| match op {
                MapOp::DeleteRange(key) => Some(*key),
                _ => None,
            }),
            Some(MapOp::DeleteLookup(_)) => {
                let tables: Vec<u32> = ops
                    .iter()
                    .filter_map(|op| match op {
                        MapOp::DeleteLookup(table) => Some(*table),
                        _ => None,
                    })
                    .collect();
                self.lookups.delete(&tables)
            }
            Some(MapOp::DeleteSlot(_)) => delete(&self.slots, ops, |op| match op {
                MapOp::DeleteSlot(key) => Some(*key),
                _ => None,
            }),
            Some(MapOp::DeleteBackend(_)) => delete(&self.backends, ops, |op| match op {
                MapOp::DeleteBackend(id) => Some(*id),
                _ => None,
            }),
        }
    }
}

/// Writes the entries of operations that are all of one kind.
fn put<K: Plain, V: Plain>(
    table: &Table<K, V>,
    ops: &[MapOp],
    entry: impl Fn(&MapOp) -> Option<(K, V)>,
) -> Result<(), Refused> {
    let (keys, values): (Vec<K>, Vec<V>) = ops.iter().filter_map(entry).unzip();
    table.put_all(&keys, &values)
}

/// Removes the entries of operations that are all of one kind.
fn delete<K: Plain, V: Plain>(
    table: &Table<K, V>,
    ops: &[MapOp],
    key: impl Fn(&MapOp) -> Option<K>,
) -> Result<(), Refused> {
    let keys: Vec<K> = ops.iter().filter_map(key).collect();
    table.delete_in_order(&keys)
}

fn content<K: Plain + Ord, V: Plain>(table: &Table<K, V>) -> Result<BTreeMap<K, V>, DatapathError> {
    let mut entries = Vec::new();
    table.scan(|key, value| entries.push((*key, *value)))?;
    // Sorted first: entry by entry, in the order of a hash map, a large tree would take most of a restart.
    Ok(entries.into_iter().collect())
}

impl Datapath for KernelDatapath {
    fn read(&mut self) -> Result<Actual, DatapathError> {
        Ok(Actual {
            frontends: content(&self.frontends)?,
            slots: content(&self.slots)?,
            backends: content(&self.backends)?,
            ranges: content(&self.ranges)?.into_keys().collect(),
            lookups: self.lookups.read()?,
        })
    }

    fn apply(&mut self, ops: &[MapOp]) -> Result<(), Refused> {
        let mut done = 0;
        for run in ops.chunk_by(MapOp::is_like) {
            self.apply_run(run).map_err(|refused| Refused { done: done + refused.done, ..refused })?;
            done += run.len();
        }
        Ok(())
    }

    fn retain_clients(&mut self, keep: &Stickiness) -> Result<(), DatapathError> {
        let mut stale = Vec::new();
        self.clients.scan(|key, value| {
            if !keep.get(&key.table).is_some_and(|backends| backends.contains(&value.backend)) {
                stale.push(*key);
            }
        })?;
        self.clients.delete_all(&stale)
    }
}

/// Maps in memory.
#[derive(Debug, Clone, Default)]
pub struct FakeDatapath {
    /// The content; shared by clones.
    pub content: Arc<Mutex<Actual>>,
    /// What was asked for last of the clients of session affinity.
    pub clients: Arc<Mutex<Stickiness>>,
    /// How many backends, slots and frontends there may be; 0 is no limit.
    pub limits: (usize, usize, usize),
    /// How many tables of consistent hashing there may be.
    pub lookups: Option<usize>,
}

impl FakeDatapath {
    /// An error when an entry is one too many.
    fn room(&self, op: &MapOp) -> Result<(), DatapathError> {
        let content = self.content.lock();
        let (map, limit, length, known) = match op {
            MapOp::PutBackend(id, _) => {
                (maps::BACKENDS, self.limits.0, content.backends.len(), content.backends.contains_key(id))
            }
            MapOp::PutSlot(key, _) => {
                (maps::SLOTS, self.limits.1, content.slots.len(), content.slots.contains_key(key))
            }
            MapOp::PutFrontend(key, _) => {
                (maps::FRONTENDS, self.limits.2, content.frontends.len(), content.frontends.contains_key(key))
            }
            MapOp::PutLookup(table, _) => {
                let Some(limit) = self.lookups else { return Ok(()) };
                let full = content.lookups.len() >= limit && !content.lookups.contains_key(table);
                return if full { Err(DatapathError::Full { map: maps::MAGLEV }) } else { Ok(()) };
            }
            _ => return Ok(()),
        };
        if limit != 0 && length >= limit && !known { Err(DatapathError::Full { map }) } else { Ok(()) }
    }
}

impl Datapath for FakeDatapath {
    fn read(&mut self) -> Result<Actual, DatapathError> {
        Ok(self.content.lock().clone())
    }

    fn apply(&mut self, ops: &[MapOp]) -> Result<(), Refused> {
        for (done, op) in ops.iter().enumerate() {
            self.room(op).map_err(|error| Refused { done, error })?;
            self.content.lock().apply(op);
        }
        Ok(())
    }

    fn retain_clients(&mut self, keep: &Stickiness) -> Result<(), DatapathError> {
        self.clients.lock().clone_from(keep);
        Ok(())
    }
}

/// Maps that fail after a number of operations, once.
#[derive(Debug, Clone)]
pub struct FaultyDatapath<D> {
    /// The maps behind.
    pub inner: D,
    /// Operations that still succeed; `None` after the failure.
    pub successes: Option<usize>,
}

impl<D: Datapath> Datapath for FaultyDatapath<D> {
    fn read(&mut self) -> Result<Actual, DatapathError> {
        self.inner.read()
    }

    fn apply(&mut self, ops: &[MapOp]) -> Result<(), Refused> {
        match self.successes {
            Some(left) if left < ops.len() => {
                self.successes = None;
                self.inner.apply(&ops[..left])?;
                let error = failed("write a map")(std::io::Error::from_raw_os_error(libc::ENOMEM));
                Err(Refused { done: left, error })
            }
            Some(left) => {
                self.successes = Some(left - ops.len());
                self.inner.apply(ops)
            }
            None => self.inner.apply(ops),
        }
    }

    fn retain_clients(&mut self, keep: &Stickiness) -> Result<(), DatapathError> {
        self.inner.retain_clients(keep)
    }
}
