//! TLS of the kubelet API.
//!
//! The serving certificate is the node's own, made anew at each start: the API server identifies itself by a
//! certificate of the cluster's authority and, as upstream by default, does not verify ours.

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use std::net::IpAddr;
use std::sync::Arc;

/// What keeps the kubelet API from being served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The client authority is no certificate.
    #[error("the cluster's certificate authority cannot be used: {0}")]
    Authority(String),
    /// The serving certificate cannot be made.
    #[error("a serving certificate for the kubelet API cannot be made: {0}")]
    Certificate(String),
}

/// A server configuration that takes certificates of `client_ca` (PEM) from clients.
///
/// # Errors
/// The authority cannot be read, or a certificate cannot be made.
pub fn config(
    client_ca: &[u8],
    node_name: &str,
    addresses: &[IpAddr],
) -> Result<rustls::ServerConfig, TlsError> {
    let authority = |e: &dyn std::fmt::Display| TlsError::Authority(e.to_string());
    let own = |e: &dyn std::fmt::Display| TlsError::Certificate(e.to_string());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(client_ca) {
        roots.add(certificate.map_err(|e| authority(&e))?).map_err(|e| authority(&e))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        // Others have a bearer token.
        .allow_unauthenticated()
        .build()
        .map_err(|e| authority(&e))?;
    let mut names = vec![node_name.to_owned()];
    names.extend(addresses.iter().map(ToString::to_string));
    let made = rcgen::generate_simple_self_signed(names).map_err(|e| own(&e))?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(rustls::ALL_VERSIONS)
        .map_err(|e| own(&e))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![made.cert.der().clone()], key)
        .map_err(|e| own(&e))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A configuration for tests that do not get as far as TLS.
    pub fn without_clients() -> rustls::ServerConfig {
        let authority = rcgen::generate_simple_self_signed(vec!["authority".to_owned()]).unwrap();
        config(authority.cert.pem().as_bytes(), "node1", &[]).unwrap()
    }

    #[test]
    fn a_damaged_authority_is_an_error() {
        assert!(config(b"-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n", "n", &[]).is_err());
        assert!(config(b"", "n", &[]).is_err(), "without an authority nobody could call");
    }
}
