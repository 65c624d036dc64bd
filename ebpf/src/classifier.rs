//! Entry points of the packet path.
//!
//! | Program | Where | Sees |
//! |---|---|---|
//! | `from_pod` | ingress of a pod's host-side device | what a pod sends |
//! | `to_pod` | egress of the same | what the host's stack sends to a pod |
//! | `from_net` | ingress of the uplink | what other nodes and the outside send |
//! | `to_net` | egress of the uplink | what leaves the node |

use core::sync::atomic::{Ordering, compiler_fence};

use aya_ebpf::bindings::{TC_ACT_OK, TC_ACT_SHOT};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use kelp_common::event::{HOOK_FROM_NET, HOOK_FROM_POD, HOOK_TO_NET, HOOK_TO_POD};
use kelp_common::flow::{FLOW_DSR, FLOW_WRAPPED};
use kelp_common::maps::counter;
use kelp_common::node::NODE_MASQUERADE;
use kelp_common::{Address, EndpointValue, FlowValue, FrontendValue, NodeConfig};

use crate::maps::{NODE_CONFIG, count, forward_room, is_node_address, packet_room};
use crate::packet::{Kind, NotParsed, Packet, parse};
use crate::service::{self, endpoint, in_cluster};
use crate::{dsr, flow, fragment, lb, policy, reject, related, rewrite, route, tell, tunnel};

/// Parses, or says what to do with a packet that has nothing to parse.
#[inline(always)]
fn parsed(ctx: &TcContext) -> Result<&'static Packet, i32> {
    let packet = packet_room().ok_or(TC_ACT_SHOT)?;
    parse(ctx, packet).map_err(|reason| match reason {
        NotParsed::NotIp => TC_ACT_OK,
        NotParsed::Malformed => {
            count(counter::MALFORMED);
            TC_ACT_SHOT
        }
    })?;
    if packet.fragmented {
        fragment::resolve(packet);
    }
    // What was written is read again below, not remembered in registers; see `maps::Scratch`.
    compiler_fence(Ordering::SeqCst);
    Ok(packet)
}

/// Translates a packet in place; `Err` is the verdict for one that could not be.
#[inline(always)]
fn translate(ctx: &TcContext, packet: &Packet, to: &FlowValue) -> Result<(), i32> {
    rewrite::translate(ctx, packet, to).map_err(|()| {
        count(counter::REWRITE);
        TC_ACT_SHOT
    })
}

/// Asks the policies of both ends about a packet that goes on as `to` says; `Err` is the verdict for one that may not pass.
#[inline(always)]
fn admit_translated(packet: &Packet, source: Option<&EndpointValue>, to: &FlowValue) -> Result<(), i32> {
    if !policy::is_in_use() || packet.key.source == to.destination {
        // A pod may always reach itself.
        return Ok(());
    }
    let pod = endpoint(&to.destination);
    // The pod's own node is always reached.
    if source.is_some() && pod.is_none() && is_node_address(&to.destination) {
        return Ok(());
    }
    admit(packet, source, pod, &to.destination, to.destination_port)
}

/// The same for a packet that is not translated. An ICMP error passes with the flow it is about.
#[inline(always)]
fn admit_direct(
    ctx: &TcContext,
    packet: &Packet,
    source: Option<&EndpointValue>,
    pod: Option<&EndpointValue>,
) -> Result<(), i32> {
    if packet.kind == Kind::IcmpError
        && (policy::is_isolated(source) || policy::is_isolated(pod))
        && related::is_about_allowed(ctx, packet)
    {
        return Ok(());
    }
    admit(packet, source, pod, &packet.key.destination, packet.key.destination_port)
}

#[inline(always)]
fn admit(
    packet: &Packet,
    source: Option<&EndpointValue>,
    pod: Option<&EndpointValue>,
    address: &Address,
    port: u16,
) -> Result<(), i32> {
    policy::check(packet, source, pod, address, port).map_err(|reason| {
        count(reason);
        TC_ACT_SHOT
    })
}

/// What a pod sends.
#[classifier]
pub fn from_pod(ctx: TcContext) -> i32 {
    let verdict = match pod_packet(&ctx) {
        Ok(verdict) | Err(verdict) => verdict,
    };
    tell::packet(HOOK_FROM_POD, verdict);
    verdict
}

