//! End-to-end: real programs, real sockets, a node in network namespaces.

mod attached;
mod bad_input;
mod bandwidth;
mod dsr;
mod foreign;
mod lessons;
mod mtu;
mod node_ports;
mod policies;
mod services;
mod tunnel;
mod view;
pub(super) mod world;
mod xdp;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use world::*;

const WEB4: &str = "10.96.0.7";
const WEB6: &str = "fd00:10:96::7";
const EMPTY4: &str = "10.96.0.8";
const EMPTY6: &str = "fd00:10:96::8";
const HOSTED4: &str = "10.96.0.9";
const HOSTED6: &str = "fd00:10:96::9";
const FAR4: &str = "10.96.0.10";

/// A world with servers everywhere, and services: `web` (both pods), `solo` (the first pod), `empty`, `hosted` (a
/// server of the host), `far` (a pod of another node).
fn world() -> World {
    world_with(false)
}

/// [`world`] whose devices have filters, if `clsact`.
fn world_with(clsact: bool) -> World {
    let mut world = World::new();
    world.config.clsact = clsact;
    for pod in &world.pods {
        for v4 in [true, false] {
            serve_tcp(&pod.net, SocketAddr::new(pod.address(v4), 8080), pod.name);
            serve_udp(&pod.net, SocketAddr::new(pod.address(v4), 8080), pod.name);
        }
    }
    for address in [NODE4, NODE6] {
        serve_tcp(&world.host, at(address, 6443), "host");
        serve_udp(&world.host, at(address, 6443), "host");
    }
    for address in [OUTSIDE4, OUTSIDE6] {
        serve_tcp(&world.outside, at(address, 7000), "outside");
        serve_udp(&world.outside, at(address, 7000), "outside");
    }
    serve_tcp(&world.outside, at(REMOTE4, 8080), "remote");
    serve_udp(&world.outside, at(REMOTE4, 8080), "remote");
    // These answer when something leaves that must not.
    for address in ["10.96.9.9", "fd00:10:96::99"] {
        serve_tcp(&world.outside, at(address, 80), "leaked");
    }
    start(&world);
    world
}

fn start(world: &World) {
    let of = |v4: bool| world.pods.iter().map(|pod| pod.address(v4)).collect::<Vec<_>>();
    world.start(
        vec![
            service("web", &[WEB4, WEB6], 30080),
            service("solo", &["10.96.0.11", "fd00:10:96::b"], 30081),
            service("empty", &[EMPTY4, EMPTY6], 30082),
            service("hosted", &[HOSTED4, HOSTED6], 30083),
            service("far", &[FAR4], 30084),
        ],
        vec![
            slice("web", &of(true), 8080),
            slice("web", &of(false), 8080),
            slice("solo", &of(true)[..1], 8080),
            slice("solo", &of(false)[..1], 8080),
            slice("hosted", &[NODE4.parse().unwrap()], 6443),
            slice("hosted", &[NODE6.parse().unwrap()], 6443),
            slice("far", &[REMOTE4.parse().unwrap()], 8080),
        ],
    );
}

/// Asks often; returns how often each server answered, and the last address one saw.
fn spread(
    ask: impl Fn() -> std::io::Result<(String, String)>,
    times: usize,
) -> (BTreeMap<String, usize>, String) {
    let mut counts = BTreeMap::new();
    let mut seen = String::new();
    for _ in 0..times {
        let (name, peer) = ask().unwrap();
        *counts.entry(name).or_default() += 1;
        seen = peer;
    }
    (counts, seen)
}

fn assert_both(counts: &BTreeMap<String, usize>, what: &str) {
    assert_eq!(counts.keys().collect::<Vec<_>>(), ["one", "two"], "{what}: {counts:?}");
}

#[test]
fn pods_reach_services_on_both_paths() {
    let world = world();
    let client = &world.pods[0];
    for sockets in [true, false] {
        for (web, solo) in [(WEB4, "10.96.0.11"), (WEB6, "fd00:10:96::b")] {
            let own = client.address(web.contains('.')).to_string();
            let body = || {
                let what = format!("{web}, socket path {sockets}");
                assert_both(&spread(|| ask_tcp(at(web, 80)), 40).0, &what);
                for connected in [true, false] {
                    assert_both(&spread(|| ask_udp(at(web, 80), connected), 40).0, &what);
                }
                // A pod reaches itself.
                let (name, peer) = ask_tcp(at(solo, 80)).unwrap();
                assert_eq!(name, "one", "{what}");
                assert_eq!(peer == own, sockets, "{what}: the packet path shows the gateway, not {peer}");
                assert_eq!(ask_udp(at(solo, 80), true).unwrap().0, "one", "{what}");
            };
            if sockets { world.with_sockets(&client.net, body) } else { client.net.run(body) }
        }
    }
    // Another pod's address is seen as it is, on both paths.
    let client = &world.pods[1];
    for sockets in [true, false] {
        let body = || ask_tcp(at("10.96.0.11", 80)).unwrap().1;
        let seen = if sockets { world.with_sockets(&client.net, body) } else { client.net.run(body) };
        assert_eq!(seen, client.v4.to_string());
    }
}

