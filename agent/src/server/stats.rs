//! `/stats/summary`: what the node, its pods and their containers use (upstream's `stats/v1alpha1`).

use super::Server;
use super::answer::{Answer, json as answer};
use super::host::{self, NodeUsage, at, disk_use, file_system, pressure, pressure_of};
use super::query::Query;
use super::volumes;
use crate::config::AgentConfig;
use crate::runtime::usage::{Device, Usage};
use crate::runtime::{ContainerState, PodUsage, Runtime, SandboxStatus};
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Samples of CPU time that are nearer to each other say little about a rate.
const MIN_INTERVAL: i64 = 200;
/// Samples that are farther from each other do not speak of now.
const MAX_INTERVAL: i64 = 120_000;

/// CPU rates by cgroup, from one request to the next.
#[derive(Debug, Default)]
pub struct Rates(Mutex<HashMap<PathBuf, Sample>>);

#[derive(Debug, Clone, Copy)]
struct Sample {
    /// ms.
    time: i64,
    cpu_ns: u64,
    rate: Option<u64>,
}

impl Rates {
    /// CPU use in billionths of a CPU; `None` at the first sight of a cgroup.
    fn of(&self, cgroup: &Path, time: jiff::Timestamp, cpu_ns: u64) -> Option<u64> {
        let now = time.as_millisecond();
        let mut samples = self.0.lock();
        let before = samples.get(cgroup).copied();
        let elapsed = before.map_or(i64::MAX, |b| now - b.time);
        if let Some(before) = before
            && elapsed < MIN_INTERVAL
        {
            return before.rate;
        }
        let rate = before.filter(|_| elapsed <= MAX_INTERVAL).and_then(|b| {
            let used = u128::from(cpu_ns.saturating_sub(b.cpu_ns));
            let rate = used * 1000 / u128::try_from(elapsed).ok()?;
            u64::try_from(rate).ok()
        });
        samples.insert(cgroup.to_owned(), Sample { time: now, cpu_ns, rate });
        rate
    }

    /// Forgets cgroups that nobody has asked about for long.
    fn sweep(&self, now: jiff::Timestamp) {
        self.0.lock().retain(|_, s| now.as_millisecond() - s.time <= MAX_INTERVAL);
    }
}

/// A pod with what it uses.
pub struct Measured {
    /// As the runtime knows it.
    pub sandbox: SandboxStatus,
    /// What it uses.
    pub usage: PodUsage,
}

impl Measured {
    /// Running containers: name, image, start, use.
    pub fn containers(
        &self,
    ) -> impl Iterator<
        Item = (&crate::runtime::ContainerStatus, jiff::Timestamp, &crate::runtime::usage::ContainerUsage),
    > {
        self.sandbox.containers.iter().filter_map(|status| {
            let ContainerState::Running { started_at, .. } = status.state else { return None };
            let usage = self.usage.containers.iter().find(|u| u.id == status.id)?;
            Some((status, started_at, usage))
        })
    }
}

impl<R: Runtime + Clone> Server<R> {
    /// Everything that runs, with what it uses.
    pub(super) async fn measure(&self) -> Vec<Measured> {
        let mut found = Vec::new();
        for sandbox in self.runtime.list().await.unwrap_or_default() {
            match self.runtime.usage(&sandbox.id).await {
                Ok(Some(usage)) => found.push(Measured { sandbox, usage }),
                Ok(None) => {}
                // One pod in trouble must not hide the others.
                Err(error) => tracing::debug!(pod = sandbox.id, %error, "a pod cannot be measured"),
            }
        }
        found.sort_by(|a, b| {
            let key = |m: &Measured| (m.sandbox.namespace.clone(), m.sandbox.name.clone());
            key(a).cmp(&key(b))
        });
        found
    }

