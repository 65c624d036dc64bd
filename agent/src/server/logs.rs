//! Reads container logs in CRI format and follows them.

use super::LogOptions;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{self, Stream};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use tokio::io::unix::AsyncFd;

/// What tells that a log file has grown or gone.
const CHANGES: AddWatchFlags =
    AddWatchFlags::IN_MODIFY.union(AddWatchFlags::IN_MOVE_SELF).union(AddWatchFlags::IN_ATTRIB);

/// Bytes read at a time.
const CHUNK: usize = 64 << 10;

/// The newest attempt's log, or the one before; with its attempt.
pub fn pick(dir: &Path, previous: bool) -> Option<(u32, PathBuf)> {
    let mut attempts: Vec<u32> = std::fs::read_dir(dir)
        .ok()?
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.strip_suffix(".log")?.parse().ok())
        .collect();
    attempts.sort_unstable_by(|a, b| b.cmp(a));
    let attempt = *attempts.get(usize::from(previous))?;
    Some((attempt, dir.join(format!("{attempt}.log"))))
}

/// Resolves when the container has ended.
pub type Ended = BoxFuture<'static, ()>;

/// One line of a log.
struct Line<'a> {
    time: &'a str,
    stream: &'a [u8],
    text: &'a [u8],
    partial: bool,
}

/// `<time> <stream> <tag> <text>`.
fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let (time, stream, tag, text) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    Some(Line { time: std::str::from_utf8(time).ok()?, stream, text, partial: tag == b"P" })
}

/// Turns raw log bytes into what the client gets.
struct Filter {
    options: LogOptions,
    left: Option<u64>,
    /// The line before was cut: no time in the middle of a line.
    in_line: bool,
    rest: Vec<u8>,
}

impl Filter {
    fn new(options: LogOptions) -> Self {
        Self { left: options.limit, options, in_line: false, rest: Vec::new() }
    }

    fn done(&self) -> bool {
        self.left == Some(0)
    }

    fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.rest.extend_from_slice(bytes);
        let mut out = Vec::new();
        let mut start = 0;
        let rest = std::mem::take(&mut self.rest);
        while let Some(length) = rest[start..].iter().position(|b| *b == b'\n') {
            if let Some(line) = parse(&rest[start..start + length]) {
                self.one(&line, &mut out);
            }
            start += length + 1;
        }
        self.rest = rest[start..].to_vec();
        if let Some(left) = &mut self.left {
            out.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= out.len() as u64;
        }
        out
    }

    fn one(&mut self, line: &Line<'_>, out: &mut Vec<u8>) {
        if self.options.stream.is_some_and(|stream| stream.as_bytes() != line.stream) {
            return;
        }
        let old = self
            .options
            .since
            .is_some_and(|since| line.time.parse::<jiff::Timestamp>().is_ok_and(|time| time < since));
        if !old {
            if self.options.timestamps && !self.in_line {
                out.extend_from_slice(line.time.as_bytes());
                out.push(b' ');
            }
            out.extend_from_slice(line.text);
            if !line.partial {
                out.push(b'\n');
            }
        }
        self.in_line = line.partial;
    }
}

/// Where the last `lines` lines begin.
fn tail_start(file: &mut File, lines: u64) -> io::Result<u64> {
    let mut at = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok(at);
    }
    let mut found = 0u64;
    let mut buffer = vec![0u8; CHUNK];
    // The newline that ends the last line does not begin another one.
    let end = at;
    while at > 0 {
        let size = u64::min(at, CHUNK as u64);
        at -= size;
        file.seek(SeekFrom::Start(at))?;
        let part = &mut buffer[..usize::try_from(size).unwrap_or(CHUNK)];
        file.read_exact(part)?;
        for (index, _) in part.iter().enumerate().rev().filter(|(_, b)| **b == b'\n') {
            let position = at + index as u64 + 1;
            if position == end || is_partial_before(file, position)? {
                continue;
            }
            found += 1;
            if found == lines {
                return Ok(position);
            }
        }
    }
    Ok(0)
}

/// The line that ends before `position` is a piece of a longer one.
fn is_partial_before(file: &mut File, position: u64) -> io::Result<bool> {
    // A piece is at most 16 KiB and a header.
    let from = position.saturating_sub(20 << 10);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = vec![0u8; usize::try_from(position - from).unwrap_or(0)];
    file.read_exact(&mut bytes)?;
    bytes.pop();
    let start = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
    Ok(parse(&bytes[start..]).is_some_and(|line| line.partial))
}

