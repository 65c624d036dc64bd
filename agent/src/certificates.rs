//! The node's serving certificate, asked of the API server by certificate signing requests (`serverTLSBootstrap`) and
//! renewed before it ends.
//!
//! Reads: the requests it made. Writes: requests, the certificate in use and its file.

use crate::network::chain;
use crate::server::tls::Serving;
use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::PostParams;
use kube::runtime::{WatchStreamExt, watcher};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Signer of serving certificates.
const SIGNER: &str = "kubernetes.io/kubelet-serving";
/// How long an approval is waited for before another request is made (upstream's).
const APPROVAL: Duration = Duration::from_secs(15 * 60);
/// Pause after a failure, doubled up to [`LONGEST`].
const AGAIN: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(300);
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
        let mut pause = AGAIN;
        let mut renew_at = self.load();
        loop {
            let wait = renew_at.map_or(SignedDuration::ZERO, |at| at.duration_since(Timestamp::now()));
            let round = async {
                tokio::time::sleep(wait.try_into().unwrap_or(Duration::ZERO)).await;
                match self.renew().await {
                    Ok(next) => {
                        tracing::info!(%next, "serving certificate renewed");
                        renew_at = Some(next);
                        pause = AGAIN;
                    }
                    Err(error) => {
                        tracing::warn!(error, ?pause, "serving certificate not renewed, trying again");
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(LONGEST);
                    }
                }
            };
            if shutdown.run_until_cancelled(round).await.is_none() {
                return;
            }
        }
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
        let failed = |e: rcgen::Error| format!("cannot make a request: {e}");
        let key = KeyPair::generate().map_err(failed)?;
        let mut names = vec![self.node_name.clone()];
        names.extend(self.addresses.iter().map(ToString::to_string));
        let mut params = CertificateParams::new(names).map_err(failed)?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(DnType::CommonName, format!("system:node:{}", self.node_name));
        let request = params.serialize_request(&key).and_then(|r| r.pem()).map_err(failed)?;
        let signed = tokio::time::timeout(APPROVAL, self.signed(request.into_bytes()));
        let certificate = signed.await.map_err(|_| "nobody approved the request".to_owned())??;
        let mut file = certificate;
        file.extend(key.serialize_pem().into_bytes());
        self.serving.replace(&file, &file).map_err(|e| chain(&e))?;
        let (begin, end) = validity(&file).ok_or("the certificate cannot be read")?;
        if let Err(error) = self.write(&file) {
            tracing::warn!(%error, "the serving certificate is not kept for the next start");
        }
        Ok(renewal(begin, end, rand::random()))
    }

    fn write(&self, pem: &[u8]) -> std::io::Result<()> {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        std::fs::create_dir_all(&self.dir)?;
        let temporary = self.dir.join(format!("{FILE}.tmp"));
        let _ = std::fs::remove_file(&temporary);
        let mut file = std::fs::File::options().create_new(true).write(true).mode(0o600).open(&temporary)?;
        file.write_all(pem)?;
        file.sync_data()?;
        std::fs::rename(temporary, self.dir.join(FILE))
    }

    /// Makes a request and waits for its certificate.
    async fn signed(&self, request: Vec<u8>) -> Result<Vec<u8>, String> {
        let api: Api<CertificateSigningRequest> = Api::all(self.client.clone());
        let usages = ["digital signature", "server auth"].map(str::to_owned).to_vec();
        let asked = CertificateSigningRequest {
            metadata: ObjectMeta { generate_name: Some("csr-".into()), ..ObjectMeta::default() },
            spec: CertificateSigningRequestSpec {
                request: ByteString(request),
                signer_name: SIGNER.into(),
                usages: Some(usages),
                ..CertificateSigningRequestSpec::default()
            },
            status: None,
        };
        let made = api.create(&PostParams::default(), &asked).await.map_err(|e| chain(&e))?;
        let name = made.metadata.name.unwrap_or_default();
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let mut events = watcher(api, config).default_backoff().boxed();
        while let Some(event) = events.next().await {
            let found = match event {
                Ok(watcher::Event::Apply(found) | watcher::Event::InitApply(found)) => found,
                Ok(watcher::Event::Delete(_)) => return Err(format!("request {name} was removed")),
                Ok(_) | Err(_) => continue,
            };
            let status = found.status.unwrap_or_default();
            for condition in status.conditions.iter().flatten() {
                if matches!(condition.type_.as_str(), "Denied" | "Failed") {
                    let message = condition.message.as_deref().unwrap_or_default();
                    return Err(format!("request {name}: {}: {message}", condition.type_));
                }
            }
            if let Some(certificate) = status.certificate.filter(|c| !c.0.is_empty()) {
                return Ok(certificate.0);
            }
        }
        Err("the watch of the request ended".into())
    }
}

