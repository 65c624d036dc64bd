//! Connections through the server to a kubelet API that the test plays.

mod authority;

use anyhow::{Context, Result, ensure};
use authority::Authority;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use kelp_apiserver::{ApiServer, Config, KubeletClient, TlsFiles};
use kelp_store::{EmbeddedStore, StoreOptions};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_util::sync::CancellationToken;

#[path = "connect/translate.rs"]
mod translate;

/// Counts the connections that the fake servers have open.
#[derive(Clone, Default)]
struct Open(Arc<AtomicUsize>);

impl Open {
    fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    fn one(&self) -> Opened {
        self.0.fetch_add(1, Ordering::SeqCst);
        Opened(self.clone())
    }
}

/// An open connection.
struct Opened(Open);

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn chain(pem: &str) -> Result<Vec<CertificateDer<'static>>> {
    Ok(CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>()?)
}

fn key(pem: &str) -> Result<PrivateKeyDer<'static>> {
    Ok(PrivateKeyDer::from_pem_slice(pem.as_bytes())?)
}

/// What the fake server does: streams are echoed after an upgrade, other requests are told back.
async fn answer(mut request: Request<Incoming>, open: Open) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    if path == "/exec/default/p/old"
        || (path.starts_with("/portForward") && translate::names_protocol(&request))
    {
        return Ok(translate::old_node(request));
    }
    if request.headers().contains_key("upgrade") && path != "/exec/default/p/refused" {
        let protocol = request.headers()["upgrade"].clone();
        let first = format!("{} {}\n", request.method(), request.uri());
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let Ok(stream) = upgrade.await else { return };
            let _open = open.one();
            let (mut reader, mut writer) = tokio::io::split(TokioIo::new(stream));
            if writer.write_all(first.as_bytes()).await.is_ok() {
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            }
        });
        let response =
            Response::builder().status(101).header("upgrade", protocol).header("connection", "Upgrade");
        return Ok(response.header("x-stream-protocol-version", "v4").body(Full::default()).expect("valid"));
    }
    if request.uri().query() == Some("only_cpu_and_memory=true") {
        let used = json!({"cpu": {"time": "2026-01-01T00:00:00Z", "usageNanoCores": 5}, "memory": {"workingSetBytes": 2048}});
        let response = Response::new(Full::from(json!({"node": used, "pods": []}).to_string()));
        return Ok(response);
    }
    if path == "/moved" {
        let response = Response::builder().status(302).header("location", "/elsewhere");
        return Ok(response.body(Full::default()).expect("valid"));
    }
    if path.starts_with("/exec") {
        return Ok(Response::builder().status(403).body(Full::from("not today")).expect("valid"));
    }
    let head = format!("{} {}", request.method(), request.uri());
    let headers: Vec<String> = request.headers().keys().map(|k| k.as_str().to_owned()).collect();
    let body = request.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    let told = json!({"request": head, "headers": headers, "length": body.len()});
    let response = Response::builder().header("set-cookie", "a=1").header("set-cookie", "b=2");
    Ok(response.body(Full::from(told.to_string())).expect("valid"))
}

/// Serves with TLS (clients must have a certificate of the authority) or without.
async fn fake(authority: &Authority, tls: bool, open: Open) -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let acceptor = if tls {
        let (certificate, private) = authority.sign("node", "")?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(chain(&authority.pem)?.remove(0))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier.build()?)
            .with_single_cert(chain(&certificate)?, key(&private)?)?;
        Some(tokio_rustls::TlsAcceptor::from(Arc::new(config)))
    } else {
        None
    };
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, open) = (acceptor.clone(), open.clone());
            tokio::spawn(async move {
                let builder = hyper::server::conn::http1::Builder::new();
                let service = hyper::service::service_fn(move |request| answer(request, open.clone()));
                if let Some(acceptor) = acceptor {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let _ = builder.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
                } else {
                    let _ = builder.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
                }
            });
        }
    });
    Ok(address)
}

/// The API server with a node, a pod on it, a pod without one, and a service.
struct World {
    address: SocketAddr,
    authority: Authority,
    shutdown: CancellationToken,
    open: Open,
    _directory: tempfile::TempDir,
}

