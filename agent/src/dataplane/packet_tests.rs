//! The classifiers over single packets (`BPF_PROG_TEST_RUN`): nothing is sent anywhere.

mod dsr;
mod errors;
pub(super) mod frame;
mod maglev;
mod policies;
mod ports;
mod services;
mod telling;
mod tunnel;
mod xdp;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use frame::*;
use k8s_openapi::api::core::v1::Service;
use kelp_common::maps::counter;
use kelp_common::{Address, EndpointValue, FlowKey, FlowValue, NodeConfig};
use kelp_model::plan::plan;
use kelp_model::service::Index;
use proptest::prelude::*;
use serde_json::json;

use super::kernel::{Kernel, cleanup, ensure_bpffs};
use super::maps::{Datapath, KernelDatapath, Table};
use super::{Config, sys};

const PASS: i32 = 0;
const DROP: i32 = 2;
const REDIRECT: i32 = 7;
/// Test runs come from the loopback device.
const DEVICE: u32 = 1;
/// Those that leave alone what they do not know, and `to_tunnel`, which does not.
const PROGRAMS: [&str; 5] = ["from_pod", "to_pod", "from_net", "to_net", "to_tunnel"];

/// Loaded programs with services: `web` (one pod), `far` (a pod of another node), `hosted` (on the node), `empty`.
struct Rig {
    kernel: Kernel,
    index: Index,
    directory: PathBuf,
}

impl Drop for Rig {
    fn drop(&mut self) {
        cleanup(&self.directory).unwrap();
    }
}

fn objects(
    name: &str,
    v4: &str,
    v6: &str,
    backends: [&[&str]; 2],
    port: u16,
    extra: serde_json::Value,
) -> (Service, Vec<serde_json::Value>) {
    let number = v4.rsplit('.').next().unwrap().parse::<u16>().unwrap();
    let mut spec = json!({
        "type": "NodePort", "clusterIPs": [v4, v6],
        "ports": [
            {"name": "t", "port": 80, "protocol": "TCP", "nodePort": 30_000 + number},
            {"name": "u", "port": 80, "protocol": "UDP", "nodePort": 30_000 + number},
            {"name": "s", "port": 80, "protocol": "SCTP", "nodePort": 30_000 + number},
        ],
    });
    let mut status = json!({});
    for (key, value) in extra.as_object().unwrap() {
        let into = if key == "loadBalancer" { &mut status } else { &mut spec };
        into[key] = value.clone();
    }
    let service = json!({"metadata": {"namespace": "d", "name": name}, "spec": spec, "status": status});
    let slices = backends
        .iter()
        .zip(["IPv4", "IPv6"])
        .map(|(addresses, family)| {
            let endpoints: Vec<_> = addresses
                .iter()
                .map(|address| {
                    let node = if address.contains("244.0.") || address.contains("244::") { "here" } else { "there" };
                    json!({"addresses": [address], "nodeName": node})
                })
                .collect();
            json!({
                "metadata": {"namespace": "d", "name": format!("{name}-{family}"),
                    "labels": {"kubernetes.io/service-name": name}},
                "addressType": family, "endpoints": endpoints,
                "ports": [{"name": "t", "port": port, "protocol": "TCP"}, {"name": "u", "port": port, "protocol": "UDP"},
                    {"name": "s", "port": port, "protocol": "SCTP"}],
            })
        })
        .collect();
    (serde_json::from_value(service).unwrap(), slices)
}

impl Rig {
    fn new() -> Self {
        Self::with(Index::new("here"))
    }

    /// With what an index knows already.
    fn with(index: Index) -> Self {
        let config = Config {
            node_addresses: vec!["192.0.2.10".parse().unwrap(), "2001:db8::10".parse().unwrap()],
            pod_cidrs: vec![("10.244.0.0".parse().unwrap(), 24), ("fd00:10:244::".parse().unwrap(), 64)],
            ..Config::default()
        };
        let pods = [(2, "10.244.0.2"), (3, "10.244.0.3"), (2, "fd00:10:244::2"), (3, "fd00:10:244::3")];
        Self::of(index, &config, &pods)
    }

