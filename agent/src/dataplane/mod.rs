//! Service load balancing and pod routing in eBPF; the only user of aya.
//!
//! [`start`] loads the programs, takes over what a former agent left pinned, and runs two tasks:
//!
//! | Task | Reads | Writes |
//! |---|---|---|
//! | [`reconciler`] | watches of Services and EndpointSlices | frontends, slots, backends |
//! | [`collector`] | the flow map | the flow map: removes what has expired |
//!
//! [`Dataplane`] is also the pod network's [`PodDatapath`]. Programs, maps and links are pinned: when the agent dies,
//! established and new connections go on; only changes wait for the next agent.

pub mod collector;
pub mod config;
pub mod kernel;
pub mod maps;
pub mod reconciler;
pub mod sys;

use std::collections::BTreeSet;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;

use kelp_common::{Address, EndpointValue, NodeConfig};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub use config::Config;
pub use kernel::cleanup;
use kernel::{Kernel, failed};
use maps::{KernelDatapath, Table};

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
}

/// What the pod network needs of the dataplane. Every call is idempotent.
pub trait PodDatapath: Send + Sync + 'static {
    /// Attaches the programs to a pod's host-side device and makes its addresses reachable. When this returns,
    /// the pod can reach services and be reached.
    fn attach_endpoint(&self, endpoint: &Endpoint) -> impl Future<Output = Result<(), DatapathError>> + Send;

    /// Forgets a pod's addresses; its device may be gone already.
    fn detach_endpoint(&self, addresses: &[IpAddr])
    -> impl Future<Output = Result<(), DatapathError>> + Send;
}

impl<T: PodDatapath> PodDatapath for Arc<T> {
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
    node_config: Table<u32, NodeConfig>,
    config: Mutex<Config>,
    uplink: u32,
    netns_cookie: u64,
    removed: mpsc::UnboundedSender<Vec<Address>>,
    synced: watch::Receiver<bool>,
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
    let changes = reconciler::watch_api(&client);
    start_with(config, changes, shutdown).await
}

/// [`start`] with changes from elsewhere than an API: for tests and tools.
///
/// # Errors
/// When the programs cannot be loaded or attached.
pub async fn start_with(
    config: Config,
    changes: impl futures::Stream<Item = reconciler::Change> + Send + 'static,
    shutdown: CancellationToken,
) -> Result<Arc<Dataplane>, DatapathError> {
    kernel::ensure_bpffs(&config.bpf_directory)?;
    let kernel = Kernel::load(&config.bpf_directory)?;
    let uplink = match &config.uplink {
        Some(name) => {
            nix::net::if_::if_nametoindex(name.as_str()).map_err(failed(format!("find the uplink {name}")))?
        }
        None => 0,
    };
    let netns_cookie = sys::netns_cookie().unwrap_or_else(|error| {
        tracing::warn!(%error, "node ports do not work on loopback addresses: the kernel has no namespace cookies");
        u64::MAX
    });
    let node_config: Table<u32, NodeConfig> = Table::open(&kernel, kelp_common::maps::NODE_CONFIG)?;
    node_config.put(&0, &config.for_kernel(uplink, netns_cookie))?;
    write_node_addresses(&kernel, &config)?;

    // Programs that are attached are swapped here, only after the settings they read were written.
    let pods = kernel.adopt_links()?;
    let endpoints: Table<Address, EndpointValue> = Table::open(&kernel, kelp_common::maps::ENDPOINTS)?;
    let mut gone = Vec::new();
    endpoints.scan(|address, endpoint| {
        if !pods.contains(&endpoint.ifindex) {
            gone.push(*address);
        }
    })?;
    endpoints.delete_all(&gone)?;
    if uplink != 0 {
        kernel.attach_uplink(uplink)?;
    }
    kernel.attach_sockets(&config.cgroup)?;

    let (synced_sender, synced) = watch::channel(false);
    let datapath = KernelDatapath::open(&kernel)?;
    let reconciler = reconciler::Reconciler::new(&config.node_name, datapath);
    tokio::spawn(reconciler.run(changes, synced_sender, shutdown.clone()));
    let (removed, removals) = mpsc::unbounded_channel();
    let flows = Table::open(&kernel, kelp_common::maps::FLOWS)?;
    tokio::spawn(collector::run(flows, removals, synced.clone(), shutdown));
    Ok(Arc::new(Dataplane {
        kernel,
        endpoints,
        node_config,
        config: Mutex::new(config),
        uplink,
        netns_cookie,
        removed,
        synced,
    }))
}

/// Writes the addresses that have node ports: all of the node's own but loopback and link-local ones.
fn write_node_addresses(kernel: &Kernel, config: &Config) -> Result<(), DatapathError> {
    let table: Table<Address, u32> = Table::open(kernel, kelp_common::maps::NODE_ADDRESSES)?;
    let interfaces = nix::ifaddrs::getifaddrs().map_err(failed("list the node's addresses"))?;
    let own = interfaces.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    });
    let wanted: BTreeSet<Address> = own
        .chain(config.node_addresses.iter().copied())
        .filter(|address| !address.is_loopback() && !is_link_local(address))
        .map(Address::from)
        .collect();
    let mut stale = Vec::new();
    table.scan(|address, _| {
        if !wanted.contains(address) {
            stale.push(*address);
        }
    })?;
    for address in &wanted {
        table.put(address, &1)?;
    }
    table.delete_all(&stale)
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

fn is_link_local(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

impl Dataplane {
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
        let mut config = self.config.lock();
        config.pod_cidrs = pod_cidrs.to_vec();
        self.node_config.put(&0, &config.for_kernel(self.uplink, self.netns_cookie))
    }

    /// Packets and connections refused or dropped, by the reasons of `kelp_common::maps::counter`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn counters(&self) -> Result<Vec<u64>, DatapathError> {
        let map = self.kernel.map(kelp_common::maps::COUNTERS)?;
        let cpus = possible_cpus()?;
        (0..kelp_common::maps::counter::COUNT)
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
        };
        // The addresses come first: with the programs attached, a packet of an unknown pod is dropped.
        for address in &endpoint.addresses {
            self.endpoints.put(&Address::from(*address), &value)?;
        }
        self.kernel.attach_pod(endpoint.host_ifindex)
    }

    async fn detach_endpoint(&self, addresses: &[IpAddr]) -> Result<(), DatapathError> {
        let addresses: Vec<Address> = addresses.iter().copied().map(Address::from).collect();
        for address in &addresses {
            if let Some(endpoint) = self.endpoints.get(address)? {
                self.endpoints.delete(address)?;
                self.kernel.detach_pod(endpoint.ifindex)?;
            }
        }
        // The next pod with one of these addresses must not inherit flows. The task is gone only at shutdown.
        let _ = self.removed.send(addresses);
        Ok(())
    }
}

#[cfg(test)]
mod packet_tests;
#[cfg(test)]
mod tests;
