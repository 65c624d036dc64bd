//! What exists on this machine that a cluster could leave behind.

use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use xtask::command::{command, output};

/// Network namespaces, mounts, links, cgroups, BPF programs, pins and processes at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    facts: BTreeSet<String>,
}

impl Snapshot {
    /// Looks around.
    ///
    /// # Errors
    /// bpftool or ip failed.
    pub fn take() -> Result<Self> {
        let mut facts = BTreeSet::new();
        for name in names("/run/netns") {
            facts.insert(format!("network namespace {name}"));
        }
        let links = output(&mut command("ip", &["-brief", "link"]))?;
        facts.extend(links.lines().filter_map(|l| l.split_whitespace().next()).map(|l| format!("link {l}")));
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("read the mounts")?;
        facts.extend(mounts.lines().filter_map(|l| l.split(' ').nth(4)).map(|m| format!("mount {m}")));
        let programs = output(&mut command("bpftool", &["prog", "list", "--json"]))?;
        let programs: serde_json::Value = serde_json::from_str(&programs).unwrap_or_default();
        for program in programs.as_array().into_iter().flatten() {
            facts.insert(format!("BPF program {} {}", program["id"], program["name"]));
        }
        for root in ["/sys/fs/bpf", "/sys/fs/cgroup", "/run/kelp-sandbox"] {
            for dir in directories(Path::new(root)) {
                facts.insert(format!("directory {}", dir.display()));
            }
        }
        for pid in names("/proc").iter().filter(|name| name.parse::<u32>().is_ok()) {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            // A dead process that init has not reaped yet holds nothing but its PID.
            if status.contains("State:\tZ") {
                continue;
            }
            if name.starts_with("kelp") || name.starts_with("hello") {
                facts.insert(format!("process {pid} {}", name.trim()));
            }
        }
        Ok(Self { facts })
    }

    /// What is here and was not in `before`.
    pub fn added_since(&self, before: &Snapshot) -> Vec<String> {
        self.facts.difference(&before.facts).cloned().collect()
    }
}

fn names(dir: &str) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn directories(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        let entries = std::fs::read_dir(&dir).into_iter().flatten().flatten();
        let dirs = entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path());
        pending.extend(dirs.inspect(|dir| found.push(dir.clone())));
    }
    found
}
