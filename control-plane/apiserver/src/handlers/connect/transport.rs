//! Connections to nodes, pods and services.

use crate::config::KubeletClient;
use crate::server::Core;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// For connecting.
const CONNECT: Duration = Duration::from_secs(10);

/// A connection, encrypted or not.
pub(crate) trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// What listens somewhere.
pub(crate) struct Target {
    /// Name or address.
    pub(crate) host: String,
    /// Port.
    pub(crate) port: u16,
    /// TLS, when it is spoken there.
    pub(crate) tls: Option<Arc<rustls::ClientConfig>>,
}

impl Target {
    /// `host:port`, with brackets around an IPv6 address.
    pub(crate) fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Connects; an error is worded as Go's.
    pub(super) async fn dial(&self) -> Result<Box<dyn Connection>, String> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::ConnectionRefused => {
                format!("dial tcp {}: connect: connection refused", self.authority())
            }
            io::ErrorKind::TimedOut => format!("dial tcp {}: i/o timeout", self.authority()),
            _ => format!("dial tcp {}: {error}", self.authority()),
        };
        let connect = async {
            let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(failed)?;
            let _ = stream.set_nodelay(true);
            let Some(tls) = &self.tls else { return Ok(Box::new(stream) as Box<dyn Connection>) };
            let name = ServerName::try_from(self.host.clone()).map_err(|e| e.to_string())?;
            let connector = tokio_rustls::TlsConnector::from(tls.clone());
            let stream = connector.connect(name, stream).await.map_err(|error| error.to_string())?;
            Ok(Box::new(stream) as Box<dyn Connection>)
        };
        match tokio::time::timeout(CONNECT, connect).await {
            Ok(result) => result,
            Err(_) => Err(format!("dial tcp {}: i/o timeout", self.authority())),
        }
    }
}

/// TLS with our identity, for nodes; made once.
pub(super) fn node_tls(
    core: &Core,
    identity: &KubeletClient,
) -> Result<Arc<rustls::ClientConfig>, rustls::Error> {
    if let Some(config) = core.node_tls.get() {
        return Ok(config.clone());
    }
    let config = client_config(Some(identity))?;
    Ok(core.node_tls.get_or_init(|| config).clone())
}

/// TLS for a server whose certificate is not verified, as upstream's default for nodes, pods and services.
pub(super) fn client_config(
    identity: Option<&KubeletClient>,
) -> Result<Arc<rustls::ClientConfig>, rustls::Error> {
    let bad = |e: rustls::pki_types::pem::Error| rustls::Error::General(e.to_string());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(rustls::ALL_VERSIONS)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)));
    let Some(identity) = identity else { return Ok(Arc::new(builder.with_no_client_auth())) };
    let chain =
        CertificateDer::pem_slice_iter(&identity.certificate).collect::<Result<Vec<_>, _>>().map_err(bad)?;
    let key = PrivateKeyDer::from_pem_slice(&identity.key).map_err(bad)?;
    Ok(Arc::new(builder.with_client_auth_cert(chain, key)?))
}

/// Takes every server's certificate.
#[derive(Debug)]
struct AnyServer(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
