//! Processes that run in a container besides its first one, and those who join the first one's streams.

use super::*;

impl Shim {
    pub(super) fn exec(&mut self, index: usize, exec: Exec, mut fds: Vec<OwnedFd>) -> Option<Response> {
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
            Namespaces { shm: None, users: self.prepared.users.as_ref() },
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

    pub(super) fn attach(&mut self, index: usize, attach: &Attach, fds: Vec<OwnedFd>) -> Option<Response> {
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

    pub(super) fn close_stdin(&mut self, id: &str) {
        let once = |c: &&mut Container| c.id == id && c.stdin_once;
        if let Some(container) = self.containers.iter_mut().find(once) {
            container.stdin = None;
        }
    }

    pub(super) fn is_kept(&self, number: u64) -> bool {
        self.executions.iter().any(|e| e.number == number && e.keep)
    }

    pub(super) fn kill_execution(&self, number: u64) {
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

    pub(super) fn enforce_deadlines(&mut self) {
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

    pub(super) fn execution_reported(&mut self, number: u64, report: Report, fds: Vec<OwnedFd>) {
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

    pub(super) fn is_awaited(&self, number: u64) -> bool {
        self.connections.iter().any(|c| c.waiting == Waiting::Exec(number))
    }

    pub(super) fn execution_ended(&mut self, index: usize, exit_code: i32) {
        let execution = self.executions.remove(index);
        let response = Response::Exited { exit_code, timed_out: execution.timed_out };
        self.answer(&Waiting::Exec(execution.number), &response, &[]);
    }
}
