//! Promises of the store that are easier to read one by one.

use super::{events_until_now, next, watch_all};
use crate::engine::{EngineError, Fault, FaultyEngine, MemoryEngine};
use crate::{
    EmbeddedStore, Op, OpResult, RangeEnd, RangeRequest, Store, StoreError, StoreOptions, TxnRequest,
    WatchMessage, WatchRequest,
};
use std::sync::Arc;
use std::time::Duration;

pub(super) fn txn(then: Vec<Op>) -> TxnRequest {
    TxnRequest { then, ..TxnRequest::default() }
}

fn bound(key: &'static str, lease: i64) -> Op {
    Op::Put { key: key.into(), value: "v".into(), lease }
}

async fn keys(store: &EmbeddedStore) -> Vec<String> {
    let all = store.range(RangeRequest::prefix("")).await.unwrap();
    all.kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect()
}

#[tokio::test]
async fn an_empty_store_is_at_revision_1_and_a_transaction_is_one_revision() {
    let store = EmbeddedStore::in_memory();
    assert_eq!(store.revision(), 1);
    let response = store.txn(txn(vec![Op::put("a", "1"), Op::put("b", "2"), Op::get("a")])).await.unwrap();
    assert_eq!((response.revision, store.revision()), (2, 2));
    let Some(OpResult::Range(range)) = response.results.last() else { panic!("{response:?}") };
    assert_eq!((range.revision, range.kvs[0].mod_revision), (2, 2));
    // Deleting nothing writes nothing.
    assert_eq!(store.txn(txn(vec![Op::delete("nope")])).await.unwrap().revision, 2);
}

#[tokio::test]
async fn a_refused_transaction_leaves_nothing_of_itself() {
    let store = EmbeddedStore::in_memory();
    let refused = store.txn(txn(vec![Op::put("a", "1"), bound("b", 77)])).await;
    assert!(matches!(refused, Err(StoreError::LeaseNotFound)), "{refused:?}");
    assert_eq!((store.revision(), keys(&store).await.len()), (1, 0));
}

#[tokio::test]
async fn progress_is_answered_without_new_writes_and_on_a_range_without_events() {
    let store = EmbeddedStore::in_memory();
    store.txn(txn(vec![Op::put("a", "1")])).await.unwrap();
    let request =
        WatchRequest { key: "zzz".into(), end: RangeEnd::Single, start_revision: 0, prev_kv: false };
    let mut watcher = store.watch(request).await.unwrap();
    for _ in 0..3 {
        assert!(events_until_now(&store, &mut watcher).await.unwrap().is_empty());
    }
    store.txn(txn(vec![Op::put("a", "2")])).await.unwrap();
    watcher.request_progress();
    assert!(matches!(next(&mut watcher).await, Ok(WatchMessage::Progress { revision: 3 })));
}

#[tokio::test]
async fn a_watch_may_start_in_the_future() {
    let store = EmbeddedStore::in_memory();
    let mut watcher = store.watch(watch_all(4)).await.unwrap();
    for value in ["2", "3", "4", "5"] {
        store.txn(txn(vec![Op::put("a", value)])).await.unwrap();
    }
    let events = events_until_now(&store, &mut watcher).await.unwrap();
    assert_eq!(events.iter().map(|event| event.kv.mod_revision).collect::<Vec<_>>(), [4, 5]);
}

#[tokio::test]
async fn all_events_of_a_revision_come_in_one_message() {
    let store = EmbeddedStore::in_memory();
    let many = |value: &'static str| txn((0..2000).map(|n| Op::put(format!("k{n:04}"), value)).collect());
    store.txn(many("1")).await.unwrap();
    let mut replayed = store.watch(watch_all(1)).await.unwrap();
    store.txn(many("2")).await.unwrap();
    for revision in [2, 3] {
        let Ok(WatchMessage::Events { events, .. }) = next(&mut replayed).await else { panic!() };
        assert_eq!(events.len(), 2000);
        assert!(events.iter().all(|event| event.kv.mod_revision == revision));
    }
}

