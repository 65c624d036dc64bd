//! `/metrics/cadvisor`: what the node, its pods and their containers use, by cAdvisor's names.

mod disks;
mod machine;
mod processes;

use super::Server;
use super::answer::Answer;
use super::exposition::Exposition;
use super::host;
use super::metrics::{seconds, start, text};
use super::stats::Measured;
use crate::runtime::Runtime;
use crate::runtime::usage::{Device, Usage};
use processes::Processes;
use std::path::PathBuf;

impl<R: Runtime + Clone> Server<R> {
    /// `/metrics/cadvisor`.
    pub(super) async fn cadvisor_metrics(&self) -> Answer {
        let pods = self.measure().await;
        let dirs = [self.config.data_dir.clone(), self.config.pod_log_dir.clone()];
        // Files of many processes are read.
        let built = tokio::task::spawn_blocking(move || all(&pods, &dirs));
        text(&built.await.unwrap_or_default())
    }
}

fn all(pods: &[Measured], dirs: &[PathBuf]) -> Exposition {
    let mut all = Exposition::default();
    let node = host::usage();
    machine::machine(&mut all, &node);
    let whole = Usage {
        time: node.time,
        cpu_ns: node.cpu_ns,
        memory: node.memory,
        working_set: node.working_set,
        rss: node.rss,
        swap: node.swap.0,
        faults: node.faults,
        ..Usage::default()
    };
    let root = Place { id: "/", ..Place::default() };
    cgroup(&mut all, &root, &whole, node.started);
    Processes::of_host(&node).write(&mut all, &root, whole.time);
    devices(&mut all, &root, &node.devices, whole.time);
    disks::of_host(&mut all, &root, dirs, whole.time);
    for pod in pods {
        let sandbox = &pod.sandbox;
        let id = format!("/{}", pod.usage.cgroup.display());
        let place = Place { id: &id, namespace: &sandbox.namespace, pod: &sandbox.name, ..Place::default() };
        let usage = &pod.usage.usage;
        cgroup(&mut all, &place, usage, sandbox.created_at);
        Processes::of(usage).write(&mut all, &place, usage.time);
        devices(&mut all, &place, &pod.usage.devices, usage.time);
        disks::of_cgroup(&mut all, &place, usage);
        for (status, started, used) in pod.containers() {
            let id = format!("/{}", used.cgroup.display());
            let place = Place {
                id: &id,
                container: &status.name,
                image: &status.image_ref,
                name: &status.id,
                ..place
            };
            cgroup(&mut all, &place, &used.usage, started);
            Processes::of(&used.usage).write(&mut all, &place, used.usage.time);
            disks::of_cgroup(&mut all, &place, &used.usage);
        }
    }
    let help = "1 if there was an error while getting container metrics, 0 otherwise";
    all.gauge("container_scrape_error", help, &[], 0.0, None);
    all
}

/// Labels of a cgroup.
#[derive(Clone, Copy, Default)]
struct Place<'a> {
    container: &'a str,
    id: &'a str,
    image: &'a str,
    name: &'a str,
    namespace: &'a str,
    pod: &'a str,
}

impl<'a> Place<'a> {
    fn labels(&self) -> [(&'a str, &'a str); 6] {
        [
            ("container", self.container),
            ("id", self.id),
            ("image", self.image),
            ("name", self.name),
            ("namespace", self.namespace),
            ("pod", self.pod),
        ]
    }

    /// With one more label, in its place.
    fn and(&self, key: &'a str, value: &'a str) -> Vec<(&'a str, &'a str)> {
        let mut labels = self.labels().to_vec();
        let at = labels.iter().position(|(k, _)| *k > key).unwrap_or(labels.len());
        labels.insert(at, (key, value));
        labels
    }
}

