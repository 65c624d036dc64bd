//! Services of every kind, with real sockets: who reaches whom, what monitors are told, and what survives.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};

use k8s_openapi::api::core::v1::{Node, Pod as ApiPod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher::Event;
use serde_json::{Value, json};

use super::world::*;
use crate::dataplane::events::About;
use crate::dataplane::reconciler::Change;

const EXTERNAL: &str = "203.0.113.7";
const BALANCER: &str = "203.0.113.8";

/// A Service with TCP and UDP on port 80, and more.
fn with(name: &str, address: &str, node_port: u16, spec: Value, status: Value) -> Service {
    let mut value = serde_json::to_value(service(name, &[address], node_port)).unwrap();
    for (key, field) in spec.as_object().unwrap() {
        value["spec"][key] = field.clone();
    }
    value["status"] = status;
    serde_json::from_value(value).unwrap()
}

/// The endpoints of a service, each on a node.
fn on_nodes(name: &str, endpoints: &[(&str, &str)]) -> EndpointSlice {
    let addresses: Vec<_> = endpoints.iter().map(|(address, _)| address.parse().unwrap()).collect();
    let mut value = serde_json::to_value(slice(name, &addresses, 8080)).unwrap();
    for (index, (_, node)) in endpoints.iter().enumerate() {
        value["endpoints"][index]["nodeName"] = json!(node);
    }
    serde_json::from_value(value).unwrap()
}

/// A world whose pods serve on port 8080, and a pod of another node as well.
fn world() -> World {
    let world = World::new();
    for pod in &world.pods {
        let address = SocketAddr::new(pod.v4, 8080);
        serve_tcp(&pod.net, address, pod.name);
        serve_udp(&pod.net, address, pod.name);
    }
    serve_tcp(&world.outside, at(REMOTE4, 8080), "remote");
    for address in [EXTERNAL, BALANCER] {
        world.outside.ip(&format!("route add {address}/32 via {NODE4}"));
    }
    world
}

/// The pod "one" of the API: with ports on the node, or with annotations.
fn api_pod(ports: Value, annotations: Value) -> ApiPod {
    serde_json::from_value(json!({
        "metadata": {"namespace": "default", "name": "one", "annotations": annotations},
        "spec": {"containers": [{"name": "c", "ports": ports}]},
        "status": {"podIPs": [{"ip": "10.244.0.2"}]},
    }))
    .unwrap()
}

#[test]
fn every_address_of_a_service_is_served_to_whom_it_is_for() {
    let world = world();
    let ranges =
        json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ["10.244.0.2/32", "192.0.2.1/32"]});
    let ingress = json!({"loadBalancer": {"ingress": [{"ip": BALANCER}]}});
    let local = json!({"externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local"});
    world.start_with(Objects {
        services: vec![
            with("external", "10.96.0.20", 0, json!({"externalIPs": [EXTERNAL]}), json!({})),
            with("balanced", "10.96.0.21", 30_021, ranges, ingress),
            with("local", "10.96.0.22", 30_022, local.clone(), json!({})),
            with("elsewhere", "10.96.0.23", 30_023, local, json!({})),
        ],
        slices: vec![
            on_nodes("external", &[("10.244.0.3", "here")]),
            on_nodes("balanced", &[("10.244.0.3", "here")]),
            on_nodes("local", &[("10.244.0.3", "here"), (REMOTE4, "there")]),
            on_nodes("elsewhere", &[(REMOTE4, "there")]),
        ],
        ..Objects::default()
    });
    let (one, two) = (&world.pods[0].net, &world.pods[1].net);
    let name = |address: &str, port: u16| ask_tcp(at(address, port)).map(|(name, _)| name);
    let everywhere = |check: &(dyn Fn(bool) + Sync)| {
        world.outside.run(|| check(true));
        for net in [one, two] {
            net.run(|| check(false));
            world.with_sockets(net, || check(false));
        }
        world.with_sockets(&world.host, || check(false));
    };
    everywhere(&|_| assert_eq!(name(EXTERNAL, 80).unwrap(), "two"));
    // Client ranges hold on both paths; other addresses of the service have none.
    for sockets in [true, false] {
        let in_pod = |net: &Net, f: &(dyn Fn() + Sync)| {
            if sockets { world.with_sockets(net, f) } else { net.run(f) }
        };
        in_pod(one, &|| assert_eq!(name(BALANCER, 80).unwrap(), "two"));
        in_pod(two, &|| {
            assert!(name(BALANCER, 80).is_err(), "not in the ranges, sockets {sockets}");
            assert_eq!(name(NODE4, 30_021).unwrap(), "two");
        });
    }
    world.outside.run(|| assert_eq!(name(BALANCER, 80).unwrap(), "two"));
    assert!(world.with_sockets(&world.host, || name(BALANCER, 80)).is_err(), "the node is not in the ranges");
    // A traffic policy `Local`: the outside reaches endpoints here only, and is dropped where there are none.
    world.outside.run(|| {
        for _ in 0..20 {
            let (name, seen) = ask_tcp(at(NODE4, 30_022)).unwrap();
            assert_eq!((name.as_str(), seen.as_str()), ("two", OUTSIDE4), "the client keeps its address");
        }
        assert_ne!(name(NODE4, 30_023).unwrap_err().kind(), ErrorKind::ConnectionRefused, "dropped");
    });
    world.with_sockets(one, || {
        for _ in 0..20 {
            assert_eq!(name("10.96.0.22", 80).unwrap(), "two");
        }
        assert!(name("10.96.0.23", 80).is_err());
        assert_eq!(name(NODE4, 30_023).unwrap(), "remote", "clients in the cluster reach all endpoints");
    });
    one.run(|| {
        assert_ne!(name("10.96.0.23", 80).unwrap_err().kind(), ErrorKind::ConnectionRefused, "dropped")
    });
    world.with_sockets(&world.host, || {
        assert!(name("10.96.0.23", 80).is_err());
        assert_eq!(name("127.0.0.1", 30_023).is_ok_and(|name| name == "remote"), namespaces_are_known());
    });
}