impl World {
    async fn begin() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let authority = Authority::new()?;
        let (certificate, private) = authority.sign("kube-apiserver", "")?;
        let tls = TlsFiles {
            certificate: certificate.into_bytes(),
            key: private.into_bytes(),
            client_ca: authority.pem.clone().into_bytes(),
        };
        let mut config = Config::new(IpAddr::V4(Ipv4Addr::LOCALHOST), tls);
        config.service_cidrs.truncate(1);
        config.proxy_to_loopback = true;
        let (certificate, private) = authority.sign("apiserver-kubelet-client", "system:masters")?;
        config.kubelet_client =
            Some(KubeletClient { certificate: certificate.into_bytes(), key: private.into_bytes() });
        let store = EmbeddedStore::open(directory.path(), StoreOptions::default())?;
        let shutdown = CancellationToken::new();
        let server = ApiServer::new(config, Arc::new(store), shutdown.clone())?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        tokio::spawn(async move { server.run_on(listener).await });
        let world = World { address, authority, shutdown, open: Open::default(), _directory: directory };
        world.populate().await?;
        Ok(world)
    }

    async fn populate(&self) -> Result<()> {
        let node = fake(&self.authority, true, self.open.clone()).await?;
        let web = fake(&self.authority, false, self.open.clone()).await?;
        let post = async |path: &str, object: Value| {
            let (code, text) = self.send("POST", path, &[], &object.to_string()).await?;
            ensure!(code == 201, "{path}: {code} {text}");
            Ok(())
        };
        let put = async |path: &str, object: Value| {
            let headers = [("content-type", "application/merge-patch+json")];
            let (code, text) = self.send("PATCH", path, &headers, &object.to_string()).await?;
            ensure!(code == 200, "{path}: {code} {text}");
            Ok(())
        };
        post("/api/v1/nodes", json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": "n"}})).await?;
        put(
            "/api/v1/nodes/n/status",
            json!({"status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": node.port()}}}}),
        )
        .await?;
        post(
            "/api/v1/namespaces/default/serviceaccounts",
            json!({"kind": "ServiceAccount", "apiVersion": "v1", "metadata": {"name": "default"}}),
        )
        .await
        .or_else(|_: anyhow::Error| anyhow::Ok(()))?;
        for (name, host) in [("p", "n"), ("pending", "")] {
            let mut spec = json!({"containers": [{"name": "c", "image": "i",
                "ports": [{"containerPort": web.port()}]}, {"name": "refused", "image": "i"},
                {"name": "old", "image": "i"}]});
            if !host.is_empty() {
                spec["nodeName"] = host.into();
            }
            post(
                "/api/v1/namespaces/default/pods",
                json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": name}, "spec": spec}),
            )
            .await?;
        }
        put(
            "/api/v1/namespaces/default/pods/p/status",
            json!({"status": {"podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}}),
        )
        .await?;
        post(
            "/api/v1/namespaces/default/services",
            json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": "s"},
                "spec": {"ports": [{"name": "web", "port": 80}]}}),
        )
        .await?;
        post(
            "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
            json!({"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
                "metadata": {"name": "s-1", "labels": {"kubernetes.io/service-name": "s"}},
                "addressType": "IPv4", "ports": [{"name": "web", "port": web.port()}],
                "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": true}}]}),
        )
        .await
        // Loopback endpoints are not valid; the fake server has no other address.
        .or_else(|_: anyhow::Error| anyhow::Ok(()))
    }

    async fn dial(&self, group: &str) -> Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let (certificate, private) = self.authority.sign("someone", group)?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(chain(&self.authority.pem)?.remove(0))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain(&certificate)?, key(&private)?)?;
        let stream = TcpStream::connect(self.address).await?;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        Ok(connector.connect(ServerName::try_from("127.0.0.1")?, stream).await?)
    }

    /// A request as text; returns the status and all bytes that follow the head.
    async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Result<(u16, String)> {
        let (code, _, text) = self.send_as("system:masters", method, path, headers, body).await?;
        Ok((code, text))
    }

    async fn send_as(
        &self,
        group: &str,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Result<(u16, hyper::HeaderMap, String)> {
        let stream = self.dial(group).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header("host", "api.test");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if !headers.iter().any(|(name, _)| *name == "content-type") {
            request = request.header("content-type", "application/json");
        }
        let response = sender.send_request(request.body(Full::<Bytes>::from(body.to_owned()))?).await?;
        let (parts, body) = response.into_parts();
        let text = String::from_utf8(body.collect().await?.to_bytes().to_vec())?;
        Ok((parts.status.as_u16(), parts.headers, text))
    }

    /// Upgrades and returns the connection behind the head, with the head.
    async fn upgrade(
        &self,
        group: &str,
        method: &str,
        path: &str,
        protocol: &str,
    ) -> Result<(String, tokio_rustls::client::TlsStream<TcpStream>)> {
        let mut stream = self.dial(group).await?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: api.test\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stream.read_u8().await?);
        }
        Ok((String::from_utf8(answer)?, stream))
    }
}

