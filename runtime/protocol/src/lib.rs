//! Messages between the agent, the shim and the runtime helper, and the files they leave for each other.
//!
//! The agent talks to a shim over the unix socket `shim.sock` (`SOCK_SEQPACKET`) in the sandbox's run directory: one
//! [`Request`] a connection, with descriptors attached where a variant says so, answered by one [`Response`].
//! [`Request::Subscribe`] keeps the connection: [`Event`]s follow until either side closes it. The shim gives a helper
//! its [`Job`] in the same manner over a socket pair (descriptor [`HELPER_SOCKET_FD`]) and gets one [`Report`].
//!
//! Every message is a JSON document of at most [`MAX_MESSAGE`] bytes. Times are milliseconds since the Unix epoch.

pub mod wire;

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Version of this protocol. A shim outlives the agent that started it, so an agent must be able to speak to older
/// shims; it compares this with [`ShimStatus::version`].
pub const VERSION: u32 = 2;

/// Longest message in bytes; below the kernel's default `net.core.wmem_default`.
pub const MAX_MESSAGE: usize = 160 * 1024;

/// What a shim writes to its standard output instead of `ok` when another shim has the sandbox.
pub const BUSY: &str = "another shim of this sandbox runs";

/// Descriptor on which a helper receives its [`Job`] and sends its [`Report`].
pub const HELPER_SOCKET_FD: i32 = 3;

/// Descriptors 4, 5 and 6 of a helper: standard input, output and error of the process it starts.
pub const HELPER_STDIO_FD: i32 = 4;

/// Descriptor of a helper: the mount namespace that holds nothing but the pod's `/dev/shm`. Absent with host IPC.
pub const HELPER_SHM_FD: i32 = 7;

/// Descriptor of a helper: the pod's user namespace, when it has one of its own.
pub const HELPER_USERS_FD: i32 = 8;

/// Users and groups of a user namespace: its ids from 0 on are these of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// First id on the host.
    pub host: u32,
    /// How many there are.
    pub length: u32,
}

/// File names in a sandbox's run directory.
pub mod files {
    /// [`Sandbox`](super::Sandbox): written before anything else of the pod exists, removed last.
    pub const SANDBOX: &str = "sandbox.json";
    /// Socket of the shim.
    pub const SOCKET: &str = "shim.sock";
    /// Locked by the shim while it lives.
    pub const LOCK: &str = "shim.lock";
    /// PID of the first process of the pod's shared PID namespace.
    pub const PAUSE: &str = "pause.pid";
    /// Messages of the shim and its helpers.
    pub const LOG: &str = "shim.log";
    /// Directory with one bundle a container.
    pub const CONTAINERS: &str = "c";
    /// libcontainer's state directory.
    pub const STATE: &str = "s";
    /// In a bundle: [`ExitRecord`](super::ExitRecord) of a container, written once it ended.
    pub const EXIT: &str = "exit.json";
    /// In a bundle: the OCI runtime spec.
    pub const CONFIG: &str = "config.json";
    /// In a bundle: where the root filesystem is mounted, in mount namespaces of the container only.
    pub const ROOTFS: &str = "rootfs";
}

/// What a shim is started for: the content of [`files::SANDBOX`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// Pod UID.
    pub id: String,
    /// Pod namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// Host name of the UTS namespace.
    pub hostname: String,
    /// Keep the host's network and UTS namespaces.
    pub host_network: bool,
    /// Keep the host's PID namespace.
    pub host_pid: bool,
    /// Keep the host's IPC namespace.
    pub host_ipc: bool,
    /// Make one PID namespace for all containers. Its first process is the shim's file [`files::PAUSE`].
    #[serde(default)]
    pub share_pid: bool,
    /// Make a user namespace, to which the other namespaces belong.
    #[serde(default)]
    pub users: Option<IdRange>,
    /// Namespaced sysctls, key to value.
    pub sysctls: Vec<(String, String)>,
    /// cgroup v2 directory that the shim moves itself and so its containers to; the agent made it.
    pub shim_cgroup: Option<PathBuf>,
    /// Pod cgroup, relative to a hierarchy's mount point.
    pub pod_cgroup: PathBuf,
    /// Directory of the container logs.
    pub log_dir: PathBuf,
    /// When the agent made the sandbox.
    pub created_at: i64,
}

