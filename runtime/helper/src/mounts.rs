//! The mount namespace in which a container's root is put together. It is a private copy of the host's and vanishes
//! with this process, once the container has its own: nothing is ever mounted on the host.

use crate::sys;
use crate::users::Users;
use anyhow::{Context, Result};
use kelp_runtime_protocol::{CreateJob, HELPER_SHM_FD, Overlay, files};
use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;

/// Mounts the root filesystem and the pod's shm of `job` in a new mount namespace.
pub fn prepare(job: &CreateJob, users: Option<&Users>) -> Result<()> {
    let shm = match &job.shm {
        Some(target) if sys::is_open(HELPER_SHM_FD) => Some((copy_shm()?, target)),
        _ => None,
    };
    sys::unshare_mounts().context("cannot make a mount namespace")?;
    // Mounts of the host still come in, ours do not go out.
    let flags = libc::MS_REC | libc::MS_SLAVE;
    sys::mount(c"none", Path::new("/"), c"", flags, c"").context("cannot detach the mount namespace")?;
    if let Some((mount, target)) = shm {
        fs::create_dir_all(target).with_context(|| format!("cannot create {}", target.display()))?;
        sys::attach_mount(&mount, target).context("cannot attach the pod's shm")?;
    }
    mount_root(&job.root, &job.bundle.join(files::ROOTFS), users)
}

/// Takes a copy of the only mount in the pod's shm namespace.
fn copy_shm() -> Result<std::os::fd::OwnedFd> {
    let host = File::open("/proc/self/ns/mnt").context("cannot open the mount namespace")?;
    let shm = sys::passed(HELPER_SHM_FD).context("cannot take the pod's shm")?;
    sys::enter_mounts(&shm).context("cannot enter the pod's shm namespace")?;
    let copy = sys::copy_root_mount().context("cannot copy the pod's shm mount");
    sys::enter_mounts(&host).context("cannot return from the pod's shm namespace")?;
    copy
}

fn mount_root(root: &Overlay, target: &Path, users: Option<&Users>) -> Result<()> {
    for dir in [&root.upper, &root.work, &target.to_path_buf()] {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    let layers_dir = match users {
        None => root.layers_dir.clone(),
        Some(users) => {
            // What the container writes belongs to its own ids.
            let owner = Some(users.range.host);
            std::os::unix::fs::chown(&root.upper, owner, owner)
                .with_context(|| format!("cannot give away {}", root.upper.display()))?;
            let mapped = target.with_file_name("layers");
            mount_mapped(&root.layers_dir, &mapped, users)
                .with_context(|| format!("cannot map the ids of {}", root.layers_dir.display()))?;
            mapped
        }
    };
    let empty = "empty".to_owned();
    let lower = if root.lower.is_empty() {
        // An image without layers; overlayfs wants a lower directory all the same.
        let dir = target.with_file_name(&empty);
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        dir.display().to_string()
    } else {
        root.lower.join(":")
    };
    // Relative names keep 240 layers within the one page that mount(2) takes.
    std::env::set_current_dir(&layers_dir)
        .with_context(|| format!("cannot enter {}", layers_dir.display()))?;
    let options = format!("lowerdir={lower},upperdir={},workdir={}", escape(&root.upper), escape(&root.work));
    let options = CString::new(options).context("a layer's path has a zero byte")?;
    let result = sys::mount(c"overlay", target, c"overlay", 0, &options);
    std::env::set_current_dir("/").context("cannot return to /")?;
    result.with_context(|| format!("cannot mount the root filesystem ({} layers)", root.lower.len()))
}

/// Mounts `source` at `target` with its files belonging to the ids of a user namespace.
fn mount_mapped(source: &Path, target: &Path, users: &Users) -> Result<()> {
    fs::create_dir_all(target)?;
    let mount = sys::copy_mount(&sys::open_path(source)?)?;
    sys::map_ids(&mount, &users.namespace).context("its file system or this kernel cannot do that")?;
    sys::attach_mount(&mount, target)?;
    Ok(())
}

/// overlayfs splits options at commas, unless they follow a backslash.
fn escape(path: &Path) -> String {
    path.display().to_string().replace('\\', "\\\\").replace(',', "\\,").replace(':', "\\:")
}

/// Makes the working directory when the image lacks it, as other runtimes do: `inner` below `base`, the root filesystem
/// or the mount that it is in. `cwd` is its path in the container.
pub fn make_cwd(base: &impl AsRawFd, inner: &Path, cwd: &Path, owner: u32) -> Result<()> {
    let found = sys::open_in_root(base, inner, libc::O_PATH | libc::O_DIRECTORY).map(drop);
    found
        .or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound => sys::as_owner(owner, || sys::make_dirs_in_root(base, inner)),
            _ => Err(error),
        })
        .with_context(|| format!("cannot use {} as the working directory", cwd.display()))
}