#[test]
fn pods_reach_pods_the_host_and_the_outside() {
    let world = world();
    let client = &world.pods[0];
    client.net.run(|| {
        for v4 in [true, false] {
            let (name, peer) = ask_tcp(SocketAddr::new(world.pods[1].address(v4), 8080)).unwrap();
            assert_eq!((name.as_str(), peer), ("two", client.address(v4).to_string()));
        }
        for (host, hosted, outside, node) in
            [(NODE4, HOSTED4, OUTSIDE4, NODE4), (NODE6, HOSTED6, OUTSIDE6, NODE6)]
        {
            assert_eq!(ask_tcp(at(host, 6443)).unwrap().0, "host");
            assert_eq!(ask_tcp(at(hosted, 80)).unwrap().0, "host", "a backend on the host, packet path");
            assert_eq!(ask_udp(at(hosted, 80), true).unwrap().0, "host");
            let (name, peer) = ask_tcp(at(outside, 7000)).unwrap();
            assert_eq!((name.as_str(), peer.as_str()), ("outside", node), "the outside sees the node");
            assert_eq!(ask_udp(at(outside, 7000), true).unwrap().0, "outside");
        }
        let (name, peer) = ask_tcp(at(REMOTE4, 8080)).unwrap();
        assert_eq!((name.as_str(), peer), ("remote", client.v4.to_string()), "no translation between pods");
        assert_eq!(ask_tcp(at(FAR4, 80)).unwrap(), ("remote".to_owned(), client.v4.to_string()));
    });
    world.with_sockets(&client.net, || {
        assert_eq!(ask_tcp(at(HOSTED4, 80)).unwrap().0, "host", "a backend on the host, socket path");
    });
    // And the host reaches pods, which is how probes work.
    world.host.run(|| {
        for pod in &world.pods {
            for v4 in [true, false] {
                assert_eq!(ask_tcp(SocketAddr::new(pod.address(v4), 8080)).unwrap().0, pod.name);
            }
        }
    });
}

