//! The certificate authority.

use super::{Leaf, LeafSpec, Usage, der, read_optional, write_atomic};
use anyhow::{Context, Result, anyhow, bail};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use time::{Duration, OffsetDateTime};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Life of the authority.
const CA_LIFE: Duration = Duration::days(3650);
/// Life of what it signs.
const LEAF_LIFE: Duration = Duration::days(365);
/// Certificates begin this long ago, for hosts whose clock is behind.
const CLOCK_SKEW: Duration = Duration::minutes(5);

/// The certificate authority: signs, and judges what it signed earlier.
pub struct Authority {
    cert_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// The authority of a directory, created if there is none.
    pub fn open(dir: &Path) -> Result<Self> {
        if let Some(authority) = Self::load(dir)? {
            return Ok(authority);
        }
        let (cert_pem, key_pem) = Self::generate(OffsetDateTime::now_utc())?;
        // Key first: without a certificate the next start begins anew.
        write_atomic(&dir.join("ca.key"), key_pem.as_bytes(), 0o600)?;
        write_atomic(&dir.join("ca.crt"), cert_pem.as_bytes(), 0o644)?;
        Self::from_pem(cert_pem, &key_pem)
    }

    /// The authority of a directory; `None` if it has no certificate.
    ///
    /// A certificate without its key is an error: a new authority would cut off every client of the old one.
    pub fn load(dir: &Path) -> Result<Option<Self>> {
        let (cert, key) = (dir.join("ca.crt"), dir.join("ca.key"));
        match (read_optional(&cert)?, read_optional(&key)?) {
            (Some(cert_pem), Some(key_pem)) => Self::from_pem(cert_pem, &key_pem)
                .map(Some)
                .with_context(|| format!("cannot use the certificate authority in {}", dir.display())),
            (None, _) => Ok(None),
            (Some(_), None) => bail!(
                "{} has no key {}; restore it, or remove both to begin with a new authority",
                cert.display(),
                key.display()
            ),
        }
    }

    fn generate(now: OffsetDateTime) -> Result<(String, String)> {
        let key = KeyPair::generate().context("cannot generate a key")?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        // The time makes the name unique: TLS stacks confuse two authorities of one name.
        params.distinguished_name.push(DnType::CommonName, format!("kelp-ca@{}", now.unix_timestamp()));
        params.not_before = now - CLOCK_SKEW;
        params.not_after = now + CA_LIFE;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let cert = params.self_signed(&key).context("cannot sign the authority")?;
        Ok((cert.pem(), key.serialize_pem()))
    }

    fn from_pem(cert_pem: String, key_pem: &str) -> Result<Self> {
        let key = KeyPair::from_pem(key_pem).context("ca.key is not a PKCS #8 private key")?;
        let der = der_of(&cert_pem).context("ca.crt is not a PEM certificate")?;
        let (_, cert) = X509Certificate::from_der(&der).context("ca.crt is not a certificate")?;
        if cert.public_key().subject_public_key.data.as_ref() != rcgen::PublicKeyData::der_bytes(&key) {
            bail!("ca.key does not belong to ca.crt");
        }
        if !cert.is_ca() {
            bail!("ca.crt is not the certificate of an authority");
        }
        let issuer = Issuer::from_ca_cert_pem(&cert_pem, key).context("ca.crt cannot sign")?;
        Ok(Self { cert_pem, issuer })
    }

