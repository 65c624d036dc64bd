//! The real engine: an append-only log in segments, the in-memory place of every record, and segments rewritten when
//! half of what they hold is not needed any more.
//!
//! MVCC history *is* a log in the order of revisions, so a commit is one append and one `fdatasync` into blocks that
//! were reserved before. An error leaves the log as it was: the tail is cut off again. Nothing is ever overwritten, so
//! readers need no lock beyond finding the place.

mod disk;
mod format;
mod reclaim;
mod recover;
mod segment;
#[cfg(test)]
mod tests;

use super::{Batch, Engine, EngineError};
use crate::record::RevKey;
use bytes::Bytes;
use disk::{Disk, RealDisk};
use format::{FRAME_HEADER, FrameWriter, MAX_PAYLOAD, RECORD_HEADER};
use parking_lot::{Mutex, RwLock};
use reclaim::Rewrite;
use segment::{Active, Dead, Place, Segment};
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Sizes of the log, in bytes.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    /// A segment that has reached this is sealed.
    segment: u64,
    /// Blocks are reserved this far ahead.
    ahead: u64,
    /// Kept free for giving space back on a full disk.
    reserve: u64,
    /// Read from a segment in one step of rewriting it.
    step: usize,
}

const SIZES: Sizes = Sizes { segment: 16 << 20, ahead: 1 << 20, reserve: 8 << 20, step: 256 << 10 };

/// Keeps records in log segments in a directory.
pub struct LogEngine {
    dir: PathBuf,
    disk: Arc<dyn Disk>,
    sizes: Sizes,
    state: RwLock<State>,
    /// Taken by commits and maintenance, before `state`; held while they wait for the disk.
    writer: Mutex<LogWriter>,
    /// Blocks that are reserved beyond the end of the segments.
    spare: AtomicU64,
}

/// Where everything is.
#[derive(Default)]
struct State {
    places: BTreeMap<RevKey, Place>,
    meta: BTreeMap<String, Bytes>,
    segments: BTreeMap<u32, Segment>,
    /// Copies of records that are not needed any more but still on disk.
    dead: BTreeMap<RevKey, Dead>,
}

struct LogWriter {
    active: Active,
    rewrite: Option<Rewrite>,
    /// The blocks for giving space back are set aside.
    reserved: bool,
}

impl LogEngine {
    /// Opens or creates the log in `dir`, which must exist and be used by one engine only; reads all of it.
    pub fn open(dir: &Path) -> Result<Self, EngineError> {
        Self::open_on(dir, Arc::new(RealDisk), SIZES)
    }

    /// With segments of a few commits, for tests.
    #[cfg(test)]
    pub(crate) fn open_tiny(dir: &Path) -> Result<Self, EngineError> {
        let sizes = Sizes { segment: 4 << 10, ahead: 1 << 10, reserve: 4 << 10, step: 1 << 10 };
        Self::open_on(dir, Arc::new(RealDisk), sizes)
    }

    fn open_on(dir: &Path, disk: Arc<dyn Disk>, sizes: Sizes) -> Result<Self, EngineError> {
        let (state, active) = recover::open(dir, disk.as_ref())?;
        let writer = LogWriter { active, rewrite: None, reserved: false };
        let engine = LogEngine {
            dir: dir.to_owned(),
            disk,
            sizes,
            state: RwLock::new(state),
            writer: Mutex::new(writer),
            spare: AtomicU64::new(0),
        };
        engine.reserve(&mut engine.writer.lock());
        Ok(engine)
    }

    /// Appends a frame to the active segment, on a new segment if that one is full; returns where it begins.
    fn append(
        &self,
        writer: &mut LogWriter,
        frame: FrameWriter,
        sync: bool,
    ) -> Result<(u32, u64), EngineError> {
        if frame.len() - FRAME_HEADER > MAX_PAYLOAD {
            return Err(EngineError::Failed(
                "a transaction is larger than a gibibyte; write less at once".to_owned(),
            ));
        }
        writer.active.repair(self.disk.as_ref())?;
        if writer.active.end >= self.sizes.segment {
            self.rotate(writer)?;
        }
        let active = &mut writer.active;
        let offset = active.append(self.disk.as_ref(), frame, sync, self.sizes.ahead)?;
        let (id, end) = (active.id, active.end);
        if let Some(segment) = self.state.write().segments.get_mut(&id) {
            segment.end = end;
        }
        self.note_spare(writer);
        Ok((id, offset))
    }

    /// Seals the active segment and begins a new one, which repeats all facts.
    fn rotate(&self, writer: &mut LogWriter) -> Result<(), EngineError> {
        writer.active.seal(self.disk.as_ref())?;
        let mut facts = FrameWriter::new();
        facts.no_facts();
        for (name, value) in &self.state.read().meta {
            facts.fact(name, Some(value));
        }
        let active = Active::create(&self.dir, self.disk.as_ref(), writer.active.id + 1, Some(facts))?;
        self.state
            .write()
            .segments
            .insert(active.id, Segment::new(active.file.clone(), active.salt, active.end));
        writer.active = active;
        Ok(())
    }

