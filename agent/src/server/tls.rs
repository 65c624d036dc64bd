//! TLS of the kubelet API.
//!
//! The serving certificate is that of the configuration, one that the cluster signed (see
//! [`certificates`](crate::certificates)), or the node's own, made anew at each start: the API server identifies itself
//! by a certificate of the cluster's authority and, as upstream by default, does not verify ours.

use crate::kubelet_config::Settings;
use parking_lot::RwLock;
use rustls::RootCertStore;
use rustls::SupportedCipherSuite;
use rustls::crypto::ring::{cipher_suite as suites, default_provider, sign};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

/// What keeps the kubelet API from being served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The client authority is no certificate.
    #[error("the cluster's certificate authority cannot be used: {0}")]
    Authority(String),
    /// The serving certificate cannot be used or made.
    #[error("a serving certificate for the kubelet API cannot be had: {0}")]
    Certificate(String),
    /// The configuration leaves nothing to speak.
    #[error("tlsCipherSuites and tlsMinVersion leave nothing that this node speaks: {0}")]
    Nothing(String),
}

/// The serving certificate, which may be replaced while connections go on. Clones share it.
#[derive(Debug, Clone)]
pub struct Serving(Arc<RwLock<Arc<CertifiedKey>>>);

impl Serving {
    /// A certificate chain and its key, PEM.
    ///
    /// # Errors
    /// They are none, or do not belong together.
    pub fn new(chain: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        Ok(Self(Arc::new(RwLock::new(Arc::new(certified(chain, key)?)))))
    }

    /// Connections from now on get this one.
    ///
    /// # Errors
    /// It cannot be used; the one before stays.
    pub fn replace(&self, chain: &[u8], key: &[u8]) -> Result<(), TlsError> {
        let new = Arc::new(certified(chain, key)?);
        *self.0.write() = new;
        Ok(())
    }
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().clone())
    }
}

fn certified(chain: &[u8], key: &[u8]) -> Result<CertifiedKey, TlsError> {
    let wrong = |e: &dyn std::fmt::Display| TlsError::Certificate(e.to_string());
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(chain).collect::<Result<_, _>>().map_err(|e| wrong(&e))?;
    if chain.is_empty() {
        return Err(TlsError::Certificate("there is no certificate".into()));
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| wrong(&e))?;
    let key = sign::any_supported_type(&key).map_err(|e| wrong(&e))?;
    let certified = CertifiedKey::new(chain, key);
    certified.keys_match().map_err(|e| wrong(&e))?;
    Ok(certified)
}

/// Names of the files of a certificate that the node made for itself.
pub const OWN: [&str; 2] = ["kubelet.crt", "kubelet.key"];

/// The certificate that the API is served with at first: of the configuration, or the node's own, which is then in `dir`.
///
/// # Errors
/// The files cannot be read, or none can be made.
pub fn serving(
    node_name: &str,
    addresses: &[IpAddr],
    settings: &Settings,
    dir: &Path,
) -> Result<Serving, TlsError> {
    let (file, key) = (&settings.tls_cert_file, &settings.tls_private_key_file);
    if !file.as_os_str().is_empty() && !key.as_os_str().is_empty() {
        let read = |path: &std::path::Path| {
            std::fs::read(path).map_err(|e| TlsError::Certificate(format!("{}: {e}", path.display())))
        };
        return Serving::new(&read(file)?, &read(key)?);
    }
    let mut names = vec![node_name.to_owned()];
    names.extend(addresses.iter().map(ToString::to_string));
    let made = rcgen::generate_simple_self_signed(names).map_err(|e| TlsError::Certificate(e.to_string()))?;
    let pems = [made.cert.pem(), made.signing_key.serialize_pem()];
    for ((name, pem), mode) in OWN.iter().zip(&pems).zip([0o644, 0o600]) {
        write(&dir.join(name), pem, mode)
            .map_err(|e| TlsError::Certificate(format!("{}: {e}", dir.join(name).display())))?;
    }
    let [certificate, key] = pems;
    Serving::new(certificate.as_bytes(), key.as_bytes())
}

/// Writes a file that is readable for `mode` from its first byte on.
fn write(path: &Path, text: &str, mode: u32) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let temporary = path.with_extension("tmp");
    let _ = std::fs::remove_file(&temporary);
    let mut file = std::fs::File::options().write(true).create_new(true).mode(mode).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    std::fs::rename(temporary, path)
}

