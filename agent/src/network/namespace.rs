//! Runs netlink work inside a network namespace.
//!
//! A thread of its own enters the namespace and ends with it: a thread of the async runtime would carry the
//! namespace on to whatever it runs next.

use crate::network::NetworkError;
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::path::PathBuf;

/// Runs `work` with a netlink handle of `netns`, or of the present namespace for `None`. /proc/sys/net, too, is that
/// of the namespace.
pub async fn run<T, F, Fut>(netns: Option<PathBuf>, work: F) -> Result<T, NetworkError>
where
    T: Send + 'static,
    F: FnOnce(rtnetlink::Handle) -> Fut + Send + 'static,
    Fut: Future<Output = Result<T, NetworkError>>,
{
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let body = move || {
        let result = enter(netns.as_ref()).and_then(|()| {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|source| {
                    NetworkError::Io { action: "cannot start a netlink thread".into(), source }
                })?;
            runtime.block_on(async {
                let (connection, handle, _) = rtnetlink::new_connection().map_err(|source| {
                    NetworkError::Io { action: "cannot open a netlink socket".into(), source }
                })?;
                let connection = tokio::spawn(connection);
                let result = work(handle).await;
                connection.abort();
                result
            })
        });
        let _ = sender.send(result);
    };
    std::thread::Builder::new()
        .name("pod-netns".into())
        .spawn(body)
        .map_err(|source| NetworkError::Io { action: "cannot start a netlink thread".into(), source })?;
    receiver.await.unwrap_or_else(|_| {
        let source = std::io::Error::other("the thread ended early");
        Err(NetworkError::Io { action: "cannot work in the pod's network namespace".into(), source })
    })
}

fn enter(netns: Option<&PathBuf>) -> Result<(), NetworkError> {
    let Some(path) = netns else { return Ok(()) };
    let io = |source| NetworkError::Io {
        action: format!("cannot enter network namespace {}", path.display()),
        source,
    };
    let file = File::open(path).map_err(io)?;
    setns(file, CloneFlags::CLONE_NEWNET).map_err(|e| io(e.into()))
}
