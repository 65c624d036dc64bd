//! The socket path: the destination of a connection or datagram is translated in the system call.

use core::ptr;

use aya_ebpf::bindings::{BPF_ANY, bpf_sock_addr};
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_probe_read_kernel, bpf_set_retval};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use kelp_common::maps::counter;
use kelp_common::node::NAMESPACE_NO_SOCKETS;
use kelp_common::service::{FRONTEND_DROP, FRONTEND_SOURCE_RANGES};
use kelp_common::{Address, FrontendValue, NodeConfig, SocketKey, SocketValue, TCP, UDP};

use crate::lb;
use crate::maps::{NAMESPACES, NODE_CONFIG, SOCKETS, is_node_address, tally};
use crate::tell;

const ALLOW: i32 = 1;
const DENY: i32 = 0;
const ECONNREFUSED: i32 = 111;
const EHOSTUNREACH: i32 = 113;

/// Whether the kernel has `bpf_set_retval` (5.18); the loader overrides it. Without the helper a refused connection
/// is left to the packet path, which answers it.
#[unsafe(no_mangle)]
static HAS_SET_RETVAL: u8 = 1;

/// Where `struct sock` has the bit that says it is a socket of the kernel's own, and the bit; the loader overrides both.
/// Without a bit no socket is taken for one.
#[unsafe(no_mangle)]
static KERNEL_SOCKET_BYTE: u32 = 0;
#[unsafe(no_mangle)]
static KERNEL_SOCKET_MASK: u8 = 0;

/// What to do with a destination.
enum Decision {
    /// It is no service.
    Leave,
    /// It is a service without endpoints, or nothing at all in a service range.
    Refuse,
    /// It is a service that this client may not use, or not from this node.
    Deny(u32),
    /// This is the backend.
    Use(Address, u16),
}

/// The frontend a destination names, if it is one here.
#[inline(always)]
fn find(
    config: &NodeConfig,
    namespace: u64,
    address: &Address,
    port: u16,
    protocol: u8,
) -> Result<&'static FrontendValue, Decision> {
    // Loopback addresses of a pod are its own.
    let loopback = address.is_loopback();
    if loopback && namespace != config.host_netns_cookie {
        return Err(Decision::Leave);
    }
    if let Some(frontend) = lb::frontend(address, port, protocol, false) {
        return Ok(frontend);
    }
    if lb::is_service_address(config, address) {
        return Err(Decision::Refuse);
    }
    if !loopback && !is_node_address(address) {
        return Err(Decision::Leave);
    }
    lb::frontend(&address.any_of_family(), port, protocol, false).ok_or(Decision::Leave)
}

/// Decides about a destination and remembers the translation for [`original`].
#[inline(always)]
fn decide(ctx: *mut bpf_sock_addr, address: Address, port: u16) -> Decision {
    match translate(ctx, address, port) {
        Ok(decision) | Err(decision) => decision,
    }
}

