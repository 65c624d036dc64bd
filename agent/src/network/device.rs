//! The veth pair of a pod.

use crate::dataplane::PodMtu;
use crate::dataplane::sys::netns_cookie;
use crate::network::bandwidth::{self, Limits};
use crate::network::namespace::run;
use crate::network::{Connected, GATEWAY_V4, GATEWAY_V6, NetworkError};
use futures::TryStreamExt;
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage};
use rtnetlink::packet_route::neighbour::NeighbourState;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteScope};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;

/// Host-side devices of pods start with this.
const HOST_PREFIX: &str = "kpod";
/// The device inside the pod.
const POD_NAME: &str = "eth0";

/// A pod's pair as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Index of the host-side device.
    pub host_ifindex: u32,
    /// Its MAC address.
    pub host_mac: [u8; 6],
    /// MAC address of the pod's device.
    pub pod_mac: [u8; 6],
    /// Cookie of the pod's network namespace; 0 when the kernel has none.
    pub netns_cookie: u64,
}

/// Name of a pod's host-side device.
pub fn host_name(uid: &str) -> String {
    let hash = Sha256::digest(uid.as_bytes());
    let hex: String = hash.iter().take(5).map(|b| format!("{b:02x}")).collect();
    format!("{HOST_PREFIX}{hex}")
}

/// A locally administered unicast address that only depends on the pod, so that a device made anew has it again.
fn mac(uid: &str, side: u8) -> [u8; 6] {
    let hash = Sha256::new().chain_update([side]).chain_update(uid.as_bytes()).finalize();
    let mut mac = [0u8; 6];
    mac.copy_from_slice(&hash[..6]);
    mac[0] = (mac[0] & 0xfc) | 0x02;
    mac
}

fn netlink(action: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
    let action = action.into();
    move |source| NetworkError::Netlink { action, source }
}

fn errno(error: &rtnetlink::Error) -> i32 {
    match error {
        rtnetlink::Error::NetlinkError(message) => -message.raw_code(),
        _ => 0,
    }
}

/// Work that finds itself done is done.
fn unless(code: i32, result: Result<(), rtnetlink::Error>) -> Result<(), rtnetlink::Error> {
    match result {
        Err(error) if errno(&error) == code => Ok(()),
        other => other,
    }
}

async fn find(handle: &Handle, name: &str) -> Result<Option<LinkMessage>, NetworkError> {
    match handle.link().get().match_name(name).execute().try_next().await {
        Ok(found) => Ok(found),
        Err(error) if errno(&error) == libc::ENODEV => Ok(None),
        Err(error) => Err(netlink(format!("cannot look up device {name}"))(error)),
    }
}

#[cfg(test)]
fn mac_of(link: &LinkMessage) -> Option<[u8; 6]> {
    link.attributes.iter().find_map(|a| match a {
        LinkAttribute::Address(bytes) => bytes.as_slice().try_into().ok(),
        _ => None,
    })
}

/// Makes or completes the pair of a pod.
pub async fn connect(
    uid: String,
    netns: PathBuf,
    addresses: Vec<IpAddr>,
    mtu: PodMtu,
    limits: Limits,
) -> Result<Link, NetworkError> {
    let name = host_name(&uid);
    let (host_mac, pod_mac) = (mac(&uid, 0), mac(&uid, 1));
    let inside = {
        let netns = netns.clone();
        run(Some(netns), |handle| async move { find(&handle, POD_NAME).await }).await?.is_some()
    };
    let path = netns.clone();
    let (device, list) = (name.clone(), addresses.clone());
    let host_ifindex = run(None, move |handle| async move {
        // Only one end is left: of an attempt that was cut off, or of an earlier sandbox.
        if let (Some(link), false) = (find(&handle, &device).await?, inside) {
            let result = handle.link().del(link.header.index).execute().await;
            unless(libc::ENODEV, result).map_err(netlink(format!("cannot remove device {device}")))?;
        }
        if find(&handle, &device).await?.is_none() {
            let io = |source| NetworkError::Io { action: format!("cannot open {}", path.display()), source };
            let file = File::open(&path).map_err(io)?;
            let peer = LinkMessageBuilder::<LinkUnspec>::new()
                .name(POD_NAME)
                .address(pod_mac.to_vec())
                .mtu(mtu.device)
                .setns_by_fd(file.as_raw_fd())
                .build();
            let pair = LinkVeth::new(&device, POD_NAME)
                .address(host_mac.to_vec())
                .mtu(mtu.device)
                .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
                .build();
            handle
                .link()
                .add(pair)
                .execute()
                .await
                .map_err(netlink(format!("cannot make veth pair {device}")))?;
        }
        let link = find(&handle, &device).await?.ok_or_else(|| NetworkError::Io {
            action: format!("cannot find device {device}"),
            source: std::io::Error::from_raw_os_error(libc::ENODEV),
        })?;
        let index = link.header.index;
        host_sysctls(&device);
        let up = LinkUnspec::new_with_index(index).mtu(mtu.device).up().build();
        handle.link().set(up).execute().await.map_err(netlink(format!("cannot bring up {device}")))?;
        for address in list {
            host_route(&handle, index, address, pod_mac)
                .await
                .map_err(netlink(format!("cannot route {address} to {device}")))?;
        }
        Ok(index)
    })
    .await?;
    let netns_cookie = run(Some(netns), move |handle| async move {
        let index = inside_pod(&handle, &addresses, host_mac, mtu).await?;
        bandwidth::limit(&handle, index, limits).await?;
        Ok(netns_cookie().unwrap_or(0))
    })
    .await?;
    Ok(Link { host_ifindex, host_mac, pod_mac, netns_cookie })
}

