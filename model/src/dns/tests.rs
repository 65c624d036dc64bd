//! Objects in, answers out.

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const TYPES: [RecordType; 10] = [
    RecordType::A,
    RecordType::Aaaa,
    RecordType::Cname,
    RecordType::Ns,
    RecordType::Ptr,
    RecordType::Soa,
    RecordType::Srv,
    RecordType::Txt,
    RecordType::Any,
    RecordType::Other,
];

fn zone() -> Zone {
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    let servers = vec![address("10.96.0.10"), address("fd00:10:96::a")];
    Zone::new("cluster.local.", servers, &[(address("10.96.0.0"), 16), (address("10.244.0.0"), 16)])
}

fn service(name: &str, spec: Value) -> Service {
    serde_json::from_value(json!({"metadata": {"namespace": "ns", "name": name}, "spec": spec})).unwrap()
}

fn slice(name: &str, of: &str, family: &str, endpoints: Value) -> EndpointSlice {
    serde_json::from_value(json!({
        "metadata": {"namespace": "ns", "name": name, "labels": {"kubernetes.io/service-name": of}},
        "addressType": family, "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "", "port": 9, "protocol": "UDP"}],
    }))
    .unwrap()
}

fn index() -> Index {
    let mut index = Index::new("here");
    let ports = json!([{"name": "http", "port": 80, "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "UDP"}]);
    index.apply_service(&service(
        "web",
        json!({"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd00:10:96::7"], "ports": ports}),
    ));
    index.apply_service(&service("one", json!({"clusterIP": "10.96.0.8", "ports": [{"port": 80}]})));
    let headless =
        json!({"clusterIP": "None", "clusterIPs": ["None"], "ports": [{"name": "http", "port": 80}]});
    index.apply_service(&service("peers", headless.clone()));
    index.apply_service(&service("idle", headless));
    index.apply_service(&service("out", json!({"type": "ExternalName", "externalName": "www.Example.com."})));
    index.apply_service(&service("odd", json!({"type": "ExternalName", "externalName": "10.0.0.1"})));
    index.apply_service(&service("new", json!({"ports": [{"port": 80}]})));
    index.apply_slice(&slice(
        "peers-4",
        "peers",
        "IPv4",
        json!([
            {"addresses": ["10.244.0.5"], "hostname": "a", "conditions": {"ready": true}},
            {"addresses": ["10.244.0.6"], "conditions": {}},
            {"addresses": ["10.244.0.7"], "hostname": "c", "conditions": {"ready": false, "serving": true}},
        ]),
    ));
    let six = json!([
        {"addresses": ["fd00:10:244::5"], "hostname": "a", "conditions": {"ready": true}},
        {"addresses": ["fd00:10:244::1:0"], "conditions": {"ready": true}},
    ]);
    index.apply_slice(&slice("peers-6", "peers", "IPv6", six));
    let unready = json!([{"addresses": ["10.244.0.8"], "conditions": {"ready": false}}]);
    index.apply_slice(&slice("idle-4", "idle", "IPv4", unready));
    let behind = json!([
        {"addresses": ["10.244.0.9"], "hostname": "w", "conditions": {"ready": true}},
        {"addresses": ["10.244.0.5"], "conditions": {"ready": true}},
        {"addresses": ["10.244.0.10"], "conditions": {"ready": true}},
    ]);
    index.apply_slice(&slice("web-4", "web", "IPv4", behind));
    // Slices of what has no endpoints in DNS.
    let stray = json!([{"addresses": ["10.244.0.11"], "conditions": {"ready": true}}]);
    for service in ["out", "absent"] {
        index.apply_slice(&slice(&format!("{service}-4"), service, "IPv4", stray.clone()));
    }
    index
}

fn namespaces() -> Namespaces {
    let mut namespaces = Namespaces::default();
    namespaces.reset(["empty".to_owned()]);
    namespaces
}

fn show(answer: Answer) -> Vec<String> {
    match answer {
        Answer::Records { records, .. } => records
            .into_iter()
            .map(|record| match record {
                Record::Address(address) => address.to_string(),
                Record::Alias(name) => format!("→ {name}"),
                Record::Pointer(name) | Record::NameServer(name) => name,
                Record::Server { weight, port, target } => format!("{weight} {port} {target}"),
                Record::Text(text) => format!("{text:?}"),
                Record::Authority => "SOA".into(),
            })
            .collect(),
        Answer::NoData => vec!["NODATA".into()],
        Answer::NoName => vec!["NXDOMAIN".into()],
        Answer::NotOurs => vec!["elsewhere".into()],
    }
}

#[track_caller]
fn asks(name: &str, kind: RecordType, expected: &[&str]) {
    assert_eq!(show(zone().answer(&index(), &namespaces(), name, kind)), expected, "{name} {kind:?}");
}

use RecordType::{A, Aaaa, Any, Cname, Ns, Ptr, Soa, Srv, Txt};

#[test]
fn services() {
    asks("web.ns.svc.cluster.local", A, &["10.96.0.7"]);
    asks("WEB.ns.SVC.Cluster.Local", Aaaa, &["fd00:10:96::7"]);
    asks("web.ns.svc.cluster.local", Any, &["10.96.0.7", "fd00:10:96::7"]);
    asks("web.ns.svc.cluster.local", Txt, &["NODATA"]);
    asks("one.ns.svc.cluster.local", Aaaa, &["NODATA"]);
    asks("new.ns.svc.cluster.local", A, &["NXDOMAIN"]);
    asks("web.other.svc.cluster.local", A, &["NXDOMAIN"]);
    asks("none.ns.svc.cluster.local", A, &["NXDOMAIN"]);
    asks("w.web.ns.svc.cluster.local", A, &["10.244.0.9"]);
    asks("10-244-0-10.web.ns.svc.cluster.local", A, &["10.244.0.10"]);
    asks("x.web.ns.svc.cluster.local", A, &["NXDOMAIN"]);
    asks("a.b.c.web.ns.svc.cluster.local", A, &["NXDOMAIN"]);
    let web = "web.ns.svc.cluster.local";
    asks("_http._tcp.web.ns.svc.cluster.local", Srv, &[&format!("100 80 {web}")]);
    asks("_dns._udp.web.ns.svc.cluster.local", Srv, &[&format!("100 53 {web}")]);
    asks("_http._udp.web.ns.svc.cluster.local", Srv, &["NXDOMAIN"]);
    asks("_http._tcp.web.ns.svc.cluster.local", A, &["NODATA"]);
    asks("_tcp.web.ns.svc.cluster.local", A, &["NODATA"]);
    asks("_sctp.web.ns.svc.cluster.local", A, &["NXDOMAIN"]);
    asks("http._tcp.web.ns.svc.cluster.local", Srv, &["NXDOMAIN"]);
    // An unnamed port has no record of its own.
    asks("_._tcp.one.ns.svc.cluster.local", Srv, &["NXDOMAIN"]);
    asks("_tcp.one.ns.svc.cluster.local", A, &["NXDOMAIN"]);
    asks("one.ns.svc.cluster.local", Srv, &["100 80 one.ns.svc.cluster.local"]);
    let Answer::Records { additional, .. } =
        zone().answer(&index(), &namespaces(), &format!("_http._tcp.{web}"), Srv)
    else {
        panic!("no records");
    };
    let addresses = ["10.96.0.7", "fd00:10:96::7"].map(|text| (web.to_owned(), text.parse().unwrap()));
    assert_eq!(additional, addresses);
}

#[test]
fn headless_services() {
    asks("peers.ns.svc.cluster.local", A, &["10.244.0.5", "10.244.0.6"]);
    asks("peers.ns.svc.cluster.local", Aaaa, &["fd00:10:244::5", "fd00:10:244::1:0"]);
    asks("a.peers.ns.svc.cluster.local", A, &["10.244.0.5"]);
    asks("A.peers.ns.svc.cluster.local", Aaaa, &["fd00:10:244::5"]);
    asks("10-244-0-6.peers.ns.svc.cluster.local", A, &["10.244.0.6"]);
    asks("10-244-0-6.peers.ns.svc.cluster.local", Aaaa, &["NODATA"]);
    asks("10-244-0-5.peers.ns.svc.cluster.local", A, &["NXDOMAIN"]);
    for six in ["fd00-10-244-0-0-0-1-0", "fd00-10-244--1-0", "FD00-0010-244--1-0"] {
        asks(&format!("{six}.peers.ns.svc.cluster.local"), Aaaa, &["fd00:10:244::1:0"]);
    }
    asks("c.peers.ns.svc.cluster.local", A, &["NXDOMAIN"]);
    asks("idle.ns.svc.cluster.local", A, &["NXDOMAIN"]);
    asks("_http._tcp.idle.ns.svc.cluster.local", Srv, &["NXDOMAIN"]);
    asks(
        "_http._tcp.peers.ns.svc.cluster.local",
        Srv,
        &[
            "33 8080 10-244-0-6.peers.ns.svc.cluster.local",
            "33 8080 a.peers.ns.svc.cluster.local",
            "33 8080 fd00-10-244-0-0-0-1-0.peers.ns.svc.cluster.local",
        ],
    );
    asks("_udp.peers.ns.svc.cluster.local", A, &["NXDOMAIN"]);
}

#[test]
fn other_names() {
    asks("out.ns.svc.cluster.local", A, &["→ www.Example.com"]);
    asks("out.ns.svc.cluster.local", Cname, &["→ www.Example.com"]);
    asks("odd.ns.svc.cluster.local", A, &["NXDOMAIN"]);
    asks("x.out.ns.svc.cluster.local", A, &["NXDOMAIN"]);
    asks("10-244-0-5.ns.pod.cluster.local", A, &["10.244.0.5"]);
    asks("10-244-0-5.ns.pod.cluster.local", Aaaa, &["NODATA"]);
    asks("fd00-10-244--5.ns.pod.cluster.local", Aaaa, &["fd00:10:244::5"]);
    asks("300-1-1-1.ns.pod.cluster.local", A, &["NXDOMAIN"]);
    asks("ns.pod.cluster.local", A, &["NODATA"]);
    asks("dns-version.cluster.local", Txt, &["\"1.1.0\""]);
    asks("dns-version.cluster.local", A, &["NODATA"]);
    asks("cluster.local", Soa, &["SOA"]);
    asks("cluster.local", Ns, &["ns.dns.cluster.local"]);
    asks("cluster.local", A, &["NODATA"]);
    asks("ns.dns.cluster.local", A, &["10.96.0.10"]);
    asks("dns.cluster.local", A, &["NODATA"]);
    asks("svc.cluster.local", A, &["NODATA"]);
    asks("x.cluster.local", A, &["NXDOMAIN"]);
    asks("notcluster.local", A, &["elsewhere"]);
    asks("example.com", A, &["elsewhere"]);
    asks("", A, &["elsewhere"]);
    assert!(zone().contains("x.CLUSTER.local") && !zone().contains("x.notcluster.local"));
}

/// A namespace has names of its own as long as it is there, or something in it is.
#[test]
fn namespaces_without_services() {
    for kind in TYPES {
        for (name, expected) in [
            ("ns.svc.cluster.local", "NODATA"),
            ("empty.svc.cluster.local", "NODATA"),
            ("EMPTY.svc.cluster.local", "NODATA"),
            ("other.svc.cluster.local", "NXDOMAIN"),
            ("x.empty.svc.cluster.local", "NXDOMAIN"),
            ("ns.pod.cluster.local", "NODATA"),
            ("empty.pod.cluster.local", "NODATA"),
            ("other.pod.cluster.local", "NXDOMAIN"),
            ("10-244-0-5.other.pod.cluster.local", "NXDOMAIN"),
            ("a.10-244-0-5.ns.pod.cluster.local", "NXDOMAIN"),
        ] {
            asks(name, kind, &[expected]);
        }
    }
    asks("10-244-0-5.empty.pod.cluster.local", A, &["10.244.0.5"]);
    let (zone, index, mut namespaces) = (zone(), index(), Namespaces::default());
    let ask = |namespaces: &Namespaces, name: &str| {
        let pod = format!("10-0-0-1.{name}.pod.cluster.local");
        let [svc, pod] = [format!("{name}.svc.cluster.local"), pod]
            .map(|name| show(zone.answer(&index, namespaces, &name, A)).remove(0));
        format!("{svc} {pod}")
    };
    // Before the list nothing is known to be absent; what the watch tells meanwhile is not the whole.
    assert_eq!(ask(&namespaces, "other"), "NODATA 10.0.0.1");
    namespaces.add("new");
    namespaces.remove("old");
    assert_eq!(ask(&namespaces, "other"), "NODATA 10.0.0.1");
    namespaces.reset(["old".to_owned()]);
    assert_eq!([ask(&namespaces, "new"), ask(&namespaces, "old")], ["NXDOMAIN NXDOMAIN", "NODATA 10.0.0.1"]);
    namespaces.add("new");
    namespaces.remove("old");
    assert_eq!([ask(&namespaces, "new"), ask(&namespaces, "old")], ["NODATA 10.0.0.1", "NXDOMAIN NXDOMAIN"]);
    namespaces.reset([]);
    assert_eq!([ask(&namespaces, "new"), ask(&namespaces, "ns")], ["NXDOMAIN NXDOMAIN", "NODATA 10.0.0.1"]);
}

#[test]
fn names_of_addresses() {
    asks("7.0.96.10.in-addr.arpa", Ptr, &["web.ns.svc.cluster.local"]);
    asks("7.0.96.10.in-addr.arpa", A, &["NODATA"]);
    // An endpoint of two Services: the name that somebody gave it comes first.
    let both = ["a.peers.ns.svc.cluster.local", "10-244-0-5.web.ns.svc.cluster.local"];
    asks("5.0.244.10.in-addr.arpa", Ptr, &both);
    asks("9.0.244.10.in-addr.arpa", Ptr, &["w.web.ns.svc.cluster.local"]);
    asks("10.0.244.10.in-addr.arpa", Ptr, &["10-244-0-10.web.ns.svc.cluster.local"]);
    asks("6.0.244.10.in-addr.arpa", Ptr, &["10-244-0-6.peers.ns.svc.cluster.local"]);
    let six = "5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.4.4.2.0.0.1.0.0.0.0.d.f.ip6.arpa";
    asks(six, Ptr, &["a.peers.ns.svc.cluster.local"]);
    // Not ready; of what has no endpoints; nobody's; not the cluster's.
    asks("7.0.244.10.in-addr.arpa", Ptr, &["NXDOMAIN"]);
    asks("11.0.244.10.in-addr.arpa", Ptr, &["NXDOMAIN"]);
    asks("9.9.96.10.in-addr.arpa", Ptr, &["NXDOMAIN"]);
    asks("1.2.0.192.in-addr.arpa", Ptr, &["elsewhere"]);
    asks("0.96.10.in-addr.arpa", Ptr, &["elsewhere"]);
}

#[test]
fn names_follow_the_objects() {
    let (zone, namespaces, mut index) = (zone(), namespaces(), index());
    let name = "peers.ns.svc.cluster.local";
    let pointer = "6.0.244.10.in-addr.arpa";
    // From headless to an address, to another name, and back.
    index.apply_service(&service("peers", json!({"clusterIP": "10.96.0.20", "ports": [{"port": 80}]})));
    assert_eq!(show(zone.answer(&index, &namespaces, name, A)), ["10.96.0.20"]);
    assert_eq!(show(zone.answer(&index, &namespaces, pointer, Ptr)), [format!("10-244-0-6.{name}")]);
    assert_eq!(show(zone.answer(&index, &namespaces, "20.0.96.10.in-addr.arpa", Ptr)), [name]);
    index.apply_service(&service("peers", json!({"type": "ExternalName", "externalName": "a.b"})));
    assert_eq!(show(zone.answer(&index, &namespaces, name, A)), ["→ a.b"]);
    assert_eq!(show(zone.answer(&index, &namespaces, pointer, Ptr)), ["NXDOMAIN"]);
    assert_eq!(show(zone.answer(&index, &namespaces, "20.0.96.10.in-addr.arpa", Ptr)), ["NXDOMAIN"]);
    index.apply_service(&service("peers", json!({"clusterIP": "None"})));
    assert_eq!(show(zone.answer(&index, &namespaces, name, A)), ["10.244.0.5", "10.244.0.6"]);
    assert_eq!(show(zone.answer(&index, &namespaces, pointer, Ptr)), [format!("10-244-0-6.{name}")]);
    index.reset_slices(&[]);
    assert_eq!(show(zone.answer(&index, &namespaces, name, A)), ["NXDOMAIN"]);
    assert_eq!(show(zone.answer(&index, &namespaces, pointer, Ptr)), ["NXDOMAIN"]);
    // An address that moved to another Service before its former one was seen to go.
    index.apply_service(&service("heir", json!({"clusterIP": "10.96.0.7"})));
    index.delete_service(&service("web", json!({})));
    assert_eq!(
        show(zone.answer(&index, &namespaces, "7.0.96.10.in-addr.arpa", Ptr)),
        ["heir.ns.svc.cluster.local"]
    );
    index.reset_services(&[]);
    for name in ["heir.ns.svc.cluster.local", "ns.svc.cluster.local", "7.0.96.10.in-addr.arpa"] {
        assert_eq!(show(zone.answer(&index, &namespaces, name, A)), ["NXDOMAIN"], "{name}");
    }
}

#[derive(Debug, Clone)]
enum Change {
    Service(Service),
    Slice(EndpointSlice),
    NoService(Service),
    NoSlice(EndpointSlice),
}

fn services_of() -> impl Strategy<Value = Service> {
    let spec = prop_oneof![
        (1_u8..4).prop_map(|n| json!({"clusterIP": format!("10.96.0.{n}"),
            "ports": [{"name": "p", "port": 80}, {"name": "q", "port": 53, "protocol": "UDP"}]})),
        Just(json!({"clusterIP": "None", "ports": [{"name": "p", "port": 80}]})),
        Just(json!({"type": "ExternalName", "externalName": "x.test"})),
    ];
    (prop::sample::select(vec!["s", "t"]), spec).prop_map(|(name, spec)| service(name, spec))
}

fn slices_of() -> impl Strategy<Value = EndpointSlice> {
    let endpoint =
        (1_u8..5, any::<bool>(), prop::option::of(prop::sample::select(vec!["h", "i"])), any::<bool>())
            .prop_map(|(n, ready, hostname, _)| {
                json!({"addresses": [format!("10.244.0.{n}")], "hostname": hostname,
                    "conditions": {"ready": ready}})
            });
    (
        prop::sample::select(vec!["x", "y", "z"]),
        prop::sample::select(vec!["s", "t"]),
        prop::collection::vec(endpoint, 0..3),
    )
        .prop_map(|(name, of, endpoints)| {
            let mut slice = slice(name, of, "IPv4", json!(endpoints));
            let ports = json!([{"name": "p", "port": 8080, "protocol": "TCP"}]);
            slice.ports = serde_json::from_value(ports).unwrap();
            slice
        })
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let change = prop_oneof![
        services_of().prop_map(Change::Service),
        slices_of().prop_map(Change::Slice),
        services_of().prop_map(Change::NoService),
        slices_of().prop_map(Change::NoSlice),
    ];
    prop::collection::vec(change, 0..24)
}

fn names() -> Vec<String> {
    let mut names: Vec<String> =
        ["cluster.local", "svc.cluster.local", "ns.svc.cluster.local"].map(Into::into).into();
    for service in ["s", "t"] {
        let service = format!("{service}.ns.svc.cluster.local");
        for below in ["h", "i", "10-244-0-1", "10-244-0-2", "_tcp", "_udp", "_p._tcp", "_q._udp"] {
            names.push(format!("{below}.{service}"));
        }
        names.push(service);
    }
    names.extend((0..5).map(|n| format!("{n}.0.96.10.in-addr.arpa")));
    names.extend((0..5).map(|n| format!("{n}.0.244.10.in-addr.arpa")));
    names
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn answers_agree_with_each_other_and_with_a_fresh_index(changes in changes()) {
        let (zone, namespaces) = (zone(), namespaces());
        let mut index = Index::new("here");
        let (mut services, mut slices) = (Vec::<Service>::new(), Vec::<EndpointSlice>::new());
        for change in &changes {
            match change {
                Change::Service(service) => {
                    index.apply_service(service);
                    services.retain(|other| other.metadata.name != service.metadata.name);
                    services.push(service.clone());
                }
                Change::NoService(service) => {
                    index.delete_service(service);
                    services.retain(|other| other.metadata.name != service.metadata.name);
                }
                Change::Slice(slice) => {
                    index.apply_slice(slice);
                    slices.retain(|other| other.metadata.name != slice.metadata.name);
                    slices.push(slice.clone());
                }
                Change::NoSlice(slice) => {
                    index.delete_slice(slice);
                    slices.retain(|other| other.metadata.name != slice.metadata.name);
                }
            }
        }
        // What was seen in steps is what a list shows, whatever came first.
        let (mut first, mut second) = (Index::new("here"), Index::new("here"));
        first.reset_services(&services);
        first.reset_slices(&slices);
        second.reset_slices(&slices);
        second.reset_services(&services);
        for name in names() {
            let answers: Vec<Answer> = TYPES.iter().map(|kind| zone.answer(&index, &namespaces, &name, *kind)).collect();
            for other in [&first, &second] {
                let others: Vec<Answer> = TYPES.iter().map(|kind| zone.answer(other, &namespaces, &name, *kind)).collect();
                prop_assert_eq!(&answers, &others, "{}", name);
            }
            // A name exists for all types or for none.
            let absent = answers.iter().filter(|answer| **answer == Answer::NoName).count();
            prop_assert!(absent == 0 || absent == TYPES.len(), "{name}: {answers:?}");
            if absent == 0 && name.ends_with("local") {
                let mut above = name.as_str();
                while let Some((_, parent)) = above.split_once('.').filter(|(_, p)| p.ends_with("cluster.local")) {
                    prop_assert_ne!(zone.answer(&index, &namespaces, parent, A), Answer::NoName, "{} above {}", parent, name);
                    above = parent;
                }
            }
            for answer in answers {
                let Answer::Records { records, additional } = answer else { continue };
                for (name, address) in &additional {
                    let back = zone.answer(&index, &namespaces, name, Any);
                    let Answer::Records { records, .. } = back else { panic!("{name} does not exist") };
                    prop_assert!(records.contains(&Record::Address(*address)), "{name}");
                }
                for record in records {
                    match record {
                        Record::Server { target, .. } => {
                            prop_assert!(additional.iter().any(|(name, _)| *name == target));
                        }
                        Record::Pointer(target) => {
                            let address = reverse::address(&name).unwrap();
                            let Answer::Records { records, .. } = zone.answer(&index, &namespaces, &target, Any) else {
                                panic!("{target} does not exist");
                            };
                            prop_assert!(records.contains(&Record::Address(address)), "{target}");
                        }
                        _ => {}
                    }
                }
            }
        }
    }

    #[test]
    fn no_name_is_too_odd(name in r"[a-z0-9_.\\ÄA-Z-]{0,80}(\.(ns\.)?(svc|pod)\.cluster\.local|\.arpa)?", kind in 0..TYPES.len()) {
        let _ = zone().answer(&index(), &namespaces(), &name, TYPES[kind]);
    }
}
