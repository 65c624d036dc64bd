//! What the Services and EndpointSlices of a cluster, and the ports of a node's pods, mean for the node's dataplane.
//!
//! [`Index`] is fed by watches (apply, delete, reset) and answers with [`Desired`]: frontends, the tables of backends
//! they lead to, and all backends that connections may still use. Which endpoints take part follows upstream's
//! kube-proxy; see [`endpoints`].

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kelp_common::service::{
    FRONTEND_DROP, FRONTEND_LOCAL_ONLY, FRONTEND_MAGLEV, FRONTEND_NODE_PORT, FRONTEND_SOURCE_RANGES,
    FRONTEND_TWO_SCOPES, SCOPE_CLUSTER, SCOPE_EXTERNAL,
};
use kelp_common::{Address, FrontendKey, UDP};

use crate::hash::HashMap;

mod balancing;
pub mod endpoints;
mod local_dns;
mod merge;
pub(crate) mod names;
mod pods;
pub(crate) mod state;

pub use balancing::{Balancing, Lookup};
use endpoints::{Endpoints, Site};
pub use local_dns::LocalDns;
use merge::Merged;
pub use merge::Touched;
use names::{Holders, NamedService, Names};
use pods::PodState;
pub use pods::{SOCKET_ANNOTATION, pod_addresses};
pub use state::{ALGORITHM_ANNOTATION, WEIGHTS_ANNOTATION};
use state::{Port, ServiceState, SliceState, name_of, service_state, slice_state};

/// Label of a Node with its zone.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// Namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl ObjectName {
    /// A name from its parts.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl std::fmt::Display for ObjectName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What a table of backends stands for: one port of one Service, one family, all endpoints or the node's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableName {
    /// The Service; the Pod of a `hostPort`.
    pub service: ObjectName,
    /// Name of the port; empty when it has none; `hostPort/…` for one of a Pod.
    pub port: Arc<str>,
    /// Protocol number.
    pub protocol: u8,
    /// Whether the backends have IPv4 addresses.
    pub v4: bool,
    /// Whether only endpoints of this node take part.
    pub local: bool,
}

/// An endpoint of any number of Services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendKey {
    /// Address.
    pub address: Address,
    /// Port, network byte order.
    pub port: u16,
    /// Protocol number.
    pub protocol: u8,
}

/// A frontend as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredFrontend {
    /// Where it leads.
    pub table: TableName,
    /// Session affinity, seconds; 0 is none.
    pub affinity_seconds: u32,
    /// `FRONTEND_*` bits.
    pub flags: u32,
    /// For datagrams: the endpoints that serve, also those that new flows no longer go to. Flows to others are stale.
    pub serving: Option<Arc<BTreeSet<BackendKey>>>,
}

/// A range of clients: a network and the length of its prefix in the v4-mapped form.
pub type Range = (Address, u8);

/// Two Services (or Pods, by `hostPort`) want the same address and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// What both want.
    pub frontend: FrontendKey,
    /// Who has it: the older one.
    pub holder: ObjectName,
    /// Who does not.
    pub loser: ObjectName,
    /// Whether the loser is a Pod.
    pub loser_is_pod: bool,
}

/// The HTTP server that tells a load balancer whether this node has endpoints of a Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthCheck {
    /// `healthCheckNodePort`, host byte order.
    pub port: u16,
    /// Ready endpoints on this node.
    pub endpoints: usize,
}

