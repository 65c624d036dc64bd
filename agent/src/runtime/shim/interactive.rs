//! `exec` with streams and `attach`, through the shim.

use super::{ShimRuntime, client::Connection, command::output_pipe, shim_error};
use crate::runtime::layout::{self, Record, check_id};
use crate::runtime::session::{Input, Output, Session, Streams, Terminal};
use crate::runtime::{RuntimeError, client};
use kelp_runtime_protocol::{self as protocol, Request, Response, files};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use tokio::net::unix::pipe;

/// Our ends of a process's pipes, and the process's.
#[derive(Default)]
struct Pipes {
    stdin: Option<Input>,
    stdout: Option<Output>,
    stderr: Option<Output>,
    theirs: Vec<OwnedFd>,
}

impl Pipes {
    fn input(&mut self) -> io::Result<()> {
        let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        self.stdin = Some(Box::new(pipe::Sender::from_owned_fd(writer)?));
        self.theirs.push(reader);
        Ok(())
    }

    fn output(&mut self) -> io::Result<Output> {
        let (writer, reader) = output_pipe()?;
        self.theirs.push(writer);
        Ok(Box::new(reader))
    }

    fn nothing(&mut self) -> io::Result<()> {
        let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
        self.theirs.push(null.into());
        Ok(())
    }

    fn raw(&self) -> Vec<RawFd> {
        self.theirs.iter().map(AsRawFd::as_raw_fd).collect()
    }
}

impl ShimRuntime {
    fn record(&self, sandbox: &str, container: &str) -> Result<Record, RuntimeError> {
        self.sandbox(sandbox)?;
        check_id("container", container)?;
        layout::read(&self.inner.layout.record(sandbox, container))?
            .ok_or_else(|| RuntimeError::NotFound { kind: "container", id: container.to_owned() })
    }

    /// See [`Runtime::open_exec`](crate::runtime::Runtime::open_exec).
    pub(super) async fn exec_session(
        &self,
        sandbox: &str,
        container: &str,
        argv: &[String],
        streams: Streams,
    ) -> Result<Session, RuntimeError> {
        let users = self.sandbox(sandbox)?.users;
        let record = self.record(sandbox, container)?;
        let layout = &self.inner.layout;
        let request = Request::Exec(Box::new(protocol::Exec {
            timeout_ms: 0,
            keep: true,
            job: protocol::ExecJob {
                container: container.to_owned(),
                bundle: layout.bundle(sandbox, container),
                state_dir: layout.sandbox_file(sandbox, files::STATE),
                argv: argv.to_vec(),
                tty: streams.tty,
                oom_score_adj: record.oom_score_adj,
                users,
            },
        }));
        let failed = |error: io::Error| shim_error(sandbox, format!("cannot exec: {error}"));
        let mut pipes = Pipes::default();
        let plain = !streams.tty;
        if plain && streams.stdin { pipes.input() } else { pipes.nothing() }.map_err(failed)?;
        if plain && streams.stdout {
            pipes.stdout = Some(pipes.output().map_err(failed)?);
        } else {
            pipes.nothing().map_err(failed)?;
        }
        if plain && streams.stderr {
            pipes.stderr = Some(pipes.output().map_err(failed)?);
        } else {
            pipes.nothing().map_err(failed)?;
        }
        let connection = self.connect(sandbox)?;
        connection.send(&request, &pipes.raw()).await.map_err(failed)?;
        pipes.theirs.clear();
        let name = sandbox.to_owned();
        if plain {
            let Pipes { stdin, stdout, stderr, .. } = pipes;
            let end = Box::pin(async move { end(&name, &connection).await });
            return Ok(Session { stdin, stdout, stderr, terminal: None, end });
        }
        let (answer, fds) = connection
            .receive::<Response>()
            .await
            .map_err(failed)?
            .ok_or_else(|| shim_error(sandbox, "it ended during exec"))?;
        match (answer, fds.into_iter().next()) {
            (Response::Started { .. }, Some(fd)) => {
                let terminal = Terminal::new(fd).map_err(failed)?;
                Ok(Session {
                    stdin: streams.stdin.then(|| Box::new(terminal.clone()) as Input),
                    stdout: Some(Box::new(terminal.clone())),
                    stderr: None,
                    terminal: Some(terminal),
                    end: Box::pin(async move { end(&name, &connection).await }),
                })
            }
            (answer, _) => Err(exited(sandbox, answer)
                .err()
                .unwrap_or_else(|| shim_error(sandbox, "a process on a terminal came without the terminal"))),
        }
    }

