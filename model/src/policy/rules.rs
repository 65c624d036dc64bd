//! Tables of rules: what the policies that select a pod together allow each identity.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::object::{NamedPort, Port};
use super::ports::{PortRange, PortSet};

/// What all addresses of an identity have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Class {
    /// Numbers of the peers that they match, sorted.
    pub peers: Vec<u32>,
    /// Their named ports, as far as an egress rule names them, sorted.
    pub named: Vec<NamedPort>,
}

impl Class {
    /// Whether no rule can name these addresses.
    pub fn is_nobody(&self) -> bool {
        self.peers.is_empty() && self.named.is_empty()
    }
}

/// A rule of a policy that selects a pod of the node.
#[derive(Debug, Clone)]
pub struct ActiveRule {
    /// Numbers of its peers; `None` is everybody.
    pub peers: Option<Vec<u32>>,
    /// Its ports; `None` is everything.
    pub ports: Option<Vec<Port>>,
}

/// What a table of rules stands for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableKey {
    /// Whether it is about what pods may receive.
    pub ingress: bool,
    /// Numbers of the versions of policies that add up, sorted.
    pub policies: Vec<u32>,
    /// The pod's named ports, as far as an ingress rule names them, sorted.
    pub named: Vec<NamedPort>,
}

/// A table of rules.
#[derive(Debug)]
pub struct Table {
    /// Numbers of the versions of policies.
    pub policies: Vec<u32>,
    rules: Vec<ActiveRule>,
    everybody: Vec<usize>,
    by_peer: HashMap<u32, Vec<usize>>,
    /// The receiving pods' named ports for ingress, nothing for egress: there the other side has the ports.
    named: Option<Vec<NamedPort>>,
    /// What everybody is allowed.
    anybody: PortSet,
    /// Which set of ports each identity was given.
    pub rows: BTreeMap<u32, u32>,
}

impl Table {
    pub fn new(key: &TableKey, rules: Vec<ActiveRule>) -> Self {
        let mut everybody = Vec::new();
        let mut by_peer: HashMap<u32, Vec<usize>> = HashMap::new();
        for (i, rule) in rules.iter().enumerate() {
            match &rule.peers {
                None => everybody.push(i),
                Some(peers) => {
                    for peer in peers {
                        by_peer.entry(*peer).or_default().push(i);
                    }
                }
            }
        }
        let named = key.ingress.then(|| key.named.clone());
        let mut table = Self {
            policies: key.policies.clone(),
            rules,
            everybody,
            by_peer,
            named,
            anybody: PortSet::of([]),
            rows: BTreeMap::new(),
        };
        table.anybody = table.union(&Class::default());
        table
    }

    /// What the rules together allow an identity, or everybody. Nothing when that is nothing, or when it is what everybody
    /// is allowed.
    pub fn allowed(&self, class: Option<&Class>) -> Option<PortSet> {
        let allowed = match class {
            None => self.anybody.clone(),
            Some(class) if !self.concerns(class) => return None,
            Some(class) => Some(self.union(class)).filter(|allowed| *allowed != self.anybody)?,
        };
        (!allowed.is_empty()).then_some(allowed)
    }

    fn union(&self, class: &Class) -> PortSet {
        let by_peer = class.peers.iter().filter_map(|peer| self.by_peer.get(peer)).flatten();
        let matching: BTreeSet<usize> = self.everybody.iter().chain(by_peer).copied().collect();
        let named = self.named.as_ref().unwrap_or(&class.named);
        let mut ranges: Vec<PortRange> = Vec::new();
        for rule in matching.into_iter().filter_map(|i| self.rules.get(i)) {
            let Some(ports) = &rule.ports else { return PortSet::All };
            for port in ports {
                match port {
                    Port::Numbers(range) => ranges.push(*range),
                    Port::Named(name, protocol) => ranges.extend(resolve(named, name, *protocol)),
                }
            }
        }
        PortSet::of(ranges)
    }

    /// Whether the rules may allow an identity more than they allow everybody.
    fn concerns(&self, class: &Class) -> bool {
        let names = self.named.is_none() && !class.named.is_empty();
        names || class.peers.iter().any(|peer| self.by_peer.contains_key(peer))
    }
}

fn resolve<'a>(
    named: &'a [NamedPort],
    name: &'a Arc<str>,
    protocol: u8,
) -> impl Iterator<Item = PortRange> + 'a {
    named
        .iter()
        .filter(move |(known, of, _)| known == name && *of == protocol)
        .map(|(_, protocol, port)| (*protocol, *port, *port))
}