    /// A node with these pods.
    fn of(mut index: Index, config: &Config, pods: &[(u8, &str)]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        super::tests::world::sweep();
        let tag =
            format!("dataplane-packet-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = PathBuf::from("/sys/fs/bpf").join(tag);
        ensure_bpffs(&directory).unwrap();
        let kernel = Kernel::load(&directory).unwrap();
        Table::<u32, NodeConfig>::open(&kernel, kelp_common::maps::NODE_CONFIG)
            .unwrap()
            .put(&0, &config.for_kernel(DEVICE, 1_500, 1))
            .unwrap();
        let addresses: Table<Address, u32> = Table::open(&kernel, kelp_common::maps::NODE_ADDRESSES).unwrap();
        for address in &config.node_addresses {
            addresses.put(&Address::from(*address), &1).unwrap();
        }
        let endpoints: Table<Address, EndpointValue> =
            Table::open(&kernel, kelp_common::maps::ENDPOINTS).unwrap();
        for (number, text) in pods {
            let value = EndpointValue {
                ifindex: DEVICE,
                pod_mac: [2, 0, 0, 0, 1, *number],
                host_mac: [2, 0, 0, 0, 2, *number],
                ..EndpointValue::default()
            };
            endpoints.put(&Address::from(text.parse::<IpAddr>().unwrap()), &value).unwrap();
        }
        for (service, slices) in [
            objects(
                "web",
                "10.96.0.7",
                "fd00:10:96::7",
                [&["10.244.0.3"], &["fd00:10:244::3"]],
                8080,
                json!({}),
            ),
            objects("empty", "10.96.0.8", "fd00:10:96::8", [&[], &[]], 8080, json!({})),
            objects(
                "hosted",
                "10.96.0.9",
                "fd00:10:96::9",
                [&["192.0.2.10"], &["2001:db8::10"]],
                6443,
                json!({}),
            ),
            objects(
                "far",
                "10.96.0.10",
                "fd00:10:96::a",
                [&["10.244.1.5"], &["fd00:10:244:1::5"]],
                8080,
                json!({}),
            ),
            objects(
                "local",
                "10.96.0.11",
                "fd00:10:96::b",
                [&["10.244.0.3", "10.244.1.5"], &[]],
                8080,
                json!({"externalTrafficPolicy": "Local"}),
            ),
            objects(
                "sticky",
                "10.96.0.12",
                "fd00:10:96::c",
                [&["10.244.0.2", "10.244.0.3"], &[]],
                8080,
                json!({"sessionAffinity": "ClientIP"}),
            ),
            objects(
                "ranged",
                "10.96.0.13",
                "fd00:10:96::d",
                [&["10.244.0.3"], &["fd00:10:244::3"]],
                8080,
                json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ["10.244.0.2/32", "198.51.100.0/24", "2001:db8:9::/64"],
                    "loadBalancer": {"ingress": [{"ip": "203.0.113.13"}, {"ip": "2001:db8:13::13"}]}}),
            ),
            objects(
                "nolocal",
                "10.96.0.14",
                "fd00:10:96::e",
                [&["10.244.1.5"], &["fd00:10:244:1::5"]],
                8080,
                json!({"internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local",
                    "externalIPs": ["203.0.113.14", "2001:db8:13::14"]}),
            ),
        ] {
            index.apply_service(&service);
            for slice in slices {
                index.apply_slice(&serde_json::from_value(slice).unwrap());
            }
        }
        index.apply_pod(
            &serde_json::from_value(json!({
                "metadata": {"namespace": "d", "name": "p"},
                "spec": {"containers": [{"name": "c", "ports": [
                    {"containerPort": 8080, "hostPort": 443},
                    {"containerPort": 8080, "hostPort": 53, "protocol": "UDP", "hostIP": "192.0.2.10"},
                ]}]},
                "status": {"podIPs": [{"ip": "10.244.0.3"}, {"ip": "fd00:10:244::3"}]},
            }))
            .unwrap(),
        );
        let rig = Self { kernel, index, directory };
        rig.sync();
        rig
    }

    /// Brings the maps of services up to date.
    fn sync(&self) {
        let mut maps = KernelDatapath::open(&self.kernel).unwrap();
        let ops = plan(&self.index.desired(), &maps.read().unwrap()).0;
        maps.apply(&ops).unwrap();
        let rest = plan(&self.index.desired(), &maps.read().unwrap()).0;
        assert!(rest.is_empty(), "the maps hold what was written");
    }

    fn table<K: sys::Plain, V: sys::Plain>(&self, name: &'static str) -> Table<K, V> {
        Table::open(&self.kernel, name).unwrap()
    }

    fn run(&self, program: &str, packet: &[u8]) -> (i32, Vec<u8>) {
        let run = sys::test_run(self.kernel.program(program).unwrap(), packet, 0, 1).unwrap();
        (run.verdict, run.packet)
    }

    /// Runs a program over a packet that must be redirected, and reads what comes out.
    fn redirected(&self, program: &str, frame: &Frame) -> Frame {
        let (verdict, packet) = self.run(program, &frame.bytes());
        assert_eq!(verdict, REDIRECT, "{program}: {frame:?}");
        Frame::read(&packet)
    }

    /// How often a counter was counted up.
    fn counted(&self, index: u32) -> u64 {
        let cpus = super::possible_cpus().unwrap();
        let map = self.kernel.map(kelp_common::maps::COUNTERS).unwrap();
        let values = sys::map_lookup_percpu(std::os::fd::AsFd::as_fd(&map), index, cpus).unwrap();
        values.iter().sum()
    }

    fn flows(&self) -> usize {
        let mut count = 0;
        self.table::<FlowKey, FlowValue>(kelp_common::maps::FLOWS).scan(|_, _| count += 1).unwrap();
        count
    }
}

