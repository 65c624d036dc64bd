//! Starting the control plane: store, API server, scheduler, controllers.

use crate::cli::{ApiArgs, Cidr, ClusterArgs, ControllerArgs, Dns};
use crate::host::Host;
use crate::kubeconfig;
use crate::parts::Parts;
use crate::pki::renew::{self, Renewal};
use crate::pki::{Leaf, LeafSpec, Pki, ReloadingCert, write_atomic};
use anyhow::{Context, Result};
use kelp_apiserver::{ApiServer, Config, KubeletClient, ServiceAccountKey, TlsFiles, UserInfo};
use kelp_controllers::certificates::Signer;
use kelp_store::EmbeddedStore;
use kube::Client;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use time::OffsetDateTime;
use tokio::net::TcpListener;

/// Life of the certificates that are signed on request: upstream's default.
const SIGNED_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);

/// What the control plane is started with.
pub struct Settings<'a> {
    /// Persistent data.
    pub data_dir: &'a Path,
    /// Address ranges.
    pub cluster: &'a ClusterArgs,
    /// How the API server is reached.
    pub api: &'a ApiArgs,
    /// This host.
    pub host: &'a Host,
    /// Listening sockets of the parent process.
    pub inherited: Vec<std::net::TcpListener>,
}

/// A running store and API server.
pub struct Apiserver {
    server: ApiServer,
    ca_pem: String,
    signer: Signer,
}

impl Apiserver {
    /// A client of the server in this process, with an identity.
    pub fn client(&self, spec: &LeafSpec) -> Client {
        let user = UserInfo::authenticated(&spec.common_name, spec.organizations.iter().cloned());
        Client::new(self.server.client_service(user), "default")
    }

    /// What signs the cluster's certificates.
    pub fn signer(&self) -> Signer {
        self.signer.clone()
    }

    /// The cluster's certificate authority, PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }
}

/// Starts store and API server; the port is open when this returns.
///
/// # Errors
/// Fails if the data directory cannot be used, an address is taken or a certificate cannot be made.
pub async fn start_apiserver(settings: Settings<'_>, parts: &mut Parts) -> Result<Apiserver> {
    let Settings { data_dir, cluster, api, host, inherited } = settings;
    let advertise = api.advertise_address.or_else(|| host.node_ips.first().copied());
    let advertise = advertise.context("the API server has no address; give one with --advertise-address")?;
    let pki = Arc::new(Pki::open(data_dir)?);
    let now = OffsetDateTime::now_utc();
    let serving_spec = serving_certificate(host, cluster, api, advertise);
    let serving = pki.ensure(&serving_spec, now)?;
    let certificate = Arc::new(ReloadingCert::new(&serving)?);

    let mut listeners = vec![listen(api.listen).await?];
    for socket in inherited {
        listeners.push(TcpListener::from_std(socket).context("cannot use an inherited socket")?);
    }
    let port = listeners[0].local_addr().context("cannot read the listening address")?.port();

    let store_dir = data_dir.join("store");
    // Opening reads the history, which blocks.
    let store = tokio::task::spawn_blocking(move || EmbeddedStore::open(store_dir, Default::default()))
        .await
        .context("opening the store failed")?
        .context("cannot open the store")?;
    let mut config = Config::new(
        advertise,
        TlsFiles {
            certificate: serving.cert_pem.clone().into_bytes(),
            key: serving.key_pem.clone().into_bytes(),
            client_ca: pki.ca_pem().as_bytes().to_vec(),
        },
    );
    let to_nodes = pki.ensure(&LeafSpec::kubelet_client(), now)?;
    config.kubelet_client = Some(KubeletClient {
        certificate: to_nodes.cert_pem.into_bytes(),
        key: to_nodes.key_pem.into_bytes(),
    });
    config.service_account_key = Some(ServiceAccountKey(pki.service_account_key()?));
    config.listen = api.listen;
    config.advertise_port = port;
    config.service_cidrs = cluster.service_cidr.iter().map(Cidr::to_string).collect();
    if cluster.dns == Dns::Builtin {
        config.cluster_dns = cluster.dns_addresses();
    }
    config.node_ports = cluster.node_port_range.first..=cluster.node_port_range.last;
    let server = ApiServer::new(config, Arc::new(store.clone()), parts.api_shutdown())?;
    let serve = {
        let (server, certificate) = (server.clone(), certificate.clone());
        async move { server.serve(listeners, certificate).await.context("the API server failed") }
    };
    server.bootstrap().await?;
    parts.spawn_api("apiserver", serve);
    parts.on_stopped(async move { store.close().await });

    let admin = AdminKubeconfig::new(data_dir, api, port, pki.ca_pem());
    let admin_leaf = pki.ensure(&LeafSpec::admin(), now)?;
    admin.write(&admin_leaf)?;
    let renewals = vec![
        Renewal {
            spec: serving_spec,
            renew_at: serving.renew_at,
            apply: Box::new(move |leaf| certificate.replace(leaf)),
        },
        Renewal {
            spec: LeafSpec::admin(),
            renew_at: admin_leaf.renew_at,
            apply: Box::new(move |leaf| admin.write(leaf)),
        },
    ];
    let shutdown = parts.shutdown();
    let ca_pem = pki.ca_pem().to_owned();
    let signer = Signer { certificate: ca_pem.clone(), key: pki.ca_key_pem()?, life: SIGNED_LIFE };
    parts.spawn("certificates", async move {
        renew::run(pki, renewals, shutdown).await;
        Ok(())
    });
    tracing::info!(address = %advertise, port, "API server ready");
    Ok(Apiserver { server, ca_pem, signer })
}

