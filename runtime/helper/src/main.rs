//! Short-lived helper that calls libcontainer: makes a container, or starts a process in one, reports and exits.
//!
//! libcontainer forks without regard for threads, changes the working directory, `oom_score_adj` and dumpability of its
//! process: so each call has a process of its own, with one thread. The container becomes a child of the shim when this
//! process exits.

mod create;
mod diagnosis;
mod exec;
mod executor;
mod late;
mod mounts;
mod sys;
mod terminal;
mod user;
mod users;

use anyhow::{Context, Result};
use kelp_runtime_protocol::{Failure, HELPER_SOCKET_FD, Job, Report, wire};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::ExitCode;

/// A process that was started.
pub struct Started {
    /// PID in the host's PID namespace.
    pub pid: i32,
    /// Controlling side of its terminal.
    pub terminal: Option<OwnedFd>,
    /// What could not be done but did not matter enough.
    pub warnings: Vec<String>,
}

/// Why a process was not started.
pub enum Refusal {
    /// The command cannot be executed: what [`executor`] reports.
    Command {
        /// 126 or 127.
        exit_code: i32,
        /// For the user.
        message: String,
    },
    /// Anything else.
    Other(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

fn main() -> ExitCode {
    let result = sys::reset_process().context("cannot prepare the helper").and_then(|()| {
        let job = wire::receive::<Job>(HELPER_SOCKET_FD).context("cannot read the job")?;
        job.map(|(job, _)| job).context("there is no job; the shim starts this program")
    });
    let outcome = match result {
        Ok(Job::Create(job)) => create::run(&job),
        Ok(Job::Exec(job)) => exec::run(&job),
        Err(error) => Err(Refusal::Other(error)),
    };
    match send(outcome) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot report to the shim: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn send(outcome: Result<Started, Refusal>) -> Result<()> {
    let (report, terminal) = match outcome {
        Ok(Started { pid, terminal, warnings }) => (Report::Started { pid, warnings }, terminal),
        Err(Refusal::Command { exit_code, message }) => {
            (Report::Failed(Failure { message, exit_code, user_error: true }), None)
        }
        Err(Refusal::Other(error)) => {
            let message = format!("{error:#}");
            (Report::Failed(Failure { message, exit_code: 128, user_error: false }), None)
        }
    };
    let fds: Vec<i32> = terminal.iter().map(AsRawFd::as_raw_fd).collect();
    wire::send(HELPER_SOCKET_FD, &report, &fds).context("cannot send")
}
