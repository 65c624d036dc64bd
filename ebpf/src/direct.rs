//! Packets in the memory that a driver wrote them to, as XDP programs get them: no buffer of the kernel's, no helpers, and
//! checksums that are changed by hand (RFC 1624).

use aya_ebpf::bindings::BPF_F_MARK_MANGLED_0;
use aya_ebpf::programs::XdpContext;

use crate::context::Context;
use crate::packet::{L2, Packet};
use crate::reject::{fold, sum, word};

/// Where a header may begin at most: what has more in front of it is left to the rest. (The verifier wants a bound.)
const FARTHEST: usize = 0xff;

/// The bits of the flags of a change that are its size.
const SIZE: u64 = 0xf;

/// The same number, in a register whose bounds the verifier knows. Up to Linux 6.3 it forgets the bounds of a number that
/// rests on the stack, and the compiler compares one copy of it and adds another: so it is read anew, and cut there.
#[inline(always)]
fn bounded(at: usize) -> usize {
    // SAFETY: a local variable is valid and aligned.
    let at = unsafe { core::ptr::from_ref(&at).read_volatile() };
    at & FARTHEST
}

/// A packet in memory.
pub struct Direct {
    start: *mut u8,
    end: *const u8,
}

impl Direct {
    /// The packet of a context. Once a program: the verifier knows nothing of the bounds of pointers that are read again.
    #[inline(always)]
    pub fn new(ctx: &XdpContext) -> Self {
        Self { start: ctx.data() as *mut u8, end: ctx.data_end() as *const u8 }
    }

    /// Bytes of the packet, with its Ethernet header.
    #[inline(always)]
    pub fn length(&self) -> usize {
        (self.end as usize).wrapping_sub(self.start as usize)
    }

    /// Where `length` bytes are, if they are.
    #[inline(always)]
    fn at(&self, at: usize, length: usize) -> Result<*mut u8, ()> {
        if at > FARTHEST {
            return Err(());
        }
        let from = self.start.wrapping_add(bounded(at));
        if from.wrapping_add(length).cast_const() > self.end { Err(()) } else { Ok(from) }
    }

    #[inline(always)]
    fn half(&self, at: usize) -> Result<u16, ()> {
        let from = self.at(at, 2)?.cast::<u16>();
        // SAFETY: two bytes of the packet, which begins at an even address and whose headers have even lengths.
        Ok(unsafe { from.read() })
    }

    /// Changes a checksum as it changes when `from` becomes `to` in what it covers.
    #[inline(always)]
    fn change(old: u16, from: u64, to: u64) -> u16 {
        fold(u64::from(!old) + from + to)
    }

    /// Whether the transport checksum is one that a device is to compute: it covers the pseudo header only, and a change of
    /// it would have to be another one. So it is with what another program of this machine, or of the same host, sends
    /// (veth, virtio); what came over a wire is whole. One checksum in 65,535 looks like it and is none.
    #[inline(always)]
    pub fn is_unfinished(&self, packet: &Packet, checksum_at: usize) -> Result<bool, ()> {
        let key = &packet.key;
        let mut total = u64::from(word([0, key.protocol as u8, 0, 0]));
        let headers = (packet.l4 - L2) as u32;
        let length = if packet.v4 {
            total += u64::from(key.source.0[3]) + u64::from(key.destination.0[3]);
            u32::from(u16::from_be(self.half(L2 + 2)?)).wrapping_sub(headers)
        } else {
            total += sum(&key.source.0) + sum(&key.destination.0);
            u32::from(u16::from_be(self.half(L2 + 4)?)).wrapping_sub(headers - 40)
        };
        total += u64::from((length as u16).to_be());
        Ok(self.half(checksum_at)? == !fold(total))
    }
}

impl Context for Direct {
    const SCTP: bool = false;

    #[inline(always)]
    fn ethertype(&self) -> u32 {
        self.half(12).map_or(0, u32::from)
    }

    #[inline(always)]
    fn words<const N: usize>(&self, at: usize) -> Result<[u32; N], ()> {
        let from = self.at(at, N * 4)?.cast::<u16>();
        let mut words = [0; N];
        for (index, word) in words.iter_mut().enumerate() {
            // SAFETY: as in `half`. (Headers are not at multiples of four: the Ethernet header has 14 bytes.)
            let (first, second) = unsafe { (from.add(index * 2).read(), from.add(index * 2 + 1).read()) };
            *word = u32::from(first) | u32::from(second) << 16;
        }
        Ok(words)
    }

    #[inline(always)]
    fn byte(&self, at: usize) -> Result<u8, ()> {
        let from = self.at(at, 1)?;
        // SAFETY: a byte of the packet.
        Ok(unsafe { from.read() })
    }

    #[inline(always)]
    fn write<const N: usize>(&self, at: usize, words: &[u32; N]) -> Result<(), ()> {
        let to = self.at(at, N * 4)?.cast::<u16>();
        for (index, word) in words.iter().enumerate() {
            // SAFETY: as in `half`; the packet is the program's until it returns.
            unsafe {
                to.add(index * 2).write(*word as u16);
                to.add(index * 2 + 1).write((*word >> 16) as u16);
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn write_half(&self, at: usize, half: u16) -> Result<(), ()> {
        let to = self.at(at, 2)?.cast::<u16>();
        // SAFETY: as in `write`.
        unsafe { to.write(half) };
        Ok(())
    }

    #[inline(always)]
    fn write_byte(&self, at: usize, byte: u8) -> Result<(), ()> {
        let to = self.at(at, 1)?;
        // SAFETY: a byte of the packet, which is the program's until it returns.
        unsafe { to.write(byte) };
        Ok(())
    }

    #[inline(always)]
    fn change_header_checksum(&self, at: usize, from: u64, to: u64, size: u64) -> Result<(), ()> {
        self.change_checksum(at, from, to, size)
    }

    #[inline(always)]
    fn change_checksum(&self, at: usize, from: u64, to: u64, flags: u64) -> Result<(), ()> {
        let old = self.half(at)?;
        // No checksum of UDP stays none, and one that becomes none is written as its other zero (RFC 768).
        let optional = flags & u64::from(BPF_F_MARK_MANGLED_0) != 0;
        if optional && old == 0 {
            return Ok(());
        }
        let from = match flags & SIZE {
            0 => 0,
            2 => !from & 0xffff,
            _ => !from & 0xffff_ffff,
        };
        let new = Self::change(old, from, to);
        self.write_half(at, if optional && new == 0 { 0xffff } else { new })
    }
}
