//! The XDP program beside the classifier that does the same: whatever it sends comes out of both with the same bytes, and
//! whatever it leaves it has not touched.

use std::fs;
use std::time::Duration;

use kelp_common::maps::xdp;

use super::super::tests::world::Net;
use super::*;
use crate::dataplane::view::{Listener, Pins, Verdict};

const LEFT: i32 = 2;
const SENT: i32 = 3;
const XDP: &str = "xdp_from_net";
/// The router that knows the way to everybody.
const ROUTER: [u8; 6] = [2, 0, 0, 0, 9, 1];

/// A node with an uplink, in a network namespace of its own: the way of a packet depends on routes and neighbours.
struct Wired {
    rig: Rig,
    net: Net,
    uplink: u32,
    /// MAC address of the uplink.
    own: Vec<u8>,
}

impl Wired {
    fn new() -> Self {
        let net = Net::new();
        net.ip("link add uplink type veth peer name wire");
        net.ip("address add 192.0.2.10/24 dev uplink");
        net.ip("address add 2001:db8::10/64 dev uplink nodad");
        net.ip("link set uplink address 02:00:00:00:09:0a");
        for device in ["wire", "uplink"] {
            net.ip(&format!("link set {device} up"));
        }
        net.ip("route add default via 192.0.2.1");
        net.ip("-6 route add default via 2001:db8::1");
        for router in ["192.0.2.1", "2001:db8::1"] {
            net.ip(&format!("neigh replace {router} lladdr 02:00:00:00:09:01 dev uplink nud permanent"));
        }
        net.run(|| {
            for family in ["ipv4", "ipv6"] {
                fs::write(format!("/proc/sys/net/{family}/conf/lo/forwarding"), "1").unwrap();
            }
        });
        let rig = Rig::new();
        let wired = Self { uplink: net.ifindex("uplink"), own: vec![2, 0, 0, 0, 9, 10], rig, net };
        wired.set(|config| config.uplink = wired.uplink);
        wired
    }

    /// Changes the settings of the node.
    fn set(&self, change: impl FnOnce(&mut NodeConfig)) {
        let table: Table<u32, NodeConfig> = self.rig.table(kelp_common::maps::NODE_CONFIG);
        let mut config = table.get(&0).unwrap().unwrap();
        change(&mut config);
        table.put(&0, &config).unwrap();
    }

    /// Runs the XDP program once.
    fn once(&self, packet: &[u8]) -> (i32, Vec<u8>) {
        self.net.run(|| self.rig.run(XDP, packet))
    }

    /// Runs the XDP program over a packet that it sends, except that one a second goes by the stack.
    fn sent(&self, packet: &[u8]) -> Vec<u8> {
        for _ in 0..20 {
            let (verdict, out) = self.once(packet);
            if verdict == SENT {
                assert_eq!(out[..6], ROUTER);
                assert_eq!(out[6..12], self.own);
                return out;
            }
            assert_eq!((verdict, out.as_slice()), (LEFT, packet), "what is left is not changed");
        }
        panic!("not sent: {packet:02x?}");
    }

    /// Runs the classifier over a packet that it sends.
    fn redirected(&self, packet: &[u8]) -> Vec<u8> {
        let (verdict, out) = self.rig.run("from_net", packet);
        assert_eq!(verdict, REDIRECT);
        out
    }

    /// A packet comes out of both programs with the same bytes behind the MAC addresses, which for the classifier the stack
    /// fills in; the XDP program is first, if `first`.
    fn same(&self, packet: &[u8], first: bool) -> Frame {
        let early = first.then(|| self.sent(packet));
        let expected = self.redirected(packet);
        let out = early.unwrap_or_else(|| self.sent(packet));
        assert_eq!(out[12..], expected[12..], "{packet:02x?}");
        Frame::read(&out)
    }

    fn left(&self, packet: &[u8], why: &str) {
        // Not only because one a second is.
        for _ in 0..3 {
            let (verdict, out) = self.once(packet);
            assert_eq!(verdict, LEFT, "{why}");
            assert!(out == packet, "{why}: it is not changed");
        }
    }

    fn counted(&self, index: u32) -> u64 {
        let map = self.rig.kernel.map(kelp_common::maps::XDP_COUNTERS).unwrap();
        let cpus = super::super::possible_cpus().unwrap();
        sys::map_lookup_percpu(std::os::fd::AsFd::as_fd(&map), index, cpus).unwrap().iter().sum()
    }
}

/// The first packets of the protocols that are sent.
fn plain(source: &str, destination: &str) -> [Frame; 2] {
    [Frame::tcp(source, destination, SYN), Frame::udp(source, destination)]
}

