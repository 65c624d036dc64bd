//! The node's cgroups: hybrid (v1 controllers beside an empty v2 tree) and unified (v2 only).
//!
//! libcontainer makes a container's own cgroup; this module makes what is above it, kills what is in a cgroup and
//! removes it. Everything here blocks on the kernel: call it from `spawn_blocking`.

use super::Resources;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

/// How long killed processes may take to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Where cgroups are on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cgroups {
    /// v1 hierarchies: controllers and mount point. Empty on a unified host.
    v1: Vec<(Vec<String>, PathBuf)>,
    /// v1 hierarchies without controllers (`name=systemd`): mount points. Containers are shown their directories in them.
    named: Vec<PathBuf>,
    /// Mount point of the v2 hierarchy.
    v2: Option<PathBuf>,
    /// Root of this node's cgroups, relative to a hierarchy.
    root: PathBuf,
    /// Directory of the shims in the v2 hierarchy.
    shims: Option<PathBuf>,
}

/// Files that the shim watches of one container's cgroup.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ContainerFiles {
    /// Counts victims of the OOM killer.
    pub oom: Option<PathBuf>,
    /// Lists processes.
    pub procs: Option<PathBuf>,
}

impl Cgroups {
    /// Finds the hierarchies of this host. `cgroup2_dir` is where the node's v2 subtree begins, by default the mount.
    pub(super) fn detect(root: &Path, cgroup2_dir: Option<&Path>) -> io::Result<Self> {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo")?;
        Self::parse(&mountinfo, root, cgroup2_dir)
    }

