//! What is told of packets, and what that costs.

use std::time::Duration;

use kelp_common::FlowSwitch;

use super::*;
use crate::dataplane::names::PodNames;
use crate::dataplane::view::{FlowReport, Identity, Listener, Pins, Verdict, ViewError};
use kelp_model::service::ObjectName;

fn listen(rig: &Rig, rate: u32) -> Listener {
    Listener::open(&Pins::new(&rig.directory), rate).unwrap()
}

fn told(listener: &mut Listener) -> Vec<FlowReport> {
    listener.wait(Duration::ZERO).unwrap()
}

/// The only thing that is told.
fn one(listener: &mut Listener) -> FlowReport {
    let mut all = told(listener);
    assert_eq!(all.len(), 1, "{all:#?}");
    all.remove(0)
}

#[test]
fn packets_are_told_by_what_becomes_of_them() {
    let rig = Rig::new();
    PodNames::open(&rig.kernel)
        .unwrap()
        .attach(&[Address::from("10.244.0.2".parse::<IpAddr>().unwrap())], &ObjectName::new("d", "client"));
    let syn = Frame::tcp("10.244.0.2:4000", "10.96.0.7:80", SYN);
    rig.redirected("from_pod", &syn);
    let mut listener = listen(&rig, 1_000);
    assert_eq!(told(&mut listener), [], "of what was before nothing is told");

    let syn = Frame { source: "10.244.0.2:4001".parse().unwrap(), ..syn };
    let arrived = rig.redirected("from_pod", &syn);
    let flow = one(&mut listener);
    assert_eq!((flow.verdict, flow.reason, flow.seen), (Verdict::Translated, None, "from-pod"));
    assert_eq!((flow.source, flow.destination, flow.protocol.as_str()), (syn.source, syn.destination, "TCP"));
    assert_eq!((flow.translated_source, flow.translated_destination), (None, Some(arrived.destination)));
    let pod = |identity: &Identity| matches!(identity, Identity::Pod(pod) if pod.to_string() == "d/client");
    assert!(pod(&flow.source_identity) && flow.destination_identity == Identity::Service, "{flow:?}");
    assert_eq!(flow.translated_identity, Some(Identity::Cluster), "a pod without a name");
    let age = jiff::Timestamp::now().duration_since(flow.time.parse().unwrap());
    assert!((0..60).contains(&age.as_secs()), "{}", flow.time);
    // More packets of a flow are no news.
    for _ in 0..3 {
        rig.redirected("from_pod", &Frame { flags: ACK, ..syn.clone() });
    }
    assert_eq!(told(&mut listener), []);
    rig.redirected("from_pod", &arrived.answer(SYN | ACK));
    let reply = one(&mut listener);
    assert_eq!((reply.verdict, reply.translated_source), (Verdict::Translated, Some(syn.destination)));

    for (program, frame, verdict, reason) in [
        ("from_pod", Frame::udp("10.244.0.2:4000", "10.244.0.3:53"), Verdict::Forwarded, None),
        ("from_pod", Frame::tcp("10.244.0.2:4000", "10.96.0.8:80", SYN), Verdict::Refused, Some("refused")),
        ("from_pod", Frame::udp("10.244.0.2:4000", "10.96.0.8:80"), Verdict::Refused, Some("refused")),
        ("from_pod", Frame::tcp("10.9.9.9:4000", "10.96.0.7:80", SYN), Verdict::Dropped, Some("spoofed")),
        (
            "from_net",
            Frame::tcp("198.51.100.9:5", "203.0.113.14:80", SYN),
            Verdict::Dropped,
            Some("no_local_endpoint"),
        ),
        (
            "from_net",
            Frame::tcp("198.51.101.9:5", "203.0.113.13:80", SYN),
            Verdict::Dropped,
            Some("source_range"),
        ),
        ("from_net", Frame::tcp("[2001:db8:9::9]:5", "[2001:db8::10]:30007", SYN), Verdict::Translated, None),
        ("to_net", Frame::tcp("192.0.2.10:5", "198.51.100.9:80", SYN), Verdict::Forwarded, None),
        ("to_net", Frame::tcp("192.0.2.10:5", "10.96.9.9:80", SYN), Verdict::Refused, Some("refused")),
        ("to_pod", Frame::udp("192.0.2.10:5", "10.244.0.2:80"), Verdict::Forwarded, None),
    ] {
        // What is dropped or refused is told each time, and so is what opens a connection.
        for _ in 0..2 {
            rig.run(program, &frame.bytes());
        }
        let flows = told(&mut listener);
        let again = reason.is_some() || frame.flags == SYN;
        assert_eq!(flows.len(), 1 + usize::from(again), "{frame:?}: {flows:#?}");
        for flow in flows {
            assert_eq!((flow.verdict, flow.reason), (verdict, reason), "{frame:?}");
            assert_eq!((flow.source, flow.destination), (frame.source, frame.destination));
        }
    }
    let mut cut = syn.bytes();
    cut.truncate(14 + 20 + 4);
    rig.run("from_pod", &cut);
    assert_eq!(one(&mut listener).reason, Some("malformed"));
    assert_eq!(listener.lost().unwrap(), Default::default());
    // Another one has to wait until this one has gone.
    let error = Listener::open(&Pins::new(&rig.directory), 1).unwrap_err();
    assert!(matches!(error, ViewError::Busy), "{error}");
    drop(listener);
    listen(&rig, 1);
}

