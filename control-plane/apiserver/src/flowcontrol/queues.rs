//! The seats of a level and the queues before them: shuffle sharding chooses a queue for a flow, the queue whose first
//! request would end first in virtual time is served next (upstream's `fairqueuing/queueset`).

use super::borrow::Demand;
use super::estimate::Work;
use super::level::Response;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long a request is thought to take before it has ended.
const SERVICE_TIME: Duration = Duration::from_millis(3);

fn seat_seconds(seats: usize, time: Duration) -> f64 {
    seats as f64 * time.as_secs_f64()
}

fn total(work: &Work) -> f64 {
    seat_seconds(work.initial, SERVICE_TIME) + seat_seconds(work.last, work.after)
}

/// A request that waits; `T` wakes it.
struct Waiter<T> {
    id: u64,
    work: Work,
    arrived: f64,
    wake: T,
}

struct Queue<T> {
    waiting: VecDeque<Waiter<T>>,
    executing: usize,
    seats: usize,
    /// Virtual time at which its next request starts.
    next: f64,
    /// Work of the requests that wait.
    work: f64,
}

impl<T> Queue<T> {
    fn new() -> Self {
        Queue { waiting: VecDeque::new(), executing: 0, seats: 0, next: 0.0, work: 0.0 }
    }

    fn is_active(&self) -> bool {
        self.executing > 0 || !self.waiting.is_empty()
    }

    /// Nothing starts before it has arrived, not even in virtual time.
    fn bound(&mut self) {
        if let Some(first) = self.waiting.front() {
            self.next = self.next.max(first.arrived);
        }
    }
}

/// Why there is no seat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// The queue is full.
    QueueFull,
    /// There are no queues.
    ConcurrencyLimit,
    /// It took too long.
    TimeOut,
    /// The client went away.
    Cancelled,
}

/// What becomes of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// It runs, in the name of this queue.
    Now(Option<usize>),
    /// It waits in this queue under this number.
    Later(usize, u64),
    /// It is rejected.
    No(Reason),
}

/// The state of a level.
pub(super) struct Queues<T> {
    response: Response,
    pub(super) limit: usize,
    queues: Vec<Queue<T>>,
    pub(super) in_use: usize,
    pub(super) executing: usize,
    pub(super) waiting: usize,
    waiting_seats: usize,
    /// Virtual time, in seat-seconds.
    now: f64,
    at: Instant,
    robin: usize,
    enqueued: usize,
    ids: u64,
    pub(super) demand: Demand,
}

impl<T> Queues<T> {
    pub(super) fn new(limit: usize, now: Instant) -> Self {
        Queues {
            response: Response::Reject,
            limit,
            queues: Vec::new(),
            in_use: 0,
            executing: 0,
            waiting: 0,
            waiting_seats: 0,
            now: 0.0,
            at: now,
            robin: 0,
            enqueued: 0,
            ids: 0,
            demand: Demand::new(now),
        }
    }

    /// Changes what is done when the level is full. Queues that are not dealt to any more empty themselves.
    pub(super) fn configure(&mut self, response: Response) {
        self.response = response;
        if let Response::Queue { queues, .. } = response
            && self.queues.len() < queues
        {
            self.queues.resize_with(queues, Queue::new);
        }
    }

    fn want(&mut self, now: Instant) {
        self.demand.set(self.in_use + self.waiting_seats, now);
    }

