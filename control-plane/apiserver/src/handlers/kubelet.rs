//! Requests that a node's kubelet API answers: container logs.

use super::{Context, Reply};
use crate::config::KubeletClient;
use crate::error::ApiError;
use crate::handlers::reply::ReplyBody;
use crate::object::{list_at, str_at};
use crate::storage;
use bytes::Bytes;
use futures::StreamExt;
use http_body_util::{BodyExt, BodyStream, Empty, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;

/// For connecting to a node.
const CONNECT: Duration = Duration::from_secs(10);
/// Parameters of `pods/log` that the node gets.
const PARAMETERS: [&str; 7] =
    ["follow", "previous", "timestamps", "tailLines", "limitBytes", "sinceSeconds", "sinceTime"];

/// Streams the log of a container from the pod's node.
pub(super) async fn log(context: &Context, pod: &Value) -> Result<Reply, ApiError> {
    let Some(identity) = &context.core.config.kubelet_client else {
        return Err(ApiError::service_unavailable("this server has no identity to ask nodes with"));
    };
    let node = str_at(pod, &["spec", "nodeName"]);
    let (address, port) = address_of(context, node).await?;
    let path = log_path(context, pod);
    let failed = |e: &dyn std::fmt::Display| {
        let shown =
            if address.is_ipv6() { format!("[{address}]:{port}") } else { format!("{address}:{port}") };
        ApiError::internal(format!("Get \"https://{shown}{path}\": {e}"))
    };
    let tls = tls(identity).map_err(|e| failed(&e))?;
    let connect = async {
        let stream = TcpStream::connect((address, port)).await?;
        tokio_rustls::TlsConnector::from(tls).connect(ServerName::IpAddress(address.into()), stream).await
    };
    let stream = match tokio::time::timeout(CONNECT, connect).await {
        Ok(result) => result.map_err(|e| failed(&e))?,
        Err(_) => return Err(failed(&"the node does not answer")),
    };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| failed(&e))?;
    tokio::spawn(connection);
    let request = http::Request::get(path.as_str())
        .header("Host", node)
        .body(Empty::<Bytes>::new())
        .map_err(|e| failed(&e))?;
    let response = sender.send_request(request).await.map_err(|e| failed(&e))?;
    let code = response.status().as_u16();
    if code >= 400 {
        let text = Limited::new(response.into_body(), 4 << 10).collect().await.map(|b| b.to_bytes());
        let text = String::from_utf8_lossy(&text.unwrap_or_default()).into_owned();
        return Err(match code {
            404 | 400 => ApiError::bad_request(text),
            _ => ApiError::internal(text),
        });
    }
    let frames = BodyStream::new(response.into_body()).filter_map(|frame| async move {
        // A stream that breaks off ends: the client sees what there was.
        frame.ok().and_then(|f| f.into_data().ok())
    });
    // The sender must live as long as the answer is read.
    let body = frames.map(move |bytes| {
        let _ = &sender;
        bytes
    });
    let mut reply = Reply::text(200, "");
    reply.body = ReplyBody::Stream(Box::pin(body));
    Ok(reply)
}

/// Path and query of a log request as the node takes them.
fn log_path(context: &Context, pod: &Value) -> String {
    let asked = context.query.text("container");
    let only = list_at(pod, &["spec", "containers"]).first().map_or("", |c| str_at(c, &["name"]));
    let container = if asked.is_empty() { only } else { asked };
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    for name in PARAMETERS {
        let value = context.query.text(name);
        if !value.is_empty() {
            query.append_pair(name, value);
        }
    }
    format!(
        "/containerLogs/{}/{}/{container}?{}",
        str_at(pod, &["metadata", "namespace"]),
        str_at(pod, &["metadata", "name"]),
        query.finish()
    )
}

/// Where a node's kubelet API is.
async fn address_of(context: &Context, node: &str) -> Result<(IpAddr, u16), ApiError> {
    let nodes = context.core.registry.find("", "v1", "nodes").ok_or_else(ApiError::unknown_resource)?.clone();
    let found = storage::read(&context.core.store, &nodes, &nodes.key("", node)).await?;
    let found = found.ok_or_else(|| ApiError::not_found("", "nodes", node))?.object;
    let internal = list_at(&found, &["status", "addresses"])
        .iter()
        .filter(|a| str_at(a, &["type"]) == "InternalIP")
        .find_map(|a| str_at(a, &["address"]).parse().ok());
    let port = crate::object::int_at(&found, &["status", "daemonEndpoints", "kubeletEndpoint", "Port"]);
    let port = port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p > 0);
    match (internal, port) {
        (Some(address), Some(port)) => Ok((address, port)),
        _ => Err(ApiError::internal(format!("no preferred addresses found for node {node}"))),
    }
}

/// Our identity; the node's certificate is not verified, as upstream by default.
fn tls(identity: &KubeletClient) -> Result<Arc<rustls::ClientConfig>, rustls::Error> {
    let bad = |e: rustls::pki_types::pem::Error| rustls::Error::General(e.to_string());
    let chain =
        CertificateDer::pem_slice_iter(&identity.certificate).collect::<Result<Vec<_>, _>>().map_err(bad)?;
    let key = PrivateKeyDer::from_pem_slice(&identity.key).map_err(bad)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(rustls::ALL_VERSIONS)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyNode(provider)))
        .with_client_auth_cert(chain, key)?;
    Ok(Arc::new(config))
}

/// Takes every node's certificate.
#[derive(Debug)]
struct AnyNode(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for AnyNode {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
