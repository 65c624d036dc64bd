//! The store on a real directory: restarts, the lock, snapshots, a full disk, space given back.

use super::semantics::txn;
use super::{events_until_now, watch_all};
use crate::{EmbeddedStore, Op, RangeEnd, RangeRequest, Store, StoreError, StoreOptions, WatchRequest};
use futures::TryStreamExt;
use std::path::Path;

fn open(dir: &Path) -> EmbeddedStore {
    EmbeddedStore::open(dir, StoreOptions::default()).unwrap()
}

fn value(len: usize) -> Vec<u8> {
    vec![b'v'; len]
}

#[tokio::test]
async fn a_directory_is_used_by_one_store_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let second = EmbeddedStore::open(dir.path(), StoreOptions::default());
    let message = second.unwrap_err().to_string();
    assert!(message.contains(&format!("in use by process {}", std::process::id())), "{message}");
    store.close().await;
    open(dir.path());
    // Dropping the last handle lets go of it too.
    open(dir.path());
}

#[tokio::test]
async fn compaction_gives_space_back_while_writes_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut fullest = 0;
    for round in 0..80 {
        let writes = (0..16).map(|n| store.txn(txn(vec![Op::put(format!("key{n}"), value(60_000))])));
        let revision = futures::future::try_join_all(writes).await.unwrap().last().unwrap().revision;
        if round % 10 == 9 {
            store.compact(revision).await.unwrap();
            fullest = fullest.max(store.disk_bytes());
        }
    }
    // 77 MB were written, 1 MB is in use.
    while store.disk_bytes() > 30 << 20 {
        tokio::task::yield_now().await;
    }
    assert!(fullest < 70 << 20, "{fullest}");
    let all = store.range(RangeRequest::prefix("key")).await.unwrap();
    assert!(all.kvs.len() == 16 && all.kvs.iter().all(|kv| kv.value.len() == 60_000));
    store.close().await;
    assert_eq!(open(dir.path()).range(RangeRequest::prefix("key")).await.unwrap().kvs, all.kvs);
}

#[tokio::test]
async fn a_snapshot_is_the_store_at_one_revision() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("a"));
    store.lease_grant(9, 500).await.unwrap();
    for n in 0..50 {
        let lease = if n == 47 { 9 } else { 0 };
        let put = Op::Put { key: format!("k{:02}", n % 20).into(), value: value(n * 1000).into(), lease };
        store.txn(txn(vec![put])).await.unwrap();
    }
    store.txn(txn(vec![Op::delete("k03")])).await.unwrap();
    store.compact(20).await.unwrap();
    let revision = store.revision();
    let mut stream = Box::pin(store.snapshot());
    let mut bytes = stream.try_next().await.unwrap().unwrap().to_vec();
    // Changes after the snapshot began, even compactions, are not in it and do not disturb it.
    store.txn(txn(vec![Op::Delete { key: "k".into(), end: RangeEnd::prefix(b"k") }])).await.unwrap();
    store.compact(store.revision()).await.unwrap();
    while let Some(chunk) = stream.try_next().await.unwrap() {
        bytes.extend_from_slice(&chunk);
    }
    drop(stream);

    let restored_dir = dir.path().join("b");
    EmbeddedStore::restore(&restored_dir, &bytes[..]).unwrap();
    let restored = open(&restored_dir);
    assert_eq!((restored.revision(), restored.compacted_revision()), (revision, 20));
    for at in 20..=revision {
        let range = || RangeRequest { revision: at, ..RangeRequest::prefix("k") };
        let old = store.range(range()).await;
        assert!(matches!(old, Err(StoreError::Compacted { .. })), "{old:?}");
        assert!(!restored.range(range()).await.unwrap().kvs.is_empty());
    }
    assert_eq!(restored.lease_status(9).await.unwrap().keys, ["k07"]);
    let found = restored.range(RangeRequest::prefix("k")).await.unwrap();
    assert_eq!((found.count, found.kvs[18].value.len()), (19, 39_000));

    // A snapshot that is cut short or changed makes no store; a store is not overwritten.
    for damage in [bytes[..bytes.len() - 1].to_vec(), bytes[..8].to_vec(), Vec::new(), {
        let mut changed = bytes.clone();
        changed[bytes.len() / 2] ^= 1;
        changed
    }] {
        let refused_dir = dir.path().join("c");
        let refused = EmbeddedStore::restore(&refused_dir, &damage[..]);
        assert!(matches!(refused, Err(StoreError::Corrupt { .. })), "{refused:?}");
        let empty = open(&refused_dir);
        assert_eq!(empty.revision(), 1);
        drop(empty);
        std::fs::remove_dir_all(&refused_dir).unwrap();
    }
    restored.close().await;
    assert!(EmbeddedStore::restore(&restored_dir, &bytes[..]).is_err());
}

