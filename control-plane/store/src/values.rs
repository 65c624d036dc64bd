//! Values by place in history: a bounded cache of recent ones over the engine.

use crate::engine::Engine;
use crate::index::Entry;
use crate::record::{Record, RevKey};
use crate::{KeyValue, StoreError};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

/// Reads records.
pub(crate) struct Values {
    engine: Arc<dyn Engine>,
    dir: PathBuf,
    cache: Mutex<Cache>,
}

/// First in, first out: what was written last is what watchers and the next writer of a key read.
struct Cache {
    records: HashMap<RevKey, Bytes>,
    order: VecDeque<RevKey>,
    bytes: usize,
    max_bytes: usize,
}

impl Values {
    pub(crate) fn new(engine: Arc<dyn Engine>, dir: PathBuf, max_bytes: usize) -> Self {
        let cache = Cache { records: HashMap::new(), order: VecDeque::new(), bytes: 0, max_bytes };
        Values { engine, dir, cache: Mutex::new(cache) }
    }

    /// Remembers records that have just become durable.
    pub(crate) fn remember<'a>(&self, records: impl Iterator<Item = (RevKey, &'a Bytes)>) {
        let mut cache = self.cache.lock();
        for (at, record) in records {
            cache.insert(at, record.clone());
        }
    }

    /// Forgets records that were removed.
    pub(crate) fn forget(&self, removed: &[RevKey]) {
        let mut cache = self.cache.lock();
        for at in removed {
            if let Some(record) = cache.records.remove(at) {
                cache.bytes -= record.len();
            }
        }
    }

    /// The record if it is at hand.
    pub(crate) fn cached(&self, at: RevKey) -> Option<Bytes> {
        self.cache.lock().records.get(&at).cloned()
    }

    /// The record, read from the engine if need be (blocks); `None`: it was compacted away.
    pub(crate) fn record(&self, at: RevKey) -> Result<Option<Bytes>, StoreError> {
        match self.cached(at) {
            Some(record) => Ok(Some(record)),
            None => self.engine.get(at).map_err(|error| StoreError::from_engine(error, &self.dir)),
        }
    }

    /// The key with its value (blocks); `None`: it was compacted away.
    pub(crate) fn key_value(&self, at: RevKey) -> Result<Option<KeyValue>, StoreError> {
        self.record(at)?.map(|record| self.decode(at, &record)).transpose()
    }

    pub(crate) fn decode(&self, at: RevKey, record: &Bytes) -> Result<KeyValue, StoreError> {
        match Record::decode(record) {
            Some(record) => Ok(record.into_kv(at.main)),
            None => Err(StoreError::Corrupt {
                path: self.dir.display().to_string(),
                detail: format!("the record of revision {}.{} cannot be decoded", at.main, at.sub),
            }),
        }
    }
}

impl Cache {
    fn insert(&mut self, at: RevKey, record: Bytes) {
        self.bytes += record.len();
        if let Some(old) = self.records.insert(at, record) {
            self.bytes -= old.len();
        } else {
            self.order.push_back(at);
        }
        while self.bytes > self.max_bytes {
            let Some(oldest) = self.order.pop_front() else { break };
            if let Some(record) = self.records.remove(&oldest) {
                self.bytes -= record.len();
            }
        }
        // Forgotten records leave their place in the order behind.
        if self.order.len() > 64 + 2 * self.records.len() {
            let records = &self.records;
            self.order.retain(|at| records.contains_key(at));
        }
    }
}

/// A key without its value.
pub(crate) fn bare(key: Bytes, entry: &Entry) -> KeyValue {
    KeyValue {
        key,
        value: Bytes::new(),
        create_revision: entry.create,
        mod_revision: entry.at.main,
        version: entry.version,
        lease: entry.lease,
    }
}
