//! Parsing. Headers are copied out with a helper that checks bounds, so fragments of memory and truncated packets
//! need no care here.

use aya_ebpf::programs::TcContext;
use kelp_common::{Address, FlowKey, ICMP, ICMPV6, SCTP, TCP, UDP};

use crate::context::Context;

/// Length of the Ethernet header.
pub const L2: usize = 14;
/// Ethernet's number of IPv4, as in a packet.
pub const ETH_IPV4: u32 = 0x0800_u16.to_be() as u32;
/// That of IPv6.
pub const ETH_IPV6: u32 = 0x86dd_u16.to_be() as u32;

/// Bits of [`Packet::tcp_flags`].
pub const TCP_FIN: u8 = 1;
/// See [`TCP_FIN`].
pub const TCP_SYN: u8 = 2;
/// See [`TCP_FIN`].
pub const TCP_RST: u8 = 4;
/// See [`TCP_FIN`].
pub const TCP_ACK: u8 = 16;

/// Chunks of SCTP that begin and end an association (RFC 9260, 3.2).
const SCTP_INIT: u8 = 1;
const SCTP_INIT_ACK: u8 = 2;
const SCTP_ABORT: u8 = 6;
const SCTP_SHUTDOWN_COMPLETE: u8 = 14;

/// What the packet is to the translation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The key names a flow.
    Flow,
    /// A fragment other than the first: it has no ports. The key names a flow once [`crate::fragment`] found them.
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
    /// The flags of a TCP segment; those that mean the same for a chunk of SCTP; else 0.
    pub tcp_flags: u8,
    /// Whether the ports are the identifier of an ICMP echo.
    pub icmp_echo: bool,
    /// Whether it is an IPv4 packet.
    pub v4: bool,
    /// Whether it is one of several fragments.
    pub fragmented: bool,
    /// What the fragments of a datagram have in common.
    pub identification: u32,
    /// Whether the key names a flow.
    pub flow: bool,
}

/// Why there is nothing to decide.
pub enum NotParsed {
    /// ARP and other protocols.
    NotIp,
    /// Truncated, or a header that lies about its length.
    Malformed,
}

impl Packet {
    /// A packet that nothing is known of yet.
    const UNKNOWN: Self = Self {
        key: FlowKey {
            source: Address([0; 4]),
            destination: Address([0; 4]),
            source_port: 0,
            destination_port: 0,
            protocol: 0,
        },
        l4: 0,
        identification: 0,
        kind: Kind::Other,
        tcp_flags: 0,
        icmp_echo: false,
        v4: false,
        fragmented: false,
        flow: false,
    };
}

/// Parses headers up to the ports.
#[inline(always)]
pub fn parse<C: Context>(ctx: &C, packet: &mut Packet) -> Result<(), NotParsed> {
    *packet = Packet::UNKNOWN;
    match ctx.ethertype() {
        ETH_IPV4 => parse_v4(ctx, packet)?,
        ETH_IPV6 => parse_v6(ctx, packet)?,
        _ => return Err(NotParsed::NotIp),
    }
    if packet.kind == Kind::Fragment { Ok(()) } else { parse_l4(ctx, packet) }
}

#[inline(always)]
fn parse_v4<C: Context>(ctx: &C, packet: &mut Packet) -> Result<(), NotParsed> {
    let ip: [u32; 5] = ctx.words(L2).map_err(|_| NotParsed::Malformed)?;
    let first = u32::from_be(ip[0]);
    let header = ((first >> 24) & 0xf) as usize * 4;
    if first >> 28 != 4 || header < 20 {
        return Err(NotParsed::Malformed);
    }
    packet.key.source = Address::v4(ip[3]);
    packet.key.destination = Address::v4(ip[4]);
    packet.key.protocol = (u32::from_be(ip[2]) >> 16) & 0xff;
    packet.l4 = L2 + header;
    packet.v4 = true;
    // "More fragments" and the offset.
    let fragment = u32::from_be(ip[1]);
    if fragment & 0x3fff != 0 {
        packet.fragmented = true;
        packet.identification = fragment >> 16;
        if fragment & 0x1fff != 0 {
            packet.kind = Kind::Fragment;
        }
    }
    Ok(())
}

#[inline(always)]
fn parse_v6<C: Context>(ctx: &C, packet: &mut Packet) -> Result<(), NotParsed> {
    let ip: [u32; 10] = ctx.words(L2).map_err(|_| NotParsed::Malformed)?;
    if u32::from_be(ip[0]) >> 28 != 6 {
        return Err(NotParsed::Malformed);
    }
    packet.key.source = Address([ip[2], ip[3], ip[4], ip[5]]);
    packet.key.destination = Address([ip[6], ip[7], ip[8], ip[9]]);
    let mut next = (u32::from_be(ip[1]) >> 8) & 0xff;
    let mut l4 = L2 + 40;
    // Real packets have at most a few extension headers; one with more is treated as a protocol without ports.
    for _ in 0..4 {
        // Hop-by-hop, fragment, routing, destination options: all but the fragment's have their length in the second byte.
        if !matches!(next, 0 | 43 | 44 | 60) {
            break;
        }
        let header: [u32; 2] = ctx.words(l4).map_err(|_| NotParsed::Malformed)?;
        let first = u32::from_be(header[0]);
        let is_fragment = next == 44;
        next = first >> 24;
        if !is_fragment {
            l4 += (((first >> 16) & 0xff) as usize + 1) * 8;
            continue;
        }
        l4 += 8;
        packet.fragmented = first & 0xfff9 != 0;
        packet.identification = header[1];
        if first & 0xfff8 != 0 {
            packet.kind = Kind::Fragment;
            break;
        }
    }
    packet.key.protocol = next;
    packet.l4 = l4;
    Ok(())
}

