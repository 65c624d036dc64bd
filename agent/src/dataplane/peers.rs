//! Other nodes, as the programs know them: where their pods are, and whether a tunnel leads there.
//!
//! Reads: what [`crate::network`] decides of Node objects, what the uplink takes. Writes: peers, the tunnels' device, the node's
//! settings. Like all that is pinned, they go on while no agent runs.

use std::collections::BTreeMap;
use std::net::IpAddr;

use kelp_common::peer::{PEER_NODE, PEER_TUNNEL, tunnel_overhead};
use kelp_common::{Address, Cidr, NodeConfig, PeerKey, PeerValue, maps};

use super::config::Network;
use super::kernel::netlink::Connection;
use super::kernel::{Kernel, failed, tunnel};
use super::maps::Table;
use super::{Config, DatapathError, Dataplane, PodMtu};

/// IPv6 needs it of every link (RFC 8200). Where the uplink leaves less, the kernel divides what is outside.
const LEAST_MTU: u32 = 1_280;

/// Addresses of another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// A range of its pods, or an address of its own.
    pub network: Network,
    /// The address by which the node is reached.
    pub node: IpAddr,
    /// Whether the network is one of the node's own addresses, and not of its pods.
    pub is_node: bool,
    /// Whether packets go through a tunnel.
    pub tunnel: bool,
}

impl Peer {
    fn key(&self) -> PeerKey {
        let (network, prefix) = self.network;
        let mapped = if network.is_ipv4() { 96 } else { 0 };
        PeerKey { prefix_length: mapped + u32::from(prefix), network: Cidr::new(network, prefix).network }
    }

    fn value(&self, uplink_mtu: u32) -> PeerValue {
        let mtu = tunnel_mtu(uplink_mtu, self.node.is_ipv4());
        let flags = if self.tunnel { PEER_TUNNEL } else { 0 } | if self.is_node { PEER_NODE } else { 0 };
        PeerValue { node: Address::from(self.node), flags, mtu }
    }
}

/// The largest IP packet for a tunnel to a node, by the family of its address; 0 when that is not known.
fn tunnel_mtu(uplink_mtu: u32, v4: bool) -> u32 {
    match uplink_mtu {
        0 => 0,
        mtu => mtu.saturating_sub(tunnel_overhead(v4)).max(LEAST_MTU),
    }
}

/// The way to nodes that are not on this one's link.
#[derive(Debug)]
pub(super) struct Tunnels {
    table: Table<PeerKey, PeerValue>,
    netlink: Connection,
    /// Index of the device; 0 when there is none.
    device: u32,
    /// What fits through every tunnel; 0 when there is none.
    mtu: u32,
    /// What the uplink takes; 0 when that is not known.
    uplink_mtu: u32,
}

impl Tunnels {
    /// Takes over what an earlier agent left, in the network namespace of the calling thread.
    pub fn open(kernel: &Kernel, config: &Config, uplink_mtu: u32) -> Result<Self, DatapathError> {
        let action = "look for the tunnels' device";
        let mut netlink = Connection::open().map_err(failed(action))?;
        let found =
            if config.foreign_pods { None } else { tunnel::find(&mut netlink).map_err(failed(action))? };
        let device = found.map_or(0, |device| device.ifindex);
        let table = Table::open(kernel, maps::PEERS)?;
        let mut tunnels = Self { table, netlink, device, mtu: 0, uplink_mtu: 0 };
        tunnels.resize(uplink_mtu)?;
        Ok(tunnels)
    }

    /// Has peers and the device fit an uplink that takes this much.
    fn resize(&mut self, uplink_mtu: u32) -> Result<(), DatapathError> {
        self.uplink_mtu = uplink_mtu;
        let mut peers = self.read()?;
        for peer in peers.values_mut() {
            peer.mtu = tunnel_mtu(uplink_mtu, peer.node.is_v4());
        }
        self.mtu = least_mtu(peers.values());
        if self.device != 0 {
            let mtu = self.device_mtu();
            let action = "change the MTU of the tunnels' device";
            tunnel::resize(&mut self.netlink, self.device, mtu).map_err(failed(action))?;
        }
        self.write(&peers)
    }

    /// The host sends by the device only when a node needs it.
    fn device_mtu(&self) -> u32 {
        if self.mtu == 0 { LEAST_MTU } else { self.mtu }
    }

    /// What the uplink takes; 0 when that is not known.
    pub fn uplink_mtu(&self) -> u32 {
        self.uplink_mtu
    }

    /// The largest packets of pods.
    pub fn pod_mtu(&self) -> PodMtu {
        PodMtu::new(self.uplink_mtu, self.mtu)
    }

    /// Index of the device; 0 when there is none.
    pub fn device(&self) -> u32 {
        self.device
    }

    /// What the programs are told.
    pub fn complete(&self, settings: NodeConfig) -> NodeConfig {
        NodeConfig { tunnel: self.device, tunnel_mtu: self.mtu, ..settings }
    }

    fn read(&self) -> Result<BTreeMap<PeerKey, PeerValue>, DatapathError> {
        let mut known = BTreeMap::new();
        self.table.scan(|key, value| {
            known.insert(*key, *value);
        })?;
        Ok(known)
    }

