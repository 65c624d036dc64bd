//! Settings of the controllers.

use std::time::Duration;

use kelp_model::controllers::cidr::Cidr;
use kelp_model::controllers::endpointslice::mirror::MAX_ADDRESSES;
use kelp_model::volume::attachment::UNMOUNT;

use crate::certificates::Signer;

/// Settings of the controllers; the defaults are those of the cluster's components.
#[derive(Debug, Clone)]
pub struct Config {
    /// Which controllers run, as `--controllers` of the upstream manager takes it: `*` (all that are on by default),
    /// `name`, `-name`; the first match counts. Names with and without `-controller` are the same.
    pub controllers: Vec<String>,
    /// Address ranges of pods, at most one a family. Empty: nodes get no range from here.
    pub cluster_cidrs: Vec<Cidr>,
    /// Prefix length of a node's IPv4 range.
    pub node_mask_v4: u8,
    /// Prefix length of a node's IPv6 range.
    pub node_mask_v6: u8,
    /// Ranges no node may get (service addresses), when they lie inside the cluster's.
    pub service_cidrs: Vec<Cidr>,
    /// PEM bundle that pods use to verify the API server (`kube-root-ca.crt`). `None`: not published.
    pub root_ca: Option<String>,
    /// Signs approved certificate signing requests. `None`: nobody does here.
    pub signer: Option<Signer>,
    /// A node that renewed no Lease for this long is unreachable.
    pub node_monitor_grace: Duration,
    /// A node that never reported its status gets this long.
    pub node_startup_grace: Duration,
    /// Time between two nodes whose pods are told to leave.
    pub node_eviction_interval: Duration,
    /// Pods of a node that does not exist are removed after this time.
    pub orphan_grace: Duration,
    /// Ended pods beyond this number are removed, the oldest first; 0: never.
    pub terminated_pod_threshold: usize,
    /// A node that is not ready may keep a volume that it has in use and does not need for this long; then it is detached by
    /// force. `None`: it keeps it until it lets go, or somebody declares it to be out of service.
    pub force_detach_after: Option<Duration>,
    /// Addresses of one subset of Endpoints that are mirrored to EndpointSlices; more are left out.
    pub mirrored_addresses_per_subset: usize,
    /// Time between two counts of what every quota covers, beside those that changes bring about.
    pub resource_quota_sync: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            controllers: vec!["*".into()],
            cluster_cidrs: ["10.244.0.0/16"].iter().filter_map(|c| c.parse().ok()).collect(),
            node_mask_v4: 24,
            node_mask_v6: 64,
            service_cidrs: Vec::new(),
            root_ca: None,
            signer: None,
            node_monitor_grace: Duration::from_secs(40),
            node_startup_grace: Duration::from_secs(60),
            node_eviction_interval: Duration::from_secs(10),
            orphan_grace: Duration::from_secs(40),
            terminated_pod_threshold: 12_500,
            force_detach_after: Some(UNMOUNT),
            mirrored_addresses_per_subset: MAX_ADDRESSES,
            resource_quota_sync: Duration::from_secs(300),
        }
    }
}

impl Config {
    /// Whether the controller of a name runs.
    #[must_use]
    pub fn is_enabled(&self, name: &str, on_by_default: bool) -> bool {
        let short = |n: &str| n.strip_suffix("-controller").unwrap_or(n).to_owned();
        let name = short(name);
        let mut star = false;
        for entry in &self.controllers {
            let entry = entry.trim();
            if entry == "*" {
                star = true;
            } else if let Some(off) = entry.strip_prefix('-') {
                if short(off) == name {
                    return false;
                }
            } else if short(entry) == name {
                return true;
            }
        }
        star && on_by_default
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_are_chosen_as_upstream_does() {
        let with = |list: &str| Config {
            controllers: list.split(',').map(str::to_owned).collect(),
            ..Config::default()
        };
        assert!(with("*").is_enabled("deployment-controller", true));
        assert!(!with("*").is_enabled("token-cleaner", false));
        assert!(with("*,token-cleaner").is_enabled("token-cleaner", false));
        assert!(!with("*,-deployment").is_enabled("deployment-controller", true));
        assert!(!with("*,-deployment-controller").is_enabled("deployment-controller", true));
        assert!(!with("replicaset").is_enabled("deployment-controller", true));
        assert!(with("replicaset").is_enabled("replicaset-controller", true));
        assert!(!with("").is_enabled("replicaset-controller", true));
    }
}
