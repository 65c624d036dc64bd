use super::*;
use kelp_agent::dataplane::view::{EndpointRef, Ends, FlowPath, Isolation, Object, ServicePort, State};
use std::net::SocketAddr;

fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn object(namespace: &str, name: &str) -> Object {
    Object { namespace: namespace.to_owned(), name: name.to_owned() }
}

fn web() -> ServicePort {
    ServicePort { namespace: "shop".to_owned(), name: "web".to_owned(), port: "http".to_owned() }
}

fn service_row() -> ServiceRow {
    ServiceRow {
        service: Some(web()),
        address: "10.96.0.7".parse().expect("an address"),
        port: 80,
        protocol: "TCP".to_owned(),
        node_port: false,
        external: false,
        table: 4,
        count: 1,
        endpoints: vec![EndpointRef {
            address: at("10.244.0.2:8080"),
            pod: Some(object("shop", "web-0")),
            draining: false,
        }],
        affinity_seconds: 0,
        local_only: false,
        drops_without_endpoints: false,
        source_ranges: None,
    }
}

#[test]
fn services_are_readable() {
    let node_port = ServiceRow {
        service: None,
        node_port: true,
        external: true,
        port: 30080,
        count: 2,
        affinity_seconds: 60,
        local_only: true,
        source_ranges: Some(vec!["192.0.2.0/24".to_owned()]),
        ..service_row()
    };
    let text = services_table(&[service_row(), node_port]).to_string();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines,
        [
            "SERVICE        ADDRESS    PORT   PROTOCOL  FOR      ENDPOINTS        OPTIONS",
            "shop/web:http  10.96.0.7  80     TCP       all      10.244.0.2:8080  -",
            "table 4        node port  30080  TCP       outside  10.244.0.2:8080  affinity 60 s,this node only,from \
             192.0.2.0/24,1 of 2 endpoints found",
        ]
    );
    let json = serde_json::to_value(service_row()).expect("JSON");
    assert_eq!(json["service"], serde_json::json!({"namespace": "shop", "name": "web", "port": "http"}));
    assert_eq!(json["endpoints"][0]["pod"]["name"], "web-0");
    assert_eq!((&json["nodePort"], &json["affinitySeconds"]), (&false.into(), &0.into()));
    assert!(json.get("sourceRanges").is_none());
}

#[test]
fn endpoints_and_pods_are_readable() {
    let endpoint = EndpointRow {
        id: 9,
        address: "fd00::2".parse().expect("an address"),
        port: 53,
        protocol: "UDP".to_owned(),
        pod: None,
        draining: true,
        services: vec![web()],
        unnamed_tables: vec![3],
    };
    let text = endpoints_table(&[endpoint]).to_string();
    assert!(text.ends_with("fd00::2  53    UDP       -    draining  shop/web:http,table 3  9\n"), "{text}");
    let pod = PodRow {
        address: "10.244.0.2".parse().expect("an address"),
        pod: Some(object("shop", "web-0")),
        ifindex: 12,
        device: None,
        ingress: Isolation::Table(5),
        egress: Isolation::None,
        sockets_translated: Some(true),
    };
    let json = serde_json::to_value(&pod).expect("JSON");
    assert_eq!((&json["ingress"]["table"], &json["egress"]), (&5.into(), &"none".into()));
    let text = pods_table(&[pod]).to_string();
    assert!(
        text.contains("shop/web-0  10.244.0.2  index 12  table 5         none           translated"),
        "{text}"
    );
}

#[test]
fn flows_are_readable() {
    let original = Ends { source: Some(at("10.244.0.3:4711")), destination: at("10.96.0.7:80") };
    let flow = Conversation {
        path: FlowPath::Packet,
        protocol: "TCP".to_owned(),
        state: Some(State::Established),
        original,
        translated: Ends { destination: at("10.244.0.2:8080"), ..original },
        nat: Nat::Destination,
        service: Some(web()),
        backend: Some(9),
        source_pod: None,
        destination_pod: Some(object("shop", "web-0")),
        verdict: None,
        idle_seconds: Some(3),
        timeout_seconds: Some(86_397),
    };
    let text = flows_table(std::slice::from_ref(&flow)).to_string();
    let row = text.lines().nth(1).expect("a row");
    let cells: Vec<&str> = row.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
    assert_eq!(
        cells,
        [
            "packet",
            "TCP",
            "established",
            "10.244.0.3:4711",
            "10.96.0.7:80",
            "destination",
            "10.244.0.2:8080",
            "shop/web:http",
            "- > shop/web-0",
            "-",
            "3 s",
            "86397 s"
        ]
    );
    let json = serde_json::to_value(&flow).expect("JSON");
    assert_eq!(
        (&json["path"], &json["state"], &json["nat"]),
        (&"packet".into(), &"established".into(), &"destination".into())
    );
    assert_eq!(json["original"]["source"], "10.244.0.3:4711");
}
