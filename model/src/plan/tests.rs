//! Properties of plans, over random histories of desired states with failures in between.

use std::net::{IpAddr, Ipv4Addr};

use kelp_common::service::{FRONTEND_MAGLEV, FRONTEND_SOURCE_RANGES, SCOPE_CLUSTER};
use kelp_common::{Address, TCP};
use proptest::prelude::*;

use super::*;
use crate::hash::HashMap;
use crate::service::{DesiredFrontend, ObjectName, Range, Touched};

fn backend(number: u8) -> BackendKey {
    let address = Address::from(IpAddr::V4(Ipv4Addr::new(10, 244, 0, number)));
    BackendKey { address, port: 80_u16.to_be(), protocol: TCP }
}

fn frontend(number: u8) -> FrontendKey {
    let address = Address::from(IpAddr::V4(Ipv4Addr::new(10, 96, 0, number)));
    FrontendKey { address, port: 80_u16.to_be(), protocol: TCP, scope: SCOPE_CLUSTER }
}

fn table(number: u8) -> TableName {
    TableName {
        service: ObjectName::new("default", &format!("s{number}")),
        port: "".into(),
        protocol: TCP,
        v4: true,
        local: false,
    }
}

/// The clients `10.<number>.0.0/16`.
fn range(number: u8) -> Range {
    (Address::from(IpAddr::V4(Ipv4Addr::new(10, number, 0, 0))), 112)
}

/// Frontends to tables, tables to backends, draining backends.
fn desired(frontends: &BTreeMap<u8, u8>, tables: &[Vec<u8>], draining: &BTreeSet<u8>) -> Desired {
    let mut result = Desired::default();
    for (number, to) in frontends {
        let name = table(*to);
        let backends: BTreeSet<BackendKey> =
            tables.get(usize::from(*to)).into_iter().flatten().map(|number| backend(*number)).collect();
        result.backends.extend(backends.iter().map(|key| (*key, false)));
        result.tables.insert(name.clone(), backends.into_iter().collect());
        result.frontends.insert(
            frontend(*number),
            DesiredFrontend { table: name, affinity_seconds: 0, flags: 0, serving: None },
        );
    }
    for number in draining {
        result.backends.entry(backend(*number)).or_insert(true);
    }
    result
}

fn any_desired() -> impl Strategy<Value = Desired> {
    (
        prop::collection::btree_map(1..6_u8, 0..4_u8, 0..5),
        prop::collection::vec(prop::collection::vec(1..9_u8, 0..5), 4),
        prop::collection::btree_set(1..12_u8, 0..3),
        prop::collection::btree_map(1..6_u8, prop::collection::btree_set(1..5_u8, 0..3), 0..3),
        prop::collection::btree_map(1..6_u8, 1..3_u16, 0..3),
    )
        .prop_map(|(frontends, tables, draining, restricted, consistent)| {
            let mut result = desired(&frontends, &tables, &draining);
            for (number, clients) in restricted {
                if let Some(restricted) = result.frontends.get_mut(&frontend(number)) {
                    restricted.flags = FRONTEND_SOURCE_RANGES;
                    let clients = clients.into_iter().map(range);
                    result.ranges.entry(restricted.table.clone()).or_default().extend(clients);
                }
            }
            for (number, weight) in consistent {
                let Some(to) = result.frontends.get_mut(&frontend(number)) else { continue };
                to.flags |= FRONTEND_MAGLEV;
                let count = result.tables.get(&to.table).map_or(0, Vec::len);
                if count > 1 {
                    let weights = (0..count as u16).map(|place| 1 + place * weight).collect();
                    result.lookups.insert(to.table.clone(), Lookup { size: 251, weights });
                }
            }
            result
        })
}

/// The clients that a restricted frontend admits.
fn clients(actual: &Actual, key: &FrontendKey) -> Option<BTreeSet<Range>> {
    let value = actual.frontends.get(key).filter(|value| value.flags & FRONTEND_SOURCE_RANGES != 0)?;
    let own = actual.ranges.iter().filter(|range| range.range.table == value.table);
    Some(own.map(|key| (key.range.address, (key.prefix_length - 32) as u8)).collect())
}

