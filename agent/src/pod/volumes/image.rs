//! Volumes that are images: their layers, read-only (KEP-4639).

use super::mountinfo;
use crate::image::{ImageStore, volume_lease};
use nix::mount::{MsFlags, mount};
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// Mounts images of the store.
#[derive(Clone)]
pub struct ImageVolumes {
    store: ImageStore,
}

/// Directory of an image volume.
fn directory(pod_dir: &Path, volume: &str) -> PathBuf {
    pod_dir.join("volumes").join(volume)
}

impl ImageVolumes {
    /// From this store.
    #[must_use]
    pub fn new(store: ImageStore) -> Self {
        Self { store }
    }

    /// Mounts the image of an id as a volume of a pod and returns where. Idempotent.
    ///
    /// # Errors
    /// The image is gone, or cannot be mounted.
    pub fn set_up(&self, pod: &str, pod_dir: &Path, volume: &str, id: &str) -> Result<PathBuf, String> {
        let at = directory(pod_dir, volume);
        let layers = self.store.acquire(id, &volume_lease(pod, volume)).map_err(|e| e.to_string())?;
        // Which image is to be let go when the volume goes: written before it is mounted.
        fs::create_dir_all(&at)
            .and_then(|()| fs::write(pod_dir.join(format!("image.{volume}")), id))
            .map_err(|e| format!("cannot create {}: {e}", at.display()))?;
        if !mountinfo::is_mounted(&at) {
            mount_layers(&layers.dir, &layers.names, &at)
                .map_err(|e| format!("cannot mount the image at {}: {e}", at.display()))?;
        }
        Ok(at)
    }

    /// Lets go of the images of a pod's volumes, whose directories are gone.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn release(&self, pod: &str, pod_dir: &Path) -> Result<(), String> {
        for entry in fs::read_dir(pod_dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(volume) = name.strip_prefix("image.") else { continue };
            let id = fs::read_to_string(entry.path()).unwrap_or_default();
            if !id.is_empty() {
                self.store.release(&id, &volume_lease(pod, volume)).map_err(|e| e.to_string())?;
            }
            fs::remove_file(entry.path()).map_err(|e| format!("cannot remove {name}: {e}"))?;
        }
        Ok(())
    }
}

fn mount_layers(dir: &Path, names: &[String], at: &Path) -> io::Result<()> {
    // overlayfs without an upper directory wants two lower ones at least.
    let empty = dir.join("../empty");
    fs::create_dir_all(&empty)?;
    // By its descriptor a directory has a short name: mount(2) takes one page for all of them.
    let handle = fs::File::open(dir)?;
    let base = format!("/proc/self/fd/{}", handle.as_raw_fd());
    let mut lower: Vec<String> = names.iter().map(|name| format!("{base}/{name}")).collect();
    lower.push(format!("{base}/../empty"));
    if names.is_empty() {
        lower.push(format!("{base}/../empty"));
    }
    let options = format!("lowerdir={}", lower.join(":"));
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("overlay"), at, Some("overlay"), flags, Some(options.as_str()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::testing::{Layer, Packing, oci_archive};

    #[test]
    fn an_image_is_mounted_once_and_let_go() {
        let dir = tempfile::tempdir().unwrap();
        let (store_dir, pod_dir) = (dir.path().join("store"), dir.path().join("pods/u"));
        let store = ImageStore::open(&store_dir).unwrap();
        let layers =
            [Layer::new().file("a", 0o644, b"1").bytes(), Layer::new().file("b", 0o644, b"2").bytes()];
        let file = dir.path().join("image.tar");
        oci_archive(&file, "example.test/data:1", &layers, &serde_json::json!({}), Packing::Plain);
        let image = store.import(&file, None).unwrap().remove(0);
        let images = ImageVolumes::new(store.clone());
        fs::create_dir_all(&pod_dir).unwrap();
        for _ in 0..2 {
            let at = images.set_up("u", &pod_dir, "v", &image.id).unwrap();
            assert_eq!(fs::read(at.join("a")).unwrap(), b"1");
            assert_eq!(fs::read(at.join("b")).unwrap(), b"2");
            assert!(fs::write(at.join("c"), "").is_err(), "it is read-only");
            assert_eq!(mountinfo::below(&pod_dir).unwrap().len(), 1);
        }
        assert!(store.is_in_use(&image.id));
        super::super::tear_down_volumes(&pod_dir).unwrap();
        images.release("u", &pod_dir).unwrap();
        assert!(!store.is_in_use(&image.id));
        assert_eq!(fs::read_dir(&pod_dir).unwrap().count(), 0);
    }
}
