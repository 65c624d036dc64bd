//! A packet as a program gets it: a buffer of the kernel's, through helpers, or the memory that a driver wrote it to (see
//! [`crate::direct`]). What reads and changes packets on both ways is generic over them.

use core::ffi::c_void;

use aya_ebpf::helpers::{bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_store_bytes};
use aya_ebpf::programs::TcContext;

/// Reading and changing a packet. Offsets are those from its Ethernet header; what is outside of it is an error, and
/// nothing is changed. Words are as in memory.
pub trait Context {
    /// Whether SCTP is translated: its checksum cannot be told from one that a device will compute, except by the kernel.
    const SCTP: bool;

    /// The protocol of what follows the Ethernet header.
    fn ethertype(&self) -> u32;

    /// Reads words.
    fn words<const N: usize>(&self, at: usize) -> Result<[u32; N], ()>;

    /// Reads a byte.
    fn byte(&self, at: usize) -> Result<u8, ()>;

    /// Writes words.
    fn write<const N: usize>(&self, at: usize, words: &[u32; N]) -> Result<(), ()>;

    /// Writes half a word.
    fn write_half(&self, at: usize, half: u16) -> Result<(), ()>;

    /// Writes a byte.
    fn write_byte(&self, at: usize, byte: u8) -> Result<(), ()>;

    /// Changes the checksum of an IPv4 header as a change of `size` bytes does.
    fn change_header_checksum(&self, at: usize, from: u64, to: u64, size: u64) -> Result<(), ()>;

    /// Changes a transport checksum; the flags are those of `bpf_l4_csum_replace`, with the size. Of size 0, `to` is a
    /// difference as `bpf_csum_diff` tells it.
    fn change_checksum(&self, at: usize, from: u64, to: u64, flags: u64) -> Result<(), ()>;
}

/// What a helper says.
#[inline(always)]
fn done(result: i64) -> Result<(), ()> {
    if result == 0 { Ok(()) } else { Err(()) }
}

/// Writes bytes of something that is on the stack or in a map.
#[inline(always)]
fn store<T>(ctx: &TcContext, at: usize, value: &T) -> Result<(), ()> {
    let (from, length) = (core::ptr::from_ref(value).cast::<c_void>(), size_of::<T>() as u32);
    // SAFETY: the helper checks the bounds of the packet; the source is as long as said.
    done(unsafe { bpf_skb_store_bytes(ctx.skb.skb, at as u32, from, length, 0) })
}

impl Context for TcContext {
    const SCTP: bool = true;

    #[inline(always)]
    fn ethertype(&self) -> u32 {
        // SAFETY: the context is valid for the whole run of the program.
        unsafe { (*self.skb.skb).protocol }
    }

    #[inline(always)]
    fn words<const N: usize>(&self, at: usize) -> Result<[u32; N], ()> {
        self.load(at).map_err(|_| ())
    }

    #[inline(always)]
    fn byte(&self, at: usize) -> Result<u8, ()> {
        self.load(at).map_err(|_| ())
    }

    #[inline(always)]
    fn write<const N: usize>(&self, at: usize, words: &[u32; N]) -> Result<(), ()> {
        store(self, at, words)
    }

    #[inline(always)]
    fn write_half(&self, at: usize, half: u16) -> Result<(), ()> {
        store(self, at, &half)
    }

    #[inline(always)]
    fn write_byte(&self, at: usize, byte: u8) -> Result<(), ()> {
        store(self, at, &byte)
    }

    #[inline(always)]
    fn change_header_checksum(&self, at: usize, from: u64, to: u64, size: u64) -> Result<(), ()> {
        // SAFETY: the helper checks the offset against the packet.
        done(unsafe { bpf_l3_csum_replace(self.skb.skb, at as u32, from, to, size) })
    }

    #[inline(always)]
    fn change_checksum(&self, at: usize, from: u64, to: u64, flags: u64) -> Result<(), ()> {
        // SAFETY: the helper checks the offset against the packet.
        done(unsafe { bpf_l4_csum_replace(self.skb.skb, at as u32, from, to, flags) })
    }
}