#[test]
fn what_passes_through_is_the_same_by_xdp_and_by_the_classifier() {
    let wired = Wired::new();
    for [_, _, _, node, outside, _, remote] in FAMILIES {
        for first in [true, false] {
            let client = outside.replace("5000", if first { "5001" } else { "5002" });
            for sent in plain(&client, &at(node, 30_010)) {
                let arrived = wired.same(&sent.bytes(), first);
                assert_eq!(arrived.source.ip().to_string(), node);
                let ports = if sent.protocol == TCP { 1_024..=29_999 } else { 61_000..=65_535 };
                assert!(ports.contains(&arrived.source.port()));
                assert_eq!(arrived.destination.to_string(), at(remote, 8080));
                assert_eq!((arrived.ttl, &arrived.payload), (63, &sent.payload));
                let answer = arrived.answer(SYN | ACK);
                let back = wired.same(&answer.bytes(), first);
                assert_eq!((back.source, back.destination), (sent.destination, sent.source));
                for length in [0, 1, 2, 3, 512, 1_399, 1_400] {
                    let payload: Vec<u8> = (0..length).map(|at| (at * 7) as u8).collect();
                    let data = Frame { flags: ACK, payload, ..sent.clone() };
                    let out = wired.same(&data.bytes(), first);
                    assert_eq!((out.source, &out.payload), (arrived.source, &data.payload));
                    let answer = Frame { payload: data.payload, ..arrived.answer(ACK) };
                    wired.same(&answer.bytes(), first);
                }
            }
        }
    }
    assert_eq!(wired.rig.flows(), 16, "two directions of eight flows, whoever began them");
}

#[test]
fn a_datagram_without_checksum_passes_through_without() {
    let wired = Wired::new();
    let mut packet = Frame::udp("198.51.100.9:5000", "192.0.2.10:30010").bytes();
    packet[40..42].fill(0);
    let out = wired.sent(&packet);
    assert_eq!(out[40..42], [0, 0]);
    assert_eq!(out[12..], wired.redirected(&packet)[12..]);
}

#[test]
fn a_flow_to_a_pod_of_the_node_is_begun_and_left() {
    let wired = Wired::new();
    for [_, _, backend, node, outside, ..] in FAMILIES {
        for sent in plain(outside, &at(node, 30_007)) {
            let before = wired.rig.flows();
            wired.left(&sent.bytes(), "a pod of the node");
            assert_eq!(wired.rig.flows(), before + 2, "it is chosen once");
            let arrived = wired.rig.redirected("from_net", &sent);
            assert_eq!((arrived.source, arrived.destination.to_string()), (sent.source, at(backend, 8080)));
            assert_eq!(wired.rig.flows(), before + 2);
        }
    }
    // A service with pods here and there: the backend that was chosen is where the classifier leads.
    let many = objects(
        "many",
        "10.96.0.40",
        "fd00:10:96::28",
        [&["10.244.0.3", "10.244.1.5"], &["fd00:10:244::3", "fd00:10:244:1::5"]],
        8080,
        json!({}),
    );
    let mut wired = wired;
    wired.rig.index.apply_service(&many.0);
    for slice in many.1 {
        wired.rig.index.apply_slice(&serde_json::from_value(slice).unwrap());
    }
    wired.rig.sync();
    let mut seen = [0, 0];
    for port in 1_000..1_200 {
        let sent = Frame::tcp(&format!("198.51.100.9:{port}"), "192.0.2.10:30040", SYN);
        let (verdict, packet) = wired.once(&sent.bytes());
        let expected = wired.redirected(&sent.bytes());
        let remote = Frame::read(&expected).destination.to_string() == "10.244.1.5:8080";
        if verdict == SENT {
            assert!(remote && packet[12..] == expected[12..]);
        }
        seen[usize::from(remote)] += 1;
    }
    // By chance: fewer than 50 of 200 happen once in 10¹³ times.
    assert!(seen[0] > 50 && seen[1] > 50, "equal shares: {seen:?}");
}

