//! The fake engine: everything in memory, gone when dropped.

use super::{Batch, Engine, EngineError};
use crate::record::RevKey;
use bytes::Bytes;
use parking_lot::RwLock;
use std::collections::BTreeMap;

/// Keeps records in memory only.
#[derive(Debug, Default)]
pub struct MemoryEngine {
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    records: BTreeMap<RevKey, Bytes>,
    meta: BTreeMap<String, Bytes>,
}

impl Engine for MemoryEngine {
    fn commit(&self, batch: &Batch) -> Result<(), EngineError> {
        let mut state = self.state.write();
        for (at, record) in &batch.puts {
            state.records.insert(*at, record.clone());
        }
        for at in &batch.removes {
            state.records.remove(at);
        }
        for (name, value) in &batch.meta {
            match value {
                Some(value) => state.meta.insert(name.clone(), value.clone()),
                None => state.meta.remove(name),
            };
        }
        Ok(())
    }

    fn get(&self, at: RevKey) -> Result<Option<Bytes>, EngineError> {
        Ok(self.state.read().records.get(&at).cloned())
    }

    fn scan(&self, visit: &mut dyn FnMut(RevKey, Bytes)) -> Result<(), EngineError> {
        for (at, record) in &self.state.read().records {
            visit(*at, record.clone());
        }
        Ok(())
    }

    fn meta(&self) -> Result<Vec<(String, Bytes)>, EngineError> {
        Ok(self.state.read().meta.iter().map(|(name, value)| (name.clone(), value.clone())).collect())
    }

    fn disk_bytes(&self) -> u64 {
        0
    }
}
