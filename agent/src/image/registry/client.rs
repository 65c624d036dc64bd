//! Requests to registries: TLS with the system's and own authorities, redirects, authentication.

use super::challenge::{Challenge, token_url};
use super::config::{Endpoint, Host};
use super::credentials::Credential;
use crate::tls::AnyCertificate;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, HOST, HeaderMap, LOCATION, RANGE, USER_AGENT, WWW_AUTHENTICATE};
use http::{Method, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde::Deserialize;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// For a connection and its TLS.
const CONNECT: Duration = Duration::from_secs(30);
/// For the head of an answer.
const ANSWER: Duration = Duration::from_secs(60);
/// Redirects that are followed.
const REDIRECTS: usize = 5;
/// Longest answer of a token service, bytes.
const MAX_TOKEN: usize = 1 << 20;
/// Where Linux distributions keep the system's authorities.
const SYSTEM_AUTHORITIES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem"];

/// Talks to one registry for one pull.
pub struct Client {
    endpoint: Endpoint,
    repository: String,
    /// What to try, in order; `None` is nobody.
    credentials: Vec<Option<Credential>>,
    authorization: Option<String>,
    tls: Arc<rustls::ClientConfig>,
}

/// One answer.
pub type Answer = http::Response<Incoming>;

#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

impl Client {
    /// For a repository; credentials are tried in order, then none.
    ///
    /// # Errors
    /// The authorities cannot be read.
    pub fn new(endpoint: Endpoint, repository: &str, credentials: Vec<Credential>) -> Result<Self, String> {
        let tls = Arc::new(tls_config(&endpoint.host)?);
        let mut all: Vec<Option<Credential>> = credentials.into_iter().map(Some).collect();
        if let (Some(username), Some(password)) = (&endpoint.host.username, &endpoint.host.password) {
            all.push(Some(Credential { username: username.clone(), password: password.clone() }));
        }
        all.push(None);
        Ok(Self { endpoint, repository: repository.to_owned(), credentials: all, authorization: None, tls })
    }

    /// Where requests go.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The URL of `what` in the repository, such as `manifests/latest`.
    pub fn url(&self, what: &str) -> String {
        let Endpoint { scheme, authority, prefix, .. } = &self.endpoint;
        format!("{scheme}://{authority}{prefix}/v2/{}/{what}", self.repository)
    }

    /// Asks for `what`, authenticating as the registry wants it. `from`: only the bytes from there on.
    ///
    /// # Errors
    /// There is no connection, or nobody that we can be may read it. The texts are those users know.
    pub async fn ask(
        &mut self,
        method: Method,
        what: &str,
        accept: &str,
        from: u64,
    ) -> Result<Answer, String> {
        let url = self.url(what);
        let mut answer = self.send(&method, &url, accept, from, self.authorization.as_deref()).await?;
        let mut tried = 0;
        while answer.status() == StatusCode::UNAUTHORIZED {
            let challenges: Vec<Challenge> = answer
                .headers()
                .get_all(WWW_AUTHENTICATE)
                .into_iter()
                .filter_map(|v| Challenge::parse(v.to_str().ok()?))
                .collect();
            let Some(credential) = self.credentials.get(tried).cloned() else { break };
            tried += 1;
            let authorization =
                self.authorize(&challenges, credential.as_ref(), &what_for(&self.repository)).await?;
            let Some(authorization) = authorization else { continue };
            answer = self.send(&method, &url, accept, from, Some(&authorization)).await?;
            if answer.status() != StatusCode::UNAUTHORIZED {
                self.authorization = Some(authorization);
            }
        }
        Ok(answer)
    }

    async fn authorize(
        &self,
        challenges: &[Challenge],
        credential: Option<&Credential>,
        scope: &str,
    ) -> Result<Option<String>, String> {
        for challenge in challenges {
            match challenge {
                Challenge::Basic => {
                    if let Some(credential) = credential {
                        return Ok(Some(credential.basic()));
                    }
                }
                Challenge::Bearer { realm, service, scope: asked } => {
                    let url = token_url(realm, service.as_deref(), Some(asked.as_deref().unwrap_or(scope)));
                    let basic = credential.map(Credential::basic);
                    let answer =
                        self.send(&Method::GET, &url, "application/json", 0, basic.as_deref()).await?;
                    let code = answer.status();
                    if code == StatusCode::UNAUTHORIZED || code == StatusCode::FORBIDDEN {
                        continue;
                    }
                    if !code.is_success() {
                        let kind = if credential.is_some() { "oauth token" } else { "anonymous token" };
                        return Err(format!(
                            "failed to authorize: failed to fetch {kind}: unexpected status from GET request to {url}: {code}"
                        ));
                    }
                    let body = Limited::new(answer.into_body(), MAX_TOKEN).collect().await;
                    let bytes = body.map_err(|e| format!("failed to authorize: {e}"))?.to_bytes();
                    let token: Token = serde_json::from_slice(&bytes)
                        .map_err(|e| format!("failed to authorize: {url}: {e}"))?;
                    let token = if token.token.is_empty() { token.access_token } else { token.token };
                    return Ok(Some(format!("Bearer {token}")));
                }
            }
        }
        Ok(None)
    }

    /// One request with its redirects. Authorization stays with the host it is for.
    async fn send(
        &self,
        method: &Method,
        url: &str,
        accept: &str,
        from: u64,
        authorization: Option<&str>,
    ) -> Result<Answer, String> {
        let mut url = url.to_owned();
        let mut authorization = authorization.map(str::to_owned);
        for _ in 0..=REDIRECTS {
            let mut headers = HeaderMap::new();
            let mut put = |name, value: &str| {
                if let Ok(value) = http::HeaderValue::from_str(value) {
                    headers.insert(name, value);
                }
            };
            put(USER_AGENT, concat!("kelp/", env!("CARGO_PKG_VERSION")));
            put(ACCEPT, accept);
            if let Some(authorization) = &authorization {
                put(AUTHORIZATION, authorization);
            }
            if from > 0 {
                put(RANGE, &format!("bytes={from}-"));
            }
            let answer = self.once(method, &url, headers).await.map_err(|e| {
                let name = match method.as_str() {
                    "HEAD" => "Head",
                    _ => "Get",
                };
                format!("failed to do request: {name} {url:?}: {e}")
            })?;
            let target = answer.headers().get(LOCATION).and_then(|l| l.to_str().ok());
            let Some(target) = target.filter(|_| answer.status().is_redirection()) else { return Ok(answer) };
            let next = absolute(&url, target);
            if host_of(&next) != host_of(&url) {
                authorization = None;
            }
            if url.starts_with("https:") && !next.starts_with("https:") {
                return Err(format!("{url} redirects to {next}, which is not encrypted"));
            }
            url = next;
        }
        Err(format!("{url}: stopped after {REDIRECTS} redirects"))
    }

    async fn once(&self, method: &Method, url: &str, mut headers: HeaderMap) -> Result<Answer, String> {
        let uri: Uri = url.parse().map_err(|e| format!("invalid URL: {e}"))?;
        let host = uri.host().ok_or("invalid URL: no host")?;
        let encrypted = uri.scheme_str() == Some("https");
        if !encrypted && uri.scheme_str() != Some("http") {
            return Err("unsupported protocol scheme".into());
        }
        let port = uri.port_u16().unwrap_or(if encrypted { 443 } else { 80 });
        let authority = uri.authority().map(|a| a.as_str().to_owned()).unwrap_or_default();
        if let Ok(value) = http::HeaderValue::from_str(&authority) {
            headers.insert(HOST, value);
        }
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let work = async {
            let stream = dial(bare, port).await?;
            let target = uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
            let mut request = http::Request::builder()
                .method(method)
                .uri(target)
                .body(Empty::<Bytes>::new())
                .map_err(|e| e.to_string())?;
            *request.headers_mut() = headers;
            if !encrypted {
                return exchange(stream, request).await;
            }
            let name = ServerName::try_from(bare.to_owned()).map_err(|e| e.to_string())?;
            let connector = tokio_rustls::TlsConnector::from(self.tls.clone());
            let stream = connector.connect(name, stream).await.map_err(|e| tls_reason(&e))?;
            exchange(stream, request).await
        };
        tokio::time::timeout(CONNECT + ANSWER, work).await.map_err(|_| "i/o timeout".to_owned())?
    }
}

fn what_for(repository: &str) -> String {
    format!("repository:{repository}:pull")
}

async fn exchange<T>(stream: T, request: http::Request<Empty<Bytes>>) -> Result<Answer, String>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to a registry ended early");
        }
    });
    sender.send_request(request).await.map_err(|e| e.to_string())
}

