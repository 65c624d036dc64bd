//! What containers and pods use, read from their cgroups' files: v1 and v2 use other names and units.

use super::cgroup::Cgroups;
use std::fs;
use std::path::{Path, PathBuf};

/// Use of a cgroup at one moment. What a hierarchy does not tell is zero or `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// When it was read.
    pub time: jiff::Timestamp,
    /// CPU time, ns.
    pub cpu_ns: u64,
    /// Part of it in user mode, ns.
    pub cpu_user_ns: u64,
    /// Part of it in the kernel, ns.
    pub cpu_system_ns: u64,
    /// Periods of the CPU limit, those in which it was reached, and the time lost, ns.
    pub throttled: (u64, u64, u64),
    /// Memory charged, bytes.
    pub memory: u64,
    /// Without what can be dropped at once: inactive pages of files. What the kubelet compares with limits.
    pub working_set: u64,
    /// Anonymous memory, bytes.
    pub rss: u64,
    /// Pages of files, bytes.
    pub cache: u64,
    /// Files that are mapped, bytes.
    pub mapped_file: u64,
    /// Pages of files by activity, bytes: active, inactive.
    pub file: (u64, u64),
    /// Most memory that was ever charged, bytes.
    pub memory_max: u64,
    /// Times the limit was hit.
    pub memory_failures: u64,
    /// Limit, bytes.
    pub memory_limit: Option<u64>,
    /// Page faults, and those that had to wait for a disk.
    pub faults: (u64, u64),
    /// Swap used, bytes.
    pub swap: u64,
    /// Processes that the OOM killer ended.
    pub oom_kills: u64,
    /// Processes.
    pub processes: u64,
    /// Bytes read from and written to disks.
    pub io: (u64, u64),
    /// Weight, quota and period of the CPU, in v1's units.
    pub cpu_limits: (u64, Option<u64>, u64),
    /// Memory that the kernel holds for it, bytes.
    pub kernel: u64,
    /// Memory that is left to it as long as there is some, bytes.
    pub memory_reserved: u64,
    /// Limit of memory and swap together (v1) or of swap (v2), bytes.
    pub swap_limit: Option<u64>,
    /// Processes and threads, and how many there may be.
    pub threads: (u64, Option<u64>),
    /// Use of each disk.
    pub disks: Vec<Disk>,
    /// Its processes themselves, without those of cgroups below.
    pub pids: Vec<i32>,
    /// Time that was lost by waiting for a resource, by its name (`cpu`, `memory`, `io`): the text of the kernel's pressure
    /// files. Only v2 tells.
    pub pressure: [String; 3],
}

/// Use of a disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Disk {
    /// Major and minor number, `8:0`.
    pub device: String,
    /// Bytes read and written.
    pub bytes: (u64, u64),
    /// Requests to read and to write.
    pub requests: (u64, u64),
}

/// Traffic of a network device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Device {
    /// Name.
    pub name: String,
    /// Bytes, packets, errors and drops received.
    pub received: [u64; 4],
    /// Bytes, packets, errors and drops sent.
    pub sent: [u64; 4],
}

/// Use of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerUsage {
    /// `<name>.<attempt>`.
    pub id: String,
    /// Its cgroup, relative to a hierarchy.
    pub cgroup: PathBuf,
    /// What it uses.
    pub usage: Usage,
    /// Directory of what it has written to its root filesystem.
    pub writable: PathBuf,
}

/// Use of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodUsage {
    /// Its cgroup, relative to a hierarchy.
    pub cgroup: PathBuf,
    /// What its cgroup uses.
    pub usage: Usage,
    /// Its containers that have a cgroup.
    pub containers: Vec<ContainerUsage>,
    /// Devices of its network namespace without the loopback; empty on the host's network.
    pub devices: Vec<Device>,
}

/// A file of `key value` lines, or of one value.
struct Keyed(String);

impl Keyed {
    fn of(path: &Path) -> Self {
        Self(fs::read_to_string(path).unwrap_or_default())
    }

    fn get(&self, key: &str) -> u64 {
        let line = self.0.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' '));
        line.and_then(|v| v.trim().parse().ok()).unwrap_or(0)
    }

    fn value(&self) -> Option<u64> {
        self.0.trim().parse().ok()
    }

    fn numbers(&self) -> Vec<i32> {
        self.0.lines().filter_map(|l| l.trim().parse().ok()).collect()
    }
}

fn number(path: &Path) -> u64 {
    Keyed::of(path).value().unwrap_or(0)
}

/// v1's limit that stands for none.
const UNLIMITED: u64 = 1 << 62;

