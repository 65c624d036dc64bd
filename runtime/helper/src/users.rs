//! Containers in the pod's user namespace.

use crate::sys;
use anyhow::{Context, Result};
use kelp_runtime_protocol::{HELPER_STDIO_FD, HELPER_USERS_FD, IdRange};
use libcontainer::oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, Spec};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, fchown};
use std::path::PathBuf;

/// The pod's user namespace.
pub struct Users {
    /// Its descriptor.
    pub namespace: OwnedFd,
    /// Its ids.
    pub range: IdRange,
}

/// The user namespace with these ids that the shim passed.
pub fn of(range: Option<IdRange>) -> Result<Option<Users>> {
    let Some(range) = range else { return Ok(None) };
    let namespace = sys::passed(HELPER_USERS_FD).context("cannot take the pod's user namespace")?;
    Ok(Some(Users { namespace, range }))
}

/// Makes a container join the user namespace. It is entered first, and from within the other namespaces could not be
/// found by the shim's PID: they are opened here. The descriptors must live until the container is made.
pub fn join(spec: &mut Spec, users: &Users) -> Result<Vec<File>> {
    let own = |file: &dyn AsRawFd| PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let linux = spec.linux_mut().as_mut().context("the OCI spec is not one for Linux")?;
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    let mut open = Vec::new();
    for namespace in &mut namespaces {
        let Some(path) = namespace.path().clone() else { continue };
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        namespace.set_path(Some(own(&file)));
        open.push(file);
    }
    let mut user = LinuxNamespace::default();
    user.set_typ(LinuxNamespaceType::User);
    user.set_path(Some(own(&users.namespace)));
    namespaces.push(user);
    linux.set_namespaces(Some(namespaces));
    Ok(open)
}

/// Gives the pipes of a process's streams to its user, who may open them again as /dev/stdout.
pub fn give_streams(uid: u32, range: Option<IdRange>) -> Result<()> {
    for fd in HELPER_STDIO_FD..HELPER_STDIO_FD + 3 {
        let Ok(stream) = sys::passed(fd) else { continue };
        let stream = File::from(stream);
        let kind = stream.metadata().context("cannot look at a stream")?.file_type();
        if kind.is_fifo() {
            let user = range.map_or(uid, |range| range.host.saturating_add(uid));
            fchown(&stream, Some(user), range.map(|range| range.host))
                .context("cannot give away a stream")?;
        }
    }
    Ok(())
}
