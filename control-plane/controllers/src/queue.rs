//! A work queue of keys: each key waits at most once and is worked on by at most one worker at a time.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Key of an object: `namespace/name`, or `name` for a cluster-scoped one.
pub type Key = Arc<str>;

/// First wait of a key that failed; doubles each time.
const BASE_DELAY: Duration = Duration::from_millis(5);
/// Longest wait of a key that failed.
const MAX_DELAY: Duration = Duration::from_secs(1000);

/// The queue; cheap to clone.
#[derive(Clone, Default)]
pub struct Queue {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// A permit for each change that may let a waiting worker go on.
    wake: Notify,
}

#[derive(Default)]
struct State {
    ready: VecDeque<Key>,
    /// Keys in `ready`, or to be added to it when their worker is done.
    dirty: HashSet<Key>,
    processing: HashSet<Key>,
    failures: HashMap<Key, u32>,
    delayed: BinaryHeap<Reverse<(Instant, Key)>>,
    /// The earliest time of each delayed key; other entries of `delayed` are void.
    due: HashMap<Key, Instant>,
}

impl State {
    fn add(&mut self, key: Key) -> bool {
        if !self.dirty.insert(key.clone()) || self.processing.contains(&key) {
            return false;
        }
        self.ready.push_back(key);
        true
    }

    /// Moves due keys to `ready`; the time of the next one.
    fn promote(&mut self, now: Instant) -> Option<Instant> {
        while let Some(Reverse((at, key))) = self.delayed.peek() {
            if self.due.get(key) != Some(at) {
                self.delayed.pop();
            } else if *at <= now {
                let key = key.clone();
                self.delayed.pop();
                self.due.remove(&key);
                self.add(key);
            } else {
                return Some(*at);
            }
        }
        None
    }
}

impl Queue {
    /// An empty queue.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a key, unless it waits already. A key that is being worked on is taken again afterwards.
    pub fn add(&self, key: impl Into<Key>) {
        let added = self.shared.state.lock().add(key.into());
        if added {
            self.shared.wake.notify_one();
        }
    }

    /// Adds a key after a time; of several times the earliest counts.
    pub fn add_after(&self, key: impl Into<Key>, delay: Duration) {
        let key = key.into();
        if delay.is_zero() {
            return self.add(key);
        }
        let at = Instant::now() + delay;
        {
            let mut state = self.shared.state.lock();
            if state.due.get(&key).is_some_and(|due| *due <= at) {
                return;
            }
            state.due.insert(key.clone(), at);
            state.delayed.push(Reverse((at, key)));
        }
        self.shared.wake.notify_one();
    }

    /// Adds a key that failed, after a time that doubles from 5 ms to 1000 s.
    pub fn add_rate_limited(&self, key: impl Into<Key>) {
        let key = key.into();
        let failures = {
            let mut state = self.shared.state.lock();
            let failures = state.failures.entry(key.clone()).or_default();
            *failures = failures.saturating_add(1);
            *failures - 1
        };
        let delay = BASE_DELAY.saturating_mul(1u32.checked_shl(failures.min(30)).unwrap_or(u32::MAX));
        self.add_after(key, delay.min(MAX_DELAY));
    }

    /// Forgets the failures of a key.
    pub fn forget(&self, key: &str) {
        self.shared.state.lock().failures.remove(key);
    }

    /// How often a key failed since it was last forgotten.
    #[must_use]
    pub fn failures(&self, key: &str) -> u32 {
        self.shared.state.lock().failures.get(key).copied().unwrap_or(0)
    }

    /// Takes the next key, waiting for one. [`Self::done`] must follow. Safe to drop while it waits.
    pub async fn next(&self) -> Key {
        loop {
            let wait = {
                let mut state = self.shared.state.lock();
                let next_due = state.promote(Instant::now());
                match state.ready.pop_front() {
                    Some(key) => {
                        state.dirty.remove(&key);
                        state.processing.insert(key.clone());
                        let more = !state.ready.is_empty() || next_due.is_some();
                        drop(state);
                        if more {
                            // Another worker takes over the waiting.
                            self.shared.wake.notify_one();
                        }
                        return key;
                    }
                    None => next_due,
                }
            };
            match wait {
                None => self.shared.wake.notified().await,
                Some(at) => {
                    tokio::select! {
                        () = self.shared.wake.notified() => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
            }
        }
    }

    /// Says that the work on a key is over.
    pub fn done(&self, key: &Key) {
        let again = {
            let mut state = self.shared.state.lock();
            state.processing.remove(key);
            let again = state.dirty.contains(key);
            if again {
                state.ready.push_back(key.clone());
            }
            again
        };
        if again {
            self.shared.wake.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_waits_once_and_runs_alone() {
        let queue = Queue::new();
        queue.add("a");
        queue.add("a");
        queue.add("b");
        let a = queue.next().await;
        let b = queue.next().await;
        assert_eq!((&*a, &*b), ("a", "b"));
        queue.add("a");
        assert!(
            tokio::time::timeout(Duration::from_secs(1), queue.next()).await.is_err(),
            "a is being worked on"
        );
        queue.done(&a);
        assert_eq!(&*queue.next().await, "a");
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_delay_counts() {
        let queue = Queue::new();
        let start = Instant::now();
        queue.add_after("a", Duration::from_secs(10));
        queue.add_after("a", Duration::from_secs(3));
        queue.add_after("a", Duration::from_secs(5));
        let key = queue.next().await;
        assert_eq!(start.elapsed().as_secs(), 3);
        queue.done(&key);
        assert!(tokio::time::timeout(Duration::from_secs(60), queue.next()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn failures_double_the_wait() {
        let queue = Queue::new();
        let mut waits = Vec::new();
        for _ in 0..20 {
            let start = Instant::now();
            queue.add_rate_limited("a");
            let key = queue.next().await;
            queue.done(&key);
            waits.push(start.elapsed().as_millis());
        }
        assert_eq!(waits[..4], [5, 10, 20, 40]);
        assert_eq!(waits[19], 1_000_000);
        queue.forget("a");
        assert_eq!(queue.failures("a"), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_delayed_key_is_taken_by_an_idle_worker_while_another_works() {
        let queue = Queue::new();
        let busy = queue.clone();
        queue.add("slow");
        queue.add_after("later", Duration::from_secs(1));
        let start = Instant::now();
        let slow = tokio::spawn(async move {
            let key = busy.next().await;
            tokio::time::sleep(Duration::from_secs(60)).await;
            busy.done(&key);
        });
        tokio::task::yield_now().await;
        assert_eq!(&*queue.next().await, "later");
        assert_eq!(start.elapsed().as_secs(), 1);
        slow.abort();
    }
}
