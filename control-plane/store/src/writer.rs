//! The writer thread: the only one that changes the store.
//!
//! It takes all requests that wait, evaluates them one after the other, commits them together (one fsync), and only
//! then shows the changes to readers and watchers and answers. In between it ends leases and gives compacted space
//! back. Reads: the queue. Writes: the engine, then `Shared::state`, `Shared::leases` and the hub.

mod reclaim;

use crate::engine::Batch;
use crate::lease::check_ttl;
use crate::queue::{Command, Reply, Wait};
use crate::shared::Shared;
use crate::txn::{Evaluator, Pending};
use crate::{Lease, StoreError};
use bytes::Bytes;
use reclaim::Reclaim;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

pub(crate) use reclaim::sweep_all;

/// Most requests that share one fsync.
const MAX_BATCH: usize = 1024;
/// Most leases ended in one commit.
const MAX_ENDED: usize = 128;
/// Time to the next try when ended leases or compacted records could not be removed.
const RETRY: Duration = Duration::from_secs(2);

/// Name of the fact that holds the compacted revision.
pub(crate) const COMPACTED: &str = "compacted";
/// Prefix of the facts that hold the seconds of a lease.
pub(crate) const LEASE: &str = "lease/";

/// Runs until the queue is closed.
pub(crate) fn run(shared: Arc<Shared>, reclaim: Reclaim) {
    Writer { shared: shared.clone(), reclaim, retry_at: None, full: false }.run();
    shared.hub.close();
}

struct Writer {
    shared: Arc<Shared>,
    reclaim: Reclaim,
    /// No background work before this instant: the last one failed.
    retry_at: Option<Instant>,
    full: bool,
}

/// Answers a request once the outcome of the commit is known.
type Answer = Box<dyn FnOnce(Result<(), StoreError>)>;

impl Writer {
    fn run(&mut self) {
        loop {
            let work = self.shared.queue.take(MAX_BATCH, self.wait());
            let now = Instant::now();
            if self.retry_at.is_some_and(|at| at <= now) {
                self.retry_at = None;
            }
            let ended = match self.retry_at {
                None => self.shared.leases.lock().ended(now, MAX_ENDED),
                Some(_) => Vec::new(),
            };
            if !work.commands.is_empty() || !ended.is_empty() {
                self.batch(work.commands, ended, now);
            }
            if work.closed {
                return;
            }
            if self.retry_at.is_none() && self.shared.pins.load(Ordering::SeqCst) == 0 {
                self.background(now);
            }
        }
    }

    fn wait(&self) -> Wait {
        let reclaim = self.reclaim.has_work() && self.shared.pins.load(Ordering::SeqCst) == 0;
        let lease = self.shared.leases.lock().next_end();
        match (self.retry_at, lease) {
            (None, _) if reclaim => Wait::No,
            (Some(retry), _) if reclaim => Wait::Until(retry),
            (_, None) => Wait::Forever,
            (retry, Some(end)) => Wait::Until(retry.map_or(end, |retry| end.max(retry))),
        }
    }

    fn background(&mut self, now: Instant) {
        if let Err(error) = self.reclaim.step(&self.shared) {
            tracing::warn!(%error, "compacted records could not be removed, will try again");
            self.retry_at = Some(now + RETRY);
        }
    }

    fn batch(&mut self, commands: Vec<Command>, ended: Vec<i64>, now: Instant) {
        let shared = self.shared.clone();
        let mut batch = Batch::default();
        let mut compacted = None;
        let mut answers: Vec<Answer> = Vec::with_capacity(commands.len());
        let mut pending;
        {
            let state = shared.state.read();
            pending = Pending::new(&state);
            for id in &ended {
                let revoked = revoke(&shared, &state, &mut pending, *id);
                if let Err(error) = revoked {
                    tracing::warn!(lease = *id, %error, "an ended lease could not be revoked, will try again");
                    self.retry_at = Some(now + RETRY);
                }
            }
            for command in commands {
                answers.push(match command {
                    Command::Txn { req, reply } => {
                        let mut evaluator =
                            Evaluator { base: &state, values: &shared.values, pending: &mut pending };
                        answer(reply, evaluator.txn(&req, |id| shared.leases.lock().exists(id)))
                    }
                    Command::Compact { revision, reply } => {
                        let oldest = compacted.unwrap_or(state.compacted);
                        let result = check_compaction(revision, oldest, pending.revision);
                        if result.is_ok() {
                            compacted = Some(revision);
                        }
                        answer(reply, result)
                    }
                    Command::Grant { id, ttl, reply } => answer(reply, grant(&shared, &mut pending, id, ttl)),
                    Command::Revoke { id, reply } => answer(reply, revoke(&shared, &state, &mut pending, id)),
                });
            }
        }
        batch.puts = pending.records.iter().map(|(at, record)| (*at, record.clone())).collect();
        batch.meta = pending
            .leases
            .iter()
            .map(|(id, ttl)| {
                (format!("{LEASE}{id}"), ttl.map(|ttl| Bytes::copy_from_slice(&ttl.to_le_bytes())))
            })
            .collect();
        if let Some(revision) = compacted {
            batch.meta.push((COMPACTED.to_owned(), Some(Bytes::copy_from_slice(&revision.to_le_bytes()))));
        }
        let outcome = if batch.is_empty() { Ok(()) } else { self.commit(&batch) };
        if outcome.is_ok() {
            self.publish(pending, compacted, now);
        } else if !ended.is_empty() {
            self.retry_at = Some(now + RETRY);
        }
        for answer in answers {
            answer(outcome.clone());
        }
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let outcome = self.shared.engine.commit(batch).map_err(|error| self.shared.engine_error(error));
        match &outcome {
            Err(error @ StoreError::NoSpace { .. }) if !self.full => {
                self.full = true;
                tracing::error!(%error, "writes are refused");
            }
            Err(StoreError::NoSpace { .. }) => {}
            Err(error) => tracing::error!(%error, "a commit failed"),
            Ok(()) if self.full => {
                self.full = false;
                tracing::info!("space is free again, writes go on");
            }
            Ok(()) => {}
        }
        outcome
    }

