//! The kernel side: loads the programs, keeps maps and links pinned, replaces programs in place after a restart.
//!
//! Layout of the pin directory: `maps/<name>` (`old-maps/<name>` while a map is replaced by one of another size) and
//! `links/<cgroup hook>`, `links/uplink-{in,out,xdp}`, `links/tunnel-{in,out}`, `links/pod-<ifindex>-{in,out}`; see `attach`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::programs::{CgroupSockAddr, ProgramError, SchedClassifier, Xdp};
use aya::{Btf, Ebpf, EbpfLoader};
use kelp_common::{NodeConfig, limits, maps};

use super::DatapathError;
use super::sys::{self, AttachType};
use attach::Devices;

mod attach;
mod btf;
pub(super) mod filter;
mod loopback;
pub(super) mod maglev;
pub(crate) mod netlink;
pub(super) mod resize;
pub(super) mod tunnel;
pub(super) mod xdp;

/// The kernel programs, as `cargo xtask build-ebpf` made them.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("KELP_EBPF_OBJECT"));

/// Socket hooks: name of the program and of its pin, and where it attaches.
const SOCKET_HOOKS: [(&str, AttachType); 8] = [
    ("connect4", AttachType::Connect4),
    ("connect6", AttachType::Connect6),
    ("sendmsg4", AttachType::Sendmsg4),
    ("sendmsg6", AttachType::Sendmsg6),
    ("recvmsg4", AttachType::Recvmsg4),
    ("recvmsg6", AttachType::Recvmsg6),
    ("getpeername4", AttachType::Getpeername4),
    ("getpeername6", AttachType::Getpeername6),
];

/// Programs of the packet path.
const CLASSIFIERS: [&str; 5] = ["from_pod", "to_pod", "from_net", "to_net", "to_tunnel"];

/// The loaded programs and maps of a node.
pub struct Kernel {
    programs: Ebpf,
    directory: PathBuf,
    devices: Devices,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel").field("directory", &self.directory).finish_non_exhaustive()
    }
}

/// Puts an action in front of an error.
pub(super) fn failed<E>(action: impl Into<String>) -> impl FnOnce(E) -> DatapathError
where
    E: std::error::Error + Send + Sync + 'static,
{
    let action = action.into();
    move |source| DatapathError::Kernel { action, source: Box::new(source) }
}

impl Kernel {
    /// Loads the programs. Maps that are pinned in `directory` are used as they are, others are made and pinned.
    /// Nothing is attached yet.
    ///
    /// # Errors
    /// When `directory` is not on a bpffs, or the kernel refuses a map or a program.
    pub fn load(directory: &Path) -> Result<Self, DatapathError> {
        Self::load_with(directory, &BTreeMap::new(), false)
    }

