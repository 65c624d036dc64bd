//! What cluster DNS answers: records by version 1.1.0 of the Kubernetes DNS specification, computed from the Services and
//! EndpointSlices of an [`Index`] when they are asked for.
//!
//! | Name, below the cluster's domain | Records |
//! |---|---|
//! | `<service>.<namespace>.svc` | `A`, `AAAA`: the service addresses, or those of the ready endpoints of a headless one; `CNAME` of an ExternalName; `SRV` of all ports |
//! | `_<port>._<protocol>.<service>.<namespace>.svc` | `SRV` |
//! | `<hostname>.<service>.<namespace>.svc` | `A`, `AAAA` of an endpoint; without a host name, its address with dashes |
//! | `<a-b-c-d>.<namespace>.pod` | `A`, `AAAA`: the address that the name spells |
//! | `<namespace>.svc`, `<namespace>.pod` | none; they exist as long as the namespace does |
//! | `dns-version` | `TXT` |
//! | the domain itself, `ns.dns` | `SOA`, `NS`; the addresses of cluster DNS |
//!
//! and `PTR` of service addresses and of the ready endpoints of all Services, as CoreDNS has them. As the specification
//! says, a headless Service without a ready endpoint has no name; else a name that has records, or that leads to one that
//! has, exists.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use kelp_common::{Address, Cidr, SCTP, TCP, UDP};

use crate::service::names::{Kind, NamedPort, NamedService};
use crate::service::state::{EndpointState, SliceState};
use crate::service::{Index, ObjectName};

pub use namespaces::Namespaces;

/// Version of the specification.
pub const SPECIFICATION: &str = "1.1.0";
/// Sum of the weights of the `SRV` records of one port, as far as it divides.
const WEIGHT: u16 = 100;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RecordType {
    /// `A`
    A,
    /// `AAAA`
    Aaaa,
    /// `CNAME`
    Cname,
    /// `NS`
    Ns,
    /// `PTR`
    Ptr,
    /// `SOA`
    Soa,
    /// `SRV`
    Srv,
    /// `TXT`
    Txt,
    /// `ANY`
    Any,
    /// Another type, of which there are no records here.
    Other,
}

impl RecordType {
    fn wants(self, kind: Self) -> bool {
        self == kind || self == Self::Any
    }

    fn wants_address(self, address: IpAddr) -> bool {
        self.wants(if address.is_ipv4() { Self::A } else { Self::Aaaa })
    }
}

/// A record of the name that was asked for. Names in it are absolute, in lower case, without the final dot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Record {
    /// `A` or `AAAA`.
    Address(IpAddr),
    /// `CNAME`; the name's case is the user's.
    Alias(String),
    /// `PTR`.
    Pointer(String),
    /// `SRV`, with priority 0.
    Server {
        /// Weight.
        weight: u16,
        /// Port.
        port: u16,
        /// Who serves.
        target: String,
    },
    /// `TXT`.
    Text(&'static str),
    /// `SOA`.
    Authority,
    /// `NS`.
    NameServer(String),
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// These records, at least one.
    Records {
        /// The records.
        records: Vec<Record>,
        /// Addresses of names in them.
        additional: Vec<(String, IpAddr)>,
    },
    /// The name exists and has no such record.
    NoData,
    /// The name does not exist.
    NoName,
    /// The name is not the cluster's.
    NotOurs,
}

impl Answer {
    fn of(records: Vec<Record>) -> Self {
        Self::with(records, Vec::new())
    }

    fn with(records: Vec<Record>, additional: Vec<(String, IpAddr)>) -> Self {
        if records.is_empty() { Self::NoData } else { Self::Records { records, additional } }
    }
}

/// The cluster's names.
#[derive(Debug, Clone)]
pub struct Zone {
    domain: String,
    servers: Vec<IpAddr>,
    ranges: Vec<Cidr>,
}

