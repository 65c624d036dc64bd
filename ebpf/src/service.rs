//! What becomes of a new flow to a service: its frontend, its backend, and which source the backend sees. Nothing here
//! touches the packet.

use kelp_common::flow::FLOW_DSR;
use kelp_common::maglev::flow_hash;
use kelp_common::maps::counter;
use kelp_common::node::NODE_DSR;
use kelp_common::service::{FRONTEND_DROP, FRONTEND_LOCAL_ONLY, FRONTEND_MAGLEV};
use kelp_common::{Address, EndpointValue, FlowValue, FrontendValue, NodeConfig};

use crate::lb::{self, Choice};
use crate::maps::{ENDPOINTS, forward_room, is_node_address};
use crate::packet::Packet;

/// Why a flow leads nowhere.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Refusal {
    /// The client may not use the frontend.
    SourceRange = counter::SOURCE_RANGE,
    /// The traffic policy wants an endpoint of this node.
    NoLocalEndpoint = counter::NO_LOCAL_ENDPOINT,
    /// There is no endpoint.
    NoEndpoint = counter::REFUSED,
    /// The node has no uplink, or no address of the family.
    NoAddress = counter::UNREACHABLE,
}

impl Refusal {
    /// The counter that counts it.
    #[inline(always)]
    pub const fn counter(self) -> u32 {
        self as u32
    }

    /// Whether the client is not told.
    #[inline(always)]
    pub fn is_silent(self) -> bool {
        matches!(self, Self::SourceRange | Self::NoLocalEndpoint)
    }
}

/// The endpoint with an address, if it is a pod on this node.
#[inline(always)]
pub fn endpoint(address: &Address) -> Option<&'static EndpointValue> {
    // SAFETY: the kernel keeps the memory until the program ends.
    unsafe { ENDPOINTS.get(address) }
}

/// The frontend a packet is addressed to.
#[inline(always)]
pub fn frontend(packet: &Packet, external: bool) -> Option<&'static FrontendValue> {
    if !packet.flow || packet.icmp_echo {
        return None;
    }
    let key = &packet.key;
    let protocol = key.protocol as u8;
    if let Some(frontend) = lb::frontend(&key.destination, key.destination_port, protocol, external) {
        return Some(frontend);
    }
    // Node ports, and ports of pods on the node (`hostPort`).
    if is_node_address(&key.destination) {
        return lb::frontend(&key.destination.any_of_family(), key.destination_port, protocol, external);
    }
    None
}

/// A flow that changes nothing, in its room.
#[inline(always)]
pub fn untranslated(packet: &Packet) -> Option<&'static mut FlowValue> {
    let forward = forward_room()?;
    forward.source = packet.key.source;
    forward.destination = packet.key.destination;
    forward.source_port = packet.key.source_port;
    forward.destination_port = packet.key.destination_port;
    forward.backend = 0;
    forward.flags = 0;
    Some(forward)
}

/// Chooses a backend for a new flow. Returns whether the source becomes this node, with a port of its range.
#[inline(always)]
pub fn choose(
    config: &NodeConfig,
    packet: &Packet,
    frontend: &FrontendValue,
    external: bool,
    forward: &mut FlowValue,
) -> Result<bool, Refusal> {
    if !lb::admits(frontend, &packet.key.source) {
        return Err(Refusal::SourceRange);
    }
    let choice = if external && frontend.flags & FRONTEND_MAGLEV != 0 {
        let key = &packet.key;
        // A client that stays with a backend does so whatever its ports are.
        let (client, service) =
            if frontend.affinity_seconds == 0 { (key.source_port, key.destination_port) } else { (0, 0) };
        let number = flow_hash(&key.source, client, service, key.protocol as u8);
        Choice { number, consistent: true }
    } else {
        Choice::random()
    };
    let Some((id, backend)) = lb::select_by(frontend, &packet.key.source, choice) else {
        if frontend.flags & FRONTEND_DROP != 0 {
            return Err(Refusal::NoLocalEndpoint);
        }
        return Err(Refusal::NoEndpoint);
    };
    forward.destination = backend.address;
    forward.destination_port = backend.port;
    forward.backend = id;
    if backend.address == packet.key.source {
        // A pod cannot receive its own address: it sees a link-local one, and keeps its port if it can.
        forward.source = of_family(&config.hairpin, packet.v4);
        return Ok(false);
    }
    if endpoint(&backend.address).is_some() || is_node_address(&backend.address) {
        return Ok(false);
    }
    // The reply must come back through this node, unless the backend's node knows the way to the pod.
    let direct = !external && in_cluster(config, &backend.address);
    if direct || frontend.flags & FRONTEND_LOCAL_ONLY != 0 {
        return Ok(false);
    }
    // A pod's node opens envelopes; what other backends are is not known.
    if external && config.flags & NODE_DSR != 0 && config.uplink != 0 && in_cluster(config, &backend.address)
    {
        forward.flags = FLOW_DSR;
        return Ok(false);
    }
    take_node_address(config, packet, forward)?;
    Ok(true)
}

/// Makes this node the source of a flow that leaves by the uplink.
#[inline(always)]
pub fn take_node_address(
    config: &NodeConfig,
    packet: &Packet,
    forward: &mut FlowValue,
) -> Result<(), Refusal> {
    forward.source = of_family(&config.node, packet.v4);
    if config.uplink == 0 || forward.source == Address::ANY_V6 {
        return Err(Refusal::NoAddress);
    }
    Ok(())
}

#[inline(always)]
pub fn in_cluster(config: &NodeConfig, address: &Address) -> bool {
    config.cluster[0].contains(address) || config.cluster[1].contains(address)
}

/// The address of the packet's family. Both are read before one is chosen: an index computed from the packet would
/// need a proof of its range, which the optimiser removes.
#[inline(always)]
pub fn of_family(addresses: &[Address; 2], v4: bool) -> Address {
    // SAFETY: the references are valid for reads.
    let (first, second) = unsafe {
        (core::ptr::read_volatile(&raw const addresses[0]), core::ptr::read_volatile(&raw const addresses[1]))
    };
    if v4 { first } else { second }
}
