//! Tunnels between nodes that are not on one link: VXLAN (RFC 7348) by one device, which gets the other end from these programs
//! a packet at a time.
//!
//! | | |
//! |---|---|
//! | [`exit`] | by which device a packet leaves, and how large it may be |
//! | [`to_tunnel`] | egress of the device: names the node to which a packet goes |
//! | [`accept`] | ingress of the device: lets pass what a node may send; `from_net` goes on from there |
//!
//! A node is believed about its own pods only: the source within belongs to the node that the tunnel comes from.

use aya_ebpf::bindings::{BPF_F_TUNINFO_IPV6, BPF_F_ZERO_CSUM_TX, TC_ACT_OK, TC_ACT_SHOT, bpf_tunnel_key};
use aya_ebpf::helpers::{bpf_skb_change_type, bpf_skb_get_tunnel_key, bpf_skb_set_tunnel_key};
use aya_ebpf::macros::classifier;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::programs::TcContext;
use kelp_common::maps::counter;
use kelp_common::peer::{PEER_NODE, PEER_TUNNEL, TUNNEL_ID};
use kelp_common::{Address, NodeConfig, PeerKey, PeerValue, UDP};

use crate::maps::{NODE_CONFIG, PEERS, count, tally};
use crate::packet::{ETH_IPV4, ETH_IPV6, Kind, L2, Packet};
use crate::service::{in_cluster, of_family};

/// `PACKET_HOST`: a frame for this host.
const PACKET_HOST: u32 = 0;

/// `struct bpf_tunnel_key` in words: the identifier; the other node's address (of IPv4 one word, in host byte order); type
/// of service, time to live and flags, a byte each of the first two; the flow label; this node's address.
type TunnelKey = [u32; 11];
/// The node's own address is told since Linux 6.0: before, the key ends here.
const OLD_LENGTH: u32 = 28;
const REMOTE: usize = 1;
const TTL: usize = 5;
const LOCAL: usize = 7;

/// Where a packet leaves. (In one number: that is what a function can return, and it takes less of the stack.)
#[derive(Clone, Copy)]
pub struct Exit(u64);

impl Exit {
    /// Nowhere.
    pub const NONE: Self = Self(0);

    #[inline(always)]
    fn new(device: u32, mtu: u32) -> Self {
        Self(u64::from(device) | u64::from(mtu) << 32)
    }

    /// Index of the device; 0 when there is none.
    #[inline(always)]
    pub fn device(self) -> u32 {
        self.0 as u32
    }

