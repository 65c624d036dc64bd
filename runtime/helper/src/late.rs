//! Bind mounts that the OCI runtime spec, or libcontainer, cannot express: propagation of single mounts, read-only all
//! the way down, and sources that another container may swap for a link between the check and the mount.
//!
//! Each is copied as a detached mount while this process still sees the host's mounts, and attached in the container's
//! mount namespace once that is complete, before the container's program starts.

use crate::sys;
use crate::users::Users;
use anyhow::{Context, Result};
use kelp_runtime_protocol::{LateMount, Propagation};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

/// A detached mount and where it goes.
pub struct Detached {
    mount: OwnedFd,
    is_dir: bool,
    wanted: LateMount,
}

/// Copies the mounts. Must be called in the host's mount namespace: a copy made elsewhere would not be the host's peer.
pub fn detach(list: &[LateMount], users: Option<&Users>) -> Result<Vec<Detached>> {
    list.iter().map(|wanted| one(wanted, users).with_context(|| describe(wanted))).collect()
}

fn describe(wanted: &LateMount) -> String {
    let below = wanted.below.as_deref().unwrap_or(Path::new(""));
    format!("cannot mount {} at {}", wanted.source.join(below).display(), wanted.destination.display())
}

fn one(wanted: &LateMount, users: Option<&Users>) -> Result<Detached> {
    let root = sys::open_path(&wanted.source).context("cannot open the source")?;
    let source = match &wanted.below {
        Some(below) => sys::open_beneath(&root, below).context("the path leaves its volume")?,
        None => root,
    };
    let is_dir = File::from(source.try_clone()?).metadata()?.is_dir();
    let mount = sys::copy_mount(&source).context("cannot copy the mount")?;
    if let Some(users) = users.filter(|_| wanted.mapped) {
        sys::map_ids(&mount, &users.namespace)
            .context("its file system or this kernel cannot map the ids of a user namespace")?;
    }
    let propagation = match wanted.propagation {
        Propagation::Private => libc::MS_PRIVATE,
        Propagation::Slave => libc::MS_SLAVE,
        Propagation::Shared => libc::MS_SHARED,
    };
    sys::set_mount(&mount, true, propagation, wanted.recursive_read_only)
        .context("cannot set its propagation")?;
    if wanted.read_only {
        sys::set_mount(&mount, false, 0, true).context("cannot make it read-only")?;
    }
    Ok(Detached { mount, is_dir, wanted: wanted.clone() })
}

/// Makes the mount points in the root filesystem, as `owner`'s.
pub fn make_targets(rootfs: &Path, list: &[Detached], owner: u32) -> Result<()> {
    let root = File::open(rootfs).context("cannot open the root filesystem")?;
    for mount in list {
        let target = &mount.wanted.destination;
        if sys::open_in_root(&root, target, libc::O_PATH).is_ok() {
            continue;
        }
        let made = sys::as_owner(owner, || match mount.is_dir {
            true => sys::make_dirs_in_root(&root, target),
            false => sys::make_file_in_root(&root, target),
        });
        made.with_context(|| format!("cannot make the mount point {}", target.display()))?;
    }
    Ok(())
}

/// The mount that a path of the container is in, and the path below it. A mount that libcontainer makes is never below
/// one of these.
pub fn covering<'a>(list: &'a [Detached], path: &'a Path) -> Option<(&'a OwnedFd, &'a Path)> {
    let depth = |mount: &&Detached| mount.wanted.destination.components().count();
    let over = |mount: &&Detached| path.starts_with(&mount.wanted.destination);
    let mount = list.iter().filter(over).max_by_key(depth)?;
    Some((&mount.mount, path.strip_prefix(&mount.wanted.destination).unwrap_or(Path::new(""))))
}

/// Attaches the mounts in the mount namespace of the container's first process, which waits to be started. A mount point
/// that one of the container's own mounts has hidden, such as below /dev, is made again.
pub fn attach(pid: i32, list: &[Detached], owner: u32) -> Result<()> {
    if list.is_empty() {
        return Ok(());
    }
    let own = File::open("/proc/self/ns/mnt").context("cannot open the mount namespace")?;
    let theirs = File::open(format!("/proc/{pid}/ns/mnt")).context("cannot open the container's mounts")?;
    sys::enter_mounts(&theirs).context("cannot enter the container's mounts")?;
    let result = list.iter().try_for_each(|mount| {
        make_targets(Path::new("/"), std::slice::from_ref(mount), owner)?;
        sys::attach_mount(&mount.mount, &mount.wanted.destination).with_context(|| describe(&mount.wanted))
    });
    sys::enter_mounts(&own).context("cannot return from the container's mounts")?;
    result
}
