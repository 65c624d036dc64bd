//! The cluster's certificates and keys, kept under `<data dir>/pki`.
//!
//! One certificate authority (10 years) signs every serving and client certificate (1 year). What is missing, about to
//! expire, signed by another authority, or made for other names is issued again at start; [`renew`] does the same
//! while the process runs. Private keys have mode 0600 and every file is replaced atomically.

mod authority;
mod der;
mod files;
pub mod renew;
mod serving;
mod spec;

pub use authority::Authority;
pub use files::{read_optional, write_atomic};
pub use serving::ReloadingCert;
pub use spec::{LeafSpec, Usage};

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use time::OffsetDateTime;

/// The directory of certificates and the authority that signs them.
pub struct Pki {
    dir: PathBuf,
    authority: Authority,
}

/// A certificate with its private key.
#[derive(Clone)]
pub struct Leaf {
    /// The certificate, PEM.
    pub cert_pem: String,
    /// The private key, PKCS #8 PEM.
    pub key_pem: String,
    /// End of the certificate's life.
    pub not_after: OffsetDateTime,
    /// When it is to be replaced: with a third of its life left.
    pub renew_at: OffsetDateTime,
}

impl Pki {
    /// Opens the PKI of a data directory and creates the authority and the service account key if there are none.
    ///
    /// # Errors
    /// Fails if the directory cannot be written or holds a certificate or key that cannot be read.
    pub fn open(data_dir: &Path) -> Result<Self> {
        let dir = data_dir.join("pki");
        files::make_private_dir(&dir)?;
        let authority = Authority::open(&dir)?;
        let pki = Self { dir, authority };
        pki.ensure_service_account_key()?;
        Ok(pki)
    }

    /// Opens an existing PKI without changing anything, for offline signing.
    ///
    /// # Errors
    /// Fails if the data directory has no authority.
    pub fn open_existing(data_dir: &Path) -> Result<Self> {
        let dir = data_dir.join("pki");
        let authority = Authority::load(&dir)?.with_context(|| {
            format!(
                "{} has no certificate authority; start `kelp up` or `kelp server` with this --data-dir once",
                dir.display()
            )
        })?;
        Ok(Self { dir, authority })
    }

    /// The authority's certificate, PEM.
    pub fn ca_pem(&self) -> &str {
        self.authority.cert_pem()
    }

    /// The authority's key, PKCS #8 PEM, for who signs requests in this process.
    ///
    /// # Errors
    /// Fails if the file cannot be read.
    pub fn ca_key_pem(&self) -> Result<String> {
        let path = self.dir.join("ca.key");
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// File of the key that signs service account tokens (`sa.pub` beside it verifies them).
    fn service_account_key_path(&self) -> PathBuf {
        self.dir.join("sa.key")
    }

    /// The key that signs service account tokens, PKCS #8 PEM.
    ///
    /// # Errors
    /// Fails if the file cannot be read.
    pub fn service_account_key(&self) -> Result<Vec<u8>> {
        let path = self.service_account_key_path();
        std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// Certificate and key of `spec`, from the directory if they are still good, else newly issued and written.
    ///
    /// # Errors
    /// Fails if the files cannot be read or written; a damaged or foreign certificate is replaced, not an error.
    pub fn ensure(&self, spec: &LeafSpec, now: OffsetDateTime) -> Result<Leaf> {
        let cert_path = self.dir.join(format!("{}.crt", spec.file));
        let key_path = self.dir.join(format!("{}.key", spec.file));
        if let (Some(cert), Some(key)) = (read_optional(&cert_path)?, read_optional(&key_path)?) {
            match self.authority.accept(spec, &cert, &key, now) {
                Ok(leaf) => return Ok(leaf),
                Err(reason) => {
                    tracing::info!(certificate = %cert_path.display(), %reason, "issuing certificate again");
                }
            }
        }
        let leaf = self.authority.issue(spec, now)?;
        // Key first: a crash in between leaves a pair that does not match, which `accept` turns down.
        write_atomic(&key_path, leaf.key_pem.as_bytes(), 0o600)?;
        write_atomic(&cert_path, leaf.cert_pem.as_bytes(), 0o644)?;
        Ok(leaf)
    }

    /// Issues a certificate without keeping it.
    ///
    /// # Errors
    /// Fails if a name cannot be put in a certificate.
    pub fn issue(&self, spec: &LeafSpec, now: OffsetDateTime) -> Result<Leaf> {
        self.authority.issue(spec, now)
    }

    fn ensure_service_account_key(&self) -> Result<()> {
        let path = self.service_account_key_path();
        let public = self.dir.join("sa.pub");
        let key = match read_optional(&path)? {
            Some(pem) => rcgen::KeyPair::from_pem(&pem)
                .with_context(|| format!("{} is not a PKCS #8 private key", path.display()))?,
            None => {
                let key = rcgen::KeyPair::generate().context("cannot generate the service account key")?;
                write_atomic(&path, key.serialize_pem().as_bytes(), 0o600)?;
                key
            }
        };
        let pem = key.public_key_pem();
        if read_optional(&public)?.as_deref() != Some(&pem) {
            write_atomic(&public, pem.as_bytes(), 0o644)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
