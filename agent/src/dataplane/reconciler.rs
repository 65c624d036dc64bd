//! Keeps the service maps in step with the API.
//!
//! Reads: the watches of Services and EndpointSlices. Writes: the service maps, through [`Datapath`]. Events that are
//! there at once are taken together; nothing is written before both lists were seen whole, so an agent that starts
//! never takes a service away that it has only not heard of yet.

use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kelp_model::plan::{Actual, plan};
use kelp_model::service::Index;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher::watcher};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::DatapathError;
use super::maps::Datapath;

/// Events taken together at most.
const BATCH: usize = 4_096;
/// First and longest pause after a failed write.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How often the maps are compared as a whole, against writers that should not exist.
const FULL_CHECK: Duration = Duration::from_secs(1_800);

/// Something the API told.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "moved once, from the watch to the index; a box would cost more"
)]
pub enum Change {
    /// About Services.
    Service(Event<Service>),
    /// About EndpointSlices.
    Slice(Event<EndpointSlice>),
}

/// The state between the API and the maps.
#[derive(Debug)]
pub struct Reconciler<D> {
    index: Index,
    datapath: D,
    /// What the maps hold; `None` when that is not known.
    actual: Option<Actual>,
    services: Listing<Service>,
    slices: Listing<EndpointSlice>,
    dirty: bool,
}

/// Objects of a list that is being received.
#[derive(Debug)]
struct Listing<T> {
    pending: Vec<T>,
    complete: bool,
}

impl<T> Default for Listing<T> {
    fn default() -> Self {
        Self { pending: Vec::new(), complete: false }
    }
}

impl<D: Datapath> Reconciler<D> {
    /// A reconciler for the node of this name.
    #[must_use]
    pub fn new(node: &str, datapath: D) -> Self {
        Self {
            index: Index::new(node),
            datapath,
            actual: None,
            services: Listing::default(),
            slices: Listing::default(),
            dirty: true,
        }
    }

    /// Takes over an event.
    pub fn observe(&mut self, change: Change) {
        self.dirty |= match change {
            Change::Service(Event::Apply(service)) => self.index.apply_service(&service),
            Change::Service(Event::Delete(service)) => self.index.delete_service(&service),
            Change::Service(Event::Init) => {
                self.services.pending.clear();
                false
            }
            Change::Service(Event::InitApply(service)) => {
                self.services.pending.push(service);
                false
            }
            Change::Service(Event::InitDone) => {
                self.services.complete = true;
                self.index.reset_services(&std::mem::take(&mut self.services.pending))
            }
            Change::Slice(Event::Apply(slice)) => self.index.apply_slice(&slice),
            Change::Slice(Event::Delete(slice)) => self.index.delete_slice(&slice),
            Change::Slice(Event::Init) => {
                self.slices.pending.clear();
                false
            }
            Change::Slice(Event::InitApply(slice)) => {
                self.slices.pending.push(slice);
                false
            }
            Change::Slice(Event::InitDone) => {
                self.slices.complete = true;
                self.index.reset_slices(&std::mem::take(&mut self.slices.pending))
            }
        };
    }

    /// Whether both lists were seen whole.
    #[must_use]
    pub fn listed(&self) -> bool {
        self.services.complete && self.slices.complete
    }

    /// Forgets what is known of the maps: the next [`Self::reconcile`] reads them.
    pub fn distrust(&mut self) {
        self.actual = None;
        self.dirty = true;
    }

    /// Brings the maps up to date; returns the number of operations.
    ///
    /// # Errors
    /// When a map could not be read or written. What was written stays, and the next call goes on from there.
    pub fn reconcile(&mut self) -> Result<usize, DatapathError> {
        if !self.listed() || !self.dirty {
            return Ok(0);
        }
        let mut actual = match self.actual.take() {
            Some(actual) => actual,
            None => self.datapath.read()?,
        };
        let ops = plan(&self.index.desired(), &actual);
        for op in &ops {
            // On a failure `actual` stays unknown, and the maps are read again.
            self.datapath.apply(op)?;
            actual.apply(op);
        }
        self.actual = Some(actual);
        self.dirty = false;
        Ok(ops.len())
    }

    /// Works until `shutdown` or the end of `changes`; `synced` becomes true after the first full write.
    pub async fn run(
        mut self,
        changes: impl Stream<Item = Change> + Send,
        synced: watch::Sender<bool>,
        shutdown: CancellationToken,
    ) {
        let mut changes = std::pin::pin!(changes.ready_chunks(BATCH));
        let mut pause = RETRY.0;
        let mut full_check = tokio::time::interval(FULL_CHECK);
        full_check.reset();
        let mut retry_at: Option<tokio::time::Instant> = None;
        loop {
            let retry = async {
                match retry_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                batch = changes.next() => {
                    let Some(batch) = batch else { return };
                    for change in batch {
                        self.observe(change);
                    }
                    if retry_at.is_some() {
                        continue;
                    }
                }
                _ = full_check.tick() => self.distrust(),
                () = retry => retry_at = None,
            }
            let started = std::time::Instant::now();
            match self.reconcile() {
                Ok(operations) => {
                    pause = RETRY.0;
                    if operations > 0 {
                        tracing::debug!(operations, elapsed = ?started.elapsed(), "service maps written");
                    }
                    if self.listed() {
                        synced.send_if_modified(|synced| !std::mem::replace(synced, true));
                    }
                }
                Err(error) => {
                    tracing::warn!(error = %super::chain(&error), ?pause, "service maps not written, trying again");
                    retry_at = Some(tokio::time::Instant::now() + pause);
                    pause = (pause * 2).min(RETRY.1);
                }
            }
        }
    }
}

/// The changes of Services and EndpointSlices; watches are re-established with a growing pause.
pub fn watch_api(client: &Client) -> impl Stream<Item = Change> + Send + use<> {
    let services = watcher(Api::<Service>::all(client.clone()), watcher::Config::default())
        .default_backoff()
        .filter_map(|event| async move { told(event, "services").map(Change::Service) });
    let slices = watcher(Api::<EndpointSlice>::all(client.clone()), watcher::Config::default())
        .default_backoff()
        .filter_map(|event| async move { told(event, "endpointslices").map(Change::Slice) });
    stream::select(services.boxed(), slices.boxed())
}

/// An event, or a line in the log about a watch that broke and will be made again.
fn told<T>(event: Result<Event<T>, watcher::Error>, what: &str) -> Option<Event<T>> {
    event.inspect_err(|error| tracing::debug!(error = %super::chain(error), what, "watch interrupted")).ok()
}

#[cfg(test)]
mod tests;
