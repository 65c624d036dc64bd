//! Sizes of the maps. Tables of services take memory for the entries they hold; the others are allocated whole.

/// Frontends: address, port, protocol and scope.
pub const FRONTENDS: u32 = 262_144;
/// Slots of all tables.
pub const SLOTS: u32 = 2_097_152;
/// Distinct backends.
pub const BACKENDS: u32 = 1_048_576;
/// Tables of consistent hashing, of 64 KiB each with the usual number of places.
pub const MAGLEV: u32 = 1_024;
/// Clients with session affinity; the least recently used is forgotten.
pub const AFFINITIES: u32 = 65_536;
/// Directions of translated flows; the least recently used is forgotten. About 150 bytes each: 40 MB. A thousand connections a
/// second fit, see `agent/src/dataplane/collector.rs`.
pub const FLOWS: u32 = 262_144;
/// Translated destinations of sockets; the least recently used is forgotten.
pub const SOCKETS: u32 = 65_536;
/// Addresses of pods on a node.
pub const ENDPOINTS: u32 = 16_384;
/// Addresses of a node.
pub const NODE_ADDRESSES: u32 = 1_024;
/// Ranges of clients of load balancers.
pub const SOURCE_RANGES: u32 = 65_536;
/// Network namespaces of pods on a node.
pub const NAMESPACES: u32 = 8_192;
/// Address ranges of other nodes' pods, and those nodes' addresses.
pub const PEERS: u32 = 65_536;
/// Datagrams in pieces at a time; the least recently used is forgotten.
pub const FRAGMENTS: u32 = 8_192;
/// Addresses of pods that policies of a node name.
pub const IDENTITIES: u32 = 131_072;
/// Address ranges that policies of a node name.
pub const PREFIXES: u32 = 65_536;
/// Pairs of a policy and an identity that it allows something.
pub const RULES: u32 = 262_144;
/// Ports and prefixes of port ranges of all sets.
pub const PORTS: u32 = 65_536;
/// Tables of rules of policies that have names.
pub const POLICY_NAMES: u32 = 16_384;
/// Places for flows that were told lately; a power of two, see `tell.rs`.
pub const FLOW_RECENT: u32 = 4_096;
/// Bytes of the ring of events; pages, and a power of two.
pub const FLOW_EVENTS: u32 = 262_144;
/// Flows of pods that policies apply to; the least recently used is forgotten.
pub const CONNECTIONS: u32 = 131_072;
