//! Keeps the service maps in step with the API.
//!
//! Reads: the watches of Services, EndpointSlices, this node's Pods and its Node. Writes: the service maps, through
//! [`Datapath`]; what others need to know of the services, through [`Reports`]. Events that are there at once are taken
//! together; nothing is written before all lists were seen whole, so an agent that starts never takes a service away
//! that it has only not heard of yet. While the API does not answer, nothing changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kelp_common::{Address, UDP};
use kelp_model::plan::{Actual, Ids, plan, plan_changes};
use kelp_model::service::{BackendKey, Conflict, HealthCheck, Index, ObjectName};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher::watcher};
use kube::{Api, Client};
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::DatapathError;
use super::events::Events;
use super::maps::Datapath;
use super::names::ServiceNames;
use super::status::Status;

pub mod execute;

use execute::{Outcome, ends_a_stay, execute, stickiness};

/// Events taken together at most.
const BATCH: usize = 4_096;
/// First and longest pause after a failed write.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How often the maps are compared as a whole, against writers that should not exist.
const FULL_CHECK: Duration = Duration::from_secs(1_800);
/// When the endpoints of a slice changed, as the endpoint controllers write it.
const TRIGGER_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";

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
    /// About the node's Pods.
    Pod(Event<Pod>),
    /// About the Node.
    Node(Event<Node>),
}

impl Change {
    /// The events of a node without pods and without a Node object: for tests and tools.
    #[must_use]
    pub fn of_a_bare_node() -> Vec<Self> {
        vec![
            Self::Pod(Event::Init),
            Self::Pod(Event::InitDone),
            Self::Node(Event::Init),
            Self::Node(Event::InitDone),
        ]
    }
}

/// The frontends of datagrams and the endpoints behind them that serve.
pub type Datagrams = BTreeMap<(Address, u16), Arc<BTreeSet<BackendKey>>>;

/// What others need to know of the services.
#[derive(Debug, Clone)]
pub struct Reports {
    /// Services with `healthCheckNodePort`.
    pub health_checks: watch::Sender<BTreeMap<ObjectName, HealthCheck>>,
    /// Where datagrams may go.
    pub datagrams: watch::Sender<Arc<Datagrams>>,
    /// Pods whose sockets are left alone.
    pub opted_out: watch::Sender<BTreeSet<Address>>,
    /// How the dataplane is.
    pub status: Arc<Status>,
    /// Events.
    pub events: Events,
}

impl Default for Reports {
    fn default() -> Self {
        Self {
            health_checks: watch::Sender::default(),
            datagrams: watch::Sender::default(),
            opted_out: watch::Sender::default(),
            status: Arc::default(),
            events: Events::discarding(),
        }
    }
}

/// The state between the API and the maps.
#[derive(Debug)]
pub struct Reconciler<D> {
    index: Arc<RwLock<Index>>,
    datapath: D,
    /// What the maps hold; `None` when that is not known.
    actual: Option<Actual>,
    /// Ids in the maps.
    ids: Ids,
    /// Something of the last plan was left out.
    incomplete: bool,
    services: Listing<Service>,
    slices: Listing<EndpointSlice>,
    pods: Listing<Pod>,
    nodes: Listing<Node>,
    dirty: bool,
    /// When the endpoints changed that are not in the maps yet.
    triggers: Vec<Timestamp>,
    /// Changes that are older are not this agent's to measure.
    started: Timestamp,
    conflicts: Vec<Conflict>,
    reports: Reports,
    names: Option<ServiceNames>,
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

impl<T> Listing<T> {
    /// Takes over an event of the watch; returns the whole list when it is complete, else the event.
    fn take(&mut self, event: Event<T>) -> Listed<T> {
        match event {
            Event::Init => {
                self.pending.clear();
                Listed::Nothing
            }
            Event::InitApply(object) => {
                self.pending.push(object);
                Listed::Nothing
            }
            Event::InitDone => {
                self.complete = true;
                Listed::All(std::mem::take(&mut self.pending))
            }
            Event::Apply(object) => Listed::Applied(object),
            Event::Delete(object) => Listed::Deleted(object),
        }
    }
}

enum Listed<T> {
    Nothing,
    All(Vec<T>),
    Applied(T),
    Deleted(T),
}

impl<D: Datapath> Reconciler<D> {
    /// A reconciler for the node of this name, whose reports nobody reads.
    #[must_use]
    pub fn new(node: &str, datapath: D) -> Self {
        Self::with_reports(node, datapath, Reports::default())
    }

    /// A reconciler for the node of this name.
    #[must_use]
    pub fn with_reports(node: &str, datapath: D, reports: Reports) -> Self {
        Self::with_index(Arc::new(RwLock::new(Index::new(node))), datapath, reports)
    }

