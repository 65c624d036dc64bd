//! Nodes to measure: two pods behind Kelp's dataplane, or behind the host's own stack with rules; another node with a pod, and
//! a client outside the cluster on the network of both.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kelp_agent::dataplane::events::Events;
use kelp_agent::dataplane::reconciler::Change;
use kelp_agent::dataplane::{Config, Dataplane, PodDatapath, cleanup, start_with};
use kube::runtime::watcher::Event;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::drive::{
    CLIENT, ECHO, FAR_NODE, FAR_SERVER, FAR_SERVICE, NODE, NODE_PORTS, ONCE, OUTER_SERVICE, OUTSIDE,
    PORT_STEP, SERVER, SERVICE, SINK, measure, serve,
};
use crate::net::{Net, pod};
use crate::report::Metric;
use crate::rules::{self, Port};

/// How the client reaches the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The pod's address.
    Pod = 0,
    /// The service's address, translated in the system call.
    Socket = 1,
    /// The service's address, translated in every packet.
    Packet = 2,
    /// The address of a pod of another node.
    FarPod = 3,
    /// The address of a service of that pod, translated in the system call.
    FarSocket = 4,
    /// The same, translated in every packet.
    FarPacket = 5,
    /// The pod's address, from outside the cluster.
    OutsidePod = 6,
    /// The node's address and a node port, from outside the cluster.
    NodePort = 7,
}

impl Way {
    const ALL: [Self; 8] = [
        Self::Pod,
        Self::Socket,
        Self::Packet,
        Self::FarPod,
        Self::FarSocket,
        Self::FarPacket,
        Self::OutsidePod,
        Self::NodePort,
    ];

    /// What its ports lie after the usual.
    pub fn step(self) -> u16 {
        self as u16 * PORT_STEP
    }

    /// The address that the client uses.
    fn address(self) -> Ipv4Addr {
        match self {
            Self::Pod | Self::OutsidePod => SERVER,
            Self::Socket | Self::Packet => SERVICE,
            Self::FarPod => FAR_SERVER,
            Self::FarSocket | Self::FarPacket => FAR_SERVICE,
            Self::NodePort => NODE,
        }
    }

    /// The service that it needs, and who is behind it.
    fn service(self) -> Option<(Ipv4Addr, Ipv4Addr)> {
        match self {
            Self::Pod | Self::OutsidePod | Self::FarPod => None,
            Self::Socket | Self::Packet => Some((SERVICE, SERVER)),
            Self::FarSocket | Self::FarPacket => Some((FAR_SERVICE, FAR_SERVER)),
            Self::NodePort => Some((OUTER_SERVICE, SERVER)),
        }
    }

    /// Whether the client is a pod of the node.
    fn is_of_pod(self) -> bool {
        !matches!(self, Self::OutsidePod | Self::NodePort)
    }
}

/// Which rules the host's stack has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rules {
    /// Of iptables.
    Iptables,
    /// Of nftables.
    Nftables,
}

/// A pod: its namespace, its device on the host, its address.
type PodOf<'a> = (&'a Net, &'static str, Ipv4Addr);

/// A node with two pods, of which the second serves, and another node with a third, which serves too.
pub struct World {
    /// Dropped first: programs go before the devices that they are attached to.
    kelp: Vec<Kelp>,
    client: Net,
    host: Net,
    outside: Net,
    server: Net,
    far_host: Net,
    far_server: Net,
}

/// A running dataplane.
struct Kelp {
    cgroup: PathBuf,
    bpf_directory: PathBuf,
    _agent: (tokio::runtime::Runtime, Arc<Dataplane>),
}

impl Drop for Kelp {
    fn drop(&mut self) {
        if let Err(error) = cleanup(&self.bpf_directory) {
            eprintln!("pins are left in {}: {error}", self.bpf_directory.display());
        }
        // A thread that has just ended may still be counted.
        for _ in 0..1_000 {
            if fs::remove_dir(&self.cgroup).is_ok() {
                return;
            }
            std::thread::yield_now();
        }
        eprintln!("the cgroup {} is left", self.cgroup.display());
    }
}

