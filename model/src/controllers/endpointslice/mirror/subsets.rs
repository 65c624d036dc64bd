//! From the subsets of Endpoints to endpoints by address family and ports.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset, Endpoints};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort};

use super::reconcile::{Identity, identity};
use crate::controllers::endpoints::PortKey;
use crate::controllers::endpointslice::Group;

/// What of some Endpoints is mirrored.
#[derive(Debug, Default, PartialEq)]
pub struct Mirrored {
    /// Never empty ones.
    pub groups: Vec<Group>,
    /// Addresses that are none.
    pub invalid: usize,
    /// Addresses left out, because they are invalid or too many.
    pub skipped: usize,
}

/// The endpoints of all subsets, at most `max` of each, ready ones first.
///
/// However the addresses are spread over subsets, the outcome is the same: ports with the same addresses go together, an
/// address that is listed twice for a port counts once, and is ready only if it is so everywhere.
#[must_use]
pub fn mirrored(endpoints: &Endpoints, max: usize) -> Mirrored {
    let mut out = Mirrored::default();
    for subset in repack(endpoints.subsets.as_deref().unwrap_or_default()) {
        let mut families: BTreeMap<&str, Vec<Endpoint>> = BTreeMap::new();
        let mut places: HashMap<Identity, usize> = HashMap::new();
        let mut added = 0;
        for (address, ready) in subset.in_order() {
            if added >= max {
                break;
            }
            let Some(ip) = parse_ip(&address.ip) else {
                out.invalid += 1;
                continue;
            };
            added += 1;
            let endpoint = endpoint(address, ip, ready);
            let list = families.entry(if ip.is_ipv4() { "IPv4" } else { "IPv6" }).or_default();
            // Two spellings of an address, or two references to a pod of one name: the later one counts.
            match places.get(&identity(&endpoint)) {
                Some(place) => list[*place] = endpoint,
                None => {
                    places.insert(identity(&endpoint), list.len());
                    list.push(endpoint);
                }
            }
        }
        out.skipped += subset.addresses.len() - added;
        out.groups.extend(families.into_iter().map(|(family, endpoints)| Group {
            address_type: family.into(),
            ports: subset.ports.iter().map(port).collect(),
            endpoints,
        }));
    }
    out
}

/// What tells addresses apart: the text, and the UID of what is behind it.
type AddressKey<'a> = (&'a str, Option<&'a str>);

/// Ports and the addresses that offer them all, in order.
struct Subset<'a> {
    ports: Vec<PortKey>,
    addresses: Vec<(&'a EndpointAddress, bool)>,
}

impl<'a> Subset<'a> {
    fn in_order(&self) -> impl Iterator<Item = (&'a EndpointAddress, bool)> {
        let of = |wanted: bool| self.addresses.iter().copied().filter(move |(_, ready)| *ready == wanted);
        of(true).chain(of(false))
    }
}

/// The same subsets in the one form that does not depend on how they were written: each port in one subset, no two subsets with
/// the same addresses.
fn repack(subsets: &[EndpointSubset]) -> Vec<Subset<'_>> {
    let mut first: BTreeMap<AddressKey<'_>, &EndpointAddress> = BTreeMap::new();
    // `None` stands for a subset without ports.
    let mut by_port: BTreeMap<Option<PortKey>, BTreeMap<AddressKey<'_>, bool>> = BTreeMap::new();
    for subset in subsets {
        let all = subset.addresses.iter().flatten().map(|a| (a, true));
        let all: Vec<_> =
            all.chain(subset.not_ready_addresses.iter().flatten().map(|a| (a, false))).collect();
        let ports = subset.ports.iter().flatten().map(|p| Some(PortKey::from(p)));
        let none = subset.ports.as_ref().is_none_or(Vec::is_empty).then_some(None);
        for port in ports.chain(none) {
            let addresses = by_port.entry(port).or_default();
            for (address, ready) in &all {
                let uid = address.target_ref.as_ref().and_then(|r| r.uid.as_deref());
                let key = (address.ip.as_str(), uid.filter(|uid| !uid.is_empty()));
                first.entry(key).or_insert(address);
                *addresses.entry(key).or_insert(true) &= ready;
            }
        }
    }
    let mut by_addresses: BTreeMap<BTreeMap<AddressKey<'_>, bool>, Vec<PortKey>> = BTreeMap::new();
    for (port, addresses) in by_port {
        by_addresses.entry(addresses).or_default().extend(port);
    }
    let found = |(key, ready): (AddressKey<'_>, bool)| Some((*first.get(&key)?, ready));
    by_addresses
        .into_iter()
        .map(|(addresses, ports)| Subset {
            ports,
            addresses: addresses.into_iter().filter_map(found).collect(),
        })
        .collect()
}

/// An address as older servers took it: numbers with leading zeros are decimal.
fn parse_ip(text: &str) -> Option<IpAddr> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some(ip.to_canonical());
    }
    let digits = |part: &str| -> Option<u8> {
        let plain = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        plain
            .then(|| part.trim_start_matches('0'))
            .and_then(|n| if n.is_empty() { Some(0) } else { n.parse().ok() })
    };
    let numbers: Vec<u8> = text.split('.').map(digits).collect::<Option<_>>()?;
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(numbers).ok()?).into())
}

fn endpoint(address: &EndpointAddress, ip: IpAddr, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![ip.to_string()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
        hostname: address.hostname.clone().filter(|name| !name.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

fn port(key: &PortKey) -> EndpointPort {
    EndpointPort {
        name: Some(key.name.clone().unwrap_or_default()),
        port: Some(key.port),
        protocol: Some(key.protocol.clone()),
        app_protocol: key.app_protocol.clone(),
    }
}
