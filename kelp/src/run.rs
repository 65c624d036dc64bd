//! `kelp up`, `kelp server` and `kelp agent`.

use crate::cli::{AgentArgs, Cidr, Component, ServerArgs, UpArgs};
use crate::host::Host;
use crate::node::Role;
use crate::parts::Parts;
use crate::pki::LeafSpec;
use crate::{control_plane, node, signals, systemd};
use anyhow::{Context, Result};
use kelp_agent::certificates::bootstrap;
use kelp_agent::certificates::client::ClientCertificate;
use kelp_agent::dataplane::cleanup;
use kelp_agent::dataplane::proxy_config::ProxyConfig;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use std::path::Path;
use tokio_util::sync::CancellationToken;

/// Starts parts, tells the service manager, and waits for their end.
async fn supervise(start: impl AsyncFnOnce(&mut Parts) -> Result<()>) -> Result<()> {
    let shutdown = CancellationToken::new();
    signals::install(shutdown.clone())?;
    let mut parts = Parts::new(shutdown.clone());
    let started = tokio::select! {
        started = start(&mut parts) => started,
        () = shutdown.cancelled() => Ok(()),
    };
    match started {
        Ok(()) => {
            systemd::notify_ready();
            parts.run().await
        }
        Err(error) => {
            parts.stop().await;
            Err(error)
        }
    }
}

/// `kelp up`: everything on this host.
///
/// # Errors
/// Fails if a part cannot start or ends on its own.
pub async fn up(args: UpArgs) -> Result<()> {
    let systemd::Inherited { listeners: inherited, dns } = systemd::inherited()?;
    let host = Host::resolve(&args.node.address)?;
    let data_dir = &args.data.data_dir;
    supervise(async |parts| {
        let settings = control_plane::Settings {
            data_dir,
            cluster: &args.cluster,
            api: &args.api,
            host: &host,
            inherited,
        };
        let api = control_plane::start_apiserver(settings, parts).await?;
        control_plane::start_scheduler(api.client(&LeafSpec::scheduler()), &host.host_name, parts);
        let controllers = api.client(&LeafSpec::controller_manager());
        let (ca, signer) = (Some(api.ca_pem()), Some(api.signer()));
        control_plane::start_controllers(controllers, &args.cluster, &args.controllers, ca, signer, parts)?;
        let ca_pem = api.ca_pem().as_bytes().to_vec();
        let (cluster, node) = (&args.cluster, &args.node);
        let settings = node::Settings { data_dir, cluster, node, host: &host, ca_pem, dns };
        node::start(settings, api.client(&LeafSpec::node(&host.node_name)), Role::Whole, parts).await
    })
    .await
}

/// `kelp server`: the control plane, or parts of it.
///
/// # Errors
/// Fails if a part cannot start or ends on its own.
pub async fn server(args: ServerArgs) -> Result<()> {
    let systemd::Inherited { listeners: inherited, .. } = systemd::inherited()?;
    let host = Host::resolve(&args.node)?;
    let runs = |component| args.components.contains(&component);
    supervise(async |parts| {
        let api = if runs(Component::Apiserver) {
            let (data_dir, cluster) = (args.data.data_dir.as_path(), &args.cluster);
            let settings =
                control_plane::Settings { data_dir, cluster, api: &args.api, host: &host, inherited };
            Some(control_plane::start_apiserver(settings, parts).await?)
        } else {
            None
        };
        let client = async |spec: LeafSpec| match (&api, &args.kubeconfig) {
            (Some(api), _) => Ok(api.client(&spec)),
            (None, Some(path)) => client_of(path).await,
            (None, None) => anyhow::bail!("without the apiserver component, --kubeconfig must name one"),
        };
        if runs(Component::Scheduler) {
            control_plane::start_scheduler(client(LeafSpec::scheduler()).await?, &host.host_name, parts);
        }
        if runs(Component::Controllers) {
            let client = client(LeafSpec::controller_manager()).await?;
            // Pods need the authority: apart from the API server it is the one that the kubeconfig names.
            let ca_pem = match (&api, &args.kubeconfig) {
                (Some(api), _) => Some(api.ca_pem().to_owned()),
                (None, Some(path)) => {
                    Some(String::from_utf8(authority_of(path)?).context("the authority is no text")?)
                }
                (None, None) => None,
            };
            let signer = api.as_ref().map(control_plane::Apiserver::signer);
            control_plane::start_controllers(
                client,
                &args.cluster,
                &args.controllers,
                ca_pem.as_deref(),
                signer,
                parts,
            )?;
        }
        Ok(())
    })
    .await
}

