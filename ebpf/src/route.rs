//! Where a packet goes, after translation. The kernel does not forward (`ip_forward` is 0): these programs do.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::bindings::TC_ACT_SHOT;
use aya_ebpf::helpers::{bpf_l3_csum_replace, bpf_redirect_neigh, bpf_redirect_peer, bpf_skb_store_bytes};
use aya_ebpf::programs::TcContext;
use kelp_common::maps::counter;
use kelp_common::{EndpointValue, NodeConfig};

use crate::maps::count;
use crate::packet::{L2, Packet};
use crate::reject;

/// Hands the packet to a pod on this node, past the host's stack and the pod's device queue.
#[inline(always)]
pub fn to_pod(ctx: &TcContext, endpoint: &EndpointValue) -> i32 {
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

/// Sends the packet to the next hop of its destination behind the uplink; refuses it when there is no uplink.
#[inline(always)]
pub fn to_uplink(ctx: &TcContext, config: &NodeConfig, packet: &Packet) -> i32 {
    if config.uplink == 0 {
        count(counter::UNREACHABLE);
        return reject::back(ctx, packet);
    }
    if !decrement_ttl(ctx, packet) {
        count(counter::UNREACHABLE);
        return TC_ACT_SHOT;
    }
    // SAFETY: without parameters the helper resolves the next hop from the packet's destination.
    unsafe { bpf_redirect_neigh(config.uplink, ptr::null_mut(), 0, 0) as i32 }
}

/// Counts this hop. `false` when the packet may go no further.
#[inline(always)]
fn decrement_ttl(ctx: &TcContext, packet: &Packet) -> bool {
    let at = if packet.v4 { L2 + 8 } else { L2 + 7 };
    let Ok(ttl) = ctx.load::<u8>(at) else { return false };
    if ttl <= 1 {
        return false;
    }
    let new = ttl - 1;
    // SAFETY: the helpers check the bounds; the pointer is to the stack. The checksum sees the byte as the high half
    // of a 16-bit word, which in memory is its first byte.
    unsafe {
        if packet.v4
            && bpf_l3_csum_replace(ctx.skb.skb, (L2 + 10) as u32, u64::from(ttl), u64::from(new), 2) != 0
        {
            return false;
        }
        bpf_skb_store_bytes(ctx.skb.skb, at as u32, (&raw const new).cast::<c_void>(), 1, 0) == 0
    }
}
