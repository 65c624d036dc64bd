//! Wires the agent together.
//!
//! | Task | Reads | Writes |
//! |---|---|---|
//! | [`pod::manager`](crate::pod::manager) and its workers | Pods of the node, the runtime | runtime, network, volumes, status manager |
//! | [`pod::status_manager`](crate::pod::status_manager) | statuses of the workers | pod status, final deletes |
//! | [`pod::events`](crate::pod::events) | what happened | Events |
//! | [`pod::services`](crate::pod::services) | Services | – (environment of containers) |
//! | [`node`] | the host, images, its Node | Node, node status, Lease |
//! | [`network::keep_node_routes`] | Nodes | routes to other nodes' pods |
//!
//! Ending the agent, however, leaves pods, devices and programs as they are: the next agent takes them over.

use crate::config::AgentConfig;
use crate::dataplane::{self, DatapathError, Dataplane, Endpoint, PodDatapath};
use crate::image::{ImageError, ImageStore};
use crate::network::ipam::Prefix;
use crate::network::{self, Network, NetworkError};
use crate::node::{self, NodeTask, Readiness, facts};
use crate::pod::context::{Context, Images};
use crate::pod::events::Recorder;
use crate::pod::manager::Manager;
use crate::pod::objects::Objects;
use crate::pod::services::Services;
use crate::pod::status_manager::StatusManager;
use crate::runtime::{Runtime, RuntimeConfig, RuntimeError, ShimRuntime};
use futures::future::BoxFuture;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// What the agent is made of.
pub struct Parts<R, D> {
    /// Containers.
    pub runtime: R,
    /// Images.
    pub images: ImageStore,
    /// The dataplane, as the pod network sees it.
    pub datapath: D,
    /// Resolves once the dataplane knows all services.
    pub datapath_synced: BoxFuture<'static, ()>,
    /// Called with the node's podCIDRs once they are known.
    pub on_pod_cidrs: OnPodCidrs,
}

/// Takes the node's podCIDRs.
pub type OnPodCidrs = Box<dyn Fn(&[Prefix]) + Send + Sync>;

/// What keeps the agent from starting.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A directory cannot be made.
    #[error("cannot create {path}; check the agent's data, run and log directories")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The error.
        #[source]
        source: std::io::Error,
    },
    /// The pod network cannot be set up.
    #[error("cannot set up the pod network")]
    Network(#[from] NetworkError),
    /// The runtime does not answer.
    #[error("cannot start the container runtime")]
    Runtime(#[from] RuntimeError),
    /// The image store cannot be opened.
    #[error("cannot open the image store")]
    Images(#[from] ImageError),
    /// The kernel refused the dataplane's programs.
    #[error("cannot start the dataplane")]
    Dataplane(#[from] DatapathError),
}

/// Runs the agent until `shutdown`: runtime, images and dataplane of this host. Must be called in the network
/// namespace of the node.
///
/// # Errors
/// It cannot start; pods that run go on running.
pub async fn run(
    config: AgentConfig,
    client: kube::Client,
    shutdown: CancellationToken,
) -> Result<(), AgentError> {
    let images = ImageStore::open(&config.data_dir.join("images"))?;
    let runtime_config = RuntimeConfig {
        run_dir: config.run_dir.clone(),
        data_dir: config.data_dir.clone(),
        cgroup_root: config.cgroup_root.clone(),
        cgroup2_dir: config.cgroup2_dir.clone(),
    };
    let runtime = ShimRuntime::open(&runtime_config, images.clone()).await?;
    let dataplane = start_dataplane(&config, client.clone(), shutdown.clone()).await?;
    let (synced, told) = (dataplane.clone(), dataplane.clone());
    let parts = Parts {
        runtime,
        images,
        datapath: Shared(dataplane),
        datapath_synced: Box::pin(async move { synced.synced().await }),
        on_pod_cidrs: Box::new(move |prefixes| {
            let networks: Vec<_> = prefixes.iter().map(|p| (p.address, p.length)).collect();
            if let Err(error) = told.set_pod_cidrs(&networks) {
                tracing::error!(error = %network::chain(&error), "the dataplane did not take the node's podCIDRs");
            }
        }),
    };
    run_with(config, client, parts, shutdown).await
}

/// Starts the service dataplane as the node's configuration says.
///
/// # Errors
/// The programs cannot be loaded or attached.
pub async fn start_dataplane(
    config: &AgentConfig,
    client: kube::Client,
    shutdown: CancellationToken,
) -> Result<Arc<Dataplane>, AgentError> {
    let cgroup = config.cgroup2_dir.clone().or_else(cgroup2_mount);
    let settings = dataplane::Config {
        node_name: config.node_name.clone(),
        node_addresses: config.node_ips.clone(),
        uplink: config.uplink.clone().or_else(|| device_with(&config.node_ips)),
        service_cidrs: config.service_cidrs.clone(),
        cluster_cidrs: config.cluster_cidrs.clone(),
        node_ports: config.node_ports.clone(),
        cgroup: cgroup.unwrap_or_else(|| dataplane::Config::default().cgroup),
        bpf_directory: config.bpf_dir.clone(),
        ..dataplane::Config::default()
    };
    Ok(dataplane::start(settings, client, shutdown).await?)
}

/// Where cgroup v2 is mounted: the whole hierarchy, or the one beside v1.
fn cgroup2_mount() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut words = line.split(' ');
        let (_, at, kind) = (words.next()?, words.next()?, words.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(at))
    })
}

