//! Taking a sandbox down: every process, mount, cgroup, pin, namespace and file of it.

use super::layout::{Layout, cgroup_mounts, cgroup2_mount};
use super::{hosts, up};
use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const KILL_TIMEOUT: Duration = Duration::from_secs(20);

/// Removes a sandbox; does nothing when there is none. Works whatever state a failed `up` left behind.
///
/// # Errors
/// Something of it could not be removed; running it again goes on.
pub fn down(layout: &Layout) -> Result<()> {
    for node in layout.nodes()? {
        up::stop_supervisor(&node)?;
    }
    kill_cgroup(&cgroup2_mount().join(layout.cgroup()))?;
    // An absent directory is already unpinned: programs and maps go with their last reference.
    remove_dir(&layout.bpf_dir())?;
    unmount_below(&layout.dir())?;
    hosts::remove_namespaces(layout)?;
    for mount in cgroup_mounts() {
        remove_cgroups(&mount.join(layout.cgroup()))?;
    }
    for node in layout.nodes()? {
        unmount_below(&node.run_dir())?;
        remove_dir(&node.run_dir())?;
    }
    remove_dir(&layout.dir())?;
    for parent in ["/sys/fs/bpf/kelp-sandbox", "/run/kelp-sandbox"].map(PathBuf::from) {
        remove_if_empty(&parent)?;
    }
    for mount in cgroup_mounts() {
        remove_shared_cgroup(&mount.join("kelp-sandbox"))?;
    }
    Ok(())
}

/// Kills every process in a cgroup v2 subtree and waits until it is empty.
fn kill_cgroup(cgroup: &Path) -> Result<()> {
    if !cgroup.exists() {
        return Ok(());
    }
    let deadline = Instant::now() + KILL_TIMEOUT;
    // cgroup.kill (Linux 5.14) is atomic; before it, processes are killed one by one until none is left.
    let at_once = std::fs::write(cgroup.join("cgroup.kill"), "1").is_ok();
    let (_keep, pause) = std::sync::mpsc::channel::<()>();
    loop {
        let pids = processes(cgroup)?;
        if pids.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("processes {pids:?} in {} do not die; look at them with ps", cgroup.display());
        }
        if !at_once {
            for pid in pids {
                // Gone already is what we want.
                let _ = kill(pid, Signal::SIGKILL);
            }
        }
        let _ = pause.recv_timeout(Duration::from_millis(10));
    }
}

fn processes(cgroup: &Path) -> Result<Vec<Pid>> {
    let mut pids = Vec::new();
    for dir in directories(cgroup)? {
        match std::fs::read_to_string(dir.join("cgroup.procs")) {
            Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse().ok()).map(Pid::from_raw)),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                return Err(error).with_context(|| format!("read the processes of {}", dir.display()));
            }
        }
    }
    Ok(pids)
}

/// A directory and all below it, parents first.
fn directories(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("read {}", dir.display())),
        };
        pending
            .extend(entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()));
        found.push(dir);
    }
    Ok(found)
}

fn remove_cgroups(root: &Path) -> Result<()> {
    for dir in directories(root)?.into_iter().rev() {
        remove_if_empty(&dir)?;
    }
    Ok(())
}

fn remove_if_empty(dir: &Path) -> Result<()> {
    let deadline = Instant::now() + KILL_TIMEOUT;
    let (_keep, pause) = std::sync::mpsc::channel::<()>();
    loop {
        match std::fs::remove_dir(dir) {
            // A cgroup stays busy until its last killed process is reaped.
            Err(error) if error.kind() == ErrorKind::ResourceBusy && Instant::now() < deadline => {
                let _ = pause.recv_timeout(Duration::from_millis(10));
            }
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => {
                return Ok(());
            }
            result => return result.with_context(|| format!("remove {}", dir.display())),
        }
    }
}

/// Removes the parent cgroup of all sandboxes, unless one is left.
fn remove_shared_cgroup(dir: &Path) -> Result<()> {
    if directories(dir)?.len() > 1 { Ok(()) } else { remove_if_empty(dir) }
}

fn remove_dir(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// Unmounts everything below a directory, innermost first.
fn unmount_below(dir: &Path) -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    for point in mounts.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
        // mountinfo writes space, tab, newline and backslash as octal escapes (proc(5)).
        let point =
            point.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\");
        if Path::new(&point).starts_with(dir) {
            umount2(point.as_str(), MntFlags::MNT_DETACH).with_context(|| format!("unmount {point}"))?;
        }
    }
    Ok(())
}
