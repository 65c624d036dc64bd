//! Names of the maps, as they are pinned. A layout that is not compatible gets a new name.

/// [`crate::FrontendKey`] → [`crate::FrontendValue`].
pub const FRONTENDS: &str = "FRONTENDS_V1";
/// [`crate::SlotKey`] → backend id.
pub const SLOTS: &str = "SLOTS_V1";
/// Backend id → [`crate::Backend`].
pub const BACKENDS: &str = "BACKENDS_V1";
/// [`crate::AffinityKey`] → [`crate::AffinityValue`].
pub const AFFINITIES: &str = "AFFINITIES_V1";
/// [`crate::FlowKey`] → [`crate::FlowValue`].
pub const FLOWS: &str = "FLOWS_V1";
/// [`crate::SocketKey`] → [`crate::SocketValue`].
pub const SOCKETS: &str = "SOCKETS_V2";
/// [`crate::Address`] → [`crate::EndpointValue`].
pub const ENDPOINTS: &str = "ENDPOINTS_V2";
/// [`crate::Address`] → 1.
pub const NODE_ADDRESSES: &str = "NODE_ADDRS_V1";
/// 0 → [`crate::NodeConfig`].
pub const NODE_CONFIG: &str = "NODE_CONFIG_V4";
/// `counter` → a count per CPU; see [`counter`](mod@counter).
pub const COUNTERS: &str = "COUNTERS_V3";
/// [`crate::SourceRangeKey`] → 1.
pub const SOURCE_RANGES: &str = "SOURCE_RANGES_V1";
/// Cookie of a network namespace → [`crate::NamespaceValue`].
pub const NAMESPACES: &str = "NAMESPACES_V1";
/// [`crate::PeerKey`] → [`crate::PeerValue`].
pub const PEERS: &str = "PEERS_V1";
/// [`crate::FragmentKey`] → [`crate::FragmentValue`].
pub const FRAGMENTS: &str = "FRAGMENTS_V1";
/// [`crate::IdentityKey`] → identity of a pod's address.
pub const IDENTITIES: &str = "IDENTITIES_V1";
/// [`crate::PrefixKey`] → identity of other addresses.
pub const PREFIXES: &str = "PREFIXES_V1";
/// [`crate::RuleKey`] → set of ports.
pub const RULES: &str = "POLICY_RULES_V1";
/// [`crate::PortKey`] → 1.
pub const PORTS: &str = "POLICY_PORTS_V1";
/// 0 → the revision of the policies; 0 while there are none.
pub const REVISION: &str = "REVISION_V1";
/// [`crate::FlowKey`] → [`crate::ConnectionValue`].
pub const CONNECTIONS: &str = "CONNECTIONS_V1";

/// Table of slots → [`crate::ServiceName`]; for people.
pub const SERVICE_NAMES: &str = "SERVICE_NAMES_V1";
/// [`crate::Address`] of a pod on this node → [`crate::PodName`]; for people.
pub const POD_NAMES: &str = "POD_NAMES_V1";
/// Slot table → array map of [`crate::maglev::Row`]s.
pub const MAGLEV: &str = "MAGLEV_V1";

/// [`crate::name::policy_key`] → [`crate::PolicyNames`]; for people.
pub const POLICY_NAMES: &str = "POLICY_NAMES_V1";
/// 0 → [`crate::FlowSwitch`].
pub const FLOW_SWITCH: &str = "FLOW_SWITCH_V1";
/// A hash of a flow → the hash, and the second when the flow was told.
pub const FLOW_RECENT: &str = "FLOW_RECENT_V1";
/// [`crate::event::state`] → a value per CPU.
pub const FLOW_STATE: &str = "FLOW_STATE_V1";
/// Ring buffer of [`crate::FlowEvent`].
pub const FLOW_EVENTS: &str = "FLOW_EVENTS_V1";
/// [`xdp`](mod@xdp) → a count per CPU.
pub const XDP_COUNTERS: &str = "XDP_COUNTERS_V1";