/// Reads a cgroup; `None` when it does not exist.
pub(super) fn read(cgroups: &Cgroups, path: &Path) -> Option<Usage> {
    let time = jiff::Timestamp::now();
    match cgroups.unified_dir(path) {
        Some(dir) => unified(&dir, time),
        None => version1(|controller| cgroups.v1_dir(controller, path), time),
    }
}

fn unified(dir: &Path, time: jiff::Timestamp) -> Option<Usage> {
    if !dir.exists() {
        return None;
    }
    let cpu = Keyed::of(&dir.join("cpu.stat"));
    let memory = Keyed::of(&dir.join("memory.stat"));
    let events = Keyed::of(&dir.join("memory.events"));
    let charged = number(&dir.join("memory.current"));
    let inactive = memory.get("inactive_file");
    let max = fs::read_to_string(dir.join("cpu.max")).unwrap_or_default();
    let mut max = max.split_whitespace().map(|v| v.parse().ok());
    let quota = max.next().flatten();
    let weight = number(&dir.join("cpu.weight"));
    let microseconds = |key| cpu.get(key).saturating_mul(1000);
    let io = fs::read_to_string(dir.join("io.stat")).unwrap_or_default();
    let disks: Vec<Disk> = io.lines().filter_map(unified_disk).collect();
    let pids = Keyed::of(&dir.join("cgroup.procs")).numbers();
    let pressure = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
    Some(Usage {
        time,
        cpu_ns: microseconds("usage_usec"),
        cpu_user_ns: microseconds("user_usec"),
        cpu_system_ns: microseconds("system_usec"),
        throttled: (cpu.get("nr_periods"), cpu.get("nr_throttled"), microseconds("throttled_usec")),
        memory: charged,
        working_set: charged.saturating_sub(inactive),
        rss: memory.get("anon"),
        cache: memory.get("file"),
        mapped_file: memory.get("file_mapped"),
        file: (memory.get("active_file"), inactive),
        memory_max: number(&dir.join("memory.peak")),
        memory_failures: events.get("max"),
        memory_limit: Keyed::of(&dir.join("memory.max")).value(),
        faults: (memory.get("pgfault"), memory.get("pgmajfault")),
        swap: number(&dir.join("memory.swap.current")),
        oom_kills: events.get("oom_kill"),
        processes: pids.len() as u64,
        io: total(&disks),
        kernel: memory.get("kernel"),
        memory_reserved: number(&dir.join("memory.low")),
        swap_limit: Keyed::of(&dir.join("memory.swap.max")).value(),
        threads: (number(&dir.join("pids.current")), Keyed::of(&dir.join("pids.max")).value()),
        disks,
        pids,
        pressure: [pressure("cpu.pressure"), pressure("memory.pressure"), pressure("io.pressure")],
        // The inverse of the kubelet's conversion to weights (KEP-2254).
        cpu_limits: (
            2 + weight.saturating_sub(1).saturating_mul(262_142) / 9_999,
            quota,
            max.next().flatten().unwrap_or(100_000),
        ),
    })
}

