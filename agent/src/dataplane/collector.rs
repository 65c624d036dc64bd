//! Removes flows that have expired, those of pods that are gone, and those of datagrams to endpoints that no longer serve;
//! closes UDP sockets that are connected to such an endpoint.
//!
//! The map forgets the least recently used by itself; this keeps it small, so that nothing in use is forgotten. Nothing
//! is removed before the services are in the maps, and never because the agent starts.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kelp_common::flow::{FLOW_CLOSED, FLOW_PORT, FLOW_REPLY, lifetime};
use kelp_common::{
    Address, AffinityKey, AffinityValue, ConnectionValue, FlowKey, FlowValue, SocketKey, SocketValue, TCP,
    UDP, limits, maps,
};
use kelp_model::service::BackendKey;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::kernel::Kernel;
use super::maps::Table;
use super::reconciler::Datagrams;
use super::status::Status;
use super::{DatapathError, sockets, sys};

/// Shortest and longest pause between two rounds: the pause doubles while there is nothing to remove.
const PAUSE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(60));

/// Translated connections a second that a node takes for good, without forgetting one that is idle.
const CONNECTIONS_A_SECOND: u64 = 1_000;
/// Both directions of a closed connection stay while its port rests, and until the next round after that.
const _: () = assert!(
    limits::FLOWS as u64
        >= 2 * CONNECTIONS_A_SECOND
            * (lifetime(TCP as u32, FLOW_CLOSED | FLOW_PORT) as u64 + 1 + PAUSE.1.as_secs())
);

/// The maps that are kept small.
#[derive(Debug)]
pub(super) struct Collector {
    flows: Table<FlowKey, FlowValue>,
    sockets: Table<SocketKey, SocketValue>,
    clients: Table<AffinityKey, AffinityValue>,
    connections: Table<FlowKey, ConnectionValue>,
    node_addresses: Table<Address, u32>,
    status: Arc<Status>,
}

impl Collector {
    pub fn open(kernel: &Kernel, status: Arc<Status>) -> Result<Self, DatapathError> {
        Ok(Self {
            flows: Table::open(kernel, maps::FLOWS)?,
            sockets: Table::open(kernel, maps::SOCKETS)?,
            clients: Table::open(kernel, maps::AFFINITIES)?,
            connections: Table::open(kernel, maps::CONNECTIONS)?,
            node_addresses: Table::open(kernel, maps::NODE_ADDRESSES)?,
            status,
        })
    }

