//! What broke other dataplanes: sockets of the kernel that are translated, established connections whose endpoint is
//! unready or terminates, flows that a starting agent throws away because it has heard of no service yet, and maps whose
//! layout another version of the agent does not know.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kelp_common::flow::{FLOW_CLOSED, FLOW_ESTABLISHED, FLOW_PORT, FLOW_REPLY};
use kelp_common::{Address, EndpointValue, EndpointValueV1, FlowKey, FlowValue, maps};
use kube::runtime::watcher::Event;
use serde_json::{Value, json};

use super::world::*;
use crate::dataplane::maps::Table;
use crate::dataplane::reconciler::Change;
use crate::dataplane::{PodDatapath, sys};

/// A world whose pods serve on port 8080, and the address of the Service that has both.
fn world() -> World {
    let world = World::new();
    for pod in &world.pods {
        let address = SocketAddr::new(pod.v4, 8080);
        serve_tcp(&pod.net, address, pod.name);
        serve_udp(&pod.net, address, pod.name);
    }
    world
}

fn objects(world: &World) -> Objects {
    Objects {
        services: vec![service("both", &["10.96.0.40"], 30_040)],
        slices: vec![slice("both", &[world.pods[0].v4, world.pods[1].v4], 8080)],
        ..Objects::default()
    }
}

/// The slice, in which the second pod's endpoint has these conditions.
fn conditions(world: &World, of_second: Value) -> EndpointSlice {
    let mut value = serde_json::to_value(slice("both", &[world.pods[0].v4, world.pods[1].v4], 8080)).unwrap();
    value["endpoints"][1]["conditions"] = of_second;
    serde_json::from_value(value).unwrap()
}

/// Opens connections until the second pod answers; that one is kept.
fn connected_to_second(address: SocketAddr) -> TcpStream {
    for _ in 0..200 {
        let mut stream = TcpStream::connect_timeout(&address, TIMEOUT).unwrap();
        if greeting(&mut stream).unwrap().0 == "two" {
            return stream;
        }
    }
    panic!("{address}: the second pod has not answered");
}

fn echoes(mut stream: &TcpStream, what: &str) {
    let mut buffer = [0; 4];
    stream.write_all(b"ping").unwrap_or_else(|error| panic!("{what}: {error}"));
    stream.read_exact(&mut buffer).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(&buffer, b"ping");
}

/// Lesson 14.
#[test]
fn connections_outlive_the_readiness_of_their_endpoint() {
    let world = world();
    world.start_with(objects(&world));
    let service = at("10.96.0.40", 80);
    let one = &world.pods[0].net;
    let connections = [
        ("sockets of a pod", world.with_sockets(one, || connected_to_second(service))),
        ("packets of a pod", one.run(|| connected_to_second(service))),
        ("the host", world.with_sockets(&world.host, || connected_to_second(service))),
        ("the outside", world.outside.run(|| connected_to_second(at(NODE4, 30_040)))),
    ];
    let whom = |count: usize| {
        let ask = || (0..count).map(|_| ask_tcp(service).unwrap().0).collect::<Vec<_>>();
        [world.with_sockets(one, ask), one.run(ask)].concat()
    };
    let only_first = || whom(20).iter().all(|name| name == "one");
    for (state, of_second) in [
        ("unready", json!({"ready": false})),
        ("terminating", json!({"ready": false, "serving": true, "terminating": true})),
        ("terminating and unready", json!({"ready": false, "serving": false, "terminating": true})),
    ] {
        // It was ready in between: a flap.
        world.tell(Change::Slice(Event::Apply(conditions(&world, json!({"ready": true})))));
        eventually("the endpoint serves", || whom(20).iter().any(|name| name == "two"));
        world.tell(Change::Slice(Event::Apply(conditions(&world, of_second))));
        eventually("new connections go elsewhere", only_first);
        for (from, stream) in &connections {
            echoes(stream, &format!("from {from}, {state}"));
        }
    }
    // The endpoint is gone from the slice; its pod still runs, as it does while it ends.
    world.tell(Change::Slice(Event::Apply(slice("both", &[world.pods[0].v4], 8080))));
    eventually("new connections go elsewhere", only_first);
    for (from, stream) in &connections {
        echoes(stream, &format!("from {from}, without the endpoint"));
    }
}

/// A socket of multipath TCP, which the kernel adds connections of its own to.
fn multipath() -> OwnedFd {
    // SAFETY: no preconditions.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP) };
    assert!(socket >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the descriptor was made by the call above.
    unsafe { OwnedFd::from_raw_fd(socket) }
}

fn raw(address: SocketAddr) -> (libc::sockaddr_in, libc::socklen_t) {
    let IpAddr::V4(ip) = address.ip() else { panic!("{address} is not IPv4") };
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(ip).to_be() },
        sin_zero: [0; 8],
    };
    (address, size_of::<libc::sockaddr_in>() as libc::socklen_t)
}

