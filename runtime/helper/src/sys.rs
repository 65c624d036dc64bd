//! System calls and the state that a process inherits.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn own(fd: libc::c_long) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the callers pass what a system call has just returned; nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Undoes what a container must not inherit from the agent, the shim or Rust's start-up code: ignored signals, the
/// umask and the host's supplementary groups. The descriptors passed by the shim become close-on-exec.
pub fn reset_process() -> io::Result<()> {
    // SAFETY: plain system calls; an empty group list needs no pointer.
    unsafe {
        // The shim knows what a killed helper left behind by this name.
        check(libc::prctl(libc::PR_SET_NAME, c"kelp-helper".as_ptr(), 0, 0, 0))?;
        for signal in 1..=64 {
            // Those that cannot be set are nobody's.
            libc::signal(signal, libc::SIG_DFL);
        }
        libc::umask(0o022);
        check(libc::setgroups(0, std::ptr::null()))?;
    }
    for fd in 3..16 {
        // SAFETY: fcntl takes integers only; a closed descriptor gives EBADF.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    Ok(())
}

/// Takes over a descriptor that the shim passed by its number.
pub fn passed(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl takes integers only and returns a new descriptor.
    own(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 16) }.into())
}

/// Whether the shim passed this descriptor.
pub fn is_open(fd: RawFd) -> bool {
    // SAFETY: fcntl takes integers only.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

/// Leaves the mount namespace for a copy of it.
pub fn unshare_mounts() -> io::Result<()> {
    // SAFETY: unshare takes integers only.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) }).map(drop)
}

/// Enters a mount namespace.
pub fn enter_mounts(namespace: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: setns takes integers only.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNS) }).map(drop)
}

/// A detached copy of the mount at the root of the mount namespace.
pub fn copy_root_mount() -> io::Result<OwnedFd> {
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    // SAFETY: the path is a terminated constant; open_tree returns a new descriptor.
    own(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, c"/".as_ptr(), flags) })
}

/// Opens a file or directory of the host as a place only.
pub fn open_path(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    // SAFETY: the path is terminated; open returns a new descriptor.
    own(unsafe { libc::open(path.as_ptr(), libc::O_PATH | libc::O_CLOEXEC) }.into())
}

/// Opens `path` below `root` as a place only; fails when a link or `..` on the way leads out of `root`.
pub fn open_beneath(root: &impl AsRawFd, path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(if path.as_os_str().is_empty() { Path::new(".") } else { path })?;
    // SAFETY: open_how is plain integers, for which zero is valid.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = u64::from((libc::O_PATH | libc::O_CLOEXEC).cast_unsigned());
    how.resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_MAGICLINKS;
    // SAFETY: the string is terminated, `how` lives for the call and its true size is given.
    own(unsafe {
        libc::syscall(
            libc::SYS_openat2,
            root.as_raw_fd(),
            path.as_ptr(),
            &raw const how,
            size_of::<libc::open_how>(),
        )
    })
}

/// A detached copy of what is mounted at `place` and below it.
pub fn copy_mount(place: &impl AsRawFd) -> io::Result<OwnedFd> {
    let flags = libc::OPEN_TREE_CLONE
        | libc::OPEN_TREE_CLOEXEC
        | (libc::AT_EMPTY_PATH | libc::AT_RECURSIVE).cast_unsigned();
    // SAFETY: the path is a terminated constant; open_tree returns a new descriptor.
    own(unsafe { libc::syscall(libc::SYS_open_tree, place.as_raw_fd(), c"".as_ptr(), flags) })
}

