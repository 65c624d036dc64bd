//! Service load balancing and pod routing in eBPF; the only user of aya.
//!
//! [`start`] loads the programs, takes over what a former agent left pinned, and runs these tasks:
//!
//! | Task | Reads | Writes |
//! |---|---|---|
//! | [`reconciler`] | watches of Services, EndpointSlices, the node's Pods and Node | frontends, slots, backends, client ranges |
//! | [`policy`] | watches of NetworkPolicies, all Namespaces and Pods | policies of endpoints, identities, rules |
//! | [`collector`] | the flow and socket maps, where datagrams may go | the same maps: removes what is stale; closes sockets |
//! | `addresses` | the kernel's addresses | node addresses |
//! | `uplink` | the kernel's devices | what fits through the uplink and tunnels |
//! | `foreign` | the node's Pods, as the reconciler gets them | endpoints of pods that another agent connected |
//! | [`peers`] | the other nodes, as the pod network tells them | peers, the tunnels' device |
//! | `health` | Services with a health check, the state of the dataplane | – (answers HTTP) |
//! | [`events`] | what happened | Events |
//!
//! [`Dataplane`] is also the pod network's [`PodDatapath`]. Programs, maps and links are pinned: when the agent dies,
//! established and new connections go on; only changes wait for the next agent.

mod addresses;
mod changes;
pub mod collector;
pub mod config;
pub mod events;
mod foreign;
mod health;
pub mod kernel;
pub mod maps;
pub mod metrics;
pub mod names;
pub mod namespace;
pub mod peers;
pub mod policy;
pub mod proxy_config;
pub mod reconciler;
pub mod sockets;
pub mod status;
pub mod sys;
mod uplink;
pub mod view;

use std::collections::BTreeSet;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;

use kelp_common::{Address, EndpointValue, NamespaceValue, NodeConfig};
use kelp_model::service::Index;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use collector::Collector;
pub use config::Config;
use events::Events;
use foreign::ForeignPods;
use futures::StreamExt;
use kelp_model::policy::PodFacts;
pub use kernel::cleanup;
use kernel::{Kernel, failed};
use maps::{KernelDatapath, Table};
use names::{PodNames, ServiceNames, TableNames};
use namespace::{Namespace, Namespaces};
pub use peers::Peer;
use peers::Tunnels;
use policy::{Policies, PolicyMaps};
use reconciler::Reports;
use status::Status;
pub use uplink::PodMtu;
pub(crate) use uplink::{Uplink, Watch as UplinkWatch};

/// A pod's device on this node, as the pod network made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Index of the host-side device.
    pub host_ifindex: u32,
    /// MAC address of the host-side device: the pod's gateway.
    pub host_mac: [u8; 6],
    /// MAC address of the device inside the pod.
    pub pod_mac: [u8; 6],
    /// The pod's addresses, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// Cookie of the pod's network namespace (`SO_NETNS_COOKIE`), by which the socket hooks know the pod; 0 when the
    /// kernel has none.
    pub netns_cookie: u64,
    /// The pod, as policies select it; without it no policy applies.
    pub pod: Option<PodFacts>,
}

/// What the pod network needs of the dataplane. Every call is idempotent.
pub trait PodDatapath: Send + Sync + 'static {
    /// Attaches the programs to a pod's host-side device and makes its addresses reachable. When this returns,
    /// the pod can reach services and be reached, as far as network policies allow it.
    fn attach_endpoint(&self, endpoint: &Endpoint) -> impl Future<Output = Result<(), DatapathError>> + Send;

    /// Takes over how other nodes are reached; `tunnels` is whether there may be tunnels. Returns the index of the
    /// tunnels' device for the host's routes. A datapath without tunnels has none.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn set_peers(&self, peers: &[Peer], tunnels: bool) -> Result<Option<u32>, DatapathError>;

    /// The largest packets of pods, now and whenever that changes.
    fn pod_mtu(&self) -> watch::Receiver<PodMtu>;

    /// Forgets a pod's addresses; its device may be gone already.
    fn detach_endpoint(&self, addresses: &[IpAddr])
    -> impl Future<Output = Result<(), DatapathError>> + Send;
}

