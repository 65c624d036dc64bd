//! Answers to packets that lead nowhere: a reset for TCP, "port unreachable" for the rest, "too big" for what the uplink
//! cannot carry. The sender learns at once and nothing leaves the node.

use core::ffi::c_void;

use aya_ebpf::bindings::TC_ACT_SHOT;
use aya_ebpf::helpers::{bpf_redirect, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes};
use aya_ebpf::programs::TcContext;
use kelp_common::{ICMP, ICMPV6, SCTP, TCP, UDP};

use crate::context::Context;
use crate::maps::quote_room;
use crate::packet::{Kind, L2, Packet, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN};

const BPF_F_INGRESS: u64 = 1;

/// Answers through the device the packet came in by.
#[inline(always)]
pub fn back(ctx: &TcContext, packet: &Packet) -> i32 {
    answer(ctx, packet, 0)
}

/// Answers a packet that the host itself is sending.
#[inline(always)]
pub fn to_host(ctx: &TcContext, packet: &Packet) -> i32 {
    answer(ctx, packet, BPF_F_INGRESS)
}

#[inline(always)]
fn answer(ctx: &TcContext, packet: &Packet, direction: u64) -> i32 {
    let done = match (packet.kind, packet.key.protocol as u8, packet.v4) {
        (Kind::Flow, TCP, true) => reset_v4(ctx, packet),
        (Kind::Flow, TCP, false) => reset_v6(ctx, packet),
        // "Port unreachable".
        (Kind::Flow, UDP | SCTP, true) => error_v4(ctx, word([3, 3, 0, 0]), 0),
        (Kind::Flow, UDP | SCTP, false) => error_v6(ctx, word([1, 4, 0, 0]), 0),
        _ => Err(()),
    };
    finish(ctx, done, direction)
}

/// Tells the sender how large its packets may be.
#[inline(never)]
pub fn too_big(ctx: &TcContext, packet: &Packet, mtu: u32) -> i32 {
    let done = if packet.v4 {
        error_v4(ctx, word([3, 4, 0, 0]), (mtu & 0xffff).to_be())
    } else {
        error_v6(ctx, word([2, 0, 0, 0]), mtu.to_be())
    };
    finish(ctx, done, 0)
}

#[inline(always)]
fn finish(ctx: &TcContext, done: Result<(), ()>, direction: u64) -> i32 {
    if done.is_err() {
        return TC_ACT_SHOT;
    }
    // SAFETY: the context is valid; the helper has no preconditions.
    unsafe { bpf_redirect((*ctx.skb.skb).ifindex, direction) as i32 }
}

/// The ones' complement sum of words, not folded.
#[inline(always)]
pub fn sum<const N: usize>(words: &[u32; N]) -> u64 {
    let mut total = 0_u64;
    let mut index = 0;
    while index < N {
        total += u64::from(words[index]);
        index += 1;
    }
    total
}

/// The checksum of a sum.
#[inline(always)]
pub fn fold(mut total: u64) -> u16 {
    total = (total & 0xffff_ffff) + (total >> 32);
    total = (total & 0xffff_ffff) + (total >> 32);
    total = (total & 0xffff) + (total >> 16);
    total = (total & 0xffff) + (total >> 16);
    !(total as u16)
}

/// Four header bytes as they are in memory.
#[inline(always)]
pub const fn word(bytes: [u8; 4]) -> u32 {
    u32::from_ne_bytes(bytes)
}

#[inline(always)]
fn resize(ctx: &TcContext, length: usize) -> Result<(), ()> {
    // SAFETY: the helper has no preconditions.
    if unsafe { bpf_skb_change_tail(ctx.skb.skb, length as u32, 0) } == 0 { Ok(()) } else { Err(()) }
}

/// Writes words as they are in memory.
#[inline(always)]
pub fn store<const N: usize>(ctx: &TcContext, at: usize, words: &[u32; N]) -> Result<(), ()> {
    ctx.write(at, words)
}

/// Exchanges the MAC addresses.
#[inline(always)]
fn swap_ethernet(ctx: &TcContext) -> Result<(), ()> {
    let old: [u16; 6] = ctx.load(0).map_err(|_| ())?;
    let new = [old[3], old[4], old[5], old[0], old[1], old[2]];
    // SAFETY: the helper checks the bounds of the packet; the source is the array.
    let result = unsafe { bpf_skb_store_bytes(ctx.skb.skb, 0, new.as_ptr().cast::<c_void>(), 12, 0) };
    if result == 0 { Ok(()) } else { Err(()) }
}

/// The reset that answers a segment (RFC 9293, 3.10.7.1): five words, the checksum still zero.
#[inline(always)]
fn reset_header(ctx: &TcContext, packet: &Packet, segment: u32) -> Result<[u32; 5], ()> {
    let old: [u32; 5] = ctx.load(packet.l4).map_err(|_| ())?;
    let ports = (old[0] >> 16) | (old[0] << 16);
    if packet.tcp_flags & TCP_ACK != 0 {
        return Ok([ports, old[2], 0, word([0x50, TCP_RST, 0, 0]), 0]);
    }
    let header = (u32::from_be(old[3]) >> 28) * 4;
    let mut acknowledged = u32::from_be(old[1]).wrapping_add(segment.wrapping_sub(header) & 0xffff);
    if packet.tcp_flags & TCP_SYN != 0 {
        acknowledged = acknowledged.wrapping_add(1);
    }
    if packet.tcp_flags & TCP_FIN != 0 {
        acknowledged = acknowledged.wrapping_add(1);
    }
    Ok([ports, 0, acknowledged.to_be(), word([0x50, TCP_RST | TCP_ACK, 0, 0]), 0])
}

