//! `/metrics`: kube-proxy's names for what both do, `kelp_` for the rest.

use std::fmt::Write;
use std::marker::PhantomData;

use kelp_common::maps::{counter, xdp};

use super::status::State;

/// Upper bounds of the buckets of a histogram, seconds.
pub trait Bounds {
    /// In increasing order.
    const BOUNDS: &'static [f64];
}

/// kube-proxy's bounds for what it does itself: 1 ms doubled 14 times.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Work;

impl Bounds for Work {
    const BOUNDS: &'static [f64] = &[
        0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192,
        16.384,
    ];
}

/// kube-proxy's bounds for what takes the whole cluster: a quarter and half of a second, each second up to a minute, each five
/// seconds up to two, each half minute up to five.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Programming;

/// See [`Programming`].
const PROGRAMMING: [f64; 80] = {
    let mut bounds = [0.25; 80];
    bounds[1] = 0.5;
    let mut at = 2;
    while at < bounds.len() {
        bounds[at] = bounds[at - 1]
            + match at {
                2 => 0.5,
                3..=61 => 1.0,
                62..=73 => 5.0,
                _ => 30.0,
            };
        at += 1;
    }
    bounds
};

impl Bounds for Programming {
    const BOUNDS: &'static [f64] = &PROGRAMMING;
}

/// How often something took how long.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram<B: Bounds = Work> {
    buckets: Vec<u64>,
    sum: f64,
    count: u64,
    bounds: PhantomData<B>,
}

impl<B: Bounds> Default for Histogram<B> {
    fn default() -> Self {
        Self { buckets: vec![0; B::BOUNDS.len()], sum: 0.0, count: 0, bounds: PhantomData }
    }
}

impl<B: Bounds> Histogram<B> {
    /// Counts one duration, seconds.
    pub fn observe(&mut self, seconds: f64) {
        for (bucket, bound) in self.buckets.iter_mut().zip(B::BOUNDS) {
            *bucket += u64::from(seconds <= *bound);
        }
        self.sum += seconds;
        self.count += 1;
    }

    /// How many durations were counted.
    #[cfg(test)]
    pub fn count(&self) -> u64 {
        self.count
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        head(out, name, help, "histogram");
        for (bucket, bound) in self.buckets.iter().zip(B::BOUNDS) {
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {bucket}");
        }
        let _ = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {}", self.count);
        let _ = writeln!(out, "{name}_sum {}\n{name}_count {}", self.sum, self.count);
    }
}

