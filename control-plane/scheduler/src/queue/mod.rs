//! Pods that wait to be scheduled.
//!
//! A pod is in one of four places: **active** (to be tried, by rank and age), **backoff** (to be tried at a set time),
//! **unschedulable** (waits for a change that may help it) or **gated** (not to be tried until it changes). One that
//! is being tried or bound is in none; [`Queue::failed`] or [`Queue::errored`] puts it back.

use crate::framework::PluginSet;
use kelp_model::scheduling::PodInfo;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// First wait after a failed attempt.
pub const INITIAL_BACKOFF: Duration = Duration::from_secs(1);
/// Longest wait after a failed attempt.
pub const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// After this long an unschedulable pod is tried again without a reason, in case one was missed.
pub const MAX_UNSCHEDULABLE: Duration = Duration::from_secs(300);

/// A waiting pod.
#[derive(Debug, Clone)]
pub struct Queued {
    /// The pod.
    pub pod: Arc<PodInfo>,
    /// Times it was tried.
    pub attempts: u32,
    /// Plugins that rejected it at the last attempt.
    pub rejected_by: PluginSet,
    /// Position: rank, then age.
    rank: i64,
    sequence: u64,
    /// End of the wait after the last attempt.
    backoff_until: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Active,
    Backoff,
    Unschedulable { since: Instant },
    Gated,
}

/// Number of pods by place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Depth {
    /// To be tried.
    pub active: usize,
    /// To be tried later.
    pub backoff: usize,
    /// Waiting for a change.
    pub unschedulable: usize,
    /// Held back by a gate.
    pub gated: usize,
}

/// The scheduling queue.
#[derive(Debug, Default)]
pub struct Queue {
    pods: HashMap<Arc<str>, (Queued, Place)>,
    active: BTreeSet<(i64, u64, Arc<str>)>,
    backoff: BTreeSet<(Instant, Arc<str>)>,
    unschedulable: BTreeSet<(Instant, Arc<str>)>,
    next_sequence: u64,
}

/// How long a pod waits after so many attempts: doubling from [`INITIAL_BACKOFF`] to [`MAX_BACKOFF`].
pub fn backoff(attempts: u32) -> Duration {
    let doublings = attempts.saturating_sub(1).min(16);
    (INITIAL_BACKOFF * 2u32.pow(doublings)).min(MAX_BACKOFF)
}

impl Queue {
    fn insert(&mut self, queued: Queued, place: Place) {
        let uid = queued.pod.uid.clone();
        match place {
            Place::Active => {
                self.active.insert((queued.rank, queued.sequence, uid.clone()));
            }
            Place::Backoff => {
                self.backoff.insert((queued.backoff_until, uid.clone()));
            }
            Place::Unschedulable { since } => {
                self.unschedulable.insert((since, uid.clone()));
            }
            Place::Gated => {}
        }
        self.pods.insert(uid, (queued, place));
    }

    fn take(&mut self, uid: &str) -> Option<(Queued, Place)> {
        let (queued, place) = self.pods.remove(uid)?;
        let uid = queued.pod.uid.clone();
        match place {
            Place::Active => drop(self.active.remove(&(queued.rank, queued.sequence, uid))),
            Place::Backoff => drop(self.backoff.remove(&(queued.backoff_until, uid))),
            Place::Unschedulable { since } => drop(self.unschedulable.remove(&(since, uid))),
            Place::Gated => {}
        }
        Some((queued, place))
    }

    /// Adds a new pod: to be tried, or held back if `gated`.
    pub fn add(&mut self, pod: Arc<PodInfo>, rank: i64, gated: bool, now: Instant) {
        self.next_sequence += 1;
        let queued = Queued {
            pod,
            attempts: 0,
            rejected_by: PluginSet::default(),
            rank,
            sequence: self.next_sequence,
            backoff_until: now,
        };
        self.insert(queued, if gated { Place::Gated } else { Place::Active });
    }

