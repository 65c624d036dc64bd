//! Consistent hashing of clients outside the cluster: which place of a lookup table a flow has, and how a table is kept.
//!
//! A table is an array map of [`Row`]s, found by its slot table's id in [`crate::maps::MAGLEV`]. The first row is the
//! header; the places follow, [`LANES`] a row. A place holds a backend's id.

use crate::Address;

/// Places of a row.
pub const LANES: usize = 16;

/// A row of a table: places, or the header.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Row(pub [u32; LANES]);

const _: () = assert!(size_of::<Row>() == 64);

/// Index of the number of places in the first row.
pub const HEADER_SIZE: usize = 0;
/// Indexes of the halves of what the table was made of in the first row; see `kelp_model::maglev`.
pub const HEADER_FINGERPRINT: [usize; 2] = [1, 2];

/// Sizes that a table may have, inclusive; they are prime numbers.
pub const SIZES: (u32, u32) = (251, 131_071);
/// Places of a table where nothing else is asked for. With 100 places for each of 163 endpoints, shares differ by 1 %.
pub const DEFAULT_SIZE: u32 = 16_381;

/// Rows of a table with this many places.
#[must_use]
pub const fn rows(size: u32) -> u32 {
    1 + size.div_ceil(LANES as u32)
}

/// Row and lane of a place.
#[inline(always)]
#[must_use]
pub const fn place(place: u32) -> (u32, usize) {
    (1 + place / LANES as u32, (place % LANES as u32) as usize)
}

/// The number that stands for a flow: the same on every node and for every address of the service, so that a client
/// whose packets reach another node meets the same backend. Ports are in network byte order; a flow whose client stays
/// with a backend (session affinity) counts without them.
#[inline(always)]
#[must_use]
pub const fn flow_hash(client: &Address, client_port: u16, port: u16, protocol: u8) -> u32 {
    let mut hash = 0x9747_b28c_u32 ^ protocol as u32;
    hash = mix(hash, u32::from_be(client.0[0]));
    hash = mix(hash, u32::from_be(client.0[1]));
    hash = mix(hash, u32::from_be(client.0[2]));
    hash = mix(hash, u32::from_be(client.0[3]));
    hash = mix(hash, (u16::from_be(client_port) as u32) << 16 | u16::from_be(port) as u32);
    // MurmurHash3's finalizer: every bit of the input may change every bit of the result.
    hash ^= hash >> 16;
    hash = hash.wrapping_mul(0x85eb_ca6b);
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(0xc2b2_ae35);
    hash ^ hash >> 16
}

/// A round of MurmurHash3 (32 bits).
#[inline(always)]
const fn mix(hash: u32, word: u32) -> u32 {
    let word = word.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593);
    (hash ^ word).rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64)
}

/// The place of a flow in a table.
#[inline(always)]
#[must_use]
pub const fn place_of(hash: u32, size: u32) -> u32 {
    ((hash as u64 * size as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_spread_over_all_places() {
        const SIZE: u32 = 251;
        let mut counts = [0_u32; SIZE as usize];
        for client in 0..251_u32 {
            for port in 0..100_u16 {
                let client = Address::v4((0xc633_6400 + client).to_be());
                let hash = flow_hash(&client, (40_000 + port).to_be(), 30_080_u16.to_be(), crate::TCP);
                counts[place_of(hash, SIZE) as usize] += 1;
            }
        }
        // 100 flows a place are expected, with a deviation of 10.
        assert!(counts.iter().all(|count| (50..150).contains(count)), "{counts:?}");
    }

    #[test]
    fn everything_that_tells_flows_apart_counts() {
        let client = Address::v4(0xc633_6401_u32.to_be());
        let flow = flow_hash(&client, 1_u16.to_be(), 80_u16.to_be(), crate::TCP);
        assert_ne!(
            flow,
            flow_hash(&Address::v4(0xc633_6402_u32.to_be()), 1_u16.to_be(), 80_u16.to_be(), crate::TCP)
        );
        assert_ne!(flow, flow_hash(&client, 2_u16.to_be(), 80_u16.to_be(), crate::TCP));
        assert_ne!(flow, flow_hash(&client, 1_u16.to_be(), 81_u16.to_be(), crate::TCP));
        assert_ne!(flow, flow_hash(&client, 1_u16.to_be(), 80_u16.to_be(), crate::UDP));
    }

    #[test]
    fn every_place_has_a_row() {
        for size in [SIZES.0, DEFAULT_SIZE, SIZES.1] {
            assert_eq!(place(0), (1, 0));
            let (row, lane) = place(place_of(u32::MAX, size));
            assert_eq!((row + 1, lane), (rows(size), ((size - 1) % LANES as u32) as usize));
        }
    }
}
