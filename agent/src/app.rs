//! Wires the agent together.
//!
//! | Task | Reads | Writes |
//! |---|---|---|
//! | [`pod::manager`](crate::pod::manager) and its workers | Pods of the node, the runtime | runtime, network, volumes, status manager |
//! | [`pod::status_manager`](crate::pod::status_manager) | statuses of the workers | pod status, final deletes |
//! | [`pod::events`](crate::pod::events) | what happened | Events |
//! | [`pod::services`](crate::pod::services) | Services | – (environment of containers) |
//! | [`gc`] | the disk, images | images |
//! | [`eviction`](crate::eviction) | the host, the pods' use | the node's state, images, orders to end pods |
//! | [`certificates`](crate::certificates) | its requests for certificates | the serving certificate |
//! | [`cpus`](crate::cpus) | the machine's CPUs, pods | which CPUs are containers' alone |
//! | [`device`] | sockets of plugins, pods | devices, answers about pods' resources |
//! | [`shutdown`](crate::shutdown) | logind | the node's state, orders to end pods |
//! | [`csi::registry`](crate::csi::registry) | sockets in `plugins_registry` | CSI drivers, CSINode, labels of the Node |
//! | [`node`] | the host, images, its Node | Node, node status, Lease |
//! | [`server`](crate::server) | the manager's pods, log files, runtime events | – (answers on port 10250) |
//! | [`network::keep_node_routes`] | Nodes | routes to other nodes' pods, the dataplane's peers |
//! | [`Network::follow_mtu`] | what the dataplane says fits | MTUs of pods |
//!
//! Ending the agent, however, leaves pods, devices and programs as they are: the next agent takes them over.

use crate::certificates::serving::ServingCertificate;
use crate::config::AgentConfig;
use crate::cpus::{Cpus, CpusError};
use crate::csi::{Csi, registry};
use crate::dataplane::PodDatapath;
use crate::device::{self, Devices};
use crate::eviction::Eviction;
use crate::image::registry::{CredentialProviders, Puller, RegistryConfig};
use crate::image::{ImageStore, gc};
use crate::kubelet_config::Settings;
use crate::network::ipam::Prefix;
use crate::network::peers::Own;
use crate::network::{self, Network, NetworkError};
use crate::node::facts::{self, Facts};
use crate::node::state::States;
use crate::node::{self, NodeTask, Readiness};
use crate::pod::classes::Classes;
use crate::pod::context::{Context, Images};
use crate::pod::events::{Kind, Pace, Recorder};
use crate::pod::manager::Manager;
use crate::pod::objects::Objects;
use crate::pod::pulls::Pulls;
use crate::pod::services::Services;
use crate::pod::status_manager::StatusManager;
use crate::pod::users::UserNamespaces;
use crate::pod::volumes::{ImageVolumes, NodeVolumes};
use crate::runtime::{Measured, Resources, Runtime, RuntimeError, host};
use crate::server::auth::Auth;
use crate::server::{PodIndex, Server, TlsError, tls};
use crate::shutdown::Shutdown;
use kelp_model::pod::resources::Swap;
use kelp_model::quantity::Quantity;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::TcpListener;
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
    /// Turns `true` once the dataplane knows all services.
    pub datapath_synced: watch::Receiver<bool>,
    /// Called with the node's podCIDRs once they are known.
    pub on_pod_cidrs: OnPodCidrs,
    /// Authority of the clients of the kubelet API, PEM; `None`: the API is not served.
    pub client_ca: Option<Vec<u8>>,
}

/// Takes the node's podCIDRs.
pub type OnPodCidrs = Box<dyn Fn(&[Prefix]) + Send + Sync>;

