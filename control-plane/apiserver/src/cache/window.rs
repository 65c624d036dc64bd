//! The bounded window of past events.

use super::CacheEvent;
use std::collections::VecDeque;
use std::sync::Arc;

/// Events kept at most.
const MAX_EVENTS: usize = 20_000;
/// Bytes kept at most, roughly.
const MAX_BYTES: usize = 48 << 20;

/// Past events in order, numbered without gaps.
#[derive(Default)]
pub struct Window {
    events: VecDeque<Arc<CacheEvent>>,
    first_sequence: u64,
    /// Every event after this revision is in the window.
    start_revision: i64,
    bytes: usize,
}

impl Window {
    /// Forgets everything; what follows begins after `revision`.
    pub fn reset(&mut self, revision: i64) {
        self.first_sequence = self.next_sequence();
        self.events.clear();
        self.bytes = 0;
        self.start_revision = revision;
    }

    /// Adds an event, and drops the oldest beyond the bounds.
    pub fn push(&mut self, event: Arc<CacheEvent>) {
        self.bytes += event.weight();
        self.events.push_back(event);
        while self.events.len() > MAX_EVENTS || (self.bytes > MAX_BYTES && self.events.len() > 1) {
            let Some(old) = self.events.pop_front() else { break };
            self.bytes -= old.weight();
            self.first_sequence += 1;
            self.start_revision = old.revision;
        }
    }

    /// Number of the next event.
    pub fn next_sequence(&self) -> u64 {
        self.first_sequence + self.events.len() as u64
    }

    /// Oldest revision to resume from.
    pub fn start_revision(&self) -> i64 {
        self.start_revision
    }

    /// Number of the first event after a revision; `None` when events after it were dropped.
    pub fn sequence_after(&self, revision: i64) -> Option<u64> {
        if revision < self.start_revision {
            return None;
        }
        Some(self.first_sequence + self.events.partition_point(|e| e.revision <= revision) as u64)
    }

    /// Up to `max` events from a number on; `None` when that one was dropped.
    pub fn read(&self, sequence: u64, max: usize) -> Option<Vec<Arc<CacheEvent>>> {
        let skip = sequence.checked_sub(self.first_sequence)?;
        let skip = usize::try_from(skip).ok()?;
        Some(self.events.iter().skip(skip).take(max).cloned().collect())
    }
}
