//! Privileged: layers are unpacked.

use super::*;
use crate::image::testing::{Layer, Packing, docker_archive, oci_archive};
use serde_json::json;

struct Dir {
    temp: tempfile::TempDir,
    store: ImageStore,
}

impl Dir {
    fn new() -> Self {
        let temp = tempfile::Builder::new().prefix("kelp-images-").tempdir().unwrap();
        let store = ImageStore::open(&temp.path().join("store")).unwrap();
        Self { temp, store }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    /// Imports an image of which `text` is the only file's content.
    fn import(&self, name: &str, text: &str) -> Image {
        let archive = self.path("archive.tar");
        let layer = Layer::new().file("f", 0o644, text.as_bytes()).bytes();
        docker_archive(&archive, name, &[layer], &json!({ "Cmd": ["/f"] }));
        self.store.import(&archive, None).unwrap().remove(0)
    }

    fn layers(&self) -> usize {
        list_dir(&self.path("store/layers")).unwrap().len()
    }
}

#[test]
fn oci_archives_in_every_packing() {
    let dir = Dir::new();
    let base = Layer::new().file("base", 0o644, b"base").bytes();
    let top = Layer::new().file("top", 0o644, b"topp").bytes();
    let settings = json!({ "Entrypoint": ["/e"], "Env": ["A=b"], "User": "web", "WorkingDir": "/w",
        "StopSignal": "SIGQUIT" });
    let mut ids = BTreeSet::new();
    for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
        let archive = dir.path("oci.tar");
        let layers = [base.clone(), top.clone()];
        let digest = oci_archive(&archive, "team/app:1.0", &layers, &settings, packing);
        let images = dir.store.import(&archive, None).unwrap();
        assert_eq!(images.len(), 1);
        let image = &images[0];
        assert_eq!((image.size, image.layers.len()), (8, 2));
        assert_eq!(image.config.entrypoint, ["/e"]);
        assert_eq!((image.config.user.as_str(), image.config.stop_signal.as_str()), ("web", "SIGQUIT"));
        let by_digest = dir.store.resolve(&format!("team/app@{digest}")).unwrap().unwrap();
        assert_eq!(by_digest.id, image.id);
        ids.insert(image.id.clone());
    }
    // The packing is no part of an image's identity, and its layers are there once.
    assert_eq!((ids.len(), dir.layers()), (1, 4));
    let id = ids.pop_first().unwrap();
    for reference in ["team/app:1.0", &id, &id["sha256:".len()..]] {
        assert_eq!(dir.store.resolve(reference).unwrap().unwrap().id, id, "{reference}");
    }
    assert_eq!(dir.store.resolve("team/app:2.0").unwrap(), None);
    assert!(dir.store.resolve("Not A Name").is_err());
    let layers = dir.store.acquire(&id, "user").unwrap();
    let top = layers.dir.join(&layers.names[0]);
    assert!(top.join("top").exists() && !top.join("base").exists());
}

#[test]
fn a_directory_and_a_packed_tar_are_archives_too() {
    let dir = Dir::new();
    let archive = dir.path("oci.tar");
    let layer = Layer::new().file("f", 0o644, b"x").bytes();
    oci_archive(&archive, "app:1", &[layer], &json!({}), Packing::Gzip);
    let unpacked = dir.path("layout");
    tar::Archive::new(fs::File::open(&archive).unwrap()).unpack(&unpacked).unwrap();
    let image = dir.store.import(&unpacked, Some("other:2")).unwrap().remove(0);
    assert!(image.names[0].ends_with("/library/other:2"));
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    io::Write::write_all(&mut encoder, &fs::read(&archive).unwrap()).unwrap();
    fs::write(&archive, encoder.finish().unwrap()).unwrap();
    let again = dir.store.import(&archive, None).unwrap().remove(0);
    assert_eq!(again.id, image.id);
    assert_eq!(again.names.len(), 2);
}

#[test]
fn a_tag_moves_to_the_image_imported_last() {
    let dir = Dir::new();
    let one = dir.import("app:1", "one");
    let two = dir.import("app:1", "two");
    assert_ne!(one.id, two.id);
    assert_eq!(dir.store.resolve("app:1").unwrap().unwrap().id, two.id);
    let one = dir.store.resolve(&one.id).unwrap().unwrap();
    assert!(one.names.is_empty());
    let removed = dir.store.prune(|image| !image.names.is_empty()).unwrap();
    assert_eq!(removed, [one.id]);
    assert_eq!((dir.store.list().unwrap().len(), dir.layers()), (1, 2));
}

