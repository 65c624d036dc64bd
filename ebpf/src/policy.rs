//! Network policies: whether a packet may pass between two ends, of which at least one is a pod that policies apply to.
//!
//! The ends are those behind every translation: the source as the packet came, the destination as it goes on. A flow is
//! judged by the direction in which it was opened; its answers pass with it. The verdict is remembered with the revision of
//! the policies, so that a change of anything has every flow judged again, by its next packet in either direction.

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::maps::lpm_trie::Key;
use kelp_common::flow::lifetime;
use kelp_common::maps::counter;
use kelp_common::policy::{
    ALL_PORTS, ANYBODY, CONNECTION_CLOSED, CONNECTION_ESTABLISHED, CONNECTION_FIN_FIRST,
    CONNECTION_FIN_SECOND, CONNECTION_FORBIDDEN, CONNECTION_FORBIDDEN_EGRESS, CONNECTION_ONE_WAY,
    CONNECTION_OPENED_BY_SECOND, is_turned,
};
use kelp_common::{
    Address, ConnectionValue, EndpointValue, FlowKey, IdentityKey, PortKey, PortNumber, PrefixKey, RuleKey,
    SCTP, TCP, UDP,
};

use crate::lb::now;
use crate::maps::{CONNECTIONS, IDENTITIES, PORTS, PREFIXES, REVISION, RULES, connection_room};
use crate::packet::{Packet, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN};

/// First port of those that kernels give to clients (`net.ipv4.ip_local_port_range`).
const CLIENT_PORTS: u16 = 32_768;
/// Seconds after which no flow is older than the policies of its pod: the longest that a flow of datagrams is silent.
const UNCERTAIN: u32 = 180;

/// All bits of a verdict.
const FORBIDDEN: u32 = CONNECTION_FORBIDDEN | CONNECTION_FORBIDDEN_EGRESS;

/// One side of a flow: what applies to it.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Side {
    space: u32,
    ingress: u32,
    egress: u32,
    since: u32,
}

impl Side {
    /// A side that no policy applies to.
    const FREE: Self = Self { space: 0, ingress: 0, egress: 0, since: 0 };

    #[inline(always)]
    fn of(pod: Option<&EndpointValue>) -> Self {
        match pod {
            Some(pod) => {
                Self { space: pod.space, ingress: pod.ingress, egress: pod.egress, since: pod.isolated_since }
            }
            None => Self::FREE,
        }
    }
}

/// A flow to judge, in the direction of the packet.
#[repr(C)]
pub struct Question {
    /// Both ends as they are.
    flow: FlowKey,
    source: Side,
    destination: Side,
    /// The key of the connection.
    key: FlowKey,
    tcp_flags: u32,
    /// Whether one policy permits it. In memory, as the verdict: the verifier would follow what it knows of a result
    /// through the rest of the program once for each value.
    permitted: u32,
    /// 0, or `CONNECTION_FORBIDDEN*` bits.
    verdict: u32,
}

impl Question {
    /// The ends as they are.
    #[inline(always)]
    pub fn flow(&self) -> &FlowKey {
        &self.flow
    }

    /// Space and table of what forbids it: of what may be sent, or else received.
    #[inline(always)]
    pub fn forbidding(&self, egress: bool) -> (u32, u32) {
        let (source, destination) = (&self.source, &self.destination);
        if egress {
            if source.egress != 0 {
                (source.space, source.egress)
            } else {
                (destination.space, destination.egress)
            }
        } else if destination.ingress != 0 {
            (destination.space, destination.ingress)
        } else {
            (source.space, source.ingress)
        }
    }
}

/// Whether policies of the node may apply to anything.
#[inline(always)]
pub fn is_in_use() -> bool {
    REVISION.get(0).is_some_and(|revision| *revision != 0)
}

/// Whether policies apply to one end.
#[inline(always)]
pub fn is_isolated(pod: Option<&EndpointValue>) -> bool {
    pod.is_some_and(EndpointValue::is_isolated)
}

/// Whether a pod that policies apply to may exchange this packet. `port` is the destination's; `Err` says which counter
/// counts it.
#[inline(always)]
pub fn check(
    packet: &Packet,
    source: Option<&EndpointValue>,
    destination: Option<&EndpointValue>,
    address: &Address,
    port: u16,
) -> Result<(), u32> {
    if !is_isolated(source) && !is_isolated(destination) {
        return Ok(());
    }
    let Some(question) = connection_room() else { return Err(counter::POLICY_INGRESS) };
    question.flow.source = packet.key.source;
    question.flow.destination = *address;
    question.flow.source_port = packet.key.source_port;
    question.flow.destination_port = port;
    question.flow.protocol = packet.key.protocol;
    question.tcp_flags = u32::from(packet.tcp_flags);
    question.source = Side::of(source);
    question.destination = Side::of(destination);
    let verdict = policy_judge(0);
    if verdict == 0 {
        return Ok(());
    }
    Err(if verdict & CONNECTION_FORBIDDEN_EGRESS != 0 {
        counter::POLICY_EGRESS
    } else {
        counter::POLICY_INGRESS
    })
}

