//! Configuration of the server.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

/// Certificates in PEM form.
#[derive(Clone)]
pub struct TlsFiles {
    /// The server's certificate, followed by its intermediates.
    pub certificate: Vec<u8>,
    /// Its private key.
    pub key: Vec<u8>,
    /// Authorities whose client certificates are believed.
    pub client_ca: Vec<u8>,
}

impl std::fmt::Debug for TlsFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsFiles")
    }
}

/// Identity with which nodes are asked, PEM.
#[derive(Clone)]
pub struct KubeletClient {
    /// The certificate: of the authority that nodes believe, organization `system:masters`.
    pub certificate: Vec<u8>,
    /// Its private key.
    pub key: Vec<u8>,
}

impl std::fmt::Debug for KubeletClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KubeletClient")
    }
}

/// Key that signs tokens of service accounts: PKCS #8 PEM, on P-256.
#[derive(Clone)]
pub struct ServiceAccountKey(
    /// The key.
    pub Vec<u8>,
);

impl std::fmt::Debug for ServiceAccountKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServiceAccountKey")
    }
}

/// Settings of an [`ApiServer`](crate::ApiServer).
#[derive(Debug, Clone)]
pub struct Config {
    /// Address to listen on, when no listener is handed in.
    pub listen: SocketAddr,
    /// Address that the `kubernetes` Service leads to.
    pub advertise_address: IpAddr,
    /// Port at that address.
    pub advertise_port: u16,
    /// Certificates.
    pub tls: TlsFiles,
    /// Identity with which nodes are asked; without one, logs are not served.
    pub kubelet_client: Option<KubeletClient>,
    /// Whether pods and services at loopback addresses are proxied to: for clusters on one machine without a network.
    pub proxy_to_loopback: bool,
    /// Key that signs tokens; without one a new key is made, and tokens are void after a restart.
    pub service_account_key: Option<ServiceAccountKey>,
    /// Issuer of tokens, and their default audience.
    pub service_account_issuer: String,
    /// Ranges of cluster addresses, the primary family first.
    pub service_cidrs: Vec<String>,
    /// Addresses of the Service of cluster DNS, the primary family first; without any, the Service is not made.
    pub cluster_dns: Vec<IpAddr>,
    /// Ports for NodePort services.
    pub node_ports: RangeInclusive<u16>,
    /// Requests that only read, served at one time; watches do not count.
    pub max_read_requests: usize,
    /// Requests that write, served at one time.
    pub max_write_requests: usize,
    /// Longest time a request other than a watch may take.
    pub request_timeout: Duration,
    /// Largest request body, in bytes.
    pub max_body: usize,
    /// How long history is kept in the store.
    pub compaction_period: Duration,
}

impl Config {
    /// Defaults around certificates: port 6443 on all addresses.
    pub fn new(advertise_address: IpAddr, tls: TlsFiles) -> Self {
        Config {
            listen: SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 6443),
            advertise_address,
            advertise_port: 6443,
            tls,
            kubelet_client: None,
            proxy_to_loopback: false,
            service_account_key: None,
            service_account_issuer: "https://kubernetes.default.svc.cluster.local".to_owned(),
            service_cidrs: vec!["10.96.0.0/16".to_owned(), "fd00:10:96::/112".to_owned()],
            cluster_dns: Vec::new(),
            node_ports: 30000..=32767,
            max_read_requests: 400,
            max_write_requests: 200,
            request_timeout: Duration::from_secs(60),
            max_body: 3 << 20,
            compaction_period: Duration::from_secs(300),
        }
    }
}
