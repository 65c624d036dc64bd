//! The fast path of the uplink: packets that only pass through this node on their way between a client and a backend of
//! another node are translated and sent back out of the same device by the driver itself, before the kernel makes a buffer
//! of them. It is attached as XDP, by `--xdp`.
//!
//! It decides as [`crate::classifier`]'s `from_net` does, by the same code, maps and flows, and what is not plainly its
//! affair it leaves to that, as it is: backends and pods of this node, other protocols than TCP and UDP, fragments, ICMP
//! errors, refusals, packets that do not fit, direct return, tunnels to other nodes, flows whose next hop is not known. A flow that is begun here is
//! found there, and the other way round; no packet is translated by both.
//!
//! The next hop is what the routing tables and the neighbours say (`bpf_fib_lookup`), asked as for a packet of the host's
//! own, from the loopback device: the lookup wants a device that forwards, and the uplink does not.

use core::sync::atomic::{Ordering, compiler_fence};

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{TC_ACT_REDIRECT, TC_ACT_SHOT, xdp_action};
use aya_ebpf::helpers::bpf_fib_lookup;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use kelp_common::event::HOOK_XDP;
use kelp_common::flow::{FLOW_DSR, FLOW_REPLY, FLOW_WRAPPED};
use kelp_common::maps::{counter, xdp};
use kelp_common::node::NODE_DSR;
use kelp_common::service::FRONTEND_LOCAL_ONLY;
use kelp_common::{FlowValue, NodeConfig, TCP, UDP};

use crate::context::Context;
use crate::direct::Direct;
use crate::maps::{NODE_CONFIG, count, is_node_address, refreshed_room, tally_xdp};
use crate::packet::{Kind, L2, Packet, TCP_SYN, parse};
use crate::service::{self, endpoint, untranslated};
use crate::{flow, lb, rewrite, route, tell, tunnel};

/// Index of the loopback device in every network namespace.
const LOOPBACK: u32 = 1;
/// Families of addresses.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// What goes its way without this program.
enum Left {
    /// It is none of its affairs.
    Other,
    /// It is, but cannot be sent from here.
    NoWay,
}

/// What other nodes and the outside send, before [`crate::classifier`] sees it.
#[xdp]
pub fn xdp_from_net(ctx: XdpContext) -> u32 {
    match pass_through(&ctx) {
        Ok(()) => {
            tally_xdp(xdp::FORWARDED);
            tell::packet(HOOK_XDP, TC_ACT_REDIRECT);
            xdp_action::XDP_TX
        }
        Err(Some(Left::Other)) => {
            tally_xdp(xdp::LEFT);
            xdp_action::XDP_PASS
        }
        Err(Some(Left::NoWay)) => {
            tally_xdp(xdp::NO_WAY);
            xdp_action::XDP_PASS
        }
        // It is half-written.
        Err(None) => {
            count(counter::REWRITE);
            tell::packet(HOOK_XDP, TC_ACT_SHOT);
            xdp_action::XDP_DROP
        }
    }
}

/// Translates a packet that passes through, and addresses it to its next hop. What is left is not changed.
#[inline(always)]
fn pass_through(ctx: &XdpContext) -> Result<(), Option<Left>> {
    let left = || Some(Left::Other);
    let frame = Direct::new(ctx);
    let packet = packet(&frame).ok_or_else(left)?;
    let config = NODE_CONFIG.get(0).ok_or_else(left)?;
    let to = match flow::lookup(packet) {
        Some(to) => to,
        None => begin(config, packet).ok_or_else(left)?,
    };
    // What is for a pod or a server of this node, and what has another form between nodes.
    if to.flags & (FLOW_DSR | FLOW_WRAPPED) != 0
        || endpoint(&to.destination).is_some()
        || is_node_address(&to.destination)
    {
        return Err(left());
    }
    let no_way = |()| Some(Left::NoWay);
    let hop = next_hop(ctx, &frame, config, packet, to).map_err(no_way)?;
    let failed = |()| None;
    rewrite::translate(&frame, packet, to).map_err(failed)?;
    if !route::decrement_ttl(&frame, packet) {
        return Err(None);
    }
    frame.write(0, &hop).map_err(failed)
}

/// Parses; nothing for a packet that is none of this program's affairs whatever flows there are.
#[inline(always)]
fn packet(frame: &Direct) -> Option<&'static Packet> {
    let packet = crate::maps::packet_room()?;
    parse(frame, packet).ok()?;
    // What was written is read again below, not remembered in registers; see `maps::Scratch`.
    compiler_fence(Ordering::SeqCst);
    let protocol = packet.key.protocol;
    let plain = packet.kind == Kind::Flow
        && !packet.fragmented
        && (protocol == u32::from(TCP) || protocol == u32::from(UDP))
        && !packet.key.destination.is_link_scoped();
    plain.then_some(packet)
}