    /// `/stats/summary`.
    pub(super) async fn summary(&self, query: &Query) -> Answer {
        let brief = matches!(query.first("only_cpu_and_memory"), Some("true" | "1"));
        let (mut pods, mut system) = (self.measure().await, self.system().await);
        let node = host::usage();
        self.rates.sweep(node.time);
        let rates = self.collect_rates(&node, &system, &pods);
        if rates.contains(&None) {
            // A rate takes two looks.
            tokio::time::sleep(Duration::from_millis(250)).await;
            (pods, system) = (self.measure().await, self.system().await);
            self.collect_rates(&host::usage(), &system, &pods);
        }
        let uids = pods.iter().map(|p| p.sandbox.id.clone());
        let told = match brief {
            true => volumes::Told::new(),
            false => volumes::ask(self.csi.as_ref(), &self.config, uids).await,
        };
        let objects: Vec<Arc<Pod>> = self.pods.read().values().cloned().collect();
        let (config, rates) = (self.config.clone(), self.rates.clone());
        let built = tokio::task::spawn_blocking(move || {
            let mut all = summary(&config, &rates, &host::usage(), (&system, &pods), brief);
            if !brief {
                add_volumes(&config, &mut all, &objects, &told);
            }
            all
        });
        answer(&built.await.unwrap_or_default())
    }

    /// What all pods together use, and the agent itself.
    async fn system(&self) -> Vec<(&'static str, Usage)> {
        let (pods, own) = (self.runtime.pods_usage().await, self.runtime.own_usage().await);
        let all = [("pods", pods), ("kubelet", own)];
        all.into_iter().filter_map(|(name, usage)| Some((name, usage?))).collect()
    }

    fn collect_rates(
        &self,
        node: &NodeUsage,
        system: &SystemContainers,
        pods: &[Measured],
    ) -> Vec<Option<u64>> {
        let rate = |cgroup: &Path, usage: &Usage| self.rates.of(cgroup, usage.time, usage.cpu_ns);
        let mut all = vec![self.rates.of(Path::new("/"), node.time, node.cpu_ns)];
        for (name, usage) in system {
            all.push(rate(&Path::new("system").join(name), usage));
        }
        for pod in pods {
            all.push(rate(&pod.usage.cgroup, &pod.usage.usage));
            all.extend(pod.usage.containers.iter().map(|c| rate(&c.cgroup, &c.usage)));
        }
        all
    }
}

fn cpu(time: jiff::Timestamp, rate: Option<u64>, total: u64) -> Map<String, Value> {
    let mut fields = Map::new();
    fields.insert("time".into(), json!(at(time)));
    if let Some(rate) = rate {
        fields.insert("usageNanoCores".into(), json!(rate));
    }
    fields.insert("usageCoreNanoSeconds".into(), json!(total));
    fields
}

fn memory(usage: &Usage, available: Option<u64>) -> Map<String, Value> {
    let mut fields = Map::new();
    fields.insert("time".into(), json!(at(usage.time)));
    if let Some(available) = available {
        fields.insert("availableBytes".into(), json!(available));
    }
    for (name, value) in [
        ("usageBytes", usage.memory),
        ("workingSetBytes", usage.working_set),
        ("rssBytes", usage.rss),
        ("pageFaults", usage.faults.0),
        ("majorPageFaults", usage.faults.1),
    ] {
        fields.insert(name.into(), json!(value));
    }
    fields
}

fn with(mut fields: Map<String, Value>, name: &str, value: Value) -> Value {
    fields.insert(name.to_owned(), value);
    Value::Object(fields)
}

fn network(time: jiff::Timestamp, devices: &[Device], main: &str) -> Value {
    let numbers = |d: &Device| {
        json!({
            "name": d.name,
            "rxBytes": d.received[0],
            "rxErrors": d.received[2],
            "txBytes": d.sent[0],
            "txErrors": d.sent[2],
        })
    };
    let chosen = devices.iter().find(|d| d.name == main).or_else(|| devices.first());
    let mut whole = chosen.map_or_else(|| json!({}), numbers);
    if let Some(fields) = whole.as_object_mut() {
        fields.insert("time".into(), json!(at(time)));
        fields.insert("interfaces".into(), devices.iter().map(numbers).collect());
    }
    whole
}

