//! Rewriting the subject of a certificate.
//!
//! `rcgen` keeps one value per attribute of a distinguished name, but a client in several groups has one organization
//! per group (RFC 5280 §4.1.2.4 permits any number). The certificate is therefore issued with one organization and
//! its to-be-signed part rebuilt with the full subject and signed again.

use anyhow::{Context, Result};
use rcgen::SigningKey;

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const UTF8_STRING: u8 = 0x0c;
const BIT_STRING: u8 = 0x03;
/// Object identifier 2.5.4.10, organizationName.
const ORGANIZATION: [u8; 5] = [0x06, 0x03, 0x55, 0x04, 0x0a];
/// Object identifier 2.5.4.3, commonName.
const COMMON_NAME: [u8; 5] = [0x06, 0x03, 0x55, 0x04, 0x03];

/// A tag, length, value triple.
fn tlv(tag: u8, value: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    let length = value.len().to_be_bytes();
    let significant = length.iter().skip_while(|&&b| b == 0).copied().collect::<Vec<_>>();
    match significant.as_slice() {
        [] => out.push(0),
        [short] if *short < 0x80 => out.push(*short),
        long => {
            out.push(0x80 | long.len() as u8);
            out.extend_from_slice(long);
        }
    }
    out.extend_from_slice(value);
    out
}

/// One relative distinguished name.
fn attribute(oid: &[u8], value: &str) -> Vec<u8> {
    tlv(SET, &tlv(SEQUENCE, &[oid, &tlv(UTF8_STRING, value.as_bytes())].concat()))
}

/// Content of the first element of `der`, and what follows the element.
fn open_element(der: &[u8]) -> Result<(&[u8], &[u8])> {
    const BAD: &str = "cannot parse the issued certificate";
    let (rest, header) = x509_parser::der_parser::der::der_read_element_header(der).ok().context(BAD)?;
    let length = header.length().definite().ok().context(BAD)?;
    rest.split_at_checked(length).context(BAD)
}

/// The certificate `cert` (DER) with all of `organizations` in its subject, signed by `issuer`, the key that signed it.
pub fn with_subject(
    cert: &[u8],
    common_name: &str,
    organizations: &[String],
    issuer: &impl SigningKey,
) -> Result<Vec<u8>> {
    let (_, parsed) =
        x509_parser::parse_x509_certificate(cert).context("cannot parse the issued certificate")?;
    let tbs = parsed.tbs_certificate.as_ref();
    let (content, _) = open_element(tbs)?;
    let old = parsed.tbs_certificate.subject.as_raw();
    // Both slices lie in `cert`, so their addresses tell where the subject is in the content.
    let start = (old.as_ptr() as usize)
        .checked_sub(content.as_ptr() as usize)
        .filter(|at| at + old.len() <= content.len())
        .context("cannot find the subject of the issued certificate")?;
    let mut subject = Vec::new();
    for organization in organizations {
        subject.extend(attribute(&ORGANIZATION, organization));
    }
    subject.extend(attribute(&COMMON_NAME, common_name));
    let rebuilt =
        tlv(SEQUENCE, &[&content[..start], &tlv(SEQUENCE, &subject), &content[start + old.len()..]].concat());
    let mut signature = vec![0]; // no unused bits
    signature.extend(issuer.sign(&rebuilt).context("cannot sign the certificate")?);
    // After the to-be-signed part the old certificate has the signature algorithm, then the signature.
    let (outer, _) = open_element(cert)?;
    let after = outer.get(tbs.len()..).context("cannot parse the issued certificate")?;
    let (_, rest) = open_element(after)?;
    let algorithm = &after[..after.len() - rest.len()];
    Ok(tlv(SEQUENCE, &[&rebuilt, algorithm, &tlv(BIT_STRING, &signature)].concat()))
}
