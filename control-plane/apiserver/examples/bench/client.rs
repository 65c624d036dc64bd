//! A client that costs as little as possible: one connection, one request at a time.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Where a server is, and who asks.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    one: Arc<rustls::ClientConfig>,
    two: Arc<rustls::ClientConfig>,
}

impl Target {
    pub(crate) fn new(address: SocketAddr, ca: &[u8], certificate: &[u8], key: &[u8]) -> Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(ca) {
            roots.add(root?)?;
        }
        let chain = CertificateDer::pem_slice_iter(certificate).collect::<Result<Vec<_>, _>>()?;
        let make = |protocol: &[u8]| -> Result<Arc<rustls::ClientConfig>> {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let mut config = rustls::ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()?
                .with_root_certificates(roots.clone())
                .with_client_auth_cert(chain.clone(), PrivateKeyDer::from_pem_slice(key)?)?;
            config.alpn_protocols = vec![protocol.to_vec()];
            Ok(Arc::new(config))
        };
        Ok(Target { address, one: make(b"http/1.1")?, two: make(b"h2")? })
    }

    async fn connect(&self, config: &Arc<rustls::ClientConfig>) -> Result<TokioIo<TlsStream<TcpStream>>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let connector = TlsConnector::from(config.clone());
        Ok(TokioIo::new(connector.connect("localhost".try_into()?, stream).await?))
    }

    pub(crate) async fn open(&self) -> Result<Connection> {
        let (sender, connection) = http1::handshake(self.connect(&self.one).await?).await?;
        tokio::spawn(connection);
        Ok(Connection { sender })
    }

    pub(crate) async fn open_shared(&self) -> Result<http2::SendRequest<Full<Bytes>>> {
        let stream = self.connect(&self.two).await?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
        tokio::spawn(connection);
        Ok(sender)
    }
}

pub(crate) fn request(
    method: &str,
    path: &str,
    accept: &str,
    body: Bytes,
) -> Result<http::Request<Full<Bytes>>> {
    Ok(http::Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .header("accept", accept)
        .header(
            "content-type",
            if method == "PATCH" { "application/merge-patch+json" } else { "application/json" },
        )
        .body(Full::new(body))?)
}

pub(crate) struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
}

impl Connection {
    /// The answer with its whole body; anything but success is an error.
    pub(crate) async fn call(
        &mut self,
        method: &str,
        path: &str,
        accept: &str,
        body: Bytes,
    ) -> Result<Bytes> {
        self.sender.ready().await?;
        let response = self.sender.send_request(request(method, path, accept, body)?).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        ensure!(status.is_success(), "{method} {path}: {status} {}", String::from_utf8_lossy(&body));
        Ok(body)
    }

    /// A watch; the connection belongs to it.
    pub(crate) async fn watch(mut self, path: &str) -> Result<Incoming> {
        self.sender.ready().await?;
        let response =
            self.sender.send_request(request("GET", path, "application/json", Bytes::new())?).await?;
        ensure!(response.status().is_success(), "{path}: {}", response.status());
        let body = response.into_body();
        // Dropping the sender would end the connection.
        std::mem::forget(self);
        Ok(body)
    }
}

/// Body of a list, parsed.
pub(crate) fn parse(body: &Bytes) -> Result<serde_json::Value> {
    serde_json::from_slice(body).context("an answer that is no JSON")
}
