//! Plain data that crosses the [`Runtime`](super::Runtime) seam.

pub use kelp_runtime_protocol::IdRange;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What a pod's sandbox is made of. The sandbox id is the pod's UID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxSpec {
    /// Pod UID; names the sandbox.
    pub id: String,
    /// Pod namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// Host name inside the pod's UTS namespace; unused with `host_network`.
    pub hostname: String,
    /// Join the host's network and UTS namespaces.
    pub host_network: bool,
    /// Join the host's PID namespace.
    pub host_pid: bool,
    /// Join the host's IPC namespace.
    pub host_ipc: bool,
    /// All containers share one PID namespace, whose first process only waits.
    pub share_pid: bool,
    /// A user namespace of the pod's own, with these ids of the host.
    pub users: Option<IdRange>,
    /// Pod cgroup relative to the node's cgroup root, such as `kubepods/burstable/pod<uid>`.
    pub cgroup: PathBuf,
    /// Limits of the pod cgroup as a whole.
    pub resources: Resources,
    /// Directory of the container logs, `<log root>/<namespace>_<name>_<uid>`.
    pub log_dir: PathBuf,
    /// Namespaced sysctls, key to value.
    pub sysctls: BTreeMap<String, String>,
}

/// cgroup limits; `None` leaves the kernel's default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// CPU weight in the cgroup v1 scale, 2..=262144 (`requests.cpu` × 1024).
    pub cpu_shares: Option<u64>,
    /// CPU time per period, µs.
    pub cpu_quota_us: Option<i64>,
    /// CPU period, µs.
    pub cpu_period_us: Option<u64>,
    /// CPUs that it may run on, in the kernel's list format.
    pub cpus: Option<String>,
    /// Memory limit, bytes.
    pub memory_limit: Option<i64>,
    /// Limit on swap beyond the memory, bytes; cgroup v2 alone has one of its own.
    pub swap_limit: Option<i64>,
    /// Limit on processes and threads.
    pub pids_limit: Option<i64>,
    /// `oom_score_adj`, −1000..=1000; applied where the agent is permitted to.
    pub oom_score_adj: Option<i32>,
}

/// How mounts travel between a container and its host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Propagation {
    /// Not at all.
    #[default]
    None,
    /// From the host into the container.
    HostToContainer,
    /// Both ways.
    Bidirectional,
}

/// A bind mount into a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mount {
    /// Absolute path on the host.
    pub source: PathBuf,
    /// Absolute path in the container.
    pub destination: PathBuf,
    /// Mount read-only.
    pub read_only: bool,
    /// Also what is mounted below the source.
    pub recursive_read_only: bool,
    /// How later mounts travel.
    pub propagation: Propagation,
    /// The source is in this volume, whose contents the pod's other containers may change at any time: it is found by
    /// a walk from here that no link leads out of.
    pub within: Option<PathBuf>,
}

/// A device of the host that a container gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceNode {
    /// Path on the host.
    pub source: PathBuf,
    /// Path in the container.
    pub destination: PathBuf,
    /// It may not be written to.
    pub read_only: bool,
}

/// What a container runs; everything of the Pod spec and the image config is already resolved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerSpec {
    /// Unique in the sandbox: `<name>.<attempt>`.
    pub id: String,
    /// Name in the Pod spec.
    pub name: String,
    /// Restart count: 0 for the first run.
    pub attempt: u32,
    /// Image id (config digest, `sha256:…`) in the image store.
    pub image_id: String,
    /// The reference the Pod named, for the status.
    pub image_ref: String,
    /// Command and arguments, never empty.
    pub argv: Vec<String>,
    /// `KEY=value`.
    pub env: Vec<String>,
    /// Working directory, absolute.
    pub cwd: PathBuf,
    /// Numeric user and group; `None` is resolved from `user` in the image's /etc/passwd.
    pub uid: Option<u32>,
    /// Primary group.
    pub gid: Option<u32>,
    /// `USER` of the image config when the Pod sets no uid.
    pub user: Option<String>,
    /// Supplementary groups.
    pub additional_gids: Vec<u32>,
    /// Leave out the groups that the image's /etc/group gives the user.
    pub strict_groups: bool,
    /// Bind mounts in order.
    pub mounts: Vec<Mount>,
    /// Devices, beside those that every container has.
    pub devices: Vec<DeviceNode>,
    /// All capabilities and devices, no seccomp, no masked paths.
    pub privileged: bool,
    /// Nothing of /proc and /sys is hidden or read-only.
    pub unmasked: bool,
    /// `linux.seccomp` of the OCI runtime spec; `None`: no filter.
    pub seccomp: Option<serde_json::Value>,
    /// Id of a running container of the sandbox whose PID namespace this one joins.
    pub joins: Option<String>,
    /// Root filesystem read-only.
    pub read_only_root: bool,
    /// `no_new_privs`.
    pub no_new_privileges: bool,
    /// Capabilities to add to the default set, without `CAP_`, or `ALL`.
    pub cap_add: Vec<String>,
    /// Capabilities to drop from the default set.
    pub cap_drop: Vec<String>,
    /// cgroup limits of this container.
    pub resources: Resources,
    /// Log file in CRI format, relative to the sandbox's `log_dir`: `<name>/<attempt>.log`.
    pub log_path: PathBuf,
    /// Allocate a terminal.
    pub tty: bool,
    /// Keep a standard input for those who attach.
    pub stdin: bool,
    /// Close it when the first one who attached has no more of it.
    pub stdin_once: bool,
    /// Where the termination message is written, on the host (bind-mounted by `mounts`).
    pub termination_message: Option<PathBuf>,
}

