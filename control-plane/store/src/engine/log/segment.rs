//! Segments, and what is where in them.

use super::disk::Disk;
use super::format::{FrameWriter, REMOVAL, SEGMENT_HEADER, segment_header};
use super::{EngineError, State, record_size};
use crate::record::RevKey;
use bytes::Bytes;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub segment: u32,
    pub offset: u32,
    pub len: u32,
    pub crc: u32,
}

/// A segment as readers and the rewriting see it.
pub(super) struct Segment {
    pub file: Arc<File>,
    pub salt: u64,
    /// Bytes up to the end of the last whole frame.
    pub end: u64,
    /// Bytes of entries that are still needed.
    pub live: u64,
}

/// A record that is not needed any more and still on disk: its removal must stay on disk as long.
#[derive(Debug)]
pub(super) struct Dead {
    /// A segment that holds a copy.
    copy: u32,
    /// Segment that holds the removal; none while another copy of the record is in use.
    pub removal: Option<u32>,
    /// Other segments that hold a copy: rare, so small when there are none.
    #[expect(clippy::box_collection, reason = "one word instead of three in each of very many")]
    more: Option<Box<Vec<u32>>>,
}

impl Dead {
    /// A copy lies in another segment than this one.
    pub(super) fn has_copy_outside(&self, segment: u32) -> bool {
        self.copy != segment
            || self.more.as_ref().is_some_and(|more| more.iter().any(|copy| *copy != segment))
    }

    fn has_copy_in(&self, segment: u32) -> bool {
        self.copy == segment || self.more.as_ref().is_some_and(|more| more.contains(&segment))
    }

    /// Forgets the copies in a segment; `false`: there are no others.
    fn keeps_without(&mut self, segment: u32) -> bool {
        let mut left = self.more.take().map_or_else(Vec::new, |more| *more);
        left.push(self.copy);
        left.retain(|copy| *copy != segment);
        let Some(copy) = left.pop() else { return false };
        self.copy = copy;
        self.more = (!left.is_empty()).then(|| Box::new(left));
        true
    }
}

pub(super) fn path(dir: &Path, id: u32) -> PathBuf {
    dir.join(format!("{id:08x}.log"))
}

impl Segment {
    pub(super) fn new(file: Arc<File>, salt: u64, end: u64) -> Self {
        Segment { file, salt, end, live: 0 }
    }
}

impl State {
    fn live(&mut self, segment: u32, change: impl FnOnce(u64) -> u64) {
        if let Some(segment) = self.segments.get_mut(&segment) {
            segment.live = change(segment.live);
        }
    }

    /// A copy of a record is not needed any more.
    fn bury(&mut self, at: RevKey, segment: u32) {
        match self.dead.entry(at) {
            Entry::Vacant(vacant) => {
                vacant.insert(Dead { copy: segment, removal: None, more: None });
            }
            Entry::Occupied(dead) => dead.into_mut().more.get_or_insert_default().push(segment),
        }
    }

    /// A record was written; an older copy of it is not needed any more.
    pub(super) fn place(&mut self, at: RevKey, place: Place) {
        self.live(place.segment, |live| live + record_size(place.len));
        if let Some(old) = self.places.insert(at, place) {
            self.live(old.segment, |live| live.saturating_sub(record_size(old.len)));
            self.bury(at, old.segment);
        }
    }

    /// A record is not needed any more, as an entry in `segment` says.
    pub(super) fn remove(&mut self, at: RevKey, segment: u32) {
        if let Some(old) = self.places.remove(&at) {
            self.live(old.segment, |live| live.saturating_sub(record_size(old.len)));
            self.bury(at, old.segment);
        }
        // A removal of what is not on disk has nothing to keep away.
        let Some(dead) = self.dead.get_mut(&at) else { return };
        let old = dead.removal.replace(segment);
        self.live(segment, |live| live + REMOVAL as u64);
        if let Some(old) = old {
            self.live(old, |live| live.saturating_sub(REMOVAL as u64));
        }
    }

    /// The copy of a record in `segment` is gone from disk, or about to be.
    pub(super) fn forget_copy(&mut self, at: RevKey, segment: u32) {
        let Some(dead) = self.dead.get_mut(&at) else { return };
        if !dead.keeps_without(segment) {
            let removal = dead.removal;
            self.dead.remove(&at);
            if let Some(removal) = removal {
                self.live(removal, |live| live.saturating_sub(REMOVAL as u64));
            }
        }
    }

