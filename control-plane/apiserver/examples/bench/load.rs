//! The measurements.

use crate::Settings;
use crate::client::{Connection, parse, request};
use crate::servers::Server;
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::BodyExt;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

const PODS: &str = "/api/v1/namespaces/bench/pods";
const MAPS: &str = "/api/v1/namespaces/bench/configmaps";
const JSON: &str = "application/json";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";
/// Times that a list is read.
const LISTS: usize = 5;
/// Changes that watchers see, and the time between them.
const EVENTS: usize = 40;
const PAUSE: Duration = Duration::from_millis(50);
/// Watches on one connection, when many are idle.
const STREAMS: usize = 200;

/// One number.
pub(crate) struct Measured {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) value: f64,
    pub(crate) more_is_better: bool,
}

fn more(name: impl Into<String>, unit: &'static str, value: f64) -> Measured {
    Measured { name: name.into(), unit, value, more_is_better: true }
}

fn less(name: impl Into<String>, unit: &'static str, value: f64) -> Measured {
    Measured { more_is_better: false, ..more(name, unit, value) }
}

fn pod(number: usize) -> Bytes {
    let name = format!("pod-{number:06}");
    let containers: Vec<_> = (0..2)
        .map(|n| {
            json!({"name": format!("c{n}"), "image": "registry.test/some/image:v1.2.3",
                "ports": [{"containerPort": 8080 + n, "name": format!("p{n}")}],
                "env": [{"name": "A", "value": "value of a"}, {"name": "POD",
                    "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}},
                "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}, "periodSeconds": 5},
                "volumeMounts": [{"name": "config", "mountPath": "/etc/config"}]})
        })
        .collect();
    let object = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "bench", "group": (number % 10).to_string()},
            "annotations": {"bench.test/number": number.to_string()}},
        "spec": {"containers": containers, "volumes": [{"name": "config", "configMap": {"name": "config"}}],
            "terminationGracePeriodSeconds": 5}});
    object.to_string().into()
}

/// Creates pods from `next` on until the time is over or there are `until`; creations a second.
async fn create(
    server: &Server,
    clients: usize,
    next: &Arc<AtomicUsize>,
    time: Duration,
    until: usize,
) -> Result<f64> {
    let mut tasks = JoinSet::new();
    let mut connections = Vec::new();
    for _ in 0..clients {
        connections.push(server.target.open().await?);
    }
    // Handshakes are not counted.
    let (started, end) = (Instant::now(), Instant::now() + time);
    for mut connection in connections {
        let next = next.clone();
        tasks.spawn(async move {
            let mut done = 0usize;
            while Instant::now() < end {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= until {
                    break;
                }
                connection.call("POST", PODS, JSON, pod(number)).await?;
                done += 1;
            }
            anyhow::Ok(done)
        });
    }
    let mut total = 0;
    while let Some(done) = tasks.join_next().await {
        total += done??;
    }
    Ok(total as f64 / started.elapsed().as_secs_f64())
}

fn percentile(times: &mut [f64], part: f64) -> f64 {
    times.sort_by(f64::total_cmp);
    let at = ((times.len() as f64 * part) as usize).min(times.len().saturating_sub(1));
    times.get(at).copied().unwrap_or(f64::NAN)
}

/// Times of reads by name, in milliseconds.
async fn gets(server: &Server, pods: usize, time: Duration) -> Result<Vec<f64>> {
    let mut tasks = JoinSet::new();
    let mut connections = Vec::new();
    for _ in 0..16 {
        connections.push(server.target.open().await?);
    }
    let end = Instant::now() + time;
    for (client, mut connection) in connections.into_iter().enumerate() {
        tasks.spawn(async move {
            let mut times = Vec::new();
            let mut number = client;
            while Instant::now() < end {
                number = (number * 7919 + 13) % pods.max(1);
                let started = Instant::now();
                connection.call("GET", &format!("{PODS}/pod-{number:06}"), JSON, Bytes::new()).await?;
                times.push(started.elapsed().as_secs_f64() * 1000.0);
            }
            anyhow::Ok(times)
        });
    }
    let mut all = Vec::new();
    while let Some(times) = tasks.join_next().await {
        all.extend(times??);
    }
    Ok(all)
}