    /// Works until `shutdown`. Nothing is removed before the services are in the maps.
    pub async fn run(
        self,
        mut removals: mpsc::UnboundedReceiver<Vec<Address>>,
        mut datagrams: watch::Receiver<Arc<Datagrams>>,
        mut synced: watch::Receiver<bool>,
        shutdown: CancellationToken,
    ) {
        tokio::select! {
            () = shutdown.cancelled() => return,
            done = synced.wait_for(|synced| *synced) => if done.is_err() { return },
        }
        let this = Arc::new(self);
        let mut pause = PAUSE.0;
        // What changed while no agent ran is seen at once.
        datagrams.mark_changed();
        loop {
            let mut work = Work::default();
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => work.expired = true,
                addresses = removals.recv() => {
                    let Some(addresses) = addresses else { return };
                    work.gone.extend(addresses);
                    while let Ok(more) = removals.try_recv() {
                        work.gone.extend(more);
                    }
                }
                changed = datagrams.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    work.datagrams = Some(datagrams.borrow_and_update().clone());
                }
            }
            let timer = work.expired;
            let this = this.clone();
            // A scan of a full map takes tens of milliseconds.
            let round = tokio::task::spawn_blocking(move || this.collect(&work)).await;
            match round {
                Ok(Ok(removed)) if timer => {
                    pause = if removed == 0 { (pause * 2).min(PAUSE.1) } else { PAUSE.0 };
                }
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::warn!(error = %super::chain(&error), "stale flows not removed"),
                Err(error) => tracing::warn!(%error, "stale flows not removed"),
            }
        }
    }

    /// Does one round; returns how many directions of flows went.
    fn collect(&self, work: &Work) -> Result<usize, DatapathError> {
        let started = Instant::now();
        let mut removed = 0;
        if work.expired || !work.gone.is_empty() {
            removed = self.remove_dead(&work.gone)? + self.remove_dead_connections(&work.gone)?;
        }
        if let Some(datagrams) = &work.datagrams {
            let stale = self.remove_stale(datagrams)?;
            removed += stale;
            let closed = sockets::close_stale(&self.sockets, datagrams)?;
            self.status.flows_reconciled(started.elapsed(), stale);
            self.status.sockets_closed(closed.closed, closed.failed);
        }
        if work.expired {
            let mut count = 0;
            self.sockets.scan(|_, _| count += 1)?;
            self.status.size(maps::SOCKETS, count);
            let mut count = 0;
            self.clients.scan(|_, _| count += 1)?;
            self.status.size(maps::AFFINITIES, count);
        }
        Ok(removed)
    }

    /// Removes expired flows and those of the addresses in `gone`.
    fn remove_dead(&self, gone: &BTreeSet<Address>) -> Result<usize, DatapathError> {
        let (dead, entries) = self.find_dead(gone)?;
        let removed = self.remove_found(&dead, gone)?;
        self.status.size(maps::FLOWS, entries - removed);
        Ok(removed)
    }

    /// Expired flows and those of the addresses in `gone`, and how many entries there are.
    pub(super) fn find_dead(&self, gone: &BTreeSet<Address>) -> Result<(Vec<FlowKey>, usize), DatapathError> {
        let now = sys::monotonic_seconds();
        let mut expired = Vec::new();
        let mut living = BTreeSet::new();
        let identity = |key: &FlowKey| {
            (key.source, key.destination, key.source_port, key.destination_port, key.protocol)
        };
        self.flows.scan(|key, value| {
            if is_of(gone, key, value) {
                expired.push((*key, None));
            } else if value.expires < now {
                expired.push((*key, Some(identity(&value.reverse_key(key.protocol)))));
            } else {
                living.insert(identity(key));
            }
        })?;
        let entries = expired.len() + living.len();
        // A flow lives while one of its directions does.
        let keys = expired
            .into_iter()
            .filter(|(_, peer)| peer.is_none_or(|peer| !living.contains(&peer)))
            .map(|(key, _)| key)
            .collect();
        Ok((keys, entries))
    }

    /// Removes what [`Self::find_dead`] found. A client may have begun a flow from the same port meanwhile: it stays.
    pub(super) fn remove_found(
        &self,
        dead: &[FlowKey],
        gone: &BTreeSet<Address>,
    ) -> Result<usize, DatapathError> {
        let now = sys::monotonic_seconds();
        self.flows.delete_if(dead, |key, value| value.expires < now || is_of(gone, key, value))
    }

    /// Removes verdicts on flows that have expired, and on those of the addresses in `gone`.
    fn remove_dead_connections(&self, gone: &BTreeSet<Address>) -> Result<usize, DatapathError> {
        let now = sys::monotonic_seconds();
        let is_dead = |key: &FlowKey, value: &ConnectionValue| {
            value.expires < now || gone.contains(&key.source) || gone.contains(&key.destination)
        };
        let (mut entries, mut dead) = (0, Vec::new());
        self.connections.scan(|key, value| {
            entries += 1;
            if is_dead(key, value) {
                dead.push(*key);
            }
        })?;
        let removed = self.connections.delete_if(&dead, is_dead)?;
        self.status.size(maps::CONNECTIONS, entries - removed);
        Ok(removed)
    }

    /// Removes flows of datagrams to a service whose endpoint does not serve, also when no endpoint is left, and flows that
    /// are older than the service they should go to. (Flows of connections end by themselves.)
    fn remove_stale(&self, datagrams: &Datagrams) -> Result<usize, DatapathError> {
        let mut own = BTreeSet::new();
        self.node_addresses.scan(|address, _| {
            own.insert(*address);
        })?;
        let mut stale = Vec::new();
        self.flows.scan(|key, value| {
            if key.protocol != u32::from(UDP) || value.flags & FLOW_REPLY != 0 {
                return;
            }
            let exact = datagrams.get(&(key.destination, key.destination_port));
            let serving = exact.or_else(|| {
                let everywhere = (key.destination.any_of_family(), key.destination_port);
                own.contains(&key.destination).then(|| datagrams.get(&everywhere)).flatten()
            });
            let backend =
                BackendKey { address: value.destination, port: value.destination_port, protocol: UDP };
            if serving.is_some_and(|serving| !serving.contains(&backend)) {
                stale.extend([*key, value.reverse_key(key.protocol)]);
            }
        })?;
        self.flows.delete_all(&stale)?;
        Ok(stale.len())
    }
}

/// Whether one of these addresses is an end of a flow, before or behind the translation.
fn is_of(gone: &BTreeSet<Address>, key: &FlowKey, value: &FlowValue) -> bool {
    !gone.is_empty()
        && [key.source, key.destination, value.source, value.destination]
            .iter()
            .any(|address| gone.contains(address))
}

/// What one round is about.
#[derive(Debug, Default)]
struct Work {
    expired: bool,
    gone: BTreeSet<Address>,
    datagrams: Option<Arc<Datagrams>>,
}