    /// A reconciler that keeps this index, which others may read.
    #[must_use]
    pub fn with_index(index: Arc<RwLock<Index>>, datapath: D, reports: Reports) -> Self {
        Self {
            index,
            datapath,
            actual: None,
            ids: Ids::default(),
            incomplete: false,
            services: Listing::default(),
            slices: Listing::default(),
            pods: Listing::default(),
            nodes: Listing::default(),
            dirty: true,
            triggers: Vec::new(),
            started: Timestamp::now(),
            conflicts: Vec::new(),
            reports,
            names: None,
        }
    }

    /// Has the tables named, for those who look at the maps.
    #[must_use]
    pub fn with_names(mut self, names: ServiceNames) -> Self {
        self.names = Some(names);
        self
    }

    /// Takes over an event.
    pub fn observe(&mut self, change: Change) {
        let mut index = self.index.write();
        let changed = match change {
            Change::Service(event) => {
                let changed = match self.services.take(event) {
                    Listed::Nothing => false,
                    Listed::All(services) => index.reset_services(&services),
                    Listed::Applied(service) => index.apply_service(&service),
                    Listed::Deleted(service) => index.delete_service(&service),
                };
                self.reports.status.service_changes(u64::from(changed));
                changed
            }
            Change::Slice(event) => {
                let changed = match self.slices.take(event) {
                    Listed::Nothing => false,
                    Listed::All(slices) => index.reset_slices(&slices),
                    Listed::Applied(slice) => {
                        let changed = index.apply_slice(&slice);
                        if changed {
                            let started = self.started;
                            self.triggers.extend(trigger(&slice).filter(|time| *time > started));
                        }
                        changed
                    }
                    Listed::Deleted(slice) => index.delete_slice(&slice),
                };
                self.reports.status.endpoint_changes(u64::from(changed));
                changed
            }
            Change::Pod(event) => match self.pods.take(event) {
                Listed::Nothing => false,
                Listed::All(pods) => index.reset_pods(&pods),
                Listed::Applied(pod) => index.apply_pod(&pod),
                Listed::Deleted(pod) => index.delete_pod(&pod),
            },
            Change::Node(event) => {
                let node = match self.nodes.take(event) {
                    Listed::Nothing | Listed::Deleted(_) => None,
                    Listed::All(nodes) => nodes.into_iter().next(),
                    Listed::Applied(node) => Some(node),
                };
                match node {
                    Some(node) => {
                        self.reports.status.node(&node);
                        index.apply_node(&node)
                    }
                    None => false,
                }
            }
        };
        drop(index);
        if changed {
            self.reports.status.queued();
        }
        self.dirty |= changed;
    }

    /// Whether all lists were seen whole.
    #[must_use]
    pub fn listed(&self) -> bool {
        self.services.complete && self.slices.complete && self.pods.complete && self.nodes.complete
    }

    /// Forgets what is known of the maps: the next [`Self::reconcile`] reads them.
    pub fn distrust(&mut self) {
        self.actual = None;
        self.dirty = true;
    }

    /// Brings the maps up to date; returns what was done. When a map was full, the rest is done by a later call.
    ///
    /// # Errors
    /// When a map could not be read or written. What was written stays, and the next call goes on from there.
    pub fn reconcile(&mut self) -> Result<Outcome, DatapathError> {
        if !self.listed() || !self.dirty {
            return Ok(Outcome::default());
        }
        self.write().inspect_err(|_| self.reports.status.sync_failed())
    }

    /// Writes what changed.
    fn write(&mut self) -> Result<Outcome, DatapathError> {
        let started = std::time::Instant::now();
        let fresh = self.actual.is_none();
        // On a failure `actual` stays unknown, and the maps are read again.
        let mut actual = match self.actual.take() {
            Some(actual) => actual,
            None => self.datapath.read()?,
        };
        let touched = self.index.write().update();
        let whole = fresh || self.incomplete;
        let index = self.index.read();
        let ops = if whole {
            let (ops, ids) = plan(index.current(), &actual);
            self.ids = ids;
            ops
        } else {
            plan_changes(index.current(), &actual, &touched, &mut self.ids)
        };
        drop(index);
        // Clients are forgotten on the word of what the maps held, so that one that was not forgotten in time is.
        let forget = fresh || ends_a_stay(&ops, &actual);
        let outcome = execute(&ops, &mut actual, &mut self.datapath)?;
        if forget {
            self.datapath.retain_clients(&stickiness(&actual))?;
        }
        if let Some(names) = &mut self.names {
            names.follow(&self.ids, (!whole).then_some(&touched.tables));
        }
        self.reports.status.sizes(&actual);
        self.actual = Some(actual);
        self.incomplete = outcome.skipped > 0;
        self.dirty = self.incomplete;
        let datagrams = whole || touched.frontends.iter().any(|key| key.protocol == UDP);
        self.report(datagrams, &outcome, whole, started.elapsed());
        Ok(outcome)
    }

