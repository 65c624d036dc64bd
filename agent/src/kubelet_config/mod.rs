//! KubeletConfiguration: a file, a directory of drop-ins, defaults.
//!
//! Upstream's rules: a field of the wrong kind is an error; an unknown one is named in a warning, and the rest counts
//! (its decoder of v1beta1 is lenient); drop-ins (`*.conf`) are merged over the file in the order of their paths, as JSON
//! merge patches. What this agent does not honour is named in a warning too: nothing is ignored silently.

mod defaults;
mod fields;
mod gates;
mod settings;
#[cfg(test)]
mod tests;
mod validate;

pub use settings::{Authentication, Authorization, Settings, ShutdownPeriod};

use fields::{Effect, FIELDS};
use gates::Gates;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// `kind` of the configuration.
const KIND: &str = "KubeletConfiguration";
/// `apiVersion` of the configuration.
const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";

/// Why a configuration cannot be used; the texts are upstream's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read or holds something else.
    #[error(
        "failed to load kubelet config file, path: {path}, error: failed to load Kubelet config file {path}, error {why}"
    )]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A drop-in cannot be read or holds something else.
    #[error(
        "failed to merge kubelet configs: failed to load kubelet dropin file, path: {path}, error: {why}"
    )]
    DropIn {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The directory of drop-ins cannot be read.
    #[error("failed to merge kubelet configs: failed to walk through kubelet dropin directory {path}: {why}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A feature gate cannot be set.
    #[error("failed to set feature gates from initial flags-based config: {0}")]
    Gates(String),
    /// A value cannot be used.
    #[error("failed to validate kubelet configuration, error: {0}")]
    Invalid(String),
}

/// A configuration, complete with its defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct KubeletConfig {
    /// What the agent honours.
    pub settings: Settings,
    /// All of it, as `/configz` shows it.
    pub effective: Value,
    /// Names of the fields that were configured.
    pub configured: Vec<String>,
    /// What somebody should know: unknown fields, and fields without effect.
    pub warnings: Vec<String>,
}

impl Default for KubeletConfig {
    /// Without a file.
    fn default() -> Self {
        // The defaults are valid: a test holds them to it.
        Self::build(Map::new(), Vec::new()).unwrap_or_else(|error| unreachable!("{error}"))
    }
}

impl KubeletConfig {
    /// Reads a file, if there is one, and the drop-ins of a directory, if there is one.
    ///
    /// # Errors
    /// One cannot be read, or says something that cannot be.
    pub fn load(file: Option<&Path>, drop_ins: Option<&Path>) -> Result<Self, ConfigError> {
        let mut warnings = Vec::new();
        let mut configured = Map::new();
        if let Some(path) = file {
            let failed = |why: String| ConfigError::File { path: path.to_owned(), why };
            let text = std::fs::read_to_string(path)
                .map_err(|e| failed(format!("failed to read kubelet config file {path:?}, error: {e}")))?;
            if text.is_empty() {
                return Err(failed(format!("kubelet config file {path:?} was empty")));
            }
            configured = decode(&text, path, &mut warnings).map_err(failed)?;
        }
        for path in drop_ins.map(drop_in_files).transpose()?.unwrap_or_default() {
            let failed = |why: String| ConfigError::DropIn { path: path.clone(), why };
            let text = std::fs::read_to_string(&path)
                .map_err(|e| failed(format!("failed to read kubelet config file {path:?}, error: {e}")))?;
            let own = decode(&text, &path, &mut warnings).map_err(failed)?;
            merge(&mut configured, own);
        }
        Self::build(configured, warnings)
    }

    fn build(configured: Map<String, Value>, mut warnings: Vec<String>) -> Result<Self, ConfigError> {
        let effective = Value::Object(defaults::apply(&configured));
        let without_effect = without_effect(&configured, &defaults::defaults());
        if !without_effect.is_empty() {
            let list = without_effect.join(", ");
            warnings.push(format!("the kubelet configuration sets fields that have no effect here: {list}"));
        }
        let settings: Settings =
            serde_json::from_value(effective.clone()).map_err(|e| ConfigError::Invalid(e.to_string()))?;
        let gates = Gates::read(configured.get("featureGates").and_then(Value::as_object), &mut warnings)
            .map_err(ConfigError::Gates)?;
        validate::validate(&settings, &effective, &gates).map_err(ConfigError::Invalid)?;
        let configured = configured.keys().cloned().collect();
        Ok(Self { settings, effective, configured, warnings })
    }

