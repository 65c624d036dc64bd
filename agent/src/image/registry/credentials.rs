//! Credentials for registries, as pull secrets hold them: `kubernetes.io/dockerconfigjson` and
//! `kubernetes.io/dockercfg`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Who to be at a registry.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credential {
    /// User name.
    pub username: String,
    /// Password or token.
    pub password: String,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credential").field("username", &self.username).finish_non_exhaustive()
    }
}

impl Credential {
    /// The value of an Authorization header.
    pub fn basic(&self) -> String {
        format!("Basic {}", STANDARD.encode(format!("{}:{}", self.username, self.password)))
    }
}

/// Credentials by the registries they are for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keyring(Vec<(String, Credential)>);

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
}

impl Entry {
    fn credential(self) -> Option<Credential> {
        if !self.auth.is_empty() {
            let bytes = STANDARD.decode(self.auth.trim()).ok()?;
            let text = String::from_utf8(bytes).ok()?;
            let (username, password) = text.split_once(':')?;
            return Some(Credential { username: username.to_owned(), password: password.to_owned() });
        }
        (!self.username.is_empty() || !self.password.is_empty())
            .then_some(Credential { username: self.username, password: self.password })
    }
}

impl Keyring {
    /// Adds the credentials of a secret's data; what is not understood is left out, as by the kubelet.
    pub fn add_secret(&mut self, data: &BTreeMap<String, Vec<u8>>) {
        let entries = if let Some(text) = data.get(".dockerconfigjson") {
            serde_json::from_slice::<DockerConfig>(text).map(|c| c.auths)
        } else if let Some(text) = data.get(".dockercfg") {
            serde_json::from_slice(text)
        } else {
            return;
        };
        for (key, entry) in entries.unwrap_or_default() {
            if let Some(credential) = entry.credential() {
                self.add(&key, credential);
            }
        }
    }

    /// Adds one credential for a registry or a part of one: `[*.]host[:port][/path]`.
    pub fn add(&mut self, pattern: &str, credential: Credential) {
        let pattern = pattern.strip_prefix("https://").or(pattern.strip_prefix("http://")).unwrap_or(pattern);
        // Docker's names of its own registry.
        let pattern = pattern.trim_end_matches('/').trim_end_matches("/v1").trim_end_matches("/v2");
        let pattern =
            if matches!(pattern, "index.docker.io" | "registry-1.docker.io") { "docker.io" } else { pattern };
        self.0.push((pattern.to_owned(), credential));
        // A longer path is more to the point (upstream's order).
        self.0.sort_by(|a, b| b.0.cmp(&a.0));
    }

    /// Adds all of another keyring.
    pub fn extend(&mut self, other: &Self) {
        for (pattern, credential) in &other.0 {
            self.add(pattern, credential.clone());
        }
    }

    /// The credentials that fit an image, the best first.
    pub fn find(&self, registry: &str, repository: &str) -> Vec<Credential> {
        let image = format!("{registry}/{repository}");
        self.0.iter().filter(|(pattern, _)| matches(pattern, &image)).map(|(_, c)| c.clone()).collect()
    }
}

/// Whether `[*.]host[:port][/path]` fits `host[:port]/path` (upstream's `URLsMatch`).
pub fn matches(pattern: &str, image: &str) -> bool {
    let (wanted_host, wanted_path) = pattern.split_once('/').unwrap_or((pattern, ""));
    let (host, path) = image.split_once('/').unwrap_or((image, ""));
    let port = |host: &str| host.rsplit_once(':').map(|(_, port)| port.to_owned());
    if port(wanted_host) != port(host) || !path.starts_with(wanted_path) {
        return false;
    }
    let (wanted, parts): (Vec<&str>, Vec<&str>) =
        (wanted_host.split('.').collect(), host.split('.').collect());
    wanted.len() == parts.len() && wanted.iter().zip(&parts).all(|(w, p)| glob(w, p))
}

/// `*` within one label of a host name.
fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, after)) => text.strip_prefix(before).is_some_and(|rest| {
            (0..=rest.len()).any(|at| rest.get(at..).is_some_and(|rest| glob(after, rest)))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_of_both_kinds() {
        let mut ring = Keyring::default();
        let auth = STANDARD.encode("me:pass:word");
        let json =
            format!(r#"{{"auths":{{"https://r.example/v1/":{{"auth":"{auth}"}},"bad":{{"auth":"%"}}}}}}"#);
        ring.add_secret(&[(".dockerconfigjson".to_owned(), json.into_bytes())].into());
        let old = br#"{"r.example:5000":{"username":"u","password":"p"}}"#.to_vec();
        ring.add_secret(&[(".dockercfg".to_owned(), old)].into());
        ring.add_secret(&[(".dockercfg".to_owned(), b"garbage".to_vec())].into());
        assert_eq!(
            ring.find("r.example", "a/b")[0],
            Credential { username: "me".into(), password: "pass:word".into() }
        );
        assert_eq!(ring.find("r.example:5000", "a")[0].username, "u");
        assert!(ring.find("bad", "a").is_empty() && ring.find("other", "a").is_empty());
        assert!(!format!("{ring:?}").contains("word"), "passwords stay out of logs");
    }

    #[test]
    fn the_longest_path_comes_first() {
        let mut ring = Keyring::default();
        for pattern in ["r.example", "r.example/team", "*.example"] {
            ring.add(pattern, Credential { username: pattern.to_owned(), password: String::new() });
        }
        let names: Vec<String> = ring.find("r.example", "team/app").into_iter().map(|c| c.username).collect();
        assert_eq!(names, ["r.example/team", "r.example", "*.example"]);
        assert_eq!(ring.find("r.example", "other").len(), 2);
    }

    #[test]
    fn patterns() {
        assert!(matches("*.k8s.io", "app.k8s.io/x") && !matches("*.k8s.io", "a.b.k8s.io/x"));
        assert!(matches("app*.io", "appli.io/x") && !matches("k8s.io:5000", "k8s.io/x"));
        assert!(!matches("*", "a.b/x") && matches("*.*", "a.b/x"));
    }
}
