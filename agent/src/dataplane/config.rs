//! Settings of the dataplane.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;

pub use kelp_common::maglev::{DEFAULT_SIZE as MAGLEV_SIZE, SIZES as MAGLEV_SIZES};
use kelp_common::node::{NODE_DSR, NODE_MASQUERADE};
use kelp_common::{Address, Cidr, NodeConfig};
pub use kelp_model::maglev::is_size as is_maglev_size;
pub use kelp_model::service::Balancing;
use kelp_model::service::LocalDns;

/// An address range: its first address and the length of its prefix.
pub type Network = (IpAddr, u8);

/// Geneve's port (RFC 8926).
pub const DSR_PORT: u16 = 6_081;

/// The port of VXLAN that Linux uses, and with it other pod networks.
pub const TUNNEL_PORT: u16 = 8_472;

/// Settings of the dataplane; the lists hold at most one entry of each family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Name of this node.
    pub node_name: String,
    /// The node's addresses: the source of translated traffic.
    pub node_addresses: Vec<IpAddr>,
    /// Name of the device to other nodes and the outside, if there is one.
    pub uplink: Option<String>,
    /// Service ranges.
    pub service_cidrs: Vec<Network>,
    /// Ranges of all pods of the cluster.
    pub cluster_cidrs: Vec<Network>,
    /// Ranges of this node's pods, once known; see [`super::Dataplane::set_pod_cidrs`].
    pub pod_cidrs: Vec<Network>,
    /// Ports of translated sources. They must lie outside `net.ipv4.ip_local_port_range` and the
    /// node ports.
    pub nat_ports: RangeInclusive<u16>,
    /// The same for TCP, which needs more: a port rests for a minute after its connection. Those that the host gives its
    /// own sockets are left out. A server of the host may listen on one: only answers of the very same backend count.
    pub tcp_ports: RangeInclusive<u16>,
    /// Whether pods reach the outside with the node's address.
    pub masquerade: bool,
    /// The cgroup2 directory whose sockets are served.
    pub cgroup: PathBuf,
    /// The directory on a bpffs for maps and links.
    pub bpf_directory: PathBuf,
    /// Where `/healthz` and `/livez` are served, if at all.
    pub healthz_address: Option<SocketAddr>,
    /// Where `/metrics` is served, if at all.
    pub metrics_address: Option<SocketAddr>,
    /// Whether NetworkPolicies are enforced for the pods that are attached.
    pub network_policies: bool,
    /// Whether the node's pods are connected by another agent and forwarded to by the host's stack.
    pub foreign_pods: bool,
    /// The DNS server on this node, if there is one.
    pub local_dns: Option<LocalDns>,
    /// How many entries maps hold, by their names in `kelp_common::maps`, where it is not the default. A map that is
    /// pinned with another size is replaced, and keeps its entries.
    pub map_sizes: BTreeMap<&'static str, u32>,
    /// How clients outside the cluster are led to endpoints.
    pub balancing: Balancing,
    /// Whether pods of other nodes answer clients outside the cluster themselves (direct server return), and not through
    /// this node.
    pub dsr: bool,
    /// UDP port by which nodes hand each other packets for it; the same on all nodes.
    pub dsr_port: u16,
    /// Whether what only passes through the node is translated before the kernel's stack sees it.
    pub xdp: Xdp,
    /// UDP port of tunnels to nodes that are not on this one's link; the same on all nodes.
    pub tunnel_port: u16,
    /// Whether programs are attached to devices by filters of `clsact` qdiscs also where the kernel has tcx (6.6).
    pub clsact: bool,
}

/// Whether an XDP program at the uplink translates what only passes through the node, between clients outside the cluster and
/// backends of other nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Xdp {
    /// In the driver of the uplink, if it can. Not on veth devices, of which the other end would have to help.
    #[default]
    Auto,
    /// In the driver.
    Native,
    /// In the kernel's stack, with any device: for tests, as little is won.
    Generic,
    /// Not at all.
    Off,
}

/// Maps whose size is a matter of the cluster's, by the name that people use.
pub fn sizable_maps() -> impl Iterator<Item = (String, &'static str)> {
    super::kernel::resize::SIZES.iter().map(|(name, _)| {
        let short = name.rsplit_once("_V").map_or(*name, |(short, _)| short);
        (short.to_lowercase().replace('_', "-"), *name)
    })
}

