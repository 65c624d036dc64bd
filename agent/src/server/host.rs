//! What the node as a whole uses, from /proc.

use crate::runtime::usage::{Device, devices};
use nix::sys::statvfs::statvfs;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Use of the node at one moment.
#[derive(Debug, Clone, Default)]
pub struct NodeUsage {
    /// When it was read.
    pub time: jiff::Timestamp,
    /// When the node was started.
    pub started: jiff::Timestamp,
    /// CPU time of all processes, ns.
    pub cpu_ns: u64,
    /// Memory there is, bytes.
    pub memory_total: u64,
    /// Memory in use, pages of files included.
    pub memory: u64,
    /// Without inactive pages of files.
    pub working_set: u64,
    /// Anonymous memory.
    pub rss: u64,
    /// Page faults, and those that had to wait for a disk.
    pub faults: (u64, u64),
    /// Swap in use and free, bytes.
    pub swap: (u64, u64),
    /// Most processes and threads that there can be, and those there are.
    pub pids: (u64, u64),
    /// Logical CPUs.
    pub cpus: u64,
    /// Devices of the host without the loopback.
    pub devices: Vec<Device>,
    /// Name of the device with the default route.
    pub uplink: String,
}

fn field(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|l| l.strip_prefix(key));
    line.and_then(|l| l.trim_start_matches(':').split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Ticks of /proc/stat are hundredths of a second (`USER_HZ`).
const TICK_NS: u64 = 10_000_000;

/// Reads it all; what cannot be read is zero.
pub fn usage() -> NodeUsage {
    let time = jiff::Timestamp::now();
    let stat = read("/proc/stat");
    let memory = read("/proc/meminfo");
    let vm = read("/proc/vmstat");
    let kib = |key: &str| field(&memory, key).saturating_mul(1024);
    let ticks: Vec<u64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|v| v.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal
    let busy: u64 = [0, 1, 2, 5, 6, 7].iter().filter_map(|i| ticks.get(*i)).sum();
    let used = kib("MemTotal").saturating_sub(kib("MemFree"));
    let boot = i64::try_from(field(&stat, "btime ")).unwrap_or(0);
    let routes = read("/proc/net/route");
    let default = |l: &&str| l.split_whitespace().nth(1) == Some("00000000");
    let uplink = routes.lines().skip(1).find(default).and_then(|l| l.split_whitespace().next());
    let tasks = read("/proc/loadavg");
    let tasks = tasks.split_whitespace().nth(3).and_then(|t| t.split_once('/')?.1.parse().ok());
    NodeUsage {
        time,
        started: jiff::Timestamp::from_second(boot).unwrap_or_default(),
        cpu_ns: busy.saturating_mul(TICK_NS),
        memory_total: kib("MemTotal"),
        memory: used,
        working_set: used.saturating_sub(kib("Inactive(file)")),
        rss: kib("AnonPages"),
        faults: (field(&vm, "pgfault "), field(&vm, "pgmajfault ")),
        swap: (kib("SwapTotal").saturating_sub(kib("SwapFree")), kib("SwapFree")),
        pids: (read("/proc/sys/kernel/pid_max").trim().parse().unwrap_or(0), tasks.unwrap_or(0)),
        cpus: stat.lines().filter(|l| l.starts_with("cpu") && !l.starts_with("cpu ")).count() as u64,
        devices: devices(Path::new("/proc/net/dev")),
        uplink: uplink.unwrap_or_default().to_owned(),
    }
}

/// When this process was started.
pub fn process_started() -> jiff::Timestamp {
    let modified = fs::metadata("/proc/self").and_then(|m| m.modified()).ok();
    modified.and_then(|time| jiff::Timestamp::try_from(time).ok()).unwrap_or_default()
}

/// Space and inodes of a file system as the summary tells them; `used` overrides what of it is in use.
pub fn file_system(path: &Path, time: jiff::Timestamp, used: Option<(u64, u64)>) -> Value {
    let Ok(stat) = statvfs(path) else { return json!({"time": at(time)}) };
    let size = |blocks: u64| blocks.saturating_mul(stat.fragment_size());
    let (bytes, inodes) = used.unwrap_or((
        size(stat.blocks()).saturating_sub(size(stat.blocks_free())),
        stat.files().saturating_sub(stat.files_free()),
    ));
    json!({
        "time": at(time),
        "availableBytes": size(stat.blocks_available()),
        "capacityBytes": size(stat.blocks()),
        "usedBytes": bytes,
        "inodesFree": stat.files_free(),
        "inodes": stat.files(),
        "inodesUsed": inodes,
    })
}

/// A time as the API writes it.
pub fn at(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Directory entries that are looked at: a tree of more is told as what was seen of it.
const MAX_ENTRIES: u64 = 200_000;

/// Bytes and inodes of a tree.
pub fn disk_use(path: &Path) -> (u64, u64) {
    let (mut bytes, mut inodes) = (0u64, 0u64);
    let mut left = vec![PathBuf::from(path)];
    while let Some(next) = left.pop() {
        let Ok(metadata) = fs::symlink_metadata(&next) else { continue };
        bytes = bytes.saturating_add(metadata.blocks().saturating_mul(512));
        inodes += 1;
        if inodes >= MAX_ENTRIES {
            break;
        }
        if metadata.is_dir() {
            left.extend(fs::read_dir(&next).into_iter().flatten().flatten().map(|e| e.path()));
        }
    }
    (bytes, inodes)
}

/// Pressure stall information of a file in its format (psi.rst of the kernel); zero when there is none.
pub fn pressure(path: &Path) -> Value {
    pressure_of(&fs::read_to_string(path).unwrap_or_default())
}

/// The same of a file's text.
pub fn pressure_of(text: &str) -> Value {
    let line = |kind: &str| {
        let fields = text.lines().find_map(|l| l.strip_prefix(kind)).unwrap_or_default();
        let number = |key: &str| -> f64 {
            let value = fields.split_whitespace().find_map(|f| f.strip_prefix(key)?.strip_prefix('='));
            value.and_then(|v| v.parse().ok()).unwrap_or(0.0)
        };
        let total = fields.split_whitespace().find_map(|f| f.strip_prefix("total=")?.parse::<u64>().ok());
        // Go writes whole numbers without a fraction.
        let average = |key: &str| {
            let value = number(key);
            if value.fract() == 0.0 { json!(value as i64) } else { json!(value) }
        };
        json!({
            "total": total.unwrap_or(0).saturating_mul(1000),
            "avg10": average("avg10"),
            "avg60": average("avg60"),
            "avg300": average("avg300"),
        })
    };
    json!({"full": line("full"), "some": line("some")})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_is_in_use() {
        let usage = usage();
        assert!(usage.cpu_ns > 0 && usage.cpus > 0 && usage.memory_total > usage.working_set);
        assert!(usage.working_set > 0 && usage.started < usage.time && usage.pids.0 > usage.pids.1);
        assert!(field("MemTotal:  12 kB\nMemTotalX: 3", "MemTotal") == 12);
    }

    #[test]
    fn trees_are_measured() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(dir.path().join("d/f"), vec![1; 10_000]).unwrap();
        let (bytes, inodes) = disk_use(dir.path());
        assert!(bytes >= 10_000, "{bytes}");
        assert_eq!(inodes, 3);
        assert_eq!(disk_use(&dir.path().join("none")), (0, 0));
    }

    #[test]
    fn pressure_is_parsed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "some avg10=1.50 avg60=2.00 avg300=0.00 total=7\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=3\n").unwrap();
        let found = pressure(file.path());
        assert_eq!(found["some"], json!({"total": 7000, "avg10": 1.5, "avg60": 2, "avg300": 0}));
        assert_eq!(pressure(Path::new("/none"))["full"]["total"], 0);
    }
}
