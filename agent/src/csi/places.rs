//! Where volumes of drivers are on the disk, and what is noted there about them.

use crate::pod::volumes::mountinfo;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// Directory of published volumes below a pod's volumes, upstream's.
const PLUGIN: &str = "kubernetes.io~csi";
/// Directory of what drivers have on the node.
const ALL: &str = "plugins/kubernetes.io/csi";
const DEVICES: &str = "volumeDevices";
const DATA: &str = "vol_data.json";

/// What is on the disk about a volume, in upstream's form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Data {
    pub(super) driver_name: String,
    pub(super) volume_handle: String,
    #[serde(default, rename = "specVolID", skip_serializing_if = "String::is_empty")]
    pub(super) spec_vol_id: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) volume_lifecycle_mode: String,
    /// The volume had to be attached.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) attached: bool,
    /// It is a device.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) block: bool,
}

/// A name of any length as one that a directory can have.
pub(super) fn hash(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where a volume of a pod is.
pub(super) struct Place {
    /// The record of its publication.
    pub(super) dir: PathBuf,
    /// Where the driver publishes it.
    pub(super) target: PathBuf,
    /// The record of its staging.
    staged: PathBuf,
    /// Where the driver stages it.
    pub(super) staging: PathBuf,
}

impl Place {
    /// Of a volume by its names.
    pub(super) fn new(
        data_dir: &Path,
        pod_dir: &Path,
        block: bool,
        driver: &str,
        handle: &str,
        name: &str,
    ) -> Self {
        let all = data_dir.join(ALL);
        if block {
            let devices = all.join(DEVICES);
            let uid = pod_dir.file_name().unwrap_or_default();
            return Self {
                dir: pod_dir.join(DEVICES).join(PLUGIN).join(name),
                target: devices.join("publish").join(name).join(uid),
                staged: devices.join(name).join("data"),
                staging: devices.join("staging").join(name),
            };
        }
        let dir = pod_dir.join("volumes").join(PLUGIN).join(name);
        let staged = all.join(driver).join(hash(handle));
        Self { target: dir.join("mount"), dir, staging: staged.join("globalmount"), staged }
    }

    /// Of a volume that was noted.
    pub(super) fn of(data_dir: &Path, pod_dir: &Path, block: bool, data: &Data) -> Self {
        Self::new(data_dir, pod_dir, block, &data.driver_name, &data.volume_handle, &data.spec_vol_id)
    }

    /// Whether the driver has published it.
    pub(super) fn is_published(&self) -> bool {
        let is_device = || fs::metadata(&self.target).is_ok_and(|m| m.file_type().is_block_device());
        self.dir.join(DATA).exists() && (mountinfo::is_mounted(&self.target) || is_device())
    }

    /// Notes that it is about to be published.
    pub(super) fn note(&self, data: &Data) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        if let Some(parent) = self.target.parent() {
            fs::create_dir_all(parent)?;
        }
        write(&self.dir.join(DATA), data)
    }

    /// Whether it was, or was about to be, staged.
    pub(super) fn is_staged(&self) -> bool {
        self.staged.join(DATA).exists()
    }

    /// Notes that it is about to be staged.
    pub(super) fn note_staged(&self, data: &Data) -> io::Result<()> {
        fs::create_dir_all(&self.staging)?;
        fs::create_dir_all(&self.staged)?;
        write(&self.staged.join(DATA), data)
    }

    /// It is staged no more.
    pub(super) fn forget_staged(&self) -> io::Result<()> {
        remove(&self.staged, &self.staging)?;
        // Directories of devices that are empty go, too.
        for dir in [self.staging.parent(), self.staged.parent()].into_iter().flatten() {
            if dir.components().any(|c| c.as_os_str() == DEVICES) {
                let _ = fs::remove_dir(dir);
            }
        }
        Ok(())
    }
}

fn write(path: &Path, data: &Data) -> io::Result<()> {
    use std::io::Write;
    let temporary = path.with_extension("tmp");
    let mut file = fs::File::create(&temporary)?;
    file.write_all(&serde_json::to_vec(data)?)?;
    file.sync_data()?;
    fs::rename(temporary, path)
}

/// What is noted in a directory.
pub(super) fn read(dir: &Path) -> Option<Data> {
    serde_json::from_slice(&fs::read(dir.join(DATA)).ok()?).ok()
}

fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// Records of a pod's volumes, and whether they are devices.
pub(super) fn of_pod(pod_dir: &Path) -> Vec<(PathBuf, bool)> {
    let of = |kind: &str, block| entries(&pod_dir.join(kind).join(PLUGIN)).map(move |dir| (dir, block));
    of("volumes", false).chain(of(DEVICES, true)).collect()
}

/// What a driver has, or may have, staged.
pub(super) fn staged(data_dir: &Path, driver: &str) -> Vec<Data> {
    let all = data_dir.join(ALL);
    let devices = entries(&all.join(DEVICES)).map(|dir| dir.join("data"));
    entries(&all.join(driver))
        .chain(devices)
        .filter_map(|dir| read(&dir))
        .filter(|data| data.driver_name == driver)
        .collect()
}

fn absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Removes what a volume was published or staged at, and then its record; what is mounted there is not touched.
pub(super) fn remove(dir: &Path, at: &Path) -> io::Result<()> {
    if !mountinfo::below(at)?.is_empty() {
        let text = format!("{} is still mounted", at.display());
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
    }
    // Never recursively: what the driver left there is not ours.
    match fs::symlink_metadata(at) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir(at)?,
        Ok(_) => fs::remove_file(at)?,
        Err(_) => {}
    }
    if !at.starts_with(dir)
        && let Some(parent) = at.parent()
    {
        // Other pods may have the volume as well.
        let _ = fs::remove_dir(parent);
    }
    absent(fs::remove_file(dir.join(DATA)))?;
    absent(fs::remove_file(dir.join(DATA).with_extension("tmp")))?;
    absent(fs::remove_dir(dir))
}

/// Removes the directories of a pod that held records.
pub(super) fn remove_empty(pod_dir: &Path) -> io::Result<()> {
    absent(fs::remove_dir(pod_dir.join("volumes").join(PLUGIN)))?;
    absent(fs::remove_dir(pod_dir.join(DEVICES).join(PLUGIN)))?;
    absent(fs::remove_dir(pod_dir.join(DEVICES)))
}
