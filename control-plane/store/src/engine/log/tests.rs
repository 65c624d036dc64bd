//! The log on a file system that fails, or stops, at every single step.

mod power;

use super::disk::{Disk, RealDisk};
use super::segment::path;
use super::{LogEngine, Sizes};
use crate::engine::{Batch, Engine, EngineError};
use crate::record::RevKey;
use bytes::Bytes;
use parking_lot::Mutex;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Small, so that a few commits make many segments.
const TINY: Sizes = Sizes { segment: 600, ahead: 256, reserve: 4096, step: 200 };

/// The file system without waiting for it to be durable: these tests do not cut the power.
struct FastDisk;

impl Disk for FastDisk {
    fn sync(&self, _: &File) -> io::Result<()> {
        Ok(())
    }
    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
}

/// A directory in memory where there is one: these tests make thousands of files.
fn dir_in_memory() -> tempfile::TempDir {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.unwrap()
}

/// What happens at the chosen step.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Trouble {
    /// The operation fails once with ENOSPC; a write leaves this many bytes behind.
    Full { left: usize },
    /// It and all later ones fail, as if the process had been killed; a write leaves this many bytes behind.
    Stop { left: usize },
}

#[derive(Debug, Default)]
struct Plan {
    step: usize,
    trouble: Option<(usize, Trouble)>,
}

#[derive(Clone, Default)]
struct FaultyDisk {
    plan: Arc<Mutex<Plan>>,
}

impl FaultyDisk {
    fn at(step: usize, trouble: Trouble) -> Self {
        FaultyDisk { plan: Arc::new(Mutex::new(Plan { step: 0, trouble: Some((step, trouble)) })) }
    }

    fn steps(&self) -> usize {
        self.plan.lock().step
    }

    fn stopped(&self) -> bool {
        let plan = self.plan.lock();
        matches!(plan.trouble, Some((at, Trouble::Stop { .. })) if plan.step > at)
    }

    /// Bytes that a failing write leaves behind, or the error of another operation.
    fn strike(&self) -> Option<usize> {
        let mut plan = self.plan.lock();
        let step = plan.step;
        plan.step += 1;
        match plan.trouble {
            Some((at, Trouble::Full { left })) if step == at => Some(left),
            Some((at, Trouble::Stop { left })) if step == at => Some(left),
            Some((at, Trouble::Stop { .. })) if step > at => Some(0),
            _ => None,
        }
    }

    fn check(&self) -> io::Result<()> {
        self.strike().map_or(Ok(()), |_| Err(io::ErrorKind::StorageFull.into()))
    }
}

impl Disk for FaultyDisk {
    fn create(&self, path: &Path) -> io::Result<File> {
        self.check()?;
        RealDisk.create(path)
    }
    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        match self.strike() {
            None => RealDisk.write(file, bytes, offset),
            Some(left) => {
                RealDisk.write(file, &bytes[..left.min(bytes.len())], offset)?;
                Err(io::ErrorKind::StorageFull.into())
            }
        }
    }
    fn allocate(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        self.check()?;
        RealDisk.allocate(file, offset, len)
    }
    fn truncate(&self, file: &File, len: u64) -> io::Result<()> {
        self.check()?;
        RealDisk.truncate(file, len)
    }
    fn sync(&self, _: &File) -> io::Result<()> {
        // What was written stays: the machine does not lose power in this test.
        self.check()
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.check()?;
        RealDisk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.check()?;
        RealDisk.remove(path)
    }
    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        self.check()
    }
}

fn at(main: i64) -> RevKey {
    RevKey { main, sub: 0 }
}

fn record(main: i64) -> Bytes {
    format!("{main}:{}", "x".repeat(20 + (main as usize * 7) % 60)).into()
}

type Contents = (BTreeMap<RevKey, Bytes>, BTreeMap<String, Bytes>);

fn contents(engine: &LogEngine) -> Contents {
    let mut records = BTreeMap::new();
    engine.scan(&mut |at, record| assert!(records.insert(at, record).is_none())).unwrap();
    (records, engine.meta().unwrap().into_iter().collect())
}

