//! MVCC store with etcd v3 semantics.
//!
//! One revision per transaction; reads at any revision that is not compacted; watches from a revision that never
//! skip or repeat an event. A write is acknowledged only after fsync; concurrent writers share one.
//!
//! [`EmbeddedStore`] is the [`Store`] in this process:
//!
//! - The *writer* (one thread) is the only one that changes anything. It takes all requests that wait, evaluates them
//!   one after the other on the index and on each other's changes, commits them as one append to the log, and then
//!   shows them to readers and watchers and answers. Between commits it ends leases and gives compacted space back.
//! - *Reads* look the revision up in the in-memory index and fetch values from a small cache or from the log. They
//!   wait for nothing but the moment in which the writer adds finished changes to the index.
//! - A *watch* (one task each) replays history from the index and the log and then joins the hub, which hands every
//!   live watcher the same shared batch. A watcher whose bounded queue is full is closed; nobody waits for it.
//! - The *engine* ([`engine::Engine`]) keeps records by revision: an append-only log in segments
//!   ([`engine::LogEngine`]), in memory, or failing on purpose. Its files are described in `engine/log/format.rs`.
//!
//! Invariants: nothing is visible or answered before it is durable; the index holds no values; the writer never holds
//! a lock that readers need while it waits for the disk; history is never overwritten, only copied and dropped whole.

#![forbid(unsafe_code)]

mod embedded;
pub mod engine;
mod hub;
mod index;
mod lease;
mod lock;
mod queue;
mod read;
mod record;
mod shared;
mod snapshot;
mod txn;
mod types;
mod values;
mod view;
mod watch;
mod writer;

#[cfg(test)]
mod tests;

pub use embedded::{EmbeddedStore, StoreOptions};
pub use record::RevKey;
pub use types::*;

use bytes::Bytes;
use std::future::Future;

/// The store as the API server and the etcd API use it.
pub trait Store: Send + Sync + 'static {
    /// Reads keys; see [`RangeRequest`].
    fn range(&self, req: RangeRequest) -> impl Future<Output = Result<RangeResponse, StoreError>> + Send;

    /// Runs `then` if every compare holds, else `or_else`, as one revision; durable when it returns.
    fn txn(&self, req: TxnRequest) -> impl Future<Output = Result<TxnResponse, StoreError>> + Send;

    /// Streams the changes of a key range from a revision on (0: from now). Dropping the receiver ends the watch.
    /// A watcher that falls behind its bounded queue is ended with [`StoreError::WatchLagged`].
    fn watch(&self, req: WatchRequest) -> impl Future<Output = Result<Watcher, StoreError>> + Send;

    /// Forgets revisions below `revision`; later reads and watches below it fail with [`StoreError::Compacted`].
    fn compact(&self, revision: i64) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Grants a lease of `ttl` seconds (at least 1); `id` 0 chooses an identity. Durable when it returns. After a restart
    /// of the store every lease lives its full time again.
    fn lease_grant(&self, id: i64, ttl: i64) -> impl Future<Output = Result<Lease, StoreError>> + Send;

    /// Ends a lease and deletes its keys, as one revision.
    fn lease_revoke(&self, id: i64) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Lets a lease live its full time again; fails with [`StoreError::LeaseNotFound`] when it has ended.
    fn lease_keepalive(&self, id: i64) -> impl Future<Output = Result<Lease, StoreError>> + Send;

    /// State of a lease.
    fn lease_status(&self, id: i64) -> impl Future<Output = Result<LeaseStatus, StoreError>> + Send;

    /// All leases, by identity.
    fn leases(&self) -> impl Future<Output = Result<Vec<Lease>, StoreError>> + Send;

    /// The newest revision; 1 in an empty store, as in etcd.
    fn revision(&self) -> i64;
}

/// Where a range of keys ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RangeEnd {
    /// Only the key itself.
    Single,
    /// Keys before this one.
    Before(Bytes),
    /// All keys from the first on.
    Unbounded,
}

impl RangeEnd {
    /// The end of the range of all keys that start with `prefix`.
    pub fn prefix(prefix: &[u8]) -> Self {
        let mut end = prefix.to_vec();
        while let Some(last) = end.last_mut() {
            if *last < 0xff {
                *last += 1;
                return RangeEnd::Before(end.into());
            }
            end.pop();
        }
        RangeEnd::Unbounded
    }
}