impl Zone {
    /// The zone of a domain (`cluster.local`). `servers` are the addresses of cluster DNS; addresses in `ranges` (first
    /// address, prefix length) belong to the cluster, so that nobody else knows their names.
    #[must_use]
    pub fn new(domain: &str, servers: Vec<IpAddr>, ranges: &[(IpAddr, u8)]) -> Self {
        let ranges = ranges.iter().map(|(network, prefix)| Cidr::new(*network, *prefix)).collect();
        Self { domain: domain.trim_matches('.').to_ascii_lowercase(), servers, ranges }
    }

    /// The cluster's domain.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Name of the server, in the zone's `SOA` and `NS` records.
    #[must_use]
    pub fn server(&self) -> String {
        format!("ns.dns.{}", self.domain)
    }

    /// Whether a name lies in the cluster's domain: then only the cluster's own state answers.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.below(&name.to_ascii_lowercase()).is_some()
    }

    /// The part of a name before the domain; `Some("")` is the domain itself.
    fn below<'a>(&self, name: &'a str) -> Option<&'a str> {
        let rest = name.strip_suffix(self.domain.as_str())?;
        if rest.is_empty() { Some(rest) } else { rest.strip_suffix('.') }
    }

    /// Answers a question. The name is absolute, without the final dot; case does not matter.
    #[must_use]
    pub fn answer(&self, index: &Index, namespaces: &Namespaces, name: &str, kind: RecordType) -> Answer {
        let name = name.to_ascii_lowercase();
        let Some(rest) = self.below(&name) else {
            return match reverse::address(&name) {
                Some(address) => self.pointers(index, address, kind),
                None => Answer::NotOurs,
            };
        };
        let labels: Vec<&str> = if rest.is_empty() { Vec::new() } else { rest.split('.').collect() };
        match labels.as_slice() {
            [] => self.apex(kind),
            ["dns-version"] if kind.wants(RecordType::Txt) => Answer::of(vec![Record::Text(SPECIFICATION)]),
            ["ns", "dns"] => {
                let wanted = self.servers.iter().filter(|address| kind.wants_address(**address));
                Answer::of(wanted.map(|address| Record::Address(*address)).collect())
            }
            ["dns-version" | "dns" | "svc" | "pod"] => Answer::NoData,
            // A Service may be heard of before its namespace.
            [.., namespace, "pod"] | [namespace, "svc"]
                if !namespaces.may_have(namespace) && !index.names_in(namespace) =>
            {
                Answer::NoName
            }
            [_, "svc" | "pod"] => Answer::NoData,
            [pod, _, "pod"] => match address_in(pod) {
                Some(address) if kind.wants_address(address) => Answer::of(vec![Record::Address(address)]),
                Some(_) => Answer::NoData,
                None => Answer::NoName,
            },
            [rest @ .., service, namespace, "svc"] => {
                let name = ObjectName::new(namespace, service);
                let Some(service) = index.named(&name) else { return Answer::NoName };
                let view = View { zone: self, index, name: &name, service };
                match rest {
                    [] => view.service(kind),
                    [label] if label.starts_with('_') => view.protocol(label),
                    [label] => view.endpoint(label, kind),
                    [port, protocol] => view.port(port, protocol, kind),
                    _ => Answer::NoName,
                }
            }
            _ => Answer::NoName,
        }
    }

    fn apex(&self, kind: RecordType) -> Answer {
        let mut records = Vec::new();
        if kind.wants(RecordType::Soa) {
            records.push(Record::Authority);
        }
        let mut additional = Vec::new();
        if kind.wants(RecordType::Ns) {
            records.push(Record::NameServer(self.server()));
            additional.extend(self.servers.iter().map(|address| (self.server(), *address)));
        }
        Answer::with(records, additional)
    }

    /// Names of an address.
    fn pointers(&self, index: &Index, address: IpAddr, kind: RecordType) -> Answer {
        let address = Address::from(address);
        // Those with a host name first: many clients use the first name only.
        let names: BTreeSet<(bool, String)> = match index.service_at(&address) {
            Some(name) => [(false, self.name_of(name))].into(),
            None => index
                .slices_at(address)
                .filter(|slice| index.named(&slice.service).is_some_and(NamedService::names_endpoints))
                .flat_map(|slice| slice.endpoints.iter().map(move |endpoint| (slice, endpoint)))
                .filter(|(_, endpoint)| endpoint.ready && endpoint.address == address)
                .map(|(slice, endpoint)| {
                    let name = format!("{}.{}", hostname(endpoint), self.name_of(&slice.service));
                    (endpoint.hostname.is_none(), name)
                })
                .collect(),
        };
        if !names.is_empty() {
            let wanted = names.into_iter().filter(|_| kind.wants(RecordType::Ptr));
            return Answer::of(wanted.map(|(_, name)| Record::Pointer(name)).collect());
        }
        let is_ours = self.ranges.iter().any(|range| range.contains(&address));
        if is_ours { Answer::NoName } else { Answer::NotOurs }
    }

    /// Name of a Service in DNS.
    fn name_of(&self, service: &ObjectName) -> String {
        format!("{}.{}.svc.{}", service.name, service.namespace, self.domain)
    }
}

