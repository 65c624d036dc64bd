//! YAML-like objects in, frontends and backends out.

use std::net::IpAddr;

use kelp_common::{SCTP, TCP};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn service(value: Value) -> Service {
    let mut object = json!({"metadata": {"namespace": "default", "name": "web"}});
    merge(&mut object, value);
    serde_json::from_value(object).expect("a Service")
}

fn slice(name: &str, value: Value) -> EndpointSlice {
    let mut object = json!({
        "metadata": {"namespace": "default", "name": name, "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    });
    merge(&mut object, value);
    serde_json::from_value(object).expect("an EndpointSlice")
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

fn cluster_ip() -> Value {
    json!({"spec": {"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"],
        "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}})
}

fn endpoint(address: &str, conditions: Value, node: &str) -> Value {
    json!({"addresses": [address], "conditions": conditions, "nodeName": node})
}

/// "frontend → backends", readable.
fn show(desired: &Desired) -> Vec<String> {
    let mut lines: Vec<String> = desired
        .frontends
        .iter()
        .map(|(key, to)| {
            let backends: Vec<String> = desired.tables[&to.table]
                .iter()
                .map(|key| format!("{}:{}", IpAddr::from(key.address), u16::from_be(key.port)))
                .collect();
            let protocol = match key.protocol {
                TCP => "tcp",
                SCTP => "sctp",
                _ => "udp",
            };
            format!(
                "{}:{}/{protocol}/{} → {}",
                IpAddr::from(key.address),
                u16::from_be(key.port),
                key.scope,
                backends.join(" ")
            )
        })
        .collect();
    lines.sort();
    lines
}

fn index(service_value: Value, endpoints: Value) -> Index {
    let mut index = Index::new("here");
    index.apply_service(&service(service_value));
    index.apply_slice(&slice("web-1", json!({"endpoints": endpoints})));
    index
}

#[test]
fn a_cluster_ip_leads_to_its_ready_endpoints() {
    let index = index(
        cluster_ip(),
        json!([
            endpoint("10.244.0.2", json!({"ready": true}), "here"),
            endpoint("10.244.0.3", json!({}), "there"),
            endpoint("10.244.0.4", json!({"ready": false}), "there"),
        ]),
    );
    let desired = index.desired();
    assert_eq!(show(&desired), ["10.96.0.7:80/tcp/0 → 10.244.0.2:8080 10.244.0.3:8080"]);
    let mut backends: Vec<(BackendKey, bool)> =
        desired.backends.iter().map(|(key, draining)| (*key, *draining)).collect();
    backends.sort_unstable();
    let draining: Vec<bool> = backends.into_iter().map(|(_, draining)| draining).collect();
    assert_eq!(draining, [false, false, true], "the endpoint that is not ready stays for its connections");
}

#[test]
fn terminating_endpoints_serve_when_no_other_does() {
    let terminating = json!({"ready": false, "serving": true, "terminating": true});
    let stopped = json!({"ready": false, "serving": false, "terminating": true});
    let index1 = index(
        cluster_ip(),
        json!([
            endpoint("10.244.0.2", terminating.clone(), "here"),
            endpoint("10.244.0.3", stopped.clone(), "here")
        ]),
    );
    assert_eq!(show(&index1.desired()), ["10.96.0.7:80/tcp/0 → 10.244.0.2:8080"]);
    let index2 = index(
        cluster_ip(),
        json!([
            endpoint("10.244.0.2", terminating, "here"),
            endpoint("10.244.0.4", json!({"ready": true}), "here")
        ]),
    );
    assert_eq!(show(&index2.desired()), ["10.96.0.7:80/tcp/0 → 10.244.0.4:8080"]);
    assert_eq!(index2.desired().backends.len(), 2);
}

#[test]
fn node_ports_and_traffic_policies() {
    let endpoints = json!([
        endpoint("10.244.0.2", json!({"ready": true}), "here"),
        endpoint("10.244.1.2", json!({"ready": true}), "there"),
    ]);
    let mut value = cluster_ip();
    merge(
        &mut value,
        json!({"spec": {"type": "NodePort",
        "ports": [{"name": "http", "port": 80, "nodePort": 30080}]}}),
    );
    let both = "10.244.0.2:8080 10.244.1.2:8080";
    assert_eq!(
        show(&index(value.clone(), endpoints.clone()).desired()),
        [format!("0.0.0.0:30080/tcp/0 → {both}"), format!("10.96.0.7:80/tcp/0 → {both}")]
    );
    merge(&mut value, json!({"spec": {"externalTrafficPolicy": "Local"}}));
    let local = index(value.clone(), endpoints.clone()).desired();
    assert_eq!(
        show(&local),
        [
            format!("0.0.0.0:30080/tcp/0 → {both}"),
            "0.0.0.0:30080/tcp/1 → 10.244.0.2:8080".to_owned(),
            format!("10.96.0.7:80/tcp/0 → {both}"),
        ]
    );
    let flags: Vec<u32> = local.frontends.values().map(|frontend| frontend.flags).collect();
    assert_eq!(
        flags,
        [FRONTEND_NODE_PORT | FRONTEND_TWO_SCOPES, FRONTEND_NODE_PORT | FRONTEND_LOCAL_ONLY, 0]
    );
    merge(&mut value, json!({"spec": {"internalTrafficPolicy": "Local", "type": "ClusterIP"}}));
    assert_eq!(show(&index(value, endpoints).desired()), ["10.96.0.7:80/tcp/0 → 10.244.0.2:8080"]);
}

#[test]
fn load_balancer_and_external_addresses() {
    let mut value = cluster_ip();
    merge(
        &mut value,
        json!({
            "spec": {"type": "LoadBalancer", "externalIPs": ["198.51.100.1"]},
            "status": {"loadBalancer": {"ingress": [
                {"ip": "203.0.113.5"}, {"hostname": "lb.example"}, {"ip": "203.0.113.6", "ipMode": "Proxy"}]}},
        }),
    );
    let index = index(value, json!([endpoint("10.244.0.2", json!({}), "here")]));
    assert_eq!(
        show(&index.desired()),
        [
            "10.96.0.7:80/tcp/0 → 10.244.0.2:8080",
            "198.51.100.1:80/tcp/0 → 10.244.0.2:8080",
            "203.0.113.5:80/tcp/0 → 10.244.0.2:8080",
        ]
    );
}

#[test]
fn families_and_protocols_are_kept_apart() {
    let mut index = Index::new("here");
    index.apply_service(&service(json!({"spec": {"clusterIPs": ["10.96.0.10", "fd00:10:96::a"], "ports": [
        {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]}})));
    let ports = json!([{"name": "dns", "port": 5353, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 5354, "protocol": "TCP"}]);
    index.apply_slice(&slice(
        "four",
        json!({"ports": ports, "endpoints": [endpoint("10.244.0.2", json!({}), "here")]}),
    ));
    index.apply_slice(&slice(
        "six",
        json!({"ports": ports, "addressType": "IPv6", "endpoints": [endpoint("fd00:10:244::2", json!({}), "here")]}),
    ));
    let lines = show(&index.desired());
    assert_eq!(
        lines,
        [
            "10.96.0.10:53/tcp/0 → 10.244.0.2:5354",
            "10.96.0.10:53/udp/0 → 10.244.0.2:5353",
            "fd00:10:96::a:53/tcp/0 → fd00:10:244::2:5354",
            "fd00:10:96::a:53/udp/0 → fd00:10:244::2:5353",
        ]
    );
}

#[test]
fn what_is_not_load_balanced_has_no_frontend() {
    for value in [
        json!({"spec": {"clusterIP": "None", "clusterIPs": ["None"], "ports": [{"port": 80}]}}),
        json!({"spec": {"type": "ExternalName", "externalName": "example.com"}}),
        json!({"metadata": {"labels": {"service.kubernetes.io/headless": ""}},
            "spec": {"clusterIP": "10.96.0.7", "ports": [{"port": 80}]}}),
        json!({"metadata": {"labels": {"service.kubernetes.io/service-proxy-name": "other"}},
            "spec": {"clusterIP": "10.96.0.7", "ports": [{"port": 80}]}}),
        json!({"spec": {"clusterIP": "not an address", "ports": [{"port": 80}]}}),
        json!({"spec": {"clusterIP": "10.96.0.7", "ports": [{"port": 70000}, {"port": -1}]}}),
    ] {
        let index = index(value.clone(), json!([]));
        assert_eq!(index.desired(), Desired::default(), "{value}");
    }
}

#[test]
fn a_service_without_endpoints_has_an_empty_table() {
    assert_eq!(show(&index(cluster_ip(), json!([])).desired()), ["10.96.0.7:80/tcp/0 → "]);
}

#[test]
fn the_order_of_events_does_not_matter_and_the_end_is_empty() {
    let web = service(cluster_ip());
    let one = slice("web-1", json!({"endpoints": [endpoint("10.244.0.2", json!({}), "here")]}));
    let two = slice(
        "web-2",
        json!({"endpoints": [endpoint("10.244.0.3", json!({}), "here"),
        endpoint("10.244.0.2", json!({"ready": false}), "here")]}),
    );
    let mut first = Index::new("here");
    first.apply_service(&web);
    first.apply_slice(&one);
    first.apply_slice(&two);
    let mut second = Index::new("here");
    second.apply_slice(&two);
    second.apply_slice(&one);
    second.apply_service(&web);
    assert_eq!(first.desired(), second.desired());
    assert_eq!(
        show(&first.desired()),
        ["10.96.0.7:80/tcp/0 → 10.244.0.2:8080 10.244.0.3:8080"],
        "an endpoint in two slices counts once, as its better self"
    );
    assert!(!first.apply_service(&web), "nothing changed");
    assert!(!first.reset_slices(&[two.clone(), one.clone()]));
    assert!(first.delete_slice(&one) && !first.delete_slice(&one));
    assert!(first.reset_slices(&[]));
    assert!(first.delete_service(&web));
    assert_eq!(first.desired(), Desired::default());
}

#[test]
fn what_is_ready_counts_as_ready_while_it_terminates() {
    // `publishNotReadyAddresses` makes endpoints ready whatever they are.
    let published = json!({"ready": true, "serving": false, "terminating": true});
    let index = index(
        cluster_ip(),
        json!([
            endpoint("10.244.0.2", published, "here"),
            endpoint("10.244.0.3", json!({"ready": true}), "there"),
        ]),
    );
    assert_eq!(show(&index.desired()), ["10.96.0.7:80/tcp/0 → 10.244.0.2:8080 10.244.0.3:8080"]);
}

#[test]
fn local_traffic_falls_back_to_local_terminating_endpoints_and_else_is_dropped() {
    let terminating = json!({"ready": false, "serving": true, "terminating": true});
    let local = || {
        let mut value = cluster_ip();
        merge(
            &mut value,
            json!({"spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 32000,
                "internalTrafficPolicy": "Local", "ports": [{"name": "http", "port": 80, "nodePort": 30080}]}}),
        );
        value
    };
    let flags = |index: &Index| -> Vec<u32> {
        index.desired().frontends.values().map(|frontend| frontend.flags & FRONTEND_DROP).collect()
    };
    let checks = |index: &Index| index.desired().health_checks.values().copied().collect::<Vec<_>>();
    // A ready one elsewhere, a terminating one here: local traffic ends here, other traffic is spared it.
    let fallback = index(
        local(),
        json!([
            endpoint("10.244.0.2", terminating.clone(), "here"),
            endpoint("10.244.1.2", json!({"ready": true}), "there"),
        ]),
    );
    assert_eq!(
        show(&fallback.desired()),
        [
            "0.0.0.0:30080/tcp/0 → 10.244.1.2:8080",
            "0.0.0.0:30080/tcp/1 → 10.244.0.2:8080",
            "10.96.0.7:80/tcp/0 → 10.244.0.2:8080",
        ]
    );
    assert_eq!(flags(&fallback), [0, 0, 0]);
    assert_eq!(checks(&fallback), [HealthCheck { port: 32_000, endpoints: 0 }], "only ready ones count");
    // None here: dropped, not refused, as other nodes have one.
    let elsewhere = index(local(), json!([endpoint("10.244.1.2", json!({"ready": true}), "there")]));
    assert_eq!(
        show(&elsewhere.desired()),
        ["0.0.0.0:30080/tcp/0 → 10.244.1.2:8080", "0.0.0.0:30080/tcp/1 → ", "10.96.0.7:80/tcp/0 → "]
    );
    assert_eq!(flags(&elsewhere), [0, FRONTEND_DROP, FRONTEND_DROP]);
    assert_eq!(elsewhere.desired().without_local_endpoints, (1, 1));
    // None anywhere: refused.
    let nowhere = index(local(), json!([endpoint("10.244.1.2", json!({"ready": false}), "there")]));
    assert_eq!(flags(&nowhere), [0, 0, 0]);
    assert_eq!(nowhere.desired().without_local_endpoints, (0, 0));
    // A ready one here.
    let here = index(local(), json!([endpoint("10.244.0.2", json!({"ready": true}), "here")]));
    assert_eq!(checks(&here), [HealthCheck { port: 32_000, endpoints: 1 }]);
}

/// The node "here", in a zone if it has one.
fn in_zone(index: &mut Index, zone: Option<&str>) -> bool {
    let labels = zone.map_or(json!({}), |zone| json!({"topology.kubernetes.io/zone": zone}));
    let node = json!({"metadata": {"name": "here", "labels": labels}});
    index.apply_node(&serde_json::from_value(node).expect("a Node"))
}

#[test]
fn hints_keep_traffic_in_the_zone_or_on_the_node() {
    let hinted = |address: &str, node: &str, zones: Value, nodes: Value, ready: bool| {
        json!({"addresses": [address], "nodeName": node, "conditions": {"ready": ready},
            "hints": {"forZones": zones, "forNodes": nodes}})
    };
    let zone = |name: &str| json!([{"name": name}]);
    let two = json!([
        hinted("10.244.0.2", "here", zone("a"), json!([]), true),
        hinted("10.244.1.2", "there", zone("b"), json!([]), true),
        hinted("10.244.1.3", "there", json!([]), json!([]), false),
    ]);
    let mut hints = index(cluster_ip(), two);
    let both = ["10.96.0.7:80/tcp/0 → 10.244.0.2:8080 10.244.1.2:8080"];
    assert_eq!(show(&hints.desired()), both, "the zone of the node is not known");
    assert!(in_zone(&mut hints, Some("a")));
    assert_eq!(show(&hints.desired()), ["10.96.0.7:80/tcp/0 → 10.244.0.2:8080"]);
    assert!(!in_zone(&mut hints, Some("a")), "nothing changed");
    assert!(in_zone(&mut hints, Some("c")));
    assert_eq!(show(&hints.desired()), both, "no endpoint is for this zone");
    // One ready endpoint without a hint: hints do not count.
    in_zone(&mut hints, Some("a"));
    let unhinted = json!({"endpoints": [endpoint("10.244.1.4", json!({"ready": true}), "there")]});
    hints.apply_slice(&slice("web-2", unhinted));
    assert_eq!(
        show(&hints.desired()),
        ["10.96.0.7:80/tcp/0 → 10.244.0.2:8080 10.244.1.2:8080 10.244.1.4:8080"]
    );
    // The node before the zone.
    let nodes = json!([
        hinted("10.244.0.2", "here", zone("a"), zone("here"), true),
        hinted("10.244.1.2", "there", zone("a"), zone("there"), true),
    ]);
    let mut hints = index(cluster_ip(), nodes);
    in_zone(&mut hints, Some("a"));
    assert_eq!(show(&hints.desired()), ["10.96.0.7:80/tcp/0 → 10.244.0.2:8080"]);
    // Nothing for this node: then for its zone.
    let nodes = json!([
        hinted("10.244.1.2", "there", zone("a"), zone("there"), true),
        hinted("10.244.2.2", "elsewhere", zone("b"), zone("elsewhere"), true),
    ]);
    let mut hints = index(cluster_ip(), nodes.clone());
    in_zone(&mut hints, Some("a"));
    assert_eq!(show(&hints.desired()), ["10.96.0.7:80/tcp/0 → 10.244.1.2:8080"]);
    // A traffic policy that wants local endpoints does not ask for hints.
    let mut value = cluster_ip();
    merge(&mut value, json!({"spec": {"internalTrafficPolicy": "Local"}}));
    let mut local = index(value, json!([hinted("10.244.0.2", "here", zone("b"), json!([]), true)]));
    in_zone(&mut local, Some("a"));
    assert_eq!(show(&local.desired()), ["10.96.0.7:80/tcp/0 → 10.244.0.2:8080"]);
}

#[test]
fn source_ranges_restrict_the_load_balancers_addresses_only() {
    let mut value = cluster_ip();
    merge(
        &mut value,
        json!({
            "spec": {"type": "LoadBalancer", "externalIPs": ["198.51.100.1", "203.0.113.5"],
                "clusterIPs": ["10.96.0.7", "fd00:10:96::7"],
                "loadBalancerSourceRanges": ["10.0.0.0/8", " 192.0.2.1/32 ", "fd00::/16", "nonsense", "1.2.3.4/40"],
                "ports": [{"name": "http", "port": 80, "nodePort": 30080}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.5"}, {"ip": "2001:db8::5"}]}},
        }),
    );
    let desired = index(value.clone(), json!([endpoint("10.244.0.2", json!({}), "here")])).desired();
    let restricted: Vec<String> = desired
        .frontends
        .iter()
        .filter(|(_, to)| to.flags & FRONTEND_SOURCE_RANGES != 0)
        .map(|(key, _)| IpAddr::from(key.address).to_string())
        .collect();
    assert_eq!(restricted, ["203.0.113.5", "2001:db8::5"]);
    let ranges: Vec<(String, u8)> = desired
        .ranges
        .values()
        .flatten()
        .map(|(network, prefix)| (IpAddr::from(*network).to_string(), *prefix))
        .collect();
    assert_eq!(
        ranges,
        [("fd00::".to_owned(), 16), ("10.0.0.0".to_owned(), 96 + 8), ("192.0.2.1".to_owned(), 96 + 32),],
        "each family has its own"
    );
    // What cannot be read admits nobody.
    merge(&mut value, json!({"spec": {"loadBalancerSourceRanges": ["nonsense"]}}));
    let desired = index(value, json!([])).desired();
    assert!(desired.frontends.values().any(|to| to.flags & FRONTEND_SOURCE_RANGES != 0));
    assert!(desired.ranges.values().all(BTreeSet::is_empty));
}

#[test]
fn consistent_hashing_is_for_clients_outside_and_where_there_is_a_choice() {
    let balanced = |policy: &str, annotations: Value| {
        let mut value = cluster_ip();
        merge(
            &mut value,
            json!({
                "metadata": {"annotations": annotations},
                "spec": {"type": "LoadBalancer", "externalIPs": ["198.51.100.1"], "externalTrafficPolicy": policy,
                    "ports": [{"name": "http", "port": 80, "nodePort": 30080}]},
                "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.5"}]}},
            }),
        );
        value
    };
    let two = json!([endpoint("10.244.0.2", json!({}), "here"), endpoint("10.244.0.3", json!({}), "there")]);
    let desired = |value: Value, endpoints: &Value, consistent: bool| {
        let mut index = Index::new("here").with_balancing(Balancing { consistent, table_size: 509 });
        index.apply_service(&service(value));
        index.apply_slice(&slice("web-1", json!({"endpoints": endpoints})));
        index.desired()
    };
    let hashed = |desired: &Desired| -> Vec<String> {
        let hashed = desired.frontends.iter().filter(|(_, to)| to.flags & FRONTEND_MAGLEV != 0);
        hashed.map(|(key, _)| format!("{}/{}", IpAddr::from(key.address), key.scope)).collect()
    };
    let cluster = desired(balanced("Cluster", json!({})), &two, true);
    assert_eq!(hashed(&cluster), ["0.0.0.0/0", "198.51.100.1/0", "203.0.113.5/0"]);
    let lookups: Vec<&Lookup> = cluster.lookups.values().collect();
    assert_eq!(lookups, [&Lookup { size: 509, weights: vec![1, 1] }]);
    // The cluster's clients of a Service whose outside has endpoints of its own are led by chance.
    let local = desired(balanced("Local", json!({})), &two, true);
    assert_eq!(hashed(&local), ["0.0.0.0/1", "198.51.100.1/1", "203.0.113.5/1"]);
    assert_eq!(local.lookups.len(), 0, "one endpoint of this node is no choice");

    assert!(hashed(&desired(balanced("Cluster", json!({})), &two, false)).is_empty());
    for (default, value, expected) in
        [(true, "random", 0), (false, "maglev", 3), (true, "fastest", 3), (false, "fastest", 0)]
    {
        let made = desired(balanced("Cluster", json!({ALGORITHM_ANNOTATION: value})), &two, default);
        assert_eq!(
            (hashed(&made).len(), made.lookups.len()),
            (expected, expected.min(1)),
            "{default} {value}"
        );
    }
    let weights = " 10.244.0.3 = 256,10.244.0.2=0,10.244.0.2=257,10.244.0.2,=3,x=1,fd00::1=2";
    let made = desired(balanced("Cluster", json!({WEIGHTS_ANNOTATION: weights})), &two, true);
    assert_eq!(made.lookups.into_values().next().unwrap().weights, [1, 256]);
}

#[test]
fn the_older_service_has_what_two_want() {
    let mut index = Index::new("here");
    let make = |name: &str, ip: &str, created: &str| {
        service(json!({
            "metadata": {"name": name, "creationTimestamp": created},
            "spec": {"type": "NodePort", "clusterIP": ip, "ports": [{"port": 80, "nodePort": 30080}]},
        }))
    };
    let (older, younger) =
        (make("z", "10.96.0.1", "2026-01-01T00:00:00Z"), make("a", "10.96.0.2", "2026-01-02T00:00:00Z"));
    for order in [[&older, &younger], [&younger, &older]] {
        for one in order {
            index.apply_service(one);
        }
        let desired = index.desired();
        let conflicts: Vec<_> = desired
            .conflicts
            .iter()
            .map(|conflict| (conflict.holder.to_string(), conflict.loser.to_string()))
            .collect();
        assert_eq!(conflicts, [("default/z".to_owned(), "default/a".to_owned())]);
        assert_eq!(desired.frontends.len(), 3, "the younger keeps its own address");
        index.delete_service(&older);
        assert_eq!(index.desired().conflicts, []);
        assert_eq!(index.desired().frontends.len(), 2, "what is free is taken");
        index.delete_service(&younger);
    }
}

#[test]
fn datagrams_stay_with_endpoints_that_serve() {
    let mut index = Index::new("here");
    let both =
        json!([{"name": "u", "port": 53, "protocol": "UDP"}, {"name": "t", "port": 53, "protocol": "TCP"}]);
    index.apply_service(&service(json!({"spec": {"clusterIP": "10.96.0.10", "ports": both}})));
    let endpoints = json!([
        endpoint("10.244.0.2", json!({"ready": true}), "here"),
        endpoint("10.244.0.3", json!({"ready": false, "serving": true, "terminating": true}), "here"),
        endpoint("10.244.0.4", json!({"ready": false, "serving": false, "terminating": true}), "here"),
    ]);
    index.apply_slice(&slice("dns", json!({"ports": both, "endpoints": endpoints})));
    let desired = index.desired();
    let kept = |protocol: u8| -> Vec<String> {
        let own = desired.backends.keys().filter(|key| key.protocol == protocol);
        let mut own: Vec<String> = own.map(|key| IpAddr::from(key.address).to_string()).collect();
        own.sort();
        own
    };
    assert_eq!(kept(TCP), ["10.244.0.2", "10.244.0.3", "10.244.0.4"]);
    assert_eq!(kept(UDP), ["10.244.0.2", "10.244.0.3"]);
    for (key, to) in &desired.frontends {
        let serving = to.serving.as_ref().map(|serving| serving.len());
        assert_eq!(serving, (key.protocol == UDP).then_some(2));
    }
}

fn pod(name: &str, value: Value) -> Pod {
    let mut object = json!({"metadata": {"namespace": "default", "name": name},
        "spec": {"nodeName": "here", "containers": []}, "status": {"phase": "Running"}});
    merge(&mut object, value);
    serde_json::from_value(object).expect("a Pod")
}

#[test]
fn ports_of_pods_on_the_node() {
    let ports = json!([
        {"containerPort": 80, "hostPort": 8080},
        {"containerPort": 53, "hostPort": 53, "protocol": "UDP", "hostIP": "192.0.2.10"},
        {"containerPort": 53, "hostPort": 53, "protocol": "UDP", "hostIP": "127.0.0.1"},
        {"containerPort": 9999, "hostPort": 9999, "protocol": "SCTP", "hostIP": "0.0.0.0"},
        {"containerPort": 1, "hostPort": 70000}, {"containerPort": 2}, {"containerPort": 3, "hostPort": 3, "hostIP": "x"},
    ]);
    let running = json!({
        "spec": {"containers": [{"name": "c", "ports": ports}],
            "initContainers": [{"name": "s", "restartPolicy": "Always", "ports": [{"containerPort": 5, "hostPort": 5}]},
                {"name": "i", "ports": [{"containerPort": 6, "hostPort": 6}]}]},
        "status": {"podIPs": [{"ip": "10.244.0.2"}, {"ip": "fd00::2"}]},
    });
    let mut index = Index::new("here");
    assert!(index.apply_pod(&pod("web", running.clone())));
    let expected = [
        "0.0.0.0:5/tcp/0 → 10.244.0.2:5",
        "0.0.0.0:8080/tcp/0 → 10.244.0.2:80",
        "0.0.0.0:9999/sctp/0 → 10.244.0.2:9999",
        "127.0.0.1:53/udp/0 → 10.244.0.2:53",
        "192.0.2.10:53/udp/0 → 10.244.0.2:53",
        ":::5/tcp/0 → fd00::2:5",
        ":::8080/tcp/0 → fd00::2:80",
    ];
    let mut lines = show(&index.desired());
    lines.retain(|line| !line.starts_with(":::9999"));
    assert_eq!(lines, expected);
    assert!(!index.apply_pod(&pod("web", running.clone())));
    // Another pod that wants the same, a Service that does, and what makes a pod's ports end.
    let other = json!({"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 81, "hostPort": 8080}]}]},
        "status": {"podIPs": [{"ip": "10.244.0.3"}]}});
    index.apply_pod(&pod("young", other));
    let conflicts = index.desired().conflicts;
    assert!(conflicts.iter().all(|conflict| conflict.loser_is_pod && &*conflict.loser.name == "young"));
    assert_eq!(conflicts.len(), 1);
    for end in [json!({"status": {"phase": "Succeeded"}}), json!({"spec": {"hostNetwork": true}})] {
        let mut value = running.clone();
        merge(&mut value, end);
        assert!(index.apply_pod(&pod("web", value)));
        assert_eq!(show(&index.desired()), ["0.0.0.0:8080/tcp/0 → 10.244.0.3:81"]);
        index.apply_pod(&pod("web", running.clone()));
    }
    assert!(index.delete_pod(&pod("web", running)));
    assert!(index.reset_pods(&[]));
    assert_eq!(index.desired(), Desired::default());
}

#[test]
fn a_pod_can_keep_its_sockets_to_itself() {
    let mut index = Index::new("here");
    let value = json!({"metadata": {"annotations": {SOCKET_ANNOTATION: "disabled"}},
        "status": {"podIP": "10.244.0.2", "podIPs": [{"ip": "10.244.0.2"}, {"ip": "fd00::2"}]}});
    assert!(index.apply_pod(&pod("mesh", value)));
    assert_eq!(index.desired().opted_out.len(), 2);
    let value = json!({"metadata": {"annotations": {SOCKET_ANNOTATION: "enabled"}},
        "status": {"podIPs": [{"ip": "10.244.0.2"}]}});
    assert!(index.apply_pod(&pod("mesh", value)));
    assert_eq!(index.desired(), Desired::default());
}

#[test]
fn addresses_that_lead_nowhere_are_no_endpoints() {
    let endpoints = ["127.0.0.1", "0.0.0.0", "224.0.0.1", "169.254.169.254", "203.0.113.9", "x", "fd00::1"]
        .map(|address| endpoint(address, json!({}), "there"));
    let index = index(cluster_ip(), json!(endpoints));
    // Outside of any podCIDR is no fault: Services may have endpoints outside the cluster.
    assert_eq!(show(&index.desired()), ["10.96.0.7:80/tcp/0 → 203.0.113.9:8080 169.254.169.254:8080"]);
}

#[test]
fn many_endpoints_of_one_service() {
    let mut index = Index::new("here");
    index.apply_service(&service(cluster_ip()));
    for number in 0..1_000_u32 {
        let endpoints: Vec<Value> = (0..100_u32)
            .map(|low| {
                let address = std::net::Ipv4Addr::from(0x0af4_0000 + number * 100 + low);
                endpoint(&address.to_string(), json!({"ready": true}), "there")
            })
            .collect();
        index.apply_slice(&slice(&format!("web-{number}"), json!({"endpoints": endpoints})));
    }
    let desired = index.desired();
    assert_eq!(desired.tables.values().map(Vec::len).collect::<Vec<_>>(), [100_000]);
}

/// Conditions of an endpoint, its node, and its hints.
fn any_endpoint() -> impl Strategy<Value = Value> {
    (1..9_u8, any::<[bool; 3]>(), any::<bool>(), prop::option::of(0..2_u8), prop::option::of(any::<bool>()))
        .prop_map(|(number, [ready, serving, terminating], here, zone, node)| {
            let names = |name: Option<String>| name.map_or(json!([]), |name| json!([{"name": name}]));
            json!({
                "addresses": [format!("10.244.0.{number}")],
                "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
                "nodeName": if here { "here" } else { "there" },
                "hints": {"forZones": names(zone.map(|zone| format!("z{zone}"))),
                    "forNodes": names(node.map(|here| if here { "here" } else { "there" }.to_owned()))},
            })
        })
}

proptest! {
    /// The rules of upstream's proxy, written down once more from its documentation, on single endpoints a address.
    #[test]
    fn the_choice_of_endpoints_follows_the_rules(
        endpoints in prop::collection::vec(any_endpoint(), 0..6),
        zone in prop::option::of(0..2_u8),
        internal_local in any::<bool>(),
    ) {
        let mut seen = BTreeSet::new();
        let endpoints: Vec<Value> = endpoints
            .into_iter()
            .filter(|endpoint| seen.insert(endpoint["addresses"][0].to_string()))
            .collect();
        let mut value = cluster_ip();
        if internal_local {
            merge(&mut value, json!({"spec": {"internalTrafficPolicy": "Local"}}));
        }
        let mut index = index(value, json!(endpoints.clone()));
        let zone = zone.map(|zone| format!("z{zone}"));
        in_zone(&mut index, zone.as_deref());
        let desired = index.desired();

        let is = |endpoint: &Value, what: &str| endpoint["conditions"][what] == json!(true);
        let here = |endpoint: &Value| endpoint["nodeName"] == json!("here");
        let hint = |endpoint: &Value, kind: &str| endpoint["hints"][kind][0]["name"].as_str().map(str::to_owned);
        let ready: Vec<&Value> = endpoints.iter().filter(|e| is(e, "ready")).collect();
        let ending: Vec<&Value> =
            endpoints.iter().filter(|e| is(e, "serving") && is(e, "terminating")).collect();
        let expected: Vec<&Value> = if internal_local {
            let of = |list: &[&Value]| -> Vec<Value> {
                list.iter().filter(|e| here(e)).map(|e| (*e).clone()).collect()
            };
            let chosen = if of(&ready).is_empty() { of(&ending) } else { of(&ready) };
            endpoints.iter().filter(|e| chosen.contains(e)).collect()
        } else if ready.is_empty() {
            ending.clone()
        } else {
            let all = |kind: &str| ready.iter().all(|e| hint(e, kind).is_some());
            let of = |kind: &str, name: Option<&str>| -> Vec<&Value> {
                let name = name.map(str::to_owned);
                ready.iter().filter(|e| name.is_some() && hint(e, kind) == name).copied().collect()
            };
            let (node, zoned) = (of("forNodes", Some("here")), of("forZones", zone.as_deref()));
            if all("forNodes") && !node.is_empty() {
                node
            } else if all("forZones") && !zoned.is_empty() {
                zoned
            } else {
                ready.clone()
            }
        };
        let mut expected: Vec<String> =
            expected.iter().map(|e| e["addresses"][0].as_str().unwrap().to_owned()).collect();
        expected.sort();
        let (key, to) = desired.frontends.iter().next().expect("one frontend");
        prop_assert_eq!(desired.frontends.len(), 1, "{:?}", key);
        let mut found: Vec<String> =
            desired.tables[&to.table].iter().map(|key| IpAddr::from(key.address).to_string()).collect();
        found.sort();
        prop_assert_eq!(found, expected.clone());
        let any = !ready.is_empty() || !ending.is_empty();
        prop_assert_eq!(to.flags & FRONTEND_DROP != 0, any && expected.is_empty());
    }
}

#[test]
fn the_nodes_dns_server_serves_cluster_dns_until_another_does() {
    let addresses = ["192.0.2.7", "2001:db8::7"].map(|text| Address::from(text.parse::<IpAddr>().unwrap()));
    let server = LocalDns {
        service: ObjectName::new("default", "web"),
        addresses: addresses.to_vec(),
        port: 10_053_u16.to_be(),
    };
    let mut index = Index::new("here").with_local_dns(Some(server));
    let mut dns = service(
        json!({"spec": {"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10", "fd00:10:96::a"],
        "internalTrafficPolicy": "Cluster", "ports": [
            {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
            {"name": "metrics", "port": 9153, "protocol": "TCP"}]}}),
    );
    index.apply_service(&dns);
    let own = [
        "10.96.0.10:53/tcp/0 → 192.0.2.7:10053",
        "10.96.0.10:53/udp/0 → 192.0.2.7:10053",
        "10.96.0.10:9153/tcp/0 → ",
        "fd00:10:96::a:53/tcp/0 → 2001:db8::7:10053",
        "fd00:10:96::a:53/udp/0 → 2001:db8::7:10053",
        "fd00:10:96::a:9153/tcp/0 → ",
    ];
    assert_eq!(show(&index.desired()), own);
    // An operator's server that is not ready yet takes nothing away.
    let theirs = |ready: bool| {
        slice(
            "web-1",
            json!({
            "endpoints": [endpoint("10.244.1.9", json!({"ready": ready}), "there")],
            "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
                {"name": "metrics", "port": 9153, "protocol": "TCP"}]}),
        )
    };
    index.apply_slice(&theirs(false));
    assert_eq!(show(&index.desired()), own);
    // One that is ready has the Service whole, as any other Service: also in the family that it does not speak.
    index.apply_slice(&theirs(true));
    assert_eq!(
        show(&index.desired()),
        [
            "10.96.0.10:53/tcp/0 → 10.244.1.9:53",
            "10.96.0.10:53/udp/0 → 10.244.1.9:53",
            "10.96.0.10:9153/tcp/0 → 10.244.1.9:9153",
            "fd00:10:96::a:53/tcp/0 → ",
            "fd00:10:96::a:53/udp/0 → ",
            "fd00:10:96::a:9153/tcp/0 → ",
        ]
    );
    index.delete_slice(&theirs(true));
    assert_eq!(show(&index.desired()), own);
    // Other Services are none of its business.
    dns.metadata.name = Some("other".into());
    dns.spec.as_mut().unwrap().cluster_ip = Some("10.96.0.11".into());
    dns.spec.as_mut().unwrap().cluster_ips = None;
    index.apply_service(&dns);
    assert!(show(&index.desired()).contains(&"10.96.0.11:53/udp/0 → ".to_owned()));
}
