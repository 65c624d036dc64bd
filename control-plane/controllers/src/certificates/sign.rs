//! Signs approved requests with the cluster's authority: those of the four signers that Kubernetes itself has.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, SigningKey, SubjectPublicKeyInfo,
};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::approve::put;
use super::request::{self, CLIENT, KUBELET_CLIENT, KUBELET_SERVING, LEGACY, Request};
use super::{has, is_issued};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::informer::key_of;
use crate::queue::Queue;

/// Certificates begin this long ago, for hosts whose clock is behind (upstream's).
const BACKDATE: time::Duration = time::Duration::minutes(5);
/// Certificates of a shorter life get the backdating on top.
const SHORT: time::Duration = time::Duration::hours(8);
/// No certificate is shorter.
const LEAST: time::Duration = time::Duration::minutes(10);

/// The authority that signs requests.
#[derive(Clone)]
pub struct Signer {
    /// Its certificate, PEM.
    pub certificate: String,
    /// Its key, PKCS #8 PEM.
    pub key: String,
    /// Longest life of what it signs: `--cluster-signing-duration`.
    pub life: Duration,
}

impl std::fmt::Debug for Signer {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").field("life", &self.life).finish_non_exhaustive()
    }
}

/// Starts the controller, if there is an authority to sign with. Reads approved requests; writes their status.
pub fn start(context: &Arc<Context>) -> Result<()> {
    let Some(signer) = context.config.signer.clone() else { return Ok(()) };
    let requests = context.informer::<CertificateSigningRequest>();
    let queue = Queue::new();
    let q = queue.clone();
    requests.on_change(move |change| q.add(key_of(&change.object().metadata)));
    let client = context.client.clone();
    let signer = Arc::new(signer);
    context.workers("csr-signing", &queue, 1, move |name| {
        let (requests, client, signer) = (requests.clone(), client.clone(), signer.clone());
        async move {
            let Some(csr) = requests.get(&name) else { return Ok(()) };
            match outcome(&signer, &csr, OffsetDateTime::now_utc())? {
                Some(status) => {
                    put(
                        &client,
                        "status",
                        &CertificateSigningRequest { status: Some(status), ..(*csr).clone() },
                    )
                    .await
                }
                None => Ok(()),
            }
        }
    });
    Ok(())
}

/// The status of a request that is to be signed now.
fn outcome(
    signer: &Signer,
    csr: &CertificateSigningRequest,
    now: OffsetDateTime,
) -> Result<Option<CertificateSigningRequestStatus>> {
    let name = csr.spec.signer_name.as_str();
    let ours = [KUBELET_CLIENT, KUBELET_SERVING, CLIENT, LEGACY].contains(&name);
    let approved = has(csr, "Approved") && !has(csr, "Denied") && !has(csr, "Failed");
    if !ours || !approved || is_issued(csr) {
        return Ok(None);
    }
    let mut status = csr.status.clone().unwrap_or_default();
    let usages = csr.spec.usages.clone().unwrap_or_default();
    let checked = request::parse(&csr.spec.request.0)
        .map_err(|e| {
            format!("unable to parse csr {:?}: {e}", csr.metadata.name.as_deref().unwrap_or_default())
        })
        .and_then(|request| request::validate(name, &request, &usages).map(|()| request));
    match checked {
        Ok(request) => {
            let pem = sign(signer, &request, &usages, csr.spec.expiration_seconds, now)?;
            status.certificate = Some(ByteString(pem.into_bytes()));
        }
        Err(message) => {
            let condition = CertificateSigningRequestCondition {
                type_: "Failed".into(),
                status: "True".into(),
                reason: Some("SignerValidationFailure".into()),
                message: Some(message),
                last_update_time: Some(Time(Timestamp::now())),
                ..CertificateSigningRequestCondition::default()
            };
            status.conditions.get_or_insert_default().push(condition);
        }
    }
    Ok(Some(status))
}

/// Beginning and end of a certificate.
fn validity(
    signer: &Signer,
    asked: Option<i32>,
    authority_ends: OffsetDateTime,
    now: OffsetDateTime,
) -> (OffsetDateTime, OffsetDateTime) {
    let most = time::Duration::try_from(signer.life).unwrap_or(LEAST);
    let life = asked.map_or(most, |seconds| time::Duration::seconds(i64::from(seconds)).max(LEAST).min(most));
    let begin = now - BACKDATE;
    let end = if life < SHORT { now + life } else { begin + life };
    (begin, end.min(authority_ends))
}