    fn parse(mountinfo: &str, root: &Path, cgroup2_dir: Option<&Path>) -> io::Result<Self> {
        let root = root.strip_prefix("/").unwrap_or(root).to_path_buf();
        if !is_plain(&root) {
            let message = format!("cgroup root {} must be a plain path", root.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let mut v1: Vec<(Vec<String>, PathBuf)> = Vec::new();
        let (mut named, mut v2) = (Vec::new(), None);
        for line in mountinfo.lines() {
            let Some((before, after)) = line.split_once(" - ") else { continue };
            let Some(mount) = before.split(' ').nth(4).map(PathBuf::from) else { continue };
            let mut fields = after.split(' ');
            match fields.next() {
                Some("cgroup2") => drop(v2.get_or_insert(mount)),
                Some("cgroup") => {
                    let options = fields.nth(1).unwrap_or_default();
                    let controllers: Vec<String> = options
                        .split(',')
                        .filter(|o| !matches!(*o, "rw" | "ro" | "none" | "xattr") && !o.contains('='))
                        .map(str::to_owned)
                        .collect();
                    let has_name = options.split(',').any(|o| o.starts_with("name="));
                    let is_new = !v1.iter().any(|(known, _)| *known == controllers);
                    match controllers.is_empty() {
                        true if has_name && !named.contains(&mount) => named.push(mount),
                        false if is_new => v1.push((controllers, mount)),
                        _ => {}
                    }
                }
                _ => {}
            }
        }
        if v1.is_empty() && v2.is_none() {
            let message = "no cgroup hierarchy is mounted; mount cgroup2 at /sys/fs/cgroup";
            return Err(io::Error::new(io::ErrorKind::NotFound, message));
        }
        let shims = cgroup2_dir.or(v2.as_deref()).map(|dir| dir.join(&root).join("pods"));
        // On a unified host the containers themselves are in the v2 hierarchy and belong into its subtree, where the
        // dataplane's programs are attached.
        let subtree = match (cgroup2_dir, &v2) {
            (Some(dir), Some(mount)) if v1.is_empty() => dir.strip_prefix(mount).map_err(|_| {
                let message = format!("{} is not below {}", dir.display(), mount.display());
                io::Error::new(io::ErrorKind::InvalidInput, message)
            })?,
            _ => Path::new(""),
        };
        let root = subtree.join(root);
        Ok(Self { v1, named, v2, root, shims })
    }

    /// Whether controllers are on the v2 hierarchy.
    pub(super) fn is_unified(&self) -> bool {
        self.v1.is_empty()
    }

    /// A pod's cgroup relative to a hierarchy, from its path below the node's root.
    pub(super) fn pod(&self, below_root: &Path) -> io::Result<PathBuf> {
        let below_root = below_root.strip_prefix("/").unwrap_or(below_root);
        if below_root.as_os_str().is_empty() || !is_plain(below_root) {
            let message = format!("cgroup {} must be a plain path", below_root.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        Ok(self.root.join(below_root))
    }

    /// The v2 directory for a pod's shim; its containers inherit it on a hybrid host.
    pub(super) fn shim(&self, sandbox: &str) -> Option<PathBuf> {
        self.shims.as_ref().map(|dir| dir.join(sandbox))
    }

    /// Makes a pod's cgroup and sets its limits; repeats are fine.
    pub(super) fn create_pod(&self, pod: &Path, resources: &Resources) -> io::Result<()> {
        timed("create", || self.make_pod(pod, resources))
    }

    fn make_pod(&self, pod: &Path, resources: &Resources) -> io::Result<()> {
        if let (true, Some(mount)) = (self.is_unified(), &self.v2) {
            let dir = make_unified(mount, pod)?;
            return set_all(&dir, unified_values(resources));
        }
        for (controllers, mount) in &self.v1 {
            let dir = mount.join(pod);
            let values: Vec<_> = v1_values(resources)
                .into_iter()
                .filter(|(file, _)| controllers.iter().any(|c| file.starts_with(&format!("{c}."))))
                .collect();
            if controllers.iter().any(|c| matches!(c.as_str(), "cpu" | "memory" | "pids")) {
                fs::create_dir_all(&dir).map_err(|e| at("create", &dir, e))?;
                set_all(&dir, values)?;
            }
        }
        Ok(())
    }

    /// Makes a container's cgroup in each v1 hierarchy, so that it can be shown to the container; names of the
    /// hierarchies' directories, and where it is. Nothing on a unified host, where the container has a namespace.
    pub(super) fn create_container(&self, path: &Path) -> io::Result<Vec<(String, PathBuf)>> {
        let mut made = Vec::new();
        if self.is_unified() {
            return Ok(made);
        }
        for mount in self.v1.iter().map(|(_, mount)| mount).chain(&self.named) {
            let dir = mount.join(path);
            fs::create_dir_all(&dir).map_err(|e| at("create", &dir, e))?;
            if let Some(name) = mount.file_name() {
                made.push((name.to_string_lossy().into_owned(), dir));
            }
        }
        Ok(made)
    }

    /// Sets the limits of a cgroup that exists; a limit that is not given is lifted.
    pub(super) fn update(&self, path: &Path, resources: &Resources) -> io::Result<()> {
        timed("update", || self.set(path, resources))
    }

    fn set(&self, path: &Path, resources: &Resources) -> io::Result<()> {
        let resources = Resources {
            cpu_quota_us: resources.cpu_quota_us.or(Some(-1)),
            memory_limit: resources.memory_limit.or(Some(-1)),
            ..resources.clone()
        };
        if let (true, Some(mount)) = (self.is_unified(), &self.v2) {
            return set_all(&mount.join(path), unified_values(&resources));
        }
        for (controllers, mount) in &self.v1 {
            let dir = mount.join(path);
            let mine = |file: &str| controllers.iter().any(|c| file.starts_with(&format!("{c}.")));
            let values: Vec<_> = v1_values(&resources).into_iter().filter(|(file, _)| mine(file)).collect();
            if !values.is_empty() {
                set_all(&dir, values)?;
            }
        }
        Ok(())
    }

    /// Makes the directory of a shim.
    pub(super) fn create_shim(&self, sandbox: &str) -> io::Result<Option<PathBuf>> {
        let Some(dir) = self.shim(sandbox) else { return Ok(None) };
        fs::create_dir_all(&dir).map_err(|e| at("create", &dir, e))?;
        Ok(Some(dir))
    }

    /// The files of the container cgroup `path`, relative to a hierarchy.
    pub(super) fn container_files(&self, path: &Path) -> ContainerFiles {
        if let (true, Some(mount)) = (self.is_unified(), &self.v2) {
            let dir = mount.join(path);
            return ContainerFiles {
                oom: Some(dir.join("memory.events")),
                procs: Some(dir.join("cgroup.procs")),
            };
        }
        let of = |controller: &str| {
            let mut found = self.v1.iter().filter(|(c, _)| c.iter().any(|c| c == controller));
            found.next().map(|(_, mount)| mount.join(path))
        };
        ContainerFiles {
            oom: of("memory").map(|dir| dir.join("memory.oom_control")),
            procs: of("pids").or_else(|| of("devices")).map(|dir| dir.join("cgroup.procs")),
        }
    }

    /// The directory of a cgroup on a unified host.
    pub(super) fn unified_dir(&self, path: &Path) -> Option<PathBuf> {
        self.v2.as_ref().filter(|_| self.is_unified()).map(|mount| mount.join(path))
    }

    /// The directory of a cgroup in the v1 hierarchy of a controller.
    pub(super) fn v1_dir(&self, controller: &str, path: &Path) -> Option<PathBuf> {
        let mut found = self.v1.iter().filter(|(c, _)| c.iter().any(|c| c == controller));
        found.next().map(|(_, mount)| mount.join(path))
    }

    /// Kills every process in the cgroup `path` of each hierarchy and in `further` directories, and removes them all
    /// with what is below. Fine when there is nothing.
    pub(super) fn destroy(&self, path: &Path, further: Option<PathBuf>) -> io::Result<()> {
        timed("destroy", || destroy(&self.directories(path, further), true))
    }

    /// Kills like [`Cgroups::destroy`] but leaves the cgroups.
    pub(super) fn kill(&self, path: &Path, further: Option<PathBuf>) -> io::Result<()> {
        destroy(&self.directories(path, further), false)
    }

    fn directories(&self, path: &Path, further: Option<PathBuf>) -> Vec<PathBuf> {
        let mounts = self.v1.iter().map(|(_, mount)| mount).chain(&self.named).chain(&self.v2);
        mounts.map(|mount| mount.join(path)).chain(further).collect()
    }
}

/// Does it, and notes how long it took.
fn timed<T>(operation: &str, work: impl FnOnce() -> T) -> T {
    let begin = std::time::Instant::now();
    let result = work();
    crate::metrics::CGROUPS.took(&[operation], begin);
    result
}

fn is_plain(path: &Path) -> bool {
    path.components().all(|c| matches!(c, Component::Normal(_)))
}

fn at(what: &str, path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot {what} {}: {error}", path.display()))
}

/// Makes `pod` and what is above it, with controllers enabled for what is below each.
fn make_unified(mount: &Path, pod: &Path) -> io::Result<PathBuf> {
    let available = fs::read_to_string(mount.join("cgroup.controllers"))?;
    let enable = |dir: &Path| {
        for controller in available.split_whitespace() {
            // Each for itself: one that cannot be enabled shows when its limit is set.
            let _ = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
        }
    };
    let mut dir = mount.to_path_buf();
    enable(&dir);
    for component in pod.components() {
        dir.push(component);
        match fs::create_dir(&dir) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(at("create", &dir, e)),
            _ => enable(&dir),
        }
    }
    Ok(dir)
}

fn set_all(dir: &Path, values: Vec<(&str, String)>) -> io::Result<()> {
    for (file, value) in values {
        let path = dir.join(file);
        fs::write(&path, &value).map_err(|e| at(&format!("write {value:?} to"), &path, e))?;
    }
    Ok(())
}

fn v1_values(resources: &Resources) -> Vec<(&'static str, String)> {
    let mut values = Vec::new();
    let mut add = |file, value: Option<String>| values.extend(value.map(|v| (file, v)));
    add("cpu.shares", resources.cpu_shares.map(|v| v.to_string()));
    add("cpu.cfs_period_us", resources.cpu_period_us.map(|v| v.to_string()));
    add("cpu.cfs_quota_us", resources.cpu_quota_us.map(|v| v.to_string()));
    add("cpuset.cpus", resources.cpus.clone());
    add("memory.limit_in_bytes", resources.memory_limit.map(|v| v.to_string()));
    add("pids.max", resources.pids_limit.map(limit_or_max));
    values
}

fn unified_values(resources: &Resources) -> Vec<(&'static str, String)> {
    let mut values = Vec::new();
    let mut add = |file, value: Option<String>| values.extend(value.map(|v| (file, v)));
    add("cpu.weight", resources.cpu_shares.map(|shares| cpu_weight(shares).to_string()));
    add(
        "cpu.max",
        resources
            .cpu_quota_us
            .map(|quota| format!("{} {}", limit_or_max(quota), resources.cpu_period_us.unwrap_or(100_000))),
    );
    add("cpuset.cpus", resources.cpus.clone());
    add("memory.max", resources.memory_limit.map(limit_or_max));
    add("memory.swap.max", resources.swap_limit.map(limit_or_max));
    add("pids.max", resources.pids_limit.map(limit_or_max));
    values
}

fn limit_or_max(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

/// v1 shares (2..=262144) to v2 weight (1..=10000), as the kubelet converts (KEP-2254).
pub(super) fn cpu_weight(shares: u64) -> u64 {
    1 + shares.clamp(2, 262_144).saturating_sub(2) * 9_999 / 262_142
}

fn destroy(directories: &[PathBuf], remove: bool) -> io::Result<()> {
    let deadline = Instant::now() + KILL_TIMEOUT;
    let mut pause = 1;
    loop {
        let mut pids = Vec::new();
        for dir in directories {
            let _ = fs::write(dir.join("cgroup.kill"), "1");
            list_processes(dir, &mut pids);
        }
        let handles: Vec<(i32, OwnedFd)> = pids.iter().filter_map(|pid| Some((*pid, pidfd(*pid)?))).collect();
        // A PID that is still listed after its handle was opened has not been given to a stranger in between.
        let mut still = Vec::new();
        for dir in directories {
            list_processes(dir, &mut still);
        }
        let ours: Vec<&OwnedFd> =
            handles.iter().filter(|(pid, _)| still.contains(pid)).map(|(_, fd)| fd).collect();
        for handle in &ours {
            kill(handle);
        }
        for handle in &ours {
            wait(Some(handle), deadline.saturating_duration_since(Instant::now()));
        }
        let mut left = None;
        if remove {
            for dir in directories {
                if let Err(error) = remove_recursively(dir) {
                    left = Some(at("remove", dir, error));
                }
            }
        }
        match left {
            None if still.is_empty() => return Ok(()),
            _ if Instant::now() < deadline => {}
            Some(error) => return Err(error),
            None => return Err(io::Error::other("processes do not end although they were killed")),
        }
        // The kernel does not tell when the last reference to a cgroup is gone.
        wait(None, Duration::from_millis(pause));
        pause = (pause * 2).min(100);
    }
}

fn list_processes(dir: &Path, pids: &mut Vec<i32>) {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    for pid in text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0) {
        if !pids.contains(&pid) {
            pids.push(pid);
        }
    }
    for child in children(dir) {
        list_processes(&child, pids);
    }
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}

fn remove_recursively(dir: &Path) -> io::Result<()> {
    for child in children(dir) {
        remove_recursively(&child)?;
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A handle of a process.
pub(super) fn pidfd(pid: i32) -> Option<OwnedFd> {
    // SAFETY: pidfd_open takes integers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: the kernel has just made this descriptor; nothing else owns it.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn kill(handle: &OwnedFd) {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: pidfd_send_signal accepts a null siginfo. A process that is gone already is what we want.
    unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, handle.as_raw_fd(), libc::SIGKILL, none, 0);
    }
}

/// Waits until the process has ended, or the time is over.
fn wait(handle: Option<&OwnedFd>, time: Duration) {
    let mut fds: Vec<libc::pollfd> = handle
        .iter()
        .map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 })
        .collect();
    let milliseconds = i32::try_from(time.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: pointer and count describe the vector, which lives for the call.
    unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, milliseconds) };
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
        32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
        35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
        39 31 0:36 / /sys/fs/cgroup/pids rw,relatime shared:9 - cgroup cgroup rw,pids\n\
        40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";

