//! Building and reading packets.

use std::net::{IpAddr, SocketAddr};

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const SCTP: u8 = 132;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;
pub const FIN: u8 = 1;

/// Types of chunks, with the flags that stand for them.
const SCTP_CHUNKS: [(u8, u8); 5] = [(1, SYN), (2, SYN | ACK), (6, RST), (0, ACK), (14, RST | ACK)];

/// A packet to build, or one that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub protocol: u8,
    pub flags: u8,
    pub sequence: u32,
    pub acknowledged: u32,
    pub ttl: u8,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn tcp(source: &str, destination: &str, flags: u8) -> Self {
        Self {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol: TCP,
            flags,
            sequence: 1_000,
            acknowledged: 2_000,
            ttl: 64,
            payload: Vec::new(),
        }
    }

    pub fn udp(source: &str, destination: &str) -> Self {
        Self { protocol: UDP, payload: b"question".to_vec(), ..Self::tcp(source, destination, 0) }
    }

    /// An SCTP packet; the flags say which chunk: `SYN` is INIT, `SYN | ACK` is INIT ACK, `RST` is ABORT, `ACK` is DATA.
    pub fn sctp(source: &str, destination: &str, flags: u8) -> Self {
        Self { protocol: SCTP, payload: b"chunk".to_vec(), ..Self::tcp(source, destination, flags) }
    }

    /// The answer to this packet as its receiver sends it.
    pub fn answer(&self, flags: u8) -> Self {
        Self { source: self.destination, destination: self.source, flags, ttl: 64, ..self.clone() }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut l4 = Vec::new();
        l4.extend(self.source.port().to_be_bytes());
        l4.extend(self.destination.port().to_be_bytes());
        if self.protocol == TCP {
            l4.extend(self.sequence.to_be_bytes());
            l4.extend(self.acknowledged.to_be_bytes());
            l4.extend([0x50, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
        } else if self.protocol == SCTP {
            l4.extend(self.sequence.to_be_bytes());
            l4.extend([0; 4]);
            let chunk = SCTP_CHUNKS.iter().find(|(_, flags)| *flags == self.flags).unwrap().0;
            l4.extend([chunk, 0]);
            l4.extend((4 + self.payload.len() as u16).to_be_bytes());
        } else {
            l4.extend((8 + self.payload.len() as u16).to_be_bytes());
            l4.extend([0, 0]);
        }
        l4.extend(&self.payload);
        if self.protocol == SCTP {
            let sum = crc32c(&l4);
            l4[8..12].copy_from_slice(&sum.to_le_bytes());
        } else {
            let at = if self.protocol == TCP { 16 } else { 6 };
            let sum = checksum(&l4, pseudo(self.source.ip(), self.destination.ip(), self.protocol, l4.len()));
            l4[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        let mut packet = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut ip = vec![0x45, 0];
                ip.extend((20 + l4.len() as u16).to_be_bytes());
                ip.extend([0, 7, 0x40, 0, self.ttl, self.protocol, 0, 0]);
                ip.extend(source.octets());
                ip.extend(destination.octets());
                let sum = checksum(&ip, 0);
                ip[10..12].copy_from_slice(&sum.to_be_bytes());
                packet.extend([0x08, 0x00]);
                packet.extend(ip);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                packet.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                packet.extend((l4.len() as u16).to_be_bytes());
                packet.extend([self.protocol, self.ttl]);
                packet.extend(source.octets());
                packet.extend(destination.octets());
            }
            _ => panic!("one family"),
        }
        packet.extend(l4);
        packet
    }

    /// Reads a packet; every checksum must be right.
    pub fn read(packet: &[u8]) -> Self {
        let (source, destination, protocol, ttl, l4) = network(packet);
        let word = |at: usize| u32::from_be_bytes(l4[at..at + 4].try_into().unwrap());
        let port = |at: usize| u16::from_be_bytes([l4[at], l4[at + 1]]);
        let (source_port, destination_port) = (port(0), port(2));
        if protocol == SCTP {
            let mut zeroed = l4.to_vec();
            zeroed[8..12].fill(0);
            assert_eq!(crc32c(&zeroed).to_le_bytes(), l4[8..12], "the transport checksum is wrong");
            return Self {
                source: SocketAddr::new(source, source_port),
                destination: SocketAddr::new(destination, destination_port),
                protocol,
                flags: SCTP_CHUNKS.iter().find(|(chunk, _)| *chunk == l4[12]).unwrap().1,
                sequence: word(4),
                acknowledged: 2_000,
                ttl,
                payload: l4[16..].to_vec(),
            };
        }
        let sum = pseudo(source, destination, protocol, l4.len());
        let unchecked = protocol == UDP && l4[6..8] == [0, 0];
        assert!(unchecked || checksum(l4, sum) == 0, "the transport checksum is wrong");
        let (flags, sequence, acknowledged, header) =
            if protocol == TCP { (l4[13], word(4), word(8), 20) } else { (0, 1_000, 2_000, 8) };
        Self {
            source: SocketAddr::new(source, source_port),
            destination: SocketAddr::new(destination, destination_port),
            protocol,
            flags,
            sequence,
            acknowledged,
            ttl,
            payload: l4[header..].to_vec(),
        }
    }
}

/// The parts of the network header, checked, and what follows it.
pub fn network(packet: &[u8]) -> (IpAddr, IpAddr, u8, u8, &[u8]) {
    let ip = &packet[14..];
    if packet[12..14] == [0x08, 0x00] {
        assert_eq!(checksum(&ip[..20], 0), 0, "the header checksum is wrong");
        assert_eq!(usize::from(u16::from_be_bytes([ip[2], ip[3]])), ip.len(), "the length is wrong");
        let address = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&ip[at..at + 4]).unwrap());
        (address(12), address(16), ip[9], ip[8], &ip[20..])
    } else {
        assert_eq!(usize::from(u16::from_be_bytes([ip[4], ip[5]])) + 40, ip.len(), "the length is wrong");
        let address = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&ip[at..at + 16]).unwrap());
        (address(8), address(24), ip[6], ip[7], &ip[40..])
    }
}

