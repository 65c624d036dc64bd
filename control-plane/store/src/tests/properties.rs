//! Random histories against the reference model, on every engine, with restarts and compactions in between.

use super::model::Model;
use super::{events_until_now, next};
use crate::engine::{Engine, EngineError, Fault, FaultyEngine, LogEngine, MemoryEngine};
use crate::{
    Compare, CompareOp, CompareTarget, EmbeddedStore, Event, Op, RangeEnd, RangeRequest, Store, StoreError,
    StoreOptions, TxnRequest, WatchRequest, Watcher,
};
use bytes::Bytes;
use proptest::prelude::*;
use std::sync::Arc;

#[derive(Debug, Clone)]
enum Step {
    Txn(TxnRequest),
    /// Transactions that are under way together.
    Together(Vec<TxnRequest>),
    Range(RangeRequest, Fraction),
    Watch(WatchRequest, Fraction),
    Compact(Fraction),
    Reopen,
    FailNextCommit,
}

/// A revision as a share of those there are; 1.2 is in the future.
type Fraction = f64;

fn key() -> impl Strategy<Value = Bytes> {
    prop::sample::select(vec!["a", "a/1", "a/2", "a/22", "b", "b/1", "c"]).prop_map(Bytes::from)
}

fn end() -> impl Strategy<Value = RangeEnd> {
    prop_oneof![
        3 => Just(RangeEnd::Single),
        2 => key().prop_map(|key| RangeEnd::prefix(&key)),
        2 => key().prop_map(RangeEnd::Before),
        1 => Just(RangeEnd::Unbounded),
    ]
}

fn value() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        4 => "[xyz]{0,2}".prop_map(Bytes::from),
        1 => (1000..9000usize).prop_map(|len| vec![b'v'; len].into()),
    ]
}

fn range() -> impl Strategy<Value = RangeRequest> {
    (key(), end(), 0..4usize, any::<bool>(), prop::bool::weighted(0.2)).prop_map(
        |(key, end, limit, keys_only, count_only)| RangeRequest {
            key,
            end,
            revision: 0,
            limit,
            keys_only,
            count_only,
        },
    )
}

fn compare() -> impl Strategy<Value = Compare> {
    let target = prop_oneof![
        (0..4i64).prop_map(CompareTarget::Version),
        (0..20i64).prop_map(CompareTarget::CreateRevision),
        (0..20i64).prop_map(CompareTarget::ModRevision),
        value().prop_map(CompareTarget::Value),
        (0..2i64).prop_map(CompareTarget::Lease),
    ];
    let op = prop::sample::select(vec![
        CompareOp::Equal,
        CompareOp::NotEqual,
        CompareOp::Greater,
        CompareOp::Less,
    ]);
    (key(), end(), op, target).prop_map(|(key, end, op, target)| Compare { key, end, op, target })
}

fn txn() -> impl Strategy<Value = TxnRequest> {
    let op = prop_oneof![
        5 => (key(), value()).prop_map(|(key, value)| Op::Put { key, value, lease: 0 }),
        2 => (key(), end()).prop_map(|(key, end)| Op::Delete { key, end }),
        2 => range().prop_map(Op::Range),
    ]
    .boxed();
    let op = op.prop_recursive(2, 8, 3, |inner| {
        let ops = || prop::collection::vec(inner.clone(), 0..3);
        (prop::collection::vec(compare(), 0..2), ops(), ops())
            .prop_map(|(compares, then, or_else)| Op::Txn(Box::new(TxnRequest { compares, then, or_else })))
    });
    let ops = || prop::collection::vec(op.clone(), 0..4);
    (prop::collection::vec(compare(), 0..2), ops(), ops()).prop_map(|(compares, then, or_else)| TxnRequest {
        compares,
        then,
        or_else,
    })
}

fn step() -> impl Strategy<Value = Step> {
    let watch = (key(), end(), any::<bool>()).prop_map(|(key, end, prev_kv)| WatchRequest {
        key,
        end,
        start_revision: 0,
        prev_kv,
    });
    prop_oneof![
        12 => txn().prop_map(Step::Txn),
        3 => prop::collection::vec(txn(), 2..6).prop_map(Step::Together),
        4 => (range(), 0.0..1.2).prop_map(|(range, at)| Step::Range(range, at)),
        2 => (watch, 0.0..1.2).prop_map(|(watch, at)| Step::Watch(watch, at)),
        1 => (0.0..1.1).prop_map(Step::Compact),
        1 => Just(Step::Reopen),
        1 => Just(Step::FailNextCommit),
    ]
}

/// A store that can be closed and opened again, beside its model.
struct Harness {
    engine: Box<dyn Fn() -> Arc<dyn Engine>>,
    faults: Option<FaultyEngine<MemoryEngine>>,
    store: EmbeddedStore,
    model: Model,
    watches: Vec<(WatchRequest, i64, Watcher)>,
}