/// The client, service, backend and so on of each family.
const FAMILIES: [[&str; 7]; 2] = [
    [
        "10.244.0.2:4000",
        "10.96.0.7",
        "10.244.0.3",
        "192.0.2.10",
        "198.51.100.9:5000",
        "10.96.0.10",
        "10.244.1.5",
    ],
    [
        "[fd00:10:244::2]:4000",
        "fd00:10:96::7",
        "fd00:10:244::3",
        "2001:db8::10",
        "[2001:db8:9::9]:5000",
        "fd00:10:96::a",
        "fd00:10:244:1::5",
    ],
];

fn at(address: &str, port: u16) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

/// A first packet of each protocol.
fn packets(source: &str, destination: &str) -> [Frame; 3] {
    [
        Frame::tcp(source, destination, SYN),
        Frame::udp(source, destination),
        Frame::sctp(source, destination, SYN),
    ]
}

#[test]
fn a_service_address_becomes_the_backend_and_the_reply_becomes_the_service() {
    let rig = Rig::new();
    for [client, web, backend, ..] in FAMILIES {
        for sent in packets(client, &at(web, 80)) {
            let (verdict, packet) = rig.run("from_pod", &sent.bytes());
            assert_eq!(verdict, REDIRECT);
            assert_eq!(
                packet[..12],
                [2, 0, 0, 0, 1, 3, 2, 0, 0, 0, 2, 3],
                "the MACs of the backend's device"
            );
            let arrived = Frame::read(&packet);
            let expected = Frame { destination: at(backend, 8080).parse().unwrap(), ..sent.clone() };
            assert_eq!(arrived, expected);
            let answered = rig.redirected("from_pod", &arrived.answer(SYN | ACK));
            assert_eq!(answered, sent.answer(if sent.protocol == UDP { 0 } else { SYN | ACK }));
        }
    }
    assert_eq!(rig.flows(), 12, "two directions of six flows");
}

