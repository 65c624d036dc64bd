//! Node ports of other nodes, which sockets must not translate before they get there.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kelp_common::maps::counter;
use serde_json::json;

use super::world::*;

/// The slices of `local`, with an endpoint on each of these nodes: their first pods.
fn local_slices(nodes: &[(&World, &str)]) -> Vec<EndpointSlice> {
    let of = |v4: bool| {
        let addresses: Vec<IpAddr> = nodes.iter().map(|(world, _)| world.pods[0].address(v4)).collect();
        let mut value = serde_json::to_value(slice("local", &addresses, 8080)).unwrap();
        for (number, (_, name)) in nodes.iter().enumerate() {
            value["endpoints"][number]["nodeName"] = json!(name);
        }
        serde_json::from_value(value).unwrap()
    };
    vec![of(true), of(false)]
}

/// Lesson 3: a node port of another node is that node's business where the traffic policy is `Local`, also for sockets that have an
/// endpoint nearer.
#[test]
fn node_ports_of_other_nodes_get_there_and_find_the_endpoints_of_those() {
    let mut first = World::new();
    let mut second = World::beside(&first);
    (first.config.node_name, second.config.node_name) = ("near".to_owned(), "far".to_owned());
    for (world, name) in [(&first, "near"), (&second, "far")] {
        for v4 in [true, false] {
            let address = SocketAddr::new(world.pods[0].address(v4), 8080);
            serve_tcp(&world.pods[0].net, address, name);
            serve_udp(&world.pods[0].net, address, name);
        }
    }
    let mut local =
        serde_json::to_value(service("local", &["10.96.0.41", "fd00:10:96::41"], 30_041)).unwrap();
    local["spec"]["externalTrafficPolicy"] = json!("Local");
    let start = |nodes: &[(&World, &str)]| {
        for world in [&first, &second] {
            let services = vec![serde_json::from_value(local.clone()).unwrap()];
            world.start_with(Objects { services, slices: local_slices(nodes), ..Objects::default() });
        }
    };
    let far = |v4: bool| {
        let nodes = &second.config.node_addresses;
        SocketAddr::new(*nodes.iter().find(|address| address.is_ipv4() == v4).unwrap(), 30_041)
    };
    let everybody = |check: &(dyn Fn() + Sync)| {
        for net in [&first.pods[0].net, &first.pods[1].net, &first.host] {
            first.with_sockets(net, check);
            net.run(check);
        }
        first.outside.run(check);
    };

    start(&[(&first, "near"), (&second, "far")]);
    everybody(&|| {
        for v4 in [true, false] {
            for _ in 0..10 {
                let (name, seen) = ask_tcp(far(v4)).unwrap();
                assert_eq!(name, "far");
                assert_ne!(seen, far(v4).ip().to_string(), "the client's node is seen, or the client");
                assert_eq!(ask_udp(far(v4), true).unwrap().0, "far");
                assert_eq!(ask_udp(far(v4), false).unwrap().0, "far");
            }
        }
    });

    // Nobody there: it is dropped there, although a pod here would answer.
    for world in [&first, &second] {
        world.kill();
    }
    start(&[(&first, "near")]);
    let dropped = || second.dataplane().counters().unwrap()[counter::NO_LOCAL_ENDPOINT as usize];
    everybody(&|| {
        for v4 in [true, false] {
            for connected in [true, false] {
                let before = dropped();
                let socket = UdpSocket::bind(if v4 { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
                if connected {
                    socket.connect(far(v4)).unwrap();
                    socket.send(b"?").unwrap();
                } else {
                    socket.send_to(b"?", far(v4)).unwrap();
                }
                eventually("the other node drops the datagram", || dropped() > before);
            }
            let before = dropped();
            let stream = begin_to_connect(far(v4));
            eventually("the other node drops the connection", || dropped() > before);
            drop(stream);
        }
    });
    first
        .outside
        .run(|| assert_eq!(ask_tcp(at(NODE4, 30_041)).unwrap(), ("near".to_owned(), OUTSIDE4.to_owned())));
}

/// Sends the first packet of a connection.
fn begin_to_connect(address: SocketAddr) -> OwnedFd {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_NONBLOCK, None).unwrap();
    let result = connect(socket.as_raw_fd(), &SockaddrStorage::from(address));
    assert_eq!(result, Err(nix::errno::Errno::EINPROGRESS));
    socket
}
