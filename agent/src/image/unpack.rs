//! Unpacking one layer into a directory that overlayfs can use as a lower directory.
//!
//! Every operation is relative to a directory descriptor that was opened with `RESOLVE_IN_ROOT`, so no path and no
//! link in a layer reaches outside of the target. Whiteouts become what overlayfs expects (its documentation in the
//! kernel): a removed file is a character device 0:0, an opaque directory carries `trusted.overlay.opaque=y`.

use super::store::to_hex;
use sha2::{Digest, Sha256};
use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use tar::EntryType;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const OPAQUE_XATTR: &str = "trusted.overlay.opaque";

/// Unpacks the tar stream `reader`, which must hash to `diff_id`, into the new directory `target`. `lower` are the
/// directories of the layers below, topmost first. Returns the bytes of all files.
pub(super) fn unpack(
    reader: impl Read,
    diff_id: &str,
    target: &Path,
    lower: &[PathBuf],
) -> Result<u64, String> {
    let describe = |what: &str, e: io::Error| format!("{what} {}: {e}", target.display());
    match fs::remove_dir_all(target) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(describe("cannot clear", e)),
        _ => {}
    }
    fs::create_dir(target).map_err(|e| describe("cannot create", e))?;
    let root = File::open(target).map_err(|e| describe("cannot open", e))?;
    let mut unpacker = Unpacker { root, lower, times: Vec::new(), size: 0 };
    unpacker.copy_from_lower(Path::new("")).map_err(|e| describe("cannot set the mode of", e))?;

    let mut hashing = Hashing { inner: reader, hasher: Sha256::new() };
    let mut tar = tar::Archive::new(&mut hashing);
    for entry in tar.entries().map_err(|e| format!("not a tar: {e}"))? {
        let mut entry = entry.map_err(|e| format!("damaged tar: {e}"))?;
        let path = entry.path().map_err(|e| format!("bad path in tar: {e}"))?.into_owned();
        unpacker.entry(&mut entry, &path).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    // Padding after the end marker is part of the digest.
    io::copy(&mut hashing, &mut io::sink()).map_err(|e| format!("damaged tar: {e}"))?;
    let found = format!("sha256:{}", to_hex(&hashing.hasher.finalize()));
    if found != diff_id {
        return Err(format!("content has digest {found}: the archive is damaged"));
    }
    unpacker.set_directory_times().map_err(|e| describe("cannot set times below", e))?;
    Ok(unpacker.size)
}

struct Hashing<R> {
    inner: R,
    hasher: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        Ok(n)
    }
}

struct Unpacker<'a> {
    root: File,
    lower: &'a [PathBuf],
    /// Directories whose time is set last, because unpacking into them changes it.
    times: Vec<(PathBuf, i64)>,
    size: u64,
}