/// A sandbox as its shim reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxStatus {
    /// Pod UID.
    pub id: String,
    /// Pod namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// The shim runs; without it exit codes of its containers are lost.
    pub ready: bool,
    /// PID of the shim.
    pub shim_pid: u32,
    /// Path that opens the pod's network namespace; `None` on the host network or when the shim is gone.
    pub netns: Option<PathBuf>,
    /// Start of the shim.
    pub created_at: jiff::Timestamp,
    /// Containers in the order they were started, exited ones included until removed.
    pub containers: Vec<ContainerStatus>,
}

/// A container as its shim reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerStatus {
    /// `<name>.<attempt>`.
    pub id: String,
    /// Name in the Pod spec.
    pub name: String,
    /// Restart count.
    pub attempt: u32,
    /// Image id.
    pub image_id: String,
    /// The reference the Pod named.
    pub image_ref: String,
    /// Where it is in its life.
    pub state: ContainerState,
}

/// Life of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerState {
    /// Prepared, not started.
    Created,
    /// Its first process runs.
    Running {
        /// PID in the host's PID namespace.
        pid: u32,
        /// When `execve` succeeded.
        started_at: jiff::Timestamp,
    },
    /// Its first process ended, or never started.
    Exited(ExitRecord),
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitRecord {
    /// 0..=255; 128 + n for signal n; 137 when the exit code was lost with the shim.
    pub exit_code: i32,
    /// Signal that ended the process.
    pub signal: Option<i32>,
    /// `Completed`, `Error`, `OOMKilled`, `StartError` or `ContainerStatusUnknown`, as in a Pod's status.
    pub reason: String,
    /// Human-readable detail of a failed start.
    pub message: String,
    /// When `execve` succeeded; the same as `finished_at` for a failed start.
    pub started_at: jiff::Timestamp,
    /// When the shim reaped the process.
    pub finished_at: jiff::Timestamp,
}

/// Result of a command run in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecResult {
    /// Exit code.
    pub exit_code: i32,
    /// Standard output, cut at 16 KiB.
    pub stdout: Vec<u8>,
    /// Standard error, cut at 16 KiB.
    pub stderr: Vec<u8>,
    /// The command was killed because it ran longer than its timeout.
    pub timed_out: bool,
}

/// A change that the runtime noticed by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuntimeEvent {
    /// A container's first process ended.
    ContainerExited {
        /// Pod UID.
        sandbox: String,
        /// `<name>.<attempt>`.
        container: String,
    },
    /// The shim of a sandbox vanished.
    SandboxLost {
        /// Pod UID.
        sandbox: String,
    },
}

/// What can go wrong in a runtime call.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The user's command could not be started; `exit_code` is 127 (not found), 126 (not executable) or 128.
    #[error("{message}")]
    Start {
        /// Text for the container's status.
        message: String,
        /// Exit code to report.
        exit_code: i32,
    },
    /// There is no such sandbox or container.
    #[error("{kind} {id:?} does not exist")]
    NotFound {
        /// `sandbox` or `container`.
        kind: &'static str,
        /// Its id.
        id: String,
    },
    /// The shim did not answer as it should.
    #[error("shim of sandbox {sandbox}: {message}")]
    Shim {
        /// Pod UID.
        sandbox: String,
        /// What happened.
        message: String,
    },
    /// The image is not in the store, or cannot be mounted.
    #[error("image {image}: {message}")]
    Image {
        /// Image id or reference.
        image: String,
        /// What happened.
        message: String,
    },
    /// A system call failed.
    #[error("{action}")]
    Io {
        /// What was being done, with the path.
        action: String,
        /// The error.
        #[source]
        source: std::io::Error,
    },
}
