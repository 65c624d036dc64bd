//! What pods cost: how long one takes from its creation to Running and Ready, alone and in bursts, how long its end takes,
//! what idle pods take of the node's memory, and how long a node needs after SIGKILL of its agent.
//!
//! Times are those that a watch of the API server shows. Kelp is measured in a sandbox of its own; with
//! `--peer-kubeconfig`, another cluster whose node runs on this machine is measured the same way, in the same run.

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kelp_tests::Cluster;
use kube::api::{Api, DeleteParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Config};
use serde_json::json;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Measures pods on one node.
#[derive(Debug, Parser)]
struct Options {
    /// Pods started one after the other
    #[arg(long, default_value_t = 20)]
    sequential: usize,
    /// Pods started at once
    #[arg(long, value_delimiter = ',', default_value = "10,50,110")]
    bursts: Vec<usize>,
    /// Pods that run while memory and CPU are measured
    #[arg(long, default_value_t = 110)]
    idle: usize,
    /// Seconds over which the CPU of idle programs is measured
    #[arg(long, default_value_t = 30)]
    idle_seconds: u64,
    /// Image of the pods; it must be on the node
    #[arg(long, default_value = "kelp/hello:dev")]
    image: String,
    /// Kubeconfig of a cluster to compare with; its node must be on this machine
    #[arg(long)]
    peer_kubeconfig: Option<PathBuf>,
    /// Image of the pods there
    #[arg(long, default_value = "registry.k8s.io/pause:3.10.1")]
    peer_image: String,
    /// Programs of the node there: agents, then what each pod has
    #[arg(long, value_delimiter = ',', default_value = "kubelet,containerd")]
    peer_agents: Vec<String>,
    /// Programs that each pod has there
    #[arg(long, value_delimiter = ',', default_value = "containerd-shim-runc-v2,pause")]
    peer_shims: Vec<String>,
}

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(180);
const NAMESPACE: &str = "default";

/// What a watch has seen of a pod.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    running: Option<Instant>,
    ready: Option<Instant>,
    gone: Option<Instant>,
}

/// Pods as a watch shows them.
#[derive(Clone, Default)]
struct Board {
    seen: Arc<Mutex<HashMap<String, Seen>>>,
    changed: Arc<Notify>,
}

impl Board {
    fn note(&self, name: &str, change: impl FnOnce(&mut Seen)) {
        change(self.seen.lock().expect("lock").entry(name.to_owned()).or_default());
        self.changed.notify_waiters();
    }

    fn of(&self, name: &str) -> Seen {
        self.seen.lock().expect("lock").get(name).copied().unwrap_or_default()
    }

    /// Waits until all of them are as they should.
    async fn wait(&self, names: &[String], is: impl Fn(&Seen) -> bool) -> Result<()> {
        let all = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if names.iter().all(|name| is(&self.of(name))) {
                    return;
                }
                changed.await;
            }
        };
        let missing = || names.iter().filter(|n| !is(&self.of(n))).cloned().collect::<Vec<_>>();
        tokio::time::timeout(PATIENCE, all)
            .await
            .map_err(|_| anyhow::anyhow!("still waiting for {:?}", missing()))
    }
}

/// Follows the pods of the namespace.
async fn follow(client: Client, board: Board) {
    let api: Api<Pod> = Api::namespaced(client, NAMESPACE);
    let mut events = watcher(api, watcher::Config::default()).default_backoff().boxed();
    while let Some(event) = events.next().await {
        let now = Instant::now();
        match event {
            Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) => {
                let name = pod.metadata.name.unwrap_or_default();
                let status = pod.status.unwrap_or_default();
                let running = status.phase.as_deref() == Some("Running");
                let ready =
                    status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
                board.note(&name, |seen| {
                    if running {
                        seen.running.get_or_insert(now);
                    }
                    if ready {
                        seen.ready.get_or_insert(now);
                    }
                });
            }
            Ok(watcher::Event::Delete(pod)) => {
                board.note(&pod.metadata.name.unwrap_or_default(), |seen| seen.gone = Some(now));
            }
            Ok(_) | Err(_) => {}
        }
    }
}

/// A cluster that is measured.
struct Side {
    name: &'static str,
    client: Client,
    board: Board,
    image: String,
    /// Names of programs: the node's, and each pod's.
    agents: Vec<String>,
    shims: Vec<String>,
    /// Names of pods are used once.
    next: usize,
}

/// A row of the table: what, and a value for each side.
type Rows = Vec<(String, String)>;

