//! The watch cache: for every resource one store watch, all objects as served bytes, and a bounded window of events
//! that all watchers share.
//!
//! A watcher is a cursor into the window, not a queue: an event costs the same memory for one watcher or a thousand,
//! a slow watcher delays nobody, and one that the window has left behind is ended.

mod entry;
mod feed;
mod frame;
mod lane;
mod past;
mod window;

pub use entry::*;
pub use frame::*;
pub use past::*;
pub use window::*;

pub(crate) use feed::served;
pub(crate) use lane::LaneReader;

use crate::error::ApiError;
use crate::registry::Resource;
use crate::storage::StoreHandle;
use kelp_store::ProgressHandle;
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OnceCell, watch};
use tokio_util::sync::CancellationToken;

/// How long a read waits for the cache to reach a revision.
const FRESH_TIMEOUT: Duration = Duration::from_secs(3);

/// What readers and the feed share.
#[derive(Default)]
pub(crate) struct State {
    /// Objects by `namespace/name` or `name`; the order is that of the store's keys.
    pub(crate) objects: BTreeMap<Arc<str>, Arc<Entry>>,
    pub(crate) window: Window,
    /// Everything up to this revision is in.
    pub(crate) revision: i64,
    /// Counts rebuilds; cursors of an earlier one are void.
    pub(crate) epoch: u64,
    /// Bytes of all objects.
    pub(crate) bytes: usize,
}

/// The cache of one resource.
pub struct Cache {
    pub(crate) resource: Arc<Resource>,
    pub(crate) store: StoreHandle,
    pub(crate) state: RwLock<State>,
    /// For watchers that select by a field. Locked after the state.
    pub(crate) lanes: Mutex<lane::Lanes>,
    /// Revision reached; 0 until the first load.
    pub(crate) reached: watch::Sender<i64>,
    /// Changes with every event and rebuild; watchers wait on it.
    pub(crate) changed: watch::Sender<u64>,
    pub(crate) progress: Mutex<ProgressHandle>,
    started: OnceCell<()>,
    shutdown: CancellationToken,
    /// Nobody is to watch this cache any longer.
    retired: CancellationToken,
}

/// A reader's place in the window.
#[derive(Debug, Clone, Copy)]
pub struct Cursor {
    epoch: u64,
    sequence: u64,
    /// Events up to this revision are not for this reader.
    after: i64,
}

/// Why a cursor cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lagged;

impl Cache {
    /// A cache that loads when it is first used and ends with the token.
    pub fn new(resource: Arc<Resource>, store: StoreHandle, shutdown: CancellationToken) -> Arc<Self> {
        Arc::new(Cache {
            resource,
            store,
            state: RwLock::default(),
            lanes: Mutex::default(),
            reached: watch::Sender::new(0),
            changed: watch::Sender::new(0),
            progress: Mutex::default(),
            started: OnceCell::new(),
            retired: shutdown.child_token(),
            shutdown,
        })
    }

    async fn start(self: &Arc<Self>) {
        self.started
            .get_or_init(|| async {
                let cache = self.clone();
                let shutdown = self.shutdown.clone();
                tokio::spawn(shutdown.run_until_cancelled_owned(feed::run(cache)));
            })
            .await;
    }