impl<T: PodDatapath> PodDatapath for Arc<T> {
    fn set_peers(&self, peers: &[Peer], tunnels: bool) -> Result<Option<u32>, DatapathError> {
        self.as_ref().set_peers(peers, tunnels)
    }

    fn pod_mtu(&self) -> watch::Receiver<PodMtu> {
        self.as_ref().pod_mtu()
    }

    async fn attach_endpoint(&self, endpoint: &Endpoint) -> Result<(), DatapathError> {
        (**self).attach_endpoint(endpoint).await
    }

    async fn detach_endpoint(&self, addresses: &[IpAddr]) -> Result<(), DatapathError> {
        (**self).detach_endpoint(addresses).await
    }
}

/// What can go wrong between the agent and the kernel programs.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// A system call on a map, program or link failed.
    #[error("{action}")]
    Kernel {
        /// What was being done.
        action: String,
        /// The error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A map has no room for another entry.
    #[error("the map {map} is full")]
    Full {
        /// The map.
        map: &'static str,
    },
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// The running dataplane of a node.
#[derive(Debug)]
pub struct Dataplane {
    kernel: Kernel,
    endpoints: Table<Address, EndpointValue>,
    policies: Arc<Policies>,
    namespaces: Arc<Namespaces>,
    pod_names: PodNames,
    node_config: Table<u32, NodeConfig>,
    tunnels: Mutex<Tunnels>,
    config: Mutex<Config>,
    /// Index of the uplink; 0 when there is none.
    uplink: u32,
    pod_mtu: watch::Sender<PodMtu>,
    netns_cookie: u64,
    removed: mpsc::UnboundedSender<Vec<Address>>,
    synced: watch::Receiver<bool>,
    status: Arc<Status>,
    index: Arc<RwLock<Index>>,
}

/// Starts the dataplane in the network namespace of the calling thread. Services follow the API of `client` until
/// `shutdown`; after that everything stays attached, see [`cleanup`].
///
/// # Errors
/// When the programs cannot be loaded or attached.
pub async fn start(
    config: Config,
    client: kube::Client,
    shutdown: CancellationToken,
) -> Result<Arc<Dataplane>, DatapathError> {
    let changes = reconciler::watch_api(&client, &config.node_name);
    let policies = config.network_policies.then(|| policy::follow_api(&client));
    let (events, queue) = Events::channel();
    tokio::spawn(events::write(client, config.node_name.clone(), queue, shutdown.clone()));
    start_with(config, changes, policies, events, shutdown).await
}

/// [`start`] with changes from elsewhere than an API, and events to elsewhere: for tests and tools. Without `policies` none
/// is enforced.
///
/// # Errors
/// When the programs cannot be loaded or attached.
pub async fn start_with(
    mut config: Config,
    changes: impl futures::Stream<Item = reconciler::Change> + Send + 'static,
    policies: Option<policy::Source>,
    events: Events,
    shutdown: CancellationToken,
) -> Result<Arc<Dataplane>, DatapathError> {
    kernel::ensure_bpffs(&config.bpf_directory)?;
    let kernel = Kernel::load_with(&config.bpf_directory, &config.map_sizes, config.clsact)?;
    // Told of changes before it is looked at, so that none is missed.
    let uplink_watch = UplinkWatch::open()?;
    let uplink = Uplink::find(config.uplink.as_deref())?;
    match sys::ephemeral_ports() {
        Ok(ports) => config.leave_ports(&ports),
        Err(error) => {
            tracing::warn!(%error, "the ports of the host's own sockets are not known");
            config.tcp_ports = config.nat_ports.clone();
        }
    }
    let netns_cookie = sys::netns_cookie().unwrap_or_else(|error| {
        tracing::warn!(%error, "node ports do not work on loopback addresses: the kernel has no namespace cookies");
        u64::MAX
    });
    let host = Namespace::current().map_err(failed("open the network namespace"))?;
    let node_config: Table<u32, NodeConfig> = Table::open(&kernel, kelp_common::maps::NODE_CONFIG)?;
    let tunnels = Tunnels::open(&kernel, &config, uplink.mtu)?;
    let settings = config.for_kernel(uplink.ifindex, uplink.mtu, netns_cookie);
    node_config.put(&0, &tunnels.complete(settings))?;
    let (pod_mtu, _) = watch::channel(tunnels.pod_mtu());
    let address_watch = addresses::Watch::open()?;
    let node_addresses = addresses::NodeAddresses::new(
        Table::open(&kernel, kelp_common::maps::NODE_ADDRESSES)?,
        config.node_addresses.clone(),
    );
    node_addresses.write(&address_watch).await?;

    kernel::resize::adopt_endpoints(&kernel)?;
    // Programs that are attached are swapped here, only after the settings they read were written.
    let pods = kernel.adopt_links()?;
    let endpoints: Table<Address, EndpointValue> = Table::open(&kernel, kelp_common::maps::ENDPOINTS)?;
    let mut gone = Vec::new();
    endpoints.scan(|address, endpoint| {
        // Pods of another agent are looked at when they are listed.
        let foreign = endpoint.ifindex == 0 && config.foreign_pods;
        if !foreign && !pods.contains(&endpoint.ifindex) {
            gone.push(*address);
        }
    })?;
    endpoints.delete_all(&gone)?;
    let pod_names = PodNames::open(&kernel)?;
    pod_names.detach(&gone);
    let mut foreign = if config.foreign_pods { Some(ForeignPods::open(&kernel)?) } else { None };
    let changes = changes.inspect(move |change| {
        if let (Some(foreign), reconciler::Change::Pod(event)) = (&mut foreign, change) {
            foreign.observe(event);
        }
    });
    let namespaces: Table<u64, NamespaceValue> = Table::open(&kernel, kelp_common::maps::NAMESPACES)?;
    let namespaces = Arc::new(Namespaces::new(namespaces));
    namespaces.retain(|ifindex| pods.contains(&ifindex))?;
    if uplink.ifindex != 0 {
        kernel.attach_uplink(uplink.ifindex, tunnels.device())?;
        kernel.attach_xdp(config.uplink.as_deref().unwrap_or_default(), uplink.ifindex, config.xdp)?;
    }
    if tunnels.device() != 0 {
        kernel.attach_tunnel(tunnels.device())?;
    }
    kernel.attach_sockets(&config.cgroup)?;
    kernel.forget_old_maps()?;

    let (synced_sender, synced) = watch::channel(false);
    let reports = Reports { events: events.clone(), ..Reports::default() };
    let status = reports.status.clone();
    let collector = Collector::open(&kernel, status.clone())?;
    let (removed, removals) = mpsc::unbounded_channel();
    tokio::spawn(collector.run(removals, reports.datagrams.subscribe(), synced.clone(), shutdown.clone()));
    tokio::spawn(node_addresses.run(address_watch, shutdown.clone()));
    let opted_out = reports.opted_out.subscribe();
    tokio::spawn(follow_opt_outs(namespaces.clone(), opted_out, shutdown.clone()));
    tokio::spawn(health::serve_checks(
        host.clone(),
        config.node_name.clone(),
        reports.health_checks.subscribe(),
        status.clone(),
        events,
        shutdown.clone(),
    ));
    let endpoints_of_policies = Table::open(&kernel, kelp_common::maps::ENDPOINTS)?;
    let maps = (PolicyMaps::open(&kernel)?, TableNames::open(&kernel)?);
    let followed = Policies::open(maps, endpoints_of_policies, reports.events.clone(), policies.is_some())?;
    let followed = Arc::new(followed);
    if let Some(source) = policies {
        tokio::spawn(followed.clone().run(source, shutdown.clone()));
    }
    let datapath = KernelDatapath::open(&kernel)?;
    let index = Index::new(&config.node_name)
        .with_local_dns(config.local_dns.clone())
        .with_balancing(config.balancing);
    let index = Arc::new(RwLock::new(index));
    let reconciler = reconciler::Reconciler::with_index(index.clone(), datapath, reports)
        .with_names(ServiceNames::open(&kernel)?);
    let dataplane = Arc::new(Dataplane {
        kernel,
        endpoints,
        policies: followed,
        namespaces,
        pod_names,
        node_config,
        tunnels: Mutex::new(tunnels),
        config: Mutex::new(config),
        uplink: uplink.ifindex,
        pod_mtu,
        netns_cookie,
        removed,
        synced,
        status,
        index,
    });
    dataplane.serve(&host, &shutdown);
    if uplink.ifindex != 0 {
        let followed = Arc::downgrade(&dataplane);
        let tell = move |mtu| {
            if let Some(dataplane) = followed.upgrade() {
                dataplane.resize(mtu);
            }
        };
        tokio::spawn(uplink_watch.run(uplink.ifindex, tell, shutdown.clone()));
    }
    tokio::spawn(reconciler.run(changes, synced_sender, shutdown));
    Ok(dataplane)
}

/// Reads: pods whose sockets are left alone. Writes: what the socket hooks know of pods.
async fn follow_opt_outs(
    namespaces: Arc<Namespaces>,
    mut opted_out: watch::Receiver<BTreeSet<Address>>,
    shutdown: CancellationToken,
) {
    let work = async {
        while opted_out.changed().await.is_ok() {
            let addresses = opted_out.borrow_and_update().clone();
            if let Err(error) = namespaces.opt_out(addresses) {
                tracing::warn!(error = %chain(&error), "pods that do not want their sockets translated not written");
            }
        }
    };
    shutdown.run_until_cancelled(work).await;
}

/// The device that carries one of these addresses: a node's uplink, by its own address. Loopback does not count.
#[must_use]
pub fn uplink_of(addresses: &[IpAddr]) -> Option<String> {
    let interfaces = nix::ifaddrs::getifaddrs().ok()?;
    let carries = |interface: &nix::ifaddrs::InterfaceAddress| {
        let address = interface.address.as_ref()?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        let own = v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))?;
        (addresses.contains(&own) && interface.interface_name != "lo").then_some(())
    };
    interfaces.into_iter().find(|interface| carries(interface).is_some()).map(|found| found.interface_name)
}

