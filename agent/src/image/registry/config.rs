//! The registry configuration file, YAML:
//!
//! ```yaml
//! registries:
//!   "registry.example:5000":        # as in image references; "*" is for all that are not named
//!     plainHTTP: false              # speak HTTP without TLS
//!     insecureSkipVerify: false     # accept any certificate
//!     ca: /etc/kelp/registry-ca.pem # authorities besides the system's
//!     username: me                  # used when no pull secret fits
//!     password: secret
//!     mirrors:                      # asked first, in order
//!       - https://mirror.example:5000
//!       - http://192.0.2.7:5000/v2-prefix
//! ```

use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// How registries are reached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RegistryConfig {
    /// By the registry's name in image references.
    pub registries: BTreeMap<String, Host>,
}

/// How one registry is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Host {
    /// Speak HTTP without TLS.
    #[serde(rename = "plainHTTP")]
    pub plain_http: bool,
    /// Accept any certificate.
    pub insecure_skip_verify: bool,
    /// PEM file with authorities besides the system's.
    pub ca: Option<PathBuf>,
    /// User name when no pull secret fits.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<String>,
    /// URLs of registries that are asked first.
    pub mirrors: Vec<String>,
}

/// Where a request for a registry goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `http` or `https`.
    pub scheme: &'static str,
    /// `host[:port]`.
    pub authority: String,
    /// Before `/v2`.
    pub prefix: String,
    /// TLS and credentials.
    pub host: Host,
}

/// The registry behind the name `docker.io`.
const DOCKER_HUB: &str = "registry-1.docker.io";

impl RegistryConfig {
    /// Reads the file; one that does not exist configures nothing.
    ///
    /// # Errors
    /// The text names the file and what is wrong with it.
    pub fn load(path: &Path) -> Result<Self, String> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(format!("cannot read {}: {error}", path.display())),
        };
        let config: Self = serde_norway::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))?;
        for (name, host) in &config.registries {
            for mirror in &host.mirrors {
                if split(mirror).is_none() {
                    return Err(format!(
                        "{}: mirror {mirror:?} of {name} is not a URL that begins with http:// or https://",
                        path.display()
                    ));
                }
            }
        }
        Ok(config)
    }

    fn host(&self, name: &str) -> Host {
        self.registries.get(name).or_else(|| self.registries.get("*")).cloned().unwrap_or_default()
    }

    /// Where to ask for images of a registry, in order.
    pub fn endpoints(&self, registry: &str) -> Vec<Endpoint> {
        let host = self.host(registry);
        let mut endpoints: Vec<Endpoint> = host
            .mirrors
            .iter()
            .filter_map(|url| split(url))
            .map(|(scheme, authority, prefix)| {
                // TLS and credentials of a mirror are those of its own name.
                let host = self.registries.get(authority).cloned().unwrap_or_default();
                Endpoint { scheme, authority: authority.to_owned(), prefix: prefix.to_owned(), host }
            })
            .collect();
        let authority = if registry == "docker.io" { DOCKER_HUB } else { registry };
        let scheme = if host.plain_http { "http" } else { "https" };
        endpoints.push(Endpoint { scheme, authority: authority.to_owned(), prefix: String::new(), host });
        endpoints
    }
}

/// Scheme, authority and path of a URL.
fn split(url: &str) -> Option<(&'static str, &str, &str)> {
    let (scheme, rest) = match url.split_once("://")? {
        ("https", rest) => ("https", rest),
        ("http", rest) => ("http", rest),
        _ => return None,
    };
    let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    (!authority.is_empty()).then_some((scheme, authority, path.trim_end_matches('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_endpoints() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registries.yaml");
        assert_eq!(RegistryConfig::load(&path).unwrap(), RegistryConfig::default());
        let text = "registries:\n  'r.example:5000':\n    plainHTTP: true\n    mirrors: ['https://m.example/prefix/']\n  m.example:\n    ca: /ca.pem\n";
        std::fs::write(&path, text).unwrap();
        let config = RegistryConfig::load(&path).unwrap();
        let endpoints = config.endpoints("r.example:5000");
        assert_eq!((endpoints[0].authority.as_str(), endpoints[0].prefix.as_str()), ("m.example", "/prefix"));
        assert_eq!(endpoints[0].host.ca.as_deref(), Some(Path::new("/ca.pem")));
        assert_eq!((endpoints[1].scheme, endpoints.len()), ("http", 2));
        assert_eq!(config.endpoints("docker.io")[0].authority, DOCKER_HUB);
        for (bad, word) in [
            ("registries:\n  a:\n    plainHttp: true\n", "plainHttp"),
            ("registries:\n  a:\n    mirrors: [m.example]\n", "m.example"),
            ("[", "registries.yaml"),
        ] {
            std::fs::write(&path, bad).unwrap();
            let error = RegistryConfig::load(&path).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
