//! What helpers report, and children that have ended.

use super::*;

impl Shim {
    /// A helper has reported, or closed its socket.
    pub(super) fn helper_ready(&mut self, fd: RawFd) {
        let Some(index) = self.helpers.iter().position(|h| h.socket.as_raw_fd() == fd) else {
            return;
        };
        if let Some((report, fds)) = read_report(fd) {
            self.reported(index, report, fds);
        }
    }

    /// Reaps helpers that have ended. Their sockets do not tell: what a killed helper had forked keeps them open.
    pub(super) fn reap_helpers(&mut self) -> io::Result<()> {
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

    pub(super) fn reported(&mut self, index: usize, report: Report, fds: Vec<OwnedFd>) {
        let helper = self.helpers.remove(index);
        self.sweeping |= matches!(report, Report::Failed(_));
        match helper.purpose {
            Purpose::Container(id) => self.container_reported(&id, report, fds),
            Purpose::Exec(number) => self.execution_reported(number, report, fds),
        }
    }

    /// Kills what failed helpers have forked. A process that was about to fork when it was killed here does so no more,
    /// and its end brings us here again.
    pub(super) fn sweep(&mut self) {
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

    pub(super) fn container_reported(&mut self, id: &str, report: Report, mut fds: Vec<OwnedFd>) {
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

    /// Reaps what has ended. `true` when no child is left.
    pub(super) fn reap(&mut self) -> io::Result<bool> {
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

    pub(super) fn container_ended(&mut self, id: &str, exit_code: i32, signal: Option<i32>) {
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
    pub(super) fn announce(&mut self, id: &str) {
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
