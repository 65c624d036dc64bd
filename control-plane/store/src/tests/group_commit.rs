//! What happens while the disk takes its time.

use super::semantics::txn;
use super::{next, watch_all};
use crate::engine::{Batch, Engine, EngineError, MemoryEngine};
use crate::{Compare, EmbeddedStore, Op, RangeRequest, Store, StoreOptions, TxnRequest, WatchMessage};
use bytes::Bytes;
use futures::FutureExt;
use parking_lot::{Condvar, Mutex};
use std::pin::Pin;
use std::sync::Arc;

type TxnResult = Result<crate::TxnResponse, crate::StoreError>;

/// Commits wait for the gate; each lets one through.
#[derive(Default)]
struct Gated {
    inner: MemoryEngine,
    gate: Mutex<Gate>,
    changed: Condvar,
}

#[derive(Default)]
struct Gate {
    open: usize,
    waiting: bool,
    commits: Vec<usize>,
}

impl Gated {
    /// Waits until a commit stands at the gate.
    async fn commit_waits(self: &Arc<Self>) {
        let this = self.clone();
        let wait = move || {
            let mut gate = this.gate.lock();
            this.changed.wait_while(&mut gate, |gate| !gate.waiting);
        };
        tokio::task::spawn_blocking(wait).await.unwrap();
    }

    fn let_through(&self, commits: usize) {
        self.gate.lock().open += commits;
        self.changed.notify_all();
    }
}

impl Engine for Gated {
    fn commit(&self, batch: &Batch) -> Result<(), EngineError> {
        let mut gate = self.gate.lock();
        gate.waiting = true;
        self.changed.notify_all();
        self.changed.wait_while(&mut gate, |gate| gate.open == 0);
        gate.open -= 1;
        gate.waiting = false;
        gate.commits.push(batch.puts.len());
        self.inner.commit(batch)
    }
    fn get(&self, at: crate::RevKey) -> Result<Option<Bytes>, EngineError> {
        self.inner.get(at)
    }
    fn scan(&self, visit: &mut dyn FnMut(crate::RevKey, Bytes)) -> Result<(), EngineError> {
        self.inner.scan(visit)
    }
    fn meta(&self) -> Result<Vec<(String, Bytes)>, EngineError> {
        self.inner.meta()
    }
    fn disk_bytes(&self) -> u64 {
        0
    }
}

fn start() -> (Arc<Gated>, EmbeddedStore) {
    let engine = Arc::new(Gated::default());
    let store = EmbeddedStore::with_engine(engine.clone(), StoreOptions::default()).unwrap();
    (engine, store)
}

#[tokio::test]
async fn nothing_is_seen_before_it_is_durable_and_nobody_else_waits() {
    let (engine, store) = start();
    engine.let_through(1);
    store.txn(txn(vec![Op::put("a", "old")])).await.unwrap();
    let mut watcher = store.watch(watch_all(0)).await.unwrap();

    let writing = tokio::spawn({
        let store = store.clone();
        async move { store.txn(txn(vec![Op::put("a", "new")])).await }
    });
    engine.commit_waits().await;
    // The fsync is under way: reads answer at once with what is durable, watches too.
    assert_eq!(store.revision(), 2);
    let read = store.range(RangeRequest::key("a")).await.unwrap();
    assert_eq!((read.revision, read.kvs[0].value.as_ref()), (2, &b"old"[..]));
    let read_only = TxnRequest { then: vec![Op::get("a")], ..TxnRequest::default() };
    assert_eq!(store.txn(read_only).await.unwrap().revision, 2);
    watcher.request_progress();
    assert!(matches!(next(&mut watcher).await, Ok(WatchMessage::Progress { revision: 2 })));
    assert!(!writing.is_finished());

    engine.let_through(1);
    assert_eq!(writing.await.unwrap().unwrap().revision, 3);
    assert_eq!(store.revision(), 3);
    assert!(matches!(next(&mut watcher).await, Ok(WatchMessage::Events { revision: 3, .. })));
}

/// A transaction that its first poll queues whatever else the test's task has done: without this, a task that has used
/// up its cooperative budget would see the queue's semaphore as busy.
fn queued(store: &EmbeddedStore, req: TxnRequest) -> Pin<Box<impl Future<Output = TxnResult> + use<>>> {
    let store = store.clone();
    Box::pin(tokio::task::unconstrained(async move { store.txn(req).await }))
}

#[tokio::test]
async fn writes_that_arrive_during_a_commit_share_the_next_one() {
    let (engine, store) = start();
    let mut first = queued(&store, txn(vec![Op::put("k", "0")]));
    assert!(first.as_mut().now_or_never().is_none());
    engine.commit_waits().await;
    // Each sees what the one before it in the same commit did; exactly one wins the compare.
    let winner = |n: usize| TxnRequest {
        compares: vec![Compare::mod_revision("k", 2)],
        then: vec![Op::put("k", n.to_string())],
        or_else: vec![Op::get("k")],
    };
    let mut others: Vec<_> = (0..100).map(|n| queued(&store, winner(n))).collect();
    for other in &mut others {
        assert!(other.as_mut().now_or_never().is_none());
    }
    engine.let_through(2);
    assert_eq!(first.await.unwrap().revision, 2);
    let answers = futures::future::try_join_all(others).await.unwrap();
    assert_eq!(answers.iter().filter(|answer| answer.succeeded).count(), 1);
    assert!(answers[0].succeeded && answers.iter().all(|answer| answer.revision == 3));
    assert_eq!(engine.gate.lock().commits, [1, 1]);

    let mut first = queued(&store, txn(vec![Op::put("k", "x")]));
    assert!(first.as_mut().now_or_never().is_none());
    engine.commit_waits().await;
    let mut others: Vec<_> =
        (0..100).map(|n| queued(&store, txn(vec![Op::put(format!("o{n}"), "y")]))).collect();
    for other in &mut others {
        assert!(other.as_mut().now_or_never().is_none());
    }
    engine.let_through(2);
    first.await.unwrap();
    let revisions: Vec<_> =
        futures::future::try_join_all(others).await.unwrap().iter().map(|answer| answer.revision).collect();
    // One commit, one revision for each transaction, in the order of their arrival.
    assert_eq!(revisions, (5..105).collect::<Vec<_>>());
    assert_eq!(engine.gate.lock().commits, [1, 1, 1, 100]);
}

#[tokio::test]
async fn a_request_that_is_given_up_still_stands() {
    let (engine, store) = start();
    {
        let mut gone = queued(&store, txn(vec![Op::put("a", "1")]));
        assert!(gone.as_mut().now_or_never().is_none());
    }
    engine.let_through(2);
    store.txn(txn(vec![Op::put("b", "1")])).await.unwrap();
    assert_eq!(store.range(RangeRequest::prefix("")).await.unwrap().count, 2);
}