async fn line(stream: &mut (impl AsyncReadExt + Unpin)) -> Result<String> {
    let mut out = Vec::new();
    while !out.ends_with(b"\n") {
        out.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8(out)?)
}

fn message(text: &str) -> String {
    serde_json::from_str::<Value>(text)
        .map(|v| v["message"].as_str().unwrap_or_default().to_owned())
        .unwrap_or_default()
}

const PODS: &str = "/api/v1/namespaces/default/pods";

#[tokio::test]
async fn streams_are_piped_and_end_with_either_side() -> Result<()> {
    let world = World::begin().await?;
    for (method, protocol) in [("GET", "websocket"), ("POST", "SPDY/3.1")] {
        let path = format!("{PODS}/p/exec?container=c&command=ls&command=-l&stdin=1&stdout=true&tty=false");
        let (head, mut stream) = world.upgrade("system:masters", method, &path, protocol).await?;
        ensure!(head.starts_with("HTTP/1.1 101"), "{head}");
        ensure!(head.to_lowercase().contains("x-stream-protocol-version: v4"), "{head}");
        let said = line(&mut stream).await?;
        let expected = format!("{method} /exec/default/p/c?command=ls&command=-l&input=1&output=1\n");
        ensure!(said == expected, "{said}");
        let payload = vec![7u8; 200_000];
        let (mut reader, mut writer) = tokio::io::split(stream);
        let sent = payload.clone();
        let writing = tokio::spawn(async move { writer.write_all(&sent).await.map(|()| writer) });
        let mut back = vec![0u8; payload.len()];
        tokio::time::timeout(Duration::from_secs(20), reader.read_exact(&mut back)).await??;
        ensure!(back == payload);
        ensure!(world.open.count() >= 1);
        drop((reader, writing.await??));
    }
    // The node's side ends when the clients are gone.
    let closed = async {
        while world.open.count() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), closed).await.context("connections leak")?;
    let path = format!("{PODS}/p/portforward?ports=80&ports=81");
    let (_, mut stream) = world.upgrade("system:masters", "POST", &path, "SPDY/3.1").await?;
    ensure!(line(&mut stream).await? == "POST /portForward/default/p?port=80&port=81\n");
    // The server's end ends streams, too.
    world.shutdown.cancel();
    let mut rest = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut rest)).await;
    ensure!(read.is_ok(), "the stream outlives the server");
    Ok(())
}