    /// Whether a field was configured.
    pub fn sets(&self, field: &str) -> bool {
        self.configured.iter().any(|name| name == field)
    }
}

/// Paths that are relative to the file which names them.
const PATHS: [&str; 4] = ["staticPodPath", "tlsCertFile", "tlsPrivateKeyFile", "resolvConf"];

/// One document. Unknown fields are told in `warnings`.
fn decode(text: &str, path: &Path, warnings: &mut Vec<String>) -> Result<Map<String, Value>, String> {
    let value: Value = serde_norway::from_str(text).map_err(|e| format!("failed to decode: yaml: {e}"))?;
    let Value::Object(mut object) = value else {
        return Err(format!(
            "failed to decode: couldn't get version/kind; json parse error: {text:?} is no object"
        ));
    };
    for (field, name) in [("kind", "Kind"), ("apiVersion", "apiVersion")] {
        if object.get(field).and_then(Value::as_str).unwrap_or_default().is_empty() {
            let shown = serde_json::to_string(&object).unwrap_or_default();
            return Err(format!("failed to decode: Object '{name}' is missing in '{shown}'"));
        }
    }
    let text_of = |field: &str| object.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (kind, version) = (text_of("kind"), text_of("apiVersion"));
    if (kind.as_str(), version.as_str()) != (KIND, API_VERSION) {
        return Err(format!(
            "failed to decode: no kind {kind:?} is registered for version {version:?} in scheme \"pkg/kubelet/apis/config/scheme/scheme.go:33\""
        ));
    }
    let mut unknown = Vec::new();
    fields::check(&mut object, &mut unknown).map_err(|why| format!("failed to decode: {why}"))?;
    if !unknown.is_empty() {
        unknown.sort();
        let list: Vec<String> = unknown.iter().map(|name| format!("unknown field {name:?}")).collect();
        warnings.push(format!(
            "{}: Using lenient decoding as strict decoding failed: strict decoding error: {}",
            path.display(),
            list.join(", ")
        ));
    }
    let directory = path.parent().unwrap_or(Path::new("/"));
    let resolve = |value: Option<&mut Value>| {
        if let Some(Value::String(text)) = value
            && !text.is_empty()
            && Path::new(text.as_str()).is_relative()
        {
            *text = directory.join(text.as_str()).to_string_lossy().into_owned();
        }
    };
    for name in PATHS {
        resolve(object.get_mut(name));
    }
    let authority = object.get_mut("authentication").and_then(|a| a.get_mut("x509"));
    resolve(authority.and_then(|x| x.get_mut("clientCAFile")));
    Ok(object)
}

/// The `*.conf` files below a directory, in the order of their paths.
fn drop_in_files(dir: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let failed = |path: &Path, e: std::io::Error| ConfigError::Directory {
        path: dir.to_owned(),
        why: format!("{}: {e}", path.display()),
    };
    let mut found = Vec::new();
    let mut left = vec![dir.to_owned()];
    while let Some(next) = left.pop() {
        for entry in std::fs::read_dir(&next).map_err(|e| failed(&next, e))? {
            let entry = entry.map_err(|e| failed(&next, e))?;
            let path = entry.path();
            if entry.file_type().map_err(|e| failed(&path, e))?.is_dir() {
                left.push(path);
            } else if path.extension().is_some_and(|e| e == "conf") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// A JSON merge patch (RFC 7386).
fn merge(into: &mut Map<String, Value>, patch: Map<String, Value>) {
    for (name, value) in patch {
        match (into.get_mut(&name), value) {
            (_, Value::Null) => {
                into.remove(&name);
            }
            (Some(Value::Object(old)), Value::Object(new)) => merge(old, new),
            (_, new) => {
                into.insert(name, new);
            }
        }
    }
}

/// Configured fields that say something else than the default and that the agent does not honour.
fn without_effect(configured: &Map<String, Value>, defaults: &Value) -> Vec<String> {
    let of = FIELDS.iter().filter(|f| f.effect == Effect::None);
    of.filter_map(|field| {
        let value = configured.get(field.name)?;
        let empty = match value {
            Value::Object(map) => map.is_empty(),
            Value::Array(list) => list.is_empty(),
            Value::String(text) => text.is_empty(),
            Value::Bool(on) => !on && defaults.get(field.name).is_none(),
            _ => false,
        };
        let same = defaults.get(field.name) == Some(value);
        (!empty && !same).then(|| field.name.to_owned())
    })
    .collect()
}
