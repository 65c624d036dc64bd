//! A signer for tests.

use http_body_util::BodyExt;
use k8s_openapi::ByteString;
use kube::client::Body;
use parking_lot::Mutex;
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use std::sync::Arc;

/// An API server that signs the first request by itself, and remembers it.
pub fn signer(asked: Arc<Mutex<Option<Value>>>) -> kube::Client {
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let asked = asked.clone();
        async move {
            let (parts, body) = request.into_parts();
            let bytes = body.collect().await.unwrap().to_bytes();
            let answer = if parts.method == "POST" {
                let mut made: Value = serde_json::from_slice(&bytes).unwrap();
                if made["metadata"]["name"].is_null() {
                    made["metadata"]["name"] = json!("csr-1");
                }
                *asked.lock() = Some(made.clone());
                made
            } else {
                let mut made = asked.lock().clone().unwrap();
                let request: ByteString = serde_json::from_value(made["spec"]["request"].clone()).unwrap();
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
