//! Speaking to shims.

use kelp_runtime_protocol::{Request, Response, files, wire};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use serde::de::DeserializeOwned;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Whether an error means that the shim has ended. A process that is killed before it has read everything resets its
/// connections.
pub(super) fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

/// A connection to a shim.
pub(super) struct Connection {
    socket: AsyncFd<OwnedFd>,
}

impl Connection {
    /// Connects to the shim of the sandbox whose run directory is `dir`. `None` when no shim listens there.
    pub(super) fn open(dir: &Path) -> io::Result<Option<Self>> {
        let handle = match File::open(dir) {
            Ok(handle) => handle,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        // Through the descriptor, because socket addresses hold 107 bytes only.
        let path = format!("/proc/self/fd/{}/{}", handle.as_raw_fd(), files::SOCKET);
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        match connect(socket.as_raw_fd(), &UnixAddr::new(path.as_str())?) {
            // SAFETY: an OwnedFd stays the same open descriptor until it is dropped, and AsyncFd drops it last.
            Ok(()) => Ok(Some(Self { socket: unsafe { AsyncFd::register(socket) }? })),
            Err(nix::Error::ECONNREFUSED | nix::Error::ENOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) async fn send(&self, request: &Request, fds: &[RawFd]) -> io::Result<()> {
        self.socket.async_io(Interest::WRITABLE, |socket| wire::send(socket.as_raw_fd(), request, fds)).await
    }

    /// The next message; `None` when the shim has closed the connection.
    pub(super) async fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let received =
            self.socket.async_io(Interest::READABLE, |socket| wire::receive(socket.as_raw_fd())).await;
        match received {
            // What a killed process leaves behind when it had not read everything.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            other => other,
        }
    }

    /// Sends a request and waits for the answer.
    pub(super) async fn call(&self, request: &Request, fds: &[RawFd]) -> io::Result<Response> {
        self.send(request, fds).await?;
        match self.receive::<Response>().await? {
            Some((response, _)) => Ok(response),
            None => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the shim has ended")),
        }
    }

    /// A handle of the shim's process.
    pub(super) fn process(&self) -> io::Result<OwnedFd> {
        use std::os::fd::FromRawFd;
        let credentials =
            nix::sys::socket::getsockopt(&self.socket.get_ref(), nix::sys::socket::sockopt::PeerCredentials)?;
        // SAFETY: pidfd_open takes integers only. The PID is the shim's: it lives, because the connection does.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, credentials.pid(), 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: the kernel has just made this descriptor; nothing else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}
