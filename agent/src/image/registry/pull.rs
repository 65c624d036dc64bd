//! One pull: manifest, configuration, layers that are missing, import.

use super::client::Client;
use super::config::RegistryConfig;
use super::credentials::{Credential, Keyring};
use super::download::{Broken, STALL, download};
use super::manifest::{ACCEPT, Descriptor, Document, MAX_CONFIG, MAX_MANIFEST, choose};
use super::plugin::CredentialProviders;
use super::progress::{Progress, Tell};
use crate::image::reference::{is_digest, parse};
use crate::image::store::{Fetched, chain_id, hex_digest};
use crate::image::{Image, ImageError, ImageStore};
use futures::stream::{self, StreamExt, TryStreamExt};
use http::{Method, StatusCode};
use http_body_util::{BodyExt, Limited};
use serde::Deserialize;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Layers of one image that are downloaded at a time.
const PARALLEL_LAYERS: usize = 3;
/// Downloads of all pulls at a time.
const PARALLEL: usize = 8;
/// How often a broken download goes on where it broke.
const ATTEMPTS: u32 = 4;
/// Indexes within indexes.
const MAX_DEPTH: u32 = 4;

/// Why an image was not pulled; the texts are those of containerd, which users know.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The reference breaks the grammar, or the store has trouble.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The registry, or what it has.
    #[error("failed to pull and unpack image {reference:?}: {message}")]
    Registry {
        /// The whole reference.
        reference: String,
        /// What is wrong.
        message: String,
    },
}

/// Pulls images into a store. Clones share everything.
#[derive(Clone)]
pub struct Puller {
    inner: Arc<Inner>,
}

