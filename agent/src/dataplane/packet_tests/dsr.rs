//! Direct server return: what one node hands another, and how that one answers.

use kelp_common::flow::FLOW_DSR;
use kelp_common::maps;

use super::*;

/// What is around a packet for a backend of another node.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Envelope {
    source: IpAddr,
    destination: IpAddr,
    ports: (u16, u16),
    ttl: u8,
    /// The virtual network identifier.
    identifier: u32,
    /// With the Ethernet header of the whole.
    inside: Vec<u8>,
}

fn open(packet: &[u8]) -> Envelope {
    let (source, destination, protocol, ttl, udp) = network(packet);
    assert_eq!(protocol, UDP);
    let word = |at: usize| u16::from_be_bytes([udp[at], udp[at + 1]]);
    assert_eq!(usize::from(word(4)), udp.len());
    assert_eq!(word(6), 0, "no checksum");
    assert_eq!(udp[8..10], [0, 0], "Geneve without options");
    assert_eq!(udp[10..12], packet[12..14], "the same family inside");
    let inside = packet[..14].iter().chain(&udp[16..]).copied().collect();
    let identifier = u32::from_be_bytes(udp[12..16].try_into().unwrap());
    assert_eq!(identifier & 0xff, 0);
    Envelope { source, destination, ports: (word(0), word(2)), ttl, identifier: identifier >> 8, inside }
}

/// The node that clients reach, and the node of the backend.
fn nodes() -> (Rig, Rig) {
    let config = |last: &str, third: u8, dsr: bool| Config {
        node_addresses: vec![
            format!("192.0.2.{last}").parse().unwrap(),
            format!("2001:db8::{last}").parse().unwrap(),
        ],
        pod_cidrs: vec![
            (format!("10.244.{third}.0").parse().unwrap(), 24),
            (format!("fd00:10:244:{third}::").parse().unwrap(), 64),
        ],
        dsr,
        ..Config::default()
    };
    let reached =
        Rig::of(Index::new("here"), &config("10", 0, true), &[(3, "10.244.0.3"), (3, "fd00:10:244::3")]);
    // It opens envelopes also where it does not send any.
    let pods = [(5, "10.244.1.5"), (5, "fd00:10:244:1::5")];
    (reached, Rig::of(Index::new("there"), &config("11", 1, false), &pods))
}

/// Hands a packet to the node that is reached; returns what it hands on.
fn enveloped(rig: &Rig, packet: &[u8]) -> Vec<u8> {
    let (verdict, out) = rig.run("from_net", packet);
    assert_eq!(verdict, REDIRECT);
    out
}

/// Hands a packet to the node of the backend; returns what the pod gets.
fn delivered(rig: &Rig, packet: &[u8]) -> Frame {
    let (verdict, out) = rig.run("from_net", packet);
    assert_eq!(verdict, REDIRECT);
    Frame::read(&out)
}

/// A segment whose first four bytes behind the header are an option.
fn with_option(segment: &Frame) -> Vec<u8> {
    let mut packet = segment.bytes();
    let l4 = if segment.source.is_ipv4() { 34 } else { 54 };
    packet[l4 + 12] = 0x60;
    packet[l4 + 16..l4 + 18].fill(0);
    let rest = &packet[l4..];
    let sum = checksum(rest, pseudo(segment.source.ip(), segment.destination.ip(), TCP, rest.len()));
    packet[l4 + 16..l4 + 18].copy_from_slice(&sum.to_be_bytes());
    packet
}

#[test]
fn a_backend_elsewhere_sees_the_client_and_its_node_answers_as_the_service() {
    let (reached, there) = nodes();
    for [_, _, _, node, outside, _, remote] in FAMILIES {
        for sent in packets(outside, &at(node, 30_010)) {
            let packet = enveloped(&reached, &sent.bytes());
            let envelope = open(&packet);
            assert_eq!(
                (envelope.source.to_string(), envelope.destination.to_string()),
                (node.into(), remote.into())
            );
            assert_eq!((envelope.ports.1, envelope.identifier, envelope.ttl), (6_081, 8_080, 64));
            assert!((512..1_024).contains(&envelope.ports.0));
            assert_eq!(Frame::read(&envelope.inside), Frame { ttl: 63, ..sent.clone() }, "as it came");

            let (verdict, packet) = there.run("from_net", &packet);
            assert_eq!(verdict, REDIRECT);
            assert_eq!(packet[..12], [2, 0, 0, 0, 1, 5, 2, 0, 0, 0, 2, 5], "to the pod's device");
            let arrived = Frame::read(&packet);
            assert_eq!((arrived.source, arrived.destination.to_string()), (sent.source, at(remote, 8080)));
            let answered = there.redirected("from_pod", &arrived.answer(SYN | ACK));
            assert_eq!((answered.source, answered.destination), (sent.destination, sent.source));

            // What follows goes the same way.
            let next = Frame { flags: ACK, ..sent.clone() };
            let arrived = delivered(&there, &enveloped(&reached, &next.bytes()));
            assert_eq!(arrived.destination.to_string(), at(remote, 8080));
        }
    }
    let mut flags = Vec::new();
    reached
        .table::<FlowKey, FlowValue>(maps::FLOWS)
        .scan(|_, value| flags.push(value.flags & FLOW_DSR))
        .unwrap();
    assert_eq!(flags, [FLOW_DSR; 6], "one direction of six flows");
    assert_eq!(there.flows(), 12);
}

