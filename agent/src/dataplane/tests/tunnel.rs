//! Two nodes with a router between them that knows no pods.

use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use k8s_openapi::api::core::v1::Node;
use kelp_common::maps::counter;
use kelp_common::peer::TUNNEL_ID;
use serde_json::{Value, json};

use super::policies::{api_pod, app, connects, of, policy};
use super::*;
use crate::dataplane::config::Xdp;
use crate::dataplane::kernel::tunnel::DEVICE;
use crate::dataplane::packet_tests::frame::Frame;
use crate::dataplane::{PodDatapath, cleanup};
use crate::network::namespace::run;
use crate::network::peers::{Own, plan};
use crate::network::routes::links_of;
use crate::network::{Routing, TellPeers, carry_out};

const CLUSTER: [&str; 2] = [FAR4, "fd00:10:96::a"];

fn node_object(number: usize, world: &World) -> Node {
    let config = &world.config;
    let ranges: Vec<Value> =
        config.pod_cidrs.iter().map(|(network, prefix)| json!(format!("{network}/{prefix}"))).collect();
    let addresses: Vec<Value> = config
        .node_addresses
        .iter()
        .map(|address| json!({"type": "InternalIP", "address": address.to_string()}))
        .collect();
    serde_json::from_value(json!({
        "metadata": {"name": format!("node{number}")},
        "spec": {"podCIDRs": ranges},
        "status": {"addresses": addresses},
    }))
    .unwrap()
}

/// Has both nodes follow their Node objects.
pub(super) fn introduce(worlds: [&World; 2], routing: Routing) {
    let nodes: Vec<Node> =
        worlds.iter().enumerate().map(|(number, world)| node_object(number, world)).collect();
    for (number, world) in worlds.into_iter().enumerate() {
        let own =
            Own { name: format!("node{number}"), addresses: world.config.node_addresses.clone(), routing };
        let dataplane = world.dataplane();
        let tell: TellPeers = Box::new(move |peers, tunnels| dataplane.set_peers(peers, tunnels));
        world.block_on(async {
            let addresses = own.addresses.clone();
            let links = run(None, |handle| async move { links_of(&handle, &addresses).await }).await.unwrap();
            carry_out(&plan(&nodes, &own, &links), routing, &tell).await.unwrap();
        });
    }
}

/// Servers at the pods, and the service `far` of the second node's first pod.
pub(super) fn serve(worlds: [&World; 2]) {
    for world in worlds {
        for pod in &world.pods {
            for v4 in [true, false] {
                serve_tcp(&pod.net, SocketAddr::new(pod.address(v4), 8080), pod.name);
                serve_udp(&pod.net, SocketAddr::new(pod.address(v4), 8080), pod.name);
            }
        }
    }
}

pub(super) fn start_both(worlds: [&World; 2]) {
    let pod = &worlds[1].pods[0];
    for world in worlds {
        world.start(
            vec![service("far", &CLUSTER, 30084)],
            vec![slice("far", &[pod.v4], 8080), slice("far", &[pod.v6], 8080)],
        );
    }
}

/// Two nodes with a router between them, whose uplinks have this MTU.
pub(super) fn apart(change: impl Fn(&mut World)) -> (World, World) {
    let mut first = World::new();
    let mut second = World::beyond(&first);
    for world in [&mut first, &mut second] {
        change(world);
    }
    serve([&first, &second]);
    start_both([&first, &second]);
    introduce([&first, &second], Routing::Auto);
    (first, second)
}

pub(super) fn device(world: &World) -> Option<Value> {
    world.host.run(|| {
        let output =
            std::process::Command::new("ip").args(["-s", "-d", "-j", "link", "show", DEVICE]).output();
        let list: Value = serde_json::from_slice(&output.unwrap().stdout).ok()?;
        Some(list[0].clone())
    })
}

pub(super) fn sent_by_tunnel(world: &World) -> u64 {
    device(world).unwrap()["stats64"]["tx"]["packets"].as_u64().unwrap()
}

fn counted(world: &World, index: u32) -> u64 {
    world.dataplane().counters().unwrap()[index as usize]
}