#[inline(always)]
fn translate(ctx: *mut bpf_sock_addr, address: Address, port: u16) -> Result<Decision, Decision> {
    // SAFETY: the context is valid for the whole run of the program.
    let protocol = unsafe { (*ctx).protocol } as u8;
    if protocol != TCP && protocol != UDP {
        return Ok(Decision::Leave);
    }
    let config = NODE_CONFIG.get(0).ok_or(Decision::Leave)?;
    // SAFETY: the context is valid for the whole run of the program.
    let namespace = unsafe { bpf_get_netns_cookie(ctx.cast()) };
    let frontend = find(config, namespace, &address, port, protocol)?;
    let (client, known) = client(ctx, config, namespace, &address)?;
    if frontend.flags & FRONTEND_SOURCE_RANGES != 0 {
        // The packet path sees the address of a client that is not known here.
        if !known {
            return Ok(Decision::Leave);
        }
        if !lb::admits(frontend, &client) {
            return Ok(Decision::Deny(counter::SOURCE_RANGE));
        }
    }
    // SAFETY: the context is valid for the whole run of the program.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.cast()) };
    // All datagrams of a socket go to one backend, connections to any.
    let hash = (protocol == UDP).then(|| (cookie.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32);
    let Some((id, backend)) = lb::select(frontend, &client, hash) else {
        let deny = frontend.flags & FRONTEND_DROP != 0;
        return Ok(if deny { Decision::Deny(counter::NO_LOCAL_ENDPOINT) } else { Decision::Refuse });
    };
    let key = SocketKey { cookie, address: backend.address, port: u32::from(backend.port), unused: 0 };
    // SAFETY: the entry is only read.
    let known =
        unsafe { SOCKETS.get(&key) }.is_some_and(|known| known.address == address && known.port == port);
    if !known {
        let value = SocketValue { address, port, protocol: u16::from(protocol), backend: id, namespace };
        // A full map evicts; a failed write only hides the service's address from getpeername.
        let _ = SOCKETS.insert(&key, &value, u64::from(BPF_ANY));
    }
    Ok(Decision::Use(backend.address, backend.port))
}

/// Whether a socket belongs to the kernel (file systems of the network, subflows of MPTCP). Before Linux 6.6 such a user's
/// own copy of the address would be translated, so that it comes back to this backend for good.
#[inline(always)]
fn is_of_kernel(ctx: *mut bpf_sock_addr) -> bool {
    // SAFETY: the statics are valid for reads; plain reads would be taken at compile time.
    let (byte, mask) = unsafe {
        (ptr::read_volatile(&raw const KERNEL_SOCKET_BYTE), ptr::read_volatile(&raw const KERNEL_SOCKET_MASK))
    };
    if mask == 0 {
        return false;
    }
    // The verifier lets nobody compute with the pointer: its value is read from where it is written down.
    // SAFETY: the context is valid for the whole run of the program.
    let sock = unsafe { (*ctx).__bindgen_anon_1.sk };
    // SAFETY: the helper checks what it reads.
    let Ok(address) = (unsafe { bpf_probe_read_kernel((&raw const sock).cast::<u64>()) }) else {
        return false;
    };
    let address = address.wrapping_add(u64::from(byte)) as *const u8;
    // SAFETY: as above.
    unsafe { bpf_probe_read_kernel(address) }.is_ok_and(|bits| bits & mask != 0)
}

/// The address that a server would see, the pod's or the node's, and whether it is known; else a stand-in for it. (Not
/// an `Option`: the compiler would leave its absent value unwritten, which the verifier does not allow.)
#[inline(always)]
fn client(
    ctx: *mut bpf_sock_addr,
    config: &NodeConfig,
    namespace: u64,
    towards: &Address,
) -> Result<(Address, bool), Decision> {
    let stand_in = Address([namespace as u32, (namespace >> 32) as u32, 0, 0]);
    let addresses = if namespace == config.host_netns_cookie {
        &config.node
    } else {
        // SAFETY: the kernel keeps the memory until the program ends.
        match unsafe { NAMESPACES.get(&namespace) } {
            Some(pod) if pod.flags & NAMESPACE_NO_SOCKETS != 0 => return Err(Decision::Leave),
            // Packets of pods are translated without it; those of the host are not.
            Some(_) if is_of_kernel(ctx) => return Err(Decision::Leave),
            Some(pod) => &pod.addresses,
            None => return Ok((stand_in, false)),
        }
    };
    // Both are read before one is chosen: an index computed from the address would need a proof of its range.
    // SAFETY: the references are valid for reads.
    let (v4, v6) =
        unsafe { (ptr::read_volatile(&raw const addresses[0]), ptr::read_volatile(&raw const addresses[1])) };
    let address = if towards.is_v4() { v4 } else { v6 };
    if address == Address::ANY_V6 { Ok((stand_in, false)) } else { Ok((address, true)) }
}

/// The service address behind a backend this socket speaks to.
#[inline(always)]
fn original(ctx: *mut bpf_sock_addr, address: Address, port: u16) -> Option<(Address, u16)> {
    // SAFETY: the context is valid for the whole run of the program.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.cast()) };
    let key = SocketKey { cookie, address, port: u32::from(port), unused: 0 };
    // SAFETY: the value is copied at once.
    let value = *unsafe { SOCKETS.get(&key) }?;
    Some((value.address, value.port))
}

/// Makes the system call fail as if the destination had answered with a reset or "unreachable".
#[inline(always)]
fn fail(ctx: *mut bpf_sock_addr, (address, port): (&Address, u16), reason: u32, error: i32) -> i32 {
    // SAFETY: the static is valid for reads; a plain read would be taken at compile time.
    if unsafe { ptr::read_volatile(&raw const HAS_SET_RETVAL) } == 0 {
        return ALLOW;
    }
    tally(reason);
    tell::destination(ctx, (address, port), (address, port), Some(reason));
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_set_retval(-error) };
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

/// To connect a UDP socket sends nothing, so nothing can refuse it: programs do it to learn their own address. What is sent
/// then meets the packet path.
#[inline(always)]
fn is_udp(ctx: *mut bpf_sock_addr) -> bool {
    // SAFETY: the context is valid for the whole run of the program.
    unsafe { (*ctx).protocol == u32::from(UDP) }
}

#[inline(always)]
fn forward_v4(ctx: &SockAddrContext, connects: bool) -> i32 {
    let (address, port) = destination_v4(ctx.sock_addr);
    let named = (&address, port);
    match decide(ctx.sock_addr, address, port) {
        Decision::Leave => ALLOW,
        Decision::Refuse | Decision::Deny(_) if connects && is_udp(ctx.sock_addr) => ALLOW,
        Decision::Refuse => fail(ctx.sock_addr, named, counter::REFUSED, ECONNREFUSED),
        Decision::Deny(reason) => fail(ctx.sock_addr, named, reason, EHOSTUNREACH),
        Decision::Use(backend, backend_port) => {
            tell::destination(ctx.sock_addr, named, (&backend, backend_port), None);
            set_v4(ctx.sock_addr, &backend, backend_port);
            ALLOW
        }
    }
}

#[inline(always)]
fn forward_v6(ctx: &SockAddrContext, connects: bool) -> i32 {
    let (address, port) = destination_v6(ctx.sock_addr);
    let named = (&address, port);
    match decide(ctx.sock_addr, address, port) {
        Decision::Leave => ALLOW,
        Decision::Refuse | Decision::Deny(_) if connects && is_udp(ctx.sock_addr) => ALLOW,
        Decision::Refuse => fail(ctx.sock_addr, named, counter::REFUSED, ECONNREFUSED),
        Decision::Deny(reason) => fail(ctx.sock_addr, named, reason, EHOSTUNREACH),
        Decision::Use(backend, backend_port) => {
            tell::destination(ctx.sock_addr, named, (&backend, backend_port), None);
            set_v6(ctx.sock_addr, &backend, backend_port);
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
    forward_v4(&ctx, true)
}

/// `connect(2)`, IPv6 and v4-mapped.
#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    forward_v6(&ctx, true)
}

/// `sendto(2)` and `sendmsg(2)` with a destination, IPv4.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    forward_v4(&ctx, false)
}

/// `sendto(2)` and `sendmsg(2)` with a destination, IPv6.
#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    forward_v6(&ctx, false)
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