#[tokio::test]
async fn a_log_comes_over_a_web_socket() -> Result<()> {
    let world = World::begin().await?;
    for (asked, chosen) in
        [("", ""), ("none, binary.k8s.io", "binary.k8s.io"), ("base64.binary.k8s.io", "base64.binary.k8s.io")]
    {
        let stream = world.dial("system:masters").await?;
        let url = format!("wss://127.0.0.1{PODS}/p/log?container=c");
        let mut request = url.into_client_request()?;
        if !asked.is_empty() {
            request.headers_mut().insert("sec-websocket-protocol", asked.parse()?);
        }
        let (mut socket, response) = tokio_tungstenite::client_async(request, stream).await?;
        let protocol =
            response.headers().get("sec-websocket-protocol").map_or("", |p| p.to_str().unwrap_or("?"));
        ensure!(protocol == chosen, "{asked}: {protocol}");
        let (mut log, mut first) = (Vec::new(), None);
        while let Some(Ok(message)) = socket.next().await {
            first.get_or_insert(message.len());
            match message {
                Message::Binary(bytes) => log.extend_from_slice(&bytes),
                Message::Text(text) => log.extend(STANDARD.decode(text.as_str())?),
                _ => break,
            }
        }
        ensure!(first == Some(0), "the first message is empty");
        let told: Value = serde_json::from_slice(&log).context("no byte is lost")?;
        ensure!(told["request"] == "GET /containerLogs/default/p/c?", "{told}");
    }
    let stream = world.dial("system:masters").await?;
    let mut request = format!("wss://127.0.0.1{PODS}/p/log?container=c").into_client_request()?;
    request.headers_mut().insert("sec-websocket-protocol", "other".parse()?);
    let refused =
        tokio_tungstenite::client_async(request, stream).await.err().context("a protocol is refused")?;
    ensure!(refused.to_string().contains("403"), "{refused}");
    Ok(())
}

/// An update that names other tolerations keeps those that every pod has.
#[tokio::test]
async fn tolerations_of_every_pod_outlive_an_update() -> Result<()> {
    let world = World::begin().await?;
    let mut pod: Value = serde_json::from_str(&world.send("GET", &format!("{PODS}/p"), &[], "").await?.1)?;
    let usual = pod["spec"]["tolerations"].clone();
    ensure!(usual.as_array().is_some_and(|list| list.len() == 2), "{usual}");
    pod["spec"]["tolerations"] = json!([{"key": "k", "operator": "Exists", "effect": "NoSchedule"}]);
    let (code, text) = world.send("PUT", &format!("{PODS}/p"), &[], &pod.to_string()).await?;
    ensure!(code == 200, "{text}");
    let updated: Value = serde_json::from_str(&text)?;
    let list = updated["spec"]["tolerations"].as_array().context("tolerations")?;
    ensure!(
        list.len() == 3 && usual.as_array().is_some_and(|u| u.iter().all(|t| list.contains(t))),
        "{text}"
    );
    Ok(())
}

#[tokio::test]
async fn what_is_wrong_is_said_as_upstream_says_it() -> Result<()> {
    let world = World::begin().await?;
    for (path, code, expected) in [
        ("pending/exec?container=c", 400, "pod pending does not have a host assigned"),
        ("pending/portforward", 400, "pod pending does not have a host assigned"),
        ("p/exec", 400, "a container name must be specified for pod p, choose one of: [c refused old]"),
        ("p/attach?container=x", 400, "container x is not valid for pod p"),
        ("none/exec", 404, "pods \"none\" not found"),
        ("p/exec?container=c", 400, "Upgrade request required"),
        ("p/exec?container=c&dryRun=All", 400, "dryRun is not supported"),
        ("p/portforward?ports=x", 400, "strconv.ParseInt: parsing \"x\": invalid syntax"),
        ("pending/proxy/", 400, "address not allowed"),
        ("a:b:c:d/proxy/", 400, "invalid pod request \"a:b:c:d\""),
    ] {
        let (found, text) = world.send("POST", &format!("{PODS}/{path}"), &[], "").await?;
        ensure!((found, message(&text).as_str()) == (code, expected), "{path}: {found} {text}");
    }
    let services = "/api/v1/namespaces/default/services";
    for (path, code, expected) in [
        ("none/proxy/", 404, "services \"none\" not found"),
        ("s:81/proxy/", 503, "no service port 81 found for service \"s\""),
        ("s:other/proxy/", 503, "no endpoints available for service \"s:other\""),
    ] {
        let (found, text) = world.send("GET", &format!("{services}/{path}"), &[], "").await?;
        ensure!((found, message(&text).as_str()) == (code, expected), "{path}: {found} {text}");
    }
    // What the node answers instead of an upgrade is passed on.
    let path = format!("{PODS}/p/exec?container=refused");
    let (head, _) = world.upgrade("system:masters", "POST", &path, "SPDY/3.1").await?;
    ensure!(head.starts_with("HTTP/1.1 403"), "{head}");
    // To read is not to create.
    let (head, _) = world.upgrade("nobody", "GET", &path, "websocket").await?;
    ensure!(head.starts_with("HTTP/1.1 403"), "{head}");
    let (found, text) = world.send("DELETE", &format!("{PODS}/p/exec?container=c"), &[], "").await?;
    ensure!(found == 405, "{text}");
    Ok(())
}

