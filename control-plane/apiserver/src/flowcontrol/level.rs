//! A priority level in use: its seats, taken and given back.

use super::borrow::Demand;
use super::estimate::Work;
use super::metrics::SchemaStats;
use super::queues::{Queues, Reason, Start};
use super::retry::Dropped;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// What is done with a request that finds no seat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Response {
    /// There always is one.
    Exempt,
    /// It is rejected.
    Reject,
    /// It waits.
    Queue {
        /// Number of queues.
        queues: usize,
        /// Queues a flow may use.
        hand: usize,
        /// Requests in one queue.
        length: usize,
    },
}

/// A priority level.
pub(super) struct Level {
    state: Mutex<Queues<oneshot::Sender<Seat>>>,
    dropped: Mutex<Dropped>,
}

/// What a level is doing.
pub(super) struct Usage {
    pub(super) limit: usize,
    pub(super) seats: usize,
    pub(super) executing: usize,
    pub(super) waiting: usize,
    pub(super) demand: Demand,
}

impl Level {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Level { state: Mutex::new(Queues::new(limit, Instant::now())), dropped: Mutex::default() })
    }

    pub(super) fn configure(&self, response: Response) {
        self.state.lock().configure(response);
    }

    /// Ends a period of demand.
    pub(super) fn settle(&self, now: Instant) -> Demand {
        let mut state = self.state.lock();
        state.demand.settle(now);
        state.demand
    }

    pub(super) fn usage(&self) -> Usage {
        let state = self.state.lock();
        Usage {
            limit: state.limit,
            seats: state.in_use,
            executing: state.executing,
            waiting: state.waiting,
            demand: state.demand,
        }
    }

    /// Changes the number of seats; those who wait may run.
    pub(super) fn set_limit(self: &Arc<Self>, limit: usize) {
        let mut state = self.state.lock();
        state.limit = limit;
        self.dispatch(&mut state, Instant::now());
    }

    /// Notes a rejection; seconds after which the client may come back.
    pub(super) fn dropped(&self, now: i64) -> u32 {
        u32::try_from(self.dropped.lock().note(now)).unwrap_or(1)
    }

    /// Wakes those who can run.
    fn dispatch(self: &Arc<Self>, state: &mut Queues<oneshot::Sender<Seat>>, now: Instant) {
        while let Some((work, queue, wake)) = state.dispatch(now) {
            let seat =
                Seat { taken: Some(Taken { level: self.clone(), queue: Some(queue), work, since: now }) };
            if let Err(mut seat) = wake.send(seat) {
                // Nobody waits any more. The seat is given back here: the lock is held.
                seat.taken = None;
                state.finish(Some(queue), &work, Duration::ZERO, now);
                state.release(Some(queue), work.seats(), now);
            }
        }
    }

    /// Takes seats, after waiting at most `limit`.
    pub(super) async fn take(
        self: Arc<Self>,
        work: Work,
        flow: u64,
        stats: &SchemaStats,
        limit: Duration,
    ) -> Result<Seat, ()> {
        let now = Instant::now();
        let mut receiver = None;
        let start = self.state.lock().start(&work, flow, now, || {
            let (sender, waiting) = oneshot::channel();
            receiver = Some(waiting);
            sender
        });
        let (queue, id) = match start {
            Start::Now(queue) => {
                stats.dispatched(Duration::ZERO);
                return Ok(Seat { taken: Some(Taken { level: self, queue, work, since: now }) });
            }
            Start::No(reason) => {
                stats.rejected(reason, Duration::ZERO);
                return Err(());
            }
            Start::Later(queue, id) => (queue, id),
        };
        let Some(receiver) = receiver else { return Err(()) };
        // The place in the queue is given up when the client goes away.
        let mut place = Place { level: self, queue, id, stats, since: now, left: false };
        match tokio::time::timeout(limit, receiver).await {
            Ok(Ok(seat)) => {
                place.left = true;
                stats.dispatched(now.elapsed());
                Ok(seat)
            }
            _ => {
                place.leave(Reason::TimeOut);
                Err(())
            }
        }
    }
}

/// A place in a queue.
struct Place<'a> {
    level: Arc<Level>,
    queue: usize,
    id: u64,
    stats: &'a SchemaStats,
    since: Instant,
    left: bool,
}

impl Place<'_> {
    fn leave(&mut self, reason: Reason) {
        if !std::mem::replace(&mut self.left, true) {
            let now = Instant::now();
            let mut state = self.level.state.lock();
            state.forget(self.queue, self.id, now);
            // Who stood behind a wide request may fit.
            self.level.dispatch(&mut state, now);
            drop(state);
            self.stats.rejected(reason, self.since.elapsed());
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.leave(Reason::Cancelled);
    }
}

struct Taken {
    level: Arc<Level>,
    queue: Option<usize>,
    work: Work,
    since: Instant,
}

/// Seats of a request; given back when dropped.
pub(crate) struct Seat {
    taken: Option<Taken>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let Some(taken) = self.taken.take() else { return };
        let now = Instant::now();
        let mut state = taken.level.state.lock();
        state.finish(taken.queue, &taken.work, now.saturating_duration_since(taken.since), now);
        let after = taken.work.after;
        // Outside of a runtime (at shutdown) nobody is left to wait.
        let runtime = if after.is_zero() { None } else { tokio::runtime::Handle::try_current().ok() };
        match runtime {
            None => {
                state.release(taken.queue, taken.work.seats(), now);
                taken.level.dispatch(&mut state, now);
            }
            Some(runtime) => {
                drop(state);
                runtime.spawn(async move {
                    tokio::time::sleep(after).await;
                    let now = Instant::now();
                    let mut state = taken.level.state.lock();
                    state.release(taken.queue, taken.work.seats(), now);
                    taken.level.dispatch(&mut state, now);
                });
            }
        }
    }
}
