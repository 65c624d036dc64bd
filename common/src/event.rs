//! What the programs tell of flows, while somebody listens.
//!
//! ```text
//! listener ── writes until when it listens, and how much it wants      FLOW_SWITCH
//! programs ── look at that first; while it is 0 they do nothing else
//!          ── flows told lately are not told again                     FLOW_RECENT
//!          ── events                                                   FLOW_EVENTS (ring buffer)
//!          ── what was not told because it would have been too much    FLOW_STATE
//! ```

use crate::{Address, FlowKey};

/// The only entry of an array: whether somebody listens.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FlowSwitch {
    /// Second of the monotonic clock until which events are wanted; 0 while nobody listens. A listener that dies is
    /// forgotten then.
    pub until: u32,
    /// Events a second and CPU that are told at most.
    pub rate: u32,
}

const _: () = assert!(size_of::<FlowSwitch>() == 8);

/// Something that happened to a packet, or to a connection in a system call.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FlowEvent {
    /// Nanoseconds of the monotonic clock.
    pub time: u64,
    /// Addresses and ports as they came. The source port of a socket's destination is 0.
    pub key: FlowKey,
    /// The source as it goes on.
    pub source: Address,
    /// The destination as it goes on.
    pub destination: Address,
    /// The source port as it goes on, network byte order.
    pub source_port: u16,
    /// The destination port as it goes on, network byte order.
    pub destination_port: u16,
    /// `VERDICT_*`.
    pub verdict: u8,
    /// For what was dropped or refused: the counter that counted it and 1 (see [`crate::maps::counter`]); else 0.
    pub reason: u8,
    /// `HOOK_*`.
    pub hook: u8,
    /// Flags of a TCP segment; those that mean the same of a chunk of SCTP.
    pub tcp_flags: u8,
    /// For what a policy forbade: the space of its table.
    pub space: u32,
    /// For what a policy forbade: its table.
    pub policy: u32,
}

const _: () = assert!(size_of::<FlowEvent>() == 96);

/// The packet goes on as it is.
pub const VERDICT_FORWARDED: u8 = 0;
/// The packet or connection goes on with other addresses.
pub const VERDICT_TRANSLATED: u8 = 1;
/// The packet is gone, or the system call failed as if it were.
pub const VERDICT_DROPPED: u8 = 2;
/// The sender was told that there is nothing.
pub const VERDICT_REFUSED: u8 = 3;

/// What a pod sends.
pub const HOOK_FROM_POD: u8 = 0;
/// What the host sends to a pod.
pub const HOOK_TO_POD: u8 = 1;
/// What comes in by the uplink.
pub const HOOK_FROM_NET: u8 = 2;
/// What leaves by the uplink.
pub const HOOK_TO_NET: u8 = 3;
/// A destination in a system call.
pub const HOOK_SOCKET: u8 = 4;
/// What comes in by the uplink and is sent on by XDP.
pub const HOOK_XDP: u8 = 5;

/// Entries of FLOW_STATE, a value a CPU.
pub mod state {
    /// Events that were more than the rate.
    pub const LOST_RATE: u32 = 0;
    /// Events for which the ring had no room.
    pub const LOST_RING: u32 = 1;
    /// The second in the upper half, and how many events were told in it.
    pub const BUDGET: u32 = 2;
    /// The counter of the packet that is looked at and 1, or 0.
    pub const REASON: u32 = 3;
    /// Number of entries.
    pub const COUNT: u32 = 4;
}

/// Seconds after which a flow that goes on is told again.
pub const TELL_AGAIN: u32 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_and_hooks_are_distinct() {
        let all = [VERDICT_FORWARDED, VERDICT_TRANSLATED, VERDICT_DROPPED, VERDICT_REFUSED];
        assert_eq!(all, [0, 1, 2, 3]);
        let all = [HOOK_FROM_POD, HOOK_TO_POD, HOOK_FROM_NET, HOOK_TO_NET, HOOK_SOCKET, HOOK_XDP];
        assert_eq!(all, [0, 1, 2, 3, 4, 5]);
    }
}
