//! Whether the cache shows a controller's own last writes yet.
//!
//! Used by controllers that name objects at random (slices): working on a stale cache they would write twice.

use std::collections::HashMap;
use std::time::Duration;

use kube::core::ObjectMeta;
use parking_lot::Mutex;
use tokio::time::Instant;

/// After this long a write that was not seen counts as seen (its object was deleted during an interrupted watch).
const TIMEOUT: Duration = Duration::from_secs(30);

/// Own writes not yet seen: by key, then UID; `None` is a deletion.
#[derive(Default)]
pub struct Tracker {
    pending: Mutex<HashMap<String, Writes>>,
}

#[derive(Default)]
struct Writes {
    by_uid: HashMap<String, Option<u64>>,
    since: Option<Instant>,
}

impl Tracker {
    /// The object as the server returned it from a write.
    pub fn wrote(&self, key: &str, written: &ObjectMeta) {
        self.note(key, written, version(written));
    }

    /// The object was deleted.
    pub fn deleted(&self, key: &str, meta: &ObjectMeta) {
        self.note(key, meta, None);
    }

    fn note(&self, key: &str, meta: &ObjectMeta, version: Option<u64>) {
        let mut pending = self.pending.lock();
        let writes = pending.entry(key.to_owned()).or_default();
        writes.by_uid.insert(meta.uid.clone().unwrap_or_default(), version);
        writes.since = Some(Instant::now());
    }

    /// The object is gone, whoever deleted it.
    pub fn gone(&self, key: &str, meta: &ObjectMeta) {
        if let Some(writes) = self.pending.lock().get_mut(key) {
            writes.by_uid.remove(meta.uid.as_deref().unwrap_or_default());
        }
    }

    /// Forgets a key whose objects are all to go.
    pub fn forget(&self, key: &str) {
        self.pending.lock().remove(key);
    }

    /// Whether the cache is as new as the writes for `key`; `cached` are the key's objects in the cache.
    pub fn is_current<'a>(&self, key: &str, cached: impl IntoIterator<Item = &'a ObjectMeta>) -> bool {
        let mut pending = self.pending.lock();
        let Some(writes) = pending.get_mut(key) else { return true };
        let cached: HashMap<&str, Option<u64>> =
            cached.into_iter().map(|m| (m.uid.as_deref().unwrap_or_default(), version(m))).collect();
        writes.by_uid.retain(|uid, wrote| match (wrote, cached.get(uid.as_str())) {
            (None, found) => found.is_some(),
            (Some(wrote), Some(Some(found))) => *found < *wrote,
            (Some(_), _) => true,
        });
        let done = writes.by_uid.is_empty() || writes.since.is_none_or(|since| since.elapsed() > TIMEOUT);
        if done {
            pending.remove(key);
        }
        done
    }

    /// How long to wait at most for the cache.
    #[must_use]
    pub fn timeout() -> Duration {
        TIMEOUT + Duration::from_secs(1)
    }
}

fn version(meta: &ObjectMeta) -> Option<u64> {
    meta.resource_version.as_deref()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(uid: &str, version: u64) -> ObjectMeta {
        ObjectMeta {
            uid: Some(uid.into()),
            resource_version: Some(version.to_string()),
            ..ObjectMeta::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn current_once_every_write_is_seen() {
        let t = Tracker::default();
        t.wrote("s", &meta("a", 5));
        t.wrote("s", &meta("b", 6));
        t.deleted("s", &meta("c", 2));
        assert!(!t.is_current("s", [&meta("a", 4), &meta("c", 2)]));
        assert!(!t.is_current("s", [&meta("a", 5), &meta("c", 2)]));
        assert!(!t.is_current("s", [&meta("a", 5)]));
        assert!(t.is_current("s", [&meta("a", 5), &meta("b", 9)]));
        t.wrote("s", &meta("d", 10));
        assert!(!t.is_current("s", []));
        t.gone("s", &meta("d", 10));
        assert!(t.is_current("s", []), "deleted by another before the cache was looked at");
        t.wrote("s", &meta("d", 10));
        t.forget("s");
        assert!(t.is_current("s", []));
        t.wrote("s", &meta("d", 10));
        assert!(!t.is_current("s", []));
        tokio::time::advance(TIMEOUT + Duration::from_secs(1)).await;
        assert!(t.is_current("s", []));
    }
}
