//! The node's first certificate: asked for with the credentials of a bootstrap kubeconfig, upstream's TLS bootstrapping.

use super::client::{self, FILE};
use super::request::{self, Purpose};
use super::validity;
use jiff::Timestamp;
use kube::config::{
    AuthInfo, Context, KubeConfigOptions, Kubeconfig, NamedAuthInfo, NamedCluster, NamedContext,
};
use rcgen::KeyPair;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a certificate is waited for (upstream's); somebody may have to approve the request.
const PATIENCE: Duration = Duration::from_secs(3600);
/// The key of a request that is not granted yet, by upstream's name.
const KEY: &str = "kubelet-client.key.tmp";

/// Why the node has no certificate.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The bootstrap kubeconfig cannot be used.
    #[error("unable to load bootstrap kubeconfig {path}: {why}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// No certificate came of the request.
    #[error("no client certificate by the bootstrap kubeconfig {path}: {why}")]
    Request {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A file cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The error.
        #[source]
        source: std::io::Error,
    },
}

/// Makes `kubeconfig` with a certificate of the node, kept in `dir`, unless it is there and good.
///
/// # Errors
/// The bootstrap kubeconfig cannot be used, or no certificate came of the request within an hour.
pub async fn ensure(
    kubeconfig: &Path,
    bootstrap: &Path,
    node_name: &str,
    dir: &Path,
) -> Result<(), BootstrapError> {
    if is_good(kubeconfig) {
        tracing::debug!(kubeconfig = %kubeconfig.display(), "no bootstrap is needed");
        return Ok(());
    }
    let client = client(bootstrap).await?;
    let pem = granted(&client, node_name, dir).await.map_err(|error| match error {
        Failed::Request(why) => BootstrapError::Request { path: bootstrap.to_owned(), why },
        Failed::Write(path, source) => BootstrapError::Write { path, source },
    })?;
    let written = |path: PathBuf| move |source| BootstrapError::Write { path, source };
    super::write(dir, FILE, &pem).map_err(written(dir.join(FILE)))?;
    let _ = std::fs::remove_file(dir.join(KEY));
    let text = render(bootstrap, &dir.join(FILE))?;
    let folder = kubeconfig.parent().unwrap_or(Path::new("/"));
    let name = kubeconfig.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    super::write(folder, &name, text.as_bytes()).map_err(written(kubeconfig.to_owned()))?;
    tracing::info!(kubeconfig = %kubeconfig.display(), "client certificate received");
    Ok(())
}

/// A client with the bootstrap credentials.
///
/// # Errors
/// The kubeconfig cannot be used.
pub async fn client(bootstrap: &Path) -> Result<kube::Client, BootstrapError> {
    let wrong = |why: &dyn std::error::Error| BootstrapError::Kubeconfig {
        path: bootstrap.to_owned(),
        why: crate::network::chain(why),
    };
    let read = Kubeconfig::read_from(bootstrap).map_err(|e| wrong(&e))?;
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(read, &options).await.map_err(|e| wrong(&e))?;
    kube::Client::try_from(config).map_err(|e| wrong(&e))
}

enum Failed {
    Request(String),
    Write(PathBuf, std::io::Error),
}

/// The certificate that came of a request, and its key.
async fn granted(client: &kube::Client, node_name: &str, dir: &Path) -> Result<Vec<u8>, Failed> {
    let key = key(dir)?;
    let asked = request::request(node_name, Vec::new(), &key).map_err(Failed::Request)?;
    let name = request::digested_name(node_name, &key);
    let signed = request::signed(client, Purpose::Client, Some(name.clone()), asked);
    let signed = tokio::time::timeout(PATIENCE, signed).await;
    let late = || Failed::Request(format!("nobody approved the request {name}"));
    let mut pem = signed.map_err(|_| late())?.map_err(Failed::Request)?;
    pem.extend(key.serialize_pem().into_bytes());
    Ok(pem)
}

/// The key of the certificate before, of a request before, or a new one. It is kept until the request is granted.
fn key(dir: &Path) -> Result<KeyPair, Failed> {
    let of = |path: PathBuf| {
        let pem = std::fs::read(path).ok()?;
        KeyPair::from_pem(&client::parts(&pem).1).ok()
    };
    if let Some(key) = of(dir.join(FILE)).or_else(|| of(dir.join(KEY))) {
        return Ok(key);
    }
    let key = KeyPair::generate().map_err(|e| Failed::Request(format!("cannot make a key: {e}")))?;
    super::write(dir, KEY, key.serialize_pem().as_bytes()).map_err(|e| Failed::Write(dir.join(KEY), e))?;
    Ok(key)
}

