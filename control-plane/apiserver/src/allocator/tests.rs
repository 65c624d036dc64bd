use proptest::prelude::*;
use serde_json::json;

use super::*;

fn single() -> Allocator {
    Allocator::new(vec![IpRange::parse("10.96.0.0/16").unwrap()], PortRange::new(30000, 32767))
}

fn dual() -> Allocator {
    let ranges = vec![IpRange::parse("10.96.0.0/16").unwrap(), IpRange::parse("fd00:10:96::/112").unwrap()];
    Allocator::new(ranges, PortRange::new(30000, 32767))
}

fn service(spec: Value) -> Value {
    let mut spec = spec;
    if spec.get("type").is_none() {
        spec["type"] = json!("ClusterIP");
    }
    let mut service = json!({"metadata": {"name": "b"}, "spec": spec});
    prepare_create(&mut service);
    service
}

fn create(allocator: &mut Allocator, spec: Value) -> Result<Value, String> {
    let mut service = service(spec);
    let taken = allocator.allocate(&mut service, None, false).map_err(|e| e.message().to_owned())?;
    allocator.settle(taken);
    Ok(service["spec"].take())
}

fn update(allocator: &mut Allocator, old: &Value, change: Value) -> Result<Value, String> {
    let old = json!({"metadata": {"name": "b"}, "spec": old});
    let mut new = old.clone();
    json_patch::merge(&mut new["spec"], &change);
    prepare_update(&mut new, &old);
    let taken = allocator.allocate(&mut new, Some(&old), false).map_err(|e| e.message().to_owned())?;
    allocator.settle(taken);
    Ok(new["spec"].take())
}

#[test]
fn explicit_addresses() {
    let mut a = single();
    let got = create(&mut a, json!({"clusterIP": "10.96.0.50", "selector": {"a": "b"}})).unwrap();
    assert_eq!(
        (&got["clusterIPs"], &got["ipFamilies"], &got["ipFamilyPolicy"]),
        (&json!(["10.96.0.50"]), &json!(["IPv4"]), &json!("SingleStack"))
    );
    let outside = "the provided network does not match the current range";
    for (ip, why) in [
        ("10.96.0.50", "provided IP is already allocated"),
        ("192.0.2.1", outside),
        ("10.96.0.0", outside),
        ("10.96.255.255", outside),
    ] {
        let want = format!(
            "Service \"b\" is invalid: spec.clusterIPs: Invalid value: [\"{ip}\"]: failed to allocate IP {ip}: {why}"
        );
        assert_eq!(create(&mut a, json!({"clusterIP": ip})), Err(want));
    }
    let mut dry = service(json!({"clusterIP": "1.2.3.4"}));
    assert_eq!(
        a.allocate(&mut dry, None, true).unwrap_err().message(),
        "Service \"b\" is invalid: spec.clusterIPs: Invalid value: [\"1.2.3.4\"]: failed to allocate IP 1.2.3.4: the provided IP (1.2.3.4) is not in the valid range. The range of valid IPs is 10.96.0.0/16"
    );
    a.remove(&service(json!({"clusterIP": "10.96.0.50"})));
    assert!(create(&mut a, json!({"clusterIP": "10.96.0.50"})).is_ok());
    assert_eq!(a.first().unwrap().to_string(), "10.96.0.1");
}