#[test]
fn images_in_use_stay() {
    let dir = Dir::new();
    let image = dir.import("app:1", "one");
    dir.store.acquire(&image.id, "pod_c.0").unwrap();
    dir.store.acquire(&image.id, "pod_c.0").unwrap();
    // Another process sees the lease.
    let other = ImageStore::open(&dir.path("store")).unwrap();
    let error = other.remove("app:1").unwrap_err().to_string();
    assert!(error.contains("in use by pod_c.0"), "{error}");
    assert!(other.prune(|_| false).unwrap().is_empty());
    other.retain_leases(|user| user == "pod_c.0").unwrap();
    assert!(other.remove("app:1").is_err());
    other.retain_leases(|_| false).unwrap();
    other.remove("app:1").unwrap();
    assert_eq!((other.list().unwrap().len(), dir.layers()), (0, 0));
    assert!(matches!(dir.store.acquire(&image.id, "x").unwrap_err(), ImageError::NotFound(_)));
    assert!(list_dir(&dir.path("store/leases")).unwrap().is_empty());
    assert!(matches!(other.remove("app:1").unwrap_err(), ImageError::NotFound(_)));
}

#[test]
fn one_of_several_tags_is_removed_alone() {
    let dir = Dir::new();
    let image = dir.import("app:1", "one");
    dir.import("app:2", "one");
    dir.store.remove("app:1").unwrap();
    assert_eq!(dir.store.resolve("app:1").unwrap(), None);
    assert_eq!(dir.store.resolve("app:2").unwrap().unwrap().id, image.id);
    dir.store.remove(&image.id).unwrap();
    assert!(dir.store.list().unwrap().is_empty());
}

#[test]
fn another_process_sees_changes() {
    let dir = Dir::new();
    let other = ImageStore::open(&dir.path("store")).unwrap();
    for n in 0..20 {
        let image = dir.import("app:1", &n.to_string());
        assert_eq!(other.resolve("app:1").unwrap().unwrap().id, image.id);
    }
}

#[test]
fn what_a_crash_leaves_is_swept() {
    let dir = Dir::new();
    let image = dir.import("app:1", "one");
    let store = dir.path("store");
    fs::create_dir_all(store.join("tmp/import/in")).unwrap();
    fs::write(store.join("tmp/import/in/0"), b"x").unwrap();
    fs::create_dir(store.join("layers/0123456789abcdef")).unwrap();
    fs::write(store.join("layers/fedcba9876543210.json"), b"{}").unwrap();
    fs::write(store.join("images/0.new"), b"{").unwrap();
    let reopened = ImageStore::open(&store).unwrap();
    assert_eq!(reopened.list().unwrap(), [image]);
    assert_eq!(dir.layers(), 2);
    assert!(list_dir(&store.join("tmp")).unwrap().is_empty());
    assert_eq!(list_dir(&store.join("images")).unwrap().len(), 1);
}

#[test]
fn a_tag_on_two_images_stays_on_the_newer() {
    let dir = Dir::new();
    let mut one = dir.import("app:1", "one");
    let two = dir.import("app:1", "two");
    // As if the second import had been cut off before it took the name from the first image.
    one.names = two.names.clone();
    dir.store.write_record(&one).unwrap();
    let reopened = ImageStore::open(&dir.path("store")).unwrap();
    assert_eq!(reopened.resolve("app:1").unwrap().unwrap().id, two.id);
    assert!(reopened.resolve(&one.id).unwrap().unwrap().names.is_empty());
}

#[test]
fn bad_archives_are_refused_with_a_reason() {
    let dir = Dir::new();
    let archive = dir.path("bad.tar");
    let refused = |what: &str| {
        let error = dir.store.import(&archive, None).unwrap_err().to_string();
        assert!(error.contains(what), "{error} lacks {what:?}");
        assert!(error.contains("bad.tar"), "{error}");
        assert!(dir.store.list().unwrap().is_empty());
        assert_eq!(dir.layers(), 0);
        assert!(list_dir(&dir.path("store/tmp")).unwrap().is_empty());
    };
    fs::write(&archive, b"no tar").unwrap();
    refused("cannot be read as a tar");
    fs::write(&archive, Layer::new().file("x", 0o644, b"").bytes()).unwrap();
    refused("not an image archive");
    fs::write(&archive, Layer::new().file("../x", 0o644, b"").bytes()).unwrap();
    refused("leaves the archive");
    let missing = Layer::new().file("manifest.json", 0o644, br#"[{"Config":"c","Layers":[]}]"#);
    fs::write(&archive, missing.bytes()).unwrap();
    refused("c is missing");
    let empty = Layer::new().file("index.json", 0o644, br#"{"manifests":[]}"#);
    fs::write(&archive, empty.bytes()).unwrap();
    refused("no image for linux/");
    // One flipped bit of a layer: its blob's digest does not fit, and for docker's format its diff id.
    let content = b"some content of a file in a layer";
    let layers = [Layer::new().file("f", 0o644, content).bytes()];
    for (is_oci, reason) in [(true, "does not have the digest"), (false, "the archive is damaged")] {
        if is_oci {
            oci_archive(&archive, "app:1", &layers, &json!({}), Packing::Plain);
        } else {
            docker_archive(&archive, "app:1", &layers, &json!({}));
        }
        let mut bytes = fs::read(&archive).unwrap();
        let place = bytes.windows(content.len()).position(|w| w == content).unwrap();
        bytes[place] ^= 1;
        fs::write(&archive, bytes).unwrap();
        refused(reason);
    }
    assert!(dir.store.import(&dir.path("none.tar"), None).is_err());
}