/// The state of the maps that the cluster asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Desired {
    /// Frontends.
    pub frontends: BTreeMap<FrontendKey, DesiredFrontend>,
    /// Backends of each table, in the order of their slots.
    pub tables: BTreeMap<TableName, Vec<BackendKey>>,
    /// All backends; `true` for those in no table, which established connections keep using.
    pub backends: HashMap<BackendKey, bool>,
    /// The clients of the tables behind frontends with [`FRONTEND_SOURCE_RANGES`].
    pub ranges: BTreeMap<TableName, BTreeSet<Range>>,
    /// The tables behind frontends with [`FRONTEND_MAGLEV`] that have a choice.
    pub lookups: BTreeMap<TableName, Lookup>,
    /// Addresses of pods whose sockets are left alone.
    pub opted_out: BTreeSet<Address>,
    /// Services with `healthCheckNodePort`.
    pub health_checks: BTreeMap<ObjectName, HealthCheck>,
    /// Frontends that more than one wants.
    pub conflicts: Vec<Conflict>,
    /// Service ports that have endpoints, but none on this node, where only those may be used: by
    /// `internalTrafficPolicy` and by `externalTrafficPolicy`.
    pub without_local_endpoints: (usize, usize),
}

/// All Services and EndpointSlices, and the pods of this node, reduced to what the dataplane needs.
#[derive(Debug, Clone, Default)]
pub struct Index {
    site: Site,
    services: BTreeMap<ObjectName, ServiceState>,
    slices: BTreeMap<ObjectName, SliceState>,
    by_service: BTreeMap<ObjectName, BTreeSet<ObjectName>>,
    pods: BTreeMap<ObjectName, PodState>,
    merged: Merged,
    /// Services and Pods (`true`) that changed since the last update.
    dirty: BTreeSet<(bool, ObjectName)>,
    names: Names,
    holders: Holders,
    local_dns: Option<LocalDns>,
    balancing: Balancing,
}

impl Index {
    /// An empty index for the node of this name.
    #[must_use]
    pub fn new(node: &str) -> Self {
        Self { site: Site { node: node.into(), zone: None }, ..Self::default() }
    }

    /// With a DNS server on this node, for the Service of cluster DNS as long as that has no endpoints of its own.
    #[must_use]
    pub fn with_local_dns(mut self, server: Option<LocalDns>) -> Self {
        self.local_dns = server;
        self
    }

    /// With another way to lead clients outside the cluster than by chance.
    #[must_use]
    pub fn with_balancing(mut self, balancing: Balancing) -> Self {
        self.balancing = balancing;
        self
    }

    /// Takes over the zone of the node. Returns whether it changed.
    pub fn apply_node(&mut self, node: &Node) -> bool {
        let zone = node.metadata.labels.as_ref().and_then(|labels| labels.get(ZONE_LABEL));
        let zone: Option<Arc<str>> = zone.filter(|zone| !zone.is_empty()).map(|zone| zone.as_str().into());
        let changed = self.site.zone != zone;
        self.site.zone = zone;
        if changed {
            self.dirty.extend(self.services.keys().map(|name| (false, name.clone())));
        }
        changed
    }

    /// Takes over a Service. Returns whether anything the dataplane looks at changed.
    pub fn apply_service(&mut self, service: &Service) -> bool {
        let Some(name) = name_of(&service.metadata) else { return false };
        self.names.set(&name, NamedService::of(service));
        self.put_service(name, service_state(service))
    }

    /// Forgets a Service. Returns whether it was known.
    pub fn delete_service(&mut self, service: &Service) -> bool {
        let Some(name) = name_of(&service.metadata) else { return false };
        self.names.set(&name, None);
        self.put_service(name, None)
    }

    /// Replaces all Services: what the list does not have is forgotten. Returns whether anything changed.
    pub fn reset_services(&mut self, services: &[Service]) -> bool {
        let mut gone: BTreeSet<ObjectName> = self.services.keys().cloned().collect();
        let mut changed = false;
        for service in services {
            let Some(name) = name_of(&service.metadata) else { continue };
            gone.remove(&name);
            changed |= self.put_service(name, service_state(service));
        }
        for name in gone {
            changed |= self.put_service(name, None);
        }
        self.names = Names::default();
        for service in services {
            if let (Some(name), Some(named)) = (name_of(&service.metadata), NamedService::of(service)) {
                self.names.set(&name, Some(named));
            }
        }
        changed
    }

    fn put_service(&mut self, name: ObjectName, state: Option<ServiceState>) -> bool {
        let changed = replace(&mut self.services, &name, state);
        if changed {
            self.dirty.insert((false, name));
        }
        changed
    }

