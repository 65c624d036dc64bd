//! YAML-like objects in, frontends and backends out.

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
            let protocol = if key.protocol == TCP { "tcp" } else { "udp" };
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
    let draining: Vec<bool> = desired.backends.values().copied().collect();
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
