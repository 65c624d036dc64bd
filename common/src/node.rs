//! What the programs know of their node.

use crate::{Address, Cidr, TCP};

/// The node's settings: the only entry of an array map.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NodeConfig {
    /// Cookie of the host's network namespace: there, and only there, loopback addresses have node ports.
    pub host_netns_cookie: u64,
    /// Index of the device to other nodes and the outside; 0 when there is none.
    pub uplink: u32,
    /// `NODE_*` bits.
    pub flags: u32,
    /// Service ranges, IPv4 and IPv6: an address in them that has no frontend is refused.
    pub services: [Cidr; 2],
    /// Ranges of all pods of the cluster: no address translation to them.
    pub cluster: [Cidr; 2],
    /// Ranges of this node's pods: an address in them without an endpoint does not exist.
    pub pods: [Cidr; 2],
    /// The source addresses of translated traffic to other nodes and the outside, IPv4 and IPv6; unspecified when
    /// the node has no address of that family.
    pub node: [Address; 2],
    /// The source addresses a pod sees when it reaches itself through a service, IPv4 and IPv6.
    pub hairpin: [Address; 2],
    /// First port for translated sources, host byte order. The range lies outside the host's ephemeral ports.
    pub nat_port_min: u16,
    /// Last port for translated sources, host byte order.
    pub nat_port_max: u16,
    /// Largest IP packet that the uplink takes, bytes; 0 when that is not known.
    pub uplink_mtu: u32,
    /// UDP port of envelopes for backends of other nodes ([`NODE_DSR`]), network byte order.
    pub dsr_port: u16,
    /// First and last port for translated sources of TCP, host byte order, where they are others; else 0. Twice as many
    /// connections a second need twice as many, as a port rests for a minute.
    pub tcp_port_min: u16,
    /// See [`Self::tcp_port_min`].
    pub tcp_port_max: u16,
    /// UDP port of tunnels between nodes, network byte order.
    pub tunnel_port: u16,
    /// Index of the device of tunnels between nodes; 0 when there is none.
    pub tunnel: u32,
    /// Largest IP packet that fits through every tunnel in use, bytes; 0 when none is, or that is not known.
    pub tunnel_mtu: u32,
}

const _: () = assert!(size_of::<NodeConfig>() == 16 + 6 * 32 + 4 * 16 + 24);

impl NodeConfig {
    /// The first port for translated sources of a protocol, and how many there are.
    #[inline(always)]
    #[must_use]
    pub const fn source_ports(&self, protocol: u32) -> (u32, u32) {
        let (first, last) = if protocol == TCP as u32 && self.tcp_port_min != 0 {
            (self.tcp_port_min, self.tcp_port_max)
        } else {
            (self.nat_port_min, self.nat_port_max)
        };
        (first as u32, (last as u32).wrapping_sub(first as u32).wrapping_add(1))
    }
}

/// Traffic of pods to the outside takes the node's address.
pub const NODE_MASQUERADE: u32 = 1;

/// Backends of other nodes answer clients outside the cluster themselves: packets go there in an envelope (Geneve). Every
/// node opens envelopes, whether it sends them or not.
pub const NODE_DSR: u32 = 2;

/// Bytes of an envelope: IP, UDP and Geneve.
#[inline(always)]
#[must_use]
pub const fn dsr_overhead(v4: bool) -> u32 {
    if v4 { 36 } else { 56 }
}

/// Whether envelopes come from this port (network byte order): 512–1023, which a node only gives to those who may.
#[inline(always)]
#[must_use]
pub const fn is_dsr_source(port: u16) -> bool {
    matches!(u16::from_be(port), 512..=1023)
}

/// A pod on this node; the key is its address.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct EndpointValue {
    /// Index of the host-side device; 0 for a pod that another agent connected: the host's stack knows the way.
    pub ifindex: u32,
    /// MAC address of the device in the pod.
    pub pod_mac: [u8; 6],
    /// MAC address of the host-side device.
    pub host_mac: [u8; 6],
    /// Where its policies are; see [`crate::policy`].
    pub space: u32,
    /// The policy of what it may receive; 0 is everything.
    pub ingress: u32,
    /// The policy of what it may send; 0 is everything.
    pub egress: u32,
    /// Second of the monotonic clock when policies first applied to the running pod; 0 when they did from its start.
    pub isolated_since: u32,
}

const _: () = assert!(size_of::<EndpointValue>() == 32);

impl EndpointValue {
    /// Whether any policy applies to the pod.
    #[inline(always)]
    #[must_use]
    pub const fn is_isolated(&self) -> bool {
        self.ingress | self.egress != 0
    }
}

/// [`EndpointValue`] before endpoints had policies.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct EndpointValueV1 {
    /// Index of the host-side device.
    pub ifindex: u32,
    /// MAC address of the device in the pod.
    pub pod_mac: [u8; 6],
    /// MAC address of the host-side device.
    pub host_mac: [u8; 6],
}

const _: () = assert!(size_of::<EndpointValueV1>() == 16);

/// A pod's network namespace; the key is its cookie.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct NamespaceValue {
    /// The pod's addresses, IPv4 and IPv6; unspecified (`::`) when it has none of that family.
    pub addresses: [Address; 2],
    /// `NAMESPACE_*` bits.
    pub flags: u32,
    /// Index of the pod's host-side device.
    pub ifindex: u32,
}

const _: () = assert!(size_of::<NamespaceValue>() == 40);

/// Sockets of this namespace are left alone: every packet is translated instead.
pub const NAMESPACE_NO_SOCKETS: u32 = 1;
