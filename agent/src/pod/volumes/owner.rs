//! The group that a pod's persistent volumes belong to (`fsGroup`).
//!
//! Other pods may change the volume meanwhile: every file is opened by its directory's descriptor without following links,
//! and changed by its own, so that no change can be led out of the volume.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Deepest directory that is changed; every level holds a descriptor.
const DEEPEST: usize = 256;

/// What the group may do with files and, beside that, with directories. Source: upstream's volume ownership.
const FILES: u32 = 0o660;
const DIRECTORIES: u32 = 0o2110;

fn wanted_mode(metadata: &Metadata) -> u32 {
    let more = if metadata.is_dir() { FILES | DIRECTORIES } else { FILES };
    (metadata.mode() & 0o7777) | more
}

fn is_done(metadata: &Metadata, group: u32) -> bool {
    metadata.gid() == group && metadata.mode() & 0o7777 == wanted_mode(metadata)
}

/// Opens whatever is at `path`, a link itself too, as a handle that can be neither read nor written.
fn handle(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC).open(path)
}

/// The path of an open file, whatever became of its name.
fn path_of(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// Gives `root` and all in it to `group`. With `root_decides` a root that is the group's already says that all is done.
/// Links are changed, never followed.
///
/// # Errors
/// A system call failed.
pub fn give(root: &Path, group: u32, root_decides: bool) -> io::Result<()> {
    // A volume may itself be named by a link.
    let root = handle(&fs::canonicalize(root)?)?;
    if root_decides && is_done(&root.metadata()?, group) {
        return Ok(());
    }
    give_tree(&root, group, 0)
}

fn give_tree(file: &File, group: u32, depth: usize) -> io::Result<()> {
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        if depth >= DEEPEST {
            return Err(io::Error::other(format!("directories are nested deeper than {DEEPEST}")));
        }
        for entry in fs::read_dir(path_of(file))? {
            match handle(&path_of(file).join(entry?.file_name())) {
                Ok(child) => give_tree(&child, group, depth + 1)?,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
    }
    // A directory is changed after what is in it: its own state says that all below it is done.
    if is_done(&metadata, group) {
        return Ok(());
    }
    std::os::unix::fs::chown(path_of(file), None, Some(group)).or_else(|e| match metadata.is_symlink() {
        // Not every kernel changes links by their descriptor; who a link belongs to hardly matters.
        true => Ok(()),
        false => Err(e),
    })?;
    match metadata.is_symlink() {
        true => Ok(()),
        false => fs::set_permissions(path_of(file), fs::Permissions::from_mode(wanted_mode(&metadata))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_a_volume_is_the_groups_and_nothing_outside() {
        let dir = tempfile::tempdir().unwrap();
        let (volume, outside) = (dir.path().join("v"), dir.path().join("outside"));
        fs::create_dir_all(volume.join("a/b")).unwrap();
        fs::write(volume.join("a/b/f"), "").unwrap();
        fs::write(&outside, "").unwrap();
        std::os::unix::fs::symlink(&outside, volume.join("link")).unwrap();
        fs::set_permissions(volume.join("a/b/f"), fs::Permissions::from_mode(0o600)).unwrap();
        let before = fs::metadata(&outside).unwrap();
        give(&volume, 4321, false).unwrap();
        let of = |path: &str| fs::metadata(volume.join(path)).unwrap();
        assert_eq!((of("a/b/f").gid(), of("a/b/f").mode() & 0o7777), (4321, 0o660));
        assert_eq!((of("a").gid(), of("a").mode() & 0o7777), (4321, 0o2775));
        let after = fs::metadata(&outside).unwrap();
        assert_eq!((after.gid(), after.mode()), (before.gid(), before.mode()));
        // The root says that it is done: what came later is left alone.
        fs::write(volume.join("later"), "").unwrap();
        give(&volume, 4321, true).unwrap();
        assert_ne!(of("later").mode() & 0o060, 0o060);
        give(&volume, 4321, false).unwrap();
        assert_eq!(of("later").mode() & 0o060, 0o060);
    }
}
