use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn service(spec: Value) -> Service {
    serde_json::from_value(json!({
        "metadata": {"name": "s", "namespace": "n", "uid": "service", "labels": {"team": "x"}}, "spec": spec,
    }))
    .unwrap()
}

fn pod(name: &str, ip: &str, change: impl FnOnce(&mut Value)) -> Pod {
    let mut value = json!({
        "metadata": {"name": name, "namespace": "n", "uid": name},
        "spec": {"nodeName": "w1", "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                   "conditions": [{"type": "Ready", "status": "True"}]},
    });
    change(&mut value);
    serde_json::from_value(value).unwrap()
}

fn web() -> Service {
    service(json!({"ports": [{"port": 80, "targetPort": "web"}], "ipFamilies": ["IPv4"]}))
}

fn conditions(group: &Group) -> Vec<(bool, bool, bool)> {
    let of = |e: &k8s_openapi::api::discovery::v1::Endpoint| {
        let c = e.conditions.clone().unwrap();
        (c.ready.unwrap(), c.serving.unwrap(), c.terminating.unwrap())
    };
    group.endpoints.iter().map(of).collect()
}

#[test]
fn conditions_follow_readiness_and_deletion() {
    let pods = [
        pod("ready", "10.0.0.1", |_| {}),
        pod("unready", "10.0.0.2", |p| p["status"]["conditions"][0]["status"] = json!("False")),
        pod("leaving", "10.0.0.3", |p| p["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z")),
        pod("done", "10.0.0.4", |p| p["status"]["phase"] = json!("Succeeded")),
        pod("no address", "", |_| {}),
    ];
    let groups = desired_groups(&web(), &pods, |_| None);
    assert_eq!(groups.len(), 1);
    assert_eq!(conditions(&groups[0]), [(true, true, false), (false, false, false), (false, true, true)]);

    let mut publish = web();
    publish.spec.as_mut().unwrap().publish_not_ready_addresses = Some(true);
    let groups = desired_groups(&publish, &pods, |_| None);
    assert_eq!(conditions(&groups[0]), [(true, true, false), (true, false, false), (true, true, true)]);
}

#[test]
fn a_named_port_that_differs_between_pods_makes_two_groups() {
    let pods = [
        pod("a", "10.0.0.1", |_| {}),
        pod("b", "10.0.0.2", |p| p["spec"]["containers"][0]["ports"][0]["containerPort"] = json!(9090)),
    ];
    let groups = desired_groups(&web(), &pods, |_| None);
    let ports: Vec<_> = groups.iter().map(|g| g.ports[0].port.unwrap()).collect();
    assert_eq!(ports, [8080, 9090]);
}

#[test]
fn each_family_has_its_own_slices() {
    let dual = service(json!({"ports": [{"port": 80}], "ipFamilies": ["IPv6", "IPv4"]}));
    let pods =
        [pod("a", "10.0.0.1", |p| p["status"]["podIPs"] = json!([{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]))];
    let groups = desired_groups(&dual, &pods, |_| None);
    let found: Vec<_> =
        groups.iter().map(|g| (g.address_type.as_str(), g.endpoints[0].addresses[0].as_str())).collect();
    assert_eq!(found, [("IPv6", "fd00::1"), ("IPv4", "10.0.0.1")]);
    let empty = desired_groups(&dual, [], |_| None);
    assert_eq!(empty.len(), 2);
}

#[test]
fn hints_name_the_zone_or_the_node_of_ready_endpoints() {
    let node: k8s_openapi::api::core::v1::Node = serde_json::from_value(
        json!({"metadata": {"name": "w1", "labels": {"topology.kubernetes.io/zone": "z"}}}),
    )
    .unwrap();
    let pods = [
        pod("a", "10.0.0.1", |_| {}),
        pod("b", "10.0.0.2", |p| p["status"]["conditions"][0]["status"] = json!("False")),
    ];
    let mut s = web();
    for (distribution, expected) in [
        ("PreferSameZone", json!({"forZones": [{"name": "z"}]})),
        ("PreferSameNode", json!({"forZones": [{"name": "z"}], "forNodes": [{"name": "w1"}]})),
    ] {
        s.spec.as_mut().unwrap().traffic_distribution = Some(distribution.into());
        let groups = desired_groups(&s, &pods, |_| Some(&node));
        assert_eq!(serde_json::to_value(&groups[0].endpoints[0].hints).unwrap(), expected);
        assert_eq!(groups[0].endpoints[1].hints, None);
    }
}

/// A server that names slices, to apply writes to.
#[derive(Default)]
struct Server {
    slices: BTreeMap<String, EndpointSlice>,
    named: usize,
}

impl Server {
    fn existing(&self) -> Vec<EndpointSlice> {
        self.slices.values().cloned().collect()
    }

    fn apply(&mut self, writes: Writes) -> usize {
        let count = writes.create.len() + writes.update.len() + writes.delete.len();
        for slice in writes.delete {
            assert!(self.slices.remove(slice.metadata.name.as_deref().unwrap()).is_some());
        }
        for slice in writes.update {
            assert!(self.slices.insert(slice.metadata.name.clone().unwrap(), slice).is_some());
        }
        for mut slice in writes.create {
            self.named += 1;
            let name = format!("s-{:04}", self.named);
            slice.metadata.name = Some(name.clone());
            self.slices.insert(name, slice);
        }
        count
    }

    /// All endpoints: (family, port, pod).
    fn endpoints(&self) -> Vec<(String, Option<i32>, String, Option<bool>)> {
        let mut all: Vec<_> = self
            .slices
            .values()
            .flat_map(|s| {
                flatten(
                    &s.address_type,
                    s.ports.as_deref().unwrap_or_default(),
                    s.endpoints.as_deref().unwrap_or_default(),
                )
            })
            .collect();
        all.sort();
        all
    }
}

fn flatten(
    family: &str,
    ports: &[k8s_openapi::api::discovery::v1::EndpointPort],
    endpoints: &[k8s_openapi::api::discovery::v1::Endpoint],
) -> Vec<(String, Option<i32>, String, Option<bool>)> {
    let port = ports.first().and_then(|p| p.port);
    let of = |e: &k8s_openapi::api::discovery::v1::Endpoint| {
        let uid = e.target_ref.as_ref().unwrap().uid.clone().unwrap();
        (family.to_owned(), port, uid, e.conditions.as_ref().unwrap().ready)
    };
    endpoints.iter().map(of).collect()
}

fn pods(set: &BTreeSet<(u8, bool)>, alternate: bool) -> Vec<Pod> {
    let mut seen = BTreeSet::new();
    set.iter()
        .filter(|(i, _)| seen.insert(*i))
        .map(|(i, ready)| {
            pod(&format!("p{i:03}"), &format!("10.0.0.{i}"), |p| {
                p["status"]["conditions"][0]["status"] = json!(if *ready { "True" } else { "False" });
                if alternate && i % 2 == 0 {
                    p["spec"]["containers"][0]["ports"][0]["containerPort"] = json!(9090);
                }
            })
        })
        .collect()
}

#[test]
fn a_new_service_gets_one_empty_slice_which_is_then_filled() {
    let mut server = Server::default();
    let none = desired_groups(&web(), [], |_| None);
    assert_eq!(server.apply(reconcile(&web(), &none, &server.existing())), 1);
    let slice = server.existing().remove(0);
    assert_eq!((slice.ports, slice.endpoints), (None, Some(Vec::new())));
    let labels = slice.metadata.labels.unwrap();
    assert_eq!(
        (labels[SERVICE_NAME].as_str(), labels[MANAGED_BY].as_str(), labels["team"].as_str()),
        ("s", CONTROLLER_NAME, "x")
    );

    let pods = [pod("a", "10.0.0.1", |_| {})];
    let groups = desired_groups(&web(), &pods, |_| None);
    let writes = reconcile(&web(), &groups, &server.existing());
    assert_eq!((writes.create.len(), writes.update.len(), writes.delete.len()), (0, 1, 0));
    server.apply(writes);

    // The last pod goes: the slice stays, with its ports as written before or without.
    let writes = reconcile(&web(), &none, &server.existing());
    assert_eq!((writes.create.len(), writes.update.len(), writes.delete.len()), (0, 1, 0));
    server.apply(writes);
    assert_eq!(server.existing()[0].endpoints, Some(Vec::new()));
}

#[test]
fn one_more_endpoint_costs_one_write() {
    let mut server = Server::default();
    let all: BTreeSet<(u8, bool)> = (0..=250).map(|i| (i, true)).collect();
    let first = pods(&all, false);
    let groups = desired_groups(&web(), &first, |_| None);
    server.apply(reconcile(&web(), &groups, &server.existing()));
    assert_eq!(server.slices.len(), 3);
    let mut more = first;
    more.push(pod("new", "10.0.1.1", |_| {}));
    let groups = desired_groups(&web(), &more, |_| None);
    assert_eq!(server.apply(reconcile(&web(), &groups, &server.existing())), 1);
    assert_eq!(server.slices.len(), 3);
}

proptest! {
    #[test]
    fn writes_lead_to_exactly_the_endpoints_wanted(
        states in prop::collection::vec((prop::collection::btree_set((0u8..=250, any::<bool>()), 0..250), any::<bool>()), 1..5),
    ) {
        let mut server = Server::default();
        for (set, alternate) in states {
            let pods = pods(&set, alternate);
            let groups = desired_groups(&web(), &pods, |_| None);
            let before = server.existing();
            server.apply(reconcile(&web(), &groups, &before));
            let mut wanted: Vec<_> = groups.iter().flat_map(|g| flatten(&g.address_type, &g.ports, &g.endpoints)).collect();
            wanted.sort();
            prop_assert_eq!(server.endpoints(), wanted);
            for slice in server.slices.values() {
                prop_assert!(slice.endpoints.as_ref().unwrap().len() <= MAX_ENDPOINTS);
            }
            // Nothing more to write, and no empty slice beside full ones.
            prop_assert_eq!(reconcile(&web(), &groups, &server.existing()), Writes::default());
            if !pods.is_empty() {
                prop_assert!(server.slices.values().all(|s| !s.endpoints.as_ref().unwrap().is_empty()));
            }
        }
    }
}