struct Reader {
    path: PathBuf,
    file: BufReader<File>,
    inotify: Option<Inotify>,
    /// The file to be read after this one.
    next: Option<File>,
    filter: Filter,
    watch: Option<AsyncFd<OwnedFd>>,
    ended: Option<Ended>,
    over: bool,
}

/// The log as the client gets it. With `follow` it goes on until `ended`.
pub fn stream(
    path: &Path,
    options: LogOptions,
    ended: Ended,
) -> io::Result<impl Stream<Item = io::Result<Bytes>> + Send + 'static + use<>> {
    let mut file = File::open(path)?;
    let start = match options.tail {
        Some(lines) => tail_start(&mut file, lines)?,
        None => 0,
    };
    file.seek(SeekFrom::Start(start))?;
    let mut watcher = None;
    let watch = if options.follow {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        inotify.add_watch(path, CHANGES)?;
        // A full file is set aside, and a new one made in its place.
        if let Some(dir) = path.parent() {
            inotify.add_watch(dir, AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO)?;
        }
        let fd = inotify.as_fd().try_clone_to_owned()?;
        // SAFETY: an OwnedFd stays the same open descriptor until it is dropped, and AsyncFd drops it last.
        let watch = Some(unsafe { AsyncFd::register(fd) }?);
        watcher = Some(inotify);
        watch
    } else {
        None
    };
    let reader = Reader {
        path: path.to_owned(),
        inotify: watcher,
        next: None,
        file: BufReader::with_capacity(CHUNK, file),
        ended: options.follow.then_some(ended),
        filter: Filter::new(options),
        watch,
        over: false,
    };
    Ok(stream::unfold(reader, |mut reader| async move {
        let next = reader.next().await;
        next.transpose().map(|chunk| (chunk, reader))
    }))
}

