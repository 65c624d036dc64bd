//! A server in this process, asked by anybody over HTTP requests.

use anyhow::{Result, ensure};
use http_body_util::{BodyExt, Full};
use kelp_apiserver::{ApiServer, Config, TlsFiles, UserInfo};
use kelp_store::EmbeddedStore;
use serde_json::Value;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tower::Service;

/// A server, asked by anybody.
pub struct Server {
    pub server: ApiServer,
    shutdown: CancellationToken,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Server {
    pub async fn start() -> Result<Self> {
        let tls = TlsFiles { certificate: Vec::new(), key: Vec::new(), client_ca: Vec::new() };
        let config = Config::new(IpAddr::V4(Ipv4Addr::LOCALHOST), tls);
        let shutdown = CancellationToken::new();
        let server = ApiServer::new(config, Arc::new(EmbeddedStore::in_memory()), shutdown.clone())?;
        server.bootstrap().await?;
        Ok(Server { server, shutdown })
    }

    /// Status and body of a request.
    pub async fn ask(&self, user: &UserInfo, method: &str, path: &str, body: Value) -> Result<(u16, Value)> {
        self.ask_with(user, method, path, &[], body).await
    }

    pub async fn ask_with(
        &self,
        user: &UserInfo,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Value,
    ) -> Result<(u16, Value)> {
        let mut request = http::Request::builder().method(method).uri(path);
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        request = request.header("content-type", kind);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let request = request.body(Full::new(bytes::Bytes::from(body)))?;
        let response = self.server.client_service(user.clone()).call(request).await?;
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await?.to_bytes();
        Ok((status, serde_json::from_slice(&bytes).unwrap_or(Value::Null)))
    }

    /// As [`ask`](Self::ask), where success is expected.
    pub async fn done(&self, user: &UserInfo, method: &str, path: &str, body: Value) -> Result<Value> {
        let (status, answer) = self.ask(user, method, path, body).await?;
        ensure!(status < 300, "{method} {path}: {status} {answer}");
        Ok(answer)
    }
}