#[test]
fn what_is_too_much_is_counted() {
    let rig = Rig::new();
    let mut listener = listen(&rig, 3);
    for port in 0..40 {
        rig.run("from_pod", &Frame::tcp(&at("10.244.0.2", 4_000 + port), "10.96.0.8:80", SYN).bytes());
    }
    let flows = told(&mut listener).len() as u64;
    let lost = listener.lost().unwrap();
    assert_eq!((flows + lost.rate, lost.ring), (40, 0), "{flows} {lost:?}");
    assert!((3..40).contains(&flows), "{flows}");
    drop(listener);
    // Nobody takes them away.
    let mut listener = listen(&rig, 1_000_000);
    for _ in 0..4_000 {
        rig.run("from_pod", &Frame::tcp("10.244.0.2:4000", "10.96.0.8:80", SYN).bytes());
    }
    let lost = listener.lost().unwrap();
    assert_eq!(told(&mut listener).len() as u64 + lost.ring, 4_000, "{lost:?}");
    assert!(lost.ring > 0 && lost.rate == 0, "{lost:?}");
}

#[test]
fn a_listener_that_dies_is_forgotten() {
    let rig = Rig::new();
    let switch: Table<u32, FlowSwitch> = rig.table(kelp_common::maps::FLOW_SWITCH);
    drop(listen(&rig, 7));
    assert_eq!(switch.get(&0).unwrap(), Some(FlowSwitch::default()));
    // As one leaves it that was killed long ago.
    switch.put(&0, &FlowSwitch { until: 1, rate: 7 }).unwrap();
    rig.run("from_pod", &Frame::tcp("10.244.0.2:4000", "10.96.0.8:80", SYN).bytes());
    assert_eq!(switch.get(&0).unwrap().unwrap().until, 0);
    assert_eq!(told(&mut listen(&rig, 7)), []);
}

/// Prints what a packet costs while nobody listens, and while somebody does: `--ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn measure_the_cost_of_telling() {
    let rig = Rig::new();
    let program = rig.kernel.program("from_pod").unwrap();
    let run = |frame: &Frame| {
        let all = (0..7).map(|_| sys::test_run(program, &frame.bytes(), 0, 300_000).unwrap().nanoseconds);
        all.min().unwrap()
    };
    let direct = Frame { flags: ACK, ..Frame::tcp("10.244.0.2:4000", "10.244.0.3:8080", ACK) };
    let refused = Frame::sctp("10.244.0.2:4000", "10.244.0.77:80", ACK);
    for (name, frame) in [("forwarded", &direct), ("dropped", &refused)] {
        let off = run(frame);
        let listener = listen(&rig, 1_000);
        let on = run(frame);
        drop(listener);
        println!("{name}: {off} ns while nobody listens, {on} ns while somebody does");
    }
}