    /// Takes over an EndpointSlice. Returns whether anything the dataplane looks at changed.
    pub fn apply_slice(&mut self, slice: &EndpointSlice) -> bool {
        let Some(name) = name_of(&slice.metadata) else { return false };
        let Some(state) = slice_state(slice, &self.site.node) else { return self.remove_slice(&name) };
        if self.slices.get(&name) == Some(&state) {
            return false;
        }
        self.remove_slice(&name);
        self.dirty.insert((false, state.service.clone()));
        self.by_service.entry(state.service.clone()).or_default().insert(name.clone());
        self.holders.add(&name, &state);
        self.slices.insert(name, state);
        true
    }

    /// Forgets an EndpointSlice. Returns whether it was known.
    pub fn delete_slice(&mut self, slice: &EndpointSlice) -> bool {
        name_of(&slice.metadata).is_some_and(|name| self.remove_slice(&name))
    }

    /// Replaces all EndpointSlices. Returns whether anything changed.
    pub fn reset_slices(&mut self, slices: &[EndpointSlice]) -> bool {
        let mut gone: BTreeSet<ObjectName> = self.slices.keys().cloned().collect();
        let mut changed = false;
        for slice in slices {
            if let Some(name) = name_of(&slice.metadata) {
                gone.remove(&name);
            }
            changed |= self.apply_slice(slice);
        }
        for name in gone {
            changed |= self.remove_slice(&name);
        }
        changed
    }

    fn remove_slice(&mut self, name: &ObjectName) -> bool {
        let Some(old) = self.slices.remove(name) else { return false };
        self.holders.remove(name, &old);
        self.dirty.insert((false, old.service.clone()));
        if let Some(names) = self.by_service.get_mut(&old.service) {
            names.remove(name);
            if names.is_empty() {
                self.by_service.remove(&old.service);
            }
        }
        true
    }

    /// Takes over a pod of this node. Returns whether anything the dataplane looks at changed.
    pub fn apply_pod(&mut self, pod: &Pod) -> bool {
        name_of(&pod.metadata).is_some_and(|name| self.put_pod(name, pods::pod_state(pod)))
    }

    /// Forgets a pod. Returns whether it was known.
    pub fn delete_pod(&mut self, pod: &Pod) -> bool {
        name_of(&pod.metadata).is_some_and(|name| self.put_pod(name, None))
    }

    /// Replaces all pods. Returns whether anything changed.
    pub fn reset_pods(&mut self, pods: &[Pod]) -> bool {
        let mut gone: BTreeSet<ObjectName> = self.pods.keys().cloned().collect();
        let mut changed = false;
        for pod in pods {
            let Some(name) = name_of(&pod.metadata) else { continue };
            gone.remove(&name);
            changed |= self.put_pod(name, pods::pod_state(pod));
        }
        for name in gone {
            changed |= self.put_pod(name, None);
        }
        changed
    }

    fn put_pod(&mut self, name: ObjectName, state: Option<PodState>) -> bool {
        let changed = replace(&mut self.pods, &name, state);
        if changed {
            self.dirty.insert((true, name));
        }
        changed
    }

    /// Takes what changed since the last call into [`Self::current`]; returns what may differ from before.
    pub fn update(&mut self) -> Touched {
        let mut touched = Touched::default();
        for (is_pod, name) in std::mem::take(&mut self.dirty) {
            let mut alone = Desired::default();
            let created = if is_pod {
                self.pods.get(&name).map(|pod| {
                    pods::claim(&name, pod, &mut alone);
                    pod.created
                })
            } else {
                self.services.get(&name).map(|service| {
                    self.service(&name, service, &mut alone);
                    service.created
                })
            };
            self.merged.set((is_pod, &name), created.map(|created| (created, alone)), &mut touched);
        }
        touched
    }

    /// The state the maps should have, as of the last [`Self::update`].
    #[must_use]
    pub fn current(&self) -> &Desired {
        &self.merged.desired
    }