/// Beginning and end of the first certificate of a file.
fn validity(pem: &[u8]) -> Option<(Timestamp, Timestamp)> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem).ok()?;
    let certificate = pem.parse_x509().ok()?;
    let at = |time: x509_parser::time::ASN1Time| Timestamp::from_second(time.timestamp()).ok();
    Some((at(certificate.validity().not_before)?, at(certificate.validity().not_after)?))
}

/// When a certificate is renewed: with between 70 and 90 % of its life over, so that the nodes of a cluster do not all come
/// at once. `chance` is between 0 and 1.
fn renewal(begin: Timestamp, end: Timestamp, chance: f64) -> Timestamp {
    let life = end.duration_since(begin).as_secs_f64();
    let over = SignedDuration::from_secs((life * (0.7 + 0.2 * chance.clamp(0.0, 1.0))).round() as i64);
    begin.checked_add(over).unwrap_or(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use kube::client::Body;
    use parking_lot::Mutex;
    use serde_json::{Value, json};
    use std::sync::Arc;

    /// An API server that signs the first request by itself, and remembers it.
    fn signer(asked: Arc<Mutex<Option<Value>>>) -> kube::Client {
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let asked = asked.clone();
            async move {
                let (parts, body) = request.into_parts();
                let bytes = body.collect().await.unwrap().to_bytes();
                let answer = if parts.method == "POST" {
                    let mut made: Value = serde_json::from_slice(&bytes).unwrap();
                    made["metadata"]["name"] = json!("csr-1");
                    *asked.lock() = Some(made.clone());
                    made
                } else {
                    let mut made = asked.lock().clone().unwrap();
                    let request: ByteString =
                        serde_json::from_value(made["spec"]["request"].clone()).unwrap();
                    let text = String::from_utf8(request.0).unwrap();
                    let request = rcgen::CertificateSigningRequestParams::from_pem(&text).unwrap();
                    let key = KeyPair::generate().unwrap();
                    let issuer = rcgen::Issuer::new(CertificateParams::default(), key);
                    let pem = request.signed_by(&issuer).unwrap().pem();
                    made["status"] = json!({"certificate": ByteString(pem.into_bytes())});
                    json!({"kind": "List", "metadata": {"resourceVersion": "1"}, "items": [made]})
                };
                let body = Body::from(answer.to_string().into_bytes());
                Ok::<_, std::convert::Infallible>(http::Response::new(body))
            }
        });
        kube::Client::new(service, "default")
    }

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
        assert_eq!(spec["signerName"], SIGNER);
        assert_eq!(spec["usages"], json!(["digital signature", "server auth"]));
        assert!(task().load().is_some(), "the next start uses it");
        let other = ServingCertificate { addresses: Vec::new(), ..task() };
        assert!(other.load().is_none(), "it names other addresses");
    }

    #[test]
    fn renewals_are_spread() {
        let at = |s| Timestamp::from_second(s).unwrap();
        assert_eq!(renewal(at(0), at(1000), 0.0), at(700));
        assert_eq!(renewal(at(0), at(1000), 1.0), at(900));
    }
}
