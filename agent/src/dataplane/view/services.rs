//! Services: frontends and where they lead.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use kelp_common::service::{
    BACKEND_DRAINING, FRONTEND_DROP, FRONTEND_LOCAL_ONLY, FRONTEND_NODE_PORT, FRONTEND_SOURCE_RANGES,
    SCOPE_EXTERNAL,
};
use kelp_common::{Address, Backend, FrontendKey, FrontendValue, SlotKey, SourceRangeKey, maps};
use serde::Serialize;

use super::{Filter, Names, Object, Pins, ServicePort, ViewError, protocol_name};

/// An endpoint that a service leads to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct EndpointRef {
    /// Its address and port.
    pub address: SocketAddr,
    /// Its pod, if it is one of this node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Object>,
    /// Whether only established connections use it.
    pub draining: bool,
}

/// A frontend: one address and port of a Service, for one kind of clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRow {
    /// The Service and its port, if the name is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<ServicePort>,
    /// The address; unspecified for a node port, which is served at every address of the node.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// The protocol.
    pub protocol: String,
    /// Whether it is a node port.
    pub node_port: bool,
    /// Whether it is for clients outside the cluster only, who have other endpoints than those inside.
    pub external: bool,
    /// Id of the table of endpoints.
    pub table: u32,
    /// Endpoints that the frontend leads to. With fewer in `endpoints` the maps are being changed, or damaged.
    pub count: u32,
    /// The endpoints.
    pub endpoints: Vec<EndpointRef>,
    /// Seconds that a client stays with its endpoint; 0 is no session affinity.
    pub affinity_seconds: u32,
    /// Whether clients outside keep their address, as only endpoints of this node take part.
    pub local_only: bool,
    /// Whether clients are dropped in place of refused when there is no endpoint.
    pub drops_without_endpoints: bool,
    /// The clients that may use it; nothing when all may.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_ranges: Option<Vec<String>>,
}

/// What is needed to say where frontends lead.
pub(super) struct Tables {
    pub names: Names,
    pub slots: BTreeMap<SlotKey, u32>,
    pub backends: BTreeMap<u32, Backend>,
    ranges: BTreeMap<SourceRangeKey, u32>,
}

impl Tables {
    pub fn read(pins: &Pins) -> Result<Self, ViewError> {
        Ok(Self {
            names: pins.names()?,
            slots: pins.content(maps::SLOTS)?,
            backends: pins.content(maps::BACKENDS)?,
            ranges: pins.content(maps::SOURCE_RANGES)?,
        })
    }

    fn endpoint(&self, backend: &Backend) -> EndpointRef {
        EndpointRef {
            address: SocketAddr::new(backend.address.into(), u16::from_be(backend.port)),
            pod: self.names.pods.get(&backend.address).cloned(),
            draining: backend.flags & BACKEND_DRAINING != 0,
        }
    }

    fn row(&self, key: &FrontendKey, value: &FrontendValue) -> ServiceRow {
        let slots = (0..value.count).filter_map(|slot| self.slots.get(&SlotKey { table: value.table, slot }));
        let backends = slots.filter_map(|id| self.backends.get(id));
        let has = |bit| value.flags & bit != 0;
        ServiceRow {
            service: self.names.services.get(&value.table).cloned(),
            address: key.address.into(),
            port: u16::from_be(key.port),
            protocol: protocol_name(key.protocol.into()),
            node_port: has(FRONTEND_NODE_PORT),
            external: key.scope == SCOPE_EXTERNAL,
            table: value.table,
            count: value.count,
            endpoints: backends.map(|backend| self.endpoint(backend)).collect(),
            affinity_seconds: value.affinity_seconds,
            local_only: has(FRONTEND_LOCAL_ONLY),
            drops_without_endpoints: has(FRONTEND_DROP),
            source_ranges: has(FRONTEND_SOURCE_RANGES).then(|| self.clients(value.table)),
        }
    }

    fn clients(&self, table: u32) -> Vec<String> {
        let of_table = self.ranges.keys().filter(|key| key.range.table == table);
        of_table.map(|key| range(&key.range.address, key.prefix_length.saturating_sub(32))).collect()
    }
}

/// A range whose prefix counts as in the v4-mapped form.
fn range(network: &Address, mapped_prefix: u32) -> String {
    let prefix = if network.is_v4() { mapped_prefix.saturating_sub(96) } else { mapped_prefix };
    format!("{}/{prefix}", IpAddr::from(*network))
}

/// The services in the maps, by their names and then by their addresses.
///
/// # Errors
/// When no dataplane has its maps there, or the kernel refuses.
pub fn services(pins: &Pins, filter: &Filter) -> Result<Vec<ServiceRow>, ViewError> {
    // The frontends are read last: what they lead to was there before them.
    let tables = Tables::read(pins)?;
    let frontends: BTreeMap<FrontendKey, FrontendValue> = pins.content(maps::FRONTENDS)?;
    let mut rows: Vec<ServiceRow> = frontends
        .iter()
        .filter(|(key, _)| filter.admits_protocol(key.protocol.into()))
        .map(|(key, value)| tables.row(key, value))
        .filter(|row| {
            let own = std::iter::once(row.address);
            let addresses = own.chain(row.endpoints.iter().map(|endpoint| endpoint.address.ip()));
            filter.admits_service(row.service.iter())
                && filter.admits_namespace(row.service.iter().map(|service| service.namespace.as_str()))
                && filter.admits_address(&addresses.map(Address::from).collect::<Vec<_>>())
        })
        .collect();
    rows.sort_by(|a, b| {
        let order =
            |row: &ServiceRow| (row.service.is_none(), row.service.clone(), row.node_port, row.address);
        let rest = |row: &ServiceRow| (row.port, row.protocol.clone(), row.external);
        (order(a), rest(a)).cmp(&(order(b), rest(b)))
    });
    Ok(rows)
}
