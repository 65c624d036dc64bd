//! The running parts of the process and their orderly end.

use anyhow::{Context, Result};
use futures::FutureExt;
use futures::future::BoxFuture;
use std::panic::AssertUnwindSafe;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long the parts get to stop, before the API server is stopped too.
const STOP_TIMEOUT: Duration = Duration::from_secs(8);
/// How long the API server then gets.
const API_STOP_TIMEOUT: Duration = Duration::from_secs(4);

/// How a part ended.
type Ended = (&'static str, Result<()>);

/// Everything that runs. The API server ends after its clients, the store last.
pub struct Parts {
    shutdown: CancellationToken,
    api_shutdown: CancellationToken,
    tasks: JoinSet<Ended>,
    api_tasks: JoinSet<Ended>,
    last: Vec<BoxFuture<'static, ()>>,
}

impl Parts {
    /// Nothing yet; `shutdown` ends all of it.
    pub fn new(shutdown: CancellationToken) -> Self {
        Self {
            shutdown,
            api_shutdown: CancellationToken::new(),
            tasks: JoinSet::new(),
            api_tasks: JoinSet::new(),
            last: Vec::new(),
        }
    }

    /// The token that ends a part.
    pub fn shutdown(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    /// The token that ends the API server, once its clients in this process have ended.
    pub fn api_shutdown(&self) -> CancellationToken {
        self.api_shutdown.clone()
    }

    /// Runs a part. When it ends, for whatever reason, everything ends.
    pub fn spawn(&mut self, name: &'static str, part: impl Future<Output = Result<()>> + Send + 'static) {
        self.tasks.spawn(caught(name, part));
    }

    /// Runs a part that the others need to the end.
    pub fn spawn_api(&mut self, name: &'static str, part: impl Future<Output = Result<()>> + Send + 'static) {
        self.api_tasks.spawn(caught(name, part));
    }

    /// Does something when all parts have stopped.
    pub fn on_stopped(&mut self, work: impl Future<Output = ()> + Send + 'static) {
        self.last.push(work.boxed());
    }

    /// Waits for the shutdown, or for a part that ends on its own, and stops everything.
    ///
    /// # Errors
    /// The error of the part that failed first.
    pub async fn run(mut self) -> Result<()> {
        let first = tokio::select! {
            () = self.shutdown.cancelled() => None,
            Some(ended) = self.tasks.join_next() => Some(ended),
            Some(ended) = self.api_tasks.join_next() => Some(ended),
        };
        let result = match first {
            None => Ok(()),
            Some(Ok((name, result))) => {
                // At a shutdown a part may be quicker than the select above.
                let expected = self.shutdown.is_cancelled() && result.is_ok();
                if expected { Ok(()) } else { result.and_then(|()| Err(anyhow::anyhow!("the {name} ended"))) }
            }
            Some(Err(error)) => Err(error).context("a part of the process was aborted"),
        };
        self.stop().await;
        result
    }

    /// Stops everything, in order and in bounded time.
    pub async fn stop(mut self) {
        crate::systemd::notify_stopping();
        self.shutdown.cancel();
        drain(&mut self.tasks, STOP_TIMEOUT).await;
        self.api_shutdown.cancel();
        drain(&mut self.api_tasks, API_STOP_TIMEOUT).await;
        for work in self.last {
            work.await;
        }
    }
}

async fn caught(name: &'static str, part: impl Future<Output = Result<()>> + Send) -> Ended {
    match AssertUnwindSafe(part).catch_unwind().await {
        Ok(result) => (name, result),
        Err(_) => (name, Err(anyhow::anyhow!("the {name} panicked"))),
    }
}

async fn drain(tasks: &mut JoinSet<Ended>, limit: Duration) {
    let all = async {
        while let Some(ended) = tasks.join_next().await {
            if let Ok((name, Err(error))) = ended {
                tracing::warn!(name, error = format!("{error:#}"), "failed while stopping");
            }
        }
    };
    if tokio::time::timeout(limit, all).await.is_err() {
        tracing::warn!(?limit, "some parts did not stop in time");
        tasks.abort_all();
    }
}
