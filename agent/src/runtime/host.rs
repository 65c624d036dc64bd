//! What the agent reads of the host for its containers.

use super::layout::io_error;
use super::spec::HostDevice;
use super::{DeviceNode, RuntimeError};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The agent's bounding set: capabilities outside of it cannot be given to a container. 0 when it cannot be read.
pub(super) fn bounding_set() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapBnd:"))
        .and_then(|text| u64::from_str_radix(text.trim(), 16).ok())
        .unwrap_or(0)
}

/// Whether the kernel accounts for swap by control groups of version 2: the agent's own cgroup then has the limit's file.
pub fn accounts_for_swap() -> bool {
    if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        return false;
    }
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
    own.is_some_and(|own| Path::new("/sys/fs/cgroup").join(own).join("memory.swap.max").exists())
}

/// Device nodes of the host but for those that every container has, and terminals.
pub(super) fn devices() -> Vec<HostDevice> {
    let mut found = Vec::new();
    collect(Path::new("/dev"), &mut found);
    found
}

fn collect(dir: &Path, found: &mut Vec<HostDevice>) {
    const OWN: [&str; 11] =
        ["pts", "shm", "fd", "mqueue", "console", "null", "zero", "full", "random", "urandom", "tty"];
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if dir == Path::new("/dev") && (OWN.iter().any(|own| name == *own) || name == "ptmx") {
            continue;
        }
        let Ok(metadata) = entry.metadata() else { continue };
        let kind = metadata.file_type();
        if kind.is_dir() {
            collect(&entry.path(), found);
        } else if kind.is_char_device() || kind.is_block_device() {
            found.push(described(&metadata, entry.path()));
        }
    }
}

/// A device node as a container is to have it at `path`.
fn described(metadata: &fs::Metadata, path: PathBuf) -> HostDevice {
    HostDevice {
        path,
        block: metadata.file_type().is_block_device(),
        major: i64::from(libc::major(metadata.rdev())),
        minor: i64::from(libc::minor(metadata.rdev())),
        mode: metadata.permissions().mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        read_only: false,
    }
}

/// A device that a container asks for.
pub(super) fn device(asked: &DeviceNode) -> Result<HostDevice, RuntimeError> {
    let metadata = fs::metadata(&asked.source).map_err(|e| io_error("use the device", &asked.source, e))?;
    let kind = metadata.file_type();
    if !kind.is_char_device() && !kind.is_block_device() {
        return Err(io_error("use the device", &asked.source, std::io::ErrorKind::InvalidInput.into()));
    }
    let found = described(&metadata, asked.destination.clone());
    Ok(HostDevice { read_only: asked.read_only, ..found })
}