/// Connects, with Go's words for what goes wrong.
async fn dial(host: &str, port: u16) -> Result<TcpStream, String> {
    let addresses: Vec<_> = match tokio::net::lookup_host((host, port)).await {
        Ok(addresses) => addresses.collect(),
        Err(_) => return Err(format!("dial tcp: lookup {host}: no such host")),
    };
    let mut last = format!("dial tcp: lookup {host}: no such host");
    for address in addresses {
        match tokio::time::timeout(CONNECT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => {
                let reason = match error.kind() {
                    std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
                    std::io::ErrorKind::HostUnreachable => "no route to host".to_owned(),
                    std::io::ErrorKind::NetworkUnreachable => "network is unreachable".to_owned(),
                    _ => error.to_string(),
                };
                last = format!("dial tcp {address}: connect: {reason}");
            }
            Err(_) => last = format!("dial tcp {address}: i/o timeout"),
        }
    }
    Err(last)
}

/// Go's words for the commonest troubles with TLS.
fn tls_reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    if text.contains("UnknownIssuer") {
        "tls: failed to verify certificate: x509: certificate signed by unknown authority".to_owned()
    } else if text.contains("InvalidContentType") {
        "http: server gave HTTP response to HTTPS client".to_owned()
    } else {
        format!("tls: {text}")
    }
}

