//! Tells what happens to flows, while somebody listens; see [`kelp_common::event`]. While nobody does, a packet costs one look
//! at an array.

use aya_ebpf::bindings::{TC_ACT_SHOT, bpf_sock_addr};
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_ktime_get_ns};
use kelp_common::event::{
    FlowEvent, FlowSwitch, HOOK_SOCKET, TELL_AGAIN, VERDICT_DROPPED, VERDICT_FORWARDED, VERDICT_REFUSED,
    VERDICT_TRANSLATED, state,
};
use kelp_common::maps::counter;
use kelp_common::{Address, FlowKey};

use crate::lb::now;
use crate::maps::{
    FLOW_EVENTS, FLOW_RECENT, FLOW_STATE, FLOW_SWITCH, FLOWS, NAMESPACES, connection_room, packet_room,
};
use crate::packet::{TCP_ACK, TCP_SYN};

/// Whether somebody may be listening.
#[inline(always)]
pub fn is_wanted() -> bool {
    FLOW_SWITCH.get(0).is_some_and(|switch| switch.until != 0)
}

/// Notes why the packet that is looked at goes no further. Classifiers only.
#[inline(always)]
pub fn note(counter: u32) {
    if is_wanted() {
        set(state::REASON, u64::from(counter) + 1);
    }
}

/// Tells what a classifier did with its packet.
#[inline(always)]
pub fn packet(hook: u8, verdict: i32) {
    if is_wanted() {
        tell_packet(u32::from(hook), verdict);
    }
}

#[inline(always)]
fn get(index: u32) -> u64 {
    FLOW_STATE.get(index).copied().unwrap_or(0)
}

#[inline(always)]
fn set(index: u32, value: u64) {
    if let Some(entry) = FLOW_STATE.get_ptr_mut(index) {
        // SAFETY: the entry is this CPU's and lives as long as the map.
        unsafe { *entry = value };
    }
}

/// What a listener wants; nothing when it has gone without a word.
#[inline(always)]
fn wanted(now: u32) -> Option<FlowSwitch> {
    let switch = FLOW_SWITCH.get_ptr_mut(0)?;
    // SAFETY: the entry lives as long as the map; a listener that comes at this moment writes it again soon.
    unsafe {
        if now <= (*switch).until {
            return Some(*switch);
        }
        (*switch).until = 0;
    }
    None
}

/// Whether one event more may be told on this CPU in this second.
#[inline(always)]
fn is_within(rate: u32, now: u32) -> bool {
    let budget = get(state::BUDGET);
    let told = if (budget >> 32) as u32 == now { budget as u32 } else { 0 };
    if told >= rate {
        set(state::LOST_RATE, get(state::LOST_RATE) + 1);
        return false;
    }
    set(state::BUDGET, (u64::from(now) << 32) | u64::from(told + 1));
    true
}

/// Whether a flow was told lately, in either direction; it counts as told now. Two flows with one place in the table are
/// told more often.
#[inline(always)]
fn is_old_news(key: &FlowKey, verdict: u8, now: u32) -> bool {
    let end = |address: &Address, port: u16| {
        let words = address.0;
        let mixed = words[0] ^ words[1].rotate_left(8) ^ words[2].rotate_left(16) ^ words[3].rotate_left(24);
        (mixed ^ u32::from(port)).wrapping_mul(0x9e37_79b9)
    };
    let ends = end(&key.source, key.source_port).wrapping_add(end(&key.destination, key.destination_port));
    let hash = (ends ^ key.protocol ^ (u32::from(verdict) << 8)).wrapping_mul(0x85eb_ca6b);
    let Some(place) = FLOW_RECENT.get_ptr_mut(hash >> 20) else { return false };
    let tag = u64::from(hash) << 32;
    // SAFETY: the entry lives as long as the map; CPUs race on what was told last.
    unsafe {
        let last = *place;
        if last & !0xffff_ffff == tag && now.wrapping_sub(last as u32) < TELL_AGAIN {
            return true;
        }
        *place = tag | u64::from(now);
    }
    false
}

/// Room for an event in the ring.
#[inline(always)]
fn room() -> Option<aya_ebpf::maps::ring_buf::RingBufEntry<FlowEvent>> {
    let entry = FLOW_EVENTS.reserve::<FlowEvent>(0);
    if entry.is_none() {
        set(state::LOST_RING, get(state::LOST_RING) + 1);
    }
    entry
}

