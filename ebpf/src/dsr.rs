//! Direct server return: a packet from outside for a backend on another node goes there as it is, in an envelope, and that
//! node answers the client itself, as the service. The client's address stays, and answers make no detour.
//!
//! The envelope is Geneve (RFC 8926) without options, addressed to the backend's pod, which other nodes route anyway. The
//! packet inside names the service; the virtual network identifier is the backend's port. So the backend's node knows all
//! that it would if the client had chosen it: it looks up the service, whose clients' ranges hold here as well, and
//! remembers the flow. Envelopes come from ports below 1024 of addresses that are no pod's: a pod cannot send one, since
//! it reaches other nodes by its own address or by a port of the range for translated sources.

use aya_ebpf::bindings::TC_ACT_SHOT;
use aya_ebpf::helpers::bpf_skb_adjust_room;
use aya_ebpf::programs::TcContext;
use kelp_common::flow::{FLOW_CLOSED, FLOW_WRAPPED};
use kelp_common::maglev::flow_hash;
use kelp_common::maps::counter;
use kelp_common::node::{dsr_overhead, is_dsr_source};
use kelp_common::{Address, FrontendValue, NodeConfig, TCP, UDP};

use crate::lb;
use crate::maps::{FLOWS, count, forward_room, packet_room};
use crate::packet::{Kind, L2, Packet, TCP_ACK, TCP_SYN, parse};
use crate::reject::{self, fold, store, sum, word};
use crate::service::{in_cluster, of_family};
use crate::{fragment, route, tunnel};

/// `enum bpf_adj_room_mode`: room between the Ethernet and the network header.
const ROOM_MAC: u32 = 1;
/// Flags of `bpf_skb_adjust_room`: segments keep their size; what the room is for.
const FIXED_GSO: u64 = 1;
const ENCAP_IPV4: u64 = 2;
const ENCAP_IPV6: u64 = 4;
const ENCAP_UDP: u64 = 16;
/// UDP and Geneve.
const INNER_HEADERS: usize = 16;
/// Geneve without options: the protocol of what is inside.
const INSIDE_V4: u32 = word([0, 0, 0x08, 0x00]);
const INSIDE_V6: u32 = word([0, 0, 0x86, 0xdd]);

/// Sends a packet to a backend of another node, as it is. One that does not fit with the envelope is answered.
#[inline(always)]
pub fn send(ctx: &TcContext, config: &NodeConfig, packet: &Packet, backend: &Address, port: u16) -> i32 {
    let overhead = dsr_overhead(packet.v4);
    // SAFETY: the context is valid.
    let (length, segment) = unsafe { ((*ctx.skb.skb).len, (*ctx.skb.skb).gso_size) };
    let mtu = tunnel::exit(config, &packet.key.source, backend).mtu();
    // Large segments of TCP are cut anew, to what is left; datagrams stay as they are.
    let size = if segment == 0 { length - L2 as u32 } else { segment + (packet.l4 - L2) as u32 + 8 };
    let is_cut = segment != 0 && packet.key.protocol == u32::from(TCP);
    if mtu != 0 && size + overhead > mtu && !is_cut {
        count(counter::TOO_BIG);
        return reject::too_big(ctx, packet, mtu - overhead);
    }
    send_wrapped(ctx, config, packet, backend, port)
}

/// (A function of its own, beside that which answers: one within the other, they would need too much stack.)
#[inline(never)]
fn send_wrapped(ctx: &TcContext, config: &NodeConfig, packet: &Packet, backend: &Address, port: u16) -> i32 {
    let v4 = packet.v4;
    let overhead = dsr_overhead(v4);
    // SAFETY: the context is valid.
    let (length, segment) = unsafe { ((*ctx.skb.skb).len, (*ctx.skb.skb).gso_size) };
    let source = of_family(&config.node, v4);
    if source == Address::ANY_V6 || !route::decrement_ttl(ctx, packet) {
        count(counter::UNREACHABLE);
        return TC_ACT_SHOT;
    }
    let kind = ENCAP_UDP
        | if v4 { ENCAP_IPV4 } else { ENCAP_IPV6 }
        | if segment != 0 && packet.key.protocol != u32::from(TCP) { FIXED_GSO } else { 0 };
    // SAFETY: the helper has no preconditions.
    if unsafe { bpf_skb_adjust_room(ctx.skb.skb, overhead as i32, ROOM_MAC, kind) } != 0
        || envelope(ctx, config, packet, &source, backend, port, length - L2 as u32).is_err()
    {
        count(counter::REWRITE);
        return TC_ACT_SHOT;
    }
    route::leave(ctx, config, tunnel::exit(config, &source, backend))
}