/// What the maps must say, apart from the ids.
fn meaning(actual: &Actual) -> BTreeMap<FrontendKey, (Option<Vec<BackendKey>>, u32, u32)> {
    actual
        .frontends
        .iter()
        .map(|(key, value)| (*key, (actual.resolve(key), value.affinity_seconds, value.flags)))
        .collect()
}

fn wanted(desired: &Desired) -> BTreeMap<FrontendKey, (Option<Vec<BackendKey>>, u32, u32)> {
    desired
        .frontends
        .iter()
        .map(|(key, value)| {
            (*key, (desired.tables.get(&value.table).cloned(), value.affinity_seconds, value.flags))
        })
        .collect()
}

/// What differs, with all frontends of tables that differ, as an index tells it.
fn touched(old: &Desired, new: &Desired) -> Touched {
    fn differing<K: Ord + Clone, V: PartialEq>(old: &BTreeMap<K, V>, new: &BTreeMap<K, V>) -> BTreeSet<K> {
        old.keys().chain(new.keys()).filter(|key| old.get(*key) != new.get(*key)).cloned().collect()
    }
    let mut tables = differing(&old.tables, &new.tables);
    tables.extend(differing(&old.ranges, &new.ranges));
    tables.extend(differing(&old.lookups, &new.lookups));
    let mut frontends = differing(&old.frontends, &new.frontends);
    for (key, to) in old.frontends.iter().chain(&new.frontends) {
        if tables.contains(&to.table) {
            frontends.insert(*key);
        }
    }
    for to in frontends.iter().flat_map(|key| [old.frontends.get(key), new.frontends.get(key)]).flatten() {
        tables.insert(to.table.clone());
    }
    let backends = old.backends.keys().chain(new.backends.keys());
    let backends = backends.filter(|key| old.backends.get(key) != new.backends.get(key)).copied().collect();
    Touched { frontends, tables, backends }
}