impl Dataplane {
    /// The Services and endpoints that the dataplane knows; whole once [`Self::is_synced`]. It changes while it is not
    /// locked, and waits while it is.
    #[must_use]
    pub fn index(&self) -> Arc<RwLock<Index>> {
        self.index.clone()
    }

    /// Waits until the services of the first full lists are in the maps.
    pub async fn synced(&self) {
        // The sender is gone only when the task has ended, at shutdown.
        let _ = self.synced.clone().wait_for(|synced| *synced).await;
    }

    /// Becomes true when the services of the first full lists are in the maps.
    #[must_use]
    pub fn synced_watch(&self) -> watch::Receiver<bool> {
        self.synced.clone()
    }

    /// Whether the services of the first full lists are in the maps.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        *self.synced.borrow()
    }

    /// Tells the ranges of this node's pods, which are known only after the node is registered.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_pod_cidrs(&self, pod_cidrs: &[config::Network]) -> Result<(), DatapathError> {
        let tunnels = self.tunnels.lock();
        self.config.lock().pod_cidrs = pod_cidrs.to_vec();
        self.tell_settings(&tunnels)
    }

    /// Writes the settings for the programs.
    fn tell_settings(&self, tunnels: &Tunnels) -> Result<(), DatapathError> {
        let settings = self.config.lock().for_kernel(self.uplink, tunnels.uplink_mtu(), self.netns_cookie);
        self.node_config.put(&0, &tunnels.complete(settings))
    }

    /// Answers monitors, as far as the settings say where.
    fn serve(self: &Arc<Self>, host: &Namespace, shutdown: &CancellationToken) {
        let config = self.config.lock();
        if let Some(address) = config.healthz_address {
            let families = [("IPv4", true), ("IPv6", false)];
            let families = families
                .into_iter()
                .filter(|(_, v4)| config.node_addresses.iter().any(|address| address.is_ipv4() == *v4))
                .map(|(name, _)| name)
                .collect();
            health::serve_health(host, address, self.status.clone(), families, shutdown.clone());
        }
        if let Some(address) = config.metrics_address {
            let this = Arc::downgrade(self);
            let text = move || this.upgrade().map(|this| this.metrics()).unwrap_or_default();
            health::serve_metrics(host, address, text, shutdown.clone());
        }
    }

    /// How the dataplane is, in Prometheus' text format.
    #[must_use]
    pub fn metrics(&self) -> String {
        let capacities: Vec<(&'static str, u32)> = kernel::resize::SIZES
            .iter()
            .filter_map(|(name, _)| {
                let map = self.kernel.map(name).ok()?;
                let (_, _, entries) = sys::map_shape(std::os::fd::AsFd::as_fd(&map)).ok()?;
                Some((*name, entries))
            })
            .collect();
        let packets = self.counters().unwrap_or_default();
        let xdp = self.xdp_counters().unwrap_or_default();
        metrics::text(&self.status.state(), &capacities, &packets, &xdp)
    }

    /// Packets and connections refused or dropped, by the reasons of `kelp_common::maps::counter`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn counters(&self) -> Result<Vec<u64>, DatapathError> {
        self.count(kelp_common::maps::COUNTERS, kelp_common::maps::counter::COUNT)
    }

    /// What became of packets that came in by the uplink while XDP was attached there, by `kelp_common::maps::xdp`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn xdp_counters(&self) -> Result<Vec<u64>, DatapathError> {
        self.count(kelp_common::maps::XDP_COUNTERS, kelp_common::maps::xdp::COUNT)
    }

    /// The sums of a map of counters.
    fn count(&self, name: &str, length: u32) -> Result<Vec<u64>, DatapathError> {
        let map = self.kernel.map(name)?;
        let cpus = possible_cpus()?;
        (0..length)
            .map(|index| {
                sys::map_lookup_percpu(std::os::fd::AsFd::as_fd(&map), index, cpus)
                    .map(|values| values.iter().sum())
                    .map_err(failed("read the counters"))
            })
            .collect()
    }

    /// Number of pod addresses in the maps.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn endpoint_count(&self) -> Result<usize, DatapathError> {
        let mut count = 0;
        self.endpoints.scan(|_, _| count += 1)?;
        Ok(count)
    }

    /// The policies of the node's pods.
    #[must_use]
    pub fn policies(&self) -> &Arc<Policies> {
        &self.policies
    }

    /// The loaded programs and maps.
    #[must_use]
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }
}

