//! What the agent sees of one pod on its node.

use crate::pod::backoff::Backoff;
use jiff::Timestamp;
use std::collections::BTreeMap;

/// A pod's sandbox (shim, cgroup, namespaces).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sandbox {
    /// There is none.
    #[default]
    Absent,
    /// Its shim vanished: the exit codes of its containers are lost, it must be replaced.
    Lost,
    /// The shim runs; the network is not set up yet.
    Created,
    /// The shim runs and the pod has its addresses (or is on the host network).
    Ready,
}

/// Everything of a pod that runs or ran on this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// The sandbox.
    pub sandbox: Sandbox,
    /// Containers of the sandbox, any order, several attempts of one name possible.
    pub containers: Vec<Record>,
}

impl Observed {
    /// The newest attempt of a container.
    pub fn latest(&self, name: &str) -> Option<&Record> {
        self.containers.iter().filter(|c| c.name == name).max_by_key(|c| c.attempt)
    }

    /// The attempt before `attempt` of a container.
    pub fn before(&self, name: &str, attempt: u32) -> Option<&Record> {
        self.containers.iter().filter(|c| c.name == name && c.attempt < attempt).max_by_key(|c| c.attempt)
    }
}

/// One attempt of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Name in the Pod spec.
    pub name: String,
    /// Restart count.
    pub attempt: u32,
    /// What a Pod's status shows as `containerID`.
    pub container_id: String,
    /// The reference the Pod named.
    pub image: String,
    /// Image id.
    pub image_id: String,
    /// Where it is in its life.
    pub state: State,
}

/// Life of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Prepared, not started.
    Created,
    /// Its first process runs since this time.
    Running(Timestamp),
    /// Its first process ended.
    Exited(Exit),
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Exit code, 0..=255.
    pub exit_code: i32,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, `ContainerStatusUnknown`.
    pub reason: String,
    /// Termination message.
    pub message: String,
    /// Start.
    pub started_at: Timestamp,
    /// End.
    pub finished_at: Timestamp,
}

/// What only the agent knows of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// Why it is not running: reason and message of the last attempt to start it.
    pub waiting: Option<(String, String)>,
    /// Do not try to start it before this time (image and configuration errors).
    pub retry_at: Option<Timestamp>,
    /// Restart back-off.
    pub backoff: Option<Backoff>,
    /// The startup probe of the running attempt succeeded (or there is none).
    pub started: bool,
    /// The readiness probe of the running attempt succeeds (or there is none).
    pub ready: bool,
    /// The running attempt must be killed: text of the `Killing` event.
    pub unhealthy: Option<String>,
    /// Its postStart hook is still running.
    pub in_post_start: bool,
    /// It is being killed.
    pub killing: bool,
    /// The attempt that the agent itself killed to start the container again.
    pub killed: Option<u32>,
    /// User ids the running attempt was started with: uid, gid, supplementary groups.
    pub user: Option<(i64, i64, Vec<i64>)>,
}

/// [`Memory`] by container name.
pub type Memories = BTreeMap<String, Memory>;
