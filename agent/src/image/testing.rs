//! Image archives made on the spot, for tests.

use super::store::hex_digest;
use std::io::Write;
use std::path::Path;
use tar::{Builder, EntryType, Header};

/// A layer under construction.
pub(crate) struct Layer {
    tar: Builder<Vec<u8>>,
}

impl Layer {
    pub(crate) fn new() -> Self {
        Self { tar: Builder::new(Vec::new()) }
    }

    fn entry(mut self, path: &str, kind: EntryType, mode: u32, content: &[u8], link: &str) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        if kind == EntryType::Char {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        }
        if !link.is_empty() {
            header.set_link_name_literal(link).unwrap();
        }
        // Written raw: some tests want paths that the crate refuses to write.
        let name = path.as_bytes();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name);
        header.set_cksum();
        self.tar.append(&header, content).unwrap();
        self
    }

    pub(crate) fn file(self, path: &str, mode: u32, content: &[u8]) -> Self {
        self.entry(path, EntryType::Regular, mode, content, "")
    }

    pub(crate) fn dir(self, path: &str, mode: u32) -> Self {
        self.entry(path, EntryType::Directory, mode, b"", "")
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(path, EntryType::Symlink, 0o777, b"", target)
    }

    pub(crate) fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(path, EntryType::Link, 0o644, b"", target)
    }

    pub(crate) fn null_device(self, path: &str) -> Self {
        self.entry(path, EntryType::Char, 0o666, b"", "")
    }

    pub(crate) fn fifo(self, path: &str) -> Self {
        self.entry(path, EntryType::Fifo, 0o600, b"", "")
    }

    pub(crate) fn bytes(self) -> Vec<u8> {
        self.tar.into_inner().unwrap()
    }
}

pub(crate) fn config(layers: &[Vec<u8>], config: &serde_json::Value) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|layer| format!("sha256:{}", hex_digest(layer))).collect();
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let document = serde_json::json!({
        "architecture": arch, "os": "linux", "config": config,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    serde_json::to_vec(&document).unwrap()
}

/// Writes what `docker save` of one image writes.
pub(crate) fn docker_archive(path: &Path, name: &str, layers: &[Vec<u8>], settings: &serde_json::Value) {
    let mut archive = Layer::new();
    let mut names = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        names.push(format!("{number}/layer.tar"));
        archive = archive.file(&names[number], 0o644, layer);
    }
    let manifest = serde_json::json!([{ "Config": "config.json", "RepoTags": [name], "Layers": names }]);
    let archive = archive.file("config.json", 0o644, &config(layers, settings)).file(
        "manifest.json",
        0o644,
        &serde_json::to_vec(&manifest).unwrap(),
    );
    std::fs::write(path, archive.bytes()).unwrap();
}

/// How the layers of an OCI layout are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// Writes an OCI image layout as a tar and returns the manifest's digest.
pub(crate) fn oci_archive(
    path: &Path,
    name: &str,
    layers: &[Vec<u8>],
    settings: &serde_json::Value,
    packing: Packing,
) -> String {
    let mut archive = Layer::new().file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#);
    let mut add = |bytes: &[u8]| {
        let hex = hex_digest(bytes);
        let taken = std::mem::replace(&mut archive, Layer::new());
        archive = taken.file(&format!("blobs/sha256/{hex}"), 0o644, bytes);
        serde_json::json!({
            "mediaType": "application/octet-stream", "digest": format!("sha256:{hex}"), "size": bytes.len(),
        })
    };
    let packed: Vec<serde_json::Value> = layers
        .iter()
        .map(|layer| match packing {
            Packing::Plain => add(layer),
            Packing::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(layer).unwrap();
                add(&encoder.finish().unwrap())
            }
            Packing::Zstd => add(&zstd::encode_all(layer.as_slice(), 1).unwrap()),
        })
        .collect();
    let config = add(&config(layers, settings));
    let manifest = serde_json::json!({ "schemaVersion": 2, "config": config, "layers": packed });
    let mut descriptor = add(&serde_json::to_vec(&manifest).unwrap());
    let digest = descriptor["digest"].as_str().unwrap().to_owned();
    descriptor["mediaType"] = "application/vnd.oci.image.manifest.v1+json".into();
    descriptor["annotations"] = serde_json::json!({ "org.opencontainers.image.ref.name": name });
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [descriptor] });
    let archive = archive.file("index.json", 0o644, &serde_json::to_vec(&index).unwrap());
    std::fs::write(path, archive.bytes()).unwrap();
    digest
}

/// A layer with a static busybox, its usual names, and accounts.
pub(crate) fn busybox_layer() -> Vec<u8> {
    let busybox = std::fs::read("/bin/busybox").expect("apt-get install busybox-static");
    let mut layer = Layer::new()
        .dir("bin/", 0o755)
        .file("bin/busybox", 0o755, &busybox)
        .dir("etc/", 0o755)
        .file("etc/passwd", 0o644, b"root:x:0:0::/root:/bin/sh\nweb:x:101:102::/home/web:/bin/sh\n")
        .file("etc/group", 0o644, b"root:x:0:\nweb:x:102:\nlogs:x:200:web\n")
        .file("etc/not-executable", 0o644, b"x")
        .file("bin/bad-script", 0o755, b"#!/no/such/interpreter\n")
        .file("bin/bad-format", 0o755, b"\x00\x01\x02garbage")
        .dir("tmp/", 0o1777)
        .dir("home/", 0o755);
    for name in [
        "sh", "true", "false", "sleep", "cat", "echo", "id", "ls", "touch", "hostname", "grep", "dd", "pwd",
        "mount", "kill", "stat", "mknod", "head", "wc", "tail", "ip", "readlink", "seq",
    ] {
        layer = layer.hard_link(&format!("bin/{name}"), "bin/busybox");
    }
    layer.bytes()
}
