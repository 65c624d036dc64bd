//! What every controller gets: client, caches, events, tasks.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use kube::Client;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::events::{Events, Recorder};
use crate::informer::{Informer, Informers, Kind};
use crate::kinds::Kinds;
use crate::queue::{Key, Queue};

/// Shared by all controllers of one manager.
pub struct Context {
    /// Client of the API server.
    pub client: Client,
    /// Settings.
    pub config: Config,
    /// Caches.
    pub informers: Arc<Informers>,
    /// Kinds that the server serves.
    pub kinds: Kinds,
    /// Events.
    pub events: Events,
    /// Tasks of the manager.
    pub tasks: TaskTracker,
    /// Ends all tasks.
    pub shutdown: CancellationToken,
}

impl Context {
    /// The informer of a kind.
    pub fn informer<K: Kind>(&self) -> Arc<Informer<K>> {
        self.informers.of()
    }

    /// Records events as a component.
    #[must_use]
    pub fn recorder(&self, component: &'static str) -> Recorder {
        self.events.recorder(component)
    }

    /// Runs a task until it ends or the manager shuts down.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let shutdown = self.shutdown.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// Runs `count` workers: each takes a key off `queue` and calls `sync`, once all caches are complete. A key whose
    /// `sync` fails is tried again with back-off.
    pub fn workers<F, S>(&self, name: &'static str, queue: &Queue, count: usize, sync: S)
    where
        S: Fn(Key) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<()>> + Send,
    {
        for _ in 0..count {
            let (queue, sync, informers) = (queue.clone(), sync.clone(), self.informers.clone());
            self.spawn(async move {
                informers.synced().await;
                loop {
                    let key = queue.next().await;
                    // A panic is a bug in one controller; the others and the other keys go on.
                    match AssertUnwindSafe(sync(key.clone())).catch_unwind().await {
                        Ok(Ok(())) => queue.forget(&key),
                        Ok(Err(error)) => {
                            if error.is_conflict()
                                || error.is_not_found()
                                || matches!(error, Error::Waiting(_))
                            {
                                tracing::debug!(controller = name, %key, %error, "trying again");
                            } else {
                                tracing::warn!(controller = name, %key, %error, "trying again");
                            }
                            queue.add_rate_limited(key.clone());
                        }
                        Err(_) => {
                            tracing::error!(controller = name, %key, "controller panicked");
                            queue.add_rate_limited(key.clone());
                        }
                    }
                    queue.done(&key);
                }
            });
        }
    }
}
