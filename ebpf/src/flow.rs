//! Remembering translations: two entries a flow, one for each direction.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::helpers::bpf_get_prandom_u32;
use kelp_common::flow::{
    FLOW_CLOSED, FLOW_DSR, FLOW_ESTABLISHED, FLOW_FIN, FLOW_HALF_SEEN, FLOW_PORT, FLOW_REPLY, FLOW_WRAPPED,
    lifetime,
};
use kelp_common::{FlowKey, FlowValue, SCTP, TCP, UDP};

use crate::lb::now;
use crate::maps::{BACKENDS, FLOWS, NODE_CONFIG, forward_room, packet_room, reply_room};
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
        // SAFETY: as above.
        let peer = FLOWS.get_ptr_mut(&entry.reverse_key(protocol)).map(|peer| unsafe { &mut *peer });
        match peer.filter(|peer| peer.is_reverse_of(&packet.key)) {
            Some(peer) => {
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

/// Remembers the packet that is looked at as the first of a flow that goes where the room for translations says. When
/// another flow has the same replies, or `translated` asks for it, the source port there is changed to a free one of the
/// node's range; `None` when none was found.
#[inline(always)]
pub fn create(translated: bool) -> Option<()> {
    (flow_create(u32::from(translated)) != 0).then_some(())
}

/// [`create`] for C. A global function, and therefore without pointers: the verifier looks at those once, and not once a
/// call.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn flow_create(translated: u32) -> u32 {
    let (Some(packet), Some(forward), Some(reply)) = (packet_room(), forward_room(), reply_room()) else {
        return 0;
    };
    u32::from(remember(&packet.key, forward, reply, translated != 0))
}

/// The entry for the replies of a new flow.
#[repr(C)]
pub struct Reply {
    key: FlowKey,
    value: FlowValue,
}

#[inline(always)]
fn remember(key: &FlowKey, forward: &mut FlowValue, reply: &mut Reply, translated: bool) -> bool {
    let now = now();
    let protocol = key.protocol;
    forward.expires = now + lifetime(protocol, 0);
    forward.flags &= FLOW_WRAPPED;
    reply.key = forward.reverse_key(protocol);
    reply.value = FlowValue {
        source: key.destination,
        destination: key.source,
        source_port: key.destination_port,
        destination_port: key.source_port,
        flags: FLOW_REPLY | forward.flags,
        expires: forward.expires,
        backend: forward.backend,
    };
    if translated || !reserve(key, reply, now) {
        forward.flags |= FLOW_PORT;
        reply.value.flags |= FLOW_PORT;
        if !reserve_port(key, reply, now) {
            return false;
        }
        forward.source_port = reply.key.destination_port;
    }
    FLOWS.insert(key, &*forward, u64::from(BPF_ANY)).is_ok()
}

/// Remembers a new flow whose answers are another node's affair.
#[inline(always)]
pub fn create_one_way(key: &FlowKey, forward: &mut FlowValue) -> Option<()> {
    forward.flags = FLOW_DSR;
    forward.expires = now() + lifetime(key.protocol, FLOW_DSR);
    FLOWS.insert(key, &*forward, u64::from(BPF_ANY)).ok()
}

/// Takes the replies' key for a flow, unless a living flow of another origin has it.
#[inline(always)]
fn reserve(key: &FlowKey, reply: &Reply, now: u32) -> bool {
    if FLOWS.insert(&reply.key, &reply.value, u64::from(BPF_NOEXIST)).is_ok() {
        return true;
    }
    // SAFETY: the entry is only read.
    match unsafe { FLOWS.get(&reply.key) } {
        Some(existing) if !existing.is_reverse_of(key) && !is_over(existing, &reply.key, now) => false,
        _ => take_over(key, reply),
    }
}

/// Takes the replies' key with a port of the node's range. A closed connection's port rests for as long as its backend may
/// refuse the next one from there; when all that are tried are taken, it is the one that has rested for longest.
#[inline(always)]
fn reserve_port(key: &FlowKey, reply: &mut Reply, now: u32) -> bool {
    let Some(config) = NODE_CONFIG.get(0) else { return false };
    let (low, range) = config.source_ports(key.protocol);
    // SAFETY: the helper has no preconditions.
    let start = unsafe { bpf_get_prandom_u32() };
    let (mut rests, mut expires) = (0, u32::MAX);
    for step in 0..PORT_TRIES {
        // Steps of the golden ratio spread evenly.
        let number = start.wrapping_add(step.wrapping_mul(0x9e37_79b9));
        let offset = ((u64::from(number) * u64::from(range)) >> 32) as u32;
        reply.key.destination_port = ((low + offset) as u16).to_be();
        // SAFETY: the entry is only read.
        match unsafe { FLOWS.get(&reply.key) } {
            None => {
                if FLOWS.insert(&reply.key, &reply.value, u64::from(BPF_NOEXIST)).is_ok() {
                    return true;
                }
            }
            Some(existing) if existing.expires < expires && is_over(existing, &reply.key, now) => {
                rests = reply.key.destination_port;
                expires = existing.expires;
            }
            Some(_) => {}
        }
    }
    reply.key.destination_port = rests;
    rests != 0 && take_over(key, reply)
}

/// Whether a flow has ended: its connection is closed, or nothing was heard from both ends for too long.
#[inline(always)]
fn is_over(entry: &FlowValue, key: &FlowKey, now: u32) -> bool {
    if entry.flags & FLOW_CLOSED != 0 {
        return true;
    }
    if entry.expires >= now {
        return false;
    }
    // SAFETY: the entry is only read.
    match unsafe { FLOWS.get(&entry.reverse_key(key.protocol)) } {
        Some(peer) => peer.expires < now || !peer.is_reverse_of(key),
        None => true,
    }
}

/// Takes the replies' key from a flow that is over. Its other direction is forgotten: late packets would get into the new
/// flow.
#[inline(always)]
fn take_over(key: &FlowKey, reply: &Reply) -> bool {
    // SAFETY: the entry is only read.
    if let Some(existing) = unsafe { FLOWS.get(&reply.key) }
        && !existing.is_reverse_of(key)
    {
        let old = existing.reverse_key(key.protocol);
        // SAFETY: as above.
        if unsafe { FLOWS.get(&old) }.is_some_and(|peer| peer.is_reverse_of(&reply.key)) {
            let _ = FLOWS.remove(&old);
        }
    }
    FLOWS.insert(&reply.key, &reply.value, u64::from(BPF_ANY)).is_ok()
}
