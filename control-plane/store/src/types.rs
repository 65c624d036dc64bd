//! Requests, answers and errors of the [`Store`](super::Store).

use crate::RangeEnd;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::{Notify, mpsc};

/// A key with its value and history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
    /// Revision of the put that created the key.
    pub create_revision: i64,
    /// Revision of the last put.
    pub mod_revision: i64,
    /// Number of puts since the creation, from 1.
    pub version: i64,
    /// Lease the key is bound to, 0 for none.
    pub lease: i64,
}

/// Reads a range of keys in key order.
#[derive(Debug, Clone)]
pub struct RangeRequest {
    /// First key.
    pub key: Bytes,
    /// End of the range.
    pub end: RangeEnd,
    /// Read as of this revision; 0 is the newest.
    pub revision: i64,
    /// At most this many keys; 0 is all.
    pub limit: usize,
    /// Leave the values out.
    pub keys_only: bool,
    /// Only count.
    pub count_only: bool,
}

impl RangeRequest {
    /// Reads one key, newest.
    pub fn key(key: impl Into<Bytes>) -> Self {
        RangeRequest {
            key: key.into(),
            end: RangeEnd::Single,
            revision: 0,
            limit: 0,
            keys_only: false,
            count_only: false,
        }
    }

    /// Reads all keys that start with `prefix`, newest.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let key = prefix.into();
        RangeRequest { end: RangeEnd::prefix(&key), ..Self::key(key) }
    }
}

/// Answer to a [`RangeRequest`].
#[derive(Debug, Clone)]
pub struct RangeResponse {
    /// The newest revision of the store when the range was read.
    pub revision: i64,
    /// The keys, at most `limit`; none when only counting.
    pub kvs: Vec<KeyValue>,
    /// There are more keys than `limit`.
    pub more: bool,
    /// Number of keys in the range, whatever the limit.
    pub count: usize,
}

/// What a compare looks at; an absent key has all numbers 0 and no value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CompareTarget {
    /// Number of puts since the creation.
    Version(i64),
    /// Revision of the creation.
    CreateRevision(i64),
    /// Revision of the last put.
    ModRevision(i64),
    /// The value; fails for an absent key.
    Value(Bytes),
    /// The lease.
    Lease(i64),
}

/// How a compare compares the stored fact (left) to the given one (right).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CompareOp {
    /// Equal.
    Equal,
    /// Not equal.
    NotEqual,
    /// Stored is greater.
    Greater,
    /// Stored is less.
    Less,
}

/// A condition of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// The key.
    pub key: Bytes,
    /// End of the range: every key in it must hold; a range without keys compares as an absent key.
    pub end: RangeEnd,
    /// The comparison.
    pub op: CompareOp,
    /// The fact and what it is compared with.
    pub target: CompareTarget,
}

impl Compare {
    /// A comparison of one key.
    pub fn key(key: impl Into<Bytes>, op: CompareOp, target: CompareTarget) -> Self {
        Compare { key: key.into(), end: RangeEnd::Single, op, target }
    }

    /// The key's last put was at `revision`; 0: the key does not exist.
    pub fn mod_revision(key: impl Into<Bytes>, revision: i64) -> Self {
        Self::key(key, CompareOp::Equal, CompareTarget::ModRevision(revision))
    }
}

/// One operation of a transaction.
#[derive(Debug, Clone)]
pub enum Op {
    /// Sets a key.
    Put {
        /// The key.
        key: Bytes,
        /// The value.
        value: Bytes,
        /// Lease to bind it to, 0 for none.
        lease: i64,
    },
    /// Deletes keys.
    Delete {
        /// First key.
        key: Bytes,
        /// End of the range.
        end: RangeEnd,
    },
    /// Reads keys, seeing the transaction's earlier operations.
    Range(RangeRequest),
    /// A nested transaction; its compares see the store as it was before the outermost transaction.
    Txn(Box<TxnRequest>),
}

impl Op {
    /// Sets a key that is bound to no lease.
    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Op::Put { key: key.into(), value: value.into(), lease: 0 }
    }

    /// Deletes one key.
    pub fn delete(key: impl Into<Bytes>) -> Self {
        Op::Delete { key: key.into(), end: RangeEnd::Single }
    }

    /// Reads one key.
    pub fn get(key: impl Into<Bytes>) -> Self {
        Op::Range(RangeRequest::key(key))
    }
}

/// If all compares hold, `then`, else `or_else`.
#[derive(Debug, Clone, Default)]
pub struct TxnRequest {
    /// The conditions.
    pub compares: Vec<Compare>,
    /// Operations when all hold.
    pub then: Vec<Op>,
    /// Operations when one does not.
    pub or_else: Vec<Op>,
}

/// Result of one [`Op`].
#[derive(Debug, Clone)]
pub enum OpResult {
    /// Result of a put: the key before it.
    Put {
        /// The replaced key, if there was one.
        prev: Option<KeyValue>,
    },
    /// Result of a delete: the keys before it.
    Delete {
        /// The deleted keys.
        prev: Vec<KeyValue>,
    },
    /// Result of a range.
    Range(RangeResponse),
    /// Result of a nested transaction.
    Txn(TxnResponse),
}

