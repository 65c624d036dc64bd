//! How long it takes until the kernel's maps say what the API says: for all services at once, and for one endpoint of
//! one service. The watch and the API server are not in it; what they add is measured by `cargo xtask bench api`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kelp_agent::dataplane::cleanup;
use kelp_agent::dataplane::kernel::{Kernel, ensure_bpffs};
use kelp_agent::dataplane::maps::{Datapath, KernelDatapath};
use kelp_agent::dataplane::reconciler::{Change, Reconciler};
use kelp_common::maps;
use kube::runtime::watcher::Event;
use serde_json::{Value, json};

/// Measures how fast the maps follow.
#[derive(Debug, Parser)]
struct Options {
    /// Numbers of services
    #[arg(long, value_delimiter = ',', default_value = "100,1000,10000")]
    services: Vec<u32>,
    /// Endpoints of each service
    #[arg(long, default_value_t = 50)]
    endpoints: u32,
    /// Changes of one endpoint
    #[arg(long, default_value_t = 500)]
    changes: u32,
}

fn object<T: serde::de::DeserializeOwned>(value: Value) -> Result<T> {
    Ok(serde_json::from_value(value)?)
}

fn service(number: u32) -> Result<Service> {
    let address = std::net::Ipv4Addr::from(0x0a60_0100 + number).to_string();
    object(json!({"metadata": {"namespace": "bench", "name": format!("s{number}")},
        "spec": {"clusterIP": address, "clusterIPs": [address], "ports": [{"name": "http", "port": 80}]}}))
}

/// The endpoints of a service; `without` is not ready.
fn slice(number: u32, endpoints: u32, without: Option<u32>) -> Result<EndpointSlice> {
    let endpoints: Vec<Value> = (0..endpoints)
        .map(|place| {
            let address = std::net::Ipv4Addr::from(0x0ac8_0000 + number * endpoints + place);
            json!({"addresses": [address.to_string()], "nodeName": "there",
                "conditions": {"ready": without != Some(place)}})
        })
        .collect();
    object(json!({"metadata": {"namespace": "bench", "name": format!("s{number}-1"),
        "labels": {"kubernetes.io/service-name": format!("s{number}")}}, "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints}))
}

fn feed<D: Datapath>(reconciler: &mut Reconciler<D>, services: u32, endpoints: u32) -> Result<()> {
    reconciler.observe(Change::Service(Event::Init));
    for number in 0..services {
        reconciler.observe(Change::Service(Event::InitApply(service(number)?)));
    }
    reconciler.observe(Change::Service(Event::InitDone));
    reconciler.observe(Change::Slice(Event::Init));
    for number in 0..services {
        reconciler.observe(Change::Slice(Event::InitApply(slice(number, endpoints, None)?)));
    }
    reconciler.observe(Change::Slice(Event::InitDone));
    for change in Change::of_a_bare_node() {
        reconciler.observe(change);
    }
    Ok(())
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}

fn percentile(times: &mut [f64], part: f64) -> f64 {
    times.sort_by(f64::total_cmp);
    let at = ((times.len() as f64 * part) as usize).min(times.len().saturating_sub(1));
    times.get(at).copied().unwrap_or(f64::NAN)
}

/// Resident memory, MiB.
fn memory() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    let kibibytes: f64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kibibytes / 1024.0)
}

/// Pins of a run, removed at the end.
struct Pins(PathBuf);

impl Drop for Pins {
    fn drop(&mut self) {
        if let Err(error) = cleanup(&self.0) {
            eprintln!("{}: {error}", self.0.display());
        }
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    ensure!(options.endpoints > 0 && options.changes > 0, "--endpoints and --changes must not be 0");
    println!("services × endpoints | first sync | sync again | one endpoint p50 / p99 | memory");
    let mut results = Vec::new();
    for services in &options.services {
        results.push(measure(&options, *services)?);
    }
    println!("{}", json!({"benchmark": "programming", "results": results}));
    Ok(())
}

fn measure(options: &Options, services: u32) -> Result<Value> {
    let directory = PathBuf::from(format!("/sys/fs/bpf/kelp-bench-{}", std::process::id()));
    ensure_bpffs(&directory)?;
    let _pins = Pins(directory.clone());
    let room = (services * options.endpoints * 2).max(1024);
    let sizes = [(maps::FRONTENDS, services * 2), (maps::SLOTS, room), (maps::BACKENDS, room)];
    let kernel = Kernel::load_with(&directory, &sizes.into(), false)?;
    let before = memory()?;
    let mut reconciler = Reconciler::new("here", KernelDatapath::open(&kernel)?);
    feed(&mut reconciler, services, options.endpoints)?;
    let started = Instant::now();
    let first = reconciler.reconcile()?;
    let whole = milliseconds(started.elapsed());
    ensure!(first.skipped == 0, "{} operations were left out", first.skipped);
    // What an agent does that comes back: the maps are read and compared.
    reconciler.distrust();
    let started = Instant::now();
    ensure!(reconciler.reconcile()?.operations == 0, "the maps do not hold what was written");
    let again = milliseconds(started.elapsed());
    let mut times = Vec::new();
    for change in 0..options.changes {
        let number = change.wrapping_mul(7_919) % services;
        let without = (change % 2 == 0).then_some(change % options.endpoints);
        let event = Change::Slice(Event::Apply(slice(number, options.endpoints, without)?));
        let started = Instant::now();
        reconciler.observe(event);
        let outcome = reconciler.reconcile()?;
        times.push(milliseconds(started.elapsed()));
        ensure!(outcome.skipped == 0, "{} operations were left out", outcome.skipped);
    }
    let (p50, p99, memory) = (percentile(&mut times, 0.5), percentile(&mut times, 0.99), memory()? - before);
    println!(
        "{services:>8} × {:<9} | {whole:>7.0} ms | {again:>7.0} ms | {p50:>9.3} / {p99:.3} ms | {memory:.0} MiB",
        options.endpoints
    );
    Ok(json!({"services": services, "endpoints": options.endpoints, "operations": first.operations,
        "firstSyncMs": whole, "syncAgainMs": again, "changeP50Ms": p50, "changeP99Ms": p99, "memoryMiB": memory}))
}