    /// Tells what was written; `datagrams` when where they go may have changed, `whole` when everything was compared.
    fn report(&mut self, datagrams: bool, outcome: &Outcome, whole: bool, elapsed: Duration) {
        let index = self.index.read();
        let (reports, desired) = (&self.reports, index.current());
        let (now, triggers) = (Timestamp::now(), std::mem::take(&mut self.triggers));
        let programmed = triggers.into_iter().map(|at| now.duration_since(at).as_secs_f64());
        reports.status.synced(
            elapsed,
            whole,
            programmed,
            desired.without_local_endpoints,
            outcome.skipped == 0,
        );
        for map in &outcome.full {
            reports.status.full(map);
            reports.events.map_full(map, outcome.skipped);
        }
        for conflict in desired.conflicts.iter().filter(|conflict| !self.conflicts.contains(conflict)) {
            reports.events.conflict(conflict);
        }
        if datagrams {
            let datagrams: Datagrams = desired
                .frontends
                .iter()
                .filter(|(key, _)| key.protocol == UDP)
                .filter_map(|(key, to)| Some(((key.address, key.port), to.serving.clone()?)))
                .collect();
            set(&reports.datagrams, Arc::new(datagrams));
        }
        set(&reports.health_checks, desired.health_checks.clone());
        set(&reports.opted_out, desired.opted_out.clone());
        self.conflicts.clone_from(&desired.conflicts);
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
            // Whether this is the time to write again what could not be written.
            let mut again = false;
            tokio::select! {
                () = shutdown.cancelled() => return,
                batch = changes.next() => {
                    let Some(batch) = batch else { return };
                    let before = std::mem::take(&mut self.dirty);
                    for change in batch {
                        self.observe(change);
                    }
                    let news = self.dirty;
                    self.dirty |= before;
                    // A full map may have room after any change; a kernel that refuses is asked again later.
                    if retry_at.is_some() && (self.actual.is_none() || !news) {
                        continue;
                    }
                }
                _ = full_check.tick() => self.distrust(),
                () = retry => again = true,
            }
            let started = std::time::Instant::now();
            let result = self.reconcile();
            match &result {
                Ok(outcome) if outcome.skipped == 0 => {
                    (pause, retry_at) = (RETRY.0, None);
                    if outcome.operations > 0 {
                        let operations = outcome.operations;
                        tracing::debug!(operations, elapsed = ?started.elapsed(), "service maps written");
                    }
                }
                Ok(outcome) => {
                    tracing::warn!(full = ?outcome.full, left_out = outcome.skipped, "service maps are full");
                }
                Err(error) => {
                    tracing::warn!(error = %super::chain(error), ?pause, "service maps not written, trying again");
                }
            }
            if result.is_ok() && self.listed() {
                synced.send_if_modified(|synced| !std::mem::replace(synced, true));
            }
            let incomplete = result.map_or(true, |outcome| outcome.skipped > 0);
            if incomplete && (again || retry_at.is_none()) {
                retry_at = Some(tokio::time::Instant::now() + pause);
                pause = (pause * 2).min(RETRY.1);
            }
        }
    }
}

/// Tells a value that is new.
fn set<T: PartialEq>(sender: &watch::Sender<T>, value: T) {
    sender.send_if_modified(|known| {
        let new = *known != value;
        if new {
            *known = value;
        }
        new
    });
}

/// When the endpoints of a slice changed.
fn trigger(slice: &EndpointSlice) -> Option<Timestamp> {
    slice.metadata.annotations.as_ref()?.get(TRIGGER_ANNOTATION)?.parse().ok()
}

/// The changes of everything the dataplane follows; watches are re-established with a growing pause.
pub fn watch_api(client: &Client, node: &str) -> impl Stream<Item = Change> + Send + use<> {
    let services = watcher(Api::<Service>::all(client.clone()), watcher::Config::default())
        .default_backoff()
        .filter_map(|event| async move { told(event, "services").map(Change::Service) });
    let slices = watcher(Api::<EndpointSlice>::all(client.clone()), watcher::Config::default())
        .default_backoff()
        .filter_map(|event| async move { told(event, "endpointslices").map(Change::Slice) });
    let own = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
    let pods = watcher(Api::<Pod>::all(client.clone()), own)
        .default_backoff()
        .filter_map(|event| async move { told(event, "pods").map(Change::Pod) });
    let own = watcher::Config::default().fields(&format!("metadata.name={node}"));
    let nodes = watcher(Api::<Node>::all(client.clone()), own)
        .default_backoff()
        .filter_map(|event| async move { told(event, "nodes").map(Change::Node) });
    stream::select(
        stream::select(services.boxed(), slices.boxed()),
        stream::select(pods.boxed(), nodes.boxed()),
    )
}

/// An event, or a line in the log about a watch that broke and will be made again.
pub(super) fn told<T>(event: Result<Event<T>, watcher::Error>, what: &str) -> Option<Event<T>> {
    event.inspect_err(|error| tracing::debug!(error = %super::chain(error), what, "watch interrupted")).ok()
}

#[cfg(test)]
mod tests;
