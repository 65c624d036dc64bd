//! Kernel programs of the Kelp dataplane; built by `cargo xtask build-ebpf`.
//!
//! Three paths over the same maps. [`socket`] translates the destination of a connection once, in the system call.
//! [`classifier`] holds the entry points of the packet path, for everything sockets do not see: they call [`packet`] (parse;
//! [`context`] reads and writes), [`fragment`] (ports of fragments), [`service`] and [`lb`] (choose a backend), [`flow`]
//! (remember the translation), [`related`] (ICMP errors about a flow), [`dsr`] (packets that other nodes answer), [`tunnel`]
//! (nodes on other links), [`policy`] (whether a pod may), [`rewrite`], [`route`] and [`reject`]; [`tell`] tells those who
//! listen. [`xdp`] does for what only passes through the node what
//! [`classifier`] does, by the same modules, in the driver of the uplink ([`direct`] reads and writes). Kernel floor: 5.10; a socket's connection to
//! nothing is refused in the system call since 5.18 (`bpf_set_retval`), before that by the packet path.
#![no_std]
#![no_main]
#![expect(
    clippy::missing_safety_doc,
    reason = "the whole crate runs under the verifier, which proves every access; helpers are unsafe by signature only"
)]

mod classifier;
mod context;
mod direct;
mod dsr;
mod flow;
mod fragment;
mod lb;
mod maps;
mod packet;
mod policy;
mod reject;
mod related;
mod rewrite;
mod route;
mod sctp;
mod service;
mod socket;
mod tell;
mod tunnel;
mod xdp;

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// The kernel gives some helpers only to programs under its own licence.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
