//! What the Services and EndpointSlices of a cluster mean for one node's dataplane.
//!
//! [`Index`] is fed by watches (apply, delete, reset) and answers with [`Desired`]: frontends, the tables of backends
//! they lead to, and all backends that connections may still use. Which endpoints take part follows upstream's
//! kube-proxy: ready ones; when there are none, those that still serve while they terminate (KEP-1669); for
//! `internalTrafficPolicy` and `externalTrafficPolicy` `Local` only those of this node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kelp_common::service::{
    FRONTEND_LOCAL_ONLY, FRONTEND_NODE_PORT, FRONTEND_TWO_SCOPES, SCOPE_CLUSTER, SCOPE_EXTERNAL,
};
use kelp_common::{Address, FrontendKey, TCP, UDP};

/// Another proxy serves a Service with this label.
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// A Service with this label is not load-balanced.
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// The Service an EndpointSlice belongs to.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

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
    /// The Service.
    pub service: ObjectName,
    /// Name of the port; empty when it has none.
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
}

/// The state of the maps that the cluster asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Desired {
    /// Frontends.
    pub frontends: BTreeMap<FrontendKey, DesiredFrontend>,
    /// Backends of each table, in the order of their slots.
    pub tables: BTreeMap<TableName, Vec<BackendKey>>,
    /// All backends; `true` for those in no table, which established connections keep using.
    pub backends: BTreeMap<BackendKey, bool>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Port {
    name: Arc<str>,
    protocol: u8,
    /// Network byte order, as all ports here.
    port: u16,
    /// 0 is none.
    node_port: u16,
}

