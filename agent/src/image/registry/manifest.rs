//! Manifests and indexes: OCI image spec 1.1 and docker's schema 2.

use serde::Deserialize;

/// Longest manifest, bytes: the limit that registries have too.
pub const MAX_MANIFEST: usize = 4 << 20;
/// Longest image configuration, bytes.
pub const MAX_CONFIG: u64 = 16 << 20;

/// What is accepted.
pub const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, \
    */*";

/// Names content by digest.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Kind of content.
    #[serde(default)]
    pub media_type: String,
    /// `sha256:…`.
    pub digest: String,
    /// Bytes.
    #[serde(default)]
    pub size: u64,
    /// In an index: for which machines.
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    variant: String,
}

/// What a document of a registry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Image {
        /// Its configuration.
        config: Descriptor,
        /// Its layers, lowest first.
        layers: Vec<Descriptor>,
    },
    /// One image for each platform.
    Index(Vec<Descriptor>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    schema_version: u64,
    #[serde(default)]
    media_type: String,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
}

impl Document {
    /// Reads a document.
    ///
    /// # Errors
    /// It is neither an image nor an index.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let raw: Raw =
            serde_json::from_slice(bytes).map_err(|e| format!("manifest cannot be parsed: {e}"))?;
        match (raw.config, raw.layers, raw.manifests) {
            (Some(config), Some(layers), None) => Ok(Self::Image { config, layers }),
            (None, None, Some(manifests)) => Ok(Self::Index(manifests)),
            _ if raw.schema_version == 1 => Err("media type \"application/vnd.docker.distribution.manifest.v1+prettyjws\" is no longer supported, please rebuild the image as docker v2 schema 2 or OCI".to_owned()),
            _ => Err(format!("manifest of media type {:?} is neither an image nor an index", raw.media_type)),
        }
    }
}

/// The image of an index for this machine.
pub fn choose(manifests: &[Descriptor]) -> Option<&Descriptor> {
    let ours = super::super::archive::architecture();
    let fits = |d: &&Descriptor| match &d.platform {
        Some(p) => p.os == "linux" && p.architecture == ours,
        None => true,
    };
    // Without a variant, or with the one that every machine of the kind has, it runs everywhere.
    let plain =
        |d: &&Descriptor| d.platform.as_ref().is_none_or(|p| matches!(p.variant.as_str(), "" | "v8" | "v1"));
    manifests.iter().find(|d| fits(d) && plain(d)).or_else(|| manifests.iter().find(fits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents() {
        let image = br#"{"schemaVersion":2,"config":{"digest":"sha256:a"},"layers":[{"digest":"sha256:b","size":3}]}"#;
        assert!(matches!(Document::parse(image), Ok(Document::Image { layers, .. }) if layers[0].size == 3));
        let ours = super::super::super::archive::architecture();
        let index = format!(
            r#"{{"manifests":[{{"digest":"sha256:w","platform":{{"os":"windows","architecture":"{ours}"}}}},
            {{"digest":"sha256:3","platform":{{"os":"linux","architecture":"{ours}","variant":"v3"}}}},
            {{"digest":"sha256:l","platform":{{"os":"linux","architecture":"{ours}"}}}}]}}"#
        );
        let Ok(Document::Index(manifests)) = Document::parse(index.as_bytes()) else { panic!() };
        assert_eq!(choose(&manifests).unwrap().digest, "sha256:l");
        assert_eq!(choose(&manifests[..2]).unwrap().digest, "sha256:3");
        assert_eq!(choose(&manifests[..1]), None);
        assert!(
            Document::parse(br#"{"schemaVersion":1,"fsLayers":[]}"#)
                .unwrap_err()
                .contains("no longer supported")
        );
        assert!(Document::parse(b"{}").is_err() && Document::parse(b"<html>").is_err());
    }
}
