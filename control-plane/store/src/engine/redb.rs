//! Records in a redb file.

use super::{Batch, Engine, EngineError};
use crate::record::RevKey;
use bytes::Bytes;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use std::path::{Path, PathBuf};

const RECORDS: TableDefinition<(i64, u32), &[u8]> = TableDefinition::new("records");
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");

/// Keeps records in one redb file.
#[derive(Debug)]
pub struct RedbEngine {
    database: Database,
    path: PathBuf,
}

impl RedbEngine {
    /// Opens or creates `store.redb` in `dir`, with a page cache of `cache_bytes`.
    pub fn open(dir: &Path, cache_bytes: usize) -> Result<Self, EngineError> {
        let path = dir.join("store.redb");
        let database = Database::builder().set_cache_size(cache_bytes).create(&path).map_err(failed)?;
        let write = database.begin_write().map_err(failed)?;
        write.open_table(RECORDS).map_err(failed)?;
        write.open_table(META).map_err(failed)?;
        write.commit().map_err(failed)?;
        Ok(RedbEngine { database, path })
    }
}

fn failed(error: impl Into<redb::Error>) -> EngineError {
    match error.into() {
        redb::Error::Io(error) => error.into(),
        other => EngineError::Failed(other.to_string()),
    }
}

impl Engine for RedbEngine {
    fn commit(&self, batch: &Batch) -> Result<(), EngineError> {
        let mut write = self.database.begin_write().map_err(failed)?;
        write
            .set_durability(Durability::Immediate)
            .map_err(|error| EngineError::Failed(error.to_string()))?;
        {
            let mut records = write.open_table(RECORDS).map_err(failed)?;
            for (at, record) in &batch.puts {
                records.insert((at.main, at.sub), record.as_ref()).map_err(failed)?;
            }
            for at in &batch.removes {
                records.remove((at.main, at.sub)).map_err(failed)?;
            }
            let mut meta = write.open_table(META).map_err(failed)?;
            for (name, value) in &batch.meta {
                match value {
                    Some(value) => meta.insert(name.as_str(), value.as_ref()).map_err(failed)?,
                    None => meta.remove(name.as_str()).map_err(failed)?,
                };
            }
        }
        write.commit().map_err(failed)
    }

    fn get(&self, at: RevKey) -> Result<Option<Bytes>, EngineError> {
        let read = self.database.begin_read().map_err(failed)?;
        let records = read.open_table(RECORDS).map_err(failed)?;
        let found = records.get((at.main, at.sub)).map_err(failed)?;
        Ok(found.map(|record| Bytes::copy_from_slice(record.value())))
    }

    fn scan(&self, visit: &mut dyn FnMut(RevKey, Bytes)) -> Result<(), EngineError> {
        let read = self.database.begin_read().map_err(failed)?;
        let records = read.open_table(RECORDS).map_err(failed)?;
        for row in records.iter().map_err(failed)? {
            let (at, record) = row.map_err(failed)?;
            let (main, sub) = at.value();
            visit(RevKey { main, sub }, Bytes::copy_from_slice(record.value()));
        }
        Ok(())
    }

    fn meta(&self) -> Result<Vec<(String, Bytes)>, EngineError> {
        let read = self.database.begin_read().map_err(failed)?;
        let meta = read.open_table(META).map_err(failed)?;
        let mut all = Vec::new();
        for row in meta.iter().map_err(failed)? {
            let (name, value) = row.map_err(failed)?;
            all.push((name.value().to_owned(), Bytes::copy_from_slice(value.value())));
        }
        Ok(all)
    }

    fn disk_bytes(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |meta| meta.len())
    }
}
