//! Power cuts: of what was not synced, any part may be on the disk and any part not.

use super::{TINY, check_reopened, dir_in_memory, work};
use crate::engine::log::LogEngine;
use crate::engine::log::disk::{Disk, RealDisk};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

/// Bytes that reach the disk together.
const SECTOR: usize = 32;

/// Remembers what was synced; all operations fail from the chosen step on.
#[derive(Clone)]
pub(super) struct PowerDisk {
    state: Arc<Mutex<State>>,
}

struct State {
    step: usize,
    cut_at: usize,
    files: HashMap<u64, Tracked>,
    /// Names whose directory was synced.
    names: BTreeMap<std::ffi::OsString, u64>,
}

struct Tracked {
    file: File,
    synced: Vec<u8>,
}

impl PowerDisk {
    fn cut_at(step: usize) -> Self {
        let state = State { step: 0, cut_at: step, files: HashMap::new(), names: BTreeMap::new() };
        PowerDisk { state: Arc::new(Mutex::new(state)) }
    }

    pub(super) fn is_cut(&self) -> bool {
        let state = self.state.lock();
        state.step > state.cut_at
    }

    fn step(&self) -> io::Result<parking_lot::MutexGuard<'_, State>> {
        let mut state = self.state.lock();
        state.step += 1;
        if state.step > state.cut_at { Err(io::ErrorKind::StorageFull.into()) } else { Ok(state) }
    }

    /// Makes in `to` what may be found after the cut: of every sector that was not synced, the old or the new bytes.
    fn after_cut(&self, to: &Path, seed: u64) {
        let state = self.state.lock();
        for (name, inode) in &state.names {
            let tracked = &state.files[inode];
            let current = contents(&tracked.file);
            let coin = |what: usize| {
                let mut hasher = DefaultHasher::new();
                (seed, inode, what).hash(&mut hasher);
                // Some cuts lose all, some nothing, most some.
                hasher.finish() % 4 < seed % 5
            };
            let len = if coin(usize::MAX) { current.len() } else { tracked.synced.len() };
            let mut bytes = vec![0; len];
            for (n, sector) in bytes.chunks_mut(SECTOR).enumerate() {
                let from = if coin(n) { &current } else { &tracked.synced };
                let old = from.get(n * SECTOR..).unwrap_or_default();
                let old = &old[..old.len().min(sector.len())];
                sector[..old.len()].copy_from_slice(old);
            }
            std::fs::write(to.join(name), bytes).unwrap();
        }
    }
}

fn contents(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

impl Disk for PowerDisk {
    fn create(&self, path: &Path) -> io::Result<File> {
        let mut state = self.step()?;
        let file = RealDisk.create(path)?;
        let inode = file.metadata()?.ino();
        let tracked = Tracked { file: file.try_clone()?, synced: Vec::new() };
        state.files.entry(inode).or_insert(tracked);
        Ok(file)
    }
    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        // The cut may come in the middle of it: the bytes are there and were not synced.
        RealDisk.write(file, bytes, offset).and(self.step().map(drop))
    }
    fn allocate(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        let _state = self.step()?;
        RealDisk.allocate(file, offset, len)
    }
    fn truncate(&self, file: &File, len: u64) -> io::Result<()> {
        let _state = self.step()?;
        RealDisk.truncate(file, len)
    }
    fn sync(&self, file: &File) -> io::Result<()> {
        let mut state = self.step()?;
        let inode = file.metadata()?.ino();
        if let Some(tracked) = state.files.get_mut(&inode) {
            tracked.synced = contents(&tracked.file);
        }
        Ok(())
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let _state = self.step()?;
        RealDisk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        let _state = self.step()?;
        RealDisk.remove(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.step()?;
        let names = std::fs::read_dir(dir)?.map(|entry| {
            let entry = entry?;
            Ok((entry.file_name(), entry.metadata()?.ino()))
        });
        state.names = names.collect::<io::Result<_>>()?;
        Ok(())
    }
}

#[test]
fn the_power_may_go_at_every_step() {
    let dir = dir_in_memory();
    let whole = PowerDisk::cut_at(usize::MAX);
    let engine = LogEngine::open_on(dir.path(), Arc::new(whole.clone()), TINY).unwrap();
    work(&engine, &|| false);
    let steps = whole.state.lock().step;
    assert!(steps > 100, "{steps}");
    for step in 0..steps {
        let dir = dir_in_memory();
        let disk = PowerDisk::cut_at(step);
        let Ok(engine) = LogEngine::open_on(dir.path(), Arc::new(disk.clone()), TINY) else { continue };
        let (expected, under_way) = work(&engine, &|| disk.is_cut());
        for seed in 0..5 {
            let after = dir_in_memory();
            disk.after_cut(after.path(), (step * 5 + seed) as u64);
            check_reopened(after.path(), &expected, under_way.as_ref());
        }
    }
}