/// Writes, removes and tidies up; returns what must be there and, if the last commit failed, what may be there.
fn work(engine: &LogEngine, stopped: &dyn Fn() -> bool) -> (Contents, Option<Contents>) {
    let mut expected = Contents::default();
    for n in 0..24 {
        let mut batch = Batch::default();
        batch.puts.push((at(n), record(n)));
        if n % 3 == 0 {
            batch.meta.push((format!("fact{}", n % 2), (n % 4 != 0).then(|| n.to_string().into())));
        }
        let mut after = expected.clone();
        after.0.insert(at(n), record(n));
        for (name, value) in &batch.meta {
            match value {
                Some(value) => after.1.insert(name.clone(), value.clone()),
                None => after.1.remove(name),
            };
        }
        match engine.commit(&batch) {
            Ok(()) => expected = after,
            Err(error) => {
                assert_eq!(error, EngineError::NoSpace);
                if stopped() {
                    return (expected, Some(after));
                }
                assert_eq!(contents(engine), expected, "a failed commit left something");
            }
        }
        if n % 4 == 3 {
            // Every second record becomes garbage, as compactions make it.
            let doomed: Vec<_> = expected.0.keys().filter(|at| at.main % 2 == 0).copied().collect();
            let removes = Batch { removes: doomed.clone(), ..Batch::default() };
            let before = expected.clone();
            doomed.iter().for_each(|at| drop(expected.0.remove(at)));
            if engine.commit(&removes).is_err() {
                if stopped() {
                    return (before, Some(expected));
                }
                expected = before;
            }
            for _ in 0..20 {
                if stopped() || !engine.maintain().unwrap_or(true) {
                    break;
                }
            }
        }
        if stopped() {
            return (expected, None);
        }
        assert_eq!(contents(engine), expected);
    }
    (expected, None)
}

/// What a reopened log holds: all that was acknowledged; a removal may be undone, a commit under way may be whole.
fn check_reopened(dir: &Path, expected: &Contents, under_way: Option<&Contents>) {
    let engine = LogEngine::open_on(dir, Arc::new(FastDisk), TINY).unwrap();
    let (records, facts) = contents(&engine);
    let possible = [Some(expected), under_way];
    let as_expected = possible.into_iter().flatten().any(|(kept, kept_facts)| {
        // Even records may have come back: their removal need not be durable.
        let rest = records.iter().filter(|(at, _)| at.main % 2 == 1 || kept.contains_key(at));
        rest.eq(kept.iter()) && facts == *kept_facts
    });
    assert!(as_expected, "got {records:?} {facts:?}, expected one of {possible:?}");
    // And it goes on from there.
    engine.commit(&Batch { puts: vec![(at(1000), record(1000))], ..Batch::default() }).unwrap();
    assert_eq!(engine.get(at(1000)).unwrap(), Some(record(1000)));
}

fn steps_without_trouble() -> usize {
    let dir = dir_in_memory();
    let disk = FaultyDisk::default();
    let engine = LogEngine::open_on(dir.path(), Arc::new(disk.clone()), TINY).unwrap();
    let (expected, _) = work(&engine, &|| disk.stopped());
    drop(engine);
    check_reopened(dir.path(), &expected, None);
    disk.steps()
}

/// Bytes that a failing write leaves behind: nothing, part of a header, part of a payload, all.
fn left(step: usize) -> usize {
    [0, 40, 5, 10_000][step % 4]
}

#[test]
fn every_step_may_fail_once() {
    let steps = steps_without_trouble();
    assert!(steps > 100, "{steps}");
    for step in 0..steps {
        let left = left(step);
        let dir = dir_in_memory();
        let disk = FaultyDisk::at(step, Trouble::Full { left });
        // Opening an empty directory on a full disk may fail, and is tried again.
        let open = || LogEngine::open_on(dir.path(), Arc::new(disk.clone()), TINY);
        let engine = open().or_else(|_| open()).unwrap();
        let (expected, _) = work(&engine, &|| disk.stopped());
        drop(engine);
        check_reopened(dir.path(), &expected, None);
    }
}

#[test]
fn the_process_may_stop_at_every_step() {
    for step in 0..steps_without_trouble() {
        let left = left(step);
        let dir = dir_in_memory();
        let disk = FaultyDisk::at(step, Trouble::Stop { left });
        let Ok(engine) = LogEngine::open_on(dir.path(), Arc::new(disk.clone()), TINY) else {
            check_reopened(dir.path(), &Contents::default(), None);
            continue;
        };
        let (expected, under_way) = work(&engine, &|| disk.stopped());
        drop(engine);
        check_reopened(dir.path(), &expected, under_way.as_ref());
    }
}

