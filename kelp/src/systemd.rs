//! What a service manager gives and wants: inherited sockets and a word when the service is ready (sd_listen_fds(3),
//! sd_notify(3)).

use anyhow::{Context, Result, bail};
use std::env;
use std::net::TcpListener;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// First inherited descriptor, by sd_listen_fds(3).
const FIRST_FD: RawFd = 3;

/// The listening sockets the parent process passed on. To be called once, before other files are opened.
///
/// # Errors
/// Fails if LISTEN_FDS is malformed or a descriptor is not a socket.
pub fn inherited_listeners() -> Result<Vec<TcpListener>> {
    // Descriptors passed to a parent of ours are not for us.
    if let Some(pid) = env::var_os("LISTEN_PID")
        && pid != *std::process::id().to_string()
    {
        return Ok(Vec::new());
    }
    let Ok(count) = env::var("LISTEN_FDS") else { return Ok(Vec::new()) };
    let count: RawFd =
        count.parse().ok().filter(|n| (0..=64).contains(n)).with_context(|| {
            format!("LISTEN_FDS is {count:?}; it must be the number of inherited sockets")
        })?;
    (FIRST_FD..FIRST_FD + count).map(take).collect()
}

fn take(fd: RawFd) -> Result<TcpListener> {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    if fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).is_err() {
        bail!("LISTEN_FDS names descriptor {fd}, which is not open");
    }
    // SAFETY: the descriptor is open (checked above), and by the LISTEN_FDS protocol it belongs to this process; the
    // only caller runs once at start, so nothing else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let listener = TcpListener::from(fd);
    listener.local_addr().context("an inherited descriptor is not a TCP socket")?;
    listener.set_nonblocking(true).context("cannot use an inherited socket")?;
    Ok(listener)
}

/// Tells the service manager, if there is one, that the service is up.
pub fn notify_ready() {
    notify("READY=1");
}

/// Tells the service manager, if there is one, that the service is stopping.
pub fn notify_stopping() {
    notify("STOPPING=1");
}

fn notify(message: &str) {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else { return };
    let send = || -> std::io::Result<()> {
        let address = match path.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(&path)?,
        };
        UnixDatagram::unbound()?.send_to_addr(message.as_bytes(), &address)?;
        Ok(())
    };
    if let Err(error) = send() {
        tracing::warn!(%error, socket = %path.to_string_lossy(), message, "cannot notify the service manager");
    }
}
