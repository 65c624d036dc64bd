//! A long run under load: connections at a steady rate to a Service, from a node (through its sockets) and from outside
//! the cluster (a NodePort, packet by packet), while its pods are replaced again and again and agents are killed and
//! restarted. No request may fail.
//!
//! Everything happens in a sandbox of network namespaces without an uplink.

#![expect(
    clippy::disallowed_methods,
    reason = "disturbances are due at times, and nothing tells of a time but a clock"
)]

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use kelp_tests::{Cluster, Report};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::Path;
use std::time::{Duration, Instant};

/// Runs load against a cluster that is disturbed.
#[derive(Debug, Parser)]
struct Options {
    /// How long, at most an hour
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(10..=3600))]
    seconds: u64,
    /// Connections a second, both ways together
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(2..=20_000))]
    rate: u32,
    /// Hosts; agents on all of them are killed in turn
    #[arg(long, default_value_t = 2)]
    nodes: u32,
    /// Pods behind the Service
    #[arg(long, default_value_t = 4)]
    replicas: u32,
    /// Seconds between two rolling updates
    #[arg(long, default_value_t = 20)]
    rollout_every: u64,
    /// Seconds between two ends of an agent: SIGKILL twice, then SIGTERM
    #[arg(long, default_value_t = 15)]
    kill_every: u64,
}

/// What was done to the cluster.
#[derive(Debug, Default)]
struct Disturbed {
    rollouts: u32,
    kills: u32,
    restarts: u32,
}

fn main() -> Result<()> {
    let options = Options::parse();
    // Beside this program.
    let own = std::env::current_exe().context("find this program")?;
    let client = own.parent().unwrap_or(Path::new(".")).join("client");
    ensure!(client.exists(), "{} is not built: cargo xtask bench soak builds it", client.display());
    let cluster = Cluster::up("soak", options.nodes, client.to_str().context("path")?)?;
    let manifest =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/samples/hello.yaml"))?;
    cluster.apply(&manifest.replace("replicas: 3", &format!("replicas: {}", options.replicas)))?;
    // A pod that leaves goes on answering until every node has heard of it, which an agent or a control plane that starts
    // anew does late. (A preStop hook that sleeps does the same for other programs.)
    cluster.kubectl(&["set", "env", "deployment/hello", "DRAIN_SECONDS=20"])?;
    cluster.kubectl(&["rollout", "status", "deployment/hello", "--timeout=120s"])?;
    let cluster_ip = format!("{}:80", cluster.field("service/hello", "{.spec.clusterIP}")?);
    let node_port = format!("{}:30080", cluster.node(options.nodes).ipv4());
    // Endpoints follow readiness.
    for address in [&cluster_ip, &node_port] {
        let distinct = options.replicas.to_string();
        cluster.client(1, &["get", address, "--seconds", "30", "--distinct", &distinct])?.finish()?;
    }

    let (seconds, half) = (options.seconds.to_string(), (options.rate / 2).to_string());
    let load =
        |address: &str| ["load", address, "--rate", &half, "--seconds", &seconds].map(str::to_owned).to_vec();
    let (inside, outside) = (load(&cluster_ip), load(&node_port));
    println!("from host 1: {}\nfrom outside: {}", inside.join(" "), outside.join(" "));
    let inside = cluster.client(1, &borrowed(&inside))?;
    let outside = cluster.client_outside(&borrowed(&outside))?;
    let result = disturb(&cluster, &options);
    let reports = [("ClusterIP from a node", inside), ("NodePort from outside", outside)]
        .map(|(way, client)| (way, client.finish()));
    let disturbed = result?;
    println!(
        "{} rolling updates, {} SIGKILLs and {} restarts of agents in {} s",
        disturbed.rollouts, disturbed.kills, disturbed.restarts, options.seconds
    );
    let mut failed = 0;
    for (way, report) in reports {
        let report = report.with_context(|| format!("load at the {way}"))?;
        show(way, &report);
        ensure!(!report.answers.is_empty(), "{way}: no request was made");
        failed += report.failed;
    }
    if failed > 0 {
        bail!("{failed} requests failed\n{}", cluster.log_tail(1));
    }
    Ok(())
}

fn borrowed(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

fn show(way: &str, report: &Report) {
    let answered: usize = report.answers.values().sum();
    let seconds = report.milliseconds as f64 / 1000.0;
    println!(
        "{way}: {answered} answered by {} pods, {} failed, {:.0} a second, µs {:?}, {} longer than 900 ms",
        report.answers.len(),
        report.failed,
        answered as f64 / seconds,
        report.latency_us,
        report.slow
    );
    for failure in &report.failures {
        println!("  {failure}");
    }
}

/// Replaces pods and ends agents until the time is over.
fn disturb(cluster: &Cluster, options: &Options) -> Result<Disturbed> {
    let started = Instant::now();
    let end = started + Duration::from_secs(options.seconds);
    let every = |seconds: u64| Duration::from_secs(seconds.max(1));
    let mut rollout = started + every(options.rollout_every);
    let mut ending = started + every(options.kill_every);
    let mut done = Disturbed::default();
    loop {
        let next = rollout.min(ending);
        if next >= end {
            std::thread::sleep(end.saturating_duration_since(Instant::now()));
            return Ok(done);
        }
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        if next == rollout {
            // It goes on by itself, also while agents are killed.
            cluster.kubectl(&["rollout", "restart", "deployment/hello", "--request-timeout=60s"])?;
            done.rollouts += 1;
            rollout += every(options.rollout_every);
        } else {
            let turn = done.kills + done.restarts;
            let node = 1 + turn % options.nodes;
            let signal = if turn % 3 == 2 { Signal::SIGTERM } else { Signal::SIGKILL };
            let pid = cluster.kelp_pid(node)?;
            kill(Pid::from_raw(pid), signal).with_context(|| format!("{signal} to kelp on host {node}"))?;
            if signal == Signal::SIGKILL {
                done.kills += 1;
            } else {
                done.restarts += 1;
            }
            ending += every(options.kill_every);
        }
        let passed = started.elapsed().as_secs();
        println!(
            "  {passed} s: {} rolling updates, {} SIGKILLs, {} restarts",
            done.rollouts, done.kills, done.restarts
        );
    }
}
