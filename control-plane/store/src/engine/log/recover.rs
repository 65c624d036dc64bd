//! Opening a log: what is whole counts, a torn tail is cut off, damage is reported.

use super::disk::Disk;
use super::format::{self, Entry, FRAME_HEADER, SEGMENT_HEADER, entries, frame_at, was_synced};
use super::segment::{Active, Place, Segment, path};
use super::{EngineError, State};
use bytes::Bytes;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

pub(super) fn open(dir: &Path, disk: &dyn Disk) -> Result<(State, Active), EngineError> {
    let mut state = State::default();
    let mut dropped = Vec::new();
    let ids = segments(dir)?;
    let mut active = None;
    for id in &ids {
        let last = Some(id) == ids.last();
        let file = OpenOptions::new().read(true).write(true).open(path(dir, *id))?;
        let mut bytes = Vec::new();
        (&file).read_to_end(&mut bytes)?;
        active = Some(load(dir, &mut state, &mut dropped, *id, file, &bytes, last)?);
    }
    for id in dropped {
        // Its removal was under way when the process ended.
        if state.segments.contains_key(&id) {
            disk.remove(&path(dir, id))?;
            state.forget_segment(id);
        }
    }
    disk.sync_dir(dir)?;
    let mut active = match active {
        Some(active) => active,
        None => {
            let active = Active::create(dir, disk, 1, None)?;
            state.segments.insert(active.id, Segment::new(active.file.clone(), active.salt, active.end));
            active
        }
    };
    // What was read may be in the page cache only, if the process was killed.
    disk.sync(&active.file)?;
    // A tail is cut off by the first commit: a store on a full or read-only disk can still be read.
    active.tainted = active.allocated > active.end;
    Ok((state, active))
}

/// Numbers of the segments in `dir`, in order.
fn segments(dir: &Path) -> Result<Vec<u32>, EngineError> {
    let mut ids = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        let id = name.to_str().and_then(|name| name.strip_suffix(".log"));
        ids.extend(id.filter(|id| id.len() == 8).and_then(|id| u32::from_str_radix(id, 16).ok()));
    }
    ids.sort_unstable();
    Ok(ids)
}

fn load(
    dir: &Path,
    state: &mut State,
    dropped: &mut Vec<u32>,
    id: u32,
    file: File,
    bytes: &[u8],
    last: bool,
) -> Result<Active, EngineError> {
    let corrupt = |detail: String| EngineError::Corrupt { file: path(dir, id).display().to_string(), detail };
    let salt =
        format::salt_of(bytes).ok_or_else(|| corrupt("it does not begin like a log segment".to_owned()))?;
    let file = Arc::new(file);
    state.segments.insert(id, Segment::new(file.clone(), salt, 0));
    let mut offset = SEGMENT_HEADER;
    while let Some(payload) = frame_at(bytes, salt, 0, offset) {
        for entry in entries(payload) {
            let entry = entry.ok_or_else(|| corrupt(format!("the frame at byte {offset} is malformed")))?;
            apply(state, dropped, id, offset + FRAME_HEADER, entry);
        }
        offset += FRAME_HEADER + payload.len();
    }
    if offset < bytes.len() && (!last || was_synced(bytes, salt, offset)) {
        return Err(corrupt(format!("the frame at byte {offset} fails its checksum")));
    }
    if let Some(segment) = state.segments.get_mut(&id) {
        segment.end = offset as u64;
    }
    let (end, allocated) = (offset as u64, bytes.len() as u64);
    Ok(Active { id, file, salt, end, synced: end, allocated, tainted: false })
}

fn apply(state: &mut State, dropped: &mut Vec<u32>, segment: u32, payload: usize, entry: Entry<'_>) {
    match entry {
        Entry::Record { at, offset, crc, record } => {
            let place = Place { segment, offset: (payload + offset) as u32, len: record.len() as u32, crc };
            state.place(at, place);
        }
        Entry::Removal { at } => state.remove(at, segment),
        Entry::Fact { name, value } => state.set_fact(name, Some(Bytes::copy_from_slice(value))),
        Entry::NoFact { name } => state.set_fact(name, None),
        Entry::NoFacts => state.meta.clear(),
        Entry::DropSegment { id } => dropped.push(id),
    }
}
