//! The maps; layouts, names and sizes are those of `kelp-common`.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf};
use kelp_common::event::state;
use kelp_common::maps::{counter, xdp};
use kelp_common::{
    Address, AffinityKey, AffinityValue, Backend, ConnectionValue, EndpointValue, FlowKey, FlowSwitch,
    FlowValue, FragmentKey, FragmentValue, FrontendKey, FrontendValue, IdentityKey, NamespaceValue,
    NodeConfig, PeerValue, PodName, PolicyNames, PortNumber, RuleKey, ServiceName, SlotKey, SocketKey,
    SocketValue, SourceRange, limits,
};

use crate::flow::Reply;
use crate::packet::{Packet, Quoted};
use crate::policy::Question;
use crate::tell;

#[map(name = "FRONTENDS_V1")]
pub static FRONTENDS: HashMap<FrontendKey, FrontendValue> =
    HashMap::pinned(limits::FRONTENDS, BPF_F_NO_PREALLOC);
#[map(name = "SLOTS_V1")]
pub static SLOTS: HashMap<SlotKey, u32> = HashMap::pinned(limits::SLOTS, BPF_F_NO_PREALLOC);
#[map(name = "BACKENDS_V1")]
pub static BACKENDS: HashMap<u32, Backend> = HashMap::pinned(limits::BACKENDS, BPF_F_NO_PREALLOC);
#[map(name = "AFFINITIES_V1")]
pub static AFFINITIES: LruHashMap<AffinityKey, AffinityValue> = LruHashMap::pinned(limits::AFFINITIES, 0);
#[map(name = "FLOWS_V1")]
pub static FLOWS: LruHashMap<FlowKey, FlowValue> = LruHashMap::pinned(limits::FLOWS, 0);
#[map(name = "SOCKETS_V2")]
pub static SOCKETS: LruHashMap<SocketKey, SocketValue> = LruHashMap::pinned(limits::SOCKETS, 0);
#[map(name = "ENDPOINTS_V2")]
pub static ENDPOINTS: HashMap<Address, EndpointValue> = HashMap::pinned(limits::ENDPOINTS, BPF_F_NO_PREALLOC);
#[map(name = "NODE_ADDRS_V1")]
pub static NODE_ADDRESSES: HashMap<Address, u32> = HashMap::pinned(limits::NODE_ADDRESSES, BPF_F_NO_PREALLOC);
#[map(name = "NODE_CONFIG_V4")]
pub static NODE_CONFIG: Array<NodeConfig> = Array::pinned(1, 0);
#[map(name = "COUNTERS_V3")]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::pinned(counter::COUNT, 0);
#[map(name = "SOURCE_RANGES_V1")]
pub static SOURCE_RANGES: LpmTrie<SourceRange, u32> = LpmTrie::pinned(limits::SOURCE_RANGES, 0);
#[map(name = "NAMESPACES_V1")]
pub static NAMESPACES: HashMap<u64, NamespaceValue> = HashMap::pinned(limits::NAMESPACES, BPF_F_NO_PREALLOC);
#[map(name = "PEERS_V1")]
pub static PEERS: LpmTrie<Address, PeerValue> = LpmTrie::pinned(limits::PEERS, 0);
#[map(name = "FRAGMENTS_V1")]
pub static FRAGMENTS: LruHashMap<FragmentKey, FragmentValue> = LruHashMap::pinned(limits::FRAGMENTS, 0);
#[map(name = "IDENTITIES_V1")]
pub static IDENTITIES: HashMap<IdentityKey, u32> = HashMap::pinned(limits::IDENTITIES, BPF_F_NO_PREALLOC);
#[map(name = "PREFIXES_V1")]
pub static PREFIXES: LpmTrie<IdentityKey, u32> = LpmTrie::pinned(limits::PREFIXES, 0);
#[map(name = "POLICY_RULES_V1")]
pub static RULES: HashMap<RuleKey, u32> = HashMap::pinned(limits::RULES, BPF_F_NO_PREALLOC);
#[map(name = "POLICY_PORTS_V1")]
pub static PORTS: LpmTrie<PortNumber, u32> = LpmTrie::pinned(limits::PORTS, 0);
#[map(name = "REVISION_V1")]
pub static REVISION: Array<u32> = Array::pinned(1, 0);
/// A map of maps, which the agent makes: what is found is the map of a table, see [`crate::lb`]. (Only its keys count
/// here.)
#[map(name = "MAGLEV_V1")]
pub static MAGLEV: HashMap<u32, u32> = HashMap::pinned(limits::MAGLEV, 0);
#[map(name = "CONNECTIONS_V1")]
pub static CONNECTIONS: LruHashMap<FlowKey, ConnectionValue> = LruHashMap::pinned(limits::CONNECTIONS, 0);

