//! Ports of translated sources: whom they are given to, and when again.
//!
//! The end of a connection that closes it first (TCP: TIME-WAIT, RFC 9293, 3.6.1) may refuse a new one from the same
//! address and port for a minute, and the client waits a second for its next try.

use std::collections::{BTreeMap, BTreeSet};

use kelp_common::flow::{FLOW_CLOSED, FLOW_REPLY};

use super::*;
use crate::dataplane::collector::Collector;

const NODE_PORT: &str = "192.0.2.10:30010";

/// A rig with this many ports for translated sources.
fn with_ports(count: u16) -> Rig {
    let rig = Rig::new();
    let config: Table<u32, NodeConfig> = rig.table(kelp_common::maps::NODE_CONFIG);
    let mut few = config.get(&0).unwrap().unwrap();
    few.tcp_port_max = few.tcp_port_min + count - 1;
    config.put(&0, &few).unwrap();
    rig
}

fn client(port: u16) -> String {
    format!("198.51.100.9:{port}")
}

/// Opens a connection through the node; returns what the backend sees, or nothing if it was dropped.
fn open(rig: &Rig, port: u16) -> Option<Frame> {
    let (verdict, packet) = rig.run("from_net", &Frame::tcp(&client(port), NODE_PORT, SYN).bytes());
    (verdict == REDIRECT).then(|| {
        let arrived = Frame::read(&packet);
        rig.redirected("from_net", &arrived.answer(SYN | ACK));
        arrived
    })
}

/// Ends a connection as a server does that closes first.
fn close(rig: &Rig, port: u16, arrived: &Frame) {
    rig.redirected("from_net", &arrived.answer(FIN | ACK));
    rig.redirected("from_net", &Frame::tcp(&client(port), NODE_PORT, FIN | ACK));
    rig.redirected("from_net", &arrived.answer(ACK));
}

fn entries(rig: &Rig) -> BTreeMap<(String, String), (FlowKey, FlowValue)> {
    let mut entries = BTreeMap::new();
    let end = |address: Address, port: u16| at(&IpAddr::from(address).to_string(), u16::from_be(port));
    rig.table::<FlowKey, FlowValue>(kelp_common::maps::FLOWS)
        .scan(|key, value| {
            let ends = (end(key.source, key.source_port), end(key.destination, key.destination_port));
            entries.insert(ends, (*key, *value));
        })
        .unwrap();
    entries
}

/// Makes both directions of a connection look as if their last packet came longer ago.
fn age(rig: &Rig, arrived: &Frame, seconds: u32) {
    let flows: Table<FlowKey, FlowValue> = rig.table(kelp_common::maps::FLOWS);
    let reply = (arrived.destination.to_string(), arrived.source.to_string());
    let (key, mut value) = entries(rig)[&reply];
    let peer = value.reverse_key(key.protocol);
    let mut forward = flows.get(&peer).unwrap().unwrap();
    value.expires -= seconds;
    forward.expires -= seconds;
    flows.put(&key, &value).unwrap();
    flows.put(&peer, &forward).unwrap();
}

#[test]
fn a_port_rests_while_the_backend_may_remember_its_last_connection() {
    let rig = with_ports(8);
    let first = open(&rig, 1).unwrap();
    close(&rig, 1, &first);
    let mut ports = BTreeSet::from([first.source.port()]);
    for port in 2..=8 {
        let next = open(&rig, port).unwrap();
        assert!(ports.insert(next.source.port()), "port {} is used again", next.source.port());
    }
    // All others are in use: rather this one than none.
    assert_eq!(open(&rig, 9).unwrap().source, first.source);
    assert!(open(&rig, 10).is_none());
    assert_eq!(rig.counted(counter::NO_NAT_PORT), 1);
}

#[test]
fn a_closed_connection_keeps_its_port_for_a_minute() {
    let rig = with_ports(1);
    let first = open(&rig, 1).unwrap();
    close(&rig, 1, &first);
    let now = sys::monotonic_seconds();
    for (_, value) in entries(&rig).values() {
        assert!(value.flags & FLOW_CLOSED != 0);
        assert!((59..=60).contains(&(value.expires - now)), "{} s", value.expires - now);
    }
    // One whose source stays as it is has no port to keep.
    let sent = Frame::tcp(&client(2), "192.0.2.10:30007", SYN);
    let local = rig.redirected("from_net", &sent);
    rig.redirected("from_pod", &local.answer(RST));
    let (_, value) = entries(&rig)[&(client(2), "192.0.2.10:30007".to_owned())];
    assert!(value.expires - sys::monotonic_seconds() <= 10);
}

