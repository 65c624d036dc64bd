//! Reading image archives: OCI image layouts (tar or directory) and `docker save` tars.
//!
//! A tar is first taken apart into a directory of plain files under names of our own, because its entries may come in
//! any order; nothing of it is interpreted as a path on this host.

use super::ImageError;
use super::record::{ConfigBlob, ImageConfig};
use super::reference::is_digest;
use super::store::{hex_digest, to_hex};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Component, Path, PathBuf};

/// Largest JSON document of an archive that is read: configs with long histories stay far below.
const MAX_JSON: u64 = 16 << 20;

/// An archive that is ready to be read.
pub(super) struct Archive {
    path: PathBuf,
    /// Name inside the archive → file on disk.
    files: HashMap<String, PathBuf>,
}

/// One image of an archive for this platform.
#[derive(Debug)]
pub(super) struct ImageSource {
    pub id: String,
    pub names: Vec<String>,
    pub manifest_digest: Option<String>,
    /// Repository it was fetched from by digest, so that it has no name.
    pub repository: Option<String>,
    pub config: ImageConfig,
    pub layers: Vec<LayerSource>,
    pub diff_ids: Vec<String>,
}

/// Where a layer's bytes are.
#[derive(Debug)]
pub(super) struct LayerSource {
    name: String,
    digest: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerManifest {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Archive {
    /// Opens an archive; a tar is unpacked to `work`, which must not exist.
    pub(super) fn open(path: &Path, work: &Path) -> Result<Self, ImageError> {
        let mut archive = Self { path: path.to_owned(), files: HashMap::new() };
        let metadata = fs::metadata(path).map_err(|e| ImageError::io("open", path, e))?;
        if metadata.is_dir() {
            archive.read_dir(path, "")?;
        } else {
            archive.read_tar(work)?;
        }
        Ok(archive)
    }

    /// Content that was fetched: an OCI image layout whose files may be anywhere.
    pub(super) fn of_files(name: &str, files: HashMap<String, PathBuf>) -> Self {
        Self { path: name.into(), files }
    }

    pub(super) fn error(&self, message: impl Into<String>) -> ImageError {
        ImageError::Archive { archive: self.path.display().to_string(), message: message.into() }
    }

    fn read_dir(&mut self, dir: &Path, prefix: &str) -> Result<(), ImageError> {
        for entry in fs::read_dir(dir).map_err(|e| ImageError::io("read", dir, e))? {
            let entry = entry.map_err(|e| ImageError::io("read", dir, e))?;
            let kind = entry.file_type().map_err(|e| ImageError::io("read", dir, e))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let name = format!("{prefix}{name}");
            // Depth is bounded: a layout has its blobs two levels down.
            if kind.is_dir() && name.matches('/').count() < 3 {
                self.read_dir(&entry.path(), &format!("{name}/"))?;
            } else if kind.is_file() {
                self.files.insert(name, entry.path());
            }
        }
        Ok(())
    }

    fn read_tar(&mut self, work: &Path) -> Result<(), ImageError> {
        fs::create_dir(work).map_err(|e| ImageError::io("create", work, e))?;
        let file = File::open(&self.path).map_err(|e| ImageError::io("open", &self.path, e))?;
        let damaged = |e: io::Error| self.error(format!("cannot be read as a tar: {e}"));
        let mut tar = tar::Archive::new(decompress(BufReader::new(file)).map_err(damaged)?);
        let mut links = Vec::new();
        let mut files = HashMap::new();
        for entry in tar.entries().map_err(damaged)? {
            let mut entry = entry.map_err(damaged)?;
            let Some(name) = plain_name(&entry.path().map_err(damaged)?) else {
                return Err(self.error("holds an entry whose path leaves the archive"));
            };
            let kind = entry.header().entry_type();
            if kind.is_file() || kind.is_contiguous() {
                let target = work.join(files.len().to_string());
                let mut output = File::create(&target).map_err(|e| ImageError::io("create", &target, e))?;
                io::copy(&mut entry, &mut output)
                    .map_err(|e| self.error(format!("{name} cannot be copied out: {e}")))?;
                files.insert(name, target);
            } else if kind.is_symlink() || kind.is_hard_link() {
                // Old `docker save` links a layer that several images share.
                let link = entry.link_name().map_err(damaged)?.unwrap_or_default().into_owned();
                let base = if kind.is_symlink() { parent(&name) } else { "" };
                links.push((name.clone(), resolve(base, &link)));
            }
        }
        for (name, target) in links {
            if let Some(path) = target.and_then(|t| files.get(&t)).cloned() {
                files.insert(name, path);
            }
        }
        self.files = files;
        Ok(())
    }

    /// The images of the archive for this platform.
    pub(super) fn images(&self) -> Result<Vec<ImageSource>, ImageError> {
        let images = if self.files.contains_key("index.json") {
            self.oci_images()?
        } else if self.files.contains_key("manifest.json") {
            self.docker_images()?
        } else {
            return Err(self.error(
                "has neither index.json (OCI layout) nor manifest.json (docker save): not an image archive",
            ));
        };
        if images.is_empty() {
            return Err(self.error(format!("holds no image for linux/{}", architecture())));
        }
        Ok(images)
    }

    fn oci_images(&self) -> Result<Vec<ImageSource>, ImageError> {
        let index: Index = self.json("index.json", None)?;
        let mut found = Vec::new();
        for descriptor in index.manifests {
            let names = self.names(&descriptor)?;
            if let Some((digest, manifest)) = self.platform_manifest(descriptor, 0)? {
                found.push((digest, manifest, names));
            }
        }
        let docker_names = self.docker_names();
        let mut images: Vec<ImageSource> = Vec::new();
        for (digest, manifest, mut names) in found {
            let config_name = self.blob_name(&manifest.config.digest)?;
            for (config, name) in &docker_names {
                if *config == config_name && !names.contains(name) {
                    names.push(name.clone());
                }
            }
            // The same manifest may be listed once for each of its names.
            if let Some(known) = images.iter_mut().find(|i| i.manifest_digest.as_ref() == Some(&digest)) {
                names.retain(|name| !known.names.contains(name));
                known.names.append(&mut names);
                continue;
            }
            let layers = manifest
                .layers
                .into_iter()
                .map(|layer| {
                    let name = self.blob_name(&layer.digest)?;
                    Ok(LayerSource { name, digest: Some(layer.digest) })
                })
                .collect::<Result<_, ImageError>>()?;
            let digest_of_config = manifest.config.digest;
            if let Some(image) =
                self.image(&config_name, Some(&digest_of_config), layers, names, Some(digest))?
            {
                images.push(image);
            }
        }
        Ok(images)
    }

    fn docker_images(&self) -> Result<Vec<ImageSource>, ImageError> {
        let manifests: Vec<DockerManifest> = self.json("manifest.json", None)?;
        let mut images = Vec::new();
        for manifest in manifests {
            let names = manifest
                .repo_tags
                .unwrap_or_default()
                .iter()
                .map(|tag| super::normalize(tag))
                .collect::<Result<_, _>>()?;
            let layers = manifest.layers.into_iter().map(|name| LayerSource { name, digest: None }).collect();
            images.extend(self.image(&manifest.config, None, layers, names, None)?);
        }
        Ok(images)
    }

    /// Names that docker's manifest.json adds to an OCI layout, each with the file of its config.
    fn docker_names(&self) -> Vec<(String, String)> {
        let manifests: Vec<DockerManifest> = self.json("manifest.json", None).unwrap_or_default();
        let tags = |m: DockerManifest| {
            let config = m.config;
            m.repo_tags.unwrap_or_default().into_iter().map(move |tag| (config.clone(), tag))
        };
        manifests
            .into_iter()
            .flat_map(tags)
            .filter_map(|(config, tag)| Some((config, super::normalize(&tag).ok()?)))
            .collect()
    }

    /// `None` when the image is for another platform.
    fn image(
        &self,
        config_name: &str,
        config_digest: Option<&str>,
        layers: Vec<LayerSource>,
        names: Vec<String>,
        manifest_digest: Option<String>,
    ) -> Result<Option<ImageSource>, ImageError> {
        let bytes = self.bytes(config_name, config_digest)?;
        let blob: ConfigBlob = serde_json::from_slice(&bytes)
            .map_err(|e| self.error(format!("{config_name} is not an image config: {e}")))?;
        let for_us = |value: &str, ours: &str| value.is_empty() || value == ours;
        if !for_us(&blob.os, "linux") || !for_us(&blob.architecture, architecture()) {
            return Ok(None);
        }
        if blob.rootfs.diff_ids.len() != layers.len() {
            return Err(self.error(format!(
                "{config_name} lists {} layers, the manifest {}",
                blob.rootfs.diff_ids.len(),
                layers.len()
            )));
        }
        if let Some(bad) = blob.rootfs.diff_ids.iter().find(|id| !is_digest(id)) {
            return Err(self.error(format!("{config_name} has an unsupported diff id {bad:?}")));
        }
        Ok(Some(ImageSource {
            id: format!("sha256:{}", hex_digest(&bytes)),
            names,
            manifest_digest,
            repository: None,
            config: blob.config,
            layers,
            diff_ids: blob.rootfs.diff_ids,
        }))
    }

    /// Follows indexes down to the manifest for this platform.
    fn platform_manifest(
        &self,
        descriptor: Descriptor,
        depth: u32,
    ) -> Result<Option<(String, Manifest)>, ImageError> {
        let other = |p: &Platform| p.os != "linux" || p.architecture != architecture();
        if descriptor.platform.as_ref().is_some_and(other) {
            return Ok(None);
        }
        let name = self.blob_name(&descriptor.digest)?;
        let is_index =
            descriptor.media_type.contains("image.index") || descriptor.media_type.contains("manifest.list");
        if !is_index {
            let manifest = self.json(&name, Some(&descriptor.digest))?;
            return Ok(Some((descriptor.digest, manifest)));
        }
        if depth > 4 {
            return Err(self.error(format!("{name}: indexes are nested too deeply")));
        }
        let index: Index = self.json(&name, Some(&descriptor.digest))?;
        for inner in index.manifests {
            // An archive may list platforms that it does not hold.
            if self.files.contains_key(&self.blob_name(&inner.digest)?)
                && let Some(found) = self.platform_manifest(inner, depth + 1)?
            {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn names(&self, descriptor: &Descriptor) -> Result<Vec<String>, ImageError> {
        let keys = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];
        let name = keys.iter().find_map(|key| descriptor.annotations.get(*key));
        name.map(|name| super::normalize(name)).transpose().map(|name| name.into_iter().collect())
    }

    fn blob_name(&self, digest: &str) -> Result<String, ImageError> {
        if !is_digest(digest) {
            return Err(self.error(format!("has an unsupported digest {digest:?}")));
        }
        Ok(format!("blobs/{}", digest.replace(':', "/")))
    }

    fn file(&self, name: &str) -> Result<File, ImageError> {
        let path = self.files.get(name).ok_or_else(|| self.error(format!("{name} is missing")))?;
        File::open(path).map_err(|e| ImageError::io("open", path, e))
    }

    fn bytes(&self, name: &str, digest: Option<&str>) -> Result<Vec<u8>, ImageError> {
        let mut bytes = Vec::new();
        self.file(name)?
            .take(MAX_JSON)
            .read_to_end(&mut bytes)
            .map_err(|e| self.error(format!("{name} cannot be read: {e}")))?;
        if digest.is_some_and(|d| d != format!("sha256:{}", hex_digest(&bytes))) {
            return Err(self.error(format!("{name} does not have the digest it is named by")));
        }
        Ok(bytes)
    }

    fn json<T: DeserializeOwned>(&self, name: &str, digest: Option<&str>) -> Result<T, ImageError> {
        serde_json::from_slice(&self.bytes(name, digest)?)
            .map_err(|e| self.error(format!("{name} cannot be parsed: {e}")))
    }

    /// Compressed bytes of a layer.
    pub(super) fn layer_size(&self, layer: &LayerSource) -> u64 {
        self.file(&layer.name)
            .and_then(|f| f.metadata().map_err(|e| ImageError::io("read", &self.path, e)))
            .map_or(0, |m| m.len())
    }

    /// The tar stream of a layer; a blob that has a digest is verified first.
    pub(super) fn layer(&self, layer: &LayerSource) -> Result<Box<dyn Read>, ImageError> {
        let unreadable = |e: io::Error| self.error(format!("{} cannot be read: {e}", layer.name));
        if let Some(digest) = &layer.digest {
            let mut hasher = Sha256::new();
            io::copy(&mut self.file(&layer.name)?, &mut hasher).map_err(unreadable)?;
            if *digest != format!("sha256:{}", to_hex(&hasher.finalize())) {
                return Err(self.error(format!("{} does not have the digest it is named by", layer.name)));
            }
        }
        decompress(BufReader::with_capacity(1 << 17, self.file(&layer.name)?)).map_err(unreadable)
    }
}

/// Plain, gzip or zstd, told apart by their first bytes.
fn decompress(mut reader: BufReader<File>) -> io::Result<Box<dyn Read>> {
    use std::io::BufRead;
    let start = reader.fill_buf()?;
    Ok(if start.starts_with(&[0x1f, 0x8b]) {
        Box::new(flate2::bufread::MultiGzDecoder::new(reader))
    } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        Box::new(zstd::stream::read::Decoder::with_buffer(reader)?)
    } else {
        Box::new(reader)
    })
}

/// The name of this machine's architecture in image configs (Go's GOARCH).
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        "riscv64gc" => "riscv64",
        other => other,
    }
}

fn parent(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(parent, _)| parent)
}

fn resolve(base: &str, link: &Path) -> Option<String> {
    let mut parts: Vec<&str> = base.split('/').filter(|p| !p.is_empty()).collect();
    for component in link.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::ParentDir => drop(parts.pop()?),
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(parts.join("/"))
}

fn plain_name(path: &Path) -> Option<String> {
    resolve("", path).filter(|_| !path.components().any(|c| c == Component::ParentDir))
}
