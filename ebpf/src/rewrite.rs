//! Changing addresses and ports of a packet, with every checksum that covers them.

use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use aya_ebpf::helpers::bpf_csum_diff;
use aya_ebpf::programs::TcContext;
use kelp_common::node::dsr_overhead;
use kelp_common::{Address, FlowValue, ICMP, SCTP, TCP, UDP};

use crate::context::Context;
use crate::packet::{Kind, L2, Packet, Quoted, TCP_ACK, TCP_SYN};
use crate::sctp;

/// Where addresses are in a network header.
const fn addresses_at(l3: usize, v4: bool) -> (usize, usize) {
    if v4 { (l3 + 12, l3 + 16) } else { (l3 + 8, l3 + 24) }
}

/// Writes the new addresses and ports of `to` into the packet. A failure leaves it half-written: drop it.
#[inline(always)]
pub fn translate<C: Context>(ctx: &C, packet: &Packet, to: &FlowValue) -> Result<(), ()> {
    let (source_at, destination_at) = addresses_at(L2, packet.v4);
    let (checksum_at, flags) = match packet.key.protocol as u8 {
        TCP => (packet.l4 + 16, 0),
        UDP => (packet.l4 + 6, u64::from(BPF_F_MARK_MANGLED_0)),
        _ => (packet.l4 + 2, 0),
    };
    let v4 = packet.v4;
    // A later fragment has no transport header, and SCTP's checksum does not cover addresses (ICMP's for IPv4 neither).
    let protocol = packet.key.protocol as u8;
    let bare = packet.kind == Kind::Fragment || protocol == SCTP || (v4 && protocol == ICMP);
    let covered = if bare { None } else { Some((checksum_at, flags | u64::from(BPF_F_PSEUDO_HDR))) };
    address(ctx, v4, &packet.key.source, &to.source, source_at, covered)?;
    address(ctx, v4, &packet.key.destination, &to.destination, destination_at, covered)?;
    if packet.kind == Kind::Fragment {
        return Ok(());
    }
    if C::SCTP && protocol == SCTP {
        return sctp_ports(ctx, packet, to);
    }
    let (source_port_at, destination_port_at) =
        if packet.icmp_echo { (packet.l4 + 4, packet.l4 + 4) } else { (packet.l4, packet.l4 + 2) };
    port(ctx, packet.key.source_port, to.source_port, source_port_at, checksum_at, flags)?;
    port(ctx, packet.key.destination_port, to.destination_port, destination_port_at, checksum_at, flags)
}

/// Translates an ICMP error about a packet of a flow whose answers become `to`. The error goes to `to`'s destination;
/// what it quotes came from there, and was meant for `to`'s source. A failure leaves it half-written: drop it.
#[inline(always)]
pub fn translate_error(ctx: &TcContext, packet: &Packet, quoted: &Quoted, to: &FlowValue) -> Result<(), ()> {
    let v4 = packet.v4;
    let checksum_at = packet.l4 + 2;
    // For IPv4 the quoted header's own checksum takes up what changes in it, so that the error's sum stays the same.
    let covered = if v4 { None } else { Some((checksum_at, 0)) };
    let (source_at, destination_at) = addresses_at(quoted.l3, v4);
    // The quoted packet is the answer's reverse.
    let answer = &quoted.answer;
    quoted_address(ctx, v4, &answer.destination, &to.destination, source_at, quoted.l3 + 10, covered)?;
    quoted_address(ctx, v4, &answer.source, &to.source, destination_at, quoted.l3 + 10, covered)?;
    let (source_port_at, destination_port_at) =
        if quoted.icmp_echo { (quoted.l4 + 4, quoted.l4 + 4) } else { (quoted.l4, quoted.l4 + 2) };
    port(ctx, answer.destination_port, to.destination_port, source_port_at, checksum_at, 0)?;
    port(ctx, answer.source_port, to.source_port, destination_port_at, checksum_at, 0)?;
    // The backend itself speaks as the service; a router between keeps its address.
    let covered = if v4 { None } else { Some((checksum_at, u64::from(BPF_F_PSEUDO_HDR))) };
    let (source_at, destination_at) = addresses_at(L2, v4);
    if packet.key.source == answer.source {
        address(ctx, v4, &packet.key.source, &to.source, source_at, covered)?;
    }
    address(ctx, v4, &packet.key.destination, &to.destination, destination_at, covered)
}