#[tokio::test]
async fn a_slow_watcher_is_closed_and_blocks_nobody() {
    let options = StoreOptions { watch_queue_events: 50, ..StoreOptions::default() };
    let store = EmbeddedStore::with_engine(Arc::new(MemoryEngine::default()), options).unwrap();
    let mut slow = store.watch(watch_all(0)).await.unwrap();
    let mut fast = store.watch(watch_all(0)).await.unwrap();
    let mut seen = 0;
    for n in 0..2000 {
        store.txn(txn(vec![Op::put("a", n.to_string())])).await.unwrap();
        seen += events_until_now(&store, &mut fast).await.unwrap().len();
    }
    assert_eq!(seen, 2000);
    let mut last = 1;
    let error = loop {
        match next(&mut slow).await {
            Ok(WatchMessage::Events { events, .. }) => {
                for event in events {
                    assert_eq!(event.kv.mod_revision, last + 1);
                    last = event.kv.mod_revision;
                }
            }
            Ok(other) => panic!("{other:?}"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StoreError::WatchLagged), "{error}");
    assert!(slow.messages.recv().await.is_none());
    // The advice in the error works: nothing is lost by starting again.
    let mut again = store.watch(watch_all(last + 1)).await.unwrap();
    let rest = events_until_now(&store, &mut again).await.unwrap();
    assert_eq!((rest.first().unwrap().kv.mod_revision, rest.len() as i64), (last + 1, 2001 - last));
}

#[tokio::test]
async fn a_dropped_watcher_leaves_the_hub() {
    let store = EmbeddedStore::in_memory();
    let mut watcher = store.watch(watch_all(0)).await.unwrap();
    assert!(events_until_now(&store, &mut watcher).await.unwrap().is_empty());
    assert_eq!(store.shared().hub.live(), 1);
    drop(watcher);
    while store.shared().hub.live() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_lease_ends_and_takes_its_keys_along_in_one_revision() {
    let store = EmbeddedStore::in_memory();
    let lease = store.lease_grant(0, 1).await.unwrap();
    assert!(lease.id > 0);
    let mut watcher = store.watch(watch_all(0)).await.unwrap();
    store.txn(txn(vec![bound("a", lease.id), bound("b", lease.id), Op::put("c", "stays")])).await.unwrap();
    assert_eq!(store.lease_status(lease.id).await.unwrap().keys, ["a", "b"]);
    let Ok(WatchMessage::Events { events, .. }) = next(&mut watcher).await else { panic!() };
    assert_eq!(events.len(), 3);
    let Ok(WatchMessage::Events { events, revision }) = next(&mut watcher).await else { panic!() };
    assert_eq!((events.len(), revision), (2, 3));
    assert!(events.iter().all(|event| event.deleted && event.prev_kv.is_some()));
    assert_eq!(keys(&store).await, ["c"]);
    assert!(matches!(store.lease_keepalive(lease.id).await, Err(StoreError::LeaseNotFound)));
}

#[tokio::test]
async fn a_lease_that_is_kept_alive_or_left_by_its_key_deletes_nothing() {
    let store = EmbeddedStore::in_memory();
    let lease = store.lease_grant(5, 2).await.unwrap();
    assert!(matches!(store.lease_grant(5, 2).await, Err(StoreError::LeaseExists)));
    store.txn(txn(vec![bound("a", 5), bound("b", 5)])).await.unwrap();
    store.txn(txn(vec![Op::put("b", "free")])).await.unwrap();
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(store.lease_keepalive(5).await.unwrap(), lease);
    }
    assert_eq!(keys(&store).await, ["a", "b"]);
    store.lease_revoke(5).await.unwrap();
    assert_eq!(keys(&store).await, ["b"]);
    assert!(matches!(store.lease_revoke(5).await, Err(StoreError::LeaseNotFound)));
}

#[tokio::test]
async fn leases_outlive_the_store() {
    let engine = FaultyEngine::new(MemoryEngine::default());
    let open = || EmbeddedStore::with_engine(Arc::new(engine.clone()), StoreOptions::default()).unwrap();
    let store = open();
    store.lease_grant(5, 1000).await.unwrap();
    store.lease_grant(6, 1000).await.unwrap();
    store.txn(txn(vec![bound("a", 5), bound("b", 6)])).await.unwrap();
    store.lease_revoke(6).await.unwrap();
    store.close().await;
    assert!(matches!(store.txn(txn(vec![Op::put("a", "1")])).await, Err(StoreError::Closed)));
    let store = open();
    assert_eq!(store.leases().await.unwrap().iter().map(|lease| lease.id).collect::<Vec<_>>(), [5]);
    assert_eq!(store.lease_status(5).await.unwrap().keys, ["a"]);
    store.lease_revoke(5).await.unwrap();
    assert!(keys(&store).await.is_empty());
}

#[tokio::test]
async fn a_lease_that_ends_on_a_full_disk_is_revoked_later() {
    let engine = FaultyEngine::new(MemoryEngine::default());
    let store = EmbeddedStore::with_engine(Arc::new(engine.clone()), StoreOptions::default()).unwrap();
    store.lease_grant(5, 1).await.unwrap();
    store.txn(txn(vec![bound("a", 5)])).await.unwrap();
    engine.inject(Fault::Commits(EngineError::NoSpace));
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(keys(&store).await, ["a"]);
    let mut watcher = store.watch(watch_all(0)).await.unwrap();
    engine.clear();
    let Ok(WatchMessage::Events { events, .. }) = next(&mut watcher).await else { panic!() };
    assert!(events[0].deleted);
}

#[tokio::test]
async fn every_failing_commit_is_refused_whole_and_nothing_else_notices() {
    for step in 0..12 {
        let engine = FaultyEngine::new(MemoryEngine::default());
        let store = EmbeddedStore::with_engine(Arc::new(engine.clone()), StoreOptions::default()).unwrap();
        let mut watcher = store.watch(watch_all(0)).await.unwrap();
        engine.inject(Fault::Commit(step, EngineError::NoSpace));
        let mut written = Vec::new();
        let mut refused = 0;
        for n in 0..12 {
            match store.txn(txn(vec![Op::put(format!("k{n:02}"), "v"), Op::put("last", n.to_string())])).await
            {
                Ok(response) => written.push((n, response.revision)),
                Err(StoreError::NoSpace { .. }) => refused += 1,
                Err(error) => panic!("{error}"),
            }
            assert_eq!(keys(&store).await.len(), written.len() + usize::from(!written.is_empty()));
        }
        assert_eq!((written.len(), refused), (11, 1));
        // Revisions have no hole, and the watch saw exactly the writes that were acknowledged.
        assert_eq!(
            written.iter().map(|(_, revision)| *revision).collect::<Vec<_>>(),
            (2..13).collect::<Vec<_>>()
        );
        let events = events_until_now(&store, &mut watcher).await.unwrap();
        assert_eq!(events.len(), 22);
    }
}

#[tokio::test]
async fn a_failing_read_fails_its_request_only() {
    let engine = FaultyEngine::new(MemoryEngine::default());
    let options = StoreOptions { cache_bytes: 0, ..StoreOptions::default() };
    let store = EmbeddedStore::with_engine(Arc::new(engine.clone()), options).unwrap();
    store.txn(txn(vec![Op::put("a", "1"), Op::put("b", "1")])).await.unwrap();
    engine.inject(Fault::Read(1, EngineError::Failed("bad sector".to_owned())));
    let failed = store.range(RangeRequest::prefix("")).await;
    assert!(matches!(failed, Err(StoreError::Engine(_))), "{failed:?}");
    engine.inject(Fault::Read(0, EngineError::Failed("bad sector".to_owned())));
    // The second operation of the transaction fails on the read: the first one is undone.
    let failed = store.txn(txn(vec![Op::put("new", "1"), Op::put("a", "2")])).await;
    assert!(matches!(failed, Err(StoreError::Engine(_))), "{failed:?}");
    assert_eq!(keys(&store).await, ["a", "b"]);
    assert_eq!(store.txn(txn(vec![Op::put("new", "1"), Op::put("a", "2")])).await.unwrap().revision, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_writers_share_commits_and_watchers_see_revisions_in_order() {
    let store = EmbeddedStore::in_memory();
    let mut watcher = store.watch(watch_all(0)).await.unwrap();
    let writers: Vec<_> = (0..64)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut last = 0;
                for n in 0..20 {
                    let put = Op::put(format!("w{writer}"), n.to_string());
                    let revision = store.txn(txn(vec![put])).await.unwrap().revision;
                    // What was acknowledged is visible at once, and later writes are later.
                    assert!(revision > last && store.revision() >= revision);
                    last = revision;
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let events = events_until_now(&store, &mut watcher).await.unwrap();
    let revisions: Vec<_> = events.iter().map(|event| event.kv.mod_revision).collect();
    assert_eq!(revisions, (2..2 + 64 * 20).collect::<Vec<_>>());
}
