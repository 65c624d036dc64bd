//! How the dataplane is: what `/healthz`, `/livez` and `/metrics` tell. Names and meanings are kube-proxy's.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kelp_common::maps;
use kelp_model::plan::Actual;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::metrics::{Histogram, Programming};

/// How long a change may wait to be written before the node counts as unhealthy: twice kube-proxy's sync period.
const LATE: Duration = Duration::from_secs(60);
/// The cluster autoscaler is about to remove a node with this taint.
const TO_BE_DELETED_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// Shared by the reconciler, the collector and the servers.
#[derive(Debug, Default)]
pub struct Status {
    state: Mutex<State>,
}

/// The numbers.
#[derive(Debug, Default, Clone)]
pub(super) struct State {
    /// When the maps were last written.
    pub updated: Option<Timestamp>,
    /// Since when a change waits.
    pub waiting: Option<Instant>,
    /// When a change last came.
    pub queued: Option<Timestamp>,
    /// Whether load balancers may send traffic here; unknown before the Node was seen.
    pub eligible: Option<bool>,
    pub sync: Histogram,
    /// Those of [`Self::sync`] that compared everything.
    pub full_sync: Histogram,
    /// Those of [`Self::sync`] that looked at what changed.
    pub partial_sync: Histogram,
    /// Syncs that failed.
    pub failures: u64,
    pub programming: Histogram<Programming>,
    pub endpoint_changes: (u64, u64),
    pub service_changes: (u64, u64),
    pub without_local_endpoints: (usize, usize),
    pub healthz: [u64; 2],
    pub livez: [u64; 2],
    pub entries: BTreeMap<&'static str, usize>,
    pub full: BTreeMap<&'static str, u64>,
    pub flow_reconciliations: Histogram,
    pub stale_flows: u64,
    pub closed_sockets: u64,
    pub unclosed_sockets: u64,
}

impl Status {
    pub(super) fn state(&self) -> State {
        self.state.lock().clone()
    }

    /// Changes of Services that came.
    pub fn service_changes(&self, count: u64) {
        let changes = &mut self.state.lock().service_changes;
        *changes = (changes.0 + count, changes.1 + count);
    }

    /// Changes of endpoints that came.
    pub fn endpoint_changes(&self, count: u64) {
        let changes = &mut self.state.lock().endpoint_changes;
        *changes = (changes.0 + count, changes.1 + count);
    }

    /// A change has to be written.
    pub fn queued(&self) {
        let mut state = self.state.lock();
        state.queued = Some(Timestamp::now());
        state.waiting.get_or_insert_with(Instant::now);
    }

    /// The maps could not be written.
    pub fn sync_failed(&self) {
        self.state.lock().failures += 1;
    }

    /// What came was written; `whole` when everything was compared, `complete` is false when something did not fit.
    pub fn synced(
        &self,
        elapsed: Duration,
        whole: bool,
        programmed: impl Iterator<Item = f64>,
        without_local_endpoints: (usize, usize),
        complete: bool,
    ) {
        let mut state = self.state.lock();
        let seconds = elapsed.as_secs_f64();
        state.sync.observe(seconds);
        if whole { &mut state.full_sync } else { &mut state.partial_sync }.observe(seconds);
        for seconds in programmed {
            state.programming.observe(seconds.max(0.0));
        }
        state.without_local_endpoints = without_local_endpoints;
        (state.endpoint_changes.0, state.service_changes.0) = (0, 0);
        if complete {
            state.waiting = None;
            state.updated = Some(Timestamp::now());
        }
    }

    /// What the service maps hold.
    pub fn sizes(&self, actual: &Actual) {
        let mut state = self.state.lock();
        state.entries.extend([
            (maps::FRONTENDS, actual.frontends.len()),
            (maps::SLOTS, actual.slots.len()),
            (maps::BACKENDS, actual.backends.len()),
            (maps::SOURCE_RANGES, actual.ranges.len()),
            (maps::MAGLEV, actual.lookups.len()),
        ]);
    }

    /// What another map holds.
    pub fn size(&self, map: &'static str, entries: usize) {
        self.state.lock().entries.insert(map, entries);
    }

    /// A map had no room.
    pub fn full(&self, map: &'static str) {
        *self.state.lock().full.entry(map).or_default() += 1;
    }

    /// Flows were compared with the endpoints that serve.
    pub fn flows_reconciled(&self, elapsed: Duration, stale: usize) {
        let mut state = self.state.lock();
        state.flow_reconciliations.observe(elapsed.as_secs_f64());
        state.stale_flows += stale as u64;
    }

