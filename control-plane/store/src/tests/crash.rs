//! A writing process is killed at random instants; what it acknowledged is there, and nothing by halves.

use super::{events_until_now, watch_all};
use crate::{EmbeddedStore, Op, RangeRequest, Store, StoreOptions, TxnRequest};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Set in the child process: the store's directory.
const DIR: &str = "KELP_STORE_CRASH_TEST_DIR";
const WRITERS: usize = 16;
/// Keys of one transaction; they always hold the same value.
const KEYS: usize = 3;

fn key(writer: usize, part: usize) -> String {
    format!("writer/{writer:02}/{part}")
}

/// The child: writes for ever, with compactions and leases in between, and prints what was acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_writes_until_it_is_killed() {
    // Only the test below runs this as a child process.
    let Ok(dir) = std::env::var(DIR) else { return };
    let store = EmbeddedStore::open(&dir, StoreOptions::default()).unwrap();
    let writers = (0..WRITERS).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            let before = store.range(RangeRequest::key(key(writer, 0))).await.unwrap();
            let mut n: u64 = before.kvs.first().map_or(0, |kv| number(&kv.value));
            loop {
                n += 1;
                let value = format!("{n:08}{}", "x".repeat((n as usize * 37) % 3000));
                let mut txn = TxnRequest::default();
                for part in 0..KEYS {
                    txn.then.push(Op::put(key(writer, part), value.clone()));
                }
                let revision = store.txn(txn).await.unwrap().revision;
                // One write call, so that the line is whole or absent.
                std::io::stdout().write_all(format!("@ {writer} {n} {revision}\n").as_bytes()).unwrap();
                if writer == 0 && n.is_multiple_of(20) {
                    let _ = store.compact(revision - 10).await;
                }
                if writer == 1 {
                    let lease = store.lease_grant(0, 1000).await.unwrap();
                    store.lease_revoke(lease.id).await.unwrap();
                }
            }
        })
    });
    futures::future::join_all(writers.collect::<Vec<_>>()).await;
}

fn number(value: &[u8]) -> u64 {
    std::str::from_utf8(&value[..8]).unwrap().parse().unwrap()
}

/// Lets a child write for a while and kills it; returns the last value and revision each writer was promised.
fn write_and_kill(dir: &Path, after: Duration) -> BTreeMap<usize, (u64, i64)> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tests::crash::child_writes_until_it_is_killed", "--nocapture", "--test-threads=1"])
        .env(DIR, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let output = child.stdout.take().unwrap();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let killer = std::thread::spawn(move || {
        let _ = stopped.recv_timeout(after);
        child.kill().unwrap();
        child.wait().unwrap();
    });
    let mut promised = BTreeMap::new();
    let mut output = BufReader::new(output);
    let mut line = String::new();
    while output.read_line(&mut line).unwrap() > 0 {
        if let Some((_, acknowledged)) = line.trim_end().split_once("@ ") {
            let fields: Vec<_> = acknowledged.split(' ').collect();
            if let [writer, n, revision] = fields[..] {
                promised.insert(writer.parse().unwrap(), (n.parse().unwrap(), revision.parse().unwrap()));
            }
        }
        line.clear();
    }
    let _ = output.read_to_end(&mut Vec::new());
    drop(stop);
    killer.join().unwrap();
    promised
}

#[tokio::test]
async fn what_was_acknowledged_outlives_sigkill() {
    let dir = tempfile::tempdir().unwrap();
    let mut promised = BTreeMap::new();
    let mut total = 0;
    for round in 0..8u64 {
        // Uneven times, also shorter than the start of the child.
        let after = Duration::from_millis(30 + (round * 137) % 500);
        let path = dir.path().to_owned();
        let latest = tokio::task::spawn_blocking(move || write_and_kill(&path, after)).await.unwrap();
        total += latest.len();
        promised.extend(latest);
        check(dir.path(), &promised).await;
    }
    assert!(total > 0, "no child wrote anything before it was killed");
}

async fn check(dir: &Path, promised: &BTreeMap<usize, (u64, i64)>) {
    let store = EmbeddedStore::open(dir, StoreOptions::default()).unwrap();
    for writer in 0..WRITERS {
        let found = store.range(RangeRequest::prefix(format!("writer/{writer:02}/"))).await.unwrap();
        if let Some((n, revision)) = promised.get(&writer) {
            let newest = number(&found.kvs[0].value);
            assert!(newest >= *n, "writer {writer} was promised {n} and finds {newest}");
            assert!(found.kvs[0].mod_revision >= *revision);
        }
        // No part of a transaction without the rest.
        assert!(found.kvs.is_empty() || found.kvs.len() == KEYS);
        assert!(found.kvs.iter().all(|kv| kv.value == found.kvs[0].value));
        assert!(found.kvs.iter().all(|kv| kv.mod_revision == found.kvs[0].mod_revision));
    }
    // History is whole: every revision is one transaction of three puts, and no value of a writer is skipped.
    let oldest = store.compacted_revision().max(2);
    let mut watcher = store.watch(watch_all(oldest)).await.unwrap();
    let events = events_until_now(&store, &mut watcher).await.unwrap();
    let mut last: BTreeMap<_, u64> = BTreeMap::new();
    let mut revision = oldest - 1;
    for txn in events.chunk_by(|left, right| left.kv.mod_revision == right.kv.mod_revision) {
        // A revision at the compaction itself may have been overwritten in part; later ones are whole.
        assert!(txn.len() == KEYS, "{} events at revision {}", txn.len(), txn[0].kv.mod_revision);
        let (first, n) = (&txn[0].kv, number(&txn[0].kv.value));
        revision += 1;
        assert_eq!(first.mod_revision, revision);
        if let Some(before) = last.insert(first.key.clone(), n) {
            assert_eq!(n, before + 1);
        }
    }
    assert_eq!(revision, store.revision());
    store.close().await;
}
