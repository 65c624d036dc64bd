//! What the agent is told about its node and cluster.

use crate::kubelet_config::{ConfigError, KubeletConfig};
use crate::network::Routing;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

/// Configuration of the node agent. [`AgentConfig::new`] gives the defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentConfig {
    /// Name of the Node object; a DNS-1123 subdomain.
    pub node_name: String,
    /// Addresses of the node, at most one a family, the primary one first.
    pub node_ips: Vec<IpAddr>,
    /// Extra labels of the Node.
    pub node_labels: BTreeMap<String, String>,
    /// State that survives a reboot: images, pods' volumes, address leases.
    pub data_dir: PathBuf,
    /// Sockets and state of this boot.
    pub run_dir: PathBuf,
    /// Container logs.
    pub pod_log_dir: PathBuf,
    /// cgroup below which the node's pods are, relative to each controller's mount.
    pub cgroup_root: PathBuf,
    /// Service addresses of the cluster DNS.
    pub cluster_dns: Vec<IpAddr>,
    /// Domain of the cluster DNS.
    pub cluster_domain: String,
    /// Most pods that the Node offers.
    pub max_pods: u32,
    /// How pods of other nodes are reached.
    pub routing: Routing,
    /// Port of the kubelet API.
    pub kubelet_port: u16,
    /// The node's resolv.conf, from which pods inherit.
    pub resolv_conf: PathBuf,
    /// The node's hosts file, for pods on the host network.
    pub hosts_file: PathBuf,
    /// How registries are reached; the file need not exist. See [`RegistryConfig`](crate::image::registry::RegistryConfig).
    pub registries: PathBuf,
    /// Configuration of credential provider plugins and the directory of their programs.
    pub credential_providers: Option<(PathBuf, PathBuf)>,
    /// Sysctls beyond the safe ones that pods may set: `name` or `prefix*`.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// Names under which RuntimeClasses know the node's runtime, beside the empty one.
    pub runtime_handlers: Vec<String>,
    /// Directory with manifests of static pods.
    pub static_pods: Option<PathBuf>,
    /// Directory of the sockets of plugins and of those who ask about pods (`--root-dir` of the kubelet).
    pub kubelet_dir: PathBuf,
    /// The node's KubeletConfiguration. What is above comes before it.
    pub kubelet: Arc<KubeletConfig>,
}

impl AgentConfig {
    /// Defaults for a node of this name with these addresses.
    pub fn new(node_name: impl Into<String>, node_ips: Vec<IpAddr>) -> Self {
        Self {
            node_name: node_name.into(),
            node_ips,
            node_labels: BTreeMap::new(),
            data_dir: "/var/lib/kelp".into(),
            run_dir: "/run/kelp".into(),
            pod_log_dir: "/var/log/pods".into(),
            cgroup_root: "kelp".into(),
            cluster_dns: vec![IpAddr::from([10, 96, 0, 10])],
            cluster_domain: "cluster.local".into(),
            max_pods: 110,
            routing: Routing::default(),
            kubelet_port: 10250,
            resolv_conf: "/etc/resolv.conf".into(),
            hosts_file: "/etc/hosts".into(),
            registries: "/etc/kelp/registries.yaml".into(),
            credential_providers: None,
            allowed_unsafe_sysctls: Vec::new(),
            runtime_handlers: vec!["runc".into()],
            static_pods: None,
            kubelet_dir: "/var/lib/kubelet".into(),
            kubelet: Arc::default(),
        }
    }

    /// Takes over what a KubeletConfiguration says.
    ///
    /// # Errors
    /// An address is none.
    pub fn adopt(&mut self, kubelet: KubeletConfig) -> Result<(), ConfigError> {
        let settings = &kubelet.settings;
        if !settings.cluster_dns.is_empty() {
            let parsed: Result<Vec<IpAddr>, ConfigError> = settings
                .cluster_dns
                .iter()
                .map(|text| {
                    let wrong =
                        || ConfigError::Invalid(format!("invalid IP address in clusterDNS: {text:?}"));
                    text.parse().map_err(|_| wrong())
                })
                .collect();
            self.cluster_dns = parsed?;
        }
        if !settings.cluster_domain.is_empty() {
            self.cluster_domain.clone_from(&settings.cluster_domain);
        }
        self.max_pods = u32::try_from(settings.max_pods).unwrap_or(self.max_pods);
        if let Ok(each) = u32::try_from(settings.pods_per_core)
            && each > 0
        {
            let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
            let cpus = u32::try_from(cpus).unwrap_or(u32::MAX);
            self.max_pods = self.max_pods.min(each.saturating_mul(cpus));
        }
        self.kubelet_port = u16::try_from(settings.port).unwrap_or(self.kubelet_port);
        if kubelet.sets("resolvConf") {
            self.resolv_conf.clone_from(&settings.resolv_conf);
        }
        if kubelet.sets("podLogsDir") {
            self.pod_log_dir.clone_from(&settings.pod_logs_dir);
        }
        if !settings.static_pod_path.as_os_str().is_empty() {
            self.static_pods = Some(settings.static_pod_path.clone());
        }
        self.allowed_unsafe_sysctls.clone_from(&settings.allowed_unsafe_sysctls);
        self.kubelet = Arc::new(kubelet);
        Ok(())
    }

    /// Directory of a pod's files.
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.data_dir.join("pods").join(uid)
    }

    /// Directory of a pod's logs.
    pub fn pod_logs(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.pod_log_dir.join(format!("{namespace}_{name}_{uid}"))
    }
}
