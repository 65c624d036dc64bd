//! Builds OCI image archives from files, without any registry or image tool.

use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::io::Write;
use std::path::Path;

/// A file of an image: its absolute path there, its mode, its content.
#[derive(Debug)]
pub struct File<'a> {
    /// Path in the image, without the leading slash.
    pub path: &'a str,
    /// Permission bits.
    pub mode: u32,
    /// Content.
    pub content: Vec<u8>,
}

/// Writes an OCI archive (a tar of an OCI image layout) with one layer to `path`; the same input gives the same bytes.
/// `config` is the `config` object of the image configuration (Entrypoint, Cmd, Env, …).
///
/// # Errors
/// The archive cannot be written.
pub fn write_archive(path: &Path, name: &str, config: &Value, files: &[File<'_>]) -> Result<()> {
    let layer_tar = layer(files).context("build the layer")?;
    write_archive_of(path, name, config, &layer_tar)
}

/// Like [`write_archive`], with a layer that is a finished tar.
///
/// # Errors
/// The archive cannot be written.
pub fn write_archive_of(path: &Path, name: &str, config: &Value, layer_tar: &[u8]) -> Result<()> {
    let diff_id = digest(layer_tar);
    let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::fast());
    gzip.write_all(layer_tar)?;
    let layer = gzip.finish()?;

    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = serde_json::to_vec(&json!({
        "architecture": architecture,
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    }))?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &layer)],
    }))?;
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["annotations"] =
        json!({"org.opencontainers.image.ref.name": name, "io.containerd.image.name": name});
    let index = serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [entry]}))?;

    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    }
    let file = std::fs::File::create(path).with_context(|| format!("create {}", path.display()))?;
    let mut archive = tar::Builder::new(file);
    append(&mut archive, "oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    append(&mut archive, "index.json", 0o644, &index)?;
    for blob in [&config, &manifest, &layer] {
        append(&mut archive, &format!("blobs/{}", digest(blob).replace(':', "/")), 0o644, blob)?;
    }
    archive.into_inner()?.sync_all().with_context(|| format!("write {}", path.display()))
}

fn layer(files: &[File<'_>]) -> Result<Vec<u8>> {
    let mut layer = tar::Builder::new(Vec::new());
    for file in files {
        append(&mut layer, file.path, file.mode, &file.content)?;
    }
    Ok(layer.into_inner()?)
}

fn append<W: Write>(archive: &mut tar::Builder<W>, path: &str, mode: u32, content: &[u8]) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(content.len() as u64);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    archive.append_data(&mut header, path, content).with_context(|| format!("add {path}"))
}

fn descriptor(media_type: &str, blob: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(blob), "size": blob.len()})
}

fn digest(blob: &[u8]) -> String {
    let hash = Sha256::digest(blob);
    hash.iter().fold(String::from("sha256:"), |text, byte| text + &format!("{byte:02x}"))
}

/// Builds the image of the sample workload, `kelp/hello:dev`, from its static binary.
///
/// # Errors
/// The binary cannot be read or the archive not written.
pub fn write_hello(binary: &Path, archive: &Path) -> Result<()> {
    let content = std::fs::read(binary).with_context(|| format!("read {}", binary.display()))?;
    let passwd = b"root:x:0:0:root:/:/hello\nhello:x:1000:1000:hello:/:/hello\n".to_vec();
    let files = [
        File { path: "hello", mode: 0o755, content },
        File { path: "etc/passwd", mode: 0o644, content: passwd },
        File { path: "etc/group", mode: 0o644, content: b"root:x:0:\nhello:x:1000:\n".to_vec() },
    ];
    let config = json!({
        "Entrypoint": ["/hello"],
        "Env": ["PATH=/"],
        "User": "hello",
        "WorkingDir": "/",
        "ExposedPorts": {"8080/tcp": {}},
    });
    write_archive(archive, "kelp/hello:dev", &config, &files)
}
