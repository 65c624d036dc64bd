//! Endpoints of services, and the pods of the node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use kelp_common::node::NAMESPACE_NO_SOCKETS;
use kelp_common::policy::POLICY_UNKNOWN;
use kelp_common::service::BACKEND_DRAINING;
use kelp_common::{Address, EndpointValue, NamespaceValue, maps};
use serde::Serialize;

use super::services::Tables;
use super::{Filter, Object, Pins, ServicePort, ViewError, protocol_name};

/// An endpoint of any number of Services.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointRow {
    /// Id of the backend.
    pub id: u32,
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// The protocol.
    pub protocol: String,
    /// Its pod, if it is one of this node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Object>,
    /// Whether only established connections use it.
    pub draining: bool,
    /// The Services that lead to it.
    pub services: Vec<ServicePort>,
    /// Tables that lead to it and have no name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unnamed_tables: Vec<u32>,
}

/// Whether network policies apply to one direction of a pod's traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Isolation {
    /// No policy applies: everything is allowed.
    None,
    /// The policies are not known yet: nothing is allowed.
    Unknown,
    /// The rules of a table apply.
    Table(u32),
}

impl Isolation {
    pub(super) fn of(policy: u32) -> Self {
        match policy {
            0 => Self::None,
            POLICY_UNKNOWN => Self::Unknown,
            table => Self::Table(table),
        }
    }
}

impl std::fmt::Display for Isolation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Unknown => f.write_str("unknown"),
            Self::Table(table) => write!(f, "table {table}"),
        }
    }
}

/// An address of a pod of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodRow {
    /// The address.
    pub address: IpAddr,
    /// The pod, if its name is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Object>,
    /// Index of the host-side device.
    pub ifindex: u32,
    /// Name of that device in the network namespace of the caller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Network policies about what it may receive.
    pub ingress: Isolation,
    /// Network policies about what it may send.
    pub egress: Isolation,
    /// Whether the destinations of its sockets are translated; unknown on kernels without cookies of namespaces (5.14).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sockets_translated: Option<bool>,
}

/// The endpoints of services in the maps, by their addresses.
///
/// # Errors
/// When no dataplane has its maps there, or the kernel refuses.
pub fn endpoints(pins: &Pins, filter: &Filter) -> Result<Vec<EndpointRow>, ViewError> {
    let tables = Tables::read(pins)?;
    let mut users: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
    for (slot, backend) in &tables.slots {
        users.entry(*backend).or_default().insert(slot.table);
    }
    let mut rows: Vec<EndpointRow> = tables
        .backends
        .iter()
        .filter(|(_, backend)| filter.admits_protocol(backend.protocol.into()))
        .filter(|(_, backend)| filter.admits_address(&[backend.address]))
        .map(|(id, backend)| {
            let users = users.get(id).into_iter().flatten().copied();
            let (named, unnamed): (Vec<u32>, Vec<u32>) =
                users.partition(|table| tables.names.services.contains_key(table));
            let services: BTreeSet<ServicePort> =
                named.iter().filter_map(|table| tables.names.services.get(table).cloned()).collect();
            EndpointRow {
                id: *id,
                address: backend.address.into(),
                port: u16::from_be(backend.port),
                protocol: protocol_name(backend.protocol.into()),
                pod: tables.names.pods.get(&backend.address).cloned(),
                draining: backend.flags & BACKEND_DRAINING != 0,
                services: services.into_iter().collect(),
                unnamed_tables: unnamed,
            }
        })
        .filter(|row| {
            let namespaces = row.services.iter().map(|service| service.namespace.as_str());
            filter.admits_service(row.services.iter())
                && filter.admits_namespace(namespaces.chain(row.pod.iter().map(|pod| pod.namespace.as_str())))
        })
        .collect();
    rows.sort_by_key(|row| (row.address, row.port, row.protocol.clone(), row.id));
    Ok(rows)
}

/// The pods of this node in the maps, by their names and then by their addresses. Of the filter, namespace and address
/// count.
///
/// # Errors
/// When no dataplane has its maps there, or the kernel refuses.
pub fn pods(pins: &Pins, filter: &Filter) -> Result<Vec<PodRow>, ViewError> {
    let names = pins.names()?;
    let namespaces: BTreeMap<u64, NamespaceValue> = pins.content(maps::NAMESPACES)?;
    let known: BTreeMap<u32, bool> = namespaces
        .values()
        .map(|namespace| (namespace.ifindex, namespace.flags & NAMESPACE_NO_SOCKETS == 0))
        .collect();
    let endpoints: BTreeMap<Address, EndpointValue> = pins.content(maps::ENDPOINTS)?;
    let mut rows: Vec<PodRow> = endpoints
        .iter()
        .filter(|(address, _)| filter.admits_address(&[**address]))
        .map(|(address, endpoint)| PodRow {
            address: (*address).into(),
            pod: names.pods.get(address).cloned(),
            ifindex: endpoint.ifindex,
            device: device(endpoint.ifindex),
            ingress: Isolation::of(endpoint.ingress),
            egress: Isolation::of(endpoint.egress),
            sockets_translated: known.get(&endpoint.ifindex).copied(),
        })
        .filter(|row| filter.admits_namespace(row.pod.iter().map(|pod| pod.namespace.as_str())))
        .collect();
    rows.sort_by_key(|row| (row.pod.is_none(), row.pod.clone(), row.address));
    Ok(rows)
}

/// The name of a device.
fn device(ifindex: u32) -> Option<String> {
    let interfaces = nix::net::if_::if_nameindex().ok()?;
    let found = interfaces.iter().find(|interface| interface.index() == ifindex)?;
    Some(found.name().to_string_lossy().into_owned())
}
