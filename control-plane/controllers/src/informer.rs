//! One watch and one cache a kind, shared by all controllers.

mod cache;
mod set;

pub use cache::{Cache, NAMESPACE, OWNER, key_of};
pub use set::{Informers, Kind, MetaChange, MetaSource};

use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use kube::Resource;
use kube::runtime::WatchStreamExt;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{Error, Event};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What happened to an object. A watch that was interrupted may merge several changes into one.
pub enum Change<'a, K> {
    /// It was not in the cache before.
    Added(&'a Arc<K>),
    /// It was in the cache as `old`.
    Updated {
        /// Before.
        old: &'a Arc<K>,
        /// Now.
        new: &'a Arc<K>,
    },
    /// It is gone; this is its last state seen.
    Deleted(&'a Arc<K>),
}

impl<K> Change<'_, K> {
    /// The latest state.
    #[must_use]
    pub fn object(&self) -> &Arc<K> {
        match self {
            Self::Added(object) | Self::Deleted(object) | Self::Updated { new: object, .. } => object,
        }
    }
}

type Handler<K> = Box<dyn Fn(&Change<'_, K>) + Send + Sync>;

/// The cache of a kind and who is told of its changes.
pub struct Informer<K: Resource> {
    cache: RwLock<Cache<K>>,
    /// Held while a change is applied and handed out, so that handlers see changes in order.
    handlers: Mutex<Vec<Handler<K>>>,
    synced: watch::Sender<bool>,
}

impl<K: Resource + Send + Sync + 'static> Default for Informer<K> {
    fn default() -> Self {
        Self {
            cache: RwLock::new(Cache::default()),
            handlers: Mutex::new(Vec::new()),
            synced: watch::Sender::new(false),
        }
    }
}

impl<K: Resource + Send + Sync + 'static> Informer<K> {
    /// Calls `handler` for every change, and for each object known already. It must not block; the cache shows the change.
    pub fn on_change(&self, handler: impl Fn(&Change<'_, K>) + Send + Sync + 'static) {
        let mut handlers = self.handlers.lock();
        for object in self.list() {
            handler(&Change::Added(&object));
        }
        handlers.push(Box::new(handler));
    }

    /// Adds an index: `values` are what an object is found under.
    pub fn add_index(&self, name: &'static str, values: impl Fn(&K) -> Vec<String> + Send + Sync + 'static) {
        self.cache.write().add_index(name, Box::new(values));
    }

    /// The object of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Arc<K>> {
        self.cache.read().get(key)
    }

    /// All objects.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<K>> {
        self.cache.read().list()
    }

    /// Number of objects.
    #[must_use]
    pub fn len(&self) -> usize {
        self.cache.read().len()
    }

    /// Whether there is no object.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The objects found under `value` of an index.
    #[must_use]
    pub fn by_index(&self, index: &str, value: &str) -> Vec<Arc<K>> {
        self.cache.read().by_index(index, value)
    }

    /// The objects of a namespace.
    #[must_use]
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        self.by_index(NAMESPACE, namespace)
    }

    /// The objects whose controller has this UID.
    #[must_use]
    pub fn owned_by(&self, uid: &str) -> Vec<Arc<K>> {
        self.by_index(OWNER, uid)
    }

    /// Becomes true once the cache holds everything that existed at the start.
    #[must_use]
    pub fn synced(&self) -> watch::Receiver<bool> {
        self.synced.subscribe()
    }

    fn apply(&self, mut object: K) {
        object.meta_mut().managed_fields = None;
        let handlers = self.handlers.lock();
        let new = Arc::new(object);
        let old = self.cache.write().insert(new.clone());
        let change = match &old {
            Some(old) if old.meta().resource_version == new.meta().resource_version => return,
            // Deleted and created again while the watch was away.
            Some(old) if old.meta().uid != new.meta().uid => {
                handlers.iter().for_each(|h| h(&Change::Deleted(old)));
                Change::Added(&new)
            }
            Some(old) => Change::Updated { old, new: &new },
            None => Change::Added(&new),
        };
        handlers.iter().for_each(|h| h(&change));
    }

    fn remove(&self, object: &K) {
        let handlers = self.handlers.lock();
        let removed = self.cache.write().remove(&key_of(object.meta()));
        if let Some(removed) = removed {
            handlers.iter().for_each(|h| h(&Change::Deleted(&removed)));
        }
    }

    /// Replaces the contents, telling only what differs.
    fn replace(&self, objects: Vec<K>) {
        let keys: std::collections::HashSet<String> = objects.iter().map(|o| key_of(o.meta())).collect();
        for object in objects {
            self.apply(object);
        }
        for object in self.list() {
            if !keys.contains(&key_of(object.meta())) {
                self.remove(&object);
            }
        }
        self.synced.send_replace(true);
    }

    /// Removes all objects.
    fn clear(&self) {
        self.list().iter().for_each(|object| self.remove(object));
    }

    /// Follows a watch until `shutdown`.
    pub async fn run(
        &self,
        stream: impl Stream<Item = Result<Event<K>, Error>> + Send,
        shutdown: CancellationToken,
    ) {
        let mut stream = std::pin::pin!(stream.backoff(WatchBackoff::default()));
        let mut initial = Vec::new();
        loop {
            let event = tokio::select! {
                () = shutdown.cancelled() => return,
                event = stream.next() => event,
            };
            match event {
                Some(Ok(Event::Init)) => initial.clear(),
                Some(Ok(Event::InitApply(object))) => initial.push(object),
                Some(Ok(Event::InitDone)) => self.replace(std::mem::take(&mut initial)),
                Some(Ok(Event::Apply(object))) => self.apply(object),
                Some(Ok(Event::Delete(object))) => self.remove(&object),
                Some(Err(error)) => {
                    tracing::debug!(%error, kind = std::any::type_name::<K>(), "watch interrupted")
                }
                None => return,
            }
        }
    }
}

/// Waits between attempts to reach the API server: 50 ms doubling to 10 s, with up to a fifth at random so that all
/// watches do not return at once.
#[derive(Default)]
struct WatchBackoff {
    attempt: u32,
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let base =
            Duration::from_millis(50).saturating_mul(1 << self.attempt.min(8)).min(Duration::from_secs(10));
        self.attempt = self.attempt.saturating_add(1);
        Some(base.mul_f64(1.0 + rand::random::<f64>() / 5.0))
    }
}

impl Backoff for WatchBackoff {
    fn reset(&mut self) {
        self.attempt = 0;
    }
}

#[cfg(test)]
mod tests;
