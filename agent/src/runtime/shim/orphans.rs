//! Containers whose shim is gone. They run on until they are told to end; nobody who would tell their exit codes reaps
//! them.
//!
//! Each is watched by a handle of its first process. Through it the kernel tells the exit code of a process that has been
//! reaped (`PIDFD_GET_INFO`, Linux 6.15 and newer); on older kernels the code is lost with the shim.

use super::{ShimRuntime, blocking};
use crate::runtime::cgroup::Cgroups;
use crate::runtime::layout::{self, Record};
use crate::runtime::{RuntimeError, RuntimeEvent};
use kelp_runtime_protocol::{self as protocol, Sandbox, files};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::sync::broadcast;
use tokio::task::JoinHandle;

/// How long a process that has ended may wait to be reaped by whoever inherited it.
const REAPED: Duration = Duration::from_secs(10);

/// A container that runs without a shim.
pub(super) struct Orphan {
    process: Arc<OwnedFd>,
    pid: i32,
    watcher: JoinHandle<()>,
}

impl Drop for Orphan {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

/// What libcontainer keeps of a container.
#[derive(serde::Deserialize)]
struct State {
    status: String,
    pid: Option<i32>,
}

impl ShimRuntime {
    /// Watches the containers of a sandbox without a shim that run on; the others are over, with their exit codes lost.
    pub(super) async fn adopt(&self, sandbox: &Sandbox) -> Result<(), RuntimeError> {
        for record in self.inner.layout.records(&sandbox.id)? {
            if self.exit_record(&sandbox.id, &record.id)?.is_some() {
                continue;
            }
            let key = (sandbox.id.clone(), record.id.clone());
            if self.inner.orphans.lock().contains_key(&key) {
                continue;
            }
            match self.first_process(sandbox, &record) {
                Some((pid, process)) => self.follow(sandbox, &record, pid, process)?,
                None => {
                    let (cgroups, path) = (self.inner.cgroups.clone(), sandbox.pod_cgroup.join(&record.id));
                    blocking("kill what a shim left", move || cgroups.kill(&path, None)).await?;
                    self.write_lost(&sandbox.id, &record)?;
                }
            }
        }
        Ok(())
    }

    /// PID and handle of a container's first process, when it runs.
    fn first_process(&self, sandbox: &Sandbox, record: &Record) -> Option<(i32, OwnedFd)> {
        let states = self.inner.layout.sandbox_file(&sandbox.id, files::STATE);
        let state: State = layout::read(&states.join(&record.id).join("state.json")).ok().flatten()?;
        let pid = state.pid.filter(|_| state.status == "running")?;
        let process = super::super::cgroup::pidfd(pid)?;
        // A PID that its cgroup lists after its handle was opened has not been given to a stranger in between.
        let procs = self.inner.cgroups.container_files(&sandbox.pod_cgroup.join(&record.id)).procs?;
        let text = std::fs::read_to_string(procs).ok()?;
        let listed = text.lines().any(|line| line.parse() == Ok(pid));
        listed.then_some((pid, process))
    }

    fn follow(
        &self,
        sandbox: &Sandbox,
        record: &Record,
        pid: i32,
        process: OwnedFd,
    ) -> Result<(), RuntimeError> {
        let failed = |source| RuntimeError::Io {
            action: format!("cannot watch container {} of sandbox {}", record.id, sandbox.id),
            source,
        };
        let watcher = Watcher {
            sandbox: sandbox.id.clone(),
            container: record.id.clone(),
            started_at: record.created_at,
            bundle: self.inner.layout.bundle(&sandbox.id, &record.id),
            cgroups: self.inner.cgroups.clone(),
            cgroup: sandbox.pod_cgroup.join(&record.id),
            events: self.inner.events.clone(),
        };
        let own = process.try_clone().map_err(failed)?;
        let mut orphans = self.inner.orphans.lock();
        orphans.entry((sandbox.id.clone(), record.id.clone())).or_insert_with(|| Orphan {
            process: Arc::new(process),
            pid,
            watcher: tokio::spawn(watcher.run(own)),
        });
        Ok(())
    }

    /// PID of a container that runs without a shim.
    pub(super) fn orphan_pid(&self, sandbox: &str, container: &str) -> Option<u32> {
        let key = (sandbox.to_owned(), container.to_owned());
        self.inner.orphans.lock().get(&key).and_then(|orphan| u32::try_from(orphan.pid).ok())
    }

    /// Sends a signal to a container that runs without a shim; `false` when there is none.
    pub(super) fn signal_orphan(&self, sandbox: &str, container: &str, signal: i32) -> bool {
        let key = (sandbox.to_owned(), container.to_owned());
        let Some(process) = self.inner.orphans.lock().get(&key).map(|orphan| orphan.process.clone()) else {
            return false;
        };
        super::send_signal(&process, signal);
        true
    }

    /// Stops watching what a sandbox left, or one container of it.
    pub(super) fn forget_orphans(&self, sandbox: &str, container: Option<&str>) {
        let goes = |(s, c): &(String, String)| s == sandbox && container.is_none_or(|only| only == c);
        self.inner.orphans.lock().retain(|key, _| !goes(key));
    }

