//! Translated flows of the packet path, and translated destinations of sockets.

use crate::{Address, SCTP, TCP};

/// A packet's addresses as it arrives, before translation.
///
/// Every translated flow has two entries, one for each direction, as in netfilter's conntrack. The other direction's
/// key follows from the entry: the rewritten packet with source and destination exchanged.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct FlowKey {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Source port, network byte order; the identifier of an ICMP echo.
    pub source_port: u16,
    /// Destination port, network byte order; 0 for ICMP.
    pub destination_port: u16,
    /// Protocol number.
    pub protocol: u32,
}

const _: () = assert!(size_of::<FlowKey>() == 40);

/// How packets of one direction are rewritten, and the state of the flow.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct FlowValue {
    /// New source address.
    pub source: Address,
    /// New destination address.
    pub destination: Address,
    /// New source port, network byte order.
    pub source_port: u16,
    /// New destination port, network byte order.
    pub destination_port: u16,
    /// `FLOW_*` bits.
    pub flags: u32,
    /// Second of the monotonic clock after which the entry counts for nothing unless its other direction lives.
    pub expires: u32,
    /// Id of the backend, 0 for a flow without one (masquerade).
    pub backend: u32,
}

const _: () = assert!(size_of::<FlowValue>() == 48);

impl FlowValue {
    /// The key of the other direction.
    #[inline(always)]
    #[must_use]
    pub const fn reverse_key(&self, protocol: u32) -> FlowKey {
        FlowKey {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol,
        }
    }

    /// Whether `key` is the key of the other direction. What is found there may be another flow's: a port that is used
    /// again, or a client that does so.
    #[inline(always)]
    #[must_use]
    pub fn is_reverse_of(&self, key: &FlowKey) -> bool {
        self.destination_port == key.source_port
            && self.source_port == key.destination_port
            && self.destination == key.source
            && self.source == key.destination
    }
}

/// The entry is of replies: the other direction opened the flow.
pub const FLOW_REPLY: u32 = 1;
/// A packet was seen in both directions.
pub const FLOW_ESTABLISHED: u32 = 2;
/// TCP: a FIN was seen in this direction.
pub const FLOW_FIN: u32 = 4;
/// TCP: a reset was seen, or a FIN in both directions; a SYN starts a new flow.
pub const FLOW_CLOSED: u32 = 8;
/// Packets go to a backend of another node in an envelope; answers are not seen here, and there is no entry for them.
pub const FLOW_DSR: u32 = 16;
/// Packets come from another node in an envelope.
pub const FLOW_WRAPPED: u32 = 32;
/// The source port was chosen here, from the node's range.
pub const FLOW_PORT: u32 = 64;
/// TCP: a flow whose answers are not seen here, after the end of what the client sends.
pub const FLOW_HALF_SEEN: u32 = FLOW_DSR | FLOW_FIN;

/// Seconds that a flow with these `FLOW_*` bits lives without a packet. TCP's established time is netfilter's in kube-proxy's
/// defaults; SCTP's is several of its heartbeats.
#[inline(always)]
#[must_use]
pub const fn lifetime(protocol: u32, flags: u32) -> u32 {
    match protocol as u8 {
        // The port is given to another connection once the end that closed first does not remember this one any more
        // (TIME-WAIT is a minute in Linux).
        TCP if flags & FLOW_CLOSED != 0 && flags & FLOW_PORT != 0 => 60,
        TCP if flags & FLOW_CLOSED != 0 => 10,
        // The client has no more to say, but acknowledges. That the other side has finished is not seen here.
        TCP if flags & FLOW_HALF_SEEN == FLOW_HALF_SEEN => 3_600,
        TCP if flags & FLOW_ESTABLISHED != 0 => 86_400,
        TCP => 60,
        SCTP if flags & FLOW_CLOSED != 0 => 10,
        SCTP if flags & FLOW_ESTABLISHED != 0 => 210,
        _ if flags & FLOW_ESTABLISHED != 0 => 180,
        _ => 30,
    }
}

/// A destination a socket speaks to in place of a service.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SocketKey {
    /// The socket's cookie.
    pub cookie: u64,
    /// The backend's address.
    pub address: Address,
    /// The backend's port, network byte order.
    pub port: u32,
    /// Zero; fills the structure.
    pub unused: u32,
}

const _: () = assert!(size_of::<SocketKey>() == 32);

/// The service address a program named, which it is shown again.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SocketValue {
    /// The service's address.
    pub address: Address,
    /// The service's port, network byte order.
    pub port: u16,
    /// Protocol number.
    pub protocol: u16,
    /// Id of the backend.
    pub backend: u32,
    /// Cookie of the socket's network namespace: where to look for it when the backend is gone.
    pub namespace: u64,
}

const _: () = assert!(size_of::<SocketValue>() == 32);

/// A datagram that was cut to pieces (RFC 791, RFC 8200): only the first one has ports.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct FragmentKey {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// The datagram's identification.
    pub identification: u32,
    /// Protocol number.
    pub protocol: u32,
}

const _: () = assert!(size_of::<FragmentKey>() == 40);

/// The ports in the first fragment.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct FragmentValue {
    /// Source port, network byte order.
    pub source_port: u16,
    /// Destination port, network byte order.
    pub destination_port: u16,
}

const _: () = assert!(size_of::<FragmentValue>() == 4);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reverse_of_the_reverse_is_the_flow() {
        let key = FlowKey {
            source: Address::v4(1),
            destination: Address::v4(2),
            source_port: 3,
            destination_port: 4,
            protocol: 6,
        };
        let forward = FlowValue {
            source: Address::v4(1),
            destination: Address::v4(5),
            source_port: 3,
            destination_port: 6,
            ..FlowValue::default()
        };
        let reply_key = forward.reverse_key(6);
        assert!(forward.is_reverse_of(&reply_key) && !forward.is_reverse_of(&key));
        assert_eq!((reply_key.source, reply_key.source_port), (Address::v4(5), 6));
        let reply = FlowValue {
            source: key.destination,
            destination: key.source,
            source_port: key.destination_port,
            destination_port: key.source_port,
            ..FlowValue::default()
        };
        assert_eq!(reply.reverse_key(6), key);
    }
}