    /// See [`Runtime::attach`](crate::runtime::Runtime::attach).
    pub(super) async fn attach_session(
        &self,
        sandbox: &str,
        container: &str,
        streams: Streams,
    ) -> Result<Session, RuntimeError> {
        self.record(sandbox, container)?;
        let failed = |error: io::Error| shim_error(sandbox, format!("cannot attach: {error}"));
        let mut pipes = Pipes::default();
        if streams.stdout {
            pipes.stdout = Some(pipes.output().map_err(failed)?);
        }
        if streams.stderr {
            pipes.stderr = Some(pipes.output().map_err(failed)?);
        }
        let request = Request::Attach(protocol::Attach {
            container: container.to_owned(),
            stdin: streams.stdin,
            stdout: streams.stdout,
            stderr: streams.stderr,
        });
        let connection = self.connect(sandbox)?;
        connection.send(&request, &pipes.raw()).await.map_err(failed)?;
        pipes.theirs.clear();
        let (answer, fds) = connection
            .receive::<Response>()
            .await
            .map_err(failed)?
            .ok_or_else(|| shim_error(sandbox, "it ended during attach"))?;
        let mut terminal = None;
        let mut stdin: Option<Input> = None;
        match (answer, fds.into_iter().next()) {
            (Response::Attached { terminal: true }, Some(fd)) => {
                let found = Terminal::new(fd).map_err(failed)?;
                stdin = streams.stdin.then(|| Box::new(found.clone()) as Input);
                terminal = Some(found);
            }
            (Response::Attached { .. }, Some(fd)) => {
                stdin = Some(Box::new(pipe::Sender::from_owned_fd(fd).map_err(failed)?));
            }
            (Response::Attached { .. }, None) => {}
            (other, _) => {
                exited(sandbox, other)?;
            }
        }
        let Pipes { stdout, stderr, .. } = pipes;
        let name = sandbox.to_owned();
        let end = Box::pin(async move { end(&name, &connection).await });
        Ok(Session { stdin, stdout, stderr, terminal, end })
    }

    /// See [`Runtime::close_stdin`](crate::runtime::Runtime::close_stdin).
    pub(super) async fn close_container_stdin(
        &self,
        sandbox: &str,
        container: &str,
    ) -> Result<(), RuntimeError> {
        let request = Request::CloseStdin { container: container.to_owned() };
        super::done(sandbox, super::within(super::ANSWER, self.connect(sandbox)?.call(&request, &[])).await)
    }
}

async fn end(sandbox: &str, connection: &Connection) -> Result<i32, RuntimeError> {
    match connection.receive::<Response>().await {
        Ok(Some((answer, _))) => exited(sandbox, answer),
        Ok(None) => Err(shim_error(sandbox, "it ended")),
        Err(error) if client::is_end(&error) => Err(shim_error(sandbox, "it ended")),
        Err(error) => Err(shim_error(sandbox, error.to_string())),
    }
}

fn exited(sandbox: &str, answer: Response) -> Result<i32, RuntimeError> {
    match answer {
        Response::Exited { exit_code, .. } => Ok(exit_code),
        Response::Failed(failure) if failure.exit_code != 0 => {
            Err(RuntimeError::Start { message: failure.message, exit_code: failure.exit_code })
        }
        Response::Failed(failure) => Err(shim_error(sandbox, failure.message)),
        other => Err(shim_error(sandbox, format!("unexpected answer {other:?}"))),
    }
}