/// Whether an ICMP error may pass that is about the flow of which `answer` is the other direction.
#[inline(never)]
pub fn is_about_allowed(answer: &FlowKey) -> bool {
    let Some(question) = connection_room() else { return false };
    question.flow = *answer;
    turn(question);
    // SAFETY: the entry is only read.
    match unsafe { CONNECTIONS.get(&question.key) } {
        Some(entry) => entry.flags & CONNECTION_FORBIDDEN == 0 && now() <= entry.expires,
        None => false,
    }
}

/// Fills in the key of the connection; returns whether the packet's source comes second in it.
#[inline(always)]
fn turn(question: &mut Question) -> bool {
    let turned = is_turned(&question.flow);
    if turned {
        question.key.source = question.flow.destination;
        question.key.destination = question.flow.source;
        question.key.source_port = question.flow.destination_port;
        question.key.destination_port = question.flow.source_port;
        question.key.protocol = question.flow.protocol;
    } else {
        question.key = question.flow;
    }
    turned
}

/// The verdict on the question that is in its room. A global function, and therefore without pointers: the verifier looks at
/// those once, and not once a call.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn policy_judge(_unused: u32) -> u32 {
    let Some(question) = connection_room() else { return FORBIDDEN };
    judge(question);
    question.verdict
}

/// Fills in the verdict.
#[inline(always)]
fn judge(question: &mut Question) {
    // Read before anything else: a verdict by older tables must not look like one by newer ones.
    let revision = REVISION.get(0).copied().unwrap_or(0);
    let protocol = question.flow.protocol;
    let connected = protocol == u32::from(TCP) || protocol == u32::from(SCTP);
    let flags = question.tcp_flags as u8;
    let opens = connected && flags & (TCP_SYN | TCP_ACK) == TCP_SYN;
    let turned = turn(question);
    let now = now();
    if !opens && let Some(entry) = CONNECTIONS.get_ptr_mut(&question.key) {
        // SAFETY: the entry lives until the program ends; CPUs race on state bits, the expiry and equal verdicts only.
        let entry = unsafe { &mut *entry };
        if now <= entry.expires {
            let opened_by_source = (entry.flags & CONNECTION_OPENED_BY_SECOND != 0) == turned;
            if entry.revision != revision {
                evaluate(question, u32::from(!opened_by_source));
                entry.flags = entry.flags & !FORBIDDEN | question.verdict;
                entry.revision = revision;
            }
            let one_way = entry.flags & CONNECTION_ONE_WAY != 0 && !opened_by_source;
            question.verdict = entry.flags & FORBIDDEN;
            if question.verdict == 0 && !one_way {
                keep(entry, protocol, flags, turned, opened_by_source, now);
                return;
            }
            // A connection that was cut stays cut, and so do one's own datagrams. An answer in datagrams may be allowed as
            // a flow of its own.
            if connected || opened_by_source {
                return;
            }
        }
    }
    begin(question, opens, turned, revision, now);
}

/// Brings the state of an allowed flow up to date.
#[inline(always)]
fn keep(entry: &mut ConnectionValue, protocol: u32, tcp_flags: u8, turned: bool, opener: bool, now: u32) {
    let mut flags = entry.flags;
    if !opener {
        flags |= CONNECTION_ESTABLISHED;
    }
    if tcp_flags & TCP_RST != 0 {
        flags |= CONNECTION_CLOSED;
    } else if tcp_flags & TCP_FIN != 0 {
        flags |= if turned { CONNECTION_FIN_SECOND } else { CONNECTION_FIN_FIRST };
        const BOTH: u32 = CONNECTION_FIN_FIRST | CONNECTION_FIN_SECOND;
        if flags & BOTH == BOTH {
            flags |= CONNECTION_CLOSED;
        }
    }
    // Written at most once a second, so that the cache line stays shared.
    let expires = now + lifetime(protocol, flow_flags(flags));
    if entry.expires != expires {
        entry.expires = expires;
    }
    if entry.flags != flags {
        entry.flags = flags;
    }
}