    /// [`Self::load`] with maps of other sizes than the usual, by name. A map that is pinned with another size is
    /// replaced; see `resize`. With `filters` classifiers are attached as before tcx, also where the kernel has it.
    ///
    /// # Errors
    /// As of [`Self::load`].
    pub fn load_with(
        directory: &Path,
        sizes: &BTreeMap<&'static str, u32>,
        filters: bool,
    ) -> Result<Self, DatapathError> {
        let map_directory = directory.join("maps");
        fs::create_dir_all(&map_directory)
            .map_err(failed(format!("create {} (is a bpffs mounted there?)", map_directory.display())))?;
        fs::create_dir_all(directory.join("links")).map_err(failed("create the directory of links"))?;
        let sizes: BTreeMap<&'static str, u32> = resize::SIZES
            .iter()
            .map(|(name, usual)| (*name, sizes.get(name).copied().unwrap_or(*usual).max(1)))
            .collect();
        resize::put_aside(directory, &sizes)?;
        maglev::ensure(&map_directory, sizes.get(maps::MAGLEV).copied().unwrap_or(limits::MAGLEV))?;
        let has_set_retval = u8::from(kernel_is_at_least(5, 18));
        // Programs at cgroups may read the kernel's memory since then.
        let readable = kernel_is_at_least(5, 13);
        let of_kernel = btf::bit_of_kernel("sock", "sk_kern_sock").filter(|_| readable);
        let (kernel_byte, kernel_mask) = of_kernel.map_or((0, 0), |bit| (bit.byte, bit.mask));
        let mut loader = EbpfLoader::new();
        let btf = Btf::from_sys_fs().ok();
        for (name, size) in &sizes {
            loader.map_max_entries(name, *size);
        }
        let mut programs = loader
            .btf(btf.as_ref())
            .override_global("HAS_SET_RETVAL", &has_set_retval, true)
            .override_global("KERNEL_SOCKET_BYTE", &kernel_byte, true)
            .override_global("KERNEL_SOCKET_MASK", &kernel_mask, true)
            .default_map_pin_directory(&map_directory)
            .load(OBJECT)
            .map_err(failed("load the kernel programs' maps"))?;
        for (name, _) in SOCKET_HOOKS {
            let program: &mut CgroupSockAddr = program_mut(&mut programs, name)?;
            retried(|| program.load()).map_err(failed(format!("load the kernel program {name}")))?;
        }
        for name in CLASSIFIERS {
            let program: &mut SchedClassifier = program_mut(&mut programs, name)?;
            retried(|| program.load()).map_err(failed(format!("load the kernel program {name}")))?;
        }
        let program: &mut Xdp = program_mut(&mut programs, xdp::PROGRAM)?;
        retried(|| program.load()).map_err(failed(format!("load the kernel program {}", xdp::PROGRAM)))?;
        let devices = Devices::new(filters)?;
        let kernel = Self { programs, directory: directory.to_owned(), devices };
        // Before a program that reads the new maps is attached.
        resize::copy(&kernel)?;
        Ok(kernel)
    }

    /// Takes over what was written to maps that were replaced until their programs were, and forgets them and the maps
    /// of other layouts. Called when all programs are attached.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn forget_old_maps(&self) -> Result<(), DatapathError> {
        resize::copy(self)?;
        resize::forget(&self.directory)?;
        let pins = fs::read_dir(self.directory.join("maps")).map_err(failed("read the directory of maps"))?;
        for pin in pins {
            let pin = pin.map_err(failed("read the directory of maps"))?;
            if !pin.file_name().to_str().is_some_and(|name| maps::ALL.contains(&name)) {
                remove(&pin.path())?;
            }
        }
        Ok(())
    }

    /// The directory of the pins.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// A map by its name in `kelp_common::maps`.
    ///
    /// # Errors
    /// When the object has no such map.
    pub fn map(&self, name: &str) -> Result<OwnedFd, DatapathError> {
        use aya::maps::Map;
        let data = match self.programs.map(name) {
            Some(
                Map::Array(data)
                | Map::HashMap(data)
                | Map::LpmTrie(data)
                | Map::LruHashMap(data)
                | Map::PerCpuArray(data)
                | Map::RingBuf(data),
            ) => data,
            _ => return Err(failed("find a map in the object")(io::Error::other(name.to_owned()))),
        };
        data.fd().as_fd().try_clone_to_owned().map_err(failed("duplicate a descriptor"))
    }

    /// A loaded program.
    ///
    /// # Errors
    /// When the object has no such program.
    pub fn program(&self, name: &str) -> Result<BorrowedFd<'_>, DatapathError> {
        let program = self
            .programs
            .program(name)
            .ok_or_else(|| failed("find a program in the object")(io::Error::other(name.to_owned())))?;
        Ok(program.fd().map_err(failed(format!("use the kernel program {name}")))?.as_fd())
    }
}

/// Whether the running kernel is of this version or a newer one.
fn kernel_is_at_least(major: u32, minor: u32) -> bool {
    let Ok(name) = nix::sys::utsname::uname() else { return false };
    let release = name.release().to_string_lossy().into_owned();
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= (major, minor)
}

/// Loads a program; the verifier gives up with `EAGAIN` when the kernel wants the thread for something else.
fn retried(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    const ATTEMPTS: usize = 5;
    for _ in 1..ATTEMPTS {
        match load() {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.raw_os_error() == Some(libc::EAGAIN) => {}
            result => return result,
        }
    }
    load()
}

fn program_mut<'a, P>(programs: &'a mut Ebpf, name: &str) -> Result<&'a mut P, DatapathError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    programs
        .program_mut(name)
        .ok_or_else(|| failed("find a program in the object")(io::Error::other(name.to_owned())))?
        .try_into()
        .map_err(failed(format!("use the kernel program {name}")))
}

