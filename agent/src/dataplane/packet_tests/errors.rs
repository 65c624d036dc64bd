//! ICMP errors about translated flows, packets that are too big, fragments.

use super::*;

/// "Fragmentation needed" or "too big" for each family, with the size where each has it.
fn too_big(v4: bool) -> ([u8; 2], u32) {
    if v4 { ([3, 4], 1_280) } else { ([2, 0], 1_280) }
}

/// A router between this node and wherever a packet goes.
fn router(v4: bool) -> IpAddr {
    if v4 { "198.51.100.254" } else { "2001:db8:9::fe" }.parse().unwrap()
}

impl Rig {
    /// Runs a program over an ICMP error that must be redirected, and reads what comes out.
    fn redirected_error(&self, program: &str, packet: &[u8]) -> Error {
        let (verdict, packet) = self.run(program, packet);
        assert_eq!(verdict, REDIRECT, "{program}");
        Error::read(&packet)
    }
}

#[test]
fn an_error_about_a_node_port_with_a_backend_elsewhere_reaches_the_client() {
    let rig = Rig::new();
    for [_, _, _, node, outside, ..] in FAMILIES {
        for sent in packets(outside, &at(node, 30_010)) {
            let (_, translated) = rig.run("from_net", &sent.bytes());
            let v4 = sent.source.is_ipv4();
            let (kind, extra) = too_big(v4);
            let error = rig.redirected_error("from_net", &icmp_error(router(v4), &translated, kind, extra));
            let expected = Error {
                source: router(v4),
                destination: sent.source.ip(),
                kind,
                extra,
                about: (sent.source, sent.destination),
            };
            assert_eq!(error, expected, "the client recognises its own packet");
        }
    }
}

#[test]
fn an_error_about_a_reply_reaches_the_backend() {
    let rig = Rig::new();
    for [_, _, backend, node, outside, ..] in FAMILIES {
        for sent in packets(outside, &at(node, 30_007)) {
            let arrived = rig.redirected("from_net", &sent);
            let answer = arrived.answer(SYN | ACK);
            let (_, translated) = rig.run("from_pod", &answer.bytes());
            let v4 = sent.source.is_ipv4();
            let (kind, extra) = too_big(v4);
            let error = rig.redirected_error("from_net", &icmp_error(router(v4), &translated, kind, extra));
            assert_eq!(error.destination.to_string(), backend);
            assert_eq!(error.about, (answer.source, answer.destination));
        }
    }
}

#[test]
fn an_error_from_the_backend_comes_from_the_service() {
    let rig = Rig::new();
    for [client, web, backend, ..] in FAMILIES {
        for sent in packets(client, &at(web, 80)) {
            let (_, translated) = rig.run("from_pod", &sent.bytes());
            let v4 = sent.source.is_ipv4();
            let kind = if v4 { [3, 3] } else { [1, 4] };
            let packet = icmp_error(backend.parse().unwrap(), &translated, kind, 0);
            let error = rig.redirected_error("from_pod", &packet);
            assert_eq!(error.source.to_string(), web);
            assert_eq!(error.destination, sent.source.ip());
            assert_eq!(error.about, (sent.source, sent.destination));
        }
    }
}

#[test]
fn an_error_about_what_a_pod_sends_outside_reaches_the_pod() {
    let rig = Rig::new();
    for [client, _, _, _, outside, ..] in FAMILIES {
        for sent in packets(client, outside) {
            let (_, translated) = rig.run("from_pod", &sent.bytes());
            let v4 = sent.source.is_ipv4();
            let (kind, extra) = too_big(v4);
            let error = rig.redirected_error("from_net", &icmp_error(router(v4), &translated, kind, extra));
            assert_eq!(error.destination, sent.source.ip());
            assert_eq!(error.about, (sent.source, sent.destination));
        }
    }
}

#[test]
fn an_error_of_the_hosts_stack_comes_from_the_service() {
    let rig = Rig::new();
    for (outside, node) in [("198.51.100.9:5000", "192.0.2.10"), ("[2001:db8:9::9]:5000", "2001:db8::10")] {
        let sent = Frame::udp(outside, &at(node, 30_009));
        let (verdict, translated) = rig.run("from_net", &sent.bytes());
        assert_eq!(verdict, PASS);
        let kind = if sent.source.is_ipv4() { [3, 3] } else { [1, 4] };
        let (verdict, packet) = rig.run("to_net", &icmp_error(node.parse().unwrap(), &translated, kind, 0));
        assert_eq!(verdict, PASS);
        assert_eq!(Error::read(&packet).about, (sent.source, sent.destination));
    }
}