#[test]
fn what_is_on_this_node_or_no_pod_is_reached_as_ever() {
    let (reached, _) = nodes();
    for [_, _, backend, node, outside, ..] in FAMILIES {
        let arrived = reached.redirected("from_net", &Frame::tcp(outside, &at(node, 30_007), SYN));
        assert_eq!(
            (arrived.source.to_string(), arrived.destination.to_string()),
            (outside.into(), at(backend, 8080))
        );
    }
    // A backend that is a host is reached through this node: who knows whether it opens envelopes?
    let (mut reached, _) = nodes();
    let (service, slices) = objects(
        "hosts",
        "10.96.0.50",
        "fd00:10:96::50",
        [&["192.0.2.77"], &["2001:db8::77"]],
        6443,
        json!({}),
    );
    reached.index.apply_service(&service);
    for slice in slices {
        reached.index.apply_slice(&serde_json::from_value(slice).unwrap());
    }
    reached.sync();
    for [_, _, _, node, outside, ..] in FAMILIES {
        let arrived = reached.redirected("from_net", &Frame::tcp(outside, &at(node, 30_050), SYN));
        assert_eq!(arrived.source.ip().to_string(), node);
    }
}

#[test]
fn a_packet_that_does_not_fit_into_an_envelope_is_answered_and_segments_are_made_to_fit() {
    let (reached, there) = nodes();
    for [_, _, _, node, outside, _, remote] in FAMILIES {
        let v4 = outside.starts_with('1');
        let (overhead, headers) = if v4 { (36, 28) } else { (56, 48) };
        let of = |size: usize| Frame {
            payload: vec![7; size - headers],
            ..Frame::udp(outside, &at(node, 30_010))
        };
        let most = 1_500 - overhead;
        let packet = enveloped(&reached, &of(most).bytes());
        assert_eq!(packet.len(), 14 + 1_500);
        assert_eq!(delivered(&there, &packet).payload.len(), most - headers);
        let sent = of(most + 1);
        let error = Error::read(&enveloped(&reached, &sent.bytes()));
        assert_eq!((error.kind, error.extra), (if v4 { [3, 4] } else { [2, 0] }, most as u32));
        assert_eq!(error.about, (sent.source, sent.destination));

        let sent = Frame::tcp(outside, &at(node, 30_010), SYN);
        there.run("from_net", &enveloped(&reached, &sent.bytes()));
        for (announced, expected) in [(1_460, most - headers - 12), (1_000, 1_000)] {
            let mut answer = Frame::tcp(&at(remote, 8080), outside, SYN | ACK);
            answer.payload = [2, 4].into_iter().chain((announced as u16).to_be_bytes()).collect();
            let (_, packet) = there.run("from_pod", &with_option(&answer));
            let answered = Frame::read(&packet);
            assert_eq!(
                answered.payload,
                [2, 4].into_iter().chain((expected as u16).to_be_bytes()).collect::<Vec<u8>>()
            );
        }
    }
    assert_eq!(reached.counted(counter::TOO_BIG), 2);
}

#[test]
fn errors_about_answers_find_the_backend_and_its_own_find_the_client() {
    let (reached, there) = nodes();
    for [_, _, _, node, outside, _, remote] in FAMILIES {
        for sent in packets(outside, &at(node, 30_010)) {
            let (_, arrived) = there.run("from_net", &enveloped(&reached, &sent.bytes()));
            let arrived = Frame::read(&arrived);
            let answer = arrived.answer(SYN | ACK);
            let (_, answered) = there.run("from_pod", &answer.bytes());
            let v4 = sent.source.is_ipv4();
            let router: IpAddr = if v4 { "198.51.100.254" } else { "2001:db8:9::fe" }.parse().unwrap();
            let kind = if v4 { [3, 4] } else { [2, 0] };
            // The service's address is that of the node that clients reach.
            let packet = enveloped(&reached, &icmp_error(router, &answered, kind, 1_280));
            assert_eq!(open(&packet).identifier, 8_080);
            let (verdict, packet) = there.run("from_net", &packet);
            assert_eq!(verdict, REDIRECT);
            let error = Error::read(&packet);
            assert_eq!((error.destination.to_string(), error.extra), (remote.to_owned(), 1_280));
            assert_eq!(error.about, (answer.source, answer.destination), "as the backend sent it");

            let kind = if v4 { [3, 3] } else { [1, 4] };
            let (_, packet) =
                there.run("from_pod", &icmp_error(remote.parse().unwrap(), &arrived.bytes(), kind, 0));
            let error = Error::read(&packet);
            assert_eq!((error.source.to_string(), error.destination), (node.to_owned(), sent.source.ip()));
            assert_eq!(error.about, (sent.source, sent.destination));
        }
    }
}

