//! What a service manager gives and wants: inherited sockets, a word when the service is ready, and sockets to keep over a
//! restart (sd_listen_fds(3), sd_notify(3), sd_pid_notify_with_fds(3)).

use anyhow::{Context, Result, bail};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, socket,
};
use std::env;
use std::io::IoSlice;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

/// First inherited descriptor, by sd_listen_fds(3).
const FIRST_FD: RawFd = 3;

/// Name under which the sockets of cluster DNS are kept by the service manager.
const DNS_NAME: &str = "kelp-dns";

/// What the parent process passed on.
#[derive(Debug, Default)]
pub struct Inherited {
    /// Listening sockets for the API.
    pub listeners: Vec<TcpListener>,
    /// Sockets of cluster DNS, which an earlier run gave away with [`keep_dns`].
    pub dns: Vec<OwnedFd>,
}

/// The sockets the parent process passed on. To be called once, before other files are opened.
///
/// # Errors
/// Fails if LISTEN_FDS is malformed or a descriptor is not a socket.
pub fn inherited() -> Result<Inherited> {
    let mut inherited = Inherited::default();
    // Descriptors passed to a parent of ours are not for us.
    if let Some(pid) = env::var_os("LISTEN_PID")
        && pid != *std::process::id().to_string()
    {
        return Ok(inherited);
    }
    let Ok(count) = env::var("LISTEN_FDS") else { return Ok(inherited) };
    let count: RawFd =
        count.parse().ok().filter(|n| (0..=64).contains(n)).with_context(|| {
            format!("LISTEN_FDS is {count:?}; it must be the number of inherited sockets")
        })?;
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    for fd in FIRST_FD..FIRST_FD + count {
        let fd = take(fd)?;
        if names.next() == Some(DNS_NAME) {
            inherited.dns.push(fd);
            continue;
        }
        let listener = TcpListener::from(fd);
        listener.local_addr().context("an inherited descriptor is not a TCP socket")?;
        listener.set_nonblocking(true).context("cannot use an inherited socket")?;
        inherited.listeners.push(listener);
    }
    Ok(inherited)
}

fn take(fd: RawFd) -> Result<OwnedFd> {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    if fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).is_err() {
        bail!("LISTEN_FDS names descriptor {fd}, which is not open");
    }
    // SAFETY: the descriptor is open (checked above), and by the LISTEN_FDS protocol it belongs to this process; the
    // only caller runs once at start, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Gives the sockets of cluster DNS to the service manager, if there is one that keeps them (`FileDescriptorStoreMax=`):
/// what arrives while this process is not there then waits for the next one instead of being refused.
pub fn keep_dns<'a>(sockets: impl Iterator<Item = BorrowedFd<'a>>) {
    let fds: Vec<RawFd> = sockets.map(|fd| fd.as_raw_fd()).collect();
    // Those of an earlier run with another address or port would be passed on for ever.
    notify(&format!("FDSTOREREMOVE=1\nFDNAME={DNS_NAME}"), &[]);
    notify(&format!("FDSTORE=1\nFDNAME={DNS_NAME}"), &fds);
}

/// Tells the service manager, if there is one, that the service is up.
pub fn notify_ready() {
    notify("READY=1", &[]);
}

/// Tells the service manager, if there is one, that the service is stopping.
pub fn notify_stopping() {
    notify("STOPPING=1", &[]);
}

fn notify(message: &str, fds: &[RawFd]) {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else { return };
    let send = || -> nix::Result<()> {
        let address = match path.as_bytes().strip_prefix(b"@") {
            Some(name) => UnixAddr::new_abstract(name)?,
            None => UnixAddr::new(path.as_bytes())?,
        };
        let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        let rights = [ControlMessage::ScmRights(fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights };
        let text = [IoSlice::new(message.as_bytes())];
        sendmsg(socket.as_raw_fd(), &text, control, MsgFlags::empty(), Some(&address))?;
        Ok(())
    };
    if let Err(error) = send() {
        tracing::warn!(%error, socket = %path.to_string_lossy(), message, "cannot notify the service manager");
    }
}