/// Changes an address of the network header. `covered` is the transport checksum over it, with the flags to change it.
#[inline(always)]
fn address<C: Context>(
    ctx: &C,
    v4: bool,
    from: &Address,
    to: &Address,
    at: usize,
    covered: Option<(usize, u64)>,
) -> Result<(), ()> {
    quoted_address(ctx, v4, from, to, at, L2 + 10, covered)
}

/// [`address`] in a header whose own checksum (of IPv4) is elsewhere.
#[inline(always)]
fn quoted_address<C: Context>(
    ctx: &C,
    v4: bool,
    from: &Address,
    to: &Address,
    at: usize,
    header_checksum_at: usize,
    covered: Option<(usize, u64)>,
) -> Result<(), ()> {
    if from == to {
        return Ok(());
    }
    let failed = if v4 {
        let (old, new) = (u64::from(from.0[3]), u64::from(to.0[3]));
        let mut failed = ctx.change_header_checksum(header_checksum_at, old, new, 4).is_err();
        if let Some((checksum_at, flags)) = covered {
            failed |= ctx.change_checksum(checksum_at, old, new, flags | 4).is_err();
        }
        failed | ctx.write(at, &[to.0[3]]).is_err()
    } else {
        let mut failed = false;
        if let Some((checksum_at, flags)) = covered {
            // SAFETY: the pointers are to the arguments, which are as long as said.
            let difference =
                unsafe { bpf_csum_diff(from.0.as_ptr().cast_mut(), 16, to.0.as_ptr().cast_mut(), 16, 0) };
            failed = difference < 0 || ctx.change_checksum(checksum_at, 0, difference as u64, flags).is_err();
        }
        failed | ctx.write(at, &to.0).is_err()
    };
    if failed { Err(()) } else { Ok(()) }
}

/// Changes the ports of an SCTP packet and its checksum. Where the device computes the checksum, what is written here is
/// overwritten.
#[inline(never)]
fn sctp_ports<C: Context>(ctx: &C, packet: &Packet, to: &FlowValue) -> Result<(), ()> {
    let old = u32::from(packet.key.source_port) | u32::from(packet.key.destination_port) << 16;
    let new = u32::from(to.source_port) | u32::from(to.destination_port) << 16;
    if old == new {
        return Ok(());
    }
    // The checksum covers all fragments, whose length is not known here.
    if packet.fragmented {
        return Err(());
    }
    let length = if packet.v4 {
        u32::from_be(ctx.words::<1>(L2)?[0]) & 0xffff
    } else {
        u32::from_be(ctx.words::<1>(L2 + 4)?[0]) >> 16
    };
    let headers = packet.l4 as u32 - if packet.v4 { L2 as u32 } else { L2 as u32 + 40 };
    let checksum_at = packet.l4 + 8;
    let checksum = ctx.words::<1>(checksum_at)?[0] ^ sctp::change(old ^ new, length.wrapping_sub(headers));
    ctx.write(packet.l4, &[new])?;
    ctx.write(checksum_at, &[checksum])
}

/// Lowers the largest segment that the second SYN of a connection announces (RFC 9293, 3.7.1) to what fits into an envelope
/// through an uplink, if it is its first option, where everybody has it. One that stays as it is costs a "too big".
#[inline(never)]
pub fn clamp_segments(ctx: &TcContext, packet: &Packet, mtu: u32) {
    if packet.key.protocol != u32::from(TCP) || packet.tcp_flags & (TCP_SYN | TCP_ACK) != TCP_SYN | TCP_ACK {
        return;
    }
    let at = packet.l4 + 20;
    let Ok(option) = ctx.load::<u32>(at) else { return };
    let option = u32::from_be(option);
    let most = mtu.wrapping_sub(dsr_overhead(packet.v4) + if packet.v4 { 40 } else { 60 });
    // The kind and the length; an uplink of unknown size makes `most` larger than anything.
    if option >> 16 == 0x0204 && option & 0xffff > most {
        let _ = port(ctx, (option as u16).to_be(), (most as u16).to_be(), at + 2, packet.l4 + 16, 0);
    }
}

#[inline(always)]
fn port<C: Context>(
    ctx: &C,
    from: u16,
    to: u16,
    at: usize,
    checksum_at: usize,
    flags: u64,
) -> Result<(), ()> {
    if from == to {
        return Ok(());
    }
    let failed = ctx.change_checksum(checksum_at, u64::from(from), u64::from(to), flags | 2).is_err()
        || ctx.write_half(at, to).is_err();
    if failed { Err(()) } else { Ok(()) }
}
