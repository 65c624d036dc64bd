//! Container output to log files in CRI format: `<RFC 3339 time> <stream> <P|F> <content>\n`, where `P` marks a piece of
//! a line that goes on. The content of consecutive `P` records and the next `F` record makes one line.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Longest content of one record, bytes.
const MAX_CONTENT: usize = 16 * 1024;

/// A log file.
pub struct Log {
    path: PathBuf,
    file: Option<File>,
    /// Bytes in the file.
    size: u64,
    max_size: u64,
    max_files: u32,
}

impl Log {
    /// Opens or creates the file for appending. When it holds `max_size` bytes (0: never) it is set aside as
    /// `<path>.<time>`, and of those only so many are kept that there are `max_files` with the present one.
    pub fn open(path: &Path, max_size: u64, max_files: u32) -> io::Result<Self> {
        let mut log = Self { path: path.to_owned(), file: None, size: 0, max_size, max_files };
        log.reopen()?;
        Ok(log)
    }

    /// Opens the file anew, after it was renamed.
    pub fn reopen(&mut self) -> io::Result<()> {
        self.file = None;
        let file = OpenOptions::new().append(true).create(true).open(&self.path)?;
        self.size = file.metadata().map_or(0, |m| m.len());
        self.file = Some(file);
        Ok(())
    }

    /// Sets a full file aside. What cannot be renamed is written on.
    fn rotate(&mut self) {
        if self.max_size == 0 || self.size < self.max_size {
            return;
        }
        let Some(name) = self.path.file_name().and_then(|n| n.to_str()).map(str::to_owned) else { return };
        let Some(dir) = self.path.parent().map(Path::to_owned) else { return };
        // The kubelet's names; digits make the order by name one by time.
        let time: String =
            timestamp(SystemTime::now()).chars().filter(char::is_ascii_digit).take(17).collect();
        let aside = dir.join(format!("{name}.{}-{}", &time[..8], &time[8..]));
        self.size = 0;
        if std::fs::rename(&self.path, aside).is_err() || self.reopen().is_err() {
            return;
        }
        let prefix = format!("{name}.");
        let mut old: Vec<PathBuf> = std::fs::read_dir(&dir)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|e| e.file_name().to_str().is_some_and(|n| n.starts_with(&prefix)))
            .map(|e| e.path())
            .collect();
        old.sort_unstable();
        let kept = usize::try_from(self.max_files.saturating_sub(1)).unwrap_or(usize::MAX);
        let surplus = old.len().saturating_sub(kept);
        for path in &old[..surplus] {
            let _ = std::fs::remove_file(path);
        }
    }

    /// A container must not stop because its log's disk is full: what cannot be written is lost.
    fn write(&mut self, bytes: &[u8]) {
        // Before, not after: the present file has the newest lines.
        self.rotate();
        if let Some(file) = &mut self.file {
            let _ = file.write_all(bytes);
            self.size += bytes.len() as u64;
        }
    }
}

/// One who is attached to a stream.
struct Tap {
    pipe: File,
    /// What the pipe has no room for.
    pending: Vec<u8>,
}

impl Tap {
    /// Writes what there is room for. `false` when the reader is gone.
    fn relay(&mut self) -> bool {
        while !self.pending.is_empty() {
            match self.pipe.write(&self.pending) {
                Ok(n) if n > 0 => drop(self.pending.drain(..n)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                _ => return false,
            }
        }
        true
    }
}

/// The reading end of a container's output.
pub struct Stream {
    name: &'static str,
    source: Option<File>,
    partial: Vec<u8>,
    taps: Vec<Tap>,
}

impl Stream {
    /// `name` is `stdout` or `stderr`; `source` must not block.
    pub fn new(name: &'static str, source: Option<OwnedFd>) -> Self {
        Self { name, source: source.map(File::from), partial: Vec::new(), taps: Vec::new() }
    }

