//! The certificate by which the node calls the API server (`rotateCertificates`).
//!
//! Reads: the requests it made. Writes: requests, the certificate in use and its file.

use super::request::{self, Purpose};
use super::{renewal, validity};
use crate::network::chain;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use kube::client::Body;
use parking_lot::RwLock;
use rcgen::KeyPair;
use std::path::PathBuf;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// The certificate in use and its key, by upstream's name.
pub const FILE: &str = "kubelet-client-current.pem";

/// Why a client cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make a client for the API server; check the kubeconfig and {file}")]
pub struct ClientError {
    /// The certificate's file.
    file: PathBuf,
    /// The error.
    #[source]
    source: kube::Error,
}

/// What the task needs.
pub struct ClientCertificate {
    config: kube::Config,
    bootstrap: Option<kube::Client>,
    node_name: String,
    dir: PathBuf,
    current: Arc<RwLock<kube::Client>>,
    /// End of the certificate in use, as far as it is known.
    end: RwLock<Option<Timestamp>>,
    renew_at: Option<Timestamp>,
}

impl ClientCertificate {
    /// A client of the API server which always uses the newest certificate: that of `dir`, if it is good, else that of
    /// `config`, which is renewed at once. `bootstrap` asks for a new one once the certificate has ended.
    ///
    /// # Errors
    /// `config` cannot be used.
    pub fn open(
        config: kube::Config,
        bootstrap: Option<kube::Client>,
        node_name: &str,
        dir: PathBuf,
    ) -> Result<(Self, kube::Client), ClientError> {
        let kept = std::fs::read(dir.join(FILE)).ok().filter(|pem| is_of(pem, node_name));
        let kept = kept.and_then(|pem| {
            let (begin, end) = validity(&pem)?;
            (end > Timestamp::now()).then_some((pem, begin, end))
        });
        let failed = |source| ClientError { file: dir.join(FILE), source };
        let (client, end, renew_at) = match kept {
            Some((pem, begin, end)) => {
                let client = with_identity(&config, &pem).map_err(failed)?;
                (client, Some(end), Some(renewal(begin, end, rand::random())))
            }
            None => (kube::Client::try_from(config.clone()).map_err(failed)?, None, None),
        };
        let namespace = config.default_namespace.clone();
        let current = Arc::new(RwLock::new(client));
        let node_name = node_name.to_owned();
        let end = RwLock::new(end);
        let outer = switching(current.clone(), namespace);
        Ok((Self { config, bootstrap, node_name, dir, current, end, renew_at }, outer))
    }

    /// Keeps a good certificate in use until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        super::keep("client", self.renew_at, || self.renew(), shutdown).await;
    }

    /// Asks for a certificate and takes it into use. When to do so again.
    async fn renew(&self) -> Result<Timestamp, String> {
        let key = KeyPair::generate().map_err(|e| format!("cannot make a key: {e}"))?;
        let asked = request::request(&self.node_name, Vec::new(), &key)?;
        let ended = self.end.read().is_some_and(|end| end <= Timestamp::now());
        let client = match &self.bootstrap {
            Some(bootstrap) if ended => bootstrap.clone(),
            _ => self.current.read().clone(),
        };
        let signed = request::signed(&client, Purpose::Client, None, asked);
        let signed = tokio::time::timeout(request::APPROVAL, signed);
        let mut file = signed.await.map_err(|_| "nobody approved the request".to_owned())??;
        file.extend(key.serialize_pem().into_bytes());
        let (begin, end) = validity(&file).ok_or("the certificate cannot be read")?;
        let client = with_identity(&self.config, &file).map_err(|e| chain(&e))?;
        // Before it is used: the API server may not sign another soon.
        super::write(&self.dir, FILE, &file).map_err(|e| format!("{}: {e}", self.dir.display()))?;
        // Connections that are open go on and end by themselves, watches within minutes; new ones use the new certificate.
        *self.current.write() = client;
        *self.end.write() = Some(end);
        Ok(renewal(begin, end, rand::random()))
    }
}

