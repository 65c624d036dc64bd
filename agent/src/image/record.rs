//! What is known of an image.

use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;

/// An image of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Digest of the config, `sha256:…`.
    pub id: String,
    /// Canonical names with a tag; empty when every tag has moved on to another image.
    pub names: Vec<String>,
    /// Canonical names with the manifest's digest, `repository@sha256:…`; empty for archives without manifests.
    pub digests: Vec<String>,
    /// Bytes of the unpacked layers, shared ones included.
    pub size: u64,
    /// When it was imported.
    pub imported_at: jiff::Timestamp,
    /// What to run, and how.
    pub config: ImageConfig,
    /// Chain ids of the layers, lowest first.
    pub layers: Vec<String>,
}

/// The `config` object of an OCI image configuration (OCI image spec 1.1), as far as a node needs it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    /// User and group, names or numbers: `user[:group]`.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// `KEY=value`.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// First part of the command.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// Default arguments, or the command when there is no entrypoint.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Working directory; empty means `/`.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// Signal that asks the container to stop, as a name (`SIGQUIT`) or a number; empty means SIGTERM.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// Paths declared as volumes.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub volumes: BTreeMap<String, serde_json::Value>,
    /// Labels.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// Writers of images put `null` where they have nothing.
fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// The whole image configuration: what is stored as the blob whose digest is the image id.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct ConfigBlob {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default, deserialize_with = "nullable")]
    pub config: ImageConfig,
    pub rootfs: RootFs,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct RootFs {
    pub diff_ids: Vec<String>,
}

/// A committed layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LayerRecord {
    pub chain_id: String,
    pub size: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_and_unknown_fields_are_accepted() {
        let text = r#"{"architecture":"amd64","os":"linux","config":{"Env":null,"Cmd":["/bin/sh"],"User":"",
            "Healthcheck":{"Test":["NONE"]},"Volumes":{"/data":{}}},"rootfs":{"type":"layers","diff_ids":[]}}"#;
        let blob: ConfigBlob = serde_json::from_str(text).unwrap();
        assert_eq!(blob.config.cmd, ["/bin/sh"]);
        assert!(blob.config.env.is_empty());
        assert!(blob.config.volumes.contains_key("/data"));
        let none: ConfigBlob =
            serde_json::from_str(r#"{"config":null,"rootfs":{"diff_ids":["sha256:00"]}}"#).unwrap();
        assert_eq!(none.config, ImageConfig::default());
    }
}
