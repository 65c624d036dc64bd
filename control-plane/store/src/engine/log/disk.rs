//! The few file operations of the log, so that tests can make each of them fail.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// File operations that can fail.
pub(super) trait Disk: Send + Sync {
    fn create(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)
    }

    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }

    /// Reserves blocks for `offset..offset + len` and makes the file that long.
    fn allocate(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        allocate(file, offset, len)
    }

    fn truncate(&self, file: &File, len: u64) -> io::Result<()> {
        file.set_len(len)
    }

    /// Makes the data, and what is needed to read it, durable.
    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }
}

/// The file system.
pub(super) struct RealDisk;

impl Disk for RealDisk {}

fn allocate(file: &File, offset: u64, len: u64) -> io::Result<()> {
    use nix::errno::Errno;
    use nix::fcntl::{FallocateFlags, fallocate};
    use std::os::fd::AsRawFd;
    let signed =
        |number: u64| i64::try_from(number).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge));
    let (start, length) = (signed(offset)?, signed(len)?);
    loop {
        match fallocate(file.as_raw_fd(), FallocateFlags::empty(), start, length) {
            Ok(()) => return Ok(()),
            Err(Errno::EINTR) => {}
            // A file system without it: writing allocates, and its failure is handled like any other.
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {
                let end = offset + len;
                return if file.metadata()?.len() < end { file.set_len(end) } else { Ok(()) };
            }
            Err(error) => return Err(error.into()),
        }
    }
}
