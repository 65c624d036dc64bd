//! UDP sockets that are connected to an endpoint that is gone. Such a socket is translated once, so it would send to
//! nobody for as long as its program keeps it: it is disconnected, and the program gets an error with its next call
//! (`ECONNABORTED` when it waits for an answer, `EDESTADDRREQ` when it sends), so that it connects anew.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use kelp_common::{Address, SocketKey, SocketValue, UDP};
use kelp_model::service::BackendKey;

use super::DatapathError;
use super::maps::Table;
use super::namespace;
use super::reconciler::Datagrams;

/// `enum` and structures of `linux/sock_diag.h`, `linux/inet_diag.h` and `linux/netlink.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const HEADER: usize = 16;
/// `struct inet_diag_req_v2`.
const REQUEST: usize = 56;
/// `struct inet_diag_msg`: family, state, timer, retransmits, then the identity, then more.
const IDENTITY: usize = 48;

/// A connected socket to close.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Target {
    cookie: u64,
    address: Address,
    /// Network byte order.
    port: u16,
}

/// How many sockets were closed, and how many could not be.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Closed {
    /// Closed.
    pub closed: usize,
    /// Not closed: the kernel refuses (it may lack `CONFIG_INET_DIAG_DESTROY`).
    pub failed: usize,
}

/// Closes the UDP sockets that were translated to an endpoint which no longer serves, in every network namespace, and
/// forgets their translations.
///
/// # Errors
/// When the map or /proc cannot be read.
pub fn close_stale(
    sockets: &Table<SocketKey, SocketValue>,
    datagrams: &Datagrams,
) -> Result<Closed, DatapathError> {
    let serving_anything: BTreeSet<&BackendKey> =
        datagrams.values().flat_map(|serving| serving.iter()).collect();
    let mut stale = Vec::new();
    let mut targets: BTreeMap<u64, BTreeSet<Target>> = BTreeMap::new();
    sockets.scan(|key, value| {
        if value.protocol != u16::from(UDP) {
            return;
        }
        let port = key.port as u16;
        let any = (value.address.any_of_family(), value.port);
        let serving = datagrams.get(&(value.address, value.port)).or_else(|| datagrams.get(&any));
        let backend = BackendKey { address: key.address, port, protocol: UDP };
        // When the service is gone its endpoint may still be there.
        let alive = match serving {
            Some(serving) => serving.contains(&backend),
            None => serving_anything.contains(&backend),
        };
        if !alive {
            stale.push(*key);
            let target = Target { cookie: key.cookie, address: key.address, port };
            targets.entry(value.namespace).or_default().insert(target);
        }
    })?;
    let mut result = Closed::default();
    if !targets.is_empty() {
        let wanted = targets.keys().copied().collect();
        let found =
            namespace::by_cookie(&wanted).map_err(super::kernel::failed("look for network namespaces"))?;
        for (cookie, namespace) in found {
            let Some(targets) = targets.get(&cookie) else { continue };
            match namespace.run(|| close(targets)) {
                Ok(closed) => {
                    result.closed += closed.closed;
                    result.failed += closed.failed;
                }
                Err(error) => {
                    tracing::debug!(%error, "sockets of an endpoint that is gone not closed");
                    result.failed += targets.len();
                }
            }
        }
    }
    sockets.delete_all(&stale)?;
    Ok(result)
}

/// Closes sockets in the namespace of the calling thread.
fn close(targets: &BTreeSet<Target>) -> io::Result<Closed> {
    let mut result = Closed::default();
    for family in [libc::AF_INET, libc::AF_INET6] {
        for identity in list(family, targets)? {
            match destroy(family, &identity) {
                Ok(()) => result.closed += 1,
                // It was closed by its program.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => {
                    tracing::debug!(%error, "a socket of an endpoint that is gone not closed");
                    result.failed += 1;
                }
            }
        }
    }
    Ok(result)
}

