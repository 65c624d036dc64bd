//! A node as its host sees it: processes of pods, found by the pod's uid.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};

/// Where a node keeps what a test looks for.
#[derive(Debug, Clone)]
pub struct NodeFacts {
    /// Name of the Node.
    pub name: String,
    /// Its directory of sockets.
    pub run_dir: PathBuf,
    /// Its cgroup, relative to a hierarchy.
    pub cgroup: PathBuf,
}

impl NodeFacts {
    /// Kills the first process of a pod's container.
    ///
    /// # Errors
    /// There is none.
    pub fn kill_main(&self, uid: &str, container: &str) -> Result<()> {
        let mounts = xtask::sandbox::cgroup_mounts();
        let roots = mounts.iter().map(|m| m.join(&self.cgroup)).filter(|d| d.is_dir());
        let mut pids: Vec<i32> = Vec::new();
        for dir in roots.flat_map(|r: PathBuf| below(&r)) {
            let path = dir.to_string_lossy();
            let leaf = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            if path.contains(uid) && leaf.starts_with(&format!("{container}.")) {
                let procs = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
                pids.extend(procs.lines().filter_map(|l| l.parse::<i32>().ok()));
            }
        }
        let pid = pids.into_iter().min().context("the container has no process")?;
        kill(Pid::from_raw(pid), Signal::SIGKILL).context("kill the container's process")
    }

    /// Kills the process that holds a pod's sandbox.
    ///
    /// # Errors
    /// There is none.
    pub fn kill_sandbox(&self, uid: &str) -> Result<()> {
        ensure!(!uid.is_empty(), "the pod has no uid");
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
            let comm = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if comm.starts_with("kelp-shim") && String::from_utf8_lossy(&line).contains(uid) {
                return kill(Pid::from_raw(pid), Signal::SIGKILL).context("kill the shim");
            }
        }
        anyhow::bail!("the sandbox has no process")
    }
}

fn below(root: &Path) -> Vec<PathBuf> {
    let mut found = vec![root.to_owned()];
    let mut at = 0;
    while let Some(dir) = found.get(at).cloned() {
        let entries = std::fs::read_dir(&dir).into_iter().flatten().flatten();
        found.extend(entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()));
        at += 1;
    }
    found
}