    /// Notes that nobody saw how a container ended.
    pub(super) fn write_lost(&self, sandbox: &str, record: &Record) -> Result<(), RuntimeError> {
        let path = self.inner.layout.bundle(sandbox, &record.id).join(files::EXIT);
        layout::write(&path, &lost(record.created_at))
    }
}

fn lost(started_at: i64) -> protocol::ExitRecord {
    protocol::ExitRecord {
        exit_code: 137,
        signal: None,
        oom: false,
        start_error: None,
        lost: true,
        started_at,
        finished_at: jiff::Timestamp::now().as_millisecond(),
    }
}

/// Waits for the end of an orphan and notes it.
struct Watcher {
    sandbox: String,
    container: String,
    started_at: i64,
    bundle: PathBuf,
    cgroups: Cgroups,
    cgroup: PathBuf,
    events: broadcast::Sender<RuntimeEvent>,
}

impl Watcher {
    async fn run(self, process: OwnedFd) {
        let status = match wait(process).await {
            Ok(status) => status,
            Err(error) => {
                tracing::warn!(sandbox = %self.sandbox, container = %self.container, %error, "a container without a shim is not watched");
                None
            }
        };
        let oom_file = self.cgroups.container_files(&self.cgroup).oom;
        let (cgroups, cgroup) = (self.cgroups.clone(), self.cgroup.clone());
        let killed = blocking("kill what a container left", move || cgroups.kill(&cgroup, None)).await;
        if let Err(error) = killed {
            tracing::warn!(sandbox = %self.sandbox, container = %self.container, %error, "processes are left");
        }
        let record = match status {
            None => lost(self.started_at),
            Some(status) => {
                let (exit_code, signal) = decode(status);
                let oom = exit_code != 0 && oom_kills(oom_file.as_deref()) > 0;
                protocol::ExitRecord { exit_code, signal, oom, lost: false, ..lost(self.started_at) }
            }
        };
        if let Err(error) = layout::write(&self.bundle.join(files::EXIT), &record) {
            tracing::warn!(sandbox = %self.sandbox, container = %self.container, %error, "the end of a container is not noted");
        }
        let Self { sandbox, container, events, .. } = self;
        let _ = events.send(RuntimeEvent::ContainerExited { sandbox, container });
    }
}

/// Waits until the process has ended and was reaped. Its wait status; `None` when the kernel does not tell.
async fn wait(process: OwnedFd) -> io::Result<Option<i32>> {
    // SAFETY: an OwnedFd stays the same open descriptor until it is dropped, and AsyncFd drops it last.
    let process = unsafe { AsyncFd::register_with_interest(process, tokio::io::Interest::READABLE) }?;
    let mut ready = process.readable().await?;
    let mut reaped = std::pin::pin!(tokio::time::sleep(REAPED));
    loop {
        // From Linux 6.9 on, a reaped process is one whose other end is closed: that is the last event, and never cleared.
        let last = ready.ready().is_read_closed();
        match exit_status(process.get_ref())? {
            Told::Status(status) => return Ok(Some(status)),
            Told::Never => return Ok(None),
            Told::NotYet if last => return Ok(None),
            Told::NotYet => ready.clear_ready(),
        }
        tokio::select! {
            // Once more when it is reaped.
            again = process.readable() => ready = again?,
            () = &mut reaped => return Ok(match exit_status(process.get_ref())? {
                Told::Status(status) => Some(status),
                Told::NotYet | Told::Never => None,
            }),
        }
    }
}

/// What the kernel says of how a process ended.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    /// Its wait status.
    Status(i32),
    /// It has not been reaped, or the kernel forgot the status with that (before Linux 6.15).
    NotYet,
    /// The kernel does not know the question (before Linux 6.13).
    Never,
}

/// `struct pidfd_info` of linux/pidfd.h, as of its first version.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup: u64,
    ids: [u32; 11],
    exit_code: i32,
}

/// `_IOWR(PIDFS_IOCTL_MAGIC, 11, struct pidfd_info)`.
const PIDFD_GET_INFO: libc::c_ulong =
    (3 << 30) | ((size_of::<PidfdInfo>() as libc::c_ulong) << 16) | (0xFF << 8) | 11;
/// The exit code is asked for, and known.
const PIDFD_INFO_EXIT: u64 = 1 << 3;

/// Asks for the wait status of a process.
fn exit_status(process: &OwnedFd) -> io::Result<Told> {
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: the structure lives for the call, and the request's number tells its size.
    let result = unsafe { libc::ioctl(process.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
    if result < 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::ENOTTY | libc::EINVAL) => Ok(Told::Never),
            Some(libc::ESRCH) => Ok(Told::NotYet),
            _ => Err(error),
        };
    }
    Ok(if info.mask & PIDFD_INFO_EXIT == 0 { Told::NotYet } else { Told::Status(info.exit_code) })
}

/// Exit code and signal of a wait status.
fn decode(status: i32) -> (i32, Option<i32>) {
    if libc::WIFSIGNALED(status) {
        let signal = libc::WTERMSIG(status);
        (128 + signal, Some(signal))
    } else {
        (libc::WEXITSTATUS(status), None)
    }
}

fn oom_kills(path: Option<&Path>) -> u64 {
    let text = path.and_then(|p| std::fs::read_to_string(p).ok()).unwrap_or_default();
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_structure() {
        assert_eq!(size_of::<PidfdInfo>(), 64);
        assert_eq!(PIDFD_GET_INFO, 0xC040_FF0B);
    }

    #[test]
    fn wait_statuses() {
        assert_eq!(decode(0), (0, None));
        assert_eq!(decode(3 << 8), (3, None));
        assert_eq!(decode(libc::SIGKILL), (137, Some(9)));
    }
}
