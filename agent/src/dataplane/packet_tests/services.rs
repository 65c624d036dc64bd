//! Which clients reach which endpoints: policies, client ranges, affinity, host ports, SCTP, ports of translated sources.

use std::collections::BTreeSet;

use kelp_common::{AffinityKey, AffinityValue, Backend};

use super::*;
use crate::dataplane::maps::Stickiness;

#[test]
fn source_ranges_hold_for_every_client_of_the_load_balancers_address() {
    let rig = Rig::new();
    for (balancer, node, cluster, clients) in [
        (
            "203.0.113.13",
            "192.0.2.10",
            "10.96.0.13",
            [
                ("from_net", "198.51.100.9:5000", true),
                ("from_net", "198.51.99.9:5000", false),
                ("from_pod", "10.244.0.2:5000", true),
                ("from_pod", "10.244.0.3:5000", false),
            ],
        ),
        (
            "2001:db8:13::13",
            "2001:db8::10",
            "fd00:10:96::d",
            [
                ("from_net", "[2001:db8:9::9]:5000", true),
                ("from_net", "[2001:db8:a::9]:5000", false),
                ("from_pod", "[fd00:10:244::2]:5000", false),
                ("from_pod", "[fd00:10:244::3]:5000", false),
            ],
        ),
    ] {
        for (program, client, admitted) in clients {
            for sent in packets(client, &at(balancer, 80)) {
                let verdict = rig.run(program, &sent.bytes()).0;
                assert_eq!(verdict, if admitted { REDIRECT } else { DROP }, "{client} {balancer}");
            }
            // The ranges are the load balancer's affair, not that of other addresses.
            for address in [at(node, 30_013), at(cluster, 80)] {
                for sent in packets(client, &address) {
                    assert_eq!(rig.run(program, &sent.bytes()).0, REDIRECT, "{client} {address}");
                }
            }
        }
    }
    assert_eq!(rig.counted(counter::SOURCE_RANGE), 3 * 5);
}

#[test]
fn without_a_local_endpoint_local_traffic_is_dropped_and_other_traffic_is_not() {
    let rig = Rig::new();
    for (node, cluster, external, pod, outside) in [
        ("192.0.2.10", "10.96.0.14", "203.0.113.14", "10.244.0.2:4000", "198.51.100.9:5000"),
        ("2001:db8::10", "fd00:10:96::e", "2001:db8:13::14", "[fd00:10:244::2]:4000", "[2001:db8:9::9]:5000"),
    ] {
        for address in [at(node, 30_014), at(external, 80)] {
            for sent in packets(outside, &address) {
                assert_eq!(
                    rig.run("from_net", &sent.bytes()).0,
                    DROP,
                    "{address}: the policy of the outside"
                );
            }
            for sent in packets(pod, &address) {
                assert_eq!(
                    rig.run("from_pod", &sent.bytes()).0,
                    REDIRECT,
                    "{address}: a client in the cluster"
                );
            }
        }
        for sent in packets(pod, &at(cluster, 80)) {
            assert_eq!(rig.run("from_pod", &sent.bytes()).0, DROP, "{cluster}: the policy of the cluster");
        }
    }
    assert_eq!(rig.counted(counter::NO_LOCAL_ENDPOINT), 2 * 3 * 3);
    assert_eq!(rig.counted(counter::REFUSED), 0);
}

#[test]
fn ports_of_pods_on_the_node_are_reached_from_everywhere() {
    let rig = Rig::new();
    for [client, _, backend, node, outside, ..] in FAMILIES {
        for (program, source) in [("from_net", outside), ("from_pod", client)] {
            let sent = Frame::tcp(source, &at(node, 443), SYN);
            let arrived = rig.redirected(program, &sent);
            assert_eq!((arrived.source, arrived.destination.to_string()), (sent.source, at(backend, 8080)));
            let answered = rig.redirected("from_pod", &arrived.answer(SYN | ACK));
            assert_eq!((answered.source, answered.destination), (sent.destination, sent.source));
        }
    }
    // Another protocol is another port, and one of an address is of that address only.
    assert_eq!(rig.run("from_net", &Frame::udp("198.51.100.9:1", "192.0.2.10:443").bytes()).0, PASS);
    let sent = Frame::udp("198.51.100.9:1", "192.0.2.10:53");
    assert_eq!(rig.redirected("from_net", &sent).destination.to_string(), "10.244.0.3:8080");
    assert_eq!(rig.run("from_net", &Frame::udp("[2001:db8:9::9]:1", "[2001:db8::10]:53").bytes()).0, PASS);
}

