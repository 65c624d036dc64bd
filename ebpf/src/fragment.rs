//! Ports of fragments: only the first fragment of a datagram has them, so they are remembered for the others. A fragment
//! that overtakes the first one has none: when its flow is translated it cannot be delivered.

use aya_ebpf::bindings::BPF_ANY;
use kelp_common::{FragmentKey, FragmentValue};

use crate::maps::FRAGMENTS;
use crate::packet::{Kind, Packet};

/// Remembers the ports of a first fragment, or fills in those of a later one.
#[inline(never)]
pub fn resolve(packet: &mut Packet) {
    let key = FragmentKey {
        source: packet.key.source,
        destination: packet.key.destination,
        identification: packet.identification,
        protocol: packet.key.protocol,
    };
    if packet.kind == Kind::Flow {
        let ports = FragmentValue {
            source_port: packet.key.source_port,
            destination_port: packet.key.destination_port,
        };
        // A full map evicts; a failed write only loses the rest of this datagram.
        let _ = FRAGMENTS.insert(&key, &ports, u64::from(BPF_ANY));
    } else if packet.kind == Kind::Fragment {
        // SAFETY: the value is copied at once.
        let Some(ports) = unsafe { FRAGMENTS.get(&key) }.copied() else { return };
        packet.key.source_port = ports.source_port;
        packet.key.destination_port = ports.destination_port;
        packet.flow = true;
    }
}
