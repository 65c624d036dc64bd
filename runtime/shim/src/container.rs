//! One container as the shim sees it.

use crate::log::{Log, Stream};
use crate::sys;
use kelp_runtime_protocol::{ContainerState, ExitRecord, files};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// A container.
pub struct Container {
    /// Its id.
    pub id: String,
    /// Where it is in its life.
    pub state: ContainerState,
    /// Its log file.
    pub log: Log,
    /// Writing end of its standard input, for those who attach.
    pub stdin: Option<OwnedFd>,
    /// The input ends with the first one who attached.
    pub stdin_once: bool,
    /// `stdout` is its terminal.
    pub terminal: bool,
    /// Standard output, or the terminal.
    pub stdout: Stream,
    /// Standard error.
    pub stderr: Stream,
    /// Where its exit record goes.
    pub bundle: PathBuf,
    /// Counts victims of the OOM killer.
    pub oom_file: Option<PathBuf>,
    /// Processes of the container.
    pub procs_file: Option<PathBuf>,
    /// Helpers that are about to join its namespaces: its PID must stay reserved until they are done.
    pub joining: usize,
    /// It is to be killed as soon as it runs.
    pub doomed: bool,
}

impl Container {
    /// PID of its first process while it runs.
    pub fn pid(&self) -> Option<i32> {
        match self.state {
            ContainerState::Running { pid, .. } => Some(pid),
            _ => None,
        }
    }

    /// The first process was reaped.
    pub fn ended(&mut self, exit_code: i32, signal: Option<i32>) -> io::Result<()> {
        let ContainerState::Running { started_at, .. } = self.state else { return Ok(()) };
        // Processes that outlive the first one (host PID namespace) would hold the cgroup and the pipes.
        kill_all(self.procs_file.as_deref());
        // What the container wrote before its end must be in the log when its end is known. The pipe holds no more
        // than this.
        self.stdin = None;
        self.stdout.drain(&mut self.log);
        self.stderr.drain(&mut self.log);
        let oom = exit_code != 0 && oom_kills(self.oom_file.as_deref()) > 0;
        self.finish(ExitRecord {
            exit_code,
            signal,
            oom,
            start_error: None,
            lost: false,
            started_at,
            finished_at: now(),
        })
    }

    /// The first process was never started.
    pub fn failed(&mut self, exit_code: i32, message: String) -> io::Result<()> {
        let now = now();
        self.finish(ExitRecord {
            exit_code,
            signal: None,
            oom: false,
            start_error: Some(message),
            lost: false,
            started_at: now,
            finished_at: now,
        })
    }

    fn finish(&mut self, record: ExitRecord) -> io::Result<()> {
        let path = self.bundle.join(files::EXIT);
        let partial = path.with_extension("new");
        let text = serde_json::to_vec(&record)?;
        self.state = ContainerState::Exited(record);
        File::create(&partial)?.write_all(&text)?;
        fs::rename(&partial, &path)
    }
}

/// Kills every process listed in a `cgroup.procs` file.
pub fn kill_all(procs_file: Option<&Path>) {
    let Some(path) = procs_file else { return };
    let list = || -> Vec<i32> {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect()
    };
    // A process may fork while the list is read; a new list shows the child.
    for _ in 0..8 {
        let handles: Vec<(i32, OwnedFd)> =
            list().into_iter().filter_map(|pid| Some((pid, sys::pidfd(pid).ok()?))).collect();
        if handles.is_empty() {
            return;
        }
        // A PID that is still listed after its handle was opened has not been given to a stranger in between.
        let still = list();
        for (_, handle) in handles.iter().filter(|(pid, _)| still.contains(pid)) {
            let _ = sys::kill_handle(handle, libc::SIGKILL);
        }
    }
}

fn oom_kills(path: Option<&Path>) -> u64 {
    let text = path.and_then(|p| fs::read_to_string(p).ok()).unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill "))
        .and_then(|count| count.trim().parse().ok())
        .unwrap_or(0)
}

/// Milliseconds since the Unix epoch.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