    /// Descriptor, until the writers are gone.
    pub fn descriptor(&self) -> Option<RawFd> {
        self.source.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Descriptor to poll for input. None while one who is attached does not keep up: then the container waits.
    pub fn fd(&self) -> Option<RawFd> {
        self.descriptor().filter(|_| self.full_taps().next().is_none())
    }

    /// Descriptors to poll for room.
    pub fn full_taps(&self) -> impl Iterator<Item = RawFd> {
        self.taps.iter().filter(|tap| !tap.pending.is_empty()).map(|tap| tap.pipe.as_raw_fd())
    }

    /// From now on `pipe` gets a copy of everything.
    pub fn tap(&mut self, pipe: OwnedFd) -> io::Result<()> {
        nix::fcntl::fcntl(pipe.as_raw_fd(), nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
        if self.source.is_some() {
            self.taps.push(Tap { pipe: File::from(pipe), pending: Vec::new() });
        }
        Ok(())
    }

    /// Sends on what those who are attached had no room for.
    pub fn relay(&mut self) {
        self.taps.retain_mut(Tap::relay);
        if self.source.is_none() {
            self.taps.retain(|tap| !tap.pending.is_empty());
        }
    }

    /// Copies what is there to `log`, at most `rounds` buffers full of it.
    pub fn copy(&mut self, log: &mut Log, rounds: usize) {
        self.copy_while(log, rounds, |stream| stream.full_taps().next().is_none());
    }

    /// Copies all that is there, which is no more than a pipe holds, and lets those who are attached go once they
    /// have it.
    pub fn drain(&mut self, log: &mut Log) {
        self.copy_while(log, 128, |_| true);
        let mut taps = std::mem::take(&mut self.taps);
        taps.retain(|tap| !tap.pending.is_empty());
        self.taps = taps;
    }

    fn copy_while(&mut self, log: &mut Log, rounds: usize, go_on: impl Fn(&Self) -> bool) {
        let mut buffer = [0; MAX_CONTENT];
        for _ in 0..rounds {
            if !go_on(self) {
                return;
            }
            let Some(source) = &mut self.source else { return };
            match source.read(&mut buffer) {
                Ok(n) if n > 0 => {
                    let time = timestamp(SystemTime::now());
                    log.write(&self.records(&buffer[..n], &time));
                    for tap in &mut self.taps {
                        tap.pending.extend_from_slice(&buffer[..n]);
                    }
                    self.taps.retain_mut(Tap::relay);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // The end, or EIO of a terminal whose processes are gone.
                _ => return self.close(log),
            }
        }
    }

    /// Writes an unfinished last line and stops reading.
    fn close(&mut self, log: &mut Log) {
        self.source = None;
        self.taps.retain(|tap| !tap.pending.is_empty());
        if !self.partial.is_empty() {
            let mut record = Vec::new();
            let time = timestamp(SystemTime::now());
            write_record(&mut record, &time, self.name, 'P', &self.partial);
            log.write(&record);
        }
        self.partial = Vec::new();
    }

    fn records(&mut self, mut bytes: &[u8], time: &str) -> Vec<u8> {
        let mut output = Vec::with_capacity(bytes.len() + 128);
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            self.partial.extend_from_slice(&bytes[..end]);
            bytes = &bytes[end + 1..];
            self.emit_full_pieces(&mut output, time);
            write_record(&mut output, time, self.name, 'F', &self.partial);
            self.partial.clear();
        }
        self.partial.extend_from_slice(bytes);
        self.emit_full_pieces(&mut output, time);
        // A container that is silent for long keeps no buffer.
        if self.partial.is_empty() {
            self.partial = Vec::new();
        }
        output
    }

    fn emit_full_pieces(&mut self, output: &mut Vec<u8>, time: &str) {
        while self.partial.len() > MAX_CONTENT {
            write_record(output, time, self.name, 'P', &self.partial[..MAX_CONTENT]);
            self.partial.drain(..MAX_CONTENT);
        }
    }
}

fn write_record(output: &mut Vec<u8>, time: &str, stream: &str, tag: char, content: &[u8]) {
    // Writing to a Vec cannot fail.
    let _ = write!(output, "{time} {stream} {tag} ");
    output.extend_from_slice(content);
    output.push(b'\n');
}

/// RFC 3339 in UTC with nanoseconds. The date is computed by Howard Hinnant's `civil_from_days`.
fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}Z",
        seconds / 3_600,
        seconds / 60 % 60,
        seconds % 60,
        since.subsec_nanos()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn text(stream: &mut Stream, bytes: &[u8]) -> String {
        String::from_utf8(stream.records(bytes, "T")).unwrap()
    }