/// Writes a sysctl of a device; one the kernel does not have is no loss.
fn sysctl(path: &str, value: &str) {
    if let Err(error) = std::fs::write(path, value) {
        tracing::debug!(path, %error, "sysctl not written");
    }
}

fn host_sysctls(device: &str) {
    // The address of a pod is never on this device: neither router advertisements nor duplicate detection mean
    // anything, and the reverse path is the dataplane's business.
    sysctl(&format!("/proc/sys/net/ipv6/conf/{device}/accept_ra"), "0");
    sysctl(&format!("/proc/sys/net/ipv6/conf/{device}/accept_dad"), "0");
    sysctl(&format!("/proc/sys/net/ipv4/conf/{device}/rp_filter"), "0");
    sysctl(&format!("/proc/sys/net/ipv4/conf/{device}/send_redirects"), "0");
}

async fn host_route(
    handle: &Handle,
    index: u32,
    address: IpAddr,
    pod_mac: [u8; 6],
) -> Result<(), rtnetlink::Error> {
    let route = match address {
        IpAddr::V4(a) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(a, 32)
            .output_interface(index)
            .scope(RouteScope::Link)
            .build(),
        IpAddr::V6(a) => {
            RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(a, 128).output_interface(index).build()
        }
    };
    handle.route().add(route).replace().execute().await?;
    handle
        .neighbours()
        .add(index, address)
        .link_layer_address(&pod_mac)
        .state(NeighbourState::Permanent)
        .replace()
        .execute()
        .await
}

/// Sets up the pod's device; returns its index.
async fn inside_pod(
    handle: &Handle,
    addresses: &[IpAddr],
    host_mac: [u8; 6],
    mtu: PodMtu,
) -> Result<u32, NetworkError> {
    let set = |name: &'static str| netlink(format!("cannot set up {name} in the pod"));
    let loopback = LinkUnspec::new_with_index(1).up().build();
    handle.link().set(loopback).execute().await.map_err(set("lo"))?;
    let link = find(handle, POD_NAME).await?.ok_or_else(|| NetworkError::Io {
        action: format!("cannot find device {POD_NAME} in the pod"),
        source: std::io::Error::from_raw_os_error(libc::ENODEV),
    })?;
    let index = link.header.index;
    let v6 = addresses.iter().any(IpAddr::is_ipv6);
    for (key, value) in
        [("accept_ra", "0"), ("accept_dad", "0"), ("disable_ipv6", if v6 { "0" } else { "1" })]
    {
        sysctl(&format!("/proc/sys/net/ipv6/conf/{POD_NAME}/{key}"), value);
    }
    let up = LinkUnspec::new_with_index(index).mtu(mtu.device).up().build();
    handle.link().set(up).execute().await.map_err(set("eth0"))?;
    for address in addresses {
        let length = if address.is_ipv4() { 32 } else { 128 };
        let added = handle.address().add(index, *address, length).replace().execute().await;
        unless(libc::EEXIST, added).map_err(set("the pod's address"))?;
        let gateway = gateway(address.is_ipv4());
        handle
            .neighbours()
            .add(index, gateway)
            .link_layer_address(&host_mac)
            .state(NeighbourState::Permanent)
            .replace()
            .execute()
            .await
            .map_err(set("the gateway's neighbour entry"))?;
        if let IpAddr::V4(gateway) = gateway {
            let route = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(gateway, 32)
                .output_interface(index)
                .scope(RouteScope::Link)
                .build();
            handle.route().add(route).replace().execute().await.map_err(set("the way to the gateway"))?;
        }
        let route = default_route(address.is_ipv4(), index, mtu);
        handle.route().add(route).replace().execute().await.map_err(set("the default route"))?;
    }
    Ok(index)
}

fn gateway(v4: bool) -> IpAddr {
    if v4 { IpAddr::V4(GATEWAY_V4) } else { IpAddr::V6(GATEWAY_V6) }
}

