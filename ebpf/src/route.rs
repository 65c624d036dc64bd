//! Where a packet goes, after translation. The kernel does not forward (`ip_forward` is 0): these programs do.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::bindings::{TC_ACT_OK, TC_ACT_SHOT};
use aya_ebpf::helpers::{bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer, bpf_skb_store_bytes};
use aya_ebpf::programs::TcContext;
use kelp_common::maps::counter;
use kelp_common::{EndpointValue, NodeConfig, TCP};

use crate::context::Context;
use crate::maps::count;
use crate::packet::{L2, Packet};
use crate::reject;
use crate::tunnel::{self, Exit};

/// Hands the packet to a pod on this node, past the host's stack and the pod's device queue. A pod of another agent is
/// reached by the stack, which forwards there.
#[inline(always)]
pub fn to_pod(ctx: &TcContext, endpoint: &EndpointValue) -> i32 {
    if endpoint.ifindex == 0 {
        return TC_ACT_OK;
    }
    let mut ethernet = [0_u8; 12];
    ethernet[..6].copy_from_slice(&endpoint.pod_mac);
    ethernet[6..].copy_from_slice(&endpoint.host_mac);
    // SAFETY: the helper checks the bounds; the pointer is to 12 bytes of the stack.
    if unsafe { bpf_skb_store_bytes(ctx.skb.skb, 0, ethernet.as_ptr().cast::<c_void>(), 12, 0) } != 0 {
        count(counter::REWRITE);
        return TC_ACT_SHOT;
    }
    // SAFETY: the helper has no preconditions; a device that is gone drops the packet.
    unsafe { bpf_redirect_peer(endpoint.ifindex, 0) as i32 }
}

/// Whether the packet, or a segment of it, is larger than what its way out carries. (Without translation it would be
/// the kernel's affair, but a redirected packet is not checked.)
#[inline(always)]
pub fn is_too_big(ctx: &TcContext, packet: &Packet, mtu: u32) -> bool {
    // SAFETY: the context is valid.
    let (length, segment) = unsafe { ((*ctx.skb.skb).len, (*ctx.skb.skb).gso_size) };
    if mtu == 0 || length <= L2 as u32 + mtu {
        return false;
    }
    if segment == 0 {
        return true;
    }
    let least =
        segment + (packet.l4 - L2) as u32 + if packet.key.protocol == u32::from(TCP) { 20 } else { 8 };
    if packet.key.protocol != u32::from(TCP) || least > mtu || least + 40 <= mtu {
        return least > mtu;
    }
    // Options decide: the header's length is in the upper half of its 13th byte, in words.
    ctx.load::<u8>(packet.l4 + 12).is_ok_and(|offset| least - 20 + u32::from(offset >> 4) * 4 > mtu)
}

/// Sends an untranslated packet on from this node; refuses it when there is no way, or when it does not fit.
#[inline(always)]
pub fn out(ctx: &TcContext, config: &NodeConfig, packet: &Packet) -> i32 {
    let exit = tunnel::exit(config, &packet.key.source, &packet.key.destination);
    if exit.device() == 0 {
        count(counter::UNREACHABLE);
        return reject::back(ctx, packet);
    }
    if is_too_big(ctx, packet, exit.mtu()) {
        count(counter::TOO_BIG);
        return reject::too_big(ctx, packet, exit.mtu());
    }
    send_out(ctx, config, packet, exit)
}

/// Sends a packet that fits on by its way out.
#[inline(always)]
pub fn send_out(ctx: &TcContext, config: &NodeConfig, packet: &Packet, exit: Exit) -> i32 {
    if !decrement_ttl(ctx, packet) {
        count(counter::UNREACHABLE);
        return TC_ACT_SHOT;
    }
    leave(ctx, config, exit)
}

/// Hands a packet to the device of its way out: the tunnel's, or the uplink with the next hop of its destination.
#[inline(always)]
pub fn leave(ctx: &TcContext, config: &NodeConfig, exit: Exit) -> i32 {
    if exit.device() == config.tunnel {
        // SAFETY: the helper has no preconditions; a device that is gone drops the packet.
        return unsafe { bpf_redirect(exit.device(), 0) as i32 };
    }
    if tunnel::is_from(ctx, config) {
        tunnel::forget(ctx);
    }
    // SAFETY: without parameters the helper resolves the next hop from the packet's destination.
    unsafe { bpf_redirect_neigh(exit.device(), ptr::null_mut(), 0, 0) as i32 }
}

/// Counts this hop. `false` when the packet may go no further.
#[inline(always)]
pub fn decrement_ttl<C: Context>(ctx: &C, packet: &Packet) -> bool {
    let at = if packet.v4 { L2 + 8 } else { L2 + 7 };
    let Ok(ttl) = ctx.byte(at) else { return false };
    if ttl <= 1 {
        return false;
    }
    let new = ttl - 1;
    // The checksum sees the byte as the high half of a 16-bit word, which in memory is its first byte.
    if packet.v4 && ctx.change_header_checksum(L2 + 10, u64::from(ttl), u64::from(new), 2).is_err() {
        return false;
    }
    ctx.write_byte(at, new).is_ok()
}
