//! Service load balancing and pod routing in eBPF; the only user of aya.

pub mod kernel;
pub mod sys;

use std::future::Future;
use std::net::IpAddr;

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