/// Name of [`ENDPOINTS`] before endpoints had policies: [`crate::Address`] → [`crate::node::EndpointValueV1`].
pub const ENDPOINTS_BEFORE_POLICIES: &str = "ENDPOINTS_V1";

/// All of them.
pub const ALL: [&str; 29] = [
    FRONTENDS,
    SLOTS,
    BACKENDS,
    AFFINITIES,
    FLOWS,
    SOCKETS,
    ENDPOINTS,
    NODE_ADDRESSES,
    NODE_CONFIG,
    COUNTERS,
    SOURCE_RANGES,
    NAMESPACES,
    PEERS,
    FRAGMENTS,
    IDENTITIES,
    PREFIXES,
    RULES,
    PORTS,
    REVISION,
    CONNECTIONS,
    SERVICE_NAMES,
    POD_NAMES,
    MAGLEV,
    POLICY_NAMES,
    FLOW_SWITCH,
    FLOW_RECENT,
    FLOW_STATE,
    FLOW_EVENTS,
    XDP_COUNTERS,
];

/// Indexes of [`COUNTERS`].
pub mod counter {
    /// Packets dropped because they could not be parsed.
    pub const MALFORMED: u32 = 0;
    /// Packets dropped because their source is not an address of the pod that sent them.
    pub const SPOOFED: u32 = 1;
    /// Packets and connections refused: no such service, or no endpoints.
    pub const REFUSED: u32 = 2;
    /// Packets dropped because their destination does not exist or cannot be reached.
    pub const UNREACHABLE: u32 = 3;
    /// Packets dropped because no port for a translated source was free.
    pub const NO_NAT_PORT: u32 = 4;
    /// Packets dropped because a fragment of a translated flow cannot be assigned to it.
    pub const FRAGMENT: u32 = 5;
    /// Packets dropped because a helper failed to rewrite them.
    pub const REWRITE: u32 = 6;
    /// Packets and connections dropped because the traffic policy wants an endpoint of this node, and there is none.
    pub const NO_LOCAL_ENDPOINT: u32 = 7;
    /// Packets and connections dropped because the client is outside `loadBalancerSourceRanges`.
    pub const SOURCE_RANGE: u32 = 8;
    /// Packets answered with "too big": they do not fit through the uplink.
    pub const TOO_BIG: u32 = 9;
    /// Packets dropped because no policy allows the receiving pod to be reached like this.
    pub const POLICY_INGRESS: u32 = 10;
    /// Packets dropped because no policy allows the sending pod to send this.
    pub const POLICY_EGRESS: u32 = 11;
    /// Number of counters.
    pub const COUNT: u32 = 12;
    /// Names of the counters, by index.
    pub const NAMES: [&str; COUNT as usize] = [
        "malformed",
        "spoofed",
        "refused",
        "unreachable",
        "no_nat_port",
        "fragment",
        "rewrite",
        "no_local_endpoint",
        "source_range",
        "too_big",
        "policy_ingress",
        "policy_egress",
    ];
}

/// Indexes of [`XDP_COUNTERS`]: what became of the packets that came in by the uplink while XDP was attached there.
pub mod xdp {
    /// Translated and sent on by the device's driver.
    pub const FORWARDED: u32 = 0;
    /// Left to the kernel's stack and the programs there: they do not only pass through this node, or are not plain.
    pub const LEFT: u32 = 1;
    /// Left likewise though they only pass through: too big, the last hop, a checksum that is not computed yet, or the next
    /// hop is not known or due to be asked for.
    pub const NO_WAY: u32 = 2;
    /// Number of counters.
    pub const COUNT: u32 = 3;
    /// Names of the counters, by index.
    pub const NAMES: [&str; COUNT as usize] = ["forwarded", "left", "no_way"];
}
