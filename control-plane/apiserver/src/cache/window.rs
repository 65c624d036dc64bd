//! The bounded window of past events.

use super::CacheEvent;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bounds of a window. The oldest events are dropped when it holds too many or too many bytes, or when they are old and
/// there are more than a few.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Events kept at most.
    pub events: usize,
    /// Bytes kept at most, roughly.
    pub bytes: usize,
    /// Events older than this go.
    pub age: Duration,
    /// This many stay whatever their age.
    pub few: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds { events: 16_384, bytes: 24 << 20, age: Duration::from_secs(300), few: 256 }
    }
}

/// Past events in order, numbered without gaps.
#[derive(Default)]
pub struct Window {
    bounds: Bounds,
    events: VecDeque<(Instant, Arc<CacheEvent>)>,
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

    /// Adds an event that happens at `now`, and drops the oldest beyond the bounds.
    pub fn push(&mut self, event: Arc<CacheEvent>, now: Instant) {
        self.bytes += event.weight();
        self.events.push_back((now, event));
        while self.is_beyond(now) {
            let Some((_, old)) = self.events.pop_front() else { break };
            self.bytes -= old.weight();
            self.first_sequence += 1;
            self.start_revision = old.revision;
        }
    }

    fn is_beyond(&self, now: Instant) -> bool {
        let count = self.events.len();
        let Some((oldest, _)) = self.events.front() else { return false };
        count > self.bounds.events
            || (count > 1 && self.bytes > self.bounds.bytes)
            || (count > self.bounds.few && now.saturating_duration_since(*oldest) > self.bounds.age)
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
        let before = self.events.partition_point(|(_, e)| e.revision <= revision);
        Some(self.first_sequence + before as u64)
    }

    /// The events from a number on that [`sequence_after`](Self::sequence_after) gave.
    pub fn since(&self, sequence: u64) -> impl Iterator<Item = &Arc<CacheEvent>> {
        let skip = usize::try_from(sequence.saturating_sub(self.first_sequence)).unwrap_or(usize::MAX);
        self.events.range(skip.min(self.events.len())..).map(|(_, event)| event)
    }

    /// Up to `max` events from a number on; `None` when that one was dropped.
    pub fn read(&self, sequence: u64, max: usize) -> Option<Vec<Arc<CacheEvent>>> {
        let skip = sequence.checked_sub(self.first_sequence)?;
        let skip = usize::try_from(skip).ok()?;
        let events = self.events.range(skip.min(self.events.len())..);
        Some(events.take(max).map(|(_, e)| e.clone()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Entry;
    use crate::object::Encoded;
    use crate::registry::Registry;
    use proptest::prelude::*;

    fn event(revision: i64) -> Arc<CacheEvent> {
        let registry = Registry::builtin();
        let row = registry.find("", "v1", "configmaps").expect("row");
        let encoded =
            Encoded::from_stored(&row.head(), b"{\"metadata\":{\"name\":\"a\"}}", revision).expect("object");
        let entry = Arc::new(Entry::new(row, "ns/a", encoded));
        Arc::new(CacheEvent::new(revision, entry, None, false))
    }

    proptest! {
        /// Whoever reads on from a revision gets every later event once and in order, or is told that it is too late.
        #[test]
        fn readers_miss_nothing_and_see_nothing_twice(
            gaps in proptest::collection::vec(0i64..3, 1..60),
            from in 0i64..80,
            batch in 1usize..7,
            keep in 1usize..40,
        ) {
            let mut window = Window { bounds: Bounds { events: keep, ..Bounds::default() }, ..Window::default() };
            let start = 5;
            window.reset(start);
            let now = Instant::now();
            let mut all = Vec::new();
            let mut revision = start + 1;
            for gap in gaps {
                revision += gap;
                all.push(revision);
                window.push(event(revision), now);
            }
            let later: Vec<i64> = all.iter().copied().filter(|r| *r > from).collect();
            match window.sequence_after(from) {
                None => prop_assert!(from < start || later.len() > keep || all.len() > keep),
                Some(mut sequence) => {
                    let mut seen = Vec::new();
                    loop {
                        let part = window.read(sequence, batch).expect("in the window");
                        if part.is_empty() {
                            break;
                        }
                        sequence += part.len() as u64;
                        seen.extend(part.iter().map(|e| e.revision));
                    }
                    prop_assert_eq!(seen, later);
                }
            }
        }
    }

    #[test]
    fn old_events_go_but_a_few() {
        let bounds = Bounds { few: 2, age: Duration::from_secs(10), ..Bounds::default() };
        let mut window = Window { bounds, ..Window::default() };
        window.reset(1);
        let start = Instant::now();
        for revision in 2..6 {
            window.push(event(revision), start);
        }
        window.push(event(6), start + Duration::from_secs(60));
        assert_eq!(window.sequence_after(4), Some(window.next_sequence() - 2));
        assert_eq!(window.sequence_after(3), None);
    }
}