fn version1(dir_of: impl Fn(&str) -> Option<PathBuf>, time: jiff::Timestamp) -> Option<Usage> {
    let cpu = dir_of("cpuacct");
    let memory = dir_of("memory");
    if !cpu.iter().chain(&memory).any(|dir| dir.exists()) {
        return None;
    }
    let file = |dir: &Option<PathBuf>, name: &str| dir.as_ref().map(|d| d.join(name)).unwrap_or_default();
    let limits = dir_of("cpu");
    let stat = Keyed::of(&file(&memory, "memory.stat"));
    let oom = Keyed::of(&file(&memory, "memory.oom_control"));
    let throttled = Keyed::of(&file(&limits, "cpu.stat"));
    let charged = number(&file(&memory, "memory.usage_in_bytes"));
    let inactive = stat.get("total_inactive_file");
    let both = number(&file(&memory, "memory.memsw.usage_in_bytes"));
    let blkio = dir_of("blkio");
    let read = |name| fs::read_to_string(file(&blkio, name)).unwrap_or_default();
    let disks = version1_disks(
        &read("blkio.throttle.io_service_bytes_recursive"),
        &read("blkio.throttle.io_serviced_recursive"),
    );
    let number_or_none = |path: PathBuf| Some(number(&path)).filter(|n| *n > 0 && *n < UNLIMITED);
    let pids = dir_of("pids");
    let threads = (number(&file(&pids, "pids.current")), Keyed::of(&file(&pids, "pids.max")).value());
    let pids = Keyed::of(&file(&pids.or(cpu.clone()), "cgroup.procs")).numbers();
    Some(Usage {
        time,
        cpu_ns: number(&file(&cpu, "cpuacct.usage")),
        cpu_user_ns: number(&file(&cpu, "cpuacct.usage_user")),
        cpu_system_ns: number(&file(&cpu, "cpuacct.usage_sys")),
        throttled: (
            throttled.get("nr_periods"),
            throttled.get("nr_throttled"),
            throttled.get("throttled_time"),
        ),
        memory: charged,
        working_set: charged.saturating_sub(inactive),
        rss: stat.get("total_rss"),
        cache: stat.get("total_cache"),
        mapped_file: stat.get("total_mapped_file"),
        file: (stat.get("total_active_file"), inactive),
        memory_max: number(&file(&memory, "memory.max_usage_in_bytes")),
        memory_failures: number(&file(&memory, "memory.failcnt")),
        memory_limit: number_or_none(file(&memory, "memory.limit_in_bytes")),
        faults: (stat.get("total_pgfault"), stat.get("total_pgmajfault")),
        swap: both.saturating_sub(charged),
        oom_kills: oom.get("oom_kill"),
        processes: pids.len() as u64,
        io: total(&disks),
        kernel: number(&file(&memory, "memory.kmem.usage_in_bytes")),
        memory_reserved: number_or_none(file(&memory, "memory.soft_limit_in_bytes")).unwrap_or(0),
        swap_limit: number_or_none(file(&memory, "memory.memsw.limit_in_bytes")),
        threads,
        disks,
        pids,
        pressure: Default::default(),
        cpu_limits: (
            number(&file(&limits, "cpu.shares")),
            Keyed::of(&file(&limits, "cpu.cfs_quota_us")).value(),
            number(&file(&limits, "cpu.cfs_period_us")),
        ),
    })
}

