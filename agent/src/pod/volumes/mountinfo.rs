//! What is mounted below a directory, by the kernel's own list.
//!
//! A volume's directory may be a bind mount of somebody's data. Nothing below a pod's directory is removed before the kernel
//! says that nothing is mounted there: comparing device numbers would not see a bind mount.

use nix::mount::{MntFlags, umount2};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// A field of /proc/self/mountinfo without its octal escapes.
fn unescape(field: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        let digits = more.get(..3).and_then(|d| std::str::from_utf8(d).ok());
        match digits.filter(|_| *first == b'\\').and_then(|d| u8::from_str_radix(d, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = more.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = more;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

/// Mount points at or below `dir`, in the order they were mounted in.
///
/// # Errors
/// The list cannot be read.
pub fn below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    // The list has no links in it.
    let dir = match dir.canonicalize() {
        Ok(dir) => dir,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let points = fs::read("/proc/self/mountinfo")?;
    let points = String::from_utf8_lossy(&points);
    let points = points.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    Ok(points.filter(|point| point.starts_with(&dir)).collect())
}

/// Whether something is mounted exactly at `path`.
#[must_use]
pub fn is_mounted(path: &Path) -> bool {
    let found = path.canonicalize().and_then(|path| Ok(below(&path)?.contains(&path)));
    found.unwrap_or(false)
}

/// Unmounts everything at and below `dir`, the last mounted first.
///
/// # Errors
/// Something cannot be unmounted.
pub fn unmount_all(dir: &Path) -> io::Result<()> {
    // Mounts may be stacked, and others may be uncovered by an unmount.
    for _ in 0..64 {
        let points = below(dir)?;
        if points.is_empty() {
            return Ok(());
        }
        for point in points.iter().rev() {
            match umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
                Err(e) => {
                    let text = format!("cannot unmount {}: {e}", point.display());
                    return Err(io::Error::new(io::Error::from(e).kind(), text));
                }
            }
        }
    }
    Err(io::Error::new(io::ErrorKind::ResourceBusy, format!("{} is mounted again and again", dir.display())))
}

/// Unmounts everything at and below `dir` and removes it. What was mounted keeps its contents.
///
/// # Errors
/// Something is still mounted, or cannot be removed.
pub fn remove_unmounted(dir: &Path) -> io::Result<()> {
    unmount_all(dir)?;
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::mount::{MsFlags, mount};

    #[test]
    fn escapes() {
        assert_eq!(unescape("/a\\040b\\134c"), Path::new("/a b\\c"));
        assert_eq!(unescape("/a\\04"), Path::new("/a\\04"));
        assert_eq!(unescape("/ä"), Path::new("/ä"));
    }

    #[test]
    fn what_was_bind_mounted_survives_the_removal() {
        let dir = tempfile::tempdir().unwrap();
        let (data, pod) = (dir.path().join("data"), dir.path().join("pod dir"));
        let (at, below_it) = (pod.join("v"), pod.join("v/sub"));
        fs::create_dir_all(data.join("sub")).unwrap();
        fs::create_dir_all(&at).unwrap();
        fs::write(data.join("precious"), "x").unwrap();
        for _ in 0..2 {
            mount(Some(&data), &at, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        }
        mount(Some("tmpfs"), &below_it, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        assert!(is_mounted(&at) && is_mounted(&below_it) && !is_mounted(&pod));
        assert_eq!(below(&pod).unwrap().len(), 3);
        remove_unmounted(&pod).unwrap();
        assert!(!pod.exists() && data.join("precious").exists() && data.join("sub").exists());
        remove_unmounted(&pod).unwrap();
    }
}
