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
            echo_all(at(node, 30084), 2_000_000);
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
