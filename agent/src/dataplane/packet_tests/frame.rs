//! Building and reading packets.

use std::net::{IpAddr, SocketAddr};

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;
pub const FIN: u8 = 1;

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
        } else {
            l4.extend((8 + self.payload.len() as u16).to_be_bytes());
            l4.extend([0, 0]);
        }
        l4.extend(&self.payload);
        let at = if self.protocol == TCP { 16 } else { 6 };
        let sum = checksum(&l4, pseudo(self.source.ip(), self.destination.ip(), self.protocol, l4.len()));
        l4[at..at + 2].copy_from_slice(&sum.to_be_bytes());
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
        let sum = pseudo(source, destination, protocol, l4.len());
        let unchecked = protocol == UDP && l4[6..8] == [0, 0];
        assert!(unchecked || checksum(l4, sum) == 0, "the transport checksum is wrong");
        let word = |at: usize| u32::from_be_bytes(l4[at..at + 4].try_into().unwrap());
        let port = |at: usize| u16::from_be_bytes([l4[at], l4[at + 1]]);
        let (flags, sequence, acknowledged, header) =
            if protocol == TCP { (l4[13], word(4), word(8), 20) } else { (0, 1_000, 2_000, 8) };
        Self {
            source: SocketAddr::new(source, port(0)),
            destination: SocketAddr::new(destination, port(2)),
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