    /// Lets virtual time pass: the seats in use, up to the limit, divided by the flows that want them.
    fn sync(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at);
        self.at = now;
        let (mut active, mut wanted) = (0usize, self.waiting_seats);
        for queue in &self.queues {
            wanted += queue.seats;
            active += usize::from(queue.is_active());
        }
        if active > 0 {
            self.now += seat_seconds(wanted.min(self.limit), passed) / active as f64;
        }
    }

    fn fits(&self, seats: usize) -> bool {
        if seats > self.limit {
            // Wider than the whole level: it runs alone.
            return self.executing == 0;
        }
        self.in_use + seats <= self.limit
    }

    fn run(&mut self, queue: Option<usize>, seats: usize) {
        self.executing += 1;
        self.in_use += seats;
        if let Some(queue) = queue.and_then(|index| self.queues.get_mut(index)) {
            queue.executing += 1;
            queue.seats += seats;
        }
    }

    /// A request comes. `wake` is made for one that waits.
    pub(super) fn start(&mut self, work: &Work, flow: u64, now: Instant, wake: impl FnOnce() -> T) -> Start {
        let seats = work.seats();
        let out = match self.response {
            Response::Exempt => {
                self.run(None, seats);
                Start::Now(None)
            }
            Response::Reject if self.fits(seats) => {
                self.run(None, seats);
                Start::Now(None)
            }
            Response::Reject => Start::No(Reason::ConcurrencyLimit),
            Response::Queue { queues, hand, length } => {
                self.sync(now);
                self.enqueue(work, deal(flow, queues, hand), length, wake)
            }
        };
        self.want(now);
        out
    }

    fn enqueue(&mut self, work: &Work, hand: Hand, length: usize, wake: impl FnOnce() -> T) -> Start {
        let offset = self.enqueued % hand.count.max(1);
        self.enqueued = self.enqueued.wrapping_add(1);
        let mut best: Option<(f64, usize)> = None;
        for at in 0..hand.count {
            let index = hand.cards.get((offset + at) % hand.count).copied().unwrap_or_default();
            let Some(queue) = self.queues.get(index) else { continue };
            if best.is_none_or(|(least, _)| queue.work < least) {
                best = Some((queue.work, index));
            }
        }
        let index = best.map_or(0, |(_, index)| index);
        let (virtual_now, seats) = (self.now, work.seats());
        // Where nobody waits a free seat is taken at once.
        let free = self.waiting == 0 && self.in_use < self.limit && self.fits(seats);
        let full = self.in_use >= self.limit;
        let Some(queue) = self.queues.get_mut(index) else { return Start::No(Reason::ConcurrencyLimit) };
        if full && queue.waiting.len() >= length {
            return Start::No(Reason::QueueFull);
        }
        if !queue.is_active() {
            queue.next = virtual_now;
        }
        if free {
            queue.next = queue.next.max(virtual_now) + total(work);
            self.run(Some(index), seats);
            return Start::Now(Some(index));
        }
        self.ids += 1;
        queue.work += total(work);
        queue.waiting.push_back(Waiter { id: self.ids, work: *work, arrived: virtual_now, wake: wake() });
        queue.bound();
        self.waiting += 1;
        self.waiting_seats += seats;
        Start::Later(index, self.ids)
    }

    /// The next request that can run, if there is one: its work, its queue, and what wakes it.
    pub(super) fn dispatch(&mut self, now: Instant) -> Option<(Work, usize, T)> {
        if self.waiting == 0 || self.in_use >= self.limit {
            return None;
        }
        let count = self.queues.len();
        let mut best: Option<(f64, usize)> = None;
        for step in 1..=count {
            let index = (self.robin + step) % count;
            let Some(queue) = self.queues.get(index) else { continue };
            let Some(first) = queue.waiting.front() else { continue };
            let finish = queue.next + total(&first.work);
            if best.is_none_or(|(least, _)| finish < least) {
                best = Some((finish, index));
            }
        }
        let (_, index) = best?;
        let seats = self.queues.get(index)?.waiting.front()?.work.seats();
        if !self.fits(seats) {
            return None;
        }
        self.robin = index;
        let queue = self.queues.get_mut(index)?;
        let first = queue.waiting.pop_front()?;
        queue.work -= total(&first.work);
        queue.next += total(&first.work);
        queue.bound();
        self.waiting -= 1;
        self.waiting_seats -= seats;
        self.run(Some(index), seats);
        self.want(now);
        Some((first.work, index, first.wake))
    }

    /// A request that waits no more; `false` when it does not wait (any more).
    pub(super) fn forget(&mut self, queue: usize, id: u64, now: Instant) -> bool {
        self.sync(now);
        let Some(queue) = self.queues.get_mut(queue) else { return false };
        let Some(at) = queue.waiting.iter().position(|waiter| waiter.id == id) else { return false };
        let Some(gone) = queue.waiting.remove(at) else { return false };
        queue.work -= total(&gone.work);
        queue.bound();
        self.waiting -= 1;
        self.waiting_seats -= gone.work.seats();
        self.want(now);
        true
    }

    /// A request has ended after it was served for a time; its seats may be kept for a while.
    pub(super) fn finish(&mut self, queue: Option<usize>, work: &Work, served: Duration, now: Instant) {
        self.sync(now);
        self.executing -= 1;
        if let Some(queue) = queue.and_then(|index| self.queues.get_mut(index)) {
            queue.executing -= 1;
            let guessed = seat_seconds(work.initial, SERVICE_TIME);
            queue.next -= guessed - seat_seconds(work.initial, served);
            queue.bound();
        }
    }

    /// Seats are free again.
    pub(super) fn release(&mut self, queue: Option<usize>, seats: usize, now: Instant) {
        self.sync(now);
        self.in_use -= seats;
        if let Some(queue) = queue.and_then(|index| self.queues.get_mut(index)) {
            queue.seats -= seats;
        }
        self.want(now);
    }
}

/// Queues that a flow may use.
struct Hand {
    cards: [usize; 15],
    count: usize,
}

/// Deals different queues by a hash, as upstream's shuffle sharding does.
fn deal(mut hash: u64, deck: usize, hand: usize) -> Hand {
    let mut cards = [0usize; 15];
    let hand = hand.min(deck).min(cards.len());
    for (index, card) in cards.iter_mut().enumerate().take(hand) {
        let left = (deck - index) as u64;
        *card = (hash % left) as usize;
        hash /= left;
    }
    let remainders = cards;
    for index in 0..hand {
        let mut card = remainders.get(index).copied().unwrap_or_default();
        for earlier in (0..index).rev() {
            if card >= remainders.get(earlier).copied().unwrap_or_default() {
                card += 1;
            }
        }
        if let Some(slot) = cards.get_mut(index) {
            *slot = card;
        }
    }
    Hand { cards, count: hand }
}

#[cfg(test)]
mod tests;