/// Runs in a thread with a mount namespace of its own, so that nobody else sees the small file system.
fn on_small_disk(test: impl FnOnce(&Path) + Send + 'static) {
    use nix::mount::{MsFlags, mount};
    let thread = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let dir = tempfile::tempdir().unwrap();
        mount(Some("kelp-store-test"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some("size=24m"))
            .unwrap();
        test(dir.path());
        nix::mount::umount2(dir.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn a_full_disk_refuses_writes_and_nothing_else() {
    on_small_disk(|disk| {
        // All on this thread: others are not in its mount namespace, and the writer's is made by it.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(full_disk(disk));
    });
}

async fn full_disk(disk: &Path) {
    let dir = disk.join("store");
    let store = open(&dir);
    let mut watcher = store.watch(watch_all(0)).await.unwrap();
    store.txn(txn(vec![Op::put("first", "1")])).await.unwrap();
    std::fs::write(disk.join("other"), value(4 << 20)).unwrap();

    // Fill it up.
    let mut written = 0;
    let mut seen = 0;
    let error = loop {
        seen += events_until_now(&store, &mut watcher).await.unwrap().len() as i64;
        match store.txn(txn(vec![Op::put(format!("k{}", written % 5), value(100_000))])).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
    };
    assert!(written > 50, "{written}");
    assert!(matches!(&error, StoreError::NoSpace { path } if dir.to_str() == Some(path)), "{error:?}");
    let revision = store.revision();
    assert_eq!(revision, 2 + written);

    // Reads, old and new, and watches go on; the refused write left nothing.
    assert_eq!(store.range(RangeRequest::prefix("k")).await.unwrap().kvs.len(), 5);
    let old = RangeRequest { revision: 10, ..RangeRequest::prefix("k") };
    assert_eq!(store.range(old).await.unwrap().kvs.len(), 5);
    assert!(events_until_now(&store, &mut watcher).await.unwrap().is_empty());
    assert_eq!(seen, 1 + written);
    let second =
        WatchRequest { key: "k".into(), end: RangeEnd::prefix(b"k"), start_revision: 3, prev_kv: true };
    let mut second = store.watch(second).await.unwrap();
    assert_eq!(events_until_now(&store, &mut second).await.unwrap().len() as i64, written);

    // A restart on the full disk works as well.
    store.close().await;
    let store = open(&dir);
    assert_eq!(store.revision(), revision);
    while store.txn(txn(vec![Op::put("more", value(100_000))])).await.is_ok() {}

    // Compaction alone makes room: most of what is there are old values.
    store.compact(store.revision()).await.unwrap();
    let mut tries = 0;
    while store.txn(txn(vec![Op::put("more", value(100_000))])).await.is_err() {
        tries += 1;
        assert!(tries < 200, "compaction did not make room");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }

    // Or somebody else frees space.
    while store.txn(txn(vec![Op::put("more", value(100_000))])).await.is_ok() {}
    std::fs::remove_file(disk.join("other")).unwrap();
    let after = store.txn(txn(vec![Op::put("more", value(100_000))])).await.unwrap();
    store.close().await;
    let store = open(&dir);
    assert_eq!(store.revision(), after.revision);
    assert_eq!(store.range(RangeRequest::prefix("k")).await.unwrap().kvs.len(), 5);
    store.close().await;
}