fn sign(
    signer: &Signer,
    request: &Request,
    usages: &[String],
    asked: Option<i32>,
    now: OffsetDateTime,
) -> Result<String> {
    let failed = |e: &dyn std::fmt::Display| Error::Failed(format!("cannot sign a certificate: {e}"));
    let key = KeyPair::from_pem(&signer.key).map_err(|e| failed(&e))?;
    let issuer = Issuer::from_ca_cert_pem(&signer.certificate, key).map_err(|e| failed(&e))?;
    let (_, authority) =
        x509_parser::pem::parse_x509_pem(signer.certificate.as_bytes()).map_err(|e| failed(&e))?;
    let (_, authority) = X509Certificate::from_der(&authority.contents).map_err(|e| failed(&e))?;
    let ends = authority.validity().not_after.to_datetime();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    for name in &request.dns_names {
        params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into().map_err(|e| failed(&e))?));
    }
    for name in &request.emails {
        params.subject_alt_names.push(SanType::Rfc822Name(name.as_str().try_into().map_err(|e| failed(&e))?));
    }
    for name in &request.uris {
        params.subject_alt_names.push(SanType::URI(name.as_str().try_into().map_err(|e| failed(&e))?));
    }
    params.subject_alt_names.extend(request.addresses.iter().map(|a| SanType::IpAddress(*a)));
    (params.not_before, params.not_after) = validity(signer, asked, ends, now);
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    for usage in usages {
        use ExtendedKeyUsagePurpose as Extended;
        use KeyUsagePurpose as Key;
        let (key, extended) = match usage.as_str() {
            "signing" | "digital signature" => (Some(Key::DigitalSignature), None),
            "content commitment" => (Some(Key::ContentCommitment), None),
            "key encipherment" => (Some(Key::KeyEncipherment), None),
            "data encipherment" => (Some(Key::DataEncipherment), None),
            "key agreement" => (Some(Key::KeyAgreement), None),
            "server auth" => (None, Some(Extended::ServerAuth)),
            "client auth" => (None, Some(Extended::ClientAuth)),
            "code signing" => (None, Some(Extended::CodeSigning)),
            "email protection" | "s/mime" => (None, Some(Extended::EmailProtection)),
            "timestamping" => (None, Some(Extended::TimeStamping)),
            "ocsp signing" => (None, Some(Extended::OcspSigning)),
            "any" => (None, Some(Extended::Any)),
            _ => (None, None),
        };
        params.key_usages.extend(key);
        params.extended_key_usages.extend(extended);
    }
    let key = SubjectPublicKeyInfo::from_der(&request.public_key).map_err(|e| failed(&e))?;
    let made = params.signed_by(&key, &issuer).map_err(|e| failed(&e))?;
    let der =
        with_subject(made.der(), &request.subject, issuer.key()).ok_or_else(|| failed(&"no certificate"))?;
    Ok(pem(&der))
}

