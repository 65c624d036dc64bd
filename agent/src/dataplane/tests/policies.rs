//! Network policies with real sockets.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kelp_common::maps;
use kelp_model::policy::PodFacts;
use kube::runtime::watcher::Event;
use serde_json::{Value, json};

use super::*;
use crate::dataplane::events::About;
use crate::dataplane::policy::{self, read};
use crate::dataplane::{Endpoint, PodDatapath};

/// How long one waits for what does not come.
const SHORT: Duration = Duration::from_millis(400);

pub(super) fn policy(name: &str, spec: Value) -> NetworkPolicy {
    serde_json::from_value(json!({"metadata": {"namespace": "default", "name": name}, "spec": spec})).unwrap()
}

pub(super) fn app(name: &str) -> Value {
    json!({"podSelector": {"matchLabels": {"app": name}}})
}

pub(super) fn of(name: &str, mut spec: Value) -> Value {
    spec["podSelector"] = json!({"matchLabels": {"app": name}});
    spec
}

/// A pod as policies and the API know it.
pub(super) fn api_pod(name: &str, namespace: &str, addresses: &[String]) -> k8s_openapi::api::core::v1::Pod {
    let ips: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
    serde_json::from_value(json!({
        "metadata": {"namespace": namespace, "name": name, "uid": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIPs": ips},
    }))
    .unwrap()
}

/// The node's pods `one` and `two`, and `remote` in another namespace on another node.
fn guarded(world: &World, policies: &[NetworkPolicy]) -> Guarded {
    let mut pods: Vec<_> = world
        .pods
        .iter()
        .map(|pod| api_pod(pod.name, "default", &[pod.v4.to_string(), pod.v6.to_string()]))
        .collect();
    pods.push(api_pod("remote", "elsewhere", &[REMOTE4.to_owned()]));
    let namespace = |name: &str| -> Namespace {
        serde_json::from_value(json!({"metadata": {"name": name, "labels": {"name": name}}})).unwrap()
    };
    Guarded {
        policies: policies.to_vec(),
        namespaces: vec![namespace("default"), namespace("elsewhere")],
        pods,
    }
}

/// A world with servers and these policies.
fn world_with(policies: &[NetworkPolicy]) -> World {
    let world = World::new();
    for pod in &world.pods {
        for v4 in [true, false] {
            for port in [8080, 8081] {
                serve_tcp(&pod.net, SocketAddr::new(pod.address(v4), port), pod.name);
                serve_udp(&pod.net, SocketAddr::new(pod.address(v4), port), pod.name);
            }
        }
    }
    for address in [OUTSIDE4, OUTSIDE6, REMOTE4] {
        serve_tcp(&world.outside, at(address, 7000), "outside");
    }
    start_guarded(&world, policies);
    world
}

fn start_guarded(world: &World, policies: &[NetworkPolicy]) {
    world.start_with(Objects {
        services: vec![service("two", &["10.96.0.7", "fd00:10:96::7"], 30080)],
        slices: vec![slice("two", &[world.pods[1].v4], 8080), slice("two", &[world.pods[1].v6], 8080)],
        guarded: Some(guarded(world, policies)),
        ..Objects::default()
    });
}

pub(super) fn connects(address: SocketAddr) -> bool {
    let result = TcpStream::connect_timeout(&address, SHORT);
    if let Err(error) = &result {
        assert_eq!(
            error.kind(),
            ErrorKind::TimedOut,
            "{address}: what is denied is dropped, not refused: {error}"
        );
    }
    result.is_ok()
}

fn answers(address: SocketAddr) -> bool {
    answers_to(if address.is_ipv4() { "0.0.0.0" } else { "::" }, address)
}

fn answers_to(own: &str, address: SocketAddr) -> bool {
    let socket = UdpSocket::bind(at(own, 0)).unwrap();
    socket.set_read_timeout(Some(SHORT)).unwrap();
    socket.send_to(b"?", address).unwrap();
    socket.recv_from(&mut [0; 64]).is_ok()
}

#[test]
fn pods_are_reached_as_the_policies_say() {
    let blocks = json!([
        {"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.128/25"]}},
        {"ipBlock": {"cidr": "2001:db8::/32", "except": ["2001:db8::/126"]}},
    ]);
    let world = world_with(&[
        policy(
            "in",
            of(
                "two",
                json!({"ingress": [
                    {"from": [app("one")], "ports": [{"port": "web"}, {"port": 8000, "endPort": 8080, "protocol": "UDP"}]},
                    {"from": blocks, "ports": [{"port": 8081}]},
                    {"from": [{"namespaceSelector": {"matchLabels": {"name": "elsewhere"}}, "podSelector": {}}],
                        "ports": [{"port": 8081, "protocol": "UDP"}]},
                ]}),
            ),
        ),
        policy(
            "out",
            of(
                "one",
                json!({"policyTypes": ["Egress"], "egress": [
                    {"to": [app("two")]}, {"to": [{"ipBlock": {"cidr": "192.0.2.1/32"}}], "ports": [{"port": 7000}]},
                ]}),
            ),
        ),
    ]);
    let (one, two) = (&world.pods[0], &world.pods[1]);
    let to = |v4: bool, port| SocketAddr::new(two.address(v4), port);
    one.net.run(|| {
        for v4 in [true, false] {
            assert!(connects(to(v4, 8080)) && !connects(to(v4, 8081)));
            assert!(answers(to(v4, 8080)) && !answers(to(v4, 8081)));
            // Through the service, packet by packet.
            assert_eq!(ask_tcp(at(if v4 { "10.96.0.7" } else { "fd00:10:96::7" }, 80)).unwrap().0, "two");
        }
        assert!(
            connects(at(OUTSIDE4, 7000)) && !connects(at(OUTSIDE6, 7000)) && !connects(at(REMOTE4, 7000))
        );
    });
    world.with_sockets(&one.net, || {
        assert_eq!(ask_tcp(at("10.96.0.7", 80)).unwrap().0, "two", "through the service, in the socket");
    });
    // The other way round the first pod answers everybody and the second one may send.
    two.net
        .run(|| assert!(connects(SocketAddr::new(one.v4, 8081)) && connects(SocketAddr::new(one.v6, 8081))));
    world.outside.ip(&format!("-6 route add fd00:10:244::/64 via {NODE6}"));
    world.outside.run(|| {
        assert!(connects(to(true, 8081)) && !connects(to(true, 8080)), "a block");
        assert!(!connects(to(false, 8081)), "an exception");
        assert!(!connects(at(NODE4, 30080)), "the client of a node port is the outside");
    });
    world.outside.run(|| {
        for (port, own, wanted) in [(8081, REMOTE4, true), (8080, REMOTE4, false), (8081, OUTSIDE4, false)] {
            assert_eq!(
                answers_to(own, to(true, port)),
                wanted,
                "{own} to {port}: a pod of another namespace"
            );
        }
    });
    // Probes.
    world.host.run(|| {
        for pod in &world.pods {
            for (v4, port) in [(true, 8080), (true, 8081), (false, 8080), (false, 8081)] {
                assert!(connects(SocketAddr::new(pod.address(v4), port)));
            }
        }
    });
    let counters = world.dataplane().counters().unwrap();
    assert!(
        counters[maps::counter::POLICY_INGRESS as usize] > 0
            && counters[maps::counter::POLICY_EGRESS as usize] > 0
    );
}

