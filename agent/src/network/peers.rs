//! Decides how the pods of each other node are reached: by a route to the node when it is on this one's link, else through a
//! tunnel.

use crate::dataplane::Peer;
use crate::network::ipam::Prefix;
use k8s_openapi::api::core::v1::Node;
use kelp_common::{Address, Cidr};
use kube::ResourceExt;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// How pods of other nodes are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Routing {
    /// As each node needs it: directly when its address is in a network of the uplink, else through a tunnel.
    #[default]
    Auto,
    /// Directly, always: what is between the nodes knows the way, or there is nothing.
    Direct,
    /// Through tunnels, always.
    Tunnel,
}

/// This node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Own {
    /// Its name.
    pub name: String,
    /// Its addresses, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// What is wanted.
    pub routing: Routing,
}

/// The next step of a route of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Via {
    /// A node on the link.
    Gateway(IpAddr),
    /// The tunnels' device; the host's packets come from this address, if it has one of the family.
    Tunnel(Option<IpAddr>),
}

/// A route to another node's pods.
pub type Route = (Prefix, Via);

/// What follows from the Node objects.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// The host's routes.
    pub routes: BTreeSet<Route>,
    /// What the dataplane is told.
    pub peers: Vec<Peer>,
}

/// Plans for a node with the networks `links` on its uplink. Without any it is not known who is on the link, and nodes are taken
/// to be.
pub fn plan<'a>(nodes: impl IntoIterator<Item = &'a Node>, own: &Own, links: &[Prefix]) -> Plan {
    let mut plan = Plan::default();
    for node in nodes.into_iter().filter(|node| node.name_any() != own.name) {
        add(&mut plan, node, own, links);
    }
    plan.peers.sort_unstable();
    plan.peers.dedup_by_key(|peer| peer.network);
    plan
}

fn add(plan: &mut Plan, node: &Node, own: &Own, links: &[Prefix]) {
    let addresses: Vec<IpAddr> = node
        .status
        .iter()
        .flat_map(|status| status.addresses.iter().flatten())
        .filter(|address| address.type_ == "InternalIP")
        .filter_map(|address| address.address.parse().ok())
        .collect();
    // Both nodes choose alike: each believes packets from the address that it would send to.
    let end = [true, false].into_iter().find_map(|v4| {
        of_family(&own.addresses, v4)?;
        of_family(&addresses, v4)
    });
    let spec = node.spec.clone().unwrap_or_default();
    let ranges = spec.pod_cidrs.unwrap_or_else(|| spec.pod_cidr.into_iter().collect());
    let mut tunnelled = [false; 2];
    for prefix in ranges.iter().filter_map(|range| range.parse::<Prefix>().ok()) {
        let v4 = prefix.address.is_ipv4();
        let gateway = of_family(&addresses, v4);
        let is_near =
            |address: &IpAddr| links.is_empty() || links.iter().any(|link| contains(link, *address));
        let direct = match own.routing {
            Routing::Direct => gateway,
            Routing::Auto => gateway.filter(is_near),
            Routing::Tunnel => None,
        };
        let via = match (direct, end) {
            (Some(gateway), _) => Via::Gateway(gateway),
            (None, Some(_)) if own.routing != Routing::Direct => Via::Tunnel(of_family(&own.addresses, v4)),
            _ => continue,
        };
        let Some(end) = end.or(gateway) else { continue };
        let tunnel = matches!(via, Via::Tunnel(_));
        tunnelled[usize::from(v4)] |= tunnel;
        plan.routes.insert((prefix, via));
        plan.peers.push(Peer { network: (prefix.address, prefix.length), node: end, is_node: false, tunnel });
    }
    for v4 in [true, false] {
        if let (Some(address), Some(end)) = (of_family(&addresses, v4), end) {
            let network = (address, if v4 { 32 } else { 128 });
            plan.peers.push(Peer { network, node: end, is_node: true, tunnel: tunnelled[usize::from(v4)] });
        }
    }
}

fn of_family(addresses: &[IpAddr], v4: bool) -> Option<IpAddr> {
    addresses.iter().copied().find(|address| address.is_ipv4() == v4)
}

