//! The task that keeps a cache up to date. Reads the store; writes the cache's state.

use super::{Cache, CacheEvent, Entry, State};
use crate::object::Encoded;
use crate::registry::Resource;
use kelp_store::{Event, KeyValue, RangeEnd, RangeRequest, StoreError, WatchMessage, WatchRequest, Watcher};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

/// Revisions of history read at the start, so that clients go on watching after a restart.
const HISTORY: i64 = 5_000;

/// Loads and follows until the store is closed; starts over when its watch breaks.
pub(super) async fn run(cache: Arc<Cache>) {
    loop {
        match follow(&cache).await {
            StoreError::Closed => return,
            error => {
                tracing::warn!(resource = ?cache.resource, %error, "the watch of the store broke; loading again");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn follow(cache: &Arc<Cache>) -> StoreError {
    let mut watcher = match load(cache).await {
        Ok(watcher) => watcher,
        Err(error) => return error,
    };
    *cache.progress.lock() = watcher.progress_handle();
    // Reads that came before the handle was there asked in vain.
    watcher.request_progress();
    while let Some(message) = watcher.messages.recv().await {
        match message {
            Ok(WatchMessage::Events { revision, events }) => apply(cache, revision, events),
            Ok(WatchMessage::Progress { revision }) => reach(cache, revision),
            Err(error) => return error,
        }
    }
    StoreError::WatchLagged
}

async fn load(cache: &Arc<Cache>) -> Result<Watcher, StoreError> {
    let prefix = cache.resource.prefix("");
    let now = cache.store.revision();
    // Revision 1 is the empty store.
    let mut at = if now > 1 { (now - HISTORY).max(1) } else { 0 };
    let answer = loop {
        let mut request = RangeRequest::prefix(prefix.clone());
        request.revision = at;
        match cache.store.range(request).await {
            Err(StoreError::Compacted { compact_revision }) if at < compact_revision => at = compact_revision,
            Err(StoreError::Compacted { .. } | StoreError::FutureRevision { .. }) if at != 0 => at = 0,
            other => break other?,
        }
    };
    let base = if at == 0 { answer.revision } else { at };
    let watcher = cache
        .store
        .watch(WatchRequest {
            key: prefix.clone().into(),
            end: RangeEnd::prefix(prefix.as_bytes()),
            start_revision: base + 1,
            prev_kv: false,
        })
        .await?;
    {
        let mut state = cache.state.write();
        state.objects.clear();
        state.bytes = 0;
        for kv in &answer.kvs {
            if let Some(entry) = entry_of(&cache.resource, kv) {
                state.bytes += entry.encoded.full().len();
                state.objects.insert(entry.key.clone(), Arc::new(entry));
            }
        }
        state.window.reset(base);
        state.revision = base;
        state.epoch += 1;
    }
    cache.changed.send_modify(|n| *n += 1);
    cache.lanes.lock().wake();
    // With history the present is reached only when its events are in; `Progress` then says so.
    if at == 0 {
        cache.reached.send_replace(base);
    }
    Ok(watcher)
}

/// The cached form of a stored object; `None` (with a log line) for bytes that are no object.
pub(crate) fn entry_of(resource: &Resource, kv: &KeyValue) -> Option<Entry> {
    let key = std::str::from_utf8(&kv.key).ok()?.strip_prefix(&*resource.storage_prefix)?;
    let Some(encoded) = served(resource, &kv.value, kv.mod_revision) else {
        tracing::error!(key, "the stored value is no JSON object; it is left out");
        return None;
    };
    Some(Entry::new(resource, key, encoded))
}

/// Served bytes of stored bytes, converted when the resource is stored in another form.
pub(crate) fn served(resource: &Resource, stored: &[u8], revision: i64) -> Option<Encoded> {
    let head = resource.head();
    if let Some(custom) = &resource.custom {
        let mut object: Value = serde_json::from_slice(stored).ok().filter(Value::is_object)?;
        custom
            .read(&mut object)
            .inspect_err(|error| tracing::error!(%error, "a stored object cannot be read"))
            .ok()?;
        return Encoded::from_stored(&head, &crate::object::encode(&head, &object), revision);
    }
    match &resource.stored_as {
        None => Encoded::from_stored(&head, stored, revision),
        Some(form) => {
            let mut object = serde_json::from_slice(stored).ok()?;
            (form.decode)(&mut object);
            Encoded::from_stored(&head, &crate::object::encode(&head, &object), revision)
        }
    }
}

fn reach(cache: &Cache, revision: i64) {
    let mut state = cache.state.write();
    if state.revision < revision {
        state.revision = revision;
    }
    let revision = state.revision;
    drop(state);
    cache.reached.send_if_modified(|reached| {
        let newer = *reached < revision;
        *reached = revision.max(*reached);
        newer
    });
}

fn apply(cache: &Cache, revision: i64, events: Vec<Event>) {
    // Parsed before the lock is taken: readers wait for the bookkeeping only.
    let parsed: Vec<(Event, Option<Entry>)> = events
        .into_iter()
        .map(|event| {
            let entry = if event.deleted { None } else { entry_of(&cache.resource, &event.kv) };
            (event, entry)
        })
        .collect();
    {
        let mut state = cache.state.write();
        let mut lanes = cache.lanes.lock();
        for (event, entry) in parsed {
            if let Some(event) = apply_one(&cache.resource, &mut state, &event, entry) {
                lanes.push(&event);
            }
        }
        state.revision = state.revision.max(revision);
    }
    cache.changed.send_modify(|n| *n += 1);
    cache.reached.send_if_modified(|reached| {
        // While history is replayed the cache is not loaded: only progress ends that.
        let newer = *reached > 0 && *reached < revision;
        if newer {
            *reached = revision;
        }
        newer
    });
}

/// Applies a change; the event that it is to watchers.
fn apply_one(
    resource: &Resource,
    state: &mut State,
    event: &Event,
    entry: Option<Entry>,
) -> Option<Arc<CacheEvent>> {
    let now = std::time::Instant::now();
    let Some(entry) = entry else {
        let key = std::str::from_utf8(&event.kv.key).ok()?.strip_prefix(&*resource.storage_prefix)?;
        let previous = state.objects.remove(key)?;
        state.bytes -= previous.encoded.full().len();
        let gone = Arc::new(previous.at_revision(event.kv.mod_revision));
        let event = Arc::new(CacheEvent::new(event.kv.mod_revision, gone, Some(previous), true));
        state.window.push(event.clone(), now);
        return Some(event);
    };
    let entry = Arc::new(entry);
    let previous = state.objects.insert(entry.key.clone(), entry.clone());
    let replaced = previous.as_ref().map_or(0, |previous| previous.encoded.full().len());
    state.bytes = state.bytes + entry.encoded.full().len() - replaced;
    let event = Arc::new(CacheEvent::new(event.kv.mod_revision, entry, previous, false));
    state.window.push(event.clone(), now);
    Some(event)
}
