//! Changing addresses and ports of a packet, with every checksum that covers them.

use core::ffi::c_void;

use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use aya_ebpf::helpers::{bpf_csum_diff, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_store_bytes};
use aya_ebpf::programs::TcContext;
use kelp_common::{Address, FlowValue, ICMP, TCP, UDP};

use crate::packet::{L2, Packet};

/// Writes the new addresses and ports of `to` into the packet. A failure leaves it half-written: drop it.
#[inline(always)]
pub fn translate(ctx: &TcContext, packet: &Packet, to: &FlowValue) -> Result<(), ()> {
    let (source_at, destination_at) = if packet.v4 { (L2 + 12, L2 + 16) } else { (L2 + 8, L2 + 24) };
    let (checksum_at, flags) = match packet.key.protocol as u8 {
        TCP => (packet.l4 + 16, 0),
        UDP => (packet.l4 + 6, u64::from(BPF_F_MARK_MANGLED_0)),
        _ => (packet.l4 + 2, 0),
    };
    address(ctx, packet, &packet.key.source, &to.source, source_at, checksum_at, flags)?;
    address(ctx, packet, &packet.key.destination, &to.destination, destination_at, checksum_at, flags)?;
    let (source_port_at, destination_port_at) =
        if packet.icmp_echo { (packet.l4 + 4, packet.l4 + 4) } else { (packet.l4, packet.l4 + 2) };
    port(ctx, packet.key.source_port, to.source_port, source_port_at, checksum_at, flags)?;
    port(ctx, packet.key.destination_port, to.destination_port, destination_port_at, checksum_at, flags)
}

#[inline(always)]
fn address(
    ctx: &TcContext,
    packet: &Packet,
    from: &Address,
    to: &Address,
    at: usize,
    checksum_at: usize,
    flags: u64,
) -> Result<(), ()> {
    if from == to {
        return Ok(());
    }
    let skb = ctx.skb.skb;
    let pseudo = flags | u64::from(BPF_F_PSEUDO_HDR);
    // SAFETY: the helpers check every offset against the packet; the pointers are to the arguments.
    let failed = unsafe {
        if packet.v4 {
            let (old, new) = (u64::from(from.0[3]), u64::from(to.0[3]));
            let mut failed = bpf_l3_csum_replace(skb, (L2 + 10) as u32, old, new, 4) != 0;
            if packet.key.protocol as u8 != ICMP {
                failed |= bpf_l4_csum_replace(skb, checksum_at as u32, old, new, pseudo | 4) != 0;
            }
            failed | (bpf_skb_store_bytes(skb, at as u32, (&raw const to.0[3]).cast::<c_void>(), 4, 0) != 0)
        } else {
            let difference = bpf_csum_diff(from.0.as_ptr().cast_mut(), 16, to.0.as_ptr().cast_mut(), 16, 0);
            let failed = difference < 0
                || bpf_l4_csum_replace(skb, checksum_at as u32, 0, difference as u64, pseudo) != 0;
            failed | (bpf_skb_store_bytes(skb, at as u32, to.0.as_ptr().cast::<c_void>(), 16, 0) != 0)
        }
    };
    if failed { Err(()) } else { Ok(()) }
}

#[inline(always)]
fn port(ctx: &TcContext, from: u16, to: u16, at: usize, checksum_at: usize, flags: u64) -> Result<(), ()> {
    if from == to {
        return Ok(());
    }
    let skb = ctx.skb.skb;
    // SAFETY: the helpers check every offset against the packet; the pointer is to the argument.
    let failed = unsafe {
        bpf_l4_csum_replace(skb, checksum_at as u32, u64::from(from), u64::from(to), flags | 2) != 0
            || bpf_skb_store_bytes(skb, at as u32, (&raw const to).cast::<c_void>(), 2, 0) != 0
    };
    if failed { Err(()) } else { Ok(()) }
}
