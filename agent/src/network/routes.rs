//! Routes of the host to the pods of other nodes: `podCIDR via node address` when the node is on the link, else
//! `podCIDR dev` the tunnels' device. The dataplane learns the same for what pods send.
//!
//! Reads: Node objects, the uplink's addresses. Writes: main-table routes marked with [`PROTOCOL`], peers of the dataplane.

use crate::dataplane::{DatapathError, Peer};
use crate::network::NetworkError;
use crate::network::ipam::Prefix;
use crate::network::namespace::run;
use crate::network::peers::{Own, Plan, Route, Routing, Via, plan};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Node;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope};
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use tokio_util::sync::CancellationToken;

/// `rtm_protocol` of our routes: how they are told from those of others.
const PROTOCOL: u8 = 0x6b;
/// Changes of addresses that are there at once are looked at once.
const ADDRESSES_AT_ONCE: usize = 1_024;

/// Tells the dataplane of the other nodes, and whether there may be tunnels; returns the index of the tunnels' device.
pub type TellPeers = Box<dyn Fn(&[Peer], bool) -> Result<Option<u32>, DatapathError> + Send + Sync>;

/// Keeps the routes, and what the dataplane knows of other nodes, as the Node objects and the uplink's addresses say. Nothing is
/// removed before the first full list.
pub async fn keep_node_routes(client: kube::Client, own: Own, tell: TellPeers, shutdown: CancellationToken) {
    let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    let mut addresses = match rtnetlink::new_multicast_connection(&groups) {
        Ok((connection, _, changes)) => {
            tokio::spawn(connection);
            changes.ready_chunks(ADDRESSES_AT_ONCE).map(|_| ()).boxed()
        }
        Err(error) => {
            tracing::warn!(%error, "changes of the uplink's addresses are not followed");
            futures::stream::pending().boxed()
        }
    };
    let mut stream = watcher(Api::<Node>::all(client), watcher::Config::default()).default_backoff().boxed();
    let mut nodes: BTreeMap<String, Node> = BTreeMap::new();
    let mut listed: BTreeMap<String, Node> = BTreeMap::new();
    let mut links = read_links(&own).await.unwrap_or_default();
    let mut synced = false;
    let mut applied: Option<Plan> = None;
    loop {
        let event = tokio::select! {
            () = shutdown.cancelled() => return,
            Some(()) = addresses.next() => None,
            event = stream.next() => Some(event),
        };
        match event {
            None => links = read_links(&own).await.unwrap_or(links),
            Some(None) => return,
            Some(Some(Err(error))) => {
                tracing::debug!(%error, "watch of Nodes failed, trying again");
                continue;
            }
            Some(Some(Ok(watcher::Event::Init))) => listed.clear(),
            Some(Some(Ok(watcher::Event::InitApply(node)))) => {
                listed.insert(node.name_any(), node);
            }
            Some(Some(Ok(watcher::Event::InitDone))) => {
                nodes = std::mem::take(&mut listed);
                synced = true;
            }
            Some(Some(Ok(watcher::Event::Apply(node)))) => {
                nodes.insert(node.name_any(), node);
            }
            Some(Some(Ok(watcher::Event::Delete(node)))) => {
                nodes.remove(&node.name_any());
            }
        }
        if !synced {
            continue;
        }
        let wanted = plan(nodes.values(), &own, &links);
        if applied.as_ref() == Some(&wanted) {
            continue;
        }
        applied = match carry_out(&wanted, own.routing, &tell).await {
            Ok(()) => Some(wanted),
            Err(error) => {
                tracing::warn!(error = %super::chain(&error), "ways to other nodes not updated");
                None
            }
        };
    }
}

/// Does what a plan says. The way through a tunnel is open before routes lead there.
pub async fn carry_out(plan: &Plan, routing: Routing, tell: &TellPeers) -> Result<(), NetworkError> {
    let told = tell(&plan.peers, routing != Routing::Direct);
    let (device, refused) = match told {
        Ok(device) => (device, None),
        Err(error) => (None, Some(error)),
    };
    let routes = plan.routes.clone();
    run(None, move |handle| async move { apply(&handle, &routes, device).await }).await?;
    refused.map_or(Ok(()), |error| Err(NetworkError::Peers(error)))
}

/// The networks on the device that has one of the node's addresses; `None` when they cannot be read.
async fn read_links(own: &Own) -> Option<Vec<Prefix>> {
    let addresses = own.addresses.clone();
    let links = run(None, |handle| async move { links_of(&handle, &addresses).await }).await;
    links
        .inspect_err(|error| {
            tracing::warn!(error = %super::chain(error), "the uplink's addresses not read");
        })
        .ok()
}

pub(crate) async fn links_of(handle: &Handle, own: &[IpAddr]) -> Result<Vec<Prefix>, NetworkError> {
    let mut list = handle.address().get().execute();
    let mut found = Vec::new();
    loop {
        let next = list.try_next().await;
        let next =
            next.map_err(|source| NetworkError::Netlink { action: "cannot list addresses".into(), source })?;
        let Some(message) = next else { break };
        // The other end of a point-to-point device is who its own address is on a link with.
        let of = |local: bool| {
            message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(address) if local => Some(*address),
                AddressAttribute::Address(address) if !local => Some(*address),
                _ => None,
            })
        };
        if let (Some(address), Some(network)) = (of(true).or(of(false)), of(false).or(of(true))) {
            let prefix = Prefix { address: network, length: message.header.prefix_len };
            found.push((message.header.index, address, prefix));
        }
    }
    let uplink = found.iter().find(|(_, address, _)| own.contains(address)).map(|(index, _, _)| *index);
    Ok(found.into_iter().filter(|(index, _, _)| Some(*index) == uplink).map(|(_, _, link)| link).collect())
}

