//! Making and starting a container.

use crate::diagnosis::Diagnosis;
use crate::executor::Outcome;
use crate::late::Detached;
use crate::terminal::ConsoleSocket;
use crate::{Refusal, Started, late, mounts, sys, user, users};
use anyhow::{Context, Result, anyhow};
use kelp_runtime_protocol::{CreateJob, HELPER_STDIO_FD, files};
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::SyscallType;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Makes the container and starts its process.
pub fn run(job: &CreateJob) -> Result<Started, Refusal> {
    let diagnosis = Diagnosis::start().context("cannot collect errors")?;
    let users = users::of(job.users)?;
    let late = late::detach(&job.late, users.as_ref())?;
    mounts::prepare(job, users.as_ref())?;
    let config = job.bundle.join(files::CONFIG);
    let mut spec = Spec::load(&config).map_err(|e| anyhow!("cannot read the OCI spec: {e}"))?;
    // What is made in the root filesystem is its root's.
    let owner = job.users.map_or(0, |range| range.host);
    late::make_targets(&job.bundle.join(files::ROOTFS), &late, owner)?;
    let cwd = complete(&mut spec, job, &late, owner)?;
    let uid = spec.process().as_ref().map_or(0, |process| process.user().uid());
    users::give_streams(uid, job.users)?;
    let _joined = users.as_ref().map(|users| users::join(&mut spec, users)).transpose()?;
    spec.save(&config).map_err(|e| anyhow!("cannot write the OCI spec: {e}"))?;
    let mut warnings = Vec::new();
    warnings.extend(set_oom_score(job.oom_score_adj));

    fs::create_dir_all(&job.state_dir).context("cannot create the state directory")?;
    // What a killed helper left of an earlier attempt.
    let _ = fs::remove_dir_all(job.state_dir.join(&job.container));

    let outcome = Outcome::new().context("cannot make a pipe")?;
    let tty = spec.process().as_ref().and_then(|p| p.terminal()).unwrap_or(false);
    let console = tty.then(|| ConsoleSocket::new(&job.bundle)).transpose()?;
    let base = ContainerBuilder::new(job.container.clone(), SyscallType::default())
        .with_executor(outcome.executor(None, cwd))
        .with_root_path(&job.state_dir)
        .and_then(ContainerBuilder::validate_id)
        .map_err(|e| anyhow!("cannot make the container: {e}"))?;
    let base = match &console {
        Some(console) => base.with_console_socket(Some(console.path())),
        None => base
            .with_stdin(sys::passed(HELPER_STDIO_FD).context("no standard input")?)
            .with_stdout(sys::passed(HELPER_STDIO_FD + 1).context("no standard output")?)
            .with_stderr(sys::passed(HELPER_STDIO_FD + 2).context("no standard error")?),
    };
    let mut container = base
        .as_init(&job.bundle)
        .with_systemd(false)
        .with_detach(true)
        .build()
        .map_err(|e| diagnosis.explain(anyhow!(e).context("cannot make the container")))?;
    let pid = container.pid().context("the container has no process")?.as_raw();
    let terminal = console.map(|console| console.receive()).transpose()?;
    late::attach(pid, &late, owner)?;
    container.start().map_err(|e| diagnosis.explain(anyhow!(e).context("cannot start the container")))?;
    match outcome.wait().context("cannot learn whether the command runs")? {
        None => Ok(Started { pid, terminal, warnings }),
        Some((exit_code, message)) => Err(Refusal::Command { exit_code, message }),
    }
}

/// Fills in what only the mounted image tells: numbers of the user, the working directory. Returns the latter when it is
/// in a mount that comes late, and so has to be entered again.
fn complete(spec: &mut Spec, job: &CreateJob, late: &[Detached], owner: u32) -> Result<Option<PathBuf>> {
    let rootfs = job.bundle.join(files::ROOTFS);
    let root = File::open(&rootfs).context("cannot open the root filesystem")?;
    let binds: Vec<(PathBuf, PathBuf)> = spec
        .mounts()
        .iter()
        .flatten()
        .filter(|mount| mount.typ().as_deref() == Some("bind"))
        .filter_map(|mount| Some((mount.destination().clone(), mount.source().clone()?)))
        .collect();
    let process = spec.process_mut().as_mut().context("the OCI spec has no process")?;
    let ids = user::resolve(&job.user, &root)?;
    // The primary group is among the others, as other runtimes have it.
    let mut groups = ids.groups;
    if !groups.contains(&ids.gid) {
        groups.insert(0, ids.gid);
    }
    let env = process.env_mut().get_or_insert_default();
    if !env.iter().any(|line| line.starts_with("HOME=")) {
        env.push(format!("HOME={}", ids.home));
    }
    let who = process.user_mut();
    who.set_uid(ids.uid).set_gid(ids.gid).set_additional_gids(Some(groups));
    let cwd = process.cwd();
    if let Some((mount, inner)) = late::covering(late, cwd) {
        mounts::make_cwd(mount, inner, cwd, owner)?;
        return Ok(Some(cwd.clone()));
    }
    let depth = |path: &Path| path.components().count();
    let covering = binds.iter().filter(|(to, _)| cwd.starts_with(to)).max_by_key(|(to, _)| depth(to));
    match covering {
        Some((to, source)) => {
            let base = File::open(source).with_context(|| format!("cannot open {}", source.display()))?;
            mounts::make_cwd(&base, cwd.strip_prefix(to).unwrap_or(Path::new("")), cwd, owner)?;
        }
        None => mounts::make_cwd(&root, cwd, cwd, owner)?,
    }
    Ok(None)
}

/// Children inherit it. Lowering it takes CAP_SYS_RESOURCE, without which the container runs all the same.
pub fn set_oom_score(score: Option<i32>) -> Option<String> {
    let score = score.unwrap_or(0);
    fs::write("/proc/self/oom_score_adj", score.to_string())
        .err()
        .map(|error| format!("cannot set oom_score_adj to {score}: {error}"))
}