/// What an agent asks of a shim.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// Answered by [`Response::Status`].
    Status,
    /// Starts a container; answered by [`Response::Started`] or [`Response::Failed`] once `execve` is decided.
    /// A container that the shim already has is not started again; its fate is the answer.
    Start(Box<Start>),
    /// Sends a signal to the first process of a container. Answered by [`Response::Done`], also when it has ended.
    Signal {
        /// Container id.
        container: String,
        /// Signal number.
        signal: i32,
    },
    /// Kills a container and forgets it; answered by [`Response::Done`] after its first process was reaped.
    Remove {
        /// Container id.
        container: String,
    },
    /// Runs a process in a container; three descriptors are attached: its standard input, output and error. With
    /// [`ExecJob::tty`] they are ignored, and the terminal's controlling side comes attached to
    /// [`Response::Started`], which is sent in addition. Answered by [`Response::Exited`] or [`Response::Failed`].
    Exec(Box<Exec>),
    /// Joins the streams of a container's first process. Attached are the writing ends of pipes for its standard
    /// output and error, as far as they are asked for. Answered by [`Response::Attached`], and by
    /// [`Response::Exited`] once the process has ended and what it wrote is in the pipes or on its way.
    Attach(Attach),
    /// The input that somebody attached is at its end: closes the standard input of a container that takes it once.
    CloseStdin {
        /// Container id.
        container: String,
    },
    /// Closes and reopens the log file of a container, after it was renamed for rotation.
    ReopenLog {
        /// Container id.
        container: String,
    },
    /// Turns the connection into a stream of [`Event`]s, after one [`Response::Done`].
    Subscribe,
    /// Kills every process, then answers [`Response::Done`] and exits.
    Shutdown,
}

/// A container to be started.
#[derive(Debug, Serialize, Deserialize)]
pub struct Start {
    /// Container id, unique in the sandbox.
    pub container: String,
    /// Log file in CRI format; its directory exists.
    pub log: PathBuf,
    /// File whose `oom_kill` line counts the OOM killer's victims (v1 `memory.oom_control`, v2 `memory.events`).
    pub oom_file: Option<PathBuf>,
    /// `cgroup.procs` of the container: what is left in it after the first process ended is killed.
    pub procs_file: Option<PathBuf>,
    /// Keep a standard input for those who attach; otherwise it is empty.
    #[serde(default)]
    pub stdin: bool,
    /// Close that input when the first one who attached has no more of it.
    #[serde(default)]
    pub stdin_once: bool,
    /// Size in bytes at which a log file is set aside for a new one; 0 means never.
    #[serde(default)]
    pub log_max_size: u64,
    /// Log files that are kept, the present one included.
    #[serde(default)]
    pub log_max_files: u32,
    /// Handed to the helper.
    pub job: CreateJob,
}

/// Which streams of a container are joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// Container id.
    pub container: String,
    /// Send input.
    pub stdin: bool,
    /// Receive standard output, or what a terminal shows.
    pub stdout: bool,
    /// Receive standard error; nothing comes from a terminal.
    pub stderr: bool,
}

/// A process to be run in a container.
#[derive(Debug, Serialize, Deserialize)]
pub struct Exec {
    /// Time after which the process is killed, ms; 0 means never.
    pub timeout_ms: u64,
    /// The process goes on when the connection is closed; otherwise it is killed then.
    #[serde(default)]
    pub keep: bool,
    /// Handed to the helper.
    pub job: ExecJob,
}

/// What a shim answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "response", rename_all = "snake_case")]
pub enum Response {
    /// To [`Request::Status`].
    Status(ShimStatus),
    /// A process was started.
    Started {
        /// PID in the host's PID namespace.
        pid: i32,
        /// When `execve` succeeded.
        started_at: i64,
    },
    /// To [`Request::Attach`]. Attached is the container's terminal, or the writing end of its standard input if that
    /// was asked for and the container has one.
    Attached {
        /// It is a terminal.
        terminal: bool,
    },
    /// A process was not started, or the request cannot be served.
    Failed(Failure),
    /// A process ended.
    Exited {
        /// Exit code, or 128 + signal.
        exit_code: i32,
        /// It was killed because its time was up.
        timed_out: bool,
    },
    /// The request is carried out.
    Done,
}

/// Why a process was not started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Says what is wrong.
    pub message: String,
    /// 127 (no such command), 126 (it cannot be executed), 128 (the container could not be made); 0 when no process
    /// was to be started.
    pub exit_code: i32,
    /// The user's command is at fault, not the node.
    pub user_error: bool,
}

/// What a shim pushes to subscribers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The first process of a container ended; its [`ExitRecord`] is on disk.
    Exited {
        /// Container id.
        container: String,
    },
}

/// Everything a shim knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimStatus {
    /// [`VERSION`] of the shim.
    pub version: u32,
    /// PID of the shim.
    pub pid: i32,
    /// Containers in the order of their start.
    pub containers: Vec<ContainerStatus>,
}

/// One container of a [`ShimStatus`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// Container id.
    pub id: String,
    /// Where it is in its life.
    pub state: ContainerState,
}

/// Life of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum ContainerState {
    /// A helper is at work.
    Starting,
    /// `execve` succeeded.
    Running {
        /// PID in the host's PID namespace.
        pid: i32,
        /// When `execve` succeeded.
        started_at: i64,
    },
    /// It ended.
    Exited(ExitRecord),
}

/// How a container ended: the content of [`files::EXIT`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Exit code, or 128 + signal.
    pub exit_code: i32,
    /// Signal that ended the process.
    pub signal: Option<i32>,
    /// The OOM killer was at work in the container's cgroup.
    pub oom: bool,
    /// The process was never started, for this reason.
    pub start_error: Option<String>,
    /// Nobody saw how it ended: the shim was gone.
    pub lost: bool,
    /// When `execve` succeeded, or failed.
    pub started_at: i64,
    /// When it was reaped.
    pub finished_at: i64,
}