#[test]
fn an_error_about_nothing_known_is_left_as_it_is() {
    let rig = Rig::new();
    for [client, _, _, node, outside, ..] in FAMILIES {
        let about = Frame::tcp(&at(node, 4_000), outside, SYN);
        let v4 = about.source.is_ipv4();
        let (kind, extra) = too_big(v4);
        let packet = icmp_error(router(v4), &about.bytes(), kind, extra);
        for length in [packet.len(), packet.len() - 20] {
            let mut packet = packet.clone();
            packet.truncate(length);
            assert_eq!(rig.run("from_net", &packet), (PASS, packet.clone()), "the host's own");
        }
        // Between pods errors travel like everything else.
        let about = Frame::udp(client, &at(if v4 { "10.244.0.3" } else { "fd00:10:244::3" }, 9));
        let packet = icmp_error(about.destination.ip(), &about.bytes(), kind, extra);
        assert_eq!(rig.redirected_error("from_pod", &packet).about, (about.source, about.destination));
    }
}

#[test]
fn what_does_not_fit_through_the_uplink_is_told_before_it_is_translated() {
    let rig = Rig::new();
    let mut told = 0;
    for [client, web, backend, _, outside, far, remote] in FAMILIES {
        for (destination, local) in [
            (at(far, 80), false),
            (at(remote, 8080), false),
            (outside.to_owned(), false),
            (at(web, 80), true),
            (at(backend, 8080), true),
        ] {
            let headers = if client.contains('[') { 48 } else { 28 };
            let of =
                |size: usize| Frame { payload: vec![7; size - headers], ..Frame::udp(client, &destination) };
            let fits = rig.redirected("from_pod", &of(1_500));
            assert_eq!(fits.payload.len(), 1_500 - headers);
            let sent = of(1_501);
            let (verdict, packet) = rig.run("from_pod", &sent.bytes());
            assert_eq!(verdict, REDIRECT);
            if local {
                assert_eq!(Frame::read(&packet).payload, sent.payload, "it does not leave the node");
                continue;
            }
            told += 1;
            let error = Error::read(&packet);
            let kind = if sent.source.is_ipv4() { [3, 4] } else { [2, 0] };
            assert_eq!((error.kind, error.extra), (kind, 1_500));
            assert_eq!(error.destination, sent.source.ip());
            assert_eq!(error.about, (sent.source, sent.destination), "as the pod knows it");
        }
    }
    assert_eq!(rig.counted(counter::TOO_BIG), told);
}

#[test]
fn fragments_of_a_translated_flow_follow_the_first_one() {
    let rig = Rig::new();
    for [client, web, backend, node, outside, ..] in FAMILIES {
        for (program, source, destination) in
            [("from_pod", client, at(web, 80)), ("from_net", outside, at(node, 30_007))]
        {
            let sent = Frame { payload: vec![9; 2_000], ..Frame::udp(source, &destination) };
            let parts = fragments(&sent.bytes(), 1_024);
            let arrived = parts.map(|part| {
                let (verdict, packet) = rig.run(program, &part);
                assert_eq!(verdict, REDIRECT, "{program}");
                packet
            });
            let arrived = Frame::read(&reassemble(&arrived));
            assert_eq!(arrived.destination.to_string(), at(backend, 8080));
            assert_eq!(arrived.payload, sent.payload);
            // And the answer.
            let answer = fragments(&arrived.answer(0).bytes(), 1_024).map(|part| {
                let (verdict, packet) = rig.run("from_pod", &part);
                assert_eq!(verdict, REDIRECT);
                packet
            });
            let answer = Frame::read(&reassemble(&answer));
            assert_eq!((answer.source, answer.destination), (sent.destination, sent.source));
        }
    }
}

#[test]
fn a_fragment_that_overtakes_the_first_one_is_dropped_and_counted() {
    let rig = Rig::new();
    for [client, web, ..] in FAMILIES {
        let sent = Frame { payload: vec![9; 2_000], ..Frame::udp(client, &at(web, 80)) };
        let [_, second] = fragments(&sent.bytes(), 1_024);
        assert_eq!(rig.run("from_pod", &second).0, DROP);
    }
    assert_eq!(rig.counted(counter::FRAGMENT), 2);
    // Between pods nobody needs ports.
    let sent = Frame { payload: vec![9; 2_000], ..Frame::udp("10.244.0.2:1", "10.244.0.3:8080") };
    let [_, second] = fragments(&sent.bytes(), 1_024);
    assert_eq!(rig.run("from_pod", &second).0, REDIRECT);
}
