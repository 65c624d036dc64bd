//! What a service address costs: requests, connections and throughput from a pod to another on the same node, by the
//! pod's address, through a ClusterIP translated in the socket, and through one translated packet by packet.
//!
//! Everything happens in network namespaces without an uplink, with the agent's own dataplane. The ways are measured in
//! turn in every round, so that a slow moment of the machine hits all of them; the table shows medians.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kelp_agent::dataplane::events::Events;
use kelp_agent::dataplane::reconciler::Change;
use kelp_agent::dataplane::{Config, Dataplane, Endpoint, PodDatapath, cleanup, start_with};
use kube::runtime::watcher::Event;
use nix::sched::{CloneFlags, setns, unshare};
use serde::Serialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 2);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 3);
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 2);
const ECHO: u16 = 9001;
const ONCE: u16 = 9002;
const SINK: u16 = 9003;
/// Every way has ports of its own: a connection that the server still remembers from another way, where the client's
/// kernel counts sequence numbers and timestamps differently, would make it answer a new one late.
const PORT_STEP: u16 = 10;

/// Measures the packet path in network namespaces.
#[derive(Debug, Parser)]
struct Options {
    /// Rounds; the medians are shown
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Length of each measurement, milliseconds
    #[arg(long, default_value_t = 200)]
    milliseconds: u64,
    /// Numbers of services in the maps
    #[arg(long, value_delimiter = ',', default_value = "1,10000")]
    services: Vec<usize>,
}

/// How the client reaches the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
enum Way {
    /// The pod's address.
    Pod,
    /// The service's address, translated in the system call.
    Socket,
    /// The service's address, translated in every packet.
    Packet,
}

/// What is measured; all but latencies are "more is better".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
enum Metric {
    TcpRequests,
    UdpRequests,
    Connections,
    ConnectP50,
    ConnectP99,
    Throughput,
}

impl Metric {
    const ALL: [Self; 6] = [
        Self::TcpRequests,
        Self::UdpRequests,
        Self::Connections,
        Self::ConnectP50,
        Self::ConnectP99,
        Self::Throughput,
    ];

    fn title(self) -> &'static str {
        match self {
            Self::TcpRequests => "TCP_RR, requests/s",
            Self::UdpRequests => "UDP_RR, requests/s",
            Self::Connections => "TCP_CRR, connections/s",
            Self::ConnectP50 => "connect p50, µs",
            Self::ConnectP99 => "connect p99, µs",
            Self::Throughput => "TCP_STREAM, MiB/s",
        }
    }
}

type Samples = BTreeMap<(Metric, Way), Vec<f64>>;

fn main() -> Result<()> {
    let options = Options::parse();
    ensure!(options.rounds > 0 && !options.services.is_empty(), "--rounds and --services must not be empty");
    let mut results = Vec::new();
    for services in &options.services {
        let samples = measure(&options, *services)?;
        print_table(*services, &samples);
        results.extend(samples.into_iter().map(|((metric, way), values)| {
            json!({"services": services, "metric": metric, "way": way, "median": median(&values), "values": values})
        }));
    }
    println!("{}", json!({"benchmark": "packet-path", "results": results}));
    Ok(())
}