#[inline(always)]
fn pod_packet(ctx: &TcContext) -> Result<i32, i32> {
    let packet = parsed(ctx)?;
    let config = NODE_CONFIG.get(0).ok_or(TC_ACT_SHOT)?;
    // Neighbour discovery never leaves the link: the host's stack answers.
    if packet.kind == Kind::Neighbour {
        return Ok(TC_ACT_OK);
    }
    // SAFETY: the context is valid.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    let owner = match endpoint(&packet.key.source) {
        Some(owner) if owner.ifindex == ifindex => owner,
        // Link-local and unspecified sources speak to the link only (multicast listener reports, address
        // detection); everything else would be a lie.
        _ if packet.key.destination.is_link_scoped() => return Ok(TC_ACT_OK),
        _ => {
            count(counter::SPOOFED);
            return Err(TC_ACT_SHOT);
        }
    };
    if packet.flow {
        if let Some(to) = flow::lookup(packet) {
            admit_translated(packet, Some(owner), to)?;
            return Ok(send(ctx, config, packet, to));
        }
    } else if packet.kind == Kind::IcmpError
        && let Some(destination) = translated_error(ctx, packet, None)?
    {
        return Ok(deliver(ctx, config, packet, &destination));
    }
    // Multicast and link-local addresses never leave the link. (As answers to a pod that reaches itself, they do not
    // get here.)
    if packet.key.destination.is_link_scoped() {
        return Ok(TC_ACT_OK);
    }
    let destination = packet.key.destination;
    let forward = service::untranslated(packet).ok_or(TC_ACT_SHOT)?;
    let mut translated = false;
    let pod = endpoint(&destination);
    // Most packets go to a pod on this node, whose address cannot be a service's.
    if let Some(to) = pod {
        admit_direct(ctx, packet, Some(owner), pod)?;
        if !packet.flow || !flow::is_ambiguous(packet) {
            return Ok(route::to_pod(ctx, to));
        }
    } else if let Some(frontend) = service::frontend(packet, false) {
        translated = choose(ctx, config, packet, frontend, false, forward)?;
        admit_translated(packet, Some(owner), forward)?;
    } else if lb::is_service_address(config, &destination) {
        // A fragment that overtook its first one cannot be told from one to nowhere.
        count(if packet.kind == Kind::Fragment { counter::FRAGMENT } else { counter::REFUSED });
        return Ok(reject::back(ctx, packet));
    } else if is_node_address(&destination) {
        return Ok(TC_ACT_OK);
    } else if config.pods[0].contains(&destination) || config.pods[1].contains(&destination) {
        count(counter::UNREACHABLE);
        return Ok(reject::back(ctx, packet));
    } else {
        admit_direct(ctx, packet, Some(owner), None)?;
        if config.flags & NODE_MASQUERADE == 0 || in_cluster(config, &destination) {
            return Ok(route::out(ctx, config, packet));
        }
        // The outside knows the node only.
        if !packet.flow {
            count(if packet.kind == Kind::Fragment { counter::FRAGMENT } else { counter::UNREACHABLE });
            return Err(TC_ACT_SHOT);
        }
        take_node_address(ctx, config, packet, forward)?;
        translated = true;
    }
    begin(ctx, config, packet, forward, translated)
}

/// What the host's stack sends to a pod: replies of a host-network backend have the service's address. The host itself
/// may always reach its pods (probes); what it forwards for others is subject to the pods' policies.
#[classifier]
pub fn to_pod(ctx: TcContext) -> i32 {
    let verdict = match reply_of_host(&ctx) {
        Ok(Some(packet)) if policy::is_in_use() => match forwarded(&ctx, packet) {
            Ok(()) => TC_ACT_OK,
            Err(verdict) => verdict,
        },
        Ok(_) => TC_ACT_OK,
        Err(verdict) => verdict,
    };
    tell::packet(HOOK_TO_POD, verdict);
    verdict
}

#[inline(always)]
fn forwarded(ctx: &TcContext, packet: &Packet) -> Result<(), i32> {
    let source = &packet.key.source;
    if packet.kind == Kind::Neighbour || is_node_address(source) || source.is_link_scoped() {
        return Ok(());
    }
    admit_direct(ctx, packet, None, endpoint(&packet.key.destination))
}

/// What leaves the node.
#[classifier]
pub fn to_net(ctx: TcContext) -> i32 {
    let verdict = match leaving(&ctx) {
        Ok(verdict) | Err(verdict) => verdict,
    };
    tell::packet(HOOK_TO_NET, verdict);
    verdict
}

#[inline(always)]
fn leaving(ctx: &TcContext) -> Result<i32, i32> {
    let Some(packet) = reply_of_host(ctx)? else { return Ok(TC_ACT_OK) };
    let config = NODE_CONFIG.get(0).ok_or(TC_ACT_OK)?;
    if tunnel::is_forged(config, packet) {
        count(counter::SPOOFED);
        return Err(TC_ACT_SHOT);
    }
    // A program that the socket hooks do not cover: it is told at once, and nothing leaves.
    if lb::is_service_address(config, &packet.key.destination) {
        count(counter::REFUSED);
        return Ok(reject::to_host(ctx, packet));
    }
    Ok(TC_ACT_OK)
}

