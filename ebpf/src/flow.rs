//! Remembering translations: two entries a flow, one for each direction.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::helpers::bpf_get_prandom_u32;
use kelp_common::flow::{
    FLOW_CLOSED, FLOW_DSR, FLOW_ESTABLISHED, FLOW_FIN, FLOW_HALF_SEEN, FLOW_REPLY, FLOW_WRAPPED, lifetime,
};
use kelp_common::{FlowKey, FlowValue, NodeConfig, SCTP, TCP, UDP};

use crate::lb::now;
use crate::maps::{BACKENDS, FLOWS};
use crate::packet::{Packet, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN};

/// How often a port for a translated source is guessed before the packet is dropped.
const PORT_TRIES: u32 = 24;

/// The translation of a packet of a known flow, with the flow's state brought up to date.
#[inline(always)]
pub fn lookup(packet: &Packet) -> Option<&'static FlowValue> {
    let entry = FLOWS.get_ptr_mut(&packet.key)?;
    // SAFETY: the entry lives until the program ends; CPUs race on state bits and the expiry only.
    let entry = unsafe { &mut *entry };
    let protocol = packet.key.protocol;
    let now = now();
    let mut flags = entry.flags;
    let reply = flags & FLOW_REPLY != 0;
    if !reply {
        let fresh_syn = packet.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN;
        if fresh_syn && (flags & FLOW_CLOSED != 0 || flags & FLOW_HALF_SEEN == FLOW_HALF_SEEN) {
            return None;
        }
        // A client goes on only after an answer.
        if flags & FLOW_DSR != 0 && !fresh_syn {
            flags |= FLOW_ESTABLISHED;
        }
        // A datagram to a removed backend goes to another one, and so does a new connection.
        if entry.backend != 0 && (fresh_syn || protocol == u32::from(UDP)) && !backend_is(entry) {
            return None;
        }
    }
    let mut tell_peer = 0;
    if reply && flags & FLOW_ESTABLISHED == 0 {
        flags |= FLOW_ESTABLISHED;
        tell_peer |= FLOW_ESTABLISHED;
    }
    if packet.tcp_flags & TCP_RST != 0 {
        flags |= FLOW_CLOSED;
        tell_peer |= FLOW_CLOSED;
    } else if packet.tcp_flags & TCP_FIN != 0 && flags & FLOW_FIN == 0 {
        flags |= FLOW_FIN;
        tell_peer |= FLOW_FIN;
    }
    let expired = now > entry.expires;
    if expired || tell_peer != 0 {
        match FLOWS.get_ptr_mut(&entry.reverse_key(protocol)) {
            Some(peer) => {
                // SAFETY: as above.
                let peer = unsafe { &mut *peer };
                // A flow lives while one of its directions does.
                if expired && now > peer.expires {
                    return None;
                }
                if tell_peer & FLOW_FIN != 0 && peer.flags & FLOW_FIN != 0 {
                    flags |= FLOW_CLOSED;
                    tell_peer |= FLOW_CLOSED;
                }
                peer.flags |= tell_peer & (FLOW_ESTABLISHED | FLOW_CLOSED);
                peer.expires = now + lifetime(protocol, peer.flags);
            }
            None if expired => return None,
            None => {}
        }
    }
    // Written at most once a second, so that the cache line stays shared.
    let expires = now + lifetime(protocol, flags);
    if entry.expires != expires {
        entry.expires = expires;
    }
    if entry.flags != flags {
        entry.flags = flags;
    }
    Some(entry)
}

/// Whether replies to a packet that is not translated would be taken for those of a translated flow: the client has
/// used its port to reach the same backend through a service. Asked for packets that may start a flow only.
#[inline(always)]
pub fn is_ambiguous(packet: &Packet) -> bool {
    let key = &packet.key;
    let connected = key.protocol == u32::from(TCP) || key.protocol == u32::from(SCTP);
    if connected && packet.tcp_flags & (TCP_SYN | TCP_ACK) != TCP_SYN {
        return false;
    }
    let reply = FlowKey {
        source: key.destination,
        destination: key.source,
        source_port: key.destination_port,
        destination_port: key.source_port,
        protocol: key.protocol,
    };
    FLOWS.get_ptr(&reply).is_some()
}

/// Whether the backend of a flow still exists.
#[inline(always)]
fn backend_is(value: &FlowValue) -> bool {
    // SAFETY: the entry is only read.
    match unsafe { BACKENDS.get(&value.backend) } {
        Some(backend) => {
            backend.port == value.destination_port && backend.address.0[3] == value.destination.0[3]
        }
        None => false,
    }
}

/// Remembers a new flow. When another flow has the same replies, or `translated` asks for it, the source port of
/// `forward` is changed to a free one of the node's range; `None` when none was found.
#[inline(never)]
pub fn create(config: &NodeConfig, key: &FlowKey, forward: &mut FlowValue, translated: bool) -> Option<()> {
    let now = now();
    let protocol = key.protocol;
    let expires = now + lifetime(protocol, 0);
    forward.expires = expires;
    let wrapped = forward.flags & FLOW_WRAPPED;
    forward.flags = wrapped;
    let reply = FlowValue {
        source: key.destination,
        destination: key.source,
        source_port: key.destination_port,
        destination_port: key.source_port,
        flags: FLOW_REPLY | wrapped,
        expires,
        backend: forward.backend,
    };
    let low = u32::from(config.nat_port_min);
    let range = u32::from(config.nat_port_max).wrapping_sub(low).wrapping_add(1);
    let mut reply_key = forward.reverse_key(protocol);
    let mut reserved = !translated && reserve(key, &reply_key, &reply, now);
    if !reserved {
        // SAFETY: the helper has no preconditions.
        let start = unsafe { bpf_get_prandom_u32() };
        for step in 0..PORT_TRIES {
            let offset = ((u64::from(start.wrapping_add(step.wrapping_mul(0x9e37_79b9))) * u64::from(range))
                >> 32) as u32;
            forward.source_port = ((low + offset) as u16).to_be();
            reply_key.destination_port = forward.source_port;
            if reserve(key, &reply_key, &reply, now) {
                reserved = true;
                break;
            }
        }
    }
    if !reserved {
        return None;
    }
    FLOWS.insert(key, &*forward, u64::from(BPF_ANY)).ok()
}

/// Remembers a new flow whose answers are another node's affair.
#[inline(always)]
pub fn create_one_way(key: &FlowKey, forward: &mut FlowValue) -> Option<()> {
    forward.flags = FLOW_DSR;
    forward.expires = now() + lifetime(key.protocol, FLOW_DSR);
    FLOWS.insert(key, &*forward, u64::from(BPF_ANY)).ok()
}

/// Takes the reply's key for a flow, unless a living flow of another origin has it.
#[inline(never)]
fn reserve(key: &FlowKey, reply_key: &FlowKey, reply: &FlowValue, now: u32) -> bool {
    if FLOWS.insert(reply_key, reply, u64::from(BPF_NOEXIST)).is_ok() {
        return true;
    }
    // SAFETY: the entry is only read.
    if let Some(existing) = unsafe { FLOWS.get(reply_key) } {
        let same_origin = existing.destination_port == key.source_port
            && existing.source_port == key.destination_port
            && existing.destination == key.source
            && existing.source == key.destination;
        if !same_origin && existing.expires >= now && existing.flags & FLOW_CLOSED == 0 {
            return false;
        }
    }
    FLOWS.insert(reply_key, reply, u64::from(BPF_ANY)).is_ok()
}
