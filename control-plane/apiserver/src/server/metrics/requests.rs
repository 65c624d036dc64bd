//! Counts and times of requests.

use super::text::{Histogram, Kind, Text};
use crate::request::{Query, RequestInfo};
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

/// Upstream's bounds of request times, in seconds.
pub(super) static SECONDS: [f64; 23] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0,
    20.0, 30.0, 45.0, 60.0,
];
/// Bounds that the service level indicator leaves out at the beginning.
const SLI_SKIP: usize = 2;
/// Upstream's bounds of answers' sizes, in bytes.
static BYTES: [f64; 7] = [1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9];
/// Upstream's bounds of events' sizes, in bytes.
static EVENT_BYTES: [f64; 8] = [1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0, 65536.0, 131_072.0];
/// Different sets of labels that are kept; requests beyond are not counted. There are far fewer resources and verbs.
const MOST: usize = 8192;

/// Labels of a request, borrowed from it.
#[derive(Hash, Clone, Copy)]
struct Labels<'a> {
    verb: &'a str,
    dry_run: &'a str,
    group: &'a str,
    version: &'a str,
    resource: &'a str,
    subresource: &'a str,
    scope: &'a str,
}

/// Requests with the same labels.
struct Series {
    /// As in [`Labels`].
    labels: [Box<str>; 7],
    codes: Mutex<BTreeMap<u16, u64>>,
    times: Histogram<23>,
    sizes: Histogram<7>,
    /// Long ones that go on.
    long: AtomicI64,
}

const NAMES: [&str; 7] = ["verb", "dry_run", "group", "version", "resource", "subresource", "scope"];

impl Series {
    /// Names and values, without the dry run unless wanted.
    fn labels(&self, dry_run: bool) -> Vec<(&str, &str)> {
        let all = NAMES.iter().zip(&self.labels).map(|(name, value)| (*name, value.as_ref()));
        all.filter(|(name, _)| dry_run || *name != "dry_run").chain([("component", "apiserver")]).collect()
    }
}

/// Events of one resource that were sent to watchers.
pub(crate) struct WatchCounter {
    labels: [Box<str>; 3],
    sizes: Histogram<8>,
}

impl WatchCounter {
    /// Counts one event.
    pub(crate) fn sent(&self, bytes: usize) {
        self.sizes.observe(bytes as f64);
    }
}

/// A long request that goes on until this is dropped.
pub(crate) struct Long(Arc<Series>);

impl Drop for Long {
    fn drop(&mut self) {
        self.0.long.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Everything that is counted about requests.
#[derive(Default)]
pub(crate) struct Metrics {
    hasher: RandomState,
    /// By a hash of the labels: nothing is allocated to find them.
    series: RwLock<HashMap<u64, Arc<Series>>>,
    watches: RwLock<BTreeMap<(String, String, String), Arc<WatchCounter>>>,
    handshake_errors: AtomicU64,
}

/// The verb as upstream's metrics name it.
fn verb(info: &RequestInfo, apply: bool) -> &'static str {
    if info.is_resource
        && matches!(info.subresource.as_str(), "exec" | "attach" | "portforward" | "proxy" | "log")
    {
        return "CONNECT";
    }
    match info.verb {
        "get" => "GET",
        "list" => "LIST",
        "watch" => "WATCH",
        "create" | "post" => "POST",
        "update" | "put" => "PUT",
        "patch" if apply => "APPLY",
        "patch" => "PATCH",
        "delete" => "DELETE",
        "deletecollection" => "DELETECOLLECTION",
        "head" => "GET",
        _ => "other",
    }
}

/// Paths that are no resources and have series of their own.
fn known_path(path: &str) -> &str {
    let known = [
        "/healthz",
        "/livez",
        "/readyz",
        "/metrics",
        "/version",
        "/openapi/v2",
        "/openapi/v3",
        "/api",
        "/apis",
    ];
    known.iter().find(|known| **known == path).copied().unwrap_or_default()
}

impl Metrics {
    fn find(&self, info: &RequestInfo, query: &Query, code: u16, apply: bool) -> Option<Arc<Series>> {
        // Clients must not be able to make series: what is not there counts together.
        let is_known = info.is_resource && code != 404;
        fn part(text: &str, is_known: bool) -> &str {
            if is_known { text } else { "" }
        }
        let labels = Labels {
            verb: verb(info, apply),
            dry_run: if query.get("dryRun") == Some("All") { "All" } else { "" },
            group: part(&info.group, is_known),
            version: part(&info.version, is_known),
            resource: part(&info.resource, is_known),
            subresource: if info.is_resource {
                part(&info.subresource, is_known)
            } else {
                known_path(&info.path)
            },
            scope: match () {
                () if !is_known => "",
                () if !info.name.is_empty() || info.verb == "create" => "resource",
                () if !info.namespace.is_empty() => "namespace",
                () => "cluster",
            },
        };
        let hash = self.hasher.hash_one(labels);
        if let Some(found) = self.series.read().get(&hash) {
            return Some(found.clone());
        }
        let mut all = self.series.write();
        if all.len() >= MOST {
            return None;
        }
        let series = all.entry(hash).or_insert_with(|| {
            let Labels { verb, dry_run, group, version, resource, subresource, scope } = labels;
            Arc::new(Series {
                labels: [verb, dry_run, group, version, resource, subresource, scope].map(Into::into),
                codes: Mutex::default(),
                times: Histogram::new(&SECONDS),
                sizes: Histogram::new(&BYTES),
                long: AtomicI64::new(0),
            })
        });
        Some(series.clone())
    }