/// (A function of its own, as it needs stack while the others have returned.)
#[inline(never)]
fn tell_packet(hook: u32, verdict: i32) {
    let reason = get(state::REASON) as u32;
    if reason != 0 {
        set(state::REASON, 0);
    }
    let now = now();
    let Some(switch) = wanted(now) else { return };
    let Some(packet) = packet_room() else { return };
    let key = &packet.key;
    if reason == 0 && (key.destination == Address::ANY_V6 || key.destination.is_link_scoped()) {
        // Not IP, or the link's own affairs.
        return;
    }
    // SAFETY: the entry is only read.
    let translation = unsafe { FLOWS.get(key) };
    let verdict = match (reason, verdict) {
        (_, TC_ACT_SHOT) => VERDICT_DROPPED,
        (0, _)
            if translation.is_some_and(|to| {
                to.destination != key.destination
                    || to.source != key.source
                    || to.destination_port != key.destination_port
                    || to.source_port != key.source_port
            }) =>
        {
            VERDICT_TRANSLATED
        }
        (0, _) => VERDICT_FORWARDED,
        _ => VERDICT_REFUSED,
    };
    let goes_on = verdict == VERDICT_FORWARDED || verdict == VERDICT_TRANSLATED;
    let opens = packet.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN;
    if (goes_on && is_old_news(key, verdict, now) && !opens) || !is_within(switch.rate, now) {
        return;
    }
    let Some(mut entry) = room() else { return };
    let event = entry.as_mut_ptr();
    let by_policy = reason == counter::POLICY_INGRESS + 1 || reason == counter::POLICY_EGRESS + 1;
    // SAFETY: the memory is the ring's, as large as an event, and ours until it is submitted; all of it is written.
    unsafe {
        (*event).time = bpf_ktime_get_ns();
        (*event).key = *key;
        (*event).verdict = verdict;
        (*event).reason = reason as u8;
        (*event).hook = hook as u8;
        (*event).tcp_flags = packet.tcp_flags;
        (*event).space = 0;
        (*event).policy = 0;
        (*event).source = key.source;
        (*event).destination = key.destination;
        (*event).source_port = key.source_port;
        (*event).destination_port = key.destination_port;
        if let Some(to) = translation
            && goes_on
        {
            (*event).source = to.source;
            (*event).destination = to.destination;
            (*event).source_port = to.source_port;
            (*event).destination_port = to.destination_port;
        }
        if by_policy && let Some(question) = connection_room() {
            let (space, policy) = question.forbidding(reason == counter::POLICY_EGRESS + 1);
            (*event).space = space;
            (*event).policy = policy;
            (*event).destination = question.flow().destination;
            (*event).destination_port = question.flow().destination_port;
        }
    }
    entry.submit(0);
}

/// Tells what became of a destination in a system call: `to` and its port (network byte order) when it goes on, else the
/// counter that counted it.
#[inline(always)]
pub fn destination(
    ctx: *mut bpf_sock_addr,
    named: (&Address, u16),
    to: (&Address, u16),
    refusal: Option<u32>,
) {
    if is_wanted() {
        let ports = (u32::from(named.1) << 16) | u32::from(to.1);
        let refusal = refusal.map_or(0, |counter| counter + 1);
        tell_destination(ctx, named.0, to.0, ports, refusal);
    }
}

#[inline(never)]
fn tell_destination(ctx: *mut bpf_sock_addr, named: &Address, to: &Address, ports: u32, refusal: u32) {
    let now = now();
    let Some(switch) = wanted(now) else { return };
    if !is_within(switch.rate, now) {
        return;
    }
    // SAFETY: the context is valid for the whole run of the program.
    let (namespace, protocol) = unsafe { (bpf_get_netns_cookie(ctx.cast()), (*ctx).protocol) };
    let v4 = named.is_v4();
    // SAFETY: the kernel keeps the memory until the program ends.
    let source = match unsafe { NAMESPACES.get(&namespace) } {
        // SAFETY: the references are valid for reads; see `service::of_family`.
        Some(pod) => unsafe {
            let first = core::ptr::read_volatile(&raw const pod.addresses[0]);
            let second = core::ptr::read_volatile(&raw const pod.addresses[1]);
            if v4 { first } else { second }
        },
        None => Address::ANY_V6,
    };
    let Some(mut entry) = room() else { return };
    let event = entry.as_mut_ptr();
    // SAFETY: as in `tell_packet`.
    unsafe {
        (*event).time = bpf_ktime_get_ns();
        (*event).key.source = source;
        (*event).key.destination = *named;
        (*event).key.source_port = 0;
        (*event).key.destination_port = (ports >> 16) as u16;
        (*event).key.protocol = protocol;
        (*event).source = source;
        (*event).destination = *to;
        (*event).source_port = 0;
        (*event).destination_port = ports as u16;
        (*event).verdict = match refusal {
            0 => VERDICT_TRANSLATED,
            reason if reason == counter::REFUSED + 1 => VERDICT_REFUSED,
            _ => VERDICT_DROPPED,
        };
        (*event).reason = refusal as u8;
        (*event).hook = HOOK_SOCKET;
        (*event).tcp_flags = 0;
        (*event).space = 0;
        (*event).policy = 0;
    }
    entry.submit(0);
}
