//! Tests of the whole store over each of its engines.

mod crash;
mod disk;
mod group_commit;
mod model;
mod properties;
mod semantics;

use crate::{EmbeddedStore, Event, StoreError, WatchMessage, WatchRequest, Watcher};
use std::time::Duration;

/// A test that hangs is a failed test.
const PATIENCE: Duration = Duration::from_secs(20);

/// The next message of a watch.
async fn next(watcher: &mut Watcher) -> Result<WatchMessage, StoreError> {
    tokio::time::timeout(PATIENCE, watcher.messages.recv())
        .await
        .expect("the watch is silent")
        .unwrap_or(Err(StoreError::Closed))
}

/// All events up to the present revision, by asking for progress.
async fn events_until_now(store: &EmbeddedStore, watcher: &mut Watcher) -> Result<Vec<Event>, StoreError> {
    let revision = crate::Store::revision(store);
    watcher.request_progress();
    let mut all = Vec::new();
    loop {
        match next(watcher).await? {
            WatchMessage::Events { events, .. } => all.extend(events),
            WatchMessage::Progress { revision: reached } => {
                assert_eq!(reached, revision);
                return Ok(all);
            }
        }
    }
}

fn watch_all(start_revision: i64) -> WatchRequest {
    WatchRequest { key: "".into(), end: crate::RangeEnd::Unbounded, start_revision, prev_kv: true }
}