/// `kelp agent`: the node.
///
/// # Errors
/// Fails if a part cannot start or ends on its own.
pub async fn agent(mut args: AgentArgs) -> Result<()> {
    if args.cleanup {
        let dir = &args.node.bpf_dir;
        return cleanup(dir).with_context(|| format!("cannot remove what is pinned in {}", dir.display()));
    }
    if args.dataplane_only
        && let Some(file) = args.node.config.take()
    {
        adopt(ProxyConfig::load(&file)?, &mut args);
    }
    let systemd::Inherited { dns, .. } = systemd::inherited()?;
    let host = Host::resolve(&args.node.address)?;
    supervise(async |parts| {
        let (client, ca_pem) = match &args.kubeconfig {
            Some(path) => node_client(path, &args, &host.node_name, parts).await?,
            None => own_client()?,
        };
        let data_dir = &args.data.data_dir;
        let (cluster, node) = (&args.cluster, &args.node);
        let settings = node::Settings { data_dir, cluster, node, host: &host, ca_pem, dns };
        let role = match (args.dataplane_only, args.without_dataplane) {
            (true, _) => Role::DataplaneOnly,
            (false, true) => Role::WithoutDataplane,
            (false, false) => Role::Whole,
        };
        node::start(settings, client, role, parts).await
    })
    .await
}

/// The client of a node's identity, and the authority. The certificate is asked for, and kept good, as far as `args` say.
async fn node_client(
    path: &Path,
    args: &AgentArgs,
    node_name: &str,
    parts: &mut Parts,
) -> Result<(Client, Vec<u8>)> {
    let dir = args.data.data_dir.join("kubelet-pki");
    let bootstrap = args.bootstrap_kubeconfig.as_deref();
    if let Some(bootstrap) = bootstrap {
        bootstrap::ensure(path, bootstrap, node_name, &dir).await?;
    }
    if !args.rotate_certificates && !node::rotates_certificates(&args.node, args.dataplane_only)? {
        return Ok((client_of(path).await?, authority_of(path)?));
    }
    let bootstrap = match bootstrap {
        Some(bootstrap) => Some(bootstrap::client(bootstrap).await?),
        None => None,
    };
    let (certificate, client) = ClientCertificate::open(config_of(path).await?, bootstrap, node_name, dir)?;
    let shutdown = parts.shutdown();
    parts.spawn("client certificate", async move {
        certificate.run(shutdown).await;
        Ok(())
    });
    Ok((client, authority_of(path)?))
}

/// Takes over what kube-proxy's configuration says.
fn adopt(config: ProxyConfig, args: &mut AgentArgs) {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    if let Some(file) = config.kubeconfig {
        args.kubeconfig = Some(file);
    }
    if let Some(name) = config.node_name {
        args.node.address.node_name = Some(name);
    }
    if let Some(address) = config.healthz_address {
        args.node.healthz_bind_address = address;
    }
    if let Some(address) = config.metrics_address {
        args.node.metrics_bind_address = address;
    }
    if !config.cluster_cidrs.is_empty() {
        let ranges = config.cluster_cidrs.into_iter();
        args.cluster.cluster_cidr = ranges.map(|(network, prefix)| Cidr { network, prefix }).collect();
    }
}

/// The client of the pod that this runs in, and the authority.
fn own_client() -> Result<(Client, Vec<u8>)> {
    const AUTHORITY: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";
    let problem = "without --kubeconfig this must run in a pod with a service account";
    let config = Config::incluster().context(problem)?;
    let authority = std::fs::read(AUTHORITY).with_context(|| format!("cannot read {AUTHORITY}"))?;
    Ok((Client::try_from(config).context(problem)?, authority))
}

/// The cluster's certificate authority by a kubeconfig file, PEM.
fn authority_of(path: &Path) -> Result<Vec<u8>> {
    let kubeconfig = Kubeconfig::read_from(path)
        .with_context(|| format!("cannot use the kubeconfig {}", path.display()))?;
    let cluster = kubeconfig.clusters.iter().find_map(|c| c.cluster.as_ref());
    let inline = cluster.and_then(|c| c.certificate_authority_data.as_ref());
    if let Some(text) = inline {
        use base64::Engine;
        return base64::engine::general_purpose::STANDARD
            .decode(text)
            .with_context(|| format!("certificate-authority-data of {} is not base64", path.display()));
    }
    let file = cluster.and_then(|c| c.certificate_authority.as_ref());
    let file = file.with_context(|| format!("{} names no certificate authority", path.display()))?;
    std::fs::read(file).with_context(|| format!("cannot read {file}"))
}

/// A client by a kubeconfig file.
pub async fn client_of(path: &Path) -> Result<Client> {
    Client::try_from(config_of(path).await?)
        .with_context(|| format!("cannot use the kubeconfig {}", path.display()))
}

/// How the API server of a kubeconfig file is reached.
async fn config_of(path: &Path) -> Result<Config> {
    let problem = || format!("cannot use the kubeconfig {}", path.display());
    let kubeconfig = Kubeconfig::read_from(path).with_context(problem)?;
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.with_context(problem)
}