#[test]
fn an_association_that_ends_makes_room_for_a_new_one() {
    let rig = Rig::new();
    let init = Frame::sctp("10.244.0.2:4000", "10.96.0.7:80", SYN);
    let arrived = rig.redirected("from_pod", &init);
    assert_eq!(arrived.payload, init.payload);
    rig.redirected("from_pod", &arrived.answer(SYN | ACK));
    // Payloads of every length: the checksum depends on it.
    for length in [0, 1, 3, 4, 255, 1_400] {
        let data = Frame { payload: vec![0xa5; length], flags: ACK, ..init.clone() };
        assert_eq!(rig.redirected("from_pod", &data).payload, data.payload);
    }
    rig.redirected("from_pod", &arrived.answer(RST));
    let flows: Table<FlowKey, FlowValue> = rig.table(kelp_common::maps::FLOWS);
    let mut closed = Vec::new();
    flows.scan(|_, value| closed.push(value.flags & kelp_common::flow::FLOW_CLOSED != 0)).unwrap();
    assert_eq!(closed, [true, true]);
    // Nothing behind a service: "port unreachable".
    let sent = Frame::sctp("10.244.0.2:4000", "10.96.0.8:80", SYN);
    let (verdict, packet) = rig.run("from_pod", &sent.bytes());
    assert_eq!(verdict, REDIRECT);
    assert_eq!(Error::read(&packet).about, (sent.source, sent.destination));
}

/// Writes what a client of `sticky` last used; returns the backends by id.
fn stay(rig: &Rig, client: &str, backend: &str, seconds_ago: u32) -> u32 {
    let clients: Table<AffinityKey, AffinityValue> = rig.table(kelp_common::maps::AFFINITIES);
    let backends: Table<u32, Backend> = rig.table(kelp_common::maps::BACKENDS);
    let mut id = 0;
    backends
        .scan(|key, value| {
            if IpAddr::from(value.address).to_string() == backend && value.protocol == TCP {
                id = *key;
            }
        })
        .unwrap();
    let client = Address::from(client.parse::<IpAddr>().unwrap());
    let mut keys = Vec::new();
    clients.scan(|key, _| keys.extend((key.client == client).then_some(*key))).unwrap();
    let used = sys::monotonic_seconds().wrapping_sub(seconds_ago);
    clients.put(&keys[0], &AffinityValue { backend: id, used }).unwrap();
    id
}

#[test]
fn a_client_stays_until_its_time_is_over() {
    let rig = Rig::new();
    let ask = |client: &str, port: u16| {
        let sent = Frame::tcp(&format!("{client}:{port}"), "192.0.2.10:30012", SYN);
        rig.redirected("from_net", &sent).destination.ip().to_string()
    };
    for backend in ["10.244.0.2", "10.244.0.3"] {
        ask("198.51.100.1", 1);
        stay(&rig, "198.51.100.1", backend, 10_790);
        for port in 1_000..1_010 {
            assert_eq!(ask("198.51.100.1", port + u16::from(backend.ends_with('3')) * 100), backend);
        }
        // Every use counts anew.
        let clients: Table<AffinityKey, AffinityValue> = rig.table(kelp_common::maps::AFFINITIES);
        let mut ages = Vec::new();
        clients.scan(|_, value| ages.push(sys::monotonic_seconds() - value.used)).unwrap();
        assert!(ages.iter().all(|age| *age < 1_000), "{ages:?}");
    }
    let chosen: BTreeSet<String> = (1..60)
        .map(|number| {
            let client = format!("198.51.100.{}", 100 + number);
            ask(&client, 1);
            stay(&rig, &client, "10.244.0.2", 10_801);
            ask(&client, 2)
        })
        .collect();
    assert_eq!(chosen.len(), 2, "all had stayed with one; their time was over");
}