impl Side {
    async fn new(name: &'static str, kubeconfig: &std::path::Path, image: &str) -> Result<Self> {
        let file = Kubeconfig::read_from(kubeconfig).with_context(|| format!("{}", kubeconfig.display()))?;
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
        let client = Client::try_from(config)?;
        let board = Board::default();
        tokio::spawn(follow(client.clone(), board.clone()));
        let (image, none) = (image.to_owned(), Vec::new());
        Ok(Self { name, client, board, image, agents: none.clone(), shims: none, next: 0 })
    }

    fn api(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    fn names(&mut self, count: usize) -> Vec<String> {
        let first = self.next;
        self.next += count;
        (first..self.next).map(|n| format!("bench-{n}")).collect()
    }

    /// Creates a pod; an API server that is away for a moment is asked again.
    async fn create(&self, name: &str) -> Result<Instant> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false,
                "containers": [{"name": "c", "image": self.image, "imagePullPolicy": "Never"}]}}))?;
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            match self.api().create(&PostParams::default(), &pod).await {
                Ok(_) => return Ok(start),
                Err(kube::Error::Api(status)) if status.code == 409 => return Ok(start),
                Err(kube::Error::Api(status)) if status.code < 500 => bail!("{name}: {}", status.message),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
        bail!("{name} cannot be created")
    }

    /// Starts pods at once and waits until all are ready. Times to Running and to Ready, and to the last one.
    async fn start(&self, names: &[String]) -> Result<(Vec<Duration>, Vec<Duration>, Duration)> {
        let begin = Instant::now();
        let starts = futures::future::try_join_all(names.iter().map(|name| self.create(name))).await?;
        self.board.wait(names, |seen| seen.ready.is_some()).await?;
        let (mut running, mut ready) = (Vec::new(), Vec::new());
        for (name, start) in names.iter().zip(starts) {
            let seen = self.board.of(name);
            running.extend(seen.running.map(|at| at.saturating_duration_since(start)));
            ready.extend(seen.ready.map(|at| at.saturating_duration_since(start)));
        }
        Ok((running, ready, begin.elapsed()))
    }

    /// Ends pods at once; how long until the last one is gone.
    async fn end(&self, names: &[String]) -> Result<Duration> {
        let begin = Instant::now();
        let parameters = DeleteParams::default();
        futures::future::try_join_all(names.iter().map(|name| async {
            match self.api().delete(name, &parameters).await {
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
                other => other.map(|_| ()),
            }
        }))
        .await?;
        self.board.wait(names, |seen| seen.gone.is_some()).await?;
        Ok(begin.elapsed())
    }

    async fn measure(&mut self, options: &Options) -> Result<Rows> {
        let mut rows = Rows::new();
        let warm = self.names(2);
        self.start(&warm).await?;
        self.end(&warm).await?;
        let (mut running, mut ready, mut ended) = (Vec::new(), Vec::new(), Vec::new());
        for name in self.names(options.sequential) {
            let name = [name];
            let (a, b, _) = self.start(&name).await?;
            running.extend(a);
            ready.extend(b);
            ended.push(self.end(&name).await?);
        }
        rows.push(("one at a time: create → Running, p50".into(), ms(percentile(&mut running, 50))));
        rows.push(("one at a time: create → Ready, p50".into(), ms(percentile(&mut ready, 50))));
        rows.push(("one at a time: create → Ready, p99".into(), ms(percentile(&mut ready, 99))));
        rows.push(("one at a time: delete → gone, p50".into(), ms(percentile(&mut ended, 50))));
        for count in &options.bursts {
            let names = self.names(*count);
            let (_, mut ready, all) = self.start(&names).await?;
            let gone = self.end(&names).await?;
            rows.push((format!("burst of {count}: create → Ready, p50"), ms(percentile(&mut ready, 50))));
            rows.push((format!("burst of {count}: all Ready"), ms(all)));
            rows.push((format!("burst of {count}: all gone"), ms(gone)));
        }
        Ok(rows)
    }

    async fn measure_idle(&mut self, options: &Options, rows: &mut Rows) -> Result<()> {
        let before = memory(&self.processes(&self.agents)?);
        let names = self.names(options.idle);
        self.start(&names).await?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        let (agents, shims) = (self.processes(&self.agents)?, self.processes(&self.shims)?);
        ensure!(!agents.is_empty(), "no program of {:?} runs on this machine", self.agents);
        let (node, pods) = (memory(&agents), memory(&shims));
        let count = options.idle.max(1) as f64;
        rows.push((format!("{} idle pods: shims, PSS a pod", options.idle), mib(pods / count)));
        rows.push((format!("{} idle pods: shims, processes", options.idle), shims.len().to_string()));
        rows.push(("agents without pods, PSS".into(), mib(before)));
        rows.push((format!("{} idle pods: agents, PSS", options.idle), mib(node)));
        let (busy, begin) = (cpu(&agents) + cpu(&shims), Instant::now());
        tokio::time::sleep(Duration::from_secs(options.idle_seconds)).await;
        let used = (cpu(&agents) + cpu(&shims) - busy) / begin.elapsed().as_secs_f64();
        rows.push((format!("{} idle pods: CPU, % of a core", options.idle), format!("{:.2}", used * 100.0)));
        self.end(&names).await?;
        Ok(())
    }

    /// Process ids of programs by their names.
    fn processes(&self, names: &[String]) -> Result<Vec<i32>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
            let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            // The kernel keeps 15 letters of a name.
            if names.iter().any(|n| n.get(..15).unwrap_or(n) == name.trim()) {
                found.push(pid);
            }
        }
        Ok(found)
    }
}

