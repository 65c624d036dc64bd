//! The last step inside the container: finding and executing the command, and saying exactly why it cannot be done.

use libcontainer::capabilities::drop_privileges;
use libcontainer::oci_spec::runtime::{LinuxSeccomp, Process, Spec};
use libcontainer::syscall::syscall::create_syscall;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use nix::unistd::{Gid, Uid};
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Exit code for a command that does not exist.
const NOT_FOUND: u8 = 127;
/// Exit code for a command that cannot be executed.
const NOT_EXECUTABLE: u8 = 126;

/// Tells the helper whether `execve` succeeded.
pub struct Outcome {
    reader: File,
    writer: OwnedFd,
}

impl Outcome {
    /// A pipe that `execve` closes.
    pub fn new() -> io::Result<Self> {
        let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        Ok(Self { reader: reader.into(), writer })
    }

    /// The executor that reports here. `seccomp` is loaded just before `execve`: libcontainer does so by itself when
    /// it makes a container, but not for a process that joins one. `cwd` is entered once more: libcontainer enters the
    /// working directory before all mounts are there.
    pub fn executor(&self, seccomp: Option<LinuxSeccomp>, cwd: Option<PathBuf>) -> CommandExecutor {
        CommandExecutor { outcome: self.writer.as_raw_fd(), seccomp, cwd, identity: None }
    }

    /// Waits for the executor: `None` when the command runs, else exit code and message.
    pub fn wait(self) -> io::Result<Option<(i32, String)>> {
        let Self { mut reader, writer } = self;
        drop(writer);
        let mut report = Vec::new();
        reader.read_to_end(&mut report)?;
        Ok(report
            .split_first()
            .map(|(code, message)| (i32::from(*code), String::from_utf8_lossy(message).into_owned())))
    }
}

/// Executes the process's arguments.
#[derive(Clone)]
pub struct CommandExecutor {
    outcome: RawFd,
    seccomp: Option<LinuxSeccomp>,
    cwd: Option<PathBuf>,
    identity: Option<Identity>,
}

/// Who a process becomes at last that joins a container with a user namespace: libcontainer does not enter one that
/// exists, so that the process is the host's root until then.
#[derive(Clone)]
pub struct Identity {
    /// The open user namespace.
    pub users: RawFd,
    /// User, groups, capabilities and `no_new_privs`.
    pub process: Process,
}

impl Executor for CommandExecutor {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let args = spec.process().as_ref().and_then(|p| p.args().clone()).unwrap_or_default();
        let (code, message) = match self.enter_cwd().and_then(|()| self.become_user()) {
            Ok(()) => execute(&args),
            Err(message) => (NOT_EXECUTABLE, message),
        };
        let mut report = vec![code];
        report.extend_from_slice(message.as_bytes());
        // SAFETY: pointer and length belong to `report`; the descriptor stays open until `execve`. This process is the
        // container's first one and must not return into libcontainer, which would unwind into a copy of the helper.
        unsafe {
            libc::write(self.outcome, report.as_ptr().cast(), report.len());
            libc::_exit(code.into());
        }
    }

    fn validate(&self, _spec: &Spec) -> Result<(), ExecutorValidationError> {
        // libcontainer's own check needs PATH and gives no reason; `exec` does better.
        Ok(())
    }
}

impl CommandExecutor {
    /// With another identity to take on at the end.
    pub fn with_identity(self, identity: Option<Identity>) -> Self {
        Self { identity, ..self }
    }

    /// Takes on the identity, if there is one, and loads the seccomp profile.
    fn become_user(&self) -> Result<(), String> {
        let Some(Identity { users, process }) = &self.identity else { return self.load_seccomp() };
        let failed = |what: &str, error: &dyn std::fmt::Display| format!("cannot {what}: {error}");
        crate::sys::enter_users(*users).map_err(|e| failed("enter the pod's user namespace", &e))?;
        let syscall = create_syscall();
        let user = process.user();
        let groups: Vec<Gid> = user.additional_gids().iter().flatten().map(|g| Gid::from_raw(*g)).collect();
        syscall.set_groups(&groups).map_err(|e| failed("set the groups", &e))?;
        let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
        syscall.set_id(uid, gid).map_err(|e| failed("set the user", &e))?;
        let no_new_privileges = process.no_new_privileges() == Some(true);
        if !no_new_privileges {
            self.load_seccomp()?;
        }
        if let Some(capabilities) = process.capabilities() {
            drop_privileges(capabilities, &*syscall).map_err(|e| failed("drop capabilities", &e))?;
        }
        if no_new_privileges {
            nix::sys::prctl::set_no_new_privs().map_err(|e| failed("set no_new_privs", &e))?;
            self.load_seccomp()?;
        }
        Ok(())
    }

