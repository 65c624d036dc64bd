//! Layout of every eBPF map key and value, map names and limits; shared by the kernel programs and the agent.
//!
//! One layout serves both address families: an IPv4 address is kept v4-mapped (`::ffff:a.b.c.d`), so that a map, a
//! lookup and a rewrite exist once. Addresses and ports are in network byte order as they are in a packet; all other
//! fields are in host byte order. Structures have no padding, so that a key compares equal byte by byte: the sizes
//! are asserted at compile time. A change of a layout changes the version in the map's name; an agent never reads a
//! map of another layout.
#![no_std]
#![forbid(unsafe_code)]

pub mod address;
pub mod event;
pub mod flow;
pub mod limits;
pub mod maglev;
pub mod maps;
pub mod name;
pub mod node;
pub mod peer;
pub mod policy;
pub mod service;

pub use address::{Address, Cidr};
pub use event::{FlowEvent, FlowSwitch};
pub use flow::{FlowKey, FlowValue, FragmentKey, FragmentValue, SocketKey, SocketValue};
pub use name::{PodName, PolicyNames, ServiceName};
pub use node::{EndpointValue, EndpointValueV1, NamespaceValue, NodeConfig};
pub use peer::{PeerKey, PeerValue};
pub use policy::{ConnectionValue, IdentityKey, PortKey, PortNumber, PrefixKey, RuleKey};
pub use service::{
    AffinityKey, AffinityValue, Backend, FrontendKey, FrontendValue, SlotKey, SourceRange, SourceRangeKey,
};

/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;
/// Protocol number of SCTP.
pub const SCTP: u8 = 132;
/// Protocol number of ICMP.
pub const ICMP: u8 = 1;
/// Protocol number of ICMP for IPv6.
pub const ICMPV6: u8 = 58;
