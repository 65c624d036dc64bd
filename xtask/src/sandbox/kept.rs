//! The supervisor as the service manager of `kelp`: words from it, and sockets that it wants kept over a restart
//! (sd_notify(3), `FDSTORE=1`).

use super::layout::NodeLayout;
use anyhow::{Context, Result};
use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// Descriptors in one message: as many as the kernel takes is more than anybody sends.
const MAX_FDS: usize = 32;

/// Sockets and their names.
#[derive(Debug, Clone, Default)]
pub(super) struct Kept(Arc<Mutex<Vec<(String, OwnedFd)>>>);

impl Kept {
    /// Takes what `kelp` says at a socket of its own and passes it on to whoever waits for it to be ready.
    pub fn follow(node: &NodeLayout) -> Result<(Self, PathBuf)> {
        let path = node.dir().join("supervisor.sock");
        let _ = std::fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path).with_context(|| format!("bind {}", path.display()))?;
        let (kept, listener) = (Self::default(), node.notify_socket());
        let own = kept.clone();
        std::thread::spawn(move || {
            while let Ok((message, fds)) = receive(&socket) {
                own.take(&message, fds);
                // Nobody waits any more once it was ready.
                let _ =
                    UnixDatagram::unbound().and_then(|socket| socket.send_to(message.as_bytes(), &listener));
            }
        });
        Ok((kept, path))
    }

    fn take(&self, message: &str, fds: Vec<OwnedFd>) {
        let field = |key: &str| message.lines().find_map(|line| line.strip_prefix(key));
        let name = field("FDNAME=").unwrap_or("stored");
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if field("FDSTOREREMOVE=") == Some("1") {
            kept.retain(|(other, _)| other != name);
        }
        if field("FDSTORE=") == Some("1") {
            kept.extend(fds.into_iter().map(|fd| (name.to_owned(), fd)));
        }
    }

    /// Copies of what is kept, with their names.
    pub fn copies(&self) -> Result<Vec<(String, OwnedFd)>> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let copy =
            |(name, fd): &(String, OwnedFd)| Ok((name.clone(), fd.try_clone().context("copy a socket")?));
        kept.iter().map(copy).collect()
    }
}

fn receive(socket: &UnixDatagram) -> Result<(String, Vec<OwnedFd>)> {
    let mut text = [0; 4096];
    let mut control = cmsg_space!([RawFd; MAX_FDS]);
    let mut parts = [IoSliceMut::new(&mut text)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = control {
            // SAFETY: the kernel has just made these descriptors for this process; nobody else knows them.
            fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    let length = message.bytes;
    Ok((String::from_utf8_lossy(text.get(..length).unwrap_or_default()).into_owned(), fds))
}