fn open() -> io::Result<OwnedFd> {
    // SAFETY: a plain system call; the descriptor is new and ours.
    unsafe {
        let socket =
            libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_SOCK_DIAG);
        if socket < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(socket)) }
    }
}

fn send(socket: &OwnedFd, kind: u16, flags: u16, family: i32, identity: &[u8; IDENTITY]) -> io::Result<()> {
    let mut message = Vec::with_capacity(HEADER + REQUEST);
    message.extend(((HEADER + REQUEST) as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
    message.extend([0; 8]);
    message.extend([family as u8, UDP, 0, 0]);
    // All states.
    message.extend(u32::MAX.to_ne_bytes());
    message.extend(identity);
    // SAFETY: the buffer is as long as said.
    let sent = unsafe { libc::send(socket.as_raw_fd(), message.as_ptr().cast(), message.len(), 0) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Receives messages until `visit` has seen the last one; it gets the type and the content of each.
fn receive(socket: &OwnedFd, mut visit: impl FnMut(u16, &[u8]) -> io::Result<bool>) -> io::Result<()> {
    let mut buffer = vec![0_u8; 32_768];
    loop {
        // SAFETY: the buffer is as long as said.
        let length = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        if length < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut rest = buffer.get(..length.unsigned_abs()).unwrap_or_default();
        while let (Some(length), Some(kind)) = (word(rest, 0), rest.get(4..6)) {
            let length = (length as usize).max(HEADER).min(rest.len());
            let kind = u16::from_ne_bytes([kind[0], kind[1]]);
            if visit(kind, rest.get(HEADER..length).unwrap_or_default())? {
                return Ok(());
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The error in an answer; 0 is none.
fn answer(content: &[u8]) -> io::Result<()> {
    match word(content, 0).map_or(0, u32::cast_signed) {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

/// The identities of those of the targets that are connected.
fn list(family: i32, targets: &BTreeSet<Target>) -> io::Result<Vec<[u8; IDENTITY]>> {
    let socket = open()?;
    send(&socket, SOCK_DIAG_BY_FAMILY, libc::NLM_F_DUMP as u16, family, &[0; IDENTITY])?;
    let mut found = Vec::new();
    receive(&socket, |kind, content| {
        match i32::from(kind) {
            libc::NLMSG_DONE => return Ok(true),
            libc::NLMSG_ERROR => {
                // A kernel without this family, or without the diagnosis of UDP.
                answer(content)?;
                return Ok(true);
            }
            _ => {}
        }
        let identity = content.get(4..4 + IDENTITY).and_then(|bytes| <[u8; IDENTITY]>::try_from(bytes).ok());
        if let Some(identity) = identity
            && target(family, &identity).is_some_and(|target| targets.contains(&target))
        {
            found.push(identity);
        }
        Ok(false)
    })?;
    Ok(found)
}

/// What a socket is connected to. `struct inet_diag_sockid`: source port, destination port, source, destination (16 bytes
/// each), device, cookie (two words).
fn target(family: i32, identity: &[u8; IDENTITY]) -> Option<Target> {
    let port = u16::from_ne_bytes([identity[2], identity[3]]);
    let octets: [u8; 16] = identity[20..36].try_into().ok()?;
    let address = if family == libc::AF_INET {
        IpAddr::from([octets[0], octets[1], octets[2], octets[3]])
    } else {
        IpAddr::from(octets)
    };
    let cookie = u64::from(word(identity, 40)?) | u64::from(word(identity, 44)?) << 32;
    // A v4-mapped address is the IPv4 address, here and in the map.
    Some(Target { cookie, address: Address::from(address), port })
}

fn destroy(family: i32, identity: &[u8; IDENTITY]) -> io::Result<()> {
    let socket = open()?;
    send(&socket, SOCK_DESTROY, libc::NLM_F_ACK as u16, family, identity)?;
    receive(&socket, |kind, content| {
        if i32::from(kind) == libc::NLMSG_ERROR {
            answer(content)?;
        }
        Ok(true)
    })
}