/// Proportional memory of processes, bytes.
fn memory(pids: &[i32]) -> f64 {
    let one = |pid: &i32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let line = text.lines().find_map(|l| l.strip_prefix("Pss:")).unwrap_or_default();
        line.split_whitespace().next().and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0) * 1024.0
    };
    pids.iter().map(one).sum()
}

/// CPU time that processes have used, seconds.
fn cpu(pids: &[i32]) -> f64 {
    let one = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields: Vec<&str> = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ').collect();
        let field = |number: usize| fields.get(number - 3).and_then(|v| v.parse::<f64>().ok()).unwrap_or(0.0);
        // Fields 14 and 15 of proc_pid_stat(5), in hundredths of a second.
        (field(14) + field(15)) / 100.0
    };
    pids.iter().map(one).sum()
}

fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    let index = (times.len() * percent).div_ceil(100).saturating_sub(1);
    times.get(index).copied().unwrap_or_default()
}

fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

fn mib(bytes: f64) -> String {
    format!("{:.2} MiB", bytes / f64::from(1 << 20))
}

/// Ratio of two values with the same unit, peer to own.
fn ratio(own: &str, peer: &str) -> String {
    let number = |text: &str| text.split(' ').next().and_then(|n| n.parse::<f64>().ok());
    match (number(own), number(peer)) {
        (Some(own), Some(peer)) if own > 0.0 => format!("{:.1}×", peer / own),
        _ => String::new(),
    }
}

/// Time from SIGKILL of the agent until a pod that is created right then is Ready.
async fn recover(side: &mut Side, cluster: &Cluster) -> Result<Duration> {
    let pid = cluster.kelp_pid(1)?;
    let name = side.names(1);
    let begin = Instant::now();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)?;
    side.create(&name[0]).await?;
    side.board.wait(&name, |seen| seen.ready.is_some()).await?;
    let took = begin.elapsed();
    side.end(&name).await?;
    Ok(took)
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    let client = std::env::current_exe()?.with_file_name("client");
    let cluster = Cluster::up("bench-pods", 1, client.to_str().context("path")?)?;
    cluster.wait(&format!("node/{}", cluster.node(1).name()), "condition=Ready", 60)?;
    let mut own = Side::new("Kelp", &cluster.layout().kubeconfig(), &options.image).await?;
    own.agents = vec!["kelp".into()];
    own.shims = vec!["kelp-shim".into()];
    let mut sides = vec![own];
    if let Some(kubeconfig) = &options.peer_kubeconfig {
        let mut peer = Side::new("peer", kubeconfig, &options.peer_image).await?;
        peer.agents.clone_from(&options.peer_agents);
        peer.shims.clone_from(&options.peer_shims);
        sides.push(peer);
    }
    let mut tables = Vec::new();
    for side in &mut sides {
        eprintln!("measuring {}", side.name);
        let mut rows = side.measure(&options).await?;
        side.measure_idle(&options, &mut rows).await?;
        tables.push(rows);
    }
    let mut times = Vec::new();
    for _ in 0..5 {
        times.push(recover(&mut sides[0], &cluster).await?);
    }
    tables[0].push(("SIGKILL of the agent → new pod Ready, p50".into(), ms(percentile(&mut times, 50))));
    println!("| What | Kelp | peer | peer / Kelp |\n|---|---|---|---|");
    for (index, (what, value)) in tables[0].iter().enumerate() {
        let peer = tables.get(1).and_then(|t| t.get(index)).map(|(_, v)| v.as_str()).unwrap_or_default();
        println!("| {what} | {value} | {peer} | {} |", ratio(value, peer));
    }
    Ok(())
}
