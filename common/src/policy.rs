//! Network policies as the programs read them.
//!
//! ```text
//! endpoint (pod of this node) ─ space, ingress policy, egress policy          ENDPOINTS
//! the other side's address ── identity (0: unknown)                           IDENTITIES, then PREFIXES
//! policy × identity (then policy × 0) ── set of ports, or all, or forbidden   RULES
//! set of ports × protocol × port ── allowed                                   PORTS
//! ```
//!
//! An identity is a class of addresses that all policies of the node treat alike, so a decision costs three lookups
//! whatever the number of policies. A flow is judged once; [`ConnectionValue`] remembers the verdict until anything
//! changes (the revision). All keys begin with a *space*: an agent that starts writes into a space of its own and moves
//! the endpoints there one by one, so that an endpoint always sees tables that belong together.

use crate::{Address, FlowKey};

/// Policy of an endpoint whose policies are not known yet: it has no rules, so nothing is allowed.
pub const POLICY_UNKNOWN: u32 = u32::MAX;
/// Set of ports: every port of every protocol.
pub const ALL_PORTS: u32 = u32::MAX;
/// Identity of addresses that no rule names; its rules are for everybody.
pub const ANYBODY: u32 = 0;

/// An address in a space; the value is an identity.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct IdentityKey {
    /// The space.
    pub space: u32,
    /// A pod's address, or one in a range.
    pub address: Address,
}

const _: () = assert!(size_of::<IdentityKey>() == 20);

/// Key of a longest-prefix map: addresses that are no pod's; the value is an identity.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PrefixKey {
    /// Number of bits that count: 32 of the space and those of the address (96 more for IPv4, as it is v4-mapped).
    pub prefix_length: u32,
    /// Space and network.
    pub network: IdentityKey,
}

const _: () = assert!(size_of::<PrefixKey>() == 24);

impl PrefixKey {
    /// Bits of a key for one address.
    pub const WHOLE: u32 = 32 + 128;

    /// The addresses `network/prefix`; the prefix counts as in the v4-mapped form.
    #[must_use]
    pub const fn new(space: u32, network: Address, mapped_prefix: u32) -> Self {
        Self { prefix_length: 32 + mapped_prefix, network: IdentityKey { space, address: network } }
    }
}

/// What a policy allows an identity; the value is a set of ports or [`ALL_PORTS`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RuleKey {
    /// The space.
    pub space: u32,
    /// The policy; one of an endpoint's.
    pub policy: u32,
    /// The other side, or [`ANYBODY`].
    pub identity: u32,
}

const _: () = assert!(size_of::<RuleKey>() == 12);

/// A port in a set.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortNumber {
    /// The space.
    pub space: u32,
    /// The set.
    pub set: u32,
    /// Protocol number.
    pub protocol: u16,
    /// Port, network byte order.
    pub port: u16,
}

const _: () = assert!(size_of::<PortNumber>() == 12);

/// Key of a longest-prefix map: ports in a set; the value is 1.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortKey {
    /// Number of bits that count: those of space, set and protocol, and the first ones of the port.
    pub prefix_length: u32,
    /// The first port.
    pub number: PortNumber,
}

const _: () = assert!(size_of::<PortKey>() == 16);

impl PortKey {
    /// Bits of a key for one port.
    pub const WHOLE: u32 = 96;

    /// The ports that begin with the first `bits` (0–16) bits of `port`, which is in host byte order.
    #[must_use]
    pub const fn new(space: u32, set: u32, protocol: u8, port: u16, bits: u32) -> Self {
        let number = PortNumber { space, set, protocol: protocol as u16, port: port.to_be() };
        Self { prefix_length: Self::WHOLE - 16 + bits, number }
    }
}

/// A flow of a pod that policies apply to. Its key is a [`FlowKey`] of both ends as they really are (behind every
/// translation), the smaller one first (see [`is_turned`]), so that both directions find one entry.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct ConnectionValue {
    /// `CONNECTION_*` bits.
    pub flags: u32,
    /// Second of the monotonic clock after which the entry counts for nothing.
    pub expires: u32,
    /// The revision of the policies by which the flow was judged.
    pub revision: u32,
}

const _: () = assert!(size_of::<ConnectionValue>() == 12);

/// The end that comes second in the key opened the flow.
pub const CONNECTION_OPENED_BY_SECOND: u32 = 1;
/// The flow is forbidden now.
pub const CONNECTION_FORBIDDEN: u32 = 2;
/// What the opener may send is the reason; else what the other end may receive.
pub const CONNECTION_FORBIDDEN_EGRESS: u32 = 128;
/// Both ends have sent.
pub const CONNECTION_ESTABLISHED: u32 = 4;
/// TCP: a FIN of the first end was seen.
pub const CONNECTION_FIN_FIRST: u32 = 8;
/// TCP: a FIN of the second end was seen.
pub const CONNECTION_FIN_SECOND: u32 = 16;
/// TCP: a reset was seen, or a FIN of both.
pub const CONNECTION_CLOSED: u32 = 32;
/// The flow may be older than the policies, so its opener is a guess: answers need a permission of their own.
pub const CONNECTION_ONE_WAY: u32 = 64;

/// Whether the source of a flow comes second in the key of its [`ConnectionValue`].
#[inline(always)]
#[must_use]
pub const fn is_turned(flow: &FlowKey) -> bool {
    let (a, b) = (&flow.source.0, &flow.destination.0);
    // The last words differ most often.
    if a[3] != b[3] {
        return a[3] > b[3];
    }
    if a[2] != b[2] {
        return a[2] > b[2];
    }
    if a[1] != b[1] {
        return a[1] > b[1];
    }
    if a[0] != b[0] {
        return a[0] > b[0];
    }
    flow.source_port > flow.destination_port
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_have_one_key() {
        let ends = [
            (Address([1, 2, 3, 4]), 5_u16),
            (Address([1, 2, 3, 4]), 6),
            (Address([9, 2, 3, 4]), 5),
            (Address([1, 9, 3, 4]), 5),
            (Address([1, 2, 9, 4]), 5),
            (Address([1, 2, 3, 9]), 5),
        ];
        for (source, source_port) in ends {
            for (destination, destination_port) in ends {
                let flow = FlowKey { source, destination, source_port, destination_port, protocol: 6 };
                let back = FlowKey {
                    source: destination,
                    destination: source,
                    source_port: destination_port,
                    destination_port: source_port,
                    protocol: 6,
                };
                let same = flow == back;
                assert_eq!(is_turned(&flow), !same && !is_turned(&back));
            }
        }
    }

    #[test]
    fn keys_of_prefixes_count_their_bits() {
        assert_eq!(PrefixKey::new(1, Address::v4(0), 96).prefix_length, 128);
        let key = PortKey::new(1, 2, 6, 8080, 16);
        assert_eq!((key.prefix_length, key.number.port), (PortKey::WHOLE, 8080_u16.to_be()));
        assert_eq!(PortKey::new(1, 2, 6, 0, 0).prefix_length, 80);
    }
}
