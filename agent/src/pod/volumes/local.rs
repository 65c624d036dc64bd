//! Local volumes on a block device: formatted when nothing is on it, and mounted once a node for all pods that use it.
//!
//! ```text
//! plugins/kubernetes.io/local-volume/mounts/<volume>   where
//! pods/<uid>/claims.json                               who uses it
//! ```

use super::claims::{self, Claimed};
use super::mountinfo;
use k8s_openapi::api::core::v1::PersistentVolumeSpec;
use parking_lot::Mutex;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Below the agent's data directory, upstream's.
const MOUNTS: &str = "plugins/kubernetes.io/local-volume/mounts";
/// Upstream's choice when a volume names no file system.
const FS_TYPE: &str = "ext4";

/// One mount or unmount at a time: whether a pod is the last with a volume must not change meanwhile.
static TURN: Mutex<()> = Mutex::new(());

/// A device and how it is to be mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its node on the host.
    pub path: PathBuf,
    /// Where it goes.
    pub at: PathBuf,
    fs_type: String,
    options: Vec<String>,
}

/// What blkid(8) found on a device.
#[derive(Debug, PartialEq, Eq)]
enum Content {
    Nothing,
    FileSystem(String),
    /// Something that is not to be lost.
    Other,
}

/// The agent's data directory of a pod's.
fn data_dir(pod_dir: &Path) -> &Path {
    pod_dir.parent().and_then(Path::parent).unwrap_or(Path::new("/"))
}

impl Device {
    /// The device of a volume with a file system; `None`: it is no device.
    pub fn of(pod_dir: &Path, name: &str, spec: &PersistentVolumeSpec) -> Option<Self> {
        let local = spec.local.as_ref()?;
        let path = PathBuf::from(&local.path);
        let is_device = fs::metadata(&path).is_ok_and(|m| m.file_type().is_block_device());
        is_device.then(|| Self {
            path,
            at: data_dir(pod_dir).join(MOUNTS).join(name),
            fs_type: local.fs_type.clone().filter(|t| !t.is_empty()).unwrap_or_else(|| FS_TYPE.to_owned()),
            options: spec.mount_options.clone().unwrap_or_default(),
        })
    }

    /// Mounts it, formatted when it is empty. Idempotent.
    ///
    /// # Errors
    /// What the programs said.
    pub fn mount(&self) -> Result<(), String> {
        let _turn = TURN.lock();
        if mountinfo::is_mounted(&self.at) {
            return Ok(());
        }
        fs::create_dir_all(&self.at).map_err(|e| format!("cannot create {}: {e}", self.at.display()))?;
        match content(&self.path)? {
            Content::Nothing => self.format()?,
            Content::FileSystem(_) => self.check()?,
            Content::Other => {
                let path = self.path.display();
                return Err(format!(
                    "failed to mount unformatted volume as read write: {path} holds partitions or unknown data"
                ));
            }
        }
        let mut options = vec!["defaults"];
        options.extend(self.options.iter().map(String::as_str));
        let mut mount = Command::new("mount");
        mount.args(["-t", &self.fs_type, "-o", &options.join(",")]).arg(&self.path).arg(&self.at);
        run(&mut mount).map(drop).map_err(|why| format!("mount failed: {why}"))
    }

    fn format(&self) -> Result<(), String> {
        let mut make = Command::new(format!("mkfs.{}", self.fs_type));
        if self.fs_type.starts_with("ext") {
            // Whatever it is, and all of it for the pods.
            make.args(["-F", "-m0"]);
        }
        tracing::info!(device = %self.path.display(), fs = self.fs_type, "formatting the device of a local volume");
        let failed = |why| format!("failed to format the volume as {:?}: {why}", self.fs_type);
        run(make.arg(&self.path)).map(drop).map_err(failed)
    }

    /// Repairs what a crash left. A host without fsck(8) mounts unchecked, as upstream does.
    fn check(&self) -> Result<(), String> {
        match Command::new("fsck").arg("-a").arg(&self.path).stdin(Stdio::null()).output() {
            // fsck(8): bit 4 says that errors are left.
            Ok(out) if out.status.code().is_some_and(|code| code & 4 != 0) => Err(format!(
                "'fsck' found errors on device {} but could not correct them: {}",
                self.path.display(),
                String::from_utf8_lossy(&out.stdout).trim()
            )),
            Ok(_) => Ok(()),
            Err(error) => {
                tracing::warn!(%error, "file systems of local volumes are not checked");
                Ok(())
            }
        }
    }
}

