//! What a shim does once, before it serves: cgroup, namespaces, socket.

use crate::{sys, users};
use kelp_runtime_protocol::{Sandbox, files};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

/// Name under which the shim's program waits as the first process of a PID namespace; `ps` in the pod shows it.
pub const PAUSE: &str = "/pause";

/// A shim that is ready to serve.
pub struct Prepared {
    /// Listening socket.
    pub listener: OwnedFd,
    /// Executable of the runtime helper.
    pub helper: OwnedFd,
    /// Mount namespace with the pod's shm as its root; `None` with host IPC.
    pub shm: Option<OwnedFd>,
    /// User namespace of the pod, when it has its own.
    pub users: Option<OwnedFd>,
    /// Held while the shim lives.
    pub _lock: File,
}

/// An error with what was being done.
fn doing<T>(what: &str, result: Result<T, impl Into<io::Error>>) -> io::Result<T> {
    result.map_err(|error| {
        let error = error.into();
        io::Error::new(error.kind(), format!("cannot {what}: {error}"))
    })
}

/// Prepares everything; the error says what could not be done.
pub fn prepare(dir: &Path) -> io::Result<Prepared> {
    let log = OpenOptions::new().append(true).create(true).open(dir.join(files::LOG));
    sys::redirect_errors(&doing("open the shim's log", log)?)?;
    let helper = sys::duplicate(0)?;
    let text = doing("read the sandbox's description", fs::read(dir.join(files::SANDBOX)))?;
    let sandbox: Sandbox = doing("parse the sandbox's description", serde_json::from_slice(&text))?;

    let lock = doing("create the lock", File::create(dir.join(files::LOCK)))?;
    if lock.try_lock().is_err() {
        return Err(io::Error::other(kelp_runtime_protocol::BUSY));
    }
    if let Some(cgroup) = &sandbox.shim_cgroup {
        let procs = cgroup.join("cgroup.procs");
        doing(&format!("enter {}", cgroup.display()), fs::write(procs, "0"))?;
    }
    // Permitted on ordinary hosts only; a shim that can be chosen by the OOM killer is no reason not to run the pod.
    let _ = fs::write("/proc/self/oom_score_adj", "-998");

    let mut flags = 0;
    if !sandbox.host_network {
        flags |= libc::CLONE_NEWNET | libc::CLONE_NEWUTS;
    }
    if !sandbox.host_ipc {
        flags |= libc::CLONE_NEWIPC;
    }
    let users = match sandbox.users {
        Some(range) => Some(doing("make the pod's user namespace", users::enter(range, flags))?),
        None => {
            doing("make the pod's namespaces", sys::unshare(flags))?;
            None
        }
    };
    if !sandbox.host_network {
        doing("set the host name", sys::set_hostname(&sandbox.hostname))?;
        doing("bring up the loopback device", sys::loopback_up())?;
    }
    for (key, value) in &sandbox.sysctls {
        set_sysctl(key, value)?;
    }
    if sandbox.share_pid {
        let pid = doing("make the pod's PID namespace", start_pause(users.as_ref()))?;
        doing("note its first process", fs::write(dir.join(files::PAUSE), pid.to_string()))?;
    }
    let shm = match sandbox.host_ipc {
        true => None,
        false => Some(doing("make the pod's shm", make_shm(dir, sandbox.users.map_or(0, |r| r.host)))?),
    };
    let listener = doing("make the socket", listen_in(dir))?;
    Ok(Prepared { listener, helper, shm, users, _lock: lock })
}

/// Starts the first process of a new PID namespace. It ends with the shim, and all others there with it.
fn start_pause(users: Option<&OwnedFd>) -> io::Result<i32> {
    let own = File::open("/proc/self/ns/pid")?;
    let executable: OwnedFd = File::open("/proc/self/exe")?.into();
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    let table = [
        sys::duplicate(null.as_raw_fd())?,
        sys::duplicate(null.as_raw_fd())?,
        sys::duplicate(null.as_raw_fd())?,
    ];
    let executable = sys::duplicate(executable.as_raw_fd())?;
    if let Some(users) = users {
        return users::start_first(users, &executable, c"/pause", &table);
    }
    // Only children are born there, the shim stays where it is; the next ones are to be born here again.
    sys::unshare(libc::CLONE_NEWPID)?;
    let started = sys::spawn(&executable, c"/pause", &table);
    sys::enter_pids(&own)?;
    started
}

fn set_sysctl(key: &str, value: &str) -> io::Result<()> {
    // A slash in a key stands for a dot in a name, as in sysctl(8).
    let path: String = key
        .chars()
        .map(|c| match c {
            '.' => '/',
            '/' => '.',
            other => other,
        })
        .collect();
    if Path::new(&path).components().any(|c| !matches!(c, std::path::Component::Normal(_))) {
        return Err(io::Error::other(format!("sysctl {key:?} is not a name")));
    }
    doing(&format!("set sysctl {key} to {value:?}"), fs::write(Path::new("/proc/sys").join(path), value))
}

/// The socket is bound through the directory's descriptor: socket addresses hold 107 bytes only.
fn listen_in(dir: &Path) -> io::Result<OwnedFd> {
    match fs::remove_file(dir.join(files::SOCKET)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let handle = File::open(dir)?;
    let path = format!("/proc/self/fd/{}/{}", handle.as_raw_fd(), files::SOCKET);
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    bind(listener.as_raw_fd(), &UnixAddr::new(path.as_str())?)?;
    listen(&listener, Backlog::new(64)?)?;
    Ok(listener)
}

/// A tmpfs that all containers of the pod share, in a mount namespace of its own that contains nothing else and lives
/// as long as this descriptor: no mount is left on the host, however the shim ends.
fn make_shm(dir: &Path, owner: u32) -> io::Result<OwnedFd> {
    let options = CString::new(format!("mode=1777,size=65536k,uid={owner},gid={owner}"))?;
    let own: OwnedFd = File::open("/proc/self/ns")?.into();
    let host = sys::open_at(&own, c"mnt")?;
    sys::unshare(libc::CLONE_NEWNS)?;
    let make = || {
        sys::mount(c"none", Path::new("/"), c"", libc::MS_REC | libc::MS_PRIVATE, c"")?;
        // Programs map code there: without MS_NOEXEC, as containers see it elsewhere.
        sys::mount(c"shm", dir, c"tmpfs", 0, &options)?;
        std::env::set_current_dir(dir)?;
        sys::pivot_here()?;
        sys::open_at(&own, c"mnt")
    };
    let result = make();
    sys::enter_mounts(&host)?;
    result
}
