//! The node's addresses: one a family, of the interface with the default route.

use anyhow::{Context, Result, bail};
use std::net::IpAddr;

/// Flag of an up route, from `linux/route.h`.
const RTF_UP: u32 = 1;
/// Flag of a reject route (`RTF_REJECT`), which leads nowhere.
const RTF_REJECT: u32 = 0x200;

/// An address of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// Name of the interface.
    pub interface: String,
    /// The address.
    pub address: IpAddr,
}

/// Picks at most one address a family, IPv4 first: of `routes` (the interfaces with a default route, best first), else
/// of any interface. Loopback and link-local addresses do not count.
pub fn pick(addresses: &[InterfaceAddress], routes: &[String]) -> Vec<IpAddr> {
    let of_family = |v4: bool| {
        let mut usable = addresses.iter().filter(|a| a.address.is_ipv4() == v4 && is_global(a.address));
        routes
            .iter()
            .find_map(|route| usable.clone().find(|a| a.interface == *route))
            .or_else(|| usable.next())
            .map(|a| a.address)
    };
    [of_family(true), of_family(false)].into_iter().flatten().collect()
}

fn is_global(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => !a.is_loopback() && !a.is_link_local() && !a.is_unspecified() && !a.is_multicast(),
        IpAddr::V6(a) => {
            !a.is_loopback() && !a.is_unicast_link_local() && !a.is_unspecified() && !a.is_multicast()
        }
    }
}

/// Interfaces with an IPv4 default route in the text of `/proc/net/route`, lowest metric first.
fn default_routes_v4(table: &str) -> Vec<String> {
    let mut found = table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let interface = fields.next()?;
            let destination = fields.next()?;
            let flags = u32::from_str_radix(fields.nth(1)?, 16).ok()?;
            let metric: u32 = fields.nth(2)?.parse().ok()?;
            let mask = fields.next()?;
            let is_default = destination == "00000000" && mask == "00000000";
            (is_default && flags & RTF_UP != 0 && flags & RTF_REJECT == 0)
                .then(|| (metric, interface.to_owned()))
        })
        .collect::<Vec<_>>();
    found.sort_by_key(|(metric, _)| *metric);
    found.into_iter().map(|(_, interface)| interface).collect()
}

/// Interfaces with an IPv6 default route in the text of `/proc/net/ipv6_route`, lowest metric first.
fn default_routes_v6(table: &str) -> Vec<String> {
    let mut found = table
        .lines()
        .filter_map(|line| {
            let fields = line.split_ascii_whitespace().collect::<Vec<_>>();
            let [destination, prefix, .., metric, _, _, flags, interface] = fields.as_slice() else {
                return None;
            };
            let metric = u32::from_str_radix(metric, 16).ok()?;
            let flags = u32::from_str_radix(flags, 16).ok()?;
            let is_default = destination.bytes().all(|b| b == b'0') && *prefix == "00" && *interface != "lo";
            (is_default && flags & RTF_UP != 0 && flags & RTF_REJECT == 0)
                .then(|| (metric, (*interface).to_owned()))
        })
        .collect::<Vec<_>>();
    found.sort_by_key(|(metric, _)| *metric);
    found.into_iter().map(|(_, interface)| interface).collect()
}

/// The host's interface addresses.
fn interface_addresses() -> Result<Vec<InterfaceAddress>> {
    let all = nix::ifaddrs::getifaddrs().context("cannot list the network interfaces")?;
    let addresses = all.filter_map(|entry| {
        let storage = entry.address?;
        let address = storage
            .as_sockaddr_in()
            .map(|a| IpAddr::from(a.ip()))
            .or_else(|| storage.as_sockaddr_in6().map(|a| IpAddr::from(a.ip())))?;
        Some(InterfaceAddress { interface: entry.interface_name, address })
    });
    Ok(addresses.collect())
}

/// Name of the interface that has one of `addresses`, the first first; not the loopback one, which leads nowhere.
///
/// # Errors
/// Fails if the interfaces cannot be listed.
pub fn interface_of(addresses: &[IpAddr]) -> Result<Option<String>> {
    let all = interface_addresses()?;
    let found = addresses.iter().find_map(|wanted| all.iter().find(|a| a.address == *wanted));
    Ok(found.map(|a| a.interface.clone()).filter(|name| name != "lo"))
}

/// This host's addresses; see [`pick`].
///
/// # Errors
/// Fails if the interfaces cannot be listed or none has a usable address.
pub fn detect() -> Result<Vec<IpAddr>> {
    let addresses = interface_addresses()?;
    // Absent when the kernel lacks the family.
    let mut routes = default_routes_v4(&std::fs::read_to_string("/proc/net/route").unwrap_or_default());
    routes.extend(default_routes_v6(&std::fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default()));
    let found = pick(&addresses, &routes);
    if found.is_empty() {
        bail!("this host has no address but loopback and link-local ones; give one with --node-ip");
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(interface: &str, address: &str) -> InterfaceAddress {
        InterfaceAddress { interface: interface.into(), address: address.parse().expect("address") }
    }

    #[test]
    fn prefers_the_default_route_and_skips_local_addresses() {
        let all = [
            address("lo", "127.0.0.1"),
            address("docker0", "172.17.0.1"),
            address("eth0", "fe80::1"),
            address("eth0", "192.0.2.7"),
            address("eth0", "2001:db8::7"),
        ];
        let found = |routes: &[&str]| {
            let routes = routes.iter().map(|&r| r.to_owned()).collect::<Vec<_>>();
            pick(&all, &routes).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(found(&["eth0"]), ["192.0.2.7", "2001:db8::7"]);
        assert_eq!(found(&[]), ["172.17.0.1", "2001:db8::7"]);
        assert_eq!(found(&["docker0", "eth0"]), ["172.17.0.1", "2001:db8::7"]);
        assert_eq!(pick(&all[..1], &[]), Vec::<IpAddr>::new());
    }

    #[test]
    fn reads_route_tables() {
        let v4 = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                  wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n\
                  eth0\t00000000\t010200C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
                  eth0\t000200C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n";
        assert_eq!(default_routes_v4(v4), ["eth0", "wlan0"]);
        let v6 = "20010db8000000000000000000000000 40 00000000000000000000000000000000 00 \
                  00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0\n\
                  00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
                  fe800000000000000000000000000001 00000400 00000001 00000000 00000003     eth0\n\
                  00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
                  00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo\n";
        assert_eq!(default_routes_v6(v6), ["eth0"]);
        assert_eq!(default_routes_v6("garbage\n"), Vec::<String>::new());
    }
}
