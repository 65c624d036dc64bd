//! A serving certificate that can be replaced while connections are open.

use super::Leaf;
use anyhow::{Context, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::fmt;
use std::sync::{Arc, RwLock};

/// Answers each TLS handshake with the newest certificate.
pub struct ReloadingCert {
    current: RwLock<Arc<CertifiedKey>>,
}

impl ReloadingCert {
    /// Serves `leaf` until [`Self::replace`].
    ///
    /// # Errors
    /// Fails if the certificate or key cannot be used for TLS.
    pub fn new(leaf: &Leaf) -> Result<Self> {
        Ok(Self { current: RwLock::new(Arc::new(certified(leaf)?)) })
    }

    /// Serves `leaf` from the next handshake on.
    ///
    /// # Errors
    /// Fails as [`Self::new`]; the old certificate then stays.
    pub fn replace(&self, leaf: &Leaf) -> Result<()> {
        let key = Arc::new(certified(leaf)?);
        *self.current.write().unwrap_or_else(std::sync::PoisonError::into_inner) = key;
        Ok(())
    }
}

fn certified(leaf: &Leaf) -> Result<CertifiedKey> {
    let chain = CertificateDer::pem_slice_iter(leaf.cert_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .context("cannot read the serving certificate")?;
    let key =
        PrivateKeyDer::from_pem_slice(leaf.key_pem.as_bytes()).context("cannot read the serving key")?;
    CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider())
        .context("cannot serve TLS with the certificate")
}

impl ResolvesServerCert for ReloadingCert {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone())
    }
}

impl fmt::Debug for ReloadingCert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReloadingCert")
    }
}