/// Every name the API server is called by.
fn serving_certificate(host: &Host, cluster: &ClusterArgs, api: &ApiArgs, advertise: IpAddr) -> LeafSpec {
    let mut names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"]
        .map(str::to_owned)
        .to_vec();
    names.push("kubernetes.default.svc.cluster.local".to_owned());
    names.extend([host.host_name.to_lowercase(), host.node_name.clone()]);
    let mut addresses =
        vec![IpAddr::from([127, 0, 0, 1]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1u16]), advertise];
    addresses.extend(cluster.service_cidr.iter().filter_map(|cidr| cidr.nth(1)));
    addresses.extend(&host.node_ips);
    let listen = api.listen.ip();
    addresses.extend((!listen.is_unspecified()).then_some(listen));
    for san in &api.extra_sans {
        match san.parse() {
            Ok(address) => addresses.push(address),
            Err(_) => names.push(san.clone()),
        }
    }
    // A host name may be no DNS name; the certificate then does without.
    names.retain(|name| name.is_ascii() && !name.is_empty());
    names.sort_unstable();
    names.dedup();
    addresses.sort_unstable();
    addresses.dedup();
    LeafSpec::apiserver(names, addresses)
}

async fn listen(address: SocketAddr) -> Result<TcpListener> {
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(listener),
        Err(error)
            if address.ip().is_unspecified() && address.is_ipv6() && error.kind() != ErrorKind::AddrInUse =>
        {
            // A kernel without IPv6.
            let address = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port());
            TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
        }
        Err(error) => Err(error).with_context(|| {
            format!("cannot listen on {address}; stop what uses the port, or choose another with --listen")
        }),
    }
}

/// Where the administrator's kubeconfig is written.
struct AdminKubeconfig {
    paths: Vec<PathBuf>,
    server: String,
    ca_pem: String,
}

impl AdminKubeconfig {
    fn new(data_dir: &Path, api: &ApiArgs, port: u16, ca_pem: &str) -> Self {
        let own = match api.listen.ip() {
            ip if ip.is_unspecified() => IpAddr::from(Ipv4Addr::LOCALHOST),
            ip => ip,
        };
        let server =
            api.kubeconfig_server.clone().unwrap_or(format!("https://{}", SocketAddr::new(own, port)));
        let mut paths = vec![kubeconfig::admin_path(data_dir)];
        paths.extend(api.write_kubeconfig.clone());
        Self { paths, server, ca_pem: ca_pem.to_owned() }
    }

    fn write(&self, leaf: &Leaf) -> Result<()> {
        let text = kubeconfig::render(&self.server, &self.ca_pem, "kubernetes-admin", leaf)?;
        self.paths.iter().try_for_each(|path| write_atomic(path, text.as_bytes(), 0o600))
    }
}

/// Starts the scheduler.
pub fn start_scheduler(client: Client, host_name: &str, parts: &mut Parts) {
    let config = kelp_scheduler::app::Config { instance: host_name.to_owned(), ..Default::default() };
    let shutdown = parts.shutdown();
    parts.spawn("scheduler", async move {
        kelp_scheduler::app::run(config, client, shutdown).await;
        Ok(())
    });
}

/// What the controllers are told by the command line.
fn controllers_config(cluster: &ClusterArgs, settings: &ControllerArgs) -> Result<kelp_controllers::Config> {
    let convert =
        |cidrs: &[Cidr]| cidrs.iter().map(|cidr| cidr.to_string().parse()).collect::<Result<Vec<_>, _>>();
    let mut config = kelp_controllers::Config {
        cluster_cidrs: convert(&cluster.cluster_cidr).context("--cluster-cidr")?,
        service_cidrs: convert(&cluster.service_cidr).context("--service-cidr")?,
        mirrored_addresses_per_subset: settings.mirroring_max_endpoints_per_subset.into(),
        ..Default::default()
    };
    if settings.disable_force_detach_on_timeout {
        config.force_detach_after = None;
    }
    Ok(config)
}

/// Starts the controllers.
///
/// # Errors
/// Fails if an address range cannot be used.
pub fn start_controllers(
    client: Client,
    cluster: &ClusterArgs,
    settings: &ControllerArgs,
    ca_pem: Option<&str>,
    signer: Option<Signer>,
    parts: &mut Parts,
) -> Result<()> {
    let root_ca = ca_pem.map(str::to_owned);
    let config = kelp_controllers::Config { root_ca, signer, ..controllers_config(cluster, settings)? };
    let shutdown = parts.shutdown();
    parts.spawn("controllers", async move {
        kelp_controllers::run(config, client, shutdown).await.context("the controllers failed")
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        cluster: ClusterArgs,
        #[command(flatten)]
        controllers: ControllerArgs,
    }

    fn config(line: &[&str]) -> Result<kelp_controllers::Config> {
        let line = Line::try_parse_from([&["kelp"], line].concat())?;
        controllers_config(&line.cluster, &line.controllers)
    }

    #[test]
    fn the_controllers_do_as_the_command_line_says() {
        let (usual, plain) = (kelp_controllers::Config::default(), config(&[]).expect("nothing said"));
        assert_eq!(plain.force_detach_after, usual.force_detach_after);
        assert_eq!(plain.mirrored_addresses_per_subset, usual.mirrored_addresses_per_subset);
        let line = ["--disable-force-detach-on-timeout", "--mirroring-max-endpoints-per-subset", "7"];
        let said = config(&line).expect("flags");
        assert_eq!((said.force_detach_after, said.mirrored_addresses_per_subset), (None, 7));
        for bad in ["0", "1001", "x"] {
            assert!(config(&["--mirroring-max-endpoints-per-subset", bad]).is_err(), "{bad}");
        }
    }
}