/// Translates replies that come from the host's own stack. `Ok(Some)` is a packet that belongs to no flow.
#[inline(always)]
fn reply_of_host(ctx: &TcContext) -> Result<Option<&'static Packet>, i32> {
    // The host's own packets are not malformed; what cannot be parsed is none of ours.
    let Some(packet) = packet_room() else { return Ok(None) };
    if parse(ctx, packet).is_err() {
        return Ok(None);
    }
    if packet.fragmented {
        fragment::resolve(packet);
    }
    compiler_fence(Ordering::SeqCst);
    if !packet.flow {
        let known = packet.kind == Kind::IcmpError && translated_error(ctx, packet, None)?.is_some();
        return Ok((!known).then_some(packet));
    }
    match flow::lookup(packet) {
        Some(to) => {
            translate(ctx, packet, to)?;
            Ok(None)
        }
        None => Ok(Some(packet)),
    }
}

/// Translates an ICMP error about a packet of a translated flow; returns where it goes. One about a flow that another node
/// answers goes there, if it may (`onward`).
#[inline(always)]
fn translated_error(
    ctx: &TcContext,
    packet: &Packet,
    onward: Option<&NodeConfig>,
) -> Result<Option<Address>, i32> {
    let mut destination = Address::ANY_V6;
    let mut port = 0;
    match related::translate(ctx, packet, &mut destination, &mut port) {
        related::Outcome::Unknown => Ok(None),
        related::Outcome::Translated => Ok(Some(destination)),
        related::Outcome::Failed => {
            count(counter::REWRITE);
            Err(TC_ACT_SHOT)
        }
        related::Outcome::Elsewhere => match onward {
            Some(config) => Err(dsr::send(ctx, config, packet, &destination, port)),
            None => Ok(None),
        },
    }
}

/// What other nodes and the outside send.
#[classifier]
pub fn from_net(ctx: TcContext) -> i32 {
    let verdict = match net_packet(&ctx) {
        Ok(verdict) | Err(verdict) => verdict,
    };
    tell::packet(HOOK_FROM_NET, verdict);
    verdict
}

#[inline(always)]
fn net_packet(ctx: &TcContext) -> Result<i32, i32> {
    let mut packet = parsed(ctx)?;
    let config = NODE_CONFIG.get(0).ok_or(TC_ACT_OK)?;
    if tunnel::is_from(ctx, config) && !tunnel::accept(ctx, config, packet) {
        return Err(TC_ACT_SHOT);
    }
    if dsr::is_envelope(config, packet) && endpoint(&packet.key.destination).is_some() {
        let opened = dsr::open(ctx);
        compiler_fence(Ordering::SeqCst);
        match opened {
            dsr::Opened::Not => {}
            dsr::Opened::Packet => packet = packet_room().ok_or(TC_ACT_SHOT)?,
            dsr::Opened::Begins => {
                let packet = packet_room().ok_or(TC_ACT_SHOT)?;
                let forward = forward_room().ok_or(TC_ACT_SHOT)?;
                admit_translated(packet, None, forward)?;
                return begin(ctx, config, packet, forward, false);
            }
            dsr::Opened::Refused => return Err(TC_ACT_SHOT),
        }
    }
    if packet.kind == Kind::Neighbour || packet.key.destination.is_link_scoped() {
        return Ok(TC_ACT_OK);
    }
    if packet.flow {
        if let Some(to) = flow::lookup(packet) {
            if to.flags & FLOW_DSR != 0 {
                return Ok(dsr::send(ctx, config, packet, &to.destination, to.destination_port));
            }
            admit_translated(packet, None, to)?;
            return Ok(send(ctx, config, packet, to));
        }
    } else if packet.kind == Kind::IcmpError
        && let Some(destination) = translated_error(ctx, packet, Some(config))?
    {
        return Ok(deliver(ctx, config, packet, &destination));
    }
    let destination = packet.key.destination;
    let forward = service::untranslated(packet).ok_or(TC_ACT_SHOT)?;
    let mut translated = false;
    let pod = endpoint(&destination);
    if let Some(to) = pod {
        admit_direct(ctx, packet, None, pod)?;
        // A flow from outside the cluster is remembered, so that its replies keep the pod's address.
        let known = in_cluster(config, &packet.key.source) && !flow::is_ambiguous(packet);
        if !packet.flow || known {
            return Ok(route::to_pod(ctx, to));
        }
    } else if let Some(frontend) = service::frontend(packet, true) {
        translated = choose(ctx, config, packet, frontend, true, forward)?;
        if forward.flags & FLOW_DSR != 0 {
            if flow::create_one_way(&packet.key, forward).is_none() {
                count(counter::NO_NAT_PORT);
                return Err(TC_ACT_SHOT);
            }
            return Ok(dsr::send(ctx, config, packet, &forward.destination, forward.destination_port));
        }
        admit_translated(packet, None, forward)?;
    } else if lb::is_service_address(config, &destination) {
        // A fragment that overtook its first one cannot be told from one to nowhere.
        count(if packet.kind == Kind::Fragment { counter::FRAGMENT } else { counter::REFUSED });
        return Ok(reject::back(ctx, packet));
    } else {
        return Ok(TC_ACT_OK);
    }
    begin(ctx, config, packet, forward, translated)
}

