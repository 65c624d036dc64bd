//! Credential provider plugins: programs that are asked for credentials (upstream's `CredentialProviderConfig` of
//! `kubelet.config.k8s.io/v1`).

use super::credentials::{Credential, Keyring, matches};
use parking_lot::Mutex;
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

/// How long a plugin may take (upstream's limit).
const TIMEOUT: Duration = Duration::from_secs(60);

/// Plugins and what they have answered.
#[derive(Debug, Default)]
pub struct CredentialProviders {
    bin_dir: PathBuf,
    providers: Vec<Provider>,
    cache: Mutex<HashMap<String, (Instant, Keyring)>>,
}

#[derive(Debug, Deserialize)]
struct Config {
    #[serde(default)]
    providers: Vec<Provider>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Provider {
    name: String,
    match_images: Vec<String>,
    #[serde(default)]
    default_cache_duration: String,
    api_version: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<Variable>,
}

#[derive(Debug, Clone, Deserialize)]
struct Variable {
    name: String,
    value: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    #[serde(default)]
    cache_key_type: String,
    #[serde(default)]
    cache_duration: Option<String>,
    #[serde(default)]
    auth: BTreeMap<String, Auth>,
}

#[derive(Debug, Deserialize)]
struct Auth {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

/// Go's durations, as far as they are used here: numbers with a unit, one after the other.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest.get(..digits)?.parse().ok()?;
        rest = rest.get(digits..)?;
        let (unit, length) = [("ms", 0.001), ("h", 3600.0), ("m", 60.0), ("s", 1.0)]
            .into_iter()
            .find(|(unit, _)| rest.starts_with(unit))
            .map(|(unit, seconds)| (seconds, unit.len()))?;
        total += number * unit;
        rest = rest.get(length..)?;
    }
    Duration::try_from_secs_f64(total).ok()
}

impl CredentialProviders {
    /// Reads a configuration file; the programs are in `bin_dir`.
    ///
    /// # Errors
    /// The text names the file and what is wrong with it.
    pub fn load(config: &Path, bin_dir: &Path) -> Result<Self, String> {
        let text =
            std::fs::read_to_string(config).map_err(|e| format!("cannot read {}: {e}", config.display()))?;
        let parsed: Config =
            serde_norway::from_str(&text).map_err(|e| format!("{}: {e}", config.display()))?;
        for provider in &parsed.providers {
            if provider.name.is_empty() || provider.name.contains('/') || provider.name.starts_with('.') {
                return Err(format!(
                    "{}: provider name {:?} is not a file name",
                    config.display(),
                    provider.name
                ));
            }
        }
        Ok(Self { bin_dir: bin_dir.to_owned(), providers: parsed.providers, cache: Mutex::default() })
    }

    /// Credentials for an image. A plugin that fails has none.
    pub async fn credentials(&self, registry: &str, repository: &str) -> Keyring {
        let image = format!("{registry}/{repository}");
        let mut all = Keyring::default();
        for provider in &self.providers {
            if !provider.match_images.iter().any(|pattern| matches(pattern, &image)) {
                continue;
            }
            match self.ask(provider, registry, &image).await {
                Ok(found) => all.extend(&found),
                Err(error) => {
                    tracing::warn!(plugin = provider.name, image, error, "a credential provider failed")
                }
            }
        }
        all
    }

