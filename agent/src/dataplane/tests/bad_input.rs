//! What somebody wrote by mistake, or too much of: it is told, and the rest of the dataplane does not notice.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kelp_common::maps;
use kube::runtime::watcher::Event;
use serde_json::json;

use super::*;
use crate::dataplane::events::About;
use crate::dataplane::reconciler::Change;
use crate::dataplane::view::{self, Filter, Pins};

/// Endpoints of one Service.
const MANY: u32 = 100_000;
/// Endpoints of one slice, the most that the API takes.
const PER_SLICE: u32 = 1_000;
/// First address of so many endpoints; see [`crowd`].
const CROWD: u32 = u32::from_be_bytes([10, 128, 0, 0]);

/// A Service of TCP only.
fn tcp(name: &str, address: &str) -> Service {
    let mut service = service(name, &[address], 0);
    let ports = service.spec.as_mut().unwrap().ports.as_mut().unwrap();
    ports.retain(|port| port.protocol.as_deref() == Some("TCP"));
    service
}

/// The slices of `crowd` with so many endpoints. All are alive: addresses of the outside.
fn crowd(world: &World, count: u32) -> Vec<EndpointSlice> {
    world.outside.ip("route add local 10.128.0.0/15 dev lo");
    serve_tcp(&world.outside, at("0.0.0.0", 8090), "crowd");
    let numbers: Vec<u32> = (0..count).collect();
    numbers
        .chunks(PER_SLICE as usize)
        .enumerate()
        .map(|(number, chunk)| {
            let addresses: Vec<IpAddr> =
                chunk.iter().map(|number| Ipv4Addr::from(CROWD + number).into()).collect();
            let mut slice = slice("crowd", &addresses, 8090);
            slice.metadata.name = Some(format!("crowd-{number}"));
            slice.ports.as_mut().unwrap().retain(|port| port.protocol.as_deref() == Some("TCP"));
            slice
        })
        .collect()
}

/// [`eventually`] for what is much work on a busy machine, and to look at: it is looked at now and then only.
fn at_last(what: &str, mut done: impl FnMut() -> bool) {
    let started = std::time::Instant::now();
    while !done() {
        assert!(started.elapsed() < Duration::from_secs(240), "{what} has not happened");
        std::thread::park_timeout(Duration::from_millis(500));
    }
}

/// How many endpoints the kernel's maps have for a Service's address.
fn endpoints_of(world: &World, name: &str) -> usize {
    let filter = Filter { service: Some(format!("default/{name}")), ..Filter::default() };
    let rows = view::services(&Pins::new(&world.config.bpf_directory), &filter).unwrap();
    rows.iter().map(|row| row.count as usize).sum()
}

