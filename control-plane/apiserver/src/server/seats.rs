//! Seats for requests: flow control between authentication and authorization.

use super::Core;
use crate::auth::UserInfo;
use crate::flowcontrol::{Asked, Classified, Estimate, ListWork, Rejected, Seat};
use crate::handlers::Reply;
use crate::request::{Query, RequestInfo};
use http::header::{self, HeaderName, HeaderValue};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Headers that name the schema and the level of a request.
const SCHEMA: HeaderName = HeaderName::from_static("x-kubernetes-pf-flowschema-uid");
const LEVEL: HeaderName = HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid");
/// No request waits longer for a seat.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// A request that wants to be served.
pub(super) struct Wanted<'a> {
    pub(super) user: &'a UserInfo,
    pub(super) info: &'a RequestInfo,
    pub(super) query: &'a Query,
    /// Time it may take.
    pub(super) limit: Duration,
}

/// A request that is served; ends when dropped.
pub(crate) struct Entered {
    core: Arc<Core>,
    kind: usize,
    _seat: Seat,
}

impl Drop for Entered {
    fn drop(&mut self) {
        if let Some(count) = in_flight(&self.core, self.kind) {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn in_flight(core: &Core, kind: usize) -> Option<&AtomicUsize> {
    core.in_flight.get(kind)
}

/// Requests that last as long as the client likes and are no watches: nothing is known about their work.
fn is_stream(info: &RequestInfo) -> bool {
    info.verb == "proxy"
        || matches!(info.subresource.as_str(), "attach" | "exec" | "proxy" | "log" | "portforward")
}

/// What a list or the beginning of a watch reads.
fn list_work(core: &Core, wanted: &Wanted<'_>) -> Option<ListWork> {
    let Wanted { info, query, .. } = wanted;
    let version = query.text("resourceVersion");
    let legacy = matches!(version, "" | "0");
    if info.verb == "watch" && !legacy && !query.flag("sendInitialEvents") {
        return None;
    }
    let served = core.served();
    let (objects, bytes) = served.find(&info.group, &info.version, &info.resource)?.1.size();
    let limit = query.int("limit").ok().flatten().and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
    // As upstream's estimate has it, which knows no snapshots.
    let exact = query.text("resourceVersionMatch") == "Exact"
        || !query.text("continue").is_empty()
        || (limit > 0 && !legacy && query.text("resourceVersionMatch").is_empty());
    Some(ListWork {
        objects: objects as u64,
        bytes: bytes as u64,
        limit,
        single: !info.name.is_empty(),
        selects: !query.text("labelSelector").is_empty() || !query.text("fieldSelector").is_empty(),
        from_cache: info.verb == "watch" || !exact,
    })
}

/// Waits for seats. The headers belong to the answer, whatever it is.
pub(super) async fn enter(
    core: &Arc<Core>,
    wanted: &Wanted<'_>,
) -> (Vec<(HeaderName, HeaderValue)>, Result<Option<Entered>, Reply>) {
    let info = wanted.info;
    if info.is_resource && is_stream(info) {
        return (Vec::new(), Ok(None));
    }
    let sorted = core.flow.sort(&Asked { user: wanted.user, info });
    let Classified { schema, level } = sorted.classified.clone();
    let headers = vec![(SCHEMA, schema), (LEVEL, level)];
    let watchers = || {
        core.served()
            .find(&info.group, &info.version, &info.resource)
            .map_or(0, |(_, cache)| cache.watchers())
    };
    let estimate = match info.verb {
        "list" | "watch" if info.is_resource => {
            list_work(core, wanted).map_or(Estimate::Small, Estimate::List)
        }
        // A token is no object: nobody watches it.
        "create" if info.subresource == "token" => Estimate::Small,
        "create" | "update" | "patch" | "delete" if info.is_resource => Estimate::Write(&watchers),
        _ => Estimate::Small,
    };
    // A request may wait for a quarter of its time.
    let wait = (wanted.limit / 4).min(LONGEST_WAIT);
    match core.flow.seat(&sorted, &estimate, wait).await {
        Ok(seat) => {
            let reads = matches!(info.verb, "get" | "list" | "watch" | "head" | "options");
            let kind = usize::from(!reads);
            if let Some(count) = in_flight(core, kind) {
                count.fetch_add(1, Ordering::Relaxed);
            }
            (headers, Ok(Some(Entered { core: core.clone(), kind, _seat: seat })))
        }
        Err(Rejected { retry_after }) => {
            let mut reply = Reply::text(429, "Too many requests, please try again later.\n");
            reply.retry_after = Some(retry_after);
            reply.headers.push((header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")));
            (headers, Err(reply))
        }
    }
}
