//! The OCI runtime spec of a container: pure data from [`ContainerSpec`].

use super::cgroup::cpu_weight;
use super::{ContainerSpec, Resources};
use kelp_runtime_protocol::{LateMount, Propagation};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Capabilities of a container that asks for nothing, as containerd and Docker give them.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// capabilities(7), by number.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

const MASKED_PATHS: [&str; 13] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/selinux",
];

const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What of the sandbox and the host a container's spec depends on.
#[derive(Debug, Clone)]
pub(super) struct Surroundings {
    /// PID of the shim, whose namespaces are joined.
    pub shim_pid: i32,
    pub host_network: bool,
    pub host_pid: bool,
    pub host_ipc: bool,
    /// First process of the PID namespace that the pod's containers share.
    pub pause_pid: Option<i32>,
    /// `/dev/shm` of the pod on the host.
    pub shm: PathBuf,
    /// `/etc/hostname` of the pod on the host.
    pub hostname_file: Option<PathBuf>,
    pub hostname: String,
    /// Container cgroup relative to a hierarchy.
    pub cgroup: PathBuf,
    /// The container's cgroup of each v1 hierarchy: name of the hierarchy's directory, and where it is.
    pub v1: Vec<(String, PathBuf)>,
    /// cgroup v2 only.
    pub unified: bool,
    /// Bounding set of the agent, a bit a capability.
    pub bounding: u64,
    /// Devices: all of the host's for privileged containers, and those that the container asks for.
    pub host_devices: Vec<HostDevice>,
    /// The pod has a user namespace of its own.
    pub users: bool,
}

/// A device node of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostDevice {
    pub path: PathBuf,
    pub block: bool,
    pub major: i64,
    pub minor: i64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// The container may only read it.
    pub read_only: bool,
}

/// The spec, as `config.json`.
pub(super) fn generate(spec: &ContainerSpec, around: &Surroundings) -> Value {
    let capabilities = capabilities(spec, around.bounding);
    let mut process = json!({
        "terminal": spec.tty,
        // The numbers are filled in once the image is mounted.
        "user": { "uid": 0, "gid": 0, "umask": 0o022, "additionalGids": [] },
        "args": spec.argv,
        "env": environment(spec, around),
        "cwd": if spec.cwd.as_os_str().is_empty() { Path::new("/") } else { &spec.cwd },
        "capabilities": {
            "bounding": capabilities,
            "effective": capabilities,
            "permitted": capabilities,
            "inheritable": [],
            "ambient": [],
        },
        "rlimits": [],
    });
    if spec.no_new_privileges {
        // Absent means false; an explicit false fails in libcontainer together with seccomp.
        process["noNewPrivileges"] = json!(true);
    }
    let mut linux = json!({
        "cgroupsPath": Path::new("/").join(&around.cgroup),
        "namespaces": namespaces(around),
        "resources": resources(spec, around),
        "rootfsPropagation": "slave",
        "maskedPaths": [],
        "readonlyPaths": [],
    });
    if !around.host_devices.is_empty() {
        let devices: Vec<Value> = around.host_devices.iter().map(device).collect();
        linux["devices"] = json!(devices);
    }
    if spec.privileged {
        linux["rootfsPropagation"] = json!("slave");
    } else {
        if !spec.unmasked {
            linux["maskedPaths"] = json!(MASKED_PATHS);
            linux["readonlyPaths"] = json!(READONLY_PATHS);
        }
        if let Some(profile) = &spec.seccomp {
            linux["seccomp"] = profile.clone();
        }
    }
    json!({
        "ociVersion": "1.2.0",
        "process": process,
        "root": { "path": kelp_runtime_protocol::files::ROOTFS, "readonly": spec.read_only_root },
        "mounts": mounts(spec, around),
        "linux": linux,
    })
}

fn namespaces(around: &Surroundings) -> Value {
    let mut list = vec![json!({ "type": "mount" })];
    let mut join = |kind: &str, file: &str| {
        let path = format!("/proc/{}/ns/{file}", around.shim_pid);
        list.push(json!({ "type": kind, "path": path }));
    };
    if !around.host_network {
        join("network", "net");
        join("uts", "uts");
    }
    if !around.host_ipc {
        join("ipc", "ipc");
    }
    match (around.host_pid, around.pause_pid) {
        (true, _) => {}
        (false, Some(pid)) => list.push(json!({ "type": "pid", "path": format!("/proc/{pid}/ns/pid") })),
        (false, None) => list.push(json!({ "type": "pid" })),
    }
    if around.unified {
        list.push(json!({ "type": "cgroup" }));
    }
    json!(list)
}

fn environment(spec: &ContainerSpec, around: &Surroundings) -> Vec<String> {
    let has = |env: &[String], key: &str| env.iter().any(|e| e.split('=').next() == Some(key));
    let mut env = spec.env.clone();
    if !has(&env, "PATH") {
        env.insert(0, DEFAULT_PATH.to_owned());
    }
    if !has(&env, "HOSTNAME") && !around.hostname.is_empty() {
        env.push(format!("HOSTNAME={}", around.hostname));
    }
    if spec.tty && !has(&env, "TERM") {
        env.push("TERM=xterm".to_owned());
    }
    env
}

