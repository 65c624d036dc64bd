//! Properties of lookup tables: balance, stability under change, equality on all nodes.

use std::collections::BTreeMap;

use kelp_common::TCP;
use kelp_common::maglev::DEFAULT_SIZE;
use proptest::prelude::*;

use super::*;

fn key(number: u32) -> BackendKey {
    BackendKey { address: Address::v4((0x0af4_0000 + number).to_be()), port: 8080_u16.to_be(), protocol: TCP }
}

fn table(size: u32, weights: &BTreeMap<u32, u16>) -> Maglev {
    let member = |(number, weight): (&u32, &u16)| Member { key: key(*number), weight: *weight, id: *number };
    Maglev::new(size, weights.iter().map(member))
}

/// The backend at each place.
fn owners(table: &Maglev) -> Vec<BackendKey> {
    table.places().into_iter().map(|index| table.members()[index as usize].key).collect()
}

/// Places of each backend.
fn shares(table: &Maglev) -> BTreeMap<BackendKey, u32> {
    let mut shares = BTreeMap::new();
    for owner in owners(table) {
        *shares.entry(owner).or_insert(0) += 1;
    }
    shares
}

/// Part of the places whose owner differs.
fn moved(one: &Maglev, other: &Maglev) -> f64 {
    let (one, other) = (owners(one), owners(other));
    one.iter().zip(&other).filter(|(one, other)| one != other).count() as f64 / one.len() as f64
}

fn equal(count: u32) -> BTreeMap<u32, u16> {
    (0..count).map(|number| (number * 7 + 2, 1)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn backends_of_one_weight_have_equal_shares(numbers in prop::collection::btree_set(0..65_536_u32, 1..200)) {
        let weights: BTreeMap<u32, u16> = numbers.iter().map(|number| (*number, 1)).collect();
        let shares = shares(&table(2_039, &weights));
        prop_assert_eq!(shares.len(), weights.len());
        let (least, most) = (shares.values().min().unwrap(), shares.values().max().unwrap());
        prop_assert!(most - least <= 1, "{least}..{most}");
    }

    #[test]
    fn shares_are_as_the_weights(
        weights in prop::collection::btree_map(0..65_536_u32, 1..=16_u16, 1..60)
    ) {
        let table = table(DEFAULT_SIZE, &weights);
        let total: f64 = weights.values().map(|weight| f64::from(*weight)).sum();
        let shares = shares(&table);
        for (number, weight) in &weights {
            let expected = f64::from(*weight) / total * f64::from(DEFAULT_SIZE);
            let share = f64::from(shares[&key(*number)]);
            // Turns are whole: a backend may be one ahead or behind, as may those that it is measured by.
            prop_assert!((share - expected).abs() <= 2.0 + expected * 0.02, "{share} of {expected}");
        }
    }

    #[test]
    fn order_and_ids_do_not_matter(
        weights in prop::collection::btree_map(0..65_536_u32, 1..=4_u16, 1..50),
        seed in any::<u64>(),
    ) {
        let here = table(1_021, &weights);
        let mut members: Vec<Member> = here.members().to_vec();
        members.sort_by_key(|member| mix(seed, u64::from(member.id)));
        for (id, member) in (1_000..).zip(&mut members) {
            member.id = id;
        }
        let there = Maglev::new(1_021, members);
        prop_assert_eq!(owners(&here), owners(&there));
        prop_assert_ne!(here.fingerprint(), there.fingerprint(), "the ids in the tables differ");
    }

    #[test]
    fn a_backend_that_goes_or_comes_moves_little_else(count in 2..60_u32, victim in 0..60_u32) {
        let before = equal(count);
        let mut after = before.clone();
        after.remove(&(victim % count * 7 + 2));
        let (before, after) = (table(DEFAULT_SIZE, &before), table(DEFAULT_SIZE, &after));
        let least = 1.0 / f64::from(count);
        let moved = moved(&before, &after);
        prop_assert!(moved >= least - 0.001 && moved <= least + 0.05, "{moved} of {least}");
    }

    #[test]
    fn a_changed_weight_moves_little_else(count in 4..40_u32, victim in 0..40_u32) {
        let before: BTreeMap<u32, u16> = equal(count).into_keys().map(|number| (number, 8)).collect();
        let mut after = before.clone();
        after.insert(victim % count * 7 + 2, 4);
        let moved = moved(&table(DEFAULT_SIZE, &before), &table(DEFAULT_SIZE, &after));
        // The share that is lost, and about as much again.
        let least = 1.0 / f64::from(count) - 4.0 / (f64::from(count) * 8.0 - 4.0);
        prop_assert!(moved >= least - 0.001 && moved <= least + 0.05, "{moved} of {least}");
    }
}

#[test]
fn what_a_table_is_made_of_is_told_by_its_header() {
    let made = table(1_021, &equal(3));
    let rows = made.rows();
    assert_eq!(rows.len(), 65);
    assert_eq!(rows[0].0[HEADER_SIZE], 1_021);
    assert_eq!(fingerprint_of(&rows[0]), made.fingerprint());
    let ids: Vec<u32> = (0..1_021).map(place).map(|(row, lane)| rows[row as usize].0[lane]).collect();
    let expected: Vec<u32> =
        made.places().into_iter().map(|index| made.members()[index as usize].id).collect();
    assert_eq!(ids, expected);
    for other in
        [table(1_019, &equal(3)), table(1_021, &equal(4)), table(1_021, &[(2, 1), (9, 1), (16, 2)].into())]
    {
        assert_ne!(other.fingerprint(), made.fingerprint());
    }
}

#[test]
fn a_table_of_one_or_none_is_no_trouble() {
    assert!(table(1_021, &BTreeMap::new()).places().is_empty());
    assert!(table(1_021, &[(5, 9)].into()).places().iter().all(|index| *index == 0));
    let twice = Maglev::new(
        251,
        [Member { key: key(1), weight: 0, id: 1 }, Member { key: key(1), weight: 9_999, id: 2 }],
    );
    assert_eq!(twice.members().len(), 1);
}

#[test]
fn only_primes_in_range_are_sizes() {
    for size in [251, 509, 1_021, 16_381, 65_521, 131_071] {
        assert!(is_size(size), "{size}");
    }
    for size in [0, 1, 2, 241, 252, 16_384, 131_070, 131_101, u32::MAX] {
        assert!(!is_size(size), "{size}");
    }
}
