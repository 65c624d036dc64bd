//! What a service address costs: requests, connections, first packets and throughput from a pod to another, on the same node
//! and on the next, by the pod's address, through a ClusterIP translated in the socket, and through one translated packet by
//! packet; and from a client outside the cluster, by the pod's address and through a NodePort. Beside it rules of kube-proxy's
//! shape in iptables and nftables, and kube-proxy itself where its path is given. And what passes through a node to a backend
//! of another one, by XDP and by the classifier ([`xdp`]).
//!
//! Everything happens in network namespaces without an uplink, with the agent's own dataplane. The ways are measured in
//! turn in every round, so that a slow moment of the machine hits all of them; tables and plot show medians.

mod drive;
mod kube_proxy;
mod net;
mod plot;
mod report;
mod rules;
mod world;
mod xdp;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;

use kube_proxy::KubeProxy;
use report::Results;
use world::{Rules, Way, World};

/// Most services that rules are made for: loading more takes minutes.
const MOST: usize = 50_000;

/// Measures the packet path in network namespaces.
#[derive(Debug, Parser)]
struct Options {
    /// Rounds; the medians are shown
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Length of each measurement, milliseconds; a round of one way has four
    #[arg(long, default_value_t = 200)]
    milliseconds: u64,
    /// Numbers of services (30000 takes some minutes more)
    #[arg(long, value_delimiter = ',', default_value = "1,100,1000,10000")]
    services: Vec<usize>,
    /// Only Kelp: no rules beside it
    #[arg(long)]
    alone: bool,
    /// Only what XDP wins at the uplink
    #[arg(long, conflicts_with_all = ["alone", "kube_proxy"])]
    xdp: bool,
    /// kube-proxy, measured in its modes iptables and nftables with an API server of ours
    #[arg(long)]
    kube_proxy: Option<PathBuf>,
    /// Where the table, the plot and the values go [default: target/bench]
    #[arg(long)]
    out: Option<PathBuf>,
}

/// What is measured: a way to a server, in one of the worlds.
struct Column {
    title: &'static str,
    world: usize,
    way: Way,
}

/// Ways that begin and end at the same places, the first column without a service.
struct Place {
    title: &'static str,
    stem: &'static str,
    columns: Vec<Column>,
}

/// The columns of a place: by the server's own address; by a service that Kelp translates in the socket, and packet by
/// packet; and by one that rules translate.
fn columns(
    options: &Options,
    plain: (&'static str, Way),
    socket: Option<Way>,
    service: (Titles, Way),
) -> Vec<Column> {
    let column = |title, world, way| Column { title, world, way };
    let (titles, way) = service;
    let mut columns = vec![column(plain.0, 0, plain.1)];
    columns.extend(socket.map(|way| column("ClusterIP, socket path", 0, way)));
    columns.push(column(titles[0], 0, way));
    let mut worlds = 1;
    if !options.alone {
        columns.push(column("pod address, iptables node", 1, plain.1));
        columns.push(column(titles[1], 1, way));
        columns.push(column("pod address, nftables node", 2, plain.1));
        columns.push(column(titles[2], 2, way));
        worlds = 3;
    }
    if options.kube_proxy.is_some() {
        columns.push(column(titles[3], worlds, way));
        columns.push(column(titles[4], worlds + 1, way));
    }
    columns
}

/// Titles of columns of one service: by Kelp, by rules of iptables and nftables, and by kube-proxy with both.
type Titles = [&'static str; 5];

const CLUSTER_IP: Titles = [
    "ClusterIP, packet path",
    "ClusterIP, iptables",
    "ClusterIP, nftables",
    "ClusterIP, kube-proxy iptables",
    "ClusterIP, kube-proxy nftables",
];
const NODE_PORT: Titles = [
    "NodePort",
    "NodePort, iptables",
    "NodePort, nftables",
    "NodePort, kube-proxy iptables",
    "NodePort, kube-proxy nftables",
];

fn places(options: &Options) -> [Place; 3] {
    let pod = |way| ("pod address", way);
    [
        Place {
            title: "pod → pod on one node",
            stem: "packet-path",
            columns: columns(options, pod(Way::Pod), Some(Way::Socket), (CLUSTER_IP, Way::Packet)),
        },
        Place {
            title: "pod → pod on another node",
            stem: "packet-path-across",
            columns: columns(options, pod(Way::FarPod), Some(Way::FarSocket), (CLUSTER_IP, Way::FarPacket)),
        },
        Place {
            title: "client outside the cluster → pod on the node",
            stem: "packet-path-node-port",
            columns: columns(options, pod(Way::OutsidePod), None, (NODE_PORT, Way::NodePort)),
        },
    ]
}

fn main() -> Result<()> {
    let options = Options::parse();
    ensure!(options.rounds > 0 && !options.services.is_empty(), "--rounds and --services must not be empty");
    ensure!(options.services.iter().all(|number| *number <= MOST), "--services: at most {MOST}");
    let out = options.out.clone().unwrap_or_else(|| xtask::build::target_dir().join("bench"));
    let passing = xdp::measure(options.rounds, Duration::from_millis(options.milliseconds))?;
    println!("{}", passing.table());
    for path in passing.write(&out)? {
        println!("{}", path.display());
    }
    if options.xdp {
        return Ok(());
    }
    let mut places = places(&options).map(|place| {
        let titles = place.columns.iter().map(|column| column.title.to_owned()).collect();
        let results = Results::new(place.title, place.stem, titles);
        (place, results)
    });
    for services in &options.services {
        let services = (*services).max(1);
        measure(&options, services, &mut places)?;
        for (_, results) in &places {
            println!("{}", results.table(services));
            // What was measured is kept, also when a later part fails.
            results.write(&out)?;
        }
    }
    for (_, results) in &places {
        for path in results.write(&out)? {
            println!("{}", path.display());
        }
    }
    Ok(())
}

fn measure(options: &Options, services: usize, places: &mut [(Place, Results)]) -> Result<()> {
    let mut worlds = vec![World::kelp(services)?];
    if !options.alone {
        for kind in [Rules::Iptables, Rules::Nftables] {
            let (world, took) =
                World::with_rules(kind, services).with_context(|| format!("load rules of {kind:?}"))?;
            println!("{kind:?}: rules for {services} services loaded in {:.2} s", took.as_secs_f64());
            worlds.push(world);
        }
    }
    // Ended before the worlds: they run there.
    let mut proxies = Vec::new();
    for (program, mode) in
        options.kube_proxy.iter().flat_map(|path| ["iptables", "nftables"].map(|mode| (path, mode)))
    {
        let world = World::plain()?;
        let started = Instant::now();
        proxies.push(KubeProxy::start(program, mode, services, world.host(), world.client())?);
        println!(
            "kube-proxy {mode}: {services} services written and served in {:.2} s",
            started.elapsed().as_secs_f64()
        );
        worlds.push(world);
    }
    let length = Duration::from_millis(options.milliseconds);
    for round in 0..=options.rounds {
        for (place, results) in &mut *places {
            for (number, column) in place.columns.iter().enumerate() {
                let Some(world) = worlds.get(column.world) else { continue };
                let values = world
                    .run(column.way, length)
                    .with_context(|| format!("measure {}: {}", place.title, column.title))?;
                // The first round warms caches and neighbours.
                for (metric, value) in values.into_iter().filter(|_| round > 0) {
                    results.add(services, metric, number, value);
                }
            }
        }
    }
    Ok(())
}
