//! System calls, each wrapped so that the rest of the shim has no `unsafe`.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Which process [`detach`] returned in.
pub enum Side {
    /// The process that was started; it ends now.
    Parent,
    /// The one that stays.
    Child,
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn own(fd: libc::c_int) -> io::Result<OwnedFd> {
    let fd = check(fd)?;
    // SAFETY: the callers pass what a system call has just returned; nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Forks into a new session, becomes the reaper of orphaned descendants and blocks every signal.
pub fn detach() -> io::Result<Side> {
    // SAFETY: the process has one thread, so the child may do whatever the parent could.
    if check(unsafe { libc::fork() })? > 0 {
        return Ok(Side::Parent);
    }
    // SAFETY: plain system calls; the signal set is initialised by sigfillset before it is read.
    unsafe {
        check(libc::setsid())?;
        check(libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))?;
        check(libc::prctl(libc::PR_SET_NAME, c"kelp-shim".as_ptr(), 0, 0, 0))?;
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        check(libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut()))?;
    }
    Ok(Side::Child)
}

/// A descriptor that becomes readable when a child changes state.
pub fn child_signals() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset before it is read; signalfd returns a new descriptor.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        own(libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))
    }
}

/// A copy of a descriptor, above the numbers that a helper's table is built of, close-on-exec.
pub fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl takes integers only.
    own(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 16) })
}

/// Opens `name` relative to the directory `dir` for reading, close-on-exec.
pub fn open_at(dir: &OwnedFd, name: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: `dir` is open and `name` terminated.
    own(unsafe { libc::openat(dir.as_raw_fd(), name.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) })
}

/// Standard input and output become /dev/null: the agent waits for the end of its pipe.
pub fn release_standard_streams(dev_null: RawFd) -> io::Result<()> {
    for fd in [0, 1] {
        // SAFETY: dup2 takes integers only; nothing in this process owns descriptors 0 and 1.
        check(unsafe { libc::dup2(dev_null, fd) })?;
    }
    Ok(())
}

/// Standard error goes to `file`.
pub fn redirect_errors(file: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: dup2 takes integers only; nothing in this process owns descriptor 2.
    check(unsafe { libc::dup2(file.as_raw_fd(), 2) }).map(drop)
}

/// Leaves the namespaces in `flags` for new ones.
pub fn unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: unshare takes integers only.
    check(unsafe { libc::unshare(flags) }).map(drop)
}

/// Enters a mount namespace.
pub fn enter_mounts(namespace: &OwnedFd) -> io::Result<()> {
    // SAFETY: setns takes integers only.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNS) }).map(drop)
}

/// Children are born in this PID namespace from now on.
pub fn enter_pids(namespace: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: setns takes integers only.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWPID) }).map(drop)
}

/// Enters a namespace of the kind `flag`.
pub fn enter_namespace(namespace: &impl AsRawFd, flag: libc::c_int) -> io::Result<()> {
    // SAFETY: setns takes integers only.
    check(unsafe { libc::setns(namespace.as_raw_fd(), flag) }).map(drop)
}

/// Two connected sockets.
pub fn stream_pair() -> io::Result<(std::fs::File, OwnedFd)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    Ok((OwnedFd::from(ours).into(), theirs.into()))
}

/// Runs `work` in a child, which ends after it, and with this process.
pub fn fork_with(work: impl FnOnce()) -> io::Result<i32> {
    // SAFETY: the process has one thread, so the child may do whatever the parent could; it does not return.
    unsafe {
        let pid = check(libc::fork())?;
        if pid > 0 {
            return Ok(pid);
        }
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        work();
        libc::_exit(0);
    }
}

/// Waits for the end of a child.
pub fn wait_for(pid: i32) -> io::Result<()> {
    // SAFETY: waitpid accepts a null status.
    check(unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) }).map(drop)
}

/// Waits until it is killed; children that end meanwhile are reaped by the kernel.
pub fn wait_for_ever() -> ! {
    // SAFETY: plain system calls without memory of ours; the name is a terminated constant.
    unsafe {
        libc::prctl(libc::PR_SET_NAME, c"pause".as_ptr(), 0, 0, 0);
        libc::signal(libc::SIGCHLD, libc::SIG_IGN);
        loop {
            libc::pause();
        }
    }
}

/// mount(2).
pub fn mount(source: &CStr, target: &Path, kind: &CStr, flags: libc::c_ulong, data: &CStr) -> io::Result<()> {
    let target = CString::new(target.as_os_str().as_bytes())?;
    // SAFETY: all strings are terminated and outlive the call.
    check(unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast())
    })
    .map(drop)
}

/// Makes the working directory the root of the mount namespace and drops every other mount of it.
pub fn pivot_here() -> io::Result<()> {
    // SAFETY: the strings are terminated constants.
    unsafe {
        if libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) < 0 {
            return Err(io::Error::last_os_error());
        }
        check(libc::umount2(c".".as_ptr(), libc::MNT_DETACH)).map(drop)
    }
}

