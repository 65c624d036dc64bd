//! Prometheus metrics.

use super::Core;
use crate::handlers::Reply;
use crate::request::RequestInfo;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

/// Upper bounds of the latency buckets, in seconds.
const BUCKETS: [f64; 10] = [0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 5.0, 30.0];

#[derive(Default)]
struct Latency {
    counts: [u64; BUCKETS.len()],
    sum: f64,
    total: u64,
}

type Labels = (&'static str, String, String, String);

/// Counts of requests.
#[derive(Default)]
pub(crate) struct Metrics {
    /// By verb, group, resource and code.
    requests: Mutex<BTreeMap<(Labels, u16), u64>>,
    latency: Mutex<BTreeMap<Labels, Latency>>,
}

impl Metrics {
    /// Counts a request. Paths that are no resource count together, so that clients cannot make series.
    pub(super) fn observe(&self, info: &RequestInfo, code: u16, took: Duration) {
        let known = info.is_resource && code != 404;
        let part = |text: &str| if known { text.to_owned() } else { String::new() };
        let labels: Labels = (info.verb, part(&info.group), part(&info.resource), part(&info.subresource));
        *self.requests.lock().entry((labels.clone(), code)).or_default() += 1;
        if info.verb == "watch" {
            return;
        }
        let mut latency = self.latency.lock();
        let entry = latency.entry(labels).or_default();
        let seconds = took.as_secs_f64();
        for (count, bound) in entry.counts.iter_mut().zip(BUCKETS) {
            if seconds <= bound {
                *count += 1;
            }
        }
        entry.sum += seconds;
        entry.total += 1;
    }
}

fn labels(labels: &Labels) -> String {
    let (verb, group, resource, subresource) = labels;
    let verb = verb.to_uppercase();
    format!("group=\"{group}\",resource=\"{resource}\",subresource=\"{subresource}\",verb=\"{verb}\"")
}

/// The text of `/metrics`.
pub(super) fn serve(core: &Core) -> Reply {
    let mut out = String::from(
        "# HELP apiserver_request_total Requests by verb, resource and code.\n# TYPE apiserver_request_total counter\n",
    );
    for ((key, code), count) in core.metrics.requests.lock().iter() {
        let _ = writeln!(out, "apiserver_request_total{{code=\"{code}\",{}}} {count}", labels(key));
    }
    out.push_str("# HELP apiserver_request_duration_seconds Latency of requests.\n# TYPE apiserver_request_duration_seconds histogram\n");
    for (key, latency) in core.metrics.latency.lock().iter() {
        let labels = labels(key);
        for (count, bound) in latency.counts.iter().zip(BUCKETS) {
            let _ =
                writeln!(out, "apiserver_request_duration_seconds_bucket{{{labels},le=\"{bound}\"}} {count}");
        }
        let total = latency.total;
        let _ = writeln!(out, "apiserver_request_duration_seconds_bucket{{{labels},le=\"+Inf\"}} {total}");
        let _ = writeln!(out, "apiserver_request_duration_seconds_sum{{{labels}}} {}", latency.sum);
        let _ = writeln!(out, "apiserver_request_duration_seconds_count{{{labels}}} {total}");
    }
    let [reads, writes] = [0, 1].map(|kind| {
        core.in_flight.get(kind).map_or(0, |count| count.load(std::sync::atomic::Ordering::Relaxed))
    });
    let _ = writeln!(
        out,
        "# HELP apiserver_current_inflight_requests Requests being served.\n# TYPE \
         apiserver_current_inflight_requests gauge\napiserver_current_inflight_requests{{request_kind=\"readOnly\"}} \
         {reads}\napiserver_current_inflight_requests{{request_kind=\"mutating\"}} {writes}"
    );
    core.flow.render(&mut out);
    let _ = writeln!(
        out,
        "# HELP kelp_store_revision Newest revision of the store.\n# TYPE kelp_store_revision gauge\nkelp_store_revision {}",
        core.store.revision()
    );
    Reply::bytes(200, "text/plain; version=0.0.4; charset=utf-8", out)
}
