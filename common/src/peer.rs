//! Other nodes, and how their pods are reached.

use crate::Address;

/// Key of a longest-prefix map: the pods of another node, or an address of its own.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PeerKey {
    /// Number of bits of the address that count (96 more for IPv4, as it is v4-mapped).
    pub prefix_length: u32,
    /// The network.
    pub network: Address,
}

const _: () = assert!(size_of::<PeerKey>() == 20);

impl PeerKey {
    /// Bits of a key for one address.
    pub const WHOLE: u32 = 128;
}

/// A node that has the addresses of a [`PeerKey`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct PeerValue {
    /// The node's address: where tunnels to it lead, and where its come from.
    pub node: Address,
    /// `PEER_*` bits.
    pub flags: u32,
    /// Largest IP packet that fits through the tunnel, bytes; 0 when that is not known.
    pub mtu: u32,
}

const _: () = assert!(size_of::<PeerValue>() == 24);

/// The pods are reached through the tunnel.
pub const PEER_TUNNEL: u32 = 1;
/// It is the node's own address: only what pods send it goes through the tunnel.
pub const PEER_NODE: u32 = 2;

/// Virtual network identifier of the tunnels between nodes.
pub const TUNNEL_ID: u32 = 0x6b_656c;

/// Bytes around an IP packet in a tunnel: Ethernet within, VXLAN, UDP, and IP of the node's address.
#[inline(always)]
#[must_use]
pub const fn tunnel_overhead(v4: bool) -> u32 {
    if v4 { 50 } else { 70 }
}