fn pem(der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).filter_map(|l| std::str::from_utf8(l).ok()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

const SEQUENCE: u8 = 0x30;
const BIT_STRING: u8 = 0x03;

/// A tag, length, value triple of DER.
fn element(tag: u8, value: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match u8::try_from(value.len()) {
        Ok(short) if short < 0x80 => out.push(short),
        _ => {
            let length = value.len().to_be_bytes();
            let digits: Vec<u8> = length.into_iter().skip_while(|b| *b == 0).collect();
            out.push(0x80 | u8::try_from(digits.len()).unwrap_or(8));
            out.extend(digits);
        }
    }
    out.extend_from_slice(value);
    out
}

/// Content of the first element, and what follows it.
fn content(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (rest, header) = x509_parser::der_parser::der::der_read_element_header(der).ok()?;
    rest.split_at_checked(header.length().definite().ok()?)
}

/// The certificate with a subject as it was asked for, which rcgen cannot write when a kind of name occurs twice,
/// signed anew.
fn with_subject(certificate: &[u8], subject: &[u8], key: &impl SigningKey) -> Option<Vec<u8>> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let signed = parsed.tbs_certificate.as_ref();
    let (inner, _) = content(signed)?;
    let old = parsed.tbs_certificate.subject.as_raw();
    // Both lie in `certificate`: their addresses tell where the subject is.
    let start = (old.as_ptr() as usize).checked_sub(inner.as_ptr() as usize)?;
    let (before, after) = (inner.get(..start)?, inner.get(start + old.len()..)?);
    let rebuilt = element(SEQUENCE, &[before, subject, after].concat());
    let mut signature = vec![0]; // no unused bits
    signature.extend(key.sign(&rebuilt).ok()?);
    let (outer, _) = content(certificate)?;
    let rest = outer.get(signed.len()..)?;
    let (_, after) = content(rest)?;
    let algorithm = rest.get(..rest.len() - after.len())?;
    Some(element(SEQUENCE, &[&rebuilt, algorithm, &element(BIT_STRING, &signature)].concat()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, DnType};
    use serde_json::json;

    fn signer(life: u64) -> Signer {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "authority");
        let certificate = params.self_signed(&key).unwrap().pem();
        Signer { certificate, key: key.serialize_pem(), life: Duration::from_secs(life) }
    }

    fn csr(signer: &str, organization: &str, conditions: &[&str]) -> CertificateSigningRequest {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, organization);
        params.distinguished_name.push(DnType::CommonName, "system:node:n1");
        let key = KeyPair::generate().unwrap();
        let request = params.serialize_request(&key).unwrap().pem().unwrap();
        let conditions: Vec<_> = conditions.iter().map(|c| json!({"type": c, "status": "True"})).collect();
        let mut made: CertificateSigningRequest = serde_json::from_value(json!({
            "metadata": {"name": "r"}, "spec": {"request": "", "signerName": signer, "expirationSeconds": 3600,
                "usages": ["digital signature", "client auth"]},
            "status": {"conditions": conditions}}))
        .unwrap();
        made.spec.request = ByteString(request.into_bytes());
        made
    }

    #[test]
    fn approved_requests_are_signed_with_their_subject() {
        let signer = signer(7200);
        let now = OffsetDateTime::from_unix_timestamp(1_700_000_000).unwrap();
        let of = |csr: &CertificateSigningRequest| outcome(&signer, csr, now).unwrap();
        assert!(of(&csr(KUBELET_CLIENT, "system:nodes", &[])).is_none());
        assert!(of(&csr(KUBELET_CLIENT, "system:nodes", &["Denied"])).is_none());
        assert!(of(&csr("example.com/x", "system:nodes", &["Approved"])).is_none());
        let asked = csr(KUBELET_CLIENT, "system:nodes", &["Approved"]);
        let status = of(&asked).unwrap();
        let pem = status.certificate.clone().unwrap().0;
        let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).unwrap();
        let (_, made) = X509Certificate::from_der(&pem.contents).unwrap();
        let request = request::parse(&asked.spec.request.0).unwrap();
        assert_eq!(made.subject().as_raw(), request.subject);
        assert_eq!(made.public_key().raw, request.public_key);
        assert!(made.key_usage().unwrap().unwrap().value.digital_signature());
        assert!(made.extended_key_usage().unwrap().unwrap().value.client_auth);
        let life = made.validity().not_after.timestamp() - made.validity().not_before.timestamp();
        assert_eq!(life, 3600 + 300);
        let mut issued = asked;
        issued.status = Some(status);
        assert!(of(&issued).is_none());
        let failed = of(&csr(KUBELET_CLIENT, "wrong", &["Approved"])).unwrap();
        let last = failed.conditions.unwrap().pop().unwrap();
        assert_eq!(
            (last.type_.as_str(), last.reason.as_deref()),
            ("Failed", Some("SignerValidationFailure"))
        );
        assert_eq!(last.message.as_deref(), Some("subject organization is not system:nodes"));
    }

    #[test]
    fn lives() {
        let day = 86_400;
        let signer = signer(365 * day);
        let now = OffsetDateTime::from_unix_timestamp(1_700_000_000).unwrap();
        let far = now + time::Duration::days(5000);
        let life = |asked, ends| {
            let (begin, end) = validity(&signer, asked, ends, now);
            assert_eq!(begin, now - BACKDATE);
            (end - now).whole_seconds()
        };
        assert_eq!(life(None, far), 365 * 86_400 - 300);
        assert_eq!(life(Some(1), far), 600);
        assert_eq!(life(Some(3600), far), 3600);
        assert_eq!(life(Some(i32::MAX), far), 365 * 86_400 - 300);
        assert_eq!(life(None, now + time::Duration::days(1)), 86_400);
    }
}
