//! Serves the API alone on loopback: `cargo run -p kelp-apiserver --example serve -- <directory> [port]`.
//!
//! The directory gets the store, certificates, the key of tokens and `kubeconfig` (an administrator's). They are used again
//! when the program starts again, so that clients go on.

use anyhow::{Context, Result};
use base64::Engine;
use kelp_apiserver::{ApiServer, Config, ServiceAccountKey, TlsFiles};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// A certificate authority for one run.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "example-ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key)?;
        Ok(Authority { pem: certificate.pem(), issuer: Issuer::new(params, key) })
    }

    fn sign(&self, name: &str, group: &str, hosts: &[String]) -> Result<(String, String)> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(hosts.to_vec())?;
        params.distinguished_name.push(DnType::CommonName, name);
        if !group.is_empty() {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        Ok((params.signed_by(&key, &self.issuer)?.pem(), key.serialize_pem()))
    }
}

fn kubeconfig(port: u16, ca: &str, admin: &str, admin_key: &str) -> String {
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters:\n- name: c\n  cluster:\n    server: \
         https://127.0.0.1:{port}\n    certificate-authority-data: {}\nusers:\n- name: u\n  user:\n    \
         client-certificate-data: {}\n    client-key-data: {}\ncontexts:\n- name: c\n  context:\n    cluster: c\n    \
         user: u\n",
        encode(ca),
        encode(admin),
        encode(admin_key)
    )
}

#[tokio::main]
async fn main() -> Result<()> {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let mut arguments = std::env::args().skip(1);
    let directory = PathBuf::from(arguments.next().context("give a directory")?);
    let port: u16 = arguments.next().as_deref().unwrap_or("16443").parse()?;
    std::fs::create_dir_all(&directory)?;
    let (certificate, key, ca) =
        (directory.join("server.crt"), directory.join("server.key"), directory.join("ca.crt"));
    if !key.exists() {
        let authority = Authority::new()?;
        let hosts = ["localhost", "127.0.0.1", "10.96.0.1", "kubernetes.default.svc"].map(str::to_owned);
        let (server, server_key) = authority.sign("kube-apiserver", "", &hosts)?;
        let (admin, admin_key) = authority.sign("admin", "system:masters", &[])?;
        std::fs::write(&certificate, server)?;
        std::fs::write(&ca, &authority.pem)?;
        std::fs::write(directory.join("kubeconfig"), kubeconfig(port, &authority.pem, &admin, &admin_key))?;
        std::fs::write(&key, server_key)?;
    }
    let tls = TlsFiles {
        certificate: std::fs::read(&certificate)?,
        key: std::fs::read(&key)?,
        client_ca: std::fs::read(&ca)?,
    };
    let mut config = Config::new(IpAddr::V4(Ipv4Addr::LOCALHOST), tls);
    let key = directory.join("sa.key");
    if !key.exists() {
        std::fs::write(&key, KeyPair::generate()?.serialize_pem())?;
    }
    config.service_account_key = Some(ServiceAccountKey(std::fs::read(key)?));
    config.listen = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
    config.advertise_port = port;
    config.service_cidrs.truncate(1);
    let store =
        kelp_store::EmbeddedStore::open(directory.join("store"), kelp_store::StoreOptions::default())?;
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        let _ = tokio::signal::ctrl_c().await;
        stop.cancel();
    });
    println!("KUBECONFIG={}", directory.join("kubeconfig").display());
    ApiServer::new(config, Arc::new(store), shutdown)?.run().await?;
    Ok(())
}
