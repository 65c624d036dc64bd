//! Times of the store's operations, under the names of etcd's.

use super::requests::SECONDS;
use super::text::{Histogram, Kind, Text};
use crate::storage::{DynStore, StoreHandle};
use futures::FutureExt;
use futures::future::BoxFuture;
use kelp_store::{
    CompareTarget, Lease, Op, RangeEnd, RangeRequest, RangeResponse, StoreError, TxnRequest, TxnResponse,
    WatchRequest, Watcher,
};
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// One operation on one resource's keys.
struct Operation {
    times: Histogram<23>,
    errors: AtomicU64,
}

/// Operation, and the part of keys that names their resource.
type Key = (&'static str, Box<str>);

/// Writes one operation with its labels.
type Write<'a> = &'a dyn Fn(&mut Text, &[(&str, &str)], &Operation);

/// Times of all operations.
#[derive(Default)]
pub(crate) struct StoreTimes {
    operations: RwLock<BTreeMap<Key, Arc<Operation>>>,
}

/// Different kinds of keys that are told apart.
const MOST: usize = 1024;

/// `pods` of `/registry/pods/default/x`, `apps/deployments` of `/registry/apps/deployments/…`.
fn resource_of(key: &[u8]) -> &str {
    let text = std::str::from_utf8(key).unwrap_or_default();
    let text = text.strip_prefix("/registry/").unwrap_or_default();
    let mut ends = text.match_indices('/').map(|(at, _)| at);
    let Some(first) = ends.next() else { return text.get(..0).unwrap_or_default() };
    let head = text.get(..first).unwrap_or_default();
    let has_group = head.contains('.') || matches!(head, "apps" | "batch" | "autoscaling" | "policy");
    let end = if has_group { ends.next().unwrap_or(text.len()) } else { first };
    text.get(..end).unwrap_or_default()
}

impl StoreTimes {
    fn operation(&self, name: &'static str, key: &[u8]) -> Option<Arc<Operation>> {
        let resource: Box<str> = resource_of(key).into();
        let key = (name, resource);
        if let Some(found) = self.operations.read().get(&key) {
            return Some(found.clone());
        }
        let mut all = self.operations.write();
        if all.len() >= MOST {
            return None;
        }
        let make = || Arc::new(Operation { times: Histogram::new(&SECONDS), errors: AtomicU64::new(0) });
        Some(all.entry(key).or_insert_with(make).clone())
    }

    /// Writes everything.
    pub(super) fn write(&self, text: &mut Text) {
        let all: Vec<(Key, Arc<Operation>)> =
            self.operations.read().iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        let each = |text: &mut Text, write: Write<'_>| {
            for ((operation, resource), value) in &all {
                let (group, resource) = resource.split_once('/').unwrap_or(("", resource));
                let labels = [("operation", *operation), ("group", group), ("resource", resource)];
                write(text, &labels, value);
            }
        };
        let name = "etcd_request_duration_seconds";
        text.family(name, Kind::Histogram, "Time of an operation of the store, in seconds.");
        each(text, &|text, labels, value| text.histogram(name, labels, &value.times, 0));
        let name = "etcd_requests_total";
        text.family(name, Kind::Counter, "Operations of the store.");
        each(text, &|text, labels, value| text.sample(name, labels, value.times.total()));
        let name = "etcd_request_errors_total";
        text.family(name, Kind::Counter, "Operations of the store that failed.");
        each(text, &|text, labels, value| text.sample(name, labels, value.errors.load(Ordering::Relaxed)));
    }
}

/// A store whose operations are timed.
pub(crate) struct Metered {
    inner: StoreHandle,
    times: Arc<StoreTimes>,
}

impl Metered {
    /// Times the operations of `inner`.
    pub(crate) fn new(inner: StoreHandle, times: Arc<StoreTimes>) -> Self {
        Metered { inner, times }
    }

    fn timed<'a, T: Send + 'a>(
        &self,
        operation: Option<Arc<Operation>>,
        work: BoxFuture<'a, Result<T, StoreError>>,
    ) -> BoxFuture<'a, Result<T, StoreError>> {
        let Some(operation) = operation else { return work };
        let begin = Instant::now();
        work.inspect(move |outcome| {
            operation.times.time(begin.elapsed());
            if outcome.is_err() {
                operation.errors.fetch_add(1, Ordering::Relaxed);
            }
        })
        .boxed()
    }
}

/// What a transaction does first, and to which key.
fn subject(request: &TxnRequest) -> Option<(&'static str, &[u8])> {
    let creates = request.compares.iter().any(|compare| {
        matches!(
            compare.target,
            CompareTarget::ModRevision(0) | CompareTarget::CreateRevision(0) | CompareTarget::Version(0)
        )
    });
    match request.then.first()? {
        Op::Put { key, .. } => Some((if creates { "create" } else { "update" }, key)),
        Op::Delete { key, .. } => Some(("delete", key)),
        _ => None,
    }
}

impl DynStore for Metered {
    fn range(&self, req: RangeRequest) -> BoxFuture<'_, Result<RangeResponse, StoreError>> {
        let name = match (&req.end, req.count_only) {
            (_, true) => "count",
            (RangeEnd::Single, _) => "get",
            _ => "list",
        };
        let operation = self.times.operation(name, &req.key);
        self.timed(operation, self.inner.range(req))
    }

    fn txn(&self, req: TxnRequest) -> BoxFuture<'_, Result<TxnResponse, StoreError>> {
        let operation = subject(&req).and_then(|(name, key)| self.times.operation(name, key));
        self.timed(operation, self.inner.txn(req))
    }

    fn watch(&self, req: WatchRequest) -> BoxFuture<'_, Result<Watcher, StoreError>> {
        self.inner.watch(req)
    }

    fn compact(&self, revision: i64) -> BoxFuture<'_, Result<(), StoreError>> {
        self.timed(self.times.operation("compact", b""), self.inner.compact(revision))
    }

    fn lease_grant(&self, id: i64, ttl: i64) -> BoxFuture<'_, Result<Lease, StoreError>> {
        self.inner.lease_grant(id, ttl)
    }

    fn revision(&self) -> i64 {
        self.inner.revision()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_name_their_resource() {
        assert_eq!(resource_of(b"/registry/pods/default/p"), "pods");
        assert_eq!(resource_of(b"/registry/apps/deployments/default/d"), "apps/deployments");
        assert_eq!(resource_of(b"/registry/coordination.k8s.io/leases/a/b"), "coordination.k8s.io/leases");
        assert_eq!(resource_of(b"/registry/health"), "");
        assert_eq!(resource_of(b"other"), "");
    }
}
