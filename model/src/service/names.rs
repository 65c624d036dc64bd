//! What cluster DNS knows of Services, beside their endpoints: see [`crate::dns`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use kelp_common::Address;

use super::ObjectName;
use super::state::{SliceState, address_of, protocol_of};

/// `clusterIP` of a headless Service.
const NO_ADDRESS: &str = "None";

/// What the name of a Service stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Its own addresses.
    Cluster(Vec<Address>),
    /// Its endpoints.
    Headless,
    /// Another name.
    External(Arc<str>),
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NamedPort {
    /// Empty when it has none.
    pub name: Arc<str>,
    pub protocol: u8,
    /// Host byte order.
    pub port: u16,
}

/// A Service that has a name in DNS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NamedService {
    pub kind: Kind,
    pub ports: Vec<NamedPort>,
}

impl NamedService {
    /// The fields that matter; nothing for a Service without an address yet.
    pub fn of(service: &Service) -> Option<Self> {
        let spec = service.spec.as_ref()?;
        let texts = || spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
        let kind = if spec.type_.as_deref() == Some("ExternalName") {
            Kind::External(spec.external_name.as_deref()?.trim_end_matches('.').into())
        } else if texts().any(|text| text == NO_ADDRESS) {
            Kind::Headless
        } else {
            let mut addresses: Vec<Address> = Vec::new();
            for address in texts().filter_map(|text| address_of(text)) {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
            if addresses.is_empty() {
                return None;
            }
            Kind::Cluster(addresses)
        };
        let ports = spec.ports.iter().flatten().filter_map(|port| {
            Some(NamedPort {
                name: port.name.as_deref().unwrap_or_default().into(),
                protocol: protocol_of(port.protocol.as_deref())?,
                port: u16::try_from(port.port).ok()?,
            })
        });
        Some(Self { kind, ports: ports.collect() })
    }

    /// Whether its endpoints have names below its own.
    pub fn names_endpoints(&self) -> bool {
        !matches!(self.kind, Kind::External(_))
    }
}

/// All Services with a name, and whose an address is.
#[derive(Debug, Clone, Default)]
pub(super) struct Names {
    services: BTreeMap<ObjectName, NamedService>,
    /// While an address moves from one Service to another, both may have it.
    addresses: BTreeMap<Address, BTreeSet<ObjectName>>,
}

impl Names {
    pub fn get(&self, name: &ObjectName) -> Option<&NamedService> {
        self.services.get(name)
    }

    /// Whether any Service of a namespace has a name.
    pub fn has_namespace(&self, namespace: &str) -> bool {
        let first = ObjectName::new(namespace, "");
        self.services.range(first..).next().is_some_and(|(name, _)| *name.namespace == *namespace)
    }

    /// The Service with a service address.
    pub fn at(&self, address: &Address) -> Option<&ObjectName> {
        self.addresses.get(address)?.first()
    }

    /// Takes over a Service, or forgets it.
    pub fn set(&mut self, name: &ObjectName, service: Option<NamedService>) {
        if let Some(NamedService { kind: Kind::Cluster(addresses), .. }) = self.services.remove(name) {
            for address in addresses {
                if let Some(names) = self.addresses.get_mut(&address) {
                    names.remove(name);
                    if names.is_empty() {
                        self.addresses.remove(&address);
                    }
                }
            }
        }
        if let Some(service) = service {
            if let Kind::Cluster(addresses) = &service.kind {
                for address in addresses {
                    self.addresses.entry(*address).or_default().insert(name.clone());
                }
            }
            self.services.insert(name.clone(), service);
        }
    }
}

/// Which slices hold an address: of hundreds of thousands of endpoints, so an entry is small.
#[derive(Debug, Clone, Default)]
pub(super) struct Holders(BTreeSet<(Address, Arc<ObjectName>)>);

impl Holders {
    /// Takes over the endpoints of a slice.
    pub fn add(&mut self, name: &ObjectName, slice: &SliceState) {
        let name = Arc::new(name.clone());
        self.0.extend(slice.endpoints.iter().map(|endpoint| (endpoint.address, name.clone())));
    }

    /// Forgets the endpoints of a slice.
    pub fn remove(&mut self, name: &ObjectName, slice: &SliceState) {
        let name = Arc::new(name.clone());
        for endpoint in &slice.endpoints {
            self.0.remove(&(endpoint.address, name.clone()));
        }
    }

    /// The slices that hold an address.
    pub fn of(&self, address: Address) -> impl Iterator<Item = &ObjectName> {
        let first = (address, Arc::new(ObjectName::new("", "")));
        self.0.range(first..).take_while(move |(held, _)| *held == address).map(|(_, name)| &**name)
    }
}
