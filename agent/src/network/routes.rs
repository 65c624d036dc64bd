//! Routes to the pods of other nodes on the same L2: `podCIDR via node address`.
//!
//! Reads: Node objects. Writes: main-table routes marked with [`PROTOCOL`].

use crate::network::NetworkError;
use crate::network::ipam::Prefix;
use crate::network::namespace::run;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Node;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol};
use rtnetlink::{Handle, RouteMessageBuilder};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use tokio_util::sync::CancellationToken;

/// `rtm_protocol` of our routes: how they are told from those of others.
const PROTOCOL: u8 = 0x6b;

/// A route to another node's pods.
type Route = (Prefix, IpAddr);

/// Routes that the other nodes call for.
fn desired<'a>(nodes: impl IntoIterator<Item = &'a Node>, me: &str) -> BTreeSet<Route> {
    let mut routes = BTreeSet::new();
    for node in nodes.into_iter().filter(|n| n.name_any() != me) {
        let addresses: Vec<IpAddr> = node
            .status
            .iter()
            .flat_map(|s| s.addresses.iter().flatten())
            .filter(|a| a.type_ == "InternalIP")
            .filter_map(|a| a.address.parse().ok())
            .collect();
        let spec = node.spec.clone().unwrap_or_default();
        let cidrs = spec.pod_cidrs.unwrap_or_else(|| spec.pod_cidr.into_iter().collect());
        for prefix in cidrs.iter().filter_map(|c| c.parse::<Prefix>().ok()) {
            let via = addresses.iter().find(|a| a.is_ipv4() == prefix.address.is_ipv4());
            routes.extend(via.map(|via| (prefix, *via)));
        }
    }
    routes
}

/// Keeps the routes as the Node objects say. Nothing is removed before the first full list.
pub async fn keep_node_routes(client: kube::Client, node_name: String, shutdown: CancellationToken) {
    let mut stream = watcher(Api::<Node>::all(client), watcher::Config::default()).default_backoff().boxed();
    let mut nodes: BTreeMap<String, Node> = BTreeMap::new();
    let mut listed: BTreeMap<String, Node> = BTreeMap::new();
    let mut synced = false;
    let mut applied: Option<BTreeSet<Route>> = None;
    loop {
        let event = tokio::select! {
            () = shutdown.cancelled() => return,
            event = stream.next() => event,
        };
        match event {
            None => return,
            Some(Err(error)) => {
                tracing::debug!(%error, "watch of Nodes failed, trying again");
                continue;
            }
            Some(Ok(watcher::Event::Init)) => listed.clear(),
            Some(Ok(watcher::Event::InitApply(node))) => {
                listed.insert(node.name_any(), node);
            }
            Some(Ok(watcher::Event::InitDone)) => {
                nodes = std::mem::take(&mut listed);
                synced = true;
            }
            Some(Ok(watcher::Event::Apply(node))) => {
                nodes.insert(node.name_any(), node);
            }
            Some(Ok(watcher::Event::Delete(node))) => {
                nodes.remove(&node.name_any());
            }
        }
        if !synced {
            continue;
        }
        let wanted = desired(nodes.values(), &node_name);
        if applied.as_ref() == Some(&wanted) {
            continue;
        }
        let target = wanted.clone();
        match run(None, |handle| async move { apply(&handle, &target).await }).await {
            Ok(()) => applied = Some(wanted),
            Err(error) => {
                applied = None;
                tracing::warn!(error = %super::chain(&error), "routes to other nodes not updated");
            }
        }
    }
}

fn message(route: &Route) -> Option<RouteMessage> {
    match (route.0.address, route.1) {
        (IpAddr::V4(to), IpAddr::V4(via)) => Some(
            RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(to, route.0.length)
                .gateway(via)
                .protocol(RouteProtocol::Other(PROTOCOL))
                .build(),
        ),
        (IpAddr::V6(to), IpAddr::V6(via)) => Some(
            RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(to, route.0.length)
                .gateway(via)
                .protocol(RouteProtocol::Other(PROTOCOL))
                .build(),
        ),
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

async fn present(handle: &Handle) -> Result<BTreeMap<Route, RouteMessage>, NetworkError> {
    let mut found = BTreeMap::new();
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
            let mut to = None;
            let mut via = None;
            for attribute in &route.attributes {
                match attribute {
                    RouteAttribute::Destination(a) => to = address(a),
                    RouteAttribute::Gateway(a) => via = address(a),
                    _ => {}
                }
            }
            if let (Some(to), Some(via)) = (to, via) {
                let prefix = Prefix { address: to, length: route.header.destination_prefix_length };
                found.insert((prefix, via), route);
            }
        }
    }
    Ok(found)
}

/// Makes our routes in the kernel exactly these.
async fn apply(handle: &Handle, wanted: &BTreeSet<Route>) -> Result<(), NetworkError> {
    let present = present(handle).await?;
    for (route, message) in present.iter().filter(|(r, _)| !wanted.contains(*r)) {
        let result = handle.route().del(message.clone()).execute().await;
        result.map_err(|source| NetworkError::Netlink {
            action: format!("cannot remove route to {}", route.0),
            source,
        })?;
    }
    let mut failed = None;
    for route in wanted.iter().filter(|r| !present.contains_key(*r)) {
        let Some(message) = message(route) else { continue };
        // One unreachable node must not keep the others from their routes.
        if let Err(source) = handle.route().add(message).replace().execute().await {
            let action = format!("cannot add route to {} via {}", route.0, route.1);
            failed = Some(NetworkError::Netlink { action, source });
        }
    }
    failed.map_or(Ok(()), Err)
}

#[cfg(test)]
pub(super) async fn apply_in(netns: std::path::PathBuf, wanted: Vec<Route>) -> Result<usize, NetworkError> {
    run(Some(netns), |handle| async move {
        apply(&handle, &wanted.into_iter().collect()).await?;
        Ok(present(&handle).await?.len())
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_other_node_and_both_families() {
        let nodes: Vec<Node> = serde_json::from_value(json!([
            {"metadata": {"name": "me"}, "spec": {"podCIDRs": ["10.244.0.0/24"]},
             "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}},
            {"metadata": {"name": "b"}, "spec": {"podCIDRs": ["10.244.1.0/24", "fd00:10:244:1::/64"]},
             "status": {"addresses": [{"type": "Hostname", "address": "b"}, {"type": "InternalIP", "address": "192.0.2.2"},
                                      {"type": "InternalIP", "address": "fd00::2"}]}},
            {"metadata": {"name": "v4-only"}, "spec": {"podCIDRs": ["10.244.2.0/24", "fd00:10:244:2::/64"]},
             "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.3"}]}},
            {"metadata": {"name": "new"}}
        ]))
        .unwrap();
        let text: Vec<String> = desired(&nodes, "me").iter().map(|(p, v)| format!("{p} via {v}")).collect();
        assert_eq!(
            text,
            ["10.244.1.0/24 via 192.0.2.2", "10.244.2.0/24 via 192.0.2.3", "fd00:10:244:1::/64 via fd00::2"]
        );
    }
}
