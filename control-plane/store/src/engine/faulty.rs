//! The faulty engine: another engine that fails at chosen steps.

use super::{Batch, Engine, EngineError};
use crate::record::RevKey;
use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::Arc;

/// Which step fails, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The n-th commit from now (0: the next) fails with this error.
    Commit(usize, EngineError),
    /// Every commit fails with this error until the faults are cleared.
    Commits(EngineError),
    /// Every commit that puts more than this many bytes of records fails with [`EngineError::NoSpace`].
    CommitsAbove(usize),
    /// The n-th read from now fails with this error.
    Read(usize, EngineError),
}

/// Passes everything to another engine until a [`Fault`] strikes.
#[derive(Debug)]
pub struct FaultyEngine<E> {
    inner: Arc<E>,
    faults: Arc<Mutex<Vec<Fault>>>,
}

impl<E> Clone for FaultyEngine<E> {
    fn clone(&self) -> Self {
        FaultyEngine { inner: self.inner.clone(), faults: self.faults.clone() }
    }
}

impl<E: Engine> FaultyEngine<E> {
    /// Wraps `inner`; clones share the faults and the data.
    pub fn new(inner: E) -> Self {
        FaultyEngine { inner: Arc::new(inner), faults: Arc::default() }
    }

    /// Adds a fault.
    pub fn inject(&self, fault: Fault) {
        self.faults.lock().push(fault);
    }

    /// Removes all faults.
    pub fn clear(&self) {
        self.faults.lock().clear();
    }

    /// Counts a step down in all faults of a kind and returns the error that is due.
    fn strike(
        &self,
        mut due: impl FnMut(&mut Fault) -> Option<(EngineError, bool)>,
    ) -> Result<(), EngineError> {
        let mut faults = self.faults.lock();
        for at in 0..faults.len() {
            if let Some((error, once)) = due(&mut faults[at]) {
                if once {
                    faults.remove(at);
                }
                return Err(error);
            }
        }
        Ok(())
    }
}

impl<E: Engine> Engine for FaultyEngine<E> {
    fn commit(&self, batch: &Batch) -> Result<(), EngineError> {
        let size: usize = batch.puts.iter().map(|(_, record)| record.len()).sum();
        self.strike(|fault| match fault {
            Fault::Commit(0, error) => Some((error.clone(), true)),
            Fault::Commit(left, _) => {
                *left -= 1;
                None
            }
            Fault::Commits(error) => Some((error.clone(), false)),
            Fault::CommitsAbove(limit) if size > *limit => Some((EngineError::NoSpace, false)),
            _ => None,
        })?;
        self.inner.commit(batch)
    }

    fn get(&self, at: RevKey) -> Result<Option<Bytes>, EngineError> {
        self.strike(|fault| match fault {
            Fault::Read(0, error) => Some((error.clone(), true)),
            Fault::Read(left, _) => {
                *left -= 1;
                None
            }
            _ => None,
        })?;
        self.inner.get(at)
    }

    fn scan(&self, visit: &mut dyn FnMut(RevKey, Bytes)) -> Result<(), EngineError> {
        self.inner.scan(visit)
    }

    fn meta(&self) -> Result<Vec<(String, Bytes)>, EngineError> {
        self.inner.meta()
    }

    fn maintain(&self) -> Result<bool, EngineError> {
        self.inner.maintain()
    }

    fn disk_bytes(&self) -> u64 {
        self.inner.disk_bytes()
    }
}
