//! The store in this process.

use crate::engine::{Engine, LogEngine, MemoryEngine};
use crate::hub::{Hub, QueueLimits};
use crate::index::{Entry, Index};
use crate::lease::Leases;
use crate::lock::DirLock;
use crate::queue::{Command, Queue, Reply};
use crate::record::Record;
use crate::shared::Shared;
use crate::txn::{check_txn, writes};
use crate::values::Values;
use crate::view::{View, check_range};
use crate::{
    Lease, LeaseStatus, RangeRequest, RangeResponse, Store, StoreError, TxnRequest, TxnResponse,
    WatchRequest, Watcher, read, watch, writer,
};
use parking_lot::{Mutex, RwLock};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::thread::JoinHandle;
use std::time::Instant;
use tokio::sync::oneshot;

/// Settings of an [`EmbeddedStore`].
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Bytes of recently written values kept in memory.
    pub cache_bytes: usize,
    /// Events that wait for one watcher before it is closed with [`StoreError::WatchLagged`].
    pub watch_queue_events: usize,
    /// Bytes of such events; a batch shared by several watchers counts for each.
    pub watch_queue_bytes: usize,
}

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions { cache_bytes: 4 << 20, watch_queue_events: 8192, watch_queue_bytes: 16 << 20 }
    }
}

/// An embedded, durable store with etcd v3 semantics. Clones are handles of the same store; it shuts down when the
/// last one is dropped, or by [`EmbeddedStore::close`].
#[derive(Clone)]
pub struct EmbeddedStore {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    lock: Mutex<Option<DirLock>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.queue.close();
        if let Some(thread) = self.thread.lock().take() {
            // The last handle may be dropped on the writer's own stack only if it held one, which it does not.
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedStore").field("dir", &self.handle.shared.dir).finish_non_exhaustive()
    }
}

impl EmbeddedStore {
    /// Opens the store in `dir`, or creates it; blocks while the history is read.
    pub fn open(dir: impl Into<PathBuf>, options: StoreOptions) -> Result<Self, StoreError> {
        let dir = dir.into();
        let failed = |error| StoreError::from_engine(error, &dir);
        create_dir(&dir).map_err(|error| failed(error.into()))?;
        let lock = DirLock::acquire(&dir)?;
        let engine = LogEngine::open(&dir).map_err(failed)?;
        Self::start(Arc::new(engine), dir, options, Some(lock))
    }

    /// A store that is gone when it is dropped, for tests.
    pub fn in_memory() -> Self {
        match Self::with_engine(Arc::new(MemoryEngine::default()), StoreOptions::default()) {
            Ok(store) => store,
            Err(error) => unreachable!("an empty memory engine cannot fail: {error}"),
        }
    }

    /// A store on any engine.
    pub fn with_engine(engine: Arc<dyn Engine>, options: StoreOptions) -> Result<Self, StoreError> {
        Self::start(engine, PathBuf::from("memory"), options, None)
    }

    fn start(
        engine: Arc<dyn Engine>,
        dir: PathBuf,
        options: StoreOptions,
        lock: Option<DirLock>,
    ) -> Result<Self, StoreError> {
        let (mut index, leases) = load(engine.as_ref(), &dir)?;
        let reclaim = writer::sweep_all(&mut index);
        let limits = QueueLimits { events: options.watch_queue_events, bytes: options.watch_queue_bytes };
        let shared = Arc::new(Shared {
            hub: Arc::new(Hub::new(limits, index.revision)),
            state: RwLock::new(index),
            leases: Mutex::new(leases),
            values: Values::new(engine.clone(), dir.clone(), options.cache_bytes),
            engine,
            queue: Queue::new(),
            pins: AtomicUsize::new(0),
            dir,
        });
        let for_thread = shared.clone();
        let thread = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer::run(for_thread, reclaim))
            .map_err(|error| StoreError::Engine(format!("cannot start the writer thread: {error}")))?;
        Ok(EmbeddedStore {
            handle: Arc::new(Handle { shared, thread: Mutex::new(Some(thread)), lock: Mutex::new(lock) }),
        })
    }

    /// Shuts the store down: requests under way are answered, later ones fail with [`StoreError::Closed`], watches end
    /// with it. Another process can open the directory when this returns.
    pub async fn close(&self) {
        self.handle.shared.queue.close();
        let thread = self.handle.thread.lock().take();
        if let Some(thread) = thread {
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
        self.handle.lock.lock().take();
    }

    /// Bytes that the store occupies on disk.
    pub fn disk_bytes(&self) -> u64 {
        self.shared().engine.disk_bytes()
    }

    /// The oldest revision that can be read; 0 before the first compaction.
    pub fn compacted_revision(&self) -> i64 {
        self.shared().state.read().compacted
    }

    /// The store's directory.
    pub fn dir(&self) -> &Path {
        &self.shared().dir
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.shared().queue.push(command(reply)).await?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

/// Creates the directory so that its name survives a power cut.
pub(crate) fn create_dir(dir: &Path) -> std::io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    std::fs::create_dir_all(dir)?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))?;
    match dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => std::fs::File::open(parent)?.sync_all(),
        None => std::fs::File::open(".")?.sync_all(),
    }
}