#[test]
fn a_datagram_without_checksum_stays_without() {
    let rig = Rig::new();
    let mut packet = Frame::udp("10.244.0.2:4000", "10.96.0.7:80").bytes();
    packet[14 + 20 + 6..14 + 20 + 8].fill(0);
    let (verdict, packet) = rig.run("from_pod", &packet);
    assert_eq!(verdict, REDIRECT);
    assert_eq!(packet[40..42], [0, 0]);
    Frame::read(&packet);
}

#[test]
fn a_node_port_from_outside_keeps_the_client_for_a_local_backend() {
    let rig = Rig::new();
    for [_, _, backend, node, outside, ..] in FAMILIES {
        for sent in packets(outside, &at(node, 30_007)) {
            let arrived = rig.redirected("from_net", &sent);
            assert_eq!(arrived.source, sent.source);
            assert_eq!(arrived.destination.to_string(), at(backend, 8080));
            assert_eq!(arrived.ttl, 64);
            let answered = rig.redirected("from_pod", &arrived.answer(SYN | ACK));
            assert_eq!(answered.source, sent.destination);
            assert_eq!(answered.destination, sent.source);
            assert_eq!(answered.ttl, 63, "the node is a hop");
        }
    }
}

#[test]
fn a_node_port_with_a_backend_elsewhere_goes_through_this_node() {
    let rig = Rig::new();
    for [_, _, _, node, outside, _, remote] in FAMILIES {
        for sent in packets(outside, &at(node, 30_010)) {
            let arrived = rig.redirected("from_net", &sent);
            assert_eq!(arrived.source.ip().to_string(), node);
            let ports = if sent.protocol == TCP { 1_024..=29_999 } else { 61_000..=65_535 };
            assert!(ports.contains(&arrived.source.port()));
            assert_eq!(arrived.destination.to_string(), at(remote, 8080));
            assert_eq!(arrived.ttl, 63);
            let answered = rig.redirected("from_net", &arrived.answer(SYN | ACK));
            assert_eq!((answered.source, answered.destination), (sent.destination, sent.source));
            // The second packet of the flow takes the same port.
            assert_eq!(rig.redirected("from_net", &Frame { flags: ACK, ..sent }).source, arrived.source);
        }
    }
}

#[test]
fn a_backend_on_the_host_gets_its_packets_up_the_stack() {
    let rig = Rig::new();
    for (client, hosted, node, outside) in [
        ("10.244.0.2:4000", "10.96.0.9", "192.0.2.10", "198.51.100.9:5000"),
        ("[fd00:10:244::2]:4000", "fd00:10:96::9", "2001:db8::10", "[2001:db8:9::9]:5000"),
    ] {
        for (from, to, source, destination) in [
            ("from_pod", "to_pod", client, at(hosted, 80)),
            ("from_net", "to_net", outside, at(node, 30_009)),
        ] {
            for sent in packets(source, &destination) {
                let (verdict, packet) = rig.run(from, &sent.bytes());
                assert_eq!(verdict, PASS);
                let arrived = Frame::read(&packet);
                assert_eq!(arrived.destination.to_string(), at(node, 6443));
                let (verdict, packet) = rig.run(to, &arrived.answer(SYN | ACK).bytes());
                assert_eq!(verdict, PASS);
                let answered = Frame::read(&packet);
                assert_eq!((answered.source, answered.destination), (sent.destination, sent.source));
            }
        }
    }
}