/// Begins a flow to a service, wherever it leads: chosen twice, backends would not have equal shares. Nothing, and no flow,
/// when it is for the rest to decide.
#[inline(always)]
fn begin(config: &NodeConfig, packet: &Packet) -> Option<&'static FlowValue> {
    if config.flags & NODE_DSR != 0 || endpoint(&packet.key.destination).is_some() {
        return None;
    }
    let frontend = service::frontend(packet, true)?;
    if frontend.flags & FRONTEND_LOCAL_ONLY != 0 {
        return None;
    }
    let forward = untranslated(packet)?;
    let translated = service::choose(config, packet, frontend, true, forward).ok()?;
    flow::create(translated)?;
    Some(forward)
}

/// `struct bpf_fib_lookup`.
#[repr(C)]
struct Lookup {
    family: u8,
    protocol: u8,
    source_port: u16,
    destination_port: u16,
    /// Bytes behind the Ethernet header.
    length: u16,
    /// Where it comes in; then, where it leaves.
    ifindex: u32,
    /// The type of service or the flow label; then, the route's metric.
    class: u32,
    source: [u32; 4],
    destination: [u32; 4],
    vlan: u32,
    /// MAC addresses.
    from: [u16; 3],
    to: [u16; 3],
}

const _: () = assert!(size_of::<Lookup>() == 64);

/// The first words of the Ethernet header that a translated packet gets; an error when it cannot be sent from here.
#[inline(always)]
fn next_hop(
    ctx: &XdpContext,
    frame: &Direct,
    config: &NodeConfig,
    packet: &Packet,
    to: &FlowValue,
) -> Result<[u32; 3], ()> {
    let length = frame.length().wrapping_sub(L2);
    let fits = config.uplink_mtu == 0 || length <= config.uplink_mtu as usize;
    let checksum_at = packet.l4 + if packet.key.protocol == u32::from(TCP) { 16 } else { 6 };
    // What goes through a tunnel is wrapped by the stack.
    let leaves = tunnel::exit(config, &to.source, &to.destination).device() == config.uplink;
    if config.uplink == 0 || !leaves || !fits || frame.is_unfinished(packet, checksum_at)? {
        return Err(());
    }
    let head = frame.words::<2>(L2)?;
    let (hops, class) = if packet.v4 {
        (frame.byte(L2 + 8)?, head[0] >> 8 & 0xff)
    } else {
        (frame.byte(L2 + 7)?, head[0] & 0x0fff_ffff_u32.to_be())
    };
    if hops <= 1 || is_to_refresh(packet, to) {
        return Err(());
    }
    let mut lookup = Lookup {
        family: if packet.v4 { AF_INET } else { AF_INET6 },
        protocol: packet.key.protocol as u8,
        source_port: to.source_port,
        destination_port: to.destination_port,
        length: length as u16,
        ifindex: LOOPBACK,
        class,
        source: to.source.0,
        destination: to.destination.0,
        vlan: 0,
        from: [0; 3],
        to: [0; 3],
    };
    if packet.v4 {
        lookup.source[0] = to.source.0[3];
        lookup.destination[0] = to.destination.0[3];
    }
    let size = size_of::<Lookup>() as i32;
    // SAFETY: the context is valid, the parameters are on the stack and as long as said.
    let found = unsafe { bpf_fib_lookup(ctx.as_ptr(), (&raw mut lookup).cast(), size, 0) };
    // The device sends back what it got, and nothing else.
    if found != 0 || lookup.ifindex != config.uplink {
        return Err(());
    }
    let (to, from) = (lookup.to.map(u32::from), lookup.from.map(u32::from));
    Ok([to[0] | to[1] << 16, to[2] | from[0] << 16, from[1] | from[2] << 16])
}

/// Whether a packet is to go by the kernel's stack, once a second and CPU in each direction: the lookup takes neighbours as
/// they are known, and only what the stack sends has them asked whether they are still there. Packets that nothing can
/// overtake, as it comes later than their answer; or datagrams, which have no order.
#[inline(always)]
fn is_to_refresh(packet: &Packet, to: &FlowValue) -> bool {
    let protocol = packet.key.protocol;
    if protocol == u32::from(TCP) && packet.tcp_flags & TCP_SYN == 0 {
        return false;
    }
    let Some(times) = refreshed_room() else { return true };
    let now = lb::now();
    let last = if to.flags & FLOW_REPLY != 0 { &mut times[0] } else { &mut times[1] };
    let due = *last != now;
    *last = now;
    due
}
