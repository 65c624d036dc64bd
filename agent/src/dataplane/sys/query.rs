//! What is attached where, by the kernel's own account: pins can be lost, what is attached is not.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::{AttachType, InfoAttr, OBJ_GET_INFO_BY_FD, address, bpf, owned, raw};

const PROG_GET_FD_BY_ID: i32 = 13;
const MAP_GET_FD_BY_ID: i32 = 14;
const PROG_QUERY: i32 = 16;
const LINK_GET_FD_BY_ID: i32 = 30;
const LINK_GET_NEXT_ID: i32 = 31;
const LINK_DETACH: i32 = 34;
/// `enum bpf_link_type`.
const LINK_CGROUP: u32 = 3;
const LINK_XDP: u32 = 6;
const LINK_TCX: u32 = 11;

#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    pad: u32,
    program_flags: u64,
    links: u64,
    link_flags: u64,
    revision: u64,
}

#[repr(C)]
#[derive(Default)]
struct IdAttr {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

/// Where a link is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// At a cgroup: the inode number of its directory.
    Cgroup(u64),
    /// At a device: its index in whatever network namespace it is, 0 when it is gone.
    Device(u32),
    /// Somewhere that does not concern us.
    Other,
}

/// A link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkInfo {
    /// The link's id.
    pub id: u32,
    /// Its program's id.
    pub program: u32,
    /// Where it is attached.
    pub target: Target,
    /// `enum bpf_attach_type`.
    pub attach_type: u32,
}

/// A loaded program.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProgramInfo {
    /// Its name, at most 15 bytes.
    pub name: String,
    /// Ids of its maps.
    pub maps: Vec<u32>,
}

/// Nothing for what has gone meanwhile, and for a link that is being made at this moment (`EAGAIN`).
fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EAGAIN)) => Ok(None),
        result => result.map(Some),
    }
}

fn by_id(command: i32, id: u32) -> io::Result<Option<OwnedFd>> {
    found(bpf(command, &mut IdAttr { id, ..IdAttr::default() }).map(owned))
}

fn info(object: BorrowedFd<'_>, info: &mut [u32; 64]) -> io::Result<()> {
    let mut attr =
        InfoAttr { fd: raw(object), length: size_of_val(info) as u32, info: info.as_mut_ptr() as u64 };
    bpf(OBJ_GET_INFO_BY_FD, &mut attr).map(drop)
}

/// Reads a name that ends with a zero from words.
fn name(words: &[u32]) -> String {
    let bytes: Vec<u8> =
        words.iter().flat_map(|word| word.to_ne_bytes()).take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// About a link.
pub fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    // `struct bpf_link_info`: type, id, program id, padding, then by type the target and the attach type.
    let mut words = [0; 64];
    info(link, &mut words)?;
    let (target, attach_type) = match words[0] {
        LINK_CGROUP => (Target::Cgroup(u64::from(words[4]) | u64::from(words[5]) << 32), words[6]),
        LINK_XDP => (Target::Device(words[4]), AttachType::Xdp as u32),
        LINK_TCX => (Target::Device(words[4]), words[5]),
        _ => (Target::Other, 0),
    };
    Ok(LinkInfo { id: words[1], program: words[2], target, attach_type })
}

/// All links of the machine.
pub fn links() -> io::Result<Vec<OwnedFd>> {
    let mut links = Vec::new();
    let mut attr = IdAttr::default();
    while found(bpf(LINK_GET_NEXT_ID, &mut attr))?.is_some() {
        links.extend(link(attr.next_id)?);
        attr = IdAttr { id: attr.next_id, ..IdAttr::default() };
    }
    Ok(links)
}

/// A link by its id.
pub fn link(id: u32) -> io::Result<Option<OwnedFd>> {
    by_id(LINK_GET_FD_BY_ID, id)
}

/// Detaches a link, whoever holds it.
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(LINK_DETACH, &mut [raw(link)]).map(drop)
}

/// What is attached at a cgroup (`target` is a descriptor) or a device (`target` is its index): ids of programs, and of
/// their links, which only devices tell.
///
/// # Errors
/// `EINVAL` when the kernel has no such hook.
pub fn attached(target: u32, attach_type: AttachType) -> io::Result<Vec<(u32, u32)>> {
    // The kernel allows 64 programs at one hook.
    let (mut programs, mut links) = ([0_u32; 64], [0_u32; 64]);
    let is_device = matches!(attach_type, AttachType::TcxIngress | AttachType::TcxEgress);
    let mut attr = QueryAttr {
        target,
        attach_type: attach_type as u32,
        programs: programs.as_mut_ptr() as u64,
        count: programs.len() as u32,
        links: if is_device { links.as_mut_ptr() as u64 } else { 0 },
        ..QueryAttr::default()
    };
    bpf(PROG_QUERY, &mut attr)?;
    Ok(programs.into_iter().zip(links).take(attr.count as usize).collect())
}

/// About a program; nothing when it is gone.
pub fn program(id: u32) -> io::Result<Option<ProgramInfo>> {
    let Some(program) = by_id(PROG_GET_FD_BY_ID, id)? else { return Ok(None) };
    let mut maps = vec![0_u32; 64];
    // `struct bpf_prog_info`: the number of map ids is word 13, where to put them 14 and 15, the name 16 to 19.
    let mut words = [0; 64];
    words[13] = maps.len() as u32;
    let at = address(&maps[0]);
    words[14] = at as u32;
    words[15] = (at >> 32) as u32;
    info(program.as_fd(), &mut words)?;
    maps.truncate(words[13] as usize);
    Ok(Some(ProgramInfo { name: name(&words[16..20]), maps }))
}

/// A map by its id; nothing when it is gone.
pub fn map(id: u32) -> io::Result<Option<OwnedFd>> {
    by_id(MAP_GET_FD_BY_ID, id)
}

/// The name of a map, at most 15 bytes; nothing when it is gone.
pub fn map_name(id: u32) -> io::Result<Option<String>> {
    let Some(map) = by_id(MAP_GET_FD_BY_ID, id)? else { return Ok(None) };
    // `struct bpf_map_info`: type, id, key size, value size, max entries, flags, name.
    let mut words = [0; 64];
    info(map.as_fd(), &mut words)?;
    Ok(Some(name(&words[6..10])))
}

/// The id of a map.
pub fn map_id(map: BorrowedFd<'_>) -> io::Result<u32> {
    let mut words = [0; 64];
    info(map, &mut words)?;
    Ok(words[1])
}
