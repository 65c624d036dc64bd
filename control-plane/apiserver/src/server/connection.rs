//! Connections: accept, handshake, identity, HTTP/1.1 and HTTP/2.

use super::Core;
use super::service;
use super::stall::Stall;
use crate::auth::{Credentials, from_certificate};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// A TLS handshake may take this long.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// An idle HTTP/1.1 connection is closed after this time: later than clients close theirs (90 s), since a request that
/// is sent while the server closes fails.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// A connection whose peer takes nothing of what is sent for this time is closed.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// At shutdown requests get this long to end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes of one request's headers, as Go limits them.
const MAX_HEADERS: u32 = 1 << 20;
/// Streams one HTTP/2 connection may have open, as upstream allows.
const MAX_STREAMS: u32 = 250;

/// Serves until the server's shutdown token fires.
pub(super) async fn accept(core: Arc<Core>, listener: TcpListener, tls: Arc<rustls::ServerConfig>) {
    let acceptor = TlsAcceptor::from(tls);
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = core.shutdown.cancelled() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors or memory: others may end meanwhile.
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (core, acceptor) = (core.clone(), acceptor.clone());
        let watcher = graceful.watcher();
        tokio::spawn(async move { connection(core, acceptor, stream, watcher).await });
    }
    drop(listener);
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, graceful.shutdown()).await;
}

async fn connection(
    core: Arc<Core>,
    acceptor: TlsAcceptor,
    stream: TcpStream,
    watcher: hyper_util::server::graceful::Watcher,
) {
    let _ = stream.set_nodelay(true);
    let peer = stream.peer_addr().ok().map(|address| address.ip());
    let stream = Stall::new(stream, STALL_TIMEOUT);
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            core.metrics.handshake_failed();
            tracing::debug!(%error, "a TLS handshake failed");
            return;
        }
        Err(_) => return,
    };
    // The chain was verified in the handshake; only the identity is read here.
    let user = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first())
        .and_then(|leaf| from_certificate(leaf));
    let credentials = Credentials::Connection(user);
    let service = hyper::service::service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
        let (core, credentials) = (core.clone(), credentials.clone());
        if let Some(peer) = peer {
            request.extensions_mut().insert(service::Peer(peer));
        }
        async move { Ok::<_, std::convert::Infallible>(service::handle(core, credentials, request).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(IDLE_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADERS)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    if let Err(error) = watcher.watch(connection.into_owned()).await {
        tracing::debug!(%error, "a connection ended");
    }
}
