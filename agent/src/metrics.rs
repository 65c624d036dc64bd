//! Counters, gauges and histograms of what the agent does, by upstream's names (`families`).
//!
//! They are the process's own and change nothing but what `/metrics` shows. A family without labels is shown from the start;
//! one with labels is named from the start and has values when there is something to show.

mod families;

pub use families::*;

use crate::pod::reference::PodRef;
use parking_lot::Mutex;
use std::collections::BTreeMap;

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It is what it is now.
    Gauge,
    /// Observations, by these bounds.
    Histogram(&'static [f64]),
}

impl Kind {
    /// As the text format names it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

/// A family of metrics.
#[derive(Debug)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// What it tells.
    pub help: &'static str,
    /// Names of its labels.
    labels: &'static [&'static str],
    /// What it is.
    pub kind: Kind,
}

/// A value.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    /// Names and values of the labels, by name.
    pub labels: Vec<(&'static str, String)>,
    /// How often it happened.
    pub count: u64,
    /// Sum of what was observed; a gauge's value.
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

impl Value {
    fn new(metric: &'static Metric) -> Self {
        Self { metric, count: 0, sum: 0.0, buckets: vec![0; metric.bounds().len()] }
    }

    fn observe(&mut self, observed: f64) {
        self.count += 1;
        self.sum += observed;
        for (bound, bucket) in self.metric.bounds().iter().zip(&mut self.buckets) {
            if observed <= *bound {
                *bucket += 1;
            }
        }
    }

    fn sample(&self, labels: &[String]) -> (&'static Metric, Sample) {
        let mut labels: Vec<(&'static str, String)> =
            self.metric.labels.iter().copied().zip(labels.iter().cloned()).collect();
        labels.sort();
        let buckets = self.metric.bounds().iter().copied().zip(self.buckets.iter().copied()).collect();
        (self.metric, Sample { labels, count: self.count, sum: self.sum, buckets })
    }
}

static VALUES: Mutex<BTreeMap<Key, Value>> = Mutex::new(BTreeMap::new());

impl Metric {
    /// It happened. `labels` are in the order of the metric's.
    pub fn count(&'static self, labels: &[&str]) {
        self.with(labels, |value| value.count += 1);
    }

    /// It was observed.
    pub fn observe(&'static self, labels: &[&str], observed: f64) {
        self.with(labels, |value| value.observe(observed));
    }

    /// It took the time since `begin`, seconds.
    pub fn took(&'static self, labels: &[&str], begin: std::time::Instant) {
        self.observe(labels, begin.elapsed().as_secs_f64());
    }

    /// The gauge is this now.
    pub fn set(&'static self, labels: &[&str], now: f64) {
        self.with(labels, |value| value.sum = now);
    }

    /// The gauge is so much more (or less) now.
    pub fn add(&'static self, labels: &[&str], more: f64) {
        self.with(labels, |value| value.sum += more);
    }

    /// The gauge without labels is this from now on, unless it was set before.
    pub fn set_once(&'static self, value: f64) {
        let mut values = VALUES.lock();
        values.entry((self.name, Vec::new())).or_insert_with(|| Value { sum: value, ..Value::new(self) });
    }

    fn with(&'static self, labels: &[&str], change: impl FnOnce(&mut Value)) {
        let key = (self.name, labels.iter().map(|l| (*l).to_owned()).collect());
        change(VALUES.lock().entry(key).or_insert_with(|| Value::new(self)));
    }

    const fn bounds(&self) -> &'static [f64] {
        match self.kind {
            Kind::Histogram(bounds) => bounds,
            Kind::Counter | Kind::Gauge => &[],
        }
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

/// Every family, by name.
pub fn families(fits: impl Fn(&str) -> bool) -> impl Iterator<Item = &'static Metric> {
    families::ALL.iter().copied().filter(move |metric| fits(metric.name))
}

/// Every value of families that were asked for, by name.
pub fn samples(fits: impl Fn(&str) -> bool) -> Vec<(&'static Metric, Sample)> {
    let values = VALUES.lock();
    let mut found: Vec<_> = values
        .iter()
        .filter(|((name, _), _)| fits(name))
        .map(|((_, labels), value)| value.sample(labels))
        .collect();
    let silent = families::ALL.iter().filter(|m| m.labels.is_empty() && fits(m.name));
    let silent = silent.filter(|m| !values.contains_key(&(m.name, Vec::new())));
    found.extend(silent.map(|metric| Value::new(metric).sample(&[])));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    static TIMES: Metric =
        Metric { name: "test_times", help: "T.", labels: &["b", "a"], kind: Kind::Histogram(&[1.0, 2.0]) };

    #[test]
    fn buckets_are_cumulative_and_labels_sorted() {
        for value in [0.5, 1.0, 1.5, 9.0] {
            TIMES.observe(&["x", "y"], value);
        }
        let found = samples(|name| name == "test_times");
        let [(metric, sample)] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!(metric.kind.name(), "histogram");
        assert_eq!(sample.labels, [("a", "y".to_owned()), ("b", "x".to_owned())]);
        assert_eq!((sample.count, sample.sum), (4, 12.0));
        assert_eq!(sample.buckets, [(1.0, 2), (2.0, 3)]);
    }

    #[test]
    fn a_family_without_labels_is_there_before_anything_happens() {
        let found = samples(|name| name == "kubelet_pod_watch_events_dropped_total");
        let [(metric, sample)] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((metric.kind, sample), (Kind::Counter, &Sample::default()));
        assert!(samples(|name| name == "kubelet_websocket_streaming_requests_total").is_empty());
    }

    #[test]
    fn names_are_used_once_and_gauges_move() {
        let names: std::collections::BTreeSet<_> = families::ALL.iter().map(|m| m.name).collect();
        assert_eq!(names.len(), families::ALL.len());
        static NOW: Metric = Metric { name: "test_now", help: "N.", labels: &[], kind: Kind::Gauge };
        NOW.set(&[], 3.0);
        NOW.add(&[], -1.0);
        assert_eq!(samples(|name| name == "test_now")[0].1.sum, 2.0);
    }
}