/// Answer to a [`TxnRequest`].
#[derive(Debug, Clone)]
pub struct TxnResponse {
    /// The store's revision after the transaction: a new one if it wrote anything.
    pub revision: i64,
    /// All compares held.
    pub succeeded: bool,
    /// One result per operation that ran.
    pub results: Vec<OpResult>,
}

/// Starts a watch.
#[derive(Debug, Clone)]
pub struct WatchRequest {
    /// First key.
    pub key: Bytes,
    /// End of the range.
    pub end: RangeEnd,
    /// First revision to deliver; 0 delivers what comes after the start.
    pub start_revision: i64,
    /// Deliver the key before each event.
    pub prev_kv: bool,
}

/// A change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// `true`: the key was deleted, `kv` holds only the key and the deletion's revision.
    pub deleted: bool,
    /// The key after the change.
    pub kv: KeyValue,
    /// The key before, if asked for and there was one.
    pub prev_kv: Option<KeyValue>,
}

/// What a watch delivers: all events of one revision are in one batch.
#[derive(Debug, Clone)]
pub enum WatchMessage {
    /// Events in the order of their revisions.
    Events {
        /// Newest revision in the batch.
        revision: i64,
        /// The events.
        events: Vec<Event>,
    },
    /// Everything up to this revision was delivered (answer to [`Watcher::request_progress`]).
    Progress {
        /// The revision.
        revision: i64,
    },
}

/// A lease: keys bound to it are deleted when it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Its identity, never 0.
    pub id: i64,
    /// Seconds it lives after it was granted or kept alive last.
    pub ttl: i64,
}

/// State of a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseStatus {
    /// The lease.
    pub lease: Lease,
    /// Seconds until it ends, rounded down.
    pub remaining: i64,
    /// Keys bound to it, in order.
    pub keys: Vec<Bytes>,
}

/// The receiving end of a watch.
#[derive(Debug)]
pub struct Watcher {
    /// Revision of the store when the watch began.
    pub revision: i64,
    /// Messages; closed after an error.
    pub messages: mpsc::Receiver<Result<WatchMessage, StoreError>>,
    /// Asks for a progress message.
    pub(crate) progress: ProgressHandle,
}

impl Watcher {
    /// Asks for a [`WatchMessage::Progress`], which comes after every event up to the present revision; requests
    /// that were not answered yet are answered together.
    pub fn request_progress(&self) {
        self.progress.request();
    }

    /// A handle that asks for progress while the receiver is in use elsewhere.
    pub fn progress_handle(&self) -> ProgressHandle {
        self.progress.clone()
    }
}

/// Asks a watch for progress; see [`Watcher::request_progress`].
#[derive(Debug, Clone, Default)]
pub struct ProgressHandle(pub(crate) Arc<ProgressState>);

#[derive(Debug, Default)]
pub(crate) struct ProgressState {
    pub(crate) wanted: AtomicBool,
    pub(crate) wake: Notify,
}

impl ProgressHandle {
    /// Asks for a progress message.
    pub fn request(&self) {
        self.0.wanted.store(true, Ordering::SeqCst);
        self.0.wake.notify_one();
    }
}

/// What can go wrong in the store.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The revision was compacted away.
    #[error("required revision has been compacted")]
    Compacted {
        /// The oldest revision that can be read.
        compact_revision: i64,
    },
    /// The revision is not written yet.
    #[error("required revision is a future revision")]
    FutureRevision {
        /// The newest revision.
        revision: i64,
    },
    /// The watcher did not keep up.
    #[error("watcher fell behind and was closed; start again from the last revision received")]
    WatchLagged,
    /// The disk is full; nothing was written and reads go on.
    #[error("no space left for the store in {path}; free space, then writes go on")]
    NoSpace {
        /// Directory of the store.
        path: String,
    },
    /// A request that etcd refuses too: an empty key, a negative revision.
    #[error("{0}")]
    Invalid(&'static str),
    /// One transaction changes a key twice.
    #[error("duplicate key given in txn request")]
    DuplicateKey,
    /// There is no such lease, or it has ended.
    #[error("requested lease not found")]
    LeaseNotFound,
    /// A lease with this identity exists.
    #[error("lease already exists")]
    LeaseExists,
    /// Another process has the store open.
    #[error("the store in {path} is in use by process {pid}; stop it, or choose another data directory")]
    Locked {
        /// Directory of the store.
        path: String,
        /// The holder's process id as it wrote it, or `unknown`.
        pid: String,
    },
    /// The data on disk or in a snapshot is not what was written.
    #[error("{path} is damaged: {detail}; restore a snapshot")]
    Corrupt {
        /// The damaged file.
        path: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The engine failed.
    #[error("store engine: {0}")]
    Engine(String),
    /// The store is shutting down.
    #[error("the store is shut down")]
    Closed,
}