    /// Shows durable changes to readers and watchers.
    fn publish(&mut self, pending: Pending, compacted: Option<i64>, now: Instant) {
        let Pending { history, records, events, leases: changed, .. } = pending;
        let shared = &self.shared;
        shared.values.remember(records.iter().map(|(at, record)| (*at, record)));
        let mut state = shared.state.write();
        let mut leases = shared.leases.lock();
        for (id, ttl) in &changed {
            if let Some(ttl) = ttl {
                leases.remove(*id);
                leases.grant(*id, *ttl, now);
            }
        }
        for (key, entries) in history {
            let before =
                state.keys.get(&key).and_then(|entries| entries.last()).map_or(0, |entry| entry.lease);
            let after = entries.last().map_or(before, |entry| entry.lease);
            leases.rebind(&key, before, after);
            for entry in entries {
                state.push(&key, entry);
            }
        }
        for (id, _) in changed.iter().filter(|(_, ttl)| ttl.is_none()) {
            leases.remove(*id);
        }
        drop(leases);
        if let Some(revision) = compacted {
            state.compacted = revision;
            self.reclaim.start();
        }
        // Under the lock: nobody reads a revision that request_progress does not know yet.
        shared.hub.publish(events);
    }
}

fn answer<T: 'static>(reply: Reply<T>, result: Result<T, StoreError>) -> Answer {
    // The requester may have gone; its change stands all the same.
    Box::new(move |outcome| {
        let _ = reply.send(result.and_then(|value| outcome.map(|()| value)));
    })
}

fn check_compaction(revision: i64, oldest: i64, newest: i64) -> Result<(), StoreError> {
    match revision {
        _ if revision <= oldest => Err(StoreError::Compacted { compact_revision: oldest }),
        _ if revision > newest => Err(StoreError::FutureRevision { revision: newest }),
        _ => Ok(()),
    }
}

fn lease_exists(shared: &Shared, pending: &Pending, id: i64) -> bool {
    match pending.leases.get(&id) {
        Some(change) => change.is_some(),
        None => shared.leases.lock().exists(id),
    }
}

fn grant(shared: &Shared, pending: &mut Pending, id: i64, ttl: i64) -> Result<Lease, StoreError> {
    let ttl = check_ttl(ttl)?;
    let id = match id {
        ..0 => return Err(StoreError::Invalid("lease ID must not be negative")),
        0 => loop {
            let id = (RandomState::new().build_hasher().finish() >> 1) as i64;
            if id != 0 && !lease_exists(shared, pending, id) {
                break id;
            }
        },
        _ if lease_exists(shared, pending, id) => return Err(StoreError::LeaseExists),
        _ => id,
    };
    pending.leases.insert(id, Some(ttl));
    Ok(Lease { id, ttl })
}

fn revoke(
    shared: &Shared,
    state: &crate::index::Index,
    pending: &mut Pending,
    id: i64,
) -> Result<(), StoreError> {
    if !lease_exists(shared, pending, id) {
        return Err(StoreError::LeaseNotFound);
    }
    let mut keys = shared.leases.lock().keys(id);
    keys.extend(pending.history.keys().cloned());
    keys.retain(|key| pending.view(state).entry(key, i64::MAX).is_some_and(|entry| entry.lease == id));
    keys.sort_unstable();
    keys.dedup();
    Evaluator { base: state, values: &shared.values, pending }.delete_keys(keys)?;
    pending.leases.insert(id, None);
    Ok(())
}