fn host_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}

/// A redirect's target.
fn absolute(from: &str, target: &str) -> String {
    if target.contains("://") {
        return target.to_owned();
    }
    let scheme = from.split_once("://").map_or("https", |(scheme, _)| scheme);
    if let Some(rest) = target.strip_prefix("//") {
        return format!("{scheme}://{rest}");
    }
    let slash = if target.starts_with('/') { "" } else { "/" };
    format!("{scheme}://{}{slash}{target}", host_of(from))
}

fn tls_config(host: &Host) -> Result<rustls::ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    if host.insecure_skip_verify {
        let verifier = AnyCertificate::new(provider);
        return Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth());
    }
    let mut roots = rustls::RootCertStore::empty();
    if let Some(system) = SYSTEM_AUTHORITIES.iter().map(Path::new).find(|p| p.exists())
        && let Ok(certificates) = CertificateDer::pem_file_iter(system)
    {
        roots.add_parsable_certificates(certificates.flatten());
    }
    if let Some(path) = &host.ca {
        let describe = |e: &dyn std::fmt::Display| format!("authority {}: {e}", path.display());
        let mut found = 0;
        for certificate in CertificateDer::pem_file_iter(path).map_err(|e| describe(&e))? {
            roots.add(certificate.map_err(|e| describe(&e))?).map_err(|e| describe(&e))?;
            found += 1;
        }
        if found == 0 {
            return Err(describe(&"there is no certificate in it"));
        }
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects() {
        assert_eq!(absolute("https://a.example/x", "/y"), "https://a.example/y");
        assert_eq!(absolute("https://a.example/x", "y"), "https://a.example/y");
        assert_eq!(absolute("https://a.example/x", "//b.example/y"), "https://b.example/y");
        assert_eq!(absolute("https://a.example/x", "http://c.example"), "http://c.example");
        assert_eq!(host_of("https://a.example:5000/x"), "a.example:5000");
    }
}
