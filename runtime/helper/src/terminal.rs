//! Receiving the controlling side of a container's terminal.

use anyhow::{Context, Result};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// A socket that libcontainer sends the terminal to.
pub struct ConsoleSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ConsoleSocket {
    /// Listens in `dir`. Socket addresses hold 107 bytes only, so that the path goes through a descriptor.
    pub fn new(dir: &Path) -> Result<Self> {
        let name = format!("console-{}.sock", std::process::id());
        let handle = std::fs::File::open(dir).context("cannot open the console directory")?;
        let short = format!("/proc/self/fd/{}/{name}", handle.as_raw_fd());
        let listener = UnixListener::bind(short).context("cannot make the console socket")?;
        Ok(Self { listener, path: dir.join(name) })
    }

    /// Where libcontainer connects to.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the terminal.
    pub fn receive(&self) -> Result<OwnedFd> {
        let (socket, _) = self.listener.accept().context("no terminal was offered")?;
        let mut buffer = [0; 256];
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let mut control = nix::cmsg_space!([RawFd; 1]);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)
            .context("cannot receive the terminal")?;
        let mut found = None;
        for control in message.cmsgs().context("cannot receive the terminal")? {
            if let ControlMessageOwned::ScmRights(fds) = control {
                for fd in fds {
                    // SAFETY: the kernel has just made this descriptor for us; nothing else owns it.
                    found = Some(unsafe { OwnedFd::from_raw_fd(fd) });
                }
            }
        }
        found.context("no terminal was sent")
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
