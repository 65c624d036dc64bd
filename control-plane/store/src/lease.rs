//! Leases: which keys they hold and when they end.

use crate::{Lease, LeaseStatus, StoreError};
use bytes::Bytes;
use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

/// etcd's longest time to live, in seconds.
const MAX_TTL: i64 = 9_000_000_000;

/// All leases by identity and by end.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    by_id: HashMap<i64, Held>,
    by_end: BTreeSet<(Instant, i64)>,
}

#[derive(Debug)]
struct Held {
    ttl: i64,
    end: Instant,
    keys: BTreeSet<Bytes>,
}

/// A time to live that etcd grants.
pub(crate) fn check_ttl(ttl: i64) -> Result<i64, StoreError> {
    match ttl {
        ..=0 => Err(StoreError::Invalid("lease TTL must be at least 1 second")),
        _ if ttl > MAX_TTL => Err(StoreError::Invalid("too large lease TTL")),
        _ => Ok(ttl),
    }
}

impl Leases {
    /// Adds a lease that lives `ttl` seconds from now.
    pub(crate) fn grant(&mut self, id: i64, ttl: i64, now: Instant) {
        let end = end(now, ttl);
        self.by_end.insert((end, id));
        self.by_id.insert(id, Held { ttl, end, keys: BTreeSet::new() });
    }

    /// Removes a lease.
    pub(crate) fn remove(&mut self, id: i64) {
        if let Some(held) = self.by_id.remove(&id) {
            self.by_end.remove(&(held.end, id));
        }
    }

    pub(crate) fn exists(&self, id: i64) -> bool {
        self.by_id.contains_key(&id)
    }

    /// Lets a lease that has not ended live its full time again.
    pub(crate) fn keep_alive(&mut self, id: i64, now: Instant) -> Result<Lease, StoreError> {
        let held = self.by_id.get_mut(&id).filter(|held| held.end > now).ok_or(StoreError::LeaseNotFound)?;
        self.by_end.remove(&(held.end, id));
        held.end = end(now, held.ttl);
        self.by_end.insert((held.end, id));
        Ok(Lease { id, ttl: held.ttl })
    }

    /// Moves a key from one lease (0: none) to another.
    pub(crate) fn rebind(&mut self, key: &Bytes, old: i64, new: i64) {
        if old == new {
            return;
        }
        if let Some(held) = self.by_id.get_mut(&old) {
            held.keys.remove(key);
        }
        if let Some(held) = self.by_id.get_mut(&new) {
            // A copy: the key given is a part of its record and would keep the value in memory.
            held.keys.insert(Bytes::copy_from_slice(key));
        }
    }

    pub(crate) fn keys(&self, id: i64) -> Vec<Bytes> {
        self.by_id.get(&id).map_or_else(Vec::new, |held| held.keys.iter().cloned().collect())
    }

    pub(crate) fn status(&self, id: i64, now: Instant) -> Result<LeaseStatus, StoreError> {
        let held = self.by_id.get(&id).ok_or(StoreError::LeaseNotFound)?;
        let remaining = held.end.saturating_duration_since(now).as_secs() as i64;
        Ok(LeaseStatus {
            lease: Lease { id, ttl: held.ttl },
            remaining,
            keys: held.keys.iter().cloned().collect(),
        })
    }

    pub(crate) fn all(&self) -> Vec<Lease> {
        let mut all: Vec<_> = self.by_id.iter().map(|(id, held)| Lease { id: *id, ttl: held.ttl }).collect();
        all.sort_unstable_by_key(|lease| lease.id);
        all
    }

    /// When the next lease ends.
    pub(crate) fn next_end(&self) -> Option<Instant> {
        self.by_end.first().map(|(end, _)| *end)
    }

    /// Leases that have ended, at most `limit`.
    pub(crate) fn ended(&self, now: Instant, limit: usize) -> Vec<i64> {
        self.by_end.iter().take_while(|(end, _)| *end <= now).take(limit).map(|(_, id)| *id).collect()
    }
}

fn end(now: Instant, ttl: i64) -> Instant {
    let forever = Duration::from_secs(MAX_TTL as u64);
    let ttl = Duration::from_secs(ttl.unsigned_abs()).min(forever);
    now.checked_add(ttl).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_ends_unless_it_is_kept_alive_before() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut leases = Leases::default();
        leases.grant(7, 10, start);
        leases.grant(8, 20, start);
        assert_eq!(leases.ended(at(9), 9), [] as [i64; 0]);
        leases.keep_alive(7, at(9)).unwrap();
        assert_eq!(leases.next_end(), Some(at(19)));
        assert_eq!(leases.ended(at(19), 9), [7]);
        assert!(matches!(leases.keep_alive(7, at(19)), Err(StoreError::LeaseNotFound)));
        assert_eq!(leases.ended(at(20), 9), [7, 8]);
        leases.remove(7);
        assert_eq!(leases.ended(at(20), 9), [8]);
    }

    #[test]
    fn a_key_belongs_to_one_lease() {
        let mut leases = Leases::default();
        leases.grant(1, 10, Instant::now());
        leases.grant(2, 10, Instant::now());
        let key = Bytes::from_static(b"k");
        leases.rebind(&key, 0, 1);
        leases.rebind(&key, 1, 2);
        assert!(leases.keys(1).is_empty());
        assert_eq!(leases.keys(2), ["k"]);
        leases.rebind(&key, 2, 0);
        assert!(leases.keys(2).is_empty());
    }

    #[test]
    fn times_to_live_outside_etcds_range_are_refused() {
        assert!(check_ttl(0).is_err() && check_ttl(-1).is_err() && check_ttl(MAX_TTL + 1).is_err());
        assert_eq!(check_ttl(MAX_TTL).unwrap(), MAX_TTL);
    }
}
