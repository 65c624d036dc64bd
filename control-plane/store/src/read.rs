//! Reads that do not go through the writer.

use crate::index::Entry;
use crate::shared::Shared;
use crate::txn::{Evaluator, Pending};
use crate::values::bare;
use crate::view::View;
use crate::{KeyValue, RangeRequest, RangeResponse, StoreError, TxnRequest, TxnResponse};
use bytes::Bytes;
use std::sync::Arc;

/// Times a read starts over because a compaction overtook it.
const ATTEMPTS: usize = 16;

/// Reads a checked range.
pub(crate) async fn range(shared: &Arc<Shared>, req: &RangeRequest) -> Result<RangeResponse, StoreError> {
    for _ in 0..ATTEMPTS {
        let (revision, found) = {
            let state = shared.state.read();
            let view = View::of(&state);
            let at = view.readable(req.revision)?;
            (view.revision, view.find(req, at))
        };
        let answer = |kvs| RangeResponse { revision, kvs, more: found.more, count: found.count };
        if req.keys_only {
            return Ok(answer(found.keys.into_iter().map(|(key, entry)| bare(key, &entry)).collect()));
        }
        if let Some(kvs) = values(shared, found.keys).await? {
            return Ok(answer(kvs));
        }
    }
    Err(StoreError::Engine("compactions overtake this read again and again; try again later".to_owned()))
}

/// Reads values, from the engine if need be; `None`: one was compacted away meanwhile.
async fn values(
    shared: &Arc<Shared>,
    keys: Vec<(Bytes, Entry)>,
) -> Result<Option<Vec<KeyValue>>, StoreError> {
    let cached: Option<Vec<Bytes>> = keys.iter().map(|(_, entry)| shared.values.cached(entry.at)).collect();
    if let Some(records) = cached {
        let kvs =
            keys.iter().zip(&records).map(|((_, entry), record)| shared.values.decode(entry.at, record));
        return kvs.collect::<Result<_, _>>().map(Some);
    }
    let shared = shared.clone();
    let read = move || keys.iter().map(|(_, entry)| shared.values.key_value(entry.at)).collect();
    tokio::task::spawn_blocking(read).await.map_err(|error| StoreError::Engine(error.to_string()))?
}

/// Runs a checked transaction that writes nothing in either branch.
pub(crate) async fn txn(shared: &Arc<Shared>, req: TxnRequest) -> Result<TxnResponse, StoreError> {
    let shared = shared.clone();
    let run = move || {
        // Held while values are read: only the writer waits for it, and only to show what it has already written.
        let state = shared.state.read();
        let mut pending = Pending::new(&state);
        Evaluator { base: &state, values: &shared.values, pending: &mut pending }.txn(&req, |_| false)
    };
    tokio::task::spawn_blocking(run).await.map_err(|error| StoreError::Engine(error.to_string()))?
}
