//! Consistent hashing of clients outside the cluster.

use std::collections::{BTreeMap, BTreeSet};

use kelp_common::maglev::{flow_hash, place_of};
use kelp_model::maglev::{Maglev, Member};
use kelp_model::service::{BackendKey, Balancing};

use super::*;

const SIZE: u32 = 1_021;

/// Addresses of the endpoints of `many`.
const MANY: [[&str; 4]; 2] = [
    ["10.244.0.3", "10.244.1.5", "10.244.1.6", "10.244.1.7"],
    ["fd00:10:244::3", "fd00:10:244:1::5", "fd00:10:244:1::6", "fd00:10:244:1::7"],
];

fn many(name: &str, number: u8, endpoints: [&[&str]; 2]) -> (Service, Vec<serde_json::Value>) {
    objects(
        name,
        &format!("10.96.0.{number}"),
        &format!("fd00:10:96::{number:x}"),
        endpoints,
        8080,
        json!({"externalIPs": ["203.0.113.40", "2001:db8:13::40"]}),
    )
}

fn apply(index: &mut Index, (service, slices): (Service, Vec<serde_json::Value>)) {
    index.apply_service(&service);
    for slice in slices {
        index.apply_slice(&serde_json::from_value(slice).unwrap());
    }
}

/// A node that knew other services before, so that ids in its maps are others.
fn node(before: u8, consistent: bool) -> Rig {
    let mut index = Index::new("here").with_balancing(Balancing { consistent, table_size: SIZE });
    for number in 0..before {
        let (mut service, slices) = many(&format!("before{number}"), 100 + number, [&MANY[0], &MANY[1]]);
        service.spec.as_mut().unwrap().external_ips = None;
        apply(&mut index, (service, slices));
    }
    let mut rig = Rig::with(index);
    apply(&mut rig.index, many("many", 40, [&MANY[0], &MANY[1]]));
    rig.sync();
    rig
}

/// The backend that a first packet is led to.
fn led(rig: &Rig, sent: &Frame) -> String {
    rig.redirected("from_net", sent).destination.ip().to_string()
}

fn flows_of(client: &str, destination: &str) -> Vec<Frame> {
    let source = |port: u16| at(client, port);
    (1_000..1_040).flat_map(|port| packets(&source(port), destination)).collect()
}

#[test]
fn every_node_leads_a_flow_to_the_same_backend() {
    let (here, there) = (node(0, true), node(3, true));
    let families = [
        ("198.51.100.9", "192.0.2.10", "203.0.113.40"),
        ("2001:db8:9::9", "2001:db8::10", "2001:db8:13::40"),
    ];
    for ((client, node, external), endpoints) in families.into_iter().zip(MANY) {
        for (address, port) in [(node, 30_040), (external, 80)] {
            let mut used = BTreeSet::new();
            for sent in flows_of(client, &at(address, port)) {
                let backend = led(&here, &sent);
                assert_eq!(backend, led(&there, &sent), "{sent:?}");
                let member = |address: &&str| Member {
                    key: BackendKey {
                        address: Address::from(address.parse::<IpAddr>().unwrap()),
                        port: 8080_u16.to_be(),
                        protocol: sent.protocol,
                    },
                    weight: 1,
                    id: 1,
                };
                let table = Maglev::new(SIZE, endpoints.iter().map(member));
                let hash = flow_hash(
                    &Address::from(sent.source.ip()),
                    sent.source.port().to_be(),
                    port.to_be(),
                    sent.protocol,
                );
                let place = table.places()[place_of(hash, SIZE) as usize];
                let owner = IpAddr::from(table.members()[place as usize].key.address).to_string();
                assert_eq!(backend, owner, "the table of the model");
                used.insert(backend);
            }
            assert_eq!(used.len(), 4, "all take part");
        }
    }
}

#[test]
fn a_backend_that_goes_takes_its_own_flows_with_it_and_few_others() {
    let (mut old, mut new) = (node(0, true), node(0, true));
    let sent = flows_of("198.51.100.9", "192.0.2.10:30040");
    let before: Vec<String> = sent.iter().map(|sent| led(&old, sent)).collect();
    apply(&mut new.index, many("many", 40, [&MANY[0][..3], &MANY[1]]));
    new.sync();
    let after: Vec<String> = sent.iter().map(|sent| led(&new, sent)).collect();
    assert!(!after.contains(&MANY[0][3].to_owned()));
    let moved = before.iter().zip(&after).filter(|(old, new)| *old != MANY[0][3] && old != new).count();
    assert!(moved * 10 < sent.len(), "{moved} of {} flows of other backends", sent.len());
    // Flows that live stay where they are, also when the table is another.
    apply(&mut old.index, many("many", 40, [&MANY[0][1..], &MANY[1]]));
    old.sync();
    for (sent, before) in sent.iter().zip(&before).filter(|(sent, _)| sent.protocol != UDP) {
        assert_eq!(led(&old, &Frame { flags: ACK, ..sent.clone() }), *before);
    }
}

