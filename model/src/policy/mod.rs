//! What the NetworkPolicies of a cluster mean for the pods of one node.
//!
//! [`Compiler`] is fed by watches and by the pods that are attached, and answers with [`Op`]s that bring the kernel's
//! tables up to date. Three ideas keep it small and exact:
//!
//! - Addresses that all peers of the node's policies treat alike are one *identity*. Peers are selectors and blocks of
//!   policies that select a pod of this node; an address that matches none of them is in no table.
//! - Pods of the node that the same policies select have one table of rules for each direction, from identities to sets of
//!   ports. A table never changes its meaning: a changed policy makes a new table, to which pods are moved at once.
//! - Operations come in an order in which every packet meets the old meaning or the new one: tables first, then the
//!   addresses and pods that lead to them, then the revision by which flows are judged again, removals last.

use std::collections::{BTreeMap, BTreeSet};

use kelp_common::policy::{ALL_PORTS, ANYBODY, POLICY_UNKNOWN};
use kelp_common::{Address, IdentityKey, PortKey, PrefixKey, RuleKey, SCTP, TCP, UDP};

mod compile;
mod explain;
mod intern;
mod object;
mod ports;
mod range;
mod rules;
mod stages;

pub use compile::{Compiler, Problem, TablePolicies};
pub use explain::{End, Explanation, Reason, RuleName, explain};
pub use object::{Labels, PodFacts, PodState, PolicyState, pod_state, policy_state};

/// One change of the kernel's tables; can be repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Adds ports to a set that nothing leads to yet.
    PutPorts(PortKey),
    /// Writes a rule.
    PutRule(RuleKey, u32),
    /// Gives a pod's address an identity.
    PutIdentity(IdentityKey, u32),
    /// Gives a range an identity.
    PutPrefix(PrefixKey, u32),
    /// Forgets a pod's address.
    DeleteIdentity(IdentityKey),
    /// Forgets a range.
    DeletePrefix(PrefixKey),
    /// Moves a pod of the node to its policies.
    SetEndpoint(EndpointPolicy),
    /// Has all flows judged again.
    Revise,
    /// Removes a rule that nothing leads to any more.
    DeleteRule(RuleKey),
    /// Removes ports of a set that nothing leads to any more.
    DeletePorts(PortKey),
}

impl Op {
    /// Whether this operation decides about what an earlier one wrote, so that the earlier one must not be repeated.
    #[must_use]
    pub fn replaces(&self, earlier: &Self) -> bool {
        match (self, earlier) {
            (Self::PutPorts(a) | Self::DeletePorts(a), Self::PutPorts(b)) => a == b,
            (Self::PutRule(a, _) | Self::DeleteRule(a), Self::PutRule(b, _)) => a == b,
            (Self::PutIdentity(a, _) | Self::DeleteIdentity(a), Self::PutIdentity(b, _)) => a == b,
            (Self::PutPrefix(a, _) | Self::DeletePrefix(a), Self::PutPrefix(b, _)) => a == b,
            _ => false,
        }
    }
}

/// The policies of a pod of the node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EndpointPolicy {
    /// The pod's addresses.
    pub addresses: Vec<Address>,
    /// The space of the tables.
    pub space: u32,
    /// Policy of what it may receive; 0 is everything.
    pub ingress: u32,
    /// Policy of what it may send; 0 is everything.
    pub egress: u32,
}

impl EndpointPolicy {
    /// Nothing but the node reaches the pod, until its policies are known.
    #[must_use]
    pub fn unknown(addresses: Vec<Address>) -> Self {
        Self { addresses, space: 0, ingress: POLICY_UNKNOWN, egress: POLICY_UNKNOWN }
    }
}

/// The tables in memory: what the kernel programs read, and how they decide.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tables {
    /// Identities of pods' addresses.
    pub identities: BTreeMap<IdentityKey, u32>,
    /// Identities of ranges.
    pub prefixes: BTreeMap<PrefixKey, u32>,
    /// Rules.
    pub rules: BTreeMap<RuleKey, u32>,
    /// Sets of ports.
    pub ports: BTreeSet<PortKey>,
    /// Space, ingress and egress policy of the node's pods.
    pub endpoints: BTreeMap<Address, (u32, u32, u32)>,
    /// How often flows had to be judged again.
    pub revision: u32,
}

impl Tables {
    /// Executes an operation.
    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::PutPorts(key) => {
                self.ports.insert(*key);
            }
            Op::PutRule(key, ports) => {
                self.rules.insert(*key, *ports);
            }
            Op::PutIdentity(key, identity) => {
                self.identities.insert(*key, *identity);
            }
            Op::PutPrefix(key, identity) => {
                self.prefixes.insert(*key, *identity);
            }
            Op::DeleteIdentity(key) => {
                self.identities.remove(key);
            }
            Op::DeletePrefix(key) => {
                self.prefixes.remove(key);
            }
            Op::SetEndpoint(policy) => {
                for address in &policy.addresses {
                    self.endpoints.insert(*address, (policy.space, policy.ingress, policy.egress));
                }
            }
            Op::Revise => self.revision += 1,
            Op::DeleteRule(key) => {
                self.rules.remove(key);
            }
            Op::DeletePorts(key) => {
                self.ports.remove(key);
            }
        }
    }

    /// Whether a new flow from one address to a port (host byte order) of another may begin, as far as this node decides.
    /// Both ends are those behind every translation.
    #[must_use]
    pub fn admits(&self, source: &Address, destination: &Address, protocol: u8, port: u16) -> bool {
        let of = |address| self.endpoints.get(address).copied().unwrap_or_default();
        let ((sender, _, egress), (receiver, ingress, _)) = (of(source), of(destination));
        source == destination
            || (self.permits(sender, egress, destination, protocol, port)
                && self.permits(receiver, ingress, source, protocol, port))
    }

    fn permits(&self, space: u32, policy: u32, peer: &Address, protocol: u8, port: u16) -> bool {
        if policy == 0 {
            return true;
        }
        let identity = self.identity(space, peer);
        let rule = |identity| self.rules.get(&RuleKey { space, policy, identity }).copied();
        let Some(set) = rule(identity).or_else(|| rule(ANYBODY)) else { return false };
        let known = [TCP, UDP, SCTP].contains(&protocol);
        set == ALL_PORTS
            || (known
                && (0..=16).any(|bits| {
                    let masked = if bits == 0 { 0 } else { port & (u16::MAX << (16 - bits)) };
                    self.ports.contains(&PortKey::new(space, set, protocol, masked, bits))
                }))
    }

    fn identity(&self, space: u32, address: &Address) -> u32 {
        if let Some(identity) = self.identities.get(&IdentityKey { space, address: *address }) {
            return *identity;
        }
        (0..=128_u32)
            .rev()
            .find_map(|bits| self.prefixes.get(&PrefixKey::new(space, masked(address, bits), bits)))
            .copied()
            .unwrap_or(ANYBODY)
    }
}

fn masked(address: &Address, bits: u32) -> Address {
    let mut left = bits;
    Address(address.0.map(|word| {
        let here = left.min(32);
        left -= here;
        if here == 0 { 0 } else { word & (u32::MAX << (32 - here)).to_be() }
    }))
}

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
