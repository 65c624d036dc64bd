//! From objects to operations, by what changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::networking::v1::NetworkPolicy;
use kelp_common::policy::{ALL_PORTS, ANYBODY};
use kelp_common::{Address, IdentityKey, PortKey, PrefixKey, RuleKey};

use super::intern::Interner;
use super::object::{
    Labels, NamedPort, Namespaces, Peer, PodFacts, PodState, PolicyState, Port, policy_state,
};
use super::ports::{PortSet, prefixes};
use super::range::Range;
use super::rules::{ActiveRule, Class, Table, TableKey};
use super::stages::{Change, in_stages};
use super::{EndpointPolicy, Op};
use crate::service::ObjectName;

/// A part of a policy that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The policy.
    pub policy: ObjectName,
    /// The field, what is wrong with it and what follows.
    pub message: String,
}

/// Tables of rules, and the policies that add up to each.
pub type TablePolicies = BTreeMap<u32, Vec<ObjectName>>;

/// A policy and the number of its version.
#[derive(Debug, Clone)]
struct Version {
    number: u32,
    state: Arc<PolicyState>,
}

/// A pod of this node.
#[derive(Debug, Clone)]
struct Local {
    facts: PodFacts,
    addresses: Vec<Address>,
    /// The policies that select it.
    selected: BTreeSet<ObjectName>,
    /// Its tables for ingress and egress, 0 for none; nothing before the first [`Compiler::plan`].
    tables: Option<[u32; 2]>,
}

/// A version of a policy that selects a pod of this node.
#[derive(Debug)]
struct Active {
    users: usize,
    peers: Vec<u32>,
    rules: [Option<Vec<ActiveRule>>; 2],
}

/// What changed since the last plan.
#[derive(Debug, Default)]
struct Dirty {
    policies: BTreeSet<ObjectName>,
    locals: BTreeSet<Arc<str>>,
    addresses: BTreeSet<Address>,
    /// Whether peers went that are ranges.
    ranges: bool,
}

/// All policies, namespaces and pods, reduced to what concerns the pods of this node.
#[derive(Debug, Default)]
pub struct Compiler {
    space: u32,
    namespaces: BTreeMap<Arc<str>, Labels>,
    pods: BTreeMap<ObjectName, PodState>,
    policies: BTreeMap<ObjectName, Version>,
    problems: BTreeMap<ObjectName, Vec<String>>,
    locals: BTreeMap<Arc<str>, Local>,
    versions: u32,
    states: BTreeMap<u32, Arc<PolicyState>>,
    /// Pods of the API by address; one that ended late and its successor may both be there.
    holders: BTreeMap<Address, BTreeSet<ObjectName>>,
    local_holders: BTreeMap<Address, Arc<str>>,
    active: BTreeMap<u32, Active>,
    peers: Interner<Peer>,
    /// Peers that are pods of one namespace, by that; and all others.
    scoped: BTreeMap<Arc<str>, BTreeSet<u32>>,
    unscoped: BTreeSet<u32>,
    classes: Interner<Class>,
    keys: Interner<TableKey>,
    tables: BTreeMap<u32, Table>,
    sets: Interner<PortSet>,
    identities: BTreeMap<Address, u32>,
    prefixes: BTreeMap<Range, u32>,
    /// Names of ports in active egress rules.
    names: BTreeSet<(Arc<str>, u8)>,
    dirty: Dirty,
}

impl Compiler {
    /// An empty compiler that writes into a space.
    #[must_use]
    pub fn new(space: u32) -> Self {
        Self { space, ..Self::default() }
    }

    /// The space it writes into.
    #[must_use]
    pub fn space(&self) -> u32 {
        self.space
    }

    /// Forgets what it has planned: the next plan writes everything, into another space.
    pub fn start_over(&mut self, space: u32) {
        self.space = space;
        self.active.clear();
        self.peers = Interner::default();
        self.scoped.clear();
        self.unscoped.clear();
        self.classes = Interner::default();
        self.keys = Interner::default();
        self.tables.clear();
        self.sets = Interner::default();
        self.identities.clear();
        self.prefixes.clear();
        self.names.clear();
        for local in self.locals.values_mut() {
            local.tables = None;
            local.selected.clear();
        }
        self.dirty.policies = self.policies.keys().cloned().collect();
        self.dirty.locals = self.locals.keys().cloned().collect();
        self.dirty.addresses = self.holders.keys().chain(self.local_holders.keys()).copied().collect();
    }