fn measure(options: &Options, services: usize) -> Result<Samples> {
    let bench = Bench::new(services)?;
    let length = Duration::from_millis(options.milliseconds);
    let mut samples = Samples::new();
    for round in 0..=options.rounds {
        for way in [Way::Pod, Way::Socket, Way::Packet] {
            let values = bench.run(way, length).with_context(|| format!("measure {way:?}"))?;
            // The first round warms caches and neighbours.
            if round > 0 {
                for (metric, value) in values {
                    samples.entry((metric, way)).or_default().push(value);
                }
            }
        }
    }
    Ok(samples)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn print_table(services: usize, samples: &Samples) {
    let rounds = samples.values().next().map_or(0, Vec::len);
    println!(
        "\npod → pod on one node, {services} services in the maps, medians of {rounds} rounds (lowest–highest)\n"
    );
    println!("| | pod address | ClusterIP, socket path | ratio | ClusterIP, packet path | ratio |");
    println!("|---|---|---|---|---|---|");
    for metric in Metric::ALL {
        let of = |way| samples.get(&(metric, way)).map_or(&[][..], Vec::as_slice);
        let cell = |way| {
            let values = of(way);
            let low = values.iter().copied().fold(f64::INFINITY, f64::min);
            let high = values.iter().copied().fold(0.0, f64::max);
            format!("{:.1} ({low:.1}–{high:.1})", median(values))
        };
        let ratio = |way| format!("{:.3}", median(of(way)) / median(of(Way::Pod)));
        println!(
            "| {} | {} | {} | {} | {} | {} |",
            metric.title(),
            cell(Way::Pod),
            cell(Way::Socket),
            ratio(Way::Socket),
            cell(Way::Packet),
            ratio(Way::Packet)
        );
    }
}

/// A network namespace without a name.
#[derive(Clone)]
struct Net(Arc<OwnedFd>);

impl Net {
    fn new() -> Result<Self> {
        let fd = std::thread::spawn(|| -> Result<OwnedFd> {
            unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
            Ok(fs::File::open("/proc/thread-self/ns/net")?.into())
        })
        .join()
        .expect("the thread does not panic")?;
        let net = Self(Arc::new(fd));
        net.ip("link set lo up")?;
        Ok(net)
    }

    /// Runs a closure on a thread in the namespace.
    fn run<T: Send>(&self, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET).context("enter a network namespace")?;
                    f()
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn ip(&self, arguments: &str) -> Result<()> {
        self.run(|| {
            let output = Command::new("ip").args(arguments.split_whitespace()).output().context("run ip")?;
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(output.status.success(), "ip {arguments}: {stderr}");
            Ok(())
        })
    }

    fn mac(&self, device: &str) -> Result<[u8; 6]> {
        self.run(|| {
            let output = Command::new("ip").args(["-j", "link", "show", "dev", device]).output()?;
            let value: serde_json::Value = serde_json::from_slice(&output.stdout)?;
            let text = value.pointer("/0/address").and_then(|text| text.as_str()).context("find a MAC")?;
            let bytes =
                text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<Vec<_>, _>>()?;
            bytes.try_into().ok().context("read a MAC")
        })
    }
}

/// A node with two pods and a running dataplane; the second pod serves.
struct Bench {
    client: Net,
    /// Kept alive: devices go with their namespace.
    _others: [Net; 2],
    cgroup: PathBuf,
    bpf_directory: PathBuf,
    _agent: (tokio::runtime::Runtime, Arc<Dataplane>),
}

impl Drop for Bench {
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

impl Bench {
    fn new(services: usize) -> Result<Self> {
        let tag = format!("kelp-bench-{}", std::process::id());
        let cgroup = cgroup2_mount()?.join(&tag);
        let bpf_directory = Path::new("/sys/fs/bpf").join(&tag);
        fs::create_dir(&cgroup).context("make a cgroup")?;
        fs::write(cgroup.join("cgroup.type"), "threaded").context("make a threaded cgroup")?;
        let host = Net::new()?;
        let client = Net::new()?;
        let server = Net::new()?;
        let endpoints = [pod(&host, &client, "pod1", CLIENT)?, pod(&host, &server, "pod2", SERVER)?];
        for way in 0..3 {
            serve(&server, way * PORT_STEP)?;
        }

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
        Ok(Self { client, _others: [host, server], cgroup, bpf_directory, _agent: (runtime, dataplane) })
    }

    /// One measurement of everything.
    fn run(&self, way: Way, length: Duration) -> Result<Vec<(Metric, f64)>> {
        self.client.run(|| {
            // Sockets of the packet path are those outside the cgroup; a pod's own are inside.
            if way != Way::Packet {
                // SAFETY: no preconditions.
                let thread = unsafe { libc::syscall(libc::SYS_gettid) };
                fs::write(self.cgroup.join("cgroup.threads"), thread.to_string())?;
            }
            let address = if way == Way::Pod { SERVER } else { SERVICE };
            let at = |port| SocketAddr::new(address.into(), port + way as u16 * PORT_STEP);
            let (rate, mut latencies) = connections(at(ONCE), length)?;
            latencies.sort_by(f64::total_cmp);
            let quantile = |part: f64| {
                let index = (latencies.len() as f64 * part) as usize;
                latencies.get(index.min(latencies.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
            };
            Ok(vec![
                (Metric::TcpRequests, tcp_requests(at(ECHO), length)?),
                (Metric::UdpRequests, udp_requests(at(ECHO), length)?),
                (Metric::Connections, rate),
                (Metric::ConnectP50, quantile(0.5)),
                (Metric::ConnectP99, quantile(0.99)),
                (Metric::Throughput, throughput(at(SINK), length)?),
            ])
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

/// Joins a pod to the host as the agent does.
fn pod(host: &Net, net: &Net, device: &str, address: Ipv4Addr) -> Result<Endpoint> {
    let path = format!("/proc/{}/fd/{}", std::process::id(), net.0.as_raw_fd());
    host.ip(&format!("link add {device} type veth peer name eth0 netns {path}"))?;
    host.ip(&format!("link set {device} up"))?;
    net.ip("link set eth0 up")?;
    let (host_mac, pod_mac) = (host.mac(device)?, net.mac("eth0")?);
    let text = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
    net.ip(&format!("address add {address}/32 dev eth0"))?;
    net.ip("route add 169.254.1.1 dev eth0 scope link")?;
    net.ip("route add default via 169.254.1.1 dev eth0")?;
    net.ip(&format!("neigh replace 169.254.1.1 lladdr {} dev eth0 nud permanent", text(host_mac)))?;
    host.ip(&format!("route add {address}/32 dev {device}"))?;
    host.ip(&format!("neigh replace {address} lladdr {} dev {device} nud permanent", text(pod_mac)))?;
    let host_ifindex = host.run(|| Ok(nix::net::if_::if_nametoindex(device)?))?;
    let netns_cookie = net.run(|| Ok(kelp_agent::dataplane::sys::netns_cookie()?))?;
    Ok(Endpoint { host_ifindex, host_mac, pod_mac, addresses: vec![address.into()], netns_cookie, pod: None })
}

/// The measured service and others that only fill the maps.
fn objects(services: usize) -> Result<Vec<Change>> {
    let mut changes = vec![Change::Service(Event::Init)];
    let mut slices = Vec::new();
    let ports = || -> Vec<_> {
        let kinds = [(ECHO, "TCP"), (ONCE, "TCP"), (SINK, "TCP"), (ECHO, "UDP")];
        (0..3)
            .flat_map(|way| kinds.map(|(port, protocol)| (port + way * PORT_STEP, protocol)))
            .map(|(port, protocol)| {
                json!({"name": format!("{port}-{protocol}").to_lowercase(), "port": port, "protocol": protocol})
            })
            .collect()
    };
    for number in 0..services.max(1) {
        let name = format!("s{number}");
        let address = Ipv4Addr::from(u32::from(SERVICE) + number as u32);
        let service: Service = serde_json::from_value(json!({
            "metadata": {"namespace": "default", "name": name},
            "spec": {"clusterIPs": [address], "ports": ports()},
        }))?;
        // Others lead to addresses nobody has.
        let backend = if number == 0 { SERVER } else { Ipv4Addr::from(0x0af4_1000 + number as u32) };
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": {"namespace": "default", "name": name, "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4",
            "ports": ports(),
            "endpoints": [{"addresses": [backend]}],
        }))?;
        changes.push(Change::Service(Event::InitApply(service)));
        slices.push(Change::Slice(Event::InitApply(slice)));
    }
    changes.push(Change::Service(Event::InitDone));
    changes.push(Change::Slice(Event::Init));
    changes.extend(slices);
    changes.push(Change::Slice(Event::InitDone));
    changes.extend(Change::of_a_bare_node());
    Ok(changes)
}

/// Starts the servers of one way; their threads end with the process.
fn serve(net: &Net, step: u16) -> Result<()> {
    let listen = |port: u16| net.run(|| Ok(TcpListener::bind((SERVER, port + step))?));
    let (echo, once, sink) = (listen(ECHO)?, listen(ONCE)?, listen(SINK)?);
    let datagrams = net.run(|| Ok(UdpSocket::bind((SERVER, ECHO + step))?))?;
    std::thread::spawn(move || {
        for mut stream in echo.incoming().flatten() {
            let _ = stream.set_nodelay(true);
            std::thread::spawn(move || {
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
            });
        }
    });
    std::thread::spawn(move || {
        // The server closes first, so that the client's ports are free again at once.
        for mut stream in once.incoming().flatten() {
            let mut byte = [0];
            if stream.read_exact(&mut byte).is_ok() {
                let _ = stream.write_all(&byte);
            }
        }
    });
    std::thread::spawn(move || {
        for mut stream in sink.incoming().flatten() {
            std::thread::spawn(move || {
                let mut buffer = vec![0; 1 << 18];
                let mut total = 0_u64;
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    total += length as u64;
                }
                let _ = stream.write_all(&total.to_le_bytes());
            });
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((length, peer)) = datagrams.recv_from(&mut buffer) {
            let _ = datagrams.send_to(&buffer[..length], peer);
        }
    });
    Ok(())
}

fn tcp_requests(address: SocketAddr, length: Duration) -> Result<f64> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut byte = [7];
    let started = Instant::now();
    let mut count = 0_u64;
    while started.elapsed() < length {
        for _ in 0..16 {
            stream.write_all(&byte)?;
            stream.read_exact(&mut byte)?;
        }
        count += 16;
    }
    Ok(count as f64 / started.elapsed().as_secs_f64())
}

fn udp_requests(address: SocketAddr, length: Duration) -> Result<f64> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.connect(address)?;
    let mut byte = [7];
    let started = Instant::now();
    let mut count = 0_u64;
    while started.elapsed() < length {
        for _ in 0..16 {
            socket.send(&byte)?;
            socket.recv(&mut byte)?;
        }
        count += 16;
    }
    Ok(count as f64 / started.elapsed().as_secs_f64())
}

/// Connections a second, each with one request, and how long each connect took, µs.
fn connections(address: SocketAddr, length: Duration) -> Result<(f64, Vec<f64>)> {
    let started = Instant::now();
    let mut latencies = Vec::new();
    while started.elapsed() < length {
        let before = Instant::now();
        let mut stream = TcpStream::connect(address)?;
        latencies.push(before.elapsed().as_secs_f64() * 1e6);
        let mut byte = [7];
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        ensure!(stream.read(&mut byte)? == 0, "the server closes");
    }
    Ok((latencies.len() as f64 / started.elapsed().as_secs_f64(), latencies))
}

/// MiB a second that arrived.
fn throughput(address: SocketAddr, length: Duration) -> Result<f64> {
    let mut stream = TcpStream::connect(address)?;
    let buffer = vec![7; 1 << 17];
    let started = Instant::now();
    while started.elapsed() < length {
        stream.write_all(&buffer)?;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut total = [0; 8];
    stream.read_exact(&mut total)?;
    Ok(u64::from_le_bytes(total) as f64 / (1 << 20) as f64 / started.elapsed().as_secs_f64())
}