    /// Waits until the cache holds at least this revision.
    pub async fn wait_for(self: &Arc<Self>, revision: i64) -> Result<(), ApiError> {
        self.start().await;
        let mut reached = self.reached.subscribe();
        // 0 means not loaded yet, whatever the revision asked for.
        let enough = |now: &i64| *now > 0 && *now >= revision;
        if enough(&reached.borrow()) {
            return Ok(());
        }
        let wait = async {
            loop {
                self.progress.lock().request();
                // The feed may replace its watch meanwhile: ask again after a while.
                match tokio::time::timeout(Duration::from_millis(250), reached.wait_for(enough)).await {
                    Ok(Ok(_)) => return true,
                    Ok(Err(_)) => return false,
                    Err(_) => {}
                }
            }
        };
        match tokio::time::timeout(FRESH_TIMEOUT, wait).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(ApiError::service_unavailable("the server is shutting down")),
            Err(_) => Err(ApiError::too_large_resource_version(revision, *self.reached.borrow())),
        }
    }

    /// Waits until the cache holds everything the store held when this was called.
    pub async fn wait_fresh(self: &Arc<Self>) -> Result<(), ApiError> {
        let revision = self.store.revision();
        self.wait_for(revision).await
    }

    /// Waits for the first load.
    pub async fn wait_loaded(self: &Arc<Self>) -> Result<(), ApiError> {
        self.wait_for(1).await
    }

    /// Whether everything the store holds is in; `false` too when the cache was not used yet.
    pub fn is_current(&self) -> bool {
        let reached = *self.reached.borrow();
        reached > 0 && reached >= self.store.revision()
    }

    /// All objects that a filter selects, after the key `start` (relative to the filter's namespace) if given.
    pub fn snapshot(&self, filter: &Filter, start: Option<&str>) -> Slice {
        // The newest revision is always at hand.
        self.slice(filter, &Wanted { start, ..Wanted::default() })
            .unwrap_or_else(|| selected(&self.resource, filter, 0, Vec::new(), 0, 0))
    }

    /// One object.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<Entry>> {
        let key = entry_key(self.resource.namespaced, namespace, name);
        self.state.read().objects.get(key.as_str()).cloned()
    }

    /// A cursor for the events after a revision.
    pub fn cursor_after(&self, revision: i64) -> Result<Cursor, ApiError> {
        let state = self.state.read();
        match state.window.sequence_after(revision) {
            Some(sequence) => Ok(Cursor { epoch: state.epoch, sequence, after: revision }),
            None => Err(ApiError::expired(format!(
                "too old resource version: {revision} ({})",
                state.window.start_revision()
            ))),
        }
    }

    /// The next events of a cursor, at most `max`, and the revision everything up to which has been handed out.
    pub fn read(&self, cursor: &mut Cursor, max: usize) -> Result<(Vec<Arc<CacheEvent>>, i64), Lagged> {
        let state = self.state.read();
        if state.epoch != cursor.epoch {
            return Err(Lagged);
        }
        let Some(events) = state.window.read(cursor.sequence, max) else { return Err(Lagged) };
        cursor.sequence += events.len() as u64;
        let revision = if cursor.sequence == state.window.next_sequence() {
            state.revision
        } else {
            events.last().map_or(cursor.after, |e| e.revision - 1)
        };
        let after = cursor.after;
        let events = events.into_iter().filter(|e| e.revision > after).collect();
        Ok((events, revision.max(after)))
    }

    /// Asks the store how far this cache is.
    pub fn request_progress(&self) {
        self.progress.lock().request();
    }

    /// Ends with the server, or when the resource is not served like this any more: watches end then.
    pub fn retired(&self) -> &CancellationToken {
        &self.retired
    }

    /// Ends all watches, and, when the requests under way had their time, the feed. The token given to [`Cache::new`]
    /// must be this cache's own.
    pub(crate) fn retire(self: &Arc<Self>) {
        self.retired.cancel();
        let shutdown = self.shutdown.clone();
        tokio::spawn(async move {
            tokio::time::sleep(2 * FRESH_TIMEOUT).await;
            shutdown.cancel();
        });
    }

    /// Number of objects, and their bytes.
    pub fn size(&self) -> (usize, usize) {
        let state = self.state.read();
        (state.objects.len(), state.bytes)
    }

    /// Place in the window of what a cursor reads next.
    pub(crate) fn place(cursor: &Cursor) -> u64 {
        cursor.sequence
    }

    /// Who waits for changes of any object.
    pub fn watchers(&self) -> usize {
        self.changed.receiver_count()
    }

    /// Wakes with every change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Revision reached.
    pub fn revision(&self) -> i64 {
        *self.reached.borrow()
    }
}