#[tokio::test]
async fn proxies_pass_requests_on() -> Result<()> {
    let world = World::begin().await?;
    let body = "x".repeat(5 << 20);
    let headers = [("authorization", "Basic bogus"), ("x-mine", "1")];
    let (code, text) =
        world.send("POST", &format!("{PODS}/p/proxy/a%20b/c?q=1&q=2"), &headers[1..], &body).await?;
    let told: Value = serde_json::from_str(&text).with_context(|| format!("{code} {text}"))?;
    ensure!(told["request"] == "POST /a%20b/c?q=1&q=2" && told["length"] == body.len(), "{text}");
    let has = |name: &str| told["headers"].as_array().is_some_and(|h| h.iter().any(|h| h == name));
    ensure!(
        has("x-mine") && has("x-forwarded-for") && has("x-forwarded-uri") && !has("authorization"),
        "{text}"
    );
    let (code, headers, text) =
        world.send_as("system:masters", "GET", &format!("{PODS}/p/proxy"), &[], "").await?;
    ensure!(code == 301 && headers["location"] == format!("{PODS}/p/proxy/"), "{code} {text}");
    let (code, headers, _) =
        world.send_as("system:masters", "GET", &format!("{PODS}/p/proxy/moved"), &[], "").await?;
    ensure!(code == 302 && headers["location"] == format!("{PODS}/p/proxy/elsewhere"), "{headers:?}");
    let nodes = "/api/v1/nodes/n/proxy/stats/summary";
    let (code, headers, text) = world.send_as("system:masters", "GET", nodes, &[], "").await?;
    ensure!(code == 200 && text.contains("GET /stats/summary"), "{code} {text}");
    ensure!(headers.get_all("set-cookie").iter().count() == 2, "{headers:?}");
    let (_, mut stream) =
        world.upgrade("system:masters", "GET", &format!("{PODS}/p/proxy/ws"), "websocket").await?;
    ensure!(line(&mut stream).await? == "GET /ws\n");
    Ok(())
}

#[tokio::test]
async fn use_of_nodes_is_asked_of_them() -> Result<()> {
    let world = World::begin().await?;
    let group = "/apis/metrics.k8s.io/v1beta1";
    let get = async |path: &str| -> Result<(u16, Value)> {
        let (code, text) = world.send("GET", &format!("{group}{path}"), &[], "").await?;
        Ok((code, serde_json::from_str(&text).with_context(|| format!("{code} {text}"))?))
    };
    let (code, list) = get("/nodes").await?;
    ensure!(code == 200 && list["kind"] == "NodeMetricsList", "{list}");
    ensure!(list["items"][0]["metadata"]["name"] == "n", "{list}");
    let (code, node) = get("/nodes/n").await?;
    ensure!(code == 200 && node["kind"] == "NodeMetrics", "{node}");
    ensure!(node["usage"] == json!({"cpu": "5n", "memory": "2Ki"}), "{node}");
    ensure!(get("/nodes/other").await?.0 == 404);
    let (code, list) = get("/namespaces/default/pods").await?;
    ensure!(code == 200 && list["kind"] == "PodMetricsList" && list["items"] == json!([]), "{list}");
    ensure!(get("/namespaces/default/pods/p").await?.0 == 404, "the node does not know it");
    let (code, groups) = world.send("GET", "/apis", &[], "").await?;
    ensure!(code == 200 && groups.contains("metrics.k8s.io/v1beta1"), "{groups}");
    ensure!(world.send("GET", "/openapi/v3", &[], "").await?.0 == 200);
    ensure!(world.send("GET", "/openapi/v2", &[], "").await?.0 == 200);
    Ok(())
}