    /// Whether there is any policy.
    #[must_use]
    pub fn has_policies(&self) -> bool {
        !self.policies.is_empty()
    }

    /// The parts of policies that cannot be used.
    pub fn problems(&self) -> impl Iterator<Item = Problem> {
        self.problems.iter().flat_map(|(policy, messages)| {
            messages.iter().map(|message| Problem { policy: policy.clone(), message: message.clone() })
        })
    }

    /// The pods' attachments: how many there are.
    #[must_use]
    pub fn local_count(&self) -> usize {
        self.locals.len()
    }

    /// Takes over a NetworkPolicy.
    pub fn apply_policy(&mut self, policy: &NetworkPolicy) {
        let (Some(namespace), Some(name)) = (&policy.metadata.namespace, &policy.metadata.name) else {
            return;
        };
        let name = ObjectName::new(namespace, name);
        let (state, problems) = policy_state(policy);
        if problems.is_empty() {
            self.problems.remove(&name);
        } else {
            self.problems.insert(name.clone(), problems);
        }
        let Some(state) = state else { return self.delete_policy(&name) };
        if self.policies.get(&name).is_some_and(|known| *known.state == state) {
            return;
        }
        self.versions += 1;
        let version = Version { number: self.versions, state: Arc::new(state) };
        self.states.insert(version.number, version.state.clone());
        if let Some(old) = self.policies.insert(name.clone(), version) {
            self.states.remove(&old.number);
        }
        self.dirty.policies.insert(name);
    }

    /// Forgets a NetworkPolicy.
    pub fn delete_policy(&mut self, name: &ObjectName) {
        if let Some(old) = self.policies.remove(name) {
            self.states.remove(&old.number);
            self.dirty.policies.insert(name.clone());
        }
    }

    /// Forgets the NetworkPolicies that are not among these.
    pub fn retain_policies(&mut self, keep: &BTreeSet<ObjectName>) {
        self.problems.retain(|name, _| keep.contains(name));
        let gone: Vec<_> = self.policies.keys().filter(|name| !keep.contains(name)).cloned().collect();
        for name in gone {
            self.delete_policy(&name);
        }
    }

    /// Takes over the labels of a Namespace; one that is unknown has none.
    pub fn apply_namespace(&mut self, name: &str, labels: &Labels) {
        if self.namespaces.get(name) != Some(labels) {
            self.namespaces.insert(name.into(), labels.clone());
            self.touch_namespace(name);
        }
    }

    /// Forgets a Namespace.
    pub fn delete_namespace(&mut self, name: &str) {
        if self.namespaces.remove(name).is_some() {
            self.touch_namespace(name);
        }
    }

    /// Forgets the Namespaces that are not among these.
    pub fn retain_namespaces(&mut self, keep: &BTreeSet<String>) {
        let gone: Vec<_> = self.namespaces.keys().filter(|name| !keep.contains(&***name)).cloned().collect();
        for name in gone {
            self.delete_namespace(&name);
        }
    }

    fn touch_namespace(&mut self, name: &str) {
        let addresses = self.pods_of(name).flat_map(|pod| &pod.addresses).copied().collect::<Vec<_>>();
        self.dirty.addresses.extend(addresses);
        let locals = self.locals.values().filter(|local| &*local.facts.name.namespace == name);
        self.dirty.addresses.extend(locals.flat_map(|local| &local.addresses));
    }

    fn pods_of(&self, namespace: &str) -> impl Iterator<Item = &PodState> {
        let from = ObjectName::new(namespace, "");
        let namespace = from.namespace.clone();
        self.pods.range(from..).take_while(move |(name, _)| name.namespace == namespace).map(|(_, pod)| pod)
    }

    /// Takes over a Pod of any node.
    pub fn apply_pod(&mut self, pod: PodState) {
        let name = pod.facts.name.clone();
        if self.pods.get(&name) == Some(&pod) {
            return;
        }
        self.delete_pod(&name);
        for address in &pod.addresses {
            self.holders.entry(*address).or_default().insert(name.clone());
            self.dirty.addresses.insert(*address);
        }
        let facts = pod.facts.clone();
        self.pods.insert(name, pod);
        if let Some(local) = self.locals.get(&facts.uid) {
            let addresses = local.addresses.clone();
            self.attach(facts, addresses);
        }
    }

