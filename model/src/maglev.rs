//! Maglev's lookup tables: consistent hashing for clients outside the cluster (Eisenbud et al., "Maglev: A Fast and
//! Reliable Software Network Load Balancer", NSDI 2016, section 3.4).
//!
//! Every backend has an order of preference over all places of the table, which follows from its own address alone. In
//! turns, each takes the first place of its order that is free. So every node makes the same table, whatever ids and
//! whatever history it has; all backends of one weight have the same number of places, plus or minus one; and when a
//! backend comes or goes, nearly all others keep their places. A backend of half the weight of the heaviest takes part in
//! every other turn.

use kelp_common::Address;
use kelp_common::maglev::{HEADER_FINGERPRINT, HEADER_SIZE, LANES, Row, SIZES, place, rows};

use crate::service::BackendKey;

/// The largest weight; the least is 1.
pub const MAX_WEIGHT: u16 = 256;

/// A backend in a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// The backend.
    pub key: BackendKey,
    /// Its share, in relation to those of the others: 1–[`MAX_WEIGHT`].
    pub weight: u16,
    /// Its id in this node's maps; no part of the choice.
    pub id: u32,
}

/// What a table is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maglev {
    size: u32,
    /// By key.
    members: Vec<Member>,
}

/// Whether a table may have this many places.
#[must_use]
pub fn is_size(size: u32) -> bool {
    let prime = |number: u32| (2..).take_while(|d| d * d <= number).all(|d| !number.is_multiple_of(d));
    (SIZES.0..=SIZES.1).contains(&size) && prime(size)
}

/// A round of SplitMix64.
fn mix(hash: u64, word: u64) -> u64 {
    let mut z = (hash ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// A number for a backend, the same on every node.
fn hash(key: &BackendKey, seed: u64) -> u64 {
    let Address(words) = key.address;
    let hash = words.iter().fold(seed, |hash, word| mix(hash, u64::from(u32::from_be(*word))));
    mix(hash, u64::from(u16::from_be(key.port)) << 8 | u64::from(key.protocol))
}

/// Where a backend is in its order of preference.
struct Order {
    next: u32,
    skip: u32,
    /// Weight that has not led to a turn yet.
    credit: u32,
}

impl Maglev {
    /// A table with `size` places, a prime number. Weights out of range count as the nearest that is in it.
    #[must_use]
    pub fn new(size: u32, members: impl IntoIterator<Item = Member>) -> Self {
        let clamp = |member: Member| Member { weight: member.weight.clamp(1, MAX_WEIGHT), ..member };
        let mut members: Vec<Member> = members.into_iter().map(clamp).collect();
        members.sort_unstable();
        members.dedup_by_key(|member| member.key);
        Self { size, members }
    }

    /// Number of places.
    #[must_use]
    pub fn size(&self) -> u32 {
        self.size
    }

    /// The backends, by key.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// A number for what the table is made of, by which one in the kernel is known again. (Two of 2⁶⁴ would be taken for
    /// each other by chance.)
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        self.members.iter().fold(mix(0, u64::from(self.size)), |all, member| {
            mix(mix(all, hash(&member.key, 3)), u64::from(member.id) << 16 | u64::from(member.weight))
        })
    }

    /// The index of the member at each place; nothing without members.
    #[must_use]
    pub fn places(&self) -> Vec<u32> {
        const FREE: u32 = u32::MAX;
        let size = self.size;
        let Some(heaviest) = self.members.iter().map(|member| u32::from(member.weight)).max() else {
            return Vec::new();
        };
        let mut orders: Vec<Order> = self
            .members
            .iter()
            .map(|member| Order {
                next: (hash(&member.key, 1) % u64::from(size)) as u32,
                skip: (hash(&member.key, 2) % u64::from(size - 1)) as u32 + 1,
                credit: 0,
            })
            .collect();
        let mut places = vec![FREE; size as usize];
        let mut free = size;
        loop {
            for (index, (order, member)) in (0_u32..).zip(orders.iter_mut().zip(&self.members)) {
                order.credit += u32::from(member.weight);
                if order.credit < heaviest {
                    continue;
                }
                order.credit -= heaviest;
                // The size is prime: the order visits every place, and one is free.
                let taken = loop {
                    let at = order.next;
                    order.next = (at + order.skip) % size;
                    match places.get_mut(at as usize) {
                        Some(place) if *place == FREE => break place,
                        _ => {}
                    }
                };
                *taken = index;
                free -= 1;
                if free == 0 {
                    return places;
                }
            }
        }
    }

    /// The table as it is kept in the kernel.
    #[must_use]
    pub fn rows(&self) -> Vec<Row> {
        let mut all = vec![Row([0; LANES]); rows(self.size) as usize];
        let mut set = |(row, lane): (u32, usize), value: u32| {
            if let Some(lane) = all.get_mut(row as usize).and_then(|row| row.0.get_mut(lane)) {
                *lane = value;
            }
        };
        let fingerprint = self.fingerprint();
        set((0, HEADER_SIZE), self.size);
        set((0, HEADER_FINGERPRINT[0]), fingerprint as u32);
        set((0, HEADER_FINGERPRINT[1]), (fingerprint >> 32) as u32);
        for (at, member) in (0_u32..).zip(self.places()) {
            set(place(at), self.members.get(member as usize).map_or(0, |member| member.id));
        }
        all
    }
}

/// The fingerprint in a table's first row.
#[must_use]
pub fn fingerprint_of(header: &Row) -> u64 {
    u64::from(header.0[HEADER_FINGERPRINT[0]]) | u64::from(header.0[HEADER_FINGERPRINT[1]]) << 32
}

#[cfg(test)]
mod tests;
