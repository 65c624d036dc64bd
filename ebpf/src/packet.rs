//! Parsing. Headers are copied out with a helper that checks bounds, so fragments of memory and truncated packets
//! need no care here.

use aya_ebpf::programs::TcContext;
use kelp_common::{Address, FlowKey, ICMP, ICMPV6, TCP, UDP};

/// Length of the Ethernet header.
pub const L2: usize = 14;
const ETH_IPV4: u32 = 0x0800_u16.to_be() as u32;
const ETH_IPV6: u32 = 0x86dd_u16.to_be() as u32;

/// Bits of [`Packet::tcp_flags`].
pub const TCP_FIN: u8 = 1;
/// See [`TCP_FIN`].
pub const TCP_SYN: u8 = 2;
/// See [`TCP_FIN`].
pub const TCP_RST: u8 = 4;
/// See [`TCP_FIN`].
pub const TCP_ACK: u8 = 16;

/// What the packet is to the translation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The key names a flow.
    Flow,
    /// A fragment other than the first: it has no ports.
    Fragment,
    /// An ICMP error about another packet.
    IcmpError,
    /// IPv6 neighbour discovery: the kernel's affair.
    Neighbour,
    /// Anything else; ports of the key are zero.
    Other,
}

/// The parts of a packet that decide.
pub struct Packet {
    /// Addresses and ports as in the packet.
    pub key: FlowKey,
    /// Offset of the transport header.
    pub l4: usize,
    /// What it is.
    pub kind: Kind,
    /// The flags of a TCP segment, else 0.
    pub tcp_flags: u8,
    /// Whether the ports are the identifier of an ICMP echo.
    pub icmp_echo: bool,
    /// Whether it is an IPv4 packet.
    pub v4: bool,
}

/// Why there is nothing to decide.
pub enum NotParsed {
    /// ARP and other protocols.
    NotIp,
    /// Truncated, or a header that lies about its length.
    Malformed,
}

/// Parses headers up to the ports.
#[inline(always)]
pub fn parse(ctx: &TcContext) -> Result<Packet, NotParsed> {
    // SAFETY: the context is valid for the whole run of the program.
    match unsafe { (*ctx.skb.skb).protocol } {
        ETH_IPV4 => parse_v4(ctx),
        ETH_IPV6 => parse_v6(ctx),
        _ => Err(NotParsed::NotIp),
    }
}

#[inline(always)]
fn parse_v4(ctx: &TcContext) -> Result<Packet, NotParsed> {
    let ip: [u32; 5] = ctx.load(L2).map_err(|_| NotParsed::Malformed)?;
    let first = u32::from_be(ip[0]);
    let header = ((first >> 24) & 0xf) as usize * 4;
    if first >> 28 != 4 || header < 20 {
        return Err(NotParsed::Malformed);
    }
    let mut packet = Packet {
        key: FlowKey {
            source: Address::v4(ip[3]),
            destination: Address::v4(ip[4]),
            source_port: 0,
            destination_port: 0,
            protocol: (u32::from_be(ip[2]) >> 16) & 0xff,
        },
        l4: L2 + header,
        kind: Kind::Other,
        tcp_flags: 0,
        icmp_echo: false,
        v4: true,
    };
    if u32::from_be(ip[1]) & 0x1fff != 0 {
        packet.kind = Kind::Fragment;
        return Ok(packet);
    }
    parse_l4(ctx, packet)
}

#[inline(always)]
fn parse_v6(ctx: &TcContext) -> Result<Packet, NotParsed> {
    let ip: [u32; 10] = ctx.load(L2).map_err(|_| NotParsed::Malformed)?;
    if u32::from_be(ip[0]) >> 28 != 6 {
        return Err(NotParsed::Malformed);
    }
    let mut next = (u32::from_be(ip[1]) >> 8) & 0xff;
    let mut l4 = L2 + 40;
    let mut fragment = false;
    // Real packets have at most a few extension headers; one with more is treated as a protocol without ports.
    for _ in 0..4 {
        let length = match next {
            // Hop-by-hop, routing, destination options.
            0 | 43 | 60 => {
                let header: [u8; 2] = ctx.load(l4).map_err(|_| NotParsed::Malformed)?;
                next = u32::from(header[0]);
                (usize::from(header[1]) + 1) * 8
            }
            44 => {
                let header: [u8; 4] = ctx.load(l4).map_err(|_| NotParsed::Malformed)?;
                next = u32::from(header[0]);
                fragment = u16::from_be_bytes([header[2], header[3]]) & 0xfff8 != 0;
                8
            }
            _ => break,
        };
        l4 += length;
        if fragment {
            break;
        }
    }
    let packet = Packet {
        key: FlowKey {
            source: Address([ip[2], ip[3], ip[4], ip[5]]),
            destination: Address([ip[6], ip[7], ip[8], ip[9]]),
            source_port: 0,
            destination_port: 0,
            protocol: next,
        },
        l4,
        kind: if fragment { Kind::Fragment } else { Kind::Other },
        tcp_flags: 0,
        icmp_echo: false,
        v4: false,
    };
    if fragment {
        return Ok(packet);
    }
    parse_l4(ctx, packet)
}

#[inline(always)]
fn parse_l4(ctx: &TcContext, mut packet: Packet) -> Result<Packet, NotParsed> {
    const TCP_32: u32 = TCP as u32;
    const UDP_32: u32 = UDP as u32;
    const ICMP_32: u32 = ICMP as u32;
    const ICMPV6_32: u32 = ICMPV6 as u32;
    match packet.key.protocol {
        TCP_32 => {
            let tcp: [u32; 5] = ctx.load(packet.l4).map_err(|_| NotParsed::Malformed)?;
            packet.key.source_port = tcp[0] as u16;
            packet.key.destination_port = (tcp[0] >> 16) as u16;
            packet.tcp_flags = (u32::from_be(tcp[3]) >> 16) as u8;
            packet.kind = Kind::Flow;
        }
        UDP_32 => {
            let udp: [u32; 2] = ctx.load(packet.l4).map_err(|_| NotParsed::Malformed)?;
            packet.key.source_port = udp[0] as u16;
            packet.key.destination_port = (udp[0] >> 16) as u16;
            packet.kind = Kind::Flow;
        }
        ICMP_32 | ICMPV6_32 => {
            let icmp: [u32; 2] = ctx.load(packet.l4).map_err(|_| NotParsed::Malformed)?;
            let kind = (u32::from_be(icmp[0]) >> 24) as u8;
            let identifier = icmp[1] as u16;
            let (request, reply, error, neighbour) = if packet.v4 {
                (kind == 8, kind == 0, matches!(kind, 3 | 11 | 12), false)
            } else {
                (kind == 128, kind == 129, kind < 128, matches!(kind, 133..=137))
            };
            if request || reply {
                // The identifier stands on the side of the one who asked: the reply's key is the reverse.
                if request {
                    packet.key.source_port = identifier;
                } else {
                    packet.key.destination_port = identifier;
                }
                packet.icmp_echo = true;
                packet.kind = Kind::Flow;
            } else if error {
                packet.kind = Kind::IcmpError;
            } else if neighbour {
                packet.kind = Kind::Neighbour;
            }
        }
        _ => {}
    }
    Ok(packet)
}