    /// Forgets a Pod. (One of this node stays until it is detached.)
    pub fn delete_pod(&mut self, name: &ObjectName) {
        let Some(old) = self.pods.remove(name) else { return };
        for address in &old.addresses {
            if let Some(holders) = self.holders.get_mut(address) {
                holders.remove(name);
                if holders.is_empty() {
                    self.holders.remove(address);
                }
            }
            self.dirty.addresses.insert(*address);
        }
    }

    /// Forgets the Pods that are not among these.
    pub fn retain_pods(&mut self, keep: &BTreeSet<ObjectName>) {
        let gone: Vec<_> = self.pods.keys().filter(|name| !keep.contains(name)).cloned().collect();
        for name in gone {
            self.delete_pod(&name);
        }
    }

    /// Takes over a pod of this node, before it runs, with the addresses that it will have.
    pub fn attach(&mut self, facts: PodFacts, addresses: Vec<Address>) {
        // What the API shows is newer than what the pod was started with.
        let facts = match self.pods.get(&facts.name) {
            Some(shown) if shown.facts.uid == facts.uid => shown.facts.clone(),
            _ => facts,
        };
        let uid = facts.uid.clone();
        match self.locals.get(&uid) {
            Some(known) if known.facts == facts && known.addresses == addresses => return,
            Some(known) if known.addresses != addresses => self.detach(&uid),
            _ => {}
        }
        for address in &addresses {
            self.local_holders.insert(*address, uid.clone());
        }
        self.dirty.addresses.extend(&addresses);
        self.dirty.locals.insert(uid.clone());
        let namespace = facts.name.namespace.clone();
        let from = ObjectName { namespace: namespace.clone(), name: "".into() };
        let policies = self.policies.range(from..).take_while(|(name, _)| name.namespace == namespace);
        let selected = policies
            .filter(|(_, version)| version.state.selector.matches(&facts.labels))
            .map(|(name, _)| name.clone())
            .collect();
        // The former tables stay in use until the plan.
        let tables = self.locals.get(&uid).and_then(|known| known.tables);
        self.locals.insert(uid, Local { facts, addresses, selected, tables });
    }

    /// Forgets a pod of this node by its addresses.
    pub fn detach_addresses(&mut self, addresses: &[Address]) {
        for address in addresses {
            if let Some(uid) = self.local_holders.get(address).cloned() {
                self.detach(&uid);
            }
        }
    }

    fn detach(&mut self, uid: &Arc<str>) {
        let Some(local) = self.locals.remove(uid) else { return };
        for address in &local.addresses {
            if self.local_holders.get(address) == Some(uid) {
                self.local_holders.remove(address);
            }
            self.dirty.addresses.insert(*address);
        }
        // The tables themselves go with the next plan.
        for table in local.tables.into_iter().flatten().filter(|table| *table != 0) {
            self.keys.give_back(table);
        }
        self.dirty.locals.insert(uid.clone());
    }

    /// The policies of a pod of this node as last planned.
    #[must_use]
    pub fn policy_of(&self, uid: &str) -> Option<EndpointPolicy> {
        let local = self.locals.get(uid)?;
        let [ingress, egress] = local.tables?;
        Some(EndpointPolicy { addresses: local.addresses.clone(), space: self.space, ingress, egress })
    }

    /// The policies that add up to each table as last planned. They are of one namespace, sorted.
    #[must_use]
    pub fn table_policies(&self) -> TablePolicies {
        let mut found = TablePolicies::new();
        for local in self.locals.values() {
            for (direction, table) in
                local.tables.into_iter().flat_map(|tables| tables.into_iter().enumerate())
            {
                if table == 0 || found.contains_key(&table) {
                    continue;
                }
                let is_about = |name: &&ObjectName| {
                    self.policies.get(*name).is_some_and(|version| match direction {
                        0 => version.state.ingress.is_some(),
                        _ => version.state.egress.is_some(),
                    })
                };
                found.insert(table, local.selected.iter().filter(is_about).cloned().collect());
            }
        }
        found
    }

    /// What has to be done; it is taken to be done.
    pub fn plan(&mut self) -> Vec<Op> {
        let mut ops = Vec::new();
        // What nobody uses any more makes other things coarser: a second round sees to those.
        loop {
            let round = self.round();
            ops.extend(round);
            if self.dirty.addresses.is_empty() && !self.dirty.ranges {
                return ops;
            }
        }
    }