/// Time of a list in milliseconds, the best of some.
async fn list(connection: &mut Connection, path: &str, accept: &str) -> Result<f64> {
    let mut best = f64::MAX;
    for _ in 0..LISTS {
        let started = Instant::now();
        connection.call("GET", path, accept, Bytes::new()).await?;
        best = best.min(started.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(best)
}

/// What is read of a page: a client that parsed all of it would take longer than the server.
#[derive(serde::Deserialize)]
struct Page {
    metadata: PageMeta,
    items: Vec<serde::de::IgnoredAny>,
}

#[derive(serde::Deserialize)]
struct PageMeta {
    #[serde(default, rename = "continue")]
    next: String,
}

async fn pages(connection: &mut Connection, pods: usize) -> Result<f64> {
    let started = Instant::now();
    let (mut next, mut seen) = (String::new(), 0);
    loop {
        let path = format!("{PODS}?limit=500&continue={next}");
        let page: Page = serde_json::from_slice(&connection.call("GET", &path, JSON, Bytes::new()).await?)?;
        seen += page.items.len();
        next = page.metadata.next;
        if next.is_empty() {
            break;
        }
    }
    ensure!(seen == pods, "{seen} of {pods} pods in the pages");
    Ok(started.elapsed().as_secs_f64() * 1000.0)
}

/// Times from a change to its arrival at each watcher, in milliseconds, and the server's CPU for one delivery in
/// microseconds.
async fn fan_out(server: &Server, watchers: usize) -> Result<(Vec<f64>, f64)> {
    let mut writer = server.target.open().await?;
    let body = json!({"metadata": {"name": "watched"}, "data": {"n": "-"}}).to_string();
    let created = parse(&writer.call("POST", MAPS, JSON, body.into()).await?)?;
    let version = created["metadata"]["resourceVersion"].as_str().context("resourceVersion")?;
    let path = format!("{MAPS}?watch=1&resourceVersion={version}&timeoutSeconds=300");
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..watchers {
        let mut body = server.target.open().await?.watch(&path).await?;
        tasks.spawn(async move {
            // Arrival of each change; events come in the order of the changes.
            let mut arrivals: Vec<Duration> = Vec::new();
            while arrivals.len() < EVENTS
                && let Some(frame) = body.frame().await
            {
                let Ok(data) = frame?.into_data() else { continue };
                let now = start.elapsed();
                let lines = data.iter().filter(|byte| **byte == b'\n').count();
                arrivals.extend(std::iter::repeat_n(now, lines));
            }
            anyhow::Ok(arrivals)
        });
    }
    // Let the last ones begin.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = server.cpu();
    let mut sent = Vec::new();
    for number in 0..EVENTS {
        let body = json!({"data": {"n": number.to_string()}}).to_string();
        sent.push(start.elapsed());
        writer.call("PATCH", &format!("{MAPS}/watched"), JSON, body.into()).await?;
        tokio::time::sleep(PAUSE).await;
    }
    let mut times = Vec::new();
    while let Some(arrivals) = tasks.join_next().await {
        let arrivals = arrivals??;
        ensure!(arrivals.len() == EVENTS, "{} of {EVENTS} events arrived", arrivals.len());
        times.extend(
            arrivals.iter().zip(&sent).map(|(at, sent)| at.saturating_sub(*sent).as_secs_f64() * 1000.0),
        );
    }
    let cpu = (server.cpu() - before) * 1e6 / (EVENTS * watchers.max(1)) as f64;
    writer.call("DELETE", &format!("{MAPS}/watched"), JSON, Bytes::new()).await?;
    Ok((times, cpu))
}

/// Memory that idle watches take in KiB each, and the server's CPU in percent of a core while nothing happens.
async fn idle(server: &Server, watchers: usize) -> Result<(f64, f64)> {
    let before = server.memory();
    let mut held = Vec::new();
    let mut connections = Vec::new();
    for number in 0..watchers {
        if number % STREAMS == 0 {
            connections.push(server.target.open_shared().await?);
        }
        let sender = connections.last_mut().context("a connection")?;
        sender.ready().await?;
        let path = format!("{MAPS}?watch=1&resourceVersion=1&allowWatchBookmarks=true&timeoutSeconds=600");
        let response = sender.send_request(request("GET", &path, JSON, Bytes::new())?).await?;
        ensure!(response.status().is_success(), "{}", response.status());
        held.push(response.into_body());
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let each = (server.memory() - before) * 1024.0 / watchers.max(1) as f64;
    let (cpu, time) = (server.cpu(), Instant::now());
    tokio::time::sleep(Duration::from_secs(10)).await;
    let busy = (server.cpu() - cpu) / time.elapsed().as_secs_f64() * 100.0;
    drop(held);
    Ok((each, busy))
}

/// All measurements of one server, always in the same order.
pub(crate) async fn run(server: &Server, settings: &Settings) -> Result<Vec<Measured>> {
    let mut out = Vec::new();
    let mut one = server.target.open().await?;
    for (path, object) in [
        ("/api/v1/namespaces", json!({"metadata": {"name": "bench"}})),
        ("/api/v1/namespaces/bench/serviceaccounts", json!({"metadata": {"name": "default"}})),
    ] {
        one.call("POST", path, JSON, object.to_string().into()).await?;
    }
    out.push(less("memory, empty", "MiB", server.memory()));
    let next = Arc::new(AtomicUsize::new(0));
    let time = Duration::from_secs_f64(settings.seconds);
    for clients in [1, 16, 64] {
        // A third of the pods at most for each, so that all are measured.
        let until = next.load(Ordering::Relaxed) + settings.pods / 3;
        let rate = create(server, clients, &next, time, until).await?;
        next.store(next.load(Ordering::Relaxed).min(until), Ordering::Relaxed);
        out.push(more(format!("pods created, {clients} clients"), "1/s", rate));
    }
    create(server, 64, &next, Duration::from_secs(600), settings.pods).await?;
    out.push(less(format!("memory, {} pods", settings.pods), "MiB", server.memory()));
    let mut times = gets(server, settings.pods, time).await?;
    out.push(more("gets, 16 clients", "1/s", times.len() as f64 / settings.seconds));
    out.push(less("get p50", "ms", percentile(&mut times, 0.5)));
    out.push(less("get p99", "ms", percentile(&mut times, 0.99)));
    let count =
        parse(&one.call("GET", PODS, JSON, Bytes::new()).await?)?["items"].as_array().map_or(0, Vec::len);
    let name = |how: &str| format!("list of {count} pods, {how}");
    for (how, accept) in [("JSON", JSON), ("protobuf", PROTOBUF), ("Table", TABLE)] {
        out.push(less(name(how), "ms", list(&mut one, PODS, accept).await?));
    }
    out.push(less(name("pages of 500"), "ms", pages(&mut one, count).await?));
    out.push(less(
        name("one of ten by label"),
        "ms",
        list(&mut one, &format!("{PODS}?labelSelector=group%3D3"), JSON).await?,
    ));
    let (mut times, cpu) = fan_out(server, settings.watchers).await?;
    out.push(less(
        format!("fan-out to {} watchers p50", settings.watchers),
        "ms",
        percentile(&mut times, 0.5),
    ));
    out.push(less(
        format!("fan-out to {} watchers p99", settings.watchers),
        "ms",
        percentile(&mut times, 0.99),
    ));
    out.push(less("server CPU for one delivery", "us", cpu));
    if settings.idle_watchers > 0 {
        let (each, busy) = idle(server, settings.idle_watchers).await?;
        out.push(less(format!("memory of {} idle watchers, each", settings.idle_watchers), "KiB", each));
        out.push(less("server CPU meanwhile", "%", busy));
    }
    out.push(less("memory at the end", "MiB", server.memory()));
    Ok(out)
}