#[inline(never)]
fn reset_v4(ctx: &TcContext, packet: &Packet) -> Result<(), ()> {
    if packet.tcp_flags & TCP_RST != 0 {
        return Err(());
    }
    let total: [u8; 4] = ctx.load(L2).map_err(|_| ())?;
    let segment = u32::from(u16::from_be_bytes([total[2], total[3]])).wrapping_sub((packet.l4 - L2) as u32);
    let mut tcp = reset_header(ctx, packet, segment)?;
    let source = packet.key.destination.0[3];
    let destination = packet.key.source.0[3];
    let mut ip = [word([0x45, 0, 0, 40]), word([0, 0, 0x40, 0]), word([64, TCP, 0, 0]), source, destination];
    ip[2] |= u32::from(fold(sum(&ip))) << 16;
    let pseudo = u64::from(source) + u64::from(destination) + u64::from(word([0, TCP, 0, 20]));
    tcp[4] = u32::from(fold(pseudo + sum(&tcp)));
    resize(ctx, L2 + 40)?;
    swap_ethernet(ctx)?;
    store(ctx, L2, &ip)?;
    store(ctx, L2 + 20, &tcp)
}

#[inline(never)]
fn reset_v6(ctx: &TcContext, packet: &Packet) -> Result<(), ()> {
    if packet.tcp_flags & TCP_RST != 0 {
        return Err(());
    }
    let first: [u8; 8] = ctx.load(L2).map_err(|_| ())?;
    let segment =
        u32::from(u16::from_be_bytes([first[4], first[5]])).wrapping_sub((packet.l4 - L2 - 40) as u32);
    let mut tcp = reset_header(ctx, packet, segment)?;
    let source = packet.key.destination.0;
    let destination = packet.key.source.0;
    let pseudo = sum(&source) + sum(&destination) + u64::from(word([0, TCP, 0, 20]));
    tcp[4] = u32::from(fold(pseudo + sum(&tcp)));
    resize(ctx, L2 + 60)?;
    swap_ethernet(ctx)?;
    store(ctx, L2, &[word([0x60, 0, 0, 0]), word([0, 20, TCP, 64])])?;
    store(ctx, L2 + 8, &source)?;
    store(ctx, L2 + 24, &destination)?;
    store(ctx, L2 + 40, &tcp)
}

/// An error (RFC 792) with the IP header and the first eight bytes of the packet.
#[inline(never)]
fn error_v4(ctx: &TcContext, kind: u32, extra: u32) -> Result<(), ()> {
    let old: [u32; 7] = ctx.load(L2).map_err(|_| ())?;
    // With options the transport header would have to be fetched from elsewhere: nobody sends them.
    if old[0] as u8 != 0x45 {
        return Err(());
    }
    let mut ip = [word([0x45, 0xc0, 0, 56]), 0, word([64, ICMP, 0, 0]), old[4], old[3]];
    ip[2] |= u32::from(fold(sum(&ip))) << 16;
    let mut icmp = [kind, extra];
    icmp[0] |= u32::from(fold(sum(&icmp) + sum(&old))) << 16;
    resize(ctx, L2 + 56)?;
    swap_ethernet(ctx)?;
    store(ctx, L2, &ip)?;
    store(ctx, L2 + 20, &icmp)?;
    store(ctx, L2 + 28, &old)
}

/// An error (RFC 4443) with the IPv6 header and the first eight bytes behind it.
#[inline(never)]
fn error_v6(ctx: &TcContext, kind: u32, extra: u32) -> Result<(), ()> {
    let old = quote_room().ok_or(())?;
    // SAFETY: the helper checks the bounds of the packet; the destination is the array.
    if unsafe { bpf_skb_load_bytes(ctx.skb.skb.cast(), L2 as u32, old.as_mut_ptr().cast::<c_void>(), 48) }
        != 0
    {
        return Err(());
    }
    let source = [old[6], old[7], old[8], old[9]];
    let destination = [old[2], old[3], old[4], old[5]];
    let mut icmp = [kind, extra];
    let pseudo = sum(&source) + sum(&destination) + u64::from(word([0, ICMPV6, 0, 56]));
    icmp[0] |= u32::from(fold(pseudo + sum(&icmp) + sum(old))) << 16;
    resize(ctx, L2 + 40 + 56)?;
    swap_ethernet(ctx)?;
    store(ctx, L2, &[word([0x60, 0, 0, 0]), word([0, 56, ICMPV6, 64])])?;
    store(ctx, L2 + 8, &source)?;
    store(ctx, L2 + 24, &destination)?;
    store(ctx, L2 + 40, &icmp)?;
    store(ctx, L2 + 48, old)
}
