//! The poll loop: requests, helpers, output, children.

use crate::container::{Container, kill_all, now};
use crate::helper::{self, Helper, Purpose, Stdio};
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
            self.prepared.shm.as_ref(),
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

    fn exec(&mut self, index: usize, exec: Exec, mut fds: Vec<OwnedFd>) -> Option<Response> {
        let id = exec.job.container.clone();
        let running = |c: &&mut Container| c.id == id && c.pid().is_some() && !c.doomed;
        let Some(container) = self.containers.iter_mut().find(running) else {
            let failure = node_failure(format!("container {id:?} does not run"));
            return Some(Response::Failed(failure));
        };
        let (Some(error), Some(output), Some(input)) = (fds.pop(), fds.pop(), fds.pop()) else {
            return Some(Response::Failed(node_failure("exec needs three descriptors")));
        };
        let number = self.next_execution;
        self.next_execution += 1;
        let started = helper::start(
            &self.prepared.helper,
            self.dev_null.as_raw_fd(),
            None,
            Stdio { input, output, error },
            Purpose::Exec(number),
            &Job::Exec(exec.job),
        );
        match started {
            Ok(helper) => {
                container.joining += 1;
                self.helpers.push(helper);
                let time = i64::try_from(exec.timeout_ms).unwrap_or(i64::MAX);
                self.executions.push(Execution {
                    number,
                    container: id,
                    pid: None,
                    deadline: (time > 0).then(|| now().saturating_add(time)),
                    timed_out: false,
                    keep: exec.keep,
                });
                self.connections[index].waiting = Waiting::Exec(number);
                None
            }
            Err(error) => Some(Response::Failed(node_failure(error.to_string()))),
        }
    }

    fn attach(&mut self, index: usize, attach: &Attach, fds: Vec<OwnedFd>) -> Option<Response> {
        let running = |c: &&mut Container| c.id == attach.container && c.pid().is_some();
        let Some(container) = self.containers.iter_mut().find(running) else {
            let failure = node_failure(format!("container {:?} does not run", attach.container));
            return Some(Response::Failed(failure));
        };
        let mut fds = fds.into_iter();
        let wanted = [(attach.stdout, &mut container.stdout), (attach.stderr, &mut container.stderr)];
        for (_, stream) in wanted.into_iter().filter(|(wanted, _)| *wanted) {
            let none = || io::Error::other("a descriptor is missing");
            if let Err(error) = fds.next().ok_or_else(none).and_then(|fd| stream.tap(fd)) {
                return Some(Response::Failed(node_failure(format!("cannot attach: {error}"))));
            }
        }
        let terminal = container.terminal;
        let input = if terminal {
            container.stdout.descriptor()
        } else {
            container.stdin.as_ref().filter(|_| attach.stdin).map(AsRawFd::as_raw_fd)
        };
        let connection = &mut self.connections[index];
        let socket = connection.socket.as_raw_fd();
        connection.waiting = Waiting::Attached(attach.container.clone(), attach.stdin);
        let _ = wire::send(socket, &Response::Attached { terminal }, input.as_slice());
        None
    }

    fn close_stdin(&mut self, id: &str) {
        let once = |c: &&mut Container| c.id == id && c.stdin_once;
        if let Some(container) = self.containers.iter_mut().find(once) {
            container.stdin = None;
        }
    }

    fn is_kept(&self, number: u64) -> bool {
        self.executions.iter().any(|e| e.number == number && e.keep)
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

    fn kill_execution(&self, number: u64) {
        let Some(execution) = self.executions.iter().find(|e| e.number == number) else { return };
        match execution.pid {
            Some(pid) => drop(sys::kill(pid, libc::SIGKILL)),
            None => {
                let purpose = Purpose::Exec(number);
                for helper in self.helpers.iter().filter(|h| h.purpose == purpose) {
                    let _ = sys::kill(helper.pid, libc::SIGKILL);
                }
            }
        }
    }

    fn enforce_deadlines(&mut self) {
        let now = now();
        let late = |e: &&mut Execution| e.deadline.is_some_and(|deadline| deadline <= now);
        let mut numbers = Vec::new();
        for execution in self.executions.iter_mut().filter(late) {
            execution.deadline = None;
            execution.timed_out = true;
            numbers.push(execution.number);
        }
        for number in numbers {
            self.kill_execution(number);
        }
    }

    /// A helper has reported, or closed its socket.
    fn helper_ready(&mut self, fd: RawFd) {
        let Some(index) = self.helpers.iter().position(|h| h.socket.as_raw_fd() == fd) else {
            return;
        };
        if let Some((report, fds)) = read_report(fd) {
            self.reported(index, report, fds);
        }
    }

    /// Reaps helpers that have ended. Their sockets do not tell: what a killed helper had forked keeps them open.
    fn reap_helpers(&mut self) -> io::Result<()> {
        let mut index = 0;
        while let Some(helper) = self.helpers.get(index) {
            match sys::reap(helper.pid) {
                Ok(None) => {
                    index += 1;
                    continue;
                }
                Ok(Some(_)) => {}
                Err(error) if error.raw_os_error() == Some(libc::ECHILD) => {}
                Err(error) => return Err(error),
            }
            let (report, fds) =
                read_report(helper.socket.as_raw_fd()).unwrap_or_else(|| no_report("it was killed"));
            self.reported(index, report, fds);
        }
        Ok(())
    }

    fn reported(&mut self, index: usize, report: Report, fds: Vec<OwnedFd>) {
        let helper = self.helpers.remove(index);
        self.sweeping |= matches!(report, Report::Failed(_));
        match helper.purpose {
            Purpose::Container(id) => self.container_reported(&id, report, fds),
            Purpose::Exec(number) => self.execution_reported(number, report, fds),
        }
    }

    /// Kills what failed helpers have forked. A process that was about to fork when it was killed here does so no more,
    /// and its end brings us here again.
    fn sweep(&mut self) {
        let known = |pid: i32| self.helpers.iter().any(|h| h.pid == pid);
        let left: Vec<i32> = sys::children()
            .into_iter()
            .filter(|(pid, name)| helper::is_left_by_helper(name) && !known(*pid))
            .map(|(pid, _)| pid)
            .collect();
        for pid in &left {
            let _ = sys::kill(*pid, libc::SIGKILL);
        }
        self.sweeping = !left.is_empty();
    }

    fn container_reported(&mut self, id: &str, report: Report, mut fds: Vec<OwnedFd>) {
        let Some(container) = self.containers.iter_mut().find(|c| c.id == id) else { return };
        match report {
            Report::Started { pid, warnings } => {
                for warning in warnings {
                    eprintln!("container {id}: {warning}");
                }
                if let Some(terminal) = fds.pop() {
                    let _ = fcntl(terminal.as_raw_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
                    container.stdout = Stream::new("stdout", Some(terminal));
                    container.terminal = true;
                    container.stdin = None;
                }
                let started_at = now();
                container.state = ContainerState::Running { pid, started_at };
                let doomed = container.doomed;
                self.answer(&Waiting::Start(id.to_owned()), &Response::Started { pid, started_at }, &[]);
                if let Some(stray) = self.strays.iter().position(|(stray, ..)| *stray == pid) {
                    let (_, exit_code, signal) = self.strays.swap_remove(stray);
                    self.container_ended(id, exit_code, signal);
                } else if doomed {
                    let _ = sys::kill(pid, libc::SIGKILL);
                }
            }
            Report::Failed(failure) => {
                kill_all(container.procs_file.as_deref());
                if let Err(error) = container.failed(failure.exit_code, failure.message.clone()) {
                    eprintln!("container {id}: cannot write the exit record: {error}");
                }
                self.answer(&Waiting::Start(id.to_owned()), &Response::Failed(failure), &[]);
                self.announce(id);
            }
        }
    }

    fn execution_reported(&mut self, number: u64, report: Report, fds: Vec<OwnedFd>) {
        let Some(index) = self.executions.iter().position(|e| e.number == number) else { return };
        let id = self.executions[index].container.clone();
        if let Some(container) = self.containers.iter_mut().find(|c| c.id == id) {
            container.joining = container.joining.saturating_sub(1);
        }
        match report {
            Report::Started { pid, .. } => {
                self.executions[index].pid = Some(pid);
                if let Some(terminal) = fds.first() {
                    let response = Response::Started { pid, started_at: now() };
                    for connection in &self.connections {
                        if connection.waiting == Waiting::Exec(number) {
                            let fd = connection.socket.as_raw_fd();
                            let _ = wire::send(fd, &response, &[terminal.as_raw_fd()]);
                        }
                    }
                }
                if let Some(stray) = self.strays.iter().position(|(stray, ..)| *stray == pid) {
                    let (_, exit_code, _) = self.strays.swap_remove(stray);
                    self.execution_ended(index, exit_code);
                } else if self.executions[index].timed_out
                    || !(self.is_awaited(number) || self.is_kept(number))
                {
                    let _ = sys::kill(pid, libc::SIGKILL);
                }
            }
            Report::Failed(_) if self.executions[index].timed_out => {
                self.execution_ended(index, 128 + libc::SIGKILL);
            }
            Report::Failed(failure) => {
                self.executions.remove(index);
                self.answer(&Waiting::Exec(number), &Response::Failed(failure), &[]);
            }
        }
    }

    fn is_awaited(&self, number: u64) -> bool {
        self.connections.iter().any(|c| c.waiting == Waiting::Exec(number))
    }

    /// Reaps what has ended. `true` when no child is left.
    fn reap(&mut self) -> io::Result<bool> {
        loop {
            self.reap_helpers()?;
            if self.sweeping {
                self.sweep();
            }
            let pid = match sys::peek_child()? {
                Child::Ended(pid) => pid,
                Child::Alive => return Ok(false),
                Child::None => return Ok(true),
            };
            // It ended just now: its report must be read before it is reaped.
            if self.helpers.iter().any(|h| h.pid == pid) {
                continue;
            }
            let container = self.containers.iter().find(|c| c.pid() == Some(pid));
            // A helper finds the container by this PID, which must not become another process's while it does.
            // Its report brings us back here.
            if container.is_some_and(|c| c.joining > 0) {
                return Ok(false);
            }
            let id = container.map(|c| c.id.clone());
            let Some((exit_code, signal)) = sys::reap(pid)? else { continue };
            if let Some(id) = id {
                self.container_ended(&id, exit_code, signal);
            } else if let Some(index) = self.executions.iter().position(|e| e.pid == Some(pid)) {
                self.execution_ended(index, exit_code);
            } else if !self.helpers.is_empty() {
                self.strays.push((pid, exit_code, signal));
            }
            if self.helpers.is_empty() {
                self.strays = Vec::new();
            }
        }
    }

    fn container_ended(&mut self, id: &str, exit_code: i32, signal: Option<i32>) {
        let Some(container) = self.containers.iter_mut().find(|c| c.id == id) else { return };
        if let Err(error) = container.ended(exit_code, signal) {
            eprintln!("container {id}: cannot write the exit record: {error}");
        }
        let response = Response::Exited { exit_code, timed_out: false };
        for stdin in [true, false] {
            self.answer(&Waiting::Attached(id.to_owned(), stdin), &response, &[]);
        }
        self.announce(id);
    }

    /// Tells subscribers that a container has ended, and those who wait for its removal.
    fn announce(&mut self, id: &str) {
        let event = Event::Exited { container: id.to_owned() };
        self.connections.retain(|c| {
            c.waiting != Waiting::Events || wire::send(c.socket.as_raw_fd(), &event, &[]).is_ok()
        });
        let waiting = Waiting::Remove(id.to_owned());
        if self.connections.iter().any(|c| c.waiting == waiting) {
            self.forget(id);
            self.answer(&waiting, &Response::Done, &[]);
        }
    }

    fn execution_ended(&mut self, index: usize, exit_code: i32) {
        let execution = self.executions.remove(index);
        let response = Response::Exited { exit_code, timed_out: execution.timed_out };
        self.answer(&Waiting::Exec(execution.number), &response, &[]);
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

/// What a helper says; `None` when it has said nothing yet.
fn read_report(socket: RawFd) -> Option<(Report, Vec<OwnedFd>)> {
    match wire::receive::<Report>(socket) {
        Ok(Some(report)) => Some(report),
        Ok(None) => Some(no_report("it ended")),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        Err(error) => Some(no_report(&error.to_string())),
    }
}

fn no_report(reason: &str) -> (Report, Vec<OwnedFd>) {
    let failure = node_failure(format!("the runtime helper did not report: {reason}"));
    (Report::Failed(Failure { exit_code: 128, ..failure }), Vec::new())
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