impl Kelp {
    /// The dataplane of a node with this number: its pods' addresses are 10.244.NUMBER.0/24.
    fn start(
        number: u8,
        host: &Net,
        node: Ipv4Addr,
        pods: &[PodOf<'_>],
        changes: Vec<Change>,
    ) -> Result<Self> {
        let tag = format!("kelp-bench-{}-{number}", std::process::id());
        let cgroup = cgroup2_mount()?.join(&tag);
        let bpf_directory = Path::new("/sys/fs/bpf").join(&tag);
        fs::create_dir(&cgroup).context("make a cgroup")?;
        fs::write(cgroup.join("cgroup.type"), "threaded").context("make a threaded cgroup")?;
        let endpoints = pods.iter().map(|(net, device, address)| pod(host, net, device, *address));
        let endpoints = endpoints.collect::<Result<Vec<_>>>()?;
        let config = Config {
            node_name: "here".to_owned(),
            node_addresses: vec![node.into()],
            uplink: Some("uplink".to_owned()),
            pod_cidrs: vec![(IpAddr::from([10, 244, number, 0]), 24)],
            cgroup: cgroup.clone(),
            bpf_directory: bpf_directory.clone(),
            ..Config::default()
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        // The stream never ends, as that of an API does not.
        let changes = futures::StreamExt::chain(futures::stream::iter(changes), futures::stream::pending());
        let dataplane = host.run(|| {
            runtime.block_on(async {
                let dataplane =
                    start_with(config, changes, None, Events::discarding(), CancellationToken::new()).await?;
                for endpoint in &endpoints {
                    dataplane.attach_endpoint(endpoint).await?;
                }
                dataplane.synced().await;
                Ok(dataplane)
            })
        })?;
        Ok(Self { cgroup, bpf_directory, _agent: (runtime, dataplane) })
    }
}

impl World {
    /// Namespaces and the network of the nodes; no pod is connected yet.
    fn unconnected() -> Result<Self> {
        let [client, host, outside, server, far_host, far_server] = [(); 6].map(|()| Net::new());
        let (host, outside, far_host) = (host?, outside?, far_host?);
        outside.ip("link add lan type bridge")?;
        outside.ip("link set lan up")?;
        outside.ip(&format!("address add {OUTSIDE}/24 dev lan"))?;
        for (net, wire, node, number, other) in
            [(&host, "wire", NODE, 0, FAR_NODE), (&far_host, "wire1", FAR_NODE, 1, NODE)]
        {
            outside.ip(&format!("link add {wire} type veth peer name uplink netns {}", net.path()))?;
            outside.ip(&format!("link set {wire} master lan"))?;
            outside.ip(&format!("link set {wire} up"))?;
            net.ip(&format!("address add {node}/24 dev uplink"))?;
            net.ip("link set uplink up")?;
            net.ip(&format!("route add default via {OUTSIDE}"))?;
            net.ip(&format!("route add 10.244.{}.0/24 via {other}", 1 - number))?;
            net.run(|| Ok(fs::write("/proc/sys/net/ipv4/ip_forward", "1")?))?;
            outside.ip(&format!("route add 10.244.{number}.0/24 via {node}"))?;
        }
        let kelp = Vec::new();
        Ok(Self { kelp, client: client?, host, outside, server: server?, far_host, far_server: far_server? })
    }

    fn serve(&self) -> Result<()> {
        Way::ALL.into_iter().try_for_each(|way| {
            serve(&self.server, SERVER, way.step())?;
            serve(&self.far_server, FAR_SERVER, way.step())
        })
    }

    /// The pods of the node, and that of the other.
    fn pods(&self) -> ([PodOf<'_>; 2], [PodOf<'_>; 1]) {
        (
            [(&self.client, "pod1", CLIENT), (&self.server, "pod2", SERVER)],
            [(&self.far_server, "pod1", FAR_SERVER)],
        )
    }

    /// Nodes with Kelp's dataplane and this many services.
    pub fn kelp(services: usize) -> Result<Self> {
        let mut world = Self::unconnected()?;
        let (near, far) = world.pods();
        let kelp = vec![
            Kelp::start(0, &world.host, NODE, &near, objects(self::services(services)?))?,
            Kelp::start(1, &world.far_host, FAR_NODE, &far, objects(Vec::new()))?,
        ];
        world.kelp = kelp;
        world.serve()?;
        Ok(world)
    }

    /// Nodes whose stacks forward; nothing translates yet.
    pub fn plain() -> Result<Self> {
        let world = Self::unconnected()?;
        let (near, far) = world.pods();
        for (net, device, address) in near {
            pod(&world.host, net, device, address)?;
        }
        for (net, device, address) in far {
            pod(&world.far_host, net, device, address)?;
        }
        world.serve()?;
        Ok(world)
    }

    /// A node with rules for this many services; returns how long it took to load them, too.
    pub fn with_rules(kind: Rules, services: usize) -> Result<(Self, Duration)> {
        let world = Self::plain()?;
        let ports = ports(services);
        let started = Instant::now();
        match kind {
            Rules::Iptables => world.host.feed("iptables-restore", &[], &rules::iptables(&ports))?,
            Rules::Nftables => world.host.feed("nft", &["-f", "-"], &rules::nftables(&ports))?,
        }
        Ok((world, started.elapsed()))
    }

    /// The host's namespace.
    pub fn host(&self) -> &Net {
        &self.host
    }

    /// The namespace of the pod that asks.
    pub fn client(&self) -> &Net {
        &self.client
    }

    /// One measurement of everything.
    pub fn run(&self, way: Way, length: Duration) -> Result<Vec<(Metric, f64)>> {
        let from = if way.is_of_pod() { &self.client } else { &self.outside };
        from.run(|| {
            // Sockets of the packet path are those outside the cgroup; a pod's own are inside.
            let inside = way.is_of_pod() && !matches!(way, Way::Packet | Way::FarPacket);
            if let Some(kelp) = self.kelp.first().filter(|_| inside) {
                // SAFETY: no preconditions.
                let thread = unsafe { libc::syscall(libc::SYS_gettid) };
                fs::write(kelp.cgroup.join("cgroup.threads"), thread.to_string())?;
            }
            let sockets = matches!(way, Way::Socket | Way::FarSocket);
            ensure!(!self.kelp.is_empty() || !sockets, "sockets are translated by Kelp only");
            let step = way.step() + if way == Way::NodePort { NODE_PORTS } else { 0 };
            measure(way.address(), step, length)
        })
    }
}

/// The mount point of the cgroup2 hierarchy.
fn cgroup2_mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    mounts
        .lines()
        .find_map(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let point = fields.next()?;
            (fields.next()? == "cgroup2").then(|| PathBuf::from(point))
        })
        .context("no cgroup2 is mounted: mount one at /sys/fs/cgroup/unified")
}

