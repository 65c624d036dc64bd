//! Starting a process in a running container.

use crate::create::set_oom_score;
use crate::diagnosis::Diagnosis;
use crate::executor::{Identity, Outcome};
use crate::terminal::ConsoleSocket;
use crate::{Refusal, Started, sys, users};
use anyhow::{Context, Result, anyhow};
use kelp_runtime_protocol::{ExecJob, HELPER_STDIO_FD, files};
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::{Spec, User};
use libcontainer::syscall::syscall::SyscallType;
use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// Starts the process.
pub fn run(job: &ExecJob) -> Result<Started, Refusal> {
    let diagnosis = Diagnosis::start().context("cannot collect errors")?;
    let spec =
        Spec::load(job.bundle.join(files::CONFIG)).map_err(|e| anyhow!("cannot read the OCI spec: {e}"))?;
    let seccomp = spec.linux().as_ref().and_then(|linux| linux.seccomp().clone());
    // The process of the container with another command: same user, environment, capabilities, limits.
    let mut process = spec.process().clone().context("the OCI spec has no process")?;
    process.set_args(Some(job.argv.clone())).set_terminal(Some(job.tty));
    if job.tty {
        let mut env = process.env().clone().unwrap_or_default();
        env.retain(|entry| !entry.starts_with("TERM="));
        env.push("TERM=xterm".to_owned());
        process.set_env(Some(env));
    }
    users::give_streams(process.user().uid(), job.users)?;
    let users = users::of(job.users)?;
    let identity =
        users.as_ref().map(|u| Identity { users: u.namespace.as_raw_fd(), process: process.clone() });
    if identity.is_some() {
        process.set_user(User::default());
        process.set_capabilities(None).set_no_new_privileges(None);
    }
    let mut file = sys::memory_file(c"process.json").context("cannot make a file in memory")?;
    let text = serde_json::to_vec(&process).context("cannot encode the process")?;
    file.write_all(&text).context("cannot write the process")?;
    let process_path = format!("/proc/self/fd/{}", file.as_raw_fd());

    let mut warnings = Vec::new();
    warnings.extend(set_oom_score(job.oom_score_adj));
    let state = PrivateState::new(&job.state_dir, &job.container)?;
    let outcome = Outcome::new().context("cannot make a pipe")?;
    let console = job.tty.then(|| ConsoleSocket::new(&state.dir)).transpose()?;
    let base = ContainerBuilder::new(job.container.clone(), SyscallType::default())
        .with_executor(outcome.executor(seccomp, None).with_identity(identity))
        .with_root_path(&state.dir)
        .map_err(|e| anyhow!("cannot find the container: {e}"))?;
    let base = match &console {
        Some(console) => base.with_console_socket(Some(console.path())),
        None => base
            .with_stdin(sys::passed(HELPER_STDIO_FD).context("no standard input")?)
            .with_stdout(sys::passed(HELPER_STDIO_FD + 1).context("no standard output")?)
            .with_stderr(sys::passed(HELPER_STDIO_FD + 2).context("no standard error")?),
    };
    let pid = base
        .as_tenant()
        .with_process(Some(process_path))
        .with_detach(true)
        .build()
        .map_err(|e| diagnosis.explain(anyhow!(e).context("cannot enter the container")))?
        .as_raw();
    let terminal = console.map(|console| console.receive()).transpose()?;
    match outcome.wait().context("cannot learn whether the command runs")? {
        None => Ok(Started { pid, terminal, warnings }),
        Some((exit_code, message)) => Err(Refusal::Command { exit_code, message }),
    }
}

/// A copy of the container's state in a directory of our own: libcontainer leaves a socket there with every exec.
struct PrivateState {
    dir: PathBuf,
}

impl PrivateState {
    fn new(state_dir: &Path, container: &str) -> Result<Self> {
        let dir = state_dir.join(format!(".exec-{}", std::process::id()));
        let private = Self { dir };
        let copy = private.dir.join(container);
        fs::create_dir_all(&copy).context("cannot create a state directory")?;
        for entry in fs::read_dir(state_dir.join(container)).context("cannot read the state")? {
            let entry = entry.context("cannot read the state")?;
            if entry.file_type().is_ok_and(|kind| kind.is_file()) {
                fs::copy(entry.path(), copy.join(entry.file_name())).context("cannot copy the state")?;
            }
        }
        Ok(private)
    }
}

impl Drop for PrivateState {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}