fn mounts(spec: &ContainerSpec, around: &Surroundings) -> Vec<Value> {
    let special = |destination: &str, kind: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
    let sysfs: &[&str] = match spec.privileged {
        true => &["nosuid", "noexec", "nodev", "rw"],
        false => &["nosuid", "noexec", "nodev", "ro"],
    };
    let mut mounts = vec![
        special("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        special("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        special(
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        special("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        special("/sys", "sysfs", sysfs),
    ];
    if around.unified {
        let access = if spec.privileged { "rw" } else { "ro" };
        let options = ["nosuid", "noexec", "nodev", "relatime", access];
        mounts.push(special("/sys/fs/cgroup", "cgroup", &options));
    }
    if !around.v1.is_empty() {
        let options = ["nosuid", "noexec", "nodev", "relatime", "mode=755"];
        mounts.push(special("/sys/fs/cgroup", "tmpfs", &options));
    }
    for (name, source) in &around.v1 {
        // A bind mount, as libcontainer's own mount of a v1 hierarchy is always writable.
        let access = if spec.privileged { "rw" } else { "ro" };
        mounts.push(json!({
            "destination": Path::new("/sys/fs/cgroup").join(name),
            "type": "bind",
            "source": source,
            "options": ["bind", "nosuid", "noexec", "nodev", "relatime", "rprivate", access],
        }));
    }
    let shm = if around.host_ipc { Path::new("/dev/shm") } else { &around.shm };
    if let Some(file) = hostname_file(spec, around).filter(|_| !around.users) {
        mounts.push(bind(file, Path::new("/etc/hostname"), spec.read_only_root));
    }
    // Outer mounts first: a mount below another's destination would be hidden by it.
    let (own, late) = in_order(spec, around);
    // As deep as the managed files and after them; a volume may take its place.
    let here = Path::new("/dev/shm");
    let mut shm =
        Some(bind(shm, here, false)).filter(|_| !own.iter().chain(&late).any(|m| m.destination == here));
    for mount in own {
        if mount.destination.components().count() > 3 {
            mounts.extend(shm.take());
        }
        mounts.push(bind(&mount.source, &mount.destination, mount.read_only));
    }
    mounts.extend(shm);
    mounts
}

/// The container's bind mounts, outer ones first: those that libcontainer makes, and those that come after it. What is
/// below one that comes later comes later too.
/// With a user namespace all do: libcontainer cannot map the ids of files.
fn in_order<'a>(
    spec: &'a ContainerSpec,
    around: &Surroundings,
) -> (Vec<&'a super::Mount>, Vec<&'a super::Mount>) {
    let mut all: Vec<&super::Mount> = spec.mounts.iter().collect();
    all.sort_by_key(|mount| mount.destination.components().count());
    let (mut first, mut late): (Vec<&super::Mount>, Vec<&super::Mount>) = (Vec::new(), Vec::new());
    for mount in all {
        let special = around.users
            || mount.propagation != super::Propagation::None
            || mount.recursive_read_only
            || mount.within.is_some();
        if special || late.iter().any(|outer| mount.destination.starts_with(&outer.destination)) {
            late.push(mount);
        } else {
            first.push(mount);
        }
    }
    (first, late)
}

/// What the helper mounts once libcontainer is done.
pub(super) fn late_mounts(spec: &ContainerSpec, around: &Surroundings) -> Vec<LateMount> {
    let late = |m: &super::Mount| {
        let below =
            m.within.as_ref().and_then(|volume| m.source.strip_prefix(volume).ok().map(PathBuf::from));
        LateMount {
            source: m.within.clone().unwrap_or_else(|| m.source.clone()),
            below,
            destination: m.destination.clone(),
            read_only: m.read_only,
            recursive_read_only: m.recursive_read_only,
            propagation: match m.propagation {
                super::Propagation::None => Propagation::Private,
                super::Propagation::HostToContainer => Propagation::Slave,
                super::Propagation::Bidirectional => Propagation::Shared,
            },
            mapped: around.users,
        }
    };
    let hostname = hostname_file(spec, around).filter(|_| around.users).map(|file| LateMount {
        source: file.to_owned(),
        below: None,
        destination: "/etc/hostname".into(),
        read_only: spec.read_only_root,
        recursive_read_only: false,
        propagation: Propagation::Private,
        mapped: true,
    });
    hostname.into_iter().chain(in_order(spec, around).1.into_iter().map(late)).collect()
}

/// The pod's /etc/hostname, unless the container has another one.
fn hostname_file<'a>(spec: &ContainerSpec, around: &'a Surroundings) -> Option<&'a Path> {
    let own = spec.mounts.iter().any(|m| m.destination == Path::new("/etc/hostname"));
    around.hostname_file.as_deref().filter(|_| !own)
}