#[test]
fn ports_of_pods_on_the_node_are_served_on_both_paths_and_on_loopback() {
    let world = world();
    let ports = json!([
        {"containerPort": 8080, "hostPort": 8443},
        {"containerPort": 8080, "hostPort": 8444, "hostIP": "127.0.0.1"},
        {"containerPort": 8080, "hostPort": 8444, "hostIP": NODE4, "protocol": "UDP"},
    ]);
    world.start_with(Objects { pods: vec![api_pod(ports, json!({}))], ..Objects::default() });
    let other = &world.pods[1].net;
    let all = || {
        assert_eq!(ask_tcp(at(NODE4, 8443)).unwrap().0, "one");
        assert_eq!(ask_udp(at(NODE4, 8444), true).unwrap().0, "one");
    };
    other.run(all);
    world.with_sockets(other, all);
    world.with_sockets(&world.host, || {
        all();
        for port in [8443, 8444] {
            let one = ask_tcp(at("127.0.0.1", port)).is_ok_and(|(name, _)| name == "one");
            assert_eq!(one, namespaces_are_known(), "{port}");
        }
        assert!(ask_tcp(at(NODE4, 8444)).is_err(), "another address is another port");
    });
    world.outside.run(|| {
        all();
        assert_eq!(ask_tcp(at(NODE4, 8443)).unwrap().1, OUTSIDE4);
    });
    // A pod's own loopback is its own, also for a port of that address.
    assert!(world.with_sockets(other, || ask_tcp(at("127.0.0.1", 8444))).is_err());
    world.tell(Change::Pod(Event::Delete(api_pod(json!([]), json!({})))));
    eventually("the end of the port", || world.outside.run(|| ask_tcp(at(NODE4, 8443)).is_err()));
}

/// Asks an HTTP server; returns the status, the head and the body.
fn get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String, String)> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Ok((status, head.to_lowercase(), body.to_owned()))
}

