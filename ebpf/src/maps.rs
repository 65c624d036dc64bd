//! The maps; layouts, names and sizes are those of `kelp-common`.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray};
use kelp_common::maps::counter;
use kelp_common::{
    Address, AffinityKey, AffinityValue, Backend, EndpointValue, FlowKey, FlowValue, FrontendKey,
    FrontendValue, NodeConfig, SlotKey, SocketKey, SocketValue, limits,
};

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
#[map(name = "SOCKETS_V1")]
pub static SOCKETS: LruHashMap<SocketKey, SocketValue> = LruHashMap::pinned(limits::SOCKETS, 0);
#[map(name = "ENDPOINTS_V1")]
pub static ENDPOINTS: HashMap<Address, EndpointValue> = HashMap::pinned(limits::ENDPOINTS, BPF_F_NO_PREALLOC);
#[map(name = "NODE_ADDRS_V1")]
pub static NODE_ADDRESSES: HashMap<Address, u32> = HashMap::pinned(limits::NODE_ADDRESSES, BPF_F_NO_PREALLOC);
#[map(name = "NODE_CONFIG_V1")]
pub static NODE_CONFIG: Array<NodeConfig> = Array::pinned(1, 0);
#[map(name = "COUNTERS_V1")]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::pinned(counter::COUNT, 0);

/// Room for what would overflow the stack of 512 bytes. Classifiers run one at a time on a CPU: the kernel disables
/// bottom halves around them.
#[repr(C)]
pub struct Scratch {
    /// The translation of a new flow.
    pub forward: FlowValue,
    /// The quoted head of a packet.
    pub quote: [u32; 12],
}

#[map(name = "SCRATCH")]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// This CPU's scratch room. Classifiers only.
#[inline(always)]
pub fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: the entry is this CPU's, and nothing else runs a classifier on this CPU meanwhile; each caller uses
    // another field, or is done with it before the next one starts.
    SCRATCH.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch })
}

/// Counts one event; indexes are in [`kelp_common::maps::counter`].
#[inline(always)]
pub fn count(index: u32) {
    if let Some(value) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: the entry is this CPU's and lives as long as the map; a lost update under preemption is harmless.
        unsafe { *value += 1 };
    }
}

/// Whether a node port may be served at this address.
#[inline(always)]
pub fn is_node_address(address: &Address) -> bool {
    NODE_ADDRESSES.get_ptr(address).is_some()
}
