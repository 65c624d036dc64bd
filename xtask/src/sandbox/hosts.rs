//! Making the hosts: namespaces, bridge, veth pairs, addresses, cgroups.

use super::layout::{Layout, NodeLayout};
use crate::command::{command, output, succeeds};
use anyhow::{Context, Result};
use std::path::Path;

/// The LAN's own addresses: the hosts' default gateway, and a place for clients outside the cluster.
const LAN_ADDRESSES: [&str; 2] = ["172.31.77.1/24", "fd00:31:77::1/64"];

/// Makes the LAN namespace with its bridge, if it is not there.
pub(super) fn ensure_lan(layout: &Layout) -> Result<()> {
    let netns = layout.lan_netns();
    if Path::new("/run/netns").join(&netns).exists() {
        return Ok(());
    }
    ip(&["netns", "add", &netns])?;
    settle_addresses_at_once(&netns)?;
    ip(&["-n", &netns, "link", "set", "lo", "up"])?;
    ip(&["-n", &netns, "link", "add", "lan0", "type", "bridge"])?;
    ip(&["-n", &netns, "link", "set", "lan0", "up"])?;
    for address in LAN_ADDRESSES {
        ip(&["-n", &netns, "address", "add", address, "dev", "lan0", "nodad"])?;
    }
    Ok(())
}

/// Makes a host and its cable to the LAN, if it is not there.
pub(super) fn ensure_host(node: &NodeLayout) -> Result<()> {
    for dir in [node.dir(), node.data_dir(), node.run_dir(), node.cgroup2_dir().join("host")] {
        std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    }
    let netns = node.netns();
    if node.netns_path().exists() {
        return Ok(());
    }
    let lan = node.sandbox().lan_netns();
    let port = format!("port{}", node.number);
    ip(&["netns", "add", &netns])?;
    settle_addresses_at_once(&netns)?;
    ip(&["-n", &netns, "link", "set", "lo", "up"])?;
    ip(&["-n", &lan, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &netns])?;
    ip(&["-n", &lan, "link", "set", &port, "master", "lan0", "up"])?;
    ip(&["-n", &netns, "link", "set", "eth0", "up"])?;
    ip(&["-n", &netns, "address", "add", &format!("{}/24", node.ipv4()), "dev", "eth0"])?;
    ip(&["-n", &netns, "address", "add", &format!("{}/64", node.ipv6()), "dev", "eth0", "nodad"])?;
    for address in LAN_ADDRESSES {
        let gateway = address.split('/').next().unwrap_or(address);
        ip(&["-n", &netns, "route", "add", "default", "via", gateway])?;
    }
    Ok(())
}

/// Turns duplicate address detection off: the addresses are ours alone, and a tentative one cannot be bound.
fn settle_addresses_at_once(netns: &str) -> Result<()> {
    let path = format!("--net=/run/netns/{netns}");
    for scope in ["default", "all"] {
        let setting = format!("/proc/sys/net/ipv6/conf/{scope}/accept_dad");
        output(&mut command("nsenter", &[&path, "sh", "-c", &format!("echo 0 > {setting}")]))?;
    }
    Ok(())
}

/// Removes the sandbox's network namespaces, and with them their links.
pub(super) fn remove_namespaces(layout: &Layout) -> Result<()> {
    let prefix = format!("kelp-{}-", layout.name());
    let entries = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    for name in entries.filter_map(|entry| entry.file_name().into_string().ok()) {
        let suffix = name.strip_prefix(&prefix);
        if suffix.is_some_and(|suffix| suffix == "lan" || suffix.parse::<u32>().is_ok()) {
            ip(&["netns", "delete", &name])?;
        }
    }
    Ok(())
}

/// Whether this process may make network namespaces.
pub(super) fn may_make_namespaces() -> bool {
    succeeds(&mut command("unshare", &["--net", "true"]))
}

fn ip(args: &[&str]) -> Result<()> {
    output(&mut command("ip", args)).map(drop)
}
