//! Termination messages: what a container left behind to explain its end.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Longest message, bytes.
const MESSAGE: usize = 4096;
/// Most of a log that stands in for a message: bytes and lines.
const LOG: (usize, usize) = (2048, 80);

/// The message of a container that ended: the file, or with `fallback` the end of its log when the file is empty.
pub fn message(file: &Path, fallback: Option<&Path>) -> String {
    let text = read_tail(file);
    match fallback {
        Some(log) if text.is_empty() => log_tail(log),
        _ => text,
    }
}

fn read_tail(path: &Path) -> String {
    let Ok(mut file) = File::open(path) else { return String::new() };
    let length = file.metadata().map_or(0, |m| m.len());
    let mut bytes = Vec::new();
    let _ = file.seek(SeekFrom::Start(length.saturating_sub(MESSAGE as u64)));
    let _ = file.take(MESSAGE as u64).read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The last lines of a log in CRI format, without their headers.
fn log_tail(path: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        // Each line has a header of about 40 bytes.
        file.seek(SeekFrom::Start(length.saturating_sub((LOG.0 + 64 * LOG.1) as u64)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let Ok(bytes) = read() else { return String::new() };
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<String> = text
        .lines()
        .filter_map(|line| {
            // time stream tag text
            let mut parts = line.splitn(4, ' ');
            let (_, stream, tag, text) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
            let newline = if tag == "P" { "" } else { "\n" };
            matches!(stream, "stdout" | "stderr").then(|| format!("{text}{newline}"))
        })
        .collect();
    let all = lines[lines.len().saturating_sub(LOG.1)..].concat();
    let mut start = all.len().saturating_sub(LOG.0);
    while !all.is_char_boundary(start) {
        start += 1;
    }
    all[start..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_then_log() {
        let dir = tempfile::tempdir().unwrap();
        let (file, log) = (dir.path().join("m"), dir.path().join("l"));
        assert_eq!(message(&file, Some(&log)), "");
        std::fs::write(&log, "2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:00Z stderr P tw\n2026-01-01T00:00:00Z stderr F o\n").unwrap();
        assert_eq!(message(&file, Some(&log)), "one\ntwo\n");
        assert_eq!(message(&file, None), "");
        std::fs::write(&file, "x".repeat(5000)).unwrap();
        assert_eq!(message(&file, Some(&log)).len(), 4096);
        let many: String = (0..500).map(|i| format!("2026-01-01T00:00:00Z stdout F line {i}\n")).collect();
        std::fs::write(&log, many).unwrap();
        std::fs::write(&file, "").unwrap();
        let text = message(&file, Some(&log));
        assert_eq!(text.lines().count(), 80);
        assert!(text.ends_with("line 499\n") && text.starts_with("line 420\n"), "{text}");
    }
}