/// Whether a certificate is that of a node.
pub(super) fn is_of(pem: &[u8], node_name: &str) -> bool {
    let found = x509_parser::pem::Pem::iter_from_buffer(pem).flatten().find(|p| p.label == "CERTIFICATE");
    let Some(found) = found else { return false };
    let Ok(certificate) = found.parse_x509() else { return false };
    let mut names = certificate.subject().iter_common_name();
    names.any(|name| name.as_str().is_ok_and(|name| name == request::user(node_name)))
}

/// A client with the certificate and key of `pem`.
fn with_identity(config: &kube::Config, pem: &[u8]) -> Result<kube::Client, kube::Error> {
    let mut config = config.clone();
    let (certificates, key) = parts(pem);
    config.auth_info.client_certificate = None;
    config.auth_info.client_key = None;
    config.auth_info.client_certificate_data = Some(STANDARD.encode(certificates));
    config.auth_info.client_key_data = Some(STANDARD.encode(key).into());
    kube::Client::try_from(config)
}

/// Certificates and key of a PEM file.
pub(super) fn parts(pem: &[u8]) -> (String, String) {
    let text = String::from_utf8_lossy(pem);
    let (mut certificates, mut key) = (String::new(), String::new());
    let mut in_key = false;
    for line in text.lines() {
        if line.starts_with("-----BEGIN ") {
            in_key = line.contains("PRIVATE KEY");
        }
        let to = if in_key { &mut key } else { &mut certificates };
        to.push_str(line);
        to.push('\n');
    }
    (certificates, key)
}

/// A client that sends each request by the one that is current then.
fn switching(current: Arc<RwLock<kube::Client>>, namespace: String) -> kube::Client {
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let client = current.read().clone();
        async move { client.send(request).await }
    });
    kube::Client::new(service, namespace)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates::testing::signer;
    use parking_lot::Mutex;
    use serde_json::json;

    fn config() -> kube::Config {
        let mut config = kube::Config::new("https://127.0.0.1:1".parse().unwrap());
        config.root_cert = Some(Vec::new());
        config
    }

    #[tokio::test]
    async fn a_certificate_is_asked_for_used_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let asked = Arc::new(Mutex::new(None));
        let open = |bootstrap| {
            ClientCertificate::open(config(), bootstrap, "node1", dir.path().join("pki")).unwrap().0
        };
        let first = open(None);
        assert_eq!(first.renew_at, None, "what the kubeconfig holds is renewed at once");
        *first.current.write() = signer(asked.clone());
        assert!(first.renew().await.unwrap() > Timestamp::now());
        let spec = asked.lock().clone().unwrap()["spec"].clone();
        assert_eq!(spec["signerName"], "kubernetes.io/kube-apiserver-client-kubelet");
        assert_eq!(spec["usages"], json!(["digital signature", "client auth"]));
        let kept = std::fs::read(dir.path().join("pki").join(FILE)).unwrap();
        assert!(is_of(&kept, "node1") && !is_of(&kept, "node2"));
        let second = open(None);
        assert!(second.renew_at.unwrap() > Timestamp::now(), "the next start uses it");
        // After its end the bootstrap credentials ask.
        let again = Arc::new(Mutex::new(None));
        let third = open(Some(signer(again.clone())));
        *third.end.write() = Some(Timestamp::now());
        assert!(third.renew().await.is_ok());
        assert!(again.lock().is_some());
        assert!(third.end.read().unwrap() > Timestamp::now());
    }

    #[tokio::test]
    async fn requests_go_to_the_newest_client() {
        let current = Arc::new(RwLock::new(signer(Arc::default())));
        let outer = switching(current.clone(), "default".into());
        let asked = Arc::new(Mutex::new(None));
        *current.write() = signer(asked.clone());
        let key = KeyPair::generate().unwrap();
        let request = request::request("node1", Vec::new(), &key).unwrap();
        let signed = request::signed(&outer, Purpose::Client, None, request).await.unwrap();
        assert!(validity(&signed).is_some());
        assert!(asked.lock().is_some());
    }
}
