//! Counters and histograms of what the agent does, by upstream's names (`kubelet_…`).
//!
//! They are the process's own and change nothing but what `/metrics` shows.

use crate::pod::reference::PodRef;
use parking_lot::Mutex;
use std::collections::BTreeMap;

/// Bounds of upstream's start and work durations, seconds.
const STARTS: &[f64] = &[
    0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0,
    480.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0,
];
/// Prometheus' default bounds, seconds.
const DEFAULT: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// A counter or a histogram.
#[derive(Debug)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// What it tells.
    pub help: &'static str,
    /// Names of its labels.
    labels: &'static [&'static str],
    /// Bounds of the histogram; `None`: a counter.
    bounds: Option<&'static [f64]>,
}

const fn counter(name: &'static str, help: &'static str, labels: &'static [&'static str]) -> Metric {
    Metric { name, help, labels, bounds: None }
}

const fn histogram(
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
    bounds: &'static [f64],
) -> Metric {
    Metric { name, help, labels, bounds: Some(bounds) }
}

/// Pods that the node ended to save itself.
pub static EVICTIONS: Metric = counter(
    "kubelet_evictions",
    "[ALPHA] Cumulative number of pod evictions by eviction signal",
    &["eviction_signal"],
);
/// Pods that were turned away.
pub static REJECTIONS: Metric = counter(
    "kubelet_admission_rejections_total",
    "[ALPHA] Cumulative number pod admission rejections by the Kubelet.",
    &["reason"],
);
/// Containers that were started.
pub static STARTED_CONTAINERS: Metric = counter(
    "kubelet_started_containers_total",
    "[ALPHA] Cumulative number of containers started",
    &["container_type"],
);
/// Containers that could not be started.
pub static STARTED_CONTAINERS_ERRORS: Metric = counter(
    "kubelet_started_containers_errors_total",
    "[ALPHA] Cumulative number of errors when starting containers",
    &["container_type", "code"],
);
/// Pods whose sandbox was made.
pub static STARTED_PODS: Metric =
    counter("kubelet_started_pods_total", "[ALPHA] Cumulative number of pods started", &[]);
/// Pods whose sandbox could not be made.
pub static STARTED_PODS_ERRORS: Metric = counter(
    "kubelet_started_pods_errors_total",
    "[ALPHA] Cumulative number of errors when starting pods",
    &[],
);
/// From the first sight of a pod to its containers running.
pub static POD_START: Metric = histogram(
    "kubelet_pod_start_duration_seconds",
    "[ALPHA] Duration in seconds from kubelet seeing a pod for the first time to the pod starting to run",
    &[],
    STARTS,
);
/// How long a sandbox takes.
pub static RUN_SANDBOX: Metric = histogram(
    "kubelet_run_podsandbox_duration_seconds",
    "[ALPHA] Duration in seconds of the run_podsandbox operations. Broken down by RuntimeClass.Handler.",
    &["runtime_handler"],
    DEFAULT,
);
/// How long a look at a pod takes.
pub static POD_WORKER: Metric = histogram(
    "kubelet_pod_worker_duration_seconds",
    "[ALPHA] Duration in seconds to sync a single pod. Broken down by operation type: create, update, or sync",
    &["operation_type"],
    DEFAULT,
);
/// Calls of the runtime.
pub static RUNTIME_OPERATIONS: Metric = counter(
    "kubelet_runtime_operations_total",
    "[ALPHA] Cumulative number of runtime operations by operation type.",
    &["operation_type"],
);
/// Those that failed.
pub static RUNTIME_ERRORS: Metric = counter(
    "kubelet_runtime_operations_errors_total",
    "[ALPHA] Cumulative number of runtime operation errors by operation type.",
    &["operation_type"],
);
/// How long they take.
pub static RUNTIME_DURATION: Metric = histogram(
    "kubelet_runtime_operations_duration_seconds",
    "[ALPHA] Duration in seconds of runtime operations. Broken down by operation type.",
    &["operation_type"],
    DEFAULT,
);
/// Results of probes.
pub static PROBES: Metric = counter(
    "prober_probe_total",
    "[BETA] Cumulative number of a liveness, readiness or startup probe for a container by result.",
    &["probe_type", "result", "container", "pod", "namespace", "pod_uid"],
);
/// How long probes take.
pub static PROBE_DURATION: Metric = histogram(
    "prober_probe_duration_seconds",
    "[ALPHA] Duration in seconds for a probe response.",
    &["probe_type", "container", "pod", "namespace"],
    DEFAULT,
);
/// Registrations of device plugins.
pub static DEVICE_REGISTRATIONS: Metric = counter(
    "kubelet_device_plugin_registration_total",
    "[ALPHA] Cumulative number of device plugin registrations. Broken down by resource name.",
    &["resource_name"],
);
/// Questions about pods' resources.
pub static POD_RESOURCES: Metric = counter(
    "kubelet_pod_resources_endpoint_requests_total",
    "[ALPHA] Cumulative number of requests to the PodResource endpoint. Broken down by server api version.",
    &["server_api_version"],
);

