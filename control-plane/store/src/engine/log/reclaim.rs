//! Giving space back: a sealed segment that is half garbage is copied, without the garbage, to the end of the log.

use super::format::{Entry, FRAME_HEADER, FrameWriter, SEGMENT_HEADER, entries, frame_at};
use super::segment::{Place, Segment, path};
use super::{EngineError, LogEngine, LogWriter};
use crate::record::RevKey;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// A segment that is being copied.
pub(super) struct Rewrite {
    id: u32,
    file: Arc<File>,
    salt: u64,
    /// Where the next step goes on.
    offset: u64,
    end: u64,
    /// Records that the segment holds a copy of.
    copies: Vec<RevKey>,
    /// All was copied and the log says so; only the file is left.
    dropped: bool,
}

impl LogEngine {
    /// Copies a bit of the segment that is being rewritten, or chooses one; `false`: there is none worth it.
    pub(super) fn rewrite_step(&self, writer: &mut LogWriter) -> Result<bool, EngineError> {
        if writer.rewrite.is_none() {
            if self.active_is_worth_it(writer.active.id) {
                self.rotate(writer)?;
            }
            writer.rewrite = self.choose(writer.active.id);
        }
        let Some(mut rewrite) = writer.rewrite.take() else { return Ok(false) };
        let outcome = if rewrite.offset < rewrite.end {
            self.copy(writer, &mut rewrite)
        } else {
            self.drop_segment(writer, &mut rewrite)
        };
        let done = matches!(outcome, Ok(true));
        if !done {
            writer.rewrite = Some(rewrite);
        }
        outcome.map(|_| true)
    }

    /// The active segment is big enough, and half garbage: a small store on a small disk has no other.
    fn active_is_worth_it(&self, active: u32) -> bool {
        let state = self.state.read();
        let Some(segment) = state.segments.get(&active) else { return false };
        segment.end >= self.sizes.segment / 4 && segment.end.saturating_sub(segment.live) * 2 >= segment.end
    }

    /// The sealed segment with the most garbage, if that is at least half of it.
    fn choose(&self, active: u32) -> Option<Rewrite> {
        let state = self.state.read();
        let garbage = |segment: &Segment| segment.end.saturating_sub(segment.live);
        let sealed = state.segments.iter().filter(|(id, _)| **id != active);
        let (id, segment) = sealed
            .filter(|(_, segment)| garbage(segment) * 2 >= segment.end)
            .max_by_key(|(_, segment)| garbage(segment))?;
        Some(Rewrite {
            id: *id,
            file: segment.file.clone(),
            salt: segment.salt,
            offset: SEGMENT_HEADER as u64,
            end: segment.end,
            copies: Vec::new(),
            dropped: false,
        })
    }

    /// Copies what is needed of the next frames.
    fn copy(&self, writer: &mut LogWriter, rewrite: &mut Rewrite) -> Result<bool, EngineError> {
        if rewrite.copies.is_empty()
            && self.state.read().segments.get(&rewrite.id).is_some_and(|s| s.live == 0)
        {
            // Nothing is needed, but the log must know which copies go.
            self.note_copies(rewrite)?;
            return Ok(false);
        }
        let bytes = self.read(rewrite)?;
        let mut frame = FrameWriter::new();
        let mut moved = Vec::new();
        let mut removals = Vec::new();
        let mut copies = Vec::new();
        let mut next = 0;
        {
            let state = self.state.read();
            for (offset, entry) in self.frames(rewrite, &bytes, &mut next)? {
                match entry {
                    Entry::Record { at, record, .. } => {
                        copies.push(at);
                        let here =
                            |place: &&Place| place.segment == rewrite.id && u64::from(place.offset) == offset;
                        if let Some(place) = state.places.get(&at).filter(here) {
                            moved.push((at, *place, frame.record(at, record)));
                        }
                    }
                    Entry::Removal { at } => {
                        let needed = state.dead.get(&at).filter(|dead| dead.removal == Some(rewrite.id));
                        if needed.is_some_and(|dead| dead.has_copy_outside(rewrite.id)) {
                            frame.removal(at);
                            removals.push(at);
                        }
                    }
                    // Every later segment begins with all facts, and drops are done before the next one begins.
                    Entry::Fact { .. }
                    | Entry::NoFact { .. }
                    | Entry::NoFacts
                    | Entry::DropSegment { .. } => {}
                }
            }
        }
        if !frame.is_empty() {
            let (segment, start) = self.append(writer, frame, false)?;
            let mut state = self.state.write();
            for (at, old, offset) in moved {
                state.place(at, Place { segment, offset: (start + offset as u64) as u32, ..old });
            }
            for at in removals {
                state.remove(at, segment);
            }
        }
        rewrite.copies.extend(copies);
        rewrite.offset += next;
        Ok(false)
    }

