//! Pulls that pods wait for. A pull goes on by itself; the worker asks how it stands, and is woken when it has ended.

use crate::image::registry::{Keyring, Progress, Puller};
use crate::pod::context::ResolvedImage;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// What is pulled for whom: pod UID, container, reference.
pub type Key = (String, String, String);

/// A pull that has ended.
#[derive(Debug, Clone)]
pub enum Ended {
    /// The image is in the store.
    Pulled {
        /// The image.
        image: Box<ResolvedImage>,
        /// How long it took.
        took: Duration,
        /// Bytes of its layers.
        size: u64,
    },
    /// It is not, for this reason.
    Failed(String),
}

enum Pull {
    Running(tokio::task::AbortHandle),
    Ended(Ended),
}

/// How a pull stands.
pub enum Standing {
    /// It has not been started.
    None,
    /// It goes on.
    Running,
    /// It has ended; it is forgotten with this answer.
    Ended(Ended),
}

/// How often the log says how far a pull is.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Says in the log how far a pull is that takes long.
struct Log<'a> {
    reference: &'a str,
    state: Mutex<LogState>,
}

struct LogState {
    told: Instant,
    /// Bytes to download.
    bytes: u64,
    /// Bytes that are here, by layer.
    done: HashMap<String, u64>,
}

impl<'a> Log<'a> {
    fn new(reference: &'a str) -> Self {
        let state = LogState { told: Instant::now(), bytes: 0, done: HashMap::new() };
        Self { reference, state: Mutex::new(state) }
    }

    fn take(&self, step: Progress) {
        let mut state = self.state.lock();
        match step {
            Progress::Resolved { bytes, .. } => state.bytes = bytes,
            Progress::Downloading { digest, done, .. } => _ = state.done.insert(digest, done),
            Progress::Downloaded { digest, size } => _ = state.done.insert(digest, size),
            Progress::Unpacking => {}
        }
        if state.told.elapsed() >= LOG_EVERY {
            state.told = Instant::now();
            let (done, bytes) = (state.done.values().sum::<u64>(), state.bytes);
            tracing::info!(image = self.reference, done, bytes, "an image is being pulled");
        }
    }
}

/// The pulls of this node. Clones share them.
#[derive(Clone)]
pub struct Pulls {
    puller: Puller,
    pulls: Arc<Mutex<HashMap<Key, Pull>>>,
    /// Pulls at a time, if there is a limit.
    room: Option<Arc<Semaphore>>,
}

impl Pulls {
    /// Pulls with this puller, at most so many at a time; `None`: any number.
    pub fn new(puller: Puller, most: Option<usize>) -> Self {
        let room = most.map(|most| Arc::new(Semaphore::new(most.clamp(1, Semaphore::MAX_PERMITS))));
        Self { puller, pulls: Arc::default(), room }
    }

    /// How a pull stands.
    pub fn standing(&self, key: &Key) -> Standing {
        let mut pulls = self.pulls.lock();
        match pulls.get(key) {
            None => Standing::None,
            Some(Pull::Running(_)) => Standing::Running,
            Some(Pull::Ended(_)) => match pulls.remove(key) {
                Some(Pull::Ended(ended)) => Standing::Ended(ended),
                _ => Standing::None,
            },
        }
    }

    /// Starts a pull; `wake` is called when it has ended.
    pub fn start(&self, key: Key, keyring: Keyring, wake: impl Future<Output = ()> + Send + 'static) {
        let this = self.clone();
        let mut pulls = self.pulls.lock();
        let own = key.clone();
        let task = tokio::spawn(async move {
            let start = Instant::now();
            let permit = match &this.room {
                Some(room) => room.clone().acquire_owned().await.ok(),
                None => None,
            };
            let log = Log::new(&own.2);
            let tell = |step: Progress| log.take(step);
            let ended = match this.puller.pull_telling(&own.2, &keyring, &tell).await {
                Ok(image) => Ended::Pulled {
                    size: image.size,
                    image: Box::new(ResolvedImage { id: image.id, config: image.config }),
                    took: start.elapsed(),
                },
                Err(error) => Ended::Failed(error.to_string()),
            };
            drop(permit);
            // The entry of this task is there: it was made under the lock that is taken here.
            if let Some(entry) = this.pulls.lock().get_mut(&own) {
                *entry = Pull::Ended(ended);
            }
            wake.await;
        });
        pulls.insert(key, Pull::Running(task.abort_handle()));
    }

    /// Forgets what a pod waited for. What was downloaded stays for the next who asks.
    pub fn forget(&self, uid: &str) {
        self.pulls.lock().retain(|(pod, ..), pull| {
            if pod == uid
                && let Pull::Running(task) = pull
            {
                task.abort();
            }
            pod != uid
        });
    }
}
