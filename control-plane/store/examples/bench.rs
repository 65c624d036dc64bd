//! Durable writes a second, with one client and with many:
//! `cargo run --release -p kelp-store --example bench -- [DIR [SECONDS [CLIENTS,CLIENTS…]]]`.
//!
//! DIR (default: `target` here) should be on the disk that the store will use, not in memory.
//! Prints one JSON object. Every client puts keys of its own, one after the other, and counts a put when it is
//! acknowledged, that is, after the fsync.

use anyhow::{Context, Result};
use kelp_store::{
    EmbeddedStore, Op, RangeRequest, Store, StoreOptions, TxnRequest, WatchMessage, WatchRequest,
};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Bytes of a value: about a small pod.
const VALUE: usize = 1024;
const KEYS_PER_CLIENT: u64 = 64;

struct Settings {
    dir: PathBuf,
    seconds: f64,
    clients: Vec<usize>,
}

fn settings() -> Result<Settings> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().unwrap_or_else(|| "target".to_owned());
    let seconds =
        args.next().map_or(Ok(3.0), |seconds| seconds.parse()).context("SECONDS must be a number")?;
    let clients = args.next().unwrap_or_else(|| "1,256".to_owned());
    let clients =
        clients.split(',').map(str::parse).collect::<Result<_, _>>().context("CLIENTS must be numbers")?;
    Ok(Settings {
        dir: PathBuf::from(dir).join(format!("store-bench-{}", std::process::id())),
        seconds,
        clients,
    })
}

#[tokio::main]
async fn main() -> Result<()> {
    let settings = settings()?;
    let outcome = run(&settings).await;
    std::fs::remove_dir_all(&settings.dir).context("remove the benchmark's directory")?;
    println!("{}", outcome?);
    Ok(())
}

async fn run(settings: &Settings) -> Result<Value> {
    let store = EmbeddedStore::open(&settings.dir, StoreOptions::default())?;
    let empty_rss = resident_kib();
    let mut rows = Vec::new();
    for clients in &settings.clients {
        rows.push(writes(&store, *clients, Duration::from_secs_f64(settings.seconds)).await?);
    }
    let reads = reads(&store, Duration::from_secs_f64(settings.seconds / 2.0)).await?;
    let before = store.disk_bytes();
    store.compact(store.revision()).await?;
    store.close().await;
    let opened = Instant::now();
    let store = EmbeddedStore::open(&settings.dir, StoreOptions::default())?;
    let open_ms = opened.elapsed().as_secs_f64() * 1e3;
    let raw = raw_fsyncs(&settings.dir, Duration::from_secs_f64(settings.seconds / 2.0))?;
    store.close().await;
    Ok(json!({
        "value_bytes": VALUE,
        "writes": rows,
        "range_of_one_key_per_second": reads.round(),
        "raw_append_and_fdatasync_per_second": raw.round(),
        "disk_bytes_before_compaction": before,
        "open_ms": open_ms.round(),
        "rss_kib_empty": empty_rss,
        "rss_kib_at_the_end": resident_kib(),
    }))
}

/// Lets clients write for a while and checks by a watch that what they were promised is there, in order.
async fn writes(store: &EmbeddedStore, clients: usize, time: Duration) -> Result<Value> {
    let first = store.revision() + 1;
    let start = Instant::now();
    let running = (0..clients).map(|client| {
        let store = store.clone();
        tokio::spawn(async move {
            let value = vec![b'v'; VALUE];
            let mut latencies = Vec::new();
            while start.elapsed() < time {
                let key = format!("/bench/{client}/{}", latencies.len() as u64 % KEYS_PER_CLIENT);
                let put = TxnRequest { then: vec![Op::put(key, value.clone())], ..TxnRequest::default() };
                let sent = Instant::now();
                store.txn(put).await?;
                latencies.push(sent.elapsed());
            }
            anyhow::Ok(latencies)
        })
    });
    let mut latencies = Vec::new();
    for client in running.collect::<Vec<_>>() {
        latencies.extend(client.await??);
    }
    let elapsed = start.elapsed().as_secs_f64();
    latencies.sort_unstable();
    check(store, first, latencies.len()).await?;
    let percentile = |share: f64| {
        let at = ((latencies.len() as f64 * share) as usize).min(latencies.len().saturating_sub(1));
        latencies.get(at).map_or(0, |latency| latency.as_micros() as u64)
    };
    Ok(json!({
        "clients": clients,
        "per_second": (latencies.len() as f64 / elapsed).round(),
        "p50_us": percentile(0.5),
        "p99_us": percentile(0.99),
    }))
}

async fn check(store: &EmbeddedStore, first: i64, expected: usize) -> Result<()> {
    let all = RangeRequest::prefix("/bench/");
    let request = WatchRequest { key: all.key, end: all.end, start_revision: first, prev_kv: false };
    let mut watcher = store.watch(request).await?;
    watcher.request_progress();
    let mut seen = 0;
    while let WatchMessage::Events { events, .. } =
        watcher.messages.recv().await.context("the watch ended early")??
    {
        for event in events {
            anyhow::ensure!(event.kv.mod_revision == first + seen, "revision {} is missing", first + seen);
            seen += 1;
        }
    }
    anyhow::ensure!(seen as usize == expected, "{expected} writes were acknowledged, {seen} are there");
    Ok(())
}

async fn reads(store: &EmbeddedStore, time: Duration) -> Result<f64> {
    let start = Instant::now();
    let mut count = 0u64;
    while start.elapsed() < time {
        let key = format!("/bench/0/{}", count % KEYS_PER_CLIENT);
        anyhow::ensure!(
            store.range(RangeRequest::key(key)).await?.kvs.len() == 1,
            "a written key is missing"
        );
        count += 1;
    }
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

/// The disk's own bound: a record's bytes appended to reserved blocks, and an fdatasync for each.
fn raw_fsyncs(dir: &std::path::Path, time: Duration) -> Result<f64> {
    use std::io::Write;
    let path = dir.join("raw");
    std::fs::write(&path, vec![0; 32 << 20])?;
    let mut file = std::fs::OpenOptions::new().write(true).open(&path)?;
    file.sync_all()?;
    let start = Instant::now();
    let mut count = 0u64;
    while start.elapsed() < time && count < 30_000 {
        file.write_all(&[b'v'; VALUE + 64])?;
        file.sync_data()?;
        count += 1;
    }
    let rate = count as f64 / start.elapsed().as_secs_f64();
    std::fs::remove_file(path)?;
    Ok(rate)
}

fn resident_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}