/// A Service whose name was asked for.
struct View<'a> {
    zone: &'a Zone,
    index: &'a Index,
    name: &'a ObjectName,
    service: &'a NamedService,
}

impl<'a> View<'a> {
    /// Its ready endpoints.
    fn ready(&self) -> impl Iterator<Item = (&'a SliceState, &'a EndpointState)> {
        let slices = self.index.slices_of(self.name);
        slices
            .flat_map(|slice| slice.endpoints.iter().map(move |endpoint| (slice, endpoint)))
            .filter(|(_, endpoint)| endpoint.ready)
    }

    /// `<service>.<namespace>.svc`
    fn service(&self, kind: RecordType) -> Answer {
        let addresses: BTreeSet<IpAddr> = match &self.service.kind {
            Kind::External(name) => return alias(name),
            Kind::Cluster(addresses) => addresses.iter().copied().map(IpAddr::from).collect(),
            Kind::Headless => self.ready().map(|(_, endpoint)| endpoint.address.into()).collect(),
        };
        if addresses.is_empty() {
            return Answer::NoName;
        }
        let wanted = addresses.into_iter().filter(|address| kind.wants_address(*address));
        let mut records: Vec<Record> = wanted.map(Record::Address).collect();
        let mut additional = Vec::new();
        if kind == RecordType::Srv {
            (records, additional) = self.servers(|_, _| true);
        }
        Answer::with(records, additional)
    }

    /// `_<protocol>.<service>.<namespace>.svc`: nothing but the way to names that exist.
    fn protocol(&self, label: &str) -> Answer {
        let Some(protocol) = protocol_of(label) else { return Answer::NoName };
        let (records, _) = self.servers(|name, own| !name.is_empty() && own == protocol);
        if records.is_empty() { Answer::NoName } else { Answer::NoData }
    }

    /// `_<port>._<protocol>.<service>.<namespace>.svc`
    fn port(&self, port: &str, protocol: &str, kind: RecordType) -> Answer {
        let (Some(port), Some(protocol)) = (port.strip_prefix('_'), protocol_of(protocol)) else {
            return Answer::NoName;
        };
        let is_asked =
            |name: &str, own: u8| !name.is_empty() && name.eq_ignore_ascii_case(port) && own == protocol;
        let (records, additional) = self.servers(is_asked);
        if records.is_empty() {
            Answer::NoName
        } else if kind.wants(RecordType::Srv) {
            Answer::with(records, additional)
        } else {
            Answer::NoData
        }
    }