/// Cipher suites by their names in Go. Those without a value are Go's, but not spoken here.
const SUITES: &[(&str, Option<SupportedCipherSuite>)] = &[
    ("TLS_AES_128_GCM_SHA256", Some(suites::TLS13_AES_128_GCM_SHA256)),
    ("TLS_AES_256_GCM_SHA384", Some(suites::TLS13_AES_256_GCM_SHA384)),
    ("TLS_CHACHA20_POLY1305_SHA256", Some(suites::TLS13_CHACHA20_POLY1305_SHA256)),
    ("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", Some(suites::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256)),
    ("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", Some(suites::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384)),
    ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", Some(suites::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256)),
    ("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", Some(suites::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384)),
    (
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        Some(suites::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
    ),
    ("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305", Some(suites::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256)),
    (
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
        Some(suites::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
    ),
    ("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305", Some(suites::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256)),
    ("TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA", None),
    ("TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA", None),
    ("TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA", None),
    ("TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA", None),
    ("TLS_RSA_WITH_AES_128_GCM_SHA256", None),
    ("TLS_RSA_WITH_AES_256_GCM_SHA384", None),
    ("TLS_RSA_WITH_AES_128_CBC_SHA", None),
    ("TLS_RSA_WITH_AES_256_CBC_SHA", None),
    ("TLS_RSA_WITH_AES_128_CBC_SHA256", None),
    ("TLS_RSA_WITH_3DES_EDE_CBC_SHA", None),
    ("TLS_RSA_WITH_RC4_128_SHA", None),
    ("TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256", None),
    ("TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256", None),
    ("TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA", None),
    ("TLS_ECDHE_ECDSA_WITH_RC4_128_SHA", None),
    ("TLS_ECDHE_RSA_WITH_RC4_128_SHA", None),
];

/// The suite of a name; `Some(None)` is known but not spoken.
pub(crate) fn suite(name: &str) -> Option<Option<SupportedCipherSuite>> {
    SUITES.iter().find(|(known, _)| *known == name).map(|(_, suite)| *suite)
}

/// A server configuration that takes certificates of `client_ca` (PEM) from clients.
///
/// # Errors
/// The authority cannot be read, or the settings leave nothing to speak.
pub fn config(
    client_ca: &[u8],
    serving: Serving,
    settings: &Settings,
) -> Result<rustls::ServerConfig, TlsError> {
    let authority = |e: &dyn std::fmt::Display| TlsError::Authority(e.to_string());
    let own;
    let client_ca = match &settings.authentication.x509.client_ca_file {
        file if file.as_os_str().is_empty() => client_ca,
        file => {
            own = std::fs::read(file).map_err(|e| authority(&format!("{}: {e}", file.display())))?;
            &own
        }
    };
    let mut provider = default_provider();
    if !settings.tls_cipher_suites.is_empty() {
        let chosen: Vec<_> = settings.tls_cipher_suites.iter().filter_map(|name| suite(name)?).collect();
        // Go's TLS 1.3 cannot be configured.
        provider.cipher_suites.retain(|s| s.tls13().is_some() || chosen.contains(s));
    }
    let provider = Arc::new(provider);
    let versions: &[&rustls::SupportedProtocolVersion] = match settings.tls_min_version.as_str() {
        "VersionTLS13" => &[&rustls::version::TLS13],
        _ => rustls::ALL_VERSIONS,
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(client_ca) {
        roots.add(certificate.map_err(|e| authority(&e))?).map_err(|e| authority(&e))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        // Others have a bearer token.
        .allow_unauthenticated()
        .build()
        .map_err(|e| authority(&e))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .map_err(|e| TlsError::Nothing(e.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(serving));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::kubelet_config::KubeletConfig;

    fn with(client_ca: &[u8], settings: &Settings) -> Result<rustls::ServerConfig, TlsError> {
        let dir = tempfile::tempdir().unwrap();
        config(client_ca, serving("node1", &[], settings, dir.path())?, settings)
    }

    fn authority() -> String {
        rcgen::generate_simple_self_signed(vec!["authority".to_owned()]).unwrap().cert.pem()
    }

    /// A configuration for tests that do not get as far as TLS.
    pub fn without_clients() -> rustls::ServerConfig {
        with(authority().as_bytes(), &KubeletConfig::default().settings).unwrap()
    }

    #[test]
    fn a_damaged_authority_is_an_error() {
        let settings = KubeletConfig::default().settings;
        assert!(with(b"-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n", &settings).is_err());
        assert!(with(b"", &settings).is_err(), "without an authority nobody could call");
    }

    #[test]
    fn certificates_of_the_configuration_are_used() {
        let dir = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["other".to_owned()]).unwrap();
        let mut settings = KubeletConfig::default().settings;
        settings.tls_cert_file = dir.path().join("crt");
        settings.tls_private_key_file = dir.path().join("key");
        assert!(serving("n", &[], &settings, dir.path()).unwrap_err().to_string().contains("crt"));
        std::fs::write(&settings.tls_cert_file, made.cert.pem()).unwrap();
        std::fs::write(&settings.tls_private_key_file, made.signing_key.serialize_pem()).unwrap();
        assert!(!dir.path().join(OWN[1]).exists());
        let used = serving("n", &[], &settings, dir.path()).unwrap();
        assert_eq!(used.0.read().cert[0], *made.cert.der());
        let other = rcgen::generate_simple_self_signed(vec!["x".to_owned()]).unwrap();
        let key = other.signing_key.serialize_pem();
        assert!(used.replace(made.cert.pem().as_bytes(), key.as_bytes()).is_err(), "another's key");
        used.replace(other.cert.pem().as_bytes(), key.as_bytes()).unwrap();
        assert_eq!(used.0.read().cert[0], *other.cert.der());
    }

    #[test]
    fn suites_and_versions() {
        let mut settings = KubeletConfig::default().settings;
        settings.tls_cipher_suites = vec!["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256".into()];
        let found = with(authority().as_bytes(), &settings).unwrap();
        let older: Vec<_> =
            found.crypto_provider().cipher_suites.iter().filter(|s| s.tls13().is_none()).collect();
        assert_eq!(older.len(), 1);
        // One that is not spoken leaves TLS 1.3.
        settings.tls_cipher_suites = vec!["TLS_RSA_WITH_RC4_128_SHA".into()];
        settings.tls_min_version = "VersionTLS13".into();
        assert!(with(authority().as_bytes(), &settings).is_ok());
        assert!(suite("TLS_NO_SUCH").is_none());
    }
}