/// Ports of the services that are measured: the way, the port and its protocol.
fn measured_ports() -> impl Iterator<Item = (Way, u16, &'static str)> {
    let kinds = [(ECHO, "tcp"), (ONCE, "tcp"), (SINK, "tcp"), (ECHO, "udp")];
    let ways = Way::ALL.into_iter().filter(|way| way.service().is_some());
    ways.flat_map(move |way| kinds.map(|(port, protocol)| (way, port + way.step(), protocol)))
}

/// The port of the node that leads to a port, too.
fn node_port(way: Way, port: u16) -> Option<u16> {
    (way == Way::NodePort).then_some(port + NODE_PORTS)
}

/// Address and endpoint of another service, from number 1; nobody has the endpoint.
fn other(number: usize) -> (Ipv4Addr, Ipv4Addr) {
    let number = u32::try_from(number).unwrap_or(u32::MAX);
    (Ipv4Addr::from(u32::from(SERVICE) + number), Ipv4Addr::from(0x0af4_1000 + number))
}

/// Ports of all services, the measured ones amid the others: rules are walked in their order.
pub fn ports(services: usize) -> Vec<Port> {
    let mut all: Vec<Port> = (1..services.max(1))
        .map(|number| {
            let (address, backend) = other(number);
            Port { address, port: 80, protocol: "tcp", backend: (backend, 8080), node_port: None }
        })
        .collect();
    let own = measured_ports().filter_map(|(way, port, protocol)| {
        let (address, backend) = way.service()?;
        Some(Port { address, port, protocol, backend: (backend, port), node_port: node_port(way, port) })
    });
    let middle = all.len() / 2;
    all.splice(middle..middle, own);
    all
}

/// The Service and the EndpointSlice of each: this many, and those of other ways.
pub fn services(count: usize) -> Result<Vec<(Service, EndpointSlice)>> {
    let measured = [("s0", SERVICE), ("far", FAR_SERVICE), ("outer", OUTER_SERVICE)].map(|(name, address)| {
        let own = || measured_ports().filter(move |(way, ..)| way.service().is_some_and(|(own, _)| own == address));
        let backend = own().find_map(|(way, ..)| way.service()).map(|(_, backend)| backend);
        let ports: Vec<_> = own()
            .map(|(way, port, protocol)| {
                json!({"name": format!("{port}-{protocol}"), "port": port, "protocol": protocol.to_uppercase(),
                    "nodePort": node_port(way, port)})
            })
            .collect();
        (name.to_owned(), address, backend, ports)
    });
    let others = (1..count.max(1)).map(|number| {
        let (address, backend) = other(number);
        let ports = vec![json!({"name": "p", "port": 80, "targetPort": 8080, "protocol": "TCP"})];
        (format!("s{number}"), address, Some(backend), ports)
    });
    let all = measured.into_iter().chain(others).map(|(name, address, backend, ports)| {
        let behind: Vec<_> = ports
            .iter()
            .map(|port| {
                let to = port.get("targetPort").or(port.get("port"));
                json!({"name": port["name"], "port": to, "protocol": port["protocol"]})
            })
            .collect();
        let kind = if address == OUTER_SERVICE { "NodePort" } else { "ClusterIP" };
        let service = serde_json::from_value(json!({
            "metadata": {"namespace": "default", "name": name},
            "spec": {"type": kind, "clusterIP": address, "clusterIPs": [address], "ports": ports},
        }))?;
        let slice = serde_json::from_value(json!({
            "metadata": {"namespace": "default", "name": name, "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4",
            "ports": behind,
            "endpoints": [{"addresses": [backend], "conditions": {"ready": true}}],
        }))?;
        Ok((service, slice))
    });
    all.collect()
}

/// The same as what an API tells.
fn objects(all: Vec<(Service, EndpointSlice)>) -> Vec<Change> {
    let (services, slices): (Vec<_>, Vec<_>) = all.into_iter().unzip();
    let mut changes = vec![Change::Service(Event::Init)];
    changes.extend(services.into_iter().map(|service| Change::Service(Event::InitApply(service))));
    changes.extend([Change::Service(Event::InitDone), Change::Slice(Event::Init)]);
    changes.extend(slices.into_iter().map(|slice| Change::Slice(Event::InitApply(slice))));
    changes.push(Change::Slice(Event::InitDone));
    changes.extend(Change::of_a_bare_node());
    changes
}