/// A route as a message; nothing for one through a tunnel without the device, or to a node of the other family.
fn message(route: &Route, device: Option<u32>) -> Option<RouteMessage> {
    let protocol = RouteProtocol::Other(PROTOCOL);
    match (route.0.address, route.1) {
        (IpAddr::V4(to), Via::Gateway(IpAddr::V4(via))) => Some(
            RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(to, route.0.length)
                .gateway(via)
                .protocol(protocol)
                .build(),
        ),
        (IpAddr::V6(to), Via::Gateway(IpAddr::V6(via))) => Some(
            RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(to, route.0.length)
                .gateway(via)
                .protocol(protocol)
                .build(),
        ),
        (IpAddr::V4(to), Via::Tunnel(source)) => {
            let mut builder = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(to, route.0.length)
                .output_interface(device?)
                .scope(RouteScope::Link)
                .protocol(protocol);
            if let Some(IpAddr::V4(source)) = source {
                builder = builder.pref_source(source);
            }
            Some(builder.build())
        }
        (IpAddr::V6(to), Via::Tunnel(source)) => {
            let mut builder = RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(to, route.0.length)
                .output_interface(device?)
                .protocol(protocol);
            if let Some(IpAddr::V6(source)) = source {
                builder = builder.pref_source(source);
            }
            Some(builder.build())
        }
        _ => None,
    }
}

fn address(value: &RouteAddress) -> Option<IpAddr> {
    match value {
        RouteAddress::Inet(a) => Some((*a).into()),
        RouteAddress::Inet6(a) => Some((*a).into()),
        _ => None,
    }
}

/// Our routes in the kernel; those that no plan makes have no way.
async fn present(
    handle: &Handle,
    device: Option<u32>,
) -> Result<Vec<(Prefix, Option<Via>, RouteMessage)>, NetworkError> {
    let mut found = Vec::new();
    for family in
        [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()]
    {
        let mut list = handle.route().get(family).execute();
        loop {
            let next = list.try_next().await;
            let next =
                next.map_err(|source| NetworkError::Netlink { action: "cannot list routes".into(), source })?;
            let Some(route) = next else { break };
            if route.header.protocol != RouteProtocol::Other(PROTOCOL) {
                continue;
            }
            let (mut to, mut gateway, mut source, mut out) = (None, None, None, None);
            for attribute in &route.attributes {
                match attribute {
                    RouteAttribute::Destination(a) => to = address(a),
                    RouteAttribute::Gateway(a) => gateway = address(a),
                    RouteAttribute::PrefSource(a) => source = address(a),
                    RouteAttribute::Oif(index) => out = Some(*index),
                    _ => {}
                }
            }
            let via = match gateway {
                Some(gateway) => Some(Via::Gateway(gateway)),
                None if device.is_some() && out == device => Some(Via::Tunnel(source)),
                None => None,
            };
            if let Some(to) = to {
                let prefix = Prefix { address: to, length: route.header.destination_prefix_length };
                found.push((prefix, via, route));
            }
        }
    }
    Ok(found)
}

/// Makes our routes in the kernel exactly these. What replaces a route comes before that goes.
async fn apply(handle: &Handle, wanted: &BTreeSet<Route>, device: Option<u32>) -> Result<(), NetworkError> {
    let known: BTreeSet<Route> = present(handle, device)
        .await?
        .into_iter()
        .filter_map(|(prefix, via, _)| Some((prefix, via?)))
        .collect();
    let mut failed = None;
    for route in wanted.difference(&known) {
        let Some(message) = message(route, device) else { continue };
        // One unreachable node must not keep the others from their routes.
        if let Err(source) = handle.route().add(message).replace().execute().await {
            let action = match route.1 {
                Via::Gateway(gateway) => format!("cannot add route to {} via {gateway}", route.0),
                Via::Tunnel(_) => format!("cannot add route to {} through the tunnel", route.0),
            };
            failed = Some(NetworkError::Netlink { action, source });
        }
    }
    for (prefix, via, message) in present(handle, device).await? {
        if via.is_some_and(|via| wanted.contains(&(prefix, via))) {
            continue;
        }
        let result = handle.route().del(message).execute().await;
        result.map_err(|source| NetworkError::Netlink {
            action: format!("cannot remove route to {prefix}"),
            source,
        })?;
    }
    failed.map_or(Ok(()), Err)
}

#[cfg(test)]
pub(super) async fn apply_in(
    netns: std::path::PathBuf,
    wanted: Vec<Route>,
    device: Option<u32>,
) -> Result<usize, NetworkError> {
    run(Some(netns), move |handle| async move {
        apply(&handle, &wanted.into_iter().collect(), device).await?;
        Ok(present(&handle, device).await?.len())
    })
    .await
}
