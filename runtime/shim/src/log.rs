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
}

impl Log {
    /// Opens or creates the file for appending.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut log = Self { path: path.to_owned(), file: None };
        log.reopen()?;
        Ok(log)
    }

    /// Opens the file anew, after it was renamed.
    pub fn reopen(&mut self) -> io::Result<()> {
        self.file = None;
        self.file = Some(OpenOptions::new().append(true).create(true).open(&self.path)?);
        Ok(())
    }

    /// A container must not stop because its log's disk is full: what cannot be written is lost.
    fn write(&mut self, bytes: &[u8]) {
        if let Some(file) = &mut self.file {
            let _ = file.write_all(bytes);
        }
    }
}

/// The reading end of a container's output.
pub struct Stream {
    name: &'static str,
    source: Option<File>,
    partial: Vec<u8>,
}

impl Stream {
    /// `name` is `stdout` or `stderr`; `source` must not block.
    pub fn new(name: &'static str, source: Option<OwnedFd>) -> Self {
        Self { name, source: source.map(File::from), partial: Vec::new() }
    }

    /// Descriptor to poll, until the writers are gone.
    pub fn fd(&self) -> Option<RawFd> {
        self.source.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Copies what is there to `log`, at most `rounds` buffers full of it.
    pub fn copy(&mut self, log: &mut Log, rounds: usize) {
        let mut buffer = [0; MAX_CONTENT];
        for _ in 0..rounds {
            let Some(source) = &mut self.source else { return };
            match source.read(&mut buffer) {
                Ok(n) if n > 0 => {
                    let time = timestamp(SystemTime::now());
                    log.write(&self.records(&buffer[..n], &time));
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
        let mut log = Log::open(&dir).unwrap();
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
    fn timestamps() {
        let at = |s, n| timestamp(UNIX_EPOCH + Duration::new(s, n));
        assert_eq!(at(0, 0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(at(951_827_696, 789), "2000-02-29T12:34:56.000000789Z");
        assert_eq!(at(1_767_225_599, 999_999_999), "2025-12-31T23:59:59.999999999Z");
        assert_eq!(at(4_107_542_400, 0), "2100-03-01T00:00:00.000000000Z");
    }
}