impl Default for Config {
    fn default() -> Self {
        let v4 = |a, b, c, d| IpAddr::from([a, b, c, d]);
        let v6 = |a, b, c| IpAddr::from([a, b, c, 0, 0, 0, 0, 0_u16]);
        Self {
            node_name: String::new(),
            node_addresses: Vec::new(),
            uplink: None,
            service_cidrs: vec![(v4(10, 96, 0, 0), 16), (v6(0xfd00, 0x10, 0x96), 112)],
            cluster_cidrs: vec![(v4(10, 244, 0, 0), 16), (v6(0xfd00, 0x10, 0x244), 56)],
            pod_cidrs: Vec::new(),
            nat_ports: 61_000..=65_535,
            tcp_ports: 1_024..=29_999,
            masquerade: true,
            cgroup: PathBuf::from("/sys/fs/cgroup"),
            bpf_directory: PathBuf::from("/sys/fs/bpf/kelp"),
            healthz_address: None,
            metrics_address: None,
            network_policies: true,
            foreign_pods: false,
            local_dns: None,
            map_sizes: BTreeMap::new(),
            balancing: Balancing::default(),
            dsr: false,
            dsr_port: DSR_PORT,
            xdp: Xdp::default(),
            tunnel_port: TUNNEL_PORT,
            clsact: false,
        }
    }
}

impl Config {
    /// Leaves the ports to the host's sockets that the kernel gives them (`net.ipv4.ip_local_port_range`).
    pub(super) fn leave_ports(&mut self, ephemeral: &RangeInclusive<u16>) {
        let (first, last) = (*self.tcp_ports.start(), *self.tcp_ports.end());
        let below = first..=ephemeral.start().saturating_sub(1).min(last);
        let above = ephemeral.end().saturating_add(1).max(first)..=last;
        let larger = if above.len() > below.len() { above } else { below };
        self.tcp_ports = if larger.len() > self.nat_ports.len() { larger } else { self.nat_ports.clone() };
    }

    /// The programs' form of the settings, without tunnels.
    #[must_use]
    pub fn for_kernel(&self, uplink: u32, uplink_mtu: u32, host_netns_cookie: u64) -> NodeConfig {
        let ranges = |list: &[Network]| {
            let of = |v4: bool| {
                list.iter()
                    .find(|(network, _)| network.is_ipv4() == v4)
                    .map_or(Cidr::NONE, |(network, prefix)| Cidr::new(*network, *prefix))
            };
            [of(true), of(false)]
        };
        let address = |v4: bool| {
            self.node_addresses
                .iter()
                .find(|address| address.is_ipv4() == v4)
                .map_or(Address::ANY_V6, |address| Address::from(*address))
        };
        NodeConfig {
            host_netns_cookie,
            uplink,
            flags: if self.masquerade { NODE_MASQUERADE } else { 0 } | if self.dsr { NODE_DSR } else { 0 },
            services: ranges(&self.service_cidrs),
            cluster: ranges(&self.cluster_cidrs),
            pods: ranges(&self.pod_cidrs),
            node: [address(true), address(false)],
            // The pods' gateways: addresses no pod and no host has.
            hairpin: [
                Address::from(IpAddr::from([169, 254, 1, 1])),
                Address::from(IpAddr::from([0xfe80, 0, 0, 0, 0, 0, 0, 1_u16])),
            ],
            nat_port_min: *self.nat_ports.start(),
            nat_port_max: *self.nat_ports.end(),
            uplink_mtu,
            dsr_port: self.dsr_port.to_be(),
            tcp_port_min: *self.tcp_ports.start(),
            tcp_port_max: *self.tcp_ports.end(),
            tunnel_port: self.tunnel_port.to_be(),
            tunnel: 0,
            tunnel_mtu: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_the_hosts_own_sockets_are_left_to_them() {
        for (ephemeral, rest) in [
            (32_768..=60_999, 1_024..=29_999),
            (20_000..=60_999, 1_024..=19_999),
            (1_024..=9_999, 10_000..=29_999),
            (10_000..=11_000, 11_001..=29_999),
            // Too few are left, or none.
            (5_000..=28_000, 61_000..=65_535),
            (1_024..=65_535, 61_000..=65_535),
            (1..=u16::MAX, 61_000..=65_535),
        ] {
            let mut config = Config::default();
            config.leave_ports(&ephemeral);
            assert_eq!(config.tcp_ports, rest, "{ephemeral:?}");
        }
    }

    #[test]
    fn maps_have_names_for_people() {
        let names: BTreeMap<String, &str> = sizable_maps().collect();
        assert_eq!(names.get("source-ranges"), Some(&kelp_common::maps::SOURCE_RANGES));
        assert_eq!(names.get("backends"), Some(&kelp_common::maps::BACKENDS));
        assert!(!names.contains_key("counters") && !names.contains_key("node-config"));
    }
}
