//! Connections whose peer does not read: ended after a while, so that what waits to be sent does not stay for ever.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// A stream whose writes fail when the peer takes nothing for too long. Waiting for the peer to send is no stall.
pub(super) struct Stall<S> {
    inner: S,
    limit: Duration,
    /// Runs while a write waits; kept for the next one.
    timer: Option<Pin<Box<Sleep>>>,
    waits: bool,
}

impl<S> Stall<S> {
    pub(super) fn new(inner: S, limit: Duration) -> Self {
        Stall { inner, limit, timer: None, waits: false }
    }

    /// Passes an outcome on; a write that waits too long becomes an error.
    fn watched<T>(&mut self, cx: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.waits = false;
            return outcome;
        }
        let due = Instant::now() + self.limit;
        if self.timer.is_none() {
            self.timer = Some(Box::pin(tokio::time::sleep_until(due)));
        } else if !self.waits
            && let Some(timer) = &mut self.timer
        {
            timer.as_mut().reset(due);
        }
        self.waits = true;
        match self.timer.as_mut().map(|timer| timer.as_mut().poll(cx)) {
            Some(Poll::Ready(())) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            _ => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Stall<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stall<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.watched(cx, outcome)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.inner).poll_flush(cx);
        self.watched(cx, outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.watched(cx, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.watched(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_peer_that_takes_nothing_ends_the_write() {
        let (mine, theirs) = tokio::io::duplex(16);
        let mut stall = Stall::new(mine, Duration::from_millis(20));
        let error = stall.write_all(&[0; 64]).await.expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(theirs);
    }

    #[tokio::test]
    async fn a_slow_peer_is_waited_for() {
        let (mine, mut theirs) = tokio::io::duplex(16);
        let mut stall = Stall::new(mine, Duration::from_secs(20));
        let reader = tokio::spawn(async move {
            let mut buffer = [0; 8];
            let mut total = 0;
            while total < 64 {
                tokio::time::sleep(Duration::from_millis(2)).await;
                total += theirs.read(&mut buffer).await.expect("read");
            }
            total
        });
        stall.write_all(&[0; 64]).await.expect("the peer reads");
        assert_eq!(reader.await.expect("task"), 64);
    }
}