#[test]
fn families() {
    let with = |spec: Value| {
        let mut spec = spec;
        spec["selector"] = json!({"a": "b"});
        spec
    };
    for (spec, want) in [
        (
            json!({"ipFamilyPolicy": "RequireDualStack"}),
            "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services",
        ),
        (
            json!({"ipFamilies": ["IPv6"]}),
            "spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster",
        ),
        (
            json!({"ipFamilies": ["IPv4", "IPv6"]}),
            "spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified",
        ),
        (
            json!({"ipFamilyPolicy": "Bogus"}),
            "spec.ipFamilyPolicy: Unsupported value: \"Bogus\": supported values: \"PreferDualStack\", \"RequireDualStack\", \"SingleStack\"",
        ),
        (json!({"ipFamilies": ["IPv4", "IPv4"]}), "spec.ipFamilies[1]: Duplicate value: \"IPv4\""),
        (
            json!({"clusterIPs": ["10.96.0.61"]}),
            "spec.clusterIPs: Invalid value: [\"10.96.0.61\"]: must be empty when `clusterIP` is not specified",
        ),
    ] {
        assert_eq!(create(&mut single(), with(spec)), Err(format!("Service \"b\" is invalid: {want}")));
    }
    let got = create(&mut single(), with(json!({"ipFamilyPolicy": "PreferDualStack"}))).unwrap();
    assert_eq!((&got["ipFamilies"], got["clusterIPs"].as_array().unwrap().len()), (&json!(["IPv4"]), 1));
    let got = create(&mut single(), json!({"clusterIP": "None", "ipFamilies": ["IPv6"]})).unwrap();
    assert_eq!(
        (&got["ipFamilies"], &got["ipFamilyPolicy"]),
        (&json!(["IPv6", "IPv4"]), &json!("RequireDualStack"))
    );

    let mut a = dual();
    let got =
        create(&mut a, with(json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"]}))).unwrap();
    assert_eq!(got["ipFamilies"], json!(["IPv6", "IPv4"]));
    assert_eq!(got["clusterIPs"][0], got["clusterIP"]);
    assert!(got["clusterIP"].as_str().unwrap().starts_with("fd00:10:96::"));
    // Down to one family and up again.
    let one = update(&mut a, &got, json!({"ipFamilyPolicy": "SingleStack"})).unwrap();
    assert_eq!((&one["ipFamilies"], &one["clusterIPs"]), (&json!(["IPv6"]), &json!([got["clusterIP"]])));
    let freed: IpAddr = got["clusterIPs"][1].as_str().unwrap().parse().unwrap();
    assert!(!a.addresses.is_taken(freed));
    let two = update(&mut a, &one, json!({"ipFamilyPolicy": "PreferDualStack"})).unwrap();
    assert_eq!(two["clusterIPs"].as_array().unwrap().len(), 2);
    assert_eq!(two["clusterIP"], got["clusterIP"]);
}

#[test]
fn node_ports() {
    let mut a = single();
    let ports = json!([{"name": "a", "port": 80, "nodePort": 30040}]);
    let s = create(&mut a, json!({"type": "NodePort", "ports": ports})).unwrap();
    assert_eq!(
        create(&mut a, json!({"type": "NodePort", "ports": ports})),
        Err("Service \"b\" is invalid: spec.ports[0].nodePort: Invalid value: 30040: provided port is already allocated".to_owned())
    );
    assert_eq!(
        create(&mut a, json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]})),
        Err("Service \"b\" is invalid: spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-32767".to_owned())
    );
    // A port keeps its number by its name, another gets one.
    let s = update(
        &mut a,
        &s,
        json!({"ports": [{"name": "b", "port": 81}, {"name": "a", "port": 80, "targetPort": "x"}]}),
    )
    .unwrap();
    assert_eq!(s["ports"][1]["nodePort"], 30040);
    let b = s["ports"][0]["nodePort"].as_i64().unwrap();
    assert!((30086..=32767).contains(&b), "{b}");
    let s = update(&mut a, &s, json!({"ports": [{"name": "b", "port": 81}]})).unwrap();
    assert!(!a.ports.is_taken(30040) && a.ports.is_taken(b) && s["ports"][0]["nodePort"] == b);
    // Another type gives all up.
    let s = update(&mut a, &s, json!({"type": "ClusterIP"})).unwrap();
    assert!(!a.ports.is_taken(b) && s["ports"][0].get("nodePort").is_none());
    // One number for both protocols of a port.
    let both =
        json!([{"name": "t", "port": 53, "protocol": "TCP"}, {"name": "u", "port": 53, "protocol": "UDP"}]);
    let s = create(&mut a, json!({"type": "NodePort", "ports": both})).unwrap();
    assert_eq!(s["ports"][0]["nodePort"], s["ports"][1]["nodePort"]);
}

#[test]
fn load_balancers() {
    let mut a = single();
    let local = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [{"port": 80}], "healthCheckNodePort": 30030});
    let s = create(&mut a, local.clone()).unwrap();
    assert!(s["ports"][0]["nodePort"].as_i64().is_some());
    assert_eq!(
        create(&mut a, local),
        Err("Internal error occurred: failed to allocate requested HealthCheck NodePort 30030: provided port is already allocated".to_owned())
    );
    let s = update(&mut a, &s, json!({"externalTrafficPolicy": "Cluster"})).unwrap();
    assert!(s.get("healthCheckNodePort").is_none() && !a.ports.is_taken(30030));
    let bare = create(
        &mut a,
        json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": [{"port": 80}]}),
    )
    .unwrap();
    assert!(bare["ports"][0].get("nodePort").is_none());
    let full = update(&mut a, &bare, json!({"allocateLoadBalancerNodePorts": true})).unwrap();
    let kept = update(&mut a, &full, json!({"allocateLoadBalancerNodePorts": false})).unwrap();
    assert_eq!(full["ports"][0]["nodePort"], kept["ports"][0]["nodePort"]);
}

#[test]
fn external_names_have_no_address() {
    let mut a = single();
    let s = create(&mut a, json!({"ports": [{"port": 80}], "internalTrafficPolicy": "Cluster"})).unwrap();
    let ip: IpAddr = s["clusterIP"].as_str().unwrap().parse().unwrap();
    let external = update(&mut a, &s, json!({"type": "ExternalName", "externalName": "e.com"})).unwrap();
    assert_eq!(external, json!({"type": "ExternalName", "externalName": "e.com", "ports": [{"port": 80}]}));
    assert!(!a.addresses.is_taken(ip));
    let back = update(&mut a, &external, json!({"type": "ClusterIP"})).unwrap();
    assert!(back["clusterIP"].is_string());
}