#[map(name = "XDP_COUNTERS_V1")]
pub static XDP_COUNTERS: PerCpuArray<u64> = PerCpuArray::pinned(xdp::COUNT, 0);

/// For people, as the next one: no program reads them.
#[map(name = "SERVICE_NAMES_V1")]
pub static SERVICE_NAMES: HashMap<u32, ServiceName> = HashMap::pinned(limits::FRONTENDS, BPF_F_NO_PREALLOC);
#[map(name = "POD_NAMES_V1")]
pub static POD_NAMES: HashMap<Address, PodName> = HashMap::pinned(limits::ENDPOINTS, BPF_F_NO_PREALLOC);

#[map(name = "POLICY_NAMES_V1")]
pub static POLICY_NAMES: HashMap<u64, PolicyNames> = HashMap::pinned(limits::POLICY_NAMES, BPF_F_NO_PREALLOC);
#[map(name = "FLOW_SWITCH_V1")]
pub static FLOW_SWITCH: Array<FlowSwitch> = Array::pinned(1, 0);
#[map(name = "FLOW_RECENT_V1")]
pub static FLOW_RECENT: Array<u64> = Array::pinned(limits::FLOW_RECENT, 0);
#[map(name = "FLOW_STATE_V1")]
pub static FLOW_STATE: PerCpuArray<u64> = PerCpuArray::pinned(state::COUNT, 0);
#[map(name = "FLOW_EVENTS_V1")]
pub static FLOW_EVENTS: RingBuf = RingBuf::pinned(limits::FLOW_EVENTS, 0);

/// Room for what would overflow the stack of 512 bytes. Programs of devices run one at a time on a CPU: the kernel disables
/// bottom halves around them.
///
/// The packet lives here for another reason: what the verifier knows of values on the stack (one state for IPv4 and
/// TCP, one for IPv6 and UDP, …) it forgets of a map's, so that it follows the rest of a program once and not for every
/// kind of packet.
#[repr(C)]
pub struct Scratch {
    /// The packet that is looked at.
    packet: Packet,
    /// The translation of a new flow.
    forward: FlowValue,
    /// The same for its replies.
    reply: Reply,
    /// The quoted head of a packet.
    quote: [u32; 12],
    /// What an ICMP error is about.
    quoted: Quoted,
    /// What the policies are asked.
    question: Question,
    /// Seconds of the monotonic clock; see [`crate::xdp`].
    refreshed: [u32; 2],
}

#[map(name = "SCRATCH")]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

macro_rules! room {
    ($($(#[$doc:meta])* $name:ident: $field:ident, $type:ty;)*) => {
        $(
            $(#[$doc])*
            #[inline(always)]
            pub fn $name() -> Option<&'static mut $type> {
                // SAFETY: the entry is this CPU's, and nothing else runs such a program on this CPU meanwhile; a program
                // asks for each field in one place.
                SCRATCH.get_ptr_mut(0).map(|scratch| unsafe { &mut (*scratch).$field })
            }
        )*
    };
}

room! {
    /// Room for the packet. Programs of devices only, as all of these.
    packet_room: packet, Packet;
    /// Room for the translation of a new flow.
    forward_room: forward, FlowValue;
    /// Room for the entry of its replies.
    reply_room: reply, Reply;
    /// Room for the head of a packet that is quoted in an answer.
    quote_room: quote, [u32; 12];
    /// Room for what an ICMP error is about.
    quoted_room: quoted, Quoted;
    /// Room for what the policies are asked.
    connection_room: question, Question;
    /// When a packet was last left to the kernel's stack for the sake of its neighbours: a reply, another one.
    refreshed_room: refreshed, [u32; 2];
}

/// Counts one event, and notes it for those who listen. Programs of devices only; indexes are in [`kelp_common::maps::counter`].
#[inline(always)]
pub fn count(index: u32) {
    tally(index);
    tell::note(index);
}

/// Counts one event.
#[inline(always)]
pub fn tally(index: u32) {
    if let Some(value) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: the entry is this CPU's and lives as long as the map; a lost update under preemption is harmless.
        unsafe { *value += 1 };
    }
}

/// Counts a packet by what became of it ([`kelp_common::maps::xdp`]).
#[inline(always)]
pub fn tally_xdp(index: u32) {
    if let Some(value) = XDP_COUNTERS.get_ptr_mut(index) {
        // SAFETY: as in `tally`.
        unsafe { *value += 1 };
    }
}

/// Whether a node port may be served at this address.
#[inline(always)]
pub fn is_node_address(address: &Address) -> bool {
    NODE_ADDRESSES.get_ptr(address).is_some()
}