impl Harness {
    fn new(engine: Box<dyn Fn() -> Arc<dyn Engine>>, faults: Option<FaultyEngine<MemoryEngine>>) -> Self {
        // A small cache, so that reads go to the engine too.
        let store = open(&engine);
        Harness { engine, faults, store, model: Model::new(), watches: Vec::new() }
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Txn(txn) => {
                let got = self.store.txn(txn.clone()).await;
                self.expect_txn(&txn, got);
            }
            Step::Together(txns) => {
                let running: Vec<_> = txns.iter().map(|txn| self.store.txn(txn.clone())).collect();
                // Polled in order, so queued in order.
                for (txn, got) in txns.iter().zip(futures::future::join_all(running).await) {
                    if crate::txn::writes(txn) {
                        self.expect_txn(txn, got);
                    }
                }
            }
            Step::Range(mut range, at) => {
                range.revision = (at * self.model.revision() as f64) as i64;
                assert_same(&self.store.range(range.clone()).await, &self.model.range(&range));
            }
            Step::Watch(mut watch, at) => {
                watch.start_revision = (at * self.model.revision() as f64) as i64;
                let start = watch.start_revision;
                match self.store.watch(watch.clone()).await {
                    Ok(watcher) => {
                        assert_eq!(watcher.revision, self.model.revision());
                        assert!(start == 0 || start >= self.model.compacted);
                        let from = if start == 0 { self.model.revision() + 1 } else { start };
                        self.watches.push((watch, from, watcher));
                    }
                    Err(StoreError::Compacted { compact_revision }) => {
                        assert_eq!(compact_revision, self.model.compacted);
                        assert!(start > 0 && start < compact_revision);
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            Step::Compact(at) => {
                self.check_watches().await;
                let revision = (at * self.model.revision() as f64) as i64;
                match self.store.compact(revision).await {
                    Ok(()) => {
                        assert!(revision > self.model.compacted && revision <= self.model.revision());
                        self.model.compacted = revision;
                    }
                    Err(StoreError::Compacted { .. }) => assert!(revision <= self.model.compacted),
                    Err(StoreError::FutureRevision { .. }) => assert!(revision > self.model.revision()),
                    Err(error) => panic!("{error}"),
                }
            }
            Step::Reopen => {
                self.check_watches().await;
                self.store.close().await;
                for (_, _, mut watcher) in self.watches.drain(..) {
                    assert!(matches!(next(&mut watcher).await, Err(StoreError::Closed)));
                }
                self.store = EmbeddedStore::in_memory();
                self.store = open(&self.engine);
                assert_eq!(self.store.revision(), self.model.revision());
            }
            Step::FailNextCommit => {
                let Some(faults) = &self.faults else { return };
                faults.inject(Fault::Commits(EngineError::NoSpace));
                let put = TxnRequest { then: vec![Op::put("a", "lost")], ..TxnRequest::default() };
                let refused = self.store.txn(put).await;
                assert!(matches!(refused, Err(StoreError::NoSpace { .. })), "{refused:?}");
                faults.clear();
            }
        }
        assert_eq!(self.store.revision(), self.model.revision());
    }

    fn expect_txn(&mut self, txn: &TxnRequest, got: Result<crate::TxnResponse, StoreError>) {
        match got {
            Err(StoreError::DuplicateKey) => assert!(crate::txn::check_txn(txn).is_err()),
            got => assert_same(&got, &self.model.txn(txn)),
        }
    }

    /// Every watch delivered what the model says, no more and no less.
    async fn check_watches(&mut self) {
        for (watch, from, watcher) in &mut self.watches {
            let got = events_until_now(&self.store, watcher).await.unwrap();
            let mut expected = self.model.watched(&watch.key, &watch.end, *from, watch.prev_kv);
            forget_compacted(&got, &mut expected, self.model.compacted);
            assert_eq!(got, expected);
            *from = self.model.revision() + 1;
        }
    }

    async fn finish(mut self) {
        self.check_watches().await;
        let from = self.model.compacted.max(1);
        let watch =
            WatchRequest { key: "".into(), end: RangeEnd::Unbounded, start_revision: from, prev_kv: true };
        let mut watcher = self.store.watch(watch).await.unwrap();
        let got = events_until_now(&self.store, &mut watcher).await.unwrap();
        let mut expected = self.model.watched(b"", &RangeEnd::Unbounded, from, true);
        forget_compacted(&got, &mut expected, self.model.compacted);
        assert_eq!(got, expected);
        for revision in from..=self.model.revision() {
            let all = RangeRequest { revision, ..RangeRequest::prefix("") };
            assert_same(&self.store.range(all.clone()).await, &self.model.range(&all));
        }
        self.store.close().await;
    }
}

/// The key before an event may be compacted away, at the compacted revision only.
fn forget_compacted(got: &[Event], expected: &mut [Event], compacted: i64) {
    for (got, expected) in got.iter().zip(expected) {
        if got.prev_kv.is_none() && expected.kv.mod_revision <= compacted {
            expected.prev_kv = None;
        }
    }
}

fn assert_same<T: std::fmt::Debug>(got: &Result<T, StoreError>, expected: &Result<T, StoreError>) {
    assert_eq!(format!("{got:?}"), format!("{expected:?}"));
}

fn open(engine: &dyn Fn() -> Arc<dyn Engine>) -> EmbeddedStore {
    let options = StoreOptions { cache_bytes: 2000, ..StoreOptions::default() };
    EmbeddedStore::with_engine(engine(), options).unwrap()
}

fn run(harness: impl FnOnce() -> Harness, steps: Vec<Step>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut harness = harness();
        for step in steps {
            harness.step(step).await;
        }
        harness.finish().await;
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn memory_engine_behaves_as_the_model(steps in prop::collection::vec(step(), 1..40)) {
        run(|| {
            let engine = FaultyEngine::new(MemoryEngine::default());
            let faults = engine.clone();
            Harness::new(Box::new(move || Arc::new(engine.clone())), Some(faults))
        }, steps);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, max_shrink_iters: 500, ..ProptestConfig::default() })]

    #[test]
    fn log_engine_behaves_as_the_model(steps in prop::collection::vec(step(), 1..40)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        run(|| Harness::new(Box::new(move || Arc::new(LogEngine::open_tiny(&path).unwrap())), None), steps);
    }
}
