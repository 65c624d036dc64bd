//! The parts of bpf(2) that aya does not offer: links by interface index, batches, test runs.

use std::ffi::{CString, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

mod batch;
pub mod query;

pub use batch::{map_delete_batch, map_scan, map_update_batch};

const MAP_CREATE: i32 = 0;
const MAP_LOOKUP_ELEM: i32 = 1;
const MAP_UPDATE_ELEM: i32 = 2;
const MAP_DELETE_ELEM: i32 = 3;
const MAP_GET_NEXT_KEY: i32 = 4;
const OBJ_PIN: i32 = 6;
const OBJ_GET: i32 = 7;
const PROG_LOAD: i32 = 5;
const PROG_TEST_RUN: i32 = 10;
const OBJ_GET_INFO_BY_FD: i32 = 15;
const LINK_CREATE: i32 = 28;
const LINK_UPDATE: i32 = 29;

/// `enum bpf_attach_type` of the hooks in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum AttachType {
    /// `connect(2)`, IPv4.
    Connect4 = 10,
    /// `connect(2)`, IPv6.
    Connect6 = 11,
    /// `sendmsg(2)`, IPv4.
    Sendmsg4 = 14,
    /// `sendmsg(2)`, IPv6.
    Sendmsg6 = 15,
    /// `recvmsg(2)`, IPv4.
    Recvmsg4 = 19,
    /// `recvmsg(2)`, IPv6.
    Recvmsg6 = 20,
    /// `getpeername(2)`, IPv4.
    Getpeername4 = 29,
    /// `getpeername(2)`, IPv6.
    Getpeername6 = 30,
    /// XDP.
    Xdp = 37,
    /// tcx, packets coming in.
    TcxIngress = 46,
    /// tcx, packets going out.
    TcxEgress = 47,
}

/// The maps that are made here and not by the loader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapKind {
    /// An array of [`kelp_common::maglev::Row`]s; the map of maps takes those of any length.
    Rows,
    /// A hash map from numbers to maps.
    Maps,
    /// A hash map with keys and values of these sizes.
    #[cfg(test)]
    Hash(u32, u32),
}

/// A value the kernel reads or writes as bytes.
///
/// # Safety
/// The type has no padding, and every bit pattern is a value of it.
pub unsafe trait Plain: Copy + Send + Sync + 'static {}

// SAFETY: integers.
unsafe impl Plain for u32 {}
// SAFETY: integers.
unsafe impl Plain for u64 {}

// SAFETY: an array of integers.
unsafe impl Plain for kelp_common::maglev::Row {}

macro_rules! plain {
    ($($name:ident),*) => {
        $(
            // SAFETY: the layout has no padding (its size is asserted where it is defined) and holds integers only.
            unsafe impl Plain for kelp_common::$name {}
        )*
    };
}

plain!(
    Address,
    AffinityKey,
    AffinityValue,
    Backend,
    ConnectionValue,
    EndpointValue,
    EndpointValueV1,
    FlowKey,
    FlowValue,
    FragmentKey,
    FragmentValue,
    FrontendKey,
    FrontendValue,
    IdentityKey,
    NamespaceValue,
    NodeConfig,
    PeerKey,
    PeerValue,
    PortKey,
    PrefixKey,
    RuleKey,
    SlotKey,
    SocketKey,
    SocketValue,
    SourceRangeKey
);

#[repr(C)]
#[derive(Default)]
struct ElementAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct CreateAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    map_name: [u8; 16],
}

#[repr(C)]
#[derive(Default)]
struct ObjectAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkCreateAttr {
    prog_fd: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    pad: u32,
    revision: u64,
}

#[repr(C)]
#[derive(Default)]
struct LinkUpdateAttr {
    link_fd: u32,
    prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

#[repr(C)]
#[derive(Default)]
struct InfoAttr {
    fd: u32,
    length: u32,
    info: u64,
}

#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    program_type: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
}

#[repr(C)]
#[derive(Default)]
struct TestRunAttr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

fn bpf<T>(command: i32, attr: &mut T) -> io::Result<i64> {
    // SAFETY: the attribute is a prefix of `union bpf_attr` of the size that is passed, and the pointers in it are to
    // buffers that the callers below keep alive during the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// [`bpf`] for a new map or program: before Linux 5.11 its memory counts as locked, of which processes may have little. The
/// loader of the others does so as well.
fn bpf_new<T>(command: i32, attr: &mut T) -> io::Result<OwnedFd> {
    let mut result = bpf(command, attr);
    if result.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EPERM)) {
        let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
        // SAFETY: a plain system call; the structure is ours.
        if unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) } == 0 {
            result = bpf(command, attr);
        }
    }
    result.map(owned)
}

