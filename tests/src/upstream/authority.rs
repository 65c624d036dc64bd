//! The authority of an upstream cluster, as `kelp kubeconfig` finds it, and what only servers need.

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use std::net::IpAddr;
use std::path::Path;
use time::{Duration, OffsetDateTime};

/// The authority of one cluster.
pub(super) struct Authority(Issuer<'static, KeyPair>);

fn params(name: &str, organization: Option<&str>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if let Some(organization) = organization {
        params.distinguished_name.push(DnType::OrganizationName, organization);
    }
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = OffsetDateTime::now_utc() - Duration::minutes(5);
    params.not_after = params.not_before + Duration::days(1);
    params
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

impl Authority {
    /// Makes one and writes `ca.crt` and `ca.key` into a directory.
    pub fn make(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let key = KeyPair::generate()?;
        let mut params = params("upstream-ca", None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let certificate = params.self_signed(&key)?;
        write(&dir.join("ca.crt"), &certificate.pem())?;
        write(&dir.join("ca.key"), &key.serialize_pem())?;
        Ok(Self(Issuer::new(params, key)))
    }

    /// Writes the API server's certificate, the one that it shows to kubelets, and the keys of tokens.
    pub fn sign_server(&self, dir: &Path, addresses: &[IpAddr]) -> Result<()> {
        let mut server = params("kube-apiserver", None);
        server.subject_alt_names = addresses.iter().map(|address| SanType::IpAddress(*address)).collect();
        for name in ["kubernetes", "kubernetes.default.svc"] {
            server.subject_alt_names.push(SanType::DnsName(name.try_into()?));
        }
        self.sign(server, ExtendedKeyUsagePurpose::ServerAuth, &dir.join("server"))?;
        let client = params("kube-apiserver-kubelet-client", Some("system:masters"));
        self.sign(client, ExtendedKeyUsagePurpose::ClientAuth, &dir.join("kubelet-client"))?;
        let tokens = KeyPair::generate()?;
        write(&dir.join("service-accounts.key"), &tokens.serialize_pem())?;
        write(&dir.join("service-accounts.pub"), &tokens.public_key_pem())
    }

    fn sign(&self, mut params: CertificateParams, usage: ExtendedKeyUsagePurpose, path: &Path) -> Result<()> {
        let key = KeyPair::generate()?;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        let certificate = params.signed_by(&key, &self.0)?;
        write(&path.with_extension("crt"), &certificate.pem())?;
        write(&path.with_extension("key"), &key.serialize_pem())
    }
}
