//! What pods of this node ask of the dataplane: ports on the node (`hostPort`), and to be left alone by the socket hooks.

use std::collections::btree_map::Entry;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod};
use kelp_common::service::{FRONTEND_NODE_PORT, SCOPE_CLUSTER};
use kelp_common::{Address, FrontendKey, UDP};

use super::state::{address_of, created, port_of, protocol_of};
use super::{BackendKey, Conflict, Desired, DesiredFrontend, ObjectName, TableName};

/// A pod with this annotation and the value `disabled` has its packets translated one by one, and its sockets left as
/// they are: for programs (service meshes) that look at the destinations of a pod's connections.
pub const SOCKET_ANNOTATION: &str = "kelp.dev/socket-translation";

/// How the names of tables of `hostPort` begin.
const HOST_PORT: &str = "hostPort/";

/// A port of a container on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
struct HostPort {
    /// Where on the node; `None` is everywhere.
    address: Option<Address>,
    /// Network byte order, as all ports here.
    port: u16,
    container_port: u16,
    protocol: u8,
}

/// A pod that asks for something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodState {
    /// When it was created, microseconds.
    pub created: i64,
    addresses: Vec<Address>,
    ports: Vec<HostPort>,
    opted_out: bool,
}

/// The addresses that a pod has to itself, sorted; none of a pod that has ended, and of one that is the node itself.
#[must_use]
pub fn pod_addresses(pod: &Pod) -> Vec<Address> {
    let (Some(spec), Some(status)) = (&pod.spec, &pod.status) else { return Vec::new() };
    if spec.host_network == Some(true) || matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return Vec::new();
    }
    let mut addresses: Vec<Address> = status
        .pod_ips
        .iter()
        .flatten()
        .map(|address| address.ip.as_str())
        .chain(status.pod_ip.as_deref())
        .filter_map(address_of)
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// The fields that matter; nothing for a pod that asks for nothing, has ended, has no address, or is the node itself.
pub(super) fn pod_state(pod: &Pod) -> Option<PodState> {
    let (spec, addresses) = (pod.spec.as_ref()?, pod_addresses(pod));
    let sidecar = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let sidecars = spec.init_containers.iter().flatten().filter(sidecar);
    let ports: Vec<HostPort> = spec
        .containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            let host = port.host_ip.as_deref().filter(|text| !text.is_empty());
            let address = match host.map(address_of) {
                Some(address) => Some(address?),
                None => None,
            };
            Some(HostPort {
                address: address.filter(|address| *address != address.any_of_family()),
                port: port_of(port.host_port?)?,
                container_port: port_of(port.container_port)?,
                protocol: protocol_of(port.protocol.as_deref())?,
            })
        })
        .collect();
    let annotation = pod.metadata.annotations.as_ref().and_then(|all| all.get(SOCKET_ANNOTATION));
    let opted_out = annotation.is_some_and(|value| value == "disabled");
    (!addresses.is_empty() && (opted_out || !ports.is_empty())).then(|| PodState {
        created: created(&pod.metadata),
        addresses,
        ports,
        opted_out,
    })
}

/// Adds a pod's frontends.
pub(super) fn claim(name: &ObjectName, pod: &PodState, desired: &mut Desired) {
    if pod.opted_out {
        desired.opted_out.extend(&pod.addresses);
    }
    for (port, address) in pod.ports.iter().flat_map(|port| pod.addresses.iter().map(move |a| (port, *a))) {
        if port.address.is_some_and(|host| host.is_v4() != address.is_v4()) {
            continue;
        }
        let host = port.address.unwrap_or(address.any_of_family());
        let key =
            FrontendKey { address: host, port: port.port, protocol: port.protocol, scope: SCOPE_CLUSTER };
        let backend = BackendKey { address, port: port.container_port, protocol: port.protocol };
        match desired.frontends.entry(key) {
            Entry::Vacant(entry) => {
                let host = port.address.map_or_else(String::new, |_| format!("{:x?}", host.0));
                let table = TableName {
                    service: name.clone(),
                    port: format!("{HOST_PORT}{host}/{}", u16::from_be(port.port)).into(),
                    protocol: port.protocol,
                    v4: address.is_v4(),
                    local: true,
                };
                desired.tables.insert(table.clone(), vec![backend]);
                entry.insert(DesiredFrontend {
                    table,
                    affinity_seconds: 0,
                    flags: FRONTEND_NODE_PORT,
                    serving: (port.protocol == UDP).then(|| Arc::new([backend].into())),
                });
            }
            Entry::Occupied(entry) => {
                let table = &entry.get().table;
                // A Service may have the Pod's name.
                let is_own = table.service == *name && table.port.starts_with(HOST_PORT);
                let holder = table.service.clone();
                if !is_own {
                    let loser = name.clone();
                    desired.conflicts.push(Conflict { frontend: key, holder, loser, loser_is_pod: true });
                }
            }
        }
    }
}
