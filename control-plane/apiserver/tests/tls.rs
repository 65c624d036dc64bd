//! The server on its port: certificates, anonymous clients, rude clients, shutdown.

use anyhow::{Context, Result, ensure};
use base64::Engine;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kelp_apiserver::{ApiServer, Config, TlsFiles};
use kelp_store::{EmbeddedStore, StoreOptions};
use kube::api::{Api, ListParams, PostParams};
use kube::{Client, Config as ClientConfig};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

#[path = "tls/overload.rs"]
mod overload;

struct Authority {
    pem: String,
    der: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "test-ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key)?;
        let (pem, der) = (certificate.pem(), certificate.der().to_vec());
        Ok(Authority { pem, der, issuer: Issuer::new(params, key) })
    }

    fn sign(&self, name: &str, group: &str) -> Result<(String, String)> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        if !group.is_empty() {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        Ok((params.signed_by(&key, &self.issuer)?.pem(), key.serialize_pem()))
    }
}

struct Port {
    address: SocketAddr,
    authority: Authority,
    shutdown: CancellationToken,
    serving: tokio::task::JoinHandle<Result<(), kelp_apiserver::ServerError>>,
    _directory: tempfile::TempDir,
}

impl Port {
    async fn open() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let authority = Authority::new()?;
        let (certificate, key) = authority.sign("kube-apiserver", "")?;
        let tls = TlsFiles {
            certificate: certificate.into_bytes(),
            key: key.into_bytes(),
            client_ca: authority.pem.clone().into_bytes(),
        };
        let mut config = Config::new(IpAddr::V4(Ipv4Addr::LOCALHOST), tls);
        config.service_cidrs.truncate(1);
        let store = EmbeddedStore::open(directory.path(), StoreOptions::default())?;
        let shutdown = CancellationToken::new();
        let server = ApiServer::new(config, Arc::new(store), shutdown.clone())?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let serving = tokio::spawn(async move { server.run_on(listener).await });
        Ok(Port { address, authority, shutdown, serving, _directory: directory })
    }

    fn client(&self, identity: Option<(&str, &str)>) -> Result<Client> {
        let mut config = ClientConfig::new(format!("https://{}", self.address).parse()?);
        config.root_cert = Some(vec![self.authority.der.clone()]);
        if let Some((name, group)) = identity {
            let (certificate, key) = self.authority.sign(name, group)?;
            let encode = |pem: &str| base64::engine::general_purpose::STANDARD.encode(pem);
            config.auth_info.client_certificate_data = Some(encode(&certificate));
            config.auth_info.client_key_data = Some(encode(&key).into());
        }
        Ok(Client::try_from(config)?)
    }

    async fn close(self) -> Result<()> {
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(10), self.serving).await.context("shutdown")???;
        Ok(())
    }
}

async fn text(client: &Client, path: &str) -> Result<String> {
    Ok(client.request_text(http::Request::get(path).body(Vec::new())?).await?)
}

#[tokio::test]
async fn certificates_are_identities() -> Result<()> {
    let port = Port::open().await?;
    let admin = port.client(Some(("admin", "system:masters")))?;
    ensure!(Api::<Namespace>::all(admin.clone()).list(&ListParams::default()).await?.items.len() == 4);
    let bob = port.client(Some(("bob", "dev")))?;
    let error = Api::<Namespace>::all(bob.clone()).list(&ListParams::default()).await.err();
    ensure!(matches!(&error, Some(kube::Error::Api(s)) if s.code == 403), "{error:?}");
    ensure!(text(&bob, "/apis").await?.contains("apps"));
    let nobody = port.client(None)?;
    ensure!(text(&nobody, "/healthz").await? == "ok");
    ensure!(text(&nobody, "/version").await?.contains("v1.36"));
    let error = text(&nobody, "/apis").await.err().context("anonymous sees discovery")?;
    ensure!(error.to_string().contains("forbidden"), "{error}");
    port.close().await
}

#[tokio::test]
async fn certificates_of_others_are_refused() -> Result<()> {
    let port = Port::open().await?;
    let stranger = Authority::new()?;
    let (certificate, key) = stranger.sign("admin", "system:masters")?;
    let mut config = ClientConfig::new(format!("https://{}", port.address).parse()?);
    config.root_cert = Some(vec![port.authority.der.clone()]);
    let encode = |pem: &str| base64::engine::general_purpose::STANDARD.encode(pem);
    config.auth_info.client_certificate_data = Some(encode(&certificate));
    config.auth_info.client_key_data = Some(encode(&key).into());
    let client = Client::try_from(config)?;
    ensure!(text(&client, "/healthz").await.is_err());
    port.close().await
}

/// Opens a TLS connection without a certificate of its own.
async fn connect(port: &Port, protocol: &[u8]) -> Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(port.authority.der.clone().into())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let stream = TcpStream::connect(port.address).await?;
    Ok(TlsConnector::from(Arc::new(config)).connect("localhost".try_into()?, stream).await?)
}

#[tokio::test]
async fn rude_clients_hurt_nobody() -> Result<()> {
    let port = Port::open().await?;
    // Connects and says nothing; talks without TLS; goes away inside a request; sends nonsense.
    let _silent = TcpStream::connect(port.address).await?;
    let mut plain = TcpStream::connect(port.address).await?;
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await?;
    let mut half = connect(&port, b"http/1.1").await?;
    half.write_all(b"POST /api/v1/namespaces HTTP/1.1\r\ncontent-length: 1000\r\n\r\n{").await?;
    drop(half);
    let mut nonsense = connect(&port, b"http/1.1").await?;
    nonsense.write_all(b"\x00\x01\x02\r\n\r\n").await?;
    let mut answer = Vec::new();
    let _ = nonsense.read_to_end(&mut answer).await;
    ensure!(answer.starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&answer));
    let two = connect(&port, b"h2").await?;
    ensure!(two.get_ref().1.alpn_protocol() == Some(b"h2".as_slice()));
    let admin = port.client(Some(("admin", "system:masters")))?;
    let api: Api<ConfigMap> = Api::default_namespaced(admin);
    let object = serde_json::from_value(serde_json::json!({"metadata": {"name": "a"}}))?;
    api.create(&PostParams::default(), &object).await?;
    port.close().await
}

#[tokio::test]
async fn unusable_certificates_say_which() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let tls = TlsFiles { certificate: b"x".to_vec(), key: b"y".to_vec(), client_ca: Vec::new() };
    let config = Config::new(IpAddr::V4(Ipv4Addr::LOCALHOST), tls);
    let store = EmbeddedStore::open(directory.path(), StoreOptions::default())?;
    let server = ApiServer::new(config, Arc::new(store), CancellationToken::new())?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let error = server.run_on(listener).await.err().context("started")?;
    ensure!(error.to_string().starts_with("the server key"), "{error}");
    Ok(())
}
