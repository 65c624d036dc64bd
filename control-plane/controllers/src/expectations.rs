//! What a controller has done that its cache may not show yet.
//!
//! A controller that counts objects in a cache and creates the missing ones would create them again when it runs before
//! the watch has delivered the first. It says here what it is about to do, and does nothing more for that key until all of
//! it was seen, or five minutes passed.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// After this long something went unseen for good (a watch that was interrupted): count anew.
const TIMEOUT: Duration = Duration::from_secs(300);

/// Creations and deletions not yet seen, by the key of the owner.
#[derive(Default)]
pub struct Expectations {
    pending: Mutex<HashMap<String, Pending>>,
}

struct Pending {
    creations: usize,
    /// UIDs.
    deletions: HashSet<String>,
    since: Instant,
}

impl Expectations {
    /// Says that `count` objects will be created for `key`.
    pub fn expect_creations(&self, key: &str, count: usize) {
        self.set(key, count, HashSet::new());
    }

    /// Says that the objects of these UIDs will be deleted for `key`.
    pub fn expect_deletions(&self, key: &str, uids: impl IntoIterator<Item = String>) {
        self.set(key, 0, uids.into_iter().collect());
    }

    fn set(&self, key: &str, creations: usize, deletions: HashSet<String>) {
        let pending = Pending { creations, deletions, since: Instant::now() };
        self.pending.lock().insert(key.to_owned(), pending);
    }

    /// An object of `key` was created, or its creation failed.
    pub fn creation_observed(&self, key: &str) {
        if let Some(pending) = self.pending.lock().get_mut(key) {
            pending.creations = pending.creations.saturating_sub(1);
        }
    }

    /// `count` creations will not happen.
    pub fn lower_creations(&self, key: &str, count: usize) {
        if let Some(pending) = self.pending.lock().get_mut(key) {
            pending.creations = pending.creations.saturating_sub(count);
        }
    }

    /// An object of `key` is being deleted or gone, or its deletion failed.
    pub fn deletion_observed(&self, key: &str, uid: &str) {
        if let Some(pending) = self.pending.lock().get_mut(key) {
            pending.deletions.remove(uid);
        }
    }

    /// Whether everything expected for `key` was seen.
    #[must_use]
    pub fn satisfied(&self, key: &str) -> bool {
        self.pending
            .lock()
            .get(key)
            .is_none_or(|p| (p.creations == 0 && p.deletions.is_empty()) || p.since.elapsed() > TIMEOUT)
    }

    /// Forgets a key whose owner is gone.
    pub fn forget(&self, key: &str) {
        self.pending.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn satisfied_when_all_was_seen_or_the_time_is_up() {
        let e = Expectations::default();
        assert!(e.satisfied("a"));
        e.expect_creations("a", 2);
        e.creation_observed("a");
        assert!(!e.satisfied("a"));
        e.creation_observed("a");
        assert!(e.satisfied("a"));
        e.expect_deletions("a", ["u1".to_owned(), "u2".to_owned()]);
        e.deletion_observed("a", "u1");
        e.deletion_observed("a", "u1");
        assert!(!e.satisfied("a"), "one UID seen twice is one");
        tokio::time::advance(TIMEOUT + Duration::from_secs(1)).await;
        assert!(e.satisfied("a"));
    }
}
