use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Endpoints, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::controllers::endpointslice::{MANAGED_BY, SERVICE_NAME, Writes};

fn endpoints(subsets: Value) -> Endpoints {
    serde_json::from_value(json!({
        "metadata": {"name": "db", "namespace": "n", "uid": "u1", "labels": {"team": "x"}, "annotations": {
            "note": "kept", "kubectl.kubernetes.io/last-applied-configuration": "{}",
            "endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:00Z"}},
        "subsets": subsets,
    }))
    .unwrap()
}

fn groups(endpoints: &Endpoints) -> Vec<crate::controllers::endpointslice::Group> {
    mirrored(endpoints, MAX_ADDRESSES).groups
}

/// A server that names slices, to apply writes to.
#[derive(Default)]
struct Server {
    slices: BTreeMap<String, EndpointSlice>,
    named: usize,
}

impl Server {
    fn existing(&self) -> Vec<EndpointSlice> {
        self.slices.values().cloned().collect()
    }

    /// Mirrors some Endpoints; numbers of slices created, updated and deleted.
    fn mirror(&mut self, endpoints: &Endpoints) -> (usize, usize, usize) {
        let writes = reconcile(endpoints, &groups(endpoints), &self.existing());
        let counts = (writes.create.len(), writes.update.len(), writes.delete.len());
        for slice in writes.delete {
            assert!(self.slices.remove(slice.metadata.name.as_deref().unwrap()).is_some());
        }
        for slice in writes.update {
            let name = slice.metadata.name.clone().unwrap();
            let old = self.slices.insert(name, slice.clone()).unwrap();
            assert_eq!(old.address_type, slice.address_type, "the server does not let it change");
        }
        for mut slice in writes.create {
            self.named += 1;
            let name = format!("{}{:04}", slice.metadata.generate_name.take().unwrap(), self.named);
            slice.metadata.name = Some(name.clone());
            self.slices.insert(name, slice);
        }
        counts
    }

    fn only(&self) -> &EndpointSlice {
        assert_eq!(self.slices.len(), 1);
        self.slices.values().next().unwrap()
    }
}