    /// The authority's certificate, PEM.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// Issues a certificate with a new key.
    pub fn issue(&self, spec: &LeafSpec, now: OffsetDateTime) -> Result<Leaf> {
        let key = KeyPair::generate().context("cannot generate a key")?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        if let Some(organization) = spec.organizations.first() {
            params.distinguished_name.push(DnType::OrganizationName, organization);
        }
        params.distinguished_name.push(DnType::CommonName, &spec.common_name);
        for name in &spec.dns_names {
            let name = name.as_str().try_into().map_err(|_| anyhow!("{name:?} is not a DNS name"))?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        params.subject_alt_names.extend(spec.addresses.iter().map(|&a| SanType::IpAddress(a)));
        params.not_before = now - CLOCK_SKEW;
        params.not_after = now + LEAF_LIFE;
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![match spec.usage {
            Usage::Server => ExtendedKeyUsagePurpose::ServerAuth,
            Usage::Client => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        let cert = params
            .signed_by(&key, &self.issuer)
            .with_context(|| format!("cannot issue a certificate for {}", spec.common_name))?;
        let cert_pem = if spec.organizations.len() > 1 {
            let der =
                der::with_subject(cert.der(), &spec.common_name, &spec.organizations, self.issuer.key())?;
            pem_of("CERTIFICATE", &der)
        } else {
            cert.pem()
        };
        Ok(Leaf {
            cert_pem,
            key_pem: key.serialize_pem(),
            not_after: params.not_after,
            renew_at: renewal(params.not_before, params.not_after),
        })
    }

    /// Judges a certificate from disk: an error says why it must be issued again.
    pub fn accept(
        &self,
        spec: &LeafSpec,
        cert_pem: &str,
        key_pem: &str,
        now: OffsetDateTime,
    ) -> Result<Leaf> {
        let der = der_of(cert_pem)?;
        let (_, cert) = X509Certificate::from_der(&der).context("not a certificate")?;
        let ca_der = der_of(&self.cert_pem)?;
        let (_, ca) = X509Certificate::from_der(&ca_der).context("the authority is not a certificate")?;
        // Issuer names carry the authority's creation time, and its key identifier the key.
        if cert.issuer().as_raw() != ca.subject().as_raw() || authority_key(&cert) != subject_key(&ca) {
            bail!("signed by another authority");
        }
        let key = KeyPair::from_pem(key_pem).context("its key cannot be read")?;
        if cert.public_key().subject_public_key.data.as_ref() != rcgen::PublicKeyData::der_bytes(&key) {
            bail!("its key is not the certificate's");
        }
        let not_before = cert.validity().not_before.to_datetime();
        let not_after = cert.validity().not_after.to_datetime();
        let renew_at = renewal(not_before, not_after);
        if now >= renew_at {
            bail!("less than a third of its life is left");
        }
        let cn = cert.subject().iter_common_name().next().and_then(|a| a.as_str().ok());
        if cn != Some(&spec.common_name) {
            bail!("made for another name");
        }
        let organizations =
            cert.subject().iter_organization().filter_map(|a| a.as_str().ok()).collect::<BTreeSet<_>>();
        if organizations != spec.organizations.iter().map(String::as_str).collect() {
            bail!("made for other groups");
        }
        let (names, addresses) = alternative_names(&cert)?;
        if names != spec.dns_names.iter().cloned().collect()
            || addresses != spec.addresses.iter().copied().collect()
        {
            bail!("made for other server names or addresses");
        }
        Ok(Leaf { cert_pem: cert_pem.to_owned(), key_pem: key_pem.to_owned(), not_after, renew_at })
    }
}

/// When a certificate is to be replaced: with a third of its life left.
fn renewal(not_before: OffsetDateTime, not_after: OffsetDateTime) -> OffsetDateTime {
    not_after - (not_after - not_before) / 3
}

fn der_of(pem: &str) -> Result<Vec<u8>> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).context("not a PEM file")?;
    Ok(pem.contents)
}

fn pem_of(label: &str, der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        out.push_str(&String::from_utf8_lossy(line));
        out.push('\n');
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

fn subject_key<'a>(cert: &'a X509Certificate<'_>) -> Option<&'a [u8]> {
    use x509_parser::extensions::ParsedExtension::SubjectKeyIdentifier;
    cert.extensions().iter().find_map(|e| match e.parsed_extension() {
        SubjectKeyIdentifier(id) => Some(id.0),
        _ => None,
    })
}

fn authority_key<'a>(cert: &'a X509Certificate<'_>) -> Option<&'a [u8]> {
    use x509_parser::extensions::ParsedExtension::AuthorityKeyIdentifier;
    cert.extensions().iter().find_map(|e| match e.parsed_extension() {
        AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|k| k.0),
        _ => None,
    })
}

fn alternative_names(cert: &X509Certificate<'_>) -> Result<(BTreeSet<String>, BTreeSet<IpAddr>)> {
    let (mut names, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    let Some(extension) = cert.subject_alternative_name().context("its alternative names cannot be read")?
    else {
        return Ok((names, addresses));
    };
    for name in &extension.value.general_names {
        match name {
            GeneralName::DNSName(name) => {
                names.insert((*name).to_owned());
            }
            GeneralName::IPAddress(bytes) => {
                if let Ok(v4) = <[u8; 4]>::try_from(*bytes) {
                    addresses.insert(v4.into());
                } else if let Ok(v6) = <[u8; 16]>::try_from(*bytes) {
                    addresses.insert(v6.into());
                }
            }
            _ => {}
        }
    }
    Ok((names, addresses))
}