#[test]
fn a_full_range_and_tiny_ranges() {
    let mut a = Allocator::new(vec![IpRange::parse("10.0.0.0/30").unwrap()], PortRange::new(30000, 30001));
    let mut seen = Vec::new();
    for _ in 0..2 {
        seen.push(create(&mut a, json!({})).unwrap()["clusterIP"].as_str().unwrap().to_owned());
    }
    seen.sort();
    assert_eq!(seen, ["10.0.0.1", "10.0.0.2"]);
    assert_eq!(
        create(&mut a, json!({})),
        Err("Internal error occurred: failed to allocate a serviceIP: range is full".to_owned())
    );
    for bad in ["10.0.0.0", "10.0.0.0/33", "x/8", "10.0.0.0/32", "10.0.0.0/31"] {
        assert!(IpRange::parse(bad).is_err(), "{bad}");
    }
    assert_eq!(IpRange::parse("fd00::/64").unwrap().first().to_string(), "fd00::1");
}

#[test]
fn more_ranges_and_named_addresses() {
    let mut a = Allocator::new(vec![IpRange::parse("10.0.0.0/30").unwrap()], PortRange::new(30000, 30001));
    let name: IpAddr = "10.0.0.2".parse().unwrap();
    a.addresses_mut().name(name);
    assert_eq!(create(&mut a, json!({})).unwrap()["clusterIP"], "10.0.0.1");
    let taken = "Service \"b\" is invalid: spec.clusterIPs: Invalid value: [\"10.0.0.2\"]: failed to allocate IP 10.0.0.2: provided IP is already allocated";
    assert_eq!(create(&mut a, json!({"clusterIP": "10.0.0.2"})), Err(taken.to_owned()));
    assert!(create(&mut a, json!({})).unwrap_err().contains("range is full"));
    let ranges = |all: &[&str]| all.iter().map(|r| IpRange::parse(r).unwrap()).collect::<Vec<_>>();
    a.use_ranges(ranges(&["10.0.0.0/30", "10.9.0.0/30", "fd00::/120"]));
    assert!(create(&mut a, json!({})).unwrap()["clusterIP"].as_str().unwrap().starts_with("10.9.0."));
    assert!(a.addresses().only_in(&ranges(&["10.9.0.0/30"]), &ranges(&["10.0.0.0/30"])));
    assert!(!a.addresses().only_in(&ranges(&["10.9.0.0/30"]), &ranges(&["10.9.0.0/16"])));
    // Taken addresses stay, wherever the ranges go.
    a.use_ranges(ranges(&["10.9.0.0/30"]));
    assert!(
        create(&mut a, json!({"clusterIP": "10.0.0.1"}))
            .unwrap_err()
            .contains("does not match the current range")
    );
    a.addresses_mut().forget(name);
    a.use_ranges(ranges(&["10.0.0.0/30"]));
    assert_eq!(create(&mut a, json!({})).unwrap()["clusterIP"], "10.0.0.2");
}

proptest! {
    /// Whatever is asked, nothing is given twice, failures take nothing, and removal gives everything back.
    #[test]
    fn never_twice(kinds in proptest::collection::vec((0usize..4, 0u8..4, 1i64..4), 1..40)) {
        let mut a = Allocator::new(
            vec![IpRange::parse("10.0.0.0/28").unwrap(), IpRange::parse("fd00::/124").unwrap()],
            PortRange::new(30000, 30019),
        );
        let mut all: Vec<Value> = Vec::new();
        for (kind, ip, count) in kinds {
            let kind = ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"][kind];
            let ports: Vec<Value> = (0..count).map(|i| json!({"name": format!("p{i}"), "port": 80 + i})).collect();
            let mut spec = json!({"type": kind, "ports": ports, "ipFamilyPolicy": "PreferDualStack", "externalTrafficPolicy": "Local"});
            if ip > 0 && kind != "ExternalName" {
                spec["clusterIP"] = json!(format!("10.0.0.{ip}"));
            }
            if let Ok(spec) = create(&mut a, spec) {
                all.push(json!({"spec": spec}));
            }
        }
        let (mut ips, mut numbers): (Vec<_>, Vec<_>) =
            (all.iter().flat_map(addresses).collect(), all.iter().flat_map(ports).collect());
        let counts = (ips.len(), numbers.len());
        ips.sort();
        ips.dedup();
        numbers.sort();
        numbers.dedup();
        prop_assert_eq!((ips.len(), numbers.len()), counts);
        for s in &all {
            a.remove(s);
        }
        prop_assert!(ips.iter().all(|ip| !a.addresses.is_taken(*ip)));
        prop_assert!((30000..30020).all(|p| !a.ports.is_taken(p)));
    }
}
