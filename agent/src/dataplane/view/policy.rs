//! What the kernel's tables decide about a flow, and why: the same look-ups that the programs make.

use std::collections::BTreeMap;
use std::net::IpAddr;

use kelp_common::policy::{ALL_PORTS, ANYBODY};
use kelp_common::{
    Address, EndpointValue, IdentityKey, PodName, PolicyNames, PortKey, PrefixKey, RuleKey, maps, name,
};
use serde::Serialize;

use super::{Isolation, Object, Pins, ViewError};
use crate::dataplane::maps::Table;

/// What a pod's policies allow the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Grant {
    /// Everything.
    Everything,
    /// The port, among others.
    Port,
    /// Other ports.
    OtherPorts,
    /// Nothing.
    Nothing,
}

/// What is decided about one direction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Direction {
    /// Whether the pod is on this node, which then decides.
    pub decided_here: bool,
    /// Whether policies apply.
    pub isolation: Isolation,
    /// What the other end is to the policies; 0 is what no rule names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<u32>,
    /// What the other end is allowed.
    pub grant: Grant,
    /// The network policies that add up to the table, as far as their names are known.
    pub policies: Vec<Object>,
}

impl Direction {
    /// Whether the flow may begin, as far as this direction decides.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        matches!(self.grant, Grant::Everything | Grant::Port)
    }
}

/// What this node decides about a flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// Whether it may begin.
    pub allowed: bool,
    /// What the source may send.
    pub egress: Direction,
    /// What the destination may receive.
    pub ingress: Direction,
    /// Why the policies are not asked, if they are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exempt: Option<&'static str>,
}

/// The addresses of the node's pods of this name; in any namespace when none is given.
///
/// # Errors
/// When no dataplane has its maps there, or the kernel refuses.
pub fn pods_named(
    pins: &Pins,
    namespace: Option<&str>,
    wanted: &str,
) -> Result<BTreeMap<Object, Vec<IpAddr>>, ViewError> {
    let mut found: BTreeMap<Object, Vec<IpAddr>> = BTreeMap::new();
    for (address, name) in pins.content_of::<Address, PodName>(maps::POD_NAMES)? {
        let pod = Object::of(name.parts());
        if pod.name == wanted && namespace.is_none_or(|namespace| namespace == pod.namespace) {
            found.entry(pod).or_default().push(address.into());
        }
    }
    Ok(found)
}

/// What the tables say about a new flow of a protocol from one address to a port (host byte order) of another, both
/// behind every translation.
///
/// # Errors
/// When no dataplane has its maps there, or the kernel refuses.
pub fn decide(
    pins: &Pins,
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    port: u16,
) -> Result<Decision, ViewError> {
    let (source, destination) = (Address::from(source), Address::from(destination));
    let tables = Tables::open(pins)?;
    let (from, to) = (tables.endpoints.get(&source)?, tables.endpoints.get(&destination)?);
    let egress = from.map(|pod| (pod.space, pod.egress));
    let ingress = to.map(|pod| (pod.space, pod.ingress));
    let egress = tables.direction(egress, &destination, protocol, port)?;
    let ingress = tables.direction(ingress, &source, protocol, port)?;
    let is_node = |address: &Address| Ok::<_, ViewError>(tables.nodes.get(address)?.is_some());
    let exempt = if source == destination {
        Some("a pod may always reach itself")
    } else if from.is_some() && to.is_none() && is_node(&destination)? {
        Some("the node is always reached by its pods")
    } else if to.is_some() && from.is_none() && is_node(&source)? {
        Some("the node always reaches its pods")
    } else {
        None
    };
    let allowed = exempt.is_some() || (egress.is_allowed() && ingress.is_allowed());
    Ok(Decision { allowed, egress, ingress, exempt })
}

/// The maps of policies.
struct Tables {
    endpoints: Table<Address, EndpointValue>,
    nodes: Table<Address, u32>,
    identities: Table<IdentityKey, u32>,
    prefixes: Table<PrefixKey, u32>,
    rules: Table<RuleKey, u32>,
    ports: Table<PortKey, u32>,
    names: Option<Table<u64, PolicyNames>>,
}

impl Tables {
    fn open(pins: &Pins) -> Result<Self, ViewError> {
        Ok(Self {
            endpoints: pins.table(maps::ENDPOINTS)?,
            nodes: pins.table(maps::NODE_ADDRESSES)?,
            identities: pins.table(maps::IDENTITIES)?,
            prefixes: pins.table(maps::PREFIXES)?,
            rules: pins.table(maps::RULES)?,
            ports: pins.table(maps::PORTS)?,
            names: Table::open_pin(&pins.directory, maps::POLICY_NAMES)?,
        })
    }

    /// What the policy of a pod (space and table) says; nothing for an address that is no pod of this node.
    fn direction(
        &self,
        pod: Option<(u32, u32)>,
        peer: &Address,
        protocol: u8,
        port: u16,
    ) -> Result<Direction, ViewError> {
        let (space, policy) = pod.unwrap_or_default();
        let mut direction = Direction {
            decided_here: pod.is_some(),
            isolation: Isolation::of(policy),
            identity: None,
            grant: Grant::Everything,
            policies: Vec::new(),
        };
        if policy == 0 {
            return Ok(direction);
        }
        let address = IdentityKey { space, address: *peer };
        let identity = match self.identities.get(&address)? {
            Some(identity) => identity,
            None => {
                let key = PrefixKey { prefix_length: PrefixKey::WHOLE, network: address };
                self.prefixes.get(&key)?.unwrap_or(ANYBODY)
            }
        };
        direction.identity = Some(identity);
        let set = match self.rules.get(&RuleKey { space, policy, identity })? {
            Some(set) => Some(set),
            None => self.rules.get(&RuleKey { space, policy, identity: ANYBODY })?,
        };
        direction.grant = match set {
            None => Grant::Nothing,
            Some(ALL_PORTS) => Grant::Everything,
            Some(set) if self.ports.get(&PortKey::new(space, set, protocol, port, 16))?.is_some() => {
                Grant::Port
            }
            Some(_) => Grant::OtherPorts,
        };
        if let Some(names) = &self.names
            && let Some(name) = names.get(&name::policy_key(space, policy))?
        {
            direction.policies = Object::all_of(&name);
        }
        Ok(direction)
    }
}
