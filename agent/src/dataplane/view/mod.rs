//! What the pinned maps hold, for people: services, endpoints and flows as the kernel's programs see them.
//!
//! Everything is read from the pins, so that it is the truth also while no agent runs. Names come from the maps of names
//! ([`super::names`]); where there is none, ids and addresses are shown. Maps change while they are read: a row is true at
//! some moment of the reading, and rows that belong together may be of different moments.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use kelp_common::{Address, ICMP, ICMPV6, PodName, PolicyNames, SCTP, ServiceName, TCP, UDP, maps};
use serde::Serialize;

use super::DatapathError;
use super::maps::Table;
use super::sys::Plain;

mod conntrack;
mod endpoints;
mod flows;
mod policy;
mod services;

pub use conntrack::{Conversation, Ends, Nat, Path as FlowPath, State, conversations};
pub use endpoints::{EndpointRow, Isolation, PodRow, endpoints, pods};
pub use flows::{FlowFilter, FlowReport, Identity, Listener, Lost, Party, Verdict, reasons};
pub use policy::{Decision, Direction, Grant, decide, pods_named};
pub use services::{EndpointRef, ServiceRow, services};

/// Why there is nothing to see.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// No dataplane has its maps there.
    #[error(
        "no dataplane has the map {map} in {}: start `kelp agent`, or name the directory of its pins with --bpf-dir",
        directory.display()
    )]
    Absent {
        /// The map that was looked for.
        map: &'static str,
        /// Where.
        directory: PathBuf,
    },
    /// Somebody else listens to flows.
    #[error("another `kelp flows` listens on this node; there can be one at a time")]
    Busy,
    /// The kernel refused; root can read the maps.
    #[error(transparent)]
    Kernel(#[from] DatapathError),
}

/// The maps of a dataplane by their pins.
#[derive(Debug, Clone)]
pub struct Pins {
    directory: PathBuf,
}

impl Pins {
    /// The pins in the directory that an agent was given (`--bpf-dir`).
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// A map that every dataplane has.
    fn table<K: Plain, V: Plain>(&self, map: &'static str) -> Result<Table<K, V>, ViewError> {
        Table::open_pin(&self.directory, map)?
            .ok_or_else(|| ViewError::Absent { map, directory: self.directory.clone() })
    }

    /// The content of a map that every dataplane has.
    fn content<K: Plain + Ord, V: Plain>(&self, map: &'static str) -> Result<BTreeMap<K, V>, ViewError> {
        let mut content = BTreeMap::new();
        self.table(map)?.scan(|key, value| {
            content.insert(*key, *value);
        })?;
        Ok(content)
    }

    /// The content of a map that agents may not have made.
    fn content_of<K: Plain + Ord, V: Plain>(&self, map: &'static str) -> Result<BTreeMap<K, V>, ViewError> {
        let mut content = BTreeMap::new();
        if let Some(map) = Table::open_pin(&self.directory, map)? {
            map.scan(|key, value| {
                content.insert(*key, *value);
            })?;
        }
        Ok(content)
    }

    /// The names; those of an agent that wrote none are not known.
    fn names(&self) -> Result<Names, ViewError> {
        let mut names = Names::default();
        for (table, name) in self.content_of(maps::SERVICE_NAMES)? {
            names.services.insert(table, ServicePort::of(&name));
        }
        for (address, name) in self.content_of::<Address, PodName>(maps::POD_NAMES)? {
            names.pods.insert(address, Object::of(name.parts()));
        }
        Ok(names)
    }
}

/// What things are called.
#[derive(Debug, Default)]
struct Names {
    services: BTreeMap<u32, ServicePort>,
    pods: BTreeMap<Address, Object>,
}

/// An object of the API.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Object {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Object {
    fn of<'a>(mut parts: impl Iterator<Item = &'a str>) -> Self {
        let mut next = || parts.next().unwrap_or_default().to_owned();
        Self { namespace: next(), name: next() }
    }

    /// Objects of one namespace.
    fn all_of(names: &PolicyNames) -> Vec<Self> {
        let mut parts = names.parts();
        let namespace = parts.next().unwrap_or_default();
        let object = |name: &str| Self { namespace: namespace.to_owned(), name: name.to_owned() };
        parts.take_while(|name| !name.is_empty()).map(object).collect()
    }
}

impl std::fmt::Display for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A port of a Service, or a `hostPort` of a Pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct ServicePort {
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service; of the Pod for a `hostPort`.
    pub name: String,
    /// Name of the port, empty if it has none; begins with `hostPort/` for one of a Pod.
    pub port: String,
}

impl ServicePort {
    fn of(name: &ServiceName) -> Self {
        let mut parts = name.parts();
        let mut next = || parts.next().unwrap_or_default().to_owned();
        Self { namespace: next(), name: next(), port: next() }
    }
}

impl std::fmt::Display for ServicePort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)?;
        if self.port.is_empty() { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

/// Which rows to show: those that match everything that is given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of Services or Pods in this namespace.
    pub namespace: Option<String>,
    /// Of this Service: its name, or `namespace/name`.
    pub service: Option<String>,
    /// With this address anywhere.
    pub address: Option<IpAddr>,
    /// Of this protocol number.
    pub protocol: Option<u8>,
}

impl Filter {
    fn admits_protocol(&self, protocol: u32) -> bool {
        self.protocol.is_none_or(|wanted| u32::from(wanted) == protocol)
    }

    fn admits_address(&self, addresses: &[Address]) -> bool {
        self.address.is_none_or(|wanted| addresses.contains(&Address::from(wanted)))
    }

    fn admits_service<'a>(&self, mut services: impl Iterator<Item = &'a ServicePort>) -> bool {
        self.service.as_ref().is_none_or(|wanted| {
            let (namespace, name) =
                wanted.split_once('/').map_or((None, wanted.as_str()), |(space, name)| (Some(space), name));
            services
                .any(|known| known.name == name && namespace.is_none_or(|wanted| known.namespace == wanted))
        })
    }

    fn admits_namespace<'a>(&self, mut namespaces: impl Iterator<Item = &'a str>) -> bool {
        self.namespace.as_ref().is_none_or(|wanted| namespaces.any(|known| known == wanted))
    }
}

/// The name of a protocol as Kubernetes writes it; the number of one without.
#[must_use]
pub fn protocol_name(protocol: u32) -> String {
    match u8::try_from(protocol) {
        Ok(TCP) => "TCP".to_owned(),
        Ok(UDP) => "UDP".to_owned(),
        Ok(SCTP) => "SCTP".to_owned(),
        Ok(ICMP) => "ICMP".to_owned(),
        Ok(ICMPV6) => "ICMPv6".to_owned(),
        _ => protocol.to_string(),
    }
}

/// The number of a protocol by its name, in any case, or by its number.
///
/// # Errors
/// What is known.
pub fn protocol_number(name: &str) -> Result<u8, String> {
    match name.to_ascii_lowercase().as_str() {
        "tcp" => Ok(TCP),
        "udp" => Ok(UDP),
        "sctp" => Ok(SCTP),
        "icmp" => Ok(ICMP),
        "icmpv6" => Ok(ICMPV6),
        other => other
            .parse()
            .map_err(|_| format!("{name:?} is no protocol: tcp, udp, sctp, icmp, icmpv6 or a number to 255")),
    }
}

#[cfg(test)]
mod tests;