#[test]
fn pods_reach_the_outside_with_the_nodes_address() {
    let rig = Rig::new();
    for [client, _, _, node, outside, ..] in FAMILIES {
        for sent in packets(client, outside) {
            let left = rig.redirected("from_pod", &sent);
            assert_eq!(left.source.ip().to_string(), node);
            assert_eq!(left.destination, sent.destination);
            let back = rig.redirected("from_net", &left.answer(SYN | ACK));
            assert_eq!((back.source, back.destination), (sent.destination, sent.source));
        }
    }
    // Between pods nothing is translated, and what comes from elsewhere is answered as it came.
    let sent = Frame::tcp("10.244.0.2:4000", "10.244.1.5:8080", SYN);
    assert_eq!(rig.redirected("from_pod", &sent), Frame { ttl: 63, ..sent.clone() });
    let sent = Frame::tcp("192.0.2.11:4000", "10.244.0.2:8080", SYN);
    assert_eq!(rig.redirected("from_net", &sent), sent);
    let answer = sent.answer(SYN | ACK);
    assert_eq!(rig.redirected("from_pod", &answer), Frame { ttl: 63, ..answer.clone() });
}

#[test]
fn what_does_not_exist_is_answered_with_a_reset() {
    let rig = Rig::new();
    for (client, missing) in [
        ("10.244.0.2:4000", "10.96.0.8:80"),
        ("10.244.0.2:4000", "10.96.0.7:81"),
        ("10.244.0.2:4000", "10.96.200.1:80"),
        ("[fd00:10:244::2]:4000", "[fd00:10:96::8]:80"),
        ("[fd00:10:244::2]:4000", "[fd00:10:96::7]:81"),
        ("[fd00:10:244::2]:4000", "[fd00:10:96::1234]:80"),
    ] {
        for program in ["from_pod", "from_net", "to_net"] {
            let sent = Frame { payload: b"early data".to_vec(), ..Frame::tcp(client, missing, SYN) };
            let (verdict, packet) = rig.run(program, &sent.bytes());
            assert_eq!(verdict, REDIRECT, "{program} {missing}");
            assert_eq!(packet[..12], [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1], "back to the sender");
            let reset = Frame::read(&packet);
            assert_eq!((reset.source, reset.destination), (sent.destination, sent.source));
            assert_eq!((reset.flags, reset.sequence, reset.acknowledged), (RST | ACK, 0, 1_011));
            assert!(reset.payload.is_empty());
            let reset = rig.redirected(program, &Frame::tcp(client, missing, ACK));
            assert_eq!((reset.flags, reset.sequence), (RST, 2_000));
            let (verdict, _) = rig.run(program, &Frame::tcp(client, missing, RST).bytes());
            assert_eq!(verdict, DROP, "a reset is not answered");
        }
    }
    assert_eq!(rig.flows(), 0);
}

#[test]
fn what_does_not_exist_is_answered_with_port_unreachable() {
    let rig = Rig::new();
    for (client, missing, protocol, kind) in [
        ("10.244.0.2:4000", "10.96.0.8:80", 1, [3, 3]),
        ("[fd00:10:244::2]:4000", "[fd00:10:96::8]:80", 58, [1, 4]),
    ] {
        for payload in [0, 8, 1_400] {
            let sent = Frame { payload: vec![7; payload], ..Frame::udp(client, missing) };
            let bytes = sent.bytes();
            let (verdict, packet) = rig.run("from_pod", &bytes);
            assert_eq!(verdict, REDIRECT);
            let (source, destination, found, _, icmp) = network(&packet);
            assert_eq!((source, destination, found), (sent.destination.ip(), sent.source.ip(), protocol));
            let sum = if protocol == 58 { pseudo(source, destination, 58, icmp.len()) } else { 0 };
            assert_eq!(checksum(icmp, sum), 0, "the ICMP checksum is right");
            assert_eq!(icmp[..2], kind);
            assert_eq!(icmp[8..], bytes[14..14 + icmp.len() - 8], "it quotes the packet");
        }
    }
}

