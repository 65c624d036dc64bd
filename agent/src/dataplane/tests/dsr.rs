//! Direct server return between two nodes and a client, with real sockets.

use kelp_common::flow::{FLOW_DSR, FLOW_WRAPPED};
use kelp_common::{FlowKey, FlowValue, maps};

use super::*;
use crate::dataplane::maps::Table;

/// The flags of a node's flows.
fn flows(world: &World) -> Vec<u32> {
    let table: Table<FlowKey, FlowValue> = Table::open(world.dataplane().kernel(), maps::FLOWS).unwrap();
    let mut flags = Vec::new();
    table.scan(|_, value| flags.push(value.flags)).unwrap();
    flags
}

/// Sends more than fits into any segment, and reads it back.
fn echo(address: SocketAddr) {
    const LENGTH: usize = 2_000_000;
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT).unwrap();
    greeting(&mut stream).unwrap();
    let mut writer = stream.try_clone().unwrap();
    let sent: Vec<u8> = (0..LENGTH).map(|at| (at % 251) as u8).collect();
    let copy = sent.clone();
    let writing = std::thread::spawn(move || writer.write_all(&copy).unwrap());
    let mut received = vec![0; LENGTH];
    stream.set_read_timeout(Some(TIMEOUT * 5)).unwrap();
    stream.read_exact(&mut received).unwrap();
    assert!(received == sent, "every byte comes back");
    writing.join().unwrap();
}

/// A client asks the first node for a pod of the second; with direct return, if `dsr`. Returns the client that the pod saw.
fn reached(dsr: bool) -> (World, World, Vec<String>) {
    let mut first = World::new();
    first.config.dsr = dsr;
    let second = World::beside(&first);
    let pod = &second.pods[0];
    for v4 in [true, false] {
        serve_tcp(&pod.net, SocketAddr::new(pod.address(v4), 8080), "there");
        serve_udp(&pod.net, SocketAddr::new(pod.address(v4), 8080), "there");
    }
    for world in [&first, &second] {
        world.start(
            vec![service("far", &[FAR4, "fd00:10:96::a"], 30084)],
            vec![slice("far", &[pod.v4], 8080), slice("far", &[pod.v6], 8080)],
        );
    }
    let mut seen = Vec::new();
    for node in [NODE4, NODE6] {
        first.outside.run(|| {
            for _ in 0..3 {
                let (name, client) = ask_tcp(at(node, 30084)).unwrap();
                assert_eq!(name, "there");
                seen.push(client);
            }
            for connected in [true, false] {
                let (name, client) = ask_udp(at(node, 30084), connected).unwrap();
                assert_eq!(name, "there");
                seen.push(client);
            }
            echo(at(node, 30084));
        });
    }
    (first, second, seen)
}

#[test]
fn a_pod_of_another_node_answers_clients_itself() {
    let (first, second, seen) = reached(true);
    let expected = [[OUTSIDE4; 5], [OUTSIDE6; 5]].concat();
    assert_eq!(seen, expected, "the pod sees the client");
    // Two families, with four connections and two datagrams each.
    let here = flows(&first);
    assert_eq!(here.len(), 12, "answers do not pass the first node");
    assert!(here.iter().all(|flags| flags & FLOW_DSR != 0));
    let there = flows(&second);
    assert_eq!(there.len(), 24);
    assert!(there.iter().all(|flags| flags & FLOW_WRAPPED != 0));
}

#[test]
fn without_direct_return_everything_passes_the_node_that_was_asked() {
    let (first, _second, seen) = reached(false);
    assert_eq!(seen, [[NODE4; 5], [NODE6; 5]].concat());
    assert_eq!(flows(&first).len(), 24);
}