fn bind(source: &Path, destination: &Path, read_only: bool) -> Value {
    let access = if read_only { "ro" } else { "rw" };
    json!({
        "destination": destination,
        "type": "bind",
        "source": source,
        "options": ["rbind", "rprivate", access],
    })
}

fn resources(spec: &ContainerSpec, around: &Surroundings) -> Value {
    let Resources {
        cpu_shares, cpu_quota_us, cpu_period_us, cpus, memory_limit, swap_limit, pids_limit, ..
    } = &spec.resources;
    // The deny rule comes first: without it a v2 host allows what is not named.
    let mut devices = vec![json!({ "allow": spec.privileged, "access": "rwm" })];
    if !spec.privileged {
        let allow = |kind: &str, major: Option<i64>, minor: Option<i64>, access: &str| {
            let mut rule = json!({ "allow": true, "type": kind, "access": access });
            for (key, number) in [("major", major), ("minor", minor)] {
                if let Some(number) = number {
                    rule[key] = json!(number);
                }
            }
            rule
        };
        devices.push(allow("c", None, None, "m"));
        devices.push(allow("b", None, None, "m"));
        // null, zero, full, random, urandom, tty, console, ptmx
        let numbers = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)];
        devices.extend(numbers.map(|(major, minor)| allow("c", Some(major), Some(minor), "rwm")));
        // Terminals of the container's own devpts.
        devices.push(allow("c", Some(136), None, "rwm"));
        for own in &around.host_devices {
            let (kind, access) = (if own.block { "b" } else { "c" }, if own.read_only { "r" } else { "rwm" });
            devices.push(allow(kind, Some(own.major), Some(own.minor), access));
        }
    }
    let mut resources = json!({ "devices": devices });
    let mut cpu = serde_json::Map::new();
    let mut unified = serde_json::Map::new();
    if around.unified {
        // libcgroups converts shares by another formula than the kubelet.
        if let Some(shares) = cpu_shares {
            unified.insert("cpu.weight".to_owned(), json!(cpu_weight(*shares).to_string()));
        }
        // Without a word about swap a limit of memory is one of both.
        if let Some(swap) = swap_limit.or(memory_limit.map(|_| 0)) {
            unified.insert("memory.swap.max".to_owned(), json!(swap.to_string()));
        }
    } else if let Some(shares) = cpu_shares {
        cpu.insert("shares".to_owned(), json!(shares));
    }
    for (key, value) in [
        ("quota", cpu_quota_us.map(|v| json!(v))),
        ("period", cpu_period_us.map(|v| json!(v))),
        ("cpus", cpus.as_ref().map(|v| json!(v))),
    ] {
        if let Some(value) = value {
            cpu.insert(key.to_owned(), value);
        }
    }
    if !cpu.is_empty() {
        resources["cpu"] = Value::Object(cpu);
    }
    if !unified.is_empty() {
        resources["unified"] = Value::Object(unified);
    }
    if let Some(limit) = memory_limit {
        resources["memory"] = json!({ "limit": limit });
    }
    if let Some(limit) = pids_limit {
        resources["pids"] = json!({ "limit": limit });
    }
    resources
}

/// `CAP_…` names of the capabilities that a container of this spec gets from this agent.
pub(crate) fn granted(spec: &ContainerSpec) -> Vec<String> {
    capabilities(spec, super::host::bounding_set())
}

/// `CAP_…` names of the container's capabilities: `ALL` is added, then dropped, then names
/// are added, then dropped, as in CRI; all within what the agent has.
fn capabilities(spec: &ContainerSpec, bounding: u64) -> Vec<String> {
    let plain = |name: &String| {
        let name = name.to_uppercase();
        name.strip_prefix("CAP_").unwrap_or(&name).to_owned()
    };
    let add: BTreeSet<String> = spec.cap_add.iter().map(plain).collect();
    let drop: BTreeSet<String> = spec.cap_drop.iter().map(plain).collect();
    let chosen = |name: &str| {
        if spec.privileged {
            return true;
        }
        // A capability that is named wins over ALL.
        if drop.contains(name) {
            return false;
        }
        if add.contains(name) {
            return true;
        }
        match (add.contains("ALL"), drop.contains("ALL")) {
            (_, true) => false,
            (true, false) => true,
            (false, false) => DEFAULT_CAPABILITIES.contains(&name),
        }
    };
    CAPABILITIES
        .iter()
        .enumerate()
        .filter(|(number, name)| bounding & (1 << number) != 0 && chosen(name))
        .map(|(_, name)| format!("CAP_{name}"))
        .collect()
}

fn device(device: &HostDevice) -> Value {
    json!({
        "path": device.path,
        "type": if device.block { "b" } else { "c" },
        "major": device.major,
        "minor": device.minor,
        "fileMode": device.mode,
        "uid": device.uid,
        "gid": device.gid,
    })
}

#[cfg(test)]
mod tests;