/// The device that has one of these addresses.
fn device_with(addresses: &[IpAddr]) -> Option<String> {
    let found = nix::ifaddrs::getifaddrs().ok()?.find(|interface| {
        let address = interface.address.as_ref();
        let v4 = address.and_then(|a| a.as_sockaddr_in()).map(|a| IpAddr::V4(a.ip()));
        let v6 = address.and_then(|a| a.as_sockaddr_in6()).map(|a| IpAddr::V6(a.ip()));
        v4.or(v6).is_some_and(|ip| addresses.contains(&ip))
    });
    found.map(|interface| interface.interface_name)
}

/// The dataplane, shared with those who ask it.
struct Shared(Arc<Dataplane>);

impl PodDatapath for Shared {
    async fn attach_endpoint(&self, endpoint: &Endpoint) -> Result<(), DatapathError> {
        self.0.attach_endpoint(endpoint).await
    }

    async fn detach_endpoint(&self, addresses: &[IpAddr]) -> Result<(), DatapathError> {
        self.0.detach_endpoint(addresses).await
    }
}

/// Runs the agent with these parts until `shutdown`.
///
/// # Errors
/// It cannot start; pods that run go on running.
pub async fn run_with<R, D>(
    config: AgentConfig,
    client: kube::Client,
    parts: Parts<R, D>,
    shutdown: CancellationToken,
) -> Result<(), AgentError>
where
    R: Runtime,
    D: PodDatapath,
{
    for path in [&config.data_dir.join("pods"), &config.run_dir, &config.pod_log_dir] {
        std::fs::create_dir_all(path)
            .map_err(|source| AgentError::Directory { path: path.clone(), source })?;
    }
    let (cidrs, cidrs_receiver) = watch::channel(Vec::new());
    let mtu = match config.mtu {
        Some(mtu) => mtu,
        None => network::uplink_mtu(&config.node_ips).await.unwrap_or(1500),
    };
    let network = Network::new(parts.datapath, &config.data_dir, cidrs_receiver.clone(), mtu)?;
    // Devices of pods whose sandbox is gone are nobody's; pods with a sandbox keep theirs.
    let present: Vec<String> = parts.runtime.list().await?.into_iter().map(|s| s.id).collect();
    network.retain(&present).await;

    let facts = facts::read_facts(&config.data_dir);
    let (events, write_events) = Recorder::new(client.clone(), config.node_name.clone(), shutdown.clone());
    let (status, write_status) = StatusManager::new(client.clone(), shutdown.clone());
    let (services, follow_services) = Services::new(client.clone(), shutdown.clone());
    let context = Arc::new(Context {
        runtime: parts.runtime,
        network,
        images: Images::from(parts.images.clone()),
        objects: Objects::new(client.clone()),
        services,
        status,
        events: events.clone(),
        node_milli_cpu: i64::try_from(facts.cpus * 1000).unwrap_or(i64::MAX),
        node_memory: facts.memory_kib * 1024,
        config: config.clone(),
    });
    let (readiness, readiness_receiver) = watch::channel(starting());
    let node = NodeTask {
        config: config.clone(),
        client: client.clone(),
        images: parts.images,
        events,
        readiness: readiness_receiver,
        cidrs,
    };
    let manager = Manager::new(context, shutdown.clone());
    let mut tasks = JoinSet::new();
    tasks.spawn(write_events);
    tasks.spawn(write_status);
    tasks.spawn(follow_services);
    tasks.spawn(node::run(node, shutdown.clone()));
    tasks.spawn(node::keep_lease(client.clone(), config.node_name.clone(), shutdown.clone()));
    tasks.spawn(network::keep_node_routes(client.clone(), config.node_name.clone(), shutdown.clone()));
    tasks.spawn(follow_cidrs(cidrs_receiver, parts.on_pod_cidrs, shutdown.clone()));
    tasks.spawn(follow_datapath(parts.datapath_synced, readiness, shutdown.clone()));
    tasks.spawn(manager.run(client));
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "a task of the agent failed");
        }
    }
    Ok(())
}

fn starting() -> Readiness {
    let why = node::network_not_ready("the dataplane does not know the services yet");
    Readiness { parts: [("datapath", why)].into() }
}

/// Reads: the dataplane's state. Writes: readiness.
async fn follow_datapath(
    synced: BoxFuture<'static, ()>,
    readiness: watch::Sender<Readiness>,
    shutdown: CancellationToken,
) {
    tokio::select! {
        () = shutdown.cancelled() => return,
        () = synced => {}
    }
    readiness.send_modify(|r| {
        r.parts.remove("datapath");
    });
    shutdown.cancelled().await;
}

/// Reads: the node's podCIDRs. Writes: the dataplane's settings.
async fn follow_cidrs(
    mut cidrs: watch::Receiver<Vec<Prefix>>,
    tell: OnPodCidrs,
    shutdown: CancellationToken,
) {
    loop {
        let now = cidrs.borrow_and_update().clone();
        if !now.is_empty() {
            tell(&now);
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = cidrs.changed() => if changed.is_err() { return },
        }
    }
}