    fn round(&mut self) -> Vec<Op> {
        let dirty = std::mem::take(&mut self.dirty);
        let mut plan = Plan::default();
        let moved = self.select(&dirty);
        let former = self.wanted_keys(&moved, &mut plan);
        self.classify(&dirty, &mut plan);
        self.fill_tables(&mut plan);
        let mut changes = Vec::new();
        for (uid, old) in former {
            if let Some(new) = self.policy_of(&uid)
                && old != Some([new.ingress, new.egress])
            {
                changes.push(Change { old, new });
            }
            for table in old.into_iter().flatten().filter(|table| *table != 0) {
                self.keys.give_back(table);
            }
        }
        plan.endpoints = in_stages(changes);
        self.retire(&mut plan);
        plan.into_ops()
    }

    /// Which policies select the pods of this node; returns the pods for which that may have changed.
    fn select(&mut self, dirty: &Dirty) -> BTreeSet<Arc<str>> {
        let mut moved = dirty.locals.clone();
        for name in &dirty.policies {
            let version = self.policies.get(name);
            for (uid, local) in &mut self.locals {
                if local.facts.name.namespace != name.namespace {
                    continue;
                }
                let before = local.selected.contains(name);
                let now = version.is_some_and(|version| version.state.selector.matches(&local.facts.labels));
                if now {
                    local.selected.insert(name.clone());
                } else {
                    local.selected.remove(name);
                }
                if before || now {
                    moved.insert(uid.clone());
                }
            }
        }
        moved
    }

    /// Gives the moved pods the tables of their policies; returns those they had.
    fn wanted_keys(
        &mut self,
        moved: &BTreeSet<Arc<str>>,
        plan: &mut Plan,
    ) -> BTreeMap<Arc<str>, Option<[u32; 2]>> {
        let mut former = BTreeMap::new();
        for uid in moved {
            let Some(local) = self.locals.get(uid) else { continue };
            former.insert(uid.clone(), local.tables);
            let mut tables = [0, 0];
            for (direction, table) in tables.iter_mut().enumerate() {
                let Some(key) = self.key_of(local, direction == 0) else { continue };
                let (number, new) = self.keys.take(&key);
                *table = number;
                if new {
                    plan.new_tables.push((number, key));
                }
            }
            if let Some(local) = self.locals.get_mut(uid) {
                local.tables = Some(tables);
            }
        }
        let numbers: Vec<u32> = plan.new_tables.iter().flat_map(|(_, key)| key.policies.clone()).collect();
        for number in numbers {
            self.activate(number, plan);
        }
        former
    }

    /// The table that a pod needs for one direction; nothing when no policy is about it.
    fn key_of(&self, local: &Local, ingress: bool) -> Option<TableKey> {
        let mut policies = Vec::new();
        let mut named: Vec<NamedPort> = Vec::new();
        for version in local.selected.iter().filter_map(|name| self.policies.get(name)) {
            let state = &version.state;
            let Some(rules) = (if ingress { &state.ingress } else { &state.egress }) else { continue };
            policies.push(version.number);
            if ingress {
                let names: BTreeSet<_> =
                    names_of(rules.iter().flat_map(|rule| rule.ports.iter().flatten())).collect();
                let own = local.facts.ports.iter();
                named.extend(
                    own.filter(|(name, protocol, _)| names.contains(&(name.clone(), *protocol))).cloned(),
                );
            }
        }
        policies.sort_unstable();
        named.sort_unstable();
        named.dedup();
        (!policies.is_empty()).then_some(TableKey { ingress, policies, named })
    }

    /// Makes the peers of a version known, and counts one table more that uses it.
    fn activate(&mut self, number: u32, plan: &mut Plan) {
        if let Some(active) = self.active.get_mut(&number) {
            active.users += 1;
            return;
        }
        let Some(state) = self.states.get(&number).cloned() else { return };
        let mut peers = Vec::new();
        let rules = [&state.ingress, &state.egress].map(|rules| {
            rules.as_ref().map(|rules| {
                rules
                    .iter()
                    .map(|rule| ActiveRule {
                        peers: rule.peers.as_ref().map(|list| {
                            list.iter()
                                .map(|peer| {
                                    let (peer_number, new) = self.peers.take(peer);
                                    peers.push(peer_number);
                                    if new {
                                        plan.new_peers.insert(peer_number);
                                        self.scoped_mut(peer).insert(peer_number);
                                    }
                                    peer_number
                                })
                                .collect()
                        }),
                        ports: rule.ports.clone(),
                    })
                    .collect()
            })
        });
        self.active.insert(number, Active { users: 1, peers, rules });
    }