/// Whether a kubeconfig is there with a client certificate that has not ended.
fn is_good(path: &Path) -> bool {
    use base64::Engine;
    let Ok(config) = Kubeconfig::read_from(path) else { return false };
    let context = config.contexts.iter().find(|c| Some(&c.name) == config.current_context.as_ref());
    let user = context.and_then(|c| c.context.as_ref()?.user.clone());
    let info = config.auth_infos.iter().find(|i| Some(&i.name) == user.as_ref());
    let Some(info) = info.and_then(|i| i.auth_info.as_ref()) else { return false };
    let pem = match (&info.client_certificate_data, &info.client_certificate) {
        (Some(data), _) => base64::engine::general_purpose::STANDARD.decode(data).ok(),
        (None, Some(file)) => std::fs::read(file).ok(),
        (None, None) => None,
    };
    pem.and_then(|pem| validity(&pem)).is_some_and(|(_, end)| end > Timestamp::now())
}

/// The kubeconfig of the node: the cluster of the bootstrap kubeconfig, and the certificate's file.
fn render(bootstrap: &Path, pem: &Path) -> Result<String, BootstrapError> {
    let wrong = |why: String| BootstrapError::Kubeconfig { path: bootstrap.to_owned(), why };
    let read = Kubeconfig::read_from(bootstrap).map_err(|e| wrong(e.to_string()))?;
    let context = read.contexts.iter().find(|c| Some(&c.name) == read.current_context.as_ref());
    let named = context.and_then(|c| Some(c.context.as_ref()?.cluster.clone()));
    let cluster = read.clusters.into_iter().find(|c| Some(&c.name) == named.as_ref());
    let cluster = cluster.and_then(|c| c.cluster).ok_or_else(|| wrong("it names no cluster".into()))?;
    let pem = Some(pem.to_string_lossy().into_owned());
    let info = AuthInfo { client_certificate: pem.clone(), client_key: pem, ..AuthInfo::default() };
    let context = Context {
        cluster: "default-cluster".into(),
        user: Some("default-auth".into()),
        namespace: Some("default".into()),
        ..Context::default()
    };
    let config = Kubeconfig {
        api_version: Some("v1".into()),
        kind: Some("Config".into()),
        clusters: vec![NamedCluster {
            name: "default-cluster".into(),
            cluster: Some(cluster),
            ..Default::default()
        }],
        auth_infos: vec![NamedAuthInfo {
            name: "default-auth".into(),
            auth_info: Some(info),
            ..Default::default()
        }],
        contexts: vec![NamedContext {
            name: "default-context".into(),
            context: Some(context),
            ..Default::default()
        }],
        current_context: Some("default-context".into()),
        ..Kubeconfig::default()
    };
    serde_norway::to_string(&config).map_err(|e| wrong(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates::testing::signer;
    use parking_lot::Mutex;
    use std::sync::Arc;

    const BOOTSTRAP: &str = "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
        clusters: [{name: k, cluster: {server: 'https://192.0.2.1:6443', certificate-authority: ca.crt}}]\n\
        users: [{name: u, user: {token: abcdef.0123456789abcdef}}]\n\
        contexts: [{name: c, context: {cluster: k, user: u}}]\n";

    #[tokio::test]
    async fn a_request_is_found_again_and_the_kubeconfig_names_what_was_granted() {
        let dir = tempfile::tempdir().unwrap();
        let bootstrap = dir.path().join("bootstrap");
        std::fs::write(&bootstrap, BOOTSTRAP).unwrap();
        let pki = dir.path().join("pki");
        let name = |key: &KeyPair| request::digested_name("node1", key);
        let first = key(&pki).ok().unwrap();
        assert_eq!(name(&first), name(&key(&pki).ok().unwrap()), "a killed agent asks by the same name");
        assert_eq!(name(&first).len(), "node-csr-".len() + 43);
        let asked = Arc::new(Mutex::new(None));
        let pem = granted(&signer(asked.clone()), "node1", &pki).await.ok().unwrap();
        let asked = asked.lock().clone().unwrap();
        assert_eq!(asked["metadata"]["name"], name(&first));
        assert!(client::is_of(&pem, "node1"));
        let kubeconfig = dir.path().join("kubeconfig");
        assert!(!is_good(&kubeconfig), "it is not there");
        std::fs::write(&kubeconfig, render(&bootstrap, &pki.join(FILE)).unwrap()).unwrap();
        assert!(!is_good(&kubeconfig), "the certificate is not there");
        super::super::write(&pki, FILE, &pem).unwrap();
        assert!(is_good(&kubeconfig));
        let read = Kubeconfig::read_from(&kubeconfig).unwrap();
        let cluster = read.clusters[0].cluster.clone().unwrap();
        assert_eq!(cluster.server.as_deref(), Some("https://192.0.2.1:6443"));
        let authority = dir.path().join("ca.crt").to_string_lossy().into_owned();
        assert_eq!(cluster.certificate_authority, Some(authority), "it is found from anywhere");
    }
}
