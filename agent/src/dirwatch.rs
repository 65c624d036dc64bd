//! Is told when a directory's entries come and go.

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A watched directory.
pub struct DirWatch {
    inotify: Inotify,
    fd: AsyncFd<OwnedFd>,
}

impl DirWatch {
    /// Watches the entries of `dir`.
    ///
    /// # Errors
    /// The directory is not there, or the host has too few inotify watches.
    pub fn new(dir: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE;
        inotify.add_watch(dir, flags)?;
        let fd = inotify.as_fd().try_clone_to_owned()?;
        // SAFETY: an OwnedFd stays the same open descriptor until it is dropped, and AsyncFd drops it last.
        let fd =
            unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(io::Error::from)?;
        Ok(Self { inotify, fd })
    }

    /// Waits until something came or went since the last time.
    pub async fn changed(&self) {
        match self.fd.readable().await {
            Ok(mut ready) => {
                while self.inotify.read_events().is_ok_and(|events| !events.is_empty()) {}
                ready.clear_ready();
            }
            Err(_) => std::future::pending().await,
        }
    }
}