/// Reads the history out of the engine.
fn load(engine: &dyn Engine, dir: &Path) -> Result<(Index, Leases), StoreError> {
    let failed = |error| StoreError::from_engine(error, dir);
    let corrupt = |detail: String| StoreError::Corrupt { path: dir.display().to_string(), detail };
    let now = Instant::now();
    let mut index = Index::default();
    let mut leases = Leases::default();
    for (name, value) in engine.meta().map_err(failed)? {
        let number = value.as_ref().try_into().map(i64::from_le_bytes);
        let number = number.map_err(|_| corrupt(format!("the fact {name} is not a number")))?;
        if name == writer::COMPACTED {
            index.compacted = number;
        } else if let Some(id) = name.strip_prefix(writer::LEASE).and_then(|id| id.parse().ok()) {
            leases.grant(id, number, now);
        }
    }
    index.revision = index.revision.max(index.compacted);
    let mut bad = None;
    let visit = &mut |at, bytes| match Record::decode(&bytes) {
        Some(Record { deleted, create, version, lease, key, .. }) => {
            index.push(&key, Entry { at, deleted, create, version, lease });
        }
        None => bad = Some(at),
    };
    engine.scan(visit).map_err(failed)?;
    if let Some(at) = bad {
        return Err(corrupt(format!("the record of revision {}.{} cannot be decoded", at.main, at.sub)));
    }
    for (key, entries) in &index.keys {
        if let Some(entry) = entries.last() {
            leases.rebind(key, 0, entry.lease);
        }
    }
    Ok((index, leases))
}

impl Store for EmbeddedStore {
    async fn range(&self, req: RangeRequest) -> Result<RangeResponse, StoreError> {
        check_range(&req)?;
        read::range(self.shared(), &req).await
    }

    async fn txn(&self, req: TxnRequest) -> Result<TxnResponse, StoreError> {
        check_txn(&req)?;
        if !writes(&req) {
            return read::txn(self.shared(), req).await;
        }
        self.ask(|reply| Command::Txn { req, reply }).await
    }

    async fn watch(&self, req: WatchRequest) -> Result<Watcher, StoreError> {
        watch::start(self.shared().clone(), req)
    }

    async fn compact(&self, revision: i64) -> Result<(), StoreError> {
        self.ask(|reply| Command::Compact { revision, reply }).await
    }

    async fn lease_grant(&self, id: i64, ttl: i64) -> Result<Lease, StoreError> {
        self.ask(|reply| Command::Grant { id, ttl, reply }).await
    }

    async fn lease_revoke(&self, id: i64) -> Result<(), StoreError> {
        self.ask(|reply| Command::Revoke { id, reply }).await
    }

    async fn lease_keepalive(&self, id: i64) -> Result<Lease, StoreError> {
        self.shared().leases.lock().keep_alive(id, Instant::now())
    }

    async fn lease_status(&self, id: i64) -> Result<LeaseStatus, StoreError> {
        self.shared().leases.lock().status(id, Instant::now())
    }

    async fn leases(&self) -> Result<Vec<Lease>, StoreError> {
        Ok(self.shared().leases.lock().all())
    }

    fn revision(&self) -> i64 {
        View::of(&self.shared().state.read()).revision
    }
}