// Writing to a String cannot fail, here and below.
fn head(out: &mut String, name: &str, help: &str, kind: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// A family of values; labels are given with their braces.
fn family(out: &mut String, name: &str, help: &str, kind: &str, values: &[(String, f64)]) {
    head(out, name, help, kind);
    for (labels, value) in values {
        let _ = writeln!(out, "{name}{labels} {value}");
    }
}

/// The whole text. `capacities` are those of the maps by name, `packets` the counters of the kernel programs, `xdp`
/// those of the uplink's.
pub(super) fn text(
    state: &State,
    capacities: &[(&'static str, u32)],
    packets: &[u64],
    xdp: &[u64],
) -> String {
    let mut out = String::new();
    state.sync.write(
        &mut out,
        "kubeproxy_sync_proxy_rules_duration_seconds",
        "[ALPHA] SyncProxyRules latency in seconds",
    );
    state.full_sync.write(
        &mut out,
        "kubeproxy_sync_full_proxy_rules_duration_seconds",
        "[ALPHA] SyncProxyRules latency in seconds for full resyncs",
    );
    state.partial_sync.write(
        &mut out,
        "kubeproxy_sync_partial_proxy_rules_duration_seconds",
        "[ALPHA] SyncProxyRules latency in seconds for partial resyncs",
    );
    state.programming.write(
        &mut out,
        "kubeproxy_network_programming_duration_seconds",
        "[ALPHA] In Cluster Network Programming Latency in seconds",
    );
    state.flow_reconciliations.write(
        &mut out,
        "kubeproxy_conntrack_reconciler_sync_duration_seconds",
        "[ALPHA] ReconcileConntrackFlowsLatency latency in seconds",
    );
    let bare = |value: f64| vec![(String::new(), value)];
    let seconds =
        |time: Option<jiff::Timestamp>| bare(time.map_or(0.0, |time| time.as_millisecond() as f64 / 1_000.0));
    let code = |counts: [u64; 2]| {
        let values = ["200", "503"].iter().zip(counts);
        values.map(|(code, count)| (format!("{{code=\"{code}\"}}"), count as f64)).collect::<Vec<_>>()
    };
    let by_map = |values: Vec<(&str, f64)>| {
        values.into_iter().map(|(map, value)| (format!("{{map=\"{map}\"}}"), value)).collect::<Vec<_>>()
    };
    let local = state.without_local_endpoints;
    let entries = state.entries.iter().map(|(map, entries)| (*map, *entries as f64)).collect();
    let reasons = counter::NAMES.iter().zip(packets);
    let xdp = xdp::NAMES.iter().zip(xdp);
    for (name, help, kind, values) in [
        (
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
            "[ALPHA] Pending proxy rules Endpoint changes",
            "gauge",
            bare(state.endpoint_changes.0 as f64),
        ),
        (
            "kubeproxy_sync_proxy_rules_endpoint_changes_total",
            "[ALPHA] Cumulative proxy rules Endpoint changes",
            "counter",
            bare(state.endpoint_changes.1 as f64),
        ),
        (
            "kubeproxy_sync_proxy_rules_service_changes_pending",
            "[ALPHA] Pending proxy rules Service changes",
            "gauge",
            bare(state.service_changes.0 as f64),
        ),
        (
            "kubeproxy_sync_proxy_rules_service_changes_total",
            "[ALPHA] Cumulative proxy rules Service changes",
            "counter",
            bare(state.service_changes.1 as f64),
        ),
        (
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
            "[ALPHA] The last time proxy rules were successfully synced",
            "gauge",
            seconds(state.updated),
        ),
        (
            "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
            "[ALPHA] The last time a sync of proxy rules was queued",
            "gauge",
            seconds(state.queued),
        ),
        (
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
            "[ALPHA] Number of services with a Local traffic policy and no endpoints",
            "gauge",
            vec![
                ("{traffic_policy=\"external\"}".to_owned(), local.1 as f64),
                ("{traffic_policy=\"internal\"}".to_owned(), local.0 as f64),
            ],
        ),
        (
            "kubeproxy_proxy_healthz_total",
            "[ALPHA] Cumulative proxy healthz HTTP status",
            "counter",
            code(state.healthz),
        ),
        (
            "kubeproxy_proxy_livez_total",
            "[ALPHA] Cumulative proxy livez HTTP status",
            "counter",
            code(state.livez),
        ),
        (
            "kubeproxy_conntrack_reconciler_deleted_entries_total",
            "[ALPHA] Cumulative conntrack flows deleted by conntrack reconciler",
            "counter",
            bare(state.stale_flows as f64),
        ),
        (
            "kelp_dataplane_sync_failures_total",
            "How often the service maps could not be written",
            "counter",
            bare(state.failures as f64),
        ),
        (
            "kelp_dataplane_closed_sockets_total",
            "UDP sockets that were told that their endpoint is gone",
            "counter",
            vec![
                ("{result=\"closed\"}".to_owned(), state.closed_sockets as f64),
                ("{result=\"failed\"}".to_owned(), state.unclosed_sockets as f64),
            ],
        ),
        (
            "kelp_dataplane_map_entries",
            "Entries of an eBPF map, when it was last seen",
            "gauge",
            by_map(entries),
        ),
        (
            "kelp_dataplane_map_capacity",
            "Entries that an eBPF map can hold",
            "gauge",
            by_map(capacities.iter().map(|(map, entries)| (*map, f64::from(*entries))).collect()),
        ),
        (
            "kelp_dataplane_map_full_total",
            "How often an eBPF map had no room",
            "counter",
            by_map(state.full.iter().map(|(map, count)| (*map, *count as f64)).collect()),
        ),
        (
            "kelp_dataplane_drops_total",
            "Packets and connections that were refused or dropped, by reason",
            "counter",
            reasons.map(|(name, count)| (format!("{{reason=\"{name}\"}}"), *count as f64)).collect(),
        ),
        (
            "kelp_dataplane_xdp_packets_total",
            "Packets that came in by the uplink while XDP was attached there, by what became of them",
            "counter",
            xdp.map(|(name, count)| (format!("{{result=\"{name}\"}}"), *count as f64)).collect(),
        ),
    ] {
        family(&mut out, name, help, kind, &values);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_up_to_its_bounds() {
        let mut histogram = Histogram::<Work>::default();
        for seconds in [0.001, 0.003, 100.0] {
            histogram.observe(seconds);
        }
        let mut text = String::new();
        histogram.write(&mut text, "x", "help");
        for line in [
            "# TYPE x histogram",
            "x_bucket{le=\"0.001\"} 1",
            "x_bucket{le=\"0.004\"} 2",
            "x_bucket{le=\"16.384\"} 2",
            "x_bucket{le=\"+Inf\"} 3",
            "x_sum 100.004",
            "x_count 3",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
        }
    }

    /// The bounds are those that kube-proxy's source names, part by part.
    #[test]
    fn programming_is_measured_by_the_bounds_of_the_service_level() {
        let linear =
            |first: f64, step: f64, count: u32| (0..count).map(move |at| first + step * f64::from(at));
        let expected = linear(0.25, 0.25, 2)
            .chain(linear(1.0, 1.0, 59))
            .chain(linear(60.0, 5.0, 12))
            .chain(linear(120.0, 30.0, 7));
        assert_eq!(Programming::BOUNDS, expected.collect::<Vec<_>>());
    }

    #[test]
    fn names_of_kube_proxy() {
        let text = text(&State::default(), &[], &[], &[]);
        for name in [
            "sync_proxy_rules_duration_seconds",
            "sync_full_proxy_rules_duration_seconds",
            "sync_partial_proxy_rules_duration_seconds",
            "sync_proxy_rules_last_timestamp_seconds",
            "sync_proxy_rules_last_queued_timestamp_seconds",
            "network_programming_duration_seconds",
            "sync_proxy_rules_endpoint_changes_pending",
            "sync_proxy_rules_endpoint_changes_total",
            "sync_proxy_rules_service_changes_pending",
            "sync_proxy_rules_service_changes_total",
            "sync_proxy_rules_no_local_endpoints_total",
            "proxy_healthz_total",
            "proxy_livez_total",
            "conntrack_reconciler_sync_duration_seconds",
            "conntrack_reconciler_deleted_entries_total",
        ] {
            assert!(text.contains(&format!("# TYPE kubeproxy_{name} ")), "{name} is missing");
        }
    }

    #[test]
    fn every_reason_and_map_has_a_value() {
        let state = State { full: [("A", 2)].into(), entries: [("A", 7)].into(), ..State::default() };
        let text = text(&state, &[("A", 9)], &[5; counter::COUNT as usize], &[4, 3, 2]);
        for line in [
            "kelp_dataplane_map_full_total{map=\"A\"} 2",
            "kelp_dataplane_map_entries{map=\"A\"} 7",
            "kelp_dataplane_map_capacity{map=\"A\"} 9",
            "kelp_dataplane_drops_total{reason=\"no_nat_port\"} 5",
            "kelp_dataplane_drops_total{reason=\"too_big\"} 5",
            "kelp_dataplane_xdp_packets_total{result=\"forwarded\"} 4",
            "kelp_dataplane_xdp_packets_total{result=\"no_way\"} 2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
        }
    }
}
