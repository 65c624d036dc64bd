//! What the host is: CPUs, memory, disk, identity, versions.

use nix::sys::statvfs::statvfs;
use std::fs;
use std::path::Path;

/// Devices of a kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Devices {
    /// The resource that they are offered as.
    pub resource: String,
    /// All of them.
    pub capacity: u64,
    /// Those that are healthy.
    pub allocatable: u64,
}

/// Facts about the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Logical CPUs online.
    pub cpus: u64,
    /// Memory, KiB.
    pub memory_kib: u64,
    /// Swap, KiB.
    pub swap_kib: u64,
    /// Size of the file system of the data directory, KiB.
    pub disk_kib: u64,
    /// Huge pages: size as in the API (`2Mi`), bytes reserved.
    pub huge_pages: Vec<(String, u64)>,
    /// /etc/machine-id.
    pub machine_id: String,
    /// Firmware's UUID.
    pub system_uuid: String,
    /// Id of this boot.
    pub boot_id: String,
    /// Devices of plugins.
    pub devices: Vec<Devices>,
    /// `uname -r`.
    pub kernel: String,
    /// PRETTY_NAME of os-release.
    pub os_image: String,
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn meminfo(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
    line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Reads the facts; what cannot be read is zero or empty.
pub fn read_facts(data_dir: &Path) -> Facts {
    let memory = read("/proc/meminfo");
    let disk = statvfs(data_dir).ok();
    let blocks = disk.map_or(0, |d| d.blocks() * d.fragment_size() / 1024);
    let mut huge_pages: Vec<(String, u64)> = Vec::new();
    for entry in fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let size = name.strip_prefix("hugepages-").and_then(|n| n.strip_suffix("kB")?.parse::<u64>().ok());
        let Some(kib) = size else { continue };
        let count: u64 = fs::read_to_string(entry.path().join("nr_hugepages"))
            .ok()
            .and_then(|t| t.trim().parse().ok())
            .unwrap_or(0);
        let text = if kib >= 1 << 20 { format!("{}Gi", kib >> 20) } else { format!("{}Mi", kib >> 10) };
        huge_pages.push((text, count * kib * 1024));
    }
    huge_pages.sort();
    let cpus = nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN).ok().flatten();
    let release = read("/etc/os-release");
    let pretty = release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME=")).unwrap_or("Linux");
    let uname = nix::sys::utsname::uname().ok();
    Facts {
        cpus: cpus.and_then(|n| u64::try_from(n).ok()).unwrap_or(1),
        memory_kib: meminfo(&memory, "MemTotal"),
        swap_kib: meminfo(&memory, "SwapTotal"),
        disk_kib: blocks,
        devices: Vec::new(),
        huge_pages,
        machine_id: read("/etc/machine-id"),
        system_uuid: read("/sys/class/dmi/id/product_uuid"),
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        kernel: uname.map(|u| u.release().to_string_lossy().into_owned()).unwrap_or_default(),
        os_image: pretty.trim_matches('"').to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host() {
        let facts = read_facts(Path::new("/"));
        assert!(facts.cpus > 0 && facts.memory_kib > 0 && facts.disk_kib > 0, "{facts:?}");
        assert!(!facts.kernel.is_empty() && !facts.boot_id.is_empty());
    }
}
