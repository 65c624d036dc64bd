//! libcontainer's errors say that something failed but often not why; what it logs at error level does. Its forked
//! children log too, so the log is a file in memory that all of them share.

use crate::sys;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::sync::Arc;

/// Collects what libcontainer logs.
pub struct Diagnosis {
    file: Arc<File>,
}

impl Diagnosis {
    /// Starts collecting; once a process.
    pub fn start() -> std::io::Result<Self> {
        let file = Arc::new(sys::memory_file(c"diagnosis")?);
        let writer = Arc::clone(&file);
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::ERROR)
            .with_writer(move || Line(Arc::clone(&writer)))
            .with_ansi(false)
            .with_target(false)
            .with_level(false)
            .without_time()
            .finish();
        // Fails only when one is set already.
        let _ = tracing::subscriber::set_global_default(subscriber);
        Ok(Self { file })
    }

    /// `error` with the first thing that was logged, which is the closest to the cause.
    pub fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let mut text = String::new();
        let mut file = &*self.file;
        let _ = file.rewind().and_then(|()| file.read_to_string(&mut text));
        eprint!("{text}");
        match text.lines().find(|line| !line.trim().is_empty()) {
            Some(cause) => error.context(cause.trim().to_owned()),
            None => error,
        }
    }
}

struct Line(Arc<File>);

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        (&*self.0).write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
