//! Tunnels between nodes: what is sent by one, and what is taken from one.

use kelp_common::peer::{PEER_NODE, PEER_TUNNEL};
use kelp_common::{Cidr, PeerKey, PeerValue, maps};

use super::*;

/// The tunnels' device. (Packets of test runs come from [`DEVICE`], and nothing is sent.)
const TUNNEL: u32 = 9_999;
/// Another node, and what fits through the tunnel to it.
const NODE: &str = "198.51.100.11";
const MTU: u32 = 1_450;

impl Rig {
    /// With the pods `10.244.1.0/24` and `fd00:10:244:1::/64` of another node.
    fn with_peer(device: u32, flags: u32) -> Self {
        let rig = Self::new();
        let settings: Table<u32, NodeConfig> = rig.table(maps::NODE_CONFIG);
        let known = settings.get(&0).unwrap().unwrap();
        settings.put(&0, &NodeConfig { tunnel: device, ..known }).unwrap();
        let peers: Table<PeerKey, PeerValue> = rig.table(maps::PEERS);
        let node: IpAddr = NODE.parse().unwrap();
        for (network, prefix, flags) in [
            ("10.244.1.0", 24, flags),
            ("fd00:10:244:1::", 64, flags),
            (NODE, 32, flags | PEER_NODE),
            ("2001:db8:1::11", 128, flags | PEER_NODE),
        ] {
            let network: IpAddr = network.parse().unwrap();
            let bits = if network.is_ipv4() { 96 + prefix } else { prefix };
            let key = PeerKey { prefix_length: bits, network: Cidr::new(network, prefix as u8).network };
            peers.put(&key, &PeerValue { node: Address::from(node), flags, mtu: MTU }).unwrap();
        }
        rig
    }
}

/// What a pod is told of a datagram of this size, if anything.
fn told(rig: &Rig, source: &str, destination: &str, size: usize) -> Option<u32> {
    let headers = if source.contains('[') { 48 } else { 28 };
    let sent = Frame { payload: vec![7; size - headers], ..Frame::udp(source, destination) };
    let (verdict, packet) = rig.run("from_pod", &sent.bytes());
    assert_eq!(verdict, REDIRECT);
    if packet.len() == sent.bytes().len() {
        let (.., ttl, _) = network(&packet);
        assert_eq!(ttl, 63, "it goes on");
        return None;
    }
    let error = Error::read(&packet);
    assert_eq!(error.about, (sent.source, sent.destination));
    Some(error.extra)
}

#[test]
fn what_fits_depends_on_where_a_packet_goes() {
    for (flags, most) in [(PEER_TUNNEL, MTU), (0, 1_500)] {
        let rig = Rig::with_peer(TUNNEL, flags);
        for [client, .., outside, far, remote] in FAMILIES {
            for (destination, most) in
                [(at(far, 80), most), (at(remote, 8080), most), (outside.to_owned(), 1_500)]
            {
                assert_eq!(told(&rig, client, &destination, most as usize), None, "{destination}");
                assert_eq!(told(&rig, client, &destination, most as usize + 1), Some(most), "{destination}");
            }
        }
    }
}

/// To a node itself pods go by its address and their own node's; what they answer it goes the way that it came.
#[test]
fn only_what_pods_send_as_themselves_goes_to_a_node_through_the_tunnel() {
    let rig = Rig::with_peer(TUNNEL, PEER_TUNNEL);
    for (client, node, backend) in [
        ("10.244.0.2:4000", NODE, "10.244.0.3"),
        ("[fd00:10:244::2]:4000", "2001:db8:1::11", "fd00:10:244::3"),
    ] {
        assert_eq!(told(&rig, client, &at(node, 53), 1_500), None, "by the uplink");
        // A flow that the node began.
        let begun = Frame::udp(&at(node, 7_000), &at(backend, 8080));
        assert_eq!(rig.run("from_net", &begun.bytes()).0, REDIRECT);
        assert_eq!(told(&rig, &at(backend, 8080), &at(node, 7_000), 1_451), Some(MTU));
    }
}

#[test]
fn a_tunnel_takes_what_has_a_node_to_go_to() {
    let rig = Rig::with_peer(TUNNEL, PEER_TUNNEL);
    for (source, known, unknown, link) in [
        ("192.0.2.10:1", "10.244.1.5:2", "10.244.9.5:2", "224.0.0.1:2"),
        ("[2001:db8::10]:1", "[fd00:10:244:1::5]:2", "[fd00:10:244:9::5]:2", "[ff02::1]:2"),
    ] {
        let sent = Frame::udp(source, known).bytes();
        assert_eq!(rig.run("to_tunnel", &sent), (PASS, sent), "unchanged");
        let before = rig.counted(counter::UNREACHABLE);
        assert_eq!(rig.run("to_tunnel", &Frame::udp(source, unknown).bytes()).0, DROP);
        assert_eq!(rig.counted(counter::UNREACHABLE), before + 1);
        assert_eq!(rig.run("to_tunnel", &Frame::udp(source, link).bytes()).0, DROP);
        assert_eq!(rig.counted(counter::UNREACHABLE), before + 1, "nobody misses it");
    }
    let mut other = Frame::udp("192.0.2.10:1", "10.244.1.5:2").bytes();
    other[12..14].copy_from_slice(&[0x08, 0x06]);
    assert_eq!(rig.run("to_tunnel", &other).0, DROP);
}

#[test]
fn what_comes_by_the_tunnels_device_and_not_by_a_tunnel_is_dropped() {
    let rig = Rig::with_peer(DEVICE, PEER_TUNNEL);
    for (source, destination) in
        [("10.244.1.5:1", "10.244.0.3:8080"), ("[fd00:10:244:1::5]:1", "[fd00:10:244::3]:8080")]
    {
        let before = rig.counted(counter::SPOOFED);
        assert_eq!(rig.run("from_net", &Frame::udp(source, destination).bytes()).0, DROP);
        assert_eq!(rig.counted(counter::SPOOFED), before + 1);
    }
    let rig = Rig::with_peer(TUNNEL, PEER_TUNNEL);
    assert_eq!(rig.run("from_net", &Frame::udp("10.244.1.5:1", "10.244.0.3:8080").bytes()).0, REDIRECT);
}

/// A pod's datagrams to other nodes have ports of the range for translated sources.
#[test]
fn no_pod_speaks_to_the_port_of_tunnels() {
    let rig = Rig::with_peer(TUNNEL, PEER_TUNNEL);
    let spoofed = || rig.counted(counter::SPOOFED);
    let of = |port: u16| Frame::udp(&at("192.0.2.10", port), &at(NODE, 8_472)).bytes();
    assert_eq!(rig.run("to_net", &of(40_000)).0, PASS, "the tunnel's own");
    let before = spoofed();
    for port in [61_000, 63_000, 65_535] {
        assert_eq!(rig.run("to_net", &of(port)).0, DROP);
    }
    assert_eq!(spoofed(), before + 3);
    let other = Frame::udp(&at("192.0.2.10", 61_000), &at(NODE, 53)).bytes();
    assert_eq!(rig.run("to_net", &other).0, PASS);
}
