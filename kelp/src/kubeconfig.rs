//! Kubeconfig files: written for the administrator at start, printed for others by `kelp kubeconfig`.

use crate::cli::KubeconfigArgs;
use crate::pki::{Leaf, LeafSpec, Pki, read_optional};
use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use std::path::{Path, PathBuf};
use time::OffsetDateTime;

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster<'a> {
    server: &'a str,
    certificate_authority_data: String,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    client_certificate_data: String,
    client_key_data: String,
}

/// The text of a kubeconfig with one cluster `kelp` and one user.
///
/// # Errors
/// Fails only if the text cannot be serialized.
pub fn render(server: &str, ca_pem: &str, user: &str, leaf: &Leaf) -> Result<String> {
    let cluster = Cluster { server, certificate_authority_data: STANDARD.encode(ca_pem) };
    let identity = User {
        client_certificate_data: STANDARD.encode(&leaf.cert_pem),
        client_key_data: STANDARD.encode(&leaf.key_pem),
    };
    let config = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "kelp", "cluster": cluster}],
        "users": [{"name": user, "user": identity}],
        "contexts": [{"name": "kelp", "context": {"cluster": "kelp", "user": user}}],
        "current-context": "kelp",
    });
    serde_norway::to_string(&config).context("cannot write the kubeconfig")
}

/// Where the administrator's kubeconfig is kept.
pub fn admin_path(data_dir: &Path) -> PathBuf {
    data_dir.join("admin.kubeconfig")
}

/// `kelp kubeconfig`: signs an identity and prints its kubeconfig. Works with the server running or stopped.
///
/// # Errors
/// Fails if the data directory has no authority, or the server's URL is not known.
pub fn print(args: &KubeconfigArgs) -> Result<()> {
    let pki = Pki::open_existing(&args.data.data_dir)?;
    let spec = match (&args.node, &args.user) {
        (Some(node), _) => LeafSpec::node(node),
        (None, Some(user)) => {
            let groups = args.groups.iter().map(String::as_str).collect::<Vec<_>>();
            LeafSpec::client("", user, &groups)
        }
        (None, None) => bail!("give --user or --node"),
    };
    let server = match &args.server {
        Some(server) => server.clone(),
        None => server_of(&admin_path(&args.data.data_dir))?,
    };
    let leaf = pki.issue(&spec, OffsetDateTime::now_utc())?;
    print!("{}", render(&server, pki.ca_pem(), &spec.common_name, &leaf)?);
    Ok(())
}

/// The server URL of the kubeconfig at `path`.
fn server_of(path: &Path) -> Result<String> {
    let hint = || format!("{} does not name the server; give its URL with --server", path.display());
    let text = read_optional(path)?.with_context(hint)?;
    let config: serde_json::Value = serde_norway::from_str(&text).with_context(hint)?;
    let server = config.pointer("/clusters/0/cluster/server").and_then(|s| s.as_str()).with_context(hint)?;
    Ok(server.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn client_libraries_read_it() {
        let dir = tempfile::tempdir().expect("directory");
        let pki = Pki::open(dir.path()).expect("PKI");
        let leaf = pki.issue(&LeafSpec::node("n1"), OffsetDateTime::now_utc()).expect("issue");
        let text = render("https://192.0.2.1:6443", pki.ca_pem(), "system:node:n1", &leaf).expect("render");
        std::fs::write(admin_path(dir.path()), &text).expect("write");
        assert_eq!(server_of(&admin_path(dir.path())).expect("server"), "https://192.0.2.1:6443");
        let parsed = kube::config::Kubeconfig::from_yaml(&text).expect("kubeconfig");
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = kube::Config::from_custom_kubeconfig(parsed, &Default::default()).await.expect("config");
        assert_eq!(config.cluster_url.to_string(), "https://192.0.2.1:6443/");
        kube::Client::try_from(config).expect("client");
    }
}