/// The sum of the pseudo header.
pub fn pseudo(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> u32 {
    let octets = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let mut bytes = octets(source);
    bytes.extend(octets(destination));
    u32::from(!checksum(&bytes, 0)) + u32::from(protocol) + length as u32
}

/// The internet checksum.
pub fn checksum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = u64::from(start);
    for pair in bytes.chunks(2) {
        sum += u64::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The checksum of SCTP, bit by bit.
pub fn crc32c(bytes: &[u8]) -> u32 {
    let mut sum = u32::MAX;
    for byte in bytes {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = if sum & 1 == 0 { sum >> 1 } else { (sum >> 1) ^ 0x82f6_3b78 };
        }
    }
    !sum
}

/// An ICMP error about a packet (with its Ethernet header), as `from` sends it to the packet's source.
pub fn icmp_error(from: IpAddr, about: &[u8], kind: [u8; 2], extra: u32) -> Vec<u8> {
    let (to, _, _, _, _) = network(about);
    let mut icmp = vec![kind[0], kind[1], 0, 0];
    icmp.extend(extra.to_be_bytes());
    icmp.extend(&about[14..about.len().min(14 + 60)]);
    let v4 = from.is_ipv4();
    let sum = checksum(&icmp, if v4 { 0 } else { pseudo(from, to, 58, icmp.len()) });
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut packet = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut ip = vec![0x45, 0];
            ip.extend((20 + icmp.len() as u16).to_be_bytes());
            ip.extend([0, 7, 0, 0, 64, 1, 0, 0]);
            ip.extend(from.octets());
            ip.extend(to.octets());
            let sum = checksum(&ip, 0);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            packet.extend([0x08, 0x00]);
            packet.extend(ip);
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            packet.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            packet.extend((icmp.len() as u16).to_be_bytes());
            packet.extend([58, 64]);
            packet.extend(from.octets());
            packet.extend(to.octets());
        }
        _ => panic!("one family"),
    }
    packet.extend(icmp);
    packet
}

