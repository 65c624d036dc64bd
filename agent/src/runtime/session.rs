//! Processes that somebody talks to: `exec` with streams, and `attach`.

use super::RuntimeError;
use futures::future::BoxFuture;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What somebody sends to a process.
pub type Input = Box<dyn AsyncWrite + Send + Unpin>;
/// What a process sends.
pub type Output = Box<dyn AsyncRead + Send + Unpin>;

/// Which streams are wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Streams {
    /// Send input.
    pub stdin: bool,
    /// Receive standard output.
    pub stdout: bool,
    /// Receive standard error; with a terminal it comes as standard output.
    pub stderr: bool,
    /// On a terminal. For `attach` the container decides.
    pub tty: bool,
}

/// A process and its streams. Dropping the streams leaves the process as it is.
pub struct Session {
    /// Standard input; dropping it closes it.
    pub stdin: Option<Input>,
    /// Standard output.
    pub stdout: Option<Output>,
    /// Standard error.
    pub stderr: Option<Output>,
    /// Its terminal.
    pub terminal: Option<Terminal>,
    /// Resolves with the exit code, or with the reason why the command was not started. Output may still be in the
    /// streams then.
    pub end: BoxFuture<'static, Result<i32, RuntimeError>>,
}

/// The controlling side of a terminal. Clones are the same terminal.
#[derive(Debug, Clone)]
pub struct Terminal(Arc<AsyncFd<OwnedFd>>);

impl Terminal {
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The descriptor cannot be watched.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        fcntl(fd.as_raw_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        // SAFETY: an OwnedFd stays the same open descriptor until it is dropped, and AsyncFd drops it last.
        Ok(Self(Arc::new(unsafe { AsyncFd::register(fd) }?)))
    }

    /// Tells the processes on the terminal how large it is.
    ///
    /// # Errors
    /// It is no terminal.
    pub fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the descriptor is open and the ioctl reads the winsize that lives here.
        if unsafe { libc::ioctl(self.0.get_ref().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

impl AsyncRead for Terminal {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            let read = guard.try_io(|fd| {
                let space = buf.initialize_unfilled();
                nix::unistd::read(fd.as_raw_fd(), space).map_err(io::Error::from)
            });
            match read {
                Ok(Ok(n)) => {
                    buf.advance(n);
                    return Poll::Ready(Ok(()));
                }
                // What a terminal says when nobody has its other side open any more.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => return Poll::Ready(Ok(())),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            let wrote = guard.try_io(|fd| nix::unistd::write(fd.get_ref(), buf).map_err(io::Error::from));
            match wrote {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
