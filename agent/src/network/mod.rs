//! Pod addresses, devices and routes.
//!
//! A pod has a veth pair: `eth0` with a host prefix (/32, /128) in its namespace, and a host-side device named
//! `kpod<hash of the UID>` to which the host has a route and a permanent neighbour entry. The pod's default route
//! leads through a link-local gateway that is the host-side device's MAC. The devices take what the uplink takes; what the default
//! route sends also fits into tunnels, if there are any, and both follow when that changes. Forwarding stays off: the dataplane's
//! programs on the host-side device route; without the dataplane the host's stack does ([`HostForwarding`]).
//!
//! State: leases in one file of the data directory ([`ipam`]); devices and routes are the kernel's. Everything is
//! idempotent, so that a restarted agent goes through the same calls.

pub(crate) mod bandwidth;
mod device;
mod forwarding;
pub mod ipam;
pub(crate) mod namespace;
pub mod peers;
pub(crate) mod routes;

pub use bandwidth::Limits as Bandwidth;
pub use forwarding::HostForwarding;
pub use peers::Routing;
pub use routes::{TellPeers, carry_out, keep_node_routes};

use crate::dataplane::{DatapathError, Endpoint, PodDatapath, PodMtu};
use crate::network::ipam::{Ipam, IpamError, Prefix};
use kelp_model::policy::PodFacts;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The pods' gateway; a link-local address that no device has.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The pods' IPv6 gateway.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// What can go wrong with a pod's network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The controller manager has not assigned pod addresses to the node.
    #[error("the node has no podCIDR yet")]
    NoPodCidr,
    /// No address.
    #[error("cannot lease a pod address")]
    Ipam(#[from] IpamError),
    /// The kernel refused.
    #[error("{action}")]
    Netlink {
        /// What was being done.
        action: String,
        /// The error.
        #[source]
        source: rtnetlink::Error,
    },
    /// A system call failed.
    #[error("{action}")]
    Io {
        /// What was being done, with the path.
        action: String,
        /// The error.
        #[source]
        source: std::io::Error,
    },
    /// The pod's annotations of its bandwidth make no sense.
    #[error("reading pod bandwidth annotations: {0}")]
    Bandwidth(String),
    /// The dataplane did not take how other nodes are reached.
    #[error("cannot tell the dataplane how other nodes are reached")]
    Peers(#[source] DatapathError),
    /// The dataplane did not take the pod.
    #[error("cannot attach the pod to the dataplane")]
    Datapath(#[from] DatapathError),
}

/// What the pod workers need of the network; the seam that lets their tests run without a kernel.
pub trait PodNetwork: Send + Sync + 'static {
    /// Connects a pod's namespace and returns its addresses, primary first. Idempotent: a pod keeps its addresses. When this
    /// returns, network policies apply to the pod, and it sends and receives no faster than `bandwidth` says.
    fn connect(
        &self,
        pod: &PodFacts,
        bandwidth: Bandwidth,
        netns: &Path,
    ) -> impl Future<Output = Result<Vec<IpAddr>, NetworkError>> + Send;

    /// Gives up a pod's addresses and removes its device and routes. Idempotent.
    fn disconnect(&self, uid: &str) -> impl Future<Output = Result<(), NetworkError>> + Send;
}

/// The pod network of this node.
pub struct Network<D> {
    datapath: D,
    ipam: Arc<Ipam>,
    cidrs: watch::Receiver<Vec<Prefix>>,
    mtu: watch::Receiver<PodMtu>,
    connected: Mutex<BTreeMap<String, Arc<Connected>>>,
}

/// What is known of a connected pod by its UID.
struct Connected {
    /// Its namespace, held open: the path that led there may lead elsewhere once the pod is gone.
    netns: File,
    addresses: Vec<IpAddr>,
}

impl<D: PodDatapath> Network<D> {
    /// `cidrs` are the node's podCIDRs, empty until they are assigned; `data_dir` keeps the leases.
    ///
    /// # Errors
    /// The lease file cannot be read.
    pub fn new(
        datapath: D,
        data_dir: &Path,
        cidrs: watch::Receiver<Vec<Prefix>>,
    ) -> Result<Self, NetworkError> {
        let ipam = Arc::new(Ipam::open(&data_dir.join("pod-addresses.json"))?);
        let mtu = datapath.pod_mtu();
        Ok(Self { datapath, ipam, cidrs, mtu, connected: Mutex::default() })
    }

    /// The datapath.
    pub fn datapath(&self) -> &D {
        &self.datapath
    }

    /// Has the pods follow what fits, until `shutdown`.
    pub async fn follow_mtu(&self, shutdown: CancellationToken) {
        let mut changes = self.mtu.clone();
        let work = async {
            loop {
                let mtu = *changes.borrow_and_update();
                let pods: Vec<_> =
                    self.connected.lock().iter().map(|(uid, pod)| (uid.clone(), pod.clone())).collect();
                for (uid, pod) in pods {
                    if let Err(error) = device::resize(&uid, &pod, mtu).await {
                        tracing::warn!(uid, error = %chain(&error), "the pod does not follow what fits");
                    }
                }
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        shutdown.run_until_cancelled(work).await;
    }

    /// Removes devices and leases of pods that are not in `uids`. Call it only with the full list of sandboxes.
    pub async fn retain(&self, uids: &[String]) {
        for uid in self.ipam.holders() {
            if !uids.contains(&uid)
                && let Err(error) = self.disconnect(&uid).await
            {
                tracing::warn!(uid, error = %chain(&error), "leftover of a pod's network not removed");
            }
        }
        let keep: Vec<String> = uids.iter().map(|uid| device::host_name(uid)).collect();
        if let Err(error) = device::remove_others(&keep).await {
            tracing::warn!(error = %chain(&error), "leftover pod devices not removed");
        }
    }
}

impl<D: PodDatapath> PodNetwork for Network<D> {
    async fn connect(
        &self,
        pod: &PodFacts,
        bandwidth: Bandwidth,
        netns: &Path,
    ) -> Result<Vec<IpAddr>, NetworkError> {
        let uid: &str = &pod.uid;
        let cidrs = self.cidrs.borrow().clone();
        let addresses = match self.ipam.lease_of(uid) {
            Some(addresses) => addresses,
            None if cidrs.is_empty() => return Err(NetworkError::NoPodCidr),
            None => self.ipam.lease(uid, &cidrs)?,
        };
        let file = File::open(netns).map_err(|source| NetworkError::Io {
            action: format!("cannot open {}", netns.display()),
            source,
        })?;
        let connected = Arc::new(Connected { netns: file, addresses: addresses.clone() });
        self.connected.lock().insert(uid.to_owned(), connected);
        let link = loop {
            let mtu = *self.mtu.borrow();
            let list = addresses.clone();
            let link = device::connect(uid.to_owned(), netns.to_owned(), list, mtu, bandwidth).await?;
            // What changes from here on finds the pod connected.
            if *self.mtu.borrow() == mtu {
                break link;
            }
        };
        self.datapath
            .attach_endpoint(&Endpoint {
                host_ifindex: link.host_ifindex,
                host_mac: link.host_mac,
                pod_mac: link.pod_mac,
                addresses: addresses.clone(),
                netns_cookie: link.netns_cookie,
                pod: Some(pod.clone()),
            })
            .await?;
        Ok(addresses)
    }

    async fn disconnect(&self, uid: &str) -> Result<(), NetworkError> {
        if let Some(addresses) = self.ipam.lease_of(uid) {
            self.datapath.detach_endpoint(&addresses).await?;
        }
        self.connected.lock().remove(uid);
        device::remove(uid).await?;
        self.ipam.release(uid)?;
        Ok(())
    }
}

/// An error with its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests;
