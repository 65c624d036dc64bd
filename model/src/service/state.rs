//! The fields of Services and EndpointSlices that the dataplane looks at. Anything that cannot be used is left out:
//! one bad object must not take the others along.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kelp_common::{Address, Cidr, SCTP, TCP, UDP};

use super::{ObjectName, Range};
use crate::maglev::MAX_WEIGHT;

/// Another proxy serves a Service with this label.
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// A Service with this label is not load-balanced.
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// The Service an EndpointSlice belongs to.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// How clients outside the cluster are led to the endpoints of a Service with this annotation: `maglev` or `random`.
pub const ALGORITHM_ANNOTATION: &str = "kelp.dev/load-balancing";
/// Shares of endpoints in consistent hashing: `ADDRESS=WEIGHT,…`, 1–256; what is not named has the weight 1.
pub const WEIGHTS_ANNOTATION: &str = "kelp.dev/endpoint-weights";

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Port {
    pub name: Arc<str>,
    pub protocol: u8,
    /// Network byte order, as all ports here.
    pub port: u16,
    /// 0 is none.
    pub node_port: u16,
}

/// A Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServiceState {
    /// When it was created, microseconds; decides who gets an address that two want.
    pub created: i64,
    pub addresses: Vec<Address>,
    /// Addresses of the load balancer (`status.loadBalancer`).
    pub balancers: Vec<Address>,
    /// `externalIPs`.
    pub external: Vec<Address>,
    pub ports: Vec<Port>,
    pub affinity_seconds: u32,
    pub internal_local: bool,
    pub external_local: bool,
    /// `loadBalancerSourceRanges`; `None` is everybody.
    pub source_ranges: Option<Vec<Range>>,
    /// `healthCheckNodePort`, host byte order.
    pub health_check_port: Option<u16>,
    /// Whether clients outside are led by consistent hashing, where the Service says.
    pub consistent: Option<bool>,
    /// Weights of endpoints that are not 1.
    pub weights: Vec<(Address, u16)>,
}

/// An endpoint of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EndpointState {
    pub address: Address,
    /// Its name in DNS.
    pub hostname: Option<Arc<str>>,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub local: bool,
    /// `hints.forZones`.
    pub zones: Box<[Arc<str>]>,
    /// `hints.forNodes`.
    pub nodes: Box<[Arc<str>]>,
}

impl EndpointState {
    /// It terminates and still answers.
    pub fn serves_to_the_end(&self) -> bool {
        self.serving && self.terminating
    }
}

/// An EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SliceState {
    pub service: ObjectName,
    pub v4: bool,
    /// Name, protocol, port.
    pub ports: Vec<(Arc<str>, u8, u16)>,
    pub endpoints: Vec<EndpointState>,
}

/// Namespace and name of an object.
pub(super) fn name_of(metadata: &ObjectMeta) -> Option<ObjectName> {
    Some(ObjectName::new(metadata.namespace.as_deref()?, metadata.name.as_deref()?))
}

/// When an object was created, microseconds; one without a time counts as the youngest.
pub(super) fn created(metadata: &ObjectMeta) -> i64 {
    metadata.creation_timestamp.as_ref().map_or(i64::MAX, |time| time.0.as_microsecond())
}

pub(super) fn protocol_of(protocol: Option<&str>) -> Option<u8> {
    match protocol {
        None | Some("TCP" | "") => Some(TCP),
        Some("UDP") => Some(UDP),
        Some("SCTP") => Some(SCTP),
        _ => None,
    }
}

pub(super) fn address_of(text: &str) -> Option<Address> {
    text.parse::<IpAddr>().ok().map(Address::from)
}

pub(super) fn port_of(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|port| *port != 0).map(u16::to_be)
}

/// `network/prefix`; spaces around it do not count (upstream trims them).
fn range_of(text: &str) -> Option<Range> {
    let (network, prefix) = text.trim().split_once('/')?;
    let (network, prefix) = (network.parse::<IpAddr>().ok()?, prefix.parse::<u8>().ok()?);
    let (longest, mapped) = if network.is_ipv4() { (32, 96) } else { (128, 0) };
    (prefix <= longest).then(|| (Cidr::new(network, prefix).network, mapped + prefix))
}