#[test]
fn monitors_and_load_balancers_are_told_how_it_is() {
    let mut world = world();
    world.config.healthz_address = Some(at("0.0.0.0", 10_256));
    world.config.metrics_address = Some(at("0.0.0.0", 10_249));
    let node = |taints: Value| -> Node {
        serde_json::from_value(json!({"metadata": {"name": "here"}, "spec": {"taints": taints}})).unwrap()
    };
    let spec =
        json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 31_999});
    let balanced = with("lb", "10.96.0.30", 30_030, spec, json!({}));
    world.start_with(Objects {
        services: vec![balanced.clone()],
        slices: vec![on_nodes("lb", &[("10.244.0.3", "here"), (REMOTE4, "there")])],
        node: Some(node(json!([]))),
        ..Objects::default()
    });
    let ask = |port: u16, path: &str| world.outside.run(|| get(at(NODE4, port), path));
    eventually("the health check", || ask(31_999, "/").is_ok());
    let (status, head, body) = ask(31_999, "/anything").unwrap();
    assert_eq!(status, 200);
    assert!(head.contains("x-load-balancing-endpoint-weight: 1"), "{head}");
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body["service"], json!({"namespace": "default", "name": "lb"}));
    assert_eq!((&body["localEndpoints"], &body["serviceProxyHealthy"]), (&json!(1), &json!(true)));
    // Only a terminating endpoint is left here: it still serves, and load balancers go elsewhere.
    let mut ending = serde_json::to_value(on_nodes("lb", &[("10.244.0.3", "here")])).unwrap();
    ending["endpoints"][0]["conditions"] = json!({"ready": false, "serving": true, "terminating": true});
    world.tell(Change::Slice(Event::Apply(serde_json::from_value(ending).unwrap())));
    eventually("the end of the endpoint", || ask(31_999, "/").unwrap().0 == 503);
    assert_eq!(world.outside.run(|| ask_tcp(at(NODE4, 30_030))).unwrap().0, "two");

    let (status, head, body) = ask(10_256, "/healthz").unwrap();
    assert!(status == 200 && head.contains("content-type: application/json"), "{status} {head}");
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((&body["nodeEligible"], &body["status"]["IPv4"]["healthy"]), (&json!(true), &json!(true)));
    let taint = json!([{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]);
    world.tell(Change::Node(Event::Apply(node(taint))));
    eventually("the taint", || ask(10_256, "/healthz").unwrap().0 == 503);
    assert_eq!(ask(10_256, "/livez").unwrap().0, 200);
    assert_eq!(ask(10_256, "/other").unwrap().0, 404);
    let (_, _, metrics) = ask(10_249, "/metrics").unwrap();
    for line in [
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"external\"} 0",
        "kelp_dataplane_map_entries{map=\"BACKENDS_V1\"} 2",
        "kelp_dataplane_map_capacity{map=\"FLOWS_V1\"} 262144",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in {metrics}");
    }
    world.tell(Change::Service(Event::Delete(balanced)));
    eventually("the end of the health check", || ask(31_999, "/").is_err());
}

#[test]
fn a_datagram_socket_of_an_endpoint_that_is_gone_is_released() {
    if !namespaces_are_known() {
        return;
    }
    let world = world();
    let dns = service("dns", &["10.96.0.10"], 0);
    world.start(vec![dns], vec![on_nodes("dns", &[("10.244.0.2", "here")])]);
    let client = world.pods[1].net.clone();
    let connect = |sockets: bool| {
        let body = || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(TIMEOUT)).unwrap();
            socket.connect(at("10.96.0.10", 80)).unwrap();
            socket
        };
        if sockets { world.with_sockets(&client, body) } else { client.run(body) }
    };
    let ask = |socket: &UdpSocket| -> std::io::Result<String> {
        let mut buffer = [0; 64];
        socket.send(b"?")?;
        let length = socket.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..length]).split(' ').next().unwrap().to_owned())
    };
    let (translated, packets) = (connect(true), connect(false));
    assert_eq!((ask(&translated).unwrap(), ask(&packets).unwrap()), ("one".to_owned(), "one".to_owned()));
    // The endpoint is replaced; the pod behind it still answers, as one that shuts down may.
    world.tell(Change::Slice(Event::Apply(on_nodes("dns", &[("10.244.0.3", "here")]))));
    let mut last = None;
    eventually("the release", || match ask(&translated) {
        Ok(name) => name == "two",
        Err(error) => {
            last = error.raw_os_error();
            true
        }
    });
    // A call that waits gets ECONNABORTED, a send EDESTADDRREQ: the socket is not connected any more.
    assert!(
        [Some(libc::ECONNABORTED), Some(libc::EDESTADDRREQ)].contains(&last),
        "the program is told: {last:?}"
    );
    assert_eq!(ask(&connect(true)).unwrap(), "two");
    assert_eq!(ask(&packets).unwrap(), "two", "on the packet path the flow goes on to the new endpoint");
    // No endpoint is left: refused at once, not for as long as flows are remembered.
    let translated = connect(true);
    ask(&translated).unwrap();
    world.tell(Change::Slice(Event::Apply(on_nodes("dns", &[]))));
    eventually("the release", || ask(&translated).is_err());
    eventually("the refusal", || {
        ask(&packets).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    });
    // An agent that starts flushes nothing.
    world.tell(Change::Slice(Event::Apply(on_nodes("dns", &[("10.244.0.3", "here")]))));
    eventually("an endpoint", || ask(&packets).is_ok());
    let kept = connect(true);
    ask(&kept).unwrap();
    world.kill();
    world.start(vec![service("dns", &["10.96.0.10"], 0)], vec![on_nodes("dns", &[("10.244.0.3", "here")])]);
    for socket in [&kept, &packets] {
        assert_eq!(ask(socket).unwrap(), "two");
    }
}