/// CPUs a per-CPU map has values for.
fn possible_cpus() -> Result<usize, DatapathError> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")
        .map_err(failed("count the possible CPUs"))?;
    let last = text.trim().rsplit(['-', ',']).next().and_then(|last| last.parse::<usize>().ok());
    last.map(|last| last + 1)
        .ok_or_else(|| failed("count the possible CPUs")(std::io::Error::other(text.clone())))
}

impl PodDatapath for Dataplane {
    async fn attach_endpoint(&self, endpoint: &Endpoint) -> Result<(), DatapathError> {
        let value = EndpointValue {
            ifindex: endpoint.host_ifindex,
            pod_mac: endpoint.pod_mac,
            host_mac: endpoint.host_mac,
            ..EndpointValue::default()
        };
        // The addresses come first, with their policies: with the programs attached, a packet of an unknown pod is
        // dropped.
        let addresses: Vec<Address> = endpoint.addresses.iter().copied().map(Address::from).collect();
        self.policies.attach(value, &addresses, endpoint.pod.as_ref()).await?;
        if let Some(pod) = &endpoint.pod {
            self.pod_names.attach(&addresses, &pod.name);
        }
        if endpoint.netns_cookie != 0 {
            self.namespaces.attach(endpoint.netns_cookie, &addresses, endpoint.host_ifindex)?;
        }
        self.kernel.attach_pod(endpoint.host_ifindex)
    }

    fn set_peers(&self, peers: &[Peer], tunnels: bool) -> Result<Option<u32>, DatapathError> {
        self.write_peers(peers, tunnels)
    }

    fn pod_mtu(&self) -> watch::Receiver<PodMtu> {
        self.pod_mtu.subscribe()
    }

    async fn detach_endpoint(&self, addresses: &[IpAddr]) -> Result<(), DatapathError> {
        let addresses: Vec<Address> = addresses.iter().copied().map(Address::from).collect();
        if let Some(endpoint) = self.policies.detach(&addresses)? {
            self.namespaces.retain(|ifindex| ifindex != endpoint.ifindex)?;
            self.kernel.detach_pod(endpoint.ifindex)?;
        }
        self.pod_names.detach(&addresses);
        // The next pod with one of these addresses must not inherit flows. The task is gone only at shutdown.
        let _ = self.removed.send(addresses);
        Ok(())
    }
}

#[cfg(test)]
mod packet_tests;
#[cfg(test)]
mod tests;