#[test]
fn clients_do_not_stay_with_what_left_the_service() {
    let rig = Rig::new();
    Frame::tcp("198.51.100.1:1", "192.0.2.10:30012", SYN);
    rig.redirected("from_net", &Frame::tcp("198.51.100.1:1", "192.0.2.10:30012", SYN));
    let id = stay(&rig, "198.51.100.1", "10.244.0.2", 5);
    let clients: Table<AffinityKey, AffinityValue> = rig.table(kelp_common::maps::AFFINITIES);
    let keys = || {
        let mut keys = Vec::new();
        clients.scan(|key, _| keys.push(*key)).unwrap();
        keys
    };
    let table = keys()[0].table;
    let mut maps = KernelDatapath::open(&rig.kernel).unwrap();
    let keep = |tables: &[(u32, &[u32])]| -> Stickiness {
        tables.iter().map(|(table, ids)| (*table, ids.iter().copied().collect())).collect()
    };
    maps.retain_clients(&keep(&[(table, &[id])])).unwrap();
    assert_eq!(keys().len(), 1);
    // The endpoint still exists, for another service.
    maps.retain_clients(&keep(&[(table, &[id + 1]), (table + 1, &[id])])).unwrap();
    assert_eq!(keys().len(), 0);
}

#[test]
fn ports_of_translated_sources_run_out_loudly() {
    let rig = Rig::new();
    let config: Table<u32, NodeConfig> = rig.table(kelp_common::maps::NODE_CONFIG);
    let mut few = config.get(&0).unwrap().unwrap();
    few.tcp_port_max = few.tcp_port_min + 3;
    config.put(&0, &few).unwrap();
    let mut ports = BTreeSet::new();
    let mut dropped = 0;
    for port in 1..=40 {
        let sent = Frame::tcp(&format!("198.51.100.9:{port}"), "192.0.2.10:30010", SYN);
        let (verdict, packet) = rig.run("from_net", &sent.bytes());
        if verdict == REDIRECT {
            assert!(ports.insert(Frame::read(&packet).source.port()), "no port is given twice");
        } else {
            assert_eq!(verdict, DROP);
            dropped += 1;
        }
    }
    assert!(ports.len() <= 4 && dropped >= 36);
    assert_eq!(rig.counted(counter::NO_NAT_PORT), dropped);
    // Other destinations have ports of their own.
    assert_eq!(rig.run("from_pod", &Frame::tcp("10.244.0.2:1", "198.51.100.9:80", SYN).bytes()).0, REDIRECT);
}

#[test]
fn a_new_connection_from_a_used_port_does_not_follow_an_old_one_to_a_removed_backend() {
    let rig = Rig::new();
    let backends: Table<u32, Backend> = rig.table(kelp_common::maps::BACKENDS);
    for protocol in [TCP, UDP, SCTP] {
        let sent = match protocol {
            TCP => Frame::tcp("10.244.0.2:4000", "10.96.0.12:80", SYN),
            UDP => Frame::udp("10.244.0.2:4000", "10.96.0.12:80"),
            _ => Frame::sctp("10.244.0.2:4000", "10.96.0.12:80", SYN),
        };
        // To the pod that is not the client, so that nothing else is translated.
        let mut first = rig.redirected("from_pod", &sent);
        for port in 4_001.. {
            if first.destination.ip().to_string() == "10.244.0.3" || port > 4_000 {
                break;
            }
            first = rig.redirected("from_pod", &sent);
        }
        let gone = first.destination.ip();
        let mut ids = Vec::new();
        backends
            .scan(|id, value| {
                if IpAddr::from(value.address) == gone && value.protocol == protocol {
                    ids.push(*id);
                }
            })
            .unwrap();
        let id = ids[0];
        let value = backends.get(&id).unwrap().unwrap();
        backends.delete(&id).unwrap();
        // A segment of the old connection goes where it went, a new one does not.
        if protocol != UDP {
            let old = rig.redirected("from_pod", &Frame { flags: ACK, ..sent.clone() });
            assert_eq!(old.destination.ip(), gone);
        }
        let verdict = (0..20).map(|_| rig.run("from_pod", &sent.bytes())).collect::<Vec<_>>();
        for (verdict, packet) in verdict {
            if verdict == REDIRECT && packet[23] == protocol {
                let arrived = Frame::read(&packet);
                let refused = arrived.flags & RST != 0;
                assert!(refused || arrived.destination.ip() != gone, "protocol {protocol}");
            }
        }
        backends.put(&id, &value).unwrap();
    }
}