    /// The set of peers of a scope.
    fn scoped_mut(&mut self, peer: &Peer) -> &mut BTreeSet<u32> {
        match peer {
            Peer::Pods(Namespaces::Own(namespace), _) => self.scoped.entry(namespace.clone()).or_default(),
            _ => &mut self.unscoped,
        }
    }

    /// Gives addresses and ranges their identities.
    fn classify(&mut self, dirty: &Dirty, plan: &mut Plan) {
        let egress = self.active.values().filter_map(|active| active.rules[1].as_ref()).flatten();
        let names: BTreeSet<_> = names_of(egress.flat_map(|rule| rule.ports.iter().flatten())).collect();
        let mut addresses = dirty.addresses.clone();
        if names != self.names {
            self.names = names;
            addresses.extend(self.holders.keys().chain(self.local_holders.keys()));
        } else {
            for number in &plan.new_peers {
                let Some(peer) = self.peers.get(*number) else { continue };
                self.find(peer, &mut addresses);
            }
        }
        for address in &addresses {
            let class = self.class_of(address);
            self.identify(*address, &class, plan);
        }
        let is_block = |number: &u32| matches!(self.peers.get(*number), Some(Peer::Block(..)));
        if dirty.ranges || plan.new_peers.iter().any(is_block) {
            self.classify_ranges(plan);
        }
    }

    /// Adds the addresses of pods that match a peer.
    fn find(&self, peer: &Peer, found: &mut BTreeSet<Address>) {
        let is_here = |address: &&Address| {
            self.facts_at(address).is_some_and(|facts| self.matches(peer, facts, address))
        };
        if let Peer::Pods(Namespaces::Own(namespace), _) = peer {
            let pods = self.pods_of(namespace).flat_map(|pod| &pod.addresses);
            let locals = self.locals.values().filter(|local| local.facts.name.namespace == *namespace);
            found.extend(pods.chain(locals.flat_map(|local| &local.addresses)).filter(is_here));
        } else {
            found.extend(self.holders.keys().chain(self.local_holders.keys()).filter(is_here));
        }
    }

    /// The pod that has an address: this node's, else the youngest.
    fn facts_at(&self, address: &Address) -> Option<&PodFacts> {
        if let Some(local) = self.local_holders.get(address).and_then(|uid| self.locals.get(uid)) {
            return Some(&local.facts);
        }
        let holders = self.holders.get(address)?.iter().filter_map(|name| self.pods.get(name));
        holders.max_by_key(|pod| pod.created).map(|pod| &pod.facts)
    }

    fn matches(&self, peer: &Peer, facts: &PodFacts, address: &Address) -> bool {
        match peer {
            Peer::Pods(namespaces, pods) => {
                let namespace = match namespaces {
                    Namespaces::Own(own) => facts.name.namespace == *own,
                    Namespaces::Selected(selector) => {
                        selector.matches(&self.namespaces.get(&facts.name.namespace))
                    }
                };
                namespace && pods.matches(&facts.labels)
            }
            Peer::Block(range, except) => in_block(address, range, except),
        }
    }

    fn class_of(&self, address: &Address) -> Class {
        // Without a pod the address is one of a range's.
        let Some(facts) = self.facts_at(address) else { return Class::default() };
        let scoped = self.scoped.get(&facts.name.namespace).into_iter().flatten();
        let is_match =
            |number: &&u32| self.peers.get(**number).is_some_and(|peer| self.matches(peer, facts, address));
        let mut peers: Vec<u32> = scoped.chain(&self.unscoped).filter(is_match).copied().collect();
        peers.sort_unstable();
        let named = facts.ports.iter();
        let named = named.filter(|(name, protocol, _)| self.names.contains(&(name.clone(), *protocol)));
        Class { peers, named: named.cloned().collect() }
    }