#[test]
fn a_connection_is_cut_when_it_is_forbidden() {
    let allow = policy("in", of("two", json!({"ingress": [{"from": [app("one")]}]})));
    let forbid = policy("in", of("two", json!({"ingress": [{"from": [app("nobody")]}]})));
    for first in [vec![allow.clone()], vec![]] {
        let world = world_with(&first);
        let (one, two) = (&world.pods[0], &world.pods[1]);
        let address = SocketAddr::new(two.v4, 8080);
        let mut stream = one.net.run(|| TcpStream::connect_timeout(&address, TIMEOUT).unwrap());
        greeting(&mut stream).unwrap();
        echo(&mut stream, 3);
        world.tell_policy(policy::Change::Policy(Event::Apply(forbid.clone())));
        eventually("the policy is in effect", || one.net.run(|| !connects(address)));
        stream.set_read_timeout(Some(SHORT)).unwrap();
        stream.write_all(b"x").unwrap();
        assert!(stream.read(&mut [0; 1]).is_err(), "established, and cut");
        world.tell_policy(policy::Change::Policy(Event::Apply(allow.clone())));
        eventually("the policy is in effect", || one.net.run(|| connects(address)));
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 1, "what was sent meanwhile arrives");
        echo(&mut stream, 3);
        // Without policies nothing is left of them.
        world.tell_policy(policy::Change::Policy(Event::Delete(allow.clone())));
        eventually("nothing is left", || {
            let tables = read(world.dataplane().policies()).unwrap();
            tables.rules.is_empty() && tables.identities.is_empty()
        });
        echo(&mut stream, 3);
    }
}

