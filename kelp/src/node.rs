//! Starting the node agent with its runtime and dataplane.

use crate::cli::{Cidr, ClusterArgs, Dns, LbMode, NodeArgs};
use crate::host::Host;
use crate::node_address;
use crate::parts::Parts;
use crate::systemd;
use anyhow::{Context, Result};
use kelp_agent::app::{self, Parts as AgentParts};
use kelp_agent::config::AgentConfig;
use kelp_agent::dataplane::{self, Dataplane, PodDatapath};
use kelp_agent::dns;
use kelp_agent::image::ImageStore;
use kelp_agent::kubelet_config::KubeletConfig;
use kelp_agent::network::{self, HostForwarding};
use kelp_agent::runtime::{RuntimeConfig, ShimRuntime};
use kube::Client;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::watch;

/// What the agent is started with.
pub struct Settings<'a> {
    /// Persistent data.
    pub data_dir: &'a Path,
    /// Address ranges.
    pub cluster: &'a ClusterArgs,
    /// The node's own settings.
    pub node: &'a NodeArgs,
    /// This host.
    pub host: &'a Host,
    /// The cluster's certificate authority, PEM: who may ask this node.
    pub ca_pem: Vec<u8>,
    /// Sockets of cluster DNS of an earlier run.
    pub dns: Vec<OwnedFd>,
}

/// What of the agent runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The node and its dataplane.
    Whole,
    /// The dataplane, beside another kubelet.
    DataplaneOnly,
    /// The node, beside another program for services.
    WithoutDataplane,
}

/// Directory of the image store.
pub fn image_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("images")
}

/// Whether the node's KubeletConfiguration wants its client certificate renewed; the dataplane alone has none.
///
/// # Errors
/// The configuration cannot be used.
pub fn rotates_certificates(node: &NodeArgs, dataplane_only: bool) -> Result<bool> {
    if dataplane_only {
        return Ok(false);
    }
    let kubelet = KubeletConfig::load(node.config.as_deref(), node.config_dir.as_deref())?;
    Ok(kubelet.settings.rotate_certificates)
}

/// Starts the agent, or only its dataplane; programs are attached when this returns.
///
/// # Errors
/// Fails if the host lacks what the agent needs.
pub async fn start(settings: Settings<'_>, client: Client, role: Role, parts: &mut Parts) -> Result<()> {
    let Settings { data_dir, cluster, node, host, ca_pem, dns: kept } = settings;
    let mount = cgroup2_mount()?;
    let cgroup2 = node.cgroup2_attach.clone().unwrap_or_else(|| mount.clone());
    std::fs::create_dir_all(&cgroup2).with_context(|| format!("cannot create {}", cgroup2.display()))?;
    let ranges = |cidrs: &[Cidr]| cidrs.iter().map(|cidr| (cidr.network, cidr.prefix)).collect::<Vec<_>>();
    // It speaks through the dataplane, and beside another kubelet it is another's affair.
    let dns_sockets = if cluster.dns == Dns::Builtin && role == Role::Whole {
        let sockets = dns::Sockets::open(&host.node_ips, node.dns_port, kept)?;
        systemd::keep_dns(sockets.descriptors());
        Some(sockets)
    } else {
        None
    };
    let dataplane = if role == Role::WithoutDataplane {
        None
    } else {
        let local_dns = dns_sockets.as_ref().map(dns::Sockets::backend).transpose();
        let dataplane_config = dataplane::Config {
            node_name: host.node_name.clone(),
            node_addresses: host.node_ips.clone(),
            uplink: node_address::interface_of(&host.node_ips)?,
            service_cidrs: ranges(&cluster.service_cidr),
            cluster_cidrs: ranges(&cluster.cluster_cidr),
            cgroup: cgroup2.clone(),
            bpf_directory: node.bpf_dir.clone(),
            healthz_address: Some(node.healthz_bind_address),
            metrics_address: Some(node.metrics_bind_address),
            // Pods of another agent are not attached here.
            network_policies: role == Role::Whole,
            foreign_pods: role == Role::DataplaneOnly,
            map_sizes: node.bpf_map_size.iter().copied().collect(),
            balancing: node.balancing(),
            dsr: node.lb_mode == LbMode::Dsr,
            dsr_port: node.dsr_port,
            xdp: node.xdp(),
            tunnel_port: node.tunnel_port,
            local_dns: local_dns.context("cannot read the addresses of cluster DNS")?,
            ..dataplane::Config::default()
        };
        let dataplane = dataplane::start(dataplane_config, client.clone(), parts.shutdown())
            .await
            .context("cannot start the dataplane; `kelp check` tells what the host lacks")?;
        Some(dataplane)
    };
    if role == Role::DataplaneOnly {
        let shutdown = parts.shutdown();
        parts.spawn("dataplane", async move {
            shutdown.cancelled().await;
            drop(dataplane);
            Ok(())
        });
        return Ok(());
    }

    let kubelet = KubeletConfig::load(node.config.as_deref(), node.config_dir.as_deref())?;
    for warning in &kubelet.warnings {
        tracing::warn!("{warning}");
    }
    let pod_ranges = ranges(&cluster.cluster_cidr);
    let mut config = AgentConfig::new(host.node_name.clone(), host.node_ips.clone());
    // One address: a resolver asks a second one only when the first is silent, which costs seconds.
    config.cluster_dns = cluster.dns_addresses().into_iter().take(1).collect();
    config.adopt(kubelet)?;
    // The host's stack alone has no tunnels.
    config.routing =
        if role == Role::WithoutDataplane { network::Routing::Direct } else { node.routing.into() };
    let images = ImageStore::open(&image_dir(data_dir))?;
    let runtime_config = RuntimeConfig {
        run_dir: node.run_dir.clone(),
        data_dir: data_dir.to_owned(),
        cgroup_root: node.cgroup_root.clone(),
        // Programs reach the pods only below the directory they are attached to.
        cgroup2_dir: (!mount.join(&node.cgroup_root).starts_with(&cgroup2)).then(|| cgroup2.clone()),
        log_max_size: config.kubelet.settings.log_max_size(),
        log_max_files: config.kubelet.settings.container_log_max_files,
    };
    let runtime =
        ShimRuntime::open(&runtime_config, images.clone()).await.context("cannot start the runtime")?;
    config.data_dir = data_dir.to_owned();
    config.run_dir = node.run_dir.clone();
    if let Some(dir) = &node.log_dir {
        config.pod_log_dir.clone_from(dir);
    }
    config.cgroup_root = node.cgroup_root.clone();
    config.kubelet_dir = node.root_dir.clone();
    config.registries = node.registries.clone();
    let providers = (&node.image_credential_provider_config, &node.image_credential_provider_bin_dir);
    if let (Some(file), Some(programs)) = providers {
        config.credential_providers = Some((file.clone(), programs.clone()));
    }
    if let Some(file) = &node.resolv_conf {
        config.resolv_conf.clone_from(file);
    }
    if let Some(dir) = &node.pod_manifest_path {
        config.static_pods = Some(dir.clone());
    }
    let on_node = OnNode { config, client, runtime, images, ca_pem };
    let Some(dataplane) = dataplane else {
        let uplink = node_address::interface_of(&host.node_ips)?;
        let datapath = HostForwarding::enable(uplink.as_deref(), parts.shutdown())
            .context("cannot let the host forward to pods")?;
        let (_, synced) = watch::channel(true);
        on_node.run(datapath, synced, Box::new(|_| {}), parts);
        return Ok(());
    };
    if let Some(sockets) = dns_sockets {
        let mut ranges = ranges(&cluster.service_cidr);
        ranges.extend(&pod_ranges);
        let settings = dns::Config {
            domain: on_node.config.cluster_domain.clone(),
            servers: cluster.dns_addresses(),
            ranges,
            clients: pod_ranges,
            resolv_conf: on_node.config.resolv_conf.clone(),
            upstream_port: 53,
        };
        let source = dns::Source { index: dataplane.index(), complete: dataplane.synced_watch() };
        let namespaces = dns::watch_namespaces(&on_node.client);
        let served = dns::run(settings, sockets, source, namespaces, parts.shutdown());
        parts.spawn("cluster DNS", async move { served.await.context("cluster DNS failed") });
    }
    let (synced, datapath_synced) = watch::channel(false);
    on_node.run(dataplane.clone(), datapath_synced, tell_pod_cidrs(dataplane.clone()), parts);
    let shutdown = parts.shutdown();
    parts.spawn("dataplane", async move {
        let wait = async {
            dataplane.synced().await;
            // The agent that listens has ended: so do we.
            let _ = synced.send(true);
            shutdown.cancelled().await;
        };
        shutdown.run_until_cancelled(wait).await;
        Ok(())
    });
    Ok(())
}

