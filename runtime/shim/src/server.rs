//! The poll loop: requests, helpers, output, children.

mod endings;
mod executions;

use crate::container::{Container, kill_all, now};
use crate::helper::{self, Helper, Namespaces, Purpose, Stdio};
use crate::log::{Log, Stream};
use crate::setup::Prepared;
use crate::sys::{self, Child};
use kelp_runtime_protocol::{
    Attach, ContainerState, ContainerStatus, Event, Exec, Failure, Job, Report, Request, Response,
    ShimStatus, Start, VERSION, wire,
};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{SockFlag, accept4};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// How long a shutdown waits for killed processes, ms: one in an uninterruptible sleep must not hold it for ever.
const SHUTDOWN_MS: i64 = 5_000;

/// Buffers of output copied for one stream before the others get their turn.
const COPY_ROUNDS: usize = 4;

/// What a connection waits for.
#[derive(Debug, PartialEq, Eq)]
enum Waiting {
    Request,
    Start(String),
    Remove(String),
    Exec(u64),
    /// Attached to this container, to its input as well or not.
    Attached(String, bool),
    Events,
    Shutdown,
}

struct Connection {
    socket: OwnedFd,
    waiting: Waiting,
}

/// A process that runs in a container besides its first one.
struct Execution {
    number: u64,
    container: String,
    pid: Option<i32>,
    deadline: Option<i64>,
    timed_out: bool,
    /// It goes on when nobody waits for it any more.
    keep: bool,
}

/// The shim.
pub struct Shim {
    prepared: Prepared,
    signals: OwnedFd,
    dev_null: OwnedFd,
    containers: Vec<Container>,
    executions: Vec<Execution>,
    helpers: Vec<Helper>,
    connections: Vec<Connection>,
    /// Children that ended before the report of the helper that started them was read.
    strays: Vec<(i32, i32, Option<i32>)>,
    next_execution: u64,
    shutdown: Option<i64>,
    /// A helper failed: what it has forked is to be found and killed.
    sweeping: bool,
}

enum Source {
    Listener,
    Signals,
    Connection(RawFd),
    Helper(RawFd),
    Output(String),
}

impl Shim {
    /// A shim without containers.
    pub fn new(prepared: Prepared) -> io::Result<Self> {
        let dev_null = sys::duplicate(File::options().read(true).write(true).open("/dev/null")?.as_raw_fd())?;
        Ok(Self {
            prepared,
            signals: sys::child_signals()?,
            dev_null,
            containers: Vec::new(),
            executions: Vec::new(),
            helpers: Vec::new(),
            connections: Vec::new(),
            strays: Vec::new(),
            next_execution: 0,
            shutdown: None,
            sweeping: false,
        })
    }

    /// Descriptor of /dev/null.
    pub fn dev_null(&self) -> RawFd {
        self.dev_null.as_raw_fd()
    }

    /// Serves until a shutdown is complete.
    pub fn run(&mut self) -> io::Result<()> {
        loop {
            let (mut fds, sources) = self.poll_set();
            sys::poll(&mut fds, self.timeout())?;
            let ready: Vec<(Source, libc::c_short)> = sources
                .into_iter()
                .zip(&fds)
                .filter(|(_, fd)| fd.revents != 0)
                .map(|(source, fd)| (source, fd.revents))
                .collect();
            for (source, events) in ready {
                match source {
                    Source::Listener => self.accept(),
                    Source::Signals => self.drain_signals(),
                    Source::Connection(fd) => self.connection_ready(fd, events),
                    Source::Helper(fd) => self.helper_ready(fd),
                    Source::Output(id) => {
                        if let Some(c) = self.containers.iter_mut().find(|c| c.id == id) {
                            c.stdout.relay();
                            c.stderr.relay();
                            c.stdout.copy(&mut c.log, COPY_ROUNDS);
                            c.stderr.copy(&mut c.log, COPY_ROUNDS);
                        }
                    }
                }
            }
            self.enforce_deadlines();
            // Whatever is wrong with one child, the others still need their shim.
            let alone = self.reap().unwrap_or_else(|error| {
                eprintln!("cannot reap: {error}");
                false
            });
            if let Some(deadline) = self.shutdown
                && (alone || now() >= deadline)
            {
                self.answer(&Waiting::Shutdown, &Response::Done, &[]);
                return Ok(());
            }
        }
    }