#[test]
fn what_does_not_plainly_pass_through_is_left() {
    let wired = Wired::new();
    for [_, web, backend, node, outside, far, remote] in FAMILIES {
        let v4 = node.contains('.');
        {
            let [tcp, udp, sctp] = packets(outside, &at(node, 30_010));
            wired.sent(&tcp.bytes());
            wired.left(&sctp.bytes(), "SCTP");
            let arrived = Frame::read(&wired.sent(&udp.bytes()));
            let about = wired.redirected(&udp.bytes());
            let router = if v4 { "203.0.113.1" } else { "2001:db8:5::1" }.parse().unwrap();
            let kind = if v4 { [3, 4] } else { [2, 0] };
            wired.left(&icmp_error(router, &about, kind, 1_280), "an ICMP error");
            for part in fragments(&Frame { payload: vec![1; 64], ..udp.clone() }.bytes(), 16) {
                wired.left(&part, "a fragment");
            }
            for ttl in [0, 1] {
                wired.left(&Frame { ttl, ..tcp.clone() }.bytes(), "the last hop");
                wired.left(&Frame { ttl, ..arrived.answer(0) }.bytes(), "the last hop of an answer");
            }
            let large = Frame { payload: vec![1; 1_500], flags: ACK, ..tcp.clone() };
            wired.left(&large.bytes(), "too big");
            // A checksum of the pseudo header only, for a device to complete.
            for (frame, field) in [(&tcp, 16), (&udp, 6)] {
                let mut bytes = frame.bytes();
                let at = if v4 { 34 } else { 54 };
                let length = bytes.len() - at;
                let sum = pseudo(frame.source.ip(), frame.destination.ip(), frame.protocol, length);
                let sum = !checksum(&[], sum);
                bytes[at + field..at + field + 2].copy_from_slice(&sum.to_be_bytes());
                wired.left(&bytes, "an unfinished checksum");
            }
            let whole = tcp.bytes();
            for length in [whole.len() - 1, whole.len() - 19, 14 + 40] {
                wired.left(&whole[..length.min(whole.len() - 1)], "a part of a packet");
            }
        }
        for (destination, why, begun) in [
            (at(node, 30_009), "a server of the node", true),
            (at(node, 30_008), "no endpoints", false),
            (at(node, 30_014), "no local endpoints", false),
            (at(node, 31_000), "no such service", false),
            (at(web, 81), "no such port", false),
            (at(far, 81), "no such port", false),
            (at(backend, 8080), "a pod", false),
            (at(remote, 8080), "a pod of another node", false),
        ] {
            for frame in plain(outside, &destination) {
                let flows = wired.rig.flows();
                wired.left(&frame.bytes(), why);
                assert_eq!(wired.rig.flows() - flows, if begun { 2 } else { 0 }, "{why}");
            }
        }
    }
    let outside = Frame::tcp("198.51.99.9:5000", "203.0.113.13:80", SYN);
    wired.left(&outside.bytes(), "a client that may not");
    assert_eq!(wired.rig.run("from_net", &outside.bytes()).0, DROP);
    assert_eq!(wired.rig.counted(counter::SOURCE_RANGE), 1, "counted once, where it is dropped");
    let mut arp = vec![0xff; 42];
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    wired.left(&arp, "ARP");
    assert!(
        wired.counted(xdp::FORWARDED) > 0 && wired.counted(xdp::LEFT) > 0 && wired.counted(xdp::NO_WAY) > 0
    );
}

#[test]
fn what_goes_to_backends_in_envelopes_is_left() {
    let wired = Wired::new();
    wired.set(|config| config.flags |= kelp_common::node::NODE_DSR);
    for [_, _, _, node, outside, ..] in FAMILIES {
        for sent in plain(outside, &at(node, 30_010)) {
            wired.left(&sent.bytes(), "direct return");
            assert_eq!(wired.rig.run("from_net", &sent.bytes()).0, REDIRECT);
            wired.left(&sent.bytes(), "a flow of direct return");
        }
    }
    assert_eq!(wired.rig.flows(), 4, "no answers are awaited");
}

#[test]
fn what_has_no_known_next_hop_is_left() {
    let wired = Wired::new();
    for [_, _, _, node, outside, _, remote] in FAMILIES {
        let (router, prefix, option) =
            if node.contains('.') { ("192.0.2.1", 32, "") } else { ("2001:db8::1", 128, "-6 ") };
        for sent in plain(outside, &at(node, 30_010)) {
            let bytes = sent.bytes();
            wired.sent(&bytes);
            wired.net.ip(&format!("neigh del {router} dev uplink"));
            wired.left(&bytes, "no neighbour");
            wired
                .net
                .ip(&format!("neigh replace {router} lladdr 02:00:00:00:09:01 dev uplink nud permanent"));
            wired.sent(&bytes);
            wired.net.ip(&format!("{option}route add {remote}/{prefix} dev wire"));
            wired.left(&bytes, "by another device");
            wired.net.ip(&format!("{option}route del {remote}/{prefix} dev wire"));
            wired.net.ip(&format!("{option}route add blackhole {remote}/{prefix}"));
            wired.left(&bytes, "nowhere");
            wired.net.ip(&format!("{option}route del {remote}/{prefix}"));
            wired.net.ip(&format!("{option}route add {remote}/{prefix} via {router} mtu lock 1290"));
            wired.sent(&bytes);
            let large = Frame { payload: vec![1; 1_280], flags: ACK, ..sent.clone() };
            wired.left(&large.bytes(), "too big for the route");
            wired.net.ip(&format!("{option}route del {remote}/{prefix}"));
            wired.set(|config| config.uplink = 0);
            wired.left(&bytes, "no uplink");
            wired.set(|config| config.uplink = wired.uplink);
        }
    }
}

