//! The socket path: the destination of a connection or datagram is translated in the system call.

use core::ptr;

use aya_ebpf::bindings::{BPF_ANY, bpf_sock_addr};
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use kelp_common::maps::counter;
use kelp_common::{Address, SocketKey, SocketValue, TCP, UDP};

use crate::lb;
use crate::maps::{NODE_CONFIG, SOCKETS, count, is_node_address};

const ALLOW: i32 = 1;
const DENY: i32 = 0;
const ECONNREFUSED: i32 = 111;

/// What to do with a destination.
enum Decision {
    /// It is no service.
    Leave,
    /// It is a service without endpoints, or nothing at all in a service range.
    Refuse,
    /// This is the backend.
    Use(Address, u16),
}

/// Decides about a destination and remembers the translation for [`original`].
#[inline(always)]
fn decide(ctx: *mut bpf_sock_addr, address: Address, port: u16) -> Decision {
    // SAFETY: the context is valid for the whole run of the program.
    let protocol = unsafe { (*ctx).protocol } as u8;
    if protocol != TCP && protocol != UDP {
        return Decision::Leave;
    }
    let Some(config) = NODE_CONFIG.get(0) else { return Decision::Leave };
    let frontend = match lb::frontend(&address, port, protocol, false) {
        Some(frontend) => frontend,
        None if lb::is_service_address(config, &address) => return Decision::Refuse,
        None => {
            if !lb::in_node_port_range(config, port) {
                return Decision::Leave;
            }
            // SAFETY: the context is valid for the whole run of the program.
            let in_host = || unsafe { bpf_get_netns_cookie(ctx.cast()) } == config.host_netns_cookie;
            let here = if address.is_loopback() { in_host() } else { is_node_address(&address) };
            if !here {
                return Decision::Leave;
            }
            match lb::frontend(&address.any_of_family(), port, protocol, false) {
                Some(frontend) => frontend,
                None => return Decision::Leave,
            }
        }
    };
    // SAFETY: the context is valid for the whole run of the program.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.cast()) };
    // All datagrams of a socket go to one backend, connections to any.
    let hash = (protocol == UDP).then(|| (cookie.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32);
    let client = if frontend.affinity_seconds == 0 {
        Address::ANY_V6
    } else {
        // SAFETY: the context is valid for the whole run of the program.
        let netns = unsafe { bpf_get_netns_cookie(ctx.cast()) };
        Address([netns as u32, (netns >> 32) as u32, 0, 0])
    };
    let Some((id, backend)) = lb::select(frontend, &client, hash) else { return Decision::Refuse };
    let key = SocketKey { cookie, address: backend.address, port: u32::from(backend.port), unused: 0 };
    // SAFETY: the entry is only read.
    let known = unsafe { SOCKETS.get(&key) }
        .is_some_and(|known| known.address == address && known.port == u32::from(port));
    if !known {
        let value = SocketValue { address, port: u32::from(port), backend: id };
        // A full map evicts; a failed write only hides the service's address from getpeername.
        let _ = SOCKETS.insert(&key, &value, u64::from(BPF_ANY));
    }
    Decision::Use(backend.address, backend.port)
}

/// The service address behind a backend this socket speaks to.
#[inline(always)]
fn original(ctx: *mut bpf_sock_addr, address: Address, port: u16) -> Option<(Address, u16)> {
    // SAFETY: the context is valid for the whole run of the program.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.cast()) };
    let key = SocketKey { cookie, address, port: u32::from(port), unused: 0 };
    // SAFETY: the value is copied at once.
    let value = *unsafe { SOCKETS.get(&key) }?;
    Some((value.address, value.port as u16))
}

/// Makes the system call fail as if the destination had answered with a reset.
#[inline(always)]
fn refuse() -> i32 {
    count(counter::REFUSED);
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    DENY
}

#[inline(always)]
fn destination_v4(ctx: *mut bpf_sock_addr) -> (Address, u16) {
    // SAFETY: the context is valid for the whole run of the program.
    unsafe { (Address::v4((*ctx).user_ip4), (*ctx).user_port as u16) }
}

/// The verifier allows access to the words of the address one at a time only.
#[inline(always)]
fn destination_v6(ctx: *mut bpf_sock_addr) -> (Address, u16) {
    // SAFETY: the context is valid for the whole run of the program.
    unsafe {
        let word = |index: usize| ptr::read_volatile(&raw const (*ctx).user_ip6[index]);
        (Address([word(0), word(1), word(2), word(3)]), (*ctx).user_port as u16)
    }
}

#[inline(always)]
fn set_v4(ctx: *mut bpf_sock_addr, address: &Address, port: u16) {
    // SAFETY: the context is valid for the whole run of the program.
    unsafe {
        (*ctx).user_ip4 = address.0[3];
        (*ctx).user_port = u32::from(port);
    }
}

#[inline(always)]
fn set_v6(ctx: *mut bpf_sock_addr, address: &Address, port: u16) {
    // SAFETY: the context is valid for the whole run of the program.
    unsafe {
        ptr::write_volatile(&raw mut (*ctx).user_ip6[0], address.0[0]);
        ptr::write_volatile(&raw mut (*ctx).user_ip6[1], address.0[1]);
        ptr::write_volatile(&raw mut (*ctx).user_ip6[2], address.0[2]);
        ptr::write_volatile(&raw mut (*ctx).user_ip6[3], address.0[3]);
        (*ctx).user_port = u32::from(port);
    }
}

#[inline(always)]
fn forward_v4(ctx: &SockAddrContext) -> i32 {
    let (address, port) = destination_v4(ctx.sock_addr);
    match decide(ctx.sock_addr, address, port) {
        Decision::Leave => ALLOW,
        Decision::Refuse => refuse(),
        Decision::Use(address, port) => {
            set_v4(ctx.sock_addr, &address, port);
            ALLOW
        }
    }
}

#[inline(always)]
fn forward_v6(ctx: &SockAddrContext) -> i32 {
    let (address, port) = destination_v6(ctx.sock_addr);
    match decide(ctx.sock_addr, address, port) {
        Decision::Leave => ALLOW,
        Decision::Refuse => refuse(),
        Decision::Use(address, port) => {
            set_v6(ctx.sock_addr, &address, port);
            ALLOW
        }
    }
}

#[inline(always)]
fn backward_v4(ctx: &SockAddrContext) -> i32 {
    let (address, port) = destination_v4(ctx.sock_addr);
    if let Some((address, port)) = original(ctx.sock_addr, address, port) {
        set_v4(ctx.sock_addr, &address, port);
    }
    ALLOW
}

#[inline(always)]
fn backward_v6(ctx: &SockAddrContext) -> i32 {
    let (address, port) = destination_v6(ctx.sock_addr);
    if let Some((address, port)) = original(ctx.sock_addr, address, port) {
        set_v6(ctx.sock_addr, &address, port);
    }
    ALLOW
}

/// `connect(2)`, IPv4.
#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    forward_v4(&ctx)
}

/// `connect(2)`, IPv6 and v4-mapped.
#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    forward_v6(&ctx)
}

/// `sendto(2)` and `sendmsg(2)` with a destination, IPv4.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    forward_v4(&ctx)
}

/// `sendto(2)` and `sendmsg(2)` with a destination, IPv6.
#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    forward_v6(&ctx)
}

/// The source `recvfrom(2)` shows, IPv4.
#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    backward_v4(&ctx)
}

/// The source `recvfrom(2)` shows, IPv6 and v4-mapped.
#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    backward_v6(&ctx)
}

/// `getpeername(2)`, IPv4.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    backward_v4(&ctx)
}

/// `getpeername(2)`, IPv6 and v4-mapped.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    backward_v6(&ctx)
}