    async fn ask(&self, provider: &Provider, registry: &str, image: &str) -> Result<Keyring, String> {
        let key = |kind: &str| match kind {
            "Image" => format!("{} image {image}", provider.name),
            "Registry" => format!("{} registry {registry}", provider.name),
            _ => format!("{} global", provider.name),
        };
        {
            let cache = self.cache.lock();
            let known = ["Image", "Registry", "Global"].iter().filter_map(|kind| cache.get(&key(kind)));
            if let Some((_, ring)) = known.into_iter().find(|(until, _)| *until > Instant::now()) {
                return Ok(ring.clone());
            }
        }
        let response = self.run(provider, image).await?;
        let mut ring = Keyring::default();
        for (pattern, auth) in response.auth {
            ring.add(&pattern, Credential { username: auth.username, password: auth.password });
        }
        let lifetime = response.cache_duration.as_deref().unwrap_or(&provider.default_cache_duration);
        let lifetime = duration(lifetime).unwrap_or_default();
        if !lifetime.is_zero() {
            let mut cache = self.cache.lock();
            cache.retain(|_, (until, _)| *until > Instant::now());
            cache.insert(key(&response.cache_key_type), (Instant::now() + lifetime, ring.clone()));
        }
        Ok(ring)
    }

    async fn run(&self, provider: &Provider, image: &str) -> Result<Response, String> {
        let program = self.bin_dir.join(&provider.name);
        let mut command = tokio::process::Command::new(&program);
        command
            .args(&provider.args)
            .envs(provider.env.iter().map(|v| (&v.name, &v.value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().map_err(|e| format!("cannot start {}: {e}", program.display()))?;
        let request = serde_json::json!({
            "apiVersion": provider.api_version, "kind": "CredentialProviderRequest", "image": image,
        });
        if let Some(mut stdin) = child.stdin.take() {
            // One that does not read its input may answer all the same.
            let _ = stdin.write_all(request.to_string().as_bytes()).await;
        }
        let output = tokio::time::timeout(TIMEOUT, child.wait_with_output())
            .await
            .map_err(|_| format!("{} took longer than {} s", program.display(), TIMEOUT.as_secs()))?
            .map_err(|e| e.to_string())?;
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{} ended with {}: {}", program.display(), output.status, message.trim()));
        }
        serde_json::from_slice(&output.stdout).map_err(|e| format!("{} answered: {e}", program.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn durations() {
        assert_eq!(duration("1h30m"), Some(Duration::from_secs(5400)));
        assert_eq!(duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!((duration("0"), duration("x"), duration("5")), (Some(Duration::ZERO), None, None));
    }

    #[tokio::test]
    async fn a_plugin_is_asked_once_as_long_as_its_answer_lasts() {
        let dir = tempfile::tempdir().unwrap();
        let script = "#!/bin/sh\necho x >> \"$COUNT\"\nread request || true\ncase \"$request$(cat)\" in *r.example/app*) ;; *) exit 3;; esac\n\
            echo '{\"cacheKeyType\":\"Registry\",\"cacheDuration\":\"1h\",\"auth\":{\"r.example\":{\"username\":\"u\",\"password\":\"p\"}}}'\n";
        std::fs::write(dir.path().join("plug"), script).unwrap();
        std::fs::set_permissions(dir.path().join("plug"), std::fs::Permissions::from_mode(0o755)).unwrap();
        let count = dir.path().join("count");
        let config = dir.path().join("config.yaml");
        std::fs::write(
            &config,
            format!(
                "kind: CredentialProviderConfig\nproviders:\n- name: plug\n  matchImages: ['r.example']\n  \
                 defaultCacheDuration: 0s\n  apiVersion: credentialprovider.kubelet.k8s.io/v1\n  \
                 env: [{{name: COUNT, value: {}}}]\n",
                count.display()
            ),
        )
        .unwrap();
        let plugins = CredentialProviders::load(&config, dir.path()).unwrap();
        for _ in 0..2 {
            let ring = plugins.credentials("r.example", "app").await;
            assert_eq!(ring.find("r.example", "app")[0].username, "u");
        }
        assert_eq!(std::fs::read_to_string(&count).unwrap(), "x\n");
        assert_eq!(plugins.credentials("other.example", "app").await, Keyring::default());
        std::fs::write(&config, "providers: [{name: ../x, matchImages: [], apiVersion: v1}]").unwrap();
        assert!(CredentialProviders::load(&config, dir.path()).unwrap_err().contains("../x"));
    }
}