impl Reader {
    /// Another file that has taken the place of the one that is read.
    fn successor(&self) -> io::Result<Option<File>> {
        let Some(inotify) = &self.inotify else { return Ok(None) };
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let (old, new) = (self.file.get_ref().metadata()?, file.metadata()?);
        if (old.dev(), old.ino()) == (new.dev(), new.ino()) {
            return Ok(None);
        }
        inotify.add_watch(&self.path, CHANGES)?;
        Ok(Some(file))
    }

    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if self.filter.done() {
                return Ok(None);
            }
            let bytes = self.file.fill_buf()?.to_vec();
            if !bytes.is_empty() {
                self.file.consume(bytes.len());
                let out = self.filter.push(&bytes);
                if out.is_empty() {
                    continue;
                }
                return Ok(Some(out.into()));
            }
            // The writer is done with a file before it makes the next one: what the old one holds once the new one is
            // there is all of it.
            if let Some(next) = self.next.take() {
                self.file = BufReader::with_capacity(CHUNK, next);
                continue;
            }
            self.next = self.successor()?;
            if self.next.is_some() {
                continue;
            }
            if self.over {
                return Ok(None);
            }
            let (Some(watch), Some(ended)) = (&self.watch, &mut self.ended) else { return Ok(None) };
            tokio::select! {
                // The shim writes what is left before it reports the end: one more look at the file.
                () = ended => self.over = true,
                ready = watch.readable() => {
                    let mut guard = ready?;
                    // What changed does not matter, only that something did.
                    let mut events = [0u8; 4096];
                    let _ = nix::unistd::read(guard.get_inner().as_raw_fd(), &mut events);
                    guard.clear_ready();
                    // Removed with its pod, not replaced.
                    let gone = self.file.get_ref().metadata().is_ok_and(|m| m.nlink() == 0);
                    self.over |= gone && !self.path.exists();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::query::Query;
    use futures::StreamExt;
    use std::io::Write;

    fn lines(range: std::ops::Range<u32>) -> String {
        range.map(|i| format!("2026-01-01T00:00:{:02}.000000000Z stdout F line {i}\n", i % 60)).collect()
    }

    async fn all(path: &Path, query: &str) -> String {
        let ended = Box::pin(async {});
        let parts: Vec<_> =
            stream(path, LogOptions::parse(&Query::parse(query)).unwrap(), ended).unwrap().collect().await;
        parts.into_iter().map(|b| String::from_utf8(b.unwrap().to_vec()).unwrap()).collect()
    }

    #[tokio::test]
    async fn everything_the_tail_a_limit_and_times() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(
            &path,
            lines(0..3) + "2026-01-01T00:00:30Z stdout P long \n2026-01-01T00:00:30Z stdout F one\n",
        )
        .unwrap();
        assert_eq!(all(&path, "").await, "line 0\nline 1\nline 2\nlong one\n");
        assert_eq!(all(&path, "tailLines=2").await, "line 2\nlong one\n");
        assert_eq!(all(&path, "tailLines=0").await, "");
        assert_eq!(all(&path, "tailLines=99").await, "line 0\nline 1\nline 2\nlong one\n");
        assert_eq!(all(&path, "limitBytes=9").await, "line 0\nli");
        assert_eq!(all(&path, "timestamps=true&tailLines=1").await, "2026-01-01T00:00:30Z long one\n");
        assert_eq!(all(&path, "sinceTime=2026-01-01T00:00:02Z").await, "line 2\nlong one\n");
        std::fs::write(&path, "2026-01-01T00:00:30Z stdout F out\n2026-01-01T00:00:30Z stderr F err\n")
            .unwrap();
        assert_eq!(all(&path, "stream=Stderr").await, "err\n");
        assert_eq!(all(&path, "stream=Stdout").await, "out\n");
        std::fs::write(&path, "not a log\n\n2026-01-01T00:00:30Z stdout F ok\nunfinished").unwrap();
        assert_eq!(all(&path, "").await, "ok\n");
    }

    #[tokio::test]
    async fn a_tail_across_many_chunks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, lines(0..20_000)).unwrap();
        let text = all(&path, "tailLines=5000").await;
        assert_eq!(text.lines().count(), 5000);
        assert!(text.starts_with("line 15000\n") && text.ends_with("line 19999\n"));
    }

    #[tokio::test]
    async fn following_ends_with_the_container() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, lines(0..1)).unwrap();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let ended = Box::pin(async move {
            let _ = ended.await;
        });
        let mut log =
            Box::pin(stream(&path, LogOptions::parse(&Query::parse("follow=true")).unwrap(), ended).unwrap());
        assert_eq!(log.next().await.unwrap().unwrap(), "line 0\n");
        let mut file = File::options().append(true).open(&path).unwrap();
        file.write_all(lines(1..2).as_bytes()).unwrap();
        assert_eq!(log.next().await.unwrap().unwrap(), "line 1\n");
        file.write_all(lines(2..3).as_bytes()).unwrap();
        end.send(()).unwrap();
        assert_eq!(log.next().await.unwrap().unwrap(), "line 2\n");
        assert!(log.next().await.is_none());
    }

    #[tokio::test]
    async fn following_survives_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, lines(0..1)).unwrap();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let ended = Box::pin(async move {
            let _ = ended.await;
        });
        let options = LogOptions::parse(&Query::parse("follow=true")).unwrap();
        let mut log = Box::pin(stream(&path, options, ended).unwrap());
        assert_eq!(log.next().await.unwrap().unwrap(), "line 0\n");
        for round in 1..20u32 {
            let mut old = File::options().append(true).open(&path).unwrap();
            old.write_all(lines(2 * round - 1..2 * round).as_bytes()).unwrap();
            std::fs::rename(&path, dir.path().join(format!("0.log.{round:02}"))).unwrap();
            std::fs::write(&path, lines(2 * round..2 * round + 1)).unwrap();
            for line in [2 * round - 1, 2 * round] {
                let next = tokio::time::timeout(std::time::Duration::from_secs(20), log.next()).await;
                assert_eq!(next.unwrap().unwrap().unwrap(), format!("line {line}\n"));
            }
        }
        end.send(()).unwrap();
        assert!(log.next().await.is_none());
    }

    #[test]
    fn attempts() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(pick(dir.path(), false), None);
        for name in ["0.log", "2.log", "10.log", "x.log", "3.txt"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(pick(dir.path(), false).unwrap().0, 10);
        assert_eq!(pick(dir.path(), true).unwrap().0, 2);
    }
}