/// The services of [`world`] work on both paths, and from outside.
fn rest_works(world: &World) {
    let client = &world.pods[0].net;
    let body = || {
        assert_both(&spread(|| ask_tcp(at(WEB4, 80)), 40).0, "the rest");
        assert_eq!(ask_tcp(at(EMPTY4, 80)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    };
    client.run(body);
    world.with_sockets(client, body);
    world.outside.run(|| assert_both(&spread(|| ask_tcp(at(NODE4, 30080)), 40).0, "the rest, from outside"));
}

#[test]
fn of_two_services_with_one_node_port_the_older_has_it() {
    let world = world();
    let of = |name: &str, address: &str, created: &str| {
        let mut service = service(name, &[address], 30_090);
        service.metadata.creation_timestamp = serde_json::from_value(json!(created)).unwrap();
        service
    };
    let (older, younger) = (
        of("older", "10.96.0.30", "2026-01-01T00:00:00Z"),
        of("younger", "10.96.0.31", "2026-01-02T00:00:00Z"),
    );
    world.tell(Change::Service(Event::Apply(younger.clone())));
    world.tell(Change::Service(Event::Apply(older.clone())));
    for (name, pod) in [("older", 0), ("younger", 1)] {
        world.tell(Change::Slice(Event::Apply(slice(name, &[world.pods[pod].v4], 8080))));
    }
    let event = world.event();
    assert_eq!(event.reason, "PortConflict");
    assert!(
        matches!(&event.about, About::Service(name) if name.to_string() == "default/younger"),
        "{event:?}"
    );
    assert!(event.note.contains("30090") && event.note.contains("default/older"), "{}", event.note);
    let node_port = || world.outside.run(|| ask_tcp(at(NODE4, 30_090)).ok().map(|(name, _)| name));
    let own = |address: &str| world.pods[1].net.run(|| ask_tcp(at(address, 80)).ok().map(|(name, _)| name));
    eventually("the older one is served", || node_port().as_deref() == Some("one"));
    eventually("by its own address the younger one, too", || own("10.96.0.31").as_deref() == Some("two"));
    assert_eq!(own("10.96.0.30").as_deref(), Some("one"));
    rest_works(&world);
    world.tell(Change::Service(Event::Delete(older)));
    eventually("the younger one inherits", || node_port().as_deref() == Some("two"));
    rest_works(&world);
}

/// A Service may have endpoints outside the cluster: those are served. Addresses that no endpoint may have are left out.
#[test]
fn endpoints_outside_any_range_of_pods() {
    let world = world();
    world.tell(Change::Service(Event::Apply(service("afar", &["10.96.0.32"], 30_092))));
    let odd = ["127.0.0.1", "224.0.0.1", "0.0.0.0"];
    let addresses: Vec<IpAddr> = odd.iter().chain(&[OUTSIDE4]).map(|text| text.parse().unwrap()).collect();
    world.tell(Change::Slice(Event::Apply(slice("afar", &addresses, 7000))));
    let client = &world.pods[0].net;
    let ask = || ask_tcp(at("10.96.0.32", 80)).is_ok_and(|(name, _)| name == "outside");
    eventually("the one that may be is served", || client.run(ask));
    for _ in 0..20 {
        assert!(client.run(ask) && world.with_sockets(client, ask));
    }
    rest_works(&world);
}

#[test]
fn a_hundred_thousand_endpoints_of_one_service() {
    let world = world();
    let slices = crowd(&world, MANY);
    world.tell(Change::Service(Event::Apply(tcp("crowd", "10.96.0.33"))));
    for slice in &slices {
        world.tell(Change::Slice(Event::Apply(slice.clone())));
    }
    at_last("all endpoints are in the maps", || endpoints_of(&world, "crowd") == MANY as usize);
    let client = &world.pods[0].net;
    let ask = || assert_eq!(ask_tcp(at("10.96.0.33", 80)).unwrap().0, "crowd");
    for _ in 0..40 {
        client.run(ask);
        world.with_sockets(client, ask);
    }
    rest_works(&world);
    // What changes of the others is not held up.
    world.tell(Change::Slice(Event::Apply(slice("solo", &[world.pods[1].v4], 8080))));
    at_last("a change beside them", || {
        client.run(|| ask_tcp(at("10.96.0.11", 80)).is_ok_and(|(name, _)| name == "two"))
    });
    for slice in slices.iter().skip(1) {
        world.tell(Change::Slice(Event::Delete(slice.clone())));
    }
    at_last("one slice is left", || endpoints_of(&world, "crowd") == PER_SLICE as usize);
    client.run(ask);
}

#[test]
fn more_endpoints_than_there_is_room_for() {
    let mut world = world();
    world.kill();
    world.config.map_sizes.insert(maps::BACKENDS, 5 * PER_SLICE);
    start(&world);
    let slices = crowd(&world, 10 * PER_SLICE);
    world.tell(Change::Service(Event::Apply(tcp("crowd", "10.96.0.33"))));
    for slice in &slices {
        world.tell(Change::Slice(Event::Apply(slice.clone())));
    }
    at_last("the map is full", || {
        let full = format!("kelp_dataplane_map_full_total{{map=\"{}\"}}", maps::BACKENDS);
        world.dataplane().metrics().contains(&full)
    });
    let event = world.event();
    assert_eq!((&event.about, event.reason), (&About::Node, "DataplaneMapFull"));
    assert!(event.note.contains(maps::BACKENDS), "{}", event.note);
    rest_works(&world);
    // Room comes; the Service is served with what is left of it.
    for slice in slices.iter().skip(1) {
        world.tell(Change::Slice(Event::Delete(slice.clone())));
    }
    at_last("what is left is served", || {
        endpoints_of(&world, "crowd") == PER_SLICE as usize
            && world.pods[0].net.run(|| ask_tcp(at("10.96.0.33", 80)).is_ok())
    });
    rest_works(&world);
}