#[test]
fn a_pod_cannot_lie_about_its_address() {
    let rig = Rig::new();
    for (source, destination) in [
        ("10.244.0.99:1", "10.244.0.3:8080"),
        ("192.0.2.10:1", "10.96.0.7:80"),
        ("[fd00:10:244::99]:1", "[fd00:10:244::3]:8080"),
        ("[fe80::5]:1", "[fd00:10:244::3]:8080"),
    ] {
        let (verdict, _) = rig.run("from_pod", &Frame::udp(source, destination).bytes());
        assert_eq!(verdict, DROP, "{source}");
    }
    assert_eq!(rig.counted(counter::SPOOFED), 4, "they are counted");
}

#[test]
fn external_traffic_policy_and_session_affinity() {
    let rig = Rig::new();
    for port in 1..40 {
        let sent = Frame::tcp(&format!("198.51.100.9:{port}"), "192.0.2.10:30011", SYN);
        assert_eq!(rig.redirected("from_net", &sent).destination.to_string(), "10.244.0.3:8080");
    }
    let inside: std::collections::BTreeSet<String> = (1..60)
        .map(|port| {
            let sent = Frame::tcp(&format!("10.244.0.2:{port}"), "10.96.0.11:80", SYN);
            rig.redirected("from_pod", &sent).destination.to_string()
        })
        .collect();
    assert_eq!(inside.len(), 2, "clients in the cluster reach all endpoints");
    let stuck: std::collections::BTreeSet<String> = (1..40)
        .map(|port| {
            let sent = Frame::tcp(&format!("198.51.100.9:{port}"), "192.0.2.10:30012", SYN);
            rig.redirected("from_net", &sent).destination.to_string()
        })
        .collect();
    assert_eq!(stuck.len(), 1, "a client stays with its backend, whatever its port");
}

#[test]
fn a_closed_connection_makes_room_for_a_new_one() {
    let rig = Rig::new();
    let flows: Table<FlowKey, FlowValue> = rig.table(kelp_common::maps::FLOWS);
    let closed = |rig: &Rig| {
        let mut states = Vec::new();
        flows.scan(|_, value| states.push(value.flags & kelp_common::flow::FLOW_CLOSED != 0)).unwrap();
        let _ = rig;
        states
    };
    let syn = Frame::tcp("10.244.0.2:4000", "10.96.0.7:80", SYN);
    let arrived = rig.redirected("from_pod", &syn);
    rig.redirected("from_pod", &arrived.answer(SYN | ACK));
    assert_eq!(closed(&rig), [false, false]);
    rig.redirected("from_pod", &Frame { flags: FIN | ACK, ..syn.clone() });
    assert_eq!(closed(&rig), [false, false], "half closed");
    rig.redirected("from_pod", &arrived.answer(FIN | ACK));
    assert_eq!(closed(&rig), [true, true]);
    rig.redirected("from_pod", &Frame { flags: ACK, ..syn.clone() });
    rig.redirected("from_pod", &syn);
    assert_eq!(closed(&rig), [false, false], "a new connection from the same port");
    rig.redirected("from_pod", &arrived.answer(RST));
    assert_eq!(closed(&rig), [true, true], "a reset closes both directions");
}

#[test]
fn two_services_with_one_backend_do_not_mix_up_a_clients_port() {
    let rig = Rig::new();
    let first = rig.redirected("from_pod", &Frame::tcp("10.244.0.2:4000", "10.96.0.7:80", SYN));
    let second = rig.redirected("from_pod", &Frame::tcp("10.244.0.2:4000", "192.0.2.10:30007", SYN));
    assert_eq!(first.destination, second.destination);
    assert_ne!(first.source, second.source, "the second flow gets another port");
    let back = |frame: &Frame| rig.redirected("from_pod", &frame.answer(SYN | ACK)).source.to_string();
    assert_eq!((back(&first).as_str(), back(&second).as_str()), ("10.96.0.7:80", "192.0.2.10:30007"));
}

