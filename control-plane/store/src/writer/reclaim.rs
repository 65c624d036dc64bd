//! Giving back the space of compacted revisions, a small step at a time.

use crate::StoreError;
use crate::engine::Batch;
use crate::index::Index;
use crate::record::RevKey;
use crate::shared::Shared;
use bytes::Bytes;
use std::collections::VecDeque;

/// Keys that one step looks at: keeps the writer's turns, and the time readers wait for it, short.
const SWEEP_KEYS: usize = 512;
/// Records that one step removes.
const REMOVE: usize = 1024;

/// What is left to do after compactions.
#[derive(Default)]
pub(crate) struct Reclaim {
    sweep: Option<Sweep>,
    doomed: VecDeque<RevKey>,
    maintain: bool,
}

#[derive(Default)]
struct Sweep {
    cursor: Option<Bytes>,
    /// Compacted again meanwhile: one more round over all keys.
    again: bool,
}

/// Sweeps the whole index at once, when the store is opened.
pub(crate) fn sweep_all(index: &mut Index) -> Reclaim {
    let (doomed, _) = index.sweep(None, usize::MAX);
    Reclaim { sweep: None, doomed: doomed.into(), maintain: true }
}

impl Reclaim {
    /// A compaction was written.
    pub(crate) fn start(&mut self) {
        match &mut self.sweep {
            Some(sweep) => sweep.again = true,
            None => self.sweep = Some(Sweep::default()),
        }
    }

    pub(crate) fn has_work(&self) -> bool {
        self.sweep.is_some() || !self.doomed.is_empty() || self.maintain
    }

    /// Does one step: removes records, or looks for records to remove, or lets the engine tidy up.
    pub(crate) fn step(&mut self, shared: &Shared) -> Result<(), StoreError> {
        if !self.doomed.is_empty() {
            let count = self.doomed.len().min(REMOVE);
            let removes: Vec<_> = self.doomed.iter().take(count).copied().collect();
            let batch = Batch { removes, ..Batch::default() };
            shared.engine.commit(&batch).map_err(|error| shared.engine_error(error))?;
            shared.values.forget(&batch.removes);
            self.doomed.drain(..count);
            self.maintain = true;
        } else if let Some(sweep) = &mut self.sweep {
            let (dropped, cursor) = shared.state.write().sweep(sweep.cursor.as_ref(), SWEEP_KEYS);
            self.doomed.extend(dropped);
            sweep.cursor = cursor;
            if sweep.cursor.is_none() {
                self.sweep = sweep.again.then(Sweep::default);
            }
        } else if self.maintain {
            self.maintain = shared.engine.maintain().map_err(|error| shared.engine_error(error))?;
        }
        Ok(())
    }
}