fn contains(prefix: &Prefix, address: IpAddr) -> bool {
    Cidr::new(prefix.address, prefix.length).contains(&Address::from(address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn node(name: &str, ranges: &[&str], addresses: &[&str]) -> Node {
        let addresses: Vec<Value> =
            addresses.iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
        serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"podCIDRs": ranges},
            "status": {"addresses": addresses},
        }))
        .unwrap()
    }

    fn own(routing: Routing) -> Own {
        let addresses = vec!["192.0.2.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        Own { name: "me".into(), addresses, routing }
    }

    fn links() -> Vec<Prefix> {
        ["192.0.2.1/24", "fd00::1/64"].map(|link| link.parse().unwrap()).to_vec()
    }

    fn routes(plan: &Plan) -> Vec<String> {
        let text = |via: &Via| match via {
            Via::Gateway(gateway) => format!("via {gateway}"),
            Via::Tunnel(Some(source)) => format!("tunnel from {source}"),
            Via::Tunnel(None) => "tunnel".to_owned(),
        };
        plan.routes.iter().map(|(prefix, via)| format!("{prefix} {}", text(via))).collect()
    }

    fn peers(plan: &Plan) -> Vec<String> {
        let text = |peer: &Peer| {
            let (network, prefix) = peer.network;
            let kind = if peer.is_node { "node" } else { "pods" };
            format!("{kind} {network}/{prefix} at {}{}", peer.node, if peer.tunnel { " tunnel" } else { "" })
        };
        plan.peers.iter().map(text).collect()
    }

    #[test]
    fn every_other_node_and_both_families() {
        let nodes = [
            node("me", &["10.244.0.0/24"], &["192.0.2.1"]),
            node("b", &["10.244.1.0/24", "fd00:10:244:1::/64"], &["192.0.2.2", "fd00::2"]),
            node("v4-only", &["10.244.2.0/24", "fd00:10:244:2::/64"], &["192.0.2.3"]),
            node("new", &[], &[]),
        ];
        let direct =
            ["10.244.1.0/24 via 192.0.2.2", "10.244.2.0/24 via 192.0.2.3", "fd00:10:244:1::/64 via fd00::2"];
        assert_eq!(routes(&plan(&nodes, &own(Routing::Direct), &links())), direct);
        // A node without an address of a family has its pods of that family behind a tunnel of the other one.
        let auto = plan(&nodes, &own(Routing::Auto), &links());
        assert_eq!(routes(&auto), [&direct[..], &["fd00:10:244:2::/64 tunnel from fd00::1"]].concat());
        assert_eq!(
            peers(&auto),
            [
                "pods 10.244.1.0/24 at 192.0.2.2",
                "pods 10.244.2.0/24 at 192.0.2.3",
                "node 192.0.2.2/32 at 192.0.2.2",
                "node 192.0.2.3/32 at 192.0.2.3",
                "node fd00::2/128 at 192.0.2.2",
                "pods fd00:10:244:1::/64 at 192.0.2.2",
                "pods fd00:10:244:2::/64 at 192.0.2.3 tunnel",
            ]
        );
        let tunnel = routes(&plan(&nodes, &own(Routing::Tunnel), &links()));
        assert!(tunnel.len() == 4 && tunnel.iter().all(|route| route.contains("tunnel")), "{tunnel:?}");
    }

    #[test]
    fn a_node_moves_between_links_and_the_plan_follows_whatever_came_before() {
        let near = node("b", &["10.244.1.0/24", "fd00:10:244:1::/64"], &["192.0.2.2", "fd00::2"]);
        let far = node("b", &["10.244.1.0/24", "fd00:10:244:1::/64"], &["198.51.100.2", "fd00:1::2"]);
        let of = |node: &Node| plan([node], &own(Routing::Auto), &links());
        assert_eq!(routes(&of(&near)), ["10.244.1.0/24 via 192.0.2.2", "fd00:10:244:1::/64 via fd00::2"]);
        assert!(of(&near).peers.iter().all(|peer| !peer.tunnel));
        assert_eq!(
            routes(&of(&far)),
            ["10.244.1.0/24 tunnel from 192.0.2.1", "fd00:10:244:1::/64 tunnel from fd00::1"]
        );
        assert_eq!(
            peers(&of(&far)),
            [
                "pods 10.244.1.0/24 at 198.51.100.2 tunnel",
                "node 198.51.100.2/32 at 198.51.100.2 tunnel",
                "node fd00:1::2/128 at 198.51.100.2 tunnel",
                "pods fd00:10:244:1::/64 at 198.51.100.2 tunnel",
            ]
        );
        // The other way round the uplink gets a network, or loses it.
        let wider = [&links()[..], &["198.51.100.0/24".parse().unwrap()]].concat();
        assert_eq!(
            routes(&plan([&far], &own(Routing::Auto), &wider)),
            ["10.244.1.0/24 via 198.51.100.2", "fd00:10:244:1::/64 tunnel from fd00::1"]
        );
        // An address of its own (/32) makes nobody a neighbour; no network at all tells nothing.
        let alone: Prefix = "192.0.2.1/32".parse().unwrap();
        assert!(plan([&near], &own(Routing::Auto), &[alone]).peers.iter().all(|peer| peer.tunnel));
        assert!(plan([&far], &own(Routing::Auto), &[]).peers.iter().all(|peer| !peer.tunnel));
    }

    #[test]
    fn the_families_of_tunnels_are_those_that_both_ends_have() {
        let six = node("b", &["10.244.1.0/24"], &["fd00:1::2"]);
        let of = |addresses: &[&str]| {
            let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
            let own = Own { name: "me".into(), addresses, routing: Routing::Auto };
            plan([&six], &own, &links())
        };
        assert_eq!(routes(&of(&["192.0.2.1", "fd00::1"])), ["10.244.1.0/24 tunnel from 192.0.2.1"]);
        assert_eq!(peers(&of(&["fd00::1"]))[0], "pods 10.244.1.0/24 at fd00:1::2 tunnel");
        assert_eq!(routes(&of(&["fd00::1"])), ["10.244.1.0/24 tunnel"]);
        assert_eq!(of(&["192.0.2.1"]), Plan::default(), "no way there");
    }
}