/// The fields of a Service that matter here.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ServiceState {
    addresses: Vec<Address>,
    /// Load-balancer and external addresses.
    external: Vec<Address>,
    ports: Vec<Port>,
    affinity_seconds: u32,
    internal_local: bool,
    external_local: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct EndpointState {
    address: Address,
    ready: bool,
    serving: bool,
    terminating: bool,
    local: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct SliceState {
    service: ObjectName,
    v4: bool,
    /// Name, protocol, port.
    ports: Vec<(Arc<str>, u8, u16)>,
    endpoints: Vec<EndpointState>,
}

/// All Services and EndpointSlices, reduced to what the dataplane needs.
#[derive(Debug, Clone, Default)]
pub struct Index {
    node: String,
    services: BTreeMap<ObjectName, ServiceState>,
    slices: BTreeMap<ObjectName, SliceState>,
    by_service: BTreeMap<ObjectName, BTreeSet<ObjectName>>,
}

impl Index {
    /// An empty index for the node of this name.
    #[must_use]
    pub fn new(node: &str) -> Self {
        Self { node: node.to_owned(), ..Self::default() }
    }

    /// Takes over a Service. Returns whether anything the dataplane looks at changed.
    pub fn apply_service(&mut self, service: &Service) -> bool {
        let Some(name) = name_of(&service.metadata) else { return false };
        match service_state(service) {
            Some(state) => {
                let old = self.services.insert(name.clone(), state);
                old.as_ref() != self.services.get(&name)
            }
            None => self.services.remove(&name).is_some(),
        }
    }

    /// Forgets a Service. Returns whether it was known.
    pub fn delete_service(&mut self, service: &Service) -> bool {
        name_of(&service.metadata).is_some_and(|name| self.services.remove(&name).is_some())
    }

    /// Replaces all Services: what the list does not have is forgotten. Returns whether anything changed.
    pub fn reset_services(&mut self, services: &[Service]) -> bool {
        let new = services
            .iter()
            .filter_map(|service| Some((name_of(&service.metadata)?, service_state(service)?)))
            .collect();
        let changed = self.services != new;
        self.services = new;
        changed
    }

    /// Takes over an EndpointSlice. Returns whether anything the dataplane looks at changed.
    pub fn apply_slice(&mut self, slice: &EndpointSlice) -> bool {
        let Some(name) = name_of(&slice.metadata) else { return false };
        let Some(state) = slice_state(slice, &self.node) else { return self.remove_slice(&name) };
        if self.slices.get(&name) == Some(&state) {
            return false;
        }
        self.remove_slice(&name);
        self.by_service.entry(state.service.clone()).or_default().insert(name.clone());
        self.slices.insert(name, state);
        true
    }

    /// Forgets an EndpointSlice. Returns whether it was known.
    pub fn delete_slice(&mut self, slice: &EndpointSlice) -> bool {
        name_of(&slice.metadata).is_some_and(|name| self.remove_slice(&name))
    }

    /// Replaces all EndpointSlices. Returns whether anything changed.
    pub fn reset_slices(&mut self, slices: &[EndpointSlice]) -> bool {
        let old = std::mem::take(&mut self.slices);
        self.by_service.clear();
        for slice in slices {
            self.apply_slice(slice);
        }
        self.slices != old
    }

    fn remove_slice(&mut self, name: &ObjectName) -> bool {
        let Some(old) = self.slices.remove(name) else { return false };
        if let Some(names) = self.by_service.get_mut(&old.service) {
            names.remove(name);
            if names.is_empty() {
                self.by_service.remove(&old.service);
            }
        }
        true
    }

    /// The state the maps should have. When two Services claim one frontend, the first by name gets it.
    #[must_use]
    pub fn desired(&self) -> Desired {
        let mut desired = Desired::default();
        for (name, service) in &self.services {
            self.service(name, service, &mut desired);
        }
        for backends in desired.tables.values() {
            for backend in backends {
                desired.backends.insert(*backend, false);
            }
        }
        desired
    }

    fn service(&self, name: &ObjectName, service: &ServiceState, desired: &mut Desired) {
        let slices: Vec<&SliceState> = self
            .by_service
            .get(name)
            .into_iter()
            .flatten()
            .filter_map(|slice| self.slices.get(slice))
            .collect();
        for (port, v4) in service.ports.iter().flat_map(|port| [(port, true), (port, false)]) {
            if !service.addresses.iter().any(|address| address.is_v4() == v4) {
                continue;
            }
            let endpoints = endpoints_of(&slices, port, v4);
            for backend in endpoints.keys() {
                desired.backends.entry(*backend).or_insert(true);
            }
            let table = |local| TableName {
                service: name.clone(),
                port: port.name.clone(),
                protocol: port.protocol,
                v4,
                local,
            };
            let mut claim = |address: Address, number: u16, scope: u8, local: bool, flags: u32| {
                let key = FrontendKey { address, port: number, protocol: port.protocol, scope };
                if let std::collections::btree_map::Entry::Vacant(entry) = desired.frontends.entry(key) {
                    let affinity_seconds = service.affinity_seconds;
                    let table = table(local);
                    desired.tables.entry(table.clone()).or_insert_with(|| choose(&endpoints, local));
                    entry.insert(DesiredFrontend { table, affinity_seconds, flags });
                }
            };
            for address in service.addresses.iter().filter(|address| address.is_v4() == v4) {
                claim(*address, port.port, SCOPE_CLUSTER, service.internal_local, 0);
            }
            // Clients in the cluster reach all endpoints by every address; others only the node's own.
            let scopes = if service.external_local { FRONTEND_TWO_SCOPES } else { 0 };
            let mut outside = |address: Address, number: u16, flags: u32| {
                claim(address, number, SCOPE_CLUSTER, false, flags | scopes);
                if service.external_local {
                    claim(address, number, SCOPE_EXTERNAL, true, flags | FRONTEND_LOCAL_ONLY);
                }
            };
            for address in service.external.iter().filter(|address| address.is_v4() == v4) {
                outside(*address, port.port, 0);
            }
            if port.node_port != 0 {
                let any = if v4 { Address::ANY_V4 } else { Address::ANY_V6 };
                outside(any, port.node_port, FRONTEND_NODE_PORT);
            }
        }
    }
}

/// The endpoints behind a port, without repetition: an endpoint that is in two slices counts as its better self.
fn endpoints_of<'a>(
    slices: &[&'a SliceState],
    port: &Port,
    v4: bool,
) -> BTreeMap<BackendKey, &'a EndpointState> {
    let mut found: BTreeMap<BackendKey, &EndpointState> = BTreeMap::new();
    for slice in slices.iter().filter(|slice| slice.v4 == v4) {
        for (_, protocol, number) in
            slice.ports.iter().filter(|(name, protocol, _)| *name == port.name && *protocol == port.protocol)
        {
            for endpoint in &slice.endpoints {
                let key = BackendKey { address: endpoint.address, port: *number, protocol: *protocol };
                let rank = |endpoint: &EndpointState| (endpoint.ready, endpoint.serving);
                match found.get(&key) {
                    Some(known) if rank(known) >= rank(endpoint) => {}
                    _ => {
                        found.insert(key, endpoint);
                    }
                }
            }
        }
    }
    found
}

/// The endpoints that new connections go to.
fn choose(endpoints: &BTreeMap<BackendKey, &EndpointState>, local: bool) -> Vec<BackendKey> {
    let pick = |wanted: &dyn Fn(&EndpointState) -> bool| -> Vec<BackendKey> {
        endpoints
            .iter()
            .filter(|(_, endpoint)| (!local || endpoint.local) && wanted(endpoint))
            .map(|(key, _)| *key)
            .collect()
    };
    let ready = pick(&|endpoint| endpoint.ready && !endpoint.terminating);
    if !ready.is_empty() {
        return ready;
    }
    // `publishNotReadyAddresses` makes terminating endpoints ready as well.
    pick(&|endpoint| endpoint.terminating && (endpoint.serving || endpoint.ready))
}