    /// Largest IP packet that it takes, bytes; 0 when that is not known.
    #[inline(always)]
    pub fn mtu(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

#[inline(always)]
fn peer(address: &Address) -> Option<&'static PeerValue> {
    PEERS.get(Key::new(PeerKey::WHOLE, *address))
}

/// Where a packet between these addresses leaves the node.
#[inline(always)]
pub fn exit(config: &NodeConfig, source: &Address, destination: &Address) -> Exit {
    Exit(find(config, source, destination))
}

#[inline(never)]
fn find(config: &NodeConfig, source: &Address, destination: &Address) -> u64 {
    if config.tunnel != 0
        && let Some(peer) = peer(destination)
        && peer.flags & PEER_TUNNEL != 0
        && (peer.flags & PEER_NODE == 0 || config.pods[0].contains(source) || config.pods[1].contains(source))
    {
        return Exit::new(config.tunnel, peer.mtu).0;
    }
    Exit::new(config.uplink, config.uplink_mtu).0
}

/// Names the node to which a packet goes. Pods' packets come here by redirection, the host's by its routes.
#[classifier]
pub fn to_tunnel(ctx: TcContext) -> i32 {
    match set_key(&ctx) {
        Some(()) => TC_ACT_OK,
        None => TC_ACT_SHOT,
    }
}

#[inline(always)]
fn set_key(ctx: &TcContext) -> Option<()> {
    // SAFETY: the context is valid.
    let destination = match unsafe { (*ctx.skb.skb).protocol } {
        ETH_IPV4 => Address::v4(ctx.load(L2 + 16).ok()?),
        ETH_IPV6 => Address(ctx.load(L2 + 24).ok()?),
        _ => return None,
    };
    // The link's own affairs have nobody to go to.
    if destination.is_link_scoped() {
        return None;
    }
    let config = NODE_CONFIG.get(0)?;
    let Some(peer) = peer(&destination) else {
        tally(counter::UNREACHABLE);
        return None;
    };
    let v4 = peer.node.is_v4();
    let local = of_family(&config.node, v4);
    let mut key: TunnelKey = [0; 11];
    key[0] = TUNNEL_ID;
    key[TTL] = u32::from_ne_bytes([0, 64, 0, 0]);
    // What is inside has checksums of its own; with IPv6 the outer one may be left out between those only who agreed.
    let flags = if v4 {
        key[REMOTE] = u32::from_be(peer.node.0[3]);
        key[LOCAL] = u32::from_be(local.0[3]);
        BPF_F_ZERO_CSUM_TX
    } else {
        key[REMOTE..REMOTE + 4].copy_from_slice(&peer.node.0);
        key[LOCAL..LOCAL + 4].copy_from_slice(&local.0);
        BPF_F_TUNINFO_IPV6
    };
    if set(ctx, &mut key, size_of::<TunnelKey>() as u32, flags) || set(ctx, &mut key, OLD_LENGTH, flags) {
        return Some(());
    }
    tally(counter::REWRITE);
    None
}

#[inline(always)]
fn set(ctx: &TcContext, key: &mut TunnelKey, length: u32, flags: u32) -> bool {
    // SAFETY: the helper reads as many bytes of the key as it is told, which it has.
    unsafe {
        bpf_skb_set_tunnel_key(
            ctx.skb.skb,
            key.as_mut_ptr().cast::<bpf_tunnel_key>(),
            length,
            u64::from(flags),
        ) == 0
    }
}

/// Has a packet that came by a tunnel forget that. (`bpf_redirect_neigh` without a neighbour leaks what it remembers of it,
/// with every packet, in kernels before October 2025. In its place comes the key, which there is one of a CPU.)
#[inline(always)]
pub fn forget(ctx: &TcContext) {
    let mut key: TunnelKey = [0; 11];
    set(ctx, &mut key, OLD_LENGTH, 0);
}

/// Whether a packet came by a tunnel.
#[inline(always)]
pub fn is_from(ctx: &TcContext, config: &NodeConfig) -> bool {
    // SAFETY: the context is valid.
    config.tunnel != 0 && unsafe { (*ctx.skb.skb).ifindex } == config.tunnel
}

/// Whether a packet that came by a tunnel may go on; one that may not is counted.
#[inline(never)]
pub fn accept(ctx: &TcContext, config: &NodeConfig, packet: &Packet) -> bool {
    if packet.kind == Kind::Neighbour || packet.key.destination.is_link_scoped() {
        return false;
    }
    let Some(node) = sender(ctx) else {
        count(counter::SPOOFED);
        return false;
    };
    // Addresses of pods are their node's; what nodes send in the name of others is theirs to answer for.
    let source = &packet.key.source;
    let known = if in_cluster(config, source) { peer(source) } else { peer(&node) };
    if !known.is_some_and(|peer| peer.node == node) {
        count(counter::SPOOFED);
        return false;
    }
    // For the host's stack, as its name within is not that of this device. It cannot fail with this type.
    // SAFETY: the helper has no preconditions.
    let _ = unsafe { bpf_skb_change_type(ctx.skb.skb, PACKET_HOST) };
    true
}

/// The node at the other end of the tunnel that a packet came by, if it is a tunnel of ours.
#[inline(always)]
fn sender(ctx: &TcContext) -> Option<Address> {
    let mut key: TunnelKey = [0; 11];
    let read = |key: &mut TunnelKey, flags: u32| {
        // SAFETY: the helper writes as many bytes as it is told, which the key has.
        let result = unsafe {
            bpf_skb_get_tunnel_key(
                ctx.skb.skb,
                key.as_mut_ptr().cast::<bpf_tunnel_key>(),
                OLD_LENGTH,
                u64::from(flags),
            )
        };
        result == 0 && key[0] == TUNNEL_ID
    };
    if read(&mut key, 0) {
        return Some(Address::v4(key[REMOTE].to_be()));
    }
    if read(&mut key, BPF_F_TUNINFO_IPV6) {
        return Some(Address([key[REMOTE], key[REMOTE + 1], key[REMOTE + 2], key[REMOTE + 3]]));
    }
    None
}

/// Whether a packet that leaves the node claims to be a tunnel's, and was sent by a pod: those have ports of the range for
/// translated sources, which tunnels never use.
#[inline(always)]
pub fn is_forged(config: &NodeConfig, packet: &Packet) -> bool {
    packet.key.destination_port == config.tunnel_port
        && packet.key.protocol == u32::from(UDP)
        && config.tunnel != 0
        && u16::from_be(packet.key.source_port) >= config.nat_port_min
        && u16::from_be(packet.key.source_port) <= config.nat_port_max
}
