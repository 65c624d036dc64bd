//! What the command line leaves open and the host decides: node name and addresses.

use crate::cli::AddressArgs;
use crate::node_address;
use anyhow::{Context, Result, bail};
use std::net::IpAddr;

/// Name and addresses of this host.
#[derive(Debug, Clone)]
pub struct Host {
    /// The node's name.
    pub node_name: String,
    /// The host name as the kernel has it.
    pub host_name: String,
    /// The node's addresses, at most one a family.
    pub node_ips: Vec<IpAddr>,
}

impl Host {
    /// Takes what is given and finds out the rest.
    ///
    /// # Errors
    /// Fails if the name is not a valid node name, two addresses are of one family, or no address is found.
    pub fn resolve(args: &AddressArgs) -> Result<Self> {
        let host_name = nix::unistd::gethostname().context("cannot read the host name")?;
        let host_name = host_name.to_string_lossy().into_owned();
        let node_name = args.node_name.clone().unwrap_or_else(|| host_name.to_lowercase());
        if !is_subdomain(&node_name) {
            bail!(
                "{node_name:?} cannot be a node name (lower-case letters, digits, '-' and '.'); give one with --node-name"
            );
        }
        let node_ips = if args.node_ip.is_empty() { node_address::detect()? } else { args.node_ip.clone() };
        if node_ips.len() > 2 || (node_ips.len() == 2 && node_ips[0].is_ipv4() == node_ips[1].is_ipv4()) {
            bail!("--node-ip takes at most one address a family");
        }
        Ok(Self { node_name, host_name, node_ips })
    }
}

/// Whether `name` is a DNS subdomain by RFC 1123, as object names must be.
fn is_subdomain(name: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::is_subdomain;

    #[test]
    fn node_names() {
        for good in ["a", "node-1", "n1.example.com"] {
            assert!(is_subdomain(good), "{good}");
        }
        for bad in ["", "Node", "a_b", "-a", "a-", "a..b", "a b", &"a".repeat(254)] {
            assert!(!is_subdomain(bad), "{bad}");
        }
    }
}