#[test]
fn a_pod_that_opted_out_has_its_packets_translated() {
    if !namespaces_are_known() {
        return;
    }
    let world = world();
    let annotations = json!({kelp_model::service::SOCKET_ANNOTATION: "disabled"});
    world.start_with(Objects {
        services: vec![service("web", &["10.96.0.7"], 0)],
        slices: vec![on_nodes("web", &[("10.244.0.2", "here")])],
        pods: vec![api_pod(json!([]), annotations)],
        ..Objects::default()
    });
    // The pod reaches itself: on the packet path it sees its gateway, on the socket path itself.
    let one = &world.pods[0].net;
    let seen = || world.with_sockets(one, || ask_tcp(at("10.96.0.7", 80)).unwrap().1);
    eventually("the opt-out", || seen() == "169.254.1.1");
    world.tell(Change::Pod(Event::Apply(api_pod(json!([]), json!({})))));
    eventually("the end of the opt-out", || seen() == "10.244.0.2");
}

#[test]
fn maps_get_another_size_and_connections_go_on() {
    let mut world = world();
    let start = |world: &World| {
        world.start(
            vec![service("web", &["10.96.0.7"], 30_080)],
            vec![on_nodes("web", &[("10.244.0.3", "here")])],
        );
    };
    start(&world);
    let one = world.pods[0].net.clone();
    let connect = |address: SocketAddr| {
        let mut stream = TcpStream::connect_timeout(&address, TIMEOUT).unwrap();
        greeting(&mut stream).unwrap();
        stream
    };
    let mut streams = vec![
        one.run(|| connect(at("10.96.0.7", 80))),
        world.outside.run(|| connect(at(NODE4, 30_080))),
        world.with_sockets(&one, || connect(at("10.96.0.7", 80))),
    ];
    let capacity = |world: &World| {
        let map = world.dataplane().kernel().map(kelp_common::maps::FLOWS).unwrap();
        crate::dataplane::sys::map_shape(std::os::fd::AsFd::as_fd(&map)).unwrap().2
    };
    for size in [4_096, 262_144] {
        world.kill();
        for (name, _) in crate::dataplane::kernel::resize::SIZES {
            world.config.map_sizes.insert(name, size);
        }
        start(&world);
        assert_eq!(capacity(&world), size);
        assert!(!world.config.bpf_directory.join("old-maps").exists());
        for stream in &mut streams {
            stream.set_read_timeout(Some(TIMEOUT)).unwrap();
            stream.write_all(b"still here").unwrap();
            let mut answer = [0; 10];
            stream.read_exact(&mut answer).unwrap();
        }
        assert_eq!(
            streams[2].peer_addr().unwrap(),
            at("10.96.0.7", 80),
            "the service's address is still shown"
        );
    }
}