    #[test]
    fn lines_are_assembled_from_pieces() {
        let mut stream = Stream::new("stdout", None);
        assert_eq!(text(&mut stream, b"a\n\nbc"), "T stdout F a\nT stdout F \n");
        assert_eq!(text(&mut stream, b"d\ne"), "T stdout F bcd\n");
        assert_eq!(text(&mut stream, b"\n"), "T stdout F e\n");
    }

    #[test]
    fn long_lines_are_cut_without_losing_a_byte() {
        for length in [MAX_CONTENT, MAX_CONTENT + 1, 3 * MAX_CONTENT + 7] {
            let mut stream = Stream::new("stderr", None);
            let line = "x".repeat(length);
            let mut all = String::new();
            for piece in line.as_bytes().chunks(1000) {
                all += &text(&mut stream, piece);
            }
            all += &text(&mut stream, b"\n");
            let mut joined = String::new();
            for record in all.lines() {
                let content = record.splitn(4, ' ').nth(3).unwrap();
                assert!(content.len() <= MAX_CONTENT);
                joined += content;
            }
            assert_eq!(joined, line);
            assert_eq!(all.matches(" F ").count(), 1);
            assert!(all.lines().next_back().unwrap().starts_with("T stderr F "));
        }
    }

    #[test]
    fn an_unfinished_last_line_is_kept() {
        let dir = std::env::temp_dir().join(format!("kelp-shim-log-{}", std::process::id()));
        let mut log = Log::open(&dir, 0, 0).unwrap();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        nix::unistd::write(&writer, b"one\ntwo").unwrap();
        drop(writer);
        let mut stream = Stream::new("stdout", Some(reader));
        stream.copy(&mut log, 10);
        assert!(stream.fd().is_none());
        let written = std::fs::read_to_string(&dir).unwrap();
        std::fs::remove_file(&dir).unwrap();
        let lines: Vec<&str> = written.lines().collect();
        assert!(lines[0].ends_with("Z stdout F one"), "{written}");
        assert!(lines[1].ends_with("Z stdout P two"), "{written}");
    }

    #[test]
    fn full_files_are_set_aside_and_only_some_are_kept() {
        let dir = std::env::temp_dir().join(format!("kelp-shim-rotation-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("0.log");
        let mut log = Log::open(&path, 100, 3).unwrap();
        for number in 0..60 {
            log.write(format!("{number:049}\n").as_bytes());
            std::thread::yield_now();
        }
        let mut names: Vec<String> =
            std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        let present = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        assert!(names.len() <= 3 && names.len() >= 2, "{names:?}");
        assert_eq!(names[0], "0.log");
        assert!((50..=100).contains(&present.len()), "{present}");
    }

    #[test]
    fn those_attached_get_a_copy_and_hold_the_source_back() {
        let path = std::env::temp_dir().join(format!("kelp-shim-tap-{}", std::process::id()));
        let mut log = Log::open(&path, 0, 0).unwrap();
        let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).unwrap();
        let (tapped, tap) = nix::unistd::pipe().unwrap();
        let mut stream = Stream::new("stdout", Some(reader));
        stream.tap(tap).unwrap();
        let mut sent = 0;
        while let Ok(n) = nix::unistd::write(&writer, &[b'x'; 4096]) {
            sent += n;
            stream.copy(&mut log, 1);
        }
        assert!(stream.fd().is_none(), "a full pipe holds the source back");
        assert!(stream.full_taps().next().is_some());
        drop(writer);
        stream.drain(&mut log);
        assert!(stream.descriptor().is_none());
        let mut file = File::from(tapped);
        let mut got = 0;
        let mut buffer = [0; 4096];
        while got < sent {
            got += file.read(&mut buffer).unwrap();
            stream.relay();
        }
        assert_eq!(got, sent);
        assert_eq!(file.read(&mut buffer).unwrap(), 0, "the end reaches those attached");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn timestamps() {
        let at = |s, n| timestamp(UNIX_EPOCH + Duration::new(s, n));
        assert_eq!(at(0, 0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(at(951_827_696, 789), "2000-02-29T12:34:56.000000789Z");
        assert_eq!(at(1_767_225_599, 999_999_999), "2025-12-31T23:59:59.999999999Z");
        assert_eq!(at(4_107_542_400, 0), "2100-03-01T00:00:00.000000000Z");
    }
}