    fn identify(&mut self, address: Address, class: &Class, plan: &mut Plan) {
        let old = self.identities.get(&address).copied();
        let key = IdentityKey { space: self.space, address };
        if class.is_nobody() {
            if let Some(old) = old {
                self.identities.remove(&address);
                plan.flips.push(Op::DeleteIdentity(key));
                plan.left.push(old);
            }
            return;
        }
        let (identity, new) = self.classes.take(class);
        if new {
            plan.new_classes.insert(identity);
        }
        if old == Some(identity) {
            self.classes.give_back(identity);
            return;
        }
        plan.left.extend(old);
        self.identities.insert(address, identity);
        plan.flips.push(Op::PutIdentity(key, identity));
    }

    /// Gives every range that a block names its identity: that of the blocks it lies in.
    fn classify_ranges(&mut self, plan: &mut Plan) {
        let blocks: Vec<(u32, &Range, &Vec<Range>)> = self
            .peers
            .iter()
            .filter_map(|(number, peer)| match peer {
                Peer::Block(range, except) => Some((number, range, except)),
                Peer::Pods(..) => None,
            })
            .collect();
        let mut ranges: BTreeSet<Range> =
            blocks.iter().flat_map(|(_, range, except)| except.iter().chain([*range])).copied().collect();
        // In the map, IPv4 addresses lie inside short IPv6 prefixes; here they do not.
        if ranges.iter().any(|range| !range.is_v4() && range.prefix < 96) {
            ranges.insert(Range::V4);
        }
        let mut classes: Vec<(Range, Class)> = ranges
            .into_iter()
            .map(|inner| {
                let inside = blocks.iter().filter(|(_, range, except)| {
                    range.covers(&inner) && !except.iter().any(|except| except.covers(&inner))
                });
                let peers = inside.map(|(number, ..)| *number).collect();
                (inner, Class { peers, named: Vec::new() })
            })
            .collect();
        let mut old = std::mem::take(&mut self.prefixes);
        // An exception is there before the range it is an exception of.
        classes.sort_by_key(|(range, _)| std::cmp::Reverse(range.prefix));
        for (range, class) in classes {
            let (identity, new) =
                if class.is_nobody() { (ANYBODY, false) } else { self.classes.take(&class) };
            if new {
                plan.new_classes.insert(identity);
            }
            let before = old.remove(&range);
            plan.left.extend(before.filter(|before| *before != ANYBODY));
            self.prefixes.insert(range, identity);
            if before != Some(identity) {
                plan.flips.push(Op::PutPrefix(self.prefix_key(&range), identity));
            }
        }
        for (range, identity) in old {
            plan.flips.push(Op::DeletePrefix(self.prefix_key(&range)));
            plan.left.extend((identity != ANYBODY).then_some(identity));
        }
    }

    fn prefix_key(&self, range: &Range) -> PrefixKey {
        PrefixKey::new(self.space, range.network, u32::from(range.prefix))
    }

    /// Writes the rules of new tables for all identities, and those of all tables for new identities.
    fn fill_tables(&mut self, plan: &mut Plan) {
        let mut tables = std::mem::take(&mut self.tables);
        for (number, table) in &mut tables {
            for identity in &plan.new_classes {
                self.fill(*number, table, *identity, &mut plan.puts);
            }
        }
        let identities: Vec<u32> = self.classes.iter().map(|(number, _)| number).collect();
        for (number, key) in &plan.new_tables {
            let rules = key.policies.iter().filter_map(|number| self.active.get(number));
            let direction = usize::from(!key.ingress);
            let rules = rules.filter_map(|active| active.rules.get(direction)?.clone()).flatten().collect();
            let mut table = Table::new(key, rules);
            for identity in std::iter::once(ANYBODY).chain(identities.iter().copied()) {
                self.fill(*number, &mut table, identity, &mut plan.puts);
            }
            tables.insert(*number, table);
        }
        self.tables = tables;
    }

    fn fill(&mut self, number: u32, table: &mut Table, identity: u32, puts: &mut Vec<Op>) {
        let class = if identity == ANYBODY { None } else { self.classes.get(identity) };
        let Some(allowed) = table.allowed(class) else { return };
        let set = match &allowed {
            PortSet::All => ALL_PORTS,
            PortSet::Some(_) => {
                let (set, new) = self.sets.take(&allowed);
                if new {
                    puts.extend(ports_of(self.space, set, &allowed).into_iter().map(Op::PutPorts));
                }
                set
            }
        };
        table.rows.insert(identity, set);
        puts.push(Op::PutRule(RuleKey { space: self.space, policy: number, identity }, set));
    }

