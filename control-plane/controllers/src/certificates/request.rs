//! What a request asks for, and whether its signer gives that: upstream's rules and texts.

use std::collections::BTreeSet;
use std::net::IpAddr;

use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

/// Signer of certificates by which nodes identify themselves.
pub const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Signer of certificates of the kubelet API.
pub const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
/// Signer of certificates of other clients.
pub const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
/// Signer of everything else.
pub const LEGACY: &str = "kubernetes.io/legacy-unknown";

/// A request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// Common name.
    pub common_name: String,
    /// Organizations.
    pub organizations: Vec<String>,
    /// DNS names.
    pub dns_names: Vec<String>,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// E-mail addresses.
    pub emails: Vec<String>,
    /// URIs.
    pub uris: Vec<String>,
    /// The subject, DER.
    pub subject: Vec<u8>,
    /// The key, DER.
    pub public_key: Vec<u8>,
}

/// Reads a request, PEM.
///
/// # Errors
/// It is none.
pub fn parse(pem: &[u8]) -> Result<Request, String> {
    let wrong = || "PEM block type must be CERTIFICATE REQUEST".to_owned();
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem).map_err(|_| wrong())?;
    if pem.label != "CERTIFICATE REQUEST" {
        return Err(wrong());
    }
    let (_, parsed) = X509CertificationRequest::from_der(&pem.contents).map_err(|e| e.to_string())?;
    let info = &parsed.certification_request_info;
    let text = |values: Vec<Result<&str, _>>| -> Vec<String> {
        values
            .into_iter()
            .filter_map(|v: Result<&str, x509_parser::error::X509Error>| v.ok())
            .map(str::to_owned)
            .collect()
    };
    let mut request = Request {
        common_name: text(info.subject.iter_common_name().map(|a| a.as_str()).collect())
            .pop()
            .unwrap_or_default(),
        organizations: text(info.subject.iter_organization().map(|a| a.as_str()).collect()),
        subject: info.subject.as_raw().to_vec(),
        public_key: info.subject_pki.raw.to_vec(),
        ..Request::default()
    };
    for extension in parsed.requested_extensions().into_iter().flatten() {
        let ParsedExtension::SubjectAlternativeName(names) = extension else { continue };
        for name in &names.general_names {
            match name {
                GeneralName::DNSName(name) => request.dns_names.push((*name).to_owned()),
                GeneralName::RFC822Name(name) => request.emails.push((*name).to_owned()),
                GeneralName::URI(name) => request.uris.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => {
                    let four = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
                    let address = four.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
                    request.addresses.push(address.map_err(|_| "cannot parse IP address".to_owned())?);
                }
                _ => {}
            }
        }
    }
    Ok(request)
}

fn usages_are(usages: &[String], purpose: &str) -> Result<(), String> {
    let usages: BTreeSet<&str> = usages.iter().map(String::as_str).collect();
    let all = BTreeSet::from(["digital signature", "key encipherment", purpose]);
    let without_rsa = BTreeSet::from(["digital signature", purpose]);
    if usages == all || usages == without_rsa {
        return Ok(());
    }
    let list: Vec<&str> = all.into_iter().collect();
    Err(format!("usages did not match [{}]", list.join(" ")))
}

fn refuse<T>(list: &[T], kind: &str) -> Result<(), String> {
    if list.is_empty() { Ok(()) } else { Err(format!("{kind} subjectAltNames are not allowed")) }
}

fn of_node(request: &Request) -> Result<(), String> {
    if request.organizations != ["system:nodes"] {
        return Err("subject organization is not system:nodes".into());
    }
    Ok(())
}

fn names_node(request: &Request) -> Result<(), String> {
    if request.common_name.starts_with("system:node:") {
        return Ok(());
    }
    Err("subject common name does not begin with system:node:".into())
}

/// Whether a node's client certificate is asked for.
///
/// # Errors
/// It is not.
pub fn kubelet_client(request: &Request, usages: &[String]) -> Result<(), String> {
    of_node(request)?;
    refuse(&request.dns_names, "DNS")?;
    refuse(&request.emails, "Email")?;
    refuse(&request.addresses, "IP")?;
    refuse(&request.uris, "URI")?;
    names_node(request)?;
    usages_are(usages, "client auth")
}

fn kubelet_serving(request: &Request, usages: &[String]) -> Result<(), String> {
    of_node(request)?;
    if request.dns_names.is_empty() && request.addresses.is_empty() {
        return Err("DNS or IP subjectAltName is required".into());
    }
    refuse(&request.emails, "Email")?;
    refuse(&request.uris, "URI")?;
    usages_are(usages, "server auth")?;
    names_node(request)
}

fn client(usages: &[String]) -> Result<(), String> {
    let other = |u: &&String| !["digital signature", "key encipherment", "client auth"].contains(&u.as_str());
    if let Some(other) = usages.iter().find(other) {
        return Err(format!("invalid usage for client certificate: {other}"));
    }
    match usages.iter().any(|u| u == "client auth") {
        true => Ok(()),
        false => Err("missing required usage for client certificate: client auth".into()),
    }
}

/// Whether a signer gives what is asked for.
///
/// # Errors
/// It does not.
pub fn validate(signer: &str, request: &Request, usages: &[String]) -> Result<(), String> {
    match signer {
        KUBELET_CLIENT => kubelet_client(request, usages),
        KUBELET_SERVING => kubelet_serving(request, usages),
        CLIENT => client(usages),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|t| (*t).to_owned()).collect()
    }

    #[test]
    fn what_signers_give() {
        let good = Request {
            common_name: "system:node:n1".into(),
            organizations: list(&["system:nodes"]),
            ..Request::default()
        };
        let usages = list(&["digital signature", "client auth"]);
        assert_eq!(validate(KUBELET_CLIENT, &good, &usages), Ok(()));
        let error = |request: Request, usages: &[&str], signer| {
            validate(signer, &request, &list(usages)).unwrap_err()
        };
        let client = &["digital signature", "key encipherment", "client auth"];
        let other = Request { organizations: list(&["wrong"]), ..good.clone() };
        assert_eq!(error(other, client, KUBELET_CLIENT), "subject organization is not system:nodes");
        let other = Request { common_name: "n1".into(), ..good.clone() };
        assert_eq!(
            error(other, client, KUBELET_CLIENT),
            "subject common name does not begin with system:node:"
        );
        let named = Request { dns_names: list(&["n1"]), ..good.clone() };
        assert_eq!(error(named.clone(), client, KUBELET_CLIENT), "DNS subjectAltNames are not allowed");
        assert_eq!(
            error(good.clone(), &["server auth"], KUBELET_CLIENT),
            "usages did not match [client auth digital signature key encipherment]"
        );
        let server = &["digital signature", "server auth"];
        assert_eq!(validate(KUBELET_SERVING, &named, &list(server)), Ok(()));
        assert_eq!(error(good.clone(), server, KUBELET_SERVING), "DNS or IP subjectAltName is required");
        assert_eq!(error(good.clone(), server, CLIENT), "invalid usage for client certificate: server auth");
        assert_eq!(
            error(good.clone(), &["digital signature"], CLIENT),
            "missing required usage for client certificate: client auth"
        );
        assert_eq!(validate(LEGACY, &good, &list(server)), Ok(()));
        assert!(parse(b"-----BEGIN X-----\nAA==\n-----END X-----\n").is_err());
        assert!(parse(b"").is_err());
    }
}