/// What a helper is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "job", rename_all = "snake_case")]
pub enum Job {
    /// Make and start a container.
    Create(CreateJob),
    /// Start a process in a container.
    Exec(ExecJob),
}

/// A container to be made from a bundle.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CreateJob {
    /// Container id.
    pub container: String,
    /// Directory with [`files::CONFIG`] and [`files::ROOTFS`].
    pub bundle: PathBuf,
    /// libcontainer's state directory.
    pub state_dir: PathBuf,
    /// The root filesystem.
    pub root: Overlay,
    /// Where to attach the pod's shm in the host's tree, a directory that [`files::CONFIG`] binds to `/dev/shm`.
    pub shm: Option<PathBuf>,
    /// Who the process runs as.
    pub user: User,
    /// `oom_score_adj`.
    pub oom_score_adj: Option<i32>,
    /// Mounts that [`files::CONFIG`] cannot express: they are attached once the container's own are in place.
    #[serde(default)]
    pub late: Vec<LateMount>,
    /// The pod has a user namespace ([`HELPER_USERS_FD`]) with these ids.
    #[serde(default)]
    pub users: Option<IdRange>,
}

/// A bind mount that travels, that is read-only all the way down, or whose source others may change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LateMount {
    /// Directory or file on the host.
    pub source: PathBuf,
    /// Path below `source` to mount: it is walked as it is when the container is made, and leads nowhere else.
    pub below: Option<PathBuf>,
    /// Absolute path in the container.
    pub destination: PathBuf,
    /// Read-only.
    pub read_only: bool,
    /// Also what is mounted below.
    pub recursive_read_only: bool,
    /// How later mounts travel.
    pub propagation: Propagation,
    /// Files belong to the ids of the pod's user namespace as they belong to those of the host.
    #[serde(default)]
    pub mapped: bool,
}

/// How mounts travel between a container and its host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Propagation {
    /// Not at all.
    #[default]
    Private,
    /// From the host into the container.
    Slave,
    /// Both ways.
    Shared,
}

/// An overlay mount.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Overlay {
    /// Directory of the layers.
    pub layers_dir: PathBuf,
    /// Lower directories in `layers_dir`, topmost first.
    pub lower: Vec<String>,
    /// Upper directory.
    pub upper: PathBuf,
    /// Work directory, on the file system of `upper`.
    pub work: PathBuf,
}

/// Who a process runs as, before /etc/passwd and /etc/group of the image are asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Numeric user, when the Pod gives one.
    pub uid: Option<u32>,
    /// Numeric group, when the Pod gives one.
    pub gid: Option<u32>,
    /// `user[:group]` of the image config, used when there is no `uid`.
    pub name: Option<String>,
    /// Further groups.
    pub additional_gids: Vec<u32>,
    /// Leave out the groups of /etc/group.
    #[serde(default)]
    pub strict: bool,
}

/// A process to be started in a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExecJob {
    /// Container id.
    pub container: String,
    /// The container's bundle; user, environment, limits and capabilities are those of its process.
    pub bundle: PathBuf,
    /// libcontainer's state directory.
    pub state_dir: PathBuf,
    /// Command and arguments.
    pub argv: Vec<String>,
    /// Give it a terminal.
    pub tty: bool,
    /// `oom_score_adj` of the container.
    pub oom_score_adj: Option<i32>,
    /// Ids of the pod's user namespace.
    #[serde(default)]
    pub users: Option<IdRange>,
}

/// How a [`Job`] ended. With a terminal, its controlling side is attached.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "snake_case")]
pub enum Report {
    /// `execve` succeeded.
    Started {
        /// PID in the host's PID namespace; it becomes a child of the shim when the helper exits.
        pid: i32,
        /// Things that could not be done but did not matter enough, one a line.
        warnings: Vec<String>,
    },
    /// The process was not started.
    Failed(Failure),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_a_round_trip() {
        let job = ExecJob {
            container: "a.0".into(),
            bundle: "/b".into(),
            state_dir: "/s".into(),
            argv: vec!["true".into()],
            tty: false,
            oom_score_adj: Some(-997),
            users: Some(IdRange { host: 65_536, length: 65_536 }),
        };
        let text = serde_json::to_string(&Request::Exec(Box::new(Exec { timeout_ms: 5, keep: false, job })))
            .unwrap();
        let Request::Exec(exec) = serde_json::from_str(&text).unwrap() else { panic!("{text}") };
        assert_eq!((exec.timeout_ms, exec.job.oom_score_adj), (5, Some(-997)));
        let state = ContainerState::Exited(ExitRecord {
            exit_code: 137,
            signal: Some(9),
            oom: true,
            start_error: None,
            lost: false,
            started_at: 1,
            finished_at: 2,
        });
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<ContainerState>(&text).unwrap(), state);
    }
}
