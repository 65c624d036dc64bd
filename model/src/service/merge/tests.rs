//! What is kept up to date is what is made from nothing, whatever happens in whatever order.

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::Index;
use super::*;

/// Something that happens to an index.
#[derive(Debug, Clone)]
enum Happens {
    Service(u8, Value),
    NoService(u8),
    Slice(u8, u8, Value),
    NoSlice(u8),
    Pod(u8, Value),
    NoPod(u8),
    Zone(bool),
    /// All lists again, without some.
    Relist(u8),
    Update,
}

fn object<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object")
}

fn service(number: u8, spec: &Value) -> Service {
    // The age says nothing of the name's order.
    let created = format!("2026-01-0{}T00:00:00Z", 1 + number * 5 % 7);
    let mut value = json!({"metadata": {"namespace": "default", "name": format!("s{number}"),
        "creationTimestamp": created}, "spec": spec});
    if spec.get("hashed") == Some(&Value::Bool(true)) {
        value["metadata"]["annotations"] =
            json!({"kelp.dev/load-balancing": "maglev", "kelp.dev/endpoint-weights": "10.244.0.2=3"});
    }
    if let Some(ingress) = spec.get("ingress") {
        value["status"] = json!({"loadBalancer": {"ingress": ingress}});
    }
    object(value)
}

fn slice(number: u8, of: u8, endpoints: &Value) -> EndpointSlice {
    object(json!({"metadata": {"namespace": "default", "name": format!("e{number}"),
        "labels": {"kubernetes.io/service-name": format!("s{of}")}}, "addressType": "IPv4",
        "ports": [{"name": "a", "port": 8080, "protocol": "TCP"}, {"name": "b", "port": 53, "protocol": "UDP"}],
        "endpoints": endpoints}))
}

fn pod(number: u8, ports: &Value) -> Pod {
    object(json!({"metadata": {"namespace": "default", "name": format!("s{number}"),
        "annotations": {"kelp.dev/socket-translation": if number.is_multiple_of(2) { "disabled" } else { "" }}},
        "spec": {"containers": [{"name": "c", "ports": ports}]},
        "status": {"podIPs": [{"ip": format!("10.244.0.{number}")}]}}))
}

fn any_service() -> impl Strategy<Value = Value> {
    (1..4_u8, any::<[bool; 4]>(), 0..3_u8, 1..3_u8).prop_map(
        |(address, [local, sticky, ranges, both], external, node)| {
            let mut ports = vec![
                json!({"name": "a", "port": 80, "protocol": "TCP", "nodePort": 30_000 + i32::from(node)}),
            ];
            if both {
                ports.push(
                    json!({"name": "b", "port": 53, "protocol": "UDP", "nodePort": 30_000 + i32::from(node)}),
                );
            }
            json!({
                "type": "LoadBalancer",
                "clusterIP": format!("10.96.0.{address}"), "clusterIPs": [format!("10.96.0.{address}")],
                "externalIPs": (0..external).map(|n| format!("203.0.113.{n}")).collect::<Vec<_>>(),
                "ingress": [{"ip": "203.0.113.1"}],
                "loadBalancerSourceRanges": if ranges { json!(["192.0.2.0/24"]) } else { json!([]) },
                "externalTrafficPolicy": if local { "Local" } else { "Cluster" },
                "healthCheckNodePort": 31_000,
                "hashed": external == 1,
                "sessionAffinity": if sticky { "ClientIP" } else { "None" },
                "ports": ports,
            })
        },
    )
}

fn any_endpoints() -> impl Strategy<Value = Value> {
    prop::collection::vec((1..7_u8, any::<[bool; 3]>(), any::<bool>()), 0..4).prop_map(|all| {
        all.into_iter()
            .map(|(number, [ready, serving, terminating], here)| {
                json!({"addresses": [format!("10.244.0.{number}")], "nodeName": if here { "here" } else { "there" },
                    "hints": {"forZones": [{"name": "z"}]},
                    "conditions": {"ready": ready, "serving": serving, "terminating": terminating}})
            })
            .collect()
    })
}

fn happens() -> impl Strategy<Value = Happens> {
    let ports = prop::collection::vec(1..4_i32, 0..3).prop_map(|ports| {
        ports.into_iter().map(|n| json!({"hostPort": 30_000 + n, "containerPort": 80 + n})).collect::<Value>()
    });
    prop_oneof![
        4 => (0..4_u8, any_service()).prop_map(|(n, spec)| Happens::Service(n, spec)),
        1 => (0..4_u8).prop_map(Happens::NoService),
        4 => (0..5_u8, 0..4_u8, any_endpoints()).prop_map(|(n, of, all)| Happens::Slice(n, of, all)),
        1 => (0..5_u8).prop_map(Happens::NoSlice),
        2 => (0..4_u8, ports).prop_map(|(n, ports)| Happens::Pod(n, ports)),
        1 => (0..4_u8).prop_map(Happens::NoPod),
        1 => any::<bool>().prop_map(Happens::Zone),
        1 => (0..4_u8).prop_map(Happens::Relist),
        3 => Just(Happens::Update),
    ]
}

