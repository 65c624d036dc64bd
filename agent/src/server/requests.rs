//! Counts requests to the kubelet API.

use crate::metrics;
use http::Method;
use std::time::Instant;

/// First parts of paths that are told apart; the others are one.
const KNOWN: [&str; 18] = [
    "attach",
    "checkpoint",
    "configz",
    "containerLogs",
    "debug",
    "exec",
    "flagz",
    "healthz",
    "logs",
    "metrics",
    "pods",
    "portForward",
    "run",
    "runningpods",
    "statusz",
    "stats",
    "metrics/cadvisor",
    "metrics/resource",
];
/// Those whose answer lasts as long as the client wants.
const LONG: [&str; 4] = ["exec", "attach", "portForward", "debug"];

/// A request that is being answered.
pub(super) struct Counted {
    labels: [&'static str; 4],
    begin: Instant,
}

fn place(path: &str) -> &'static str {
    let mut parts = path.trim_start_matches('/').splitn(3, '/');
    let first = parts.next().unwrap_or_default();
    let two = format!("{first}/{}", parts.next().unwrap_or_default());
    let name = if first == "metrics" && two != "metrics/" { two.as_str() } else { first };
    match name {
        "metrics/probes" => "metrics/probes",
        name => KNOWN.iter().find(|known| **known == name).copied().unwrap_or("other"),
    }
}

fn verb(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "POST" => "POST",
        "PUT" => "PUT",
        "HEAD" => "HEAD",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

impl Counted {
    /// A request has come in.
    pub(super) fn begin(method: &Method, path: &str) -> Self {
        let path = place(path);
        let long = if LONG.contains(&path) { "true" } else { "false" };
        let labels = [verb(method), path, "readwrite", long];
        metrics::HTTP_REQUESTS.count(&labels);
        metrics::HTTP_INFLIGHT.add(&labels, 1.0);
        Self { labels, begin: Instant::now() }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        metrics::HTTP_INFLIGHT.add(&self.labels, -1.0);
        metrics::HTTP_DURATION.took(&self.labels, self.begin);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_as_many_labels_as_there_are_endpoints() {
        assert_eq!(place("/containerLogs/n/p/c"), "containerLogs");
        assert_eq!(place("/metrics"), "metrics");
        assert_eq!(place("/metrics/cadvisor"), "metrics/cadvisor");
        assert_eq!(place("/metrics/probes"), "metrics/probes");
        assert_eq!(place("/made/up"), "other");
        assert_eq!(place(""), "other");
        assert_eq!(verb(&Method::from_bytes(b"BREW").unwrap()), "other");
    }
}