impl Unpacker<'_> {
    fn entry<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>, path: &Path) -> io::Result<()> {
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader | EntryType::XHeader) {
            return Ok(());
        }
        let path = clean(path)?;
        let Some(name) = path.file_name().map(OsStr::to_owned) else {
            // The root directory itself.
            let root = self.root.try_clone()?;
            return self.attributes(entry, &root, Path::new("."), false);
        };
        let parent_path = path.parent().unwrap_or(Path::new(""));
        let parent = self.parent(parent_path)?;
        if name.as_bytes().starts_with(WHITEOUT) {
            return whiteout(&parent, &name);
        }
        let c_name = c_string(&name)?;
        let header_mode = entry.header().mode()? & 0o7777;
        let existing = file_type(&parent, &c_name)?;
        match kind {
            EntryType::Directory => {
                if existing != Some(libc::S_IFDIR) {
                    let was_whiteout = existing == Some(libc::S_IFCHR);
                    remove(&parent, &name, existing)?;
                    // SAFETY: `parent` is an open directory and `c_name` a terminated string.
                    check(unsafe { libc::mkdirat(parent.as_raw_fd(), c_name.as_ptr(), 0o700) })?;
                    if was_whiteout {
                        set_xattr(&in_dir(&parent, &name), OPAQUE_XATTR, b"y")?;
                    }
                }
                if let Ok(mtime) = entry.header().mtime() {
                    self.times.push((path.clone(), i64::try_from(mtime).unwrap_or(0)));
                }
            }
            EntryType::Symlink => {
                remove(&parent, &name, existing)?;
                let target = entry.link_name_bytes().unwrap_or_default();
                let target = CString::new(target.as_ref())?;
                // SAFETY: both strings are terminated and `parent` is open.
                check(unsafe { libc::symlinkat(target.as_ptr(), parent.as_raw_fd(), c_name.as_ptr()) })?;
            }
            EntryType::Link => {
                remove(&parent, &name, existing)?;
                let target = entry.link_name()?.unwrap_or_default().into_owned();
                let target = clean(&target)?;
                let target_dir = self.open_dir(target.parent().unwrap_or(Path::new("")))?;
                let target_name = c_string(target.file_name().unwrap_or_default())?;
                // SAFETY: both strings are terminated and both descriptors are open.
                check(unsafe {
                    libc::linkat(
                        target_dir.as_raw_fd(),
                        target_name.as_ptr(),
                        parent.as_raw_fd(),
                        c_name.as_ptr(),
                        0,
                    )
                })
                .map_err(|e| with_context(e, &format!("hard link to {}", target.display())))?;
                // A hard link shares the attributes of its target.
                return Ok(());
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                remove(&parent, &name, existing)?;
                let (format, device) = match kind {
                    EntryType::Char => (libc::S_IFCHR, device(entry.header())?),
                    EntryType::Block => (libc::S_IFBLK, device(entry.header())?),
                    _ => (libc::S_IFIFO, 0),
                };
                // SAFETY: `parent` is an open directory and `c_name` a terminated string.
                check(unsafe {
                    libc::mknodat(parent.as_raw_fd(), c_name.as_ptr(), format | header_mode, device)
                })?;
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                remove(&parent, &name, existing)?;
                let flags =
                    libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW | libc::O_CLOEXEC;
                // SAFETY: `parent` is an open directory and `c_name` a terminated string.
                let fd = check(unsafe { libc::openat(parent.as_raw_fd(), c_name.as_ptr(), flags, 0o600) })?;
                // SAFETY: openat returned a new descriptor that nothing else owns.
                let mut file = unsafe { File::from_raw_fd(fd) };
                self.size += io::copy(entry, &mut file)?;
            }
            other => {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    format!("tar entry type {:?} is not supported", char::from(other.as_byte())),
                ));
            }
        }
        self.attributes(entry, &parent, Path::new(&name), kind == EntryType::Symlink)
    }

    /// Owner, mode, extended attributes and time, in the order in which the kernel does not clear one for another.
    fn attributes<R: Read>(
        &self,
        entry: &mut tar::Entry<'_, R>,
        dir: &impl AsRawFd,
        name: &Path,
        is_symlink: bool,
    ) -> io::Result<()> {
        let c_name = c_string(name.as_os_str())?;
        let id = |value: u64| u32::try_from(value).map_err(io::Error::other);
        let (uid, gid) = (id(entry.header().uid()?)?, id(entry.header().gid()?)?);
        let fd = dir.as_raw_fd();
        // SAFETY: `dir` is open and `c_name` a terminated string.
        check(unsafe { libc::fchownat(fd, c_name.as_ptr(), uid, gid, libc::AT_SYMLINK_NOFOLLOW) })?;
        if !is_symlink {
            let mode = entry.header().mode()? & 0o7777;
            // SAFETY: as above.
            check(unsafe { libc::fchmodat(fd, c_name.as_ptr(), mode, 0) })?;
        }
        let mut attributes: Vec<(String, Vec<u8>)> = Vec::new();
        if let Some(extensions) = entry.pax_extensions()? {
            for extension in extensions {
                let extension = extension?;
                let Some(key) = extension.key().ok().and_then(|k| k.strip_prefix("SCHILY.xattr.")) else {
                    continue;
                };
                // trusted.* would let an image speak to overlayfs.
                if !key.starts_with("trusted.") {
                    attributes.push((key.to_owned(), extension.value_bytes().to_vec()));
                }
            }
        }
        for (key, value) in attributes {
            match set_xattr(&in_dir(dir, name.as_os_str()), &key, &value) {
                Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
                result => result?,
            }
        }
        let mtime = i64::try_from(entry.header().mtime().unwrap_or(0)).unwrap_or(0);
        set_time(dir, &c_name, mtime)
    }

    fn open_dir(&self, path: &Path) -> io::Result<OwnedFd> {
        open_in_root(&self.root, path)
    }

    /// Opens the directory at `path`, creating what is missing of it as it is in the layers below.
    fn parent(&self, path: &Path) -> io::Result<OwnedFd> {
        match self.open_dir(path) {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
            result => return result,
        }
        let mut done = PathBuf::new();
        for component in path.components() {
            let above = self.open_dir(&done)?;
            done.push(component);
            let c_name = c_string(component.as_os_str())?;
            if file_type(&above, &c_name)?.is_none() {
                // SAFETY: `above` is an open directory and `c_name` a terminated string.
                check(unsafe { libc::mkdirat(above.as_raw_fd(), c_name.as_ptr(), 0o755) })?;
                self.copy_from_lower(&done)?;
            }
        }
        self.open_dir(path)
    }

    /// Gives a directory that this layer does not describe the owner, mode and time it has in the layers below, which
    /// it would hide otherwise.
    fn copy_from_lower(&self, path: &Path) -> io::Result<()> {
        let dir = self.open_dir(path)?;
        for layer in self.lower {
            let Ok(found) = File::open(layer).and_then(|layer| open_in_root(&layer, path)) else {
                continue;
            };
            let found = fs::metadata(format!("/proc/self/fd/{}", found.as_raw_fd()))?;
            let here = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
            std::os::unix::fs::chown(&here, Some(found.uid()), Some(found.gid()))?;
            fs::set_permissions(&here, found.permissions())?;
            return Ok(());
        }
        fs::set_permissions(
            format!("/proc/self/fd/{}", dir.as_raw_fd()),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
    }

    fn set_directory_times(&self) -> io::Result<()> {
        for (path, mtime) in &self.times {
            // A later entry of the layer may have replaced the directory.
            if let Ok(dir) = self.open_dir(path) {
                set_time(&dir, c".", *mtime)?;
            }
        }
        Ok(())
    }
}

