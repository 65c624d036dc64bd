//! Pods without Kelp's dataplane: the host's stack forwards between their devices and the uplink, and services are
//! another program's affair.

use crate::dataplane::{DatapathError, Endpoint, Peer, PodDatapath};
use crate::network::NetworkError;
use std::net::IpAddr;

/// A datapath that leaves everything to the host's stack. NetworkPolicies are not enforced by it, and what pods send to
/// the outside keeps their addresses.
#[derive(Debug, Clone, Copy)]
pub struct HostForwarding(());

impl HostForwarding {
    /// Lets the host's stack forward, in the network namespace of the calling thread: `net.ipv4.ip_forward`, and
    /// `net.ipv6.conf.all.forwarding` where the kernel has IPv6.
    ///
    /// # Errors
    /// A setting cannot be written.
    pub fn enable() -> Result<Self, NetworkError> {
        for path in ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"] {
            match std::fs::write(path, "1") {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    return Err(NetworkError::Io { action: format!("cannot write {path}"), source });
                }
                _ => {}
            }
        }
        Ok(Self(()))
    }
}

impl PodDatapath for HostForwarding {
    fn set_peers(&self, _: &[Peer], _: bool) -> Result<Option<u32>, DatapathError> {
        Ok(None)
    }

    async fn attach_endpoint(&self, _: &Endpoint) -> Result<(), DatapathError> {
        Ok(())
    }

    async fn detach_endpoint(&self, _: &[IpAddr]) -> Result<(), DatapathError> {
        Ok(())
    }
}
