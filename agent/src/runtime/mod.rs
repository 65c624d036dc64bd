//! Containers and sandboxes: the [`Runtime`] seam and its libcontainer implementation.
//!
//! The agent never links libcontainer: each pod has a shim process (`kelp-shim`) that outlives the agent, and the
//! shim starts a short-lived helper (`kelp-runtime-helper`) for each libcontainer call.

mod cgroup;
mod client;
pub mod fake;
pub mod host;
mod launch;
mod layout;
mod measured;
pub mod seccomp;
pub mod session;
mod shim;
mod spec;
mod types;
pub mod usage;

pub use measured::Measured;
pub use session::{Session, Streams};
pub use shim::{LOG_MAX_FILES, LOG_MAX_SIZE, RuntimeConfig, ShimRuntime};
pub(crate) use spec::granted;
pub use types::*;
pub use usage::PodUsage;

use std::future::Future;
use std::time::Duration;
use tokio::sync::broadcast;

/// Runs sandboxes (pods) and their containers. Every call is idempotent: repeating one that was cut off by a crash
/// finishes it, and calling one whose work is done returns the present state.
///
/// The kernel and the shim hold the truth; an implementation keeps no state that it cannot rebuild from them.
pub trait Runtime: Send + Sync + 'static {
    /// Starts the shim of a pod and with it the pod's cgroup and its network, IPC and UTS namespaces.
    fn create_sandbox(
        &self,
        spec: &SandboxSpec,
    ) -> impl Future<Output = Result<SandboxStatus, RuntimeError>> + Send;

    /// Prepares the root filesystem of a container and starts its process. Returns once `execve` of the user's
    /// command has succeeded, or with [`RuntimeError::Start`] that says exactly why it did not.
    fn start_container(
        &self,
        sandbox: &str,
        spec: &ContainerSpec,
    ) -> impl Future<Output = Result<ContainerStatus, RuntimeError>> + Send;

    /// Sends `signal` to the container's first process.
    fn signal_container(
        &self,
        sandbox: &str,
        container: &str,
        signal: i32,
    ) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Kills whatever is left of a container, and removes its cgroup, root filesystem and state.
    fn remove_container(
        &self,
        sandbox: &str,
        container: &str,
    ) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Removes a sandbox with all its containers; afterwards no process, cgroup, mount or file of it is left but its
    /// logs, which go with the Pod.
    fn remove_sandbox(&self, sandbox: &str) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Sets the limits of a running container, or of the whole pod, without a restart. What `resources` leaves out
    /// loses its limit.
    fn update_resources(
        &self,
        sandbox: &str,
        container: Option<&str>,
        resources: &Resources,
    ) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Bytes that a container has written to its root filesystem.
    fn writable_bytes(
        &self,
        sandbox: &str,
        container: &str,
    ) -> impl Future<Output = Result<u64, RuntimeError>> + Send;

    /// Everything on this node, read from the shims.
    fn list(&self) -> impl Future<Output = Result<Vec<SandboxStatus>, RuntimeError>> + Send;

    /// One sandbox, `None` if it is not on this node.
    fn status(
        &self,
        sandbox: &str,
    ) -> impl Future<Output = Result<Option<SandboxStatus>, RuntimeError>> + Send;

    /// Who the first process of a container runs as: user, group and supplementary groups. Nothing before it has started.
    fn container_user(&self, sandbox: &str, container: &str) -> Option<(u32, u32, Vec<u32>)>;

    /// Runs a command inside a running container to its end and returns its output (at most 16 KiB of each stream)
    /// and exit code; used by exec probes and hooks.
    fn exec(
        &self,
        sandbox: &str,
        container: &str,
        argv: &[String],
        timeout: Duration,
    ) -> impl Future<Output = Result<ExecResult, RuntimeError>> + Send;

    /// Starts a command inside a running container and hands out its streams. It goes on when the session is dropped.
    fn open_exec(
        &self,
        sandbox: &str,
        container: &str,
        argv: &[String],
        streams: Streams,
    ) -> impl Future<Output = Result<Session, RuntimeError>> + Send;

    /// Joins the streams of a running container's first process, from now on.
    fn attach(
        &self,
        sandbox: &str,
        container: &str,
        streams: Streams,
    ) -> impl Future<Output = Result<Session, RuntimeError>> + Send;

    /// An attached input is at its end: closes the standard input of a container that takes it once.
    fn close_stdin(
        &self,
        sandbox: &str,
        container: &str,
    ) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// What a pod and its containers use now; `None` when it has no cgroup.
    fn usage(&self, sandbox: &str) -> impl Future<Output = Result<Option<PodUsage>, RuntimeError>> + Send;

    /// What all pods together use; `None` when that cannot be told.
    fn pods_usage(&self) -> impl Future<Output = Option<usage::Usage>> + Send {
        async { None }
    }

    /// What the agent's own cgroup uses; `None` when it has none to itself.
    fn own_usage(&self) -> impl Future<Output = Option<usage::Usage>> + Send {
        async { None }
    }

    /// Sets limits of all pods together.
    fn limit_pods(&self, resources: &Resources) -> impl Future<Output = Result<(), RuntimeError>> + Send {
        let _ = resources;
        async { Ok(()) }
    }

    /// State changes (a container exited, a shim vanished). A lagging receiver must [`Runtime::list`] again.
    fn events(&self) -> broadcast::Receiver<RuntimeEvent>;
}
