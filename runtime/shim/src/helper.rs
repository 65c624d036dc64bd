//! Starting runtime helpers.

use crate::sys;
use kelp_runtime_protocol::{Job, wire};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// What a helper works for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// The container of this id.
    Container(String),
    /// The exec of this number.
    Exec(u64),
}

/// A helper at work.
pub struct Helper {
    /// Its PID; a child of this process until it was reaped.
    pub pid: i32,
    /// What for.
    pub purpose: Purpose,
    /// Its report comes here.
    pub socket: OwnedFd,
}

/// Descriptors for the process that a helper starts.
pub struct Stdio {
    /// Standard input.
    pub input: OwnedFd,
    /// Standard output.
    pub output: OwnedFd,
    /// Standard error.
    pub error: OwnedFd,
}

/// Whether a child of this name is what a helper has forked: libcontainer's processes name themselves, and before that
/// have the helper's name. They become children of the shim only when their helper was killed.
pub fn is_left_by_helper(name: &str) -> bool {
    name == "kelp-helper" || name.starts_with("youki:[")
}

/// Namespaces of the pod that a helper is given.
#[derive(Clone, Copy)]
pub struct Namespaces<'a> {
    /// Mount namespace of the pod's shm.
    pub shm: Option<&'a OwnedFd>,
    /// User namespace.
    pub users: Option<&'a OwnedFd>,
}

/// Starts a helper and gives it its job.
pub fn start(
    executable: &OwnedFd,
    dev_null: RawFd,
    namespaces: Namespaces<'_>,
    stdio: Stdio,
    purpose: Purpose,
    job: &Job,
) -> io::Result<Helper> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    fcntl(ours.as_raw_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    // The job waits in the socket for the helper to read it, so that no answer is needed here.
    wire::send(ours.as_raw_fd(), job, &[])?;
    let copy = |fd: RawFd| sys::duplicate(fd);
    let mut table = vec![
        copy(dev_null)?,
        copy(2)?,
        copy(2)?,
        copy(theirs.as_raw_fd())?,
        copy(stdio.input.as_raw_fd())?,
        copy(stdio.output.as_raw_fd())?,
        copy(stdio.error.as_raw_fd())?,
    ];
    match namespaces {
        Namespaces { shm: None, users: None } => {}
        Namespaces { shm, users } => {
            table.push(copy(shm.map_or(dev_null, AsRawFd::as_raw_fd))?);
            if let Some(users) = users {
                table.push(copy(users.as_raw_fd())?);
            }
        }
    }
    let pid = sys::spawn(executable, c"kelp-runtime-helper", &table)?;
    Ok(Helper { pid, purpose, socket: ours })
}
