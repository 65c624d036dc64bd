//! From a Service and its pods to endpoints.

use std::collections::HashMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Node, ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::Group;
use crate::controllers::pods;

/// Label with the zone of a node.
const ZONE: &str = "topology.kubernetes.io/zone";

/// The address types of a Service, in its order: its IP families, or IPv4 when it names none.
#[must_use]
pub fn service_families(service: &Service) -> Vec<String> {
    let families = service.spec.as_ref().and_then(|s| s.ip_families.clone()).unwrap_or_default();
    if families.is_empty() { vec!["IPv4".into()] } else { families }
}

/// The pod's address of a family (`IPv4`, `IPv6`).
#[must_use]
pub fn pod_address<'a>(pod: &'a Pod, family: &str) -> Option<&'a str> {
    let status = pod.status.as_ref()?;
    let listed = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    listed.chain(status.pod_ip.as_deref()).find(|ip| {
        ip.parse::<IpAddr>().is_ok_and(|ip| if family == "IPv6" { ip.is_ipv6() } else { ip.is_ipv4() })
    })
}

/// The ports of a Service as they are on one pod; a named target port that the pod lacks is left out.
#[must_use]
pub fn endpoint_ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let ports = service.spec.as_ref().and_then(|s| s.ports.as_deref()).unwrap_or_default();
    ports
        .iter()
        .filter_map(|port| {
            Some(EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".into())),
                port: Some(target_port(port, pod)?),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect()
}

/// The port number a service port has on one pod.
#[must_use]
pub fn target_port(port: &ServicePort, pod: &Pod) -> Option<i32> {
    match &port.target_port {
        None | Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) if name.is_empty() => Some(port.port),
        Some(IntOrString::String(name)) => {
            let spec = pod.spec.as_ref()?;
            let sidecar = |c: &&Container| c.restart_policy.as_deref() == Some("Always");
            let containers =
                spec.containers.iter().chain(spec.init_containers.iter().flatten().filter(sidecar));
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            containers
                .flat_map(|c| c.ports.iter().flatten())
                .find(|p| {
                    p.name.as_deref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == protocol
                })
                .map(|p| p.container_port)
        }
    }
}

/// The endpoints of a Service, grouped by address type and ports. `node` looks a node up by name.
///
/// A pod that has ended or has no address of the family is no endpoint; one being deleted is, not ready and
/// terminating, until it is gone. Every family has at least one (maybe empty) group.
#[must_use]
pub fn desired_groups<'a, 'n>(
    service: &Service,
    pods: impl IntoIterator<Item = &'a Pod> + Clone,
    node: impl Fn(&str) -> Option<&'n Node>,
) -> Vec<Group> {
    let mut out = Vec::new();
    for family in service_families(service) {
        let mut groups: Vec<Group> = Vec::new();
        let mut by_ports: HashMap<String, usize> = HashMap::new();
        for pod in pods.clone() {
            if pods::is_terminal(pod) {
                continue;
            }
            let Some(address) = pod_address(pod, &family) else { continue };
            let ports = endpoint_ports(service, pod);
            let key = serde_json::to_string(&ports).unwrap_or_default();
            let index = *by_ports.entry(key).or_insert_with(|| {
                groups.push(Group { address_type: family.clone(), ports, endpoints: Vec::new() });
                groups.len() - 1
            });
            let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).and_then(&node);
            groups[index].endpoints.push(endpoint(service, pod, address, node));
        }
        if groups.is_empty() {
            groups.push(Group { address_type: family.clone(), ports: Vec::new(), endpoints: Vec::new() });
        }
        out.append(&mut groups);
    }
    out
}

fn endpoint(service: &Service, pod: &Pod, address: &str, node: Option<&Node>) -> Endpoint {
    let spec = service.spec.as_ref();
    let serving = pods::is_ready(pod);
    let terminating = pods::is_terminating(pod);
    let publish = spec.and_then(|s| s.publish_not_ready_addresses) == Some(true);
    let ready = publish || (serving && !terminating);
    let pod_spec = pod.spec.as_ref();
    let hostname = pod_spec
        .filter(|s| s.subdomain.is_some() && s.subdomain == service.metadata.name)
        .and_then(|s| s.hostname.clone())
        .filter(|h| !h.is_empty());
    let zone = node.and_then(|n| n.metadata.labels.as_ref()?.get(ZONE)).filter(|z| !z.is_empty()).cloned();
    let node_name = pod_spec.and_then(|s| s.node_name.clone()).filter(|n| !n.is_empty());
    let distribution = spec.and_then(|s| s.traffic_distribution.as_deref());
    let hints = distribution.filter(|_| ready).and_then(|d| hints(d, zone.as_deref(), node_name.as_deref()));
    Endpoint {
        addresses: vec![address.into()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname,
        node_name,
        zone,
        hints,
        target_ref: Some(target_ref(pod)),
        ..Endpoint::default()
    }
}

/// The reference from an endpoint to its pod.
#[must_use]
pub fn target_ref(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".into()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

fn hints(distribution: &str, zone: Option<&str>, node: Option<&str>) -> Option<EndpointHints> {
    let for_zones = zone.map(|z| vec![ForZone { name: z.into() }]);
    let hints = match distribution {
        "PreferClose" | "PreferSameZone" => EndpointHints { for_zones, for_nodes: None },
        "PreferSameNode" => {
            EndpointHints { for_zones, for_nodes: node.map(|n| vec![ForNode { name: n.into() }]) }
        }
        _ => return None,
    };
    (hints.for_zones.is_some() || hints.for_nodes.is_some()).then_some(hints)
}
