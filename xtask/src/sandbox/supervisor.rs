//! The process that keeps one host's `kelp` running, as a service manager would.
//!
//! It holds the listening socket on the machine's loopback, and sockets that `kelp` gives it, so connections made while
//! `kelp` restarts wait instead of being refused.

use super::kept::Kept;
use super::layout::NodeLayout;
use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::{Pid, dup2};
use std::fs::{File, OpenOptions};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Becomes the program "$@" with the sockets from file descriptor 3 on, as systemd passes them.
const SCRIPT: &str = r#"echo $$ > "$0/cgroup.procs"; LISTEN_PID=$$ exec "$@" </dev/null"#;
/// First descriptor that is passed on.
const FIRST_FD: i32 = 3;
/// Copies that are about to be passed on are made above all places that they are passed at.
const COPY_FROM: i32 = 100;

/// A run shorter than this doubles the pause before the next.
const SHORT_RUN: Duration = Duration::from_secs(10);
const MIN_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(10);
/// How long `kelp` may take to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

enum Event {
    Stop,
    Exited,
}

/// Starts `kelp` with `arguments` on a host again and again, until SIGTERM. With `port`, a listening socket on the
/// machine's loopback is handed to it.
///
/// # Errors
/// The port is taken, or `kelp` cannot be started at all.
pub fn supervise(node: &NodeLayout, port: Option<u16>, kelp: &Path, arguments: &[String]) -> Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().context("block SIGTERM")?;
    let socket = match port {
        Some(port) => {
            let socket = TcpListener::bind(("127.0.0.1", port))
                .with_context(|| format!("listen on 127.0.0.1:{port}; is another sandbox up?"))?;
            Some(OwnedFd::from(socket))
        }
        None => None,
    };
    let own_pid = std::process::id();
    std::fs::write(node.supervisor_file(), format!("{own_pid} {}", start_time(own_pid)?))
        .with_context(|| format!("write {}", node.supervisor_file().display()))?;

    let (sender, events) = mpsc::channel();
    let on_signal = sender.clone();
    std::thread::spawn(move || {
        while signals.wait().is_ok() {
            if on_signal.send(Event::Stop).is_err() {
                return;
            }
        }
    });

    let (kept, notify) = Kept::follow(node)?;
    let mut pause = MIN_PAUSE;
    loop {
        let started = Instant::now();
        let mut sockets = kept.copies()?;
        if let Some(socket) = &socket {
            sockets.insert(0, ("api".to_owned(), socket.try_clone().context("copy the listening socket")?));
        }
        let child = start(node, &notify, &sockets, kelp, arguments)?;
        let pid = Pid::from_raw(i32::try_from(child.id()).context("PID out of range")?);
        std::fs::write(node.pid_file(), child.id().to_string())
            .with_context(|| format!("write {}", node.pid_file().display()))?;
        let on_exit = sender.clone();
        std::thread::spawn(move || {
            let mut child = child;
            let _ = child.wait();
            let _ = on_exit.send(Event::Exited);
        });
        if let Ok(Event::Stop) = events.recv() {
            // It may have exited in the meantime; the wait below then ends at once.
            let _ = kill(pid, Signal::SIGTERM);
            if let Err(RecvTimeoutError::Timeout) = events.recv_timeout(STOP_TIMEOUT) {
                let _ = kill(pid, Signal::SIGKILL);
                let _ = events.recv_timeout(STOP_TIMEOUT);
            }
            return Ok(());
        }
        pause = if started.elapsed() < SHORT_RUN { (pause * 2).min(MAX_PAUSE) } else { MIN_PAUSE };
        if let Ok(Event::Stop) = events.recv_timeout(pause) {
            return Ok(());
        }
    }
}

fn start(
    node: &NodeLayout,
    notify: &Path,
    sockets: &[(String, OwnedFd)],
    kelp: &Path,
    arguments: &[String],
) -> Result<Child> {
    let log = OpenOptions::new().create(true).append(true).open(node.log_file());
    let log: File = log.with_context(|| format!("open {}", node.log_file().display()))?;
    let mut netns = std::ffi::OsString::from("--net=");
    netns.push(node.netns_path());
    let mut command = Command::new("sh");
    command.arg("-c").arg(SCRIPT).arg(node.cgroup2_dir().join("host"));
    command.arg("nsenter").arg(netns).arg("--").arg(kelp).args(arguments);
    command.env("NOTIFY_SOCKET", notify);
    if !sockets.is_empty() {
        let names: Vec<&str> = sockets.iter().map(|(name, _)| name.as_str()).collect();
        command.env("LISTEN_FDS", sockets.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
    }
    command.stdin(Stdio::null());
    command.stdout(log.try_clone().context("copy the log file")?).stderr(log);
    // Its own process group keeps a terminal's ^C away.
    command.process_group(0);
    let none = SigSet::empty();
    // The child puts them in place: here the places may be taken.
    let mut places = Vec::new();
    for ((_, socket), place) in sockets.iter().zip(FIRST_FD..) {
        let copy =
            fcntl(socket.as_raw_fd(), FcntlArg::F_DUPFD_CLOEXEC(COPY_FROM)).context("copy a socket")?;
        // SAFETY: the descriptor was made by the call above.
        places.push((unsafe { OwnedFd::from_raw_fd(copy) }, place));
    }
    let put = move || {
        none.thread_set_mask()?;
        for (copy, place) in &places {
            dup2(copy.as_raw_fd(), *place)?;
        }
        Ok(())
    };
    // SAFETY: pthread_sigmask(3) and dup2(2) are async-signal-safe and the closure allocates nothing.
    unsafe { command.pre_exec(put) };
    command.spawn().context("start kelp")
}

/// Start time of a process in clock ticks since boot: with the PID it names a process for good (proc(5), field 22).
pub(super) fn start_time(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    // The command name may hold spaces and parentheses; the fields that follow the last one do not.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let field = fields.split_ascii_whitespace().nth(19).with_context(|| format!("{path} is malformed"))?;
    field.parse().with_context(|| format!("{path} is malformed"))
}

/// PID of a host's supervisor, if it runs.
pub(super) fn running_supervisor(node: &NodeLayout) -> Option<Pid> {
    let text = std::fs::read_to_string(node.supervisor_file()).ok()?;
    let (pid, started) = text.split_once(' ')?;
    let pid: u32 = pid.parse().ok()?;
    (start_time(pid).ok()?.to_string() == started).then_some(Pid::from_raw(i32::try_from(pid).ok()?))
}