#[test]
fn fragments_are_handed_on_one_by_one() {
    let (reached, there) = nodes();
    for [_, _, _, node, outside, _, remote] in FAMILIES {
        let sent = Frame { payload: vec![9; 2_000], ..Frame::udp(outside, &at(node, 30_010)) };
        let arrived = fragments(&sent.bytes(), 1_024).map(|part| {
            let (verdict, packet) = there.run("from_net", &enveloped(&reached, &part));
            assert_eq!(verdict, REDIRECT);
            packet
        });
        let arrived = Frame::read(&reassemble(&arrived));
        assert_eq!((arrived.source, arrived.destination.to_string()), (sent.source, at(remote, 8080)));
        assert_eq!(arrived.payload, sent.payload);
    }
}

#[test]
fn what_is_no_envelope_of_a_node_is_not_opened() {
    let (reached, there) = nodes();
    for [_, _, _, node, outside, _, remote] in FAMILIES {
        let sent = Frame::udp(outside, &at(node, 30_010));
        let good = enveloped(&reached, &sent.bytes());
        let udp = if outside.starts_with('1') { 34 } else { 54 };
        let changed = |at: usize, value: u8| {
            let mut packet = good.clone();
            packet[at] = value;
            packet
        };
        // From a port that anybody may have, with options, for another protocol, with more than a port.
        for packet in [
            changed(udp, 4),
            changed(udp + 8, 1),
            changed(udp + 10, 1),
            changed(udp + 12, 1),
            changed(udp + 15, 1),
        ] {
            let (verdict, packet) = there.run("from_net", &packet);
            assert_eq!(verdict, REDIRECT, "a datagram to the pod as any other");
            let (_, destination, _, _, rest) = network(&packet);
            assert_eq!(destination.to_string(), remote);
            assert_eq!(rest[2..4], 6_081_u16.to_be_bytes());
        }
        // Cut short, or with nonsense inside.
        for length in udp..good.len() - 8 {
            let (verdict, _) = there.run("from_net", &good[..length]);
            assert!([PASS, DROP, REDIRECT].contains(&verdict));
        }
        let verdict = there.run("from_net", &changed(udp + 16, 0xff)).0;
        assert_eq!(verdict, DROP);
    }
    // From a pod's address.
    let sent = Frame::udp("198.51.100.9:5000", "192.0.2.10:30010");
    let mut packet = enveloped(&reached, &sent.bytes());
    packet[26..30].copy_from_slice(&[10, 244, 7, 7]);
    packet[24..26].fill(0);
    let sum = checksum(&packet[14..34], 0);
    packet[24..26].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(there.run("from_net", &packet).1[36..38], 6_081_u16.to_be_bytes());
}

#[test]
fn inside_an_envelope_is_only_what_a_client_may_ask_for() {
    let (reached, there) = nodes();
    for [_, _, _, node, outside, ..] in FAMILIES {
        let sent = Frame::tcp(outside, &at(node, 30_010), SYN);
        let header = if outside.starts_with('1') { 14 + 36 } else { 14 + 56 };
        let around = enveloped(&reached, &sent.bytes())[..header].to_vec();
        let wrap = |frame: &Frame| {
            let inside = &frame.bytes()[14..];
            assert_eq!(inside.len(), sent.bytes().len() - 14);
            [around.as_slice(), inside].concat()
        };
        let unknown = Frame { destination: at(node, 29_999).parse().unwrap(), ..sent.clone() };
        assert_eq!(there.run("from_net", &wrap(&unknown)).0, DROP);
        let (balancer, stranger) = if outside.starts_with('1') {
            ("203.0.113.13:80", "198.51.99.9:5000")
        } else {
            ("[2001:db8:13::13]:80", "[2001:db8:a::9]:5000")
        };
        let of = |client: &str| wrap(&Frame::tcp(client, balancer, SYN));
        assert_eq!(there.run("from_net", &of(stranger)).0, DROP);
        assert_eq!(there.run("from_net", &of(outside)).0, REDIRECT);
    }
    assert_eq!((there.counted(counter::REFUSED), there.counted(counter::SOURCE_RANGE)), (2, 2));
}

#[test]
fn the_node_that_is_reached_decides_where_a_new_flow_goes() {
    let (reached, there) = nodes();
    for sent in packets("198.51.100.9:5000", "192.0.2.10:30010") {
        let first = enveloped(&reached, &sent.bytes());
        assert_eq!(delivered(&there, &first).destination.port(), 8_080);
        // Another port of the pod: the service changed, and the client asks anew from its port.
        let mut second = first.clone();
        second[34 + 8 + 6] = (9_090_u16 & 0xff) as u8;
        second[34 + 8 + 5] = (9_090_u16 >> 8) as u8;
        assert_eq!(delivered(&there, &second).destination.port(), 9_090);
        // What is under way stays.
        if sent.protocol == TCP {
            let mut late = enveloped(&reached, &Frame { flags: ACK, ..sent.clone() }.bytes());
            late[34 + 8 + 6] = (8_080_u16 & 0xff) as u8;
            assert_eq!(delivered(&there, &late).destination.port(), 9_090);
        }
    }
}
