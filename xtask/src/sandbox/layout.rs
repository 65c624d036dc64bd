//! Names, paths and addresses of a sandbox; everything else derives them from here.

use crate::build::workspace_root;
use anyhow::{Context, Result, bail};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

/// Most hosts a sandbox can have: the LAN's addresses .11 to .250.
pub const MAX_NODES: u32 = 240;

/// A sandbox by name.
#[derive(Debug, Clone)]
pub struct Layout {
    name: String,
}

/// One host of a sandbox; the first is number 1 and runs the control plane.
#[derive(Debug, Clone)]
pub struct NodeLayout {
    sandbox: Layout,
    /// Number from 1.
    pub number: u32,
}

impl Layout {
    /// The sandbox called `name`: lower-case letters, digits and dashes, at most 20 of them (a cgroup and a network
    /// namespace are named after it).
    ///
    /// # Errors
    /// The name has other characters or is too long.
    pub fn new(name: &str) -> Result<Self> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || name.len() > 20 || !name.chars().all(allowed) {
            bail!("sandbox name {name:?}: use 1 to 20 lower-case letters, digits and dashes");
        }
        Ok(Self { name: name.to_owned() })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Directory of all its files: in the directory that `KELP_SANDBOXES` names, or else in the workspace's `target`.
    pub fn dir(&self) -> PathBuf {
        let base = std::env::var_os("KELP_SANDBOXES").map(PathBuf::from);
        base.unwrap_or_else(|| workspace_root().join("target")).join(&self.name)
    }

    /// kubeconfig of the cluster's administrator, for use on this machine.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir().join("kubeconfig")
    }

    /// kubeconfig of the administrator for use on the sandbox hosts.
    pub fn kubeconfig_inside(&self) -> PathBuf {
        self.dir().join("kubeconfig.inside")
    }

    /// Remembers the port on this machine's loopback where the API server is reached.
    pub fn port_file(&self) -> PathBuf {
        self.dir().join("port")
    }

    /// Network namespace of the LAN.
    pub fn lan_netns(&self) -> String {
        format!("kelp-{}-lan", self.name)
    }

    /// Host number `number`, from 1.
    pub fn node(&self, number: u32) -> NodeLayout {
        NodeLayout { sandbox: self.clone(), number }
    }

    /// The hosts that were brought up, in order, by their directories.
    ///
    /// # Errors
    /// The sandbox's directory cannot be read.
    pub fn nodes(&self) -> Result<Vec<NodeLayout>> {
        let entries = match std::fs::read_dir(self.dir()) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("read {}", self.dir().display())),
        };
        let mut numbers: Vec<u32> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.strip_prefix("node")?.parse().ok())
            .collect();
        numbers.sort_unstable();
        Ok(numbers.into_iter().map(|number| self.node(number)).collect())
    }

    /// The OCI archive of the sample workload's image.
    pub fn hello_archive(&self) -> PathBuf {
        self.dir().join("hello.tar")
    }

    /// cgroup of the whole sandbox, relative to a hierarchy's mount point.
    pub fn cgroup(&self) -> PathBuf {
        Path::new("kelp-sandbox").join(&self.name)
    }

    /// Directory of the sandbox's BPF pins.
    pub fn bpf_dir(&self) -> PathBuf {
        Path::new("/sys/fs/bpf/kelp-sandbox").join(&self.name)
    }
}

impl NodeLayout {
    /// The sandbox it belongs to.
    pub fn sandbox(&self) -> &Layout {
        &self.sandbox
    }

    /// Name of the Node object.
    pub fn name(&self) -> String {
        format!("{}-{}", self.sandbox.name, self.number)
    }

    /// Its network namespace.
    pub fn netns(&self) -> String {
        format!("kelp-{}", self.name())
    }

    /// Path that opens its network namespace.
    pub fn netns_path(&self) -> PathBuf {
        Path::new("/run/netns").join(self.netns())
    }

    /// Its files.
    pub fn dir(&self) -> PathBuf {
        self.sandbox.dir().join(format!("node{}", self.number))
    }

    /// Where `kelp` keeps state.
    pub fn data_dir(&self) -> PathBuf {
        self.dir().join("data")
    }

    /// Where `kelp` keeps sockets: short, as a unix socket path has at most 107 bytes.
    pub fn run_dir(&self) -> PathBuf {
        Path::new("/run/kelp-sandbox").join(self.name())
    }

    /// Where plugins of devices and volumes keep their sockets.
    pub fn kubelet_dir(&self) -> PathBuf {
        self.run_dir().join("kubelet")
    }

    /// Log of the `kelp` process.
    pub fn log_file(&self) -> PathBuf {
        self.dir().join("kelp.log")
    }

    /// PID and start time of its supervisor.
    pub fn supervisor_file(&self) -> PathBuf {
        self.dir().join("supervisor")
    }

    /// PID of its `kelp` process, rewritten at each start.
    pub fn pid_file(&self) -> PathBuf {
        self.dir().join("kelp.pid")
    }

    /// Where `kelp` reports that it is ready (sd_notify(3)).
    pub fn notify_socket(&self) -> PathBuf {
        self.run_dir().join("notify.sock")
    }

    /// kubeconfig of the node's own identity; the first node needs none.
    pub fn agent_kubeconfig(&self) -> PathBuf {
        self.dir().join("agent.kubeconfig")
    }

    /// Its IPv4 address on the LAN.
    pub fn ipv4(&self) -> Ipv4Addr {
        Ipv4Addr::new(172, 31, 77, u8::try_from(10 + self.number).unwrap_or(u8::MAX))
    }

    /// Its IPv6 address on the LAN.
    pub fn ipv6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x31, 0x77, 0, 0, 0, 0, u16::try_from(10 + self.number).unwrap_or(u16::MAX))
    }

    /// Its cgroup, relative to a hierarchy's mount point.
    pub fn cgroup(&self) -> PathBuf {
        self.sandbox.cgroup().join(self.name())
    }

    /// Its cgroup in the cgroup v2 hierarchy; socket programs attach here.
    pub fn cgroup2_dir(&self) -> PathBuf {
        cgroup2_mount().join(self.cgroup())
    }

    /// Where its BPF maps and links are pinned.
    pub fn bpf_dir(&self) -> PathBuf {
        self.sandbox.bpf_dir().join(self.name())
    }

    /// Whether the arguments and paths of this node were made by an earlier `up`.
    pub fn exists(&self) -> bool {
        self.netns_path().exists() && self.dir().exists()
    }
}

/// Mount point of the cgroup v2 hierarchy: `/sys/fs/cgroup` or, on a hybrid host, `/sys/fs/cgroup/unified`.
pub fn cgroup2_mount() -> PathBuf {
    let unified = Path::new("/sys/fs/cgroup/unified");
    if unified.join("cgroup.procs").exists() { unified.to_owned() } else { PathBuf::from("/sys/fs/cgroup") }
}

/// Mount points of all cgroup hierarchies.
pub fn cgroup_mounts() -> Vec<PathBuf> {
    if cgroup2_mount() == Path::new("/sys/fs/cgroup") {
        return vec![cgroup2_mount()];
    }
    let entries = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.join("cgroup.procs").exists()).collect()
}
