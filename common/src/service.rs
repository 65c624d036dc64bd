//! Services: frontend → slot table → backend.

use crate::Address;

/// Where clients reach a service.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FrontendKey {
    /// The service address, or [`Address::ANY_V4`]/[`Address::ANY_V6`] for a node port on every address of the node.
    pub address: Address,
    /// Port, network byte order.
    pub port: u16,
    /// Protocol number.
    pub protocol: u8,
    /// [`SCOPE_CLUSTER`] or [`SCOPE_EXTERNAL`].
    pub scope: u8,
}

const _: () = assert!(size_of::<FrontendKey>() == 20);

/// Clients in the cluster, and all clients of a frontend without [`FRONTEND_TWO_SCOPES`].
pub const SCOPE_CLUSTER: u8 = 0;
/// Clients outside the cluster, where they may use only some backends (`externalTrafficPolicy: Local`).
pub const SCOPE_EXTERNAL: u8 = 1;

/// What a frontend leads to.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct FrontendValue {
    /// The slot table.
    pub table: u32,
    /// Number of slots in use, `0..count`; 0 refuses.
    pub count: u32,
    /// Seconds a client stays with its backend; 0 turns session affinity off.
    pub affinity_seconds: u32,
    /// `FRONTEND_*` bits.
    pub flags: u32,
}

const _: () = assert!(size_of::<FrontendValue>() == 16);

/// Clients outside the cluster have a frontend of their own under [`SCOPE_EXTERNAL`].
pub const FRONTEND_TWO_SCOPES: u32 = 1;
/// Clients outside the cluster keep their source address: their backends are local.
pub const FRONTEND_LOCAL_ONLY: u32 = 2;
/// The frontend is a node port.
pub const FRONTEND_NODE_PORT: u32 = 4;
/// Without slots the frontend drops in place of refusing: other nodes have endpoints, this one may not use them.
pub const FRONTEND_DROP: u32 = 8;
/// Only clients with a [`SourceRangeKey`] for the frontend's table may use it.
pub const FRONTEND_SOURCE_RANGES: u32 = 16;
/// Clients outside the cluster are led by consistent hashing ([`crate::maglev`]) and not by chance.
pub const FRONTEND_MAGLEV: u32 = 32;

/// The clients of a frontend with [`FRONTEND_SOURCE_RANGES`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SourceRange {
    /// The slot table of the frontend.
    pub table: u32,
    /// The client's address.
    pub address: Address,
}

const _: () = assert!(size_of::<SourceRange>() == 20);

/// Key of a longest-prefix map: clients of a table; the value is 1.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SourceRangeKey {
    /// Number of bits that count: 32 of the table and those of the address (96 more for IPv4, as it is v4-mapped).
    pub prefix_length: u32,
    /// Table and network.
    pub range: SourceRange,
}

const _: () = assert!(size_of::<SourceRangeKey>() == 24);

impl SourceRangeKey {
    /// Bits of a key for one client.
    pub const WHOLE: u32 = 32 + 128;

    /// The clients `network/prefix` of a table; the prefix counts as in the v4-mapped form.
    #[must_use]
    pub const fn new(table: u32, network: Address, mapped_prefix: u32) -> Self {
        Self { prefix_length: 32 + mapped_prefix, range: SourceRange { table, address: network } }
    }
}

/// A place in a slot table; the value is a backend's id.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SlotKey {
    /// The slot table.
    pub table: u32,
    /// `0..count`.
    pub slot: u32,
}

const _: () = assert!(size_of::<SlotKey>() == 8);

/// One endpoint of any number of services; the key is its id.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Backend {
    /// Address.
    pub address: Address,
    /// Port, network byte order.
    pub port: u16,
    /// Protocol number.
    pub protocol: u8,
    /// `BACKEND_*` bits.
    pub flags: u8,
}

const _: () = assert!(size_of::<Backend>() == 20);

/// Kept for established connections only: session affinity no longer leads here.
pub const BACKEND_DRAINING: u8 = 1;

/// A client of a service with session affinity.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct AffinityKey {
    /// The client's address; in sockets of a namespace that is not known the namespace's cookie, in the first two
    /// words.
    pub client: Address,
    /// The slot table.
    pub table: u32,
}

const _: () = assert!(size_of::<AffinityKey>() == 20);

/// The backend a client stays with.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct AffinityValue {
    /// Backend id.
    pub backend: u32,
    /// Seconds of the monotonic clock when it was last used.
    pub used: u32,
}

const _: () = assert!(size_of::<AffinityValue>() == 8);