/// What keeps the agent from starting.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A file about registries is damaged.
    #[error("registries cannot be used: {0}")]
    Registries(String),
    /// A directory cannot be made.
    #[error("cannot create {path}; check the agent's data, run and log directories")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The error.
        #[source]
        source: std::io::Error,
    },
    /// Swap is on, and the configuration does not want it.
    #[error(
        "running with swap on is not supported, please disable swap or set failSwapOn to false. /proc/swaps contained: {0}"
    )]
    Swap(String),
    /// The host has control groups of version 1, and the configuration does not want them.
    #[error(
        "kubelet is configured to not run on a host using cgroup v1; set failCgroupV1 to false or boot with cgroup v2"
    )]
    CgroupV1,
    /// CPUs cannot be given to containers alone.
    #[error(transparent)]
    Cpus(#[from] CpusError),
    /// The kubelet API's port is taken.
    #[error("cannot listen on port {port}; is another kubelet running on this host?")]
    Listen {
        /// The port.
        port: u16,
        /// The error.
        #[source]
        source: std::io::Error,
    },
    /// The kubelet API cannot be secured.
    #[error("cannot serve the kubelet API")]
    Tls(#[from] TlsError),
    /// The pod network cannot be set up.
    #[error("cannot set up the pod network")]
    Network(#[from] NetworkError),
    /// The runtime does not answer.
    #[error("cannot list what runs on this node")]
    Runtime(#[from] RuntimeError),
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
    R: Runtime + Clone,
    D: PodDatapath,
{
    let runtime = Measured::new(parts.runtime);
    for path in [&config.data_dir.join("pods"), &config.run_dir, &config.pod_log_dir] {
        std::fs::create_dir_all(path)
            .map_err(|source| AgentError::Directory { path: path.clone(), source })?;
    }
    check_host(&config.kubelet.settings)?;
    let (cidrs, cidrs_receiver) = watch::channel(Vec::new());
    let network = Network::new(parts.datapath, &config.data_dir, cidrs_receiver.clone())?;
    // Devices of pods whose sandbox is gone are nobody's; pods with a sandbox keep theirs.
    // So do pods with a directory: a sandbox that does not answer just now may be missing from the list.
    let mut present: Vec<String> = runtime.list().await?.into_iter().map(|s| s.id).collect();
    let directories = std::fs::read_dir(config.data_dir.join("pods")).into_iter().flatten().flatten();
    present.extend(directories.map(|d| d.file_name().to_string_lossy().into_owned()));
    network.retain(&present).await;

    let facts = facts::read_facts(&config.data_dir);
    let settings = &config.kubelet.settings;
    let enforced = match runtime.limit_pods(&pods_limits(settings, &facts)).await {
        Ok(()) => settings.enforces_pods(),
        Err(error) => {
            let error = network::chain(&error);
            tracing::warn!(error, "pods are not held to what the node offers");
            false
        }
    };
    let registries = RegistryConfig::load(&config.registries).map_err(AgentError::Registries)?;
    let providers = match &config.credential_providers {
        Some((file, programs)) => {
            CredentialProviders::load(file, programs).map_err(AgentError::Registries)?
        }
        None => CredentialProviders::default(),
    };
    let puller = Puller::new(parts.images.clone(), registries, providers);
    let pace = Pace { per_second: settings.event_record_qps, burst: settings.event_burst };
    let (events, write_events) =
        Recorder::new(client.clone(), config.node_name.clone(), pace, shutdown.clone());
    let pulls_at_once = match (settings.serialize_image_pulls, settings.max_parallel_image_pulls) {
        (true, _) => Some(1),
        (false, most) => most.and_then(|n| usize::try_from(n).ok()),
    };
    let states = States::default();
    let devices = Devices::new(&config.data_dir);
    let cpus = Cpus::open(settings, &config.kubelet_dir)?;
    let (status, write_status) = StatusManager::new(client.clone(), shutdown.clone());
    let (services, follow_services) = Services::new(client.clone(), shutdown.clone());
    let (present, node_receiver) = watch::channel(None);
    let pods = PodIndex::default();
    let objects = Objects::new(client.clone());
    let csi = Csi::new(client.clone(), config.node_name.clone(), &config.data_dir, objects.tokens.clone());
    csi.find_used();
    let volumes = NodeVolumes::new(client.clone(), node_receiver.clone())
        .with_images(ImageVolumes::new(parts.images.clone()))
        .with_csi(csi.clone());
    let context = Arc::new(Context {
        volumes,
        node: node_receiver,
        pods: pods.clone(),
        runtime: runtime.clone(),
        network,
        images: Images::from(parts.images.clone()).pulling(Pulls::new(puller, pulls_at_once)),
        objects,
        services,
        status,
        events: events.clone(),
        devices: devices.clone(),
        cpus: cpus.clone(),
        states: states.clone(),
        classes: Classes::new(client.clone(), config.runtime_handlers.clone()),
        users: UserNamespaces::open(&config.data_dir.join("pods"), config.max_pods),
        node_milli_cpu: i64::try_from(facts.cpus * 1000).unwrap_or(i64::MAX),
        node_memory: facts.memory_kib * 1024,
        swap: host::accounts_for_swap().then(|| Swap {
            limited: settings.memory_swap.swap_behavior == "LimitedSwap",
            total: facts.swap_kib * 1024,
        }),
        config: config.clone(),
    });
    let own =
        Own { name: config.node_name.clone(), addresses: config.node_ips.clone(), routing: config.routing };
    let sized = context.clone();
    let (reached, stop) = (context.clone(), shutdown.clone());
    let tell_peers: network::TellPeers =
        Box::new(move |peers, tunnels| reached.network.datapath().set_peers(peers, tunnels));
    let mut tasks = JoinSet::new();
    let api = match parts.client_ca.filter(|_| settings.enable_server) {
        Some(authority) => {
            let serving = tls::serving(
                &config.node_name,
                &config.node_ips,
                settings,
                &config.data_dir.join("kubelet-pki"),
            )?;
            let tls = tls::config(&authority, serving.clone(), settings)?;
            if settings.server_tls_bootstrap {
                let certificate = ServingCertificate {
                    client: client.clone(),
                    node_name: config.node_name.clone(),
                    addresses: config.node_ips.clone(),
                    dir: config.data_dir.join("kubelet-pki"),
                    serving,
                };
                tasks.spawn(certificate.run(shutdown.clone()));
            }
            let listener = listen(&settings.address, config.kubelet_port).await?;
            let server = Server {
                pods: pods.clone(),
                config: config.clone(),
                runtime: runtime.clone(),
                tls: Arc::new(tls),
                auth: Auth::new(client.clone(), config.node_name.clone(), settings),
                csi: Some(csi.clone()),
                rates: Arc::default(),
            };
            Some(server.run(listener, shutdown.clone()))
        }
        None => None,
    };
    let (recorder, name) = (events.clone(), config.node_name.clone());
    let report = move |message: String| recorder.node(&name, Kind::Warning, "FreeDiskSpaceFailed", message);
    let collect = gc::run(parts.images.clone(), gc::Policy::of(settings), report, shutdown.clone());
    let (readiness, readiness_receiver) = watch::channel(starting());
    let node = NodeTask {
        config: config.clone(),
        client: client.clone(),
        present,
        images: parts.images.clone(),
        events: events.clone(),
        readiness: readiness_receiver,
        volumes_in_use: csi.in_use(),
        cidrs,
        states: states.clone(),
        enforced,
        devices: devices.offered(),
    };
    let manager = Manager::new(context, pods.clone(), shutdown.clone());
    let eviction = Eviction {
        config: config.clone(),
        runtime: runtime.clone(),
        pods: pods.clone(),
        images: parts.images,
        events: events.clone(),
        states: states.clone(),
        orders: manager.orders(),
    };
    let graceful = Shutdown {
        config: config.clone(),
        runtime,
        pods: pods.clone(),
        events,
        states,
        orders: manager.orders(),
    };
    let lease = settings.node_lease_duration_seconds;
    tasks.spawn(write_events);
    tasks.spawn(write_status);
    tasks.spawn(follow_services);
    tasks.spawn(collect);
    tasks.spawn(node::run(node, shutdown.clone()));
    tasks.spawn(node::keep_lease(client.clone(), config.node_name.clone(), lease, shutdown.clone()));
    tasks.spawn(eviction.run(shutdown.clone()));
    tasks.spawn(serve_plugins(devices, cpus, pods, config.kubelet_dir.clone(), shutdown.clone()));
    tasks.spawn(graceful.run(shutdown.clone()));
    tasks.spawn(network::keep_node_routes(client.clone(), own, tell_peers, shutdown.clone()));
    tasks.spawn(async move { sized.network.follow_mtu(stop).await });
    tasks.spawn(follow_cidrs(cidrs_receiver, parts.on_pod_cidrs, shutdown.clone()));
    tasks.spawn(follow_datapath(parts.datapath_synced, readiness, shutdown.clone()));
    tasks.spawn(registry::follow(csi, shutdown.clone()));
    tasks.spawn(manager.run(client));
    if let Some(api) = api {
        tasks.spawn(api);
    }
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "a task of the agent failed");
        }
    }
    Ok(())
}

/// Reads: plugins, pods. Writes: devices, answers to those who ask about pods' resources.
async fn serve_plugins(
    devices: Devices,
    cpus: Cpus,
    pods: PodIndex,
    dir: PathBuf,
    shutdown: CancellationToken,
) {
    let plugins = device::serve(devices.clone(), dir.join("device-plugins"), shutdown.clone());
    let socket = dir.join("pod-resources/kubelet.sock");
    let resources = device::serve_pod_resources(devices, cpus, pods, socket, shutdown);
    let told = |what: &str, result: std::io::Result<()>| {
        if let Err(error) = result {
            tracing::warn!(%error, dir = %dir.display(), "{what} are not served");
        }
    };
    let (plugins, resources) = tokio::join!(plugins, resources);
    told("device plugins", plugins);
    told("pod resources", resources);
}

/// What the configuration does not want of a host.
fn check_host(settings: &Settings) -> Result<(), AgentError> {
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    let used: Vec<&str> = swaps.lines().skip(1).collect();
    if settings.fail_swap_on && !used.is_empty() {
        return Err(AgentError::Swap(used.join("\n")));
    }
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    crate::metrics::CGROUP_VERSION.set(&[], if unified { 2.0 } else { 1.0 });
    if settings.fail_cgroup_v1 && !unified { Err(AgentError::CgroupV1) } else { Ok(()) }
}

/// What all pods together get: all but what is reserved, unless that is not enforced.
fn pods_limits(settings: &Settings, facts: &Facts) -> Resources {
    if !settings.enforces_pods() {
        return Resources { memory_limit: Some(-1), ..Resources::default() };
    }
    let left = |all: u64, reserved: Quantity| i64::try_from(all).unwrap_or(i64::MAX) - reserved.value();
    let milli_cpu =
        i64::try_from(facts.cpus * 1000).unwrap_or(i64::MAX) - settings.reserved("cpu").milli_value();
    let shares = u64::try_from(milli_cpu).unwrap_or(0) * 1024 / 1000;
    Resources {
        cpu_shares: Some(shares.clamp(2, 262_144)),
        memory_limit: Some(left(facts.memory_kib * 1024, settings.reserved("memory")).max(0)),
        ..Resources::default()
    }
}

async fn listen(address: &str, port: u16) -> Result<TcpListener, AgentError> {
    match address.parse::<IpAddr>() {
        Ok(own) if !own.is_unspecified() => {
            return TcpListener::bind((own, port))
                .await
                .map_err(|source| AgentError::Listen { port, source });
        }
        _ => {}
    }
    // Both families where the kernel has IPv6.
    let both = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await;
    match both {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
            .await
            .map_err(|source| AgentError::Listen { port, source }),
    }
}

fn starting() -> Readiness {
    let why = node::network_not_ready("the dataplane does not know the services yet");
    Readiness { parts: [("datapath", why)].into() }
}

/// Reads: the dataplane's state. Writes: readiness.
async fn follow_datapath(
    mut synced: watch::Receiver<bool>,
    readiness: watch::Sender<Readiness>,
    shutdown: CancellationToken,
) {
    let ready = synced.wait_for(|synced| *synced);
    tokio::select! {
        () = shutdown.cancelled() => return,
        result = ready => if result.is_err() { return },
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