/// Whatever pods and clients do works, with the addresses that are seen without a tunnel.
fn everything_works(first: &World, second: &World, families: &[bool]) {
    let (here, there) = (&first.pods[0], &second.pods[0]);
    for v4 in families.iter().copied() {
        let own = here.address(v4).to_string();
        let remote = SocketAddr::new(there.address(v4), 8080);
        let cluster = at(CLUSTER[usize::from(!v4)], 80);
        let body = || {
            for address in [remote, cluster] {
                assert_eq!(ask_tcp(address).unwrap(), ("one".to_owned(), own.clone()), "{address}");
                for connected in [true, false] {
                    assert_eq!(
                        ask_udp(address, connected).unwrap(),
                        ("one".to_owned(), own.clone()),
                        "{address}"
                    );
                }
                echo_all(address, 1_000_000);
            }
        };
        here.net.run(body);
        first.with_sockets(&here.net, body);
        // The other way round.
        let back = SocketAddr::new(first.pods[1].address(v4), 8080);
        there.net.run(|| {
            assert_eq!(ask_tcp(back).unwrap(), ("two".to_owned(), there.address(v4).to_string()));
            echo_all(back, 1_000_000);
        });
        // The host's stack, which probes and proxies.
        if let Some(node) = first.config.node_addresses.iter().find(|address| address.is_ipv4() == v4) {
            first.host.run(|| {
                assert_eq!(ask_tcp(remote).unwrap(), ("one".to_owned(), node.to_string()));
                assert_eq!(ask_udp(remote, true).unwrap(), ("one".to_owned(), node.to_string()));
                echo_all(remote, 1_000_000);
            });
            // A client outside the cluster reaches a pod of the other node through this one.
            second.outside.run(|| {
                let service = SocketAddr::new(*node, 30084);
                assert_eq!(ask_tcp(service).unwrap(), ("one".to_owned(), node.to_string()));
                assert_eq!(ask_udp(service, true).unwrap(), ("one".to_owned(), node.to_string()));
                echo_all(service, 1_000_000);
            });
            let elsewhere = SocketAddr::new(
                second.config.node_addresses.iter().copied().find(|address| address.is_ipv4() == v4).unwrap(),
                30084,
            );
            here.net
                .run(|| assert_eq!(ask_tcp(elsewhere).unwrap().0, "one", "a node port of the other node"));
        }
        // Port unreachable, through the tunnel and back.
        let error = here.net.run(|| ask_udp(SocketAddr::new(there.address(v4), 9), true).unwrap_err());
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
}

#[test]
fn nodes_on_two_links_reach_each_others_pods_through_a_tunnel() {
    for clsact in [false, true] {
        let (first, second) = apart(|world| {
            world.config.clsact = clsact;
            world.config.xdp = if clsact { Xdp::default() } else { Xdp::Generic };
        });
        let before = sent_by_tunnel(&first);
        everything_works(&first, &second, &[true, false]);
        assert!(sent_by_tunnel(&first) > before);
        let shown = device(&first).unwrap();
        assert_eq!(shown["linkinfo"]["info_data"]["port"], 8472);
        assert_eq!(shown["mtu"], 1450);
        assert_eq!(counted(&first, counter::SPOOFED) + counted(&second, counter::SPOOFED), 0);
    }
}

#[test]
fn nodes_with_addresses_of_one_family_carry_both_in_their_tunnels() {
    for v4 in [true, false] {
        let (first, second) =
            apart(|world| world.config.node_addresses.retain(|address| address.is_ipv4() == v4));
        everything_works(&first, &second, &[true, false]);
        assert_eq!(device(&first).unwrap()["mtu"], if v4 { 1450 } else { 1430 });
    }
}

/// The largest packet to where a connected socket sends, as the kernel knows it.
pub(super) fn path_mtu(socket: &UdpSocket) -> i32 {
    let v4 = socket.local_addr().unwrap().is_ipv4();
    let (level, name) =
        if v4 { (libc::IPPROTO_IP, libc::IP_MTU) } else { (libc::IPPROTO_IPV6, libc::IPV6_MTU) };
    let mut mtu = 0_i32;
    let mut length = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the buffer is as long as said.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut mtu).cast(), &raw mut length) };
    assert_eq!(result, 0);
    mtu
}

pub(super) fn forbid_fragments(socket: &UdpSocket) {
    let v4 = socket.local_addr().unwrap().is_ipv4();
    let (level, name, value) = if v4 {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO)
    };
    // SAFETY: the value is as long as said.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), size_of::<i32>() as u32)
    };
    assert_eq!(result, 0);
}

