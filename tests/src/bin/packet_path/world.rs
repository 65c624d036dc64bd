//! Nodes to measure: two pods behind Kelp's dataplane, or behind the host's own stack with rules.

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

use crate::drive::{CLIENT, ECHO, ONCE, PORT_STEP, SERVER, SERVICE, SINK, measure, serve};
use crate::net::{Net, pod};
use crate::report::Metric;
use crate::rules::{self, Port};

/// Ways of one node, by their numbers.
const WAYS: u16 = 3;

/// How the client reaches the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The pod's address.
    Pod = 0,
    /// The service's address, translated in the system call.
    Socket = 1,
    /// The service's address, translated in every packet.
    Packet = 2,
}

/// Which rules the host's stack has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rules {
    /// Of iptables.
    Iptables,
    /// Of nftables.
    Nftables,
}

/// A node with two pods, of which the second serves.
pub struct World {
    /// Dropped first: programs go before the devices that they are attached to.
    kelp: Option<Kelp>,
    client: Net,
    host: Net,
    /// Kept alive: devices go with their namespace.
    _server: Net,
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

impl World {
    /// A node with Kelp's dataplane and this many services.
    pub fn kelp(services: usize) -> Result<Self> {
        let tag = format!("kelp-bench-{}", std::process::id());
        let cgroup = cgroup2_mount()?.join(&tag);
        let bpf_directory = Path::new("/sys/fs/bpf").join(&tag);
        fs::create_dir(&cgroup).context("make a cgroup")?;
        fs::write(cgroup.join("cgroup.type"), "threaded").context("make a threaded cgroup")?;
        let (host, client, server) = (Net::new()?, Net::new()?, Net::new()?);
        let endpoints = [pod(&host, &client, "pod1", CLIENT)?, pod(&host, &server, "pod2", SERVER)?];
        serve_all(&server)?;
        let config = Config {
            node_name: "here".to_owned(),
            pod_cidrs: vec![(IpAddr::from([10, 244, 0, 0]), 24)],
            cgroup: cgroup.clone(),
            bpf_directory: bpf_directory.clone(),
            ..Config::default()
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        // The stream never ends, as that of an API does not.
        let changes =
            futures::StreamExt::chain(futures::stream::iter(objects(services)?), futures::stream::pending());
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
        let kelp = Some(Kelp { cgroup, bpf_directory, _agent: (runtime, dataplane) });
        Ok(Self { kelp, client, host, _server: server })
    }

    /// A node whose stack forwards; nothing translates yet.
    pub fn plain() -> Result<Self> {
        let (host, client, server) = (Net::new()?, Net::new()?, Net::new()?);
        pod(&host, &client, "pod1", CLIENT)?;
        pod(&host, &server, "pod2", SERVER)?;
        host.run(|| Ok(fs::write("/proc/sys/net/ipv4/ip_forward", "1")?))?;
        serve_all(&server)?;
        Ok(Self { kelp: None, client, host, _server: server })
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
        self.client.run(|| {
            // Sockets of the packet path are those outside the cgroup; a pod's own are inside.
            if let Some(kelp) = self.kelp.as_ref().filter(|_| way != Way::Packet) {
                // SAFETY: no preconditions.
                let thread = unsafe { libc::syscall(libc::SYS_gettid) };
                fs::write(kelp.cgroup.join("cgroup.threads"), thread.to_string())?;
            }
            ensure!(self.kelp.is_some() || way != Way::Socket, "sockets are translated by Kelp only");
            let address = if way == Way::Pod { SERVER } else { SERVICE };
            measure(address, way as u16 * PORT_STEP, length)
        })
    }
}

fn serve_all(server: &Net) -> Result<()> {
    (0..WAYS).try_for_each(|way| serve(server, way * PORT_STEP))
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

/// Ports of the measured service.
fn measured_ports() -> impl Iterator<Item = (u16, &'static str)> {
    let kinds = [(ECHO, "tcp"), (ONCE, "tcp"), (SINK, "tcp"), (ECHO, "udp")];
    (0..WAYS).flat_map(move |way| kinds.map(|(port, protocol)| (port + way * PORT_STEP, protocol)))
}

/// Address and endpoint of another service, from number 1; nobody has the endpoint.
fn other(number: usize) -> (Ipv4Addr, Ipv4Addr) {
    let number = u32::try_from(number).unwrap_or(u32::MAX);
    (Ipv4Addr::from(u32::from(SERVICE) + number), Ipv4Addr::from(0x0af4_1000 + number))
}

/// Ports of all services, the measured one amid the others: rules are walked in their order.
pub fn ports(services: usize) -> Vec<Port> {
    let mut all: Vec<Port> = (1..services.max(1))
        .map(|number| {
            let (address, backend) = other(number);
            Port { address, port: 80, protocol: "tcp", backend: (backend, 8080) }
        })
        .collect();
    let own = measured_ports().map(|(port, protocol)| Port {
        address: SERVICE,
        port,
        protocol,
        backend: (SERVER, port),
    });
    let middle = all.len() / 2;
    all.splice(middle..middle, own);
    all
}

/// The Service and the EndpointSlice of each.
pub fn services(count: usize) -> Result<Vec<(Service, EndpointSlice)>> {
    let mut all = Vec::new();
    for number in 0..count.max(1) {
        let name = format!("s{number}");
        let (address, backend, ports): (_, _, Vec<_>) = if number == 0 {
            let own = measured_ports().map(|(port, protocol)| {
                json!({"name": format!("{port}-{protocol}"), "port": port, "protocol": protocol.to_uppercase()})
            });
            (SERVICE, SERVER, own.collect())
        } else {
            let (address, backend) = other(number);
            (address, backend, vec![json!({"name": "p", "port": 80, "targetPort": 8080, "protocol": "TCP"})])
        };
        let behind: Vec<_> = ports
            .iter()
            .map(|port| {
                let to = port.get("targetPort").or(port.get("port"));
                json!({"name": port["name"], "port": to, "protocol": port["protocol"]})
            })
            .collect();
        let service = serde_json::from_value(json!({
            "metadata": {"namespace": "default", "name": name},
            "spec": {"clusterIP": address, "clusterIPs": [address], "ports": ports},
        }))?;
        let slice = serde_json::from_value(json!({
            "metadata": {"namespace": "default", "name": name, "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4",
            "ports": behind,
            "endpoints": [{"addresses": [backend], "conditions": {"ready": true}}],
        }))?;
        all.push((service, slice));
    }
    Ok(all)
}

/// The same as what an API tells.
fn objects(count: usize) -> Result<Vec<Change>> {
    let (services, slices): (Vec<_>, Vec<_>) = services(count)?.into_iter().unzip();
    let mut changes = vec![Change::Service(Event::Init)];
    changes.extend(services.into_iter().map(|service| Change::Service(Event::InitApply(service))));
    changes.extend([Change::Service(Event::InitDone), Change::Slice(Event::Init)]);
    changes.extend(slices.into_iter().map(|slice| Change::Slice(Event::InitApply(slice))));
    changes.push(Change::Slice(Event::InitDone));
    changes.extend(Change::of_a_bare_node());
    Ok(changes)
}