    /// Counts an answered request; `size` is the answer's, when it is known.
    pub(crate) fn observe(
        &self,
        info: &RequestInfo,
        query: &Query,
        apply: bool,
        code: u16,
        took: Duration,
        size: Option<usize>,
    ) {
        let Some(series) = self.find(info, query, code, apply) else { return };
        *series.codes.lock().entry(code).or_default() += 1;
        if info.verb != "watch" {
            series.times.time(took);
        }
        if let Some(size) = size.filter(|_| matches!(info.verb, "get" | "list")) {
            series.sizes.observe(size as f64);
        }
    }

    /// Counts a long request until the outcome is dropped.
    pub(crate) fn long(&self, info: &RequestInfo) -> Option<Long> {
        let series = self.find(info, &Query::default(), 200, false)?;
        series.long.fetch_add(1, Ordering::Relaxed);
        Some(Long(series))
    }

    /// The counter of a resource's events.
    pub(crate) fn watch(&self, group: &str, version: &str, resource: &str) -> Arc<WatchCounter> {
        let key = (group.to_owned(), version.to_owned(), resource.to_owned());
        if let Some(found) = self.watches.read().get(&key) {
            return found.clone();
        }
        let make = || {
            let labels = [group, version, resource].map(Into::into);
            Arc::new(WatchCounter { labels, sizes: Histogram::new(&EVENT_BYTES) })
        };
        self.watches.write().entry(key).or_insert_with(make).clone()
    }

    /// A client did not get through the handshake.
    pub(crate) fn handshake_failed(&self) {
        self.handshake_errors.fetch_add(1, Ordering::Relaxed);
    }

    /// Writes everything.
    pub(super) fn write(&self, text: &mut Text) {
        let mut all: Vec<Arc<Series>> = self.series.read().values().cloned().collect();
        all.sort_by(|a, b| a.labels.cmp(&b.labels));
        let name = "apiserver_request_total";
        text.family(name, Kind::Counter, "Requests by verb, dry run, resource, scope, component and code.");
        for series in &all {
            let codes = series.codes.lock().clone();
            for (code, count) in codes {
                let code = code.to_string();
                let mut labels = series.labels(true);
                labels.push(("code", &code));
                text.sample(name, &labels, count);
            }
        }
        let timed: Vec<&Arc<Series>> = all.iter().filter(|s| !s.times.is_empty()).collect();
        let name = "apiserver_request_duration_seconds";
        text.family(name, Kind::Histogram, "Time to the answer, in seconds.");
        for series in &timed {
            text.histogram(name, &series.labels(true), &series.times, 0);
        }
        let name = "apiserver_request_sli_duration_seconds";
        text.family(name, Kind::Histogram, "Time to the answer without that of webhooks, in seconds.");
        for series in &timed {
            text.histogram(name, &series.labels(false), &series.times, SLI_SKIP);
        }
        let name = "apiserver_response_sizes";
        text.family(name, Kind::Histogram, "Sizes of answers to reads, in bytes.");
        for series in all.iter().filter(|s| !s.sizes.is_empty()) {
            text.histogram(name, &series.labels(false), &series.sizes, 0);
        }
        let name = "apiserver_longrunning_requests";
        text.family(name, Kind::Gauge, "Watches and connections that go on.");
        for series in all.iter().filter(|s| s.long.load(Ordering::Relaxed) != 0) {
            text.sample(name, &series.labels(false), series.long.load(Ordering::Relaxed));
        }
        self.write_watches(text);
        let name = "apiserver_tls_handshake_errors_total";
        text.family(name, Kind::Counter, "Connections that ended in the TLS handshake.");
        text.sample(name, &[], self.handshake_errors.load(Ordering::Relaxed));
    }

