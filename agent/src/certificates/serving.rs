//! The node's serving certificate (`serverTLSBootstrap`).
//!
//! Reads: the requests it made. Writes: requests, the certificate in use and its file.

use super::request::{self, Purpose};
use super::{renewal, validity};
use crate::network::chain;
use crate::server::tls::Serving;
use jiff::Timestamp;
use rcgen::KeyPair;
use std::net::IpAddr;
use std::path::PathBuf;
use tokio_util::sync::CancellationToken;

/// The certificate and its key.
const FILE: &str = "kubelet-server-current.pem";

/// What the task needs.
pub struct ServingCertificate {
    /// The API server.
    pub client: kube::Client,
    /// Name of the node.
    pub node_name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Directory of its file.
    pub dir: PathBuf,
    /// The certificate in use.
    pub serving: Serving,
}

impl ServingCertificate {
    /// Keeps a good certificate in use until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let renew_at = self.load();
        super::keep("serving", renew_at, || self.renew(), shutdown).await;
    }

    /// Takes the certificate of an earlier run into use, if it is still good.
    fn load(&self) -> Option<Timestamp> {
        let pem = std::fs::read(self.dir.join(FILE)).ok()?;
        let (begin, end) = validity(&pem)?;
        let renew_at = renewal(begin, end, rand::random());
        if renew_at <= Timestamp::now() || !self.names_match(&pem) {
            return None;
        }
        self.serving.replace(&pem, &pem).ok()?;
        Some(renew_at)
    }

    /// Whether a certificate is for this node's names and addresses.
    fn names_match(&self, pem: &[u8]) -> bool {
        let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(pem) else { return false };
        let Ok(certificate) = pem.parse_x509() else { return false };
        let Ok(Some(names)) = certificate.subject_alternative_name() else { return false };
        let wanted = self.addresses.len() + 1;
        let known = names.value.general_names.iter().filter(|name| match name {
            x509_parser::extensions::GeneralName::DNSName(name) => *name == self.node_name,
            x509_parser::extensions::GeneralName::IPAddress(bytes) => {
                self.addresses.iter().any(|a| match a {
                    IpAddr::V4(a) => a.octets() == *bytes,
                    IpAddr::V6(a) => a.octets() == *bytes,
                })
            }
            _ => false,
        });
        known.count() == wanted && names.value.general_names.len() == wanted
    }

    /// Asks for a certificate and takes it into use. When to do so again.
    async fn renew(&self) -> Result<Timestamp, String> {
        let key = KeyPair::generate().map_err(|e| format!("cannot make a key: {e}"))?;
        let mut names = vec![self.node_name.clone()];
        names.extend(self.addresses.iter().map(ToString::to_string));
        let request = request::request(&self.node_name, names, &key)?;
        let signed = request::signed(&self.client, Purpose::Serving, None, request);
        let signed = tokio::time::timeout(request::APPROVAL, signed);
        let certificate = signed.await.map_err(|_| "nobody approved the request".to_owned())??;
        let mut file = certificate;
        file.extend(key.serialize_pem().into_bytes());
        self.serving.replace(&file, &file).map_err(|e| chain(&e))?;
        let (begin, end) = validity(&file).ok_or("the certificate cannot be read")?;
        if let Err(error) = super::write(&self.dir, FILE, &file) {
            tracing::warn!(%error, "the serving certificate is not kept for the next start");
        }
        Ok(renewal(begin, end, rand::random()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates::testing::signer;
    use parking_lot::Mutex;
    use serde_json::json;
    use std::sync::Arc;

    #[tokio::test]
    async fn a_certificate_is_asked_for_used_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let own = rcgen::generate_simple_self_signed(vec!["x".to_owned()]).unwrap();
        let own = (own.cert.pem(), own.signing_key.serialize_pem());
        let asked = Arc::new(Mutex::new(None));
        let task = || ServingCertificate {
            client: signer(asked.clone()),
            node_name: "node1".into(),
            addresses: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
            dir: dir.path().join("pki"),
            serving: Serving::new(own.0.as_bytes(), own.1.as_bytes()).unwrap(),
        };
        assert!(task().load().is_none());
        let next = task().renew().await.unwrap();
        assert!(next > Timestamp::now());
        let spec = asked.lock().clone().unwrap()["spec"].clone();
        assert_eq!(spec["signerName"], "kubernetes.io/kubelet-serving");
        assert_eq!(spec["usages"], json!(["digital signature", "server auth"]));
        assert!(task().load().is_some(), "the next start uses it");
        let other = ServingCertificate { addresses: Vec::new(), ..task() };
        assert!(other.load().is_none(), "it names other addresses");
    }
}
