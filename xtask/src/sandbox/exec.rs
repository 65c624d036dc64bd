//! Running a command on a sandbox host.

use super::layout::NodeLayout;
use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::process::{Command, ExitCode};

/// Script that moves itself into the cgroup $0 before it becomes the command, so that the command's first
/// `connect` is already translated by the socket programs.
const ENTER_CGROUP: &str = r#"echo $$ > "$0/cgroup.procs" && exec "$@""#;

/// A command that runs on a host: in its network namespace and cgroup, with `KUBECONFIG` set. It runs in this
/// machine's mount namespace, and its standard streams are the caller's.
pub fn enter<S: AsRef<OsStr>>(node: &NodeLayout, words: &[S]) -> Command {
    let mut command = Command::new("sh");
    let mut netns = std::ffi::OsString::from("--net=");
    netns.push(node.netns_path());
    command.arg("-c").arg(ENTER_CGROUP).arg(node.cgroup2_dir().join("host"));
    command.arg("nsenter").arg(netns).arg("--").args(words);
    command.env("KUBECONFIG", node.sandbox().kubeconfig_inside());
    command
}

/// Runs a command on a host and passes its exit code on.
///
/// # Errors
/// The host is not there, or the command could not be started.
pub fn exec(node: &NodeLayout, words: &[String]) -> Result<ExitCode> {
    if !node.exists() {
        bail!("sandbox host {} is not up; run: cargo xtask up --detach", node.name());
    }
    let status = enter(node, words).status().with_context(|| format!("start {}", words.join(" ")))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}