    /// Forgets what nothing leads to any more.
    fn retire(&mut self, plan: &mut Plan) {
        let unused: Vec<u32> =
            self.tables.keys().filter(|number| self.keys.get(**number).is_none()).copied().collect();
        let mut peers = BTreeSet::new();
        for number in unused {
            let Some(table) = self.tables.remove(&number) else { continue };
            for (identity, set) in &table.rows {
                self.drop_row(number, *identity, *set, &mut plan.removals);
            }
            for version in &table.policies {
                let Some(active) = self.active.get_mut(version) else { continue };
                active.users -= 1;
                if active.users == 0
                    && let Some(active) = self.active.remove(version)
                {
                    for number in active.peers {
                        if let Some(peer) = self.peers.give_back(number) {
                            self.scoped_mut(&peer).remove(&number);
                            self.dirty.ranges |= matches!(peer, Peer::Block(..));
                            peers.insert(number);
                        }
                    }
                    let names = names_of(
                        active.rules[1].iter().flatten().flat_map(|rule| rule.ports.iter().flatten()),
                    );
                    if names.count() > 0 {
                        self.dirty.addresses.extend(self.identities.keys());
                    }
                }
            }
        }
        self.scoped.retain(|_, peers| !peers.is_empty());
        for identity in std::mem::take(&mut plan.left) {
            if self.classes.give_back(identity).is_none() {
                continue;
            }
            let mut tables = std::mem::take(&mut self.tables);
            for (number, table) in &mut tables {
                if let Some(set) = table.rows.remove(&identity) {
                    self.drop_row(*number, identity, set, &mut plan.removals);
                }
            }
            self.tables = tables;
        }
        if !peers.is_empty() {
            let smaller: BTreeSet<u32> = self
                .classes
                .iter()
                .filter(|(_, class)| class.peers.iter().any(|peer| peers.contains(peer)))
                .map(|(identity, _)| identity)
                .collect();
            let touched = self.identities.iter().filter(|(_, identity)| smaller.contains(identity));
            self.dirty.addresses.extend(touched.map(|(address, _)| *address));
        }
    }

    fn drop_row(&mut self, policy: u32, identity: u32, set: u32, removals: &mut Vec<Op>) {
        removals.push(Op::DeleteRule(RuleKey { space: self.space, policy, identity }));
        if set != ALL_PORTS
            && let Some(ports) = self.sets.give_back(set)
        {
            removals.extend(ports_of(self.space, set, &ports).into_iter().map(Op::DeletePorts));
        }
    }
}

/// What one round does.
#[derive(Debug, Default)]
struct Plan {
    puts: Vec<Op>,
    flips: Vec<Op>,
    endpoints: Vec<Op>,
    removals: Vec<Op>,
    new_tables: Vec<(u32, TableKey)>,
    new_peers: BTreeSet<u32>,
    new_classes: BTreeSet<u32>,
    /// Identities with one address or range less; once for each.
    left: Vec<u32>,
}

impl Plan {
    fn into_ops(self) -> Vec<Op> {
        let mut ops = self.puts;
        let changes = self.flips.len() + self.endpoints.len();
        ops.extend(self.flips);
        ops.extend(self.endpoints);
        ops.extend((changes > 0).then_some(Op::Revise));
        ops.extend(self.removals);
        ops
    }
}

pub(super) fn in_block(address: &Address, range: &Range, except: &[Range]) -> bool {
    range.contains(address) && !except.iter().any(|except| except.contains(address))
}

/// The names of ports.
fn names_of<'a>(ports: impl Iterator<Item = &'a Port>) -> impl Iterator<Item = (Arc<str>, u8)> {
    ports.filter_map(|port| match port {
        Port::Named(name, protocol) => Some((name.clone(), *protocol)),
        Port::Numbers(_) => None,
    })
}

/// The entries of a set.
fn ports_of(space: u32, set: u32, ports: &PortSet) -> Vec<PortKey> {
    let PortSet::Some(ranges) = ports else { return Vec::new() };
    let keys = ranges.iter().flat_map(|(protocol, first, last)| {
        let prefixes = prefixes(*first, *last).into_iter();
        prefixes.map(move |(port, bits)| PortKey::new(space, set, *protocol, port, bits))
    });
    keys.collect()
}