    /// The state the maps should have, made from nothing: what [`Self::update`] keeps up to date. When several want one
    /// frontend, the oldest gets it; Services before Pods.
    #[must_use]
    pub fn desired(&self) -> Desired {
        let mut desired = Desired::default();
        let mut services: Vec<_> = self.services.iter().collect();
        services.sort_by_key(|(_, service)| service.created);
        for (name, service) in services {
            self.service(name, service, &mut desired);
        }
        let mut pods: Vec<_> = self.pods.iter().collect();
        pods.sort_by_key(|(_, pod)| pod.created);
        for (name, pod) in pods {
            pods::claim(name, pod, &mut desired);
        }
        for backends in desired.tables.values() {
            for backend in backends {
                desired.backends.insert(*backend, false);
            }
        }
        desired
    }

    /// The slices of a Service.
    pub(crate) fn slices_of(&self, name: &ObjectName) -> impl Iterator<Item = &SliceState> {
        self.by_service.get(name).into_iter().flatten().filter_map(|slice| self.slices.get(slice))
    }

    /// What the name of a Service stands for.
    pub(crate) fn named(&self, name: &ObjectName) -> Option<&NamedService> {
        self.names.get(name)
    }

    /// Whether any Service of a namespace has a name.
    pub(crate) fn names_in(&self, namespace: &str) -> bool {
        self.names.has_namespace(namespace)
    }

    /// The Service with a service address.
    pub(crate) fn service_at(&self, address: &Address) -> Option<&ObjectName> {
        self.names.at(address)
    }

    /// The slices that hold an address.
    pub(crate) fn slices_at(&self, address: Address) -> impl Iterator<Item = &SliceState> {
        self.holders.of(address).filter_map(|name| self.slices.get(name))
    }

    fn service(&self, name: &ObjectName, service: &ServiceState, desired: &mut Desired) {
        let own =
            self.local_dns.as_ref().and_then(|server| server.slices(name, service, || self.slices_of(name)));
        let slices: Vec<&SliceState> = match &own {
            Some(own) => own.iter().collect(),
            None => self.slices_of(name).collect(),
        };
        if let Some(port) = service.health_check_port {
            let endpoints = endpoints::local_ready(&slices);
            desired.health_checks.insert(name.clone(), HealthCheck { port, endpoints });
        }
        for (port, v4) in service.ports.iter().flat_map(|port| [(port, true), (port, false)]) {
            if service.addresses.iter().any(|address| address.is_v4() == v4) {
                let endpoints = Endpoints::new(&slices, port, v4, &self.site);
                let balancing = Balancing {
                    consistent: service.consistent.unwrap_or(self.balancing.consistent),
                    ..self.balancing
                };
                PortClaims { name, service, port, v4, endpoints: &endpoints, balancing }.make(desired);
            }
        }
    }
}

/// Puts or removes a value; whether that changed anything.
fn replace<V: PartialEq>(all: &mut BTreeMap<ObjectName, V>, name: &ObjectName, value: Option<V>) -> bool {
    match value {
        Some(value) if all.get(name) == Some(&value) => false,
        Some(value) => {
            all.insert(name.clone(), value);
            true
        }
        None => all.remove(name).is_some(),
    }
}

/// One port of a Service in one family.
struct PortClaims<'a> {
    name: &'a ObjectName,
    service: &'a ServiceState,
    port: &'a Port,
    v4: bool,
    endpoints: &'a Endpoints<'a>,
    balancing: Balancing,
}

