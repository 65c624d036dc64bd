//! `/metrics/resource`: what runs here and what it uses, for Prometheus; `/metrics` and `/metrics/probes`: the agent's own
//! numbers.

use super::Server;
use super::answer::{Answer, typed};
use super::exposition::{CONTENT_TYPE, Exposition};
use super::host;
use super::stats::Measured;
use crate::runtime::{ContainerState, Runtime};
use http::StatusCode;

pub(super) fn text(metrics: &Exposition) -> Answer {
    typed(StatusCode::OK, CONTENT_TYPE, metrics.text())
}

pub(super) fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

pub(super) fn start(time: jiff::Timestamp) -> f64 {
    time.as_nanosecond() as f64 / 1e9
}

impl<R: Runtime + Clone> Server<R> {
    /// `/metrics/resource`.
    pub(super) async fn resource_metrics(&self) -> Answer {
        let mut all = Exposition::default();
        let node = host::usage();
        let at = Some(node.time.as_millisecond());
        all.counter(
            "node_cpu_usage_seconds_total",
            "[STABLE] Cumulative cpu time consumed by the node in core-seconds",
            &[],
            seconds(node.cpu_ns),
            at,
        );
        all.gauge(
            "node_memory_working_set_bytes",
            "[STABLE] Current working set of the node in bytes",
            &[],
            node.working_set as f64,
            at,
        );
        all.gauge(
            "node_swap_usage_bytes",
            "[ALPHA] Current swap usage of the node in bytes. Reported only on non-windows systems",
            &[],
            node.swap.0 as f64,
            at,
        );
        for pod in self.measure().await {
            pod_resources(&mut all, &pod);
        }
        all.gauge(
            "resource_scrape_error",
            "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise",
            &[],
            0.0,
            None,
        );
        text(&all)
    }

    /// `/metrics`.
    pub(super) async fn own_metrics(&self) -> Answer {
        let mut all = Exposition::default();
        let sandboxes = self.runtime.list().await.unwrap_or_default();
        let mut states = [("created", 0u32), ("exited", 0), ("running", 0)];
        for container in sandboxes.iter().flat_map(|s| &s.containers) {
            let index = match container.state {
                ContainerState::Created => 0,
                ContainerState::Exited(_) => 1,
                ContainerState::Running { .. } => 2,
            };
            if let Some((_, count)) = states.get_mut(index) {
                *count += 1;
            }
        }
        for (state, count) in states {
            all.gauge(
                "kubelet_running_containers",
                "[ALPHA] Number of containers currently running",
                &[("container_state", state)],
                f64::from(count),
                None,
            );
        }
        let running = sandboxes.iter().filter(|s| s.ready).count();
        all.gauge(
            "kubelet_running_pods",
            "[ALPHA] Number of pods that have a running pod sandbox",
            &[],
            running as f64,
            None,
        );
        self.count_pods(&mut all, &sandboxes);
        all.gauge(
            "kubelet_node_name",
            "[ALPHA] The node's name. The count is always 1.",
            &[("node", &self.config.node_name)],
            1.0,
            None,
        );
        add_counted(&mut all, |name| !name.starts_with("prober_"));
        process(&mut all);
        text(&all)
    }

    /// `/metrics/probes`.
    pub(super) fn probe_metrics(&self) -> Answer {
        let mut all = Exposition::default();
        add_counted(&mut all, |name| name.starts_with("prober_"));
        process_start(&mut all);
        text(&all)
    }
}

/// What this process has counted, of families whose name fits.
fn add_counted(all: &mut Exposition, fits: impl Fn(&str) -> bool + Copy) {
    crate::metrics::families(fits).for_each(|metric| all.declare(metric));
    for (metric, sample) in crate::metrics::samples(fits) {
        all.sample(metric, &sample);
    }
}

/// What every program tells of itself.
fn process(all: &mut Exposition) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // proc_pid_stat(5): fields after the name in parentheses; utime is the 14th of all, rss the 24th.
    let fields: Vec<&str> = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ').collect();
    let field = |number: usize| fields.get(number - 3).and_then(|v| v.parse::<f64>().ok()).unwrap_or(0.0);
    let cpu = (field(14) + field(15)) / 100.0;
    all.counter(
        "process_cpu_seconds_total",
        "Total user and system CPU time spent in seconds.",
        &[],
        cpu,
        None,
    );
    let resident = field(24) * 4096.0;
    all.gauge("process_resident_memory_bytes", "Resident memory size in bytes.", &[], resident, None);
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    all.gauge("process_open_fds", "Number of open file descriptors.", &[], open as f64, None);
    process_start(all);
}

/// Since when this process runs.
pub fn process_start(all: &mut Exposition) {
    let help = "[STABLE] Start time of the process since unix epoch in seconds.";
    all.gauge("process_start_time_seconds", help, &[], start(host::process_started()), None);
}

fn pod_resources(all: &mut Exposition, pod: &Measured) {
    let (namespace, name) = (pod.sandbox.namespace.as_str(), pod.sandbox.name.as_str());
    let labels = [("namespace", namespace), ("pod", name)];
    let usage = &pod.usage.usage;
    let at = Some(usage.time.as_millisecond());
    all.counter(
        "pod_cpu_usage_seconds_total",
        "[STABLE] Cumulative cpu time consumed by the pod in core-seconds",
        &labels,
        seconds(usage.cpu_ns),
        at,
    );
    all.gauge(
        "pod_memory_working_set_bytes",
        "[STABLE] Current working set of the pod in bytes",
        &labels,
        usage.working_set as f64,
        at,
    );
    all.gauge(
        "pod_swap_usage_bytes",
        "[ALPHA] Current amount of the pod swap usage in bytes. Reported only on non-windows systems",
        &labels,
        usage.swap as f64,
        at,
    );
    for (status, started, used) in pod.containers() {
        let labels = [("container", status.name.as_str()), ("namespace", namespace), ("pod", name)];
        let usage = &used.usage;
        let at = Some(usage.time.as_millisecond());
        all.counter(
            "container_cpu_usage_seconds_total",
            "[STABLE] Cumulative cpu time consumed by the container in core-seconds",
            &labels,
            seconds(usage.cpu_ns),
            at,
        );
        all.gauge(
            "container_memory_working_set_bytes",
            "[STABLE] Current working set of the container in bytes",
            &labels,
            usage.working_set as f64,
            at,
        );
        all.gauge(
            "container_start_time_seconds",
            "[STABLE] Start time of the container since unix epoch in seconds",
            &labels,
            start(started),
            None,
        );
        all.gauge(
            "container_swap_usage_bytes",
            "[ALPHA] Current amount of the container swap usage in bytes. Reported only on non-windows systems",
            &labels,
            usage.swap as f64,
            at,
        );
        all.gauge(
            "container_swap_limit_bytes",
            "[ALPHA] Current amount of the container swap limit in bytes. Reported only on non-windows systems",
            &labels,
            0.0,
            at,
        );
    }
}
