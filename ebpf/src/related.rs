//! ICMP errors about packets of translated flows. They quote the packet as it was after the translation, so the
//! quotation is translated back: its sender must recognise it, or "fragmentation needed" would never reach it.

use aya_ebpf::programs::TcContext;
use kelp_common::flow::FLOW_DSR;
use kelp_common::{Address, FlowValue};

use crate::maps::{FLOWS, quoted_room};
use crate::packet::{Packet, read_quoted};
use crate::{policy, rewrite};

/// What became of an error.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Outcome {
    /// It is about no flow that is known here.
    Unknown,
    /// It was translated.
    Translated,
    /// It could not be rewritten.
    Failed,
    /// It is about a flow whose backend's node translates: it goes there.
    Elsewhere,
}

/// Translates an ICMP error; `destination` and `port` become those of the end it goes to.
#[inline(never)]
pub fn translate(ctx: &TcContext, packet: &Packet, destination: &mut Address, port: &mut u16) -> Outcome {
    let Some(quoted) = quoted_room() else { return Outcome::Unknown };
    if read_quoted(ctx, packet, quoted).is_none() {
        return Outcome::Unknown;
    }
    // SAFETY: the kernel keeps the memory until the program ends.
    let Some(to): Option<&FlowValue> = (unsafe { FLOWS.get(&quoted.answer) }) else {
        return Outcome::Unknown;
    };
    *destination = to.destination;
    *port = to.destination_port;
    if to.flags & FLOW_DSR != 0 {
        return Outcome::Elsewhere;
    }
    if rewrite::translate_error(ctx, packet, quoted, to).is_err() {
        return Outcome::Failed;
    }
    Outcome::Translated
}

/// Whether an error that is not translated is about a flow that the policies allow.
#[inline(never)]
pub fn is_about_allowed(ctx: &TcContext, packet: &Packet) -> bool {
    let Some(quoted) = quoted_room() else { return false };
    read_quoted(ctx, packet, quoted).is_some() && policy::is_about_allowed(&quoted.answer)
}