struct Inner {
    store: ImageStore,
    config: RegistryConfig,
    plugins: CredentialProviders,
    downloads: Semaphore,
    /// One pull of a reference at a time: the second finds the layers of the first.
    running: parking_lot::Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// What a registry says an image is.
struct Resolved {
    /// Digest that the reference stands for: of the index, when it is one.
    digest: String,
    /// Digest and content of the manifest.
    manifest: (String, Vec<u8>),
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

impl Puller {
    /// Pulls into `store`.
    pub fn new(store: ImageStore, config: RegistryConfig, plugins: CredentialProviders) -> Self {
        let inner = Inner {
            store,
            config,
            plugins,
            downloads: Semaphore::new(PARALLEL),
            running: parking_lot::Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Pulls an image; `keyring` are the pull secrets.
    ///
    /// # Errors
    /// Nothing of the image is in the store then; downloads that are complete are kept for the next attempt.
    pub async fn pull(&self, reference: &str, keyring: &Keyring) -> Result<Image, PullError> {
        self.pull_telling(reference, keyring, &|_| ()).await
    }

    /// Like [`Puller::pull`], and tells how far it is. A pull of a reference that another pull has under way tells
    /// nothing until that has ended.
    ///
    /// # Errors
    /// Those of [`Puller::pull`].
    pub async fn pull_telling(
        &self,
        reference: &str,
        keyring: &Keyring,
        tell: Tell<'_>,
    ) -> Result<Image, PullError> {
        let parsed = parse(reference)?;
        let whole = parsed.whole();
        let turn = self.inner.running.lock().entry(whole.clone()).or_default().clone();
        let guard = turn.lock().await;
        let result = self.pull_in_turn(&parsed, &whole, keyring, tell).await;
        drop(guard);
        let mut running = self.inner.running.lock();
        if Arc::strong_count(&turn) <= 2 {
            running.remove(&whole);
        }
        result
    }

    async fn pull_in_turn(
        &self,
        reference: &oci_spec::distribution::Reference,
        whole: &str,
        keyring: &Keyring,
        tell: Tell<'_>,
    ) -> Result<Image, PullError> {
        let failed = |message: String| PullError::Registry { reference: whole.to_owned(), message };
        let (registry, repository) = (reference.registry(), reference.repository());
        let mut credentials = keyring.find(registry, repository);
        credentials
            .extend(self.inner.plugins.credentials(registry, repository).await.find(registry, repository));
        let wanted = reference.digest().or(reference.tag()).unwrap_or("latest").to_owned();
        let mut last = String::new();
        for endpoint in self.inner.config.endpoints(registry) {
            let mut client = match Client::new(endpoint, repository, credentials.clone()) {
                Ok(client) => client,
                Err(message) => {
                    last = message;
                    continue;
                }
            };
            let resolved = match resolve(&mut client, whole, &wanted).await {
                Ok(resolved) => resolved,
                // A mirror without it is no reason not to ask the registry.
                Err(message) => {
                    last = format!("failed to resolve image: {message}");
                    continue;
                }
            };
            let fetched = self.fetch(client, &resolved, reference, &credentials, tell).await;
            return fetched.map_err(|e| match e {
                Fetch::Message(message) => failed(message),
                Fetch::Image(ImageError::Archive { message, .. }) => failed(message),
                Fetch::Image(error) => error.into(),
            });
        }
        Err(failed(last))
    }

    async fn fetch(
        &self,
        mut client: Client,
        resolved: &Resolved,
        reference: &oci_spec::distribution::Reference,
        credentials: &[Credential],
        tell: Tell<'_>,
    ) -> Result<Image, Fetch> {
        let dir = self.inner.store.downloads();
        tokio::fs::create_dir_all(&dir).await.map_err(|e| format!("cannot create {}: {e}", dir.display()))?;
        if resolved.config.size > MAX_CONFIG {
            return Err(Fetch::Message(format!("config {} is too long", resolved.config.digest)));
        }
        let config = self.blob(&mut client, &resolved.config, &dir, &|_| ()).await?;
        let text =
            tokio::fs::read(&config).await.map_err(|e| format!("cannot read {}: {e}", config.display()))?;
        let parsed: Config = serde_json::from_slice(&text)
            .map_err(|e| format!("config {} cannot be parsed: {e}", resolved.config.digest))?;
        let missing = self.missing(&parsed.rootfs.diff_ids, &resolved.layers)?;
        tell(Progress::Resolved {
            digest: resolved.digest.clone(),
            layers: resolved.layers.len(),
            missing: missing.len(),
            bytes: missing.iter().map(|layer| layer.size).sum(),
        });
        let endpoint = client.endpoint().clone();
        let downloads = missing.into_iter().map(|layer| {
            let (endpoint, dir) = (endpoint.clone(), dir.clone());
            async move {
                let mut client = Client::new(endpoint, reference.repository(), credentials.to_vec())?;
                let path = self.blob(&mut client, &layer, &dir, tell).await?;
                Ok::<_, Fetch>((layer.digest, path))
            }
        });
        let layers: Vec<(String, PathBuf)> =
            stream::iter(downloads).buffer_unordered(PARALLEL_LAYERS).try_collect().await?;
        let mut files: HashMap<String, PathBuf> = layers.into_iter().collect();
        files.insert(resolved.config.digest.clone(), config);
        let used: Vec<PathBuf> = files.values().cloned().collect();
        let pinned = reference.digest().is_some();
        let fetched = Fetched {
            names: if pinned { Vec::new() } else { vec![reference.whole()] },
            repository: format!("{}/{}", reference.registry(), reference.repository()),
            digest: resolved.digest.clone(),
            manifest: resolved.manifest.clone(),
            blobs: files,
        };
        tell(Progress::Unpacking);
        let store = self.inner.store.clone();
        let image = tokio::task::spawn_blocking(move || store.import_fetched(fetched))
            .await
            .map_err(|e| Fetch::Message(e.to_string()))??;
        for path in used {
            let _ = tokio::fs::remove_file(path).await;
        }
        Ok(image)
    }

    /// Layers that the store does not have unpacked.
    fn missing(&self, diff_ids: &[String], layers: &[Descriptor]) -> Result<Vec<Descriptor>, String> {
        if diff_ids.len() != layers.len() {
            return Err(format!("the config lists {} layers, the manifest {}", diff_ids.len(), layers.len()));
        }
        let mut chain: Option<String> = None;
        let mut missing: Vec<Descriptor> = Vec::new();
        for (diff_id, layer) in diff_ids.iter().zip(layers) {
            if !is_digest(diff_id) || !is_digest(&layer.digest) {
                return Err(format!("unsupported digest {:?}", layer.digest));
            }
            let next = chain_id(chain.as_deref(), diff_id);
            let twice = missing.iter().any(|m| m.digest == layer.digest);
            if !twice && !self.inner.store.has_layer(&next) {
                missing.push(layer.clone());
            }
            chain = Some(next);
        }
        Ok(missing)
    }

    /// Downloads a blob, verified; what an earlier attempt left is gone on with.
    async fn blob(
        &self,
        client: &mut Client,
        blob: &Descriptor,
        dir: &Path,
        tell: Tell<'_>,
    ) -> Result<PathBuf, String> {
        let Some(hex) = blob.digest.strip_prefix("sha256:").filter(|_| is_digest(&blob.digest)) else {
            return Err(format!("unsupported digest {:?}", blob.digest));
        };
        let (done, partial) = (dir.join(hex), dir.join(format!("{hex}.partial")));
        let downloaded = || tell(Progress::Downloaded { digest: blob.digest.clone(), size: blob.size });
        if tokio::fs::try_exists(&done).await.unwrap_or(false) {
            downloaded();
            return Ok(done);
        }
        let _permit = self.inner.downloads.acquire().await.map_err(|e| e.to_string())?;
        let mut attempt = 0;
        loop {
            attempt += 1;
            match download(client, blob, &partial, tell).await {
                Ok(()) => break,
                Err(Broken::Retry(message)) if attempt < ATTEMPTS => {
                    tracing::debug!(blob = blob.digest, attempt, message, "a download broke and goes on");
                }
                Err(Broken::Retry(message)) => {
                    return Err(format!("failed to copy {}: {message}", blob.digest));
                }
                Err(Broken::Wrong(message)) => {
                    let _ = tokio::fs::remove_file(&partial).await;
                    return Err(format!("failed to copy {}: {message}", blob.digest));
                }
            }
        }
        tokio::fs::rename(&partial, &done)
            .await
            .map_err(|e| format!("cannot rename to {}: {e}", done.display()))?;
        downloaded();
        Ok(done)
    }
}

enum Fetch {
    Message(String),
    Image(ImageError),
}

impl From<String> for Fetch {
    fn from(message: String) -> Self {
        Self::Message(message)
    }
}

impl From<ImageError> for Fetch {
    fn from(error: ImageError) -> Self {
        Self::Image(error)
    }
}

/// Finds the manifest of a tag or digest for this machine.
async fn resolve(client: &mut Client, whole: &str, wanted: &str) -> Result<Resolved, String> {
    let head = client.ask(Method::HEAD, &format!("manifests/{wanted}"), ACCEPT, 0).await?;
    explain(head.status(), whole, client, wanted, "HEAD")?;
    let (digest, mut bytes) = manifest(client, whole, wanted).await?;
    let mut own = digest.clone();
    for _ in 0..MAX_DEPTH {
        match Document::parse(&bytes)? {
            Document::Image { config, layers } => {
                return Ok(Resolved { digest, manifest: (own, bytes), config, layers });
            }
            Document::Index(manifests) => {
                let ours = super::super::archive::architecture();
                let chosen = choose(&manifests)
                    .ok_or_else(|| format!("no match for platform in manifest: not found for linux/{ours}"))?
                    .digest
                    .clone();
                (own, bytes) = manifest(client, whole, &chosen).await?;
            }
        }
    }
    Err("indexes are nested too deeply".into())
}

fn explain(code: StatusCode, whole: &str, client: &Client, wanted: &str, method: &str) -> Result<(), String> {
    match code {
        code if code.is_success() => Ok(()),
        StatusCode::NOT_FOUND => Err(format!("{whole}: not found")),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(
            "pull access denied, repository does not exist or may require authorization: authorization failed: no \
             basic auth credentials"
                .to_owned(),
        ),
        code => Err(format!(
            "unexpected status from {method} request to {}: {code}",
            client.url(&format!("manifests/{wanted}"))
        )),
    }
}

/// Digest and content of a manifest.
async fn manifest(client: &mut Client, whole: &str, wanted: &str) -> Result<(String, Vec<u8>), String> {
    let answer = client.ask(Method::GET, &format!("manifests/{wanted}"), ACCEPT, 0).await?;
    explain(answer.status(), whole, client, wanted, "GET")?;
    let body = tokio::time::timeout(STALL, Limited::new(answer.into_body(), MAX_MANIFEST).collect()).await;
    let body = body.map_err(|_| "the manifest does not come".to_owned())?;
    let bytes = body.map_err(|e| format!("the manifest cannot be read: {e}"))?.to_bytes();
    let digest = format!("sha256:{}", hex_digest(&bytes));
    if wanted.contains(':') && wanted != digest {
        return Err(format!("manifest has digest {digest}, not {wanted}"));
    }
    Ok((digest, bytes.to_vec()))
}