#[test]
fn what_is_mirrored() {
    let with = |meta: Value| -> Endpoints { serde_json::from_value(json!({"metadata": meta})).unwrap() };
    assert!(wants_mirror(&with(json!({}))));
    assert!(!wants_mirror(&with(json!({"labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}}))));
    assert!(wants_mirror(&with(json!({"labels": {"endpointslice.kubernetes.io/skip-mirror": "false"}}))));
    assert!(!wants_mirror(&with(json!({"annotations": {"control-plane.alpha.kubernetes.io/leader": "{}"}}))));
    let service = |spec: Value| -> Service { serde_json::from_value(json!({"spec": spec})).unwrap() };
    assert!(has_own_endpoints(&service(json!({"ports": [{"port": 80}]}))));
    assert!(has_own_endpoints(&service(json!({"selector": {}}))));
    assert!(!has_own_endpoints(&service(json!({"selector": {"app": "w"}}))));
}

#[test]
fn a_subset_becomes_a_group_a_family() {
    let reference = json!({"kind": "Pod", "namespace": "n", "name": "p", "uid": "p"});
    let found = groups(&endpoints(json!([{
        "addresses": [{"ip": "10.0.0.2", "nodeName": "w1"}, {"ip": "fd00::00:1", "hostname": "h"}],
        "notReadyAddresses": [{"ip": "10.0.0.1", "targetRef": reference}, {"ip": "::ffff:10.0.0.3"}],
        "ports": [{"port": 80, "protocol": "TCP"}, {"name": "b", "port": 53, "protocol": "UDP", "appProtocol": "dns"}],
    }])));
    let value: Vec<Value> = found.iter().map(|g| json!([g.address_type, g.ports, g.endpoints])).collect();
    let ports = json!([{"name": "", "port": 80, "protocol": "TCP"},
                       {"name": "b", "port": 53, "protocol": "UDP", "appProtocol": "dns"}]);
    assert_eq!(
        value,
        [
            json!(["IPv4", ports, [
                {"addresses": ["10.0.0.2"], "conditions": {"ready": true}, "nodeName": "w1"},
                {"addresses": ["10.0.0.1"], "conditions": {"ready": false}, "targetRef": reference},
                {"addresses": ["10.0.0.3"], "conditions": {"ready": false}}]]),
            json!(["IPv6", ports, [
                {"addresses": ["fd00::1"], "conditions": {"ready": true}, "hostname": "h"}]]),
        ]
    );
}

#[test]
fn subsets_with_the_same_addresses_or_the_same_port_are_one() {
    let port = |n: u16| json!([{"port": n, "protocol": "TCP"}]);
    let addresses = json!([{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}]);
    let together = groups(&endpoints(json!([
        {"addresses": addresses, "ports": port(80)}, {"addresses": addresses, "ports": port(443)},
    ])));
    let ports: Vec<_> =
        together.iter().map(|g| g.ports.iter().filter_map(|p| p.port).collect::<Vec<_>>()).collect();
    assert_eq!(ports, [[80, 443]]);
    // Not ready anywhere is not ready.
    let mixed = groups(&endpoints(json!([
        {"addresses": [{"ip": "10.0.0.1"}], "ports": port(80)},
        {"notReadyAddresses": [{"ip": "10.0.0.1"}], "addresses": [{"ip": "010.0.0.02"}], "ports": port(80)},
    ])));
    let ready: Vec<_> = mixed[0]
        .endpoints
        .iter()
        .map(|e| (e.addresses[0].as_str(), e.conditions.as_ref().unwrap().ready.unwrap()))
        .collect();
    assert_eq!((mixed.len(), ready), (1, vec![("10.0.0.2", true), ("10.0.0.1", false)]));
    let no_ports = groups(&endpoints(json!([{"addresses": addresses}])));
    assert_eq!((no_ports.len(), no_ports[0].ports.len(), no_ports[0].endpoints.len()), (1, 0, 2));
}

#[test]
fn too_many_and_invalid_addresses_are_counted() {
    let list = |from: usize, to: usize| -> Vec<Value> {
        (from..to).map(|i| json!({"ip": format!("10.0.{}.{}", i / 250, i % 250)})).collect()
    };
    let mut ready = list(0, 3);
    ready.push(json!({"ip": "nowhere"}));
    ready.push(json!({"ip": "1.2.3.400"}));
    let found = mirrored(&endpoints(json!([{"addresses": ready, "notReadyAddresses": list(3, 9)}])), 5);
    assert_eq!((found.invalid, found.skipped), (2, 6));
    let ready: Vec<_> =
        found.groups[0].endpoints.iter().map(|e| e.conditions.as_ref().unwrap().ready.unwrap()).collect();
    assert_eq!(ready, [true, true, true, false, false]);
    let all = mirrored(&endpoints(json!([{"addresses": list(0, 1000)}])), MAX_ADDRESSES);
    assert_eq!((all.groups[0].endpoints.len(), all.skipped), (1000, 0));
}

#[test]
fn a_slice_carries_what_the_endpoints_carry() {
    let mut server = Server::default();
    let one = json!([{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80, "protocol": "TCP"}]}]);
    let mut db = endpoints(one);
    assert_eq!(server.mirror(&db), (1, 0, 0));
    let meta = server.only().metadata.clone();
    assert!(meta.name.as_deref().unwrap().starts_with("db-"));
    assert_eq!(
        serde_json::to_value(&meta.labels).unwrap(),
        json!({"team": "x", SERVICE_NAME: "db", MANAGED_BY: "endpointslicemirroring-controller.k8s.io"})
    );
    assert_eq!(serde_json::to_value(&meta.annotations).unwrap(), json!({"note": "kept"}));
    assert_eq!(
        serde_json::to_value(&meta.owner_references).unwrap(),
        json!([{"apiVersion": "v1", "kind": "Endpoints", "name": "db", "uid": "u1", "controller": true,
                "blockOwnerDeletion": true}])
    );
    assert_eq!(server.mirror(&db), (0, 0, 0));
    db.metadata.annotations.as_mut().unwrap().remove("note");
    assert_eq!(server.mirror(&db), (0, 1, 0));
    assert_eq!(server.only().metadata.annotations, None);
    db.metadata.labels = None;
    assert_eq!(server.mirror(&db), (0, 1, 0));
    assert_eq!(server.only().metadata.labels.as_ref().unwrap().len(), 2);
    db.metadata.uid = Some("u2".into());
    assert_eq!(server.mirror(&db), (0, 1, 0), "the Endpoints were made anew");
    assert_eq!(server.only().metadata.owner_references.as_ref().unwrap()[0].uid, "u2");
}

#[test]
fn only_what_differs_is_written() {
    let mut server = Server::default();
    let reference =
        |version: &str| json!({"kind": "Pod", "namespace": "n", "name": "p", "resourceVersion": version});
    let with = |ip: &str, port: u16, version: &str| {
        endpoints(json!([{"addresses": [{"ip": ip, "targetRef": reference(version)}, {"ip": "10.0.0.9"}],
                          "ports": [{"port": port, "protocol": "TCP"}]}]))
    };
    server.mirror(&with("10.0.0.1", 80, "1"));
    for slice in server.slices.values_mut() {
        slice.endpoints.as_mut().unwrap().reverse();
    }
    assert_eq!(server.mirror(&with("10.0.0.1", 80, "2")), (0, 0, 0), "order and versions mean nothing");
    assert_eq!(server.mirror(&with("10.0.0.2", 80, "2")), (0, 1, 0));
    assert_eq!(server.mirror(&with("10.0.0.2", 81, "2")), (0, 1, 0), "the slice is written over");
    assert_eq!(server.only().ports.as_ref().unwrap()[0].port, Some(81));

    // One that somebody doubled goes, and one that lists an address twice is put right.
    let mut double = server.only().clone();
    double.metadata.name = Some("double".into());
    server.slices.insert("double".into(), double);
    assert_eq!(server.mirror(&with("10.0.0.2", 81, "2")), (0, 0, 1));
    for slice in server.slices.values_mut() {
        let list = slice.endpoints.as_mut().unwrap();
        list[1] = list[0].clone();
    }
    assert_eq!(server.mirror(&with("10.0.0.2", 81, "2")), (0, 1, 0));

    // Endpoints on their way out get no new slices; without addresses there are none.
    let mut both = endpoints(json!([{"addresses": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]}]));
    both.metadata.deletion_timestamp = Some(serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap());
    assert_eq!(server.mirror(&both), (0, 1, 0));
    assert_eq!(server.only().address_type, "IPv4");
    assert_eq!(server.mirror(&endpoints(json!([]))), (0, 0, 1));
    assert_eq!(reconcile(&endpoints(json!(null)), &[], &[]), Writes::default());
}

/// An address of one of two families, a port, and whether it is ready.
type Entry = (u8, bool, u8, bool);

fn subset_of(entries: &[Entry]) -> Vec<Value> {
    entries
        .iter()
        .map(|(i, v6, port, ready)| {
            let ip = if *v6 { format!("fd00::{i:x}") } else { format!("10.0.0.{i}") };
            let list = if *ready { "addresses" } else { "notReadyAddresses" };
            json!({list: [{"ip": ip}], "ports": [{"port": 8000 + u16::from(*port % 3), "protocol": "TCP"}]})
        })
        .collect()
}

/// Everything an observer of slices sees: (address, port, ready).
fn seen(slices: &[EndpointSlice]) -> BTreeSet<(String, i32, bool)> {
    slices
        .iter()
        .flat_map(|slice| {
            slice.ports.iter().flatten().flat_map(move |port| {
                slice.endpoints.iter().flatten().map(move |e| {
                    let ready = e.conditions.as_ref().and_then(|c| c.ready).unwrap();
                    (e.addresses[0].clone(), port.port.unwrap(), ready)
                })
            })
        })
        .collect()
}

proptest! {
    #[test]
    fn slices_follow_the_endpoints(
        states in prop::collection::vec(
            prop::collection::vec((0u8..20, any::<bool>(), any::<u8>(), any::<bool>()), 0..40), 1..6),
        turn in any::<prop::sample::Index>(),
    ) {
        let mut server = Server::default();
        for entries in states {
            let written = subset_of(&entries);
            server.mirror(&endpoints(json!(written)));
            // Not ready anywhere is not ready.
            let mut wanted: BTreeMap<(String, i32), bool> = BTreeMap::new();
            for (i, v6, port, ready) in &entries {
                let ip = if *v6 { format!("fd00::{i:x}") } else { format!("10.0.0.{i}") };
                *wanted.entry((ip.parse::<std::net::IpAddr>().unwrap().to_string(), 8000 + i32::from(*port % 3))).or_insert(true) &= *ready;
            }
            let wanted: BTreeSet<_> = wanted.into_iter().map(|((ip, port), ready)| (ip, port, ready)).collect();
            prop_assert_eq!(seen(&server.existing()), wanted);
            // However it is written down, there is nothing more to do.
            let mut turned = written;
            if !turned.is_empty() {
                let by = turn.index(turned.len());
                turned.rotate_left(by);
            }
            prop_assert_eq!(server.mirror(&endpoints(json!(turned))), (0, 0, 0));
            for slice in server.slices.values() {
                let list = slice.endpoints.as_ref().unwrap();
                prop_assert!(!list.is_empty() && list.len() <= MAX_ADDRESSES);
                let v6 = slice.address_type == "IPv6";
                prop_assert!(list.iter().all(|e| e.addresses[0].contains(':') == v6));
            }
        }
        server.mirror(&endpoints(json!([])));
        prop_assert!(server.slices.is_empty());
    }
}