    fn enter_cwd(&self) -> Result<(), String> {
        let Some(cwd) = &self.cwd else { return Ok(()) };
        std::env::set_current_dir(cwd).map_err(|error| {
            let why = describe(error.raw_os_error().unwrap_or(libc::EIO));
            format!("chdir to cwd ({cwd:?}) set in config.json failed: {why}")
        })
    }

    fn load_seccomp(&self) -> Result<(), String> {
        let Some(profile) = &self.seccomp else { return Ok(()) };
        match libcontainer::seccomp::initialize_seccomp(profile) {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("cannot load the seccomp profile: {error}")),
        }
    }
}

/// Does not return when it succeeds.
fn execute(args: &[String]) -> (u8, String) {
    let Some(command) = args.first() else {
        return (NOT_FOUND, "no command is given".to_owned());
    };
    let path = match find(command, std::env::var_os("PATH").as_deref()) {
        Ok(path) => path,
        Err(refusal) => return refusal,
    };
    let strings: Result<Vec<CString>, _> = args.iter().map(|arg| CString::new(arg.as_bytes())).collect();
    let (Ok(program), Ok(strings)) = (CString::new(path.as_os_str().as_bytes()), strings) else {
        return (NOT_EXECUTABLE, format!("exec: {command:?}: an argument has a zero byte"));
    };
    let Err(error) = nix::unistd::execv(&program, &strings);
    let code = if error == nix::errno::Errno::ENOENT { NOT_FOUND } else { NOT_EXECUTABLE };
    (code, format!("exec {}: {}", path.display(), describe(error as i32)))
}

/// Finds the file to execute as Go's `exec.LookPath` does, with its messages: users know them from other runtimes.
fn find(command: &str, path: Option<&std::ffi::OsStr>) -> Result<PathBuf, (u8, String)> {
    if command.contains('/') {
        return match check(Path::new(command)) {
            Ok(()) => Ok(command.into()),
            Err(error) if is_missing(error) => {
                Err((NOT_FOUND, format!("exec: {command:?}: stat {command}: {}", describe(error))))
            }
            Err(error) => Err((NOT_EXECUTABLE, format!("exec: {command:?}: {}", describe(error)))),
        };
    }
    let mut denied = false;
    for dir in path.map(std::env::split_paths).into_iter().flatten() {
        let dir = if dir.as_os_str().is_empty() { PathBuf::from(".") } else { dir };
        let candidate = dir.join(command);
        match check(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(libc::EACCES) => denied = true,
            Err(_) => {}
        }
    }
    if denied {
        return Err((NOT_EXECUTABLE, format!("exec: {command:?}: permission denied")));
    }
    Err((NOT_FOUND, format!("exec: {command:?}: executable file not found in $PATH")))
}

/// Whether this process may execute `path`; the error number when not.
fn check(path: &Path) -> Result<(), i32> {
    let metadata = std::fs::metadata(path).map_err(|e| e.raw_os_error().unwrap_or(libc::ENOENT))?;
    if metadata.is_dir() {
        return Err(libc::EISDIR);
    }
    let flags = nix::fcntl::AtFlags::AT_EACCESS;
    nix::unistd::faccessat(None, path, nix::unistd::AccessFlags::X_OK, flags).map_err(|e| e as i32)
}

fn is_missing(error: i32) -> bool {
    matches!(error, libc::ENOENT | libc::ENOTDIR)
}

/// The error's text as Go prints it.
fn describe(error: i32) -> String {
    match error {
        libc::ENOENT => "no such file or directory".to_owned(),
        libc::EACCES => "permission denied".to_owned(),
        libc::EISDIR => "is a directory".to_owned(),
        libc::ENOTDIR => "not a directory".to_owned(),
        libc::ENOEXEC => "exec format error".to_owned(),
        other => {
            let text = io::Error::from_raw_os_error(other).to_string();
            text.split(" (os error").next().unwrap_or_default().to_lowercase()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    #[test]
    fn commands_are_found_or_refused_as_elsewhere() {
        let path = Some(OsStr::new("/nonexistent:/bin:/usr/bin"));
        assert_eq!(find("sh", path).unwrap(), Path::new("/bin/sh"));
        let missing = |name: &str| find(name, path).unwrap_err();
        assert_eq!(
            missing("no-such"),
            (127, "exec: \"no-such\": executable file not found in $PATH".to_owned())
        );
        assert_eq!(find("sh", None).unwrap_err().0, 127);
        assert_eq!(
            missing("/no/such"),
            (127, "exec: \"/no/such\": stat /no/such: no such file or directory".to_owned())
        );
        assert_eq!(missing("/etc/passwd"), (126, "exec: \"/etc/passwd\": permission denied".to_owned()));
        assert_eq!(missing("/etc"), (126, "exec: \"/etc\": is a directory".to_owned()));
        assert_eq!(missing("/etc/passwd/x").0, 127);
    }
}