    fn poll_set(&self) -> (Vec<libc::pollfd>, Vec<Source>) {
        let mut fds = Vec::new();
        let mut sources = Vec::new();
        let mut add_for = |fd, events, source| {
            fds.push(libc::pollfd { fd, events, revents: 0 });
            sources.push(source);
        };
        let read = libc::POLLIN;
        // Reports come before signals, so that a child is known by the time its end is handled.
        for helper in &self.helpers {
            let fd = helper.socket.as_raw_fd();
            add_for(fd, read, Source::Helper(fd));
        }
        add_for(self.signals.as_raw_fd(), read, Source::Signals);
        add_for(self.prepared.listener.as_raw_fd(), read, Source::Listener);
        for connection in &self.connections {
            let fd = connection.socket.as_raw_fd();
            add_for(fd, read, Source::Connection(fd));
        }
        for container in &self.containers {
            for fd in [container.stdout.fd(), container.stderr.fd()].into_iter().flatten() {
                add_for(fd, read, Source::Output(container.id.clone()));
            }
            for fd in container.stdout.full_taps().chain(container.stderr.full_taps()) {
                add_for(fd, libc::POLLOUT, Source::Output(container.id.clone()));
            }
        }
        (fds, sources)
    }

    fn timeout(&self) -> i32 {
        let deadlines = self.executions.iter().filter_map(|e| e.deadline).chain(self.shutdown);
        deadlines.min().map_or(-1, |at| i32::try_from((at - now()).max(0)).unwrap_or(i32::MAX))
    }

    fn accept(&mut self) {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        if let Ok(fd) = accept4(self.prepared.listener.as_raw_fd(), flags) {
            // SAFETY: accept4 has just made the descriptor for this process; nothing else owns it.
            let socket = unsafe { OwnedFd::from_raw_fd(fd) };
            self.connections.push(Connection { socket, waiting: Waiting::Request });
        }
    }

    fn drain_signals(&self) {
        let mut buffer = [0; 128 * 8];
        // Which signals arrived says nothing: `reap` looks at the children themselves.
        while nix::unistd::read(self.signals.as_raw_fd(), &mut buffer).is_ok_and(|n| n > 0) {}
    }