    /// Makes the map hold exactly these; what is new is written before what is old goes.
    fn write(&self, wanted: &BTreeMap<PeerKey, PeerValue>) -> Result<(), DatapathError> {
        let known = self.read()?;
        for (key, value) in wanted.iter().filter(|(key, value)| known.get(key) != Some(value)) {
            self.table.put(key, value)?;
        }
        let stale: Vec<PeerKey> = known.into_keys().filter(|key| !wanted.contains_key(key)).collect();
        self.table.delete_all(&stale)
    }
}

/// The least that fits through all tunnels in use; 0 without one, or when it is not known.
fn least_mtu<'a>(peers: impl IntoIterator<Item = &'a PeerValue>) -> u32 {
    let used = peers.into_iter().filter(|peer| peer.flags & PEER_TUNNEL != 0);
    used.map(|peer| peer.mtu).min().unwrap_or(0)
}

impl Dataplane {
    /// Tells which nodes there are, and how they are reached. With `tunnels` the node takes what comes by a tunnel also when it
    /// sends nothing by one; without, the device is removed. Returns the device's index for the host's routes, if there is one.
    ///
    /// # Errors
    /// When the kernel refuses a map or the device, and a peer needs it. Peers that are reached directly are written in any
    /// case.
    pub fn write_peers(&self, peers: &[Peer], tunnels: bool) -> Result<Option<u32>, DatapathError> {
        let mut state = self.tunnels.lock();
        let mtu = state.uplink_mtu;
        let wanted: BTreeMap<PeerKey, PeerValue> =
            peers.iter().map(|peer| (peer.key(), peer.value(mtu))).collect();
        state.mtu = least_mtu(wanted.values());
        let made = if tunnels && !peers.is_empty() { self.open_tunnel(&mut state) } else { Ok(()) };
        let needed = wanted.values().any(|peer| peer.flags & PEER_TUNNEL != 0);
        self.tell_settings(&state)?;
        state.write(&wanted)?;
        self.tell_pod_mtu(&state);
        match made {
            Err(error) if needed => return Err(error),
            Err(error) => {
                tracing::debug!(error = %super::chain(&error), "no device for tunnels, which no node needs");
            }
            Ok(()) => {}
        }
        if !tunnels && state.device != 0 {
            let device = std::mem::take(&mut state.device);
            self.tell_settings(&state)?;
            self.kernel.detach_tunnel()?;
            tunnel::remove(&mut state.netlink, device).map_err(failed("remove the tunnels' device"))?;
        }
        Ok((state.device != 0).then_some(state.device))
    }

    fn tell_pod_mtu(&self, state: &Tunnels) {
        let wanted = state.pod_mtu();
        self.pod_mtu.send_if_modified(|mtu| std::mem::replace(mtu, wanted) != wanted);
    }

    /// Follows a change of the uplink, which takes this much now.
    pub(super) fn resize(&self, uplink_mtu: u32) {
        let mut state = self.tunnels.lock();
        if state.uplink_mtu == uplink_mtu {
            return;
        }
        tracing::info!(mtu = uplink_mtu, "the uplink takes packets of another size");
        if let Err(error) = state.resize(uplink_mtu).and_then(|()| self.tell_settings(&state)) {
            tracing::warn!(error = %super::chain(&error), "a change of the uplink is not followed");
        }
        self.tell_pod_mtu(&state);
    }

    fn open_tunnel(&self, state: &mut Tunnels) -> Result<(), DatapathError> {
        let port = self.config.lock().tunnel_port;
        let mtu = state.device_mtu();
        let action = "make the device for tunnels to other nodes";
        let device = tunnel::ensure(&mut state.netlink, port, mtu).map_err(failed(action))?;
        if device != state.device {
            self.kernel.attach_tunnel(device)?;
            state.device = device;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(network: &str, prefix: u8, node: &str, tunnel: bool) -> Peer {
        let (network, node) = (network.parse().unwrap(), node.parse().unwrap());
        Peer { network: (network, prefix), node, is_node: false, tunnel }
    }

    #[test]
    fn what_fits_depends_on_the_way_and_never_falls_below_what_ipv6_needs() {
        let (v4, v6) = (peer("10.244.1.0", 24, "192.0.2.1", true), peer("fd00::", 64, "2001:db8::1", true));
        assert_eq!((v4.value(1_500).mtu, v6.value(1_500).mtu), (1_450, 1_430));
        assert_eq!((v4.value(1_320).mtu, v4.value(0).mtu), (1_280, 0));
        assert_eq!((v4.key().prefix_length, v6.key().prefix_length), (120, 64));
        let direct = peer("10.244.2.0", 24, "192.0.2.2", false);
        let least =
            |peers: &[Peer]| least_mtu(&peers.iter().map(|peer| peer.value(1_500)).collect::<Vec<_>>());
        assert_eq!((least(&[v4, v6, direct]), least(&[v4, direct]), least(&[direct])), (1_430, 1_450, 0));
    }
}
