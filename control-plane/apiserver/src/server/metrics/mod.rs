//! Prometheus metrics with upstream's names. Counting costs a hash of the labels and a few atomic additions; texts are
//! made when they are asked for.

mod process;
mod requests;
mod store;
mod text;

pub(crate) use requests::{Metrics, WatchCounter};
pub(super) use store::{Metered, StoreTimes};

use super::Core;
use crate::handlers::Reply;
use kelp_store::RangeRequest;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use text::{Kind, Text};

/// The text of `/metrics`.
pub(super) async fn serve(core: Arc<Core>) -> Reply {
    let mut text = Text::default();
    let in_flight = |kind: usize| core.in_flight.get(kind).map_or(0, |count| count.load(Ordering::Relaxed));
    text.family(
        "apiserver_current_inflight_requests",
        Kind::Gauge,
        "Requests that are served now, per request kind.",
    );
    for (kind, value) in [("mutating", in_flight(1)), ("readOnly", in_flight(0))] {
        text.sample("apiserver_current_inflight_requests", &[("request_kind", kind)], value);
    }
    core.metrics.write(&mut text);
    core.store_times.write(&mut text);
    core.flow.render(text.raw());
    objects(&core, &mut text).await;
    text.family("etcd_server_revision", Kind::Gauge, "Newest revision of the store.");
    text.sample("etcd_server_revision", &[], core.store.revision());
    text.family("kubernetes_build_info", Kind::Gauge, "A constant 1 with the version as labels.");
    let version = [("major", "1"), ("minor", "36"), ("git_version", "v1.36.0+kelp"), ("platform", "linux")];
    text.sample("kubernetes_build_info", &version, 1);
    process::write(&mut text);
    Reply::bytes(200, "text/plain; version=0.0.4; charset=utf-8", text.finish())
}

/// Stored objects of every resource.
async fn objects(core: &Core, text: &mut Text) {
    let mut counts = Vec::new();
    let served = core.served();
    for row in served.registry.rows() {
        // What is served in two versions or groups is stored once.
        let (group, version, kind) = row.stored_kind();
        let stored = row.verbs.contains(&"watch")
            && (group, version, kind) == (row.group(), row.version(), row.kind());
        if !stored {
            continue;
        }
        let mut request = RangeRequest::prefix(row.prefix(""));
        request.count_only = true;
        if let Ok(response) = core.store.range(request).await {
            counts.push((row.group(), row.plural(), response.count));
        }
    }
    counts.sort_unstable();
    text.family("apiserver_resource_objects", Kind::Gauge, "Number of stored objects, by kind.");
    for (group, resource, count) in &counts {
        text.sample("apiserver_resource_objects", &[("group", group), ("resource", resource)], count);
    }
    text.family("apiserver_storage_objects", Kind::Gauge, "Number of stored objects, by resource and group.");
    for (group, resource, count) in &counts {
        let name = if group.is_empty() { (*resource).to_owned() } else { format!("{resource}.{group}") };
        text.sample("apiserver_storage_objects", &[("resource", &name)], count);
    }
}

/// The text of `/metrics/slis`: the health checks.
pub(super) fn slis(checks: &[(&'static str, &'static str, bool)]) -> Reply {
    let mut text = Text::default();
    text.family(
        "kubernetes_healthcheck",
        Kind::Gauge,
        "1 for a health check that succeeds, 0 for one that fails.",
    );
    for (name, endpoint, healthy) in checks {
        text.sample("kubernetes_healthcheck", &[("name", name), ("type", endpoint)], u8::from(*healthy));
    }
    Reply::bytes(200, "text/plain; version=0.0.4; charset=utf-8", text.finish())
}