/// Whether the calling thread's namespace has an established connection to this address.
fn is_connected_to(address: &str, port: u16) -> bool {
    let IpAddr::V4(ip) = address.parse().unwrap() else { panic!("{address} is not IPv4") };
    let wanted = format!("{:08X}:{port:04X}", u32::from_ne_bytes(ip.octets()));
    let table = std::fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
    table.lines().any(|line| {
        let mut fields = line.split_whitespace().skip(2);
        fields.next() == Some(wanted.as_str()) && fields.next() == Some("01")
    })
}

/// Lesson 4. The kernel's own sockets here are the connections that it adds to one of multipath TCP: to an address of the
/// server, which is a service's. A kernel without multipath TCP has none.
#[test]
fn sockets_of_the_kernel_keep_their_destination_and_get_there() {
    const PORT: u16 = 8_081;
    const SERVICE: &str = "10.96.0.41";
    if !fs::exists("/proc/sys/net/mptcp").unwrap() {
        // Debian's 5.10 is built without it: there the kernel opens no connections of its own.
        println!("this kernel has no multipath TCP");
        return;
    }
    let world = world();
    let mut joined = serde_json::to_value(service("joined", &[SERVICE], 0)).unwrap();
    for port in joined["spec"]["ports"].as_array_mut().unwrap() {
        port["port"] = json!(PORT);
    }
    world.start_with(Objects {
        services: vec![serde_json::from_value(joined).unwrap()],
        slices: vec![slice("joined", &[world.pods[1].v4], PORT)],
        ..Objects::default()
    });
    let (client, server) = (&world.pods[0].net, &world.pods[1].net);
    client.ip("mptcp limits set subflow 4 add_addr_accepted 4");
    server.ip("mptcp limits set subflow 4 add_addr_accepted 4");
    server.ip(&format!("mptcp endpoint add {SERVICE} signal"));
    let direct = SocketAddr::new(world.pods[1].v4, PORT);
    let listener = server.run(|| {
        let (socket, (address, length)) = (multipath(), raw(direct));
        // SAFETY: the address is valid for its length.
        let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
        assert_eq!(bound, 0, "{}", std::io::Error::last_os_error());
        // SAFETY: no preconditions.
        assert_eq!(unsafe { libc::listen(socket.as_raw_fd(), 8) }, 0);
        TcpListener::from(socket)
    });
    server.spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = [0; 64];
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            stream.write_all(&buffer[..length]).unwrap();
        }
    });
    let stream = world.with_sockets(client, || {
        let (socket, (address, length)) = (multipath(), raw(direct));
        // SAFETY: the address is valid for its length.
        let connected = unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) };
        assert_eq!(connected, 0, "{}", std::io::Error::last_os_error());
        TcpStream::from(socket)
    });
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    // The server tells its addresses once both ends have seen data.
    eventually("the kernel adds a connection, to the address that it was told", || {
        echoes(&stream, "by multipath TCP");
        client.run(|| is_connected_to(SERVICE, PORT))
    });
    for _ in 0..50 {
        echoes(&stream, "by both connections");
    }
}

fn flows(world: &World) -> usize {
    let flows: Table<FlowKey, FlowValue> = Table::open(world.dataplane().kernel(), maps::FLOWS).unwrap();
    let mut count = 0;
    flows.scan(|_, _| count += 1).unwrap();
    count
}

/// Lesson 11: both directions of a closed connection stay for two minutes at most, while its port rests and until the collector
/// comes. An idle connection, which nobody has used since, is not forgotten for them.
#[test]
fn an_idle_connection_outlives_a_thousand_others_a_second() {
    let world = world();
    world.start_with(objects(&world));
    let idle = world.pods[0].net.run(|| connected_to_second(at("10.96.0.40", 80)));
    let table: Table<FlowKey, FlowValue> = Table::open(world.dataplane().kernel(), maps::FLOWS).unwrap();
    let address = |text: &str| Address::from(text.parse::<IpAddr>().unwrap());
    let (node, backend) = (address(NODE4), address("10.244.1.77"));
    let expires = sys::monotonic_seconds() + 120;
    for number in 0..120_000_u32 {
        let client = Address::from(IpAddr::from((0xc612_0000 + number / 20_000).to_be_bytes()));
        let (port, rest) = ((10_000 + number % 20_000) as u16, (number / 20_000) as u16);
        let key = FlowKey {
            source: client,
            destination: node,
            source_port: port.to_be(),
            destination_port: 30_040_u16.to_be(),
            protocol: kelp_common::TCP.into(),
        };
        let value = FlowValue {
            source: node,
            destination: backend,
            source_port: port.to_be(),
            destination_port: (8_080 + rest).to_be(),
            flags: FLOW_ESTABLISHED | FLOW_CLOSED | FLOW_PORT,
            expires,
            backend: 1,
        };
        let back = FlowValue {
            source: key.destination,
            destination: key.source,
            source_port: key.destination_port,
            destination_port: key.source_port,
            flags: value.flags | FLOW_REPLY,
            ..value
        };
        table.put(&key, &value).unwrap();
        table.put(&value.reverse_key(key.protocol), &back).unwrap();
    }
    assert!(flows(&world) > 240_000, "all have room");
    echoes(&idle, "after the others");
}