/// The agent without its datapath.
struct OnNode {
    config: AgentConfig,
    client: Client,
    runtime: ShimRuntime,
    images: ImageStore,
    ca_pem: Vec<u8>,
}

impl OnNode {
    /// Starts it; it is ready once `datapath_synced` is true.
    fn run(
        self,
        datapath: impl PodDatapath,
        datapath_synced: watch::Receiver<bool>,
        on_pod_cidrs: PodCidrsCallback,
        parts: &mut Parts,
    ) {
        let Self { config, client, runtime, images, ca_pem } = self;
        let parts_of_agent =
            AgentParts { runtime, images, datapath, datapath_synced, on_pod_cidrs, client_ca: Some(ca_pem) };
        let agent = app::run_with(config, client, parts_of_agent, parts.shutdown());
        parts.spawn("agent", async move { agent.await.context("the agent failed") });
    }
}

/// Called with the node's address ranges for pods.
type PodCidrsCallback = Box<dyn Fn(&[kelp_agent::network::ipam::Prefix]) + Send + Sync>;

fn tell_pod_cidrs(dataplane: Arc<Dataplane>) -> PodCidrsCallback {
    Box::new(move |cidrs| {
        let ranges = cidrs.iter().map(|cidr| (cidr.address, cidr.length)).collect::<Vec<_>>();
        if let Err(error) = dataplane.set_pod_cidrs(&ranges) {
            let error = anyhow::Error::from(error);
            tracing::error!(
                error = format!("{error:#}"),
                "cannot tell the dataplane the node's pod addresses"
            );
        }
    })
}

/// Mount point of the cgroup v2 hierarchy.
fn cgroup2_mount() -> Result<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    let mut mounts =
        table.lines().map(|line| line.split_ascii_whitespace().skip(1).take(2).collect::<Vec<_>>());
    let found = mounts.find_map(|fields| match fields.as_slice() {
        [point, "cgroup2"] => Some(PathBuf::from(point)),
        _ => None,
    });
    found.context(
        "no cgroup v2 hierarchy is mounted; `mount -t cgroup2 none /sys/fs/cgroup/unified` mounts one",
    )
}