/// What the node uses for itself and for all pods together.
type SystemContainers = [(&'static str, Usage)];

fn summary(
    config: &AgentConfig,
    rates: &Rates,
    node: &NodeUsage,
    (system, pods): (&SystemContainers, &[Measured]),
    brief: bool,
) -> Value {
    let pods: Vec<Value> = pods.iter().map(|p| pod(config, rates, p, brief)).collect();
    let mut of_node = node_stats(config, rates, node, brief);
    let system = system.iter().map(|(name, usage)| system_container(rates, node, name, usage, brief));
    if let Some(fields) = of_node.as_object_mut() {
        fields.insert("systemContainers".into(), system.collect());
    }
    json!({"node": of_node, "pods": pods})
}

/// The volumes of each pod of a summary.
fn add_volumes(config: &AgentConfig, all: &mut Value, pods: &[Arc<Pod>], told: &volumes::Told) {
    let now = jiff::Timestamp::now();
    for shown in all.get_mut("pods").and_then(Value::as_array_mut).into_iter().flatten() {
        let uid = shown["podRef"]["uid"].as_str().unwrap_or_default();
        let Some(pod) = pods.iter().find(|p| p.metadata.uid.as_deref() == Some(uid)) else { continue };
        let found = volumes::volumes(config, pod, told, now);
        if let (false, Some(fields)) = (found.is_empty(), shown.as_object_mut()) {
            fields.insert("volume".into(), Value::Array(found));
        }
    }
}

fn system_container(rates: &Rates, node: &NodeUsage, name: &str, usage: &Usage, brief: bool) -> Value {
    let rate = rates.of(&Path::new("system").join(name), usage.time, usage.cpu_ns);
    let most = usage.memory_limit.unwrap_or(node.memory_total).min(node.memory_total);
    let available = most.saturating_sub(usage.working_set);
    let [of_cpu, of_memory, of_io] = usage.pressure.each_ref().map(|text| pressure_of(text));
    let mut stats = json!({
        "name": name,
        "startTime": at(node.started),
        "cpu": with(cpu(usage.time, rate, usage.cpu_ns), "psi", of_cpu),
        "memory": with(memory(usage, Some(available)), "psi", of_memory),
    });
    if let (false, Some(fields)) = (brief, stats.as_object_mut()) {
        fields.insert("io".into(), json!({"time": at(usage.time), "psi": of_io}));
        fields.insert("swap".into(), json!({"time": at(usage.time), "swapUsageBytes": usage.swap}));
    }
    stats
}

fn node_stats(config: &AgentConfig, rates: &Rates, node: &NodeUsage, brief: bool) -> Value {
    let time = node.time;
    let as_usage = Usage {
        time,
        memory: node.memory,
        working_set: node.working_set,
        rss: node.rss,
        faults: node.faults,
        ..Usage::default()
    };
    let available = node.memory_total.saturating_sub(node.working_set);
    let psi = |name: &str| pressure(Path::new(&format!("/proc/pressure/{name}")));
    let rate = rates.of(Path::new("/"), time, node.cpu_ns);
    let mut stats = json!({
        "nodeName": config.node_name,
        "startTime": at(node.started),
        "cpu": with(cpu(time, rate, node.cpu_ns), "psi", psi("cpu")),
        "memory": with(memory(&as_usage, Some(available)), "psi", psi("memory")),
    });
    if brief {
        return stats;
    }
    let disk = file_system(&config.data_dir, time, None);
    let more = [
        ("io", json!({"time": at(time), "psi": psi("io")})),
        ("network", network(time, &node.devices, &node.uplink)),
        ("fs", disk.clone()),
        ("runtime", json!({"imageFs": disk, "containerFs": disk})),
        ("rlimit", json!({"time": at(time), "maxpid": node.pids.0, "curproc": node.pids.1})),
        ("swap", json!({"time": at(time), "swapAvailableBytes": node.swap.1, "swapUsageBytes": node.swap.0})),
    ];
    if let Some(fields) = stats.as_object_mut() {
        fields.extend(more.into_iter().map(|(name, value)| (name.to_owned(), value)));
    }
    stats
}

fn add((a, b): (u64, u64), (c, d): (u64, u64)) -> (u64, u64) {
    (a.saturating_add(c), b.saturating_add(d))
}

fn pod(config: &AgentConfig, rates: &Rates, pod: &Measured, brief: bool) -> Value {
    let Measured { sandbox, usage } = pod;
    let time = usage.usage.time;
    let rate = |cgroup: &Path, usage: &Usage| rates.of(cgroup, usage.time, usage.cpu_ns);
    let logs = config.pod_logs(&sandbox.namespace, &sandbox.name, &sandbox.id);
    let mut containers = Vec::new();
    let mut ephemeral = (0, 0);
    for (status, started, used) in pod.containers() {
        // Without a limit it is zero, as with containerd.
        let limit = used.usage.memory_limit.unwrap_or(0);
        let available = Some(limit.saturating_sub(used.usage.working_set));
        let mut stats = json!({
            "name": status.name,
            "startTime": at(started),
            "cpu": cpu(used.usage.time, rate(&used.cgroup, &used.usage), used.usage.cpu_ns),
            "memory": memory(&used.usage, available),
        });
        if let (false, Some(fields)) = (brief, stats.as_object_mut()) {
            let written = disk_use(&used.writable);
            let logged = disk_use(&logs.join(&status.name));
            ephemeral = add(ephemeral, add(written, logged));
            let more = [
                ("io", json!({"time": at(time)})),
                ("rootfs", file_system(&config.data_dir, time, Some(written))),
                ("logs", file_system(&config.pod_log_dir, time, Some(logged))),
                (
                    "swap",
                    json!({"time": at(time), "swapAvailableBytes": 0, "swapUsageBytes": used.usage.swap}),
                ),
            ];
            fields.extend(more.into_iter().map(|(name, value)| (name.to_owned(), value)));
        }
        containers.push(stats);
    }
    let [of_cpu, of_memory, of_io] = usage.usage.pressure.each_ref().map(|text| pressure_of(text));
    let mut stats = json!({
        "podRef": {"name": sandbox.name, "namespace": sandbox.namespace, "uid": sandbox.id},
        "startTime": at(sandbox.created_at),
        "containers": containers,
        "cpu": with(cpu(time, rate(&usage.cgroup, &usage.usage), usage.usage.cpu_ns), "psi", of_cpu),
        "memory": with(memory(&usage.usage, None), "psi", of_memory),
    });
    if let (false, Some(fields)) = (brief, stats.as_object_mut()) {
        ephemeral = add(ephemeral, disk_use(&config.pod_dir(&sandbox.id)));
        if !usage.devices.is_empty() {
            fields.insert("network".into(), network(time, &usage.devices, "eth0"));
        }
        fields.insert("io".into(), json!({"time": at(time), "psi": of_io}));
        fields.insert("ephemeral-storage".into(), file_system(&config.data_dir, time, Some(ephemeral)));
        let swap = json!({"time": at(time), "swapAvailableBytes": 0, "swapUsageBytes": usage.usage.swap});
        fields.insert("swap".into(), swap);
        let processes =
            json!({"process_count": usage.containers.iter().map(|c| c.usage.processes).sum::<u64>()});
        fields.insert("process_stats".into(), processes);
    }
    stats
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_need_two_samples_some_time_apart() {
        let rates = Rates::default();
        let at = |ms: i64| jiff::Timestamp::from_millisecond(1_000_000 + ms).unwrap();
        let path = Path::new("a");
        assert_eq!(rates.of(path, at(0), 1_000), None);
        assert_eq!(rates.of(path, at(50), 9_000), None, "too near");
        assert_eq!(rates.of(path, at(1000), 500_001_000), Some(500_000_000), "half a CPU");
        assert_eq!(rates.of(path, at(1100), 900_000_000), Some(500_000_000), "the last one stays");
        assert_eq!(rates.of(path, at(500_000), 900_000_000), None, "too far");
        rates.sweep(at(900_000));
        assert!(rates.0.lock().is_empty());
    }
}
