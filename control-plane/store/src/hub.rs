//! Hands durable changes to the watchers that are live.
//!
//! Every live watcher has a [`Slot`] with a bounded queue of shared batches. Publishing never waits: a full queue is
//! emptied and its watcher told that it lagged.

use crate::index::contains;
use crate::txn::RevisionEvents;
use crate::types::ProgressState;
use crate::{Event, RangeEnd};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Limits of what waits for one watcher.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QueueLimits {
    pub events: usize,
    pub bytes: usize,
}

/// All live watchers.
pub(crate) struct Hub {
    limits: QueueLimits,
    state: Mutex<State>,
}

struct State {
    slots: HashMap<u64, Arc<Slot>>,
    next_id: u64,
    /// Everything up to here was published.
    published: i64,
    closed: bool,
}

/// The keys and revisions that a watcher wants.
#[derive(Debug, Clone)]
pub(crate) struct Interest {
    pub key: Bytes,
    pub end: RangeEnd,
    pub from_revision: i64,
}

impl Interest {
    pub(crate) fn wants(&self, event: &Event) -> bool {
        event.kv.mod_revision >= self.from_revision && contains(&self.key, &self.end, &event.kv.key)
    }
}

/// The queue of one live watcher.
pub(crate) struct Slot {
    pub id: u64,
    interest: Interest,
    wake: Arc<ProgressState>,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    batches: VecDeque<Arc<RevisionEvents>>,
    events: usize,
    bytes: usize,
    lagged: bool,
}

/// What a slot had to say.
pub(crate) enum Drained {
    /// Batches to filter and send; empty: nothing is queued up to `published`.
    Batches {
        batches: Vec<Arc<RevisionEvents>>,
        published: i64,
    },
    Lagged,
    Closed,
}

/// Why a watcher did not become live.
pub(crate) enum NotLive {
    /// Changes up to this revision are published and not replayed yet.
    Behind(i64),
    Closed,
}

impl Hub {
    pub(crate) fn new(limits: QueueLimits, published: i64) -> Self {
        let state = State { slots: HashMap::new(), next_id: 1, published, closed: false };
        Hub { limits, state: Mutex::new(state) }
    }

    /// Makes a watcher live that has seen everything before `interest.from_revision`.
    pub(crate) fn join(&self, interest: Interest, wake: Arc<ProgressState>) -> Result<Arc<Slot>, NotLive> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(NotLive::Closed);
        }
        if interest.from_revision <= state.published {
            return Err(NotLive::Behind(state.published));
        }
        let id = state.next_id;
        state.next_id += 1;
        let slot = Arc::new(Slot { id, interest, wake, queue: Mutex::default() });
        state.slots.insert(id, slot.clone());
        Ok(slot)
    }

    pub(crate) fn leave(&self, id: u64) {
        self.state.lock().slots.remove(&id);
    }

    /// Number of live watchers.
    #[cfg(test)]
    pub(crate) fn live(&self) -> usize {
        self.state.lock().slots.len()
    }

    /// Publishes durable changes, oldest first.
    pub(crate) fn publish(&self, changes: Vec<RevisionEvents>) {
        let mut state = self.state.lock();
        for batch in changes {
            state.published = batch.revision;
            let batch = Arc::new(batch);
            for slot in state.slots.values() {
                slot.push(&batch, self.limits);
            }
        }
    }

    /// Tells all watchers that the store is shut down.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        for slot in state.slots.values() {
            slot.wake.wake.notify_one();
        }
    }

    /// Takes at most `max_events` (but at least one revision) out of a slot.
    pub(crate) fn drain(&self, slot: &Slot, max_events: usize) -> Drained {
        let state = self.state.lock();
        let mut queue = slot.queue.lock();
        if queue.lagged {
            return Drained::Lagged;
        }
        let mut batches = Vec::new();
        let mut events = 0;
        while let Some(batch) = queue.batches.pop_front() {
            events += batch.events.len();
            if !batches.is_empty() && events > max_events {
                queue.batches.push_front(batch);
                break;
            }
            queue.events -= batch.events.len();
            queue.bytes -= size(&batch);
            batches.push(batch);
        }
        if batches.is_empty() && state.closed {
            return Drained::Closed;
        }
        Drained::Batches { batches, published: state.published }
    }
}

impl Slot {
    pub(crate) fn interest(&self) -> &Interest {
        &self.interest
    }

    fn push(&self, batch: &Arc<RevisionEvents>, limits: QueueLimits) {
        if !batch.events.iter().any(|event| self.interest.wants(event)) {
            return;
        }
        let mut queue = self.queue.lock();
        if queue.lagged {
            return;
        }
        queue.events += batch.events.len();
        queue.bytes += size(batch);
        queue.batches.push_back(batch.clone());
        // One revision alone may be larger than the limit: it is not the watcher that is slow.
        if queue.batches.len() > 1 && (queue.events > limits.events || queue.bytes > limits.bytes) {
            *queue = Queue { lagged: true, ..Queue::default() };
        }
        drop(queue);
        self.wake.wake.notify_one();
    }
}

fn size(batch: &RevisionEvents) -> usize {
    let kv = |kv: &crate::KeyValue| kv.key.len() + kv.value.len();
    batch.events.iter().map(|event| kv(&event.kv) + event.prev_kv.as_ref().map_or(0, kv)).sum()
}