/// Lesson 7.
#[test]
fn nothing_is_collected_before_the_services_are_known() {
    let world = world();
    world.start_with(objects(&world));
    let (service, one) = (at("10.96.0.40", 80), &world.pods[0].net);
    let stream = one.run(|| connected_to_second(service));
    // The packet path keeps a datagram flow; its endpoint must not be forgotten.
    let socket = one.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        socket.connect(service).unwrap();
        socket
    });
    let ask = || {
        let mut buffer = [0; 64];
        socket.send(b"?").unwrap();
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let answered = ask();
    let before = flows(&world);
    assert!(before > 0, "the packet path has flows");

    // An agent that hears nothing, and of a pod that goes: not even that pod's flows are looked at, as the same round
    // would judge all others by services that are not known.
    world.kill();
    world.start_unheard();
    let dataplane = world.dataplane();
    world.block_on(async { dataplane.detach_endpoint(&["10.244.0.99".parse().unwrap()]).await.unwrap() });
    std::thread::park_timeout(std::time::Duration::from_millis(500));
    assert!(!dataplane.is_synced());
    assert_eq!(flows(&world), before, "nothing is collected");
    assert_eq!(ask(), answered, "the same endpoint");
    echoes(&stream, "while no service is known");

    // Then it hears: what serves is kept, and where datagrams may no longer go is forgotten.
    let all = objects(&world);
    for change in list(all.services, Change::Service).into_iter().chain(list(all.slices, Change::Slice)) {
        world.tell(change);
    }
    for change in Change::of_a_bare_node() {
        world.tell(change);
    }
    world.block_on(dataplane.synced());
    assert_eq!(ask(), answered, "the same endpoint");
    echoes(&stream, "once the services are known");
    assert!(flows(&world) >= before, "flows of endpoints that serve are kept");
    let other = if answered.starts_with("one") { &world.pods[1] } else { &world.pods[0] };
    world.tell(Change::Slice(Event::Apply(slice("both", &[other.v4], 8080))));
    eventually("datagrams go to the endpoint that is left", || ask().starts_with(other.name));
}

/// What an agent of an older layout left is taken over, and the rest of it goes. Pods are not attached again: the
/// next agent knows them from the old map alone.
#[test]
fn maps_of_an_older_layout_are_taken_over_and_no_connection_notices() {
    let world = world();
    world.start_with(objects(&world));
    let (service, one) = (at("10.96.0.40", 80), &world.pods[0].net);
    let connections = [
        one.run(|| connected_to_second(service)),
        world.outside.run(|| connected_to_second(at(NODE4, 30_040))),
    ];
    world.kill();

    let pins = world.config.bpf_directory.join("maps");
    let newer = sys::open_pin(&pins.join(maps::ENDPOINTS)).unwrap();
    let (key, value) = (size_of::<Address>() as u32, size_of::<EndpointValueV1>() as u32);
    let name = maps::ENDPOINTS_BEFORE_POLICIES;
    let older = sys::map_create(sys::MapKind::Hash(key, value), name, 64, None).unwrap();
    let mut before = BTreeMap::new();
    sys::map_scan(newer.as_fd(), |address: &Address, endpoint: &EndpointValue| {
        let EndpointValue { ifindex, pod_mac, host_mac, .. } = *endpoint;
        sys::map_update(older.as_fd(), address, &EndpointValueV1 { ifindex, pod_mac, host_mac }).unwrap();
        before.insert(IpAddr::from(*address), (ifindex, pod_mac, host_mac));
    })
    .unwrap();
    assert_eq!(before.len(), 4, "two addresses of two pods");
    sys::pin(older.as_fd(), &pins.join(name)).unwrap();
    fs::remove_file(pins.join(maps::ENDPOINTS)).unwrap();
    // And a layout that nobody can read any more.
    let unknown = sys::map_create(sys::MapKind::Hash(8, 8), "FLOWS_V0", 8, None).unwrap();
    sys::pin(unknown.as_fd(), &pins.join("FLOWS_V0")).unwrap();

    world.start_with_pods(objects(&world), &[]);
    for stream in &connections {
        echoes(stream, "after an agent of another layout");
    }
    let mut names: Vec<String> =
        (0..50).map(|_| world.outside.run(|| ask_tcp(at(NODE4, 30_040)).unwrap().0)).collect();
    names.sort();
    names.dedup();
    assert_eq!(names, ["one", "two"], "new connections find both pods");
    let endpoints: Table<Address, EndpointValue> =
        Table::open(world.dataplane().kernel(), maps::ENDPOINTS).unwrap();
    let mut after = BTreeMap::new();
    endpoints
        .scan(|address, value| {
            after.insert(IpAddr::from(*address), (value.ifindex, value.pod_mac, value.host_mac));
        })
        .unwrap();
    assert_eq!(after, before);
    let mut left: Vec<String> = fs::read_dir(&pins)
        .unwrap()
        .map(|pin| pin.unwrap().file_name().into_string().unwrap())
        .filter(|name| !maps::ALL.contains(&name.as_str()))
        .collect();
    left.sort();
    assert!(left.is_empty(), "{left:?}");
}