#[test]
fn of_the_ports_that_rest_the_one_is_taken_that_does_for_longest() {
    let rig = with_ports(8);
    let mut connections = BTreeMap::new();
    for port in 1..=8 {
        let arrived = open(&rig, port).unwrap();
        close(&rig, port, &arrived);
        connections.insert(port, arrived);
    }
    // In an order that is not that of the ports.
    for (port, arrived) in &connections {
        age(&rig, arrived, 20 + u32::from(port * 3 % 8));
    }
    for port in [5, 2, 7, 4] {
        let next = open(&rig, 100 + port).unwrap();
        assert_eq!(next.source, connections[&port].source, "that of connection {port}");
    }
}

#[test]
fn late_packets_of_a_closed_connection_do_not_touch_the_next_one_from_its_port() {
    for late in [FIN | ACK, RST, ACK, RST | ACK] {
        let rig = with_ports(1);
        let first = open(&rig, 1).unwrap();
        close(&rig, 1, &first);
        let second = open(&rig, 2).unwrap();
        assert_eq!(second.source, first.source);
        let before = entries(&rig);
        // The old connection is none any more: its packets are not put into the new one.
        let (verdict, packet) = rig.run("from_net", &Frame::tcp(&client(1), NODE_PORT, late).bytes());
        if verdict == REDIRECT {
            assert_ne!(Frame::read(&packet).source, second.source, "flags {late}");
        }
        let after = entries(&rig);
        for (key, value) in before {
            let now = after[&key].1;
            assert_eq!(now.flags & FLOW_CLOSED, 0, "flags {late}: {key:?} is closed now");
            assert_eq!((now.source, now.source_port), (value.1.source, value.1.source_port));
        }
        assert!(open(&rig, 3).is_none(), "the port is in use");
        let answer = rig.redirected("from_net", &second.answer(ACK));
        assert_eq!(answer.destination.to_string(), client(2));
    }
}

#[test]
fn late_answers_of_a_closed_connection_do_not_touch_the_next_one_of_its_client() {
    for late in [FIN | ACK, RST, ACK, RST | ACK] {
        let rig = with_ports(8);
        let first = open(&rig, 1).unwrap();
        close(&rig, 1, &first);
        // The client uses its port again.
        let second = open(&rig, 1).unwrap();
        assert_ne!(second.source, first.source, "not from the port that rests");
        rig.run("from_net", &first.answer(late).bytes());
        let (_, forward) = entries(&rig)[&(client(1), NODE_PORT.to_owned())];
        assert_eq!(forward.flags & (FLOW_CLOSED | FLOW_REPLY), 0, "flags {late}");
        // A repeated SYN goes where the first one went.
        let again = rig.redirected("from_net", &Frame::tcp(&client(1), NODE_PORT, SYN));
        assert_eq!((again.source, again.destination), (second.source, second.destination));
    }
}

#[test]
fn a_port_is_in_use_while_only_one_direction_speaks() {
    let rig = with_ports(1);
    let first = open(&rig, 1).unwrap();
    let flows: Table<FlowKey, FlowValue> = rig.table(kelp_common::maps::FLOWS);
    let (key, mut value) = entries(&rig)[&(first.destination.to_string(), first.source.to_string())];
    // The backend has been silent for long, the client has not.
    value.expires = sys::monotonic_seconds() - 1;
    flows.put(&key, &value).unwrap();
    assert!(open(&rig, 2).is_none());
    assert_eq!(rig.redirected("from_net", &first.answer(ACK)).destination.to_string(), client(1));
}

#[test]
fn a_connection_that_begins_while_flows_are_collected_stays() {
    let rig = with_ports(8);
    let first = open(&rig, 1).unwrap();
    close(&rig, 1, &first);
    age(&rig, &first, 100);
    let collector = Collector::open(&rig.kernel, std::sync::Arc::default()).unwrap();
    let gone = BTreeSet::new();
    let (dead, all) = collector.find_dead(&gone).unwrap();
    assert_eq!((dead.len(), all), (2, 2));
    // The client uses its port again before the old flow is removed.
    let second = open(&rig, 1).unwrap();
    assert_eq!(collector.remove_found(&dead, &gone).unwrap(), 1, "the other direction of the old flow");
    let next = rig.redirected("from_net", &Frame::tcp(&client(1), NODE_PORT, ACK));
    assert_eq!((next.source, next.destination), (second.source, second.destination));
    assert_eq!(entries(&rig).len(), 2);
    // Of pods that are gone everything goes.
    let gone = BTreeSet::from([Address::from(second.destination.ip())]);
    let (dead, _) = collector.find_dead(&gone).unwrap();
    assert_eq!(collector.remove_found(&dead, &gone).unwrap(), 2);
}
