//! One pull: manifest, configuration, layers that are missing, import.

use super::client::{Answer, Client};
use super::config::RegistryConfig;
use super::credentials::{Credential, Keyring};
use super::manifest::{ACCEPT, Descriptor, Document, MAX_CONFIG, MAX_MANIFEST, choose};
use super::plugin::CredentialProviders;
use crate::image::reference::{is_digest, parse};
use crate::image::store::{Fetched, chain_id, hex_digest, to_hex};
use crate::image::{Image, ImageError, ImageStore};
use futures::stream::{self, StreamExt, TryStreamExt};
use http::header::CONTENT_RANGE;
use http::{Method, StatusCode};
use http_body_util::{BodyExt, Limited};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;

/// Layers of one image that are downloaded at a time.
const PARALLEL_LAYERS: usize = 3;
/// Downloads of all pulls at a time.
const PARALLEL: usize = 8;
/// How often a broken download goes on where it broke.
const ATTEMPTS: u32 = 4;
/// How long nothing may come before a download counts as broken.
const STALL: Duration = Duration::from_secs(60);
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
        let parsed = parse(reference)?;
        let whole = parsed.whole();
        let turn = self.inner.running.lock().entry(whole.clone()).or_default().clone();
        let guard = turn.lock().await;
        let result = self.pull_in_turn(&parsed, &whole, keyring).await;
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
            return self.fetch(client, &resolved, reference, &credentials).await.map_err(|e| match e {
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
    ) -> Result<Image, Fetch> {
        let dir = self.inner.store.downloads();
        tokio::fs::create_dir_all(&dir).await.map_err(|e| format!("cannot create {}: {e}", dir.display()))?;
        if resolved.config.size > MAX_CONFIG {
            return Err(Fetch::Message(format!("config {} is too long", resolved.config.digest)));
        }
        let config = self.blob(&mut client, &resolved.config, &dir).await?;
        let text =
            tokio::fs::read(&config).await.map_err(|e| format!("cannot read {}: {e}", config.display()))?;
        let parsed: Config = serde_json::from_slice(&text)
            .map_err(|e| format!("config {} cannot be parsed: {e}", resolved.config.digest))?;
        let missing = self.missing(&parsed.rootfs.diff_ids, &resolved.layers)?;
        let endpoint = client.endpoint().clone();
        let downloads = missing.into_iter().map(|layer| {
            let (endpoint, dir) = (endpoint.clone(), dir.clone());
            async move {
                let mut client = Client::new(endpoint, reference.repository(), credentials.to_vec())?;
                let path = self.blob(&mut client, &layer, &dir).await?;
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
    async fn blob(&self, client: &mut Client, blob: &Descriptor, dir: &Path) -> Result<PathBuf, String> {
        let Some(hex) = blob.digest.strip_prefix("sha256:").filter(|_| is_digest(&blob.digest)) else {
            return Err(format!("unsupported digest {:?}", blob.digest));
        };
        let (done, partial) = (dir.join(hex), dir.join(format!("{hex}.partial")));
        if tokio::fs::try_exists(&done).await.unwrap_or(false) {
            return Ok(done);
        }
        let _permit = self.inner.downloads.acquire().await.map_err(|e| e.to_string())?;
        let mut attempt = 0;
        loop {
            attempt += 1;
            match download(client, blob, &partial).await {
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

enum Broken {
    /// What came is kept; asking again may help.
    Retry(String),
    /// What came is wrong.
    Wrong(String),
}

async fn download(client: &mut Client, blob: &Descriptor, partial: &Path) -> Result<(), Broken> {
    let io = |e: std::io::Error| Broken::Wrong(format!("cannot write {}: {e}", partial.display()));
    let (mut hasher, mut have) = (Sha256::new(), 0u64);
    if let Ok(mut file) = tokio::fs::File::open(partial).await {
        let mut buffer = vec![0u8; 1 << 16];
        loop {
            let n = file.read(&mut buffer).await.map_err(io)?;
            if n == 0 {
                break;
            }
            hasher.update(buffer.get(..n).unwrap_or_default());
            have += n as u64;
        }
    }
    if have < blob.size || blob.size == 0 {
        let what = format!("blobs/{}", blob.digest);
        let answer = client.ask(Method::GET, &what, "*/*", have).await.map_err(Broken::Retry)?;
        match answer.status() {
            StatusCode::OK if have > 0 => {
                // The registry starts from the beginning.
                hasher = Sha256::new();
                have = 0;
            }
            StatusCode::OK => {}
            StatusCode::PARTIAL_CONTENT if starts_at(&answer, have) => {}
            code if code.is_server_error() || code == StatusCode::TOO_MANY_REQUESTS => {
                return Err(Broken::Retry(format!(
                    "unexpected status from GET request to {}: {code}",
                    client.url(&what)
                )));
            }
            code => {
                return Err(Broken::Wrong(format!(
                    "unexpected status from GET request to {}: {code}",
                    client.url(&what)
                )));
            }
        }
        let mut options = tokio::fs::OpenOptions::new();
        options.create(true).write(true).append(have > 0).truncate(have == 0);
        let mut file = options.open(partial).await.map_err(io)?;
        let mut body = answer.into_body();
        loop {
            let frame = tokio::time::timeout(STALL, body.frame()).await;
            let frame = match frame {
                Ok(Some(Ok(frame))) => frame,
                Ok(None) => break,
                Ok(Some(Err(error))) => {
                    file.flush().await.map_err(io)?;
                    return Err(Broken::Retry(error.to_string()));
                }
                Err(_) => {
                    file.flush().await.map_err(io)?;
                    return Err(Broken::Retry(format!("nothing came for {} s", STALL.as_secs())));
                }
            };
            let Ok(bytes) = frame.into_data() else { continue };
            have += bytes.len() as u64;
            if blob.size > 0 && have > blob.size {
                return Err(Broken::Wrong(format!(
                    "content is longer than the {} bytes it is said to have",
                    blob.size
                )));
            }
            hasher.update(&bytes);
            file.write_all(&bytes).await.map_err(io)?;
        }
        file.flush().await.map_err(io)?;
    }
    if blob.size > 0 && have < blob.size {
        return Err(Broken::Retry(format!("unexpected end after {have} of {} bytes", blob.size)));
    }
    let found = format!("sha256:{}", to_hex(&hasher.finalize()));
    if found != blob.digest {
        return Err(Broken::Wrong(format!(
            "unexpected commit digest {found}, expected {}: the content is damaged",
            blob.digest
        )));
    }
    Ok(())
}

/// Whether a part of a blob begins where it was asked to.
fn starts_at(answer: &Answer, from: u64) -> bool {
    let range = answer.headers().get(CONTENT_RANGE).and_then(|v| v.to_str().ok());
    range.and_then(|r| r.strip_prefix("bytes ")?.split('-').next()?.parse::<u64>().ok()) == Some(from)
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