    /// Notes the records of a segment that holds only garbage.
    fn note_copies(&self, rewrite: &mut Rewrite) -> Result<(), EngineError> {
        while rewrite.offset < rewrite.end {
            let bytes = self.read(rewrite)?;
            let mut next = 0;
            let found = self.frames(rewrite, &bytes, &mut next)?;
            let records = found.into_iter().filter_map(|(_, entry)| match entry {
                Entry::Record { at, .. } => Some(at),
                _ => None,
            });
            rewrite.copies.extend(records);
            rewrite.offset += next;
        }
        Ok(())
    }

    /// Reads the next frames of the segment, at least one whole one.
    fn read(&self, rewrite: &Rewrite) -> Result<Vec<u8>, EngineError> {
        let left = (rewrite.end - rewrite.offset) as usize;
        let mut bytes = vec![0; left.min(self.sizes.step)];
        rewrite.file.read_exact_at(&mut bytes, rewrite.offset)?;
        let length = bytes.get(4..8).and_then(|length| length.try_into().ok()).map_or(0, u32::from_le_bytes);
        let whole = (FRAME_HEADER + length as usize).min(left);
        if bytes.len() < whole {
            bytes.resize(whole, 0);
            rewrite.file.read_exact_at(&mut bytes, rewrite.offset)?;
        }
        Ok(bytes)
    }

    /// The entries of the whole frames in `bytes`, with the offset of their record in the segment; `next` is set to
    /// the length of those frames.
    fn frames<'b>(
        &self,
        rewrite: &Rewrite,
        bytes: &'b [u8],
        next: &mut u64,
    ) -> Result<Vec<(u64, Entry<'b>)>, EngineError> {
        let mut found = Vec::new();
        let mut at = 0;
        while let Some(payload) = frame_at(bytes, rewrite.salt, rewrite.offset, at) {
            for entry in entries(payload) {
                let entry = entry.ok_or_else(|| self.damaged(rewrite, at))?;
                let offset = if let Entry::Record { offset, .. } = entry { offset } else { 0 };
                found.push((rewrite.offset + (at + FRAME_HEADER + offset) as u64, entry));
            }
            at += FRAME_HEADER + payload.len();
        }
        *next = at as u64;
        if at == 0 { Err(self.damaged(rewrite, at)) } else { Ok(found) }
    }

    fn damaged(&self, rewrite: &Rewrite, at: usize) -> EngineError {
        EngineError::Corrupt {
            file: path(&self.dir, rewrite.id).display().to_string(),
            detail: format!("the frame at byte {} fails its checksum", rewrite.offset + at as u64),
        }
    }

    /// Makes the copies durable, says in the log that the segment is not needed, and removes it.
    fn drop_segment(&self, writer: &mut LogWriter, rewrite: &mut Rewrite) -> Result<bool, EngineError> {
        if !rewrite.dropped {
            let mut frame = FrameWriter::new();
            frame.drop_segment(rewrite.id);
            self.append(writer, frame, true)?;
            rewrite.dropped = true;
            let mut state = self.state.write();
            for at in rewrite.copies.drain(..) {
                state.forget_copy(at, rewrite.id);
            }
            state.segments.remove(&rewrite.id);
        }
        match self.disk.remove(&path(&self.dir, rewrite.id)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        self.disk.sync_dir(&self.dir)?;
        Ok(true)
    }
}