/// Chooses a backend for a new flow. Returns whether the source becomes this node, with a port of its range; `Err` is the
/// verdict for a packet that leads nowhere.
#[inline(always)]
fn choose(
    ctx: &TcContext,
    config: &NodeConfig,
    packet: &Packet,
    frontend: &FrontendValue,
    external: bool,
    forward: &mut FlowValue,
) -> Result<bool, i32> {
    service::choose(config, packet, frontend, external, forward).map_err(|refusal| {
        count(refusal.counter());
        if refusal.is_silent() { TC_ACT_SHOT } else { reject::back(ctx, packet) }
    })
}

/// Makes this node the source of a flow that leaves by the uplink.
#[inline(always)]
fn take_node_address(
    ctx: &TcContext,
    config: &NodeConfig,
    packet: &Packet,
    forward: &mut FlowValue,
) -> Result<(), i32> {
    service::take_node_address(config, packet, forward).map_err(|refusal| {
        count(refusal.counter());
        reject::back(ctx, packet)
    })
}

/// Remembers a flow and sends its first packet.
#[inline(always)]
fn begin(
    ctx: &TcContext,
    config: &NodeConfig,
    packet: &Packet,
    forward: &mut FlowValue,
    translated: bool,
) -> Result<i32, i32> {
    if flow::create(translated).is_none() {
        count(counter::NO_NAT_PORT);
        return Err(TC_ACT_SHOT);
    }
    Ok(send(ctx, config, packet, forward))
}

/// Translates a packet and sends it to its new destination. One that will not fit is answered before it is changed.
/// (A function of its own: inlined, the entry points would need more than the kernel's 512 bytes of stack.)
#[inline(never)]
fn send(ctx: &TcContext, config: &NodeConfig, packet: &Packet, to: &FlowValue) -> i32 {
    let pod = endpoint(&to.destination);
    let leaves = pod.is_none() && !is_node_address(&to.destination);
    let mut exit = tunnel::Exit::NONE;
    if leaves {
        exit = tunnel::exit(config, &to.source, &to.destination);
        if exit.device() == 0 {
            count(counter::UNREACHABLE);
            return reject::back(ctx, packet);
        }
        if route::is_too_big(ctx, packet, exit.mtu()) {
            count(counter::TOO_BIG);
            return reject::too_big(ctx, packet, exit.mtu());
        }
    }
    if !become_translated(ctx, packet, to) {
        return TC_ACT_SHOT;
    }
    // What the client sends comes in envelopes: it learns at once how large its segments may be.
    if to.flags & FLOW_WRAPPED != 0 {
        let mtu = if config.tunnel_mtu == 0 { config.uplink_mtu } else { config.tunnel_mtu };
        rewrite::clamp_segments(ctx, packet, mtu);
    }
    match pod {
        Some(pod) => route::to_pod(ctx, pod),
        None if leaves => route::send_out(ctx, config, packet, exit),
        None => TC_ACT_OK,
    }
}

/// Translates a packet in place. (Beside what may answer one, and not around it, for the stack's sake as well.)
#[inline(never)]
fn become_translated(ctx: &TcContext, packet: &Packet, to: &FlowValue) -> bool {
    translate(ctx, packet, to).is_ok()
}

/// Sends a translated ICMP error to its new destination.
#[inline(always)]
fn deliver(ctx: &TcContext, config: &NodeConfig, packet: &Packet, destination: &Address) -> i32 {
    if let Some(pod) = endpoint(destination) {
        return route::to_pod(ctx, pod);
    }
    if is_node_address(destination) {
        return TC_ACT_OK;
    }
    let exit = tunnel::exit(config, &packet.key.source, destination);
    if exit.device() == 0 {
        count(counter::UNREACHABLE);
        return TC_ACT_SHOT;
    }
    route::send_out(ctx, config, packet, exit)
}