    /// A segment is gone, with all copies in it.
    pub(super) fn forget_segment(&mut self, segment: u32) {
        self.segments.remove(&segment);
        let copies: Vec<_> =
            self.dead.iter().filter(|(_, dead)| dead.has_copy_in(segment)).map(|(at, _)| *at).collect();
        for at in copies {
            self.forget_copy(at, segment);
        }
    }

    pub(super) fn set_fact(&mut self, name: &str, value: Option<Bytes>) {
        match value {
            Some(value) => self.meta.insert(name.to_owned(), Bytes::copy_from_slice(&value)),
            None => self.meta.remove(name),
        };
    }
}

/// The segment that is written.
pub(super) struct Active {
    pub id: u32,
    pub file: Arc<File>,
    pub salt: u64,
    /// Where the next frame goes: everything before is whole.
    pub end: u64,
    /// Everything before is durable.
    pub synced: u64,
    /// Blocks are reserved up to here.
    pub allocated: u64,
    /// Bytes after `end` may look like a frame: they must go before the next one is written.
    pub tainted: bool,
}

impl Active {
    /// Creates a segment under its final name once it is durable.
    pub(super) fn create(
        dir: &Path,
        disk: &dyn Disk,
        id: u32,
        first: Option<FrameWriter>,
    ) -> Result<Self, EngineError> {
        let (temporary, path) = (dir.join("new.tmp"), path(dir, id));
        let (salt, header) = segment_header();
        let mut bytes = header.to_vec();
        if let Some(frame) = first {
            bytes.extend(frame.finish(salt, SEGMENT_HEADER as u64, 0));
        }
        let file = disk.create(&temporary)?;
        let end = bytes.len() as u64;
        disk.allocate(&file, 0, end)
            .and_then(|()| disk.write(&file, &bytes, 0))
            .and_then(|()| disk.sync(&file))
            .and_then(|()| disk.rename(&temporary, &path))
            .and_then(|()| disk.sync_dir(dir))
            .inspect_err(|_| {
                // An empty segment under either name does no harm; a full disk is better off without.
                let _ = disk.remove(&temporary);
                let _ = disk.remove(&path);
            })?;
        Ok(Active { id, file: Arc::new(file), salt, end, synced: end, allocated: end, tainted: false })
    }

    /// Cuts off what a failed append may have left.
    pub(super) fn repair(&mut self, disk: &dyn Disk) -> Result<(), EngineError> {
        if self.tainted {
            disk.truncate(&self.file, self.end)?;
            self.allocated = self.end;
            disk.sync(&self.file)?;
            self.tainted = false;
        }
        Ok(())
    }

    /// Appends a frame; returns where it begins. After an error the segment is as it was.
    pub(super) fn append(
        &mut self,
        disk: &dyn Disk,
        frame: FrameWriter,
        sync: bool,
        ahead: u64,
    ) -> Result<u64, EngineError> {
        let offset = self.end;
        let bytes = frame.finish(self.salt, offset, self.synced);
        let end = offset + bytes.len() as u64;
        if u32::try_from(end).is_err() {
            return Err(EngineError::Failed("a transaction does not fit into a log segment".to_owned()));
        }
        if end > self.allocated {
            self.grow(disk, end, ahead)?;
        }
        let written = disk.write(&self.file, &bytes, offset);
        if let Err(error) = written.and_then(|()| if sync { disk.sync(&self.file) } else { Ok(()) }) {
            self.tainted = true;
            // If this fails too, the next append tries again first.
            let _ = self.repair(disk);
            return Err(error.into());
        }
        self.end = end;
        if sync {
            self.synced = end;
        }
        Ok(offset)
    }

    /// Reserves blocks up to `end` and some more; on an almost full disk just what is needed.
    fn grow(&mut self, disk: &dyn Disk, end: u64, ahead: u64) -> Result<(), EngineError> {
        let start = self.allocated;
        for target in [end + ahead, end] {
            match disk.allocate(&self.file, start, target - start) {
                Ok(()) => {
                    self.allocated = target;
                    return Ok(());
                }
                Err(error) if target == end => {
                    // Part of the blocks may have been reserved.
                    self.tainted = true;
                    let _ = self.repair(disk);
                    return Err(error.into());
                }
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Ends the segment where its last frame ends: a later segment says that it is whole.
    pub(super) fn seal(&mut self, disk: &dyn Disk) -> Result<(), EngineError> {
        disk.truncate(&self.file, self.end)?;
        self.allocated = self.end;
        disk.sync(&self.file)?;
        Ok(())
    }
}