/// What [`ALGORITHM_ANNOTATION`] asks for; another value asks for nothing.
fn algorithm_of(metadata: &ObjectMeta) -> Option<bool> {
    match metadata.annotations.as_ref()?.get(ALGORITHM_ANNOTATION)?.as_str() {
        "maglev" => Some(true),
        "random" => Some(false),
        _ => None,
    }
}

/// What [`WEIGHTS_ANNOTATION`] says; a part that cannot be read says nothing.
fn weights_of(metadata: &ObjectMeta) -> Vec<(Address, u16)> {
    let text = metadata.annotations.as_ref().and_then(|all| all.get(WEIGHTS_ANNOTATION));
    let parts = text.into_iter().flat_map(|text| text.split(','));
    let mut weights: Vec<(Address, u16)> = parts
        .filter_map(|part| {
            let (address, weight) = part.split_once('=')?;
            let weight = weight.trim().parse().ok().filter(|weight| (1..=MAX_WEIGHT).contains(weight))?;
            Some((address_of(address.trim())?, weight))
        })
        .collect();
    weights.sort_unstable();
    weights.dedup_by_key(|(address, _)| *address);
    weights
}

/// The fields that matter, or nothing for a Service that is not load-balanced here.
pub(super) fn service_state(service: &Service) -> Option<ServiceState> {
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
    let balancers = service
        .status
        .as_ref()
        .and_then(|status| status.load_balancer.as_ref())
        .and_then(|status| status.ingress.as_ref())
        .into_iter()
        .flatten()
        .filter(|_| kind == "LoadBalancer")
        .filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|ingress| ingress.ip.as_deref())
        .filter_map(address_of)
        .collect();
    let external = spec.external_ips.iter().flatten().filter_map(|text| address_of(text)).collect();
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
    let external_local = spec.external_traffic_policy.as_deref() == Some("Local");
    let ranges = spec.load_balancer_source_ranges.as_deref().unwrap_or_default();
    Some(ServiceState {
        created: created(&service.metadata),
        addresses,
        balancers,
        external,
        ports,
        affinity_seconds,
        internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        external_local,
        // Ranges that cannot be read admit nobody, rather than everybody.
        source_ranges: (kind == "LoadBalancer" && !ranges.is_empty())
            .then(|| ranges.iter().filter_map(|text| range_of(text)).collect()),
        health_check_port: spec
            .health_check_node_port
            .filter(|_| kind == "LoadBalancer" && external_local)
            .and_then(|port| u16::try_from(port).ok())
            .filter(|port| *port != 0),
        consistent: algorithm_of(&service.metadata),
        weights: weights_of(&service.metadata),
    })
}

/// The fields that matter, or nothing for a slice of no Service or of host names.
pub(super) fn slice_state(slice: &EndpointSlice, node: &str) -> Option<SliceState> {
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
            let hints = endpoint.hints.as_ref();
            let zones = hints.and_then(|hints| hints.for_zones.as_ref()).into_iter().flatten();
            let nodes = hints.and_then(|hints| hints.for_nodes.as_ref()).into_iter().flatten();
            // Upstream's consumers use the first address only. One that leads nowhere is no endpoint.
            endpoint
                .addresses
                .first()
                .and_then(|text| address_of(text))
                .filter(|address| address.is_v4() == v4 && is_usable(address))
                .map(|address| EndpointState {
                    address,
                    hostname: endpoint.hostname.as_deref().filter(|name| !name.is_empty()).map(Into::into),
                    ready,
                    serving,
                    terminating,
                    local,
                    zones: zones.map(|zone| zone.name.as_str().into()).collect(),
                    nodes: nodes.map(|node| node.name.as_str().into()).collect(),
                })
        })
        .collect();
    Some(SliceState {
        service: ObjectName::new(slice.metadata.namespace.as_deref()?, service),
        v4,
        ports,
        endpoints,
    })
}

/// Whether traffic may be sent to an endpoint: not to this host's own loopback, and not to a group (the API's rules for
/// endpoint addresses).
fn is_usable(address: &Address) -> bool {
    !address.is_loopback() && !address.is_link_scoped() && *address != address.any_of_family()
}