fn address<T>(value: &T) -> u64 {
    std::ptr::from_ref(value) as u64
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn path_of(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn owned(fd: i64) -> OwnedFd {
    // SAFETY: the kernel has just returned this descriptor to us, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

/// Makes a map; `inner` is one like those that a map of maps takes.
pub fn map_create(
    kind: MapKind,
    name: &str,
    entries: u32,
    inner: Option<BorrowedFd<'_>>,
) -> io::Result<OwnedFd> {
    // `enum bpf_map_type`, and `BPF_F_INNER_MAP` (5.10): arrays of different lengths in one map of maps.
    const ARRAY: u32 = 2;
    const HASH_OF_MAPS: u32 = 13;
    const INNER_MAP: u32 = 1 << 12;
    let (map_type, key_size, value_size, map_flags) = match kind {
        MapKind::Rows => (ARRAY, 4, size_of::<kelp_common::maglev::Row>() as u32, INNER_MAP),
        MapKind::Maps => (HASH_OF_MAPS, 4, 4, 0),
        #[cfg(test)]
        MapKind::Hash(key_size, value_size) => (1, key_size, value_size, 0),
    };
    let mut map_name = [0; 16];
    for (to, from) in map_name.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    let mut attr = CreateAttr {
        map_type,
        key_size,
        value_size,
        max_entries: entries,
        map_flags,
        inner_map_fd: inner.map_or(0, raw),
        numa_node: 0,
        map_name,
    };
    bpf_new(MAP_CREATE, &mut attr)
}

/// Reads one entry.
pub fn map_lookup<K: Plain, V: Plain>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = std::mem::MaybeUninit::<V>::zeroed();
    let mut attr = ElementAttr {
        map_fd: raw(map),
        key: address(key),
        value: value.as_mut_ptr() as u64,
        ..ElementAttr::default()
    };
    match bpf(MAP_LOOKUP_ELEM, &mut attr) {
        // SAFETY: the kernel wrote a whole value; the map was checked to have values of this size.
        Ok(_) => Ok(Some(unsafe { value.assume_init() })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads one entry of a per-CPU map of `u64`: a value a possible CPU.
pub fn map_lookup_percpu(map: BorrowedFd<'_>, key: u32, cpus: usize) -> io::Result<Vec<u64>> {
    let mut values = vec![0_u64; cpus];
    let mut attr = ElementAttr {
        map_fd: raw(map),
        key: address(&key),
        value: values.as_mut_ptr() as u64,
        ..ElementAttr::default()
    };
    bpf(MAP_LOOKUP_ELEM, &mut attr)?;
    Ok(values)
}

/// Writes one entry.
pub fn map_update<K: Plain, V: Plain>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<()> {
    let mut attr =
        ElementAttr { map_fd: raw(map), key: address(key), value: address(value), ..ElementAttr::default() };
    bpf(MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// Removes one entry; one that is not there is no error.
pub fn map_delete<K: Plain>(map: BorrowedFd<'_>, key: &K) -> io::Result<()> {
    let mut attr = ElementAttr { map_fd: raw(map), key: address(key), ..ElementAttr::default() };
    match bpf(MAP_DELETE_ELEM, &mut attr) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result.map(drop),
    }
}

/// Writes one entry unless it is there. Returns whether it was written.
pub fn map_insert<K: Plain, V: Plain>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<bool> {
    const NOEXIST: u64 = 1;
    let mut attr = ElementAttr {
        map_fd: raw(map),
        key: address(key),
        value: address(value),
        flags: NOEXIST,
        ..ElementAttr::default()
    };
    match bpf(MAP_UPDATE_ELEM, &mut attr) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Pins an object.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = path_of(path)?;
    let mut attr = ObjectAttr { path: path.as_ptr() as u64, fd: raw(object), flags: 0 };
    bpf(OBJ_PIN, &mut attr).map(drop)
}

/// Opens a pinned object.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = path_of(path)?;
    let mut attr = ObjectAttr { path: path.as_ptr() as u64, ..ObjectAttr::default() };
    bpf(OBJ_GET, &mut attr).map(owned)
}

/// Attaches a program to a cgroup (`target` is a descriptor) or a device (`target` is its index). Flags are `XDP_FLAGS_*`.
pub fn link_create(
    program: BorrowedFd<'_>,
    target: u32,
    attach_type: AttachType,
    flags: u32,
) -> io::Result<OwnedFd> {
    let mut attr = LinkCreateAttr {
        prog_fd: raw(program),
        target,
        attach_type: attach_type as u32,
        flags,
        ..LinkCreateAttr::default()
    };
    bpf(LINK_CREATE, &mut attr).map(owned)
}

/// Replaces the program of a link; no packet passes without one of the two.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdateAttr { link_fd: raw(link), prog_fd: raw(program), ..LinkUpdateAttr::default() };
    bpf(LINK_UPDATE, &mut attr).map(drop)
}

/// Sizes of a map's keys and values, and how many entries it can hold.
pub fn map_shape(map: BorrowedFd<'_>) -> io::Result<(u32, u32, u32)> {
    // `struct bpf_map_info`: type, id, key size, value size, max entries.
    let mut info = [0_u32; 32];
    let mut attr =
        InfoAttr { fd: raw(map), length: size_of_val(&info) as u32, info: info.as_mut_ptr() as u64 };
    bpf(OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok((info[2], info[3], info[4]))
}

/// Loads an XDP program of these instructions (`struct bpf_insn`), for what the object has no program: other ends of devices
/// in tests and measurements.
pub fn load_xdp(instructions: &[u64]) -> io::Result<OwnedFd> {
    const XDP: u32 = 6;
    let license = c"GPL";
    let mut attr = LoadAttr {
        program_type: XDP,
        count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..LoadAttr::default()
    };
    bpf_new(PROG_LOAD, &mut attr)
}

/// What a program did with a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestRun {
    /// The program's return value.
    pub verdict: i32,
    /// The packet afterwards.
    pub packet: Vec<u8>,
    /// Mean time of a run, ns.
    pub nanoseconds: u32,
}

/// Runs a classifier, or an XDP program (`ifindex` is 0 then), once (`repeat` ≤ 1) or many times over a packet without
/// sending it; `ifindex` is the device it seems to come from. With more than one run only the first sees the packet as it was given.
pub fn test_run(program: BorrowedFd<'_>, packet: &[u8], ifindex: u32, repeat: u32) -> io::Result<TestRun> {
    // `struct __sk_buff` up to 192 bytes; only `ifindex` (word 10) may be set here.
    let mut context = [0_u32; 48];
    context[10] = ifindex;
    let mut out = vec![0_u8; packet.len() + 256];
    let mut attr = TestRunAttr {
        prog_fd: raw(program),
        data_size_in: packet.len() as u32,
        data_size_out: out.len() as u32,
        data_in: packet.as_ptr() as u64,
        data_out: out.as_mut_ptr() as u64,
        repeat,
        ctx_size_in: if ifindex == 0 { 0 } else { size_of_val(&context) as u32 },
        ctx_in: if ifindex == 0 { 0 } else { context.as_ptr() as u64 },
        ..TestRunAttr::default()
    };
    bpf(PROG_TEST_RUN, &mut attr)?;
    out.truncate(attr.data_size_out as usize);
    Ok(TestRun { verdict: attr.retval.cast_signed(), packet: out, nanoseconds: attr.duration })
}

/// Runs an XDP program `repeat` times, `batch` at a time, over frames that are sent where it says. (A frame that comes back is
/// used again as it is then.) Returns the mean time of a frame, ns, with what the kernel does with a batch before it goes on
/// with the next one. Since Linux 5.18.
pub fn run_frames(program: BorrowedFd<'_>, packet: &[u8], repeat: u32, batch: u32) -> io::Result<u32> {
    const LIVE_FRAMES: u32 = 1 << 1;
    let mut attr = TestRunAttr {
        prog_fd: raw(program),
        data_size_in: packet.len() as u32,
        data_in: packet.as_ptr() as u64,
        repeat,
        flags: LIVE_FRAMES,
        batch_size: batch,
        ..TestRunAttr::default()
    };
    bpf(PROG_TEST_RUN, &mut attr)?;
    Ok(attr.duration)
}

/// The cookie of the calling thread's network namespace (`SO_NETNS_COOKIE`, kernel 5.14).
pub fn netns_cookie() -> io::Result<u64> {
    // SAFETY: plain system calls; the buffer is as long as said.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = OwnedFd::from_raw_fd(socket);
        let mut cookie = 0_u64;
        let mut length = size_of::<u64>() as libc::socklen_t;
        const SO_NETNS_COOKIE: i32 = 71;
        let result = libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast::<c_void>(),
            &raw mut length,
        );
        if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
    }
}

/// The ports that the kernel gives sockets which ask for none, in the calling thread's network namespace.
///
/// # Errors
/// When they cannot be read.
pub fn ephemeral_ports() -> io::Result<std::ops::RangeInclusive<u16>> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")?;
    let mut numbers = text.split_whitespace().map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(first)), Some(Ok(last))) => Ok(first..=last),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, format!("ip_local_port_range is {text:?}"))),
    }
}

/// Seconds of the monotonic clock, as the programs read it.
#[must_use]
pub fn monotonic_seconds() -> u32 {
    u32::try_from(monotonic_nanoseconds() / 1_000_000_000).unwrap_or(u32::MAX)
}

/// Nanoseconds of the monotonic clock, as the programs read it.
#[must_use]
pub fn monotonic_nanoseconds() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists on every Linux, and the structure is ours.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

/// The largest IP packet that a device of the calling thread's network namespace takes, bytes.
pub fn device_mtu(name: &str) -> io::Result<u32> {
    let name = CString::new(name)?;
    let bytes = name.as_bytes_with_nul();
    if bytes.len() > libc::IFNAMSIZ {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    // SAFETY: plain system calls; the structure is zeroed, the name fits and ends with a zero, the descriptor is ours.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = OwnedFd::from_raw_fd(socket);
        let mut request: libc::ifreq = std::mem::zeroed();
        std::ptr::copy_nonoverlapping(bytes.as_ptr().cast(), request.ifr_name.as_mut_ptr(), bytes.len());
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &raw mut request) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(request.ifr_ifru.ifru_mtu.cast_unsigned())
    }
}