    /// `<hostname>.<service>.<namespace>.svc`
    fn endpoint(&self, label: &str, kind: RecordType) -> Answer {
        if !self.service.names_endpoints() {
            return Answer::NoName;
        }
        let spelled = address_in(label).map(Address::from);
        let own = self.ready().filter(|(_, endpoint)| match &endpoint.hostname {
            Some(name) => name.eq_ignore_ascii_case(label),
            // However it is written: CoreDNS shortens IPv6 addresses.
            None => spelled == Some(endpoint.address),
        });
        let addresses: BTreeSet<IpAddr> = own.map(|(_, endpoint)| endpoint.address.into()).collect();
        if addresses.is_empty() {
            return Answer::NoName;
        }
        let wanted = addresses.into_iter().filter(|address| kind.wants_address(*address));
        Answer::of(wanted.map(Record::Address).collect())
    }

    /// The `SRV` records of ports by name and protocol, and the addresses behind them.
    fn servers(&self, is_asked: impl Fn(&str, u8) -> bool) -> (Vec<Record>, Vec<(String, IpAddr)>) {
        let service = self.zone.name_of(self.name);
        // Port and target; the addresses of targets.
        let (mut servers, mut additional) = (BTreeSet::new(), BTreeSet::new());
        match &self.service.kind {
            Kind::External(_) => {}
            Kind::Cluster(addresses) => {
                let ports = self.service.ports.iter().filter(|port| is_asked(&port.name, port.protocol));
                servers.extend(ports.map(|NamedPort { port, .. }| (*port, service.clone())));
                additional.extend(addresses.iter().map(|address| (service.clone(), IpAddr::from(*address))));
            }
            Kind::Headless => {
                for (slice, endpoint) in self.ready() {
                    let ports = slice.ports.iter().filter(|(name, protocol, _)| is_asked(name, *protocol));
                    for (_, _, port) in ports {
                        let target = format!("{}.{service}", hostname(endpoint));
                        servers.insert((u16::from_be(*port), target.clone()));
                        additional.insert((target, IpAddr::from(endpoint.address)));
                    }
                }
            }
        }
        if servers.is_empty() {
            return (Vec::new(), Vec::new());
        }
        let count = u16::try_from(servers.len()).unwrap_or(u16::MAX);
        let weight = (WEIGHT / count).max(1);
        let records = servers.into_iter().map(|(port, target)| Record::Server { weight, port, target });
        (records.collect(), additional.into_iter().collect())
    }
}

/// An ExternalName. One that looks like an address is none: it cannot be resolved (the field's documentation), and has no
/// name in CoreDNS.
fn alias(name: &str) -> Answer {
    if name.is_empty() || name.parse::<IpAddr>().is_ok() {
        return Answer::NoName;
    }
    Answer::of(vec![Record::Alias(name.to_owned())])
}

/// The endpoint's part of its name: its host name, or its address with dashes.
fn hostname(endpoint: &EndpointState) -> String {
    match &endpoint.hostname {
        Some(name) => name.to_ascii_lowercase(),
        None => dashed(endpoint.address.into()),
    }
}

/// An address as a label. An IPv6 address is written whole: `::` would make labels that begin or end with a dash.
fn dashed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string().replace('.', "-"),
        IpAddr::V6(address) => {
            let words: Vec<String> = address.segments().iter().map(|word| format!("{word:x}")).collect();
            words.join("-")
        }
    }
}

/// The address that a label spells; `--` stands for `::`.
fn address_in(label: &str) -> Option<IpAddr> {
    if label.bytes().filter(|byte| *byte == b'-').count() == 3
        && let Ok(address) = label.replace('-', ".").parse::<Ipv4Addr>()
    {
        return Some(address.into());
    }
    label.replace('-', ":").parse::<Ipv6Addr>().ok().map(IpAddr::from)
}

fn protocol_of(label: &str) -> Option<u8> {
    match label {
        "_tcp" => Some(TCP),
        "_udp" => Some(UDP),
        "_sctp" => Some(SCTP),
        _ => None,
    }
}

mod namespaces;
mod reverse;
#[cfg(test)]
mod tests;
