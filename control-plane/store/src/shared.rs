//! What the writer, the readers and the watchers of one store share.

use crate::StoreError;
use crate::engine::{Engine, EngineError};
use crate::hub::Hub;
use crate::index::Index;
use crate::lease::Leases;
use crate::queue::Queue;
use crate::values::Values;
use parking_lot::{Mutex, RwLock};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Lock order: `state`, then `leases`, then the hub's. Only the writer thread takes `state` for writing, and never
/// while it waits for the disk.
pub(crate) struct Shared {
    pub state: RwLock<Index>,
    pub leases: Mutex<Leases>,
    pub values: Values,
    pub hub: Arc<Hub>,
    pub engine: Arc<dyn Engine>,
    pub queue: Queue,
    /// Snapshots being taken: no record is removed meanwhile.
    pub pins: AtomicUsize,
    pub dir: PathBuf,
}

impl Shared {
    pub(crate) fn engine_error(&self, error: EngineError) -> StoreError {
        StoreError::from_engine(error, &self.dir)
    }

    /// Keeps all records until the pin is dropped.
    pub(crate) fn pin(self: &Arc<Self>) -> Pin {
        self.pins.fetch_add(1, Ordering::SeqCst);
        Pin(self.clone())
    }
}

/// Keeps records from being removed.
pub(crate) struct Pin(Arc<Shared>);

impl Drop for Pin {
    fn drop(&mut self) {
        self.0.pins.fetch_sub(1, Ordering::SeqCst);
        self.0.queue.poke();
    }
}

impl StoreError {
    pub(crate) fn from_engine(error: EngineError, dir: &Path) -> Self {
        match error {
            EngineError::NoSpace => StoreError::NoSpace { path: dir.display().to_string() },
            EngineError::Corrupt { file, detail } => StoreError::Corrupt { path: file, detail },
            EngineError::Failed(detail) => StoreError::Engine(detail),
        }
    }
}