#[test]
fn only_what_goes_through_a_tunnel_is_told_that_it_must_be_smaller() {
    let (first, second) = apart(|_| {});
    let remote = |v4: bool| SocketAddr::new(second.pods[0].address(v4), 8080);
    let near = |v4: bool| SocketAddr::new(first.pods[1].address(v4), 8080);
    let outside = |v4: bool| at(if v4 { OUTSIDE4 } else { OUTSIDE6 }, 9_999);
    first.pods[0].net.run(|| {
        for v4 in [true, false] {
            let full = 1_500 - if v4 { 28 } else { 48 };
            for (to, expected) in [(remote(v4), 1_450), (near(v4), 1_500), (outside(v4), 1_500)] {
                let socket = UdpSocket::bind(if v4 { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
                socket.connect(to).unwrap();
                forbid_fragments(&socket);
                assert_eq!(path_mtu(&socket), 1_500, "nothing is known yet");
                socket.send(&vec![0; full]).unwrap();
                if expected == 1_500 {
                    assert_eq!(path_mtu(&socket), 1_500, "{to}");
                    continue;
                }
                eventually("the error", || path_mtu(&socket) == expected);
                let error = socket.send(&vec![0; full]).unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE), "{to}");
                // What fits exactly arrives, and so does what is sent in pieces.
                let socket = UdpSocket::bind(if v4 { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
                socket.set_read_timeout(Some(TIMEOUT)).unwrap();
                socket.connect(to).unwrap();
                for length in [full - 50, 1_900] {
                    socket.send(&vec![0; length]).unwrap();
                    assert!(socket.recv(&mut [0; 64]).is_ok(), "{to}: {length} bytes");
                }
            }
        }
    });
}

#[test]
fn connections_through_a_tunnel_survive_the_agents_and_cleanup_removes_it() {
    for clsact in [false, true] {
        let (first, second) = apart(|world| world.config.clsact = clsact);
        let worlds = [&first, &second];
        let index = device(&first).unwrap()["ifindex"].clone();
        let connect = |address: SocketAddr| {
            let mut stream = TcpStream::connect_timeout(&address, TIMEOUT).unwrap();
            greeting(&mut stream).unwrap();
            stream
        };
        let remote = SocketAddr::new(second.pods[0].v4, 8080);
        let mut streams = vec![
            first.pods[0].net.run(|| connect(remote)),
            first.pods[0].net.run(|| connect(at(CLUSTER[1], 80))),
            first.host.run(|| connect(remote)),
            second.outside.run(|| connect(at(NODE4, 30084))),
        ];
        let mut check = |what: &str| {
            for stream in &mut streams {
                super::echo(stream, 3);
            }
            first.pods[0].net.run(|| assert_eq!(ask_tcp(remote).unwrap().0, "one", "{what}"));
            assert_eq!(device(&first).unwrap()["ifindex"], index, "{what}");
        };
        check("at first");
        for _ in 0..2 {
            for world in worlds {
                world.kill();
            }
            check("no agent");
            start_both(worlds);
            check("the Nodes are not known yet");
            introduce(worlds, Routing::Auto);
            check("known again");
        }
        first.kill();
        first.host.run(|| cleanup(&first.config.bpf_directory)).unwrap();
        assert_eq!(device(&first), None);
        assert!(device(&second).is_some());
    }
}

/// The way may change under a connection, in both directions, and without tunnels there is no device.
#[test]
fn connections_go_on_when_nodes_come_together_and_part() {
    let first = World::new();
    let second = World::beside(&first);
    let worlds = [&first, &second];
    for (world, other) in [(&first, "1"), (&second, "0")] {
        world.host.ip(&format!("route del 10.244.{other}.0/24"));
        let pods =
            if other == "0" { "fd00:10:244::/64".to_owned() } else { format!("fd00:10:244:{other}::/64") };
        world.host.ip(&format!("-6 route del {pods}"));
    }
    serve(worlds);
    start_both(worlds);
    introduce(worlds, Routing::Tunnel);
    let remote = |v4: bool| SocketAddr::new(second.pods[0].address(v4), 8080);
    let connect = |v4: bool| {
        let mut stream = TcpStream::connect_timeout(&remote(v4), TIMEOUT).unwrap();
        greeting(&mut stream).unwrap();
        stream
    };
    let mut streams: Vec<TcpStream> = [true, false]
        .into_iter()
        .flat_map(|v4| [first.pods[0].net.run(|| connect(v4)), first.host.run(|| connect(v4))])
        .collect();
    for routing in [Routing::Auto, Routing::Tunnel, Routing::Direct, Routing::Tunnel] {
        introduce(worlds, routing);
        let before = device(&first).map(|_| sent_by_tunnel(&first));
        for stream in &mut streams {
            super::echo(stream, 3);
        }
        let after = device(&first).map(|_| sent_by_tunnel(&first));
        match routing {
            Routing::Auto => assert_eq!(after, before, "nodes on one link need no tunnel"),
            Routing::Tunnel => assert!(after > before && before.is_some()),
            Routing::Direct => assert_eq!((before, after), (None, None)),
        }
    }
}

#[test]
fn a_backend_behind_a_tunnel_answers_clients_itself() {
    let (first, second) = apart(|world| world.config.dsr = true);
    for node in [NODE4, NODE6] {
        let own = if node == NODE4 { CLIENT4 } else { CLIENT6 };
        second.outside.run(|| {
            for _ in 0..3 {
                assert_eq!(ask_tcp(at(node, 30084)).unwrap(), ("one".to_owned(), own.to_owned()));
            }
            for connected in [true, false] {
                assert_eq!(ask_udp(at(node, 30084), connected).unwrap(), ("one".to_owned(), own.to_owned()));
            }
            echo_all(at(node, 30084), 1_000_000);
        });
    }
    assert!(sent_by_tunnel(&first) > 0);
    drop(second);
}

#[test]
fn policies_know_pods_behind_a_tunnel() {
    let (first, second) = apart(|_| {});
    let pod = &second.pods[0];
    second.kill();
    let addresses = |pod: &Pod| [pod.v4.to_string(), pod.v6.to_string()];
    let mut pods: Vec<_> =
        second.pods.iter().map(|pod| api_pod(pod.name, "default", &addresses(pod))).collect();
    for (name, pod) in ["far-one", "far-two"].into_iter().zip(&first.pods) {
        pods.push(api_pod(name, "default", &addresses(pod)));
    }
    let only_two = policy("only-two", of("one", json!({"ingress": [{"from": [app("far-two")]}]})));
    let namespace = serde_json::from_value(json!({"metadata": {"name": "default"}})).unwrap();
    second.start_with(Objects {
        services: vec![service("far", &CLUSTER, 30084)],
        slices: vec![slice("far", &[pod.v4], 8080), slice("far", &[pod.v6], 8080)],
        guarded: Some(Guarded { policies: vec![only_two], namespaces: vec![namespace], pods }),
        ..Objects::default()
    });
    introduce([&first, &second], Routing::Auto);
    for v4 in [true, false] {
        let (guarded, open) =
            [0, 1].map(|number| SocketAddr::new(second.pods[number].address(v4), 8080)).into();
        let cluster = at(CLUSTER[usize::from(!v4)], 80);
        for (client, allowed) in first.pods.iter().zip([false, true]) {
            client.net.run(|| {
                assert_eq!((connects(guarded), connects(cluster)), (allowed, allowed), "{}", client.name);
                assert!(connects(open));
            });
        }
        first.host.run(|| assert!(!connects(guarded) && connects(open)));
    }
    assert!(counted(&second, counter::POLICY_INGRESS) > 0);
}

/// A VXLAN header with this identifier, and a datagram in Ethernet.
fn wrapped(source: &str, destination: &str, identifier: u32) -> Vec<u8> {
    let mut packet = vec![8, 0, 0, 0];
    packet.extend((identifier << 8).to_be_bytes());
    packet.extend(Frame::udp(source, destination).bytes());
    packet
}

#[test]
fn only_nodes_send_through_tunnels_and_only_as_themselves_and_their_pods() {
    let (first, second) = apart(|_| {});
    let pod = &second.pods[0];
    let receiver = pod.net.run(|| UdpSocket::bind(SocketAddr::new(pod.v4, 9_000)).unwrap());
    receiver.set_read_timeout(Some(TIMEOUT)).unwrap();
    let received = || {
        let (_, from) = receiver.recv_from(&mut [0; 64]).unwrap();
        from.ip().to_string()
    };
    let send = |from: &Net, source: &str, identifier: u32| {
        let packet = wrapped(&format!("{source}:4000"), &format!("{}:9000", pod.v4), identifier);
        from.run(|| {
            UdpSocket::bind("0.0.0.0:0").unwrap().send_to(&packet, at("198.51.100.11", 8_472)).unwrap();
        });
    };
    // Made by hand, it is believed from the node whose pod it names.
    send(&first.host, "10.244.0.2", TUNNEL_ID);
    assert_eq!(received(), "10.244.0.2");
    for (what, from, source, identifier) in [
        ("a pod of the receiver", &first.host, "10.244.1.3", TUNNEL_ID),
        ("a pod of nobody", &first.host, "10.244.7.7", TUNNEL_ID),
        ("another network", &first.host, "10.244.0.2", TUNNEL_ID + 1),
        ("from no node", &second.outside, "10.244.0.2", TUNNEL_ID),
        ("from no node, as itself", &second.outside, CLIENT4, TUNNEL_ID),
    ] {
        let before = counted(&second, counter::SPOOFED);
        send(from, source, identifier);
        eventually(what, || counted(&second, counter::SPOOFED) == before + 1);
    }
    // A pod would come with its node's address, and be believed: its node does not let it.
    let before = (counted(&first, counter::SPOOFED), counted(&second, counter::SPOOFED));
    send(&first.pods[0].net, "10.244.0.3", TUNNEL_ID);
    eventually("the pod's", || counted(&first, counter::SPOOFED) == before.0 + 1);
    send(&first.host, "10.244.0.3", TUNNEL_ID);
    assert_eq!(received(), "10.244.0.3", "nothing came before it");
    receiver.set_nonblocking(true).unwrap();
    assert_eq!(receiver.recv_from(&mut [0; 64]).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(counted(&second, counter::SPOOFED), before.1);
}
