//! Requests, answers and errors of the [`Store`](super::Store).

use crate::RangeEnd;
use bytes::Bytes;
use tokio::sync::mpsc;

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

/// Answer to a [`RangeRequest`].
#[derive(Debug, Clone)]
pub struct RangeResponse {
    /// The newest revision of the store when the range was read.
    pub revision: i64,
    /// The keys, at most `limit`.
    pub kvs: Vec<KeyValue>,
    /// There are more keys than `limit`.
    pub more: bool,
    /// Number of keys in the range.
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
    /// The comparison.
    pub op: CompareOp,
    /// The fact and what it is compared with.
    pub target: CompareTarget,
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

/// The receiving end of a watch.
#[derive(Debug)]
pub struct Watcher {
    /// Revision of the store when the watch began.
    pub revision: i64,
    /// Messages; closed after an error.
    pub messages: mpsc::Receiver<Result<WatchMessage, StoreError>>,
    /// Asks for a progress message.
    pub(crate) progress: mpsc::UnboundedSender<()>,
}

impl Watcher {
    /// Asks for a [`WatchMessage::Progress`], which comes after every event up to the present revision.
    pub fn request_progress(&self) {
        // The watch has ended when nobody listens; its last message says so.
        let _ = self.progress.send(());
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
    /// The engine failed.
    #[error("store engine: {0}")]
    Engine(String),
    /// The store is shutting down.
    #[error("the store is shut down")]
    Closed,
}
