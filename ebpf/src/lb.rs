//! Choosing a backend; used by both paths.

use core::ffi::c_void;

use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns, bpf_map_lookup_elem};
use aya_ebpf::maps::lpm_trie::Key;
use kelp_common::maglev::{self, HEADER_SIZE, LANES, Row};
use kelp_common::service::{
    BACKEND_DRAINING, FRONTEND_SOURCE_RANGES, FRONTEND_TWO_SCOPES, SCOPE_CLUSTER, SCOPE_EXTERNAL,
};
use kelp_common::{
    Address, AffinityKey, AffinityValue, Backend, FrontendKey, FrontendValue, NodeConfig, SlotKey,
    SourceRange, SourceRangeKey,
};

use crate::maps::{AFFINITIES, BACKENDS, FRONTENDS, MAGLEV, SLOTS, SOURCE_RANGES};

/// Seconds of the monotonic clock.
#[inline(always)]
pub fn now() -> u32 {
    // SAFETY: the helper has no preconditions.
    (unsafe { bpf_ktime_get_ns() } / 1_000_000_000) as u32
}

/// The frontend at exactly this address and port.
#[inline(always)]
pub fn frontend(
    address: &Address,
    port: u16,
    protocol: u8,
    external: bool,
) -> Option<&'static FrontendValue> {
    let mut key = FrontendKey { address: *address, port, protocol, scope: SCOPE_CLUSTER };
    // SAFETY: the kernel keeps the memory until the program ends.
    let value = unsafe { FRONTENDS.get(&key) }?;
    if external && value.flags & FRONTEND_TWO_SCOPES != 0 {
        key.scope = SCOPE_EXTERNAL;
        // SAFETY: as above.
        return unsafe { FRONTENDS.get(&key) };
    }
    Some(value)
}

/// Whether a client may use a frontend (`loadBalancerSourceRanges`).
#[inline(always)]
pub fn admits(frontend: &FrontendValue, client: &Address) -> bool {
    if frontend.flags & FRONTEND_SOURCE_RANGES == 0 {
        return true;
    }
    let key = Key::new(SourceRangeKey::WHOLE, SourceRange { table: frontend.table, address: *client });
    SOURCE_RANGES.get(&key).is_some()
}

/// Whether an address lies in a service range.
#[inline(always)]
pub fn is_service_address(config: &NodeConfig, address: &Address) -> bool {
    config.services[0].contains(address) || config.services[1].contains(address)
}

/// How a backend is chosen. (Not an enumeration: the compiler would leave the number of some of its forms unwritten, which
/// the verifier does not allow.)
#[derive(Clone, Copy)]
pub struct Choice {
    /// The number that decides.
    pub number: u32,
    /// Whether it picks the place in the table of consistent hashing, and not the slot.
    pub consistent: bool,
}

impl Choice {
    /// By chance.
    #[inline(always)]
    pub fn random() -> Self {
        // SAFETY: the helper has no preconditions.
        Self { number: unsafe { bpf_get_prandom_u32() }, consistent: false }
    }
}

/// Chooses a backend. `hash` picks the slot; without one it is random. `None` means that there is none: refuse.
#[inline(always)]
pub fn select(frontend: &FrontendValue, client: &Address, hash: Option<u32>) -> Option<(u32, Backend)> {
    let choice = match hash {
        Some(number) => Choice { number, consistent: false },
        None => Choice::random(),
    };
    select_by(frontend, client, choice)
}

/// [`select`] in any way.
#[inline(always)]
pub fn select_by(frontend: &FrontendValue, client: &Address, choice: Choice) -> Option<(u32, Backend)> {
    if frontend.count == 0 {
        return None;
    }
    if frontend.affinity_seconds != 0 {
        return select_with_affinity(frontend, client, choice);
    }
    pick(frontend, choice)
}

/// The backend at the place of a flow in its table of consistent hashing. Nothing for a frontend without one: it has no
/// choice, or there was no room for its table.
#[inline(always)]
fn consistent(table: u32, hash: u32) -> Option<(u32, Backend)> {
    let map: *mut c_void = MAGLEV.get_ptr(&table)?.cast_mut().cast();
    let row = |index: u32| -> Option<&'static Row> {
        // SAFETY: what a map of maps holds is a map, and this one has indexes for keys and rows for values. The kernel
        // keeps it until the program ends.
        unsafe { bpf_map_lookup_elem(map, (&raw const index).cast()).cast::<Row>().as_ref() }
    };
    let size = row(0)?.0[HEADER_SIZE];
    let (index, lane) = maglev::place(maglev::place_of(hash, size));
    // The mask tells the verifier what it cannot know of a remainder.
    let id = row(index)?.0[lane & (LANES - 1)];
    // SAFETY: the value is copied at once.
    let backend = *unsafe { BACKENDS.get(&id) }?;
    Some((id, backend))
}

#[inline(always)]
fn pick(frontend: &FrontendValue, choice: Choice) -> Option<(u32, Backend)> {
    if choice.consistent
        && let Some(found) = consistent(frontend.table, choice.number)
    {
        return Some(found);
    }
    // A multiplication in place of a division: the count is far below 2³².
    let slot = ((u64::from(choice.number) * u64::from(frontend.count)) >> 32) as u32;
    // SAFETY: the value is copied at once.
    let id = *unsafe { SLOTS.get(&SlotKey { table: frontend.table, slot }) }?;
    // SAFETY: the value is copied at once.
    let backend = *unsafe { BACKENDS.get(&id) }?;
    Some((id, backend))
}

#[inline(always)]
fn select_with_affinity(
    frontend: &FrontendValue,
    client: &Address,
    choice: Choice,
) -> Option<(u32, Backend)> {
    let key = AffinityKey { client: *client, table: frontend.table };
    let now = now();
    if let Some(last) = AFFINITIES.get_ptr_mut(&key) {
        // SAFETY: the entry lives until the program ends; two CPUs write the same kind of value.
        let last = unsafe { &mut *last };
        if now.wrapping_sub(last.used) < frontend.affinity_seconds {
            let id = last.backend;
            // SAFETY: the value is copied at once.
            if let Some(backend) = unsafe { BACKENDS.get(&id) }.copied()
                && backend.flags & BACKEND_DRAINING == 0
            {
                last.used = now;
                return Some((id, backend));
            }
        }
    }
    let chosen = pick(frontend, choice)?;
    // A full map evicts; a failed write only loses the affinity of this client.
    let _ = AFFINITIES.insert(&key, &AffinityValue { backend: chosen.0, used: now }, 0);
    Some(chosen)
}
