//! Typed maps, and the seam between plans and the kernel.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use kelp_common::maps;
use kelp_common::{Backend, FrontendKey, FrontendValue, SlotKey};
use kelp_model::plan::{Actual, MapOp};
use parking_lot::Mutex;

use super::DatapathError;
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
        sys::map_update(self.map.as_fd(), key, value).map_err(failed(format!("write the map {}", self.name)))
    }

    /// Removes an entry, if it is there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete(&self, key: &K) -> Result<(), DatapathError> {
        sys::map_delete(self.map.as_fd(), key).map_err(failed(format!("change the map {}", self.name)))
    }

    /// Removes many entries, if they are there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_all(&self, keys: &[K]) -> Result<(), DatapathError> {
        sys::map_delete_batch(self.map.as_fd(), keys).map_err(failed(format!("change the map {}", self.name)))
    }

    /// Visits every entry of a hash map.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn scan(&self, visit: impl FnMut(&K, &V)) -> Result<(), DatapathError> {
        sys::map_scan(self.map.as_fd(), visit).map_err(failed(format!("read the map {}", self.name)))
    }
}

/// The maps of services. Each operation can be repeated.
pub trait Datapath: Send + 'static {
    /// The content of the maps.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn read(&mut self) -> Result<Actual, DatapathError>;

    /// Executes one operation.
    ///
    /// # Errors
    /// When a map is full or the kernel refuses.
    fn apply(&mut self, op: &MapOp) -> Result<(), DatapathError>;
}

/// The maps in the kernel.
#[derive(Debug)]
pub struct KernelDatapath {
    frontends: Table<FrontendKey, FrontendValue>,
    slots: Table<SlotKey, u32>,
    backends: Table<u32, Backend>,
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
        })
    }
}

fn content<K: Plain + Ord, V: Plain>(table: &Table<K, V>) -> Result<BTreeMap<K, V>, DatapathError> {
    let mut entries = BTreeMap::new();
    table.scan(|key, value| {
        entries.insert(*key, *value);
    })?;
    Ok(entries)
}

impl Datapath for KernelDatapath {
    fn read(&mut self) -> Result<Actual, DatapathError> {
        Ok(Actual {
            frontends: content(&self.frontends)?,
            slots: content(&self.slots)?,
            backends: content(&self.backends)?,
        })
    }

    fn apply(&mut self, op: &MapOp) -> Result<(), DatapathError> {
        match op {
            MapOp::PutBackend(id, backend) => self.backends.put(id, backend),
            MapOp::PutSlot(key, backend) => self.slots.put(key, backend),
            MapOp::PutFrontend(key, value) => self.frontends.put(key, value),
            MapOp::DeleteFrontend(key) => self.frontends.delete(key),
            MapOp::DeleteSlot(key) => self.slots.delete(key),
            MapOp::DeleteBackend(id) => self.backends.delete(id),
        }
    }
}

/// Maps in memory.
#[derive(Debug, Clone, Default)]
pub struct FakeDatapath {
    /// The content; shared by clones.
    pub content: Arc<Mutex<Actual>>,
}

impl Datapath for FakeDatapath {
    fn read(&mut self) -> Result<Actual, DatapathError> {
        Ok(self.content.lock().clone())
    }

    fn apply(&mut self, op: &MapOp) -> Result<(), DatapathError> {
        self.content.lock().apply(op);
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

    fn apply(&mut self, op: &MapOp) -> Result<(), DatapathError> {
        match self.successes.as_mut() {
            Some(0) => {
                self.successes = None;
                Err(failed("write a map")(std::io::Error::from_raw_os_error(libc::E2BIG)))
            }
            Some(left) => {
                *left -= 1;
                self.inner.apply(op)
            }
            None => self.inner.apply(op),
        }
    }
}
