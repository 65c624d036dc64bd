//! One watch: replays history, then follows the live changes, without a gap or a repeat.
//!
//! Reads the index and the engine (history) and its slot of the hub (live); writes only the watcher's channel.

use crate::hub::{Drained, Hub, Interest, NotLive, Slot};
use crate::index::{Entry, before, bounds};
use crate::shared::Shared;
use crate::txn::RevisionEvents;
use crate::types::{ProgressHandle, ProgressState};
use crate::{Event, StoreError, WatchMessage, WatchRequest, Watcher};
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::mpsc;

/// Messages that wait in a watcher's channel before its bounded queue begins to fill.
const CHANNEL: usize = 16;
/// Events that one message holds at most, unless one revision alone has more.
const EVENTS_PER_MESSAGE: usize = 512;
/// Changes that one step of a replay collects from the index.
const REPLAY_CHUNK: usize = 16 * 1024;

type Message = Result<WatchMessage, StoreError>;

/// Starts a watch on the current tokio runtime.
pub(crate) fn start(shared: Arc<Shared>, req: WatchRequest) -> Result<Watcher, StoreError> {
    if req.start_revision < 0 {
        return Err(StoreError::Invalid("start revision must not be negative"));
    }
    let revision = {
        let state = shared.state.read();
        if req.start_revision > 0 && req.start_revision < state.compacted {
            return Err(StoreError::Compacted { compact_revision: state.compacted });
        }
        state.revision
    };
    let from_revision = if req.start_revision == 0 { revision + 1 } else { req.start_revision };
    let (sender, messages) = mpsc::channel(CHANNEL);
    let progress = ProgressHandle::default();
    let watch = Watch {
        shared,
        interest: Interest { key: req.key, end: req.end, from_revision },
        prev_kv: req.prev_kv,
        progress: progress.0.clone(),
        sender,
    };
    tokio::spawn(watch.run());
    Ok(Watcher { revision, messages, progress })
}

struct Watch {
    shared: Arc<Shared>,
    /// `from_revision` moves on while history is replayed.
    interest: Interest,
    prev_kv: bool,
    progress: Arc<ProgressState>,
    sender: mpsc::Sender<Message>,
}

/// The receiver was dropped, or the last message was sent.
struct Ended;

impl Watch {
    async fn run(mut self) {
        let hub = self.shared.hub.clone();
        loop {
            match hub.join(self.interest.clone(), self.progress.clone()) {
                Ok(slot) => {
                    let _ = self.follow(&hub, &slot).await;
                    hub.leave(slot.id);
                    return;
                }
                Err(NotLive::Behind(published)) => {
                    if self.replay(published).await.is_err() {
                        return;
                    }
                }
                Err(NotLive::Closed) => {
                    let _ = self.fail(StoreError::Closed).await;
                    return;
                }
            }
        }
    }

    async fn fail(&self, error: StoreError) -> Result<(), Ended> {
        let _ = self.sender.send(Err(error)).await;
        Err(Ended)
    }

    async fn send(&self, revision: i64, events: Vec<Event>) -> Result<(), Ended> {
        if events.is_empty() {
            return Ok(());
        }
        self.sender.send(Ok(WatchMessage::Events { revision, events })).await.map_err(|_| Ended)
    }

    /// Sends the changes from `interest.from_revision` to `until` out of the engine.
    async fn replay(&mut self, until: i64) -> Result<(), Ended> {
        while self.interest.from_revision <= until {
            let (mut changes, next) = match self.changes(until) {
                Ok(changes) => changes,
                Err(error) => return self.fail(error).await,
            };
            while !changes.is_empty() {
                let rest = changes.split_off(whole_revisions(&changes, EVENTS_PER_MESSAGE));
                let revision = changes.last().map_or(next - 1, |change| change.entry.at.main);
                let (shared, prev_kv) = (self.shared.clone(), self.prev_kv);
                let read = tokio::task::spawn_blocking(move || events(&shared, changes, prev_kv)).await;
                match read {
                    Ok(Ok(events)) => self.send(revision, events).await?,
                    Ok(Err(error)) => return self.fail(error).await,
                    Err(error) => return self.fail(StoreError::Engine(error.to_string())).await,
                }
                changes = rest;
            }
            self.interest.from_revision = next;
        }
        Ok(())
    }