#[inline(always)]
fn parse_l4<C: Context>(ctx: &C, packet: &mut Packet) -> Result<(), NotParsed> {
    const TCP_32: u32 = TCP as u32;
    const UDP_32: u32 = UDP as u32;
    const SCTP_32: u32 = SCTP as u32;
    const ICMP_32: u32 = ICMP as u32;
    const ICMPV6_32: u32 = ICMPV6 as u32;
    match packet.key.protocol {
        TCP_32 => {
            let tcp: [u32; 5] = ctx.words(packet.l4).map_err(|_| NotParsed::Malformed)?;
            packet.key.source_port = tcp[0] as u16;
            packet.key.destination_port = (tcp[0] >> 16) as u16;
            packet.tcp_flags = (u32::from_be(tcp[3]) >> 16) as u8;
            packet.kind = Kind::Flow;
        }
        UDP_32 => {
            let udp: [u32; 2] = ctx.words(packet.l4).map_err(|_| NotParsed::Malformed)?;
            packet.key.source_port = udp[0] as u16;
            packet.key.destination_port = (udp[0] >> 16) as u16;
            packet.kind = Kind::Flow;
        }
        SCTP_32 => {
            // The common header and the first chunk's.
            let sctp: [u32; 4] = ctx.words(packet.l4).map_err(|_| NotParsed::Malformed)?;
            packet.key.source_port = sctp[0] as u16;
            packet.key.destination_port = (sctp[0] >> 16) as u16;
            packet.tcp_flags = match sctp[3] as u8 {
                SCTP_INIT => TCP_SYN,
                SCTP_INIT_ACK => TCP_SYN | TCP_ACK,
                SCTP_ABORT | SCTP_SHUTDOWN_COMPLETE => TCP_RST,
                _ => TCP_ACK,
            };
            packet.kind = Kind::Flow;
        }
        ICMP_32 | ICMPV6_32 => {
            let icmp: [u32; 2] = ctx.words(packet.l4).map_err(|_| NotParsed::Malformed)?;
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
    packet.flow = packet.kind == Kind::Flow;
    Ok(())
}

/// The packet that an ICMP error is about.
#[repr(C)]
pub struct Quoted {
    /// Addresses and ports of the packet that would answer it.
    pub answer: FlowKey,
    /// Offset of its network header.
    pub l3: usize,
    /// Offset of its transport header.
    pub l4: usize,
    /// Whether its ports are the identifier of an ICMP echo.
    pub icmp_echo: bool,
}

/// Reads the quotation in an ICMP error: at least the network header and eight bytes (RFC 792, RFC 4443).
#[inline(always)]
pub fn read_quoted(ctx: &TcContext, packet: &Packet, quoted: &mut Quoted) -> Option<()> {
    let l3 = packet.l4 + 8;
    let answer = &mut quoted.answer;
    if packet.v4 {
        let ip: [u32; 5] = ctx.load(l3).ok()?;
        let first = u32::from_be(ip[0]);
        let header = ((first >> 24) & 0xf) as usize * 4;
        // Only a first fragment has ports.
        if first >> 28 != 4 || header < 20 || u32::from_be(ip[1]) & 0x1fff != 0 {
            return None;
        }
        answer.source = Address::v4(ip[4]);
        answer.destination = Address::v4(ip[3]);
        answer.protocol = (u32::from_be(ip[2]) >> 16) & 0xff;
        quoted.l4 = l3 + header;
    } else {
        let ip: [u32; 10] = ctx.load(l3).ok()?;
        if u32::from_be(ip[0]) >> 28 != 6 {
            return None;
        }
        answer.source = Address([ip[6], ip[7], ip[8], ip[9]]);
        answer.destination = Address([ip[2], ip[3], ip[4], ip[5]]);
        answer.protocol = (u32::from_be(ip[1]) >> 8) & 0xff;
        quoted.l4 = l3 + 40;
    }
    quoted.l3 = l3;
    let head: [u32; 2] = ctx.load(quoted.l4).ok()?;
    let (mut source_port, mut destination_port) = (head[0] as u16, (head[0] >> 16) as u16);
    quoted.icmp_echo = false;
    match answer.protocol as u8 {
        TCP | UDP | SCTP => {}
        ICMP | ICMPV6 => {
            let (request, reply) = if packet.v4 { (8, 0) } else { (128, 129) };
            let kind = head[0] as u8;
            if kind != request && kind != reply {
                return None;
            }
            let identifier = head[1] as u16;
            (source_port, destination_port) = if kind == request { (identifier, 0) } else { (0, identifier) };
            quoted.icmp_echo = true;
        }
        _ => return None,
    }
    answer.source_port = destination_port;
    answer.destination_port = source_port;
    Some(())
}