    #[test]
    fn hybrid_hosts_are_recognised() {
        let cgroups = Cgroups::parse(HYBRID, Path::new("/kelp"), None).unwrap();
        assert!(!cgroups.is_unified());
        assert_eq!(cgroups.v1.len(), 3);
        assert_eq!(cgroups.v1[0].0, ["cpu", "cpuacct"]);
        assert_eq!(cgroups.named, [Path::new("/sys/fs/cgroup/systemd")]);
        let directories = cgroups.directories(Path::new("kelp/x"), None);
        assert!(directories.contains(&"/sys/fs/cgroup/systemd/kelp/x".into()), "{directories:?}");
        assert_eq!(cgroups.shim("u").unwrap(), Path::new("/sys/fs/cgroup/unified/kelp/pods/u"));
        let files = cgroups.container_files(Path::new("kelp/kubepods/podu/c"));
        assert_eq!(
            files.oom.unwrap(),
            Path::new("/sys/fs/cgroup/memory/kelp/kubepods/podu/c/memory.oom_control")
        );
    }

    #[test]
    fn unified_hosts_are_recognised() {
        let text = "30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let sub = Path::new("/sys/fs/cgroup/node1");
        let cgroups = Cgroups::parse(text, Path::new("kelp"), Some(sub)).unwrap();
        assert!(cgroups.is_unified());
        let beside = format!("{text}31 23 0:27 / /elogind rw - cgroup cgroup rw,name=elogind\n");
        assert!(Cgroups::parse(&beside, Path::new("kelp"), Some(sub)).unwrap().is_unified());
        assert_eq!(cgroups.shim("u").unwrap(), Path::new("/sys/fs/cgroup/node1/kelp/pods/u"));
        let pod = cgroups.pod(Path::new("kubepods/podu")).unwrap();
        assert_eq!(pod, Path::new("node1/kelp/kubepods/podu"));
        assert!(Cgroups::parse(text, Path::new("kelp"), Some(Path::new("/elsewhere"))).is_err());
        assert!(Cgroups::parse("", Path::new("kelp"), None).is_err());
        assert!(Cgroups::parse(text, Path::new("../up"), None).is_err());
        assert!(cgroups.pod(Path::new("kubepods/../../x")).is_err());
        assert!(cgroups.pod(Path::new("")).is_err());
    }

    #[test]
    fn limits_in_both_versions() {
        let resources = Resources {
            cpu_shares: Some(1024),
            cpu_quota_us: Some(50_000),
            cpu_period_us: None,
            cpus: Some("1-2".into()),
            memory_limit: Some(1 << 20),
            swap_limit: Some(1 << 19),
            pids_limit: Some(-1),
            oom_score_adj: None,
        };
        let unified = unified_values(&resources);
        assert!(unified.contains(&("cpu.max", "50000 100000".to_owned())));
        assert!(unified.contains(&("cpu.weight", "39".to_owned())));
        assert!(unified.contains(&("pids.max", "max".to_owned())));
        assert!(unified.contains(&("memory.swap.max", "524288".to_owned())));
        assert!(unified.contains(&("cpuset.cpus", "1-2".to_owned())));
        assert_eq!(v1_values(&resources).len(), 5);
        assert_eq!((cpu_weight(2), cpu_weight(262_144), cpu_weight(0)), (1, 10_000, 1));
    }
}