    /// The next changes to replay, whole revisions, and the revision to go on from.
    fn changes(&self, until: i64) -> Result<(Vec<Change>, i64), StoreError> {
        let from = self.interest.from_revision;
        let state = self.shared.state.read();
        if from < state.compacted {
            return Err(StoreError::Compacted { compact_revision: state.compacted });
        }
        let mut changes = Vec::new();
        if let Some(bounds) = bounds(&self.interest.key, &self.interest.end) {
            for (_, entries) in state.keys.range::<[u8], _>(bounds) {
                let first = entries.partition_point(|entry| entry.at.main < from);
                for entry in entries[first..].iter().take_while(|entry| entry.at.main <= until) {
                    changes.push(Change { entry: *entry, prev: before(entries, entry.at.main).copied() });
                }
            }
        }
        drop(state);
        let mut next = until + 1;
        if changes.len() > REPLAY_CHUNK {
            // Keep the oldest whole revisions; the rest is collected again in the next step.
            let (_, last, _) = changes.select_nth_unstable_by_key(REPLAY_CHUNK, |change| change.entry.at);
            next = last.entry.at.main + 1;
            changes.retain(|change| change.entry.at.main < next);
        }
        changes.sort_unstable_by_key(|change| change.entry.at);
        Ok((changes, next))
    }

    async fn follow(&self, hub: &Hub, slot: &Slot) -> Result<(), Ended> {
        loop {
            // Asked before draining: the answer must come after every event that was published by then.
            let wanted = self.progress.wanted.swap(false, Ordering::SeqCst);
            match hub.drain(slot, EVENTS_PER_MESSAGE) {
                Drained::Lagged => return self.fail(StoreError::WatchLagged).await,
                Drained::Closed => return self.fail(StoreError::Closed).await,
                Drained::Batches { batches, published } if batches.is_empty() => {
                    if wanted {
                        let revision = published;
                        let progress = Ok(WatchMessage::Progress { revision });
                        self.sender.send(progress).await.map_err(|_| Ended)?;
                        continue;
                    }
                    tokio::select! {
                        () = self.progress.wake.notified() => {}
                        () = self.sender.closed() => return Err(Ended),
                    }
                }
                Drained::Batches { batches, .. } => {
                    if wanted {
                        self.progress.wanted.store(true, Ordering::SeqCst);
                    }
                    let (revision, events) = self.filter(slot.interest(), &batches);
                    self.send(revision, events).await?;
                }
            }
        }
    }

    fn filter(&self, interest: &Interest, batches: &[Arc<RevisionEvents>]) -> (i64, Vec<Event>) {
        let wanted = batches.iter().flat_map(|batch| &batch.events).filter(|event| interest.wants(event));
        let events = wanted
            .map(|event| Event {
                deleted: event.deleted,
                kv: event.kv.clone(),
                prev_kv: event.prev_kv.as_ref().filter(|_| self.prev_kv).cloned(),
            })
            .collect();
        (batches.last().map_or(0, |batch| batch.revision), events)
    }
}

/// A change to replay.
struct Change {
    entry: Entry,
    prev: Option<Entry>,
}

/// Number of leading changes, at most `max` unless the first revision alone has more, that end with their revision.
fn whole_revisions(changes: &[Change], max: usize) -> usize {
    let revision = |at: usize| changes.get(at).map(|change: &Change| change.entry.at.main);
    if changes.len() <= max {
        return changes.len();
    }
    let cut = revision(max);
    let whole = changes.partition_point(|change| Some(change.entry.at.main) < cut);
    if whole > 0 { whole } else { changes.partition_point(|change| Some(change.entry.at.main) <= cut) }
}

/// Reads the values of changes (blocks).
fn events(shared: &Shared, changes: Vec<Change>, prev_kv: bool) -> Result<Vec<Event>, StoreError> {
    let mut events = Vec::with_capacity(changes.len());
    for Change { entry, prev } in changes {
        let Some(mut kv) = shared.values.key_value(entry.at)? else {
            // A compaction overtook the replay.
            return Err(StoreError::Compacted { compact_revision: shared.state.read().compacted });
        };
        if entry.deleted {
            kv.value = Bytes::new();
        }
        let prev_kv = match prev.filter(|_| prev_kv) {
            Some(prev) => shared.values.key_value(prev.at)?,
            None => None,
        };
        events.push(Event { deleted: entry.deleted, kv, prev_kv });
    }
    Ok(events)
}