    /// Sockets of backends that are gone were closed, or could not be.
    pub fn sockets_closed(&self, closed: usize, failed: usize) {
        let mut state = self.state.lock();
        state.closed_sockets += closed as u64;
        state.unclosed_sockets += failed as u64;
    }

    /// Takes over the Node.
    pub fn node(&self, node: &Node) {
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref()).into_iter().flatten();
        let leaving = node.metadata.deletion_timestamp.is_some()
            || taints.into_iter().any(|taint| taint.key == TO_BE_DELETED_TAINT);
        self.state.lock().eligible = Some(!leaving);
    }

    /// Whether no change waits for too long.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.state.lock().is_healthy()
    }

    /// Whether `/healthz` says yes, and what it says; `families` are `IPv4` and `IPv6` as far as they are served.
    pub(super) fn healthz(&self, families: &[&str]) -> (bool, Value) {
        let mut state = self.state.lock();
        let eligible = state.eligible == Some(true);
        let good = state.is_healthy() && eligible;
        state.healthz[usize::from(!good)] += 1;
        let mut answer = state.answer(families, good);
        answer["nodeEligible"] = json!(eligible);
        (good, answer)
    }

    /// Whether `/livez` says yes, and what it says.
    pub(super) fn livez(&self, families: &[&str]) -> (bool, Value) {
        let mut state = self.state.lock();
        let good = state.is_healthy();
        state.livez[usize::from(!good)] += 1;
        (good, state.answer(families, good))
    }
}

impl State {
    fn is_healthy(&self) -> bool {
        self.waiting.is_none_or(|since| since.elapsed() < LATE)
    }

    /// Upstream's `ProxyHealth` without what only `/healthz` says. A healthy proxy's last update is now.
    fn answer(&self, families: &[&str], good: bool) -> Value {
        const NEVER: &str = "0001-01-01T00:00:00Z";
        let now = Timestamp::now();
        let text = |time: Option<Timestamp>| time.map_or_else(|| NEVER.to_owned(), |time| time.to_string());
        let healthy = self.is_healthy();
        let mut answer = json!({
            "lastUpdated": text(if good { Some(now) } else { self.updated }),
            "currentTime": now.to_string(),
            "healthy": healthy,
        });
        if let Some(updated) = self.updated {
            let family = json!({"lastUpdated": updated.to_string(), "healthy": healthy});
            answer["status"] = families.iter().map(|name| ((*name).to_owned(), family.clone())).collect();
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(value: Value) -> Node {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_node_is_eligible_while_nobody_removes_it() {
        let status = Status::default();
        assert!(!status.healthz(&[]).0, "no Node was seen");
        assert!(status.livez(&[]).0);
        status.node(&node(json!({"metadata": {"name": "n"}})));
        let (good, answer) = status.healthz(&["IPv4"]);
        assert!(good);
        assert_eq!((&answer["nodeEligible"], &answer["healthy"]), (&json!(true), &json!(true)));
        assert!(answer.get("status").is_none(), "nothing was written yet");
        for leaving in [
            json!({"metadata": {"name": "n", "deletionTimestamp": "2026-01-01T00:00:00Z"}}),
            json!({"metadata": {"name": "n"}, "spec": {"taints": [
                {"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]}}),
        ] {
            status.node(&node(leaving));
            let (good, answer) = status.healthz(&["IPv4"]);
            assert_eq!(
                (good, &answer["nodeEligible"], &answer["healthy"]),
                (false, &json!(false), &json!(true))
            );
            assert!(status.livez(&[]).0, "liveness is about the proxy only");
        }
        assert_eq!(status.state().healthz, [1, 3]);
    }

    #[test]
    fn a_change_that_waits_too_long_is_unhealthy_until_it_is_written() {
        let status = Status::default();
        status.node(&node(json!({"metadata": {"name": "n"}})));
        status.queued();
        assert!(status.is_healthy(), "it is not late yet");
        status.state.lock().waiting = Instant::now().checked_sub(LATE);
        assert!(!status.is_healthy());
        assert!(!status.healthz(&[]).0 && !status.livez(&[]).0);
        status.synced(Duration::ZERO, true, std::iter::empty(), (0, 0), false);
        assert!(!status.is_healthy(), "something is still missing");
        status.synced(Duration::ZERO, true, std::iter::empty(), (0, 0), true);
        let (good, answer) = status.healthz(&["IPv4", "IPv6"]);
        assert!(good);
        assert_eq!(answer["status"]["IPv6"]["healthy"], json!(true));
    }
}