/// An ICMP error that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub kind: [u8; 2],
    pub extra: u32,
    /// Source and destination of the packet it is about.
    pub about: (SocketAddr, SocketAddr),
}

impl Error {
    /// Reads an error; every checksum must be right, also that of the quoted IPv4 header.
    pub fn read(packet: &[u8]) -> Self {
        let (source, destination, protocol, _, icmp) = network(packet);
        let v4 = source.is_ipv4();
        assert_eq!(protocol, if v4 { 1 } else { 58 });
        let sum = if v4 { 0 } else { pseudo(source, destination, 58, icmp.len()) };
        assert_eq!(checksum(icmp, sum), 0, "the ICMP checksum is wrong");
        let quoted = &icmp[8..];
        let port = |at: usize| u16::from_be_bytes([quoted[at], quoted[at + 1]]);
        let about = if v4 {
            assert_eq!(checksum(&quoted[..20], 0), 0, "the checksum of the quoted header is wrong");
            let address = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&quoted[at..at + 4]).unwrap());
            (SocketAddr::new(address(12), port(20)), SocketAddr::new(address(16), port(22)))
        } else {
            let address = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&quoted[at..at + 16]).unwrap());
            (SocketAddr::new(address(8), port(40)), SocketAddr::new(address(24), port(42)))
        };
        Self {
            source,
            destination,
            kind: [icmp[0], icmp[1]],
            extra: u32::from_be_bytes(icmp[4..8].try_into().unwrap()),
            about,
        }
    }
}

/// Cuts a packet into fragments behind `first` bytes (a multiple of 8) of what follows the network header.
pub fn fragments(packet: &[u8], first: usize) -> [Vec<u8>; 2] {
    let v4 = packet[12..14] == [0x08, 0x00];
    let header = if v4 { 34 } else { 54 };
    let (head, body) = packet.split_at(header);
    let cut = |part: &[u8], offset: usize, more: bool| {
        let mut out = head.to_vec();
        let word = (offset as u16) << if v4 { 0 } else { 3 };
        if v4 {
            out[16..18].copy_from_slice(&(20 + part.len() as u16).to_be_bytes());
            let word = word | if more { 0x2000 } else { 0 };
            out[20..22].copy_from_slice(&word.to_be_bytes());
            out[24..26].fill(0);
            let sum = checksum(&out[14..34], 0);
            out[24..26].copy_from_slice(&sum.to_be_bytes());
        } else {
            out[18..20].copy_from_slice(&(8 + part.len() as u16).to_be_bytes());
            out[20] = 44;
            let word = word | u16::from(more);
            out.extend([head[20], 0]);
            out.extend(word.to_be_bytes());
            out.extend([0, 0, 0, 9]);
        }
        out.extend(part);
        out
    };
    [cut(&body[..first], 0, true), cut(&body[first..], first / 8, false)]
}

/// Puts fragments together again.
pub fn reassemble(fragments: &[Vec<u8>; 2]) -> Vec<u8> {
    let v4 = fragments[0][12..14] == [0x08, 0x00];
    let mut packet = fragments[0].clone();
    if v4 {
        assert_eq!(fragments[0][26..34], fragments[1][26..34], "the same addresses");
        packet.extend(&fragments[1][34..]);
        let length = packet.len() as u16 - 14;
        packet[16..18].copy_from_slice(&length.to_be_bytes());
        packet[20..22].copy_from_slice(&[0x40, 0]);
        packet[24..26].fill(0);
        let sum = checksum(&packet[14..34], 0);
        packet[24..26].copy_from_slice(&sum.to_be_bytes());
    } else {
        assert_eq!(fragments[0][22..54], fragments[1][22..54], "the same addresses");
        packet[20] = packet[54];
        packet.drain(54..62);
        packet.extend(&fragments[1][62..]);
        let length = packet.len() as u16 - 54;
        packet[18..20].copy_from_slice(&length.to_be_bytes());
    }
    packet
}