impl PortClaims<'_> {
    fn make(&self, desired: &mut Desired) {
        let Self { service, port, endpoints, .. } = *self;
        for backend in endpoints.lasting() {
            desired.backends.entry(backend).or_insert(true);
        }
        let serving = (port.protocol == UDP).then(|| Arc::new(endpoints.serving()));
        let mut claim = |address: Address, number: u16, scope: u8, local: bool, flags: u32| {
            self.claim(desired, &serving, (address, number, scope), local, flags)
        };
        let own = |address: &&Address| address.is_v4() == self.v4;
        for address in service.addresses.iter().filter(own) {
            claim(*address, port.port, SCOPE_CLUSTER, service.internal_local, 0);
        }
        // Clients in the cluster reach all endpoints by every address; others only the node's own.
        let consistent = if self.balancing.consistent { FRONTEND_MAGLEV } else { 0 };
        let mut outside = |address: Address, number: u16, flags: u32| {
            if service.external_local {
                claim(address, number, SCOPE_CLUSTER, false, flags | FRONTEND_TWO_SCOPES);
                claim(address, number, SCOPE_EXTERNAL, true, flags | FRONTEND_LOCAL_ONLY | consistent);
            } else {
                claim(address, number, SCOPE_CLUSTER, false, flags | consistent);
            }
        };
        // First: an address that is both a load balancer's and external is restricted.
        let restricted = if service.source_ranges.is_some() { FRONTEND_SOURCE_RANGES } else { 0 };
        for address in service.balancers.iter().filter(own) {
            outside(*address, port.port, restricted);
        }
        for address in service.external.iter().filter(own) {
            outside(*address, port.port, 0);
        }
        if port.node_port != 0 {
            let any = if self.v4 { Address::ANY_V4 } else { Address::ANY_V6 };
            outside(any, port.node_port, FRONTEND_NODE_PORT);
        }
        let lacks_local = endpoints.exist() && endpoints.choose(true).is_empty();
        if lacks_local && service.internal_local {
            desired.without_local_endpoints.0 += 1;
        }
        if lacks_local && service.external_local {
            desired.without_local_endpoints.1 += 1;
        }
    }

    fn claim(
        &self,
        desired: &mut Desired,
        serving: &Option<Arc<BTreeSet<BackendKey>>>,
        (address, number, scope): (Address, u16, u8),
        local: bool,
        flags: u32,
    ) {
        let key = FrontendKey { address, port: number, protocol: self.port.protocol, scope };
        match desired.frontends.entry(key) {
            Entry::Vacant(entry) => {
                let table = TableName {
                    service: self.name.clone(),
                    port: self.port.name.clone(),
                    protocol: self.port.protocol,
                    v4: self.v4,
                    local,
                };
                let backends =
                    desired.tables.entry(table.clone()).or_insert_with(|| self.endpoints.choose(local));
                if flags & FRONTEND_MAGLEV != 0 && backends.len() > 1 {
                    let weight = |backend: &BackendKey| {
                        let weights = &self.service.weights;
                        let found = weights.binary_search_by_key(&backend.address, |(address, _)| *address);
                        found.ok().and_then(|at| weights.get(at)).map_or(1, |(_, weight)| *weight)
                    };
                    let weights = backends.iter().map(weight).collect();
                    let lookup = Lookup { size: self.balancing.table_size, weights };
                    desired.lookups.insert(table.clone(), lookup);
                }
                // Upstream drops where another node would serve, and refuses where nobody would.
                let drop = if backends.is_empty() && self.endpoints.exist() { FRONTEND_DROP } else { 0 };
                if flags & FRONTEND_SOURCE_RANGES != 0 {
                    let ranges = self.service.source_ranges.iter().flatten();
                    let own = ranges.filter(|(network, _)| network.is_v4() == self.v4).copied();
                    desired.ranges.entry(table.clone()).or_default().extend(own);
                }
                entry.insert(DesiredFrontend {
                    table,
                    affinity_seconds: self.service.affinity_seconds,
                    flags: flags | drop,
                    serving: serving.clone(),
                });
            }
            Entry::Occupied(entry) => {
                let holder = &entry.get().table.service;
                // One conflict a frontend, not one a scope.
                if holder != self.name && scope == SCOPE_CLUSTER {
                    let (holder, loser) = (holder.clone(), self.name.clone());
                    desired.conflicts.push(Conflict { frontend: key, holder, loser, loser_is_pod: false });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
