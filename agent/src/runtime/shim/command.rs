//! Commands that run in a container to their end.

use super::{ShimRuntime, shim_error};
use crate::runtime::layout::{self, Record, check_id};
use crate::runtime::{ExecResult, RuntimeError};
use kelp_runtime_protocol::{self as protocol, Request, Response, files};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

/// How long output of a finished command is waited for when something in the container still holds the pipe.
const OUTPUT_GRACE: Duration = Duration::from_millis(200);
/// Bytes kept of each output stream.
pub(super) const MAX_OUTPUT: usize = 16 * 1024;

impl ShimRuntime {
    pub(super) async fn run_command(
        &self,
        sandbox: &str,
        container: &str,
        argv: &[String],
        timeout: Duration,
    ) -> Result<ExecResult, RuntimeError> {
        let users = self.sandbox(sandbox)?.users;
        check_id("container", container)?;
        let layout = &self.inner.layout;
        let record: Record = layout::read(&layout.record(sandbox, container))?
            .ok_or_else(|| RuntimeError::NotFound { kind: "container", id: container.to_owned() })?;
        let request = Request::Exec(Box::new(protocol::Exec {
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
            keep: false,
            job: protocol::ExecJob {
                container: container.to_owned(),
                bundle: layout.bundle(sandbox, container),
                state_dir: layout.sandbox_file(sandbox, files::STATE),
                argv: argv.to_vec(),
                tty: false,
                oom_score_adj: record.oom_score_adj,
                users,
            },
        }));
        let failed = |error: io::Error| shim_error(sandbox, format!("cannot exec: {error}"));
        let connection = self.connect(sandbox)?;
        let null = std::fs::File::open("/dev/null").map_err(failed)?;
        let (out_writer, mut stdout) = output_pipe().map_err(failed)?;
        let (err_writer, mut stderr) = output_pipe().map_err(failed)?;
        let fds = [null.as_raw_fd(), out_writer.as_raw_fd(), err_writer.as_raw_fd()];
        connection.send(&request, &fds).await.map_err(failed)?;
        drop((out_writer, err_writer));
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let response = {
            let output =
                async { tokio::join!(capture(&mut stdout, &mut out), capture(&mut stderr, &mut err)) };
            let answer = async { connection.receive::<Response>().await };
            tokio::pin!(output, answer);
            tokio::select! {
                answer = &mut answer => {
                    // What the command wrote is in the pipes already; a child of it may keep them open.
                    let _ = tokio::time::timeout(OUTPUT_GRACE, output).await;
                    answer
                }
                _ = &mut output => answer.await,
            }
        };
        match response.map_err(failed)? {
            Some((Response::Exited { exit_code, timed_out }, _)) => {
                Ok(ExecResult { exit_code, stdout: out, stderr: err, timed_out })
            }
            Some((Response::Failed(failure), _)) if failure.exit_code != 0 => {
                Err(RuntimeError::Start { message: failure.message, exit_code: failure.exit_code })
            }
            Some((Response::Failed(failure), _)) => Err(shim_error(sandbox, failure.message)),
            Some((other, _)) => Err(shim_error(sandbox, format!("unexpected answer {other:?}"))),
            None => Err(shim_error(sandbox, "it ended during exec")),
        }
    }
}

pub(super) fn output_pipe() -> io::Result<(OwnedFd, pipe::Receiver)> {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    Ok((writer, pipe::Receiver::from_owned_fd(reader)?))
}

/// Reads to the end, keeping the beginning.
async fn capture(source: &mut pipe::Receiver, kept: &mut Vec<u8>) {
    let mut buffer = vec![0; MAX_OUTPUT];
    while let Ok(n) = source.read(&mut buffer).await {
        if n == 0 {
            return;
        }
        let room = MAX_OUTPUT.saturating_sub(kept.len());
        kept.extend_from_slice(&buffer[..n.min(room)]);
    }
}