/// A value.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    /// Names and values of the labels, by name.
    pub labels: Vec<(&'static str, String)>,
    /// How often it happened.
    pub count: u64,
    /// Sum of what was observed.
    pub sum: f64,
    /// Bounds, and how many observations are not above each.
    pub buckets: Vec<(f64, u64)>,
}

type Key = (&'static str, Vec<String>);

#[derive(Debug)]
struct Value {
    metric: &'static Metric,
    count: u64,
    sum: f64,
    buckets: Vec<u64>,
}

static VALUES: Mutex<BTreeMap<Key, Value>> = Mutex::new(BTreeMap::new());

impl Metric {
    /// It happened. `labels` are in the order of the metric's.
    pub fn count(&'static self, labels: &[&str]) {
        self.record(labels, None);
    }

    /// It was observed.
    pub fn observe(&'static self, labels: &[&str], value: f64) {
        self.record(labels, Some(value));
    }

    fn record(&'static self, labels: &[&str], observed: Option<f64>) {
        let key = (self.name, labels.iter().map(|l| (*l).to_owned()).collect());
        let bounds = self.bounds.unwrap_or_default();
        let mut values = VALUES.lock();
        let value = values.entry(key).or_insert_with(|| Value {
            metric: self,
            count: 0,
            sum: 0.0,
            buckets: vec![0; bounds.len()],
        });
        value.count += 1;
        let Some(observed) = observed else { return };
        value.sum += observed;
        for (bound, bucket) in bounds.iter().zip(&mut value.buckets) {
            if observed <= *bound {
                *bucket += 1;
            }
        }
    }

    /// Whether it is a histogram.
    pub const fn is_histogram(&self) -> bool {
        self.bounds.is_some()
    }
}

/// A pod was evicted because of a signal.
pub fn evicted(signal: &str) {
    EVICTIONS.count(&[signal]);
}

/// Forgets what speaks of a pod.
pub fn forget_pod(pod: &PodRef) {
    let is_own = |name: &str, labels: &[String]| match labels {
        [.., uid] if name == PROBES.name => *uid == pod.uid,
        [.., name_of, namespace] if name == PROBE_DURATION.name => {
            (name_of, namespace) == (&pod.name, &pod.namespace)
        }
        _ => false,
    };
    VALUES.lock().retain(|(name, labels), _| !is_own(name, labels));
}

/// Everything that was counted, of metrics whose name fits.
pub fn samples(fits: impl Fn(&str) -> bool) -> Vec<(&'static Metric, Sample)> {
    let values = VALUES.lock();
    let of = values.iter().filter(|((name, _), _)| fits(name));
    of.map(|((_, labels), value)| {
        let mut labels: Vec<(&'static str, String)> =
            value.metric.labels.iter().copied().zip(labels.iter().cloned()).collect();
        labels.sort();
        let bounds = value.metric.bounds.unwrap_or_default();
        let buckets = bounds.iter().copied().zip(value.buckets.iter().copied()).collect();
        (value.metric, Sample { labels, count: value.count, sum: value.sum, buckets })
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    static TIMES: Metric = histogram("test_times", "T.", &["b", "a"], &[1.0, 2.0]);

    #[test]
    fn buckets_are_cumulative_and_labels_sorted() {
        for value in [0.5, 1.0, 1.5, 9.0] {
            TIMES.observe(&["x", "y"], value);
        }
        let found = samples(|name| name == "test_times");
        let [(metric, sample)] = found.as_slice() else { panic!("{found:?}") };
        assert!(metric.is_histogram());
        assert_eq!(sample.labels, [("a", "y".to_owned()), ("b", "x".to_owned())]);
        assert_eq!((sample.count, sample.sum), (4, 12.0));
        assert_eq!(sample.buckets, [(1.0, 2), (2.0, 3)]);
    }
}