/// A pod's default route. Only what it sends has to fit into tunnels: the device takes what comes from elsewhere.
fn default_route(v4: bool, index: u32, mtu: PodMtu) -> RouteMessage {
    let mut route = if v4 {
        RouteMessageBuilder::<Ipv4Addr>::new().gateway(GATEWAY_V4).output_interface(index).onlink().build()
    } else {
        RouteMessageBuilder::<Ipv6Addr>::new().gateway(GATEWAY_V6).output_interface(index).onlink().build()
    };
    if mtu.route != mtu.device {
        route.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu.route)]));
    }
    route
}

/// Whether the pod's default route is still the one that we made: a pod may have another way, which is its own.
async fn has_default_route(handle: &Handle, v4: bool, index: u32) -> Result<bool, NetworkError> {
    let family = if v4 {
        RouteMessageBuilder::<Ipv4Addr>::new().build()
    } else {
        RouteMessageBuilder::<Ipv6Addr>::new().build()
    };
    let ours = match gateway(v4) {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    };
    let (ours, out) = (RouteAttribute::Gateway(ours), RouteAttribute::Oif(index));
    let mut list = handle.route().get(family).execute();
    let mut found = false;
    while let Some(route) = list.try_next().await.map_err(netlink("cannot list the pod's routes"))? {
        found |= route.header.destination_prefix_length == 0
            && route.attributes.contains(&ours)
            && route.attributes.contains(&out);
    }
    Ok(found)
}

/// Has a connected pod's devices and routes fit; what is not there is not made.
pub async fn resize(uid: &str, pod: &Arc<Connected>, mtu: PodMtu) -> Result<(), NetworkError> {
    let name = host_name(uid);
    let pod = pod.clone();
    let device = name.clone();
    let is_there = run(None, move |handle| async move {
        let Some(link) = find(&handle, &device).await? else { return Ok(false) };
        let wanted = LinkUnspec::new_with_index(link.header.index).mtu(mtu.device).build();
        let result = unless(libc::ENODEV, handle.link().set(wanted).execute().await);
        result.map_err(netlink(format!("cannot change the MTU of {device}")))?;
        Ok(true)
    })
    .await?;
    if !is_there {
        return Ok(());
    }
    let netns = PathBuf::from(format!("/proc/self/fd/{}", pod.netns.as_raw_fd()));
    run(Some(netns), move |handle| async move {
        let Some(link) = find(&handle, POD_NAME).await? else { return Ok(()) };
        let index = link.header.index;
        let wanted = LinkUnspec::new_with_index(index).mtu(mtu.device).build();
        let result = unless(libc::ENODEV, handle.link().set(wanted).execute().await);
        result.map_err(netlink("cannot change the MTU of the pod's device"))?;
        for v4 in [true, false] {
            if pod.addresses.iter().any(|address| address.is_ipv4() == v4)
                && has_default_route(&handle, v4, index).await?
            {
                let route = default_route(v4, index, mtu);
                let result = unless(libc::ENODEV, handle.route().add(route).replace().execute().await);
                result.map_err(netlink("cannot change the MTU of the pod's default route"))?;
            }
        }
        Ok(())
    })
    .await
}

/// Removes a pod's device; its routes, neighbour entries and peer go with it.
pub async fn remove(uid: &str) -> Result<(), NetworkError> {
    let name = host_name(uid);
    run(None, move |handle| async move {
        let Some(link) = find(&handle, &name).await? else { return Ok(()) };
        let result = handle.link().del(link.header.index).execute().await;
        unless(libc::ENODEV, result).map_err(netlink(format!("cannot remove device {name}")))
    })
    .await
}

/// Removes all pod devices but these.
pub async fn remove_others(keep: &[String]) -> Result<(), NetworkError> {
    let keep = keep.to_vec();
    run(None, move |handle| async move {
        let mut links = handle.link().get().execute();
        let mut stale = Vec::new();
        while let Some(link) = links.try_next().await.map_err(netlink("cannot list devices"))? {
            let name = link.attributes.iter().find_map(|a| match a {
                LinkAttribute::IfName(name) => Some(name.clone()),
                _ => None,
            });
            let is_pod = |n: &String| {
                n.strip_prefix(HOST_PREFIX)
                    .is_some_and(|hash| hash.len() == 10 && hash.bytes().all(|b| b.is_ascii_hexdigit()))
            };
            if let Some(name) = name.filter(|n| is_pod(n) && !keep.contains(n)) {
                stale.push((name, link.header.index));
            }
        }
        for (name, index) in stale {
            tracing::info!(device = name, "removing the device of a pod that is gone");
            let result = handle.link().del(index).execute().await;
            unless(libc::ENODEV, result).map_err(netlink(format!("cannot remove device {name}")))?;
        }
        Ok(())
    })
    .await
}

/// MAC address of a device, for tests.
#[cfg(test)]
pub async fn mac_by_name(netns: PathBuf, name: &'static str) -> Option<[u8; 6]> {
    run(Some(netns), move |handle| async move { Ok(find(&handle, name).await?.as_ref().and_then(mac_of)) })
        .await
        .ok()
        .flatten()
}