/// Removals of records in one segment are kept while any copy is on disk, wherever their segments go.
#[test]
fn what_was_removed_stays_removed() {
    let dir = dir_in_memory();
    let open = || LogEngine::open_on(dir.path(), Arc::new(FastDisk), TINY).unwrap();
    let mut engine = open();
    let mut live = BTreeMap::new();
    for n in 0..300i64 {
        engine.commit(&Batch { puts: vec![(at(n), record(n))], ..Batch::default() }).unwrap();
        live.insert(at(n), record(n));
        // An uneven mix of old and new.
        let removes: Vec<_> = [n - 1, n / 2, n / 3 * 2].into_iter().filter(|n| n % 5 != 0).map(at).collect();
        removes.iter().for_each(|at| drop(live.remove(at)));
        engine.commit(&Batch { removes, ..Batch::default() }).unwrap();
        while n % 7 == 0 && engine.maintain().unwrap() {}
        if n % 11 == 0 {
            drop(engine);
            engine = open();
        }
        assert_eq!(contents(&engine).0, live, "after {n}");
    }
}

#[test]
fn space_of_removed_records_is_given_back() {
    let dir = dir_in_memory();
    let sizes = Sizes { segment: 64 << 10, ahead: 16 << 10, reserve: 32 << 10, step: 16 << 10 };
    let engine = LogEngine::open_on(dir.path(), Arc::new(FastDisk), sizes).unwrap();
    for n in 0..2000 {
        engine.commit(&Batch { puts: vec![(at(n), vec![b'v'; 1000].into())], ..Batch::default() }).unwrap();
    }
    assert!(engine.disk_bytes() > 2_000_000);
    let removes: Vec<_> = (0..2000).filter(|n| n % 20 != 0).map(at).collect();
    engine.commit(&Batch { removes, ..Batch::default() }).unwrap();
    while engine.maintain().unwrap() {}
    assert!(engine.disk_bytes() < 500_000, "{}", engine.disk_bytes());
    assert!(engine.state.read().dead.len() < 2000);
    assert_eq!(contents(&engine).0.len(), 100);
}

#[test]
fn damage_is_reported_with_the_file_and_not_served() {
    let dir = dir_in_memory();
    let engine = LogEngine::open_on(dir.path(), Arc::new(FastDisk), TINY).unwrap();
    for n in 0..5 {
        engine.commit(&Batch { puts: vec![(at(n), record(n))], ..Batch::default() }).unwrap();
    }
    let file = path(dir.path(), 1);
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[70] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let read = engine.get(at(0));
    assert!(
        matches!(&read, Err(EngineError::Corrupt { file, .. }) if file.ends_with("00000001.log")),
        "{read:?}"
    );
    drop(engine);
    let opened = LogEngine::open(dir.path()).map(drop);
    assert!(
        matches!(&opened, Err(EngineError::Corrupt { detail, .. }) if detail.contains("byte 16")),
        "{opened:?}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Bytes cut off or changed anywhere are noticed, or concern only what was written last.
    #[test]
    fn a_changed_file_never_gives_wrong_records(cut in any::<bool>(), place in 0.0..1.0f64, bit in 0u8..8) {
        let dir = dir_in_memory();
        let big = Sizes { segment: 1 << 20, ..TINY };
        let engine = LogEngine::open_on(dir.path(), Arc::new(FastDisk), big).unwrap();
        for n in 0..10 {
            engine.commit(&Batch { puts: vec![(at(n), record(n))], ..Batch::default() }).unwrap();
        }
        let end = engine.writer.lock().active.end;
        drop(engine);
        let file = path(dir.path(), 1);
        let mut bytes = std::fs::read(&file).unwrap();
        bytes.truncate(end as usize);
        let place = (place * bytes.len() as f64) as usize;
        if cut {
            bytes.truncate(place);
        } else {
            bytes[place] ^= 1 << bit;
        }
        std::fs::write(&file, bytes).unwrap();
        if let Ok(engine) = LogEngine::open_on(dir.path(), Arc::new(FastDisk), big) {
            let (records, _) = contents(&engine);
            for (n, (at, bytes)) in records.into_iter().enumerate() {
                prop_assert_eq!(at.main, n as i64);
                prop_assert_eq!(bytes, record(n as i64));
            }
        }
    }
}