    fn note_spare(&self, writer: &LogWriter) {
        let reserve = if writer.reserved { self.sizes.reserve } else { 0 };
        let ahead = writer.active.allocated.saturating_sub(writer.active.end);
        self.spare.store(reserve + ahead, Ordering::Relaxed);
    }

    /// Makes the next removal or rewriting possible on a full disk, if there is room now.
    fn reserve(&self, writer: &mut LogWriter) {
        if writer.reserved {
            return;
        }
        let path = self.dir.join(RESERVE);
        let reserved =
            self.disk.create(&path).and_then(|file| self.disk.allocate(&file, 0, self.sizes.reserve));
        writer.reserved = reserved.is_ok();
        if !writer.reserved {
            // What was reserved of it is of no use; nothing depends on its being gone.
            let _ = self.disk.remove(&path);
        }
        self.note_spare(writer);
    }

    /// Runs something that gives space back in the end; on a full disk with the blocks set aside for it.
    fn with_reserve<T>(
        &self,
        writer: &mut LogWriter,
        mut run: impl FnMut(&Self, &mut LogWriter) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        match run(self, writer) {
            Err(EngineError::NoSpace) if writer.reserved => {
                writer.reserved = false;
                self.disk.remove(&self.dir.join(RESERVE))?;
                run(self, writer)
            }
            outcome => outcome,
        }
    }
}

/// Name of the file that keeps blocks free.
const RESERVE: &str = "reserve";

fn frame_of(batch: &Batch) -> (FrameWriter, Vec<usize>) {
    let mut frame = FrameWriter::new();
    let offsets = batch.puts.iter().map(|(at, record)| frame.record(*at, record)).collect();
    for at in &batch.removes {
        frame.removal(*at);
    }
    for (name, value) in &batch.meta {
        frame.fact(name, value.as_deref());
    }
    (frame, offsets)
}

impl Engine for LogEngine {
    fn commit(&self, batch: &Batch) -> Result<(), EngineError> {
        let mut writer = self.writer.lock();
        // Removals may come back after a power cut, until the segment that they free goes.
        let sync = !batch.puts.is_empty() || !batch.meta.is_empty();
        let write = |this: &Self, writer: &mut LogWriter| {
            let (frame, offsets) = frame_of(batch);
            Ok((this.append(writer, frame, sync)?, offsets))
        };
        let ((segment, start), offsets) = if batch.puts.is_empty() {
            self.with_reserve(&mut writer, write)?
        } else {
            write(self, &mut writer)?
        };
        let mut state = self.state.write();
        for ((at, record), offset) in batch.puts.iter().zip(offsets) {
            let offset = (start + offset as u64) as u32;
            let len = record.len() as u32;
            state.place(*at, Place { segment, offset, len, crc: crc32fast::hash(record) });
        }
        for at in &batch.removes {
            state.remove(*at, segment);
        }
        for (name, value) in &batch.meta {
            state.set_fact(name, value.clone());
        }
        Ok(())
    }

    fn get(&self, at: RevKey) -> Result<Option<Bytes>, EngineError> {
        let (place, file) = {
            let state = self.state.read();
            let Some(place) = state.places.get(&at).copied() else { return Ok(None) };
            match state.segments.get(&place.segment) {
                Some(segment) => (place, segment.file.clone()),
                None => return Err(EngineError::Failed(format!("segment {} is missing", place.segment))),
            }
        };
        let mut record = vec![0; place.len as usize];
        file.read_exact_at(&mut record, place.offset.into())?;
        if crc32fast::hash(&record) != place.crc {
            return Err(EngineError::Corrupt {
                file: segment::path(&self.dir, place.segment).display().to_string(),
                detail: format!("the record at byte {} fails its checksum", place.offset),
            });
        }
        Ok(Some(record.into()))
    }

    fn scan(&self, visit: &mut dyn FnMut(RevKey, Bytes)) -> Result<(), EngineError> {
        let places: Vec<RevKey> = self.state.read().places.keys().copied().collect();
        for at in places {
            if let Some(record) = self.get(at)? {
                visit(at, record);
            }
        }
        Ok(())
    }

    fn meta(&self) -> Result<Vec<(String, Bytes)>, EngineError> {
        Ok(self.state.read().meta.iter().map(|(name, value)| (name.clone(), value.clone())).collect())
    }

    fn maintain(&self) -> Result<bool, EngineError> {
        let mut writer = self.writer.lock();
        let more = self.with_reserve(&mut writer, Self::rewrite_step)?;
        if !more {
            self.reserve(&mut writer);
        }
        Ok(more)
    }

    fn disk_bytes(&self) -> u64 {
        let segments: u64 = self.state.read().segments.values().map(|segment| segment.end).sum();
        segments + self.spare.load(Ordering::Relaxed)
    }
}

/// Bytes that a record takes in a segment.
fn record_size(len: u32) -> u64 {
    RECORD_HEADER as u64 + u64::from(len)
}
