//! What tools show of the maps, while the agent runs and when it is gone.

use kelp_model::policy::PodFacts;
use kelp_model::service::ObjectName;
use kube::runtime::watcher::Event;

use super::*;
use crate::dataplane::reconciler::Change;
use crate::dataplane::view::{
    self, Filter, FlowPath, FlowReport, Identity, Listener, Nat, Pins, State, Verdict,
};
use crate::dataplane::{Endpoint, PodDatapath};

/// The world of the other tests, with pods that have names.
fn named_world() -> (World, Pins) {
    let world = world();
    for pod in &world.pods {
        let facts = PodFacts {
            name: ObjectName::new("apps", pod.name),
            uid: pod.name.into(),
            labels: Default::default(),
            ports: Vec::new(),
        };
        let endpoint = Endpoint { pod: Some(facts), ..pod.endpoint.clone() };
        world.block_on(world.dataplane().attach_endpoint(&endpoint)).unwrap();
    }
    let pins = Pins::new(&world.config.bpf_directory);
    (world, pins)
}

fn of_service(name: &str) -> Filter {
    Filter { service: Some(name.to_owned()), ..Filter::default() }
}

#[test]
fn services_and_endpoints_have_names_also_without_an_agent() {
    let (world, pins) = named_world();
    for alive in [true, false] {
        if !alive {
            world.kill();
        }
        let rows = view::services(&pins, &of_service("default/solo")).unwrap();
        // TCP and UDP, IPv4 and IPv6, at an address and at a node port.
        assert_eq!(rows.len(), 8, "{rows:#?}");
        for row in &rows {
            let service = row.service.as_ref().unwrap();
            assert_eq!(service.port, row.protocol.to_lowercase());
            assert_eq!(row.port, if row.node_port { 30081 } else { 80 });
            assert_eq!(row.address.is_unspecified(), row.node_port);
            let pod = world.pods[0].address(row.address.is_ipv4());
            let [endpoint] = &row.endpoints[..] else { panic!("{row:#?}") };
            assert_eq!((row.count, endpoint.address), (1, SocketAddr::new(pod, 8080)));
            assert_eq!(endpoint.pod.as_ref().unwrap().to_string(), "apps/one");
        }
        let rows = view::services(&pins, &of_service("empty")).unwrap();
        assert!(rows.len() == 8 && rows.iter().all(|row| row.endpoints.is_empty()), "{rows:#?}");
        let all = view::services(&pins, &Filter::default()).unwrap();
        assert!(all.iter().all(|row| row.service.is_some()), "{all:#?}");
        let filter = Filter { address: Some(WEB4.parse().unwrap()), ..Filter::default() };
        assert_eq!(view::services(&pins, &filter).unwrap().len(), 2);
        let filter = Filter { namespace: Some("apps".to_owned()), ..Filter::default() };
        assert!(view::services(&pins, &filter).unwrap().is_empty());
        // Both pods of `web`, of which the first is `solo` too, for two protocols and two families.
        let endpoints = view::endpoints(&pins, &filter).unwrap();
        assert_eq!(endpoints.len(), 8, "{endpoints:#?}");
        for row in endpoints {
            let services: Vec<&str> = row.services.iter().map(|service| service.name.as_str()).collect();
            match row.pod.unwrap().name.as_str() {
                "one" => assert_eq!(services, ["solo", "web"]),
                _ => assert_eq!(services, ["web"]),
            }
        }
        let pods = view::pods(&pins, &filter).unwrap();
        let found: Vec<_> =
            pods.iter().map(|row| (row.pod.as_ref().unwrap().name.as_str(), row.address)).collect();
        let wanted: Vec<_> =
            world.pods.iter().flat_map(|pod| [(pod.name, pod.v4), (pod.name, pod.v6)]).collect();
        assert_eq!(found, wanted);
        assert_eq!(pods[0].sockets_translated, namespaces_are_known().then_some(true));
    }
}

#[test]
fn names_follow_the_services() {
    let (world, pins) = named_world();
    let count = |name: &str| view::services(&pins, &of_service(name)).unwrap().len();
    world.tell(Change::Service(Event::Apply(service("new", &["10.96.0.20"], 0))));
    eventually("the new service has its name", || count("new") == 2);
    world.tell(Change::Service(Event::Delete(service("new", &["10.96.0.20"], 0))));
    world.tell(Change::Service(Event::Delete(service("solo", &["10.96.0.11", "fd00:10:96::b"], 30081))));
    eventually("the services are gone", || count("new") + count("solo") == 0);
    // Another agent finds the names as it would write them, and those it would not.
    world.kill();
    let stray: crate::dataplane::maps::Table<u32, kelp_common::ServiceName> =
        crate::dataplane::maps::Table::open_pin(
            &world.config.bpf_directory,
            kelp_common::maps::SERVICE_NAMES,
        )
        .unwrap()
        .unwrap();
    stray.put(&77_777, &kelp_common::ServiceName::of(&["stray", "stray", ""])).unwrap();
    start(&world);
    let all = view::services(&pins, &Filter::default()).unwrap();
    assert!(all.iter().all(|row| row.service.is_some()));
    assert_eq!(stray.get(&77_777).unwrap(), None);
    // A pod that is gone has no name.
    world.block_on(world.dataplane().detach_endpoint(&world.pods[0].endpoint.addresses)).unwrap();
    let pods = view::pods(&pins, &Filter::default()).unwrap();
    assert!(pods.iter().all(|row| row.pod.as_ref().is_none_or(|pod| pod.name == "two")), "{pods:#?}");
}