    /// Takes in a waiting pod's present state. `retry`: the change may let it fit. `false` if it does not wait here.
    pub fn update(&mut self, pod: Arc<PodInfo>, rank: i64, gated: bool, retry: bool, now: Instant) -> bool {
        let Some((mut queued, place)) = self.take(&pod.uid) else { return false };
        queued.pod = pod;
        queued.rank = rank;
        let place = match place {
            _ if gated => Place::Gated,
            Place::Gated => Place::Active,
            Place::Unschedulable { .. } if retry => after_backoff(&queued, now),
            other => other,
        };
        self.insert(queued, place);
        true
    }

    /// Removes a pod.
    pub fn remove(&mut self, uid: &str) -> bool {
        self.take(uid).is_some()
    }

    /// Whether a pod waits here.
    pub fn contains(&self, uid: &str) -> bool {
        self.pods.contains_key(uid)
    }

    /// UIDs of all waiting pods.
    pub fn uids(&self) -> Vec<Arc<str>> {
        self.pods.keys().cloned().collect()
    }

    /// The next pod to be tried.
    pub fn pop(&mut self, now: Instant) -> Option<Queued> {
        self.flush(now);
        let (_, _, uid) = self.active.first()?.clone();
        let (mut queued, _) = self.take(&uid)?;
        queued.attempts = queued.attempts.saturating_add(1);
        Some(queued)
    }

    /// Puts a pod back that no node fits; it waits for a change that helps `queued.rejected_by`.
    pub fn failed(&mut self, mut queued: Queued, now: Instant) {
        queued.backoff_until = now + backoff(queued.attempts);
        self.insert(queued, Place::Unschedulable { since: now });
    }

    /// Puts a pod back whose attempt failed by an error: it is tried again after the wait.
    pub fn errored(&mut self, mut queued: Queued, now: Instant) {
        queued.backoff_until = now + backoff(queued.attempts);
        self.insert(queued, Place::Backoff);
    }

    /// Moves the unschedulable pods that `helped` says a change may help: to be tried once their wait is over.
    pub fn move_if(&mut self, mut helped: impl FnMut(&Queued) -> bool, now: Instant) {
        if self.unschedulable.is_empty() {
            return;
        }
        let uids = self
            .unschedulable
            .iter()
            .filter(|(_, uid)| self.pods.get(uid).is_some_and(|(queued, _)| helped(queued)))
            .map(|(_, uid)| uid.clone())
            .collect::<Vec<_>>();
        for uid in uids {
            if let Some((queued, _)) = self.take(&uid) {
                let place = after_backoff(&queued, now);
                self.insert(queued, place);
            }
        }
    }

    /// Moves pods whose time has come.
    fn flush(&mut self, now: Instant) {
        while let Some((_, uid)) = self.backoff.first().filter(|(until, _)| *until <= now).cloned() {
            match self.take(&uid) {
                Some((queued, _)) => self.insert(queued, Place::Active),
                None => return,
            }
        }
        while let Some((_, uid)) =
            self.unschedulable.first().filter(|(since, _)| *since + MAX_UNSCHEDULABLE <= now).cloned()
        {
            match self.take(&uid) {
                Some((queued, _)) => {
                    let place = after_backoff(&queued, now);
                    self.insert(queued, place);
                }
                None => return,
            }
        }
    }

    /// When a pod's time comes next, if none is to be tried right away.
    pub fn next_wake(&self) -> Option<Instant> {
        let backoff = self.backoff.first().map(|(until, _)| *until);
        let unschedulable = self.unschedulable.first().map(|(since, _)| *since + MAX_UNSCHEDULABLE);
        backoff.into_iter().chain(unschedulable).min()
    }

    /// Number of pods by place.
    pub fn depth(&self) -> Depth {
        let (active, backoff, unschedulable) =
            (self.active.len(), self.backoff.len(), self.unschedulable.len());
        let gated = self.pods.len().saturating_sub(active + backoff + unschedulable);
        Depth { active, backoff, unschedulable, gated }
    }
}

fn after_backoff(queued: &Queued, now: Instant) -> Place {
    if queued.backoff_until > now { Place::Backoff } else { Place::Active }
}

#[cfg(test)]
mod tests;