    fn connection_ready(&mut self, fd: RawFd, events: libc::c_short) {
        let Some(index) = self.connections.iter().position(|c| c.socket.as_raw_fd() == fd) else {
            return;
        };
        if self.connections[index].waiting == Waiting::Request {
            match wire::receive::<Request>(fd) {
                Ok(Some((request, fds))) => return self.request(index, request, fds),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    let failure = node_failure(format!("request cannot be read: {error}"));
                    let _ = wire::send(fd, &Response::Failed(failure), &[]);
                }
                Ok(None) => {}
            }
        } else if events & (libc::POLLHUP | libc::POLLERR) == 0 {
            // Nothing is to be said on a connection that waits: whoever talks does not speak this protocol.
            let _ = wire::receive::<serde_json::Value>(fd);
        }
        // The caller is gone: nobody wants to know how its command ends.
        let connection = self.connections.remove(index);
        match connection.waiting {
            Waiting::Exec(number) if !self.is_kept(number) => self.kill_execution(number),
            Waiting::Attached(id, true) => self.close_stdin(&id),
            _ => {}
        }
    }

    fn request(&mut self, index: usize, request: Request, fds: Vec<OwnedFd>) {
        let response = match request {
            Request::Status => Some(Response::Status(self.status())),
            Request::Start(start) => self.start(index, *start),
            Request::Signal { container, signal } => Some(self.signal(&container, signal)),
            Request::Remove { container } => self.remove(index, &container),
            Request::Exec(exec) => self.exec(index, *exec, fds),
            Request::Attach(attach) => self.attach(index, &attach, fds),
            Request::CloseStdin { container } => {
                self.close_stdin(&container);
                Some(Response::Done)
            }
            Request::ReopenLog { container } => Some(self.reopen_log(&container)),
            Request::Subscribe => {
                self.connections[index].waiting = Waiting::Events;
                let fd = self.connections[index].socket.as_raw_fd();
                let _ = wire::send(fd, &Response::Done, &[]);
                None
            }
            Request::Shutdown => {
                self.connections[index].waiting = Waiting::Shutdown;
                self.begin_shutdown();
                None
            }
        };
        if let Some(response) = response {
            let connection = self.connections.remove(index);
            let _ = wire::send(connection.socket.as_raw_fd(), &response, &[]);
        }
    }

    fn status(&self) -> ShimStatus {
        let containers = self
            .containers
            .iter()
            .map(|c| ContainerStatus { id: c.id.clone(), state: c.state.clone() })
            .collect();
        ShimStatus { version: VERSION, pid: nix::unistd::getpid().as_raw(), containers }
    }

    fn start(&mut self, index: usize, start: Start) -> Option<Response> {
        if self.shutdown.is_some() {
            return Some(Response::Failed(node_failure("the pod is being removed")));
        }
        let id = start.container.clone();
        if let Some(container) = self.containers.iter().find(|c| c.id == id) {
            return match &container.state {
                ContainerState::Starting => {
                    self.connections[index].waiting = Waiting::Start(id);
                    None
                }
                ContainerState::Running { pid, started_at } => {
                    Some(Response::Started { pid: *pid, started_at: *started_at })
                }
                ContainerState::Exited(record) => match &record.start_error {
                    Some(message) => Some(Response::Failed(Failure {
                        message: message.clone(),
                        exit_code: record.exit_code,
                        user_error: true,
                    })),
                    None => Some(Response::Started { pid: 0, started_at: record.started_at }),
                },
            };
        }
        match self.start_new(start) {
            Ok(()) => {
                self.connections[index].waiting = Waiting::Start(id);
                None
            }
            Err(error) => Some(Response::Failed(node_failure(error.to_string()))),
        }
    }

    fn start_new(&mut self, start: Start) -> io::Result<()> {
        let log = Log::open(&start.log, start.log_max_size, start.log_max_files)
            .map_err(|error| io::Error::other(format!("cannot open log {}: {error}", start.log.display())))?;
        let (stdout, output) = output_pipe()?;
        let (stderr, error) = output_pipe()?;
        let (input, stdin) = if start.stdin {
            let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
            (reader, Some(writer))
        } else {
            (sys::duplicate(self.dev_null())?, None)
        };
        let stdio = Stdio { input, output, error };
        let bundle = start.job.bundle.clone();
        let helper = helper::start(
            &self.prepared.helper,
            self.dev_null.as_raw_fd(),
            Namespaces { shm: self.prepared.shm.as_ref(), users: self.prepared.users.as_ref() },
            stdio,
            Purpose::Container(start.container.clone()),
            &Job::Create(start.job),
        )?;
        self.helpers.push(helper);
        self.containers.push(Container {
            id: start.container,
            state: ContainerState::Starting,
            log,
            stdin,
            stdin_once: start.stdin_once,
            terminal: false,
            stdout: Stream::new("stdout", Some(stdout)),
            stderr: Stream::new("stderr", Some(stderr)),
            bundle,
            oom_file: start.oom_file,
            procs_file: start.procs_file,
            joining: 0,
            doomed: false,
        });
        Ok(())
    }

    fn signal(&self, id: &str, signal: i32) -> Response {
        let Some(container) = self.containers.iter().find(|c| c.id == id) else {
            return Response::Failed(node_failure(format!("no container {id:?}")));
        };
        match container.pid().map(|pid| sys::kill(pid, signal)) {
            Some(Err(error)) if error.raw_os_error() != Some(libc::ESRCH) => {
                Response::Failed(node_failure(format!("cannot send signal {signal}: {error}")))
            }
            _ => Response::Done,
        }
    }

    fn remove(&mut self, index: usize, id: &str) -> Option<Response> {
        let Some(container) = self.containers.iter_mut().find(|c| c.id == id) else {
            return Some(Response::Done);
        };
        if matches!(container.state, ContainerState::Exited(_)) {
            self.forget(id);
            return Some(Response::Done);
        }
        container.doomed = true;
        if let Some(pid) = container.pid() {
            let _ = sys::kill(pid, libc::SIGKILL);
        } else {
            // What the helper has made so far is in the container's cgroup or dies with the helper.
            let purpose = Purpose::Container(id.to_owned());
            for helper in self.helpers.iter().filter(|h| h.purpose == purpose) {
                let _ = sys::kill(helper.pid, libc::SIGKILL);
            }
        }
        self.connections[index].waiting = Waiting::Remove(id.to_owned());
        None
    }

    fn forget(&mut self, id: &str) {
        if let Some(index) = self.containers.iter().position(|c| c.id == id) {
            let container = self.containers.remove(index);
            kill_all(container.procs_file.as_deref());
        }
    }

    fn reopen_log(&mut self, id: &str) -> Response {
        let Some(container) = self.containers.iter_mut().find(|c| c.id == id) else {
            return Response::Failed(node_failure(format!("no container {id:?}")));
        };
        match container.log.reopen() {
            Ok(()) => Response::Done,
            Err(error) => Response::Failed(node_failure(format!("cannot reopen the log: {error}"))),
        }
    }

    fn begin_shutdown(&mut self) {
        self.shutdown.get_or_insert(now() + SHUTDOWN_MS);
        for helper in &self.helpers {
            let _ = sys::kill(helper.pid, libc::SIGKILL);
        }
        for container in &mut self.containers {
            container.doomed = true;
            if let Some(pid) = container.pid() {
                let _ = sys::kill(pid, libc::SIGKILL);
            }
            kill_all(container.procs_file.as_deref());
        }
        for pid in self.executions.iter().filter_map(|e| e.pid) {
            let _ = sys::kill(pid, libc::SIGKILL);
        }
    }

    /// Answers and closes every connection that waits for `waiting`.
    fn answer(&mut self, waiting: &Waiting, response: &Response, fds: &[RawFd]) {
        self.connections.retain(|connection| {
            let matches = connection.waiting == *waiting;
            if matches {
                let _ = wire::send(connection.socket.as_raw_fd(), response, fds);
            }
            !matches
        });
    }
}

/// A pipe whose reading end does not block.
fn output_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    fcntl(reader.as_raw_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(io::Error::from)?;
    Ok((reader, writer))
}

fn node_failure(message: impl Into<String>) -> Failure {
    Failure { message: message.into(), exit_code: 0, user_error: false }
}