fn run(command: &mut Command) -> Result<String, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let out = command.stdin(Stdio::null()).output().map_err(|e| format!("cannot start {program}: {e}"))?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&out.stderr);
    Err(format!("{program}: {}: {}", out.status, said.trim()))
}

/// Looks at a device.
fn content(device: &Path) -> Result<Content, String> {
    let mut blkid = Command::new("blkid");
    blkid.args(["-p", "-s", "TYPE", "-s", "PTTYPE", "-o", "export"]).arg(device).stdin(Stdio::null());
    let out = blkid.output().map_err(|e| format!("cannot start blkid: {e}"))?;
    match out.status.code() {
        Some(0) => Ok(found(&String::from_utf8_lossy(&out.stdout))),
        // Nothing that it knows.
        Some(2) => Ok(Content::Nothing),
        _ => Err(format!("blkid: {}: {}", out.status, String::from_utf8_lossy(&out.stderr).trim())),
    }
}

fn found(text: &str) -> Content {
    let value = |key: &str| text.lines().find_map(|l| l.strip_prefix(key)).filter(|v| !v.is_empty());
    match (value("TYPE="), value("PTTYPE=")) {
        (_, Some(_)) => Content::Other,
        (Some(kind), None) => Content::FileSystem(kind.to_owned()),
        (None, None) => Content::Nothing,
    }
}

/// Unmounts the devices of a pod that no other pod uses.
///
/// # Errors
/// One cannot be unmounted; the pod's record of it stays.
pub fn release(pod_dir: &Path) -> io::Result<()> {
    let own = claims::load(pod_dir);
    let is_local = |c: &Claimed| c.volume.spec.as_ref().is_some_and(|s| s.local.is_some());
    for claimed in own.values().filter(|c| is_local(c)) {
        let _turn = TURN.lock();
        let at = data_dir(pod_dir).join(MOUNTS).join(claimed.name());
        if at.exists() && !others_use(pod_dir, claimed.name()) {
            mountinfo::unmount_all(&at)?;
            // Never recursively: what was mounted there is somebody's data.
            fs::remove_dir(&at)?;
        }
    }
    Ok(())
}

fn others_use(pod_dir: &Path, volume: &str) -> bool {
    let pods = pod_dir.parent().map(fs::read_dir).and_then(Result::ok).into_iter().flatten().flatten();
    let mut others = pods.map(|entry| entry.path()).filter(|path| path != pod_dir);
    others.any(|path| claims::load(&path).values().any(|c| c.name() == volume))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_a_device() {
        assert_eq!(found("DEVNAME=/dev/loop0\nTYPE=ext4\n"), Content::FileSystem("ext4".into()));
        assert_eq!(found("DEVNAME=/dev/loop0\nPTTYPE=gpt\n"), Content::Other);
        assert_eq!(found("DEVNAME=/dev/loop0\n"), Content::Nothing);
    }

    #[test]
    fn a_volume_that_another_pod_has_stays() {
        let dir = tempfile::tempdir().unwrap();
        let pods = [dir.path().join("pods/a"), dir.path().join("pods/b")];
        let at = dir.path().join(MOUNTS).join("v");
        fs::create_dir_all(&at).unwrap();
        let volume = serde_json::json!({"metadata": {"name": "v"}, "spec": {"local": {"path": "/dev/x"}}});
        let claimed = Claimed { volume: serde_json::from_value(volume).unwrap(), read_only: false };
        for pod in &pods {
            claims::save(pod, &claims::Known::from([("d".to_owned(), claimed.clone())])).unwrap();
        }
        release(&pods[0]).unwrap();
        assert!(at.exists());
        fs::remove_file(pods[0].join("claims.json")).unwrap();
        release(&pods[1]).unwrap();
        assert!(!at.exists());
        release(&pods[1]).unwrap();
    }
}