fn name_of(metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> Option<ObjectName> {
    Some(ObjectName::new(metadata.namespace.as_deref()?, metadata.name.as_deref()?))
}

fn protocol_of(protocol: Option<&str>) -> Option<u8> {
    match protocol {
        None | Some("TCP" | "") => Some(TCP),
        Some("UDP") => Some(UDP),
        _ => None,
    }
}

fn address_of(text: &str) -> Option<Address> {
    text.parse::<IpAddr>().ok().map(Address::from)
}

fn port_of(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|port| *port != 0).map(u16::to_be)
}

/// The fields that matter, or nothing for a Service that is not load-balanced here.
fn service_state(service: &Service) -> Option<ServiceState> {
    let labels = service.metadata.labels.as_ref();
    if labels
        .is_some_and(|labels| labels.contains_key(PROXY_NAME_LABEL) || labels.contains_key(HEADLESS_LABEL))
    {
        return None;
    }
    let spec = service.spec.as_ref()?;
    let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
    if kind == "ExternalName" {
        return None;
    }
    let mut addresses: Vec<Address> = spec
        .cluster_ips
        .iter()
        .flatten()
        .chain(&spec.cluster_ip)
        .filter_map(|text| address_of(text))
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    if addresses.is_empty() {
        return None;
    }
    let balanced = service
        .status
        .as_ref()
        .and_then(|status| status.load_balancer.as_ref())
        .and_then(|status| status.ingress.as_ref())
        .into_iter()
        .flatten()
        .filter(|_| kind == "LoadBalancer")
        .filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|ingress| ingress.ip.as_deref());
    let external = balanced
        .chain(spec.external_ips.iter().flatten().map(String::as_str))
        .filter_map(address_of)
        .collect();
    let ports = spec
        .ports
        .iter()
        .flatten()
        .filter_map(|port| {
            Some(Port {
                name: port.name.as_deref().unwrap_or_default().into(),
                protocol: protocol_of(port.protocol.as_deref())?,
                port: port_of(port.port)?,
                node_port: port
                    .node_port
                    .filter(|_| matches!(kind, "NodePort" | "LoadBalancer"))
                    .and_then(port_of)
                    .unwrap_or(0),
            })
        })
        .collect();
    let affinity_seconds = if spec.session_affinity.as_deref() == Some("ClientIP") {
        spec.session_affinity_config
            .as_ref()
            .and_then(|config| config.client_ip.as_ref())
            .and_then(|config| config.timeout_seconds)
            .and_then(|seconds| u32::try_from(seconds).ok())
            .unwrap_or(10_800)
    } else {
        0
    };
    Some(ServiceState {
        addresses,
        external,
        ports,
        affinity_seconds,
        internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        external_local: spec.external_traffic_policy.as_deref() == Some("Local"),
    })
}

/// The fields that matter, or nothing for a slice of no Service or of host names.
fn slice_state(slice: &EndpointSlice, node: &str) -> Option<SliceState> {
    let service = slice.metadata.labels.as_ref()?.get(SERVICE_NAME_LABEL)?;
    let v4 = match slice.address_type.as_str() {
        "IPv4" => true,
        "IPv6" => false,
        _ => return None,
    };
    let ports = slice
        .ports
        .iter()
        .flatten()
        .filter_map(|port| {
            Some((
                port.name.as_deref().unwrap_or_default().into(),
                protocol_of(port.protocol.as_deref())?,
                port_of(port.port?)?,
            ))
        })
        .collect();
    let endpoints = slice
        .endpoints
        .iter()
        .flatten()
        .filter_map(|endpoint| {
            let conditions = endpoint.conditions.as_ref();
            // Unknown is "ready" (the field's documentation); "serving" defaults to "ready".
            let ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
            let serving = conditions.and_then(|conditions| conditions.serving).unwrap_or(ready);
            let terminating = conditions.and_then(|conditions| conditions.terminating).unwrap_or(false);
            let local = endpoint.node_name.as_deref() == Some(node);
            // Upstream's consumers use the first address only.
            endpoint
                .addresses
                .first()
                .and_then(|text| address_of(text))
                .filter(|address| address.is_v4() == v4)
                .map(|address| EndpointState { address, ready, serving, terminating, local })
        })
        .collect();
    Some(SliceState {
        service: ObjectName::new(slice.metadata.namespace.as_deref()?, service),
        v4,
        ports,
        endpoints,
    })
}

#[cfg(test)]
mod tests;
