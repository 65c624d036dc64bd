//! The seam to what keeps bytes: records by revision and a few named facts.
//!
//! Real: [`LogEngine`]. Fake: [`MemoryEngine`]. Faulty: [`FaultyEngine`], which fails at a chosen step.

mod faulty;
mod log;
mod memory;

pub use faulty::{Fault, FaultyEngine};
pub use log::LogEngine;
pub use memory::MemoryEngine;

use crate::record::RevKey;
use bytes::Bytes;

/// What one commit changes, all of it or nothing.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// New records, in the order of history.
    pub puts: Vec<(RevKey, Bytes)>,
    /// Records that no reader needs any more. They may still be there after a restart.
    pub removes: Vec<RevKey>,
    /// Named facts to set, or to remove with `None`.
    pub meta: Vec<(String, Option<Bytes>)>,
}

impl Batch {
    /// Nothing would change.
    pub fn is_empty(&self) -> bool {
        self.puts.is_empty() && self.removes.is_empty() && self.meta.is_empty()
    }
}

/// Keeps records durably. Calls may block; [`Engine::commit`] and [`Engine::maintain`] come from one thread, the rest
/// from any.
pub trait Engine: Send + Sync + 'static {
    /// Applies a batch; durable when it returns. After an error nothing of the batch is there, now or after a
    /// restart, and reads go on.
    fn commit(&self, batch: &Batch) -> Result<(), EngineError>;

    /// The record at a place in history.
    fn get(&self, at: RevKey) -> Result<Option<Bytes>, EngineError>;

    /// Visits all records in the order of history.
    fn scan(&self, visit: &mut dyn FnMut(RevKey, Bytes)) -> Result<(), EngineError>;

    /// All named facts.
    fn meta(&self) -> Result<Vec<(String, Bytes)>, EngineError>;

    /// Does one bounded step of giving space back; `true` when there is more to do.
    fn maintain(&self) -> Result<bool, EngineError> {
        Ok(false)
    }

    /// Bytes that the engine occupies on disk.
    fn disk_bytes(&self) -> u64;
}

/// What can go wrong in an engine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The disk, or the quota on it, is full.
    #[error("no space left on device")]
    NoSpace,
    /// The files are not what was written.
    #[error("{file} is damaged: {detail}")]
    Corrupt {
        /// The damaged file.
        file: String,
        /// What is wrong with it.
        detail: String,
    },
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

impl From<std::io::Error> for EngineError {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => EngineError::NoSpace,
            _ => EngineError::Failed(error.to_string()),
        }
    }
}