#[test]
fn a_full_map_is_reported_and_what_works_goes_on() {
    let mut world = world();
    world.config.map_sizes.insert(kelp_common::maps::BACKENDS, 2);
    world.start(vec![service("web", &["10.96.0.7"], 0)], vec![on_nodes("web", &[("10.244.0.3", "here")])]);
    world.tell(Change::Service(Event::Apply(service("more", &["10.96.0.8"], 0))));
    world.tell(Change::Slice(Event::Apply(on_nodes("more", &[("10.244.0.2", "here")]))));
    let event = world.event();
    assert_eq!((event.about, event.reason), (About::Node, "DataplaneMapFull"));
    assert!(event.note.contains(kelp_common::maps::BACKENDS), "{}", event.note);
    world.with_sockets(&world.pods[0].net, || assert_eq!(ask_tcp(at("10.96.0.7", 80)).unwrap().0, "two"));
    // Room again: the service that waited is served.
    world.tell(Change::Service(Event::Delete(service("web", &["10.96.0.7"], 0))));
    eventually("the service that waited", || {
        world.with_sockets(&world.pods[0].net, || ask_tcp(at("10.96.0.8", 80)).is_ok())
    });
}

#[test]
fn an_address_that_the_node_gets_later_has_node_ports() {
    let world = world();
    world.start(
        vec![service("web", &["10.96.0.7"], 30_080)],
        vec![on_nodes("web", &[("10.244.0.3", "here")])],
    );
    let reached = || {
        let late = at("192.0.2.77", 30_080);
        let host = world.with_sockets(&world.host, || ask_tcp(late).is_ok());
        host && world.outside.run(|| ask_tcp(late).is_ok())
    };
    assert!(!reached());
    world.host.ip("address add 192.0.2.77/32 dev uplink");
    eventually("the new address", reached);
    world.host.ip("address del 192.0.2.77/32 dev uplink");
    eventually("the end of the address", || {
        !world.with_sockets(&world.host, || ask_tcp(at("192.0.2.77", 30_080)).is_ok())
    });
}

#[test]
fn a_smaller_uplink_is_found_out_on_every_path() {
    let mut world = world();
    world.config.masquerade = true;
    world.host.ip("link set uplink mtu 1300");
    world.outside.ip("link set wire mtu 1300");
    world.start(
        vec![service("far", &["10.96.0.40"], 30_040), service("web", &["10.96.0.7"], 30_080)],
        vec![on_nodes("far", &[(REMOTE4, "there")]), on_nodes("web", &[("10.244.0.3", "here")])],
    );
    // Echoes much: segments of the pod's own MTU of 1500 do not fit.
    let much = |address: SocketAddr| {
        let mut stream = TcpStream::connect_timeout(&address, TIMEOUT).unwrap();
        greeting(&mut stream).unwrap();
        stream.set_write_timeout(Some(TIMEOUT)).unwrap();
        let message = vec![7; 60_000];
        stream.write_all(&message).unwrap();
        let mut answer = vec![0; 60_000];
        stream.read_exact(&mut answer).unwrap();
        assert!(answer == message);
    };
    let one = &world.pods[0].net;
    one.run(|| {
        much(at("10.96.0.40", 80));
        much(at(NODE4, 30_040));
        much(at(REMOTE4, 8080));
    });
    world.with_sockets(one, || much(at("10.96.0.40", 80)));
    world.outside.run(|| much(at(NODE4, 30_080)));
}

/// Programs connect a UDP socket to learn their own address. That sends nothing, so nothing refuses it; what is sent is
/// refused by the packet path.
#[test]
fn a_udp_socket_connects_to_what_refuses() {
    let world = world();
    let addresses = ["10.96.0.10", "fd00:10:96::10"];
    world.start(vec![service("empty", &addresses, 0)], vec![on_nodes("empty", &[])]);
    let pod = &world.pods[0];
    world.with_sockets(&pod.net, || {
        for (any, service) in ["0.0.0.0:0", "[::]:0"].into_iter().zip(addresses) {
            let socket = UdpSocket::bind(any).unwrap();
            socket.set_read_timeout(Some(TIMEOUT)).unwrap();
            socket.connect(at(service, 80)).unwrap();
            assert!(pod.endpoint.addresses.contains(&socket.local_addr().unwrap().ip()), "{service}");
            socket.send(b"?").unwrap();
            let error = socket.recv(&mut [0; 8]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{service}");
        }
    });
}