fn assert_reached(actual: &Actual, desired: &Desired) {
    assert_eq!(meaning(actual), wanted(desired));
    let backends: HashMap<BackendKey, bool> = actual
        .backends
        .values()
        .map(|backend| (key_of(backend), backend.flags & BACKEND_DRAINING != 0))
        .collect();
    assert_eq!(backends, desired.backends);
    assert_eq!(backends.len(), actual.backends.len(), "no backend has two ids");
    let used: BTreeSet<SlotKey> = actual
        .frontends
        .values()
        .flat_map(|value| (0..value.count).map(|slot| SlotKey { table: value.table, slot }))
        .collect();
    assert_eq!(used, actual.slots.keys().copied().collect(), "no slot is left over");
    let mut tables = BTreeSet::new();
    for (key, to) in &desired.frontends {
        let expected = (to.flags & FRONTEND_SOURCE_RANGES != 0)
            .then(|| desired.ranges.get(&to.table).cloned().unwrap_or_default());
        assert_eq!(clients(actual, key), expected, "the clients of {key:?}");
        tables.insert(actual.frontends[key].table);
    }
    assert!(actual.ranges.iter().all(|key| tables.contains(&key.range.table)), "no range is left over");
    let lookups: BTreeMap<u32, u64> = desired
        .lookups
        .iter()
        .map(|(name, lookup)| {
            let to = desired.frontends.iter().find(|(_, to)| to.table == *name).expect("it is used").0;
            let id =
                |key: &BackendKey| actual.backends.iter().find(|(_, b)| key_of(b) == *key).map(|(id, _)| *id);
            (actual.frontends[to].table, made(lookup, &desired.tables[name], id).fingerprint())
        })
        .collect();
    assert_eq!(actual.lookups, lookups, "tables of consistent hashing");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn every_history_ends_where_it_should(
        steps in prop::collection::vec((any_desired(), prop::option::of(0..40_usize)), 1..6)
    ) {
        let mut actual = Actual::default();
        // What each frontend may lead to while it changes: its backends under any state not fully left behind.
        let mut past: Vec<Desired> = Vec::new();
        for (desired, stop) in &steps {
            past.push(desired.clone());
            let (ops, _) = plan(desired, &actual);
            for (index, op) in ops.iter().enumerate() {
                if stop.is_some_and(|stop| stop == index) {
                    break;
                }
                actual.apply(op);
                for key in actual.frontends.keys() {
                    if let Some(clients) = clients(&actual, key) {
                        let complete = past.iter().any(|state| {
                            state.frontends.get(key).is_some_and(|to| {
                                to.flags & FRONTEND_SOURCE_RANGES != 0
                                    && state.ranges.get(&to.table).is_none_or(|all| all.is_subset(&clients))
                            })
                        });
                        prop_assert!(complete, "{key:?} lacks clients after {op:?}");
                    }
                    let backends = actual.resolve(key);
                    prop_assert!(backends.is_some(), "{key:?} leads nowhere after {op:?}");
                    for backend in backends.unwrap_or_default() {
                        let meant = past.iter().any(|state| {
                            state.frontends.get(key).and_then(|to| state.tables.get(&to.table))
                                .is_some_and(|backends| backends.contains(&backend))
                        });
                        prop_assert!(meant, "{key:?} leads to another service's backend after {op:?}");
                    }
                }
            }
            if stop.is_none_or(|stop| stop >= ops.len()) {
                assert_reached(&actual, desired);
                prop_assert!(plan(desired, &actual).0.is_empty(), "nothing is left to do");
                past = vec![desired.clone()];
            }
        }
        let last = &steps.last().expect("one step at least").0;
        for op in plan(last, &actual).0 {
            actual.apply(&op);
        }
        assert_reached(&actual, last);
    }

    #[test]
    fn a_plan_of_the_changes_ends_where_that_of_all_does(
        steps in prop::collection::vec(any_desired(), 1..8),
    ) {
        let mut actual = Actual::default();
        let mut before = Desired::default();
        let mut ids = Ids::default();
        for (number, desired) in steps.iter().enumerate() {
            let ops = if number == 0 {
                let (ops, all) = plan(desired, &actual);
                ids = all;
                ops
            } else {
                plan_changes(desired, &actual, &touched(&before, desired), &mut ids)
            };
            for op in &ops {
                actual.apply(op);
                for key in actual.frontends.keys() {
                    let states = || [&before, desired].into_iter().filter_map(|state| {
                        Some((state, state.frontends.get(key)?))
                    });
                    if let Some(clients) = clients(&actual, key) {
                        prop_assert!(states().any(|(state, to)| {
                            to.flags & FRONTEND_SOURCE_RANGES != 0
                                && state.ranges.get(&to.table).is_none_or(|all| all.is_subset(&clients))
                        }), "{key:?} lacks clients after {op:?}");
                    }
                    let backends = actual.resolve(key);
                    prop_assert!(backends.is_some(), "{key:?} leads nowhere after {op:?}");
                    for backend in backends.unwrap_or_default() {
                        prop_assert!(states().any(|(state, to)| {
                            state.tables.get(&to.table).is_some_and(|backends| backends.contains(&backend))
                        }), "{key:?} leads to another service's backend after {op:?}");
                    }
                }
            }
            assert_reached(&actual, desired);
            prop_assert!(plan(desired, &actual).0.is_empty(), "nothing is left to do");
            let again = plan_changes(desired, &actual, &touched(&before, desired), &mut ids);
            prop_assert_eq!(again, [], "the ids are those of the maps");
            before = desired.clone();
        }
    }

    #[test]
    fn any_content_of_the_maps_is_repaired(
        desired in any_desired(),
        frontends in prop::collection::btree_map(1..6_u8, (0..4_u32, 0..4_u32), 0..5),
        slots in prop::collection::btree_map((0..4_u32, 0..4_u32), 0..9_u32, 0..8),
        backends in prop::collection::btree_map(0..9_u32, 1..9_u8, 0..8),
        ranges in prop::collection::btree_set((0..4_u32, 1..5_u8), 0..4),
        lookups in prop::collection::btree_map(0..4_u32, any::<u64>(), 0..3),
    ) {
        let mut actual = Actual {
            frontends: frontends.into_iter().map(|(number, (table, count))| {
                (frontend(number), FrontendValue { table, count, affinity_seconds: 0, flags: 0 })
            }).collect(),
            slots: slots.into_iter().map(|((table, slot), id)| (SlotKey { table, slot }, id)).collect(),
            backends: backends.into_iter().map(|(id, number)| {
                let key = backend(number);
                (id, Backend { address: key.address, port: key.port, protocol: key.protocol, flags: 0 })
            }).collect(),
            ranges: ranges.into_iter().map(|(table, number)| {
                SourceRangeKey::new(table, range(number).0, 112)
            }).collect(),
            lookups: lookups.into_iter().collect(),
        };
        for op in plan(&desired, &actual).0 {
            actual.apply(&op);
        }
        assert_reached(&actual, &desired);
    }

    #[test]
    fn an_endpoint_that_goes_disturbs_no_other_service(
        tables in prop::collection::vec(prop::collection::btree_set(1..9_u8, 1..5), 4),
        victim in 0..4_usize,
    ) {
        let lists = |tables: &[BTreeSet<u8>]| -> Vec<Vec<u8>> {
            tables.iter().map(|table| table.iter().copied().collect()).collect()
        };
        let frontends: BTreeMap<u8, u8> = (0..4).map(|number| (number + 1, number)).collect();
        let mut actual = Actual::default();
        for op in plan(&desired(&frontends, &lists(&tables), &BTreeSet::new()), &actual).0 {
            actual.apply(&op);
        }
        let before = actual.clone();
        let mut changed = tables.clone();
        let gone = *changed[victim].first().expect("one endpoint at least");
        changed[victim].remove(&gone);
        let own = before.frontends[&frontend(victim as u8 + 1)].table;
        for op in plan(&desired(&frontends, &lists(&changed), &BTreeSet::new()), &actual).0 {
            actual.apply(&op);
            match op {
                MapOp::PutFrontend(key, _) | MapOp::DeleteFrontend(key) =>
                    prop_assert_eq!(key, frontend(victim as u8 + 1)),
                MapOp::PutSlot(key, _) | MapOp::DeleteSlot(key) => prop_assert_eq!(key.table, own),
                MapOp::DeleteBackend(id) => prop_assert_eq!(key_of(&before.backends[&id]), backend(gone)),
                _ => prop_assert!(false, "nothing else changes"),
            }
        }
    }
}

#[test]
fn ids_survive_a_restart_and_are_not_reused_soon() {
    let one = desired(&[(1, 0), (2, 1)].into(), &[vec![1, 2], vec![3]], &BTreeSet::new());
    let mut actual = Actual::default();
    for op in plan(&one, &actual).0 {
        actual.apply(&op);
    }
    let id_of = |actual: &Actual, number: u8| {
        actual.backends.iter().find(|(_, value)| key_of(value) == backend(number)).map(|(id, _)| *id)
    };
    let kept = id_of(&actual, 3);
    let two = desired(&[(1, 0), (2, 1)].into(), &[vec![1, 4], vec![3]], &[2].into());
    let before = actual.clone();
    for op in plan(&two, &actual).0 {
        actual.apply(&op);
    }
    assert_eq!(id_of(&actual, 3), kept);
    assert_eq!(id_of(&actual, 2), id_of(&before, 2), "a draining backend stays for its connections");
    let fresh = id_of(&actual, 4).expect("the new backend has an id");
    assert!(!before.backends.contains_key(&fresh));
    assert_eq!(
        actual.frontends[&frontend(1)].table,
        before.frontends[&frontend(1)].table,
        "the table keeps its id"
    );
}