#[test]
fn a_new_pod_is_isolated_from_its_first_packet() {
    let deny = policy("deny", json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}));
    let world = world_with(&[]);
    let (one, two) = (&world.pods[0], &world.pods[1]);
    world.block_on(world.dataplane().detach_endpoint(&[two.v4, two.v6])).unwrap();
    world.tell_policy(policy::Change::Policy(Event::Apply(deny)));
    eventually("the policy is in effect", || one.net.run(|| !connects(at(OUTSIDE4, 7000))));
    // The outside hears what the pod gets out.
    let heard = Arc::new(AtomicBool::new(false));
    let socket = world.outside.run(|| UdpSocket::bind((OUTSIDE4, 7777)).unwrap());
    let ear = heard.clone();
    world.outside.spawn(move || {
        if socket.recv_from(&mut [0; 8]).is_ok() {
            ear.store(true, Ordering::SeqCst);
        }
    });
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    two.net.spawn(move || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        while !stopped.load(Ordering::SeqCst) {
            let _ = socket.send_to(b"out", (OUTSIDE4, 7777));
        }
    });
    let facts = PodFacts::of(&api_pod("two", "default", &[]));
    let endpoint = Endpoint { pod: facts, ..two.endpoint.clone() };
    world.block_on(world.dataplane().attach_endpoint(&endpoint)).unwrap();
    std::thread::park_timeout(Duration::from_millis(300));
    stop.store(true, Ordering::SeqCst);
    assert!(!heard.load(Ordering::SeqCst), "a packet got out");
    world.host.run(|| assert!(connects(SocketAddr::new(two.v4, 8080)), "its node reaches it"));
    // Once it may, it is heard: the pod was connected all the time.
    world.tell_policy(policy::Change::Policy(Event::Apply(policy(
        "deny",
        json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "egress": [{}]}),
    ))));
    eventually("the pod is heard", || {
        two.net.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            let _ = socket.send_to(b"out", (OUTSIDE4, 7777));
        });
        heard.load(Ordering::SeqCst)
    });
}

#[test]
fn policies_stay_in_effect_without_the_agent_and_change_with_the_next() {
    let allow = policy("in", of("two", json!({"ingress": [{"from": [app("one")]}]})));
    let forbid = policy("in", of("two", json!({})));
    let world = world_with(std::slice::from_ref(&allow));
    let (one, two) = (&world.pods[0], &world.pods[1]);
    let address = SocketAddr::new(two.v4, 8080);
    let check = |allowed: bool| {
        one.net.run(|| assert_eq!(connects(address), allowed));
        world.outside.run(|| assert!(!connects(address)));
    };
    check(true);
    let mut stream = one.net.run(|| TcpStream::connect_timeout(&address, TIMEOUT).unwrap());
    greeting(&mut stream).unwrap();
    let spaces = || {
        let tables = read(world.dataplane().policies()).unwrap();
        tables.rules.keys().map(|key| key.space).collect::<std::collections::BTreeSet<_>>()
    };
    let first = spaces();
    world.kill();
    check(true);
    let before = Instant::now();
    start_guarded(&world, std::slice::from_ref(&allow));
    check(true);
    echo(&mut stream, 3);
    assert!(before.elapsed() < Duration::from_secs(8), "nobody waited for a list");
    assert_eq!(spaces().len(), 1, "old tables are removed");
    assert_ne!(spaces(), first);
    world.kill();
    start_guarded(&world, std::slice::from_ref(&forbid));
    check(false);
}

#[test]
fn what_is_broken_or_has_no_room_allows_nothing_and_is_told() {
    let broken = policy(
        "broken",
        of(
            "two",
            json!({"ingress": [{"from": [
        {"ipBlock": {"cidr": "192.0.2.0/99"}}, app("one")]}]}),
        ),
    );
    let mut world = World::new();
    world.config.map_sizes.insert(maps::RULES, 1);
    for pod in &world.pods {
        serve_tcp(&pod.net, SocketAddr::new(pod.v4, 8080), pod.name);
    }
    start_guarded(&world, &[broken]);
    let event = world.event();
    assert_eq!(event.reason, "InvalidNetworkPolicy");
    assert!(matches!(&event.about, About::Policy(name) if name.to_string() == "default/broken"));
    assert!(event.note.contains("192.0.2.0/99"), "{}", event.note);
    let (one, two) = (&world.pods[0], &world.pods[1]);
    one.net.run(|| assert!(connects(SocketAddr::new(two.v4, 8080)), "the rest of the policy holds"));
    world.outside.run(|| assert!(!connects(SocketAddr::new(two.v4, 8080))));
    // A second rule does not fit.
    let second = policy("second", of("one", json!({"ingress": [{"from": [app("two")]}]})));
    world.tell_policy(policy::Change::Policy(Event::Apply(second)));
    let event = world.event();
    assert_eq!((event.reason, &event.about), ("DataplaneMapFull", &About::Node));
    assert!(event.note.contains(maps::RULES), "{}", event.note);
    two.net.run(|| assert!(!connects(SocketAddr::new(one.v4, 8080)), "what does not fit is not allowed"));
    one.net.run(|| assert!(connects(SocketAddr::new(two.v4, 8080)), "what was there stays"));
    // Room comes with a policy that goes; the write is repeated by itself.
    let gone = policy("broken", json!({}));
    world.tell_policy(policy::Change::Policy(Event::Delete(gone)));
    eventually("the second rule is in effect", || two.net.run(|| connects(SocketAddr::new(one.v4, 8080))));
}
