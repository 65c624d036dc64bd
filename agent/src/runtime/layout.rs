//! Files of sandboxes and containers, and reading and writing them.
//!
//! ```text
//! <run>/pods/<sandbox>/              see kelp_runtime_protocol::files
//! <run>/pods/<sandbox>/c/<container> bundle: record.json (ours), config.json, rootfs, exit.json
//! <data>/containers/<sandbox>/<container>/{u,w}   upper and work directory of the root filesystem
//! ```

use super::RuntimeError;
use kelp_runtime_protocol::files;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What is kept of a container: enough to list it and to remove it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub id: String,
    pub name: String,
    pub attempt: u32,
    pub image_id: String,
    pub image_ref: String,
    pub oom_score_adj: Option<i32>,
    pub log_path: PathBuf,
    /// When it was made, ms since the Unix epoch: orders containers.
    pub created_at: i64,
}

/// Paths.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pods: PathBuf,
    containers: PathBuf,
}

impl Layout {
    pub(super) fn new(run_dir: &Path, data_dir: &Path) -> Result<Self, RuntimeError> {
        let layout = Self { pods: run_dir.join("pods"), containers: data_dir.join("containers") };
        for dir in [&layout.pods, &layout.containers] {
            fs::create_dir_all(dir).map_err(|e| io_error("create", dir, e))?;
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o711);
            fs::set_permissions(dir, mode).map_err(|e| io_error("set the mode of", dir, e))?;
        }
        let canonical = |dir: &Path| dir.canonicalize().map_err(|e| io_error("resolve", dir, e));
        Ok(Self { pods: canonical(&layout.pods)?, containers: canonical(&layout.containers)? })
    }

    pub(super) fn sandbox(&self, sandbox: &str) -> PathBuf {
        self.pods.join(sandbox)
    }

    pub(super) fn sandbox_file(&self, sandbox: &str, file: &str) -> PathBuf {
        self.sandbox(sandbox).join(file)
    }

    pub(super) fn bundle(&self, sandbox: &str, container: &str) -> PathBuf {
        self.sandbox_file(sandbox, files::CONTAINERS).join(container)
    }

    pub(super) fn record(&self, sandbox: &str, container: &str) -> PathBuf {
        self.bundle(sandbox, container).join("record.json")
    }

    pub(super) fn sandbox_data(&self, sandbox: &str) -> PathBuf {
        self.containers.join(sandbox)
    }

    /// Where the files of a pod are that the pod's worker keeps.
    pub(super) fn pod_files(&self, sandbox: &str) -> PathBuf {
        self.containers.with_file_name("pods").join(sandbox)
    }

    pub(super) fn container_data(&self, sandbox: &str, container: &str) -> PathBuf {
        self.sandbox_data(sandbox).join(container)
    }

    /// Ids of everything that has a run directory.
    pub(super) fn sandboxes(&self) -> Result<Vec<String>, RuntimeError> {
        names(&self.pods)
    }

    /// Ids of everything that has a data directory.
    pub(super) fn sandboxes_with_data(&self) -> Result<Vec<String>, RuntimeError> {
        names(&self.containers)
    }

    /// Records of a sandbox's containers, oldest first.
    pub(super) fn records(&self, sandbox: &str) -> Result<Vec<Record>, RuntimeError> {
        let mut records = Vec::new();
        for container in names(&self.sandbox_file(sandbox, files::CONTAINERS))? {
            // A bundle without a record was cut off while it was made or removed.
            records.extend(read::<Record>(&self.record(sandbox, &container))?);
        }
        records.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        Ok(records)
    }
}

/// Ids become file names, cgroup names and libcontainer ids.
pub(super) fn check_id(kind: &'static str, id: &str) -> Result<(), RuntimeError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if !id.is_empty() && id.len() <= 128 && !id.starts_with('.') && id.bytes().all(plain) {
        return Ok(());
    }
    Err(RuntimeError::Io {
        action: format!("{kind} id {id:?} must be letters, digits, '-', '_' and '.'"),
        source: io::ErrorKind::InvalidInput.into(),
    })
}

pub(super) fn io_error(action: &str, path: &Path, source: io::Error) -> RuntimeError {
    RuntimeError::Io { action: format!("cannot {action} {}: {source}", path.display()), source }
}

fn names(dir: &Path) -> Result<Vec<String>, RuntimeError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(io_error("read", dir, e)),
    };
    let mut names: Vec<String> = entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

/// `None` when the file is not there or not (any more) what it should be.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, RuntimeError> {
    match fs::read(path) {
        Ok(text) => Ok(serde_json::from_slice(&text).ok()),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(io_error("read", path, e)),
    }
}

/// Written beside and renamed: a reader sees the old or the new content.
pub(super) fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), RuntimeError> {
    let partial = path.with_extension("new");
    serde_json::to_vec(value)
        .map_err(io::Error::from)
        .and_then(|text| fs::write(&partial, text))
        .and_then(|()| fs::rename(&partial, path))
        .map_err(|e| io_error("write", path, e))
}

pub(super) fn make_dir(path: &Path) -> Result<(), RuntimeError> {
    fs::create_dir_all(path).map_err(|e| io_error("create", path, e))
}

/// Removes a file or a directory with all in it. Fine when there is nothing.
pub(super) fn remove(path: &Path) -> Result<(), RuntimeError> {
    let result = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match result {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path, e)),
        _ => Ok(()),
    }
}

/// Removes a directory, `last` in it at the end: as long as anything is left, `last` says so.
pub(super) fn remove_keeping(dir: &Path, last: &str) -> Result<(), RuntimeError> {
    for name in names(dir)?.iter().filter(|name| *name != last) {
        remove(&dir.join(name))?;
    }
    remove(&dir.join(last))?;
    remove(dir)
}
