//! A consistent copy of the store as a stream of bytes, and a store made of it.
//!
//! ```text
//! "KELPSNP1" · frame… · end frame
//! frame: length u32 · CRC-32 of all bytes of the snapshot before the frame and of the payload u32 · payload
//! payload: 1 · name length u16 · name · value       a fact
//!          2 · revision i64 · sub u32 · record      a record
//!          3 · revision i64                         the end: the store's revision
//! ```

use crate::embedded::EmbeddedStore;
use crate::engine::{Batch, Engine, LogEngine};
use crate::lock::DirLock;
use crate::record::{Record, RevKey};
use crate::shared::{Pin, Shared};
use crate::writer;
use crate::{StoreError, embedded};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::Stream;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

const MAGIC: &[u8; 8] = b"KELPSNP1";
/// Bytes that one item of the stream has about.
const CHUNK: usize = 256 << 10;
/// Bytes of records that one commit of a restore holds about.
const COMMIT: usize = 1 << 20;
const MAX_PAYLOAD: u32 = 1 << 30;

/// What is left to stream.
struct Source {
    shared: Arc<Shared>,
    /// Nothing is removed while the snapshot is taken.
    _pin: Pin,
    revision: i64,
    facts: Vec<(String, Bytes)>,
    records: std::vec::IntoIter<RevKey>,
    crc: crc32fast::Hasher,
    stage: Stage,
}

#[derive(PartialEq)]
enum Stage {
    Start,
    Records,
    Done,
}

impl EmbeddedStore {
    /// Streams a snapshot of the store as it is now, with its history and leases. Writes go on meanwhile, but the
    /// space of compacted revisions is not given back.
    pub fn snapshot(&self) -> impl Stream<Item = Result<Bytes, StoreError>> + Send + use<> {
        let source = Source::new(self.shared().clone());
        futures::stream::unfold(Some(source), |source| async move {
            let mut source = source.filter(|source| source.stage != Stage::Done)?;
            let read = tokio::task::spawn_blocking(move || {
                let chunk = source.chunk();
                (chunk, source)
            });
            match read.await {
                Ok((Ok(chunk), source)) => Some((Ok(chunk), Some(source))),
                Ok((Err(error), _)) => Some((Err(error), None)),
                Err(error) => Some((Err(StoreError::Engine(error.to_string())), None)),
            }
        })
    }

    /// Makes a store in `dir`, which must not hold one, of a snapshot (blocks). Fails with [`StoreError::Corrupt`] if
    /// the snapshot is damaged or cut short; the directory holds no store then.
    pub fn restore(dir: &Path, snapshot: impl Read) -> Result<(), StoreError> {
        let failed = |error| StoreError::from_engine(error, dir);
        embedded::create_dir(dir).map_err(|error| failed(error.into()))?;
        let _lock = DirLock::acquire(dir)?;
        let holds_store =
            |entry: std::fs::DirEntry| entry.path().extension().is_some_and(|extension| extension == "log");
        if std::fs::read_dir(dir).map_err(|error| failed(error.into()))?.flatten().any(holds_store) {
            return Err(StoreError::Engine(format!(
                "{} holds a store already; restore into an empty directory",
                dir.display()
            )));
        }
        // In a directory of its own until it is whole.
        let partial = dir.join("restore.tmp");
        let _ = std::fs::remove_dir_all(&partial);
        std::fs::create_dir(&partial).map_err(|error| failed(error.into()))?;
        let outcome =
            LogEngine::open(&partial).map_err(failed).and_then(|engine| fill(&engine, dir, snapshot));
        let moved = outcome.and_then(|()| move_files(&partial, dir).map_err(|error| failed(error.into())));
        let _ = std::fs::remove_dir_all(&partial);
        moved
    }
}

/// Moves the segments, the first one last: without it the directory holds no store.
fn move_files(from: &Path, to: &Path) -> std::io::Result<()> {
    let mut names: Vec<_> =
        std::fs::read_dir(from)?.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<_>>()?;
    names.retain(|name| Path::new(name).extension().is_some_and(|extension| extension == "log"));
    names.sort_unstable_by(|left, right| right.cmp(left));
    for name in names {
        std::fs::rename(from.join(&name), to.join(&name))?;
        std::fs::File::open(to)?.sync_all()?;
    }
    Ok(())
}

impl Source {
    fn new(shared: Arc<Shared>) -> Self {
        let pin = shared.pin();
        let state = shared.state.read();
        let mut records: Vec<_> = state.keys.values().flatten().map(|entry| entry.at).collect();
        records.sort_unstable();
        let compacted =
            (writer::COMPACTED.to_owned(), Bytes::copy_from_slice(&state.compacted.to_le_bytes()));
        let leases = shared.leases.lock().all();
        let revision = state.revision;
        drop(state);
        let fact = |lease: crate::Lease| {
            (format!("{}{}", writer::LEASE, lease.id), Bytes::copy_from_slice(&lease.ttl.to_le_bytes()))
        };
        let mut facts = vec![compacted];
        facts.extend(leases.into_iter().map(fact));
        let crc = crc32fast::Hasher::new();
        Source { shared, _pin: pin, revision, facts, records: records.into_iter(), crc, stage: Stage::Start }
    }

