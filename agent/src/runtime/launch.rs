//! Starting shims from sealed memory.
//!
//! A container could reach the file that its helper or shim was started from through /proc and overwrite it
//! (CVE-2019-5736). Both programs therefore run from sealed memory files, one of each for all pods of an agent.

use kelp_runtime_protocol as protocol;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

static SHIM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kelp-shim"));
static HELPER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kelp-runtime-helper"));

/// The two programs, ready to run.
#[derive(Debug)]
pub(super) struct Programs {
    shim: OwnedFd,
    helper: OwnedFd,
}

impl Programs {
    pub(super) fn load() -> io::Result<Self> {
        Ok(Self { shim: sealed(c"kelp-shim", SHIM)?, helper: sealed(c"kelp-runtime-helper", HELPER)? })
    }

    /// Starts a shim for the sandbox described in `dir` and waits until it listens. Blocks for some milliseconds.
    /// `ResourceBusy` when another shim has the sandbox.
    pub(super) fn start_shim(&self, dir: &Path) -> io::Result<()> {
        let mut child = Command::new(format!("/proc/self/fd/{}", self.shim.as_raw_fd()))
            .arg0("kelp-shim")
            .arg(dir)
            .env_clear()
            .current_dir("/")
            .stdin(self.helper.try_clone()?)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut answer = String::new();
        if let Some(mut output) = child.stdout.take() {
            output.read_to_string(&mut answer)?;
        }
        // The process we started has ended by now; the shim is its child.
        child.wait()?;
        match answer.trim() {
            "ok" => Ok(()),
            protocol::BUSY => Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                "another shim of this sandbox is starting but does not answer",
            )),
            "" => Err(io::Error::other("the shim ended without a word")),
            reason => Err(io::Error::other(reason.to_owned())),
        }
    }
}

fn sealed(name: &std::ffi::CStr, content: &[u8]) -> io::Result<OwnedFd> {
    let base = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // Since Linux 6.3 a sysctl may make memory files not executable unless they ask for it; before, the flag is
    // unknown.
    // SAFETY: the name is terminated; memfd_create returns a new descriptor or an error.
    let mut fd = unsafe { libc::memfd_create(name.as_ptr(), base | libc::MFD_EXEC) };
    if fd < 0 {
        // SAFETY: as above.
        fd = unsafe { libc::memfd_create(name.as_ptr(), base) };
    }
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor; nothing else owns it.
    let mut file = unsafe { File::from_raw_fd(fd) };
    file.write_all(content)?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE | libc::F_SEAL_SEAL;
    // SAFETY: fcntl takes integers only.
    if unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, seals) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // A file that is open for writing cannot be executed.
    let path = format!("/proc/self/fd/{fd}");
    Ok(File::open(path)?.into())
}