/// Sets the propagation (0: as it is) of a detached mount, and makes it read-only; with `recursive` all that is below.
pub fn set_mount(
    mount: &OwnedFd,
    recursive: bool,
    propagation: libc::c_ulong,
    read_only: bool,
) -> io::Result<()> {
    // SAFETY: mount_attr is plain integers, for which zero is valid.
    let mut attributes: libc::mount_attr = unsafe { std::mem::zeroed() };
    attributes.propagation = propagation;
    attributes.attr_set = if read_only { libc::MOUNT_ATTR_RDONLY } else { 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a terminated constant, the structure lives for the call and its true size is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Enters a user namespace for good, with all capabilities in it.
pub fn enter_users(namespace: RawFd) -> io::Result<()> {
    // SAFETY: setns takes integers only.
    check(unsafe { libc::setns(namespace, libc::CLONE_NEWUSER) }).map(drop)
}

/// Runs `work` with the file system rights of a user and group of the host, to whom belongs what it makes.
pub fn as_owner<T>(id: u32, work: impl FnOnce() -> T) -> T {
    if id == 0 {
        return work();
    }
    // SAFETY: setfsgid and setfsuid take integers only; this process has one thread.
    unsafe {
        libc::setfsgid(id);
        libc::setfsuid(id);
    }
    let result = work();
    // SAFETY: as above.
    unsafe {
        libc::setfsuid(0);
        libc::setfsgid(0);
    }
    result
}

/// Files of a detached mount belong to the ids of a user namespace as they belong to those of the host.
pub fn map_ids(mount: &OwnedFd, users: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: mount_attr is plain integers, for which zero is valid.
    let mut attributes: libc::mount_attr = unsafe { std::mem::zeroed() };
    attributes.attr_set = libc::MOUNT_ATTR_IDMAP;
    attributes.userns_fd = u64::from(users.as_raw_fd().cast_unsigned());
    // SAFETY: the path is a terminated constant, the structure lives for the call and its true size is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes an empty file `path` below `root` with the directories above it, unless something is there.
pub fn make_file_in_root(root: &impl AsRawFd, path: &Path) -> io::Result<()> {
    if open_in_root(root, path, libc::O_PATH).is_ok() {
        return Ok(());
    }
    let above = path.parent().unwrap_or(Path::new("/"));
    make_dirs_in_root(root, above)?;
    let above = open_in_root(root, above, libc::O_PATH | libc::O_DIRECTORY)?;
    let name = c_path(Path::new(path.file_name().unwrap_or_default()))?;
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY | libc::O_CLOEXEC | libc::O_NOFOLLOW;
    // SAFETY: `above` is open and `name` terminated; openat returns a new descriptor.
    own(unsafe { libc::openat(above.as_raw_fd(), name.as_ptr(), flags, 0o644_u32) }.into()).map(drop)
}

/// Attaches a detached mount at `target`.
pub fn attach_mount(mount: &OwnedFd, target: &Path) -> io::Result<()> {
    let target = c_path(target)?;
    // SAFETY: both paths are terminated and the descriptor is open.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// mount(2).
pub fn mount(source: &CStr, target: &Path, kind: &CStr, flags: libc::c_ulong, data: &CStr) -> io::Result<()> {
    let target = c_path(target)?;
    // SAFETY: all strings are terminated and outlive the call.
    check(unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast())
    })
    .map(drop)
}

/// Opens `path` as if `root` were the root directory: neither `..` nor a link leads out of it.
pub fn open_in_root(root: &impl AsRawFd, path: &Path, flags: libc::c_int) -> io::Result<OwnedFd> {
    let path = path.strip_prefix("/").unwrap_or(path);
    let path = c_path(if path.as_os_str().is_empty() { Path::new(".") } else { path })?;
    // SAFETY: open_how is plain integers, for which zero is valid.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = u64::from((flags | libc::O_CLOEXEC).cast_unsigned());
    how.resolve = libc::RESOLVE_IN_ROOT;
    // SAFETY: the string is terminated, `how` lives for the call and its true size is given.
    own(unsafe {
        libc::syscall(
            libc::SYS_openat2,
            root.as_raw_fd(),
            path.as_ptr(),
            &raw const how,
            size_of::<libc::open_how>(),
        )
    })
}

/// Makes the directory `path` below `root` with everything above it.
pub fn make_dirs_in_root(root: &impl AsRawFd, path: &Path) -> io::Result<()> {
    let mut done = PathBuf::new();
    for component in path.components() {
        let Component::Normal(name) = component else { continue };
        let above = open_in_root(root, &done, libc::O_PATH | libc::O_DIRECTORY)?;
        let name = c_path(Path::new(name))?;
        // SAFETY: `above` is open and `name` terminated.
        match check(unsafe { libc::mkdirat(above.as_raw_fd(), name.as_ptr(), 0o755) }) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => done.push(component),
        }
    }
    Ok(())
}

/// A file in memory.
pub fn memory_file(name: &CStr) -> io::Result<std::fs::File> {
    // SAFETY: the name is terminated; memfd_create returns a new descriptor.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    own(fd.into()).map(std::fs::File::from)
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}