    fn write_watches(&self, text: &mut Text) {
        let all: Vec<Arc<WatchCounter>> = self.watches.read().values().cloned().collect();
        let labels = |counter: &WatchCounter| -> [String; 3] { counter.labels.clone().map(String::from) };
        let name = "apiserver_watch_events_total";
        text.family(name, Kind::Counter, "Events sent to watchers.");
        for counter in &all {
            let [group, version, resource] = labels(counter);
            let labels = [("group", &*group), ("version", &*version), ("resource", &*resource)];
            text.sample(name, &labels, counter.sizes.total());
        }
        let name = "apiserver_watch_events_sizes";
        text.family(name, Kind::Histogram, "Sizes of events sent to watchers, in bytes.");
        for counter in &all {
            let [group, version, resource] = labels(counter);
            let labels = [("group", &*group), ("version", &*version), ("resource", &*resource)];
            text.histogram(name, &labels, &counter.sizes, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(method: &str, path: &str) -> RequestInfo {
        let method = http::Method::from_bytes(method.as_bytes()).expect("a method");
        RequestInfo::parse(&method, path, &Query::default())
    }

    #[test]
    fn requests_are_counted_by_upstreams_labels() {
        let metrics = Metrics::default();
        let second = Duration::from_secs(1);
        let pod = info("GET", "/api/v1/namespaces/a/pods/p");
        for _ in 0..3 {
            metrics.observe(&pod, &Query::default(), false, 200, second, Some(5000));
        }
        let dry = Query::parse("dryRun=All");
        metrics.observe(
            &info("PATCH", "/apis/apps/v1/namespaces/a/deployments/d"),
            &dry,
            true,
            201,
            second,
            None,
        );
        // Paths that clients make up share one series.
        for n in 0..100 {
            let path = format!("/apis/made.up/v1/things{n}");
            metrics.observe(&info("GET", &path), &Query::default(), false, 404, second, None);
        }
        let long = metrics.long(&info("GET", "/api/v1/namespaces/a/pods/p/log")).expect("room");
        metrics.watch("", "v1", "pods").sent(1500);
        let mut text = Text::default();
        metrics.write(&mut text);
        let text = text.finish();
        let has = |line: &str| assert!(text.lines().any(|l| l == line), "{line}\nis not in\n{text}");
        let pods = "verb=\"GET\",dry_run=\"\",group=\"\",version=\"v1\",resource=\"pods\",subresource=\"\",\
                    scope=\"resource\",component=\"apiserver\"";
        has(&format!("apiserver_request_total{{{pods},code=\"200\"}} 3"));
        has(&format!("apiserver_request_duration_seconds_bucket{{{pods},le=\"1\"}} 3"));
        has(&format!("apiserver_request_duration_seconds_bucket{{{pods},le=\"0.8\"}} 0"));
        has(&format!("apiserver_request_duration_seconds_sum{{{pods}}} 3"));
        assert!(text.contains("verb=\"APPLY\",dry_run=\"All\",group=\"apps\""));
        assert_eq!(text.lines().filter(|l| l.contains("code=\"404\"")).count(), 1);
        assert!(text.contains("apiserver_longrunning_requests{verb=\"CONNECT\""));
        has("apiserver_watch_events_total{group=\"\",version=\"v1\",resource=\"pods\"} 1");
        drop(long);
        let mut text = Text::default();
        metrics.write(&mut text);
        assert!(!text.finish().contains("apiserver_longrunning_requests{"));
    }
}