/// What one cgroup uses.
fn cgroup(all: &mut Exposition, place: &Place<'_>, usage: &Usage, started: jiff::Timestamp) {
    let labels = place.labels();
    let at = Some(usage.time.as_millisecond());
    let total = place.and("cpu", "total");
    all.counter(
        "container_cpu_usage_seconds_total",
        "Cumulative cpu time consumed in seconds.",
        &total,
        seconds(usage.cpu_ns),
        at,
    );
    let (periods, hit, lost) = usage.throttled;
    let counters: [(&'static str, &'static str, f64); 7] = [
        (
            "container_cpu_user_seconds_total",
            "Cumulative user cpu time consumed in seconds.",
            seconds(usage.cpu_user_ns),
        ),
        (
            "container_cpu_system_seconds_total",
            "Cumulative system cpu time consumed in seconds.",
            seconds(usage.cpu_system_ns),
        ),
        (
            "container_cpu_cfs_periods_total",
            "Number of elapsed enforcement period intervals.",
            periods as f64,
        ),
        ("container_cpu_cfs_throttled_periods_total", "Number of throttled period intervals.", hit as f64),
        (
            "container_cpu_cfs_throttled_seconds_total",
            "Total time duration the container has been throttled.",
            seconds(lost),
        ),
        ("container_memory_failcnt", "Number of memory usage hits limits", usage.memory_failures as f64),
        (
            "container_oom_events_total",
            "Count of out of memory events observed for the container",
            usage.oom_kills as f64,
        ),
    ];
    for (name, help, value) in counters {
        all.counter(name, help, &labels, value, at);
    }
    let gauges: [(&'static str, &'static str, u64); 14] = [
        (
            "container_memory_usage_bytes",
            "Current memory usage in bytes, including all memory regardless of when it was accessed",
            usage.memory,
        ),
        ("container_memory_working_set_bytes", "Current working set in bytes.", usage.working_set),
        ("container_memory_rss", "Size of RSS in bytes.", usage.rss),
        ("container_memory_cache", "Number of bytes of page cache memory.", usage.cache),
        ("container_memory_mapped_file", "Size of memory mapped files in bytes.", usage.mapped_file),
        ("container_memory_swap", "Container swap usage in bytes.", usage.swap),
        ("container_memory_max_usage_bytes", "Maximum memory usage recorded in bytes", usage.memory_max),
        ("container_memory_total_active_file_bytes", "Current total active file in bytes.", usage.file.0),
        ("container_memory_total_inactive_file_bytes", "Current total inactive file in bytes.", usage.file.1),
        ("container_processes", "Number of processes running inside the container.", usage.processes),
        (
            "container_spec_memory_limit_bytes",
            "Memory limit for the container.",
            usage.memory_limit.unwrap_or(0),
        ),
        ("container_memory_kernel_usage", "Size of kernel memory allocated in bytes.", usage.kernel),
        (
            "container_spec_memory_reservation_limit_bytes",
            "Memory reservation limit for the container.",
            usage.memory_reserved,
        ),
        (
            "container_spec_memory_swap_limit_bytes",
            "Memory swap limit for the container.",
            usage.swap_limit.unwrap_or(0),
        ),
    ];
    for (name, help, value) in gauges {
        all.gauge(name, help, &labels, value as f64, at);
    }
    // The kernel tells nothing of a cgroup's load; cAdvisor's own reader of it is off in a kubelet.
    for (name, help) in [
        ("container_cpu_load_average_10s", "Value of container cpu load average over the last 10 seconds."),
        (
            "container_cpu_load_d_average_10s",
            "Value of container cpu load.d average over the last 10 seconds.",
        ),
    ] {
        all.gauge(name, help, &labels, 0.0, at);
    }
    // No image brings a health check that is run: probes are the kubelet's.
    all.gauge("container_health_state", "The result of the container's health check", &labels, -1.0, at);
    let (shares, quota, period) = usage.cpu_limits;
    all.gauge("container_spec_cpu_shares", "CPU share of the container.", &labels, shares as f64, at);
    all.gauge("container_spec_cpu_period", "CPU period of the container.", &labels, period as f64, at);
    if let Some(quota) = quota {
        all.gauge("container_spec_cpu_quota", "CPU quota of the container.", &labels, quota as f64, at);
    }
    all.gauge(
        "container_start_time_seconds",
        "Start time of the container since unix epoch in seconds.",
        &labels,
        start(started),
        at,
    );
    let seen = usage.time.as_second() as f64;
    all.gauge("container_last_seen", "Last time a container was seen by the exporter", &labels, seen, at);
    for (kind, value) in [("pgfault", usage.faults.0), ("pgmajfault", usage.faults.1)] {
        let labels = [
            ("container", place.container),
            ("failure_type", kind),
            ("id", place.id),
            ("image", place.image),
            ("name", place.name),
            ("namespace", place.namespace),
            ("pod", place.pod),
            ("scope", "container"),
        ];
        all.counter(
            "container_memory_failures_total",
            "Cumulative count of memory allocation failures.",
            &labels,
            value as f64,
            at,
        );
    }
}

/// Traffic of a network namespace.
fn devices(all: &mut Exposition, place: &Place<'_>, devices: &[Device], time: jiff::Timestamp) {
    const RECEIVED: [(&str, &str); 4] = [
        ("container_network_receive_bytes_total", "Cumulative count of bytes received"),
        ("container_network_receive_packets_total", "Cumulative count of packets received"),
        ("container_network_receive_errors_total", "Cumulative count of errors encountered while receiving"),
        (
            "container_network_receive_packets_dropped_total",
            "Cumulative count of packets dropped while receiving",
        ),
    ];
    const SENT: [(&str, &str); 4] = [
        ("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted"),
        ("container_network_transmit_packets_total", "Cumulative count of packets transmitted"),
        (
            "container_network_transmit_errors_total",
            "Cumulative count of errors encountered while transmitting",
        ),
        (
            "container_network_transmit_packets_dropped_total",
            "Cumulative count of packets dropped while transmitting",
        ),
    ];
    let at = Some(time.as_millisecond());
    for device in devices {
        let labels = place.and("interface", &device.name);
        for (metrics, values) in [(RECEIVED, device.received), (SENT, device.sent)] {
            for ((name, help), value) in metrics.into_iter().zip(values) {
                all.counter(name, help, &labels, value as f64, at);
            }
        }
    }
}