    /// The next bytes (blocks).
    fn chunk(&mut self) -> Result<Bytes, StoreError> {
        let mut out = BytesMut::with_capacity(CHUNK + CHUNK / 4);
        if self.stage == Stage::Start {
            self.raw(&mut out, MAGIC);
            for (name, value) in std::mem::take(&mut self.facts) {
                let mut payload = vec![1];
                payload.put_u16_le(name.len() as u16);
                payload.put_slice(name.as_bytes());
                payload.put_slice(&value);
                self.frame(&mut out, &payload);
            }
            self.stage = Stage::Records;
        }
        while out.len() < CHUNK {
            let Some(at) = self.records.next() else {
                let mut payload = vec![3];
                payload.put_i64_le(self.revision);
                self.frame(&mut out, &payload);
                self.stage = Stage::Done;
                break;
            };
            let Some(record) = self.shared.values.record(at)? else {
                return Err(StoreError::Engine(format!(
                    "the record of revision {}.{} is missing",
                    at.main, at.sub
                )));
            };
            let mut payload = Vec::with_capacity(13 + record.len());
            payload.put_u8(2);
            payload.put_i64_le(at.main);
            payload.put_u32_le(at.sub);
            payload.put_slice(&record);
            self.frame(&mut out, &payload);
        }
        Ok(out.freeze())
    }

    fn frame(&mut self, out: &mut BytesMut, payload: &[u8]) {
        let mut crc = self.crc.clone();
        crc.update(payload);
        let mut header = [0; 8];
        header[..4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        header[4..].copy_from_slice(&crc.finalize().to_le_bytes());
        self.raw(out, &header);
        self.raw(out, payload);
    }

    fn raw(&mut self, out: &mut BytesMut, bytes: &[u8]) {
        self.crc.update(bytes);
        out.put_slice(bytes);
    }
}

/// Reads frames and checks that each follows the ones before it.
struct Frames<R> {
    from: R,
    crc: crc32fast::Hasher,
}

impl<R: Read> Frames<R> {
    fn exact(&mut self, len: usize) -> Result<Vec<u8>, StoreError> {
        let mut bytes = Vec::new();
        let read = (&mut self.from).take(len as u64).read_to_end(&mut bytes);
        read.map_err(|error| StoreError::Engine(format!("cannot read the snapshot: {error}")))?;
        if bytes.len() < len { Err(damaged("it ends early")) } else { Ok(bytes) }
    }

    fn next(&mut self) -> Result<Bytes, StoreError> {
        let header = self.exact(8)?;
        let (mut len, mut crc) = (&header[..4], &header[4..]);
        let (len, crc) = (len.get_u32_le(), crc.get_u32_le());
        if len > MAX_PAYLOAD {
            return Err(damaged("a part of it is too long"));
        }
        let payload = self.exact(len as usize)?;
        let mut expected = self.crc.clone();
        expected.update(&payload);
        if expected.finalize() != crc {
            return Err(damaged("a part of it fails its checksum"));
        }
        self.crc.update(&header);
        self.crc.update(&payload);
        Ok(payload.into())
    }
}

fn damaged(detail: &str) -> StoreError {
    StoreError::Corrupt { path: "the snapshot".to_owned(), detail: detail.to_owned() }
}

/// Writes a snapshot into an empty engine.
fn fill(engine: &LogEngine, dir: &Path, from: impl Read) -> Result<(), StoreError> {
    let mut frames = Frames { from, crc: crc32fast::Hasher::new() };
    let magic = frames.exact(MAGIC.len())?;
    if magic != MAGIC {
        return Err(damaged("it is not a snapshot of a kelp store"));
    }
    frames.crc.update(&magic);
    let mut batch = Batch::default();
    let mut bytes = 0;
    loop {
        let mut payload = frames.next()?;
        bytes += payload.len();
        let malformed = || damaged("a part of it is malformed");
        match payload.try_get_u8().map_err(|_| malformed())? {
            1 => {
                let len = usize::from(payload.try_get_u16_le().map_err(|_| malformed())?);
                if len > payload.len() {
                    return Err(malformed());
                }
                let name = String::from_utf8(payload.split_to(len).to_vec()).map_err(|_| malformed())?;
                batch.meta.push((name, Some(payload)));
            }
            2 => {
                let main = payload.try_get_i64_le().map_err(|_| malformed())?;
                let sub = payload.try_get_u32_le().map_err(|_| malformed())?;
                Record::decode(&payload).ok_or_else(malformed)?;
                batch.puts.push((RevKey { main, sub }, payload));
            }
            3 => break,
            _ => return Err(malformed()),
        }
        if bytes > COMMIT {
            engine
                .commit(&std::mem::take(&mut batch))
                .map_err(|error| StoreError::from_engine(error, dir))?;
            bytes = 0;
        }
    }
    engine.commit(&batch).map_err(|error| StoreError::from_engine(error, dir))
}