/// A relative path without `.` components; `..` is refused.
fn clean(path: &Path) -> io::Result<PathBuf> {
    let mut result = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => result.push(part),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(io::Error::other("the path leaves the layer"));
            }
        }
    }
    Ok(result)
}

fn whiteout(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    let bytes = name.as_bytes();
    if bytes == OPAQUE {
        return set_xattr(&in_dir(parent, OsStr::new(".")), OPAQUE_XATTR, b"y");
    }
    let hidden = bytes.strip_prefix(WHITEOUT).unwrap_or_default();
    // `.wh..wh.*` is aufs' own housekeeping.
    if hidden.is_empty() || hidden == b"." || hidden == b".." || hidden.starts_with(WHITEOUT) {
        return Ok(());
    }
    let hidden = OsStr::from_bytes(hidden);
    let c_name = c_string(hidden)?;
    match file_type(parent, &c_name)? {
        None => {
            // SAFETY: `parent` is an open directory and `c_name` a terminated string.
            check(unsafe { libc::mknodat(parent.as_raw_fd(), c_name.as_ptr(), libc::S_IFCHR, 0) }).map(drop)
        }
        // The layer itself brings a new directory of that name: what is below it must not show through.
        Some(libc::S_IFDIR) => set_xattr(&in_dir(parent, hidden), OPAQUE_XATTR, b"y"),
        Some(_) => Ok(()),
    }
}

fn open_in_root(root: &impl AsRawFd, path: &Path) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let c_path = c_string(path.as_os_str())?;
    // SAFETY: open_how is plain integers, for which zero is valid.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = u64::from((libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC).cast_unsigned());
    how.resolve = libc::RESOLVE_IN_ROOT;
    // SAFETY: the string is terminated, `how` lives for the call and its true size is given.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_openat2,
            root.as_raw_fd(),
            c_path.as_ptr(),
            &raw const how,
            size_of::<libc::open_how>(),
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: openat2 returned a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `S_IFMT` bits of a name in a directory, links not followed; `None` when there is nothing.
fn file_type(dir: &impl AsRawFd, name: &CString) -> io::Result<Option<libc::mode_t>> {
    // SAFETY: stat is plain integers, for which zero is valid.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `dir` is open, `name` is terminated and `stat` lives for the call.
    let result = check(unsafe {
        libc::fstatat(dir.as_raw_fd(), name.as_ptr(), &raw mut stat, libc::AT_SYMLINK_NOFOLLOW)
    });
    match result {
        Ok(_) => Ok(Some(stat.st_mode & libc::S_IFMT)),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Removes what an earlier entry of the same layer put there.
fn remove(dir: &OwnedFd, name: &OsStr, existing: Option<libc::mode_t>) -> io::Result<()> {
    match existing {
        None => Ok(()),
        Some(libc::S_IFDIR) => fs::remove_dir_all(in_dir(dir, name)),
        Some(_) => fs::remove_file(in_dir(dir, name)),
    }
}

/// A path to `name` in an open directory whose last component is not resolved through user-controlled links.
fn in_dir(dir: &impl AsRawFd, name: &OsStr) -> PathBuf {
    let mut path = OsString::from(format!("/proc/self/fd/{}/", dir.as_raw_fd()));
    path.push(name);
    path.into()
}

fn set_xattr(path: &Path, key: &str, value: &[u8]) -> io::Result<()> {
    let c_path = c_string(path.as_os_str())?;
    let c_key = CString::new(key)?;
    // SAFETY: both strings are terminated, and the value's pointer and length belong together.
    check(unsafe { libc::lsetxattr(c_path.as_ptr(), c_key.as_ptr(), value.as_ptr().cast(), value.len(), 0) })
        .map(drop)
        .map_err(|e| with_context(e, &format!("cannot set extended attribute {key}")))
}

fn set_time(dir: &impl AsRawFd, name: &std::ffi::CStr, mtime: i64) -> io::Result<()> {
    let time = libc::timespec { tv_sec: mtime, tv_nsec: 0 };
    let times = [time, time];
    // SAFETY: `dir` is open, `name` is terminated and `times` holds the two entries the call reads.
    check(unsafe {
        libc::utimensat(dir.as_raw_fd(), name.as_ptr(), times.as_ptr(), libc::AT_SYMLINK_NOFOLLOW)
    })
    .map(drop)
}

fn device(header: &tar::Header) -> io::Result<libc::dev_t> {
    let major = header.device_major()?.unwrap_or(0);
    let minor = header.device_minor()?.unwrap_or(0);
    Ok(libc::makedev(major, minor))
}

fn c_string(text: &OsStr) -> io::Result<CString> {
    Ok(CString::new(text.as_bytes())?)
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn with_context(error: io::Error, context: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{context}: {error}"))
}

#[cfg(test)]
mod tests;
