//! Making a certificate signing request and waiting for what comes of it.

use crate::network::chain;
use futures::StreamExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::PostParams;
use kube::runtime::{WatchStreamExt, watcher};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PublicKeyData};
use sha2::{Digest, Sha512_256};
use std::time::Duration;

/// How long an approval is waited for before another request is made (upstream's).
pub(super) const APPROVAL: Duration = Duration::from_secs(15 * 60);
/// Group of all nodes.
const NODES: &str = "system:nodes";

/// What a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The kubelet API.
    Serving,
    /// The node's identity at the API server.
    Client,
}

impl Purpose {
    fn signer(self) -> &'static str {
        match self {
            Self::Serving => "kubernetes.io/kubelet-serving",
            Self::Client => "kubernetes.io/kube-apiserver-client-kubelet",
        }
    }

    /// The usages of a key that is not RSA.
    fn usages(self) -> [&'static str; 2] {
        match self {
            Self::Serving => ["digital signature", "server auth"],
            Self::Client => ["digital signature", "client auth"],
        }
    }
}

/// User name of a node.
pub(super) fn user(node_name: &str) -> String {
    format!("system:node:{node_name}")
}

/// A request (PKCS #10, PEM) of a node for a certificate with `names` (DNS names and addresses).
pub(super) fn request(node_name: &str, names: Vec<String>, key: &KeyPair) -> Result<Vec<u8>, String> {
    let failed = |e: rcgen::Error| format!("cannot make a request: {e}");
    let mut params = CertificateParams::new(names).map_err(failed)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, NODES);
    params.distinguished_name.push(DnType::CommonName, user(node_name));
    let request = params.serialize_request(key).and_then(|r| r.pem()).map_err(failed)?;
    Ok(request.into_bytes())
}

/// Name of a node's first request for a client certificate: made of the key and of what is asked for, so that a node that
/// starts again finds the request it made (upstream's `digestedName`).
pub(super) fn digested_name(node_name: &str, key: &KeyPair) -> String {
    use base64::Engine;
    let encode = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
    let mut hash = Sha512_256::new();
    let mut add = |bytes: &[u8]| {
        hash.update(encode(bytes));
        hash.update(b"|");
    };
    add(&key.subject_public_key_info());
    add(user(node_name).as_bytes());
    add(NODES.as_bytes());
    for usage in Purpose::Client.usages() {
        add(usage.as_bytes());
    }
    format!("node-csr-{}", encode(&hash.finalize()))
}

/// Makes a request and waits for its certificate, PEM. With `name`, a request of that name is used that is there already.
pub(super) async fn signed(
    client: &kube::Client,
    purpose: Purpose,
    name: Option<String>,
    request: Vec<u8>,
) -> Result<Vec<u8>, String> {
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let generated = name.is_none().then(|| "csr-".to_owned());
    let asked = CertificateSigningRequest {
        metadata: ObjectMeta { name: name.clone(), generate_name: generated, ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(request),
            signer_name: purpose.signer().into(),
            usages: Some(purpose.usages().map(str::to_owned).to_vec()),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    let name = match (api.create(&PostParams::default(), &asked).await, name) {
        (Ok(made), _) => made.metadata.name.unwrap_or_default(),
        (Err(kube::Error::Api(error)), Some(name)) if error.code == 409 => name,
        (Err(error), _) => return Err(chain(&error)),
    };
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
