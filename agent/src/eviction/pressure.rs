//! The kernel tells when memory is short: pressure stall information (psi.rst of the kernel's documentation).

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Stalls of 150 ms within 2 s, µs. Shorter windows need a privilege.
const TRIGGER: &[u8] = b"some 150000 2000000\0";

/// Fires when tasks wait for memory; never on a kernel that does not tell.
#[derive(Debug)]
pub struct Trigger(Option<AsyncFd<OwnedFd>>);

impl Trigger {
    /// Asks the kernel. Must be called within a tokio runtime.
    pub fn new() -> Self {
        match open() {
            Ok(file) => Self(Some(file)),
            Err(error) => {
                tracing::debug!(%error, "the kernel does not tell when memory is short: it is looked at now and then");
                Self(None)
            }
        }
    }

    /// Resolves when memory is short; at most once in a window of the trigger.
    pub async fn fired(&mut self) {
        if let Some(file) = &self.0 {
            match file.ready(Interest::PRIORITY).await {
                Ok(mut ready) if !ready.ready().is_error() => {
                    ready.clear_ready();
                    return;
                }
                // The file is gone, with pressure information turned off.
                _ => self.0 = None,
            }
        }
        std::future::pending().await
    }
}

fn open() -> io::Result<AsyncFd<OwnedFd>> {
    let mut file = File::options().read(true).write(true).open("/proc/pressure/memory")?;
    file.write_all(TRIGGER)?;
    // SAFETY: an OwnedFd names the same open file until the AsyncFd drops it.
    Ok(unsafe { AsyncFd::register_with_interest(OwnedFd::from(file), Interest::PRIORITY) }?)
}