#[test]
fn the_first_of_a_second_goes_by_the_stack() {
    let wired = Wired::new();
    let sent = Frame::tcp("198.51.100.9:5000", "192.0.2.10:30010", SYN);
    // The first ever on this CPU.
    assert_eq!(wired.once(&sent.bytes()), (LEFT, sent.bytes()));
    assert_eq!(wired.counted(xdp::NO_WAY), 1);
    let arrived = Frame::read(&wired.redirected(&sent.bytes()));
    wired.sent(&sent.bytes());
    // Answers have a second of their own, and what may be overtaken by others is not held up.
    let (verdict, _) = wired.once(&arrived.answer(ACK).bytes());
    assert_eq!(verdict, SENT);
    for _ in 0..3 {
        assert_eq!(wired.once(&Frame { flags: ACK, ..sent.clone() }.bytes()).0, SENT);
    }
}

#[test]
fn listeners_are_told_what_xdp_sent() {
    let wired = Wired::new();
    let mut listener = Listener::open(&Pins::new(&wired.rig.directory), 1_000).unwrap();
    let sent = Frame::udp("198.51.100.9:5000", "192.0.2.10:30010");
    let arrived = Frame::read(&wired.sent(&sent.bytes()));
    let flow = listener.wait(Duration::ZERO).unwrap().remove(0);
    assert_eq!((flow.verdict, flow.seen), (Verdict::Translated, "xdp"));
    assert_eq!((flow.source, flow.destination), (sent.source, sent.destination));
    assert_eq!(flow.translated_destination, Some(arrived.destination));
    assert_eq!(flow.translated_source, Some(arrived.source));
}

#[test]
fn any_packet_comes_out_the_same_or_is_left() {
    let wired = Wired::new();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 2_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let strategy = (
        prop::sample::select(vec![0_usize, 1]),
        any::<(bool, bool)>(),
        1_u16..4,
        any::<(u32, u8)>(),
        prop::collection::vec(any::<u8>(), 0..120),
        prop::collection::vec(any::<(usize, u8)>(), 0..3),
    );
    wired.net.run(|| {
        runner
            .run(&strategy, |(family, (tcp, answer), port, (sequence, ttl), payload, changes)| {
                let [_, _, _, node, outside, ..] = FAMILIES[family];
                let client = outside.replace("5000", &port.to_string());
                let [segment, datagram] = plain(&client, &at(node, 30_010));
                let sent = if tcp { segment } else { datagram };
                let sent = Frame { payload, sequence, ttl, ..sent };
                let mut packet = sent.bytes();
                if answer {
                    let arrived = wired.redirected(&Frame { ttl: 64, ..sent.clone() }.bytes());
                    packet = Frame { ttl, ..Frame::read(&arrived).answer(ACK) }.bytes();
                }
                // Bytes behind the Ethernet header are changed at random.
                for (at, value) in changes {
                    let length = packet.len();
                    packet[14 + at % (length - 14)] = value;
                }
                let flows: Table<FlowKey, FlowValue> = wired.rig.table(kelp_common::maps::FLOWS);
                let mut before = Vec::new();
                flows.scan(|key, value| before.push((*key, *value))).unwrap();
                let (verdict, out) = wired.rig.run(XDP, &packet);
                if verdict == LEFT {
                    prop_assert!(out == packet);
                } else {
                    prop_assert_eq!(verdict, SENT);
                    // A segment that opens and closes a flow at once means something else the second time.
                    for (key, value) in before {
                        let now = flows.get(&key).unwrap().unwrap();
                        if (now.source_port, now.destination) == (value.source_port, value.destination) {
                            flows.put(&key, &value).unwrap();
                        }
                    }
                    let (verdict, expected) = wired.rig.run("from_net", &packet);
                    prop_assert_eq!(verdict, REDIRECT);
                    prop_assert_eq!(&out[12..], &expected[12..]);
                }
                Ok(())
            })
            .unwrap();
    });
    assert!(wired.counted(xdp::FORWARDED) > 500);
}