#[test]
fn the_host_reaches_services_and_node_ports() {
    let world = world();
    world.with_sockets(&world.host, || {
        for address in [
            at(WEB4, 80),
            at(WEB6, 80),
            at(NODE4, 30080),
            at(NODE6, 30080),
            at("127.0.0.1", 30080),
            at("::1", 30080),
        ] {
            if address.ip().is_loopback() && !namespaces_are_known() {
                assert_eq!(ask_tcp(address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
                continue;
            }
            assert_both(&spread(|| ask_tcp(address), 40).0, &address.to_string());
            assert_both(&spread(|| ask_udp(address, true), 40).0, &address.to_string());
        }
        // A v4-mapped address is the IPv4 address.
        assert_both(&spread(|| ask_tcp(at("::ffff:10.96.0.7", 80)), 40).0, "v4-mapped");
    });
    // A pod's own loopback has no node ports.
    let error = world.with_sockets(&world.pods[0].net, || ask_tcp(at("127.0.0.1", 30080)).unwrap_err());
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    world.with_sockets(&world.pods[0].net, || {
        assert_both(&spread(|| ask_tcp(at(NODE4, 30080)), 40).0, "a pod to a node port, socket path");
    });
    world.pods[0].net.run(|| {
        assert_both(&spread(|| ask_tcp(at(NODE4, 30080)), 40).0, "a pod to a node port, packet path");
    });
}

#[test]
fn the_outside_reaches_node_ports() {
    let world = world();
    world.outside.run(|| {
        for (node, own) in [(NODE4, OUTSIDE4), (NODE6, OUTSIDE6)] {
            let (counts, seen) = spread(|| ask_tcp(at(node, 30080)), 40);
            assert_both(&counts, node);
            assert_eq!(seen, own, "a local backend sees the client");
            assert_both(&spread(|| ask_udp(at(node, 30080), true), 40).0, node);
            assert_eq!(ask_tcp(at(node, 30083)).unwrap(), ("host".to_owned(), own.to_owned()));
            let error = ask_tcp(at(node, 30082)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "no endpoints");
        }
        // A backend on another node answers through this one.
        assert_eq!(ask_tcp(at(NODE4, 30084)).unwrap(), ("remote".to_owned(), NODE4.to_owned()));
        assert_eq!(ask_udp(at(NODE4, 30084), true).unwrap().0, "remote");
        // Pods can be reached from other nodes by their address.
        assert_eq!(ask_tcp(SocketAddr::new(world.pods[0].v4, 8080)).unwrap().1, OUTSIDE4);
    });
}

#[test]
fn what_does_not_exist_is_refused_and_never_leaves() {
    let world = world();
    let missing = [
        at(EMPTY4, 80),
        at(EMPTY6, 80),
        at(WEB4, 81),
        at(WEB6, 81),
        at("10.96.9.9", 80),
        at("fd00:10:96::99", 80),
    ];
    let body = || {
        for address in missing {
            let error = ask_tcp(address).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "tcp {address}: {error}");
            let error = ask_udp(address, true).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "udp {address}: {error}");
        }
    };
    world.with_sockets(&world.pods[0].net, body);
    world.pods[0].net.run(body);
    world.with_sockets(&world.host, body);
    // Programs of the host outside the cgroup: refused at the uplink.
    world.host.run(body);
    // A pod address nobody has.
    world.pods[0].net.run(|| {
        assert_eq!(ask_tcp(at("10.244.0.77", 80)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    });
}

/// Sends and receives until `rounds` messages came back.
fn echo(stream: &mut TcpStream, rounds: u32) {
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    for round in 0..rounds {
        let message = [round as u8; 1_000];
        stream.write_all(&message).unwrap();
        let mut answer = [0; 1_000];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(message, answer);
    }
}

#[test]
fn connections_survive_the_agent() {
    connections_survive(&world());
}

#[test]
fn connections_survive_the_agent_where_there_is_no_tcx() {
    connections_survive(&world_with(true));
}

fn connections_survive(world: &World) {
    let net = &world.pods[0].net;
    let connect = || {
        let mut stream = TcpStream::connect_timeout(&at(WEB4, 80), TIMEOUT).unwrap();
        greeting(&mut stream).unwrap();
        stream
    };
    let mut streams: Vec<TcpStream> = (0..4).map(|_| world.with_sockets(net, connect)).collect();
    streams.extend((0..4).map(|_| net.run(connect)));
    let mut from_outside =
        world.outside.run(|| TcpStream::connect_timeout(&at(NODE4, 30080), TIMEOUT).unwrap());
    greeting(&mut from_outside).unwrap();
    streams.push(from_outside);
    for agents in 0..3 {
        for stream in &mut streams {
            echo(stream, 3);
        }
        world.kill();
        for stream in &mut streams {
            echo(stream, 3);
        }
        // New connections while no agent runs.
        for sockets in [true, false] {
            let body = || assert_both(&spread(|| ask_tcp(at(WEB4, 80)), 30).0, "no agent");
            if sockets { world.with_sockets(net, body) } else { net.run(body) }
        }
        world.outside.run(|| assert_both(&spread(|| ask_tcp(at(NODE4, 30080)), 30).0, "no agent"));
        start(world);
        let _ = agents;
    }
    for stream in &mut streams {
        echo(stream, 3);
    }
}

#[test]
fn links_of_another_cgroup_are_replaced() {
    let mut world = world();
    let net = world.pods[0].net.clone();
    world.kill();
    // The same pins, another cgroup: as after the setting was changed.
    let old = world.cgroup.clone();
    let other = old.with_file_name(format!("{}0", old.file_name().unwrap().to_string_lossy()));
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("cgroup.type"), "threaded").unwrap();
    world.cgroup.clone_from(&other);
    world.config.cgroup.clone_from(&other);
    start(&world);
    world.with_sockets(&net, || {
        let stream = TcpStream::connect_timeout(&at(WEB4, 80), TIMEOUT).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), at(WEB4, 80));
    });
    assert_eq!(attached::count(&world), attached::ALL);
    // A cgroup that was removed with its links.
    world.kill();
    std::fs::remove_dir(&old).unwrap();
    start(&world);
    world.with_sockets(&net, || {
        assert_both(&spread(|| ask_tcp(at(WEB4, 80)), 40).0, "after a removed cgroup")
    });
}