/// The bits of a translated flow that its lifetime depends on.
#[inline(always)]
fn flow_flags(flags: u32) -> u32 {
    use kelp_common::flow::{FLOW_CLOSED, FLOW_ESTABLISHED};
    let mut same = 0;
    if flags & CONNECTION_ESTABLISHED != 0 {
        same |= FLOW_ESTABLISHED;
    }
    if flags & CONNECTION_CLOSED != 0 {
        same |= FLOW_CLOSED;
    }
    same
}

/// Judges a flow that nothing is known of.
#[inline(never)]
fn begin(question: &mut Question, opens: bool, turned: bool, revision: u32, now: u32) {
    let protocol = question.flow.protocol;
    let connected = protocol == u32::from(TCP) || protocol == u32::from(SCTP);
    let (from, to) = (u16::from_be(question.flow.source_port), u16::from_be(question.flow.destination_port));
    // A connection that is older than what is remembered: the higher port is the client's. A guess gives nobody what the
    // policies do not: it takes both ends to keep up a connection that was never opened.
    let reversed = connected && !opens && to > from;
    evaluate(question, u32::from(reversed));
    if question.verdict != 0 {
        return;
    }
    let mut flags = if turned != reversed { CONNECTION_OPENED_BY_SECOND } else { 0 };
    if connected && !opens {
        flags |= CONNECTION_ESTABLISHED;
    } else if protocol == u32::from(UDP)
        && from < CLIENT_PORTS
        && to >= CLIENT_PORTS
        && is_recent(&question.source, &question.destination, now)
    {
        // It may answer a flow that the policies have just forbidden.
        evaluate(question, 1);
        if question.verdict != 0 {
            flags |= CONNECTION_ONE_WAY;
            question.verdict = 0;
        }
    }
    let value = ConnectionValue { flags, expires: now + lifetime(protocol, flow_flags(flags)), revision };
    // A full map evicts; a failed write only has the next packet judged again.
    let _ = CONNECTIONS.insert(&question.key, &value, u64::from(BPF_ANY));
}

/// Whether policies came to a running pod so lately that flows may be older.
#[inline(always)]
fn is_recent(source: &Side, destination: &Side, now: u32) -> bool {
    let recent = |since: u32| since != 0 && now.wrapping_sub(since) <= UNCERTAIN;
    recent(source.since) || recent(destination.since)
}

/// Whether the flow may be opened by the packet's source, or (`reversed`) by its destination; fills in the verdict.
#[inline(never)]
fn evaluate(question: &mut Question, reversed: u32) {
    let flow = question.flow;
    let (source, destination) = (question.source, question.destination);
    let is_reversed = reversed != 0;
    question.verdict = CONNECTION_FORBIDDEN | CONNECTION_FORBIDDEN_EGRESS;
    if is_reversed {
        permits(question, destination.space, destination.egress, &flow.source, flow.source_port);
    } else {
        permits(question, source.space, source.egress, &flow.destination, flow.destination_port);
    }
    if question.permitted == 0 {
        return;
    }
    question.verdict = CONNECTION_FORBIDDEN;
    if is_reversed {
        permits(question, source.space, source.ingress, &flow.destination, flow.source_port);
    } else {
        permits(question, destination.space, destination.ingress, &flow.source, flow.destination_port);
    }
    if question.permitted != 0 {
        question.verdict = 0;
    }
}

/// Whether a policy allows a peer this port; fills in `permitted`.
#[inline(never)]
fn permits(question: &mut Question, space: u32, policy: u32, peer: &Address, port: u16) {
    question.permitted = 1;
    if policy == 0 {
        return;
    }
    let address = IdentityKey { space, address: *peer };
    // SAFETY: the values are copied at once.
    let identity = match unsafe { IDENTITIES.get(&address) } {
        Some(identity) => *identity,
        None => PREFIXES.get(Key::new(PrefixKey::WHOLE, address)).copied().unwrap_or(ANYBODY),
    };
    let mut rule = RuleKey { space, policy, identity };
    // SAFETY: as above.
    let mut set = unsafe { RULES.get(&rule) };
    if set.is_none() {
        rule.identity = ANYBODY;
        // SAFETY: as above.
        set = unsafe { RULES.get(&rule) };
    }
    let Some(set) = set.copied() else {
        question.permitted = 0;
        return;
    };
    if set == ALL_PORTS {
        return;
    }
    // Other protocols have no ports that could be listed, and no set names them.
    let number = PortNumber { space, set, protocol: question.flow.protocol as u16, port };
    if PORTS.get(Key::new(PortKey::WHOLE, number)).is_none() {
        question.permitted = 0;
    }
}
