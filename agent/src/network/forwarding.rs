//! Pods without Kelp's dataplane: the host's stack forwards between their devices and the uplink, and services are
//! another program's affair.

use crate::dataplane::{DatapathError, Endpoint, Peer, PodDatapath, PodMtu, Uplink, UplinkWatch};
use crate::network::NetworkError;
use std::net::IpAddr;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A datapath that leaves everything to the host's stack. NetworkPolicies are not enforced by it, and what pods send to
/// the outside keeps their addresses.
#[derive(Debug, Clone)]
pub struct HostForwarding {
    mtu: watch::Receiver<PodMtu>,
}

impl HostForwarding {
    /// Lets the host's stack forward, in the network namespace of the calling thread: `net.ipv4.ip_forward`, and
    /// `net.ipv6.conf.all.forwarding` where the kernel has IPv6. What the device named `uplink` takes is followed until
    /// `shutdown`.
    ///
    /// # Errors
    /// A setting cannot be written, or the uplink is not there.
    pub fn enable(uplink: Option<&str>, shutdown: CancellationToken) -> Result<Self, NetworkError> {
        for path in ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"] {
            match std::fs::write(path, "1") {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    return Err(NetworkError::Io { action: format!("cannot write {path}"), source });
                }
                _ => {}
            }
        }
        let changes = UplinkWatch::open()?;
        let uplink = Uplink::find(uplink)?;
        let (sender, mtu) = watch::channel(PodMtu::new(uplink.mtu, 0));
        let tell = move |mtu| {
            let wanted = PodMtu::new(mtu, 0);
            sender.send_if_modified(|mtu| std::mem::replace(mtu, wanted) != wanted);
        };
        tokio::spawn(changes.run(uplink.ifindex, tell, shutdown));
        Ok(Self { mtu })
    }
}

impl PodDatapath for HostForwarding {
    fn set_peers(&self, _: &[Peer], _: bool) -> Result<Option<u32>, DatapathError> {
        Ok(None)
    }

    fn pod_mtu(&self) -> watch::Receiver<PodMtu> {
        self.mtu.clone()
    }

    async fn attach_endpoint(&self, _: &Endpoint) -> Result<(), DatapathError> {
        Ok(())
    }

    async fn detach_endpoint(&self, _: &[IpAddr]) -> Result<(), DatapathError> {
        Ok(())
    }
}