/// What the API has, for lists.
#[derive(Default)]
struct Api {
    services: BTreeMap<u8, Service>,
    slices: BTreeMap<u8, EndpointSlice>,
    pods: BTreeMap<u8, Pod>,
}

fn apply(index: &mut Index, api: &mut Api, happens: &Happens) {
    match happens {
        Happens::Service(n, spec) => {
            index.apply_service(&service(*n, spec));
            api.services.insert(*n, service(*n, spec));
        }
        Happens::NoService(n) => {
            if let Some(gone) = api.services.remove(n) {
                index.delete_service(&gone);
            }
        }
        Happens::Slice(n, of, endpoints) => {
            index.apply_slice(&slice(*n, *of, endpoints));
            api.slices.insert(*n, slice(*n, *of, endpoints));
        }
        Happens::NoSlice(n) => {
            if let Some(gone) = api.slices.remove(n) {
                index.delete_slice(&gone);
            }
        }
        Happens::Pod(n, ports) => {
            index.apply_pod(&pod(*n, ports));
            api.pods.insert(*n, pod(*n, ports));
        }
        Happens::NoPod(n) => {
            if let Some(gone) = api.pods.remove(n) {
                index.delete_pod(&gone);
            }
        }
        Happens::Zone(known) => {
            let labels = if *known { json!({"topology.kubernetes.io/zone": "z"}) } else { json!({}) };
            index.apply_node(&object::<Node>(json!({"metadata": {"labels": labels}})));
        }
        Happens::Relist(without) => {
            api.services.remove(without);
            api.slices.remove(without);
            api.pods.remove(without);
            index.reset_services(&api.services.values().cloned().collect::<Vec<_>>());
            index.reset_slices(&api.slices.values().cloned().collect::<Vec<_>>());
            index.reset_pods(&api.pods.values().cloned().collect::<Vec<_>>());
        }
        Happens::Update => {
            index.update();
        }
    }
}

fn sorted(mut desired: Desired) -> Desired {
    desired.conflicts.sort_by_key(|c| (c.frontend, c.loser_is_pod, c.loser.clone()));
    // An owner that wants the same by two fields is told of it twice there.
    desired.conflicts.dedup();
    desired
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn kept_up_to_date_and_made_from_nothing_are_the_same(history in prop::collection::vec(happens(), 0..40)) {
        let (mut index, mut api) = (Index::new("here"), Api::default());
        for happens in &history {
            apply(&mut index, &mut api, happens);
        }
        let before = index.current().clone();
        let touched = index.update();
        let (now, expected) = (sorted(index.current().clone()), sorted(index.desired()));
        prop_assert_eq!(&now, &expected);
        // What was not touched is as it was.
        for (key, value) in before.frontends.iter().filter(|(key, _)| !touched.frontends.contains(key)) {
            prop_assert_eq!(Some(value), now.frontends.get(key));
        }
        for (key, value) in before.tables.iter().filter(|(key, _)| !touched.tables.contains(key)) {
            prop_assert_eq!(Some(value), now.tables.get(key));
            prop_assert_eq!(before.ranges.get(key), now.ranges.get(key));
            prop_assert_eq!(before.lookups.get(key), now.lookups.get(key));
        }
        for (key, value) in before.backends.iter().filter(|(key, _)| !touched.backends.contains(key)) {
            prop_assert_eq!(Some(value), now.backends.get(key));
        }
        // And what is new was touched.
        prop_assert!(now.frontends.keys().all(|k| before.frontends.contains_key(k) || touched.frontends.contains(k)));
        prop_assert!(now.tables.keys().all(|k| before.tables.contains_key(k) || touched.tables.contains(k)));
        prop_assert!(now.backends.keys().all(|k| before.backends.contains_key(k) || touched.backends.contains(k)));
        prop_assert!(index.update().is_empty());
    }
}

#[test]
fn the_next_owner_gets_what_the_first_gives_up() {
    let spec = json!({"clusterIP": "10.96.0.1", "ports": [{"name": "a", "port": 80}]});
    let mut index = Index::new("here");
    for number in [1, 2] {
        index.apply_service(&service(number, &spec));
        let endpoint = json!([{"addresses": [format!("10.244.0.{number}")]}]);
        index.apply_slice(&slice(number, number, &endpoint));
    }
    index.update();
    let holder =
        |index: &Index| index.current().frontends.values().next().map(|f| f.table.service.name.to_string());
    // The second one is older.
    assert_eq!(holder(&index).as_deref(), Some("s2"));
    assert_eq!(index.current().conflicts.len(), 1);
    index.delete_service(&service(2, &spec));
    let touched = index.update();
    assert_eq!(holder(&index).as_deref(), Some("s1"));
    assert_eq!((touched.frontends.len(), touched.tables.len(), touched.backends.len()), (1, 2, 2));
    assert_eq!(index.current().conflicts, []);
}