#[test]
fn flows_are_shown_with_their_translation() {
    let (world, pins) = named_world();
    let client = &world.pods[1];
    let connect = || TcpStream::connect_timeout(&at("10.96.0.11", 80), TIMEOUT).unwrap();
    let mut by_packet = client.net.run(connect);
    greeting(&mut by_packet).unwrap();
    let mut by_socket = world.with_sockets(&client.net, connect);
    greeting(&mut by_socket).unwrap();
    let outside = world.outside.run(|| TcpStream::connect_timeout(&at(NODE4, 30084), TIMEOUT).unwrap());
    world.kill();

    let rows = view::conversations(&pins, &of_service("solo")).unwrap();
    let pod = SocketAddr::new(world.pods[0].v4, 8080);
    let packet = rows.iter().find(|row| row.path == FlowPath::Packet).unwrap();
    let own = by_packet.local_addr().unwrap();
    assert_eq!((packet.original.source, packet.original.destination), (Some(own), at("10.96.0.11", 80)));
    assert_eq!((packet.translated.source, packet.translated.destination), (Some(own), pod));
    assert_eq!((packet.nat, packet.state), (Nat::Destination, Some(State::Established)));
    assert_eq!(packet.protocol, "TCP");
    assert_eq!(packet.source_pod.as_ref().unwrap().to_string(), "apps/two");
    assert_eq!(packet.destination_pod.as_ref().unwrap().to_string(), "apps/one");
    let left = packet.timeout_seconds.unwrap();
    assert!((80_000..=86_400).contains(&left), "{left}");
    let socket = rows.iter().find(|row| row.path == FlowPath::Socket).unwrap();
    assert_eq!((socket.original.destination, socket.translated.destination), (at("10.96.0.11", 80), pod));
    assert_eq!((socket.backend, socket.state), (packet.backend, None));
    if namespaces_are_known() {
        assert_eq!(socket.original.source, Some(SocketAddr::new(client.v4, 0)));
        assert_eq!(socket.source_pod, packet.source_pod);
    }
    assert_eq!(rows.len(), 2, "{rows:#?}");
    // Through the node to a pod of another node: both ends change.
    let rows = view::conversations(&pins, &of_service("far")).unwrap();
    let [far] = &rows[..] else { panic!("{rows:#?}") };
    assert_eq!(far.original.source, Some(outside.local_addr().unwrap()));
    assert_eq!(far.translated.source.unwrap().ip().to_string(), NODE4);
    assert_eq!((far.nat, far.translated.destination), (Nat::Both, at(REMOTE4, 8080)));
    let filter = Filter { protocol: Some(kelp_common::UDP), ..of_service("far") };
    assert!(view::conversations(&pins, &filter).unwrap().is_empty());
    // A connection that ends says so.
    drop((by_packet, by_socket));
    eventually("the connection is closed", || {
        let rows = view::conversations(&pins, &of_service("solo")).unwrap();
        rows.iter().any(|row| row.path == FlowPath::Packet && row.state == Some(State::Closed))
    });
}

#[test]
fn what_becomes_of_connections_is_told_with_names() {
    let (world, pins) = named_world();
    let client = &world.pods[1];
    world.kill();
    let mut listener = Listener::open(&pins, 10_000).unwrap();
    let mut all: Vec<FlowReport> = Vec::new();
    let mut find = |what: &str, is: &dyn Fn(&FlowReport) -> bool| {
        eventually(what, || {
            all.extend(listener.wait(std::time::Duration::from_millis(50)).unwrap());
            all.iter().any(is)
        });
        std::mem::take(&mut all).into_iter().find(is).unwrap()
    };
    let is_of = |flow: &FlowReport, service: &str| {
        flow.service.as_ref().is_some_and(|known| known.to_string() == service)
    };
    world.with_sockets(&client.net, || ask_tcp(at("10.96.0.11", 80)).unwrap());
    let flow = find("a socket is told another destination", &|flow| flow.seen == "socket");
    assert!(is_of(&flow, "default/solo:tcp") && flow.verdict == Verdict::Translated, "{flow:?}");
    assert_eq!(flow.translated_destination, Some(SocketAddr::new(world.pods[0].v4, 8080)));
    let name = |identity: &Identity| identity.to_string();
    assert_eq!(flow.translated_identity.as_ref().map(name).as_deref(), Some("apps/one"));
    assert_eq!(name(&flow.source_identity), if namespaces_are_known() { "apps/two" } else { "node" });

    client.net.run(|| ask_tcp(at("10.96.0.11", 80)).unwrap());
    let flow = find("packets to a service are told", &|flow| {
        flow.seen == "from-pod" && is_of(flow, "default/solo:tcp") && flow.verdict == Verdict::Translated
    });
    assert_eq!(name(&flow.source_identity), "apps/two");
    world.outside.run(|| ask_tcp(at(NODE4, 30081)).unwrap());
    let flow = find("packets to a node port are told", &|flow| flow.seen == "from-net");
    assert!(is_of(&flow, "default/solo:tcp"), "{flow:?}");
    assert_eq!((flow.source_identity, flow.destination_identity), (Identity::Outside, Identity::Node));
    world.with_sockets(&client.net, || ask_tcp(at(EMPTY4, 80)).unwrap_err());
    let flow = find("a refusal is told", &|flow| flow.verdict == Verdict::Refused);
    assert!(is_of(&flow, "default/empty:tcp") && flow.reason == Some("refused"), "{flow:?}");
}