fn total(disks: &[Disk]) -> (u64, u64) {
    let add = |(a, b): (u64, u64), disk: &Disk| (a + disk.bytes.0, b + disk.bytes.1);
    disks.iter().fold((0, 0), add)
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 …`
fn unified_disk(line: &str) -> Option<Disk> {
    let mut words = line.split_whitespace();
    let device = words.next()?.to_owned();
    let values: Vec<(&str, u64)> =
        words.filter_map(|w| w.split_once('=')).filter_map(|(k, v)| Some((k, v.parse().ok()?))).collect();
    let get = |key: &str| values.iter().find(|(k, _)| *k == key).map_or(0, |(_, v)| *v);
    Some(Disk { device, bytes: (get("rbytes"), get("wbytes")), requests: (get("rios"), get("wios")) })
}

/// Lines `8:0 Read 10` of bytes and of requests.
fn version1_disks(bytes: &str, requests: &str) -> Vec<Disk> {
    let mut disks: Vec<Disk> = Vec::new();
    for (index, text) in [bytes, requests].into_iter().enumerate() {
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let [device, kind, value] = words.as_slice() else { continue };
            let Ok(value) = value.parse::<u64>() else { continue };
            let disk = match disks.iter_mut().position(|d| d.device == *device) {
                Some(at) => disks.get_mut(at),
                None => {
                    disks.push(Disk { device: (*device).to_owned(), ..Disk::default() });
                    disks.last_mut()
                }
            };
            let Some(disk) = disk else { continue };
            let pair = if index == 0 { &mut disk.bytes } else { &mut disk.requests };
            match *kind {
                "Read" => pair.0 = value,
                "Write" => pair.1 = value,
                _ => {}
            }
        }
    }
    disks
}

/// The cgroup that /proc/self/cgroup names, when it is the same in every hierarchy that measures, and not the root.
pub(super) fn own_cgroup(text: &str) -> Option<PathBuf> {
    let lines = text.lines().filter_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        Some((controllers, path.trim_start_matches('/')))
    });
    let (unified, version1): (Vec<_>, Vec<_>) = lines.partition(|(controllers, _)| controllers.is_empty());
    let measures = |c: &str| c.split(',').any(|c| matches!(c, "memory" | "cpuacct"));
    let mut paths: Vec<&str> = version1.into_iter().filter(|(c, _)| measures(c)).map(|(_, p)| p).collect();
    if paths.is_empty() {
        paths = unified.into_iter().map(|(_, path)| path).collect();
    }
    paths.dedup();
    match paths.as_slice() {
        [path] if !path.is_empty() => Some(PathBuf::from(path)),
        _ => None,
    }
}

/// Devices of a `/proc/<pid>/net/dev` file without the loopback.
pub fn devices(path: &Path) -> Vec<Device> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut devices: Vec<Device> = text.lines().filter_map(device).filter(|d| d.name != "lo").collect();
    devices.sort_by(|a, b| a.name.cmp(&b.name));
    devices
}

/// `name: bytes packets errs drop fifo frame compressed multicast bytes packets errs drop …` (proc_pid_net(5)).
fn device(line: &str) -> Option<Device> {
    let (name, counters) = line.split_once(':')?;
    let numbers: Vec<u64> = counters.split_whitespace().map_while(|n| n.parse().ok()).collect();
    let four = |at: usize| numbers.get(at..at + 4).and_then(|n| n.first_chunk::<4>()).copied();
    Some(Device { name: name.trim().to_owned(), received: four(0)?, sent: four(8)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(dir).unwrap();
        for (name, text) in files {
            fs::write(dir.join(name), text).unwrap();
        }
    }

    #[test]
    fn version_2() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            &[
                (
                    "cpu.stat",
                    "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 3\nnr_throttled 1\nthrottled_usec 7\n",
                ),
                ("memory.current", "1000\n"),
                (
                    "memory.stat",
                    "anon 300\nfile 600\ninactive_file 400\nactive_file 200\npgfault 9\npgmajfault 2\n",
                ),
                ("memory.events", "low 0\nmax 4\noom 1\noom_kill 1\n"),
                ("memory.max", "max\n"),
                ("cpu.max", "50000 100000\n"),
                ("cpu.weight", "39\n"),
                ("cgroup.procs", "1\n2\n"),
                ("io.stat", "8:0 rbytes=10 wbytes=20 rios=1\n8:16 rbytes=1 wbytes=2\n"),
            ],
        );
        let usage = unified(dir.path(), jiff::Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!((usage.cpu_ns, usage.cpu_user_ns), (1_500_000, 1_000_000));
        assert_eq!((usage.memory, usage.working_set, usage.rss), (1000, 600, 300));
        assert_eq!((usage.memory_limit, usage.oom_kills, usage.processes), (None, 1, 2));
        assert_eq!((usage.io, usage.throttled), ((11, 22), (3, 1, 7000)));
        let first = Disk { device: "8:0".into(), bytes: (10, 20), requests: (1, 0) };
        assert_eq!((usage.disks.len(), &usage.disks[0], usage.pids), (2, &first, vec![1, 2]));
        assert_eq!(usage.cpu_limits, (998, Some(50_000), 100_000));
        assert!(unified(&dir.path().join("none"), jiff::Timestamp::UNIX_EPOCH).is_none());
    }

    #[test]
    fn version_1() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            &[
                ("cpuacct.usage", "1500\n"),
                ("memory.usage_in_bytes", "1000\n"),
                ("memory.memsw.usage_in_bytes", "1100\n"),
                ("memory.limit_in_bytes", "9223372036854771712\n"),
                ("memory.stat", "inactive_file 1\ntotal_inactive_file 400\ntotal_rss 300\n"),
                ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
                (
                    "blkio.throttle.io_service_bytes_recursive",
                    "8:0 Read 10\n8:0 Write 20\n8:0 Total 30\n8:16 Read 1\nTotal 31\n",
                ),
            ],
        );
        let usage = version1(|_| Some(dir.path().to_owned()), jiff::Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!((usage.cpu_ns, usage.working_set, usage.swap), (1500, 600, 100));
        assert_eq!((usage.memory_limit, usage.oom_kills, usage.io), (None, 2, (11, 20)));
        assert!(version1(|_| None, jiff::Timestamp::UNIX_EPOCH).is_none());
    }

    #[test]
    fn an_agent_with_a_cgroup_of_its_own_finds_it() {
        let own = |text: &str| own_cgroup(text).map(|p| p.display().to_string());
        assert_eq!(own("0::/system.slice/kelp.service\n").as_deref(), Some("system.slice/kelp.service"));
        assert_eq!(own("4:memory:/k\n3:cpu,cpuacct:/k\n2:devices:/x\n0::/\n").as_deref(), Some("k"));
        assert_eq!(own("4:memory:/k\n3:cpu,cpuacct:/j\n"), None);
        assert_eq!(own("0::/\n"), None);
    }

    #[test]
    fn devices_of_a_namespace() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
            lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0\n  \
            eth0: 1462      17    1    2    0     0          0         0     1146      15    3    4    0     0       0          0\n";
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        let found = devices(file.path());
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].received, found[0].sent), ([1462, 17, 1, 2], [1146, 15, 3, 4]));
    }
}