/// Sets the host name of the UTS namespace.
pub fn set_hostname(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length belong to the same string.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// Brings the loopback device of the network namespace up.
pub fn loopback_up() -> io::Result<()> {
    // SAFETY: socket returns a new descriptor; ifreq is plain bytes for which zero is valid, the name fits with its
    // terminator, and the ioctl reads the ifreq that lives here.
    unsafe {
        let socket = own(libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0))?;
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(c"lo".to_bytes()) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or(1);
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request)).map(drop)
    }
}

/// Waits until one of `fds` is ready or `timeout` (ms, −1 for ever) is over.
pub fn poll(fds: &mut [libc::pollfd], timeout: i32) -> io::Result<()> {
    let count = libc::nfds_t::try_from(fds.len()).map_err(io::Error::other)?;
    // SAFETY: pointer and count describe the slice.
    match check(unsafe { libc::poll(fds.as_mut_ptr(), count, timeout) }) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(()),
    }
}

/// What [`peek_child`] sees.
pub enum Child {
    /// This child has ended and is not reaped yet.
    Ended(i32),
    /// Children run, none has ended.
    Alive,
    /// There are no children.
    None,
}

/// Looks for a child that has ended, without reaping it.
pub fn peek_child() -> io::Result<Child> {
    // SAFETY: siginfo_t is plain integers for which zero is valid; waitid fills the one that lives here, and si_pid is
    // valid for what waitid fills in.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        match check(libc::waitid(libc::P_ALL, 0, &raw mut info, flags)) {
            Ok(_) if info.si_pid() == 0 => Ok(Child::Alive),
            Ok(_) => Ok(Child::Ended(info.si_pid())),
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => Ok(Child::None),
            Err(error) => Err(error),
        }
    }
}

/// Exit code and signal of a child if it has ended; it is reaped then.
pub fn reap(pid: i32) -> io::Result<Option<(i32, Option<i32>)>> {
    let mut status = 0;
    // SAFETY: `status` lives for the call.
    if check(unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) })? == 0 {
        return Ok(None);
    }
    Ok(Some(if libc::WIFSIGNALED(status) {
        let signal = libc::WTERMSIG(status);
        (128 + signal, Some(signal))
    } else {
        (libc::WEXITSTATUS(status), None)
    }))
}

/// PID and name of every child.
pub fn children() -> Vec<(i32, String)> {
    let own = std::process::id().to_string();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // proc_pid_stat(5): `pid (name) state parent …`; the name may hold anything.
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let Some((before, after)) = stat.rsplit_once(") ") else { continue };
        let name = before.split_once('(').map_or("", |(_, name)| name);
        if after.split(' ').nth(1) == Some(own.as_str()) {
            found.push((pid, name.to_owned()));
        }
    }
    found
}

/// Sends a signal to a process that is known not to have been reaped.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: kill takes integers only.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// A handle of a process.
pub fn pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes integers only and returns a new descriptor, which is close-on-exec.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    own(i32::try_from(fd).map_err(io::Error::other)?)
}

/// Sends a signal to the process of a handle.
pub fn kill_handle(handle: &OwnedFd, signal: i32) -> io::Result<()> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: pidfd_send_signal accepts a null siginfo.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, handle.as_raw_fd(), signal, none, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Starts `executable` as a child with the descriptors `table[i]` at number `i` and nothing else open.
pub fn spawn(executable: &OwnedFd, name: &CStr, table: &[OwnedFd]) -> io::Result<i32> {
    // SAFETY: the process has one thread, so the child may call anything; it goes on in `become_program` only.
    unsafe {
        let pid = check(libc::fork())?;
        if pid > 0 {
            return Ok(pid);
        }
        become_program(executable, name, table)
    }
}

/// Like [`spawn`], but the new process is a child of this one's parent and, in a user namespace entered before, root.
pub fn spawn_sibling(executable: &OwnedFd, name: &CStr, table: &[OwnedFd]) -> io::Result<i32> {
    let flags = libc::CLONE_PARENT | libc::SIGCHLD;
    // SAFETY: without a stack of its own and without CLONE_VM this is fork(2) with another parent; else as in `spawn`.
    unsafe {
        let pid = libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0);
        let pid = check(libc::c_int::try_from(pid).map_err(io::Error::other)?)?;
        if pid > 0 {
            return Ok(pid);
        }
        if libc::setresgid(0, 0, 0) < 0 || libc::setresuid(0, 0, 0) < 0 {
            libc::_exit(1);
        }
        become_program(executable, name, table)
    }
}

/// Ends with its parent.
///
/// # Safety
/// For a child that has just been forked: it takes over the process's descriptors.
unsafe fn become_program(executable: &OwnedFd, name: &CStr, table: &[OwnedFd]) -> ! {
    let argv = [name.as_ptr(), std::ptr::null()];
    let envp = [std::ptr::null::<libc::c_char>()];
    // SAFETY: argv and envp end with null and live on. The sources of dup2 are all above its targets (`duplicate`).
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        for (number, fd) in table.iter().enumerate() {
            if libc::dup2(fd.as_raw_fd(), i32::try_from(number).unwrap_or(i32::MAX)) < 0 {
                libc::_exit(1);
            }
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        libc::syscall(
            libc::SYS_execveat,
            executable.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
        libc::_exit(1);
    }
}
