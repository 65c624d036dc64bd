//! TLS of the port: the server's certificate, and client certificates that may be absent.

use super::ServerError;
use crate::config::TlsFiles;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use std::sync::Arc;

fn bad(what: &'static str) -> impl Fn(String) -> ServerError {
    move |why| ServerError::Tls { what, why }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())
}

/// The certificate of the configuration, for as long as the server runs.
pub(super) fn fixed_certificate(files: &TlsFiles) -> Result<Arc<dyn ResolvesServerCert>, ServerError> {
    let chain = certificates(&files.certificate).map_err(bad("the server certificate"))?;
    let key = PrivateKeyDer::from_pem_slice(&files.key).map_err(|e| bad("the server key")(e.to_string()))?;
    let certified = CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider())
        .map_err(|e| bad("the server certificate and key")(e.to_string()))?;
    Ok(Arc::new(SingleCertAndKey::from(certified)))
}

pub(super) fn server_config(
    files: &TlsFiles,
    certificate: Arc<dyn ResolvesServerCert>,
) -> Result<Arc<rustls::ServerConfig>, ServerError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&files.client_ca).map_err(bad("the client authority"))? {
        roots.add(certificate).map_err(|e| bad("the client authority")(e.to_string()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|e| bad("the client authority")(e.to_string()))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| bad("the TLS versions")(e.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