#[test]
fn endpoints_have_the_shares_that_the_service_gives_them() {
    let mut rig = node(0, true);
    let (mut service, slices) = many("many", 40, [&MANY[0], &MANY[1]]);
    let annotations: BTreeMap<String, String> =
        [("kelp.dev/endpoint-weights".to_owned(), "10.244.1.5=13, 10.244.1.6=0,x=2".to_owned())].into();
    service.metadata.annotations = Some(annotations);
    apply(&mut rig.index, (service, slices));
    rig.sync();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for port in 1_000..1_400 {
        *counts
            .entry(led(&rig, &Frame::tcp(&at("198.51.100.9", port), "192.0.2.10:30040", SYN)))
            .or_default() += 1;
    }
    let heavy = counts["10.244.1.5"];
    assert!((280..370).contains(&heavy), "13 of 16 shares of 400 flows: {counts:?}");
    assert_eq!(counts.len(), 4);
}

#[test]
fn a_service_says_for_itself_whether_it_is_hashed() {
    for (consistent, annotation) in [(true, "random"), (false, "maglev")] {
        let mut rig = node(0, consistent);
        let lookups = |rig: &Rig| KernelDatapath::open(&rig.kernel).unwrap().read().unwrap().lookups.len();
        let before = lookups(&rig);
        assert_eq!(before > 0, consistent);
        let (mut service, slices) = many("many", 40, [&MANY[0], &MANY[1]]);
        service.metadata.annotations =
            Some([("kelp.dev/load-balancing".to_owned(), annotation.to_owned())].into());
        apply(&mut rig.index, (service, slices));
        rig.sync();
        // Three protocols in two families.
        assert_eq!(lookups(&rig).abs_diff(before), 6);
    }
}

#[test]
fn a_client_that_stays_is_led_by_its_address_alone() {
    let (here, there) = (node(0, true), node(2, true));
    let mut used = BTreeSet::new();
    for number in 1..30 {
        let client = format!("198.51.100.{number}");
        let first = led(&here, &Frame::tcp(&at(&client, 1_000), "192.0.2.10:30012", SYN));
        for port in [2_000, 2_001] {
            assert_eq!(led(&there, &Frame::tcp(&at(&client, port), "192.0.2.10:30012", SYN)), first);
        }
        used.insert(first);
    }
    assert_eq!(used.len(), 2);
}

#[test]
fn without_room_for_a_table_a_service_is_served_all_the_same() {
    let rig = node(0, true);
    let mut maps = KernelDatapath::open(&rig.kernel).unwrap();
    let tables = maps.read().unwrap().lookups.into_keys();
    maps.apply(&tables.map(kelp_model::plan::MapOp::DeleteLookup).collect::<Vec<_>>()).unwrap();
    let used: BTreeSet<String> =
        flows_of("198.51.100.9", "192.0.2.10:30040").iter().map(|sent| led(&rig, sent)).collect();
    assert_eq!(used.len(), 4);
    rig.sync();
}

#[test]
fn a_full_map_of_tables_is_told_and_others_are_made() {
    let directory = PathBuf::from(format!("/sys/fs/bpf/dataplane-lookups-{}", std::process::id()));
    ensure_bpffs(&directory).unwrap();
    let kernel = Kernel::load_with(&directory, &[(kelp_common::maps::MAGLEV, 70)].into(), false).unwrap();
    let mut maps = KernelDatapath::open(&kernel).unwrap();
    let key = |number: u8| BackendKey { address: Address::v4(u32::from(number)), port: 1, protocol: TCP };
    let table = |number: u32| {
        let members = [1, 2].map(|id| Member { key: key(id), weight: 1, id: u32::from(id) });
        kelp_model::plan::MapOp::PutLookup(number, Maglev::new(251, members).into())
    };
    let ops: Vec<_> = (1..=100).map(table).collect();
    let refused = maps.apply(&ops).unwrap_err();
    assert_eq!(refused.done, 70);
    assert!(
        matches!(refused.error, crate::dataplane::DatapathError::Full { map } if map == kelp_common::maps::MAGLEV)
    );
    assert_eq!(maps.read().unwrap().lookups.len(), 70);
    // One that is there is replaced also in a full map, also by one of another size.
    let members = [1, 2, 3].map(|id| Member { key: key(id), weight: 1, id: u32::from(id) });
    let other = std::sync::Arc::new(Maglev::new(509, members));
    maps.apply(&[kelp_model::plan::MapOp::PutLookup(7, other.clone())]).unwrap();
    assert_eq!(maps.read().unwrap().lookups[&7], other.fingerprint());
    // More room, for all that there was.
    drop(maps);
    drop(kernel);
    let kernel = Kernel::load_with(&directory, &[(kelp_common::maps::MAGLEV, 128)].into(), false).unwrap();
    let mut maps = KernelDatapath::open(&kernel).unwrap();
    assert_eq!(maps.read().unwrap().lookups.len(), 70);
    maps.apply(&ops[70..]).unwrap();
    assert_eq!(maps.read().unwrap().lookups.len(), 100);
    cleanup(&directory).unwrap();
}
