//! HTTP(S) GET for probes and lifecycle hooks. Certificates are not verified: the kubelet's contract.

use crate::tls::AnyCertificate;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::HTTPGetAction;
use parking_lot::Mutex;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// What to ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    https: bool,
    host: String,
    port: u16,
    path: String,
    headers: Vec<(String, String)>,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The first 10 KiB of the body.
    pub body: String,
    /// A redirect to another host, which was not followed.
    pub redirect_to_elsewhere: bool,
}

/// How the error ends when a server speaks HTTP where TLS was asked for.
pub const PLAIN: &str = "http: server gave HTTP response to HTTPS client";

/// Bytes of a body that are looked at.
const BODY: usize = 10 << 10;
/// Redirects followed on the same host.
const REDIRECTS: usize = 10;

impl Request {
    /// Of an httpGet action, its host and port resolved.
    pub fn of(action: &HTTPGetAction, host: &str, port: u16) -> Self {
        let path = action.path.clone().filter(|p| !p.is_empty()).unwrap_or_else(|| "/".into());
        let headers = action.http_headers.iter().flatten().map(|h| (h.name.clone(), h.value.clone()));
        Self {
            https: action.scheme.as_deref() == Some("HTTPS"),
            host: host.to_owned(),
            port,
            path: if path.starts_with('/') { path } else { format!("/{path}") },
            headers: headers.collect(),
        }
    }

    /// Host and port as they stand in a URL.
    pub fn authority(&self) -> String {
        match self.host.parse::<IpAddr>() {
            Ok(IpAddr::V6(ip)) => format!("[{ip}]:{}", self.port),
            _ => format!("{}:{}", self.host, self.port),
        }
    }

    /// The same without TLS and credentials.
    pub fn plain(&self) -> Self {
        let headers = self.headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("authorization"));
        Self { https: false, headers: headers.cloned().collect(), ..self.clone() }
    }

    fn url(&self) -> String {
        format!("{}://{}{}", if self.https { "https" } else { "http" }, self.authority(), self.path)
    }
}

/// Asks, following redirects on the same host.
///
/// # Errors
/// No answer in time; the text is that of upstream's probes.
pub async fn get(request: &Request, timeout: Duration) -> Result<Answer, String> {
    let mut request = request.clone();
    let url = request.url();
    let attempt = async {
        for _ in 0..REDIRECTS {
            let (answer, location) = one(&request).await?;
            let Some(location) = location.filter(|_| (300..400).contains(&answer.status)) else {
                return Ok(answer);
            };
            if let Some(path) = same_host(&request, &location) {
                request.path = path;
            } else {
                return Ok(Answer { redirect_to_elsewhere: true, ..answer });
            }
        }
        Err("stopped after 10 redirects".to_owned())
    };
    match tokio::time::timeout(timeout, attempt).await {
        Ok(result) => result.map_err(|error| format!("Get {url:?}: {error}")),
        Err(_) => Err(format!(
            "Get {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        )),
    }
}

/// The path of a redirect that stays on the host.
fn same_host(request: &Request, location: &str) -> Option<String> {
    if location.starts_with('/') && !location.starts_with("//") {
        return Some(location.to_owned());
    }
    let uri: http::Uri = location.parse().ok()?;
    if uri.host()? != request.host {
        return None;
    }
    Some(uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string))
}

async fn one(request: &Request) -> Result<(Answer, Option<String>), String> {
    let stream = match request.host.parse::<IpAddr>() {
        Ok(ip) => {
            let address = SocketAddr::new(ip, request.port);
            TcpStream::connect(address).await.map_err(|e| super::dial_error(address, &e))?
        }
        Err(_) => TcpStream::connect((request.host.as_str(), request.port))
            .await
            .map_err(|e| format!("dial tcp: {e}"))?,
    };
    if request.https {
        let name =
            rustls::pki_types::ServerName::try_from(request.host.clone()).map_err(|e| e.to_string())?;
        let first = Arc::new(Mutex::new(Vec::new()));
        let stream = Remembering { stream, first: first.clone() };
        let stream = tokio_rustls::TlsConnector::from(TLS.clone()).connect(name, stream).await;
        let failed = |e: std::io::Error| match first.lock().as_slice() {
            b"HTTP/" => PLAIN.to_owned(),
            _ => e.to_string(),
        };
        exchange(request, stream.map_err(failed)?).await
    } else {
        exchange(request, stream).await
    }
}

/// A connection whose first bytes from the peer are remembered.
struct Remembering {
    stream: TcpStream,
    first: Arc<Mutex<Vec<u8>>>,
}

impl AsyncRead for Remembering {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        let mut first = self.first.lock();
        let wanted = b"HTTP/".len().saturating_sub(first.len());
        let new = buffer.filled().get(before..).unwrap_or_default();
        first.extend_from_slice(new.get(..wanted.min(new.len())).unwrap_or_default());
        polled
    }
}

impl AsyncWrite for Remembering {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

async fn exchange<S>(request: &Request, stream: S) -> Result<(Answer, Option<String>), String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let connection = tokio::spawn(connection);
    let mut builder = http::Request::get(request.path.as_str());
    let mut has = (false, false, false);
    for (name, value) in &request.headers {
        has.0 |= name.eq_ignore_ascii_case("host");
        has.1 |= name.eq_ignore_ascii_case("user-agent");
        has.2 |= name.eq_ignore_ascii_case("accept");
        builder = builder.header(name, value);
    }
    if !has.0 {
        builder = builder.header("Host", request.authority());
    }
    if !has.1 {
        builder = builder.header("User-Agent", "kube-probe/1.36");
    }
    if !has.2 {
        builder = builder.header("Accept", "*/*");
    }
    let message = builder
        .header("Connection", "close")
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|e| e.to_string())?;
    let result = async {
        let response = sender.send_request(message).await.map_err(|e| e.to_string())?;
        let status = response.status().as_u16();
        let location = response.headers().get("location").and_then(|l| l.to_str().ok()).map(str::to_owned);
        // A body that is too long or breaks off does not change the verdict.
        let body = match Limited::new(response.into_body(), BODY).collect().await {
            Ok(body) => String::from_utf8_lossy(&body.to_bytes()).into_owned(),
            Err(_) => String::new(),
        };
        Ok((Answer { status, body, redirect_to_elsewhere: false }, location))
    };
    let result = result.await;
    connection.abort();
    result
}

static TLS: LazyLock<Arc<rustls::ClientConfig>> = LazyLock::new(|| {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(rustls::ALL_VERSIONS)
        .map(|b| b.dangerous().with_custom_certificate_verifier(AnyCertificate::new(provider)));
    match builder {
        Ok(builder) => Arc::new(builder.with_no_client_auth()),
        Err(error) => unreachable!("ring supports every TLS version: {error}"),
    }
});