#[test]
fn a_port_used_through_a_service_and_then_directly_is_told_apart() {
    let rig = Rig::new();
    for protocol in [TCP, UDP] {
        let through = Frame { protocol, ..Frame::tcp("10.244.0.2:4000", "10.96.0.7:80", SYN) };
        let arrived = rig.redirected("from_pod", &through);
        let direct = Frame { protocol, ..Frame::tcp("10.244.0.2:4000", "10.244.0.3:8080", SYN) };
        let other = rig.redirected("from_pod", &direct);
        assert_ne!(other.source, arrived.source, "both are alive: the second gets another port");
        let back = |frame: &Frame| rig.redirected("from_pod", &frame.answer(SYN | ACK)).source.to_string();
        assert_eq!((back(&arrived).as_str(), back(&other).as_str()), ("10.96.0.7:80", "10.244.0.3:8080"));
    }
    // After the end of the first the port is the second's.
    let through = Frame::tcp("10.244.0.2:5000", "10.96.0.7:80", SYN);
    let arrived = rig.redirected("from_pod", &through);
    rig.redirected("from_pod", &arrived.answer(RST));
    let direct = Frame::tcp("10.244.0.2:5000", "10.244.0.3:8080", SYN);
    assert_eq!(rig.redirected("from_pod", &direct), direct);
    let answer = direct.answer(SYN | ACK);
    assert_eq!(rig.redirected("from_pod", &answer), answer);
}

#[test]
fn truncated_packets_are_dropped_or_left_alone() {
    let rig = Rig::new();
    for [client, web, _, node, outside, ..] in FAMILIES {
        for sent in packets(client, &at(web, 80)).into_iter().chain(packets(outside, &at(node, 30_007))) {
            let bytes = sent.bytes();
            let header = match sent.protocol {
                TCP => 20,
                UDP => 8,
                _ => 16,
            };
            let whole = bytes.len() - sent.payload.len();
            // The kernel's test run itself refuses packets without a whole network header.
            for length in whole - header..whole {
                for program in &PROGRAMS[..4] {
                    let (verdict, packet) = rig.run(program, &bytes[..length]);
                    let expected = if program.starts_with("from") { DROP } else { PASS };
                    assert_eq!(verdict, expected, "{program}, {length} bytes of {whole}");
                    assert_eq!(packet, bytes[..length], "it is not changed");
                }
            }
        }
    }
    assert_eq!(rig.flows(), 0);
}

#[test]
fn what_is_not_ip_goes_to_the_stack() {
    let rig = Rig::new();
    let mut arp = vec![0xff; 42];
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    let mut solicitation = Frame::udp("[fe80::5]:1", "[ff02::1]:1").bytes();
    solicitation[14 + 6] = 58;
    solicitation[54] = 135;
    for program in &PROGRAMS[..4] {
        assert_eq!(rig.run(program, &arp).0, PASS);
        assert_eq!(rig.run(program, &solicitation).0, PASS);
    }
}

#[test]
fn any_bytes_are_survived() {
    let rig = Rig::new();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 3_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let strategy = (
        0..PROGRAMS.len(),
        prop::sample::select(vec![0_usize, 1]),
        prop::collection::vec(any::<(usize, u8)>(), 0..6),
        prop::collection::vec(any::<u8>(), 0..120),
        any::<bool>(),
    );
    runner
        .run(&strategy, |(program, family, changes, tail, garbage)| {
            let [client, web, ..] = FAMILIES[family];
            let mut packet = Frame::tcp(client, &at(web, 80), SYN).bytes();
            if garbage {
                packet.truncate(14);
            }
            packet.extend(tail);
            // Shorter ones the kernel's test run refuses itself.
            packet.resize(packet.len().max(14 + 40), 0);
            // Bytes behind the Ethernet header are changed at random.
            for (at, value) in changes {
                let length = packet.len();
                if length > 14 {
                    packet[14 + at % (length - 14)] = value;
                }
            }
            let (verdict, _) = rig.run(PROGRAMS[program], &packet);
            prop_assert!([PASS, DROP, REDIRECT].contains(&verdict));
            Ok(())
        })
        .unwrap();
}