/// Writes the outer headers around `length` bytes.
#[inline(always)]
fn envelope(
    ctx: &TcContext,
    config: &NodeConfig,
    packet: &Packet,
    source: &Address,
    backend: &Address,
    port: u16,
    length: u32,
) -> Result<(), ()> {
    let key = &packet.key;
    let hash = flow_hash(&key.source, key.source_port, key.destination_port, key.protocol as u8);
    // Flows spread over the queues of a device by the outer source port.
    let source_port = (0x200 | (hash & 0x1ff) as u16).to_be();
    let udp_length = length as u16 + INNER_HEADERS as u16;
    // The checksum of an envelope is 0 (RFC 6935): what is inside has its own.
    let tunnel = [
        u32::from(source_port) | u32::from(config.dsr_port) << 16,
        u32::from(udp_length.to_be()),
        if packet.v4 { INSIDE_V4 } else { INSIDE_V6 },
        u32::from(port) << 8,
    ];
    if packet.v4 {
        let total = u32::from((udp_length + 20).to_be());
        let mut ip = [
            word([0x45, 0, 0, 0]) | total << 16,
            word([0, 0, 0x40, 0]),
            word([64, UDP, 0, 0]),
            source.0[3],
            backend.0[3],
        ];
        ip[2] |= u32::from(fold(sum(&ip))) << 16;
        store(ctx, L2, &ip)?;
        store(ctx, L2 + 20, &tunnel)
    } else {
        let first = [word([0x60, 0, 0, 0]), u32::from(udp_length.to_be()) | word([0, 0, UDP, 64])];
        store(ctx, L2, &first)?;
        store(ctx, L2 + 8, &source.0)?;
        store(ctx, L2 + 24, &backend.0)?;
        store(ctx, L2 + 40, &tunnel)
    }
}

/// Whether a packet may be an envelope for a pod of this node. Few packets need more than the first comparison.
#[inline(always)]
pub fn is_envelope(config: &NodeConfig, packet: &Packet) -> bool {
    packet.key.destination_port == config.dsr_port
        && packet.key.protocol == u32::from(UDP)
        && packet.kind == Kind::Flow
        && !packet.fragmented
        && is_dsr_source(packet.key.source_port)
        && !in_cluster(config, &packet.key.source)
}

/// What became of an envelope.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Opened {
    /// It is none.
    Not,
    /// The packet is what was inside, and parsed again.
    Packet,
    /// The same, and it begins a flow: to where the room for translations says.
    Begins,
    /// What was inside must not be delivered; it is counted.
    Refused,
}

/// Opens an envelope.
#[inline(never)]
pub fn open(ctx: &TcContext) -> Opened {
    let Some(packet) = packet_room() else { return Opened::Not };
    let overhead = dsr_overhead(packet.v4) as usize;
    let Ok([inside, identifier]) = ctx.load::<[u32; 2]>(packet.l4 + 8) else { return Opened::Not };
    let expected = if packet.v4 { INSIDE_V4 } else { INSIDE_V6 };
    if inside != expected
        || identifier & word([0xff, 0, 0, 0xff]) != 0
        || packet.l4 + INNER_HEADERS != L2 + overhead
    {
        return Opened::Not;
    }
    let port = (identifier >> 8) as u16;
    let backend = packet.key.destination;
    // SAFETY: the helper has no preconditions.
    if unsafe { bpf_skb_adjust_room(ctx.skb.skb, -(overhead as i32), ROOM_MAC, FIXED_GSO) } != 0 {
        count(counter::REWRITE);
        return Opened::Refused;
    }
    if parse(ctx, packet).is_err() {
        count(counter::MALFORMED);
        return Opened::Refused;
    }
    if packet.fragmented {
        fragment::resolve(packet);
    }
    // An error is about a flow that is known, or not.
    if !packet.flow || is_known(packet, &backend, port) {
        return Opened::Packet;
    }
    let Some(frontend) = asked_for(packet) else {
        count(counter::REFUSED);
        return Opened::Refused;
    };
    if !lb::admits(frontend, &packet.key.source) {
        count(counter::SOURCE_RANGE);
        return Opened::Refused;
    }
    let Some(forward) = forward_room() else { return Opened::Refused };
    forward.source = packet.key.source;
    forward.source_port = packet.key.source_port;
    forward.destination = backend;
    forward.destination_port = port;
    forward.backend = 0;
    forward.flags = FLOW_WRAPPED;
    Opened::Begins
}

/// The frontend that a client asked another node for: its own addresses have node ports there.
#[inline(always)]
fn asked_for(packet: &Packet) -> Option<&'static FrontendValue> {
    let key = &packet.key;
    let protocol = key.protocol as u8;
    if let Some(frontend) = lb::frontend(&key.destination, key.destination_port, protocol, true) {
        return Some(frontend);
    }
    lb::frontend(&key.destination.any_of_family(), key.destination_port, protocol, true)
}

/// Whether a packet belongs to a flow that lives: one to this backend, or to another that it cannot leave.
#[inline(always)]
fn is_known(packet: &Packet, backend: &Address, port: u16) -> bool {
    // SAFETY: the entry is only read.
    let Some(known) = (unsafe { FLOWS.get(&packet.key) }) else { return false };
    if known.flags & FLOW_CLOSED != 0 || known.expires < lb::now() {
        return false;
    }
    let may_begin =
        packet.key.protocol == u32::from(UDP) || packet.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN;
    !may_begin || (known.destination == *backend && known.destination_port == port)
}
