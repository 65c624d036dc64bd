//! Follows the watch caches of the objects that authorization is made of.

use crate::cache::{Cache, CacheEvent, Entry, Filter};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Events taken at one time.
const BATCH: usize = 1024;
/// How long a writer or a refused node waits for this side to catch up.
const CATCH_UP: Duration = Duration::from_secs(3);

/// What happened in a cache.
pub(super) enum Change<'a> {
    /// Everything anew.
    Reset(&'a [Arc<Entry>]),
    /// An object came, changed or went.
    Event(&'a CacheEvent),
}

/// A cache with how far it was taken in; 0 before the first load.
pub(super) struct Source {
    pub(super) cache: Arc<Cache>,
    applied: watch::Sender<i64>,
}

impl Source {
    pub(super) fn new(cache: Arc<Cache>) -> Self {
        Source { cache, applied: watch::Sender::new(0) }
    }

    /// Hands every change to `apply`, in order, for ever.
    pub(super) async fn follow(&self, apply: impl Fn(Change<'_>)) {
        loop {
            if self.cache.wait_loaded().await.is_err() {
                continue;
            }
            let mut changes = self.cache.changes();
            let mut reached = self.cache.reached.subscribe();
            let snapshot = self.cache.snapshot(&Filter::default(), None);
            apply(Change::Reset(&snapshot.entries));
            self.applied.send_replace(snapshot.revision.max(1));
            let mut cursor = snapshot.cursor;
            loop {
                changes.borrow_and_update();
                reached.borrow_and_update();
                // Left behind by the window: take everything anew.
                let Ok((events, revision)) = self.cache.read(&mut cursor, BATCH) else { break };
                for event in &events {
                    apply(Change::Event(event));
                }
                if revision > *self.applied.borrow() {
                    self.applied.send_replace(revision);
                }
                if events.len() == BATCH {
                    continue;
                }
                tokio::select! {
                    changed = changes.changed() => if changed.is_err() { return },
                    moved = reached.changed() => if moved.is_err() { return },
                }
            }
        }
    }

    /// Waits until everything up to a revision is in; gives up after a while.
    pub(super) async fn wait(&self, revision: i64) -> bool {
        let mut applied = self.applied.subscribe();
        let wait = applied.wait_for(|now| *now > 0 && *now >= revision);
        matches!(tokio::time::timeout(CATCH_UP, wait).await, Ok(Ok(_)))
    }
}