fn remove(path: &Path) -> Result<(), DatapathError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed(format!("remove the pin {}", path.display()))(error))
        }
        _ => Ok(()),
    }
}

/// Detaches everything and removes all pins under `directory`, and the tunnels' device. Traffic to services stops. Succeeds when nothing is
/// there. Devices are those of the calling thread's network namespace.
///
/// # Errors
/// When a pin cannot be removed.
pub fn cleanup(directory: &Path) -> Result<(), DatapathError> {
    remove_tunnel(directory)?;
    attach::detach_all(directory)?;
    if directory.join("links").join(xdp::PIN).exists() {
        loopback::rest().map_err(failed("let the loopback device rest"))?;
    }
    for part in ["links", "maps", resize::OLD_MAPS] {
        let directory = directory.join(part);
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(format!("read {}", directory.display()))(error)),
        };
        for entry in entries {
            remove(&entry.map_err(failed("read the pin directory"))?.path())?;
        }
        fs::remove_dir(&directory).map_err(failed(format!("remove {}", directory.display())))?;
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed(format!("remove {}", directory.display()))(error))
        }
        _ => Ok(()),
    }
}

/// Removes the tunnels' device, if the settings in `directory` are about it.
fn remove_tunnel(directory: &Path) -> Result<(), DatapathError> {
    let settings = sys::open_pin(&directory.join("maps").join(maps::NODE_CONFIG)).ok();
    let Some(settings) =
        settings.filter(|map| check_shape::<u32, NodeConfig>(map.as_fd(), maps::NODE_CONFIG).is_ok())
    else {
        return Ok(());
    };
    let remove = || -> io::Result<()> {
        let Some(settings) = sys::map_lookup::<u32, NodeConfig>(settings.as_fd(), &0)? else { return Ok(()) };
        if settings.tunnel == 0 {
            return Ok(());
        }
        let mut netlink = netlink::Connection::open()?;
        match tunnel::find(&mut netlink)? {
            Some(device) if device.ifindex == settings.tunnel => tunnel::remove(&mut netlink, device.ifindex),
            _ => Ok(()),
        }
    };
    remove().map_err(failed("remove the tunnels' device"))
}

/// Mounts a bpffs at the nearest directory that should carry `directory` when none is mounted there: `/sys/fs/bpf`
/// for paths under it, else the parent of `directory`.
///
/// # Errors
/// When the mount fails.
pub fn ensure_bpffs(directory: &Path) -> Result<(), DatapathError> {
    const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
    let standard = Path::new("/sys/fs/bpf");
    let mount_point =
        if directory.starts_with(standard) { standard } else { directory.parent().unwrap_or(directory) };
    fs::create_dir_all(mount_point).map_err(failed(format!("create {}", mount_point.display())))?;
    let found = nix::sys::statfs::statfs(mount_point)
        .map_err(failed(format!("look at the filesystem of {}", mount_point.display())))?;
    if found.filesystem_type().0 as i64 == BPF_FS_MAGIC {
        return Ok(());
    }
    nix::mount::mount(
        Some("bpf"),
        mount_point,
        Some("bpf"),
        nix::mount::MsFlags::MS_NOSUID | nix::mount::MsFlags::MS_NODEV | nix::mount::MsFlags::MS_NOEXEC,
        Some("mode=0700"),
    )
    .map_err(failed(format!("mount a bpffs at {}", mount_point.display())))
}

/// Checks that maps and layouts agree, so that no value is read as another.
pub(super) fn check_shape<K, V>(map: BorrowedFd<'_>, name: &str) -> Result<(), DatapathError> {
    let (key, value, _) = sys::map_shape(map).map_err(failed(format!("look at the map {name}")))?;
    if (key as usize, value as usize) == (size_of::<K>(), size_of::<V>()) {
        return Ok(());
    }
    Err(failed(format!("use the map {name}"))(io::Error::other(format!(
        "its keys and values have {key} and {value} bytes; remove its pin when no other version runs"
    ))))
}

/// All names, for the tests of completeness.
pub const MAP_NAMES: [&str; maps::ALL.len()] = maps::ALL;

#[cfg(test)]
mod tests;
