//! `/metrics/resource` and `/metrics/cadvisor`: what runs here and what it uses, for Prometheus; `/metrics`: the
//! agent's own numbers.

use super::Server;
use super::answer::{Answer, typed};
use super::exposition::{CONTENT_TYPE, Exposition};
use super::host;
use super::stats::Measured;
use crate::runtime::usage::{Device, Usage};
use crate::runtime::{ContainerState, Runtime};
use http::StatusCode;

fn text(metrics: &Exposition) -> Answer {
    typed(StatusCode::OK, CONTENT_TYPE, metrics.text())
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

fn start(time: jiff::Timestamp) -> f64 {
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

    /// `/metrics/cadvisor`.
    pub(super) async fn cadvisor_metrics(&self) -> Answer {
        let mut all = Exposition::default();
        let node = host::usage();
        machine(&mut all, &node);
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
        devices(&mut all, &root, &node.devices, whole.time);
        for pod in self.measure().await {
            let sandbox = &pod.sandbox;
            let id = format!("/{}", pod.usage.cgroup.display());
            let place =
                Place { id: &id, namespace: &sandbox.namespace, pod: &sandbox.name, ..Place::default() };
            cgroup(&mut all, &place, &pod.usage.usage, sandbox.created_at);
            devices(&mut all, &place, &pod.usage.devices, pod.usage.usage.time);
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
            }
        }
        all.gauge(
            "container_scrape_error",
            "1 if there was an error while getting container metrics, 0 otherwise",
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
        let desired = self.pods.read().len();
        all.gauge(
            "kubelet_desired_pods",
            "[ALPHA] The number of pods the kubelet is being instructed to run. static is true if the pod is not \
             from the apiserver.",
            &[("static", "")],
            desired as f64,
            None,
        );
        all.gauge(
            "kubelet_node_name",
            "[ALPHA] The node's name. The count is always 1.",
            &[("node", &self.config.node_name)],
            1.0,
            None,
        );
        for (metric, sample) in crate::metrics::samples(|name| name.starts_with("kubelet_")) {
            all.sample(metric, &sample);
        }
        process(&mut all);
        text(&all)
    }

    /// `/metrics/probes`.
    pub(super) fn probe_metrics(&self) -> Answer {
        let mut all = Exposition::default();
        for (metric, sample) in crate::metrics::samples(|name| name.starts_with("prober_")) {
            all.sample(metric, &sample);
        }
        process_start(&mut all);
        text(&all)
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
    let modified = std::fs::metadata("/proc/self").and_then(|m| m.modified());
    let since = modified.ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok()).unwrap_or_default();
    let help = "[STABLE] Start time of the process since unix epoch in seconds.";
    all.gauge("process_start_time_seconds", help, &[], since.as_secs_f64(), None);
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

fn machine(all: &mut Exposition, node: &host::NodeUsage) {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let (boot, id) = (read("/proc/sys/kernel/random/boot_id"), read("/etc/machine-id"));
    let uuid = read("/sys/class/dmi/id/product_uuid");
    let labels = [("boot_id", boot.as_str()), ("machine_id", &id), ("system_uuid", &uuid)];
    all.gauge("machine_cpu_cores", "Number of logical CPU cores.", &labels, node.cpus as f64, None);
    let memory = node.memory_total as f64;
    all.gauge("machine_memory_bytes", "Amount of memory installed on the machine.", &labels, memory, None);
    let kernel = read("/proc/sys/kernel/osrelease");
    all.gauge(
        "cadvisor_version_info",
        "A metric with a constant '1' value labeled by kernel version, OS version, docker version, cadvisor version \
         & cadvisor revision.",
        &[
            ("cadvisorRevision", ""),
            ("cadvisorVersion", ""),
            ("dockerVersion", ""),
            ("kernelVersion", &kernel),
            ("osVersion", ""),
        ],
        1.0,
        None,
    );
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

/// The metrics of cAdvisor that dashboards use, for one cgroup.
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
    let counters: [(&'static str, &'static str, f64); 8] = [
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
        ("container_fs_reads_bytes_total", "Cumulative count of bytes read", usage.io.0 as f64),
    ];
    for (name, help, value) in counters {
        all.counter(name, help, &labels, value, at);
    }
    all.counter(
        "container_fs_writes_bytes_total",
        "Cumulative count of bytes written",
        &labels,
        usage.io.1 as f64,
        at,
    );
    let gauges: [(&'static str, &'static str, u64); 11] = [
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
    ];
    for (name, help, value) in gauges {
        all.gauge(name, help, &labels, value as f64, at);
    }
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
