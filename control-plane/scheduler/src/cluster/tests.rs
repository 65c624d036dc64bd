use super::*;
use proptest::prelude::*;

pub fn node(name: &str, zone: &str) -> NodeInfo {
    let json = serde_json::json!({"metadata": {"name": name, "uid": name,
        "labels": {"topology.kubernetes.io/zone": zone}},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"},
            "images": [{"names": ["app:1"], "sizeBytes": 1000}]}});
    NodeInfo::from_api(&serde_json::from_value(json).expect("node"))
}

fn pod(uid: &str, node: Option<&str>) -> Arc<PodInfo> {
    let json = serde_json::json!({"metadata": {"name": uid, "namespace": "d", "uid": uid, "ownerReferences":
            [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "set", "controller": true}]},
        "spec": {"nodeName": node, "containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]}});
    Arc::new(PodInfo::from_api(&serde_json::from_value(json).expect("pod")))
}

#[test]
fn nodes_of_zones_take_turns() {
    let mut c = Cluster::default();
    for (name, zone) in [("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b"), ("c1", "c"), ("c2", "c")] {
        c.apply_node(node(name, zone));
    }
    let names = |c: &Cluster| c.node_names().iter().map(|n| n.to_string()).collect::<Vec<_>>();
    assert_eq!(names(&c), ["a1", "b1", "c1", "a2", "c2", "a3"]);
    let from = c.ids_from(4).map(|id| c.node(id).name.to_string()).collect::<Vec<_>>();
    assert_eq!(from, ["c2", "a3", "a1", "b1", "c1", "a2"]);
    assert_eq!(c.nodes_with_image("app:1"), 6);
    c.remove_node("b1");
    assert_eq!(names(&c), ["a1", "c1", "a2", "c2", "a3"]);
    assert_eq!(c.nodes_with_image("app:1"), 5);
}

#[test]
fn a_pod_on_an_unknown_node_is_no_node() {
    let mut c = Cluster::default();
    c.apply_pod(pod("p", Some("later")));
    assert!(c.is_empty() && c.find("later").is_none());
    assert_eq!(c.apply_node(node("later", "a")), NodeChange::ADDED);
    let id = c.find("later").expect("node");
    assert_eq!(c.node(id).requested().milli_cpu, 1000);
    c.remove_node("later");
    assert!(c.is_empty());
    c.remove_pod("p");
    assert_eq!(c.slots.iter().filter(|s| s.used).count(), 0);
}

#[test]
fn assumed_pods_are_confirmed_or_forgotten() {
    let mut c = Cluster::default();
    c.apply_node(node("n", "a"));
    let n = c.find("n").expect("node");
    c.assume(pod("p", None), n);
    c.assume(pod("q", None), n);
    assert_eq!(c.node(n).requested().milli_cpu, 2000);
    c.apply_pod(pod("p", Some("n")));
    assert!(c.forget("p").is_none(), "a pod seen bound is not forgotten");
    assert!(c.forget("q").is_some());
    assert_eq!(c.node(n).requested().milli_cpu, 1000);
}

proptest! {
    /// Whatever happens, a node's sums are those of the pods placed on it, and slots are not leaked.
    #[test]
    fn sums_stay_right(steps in proptest::collection::vec((0u8..5, 0usize..4, 0usize..3), 0..60)) {
        let (pods, nodes) = (["p0", "p1", "p2", "p3"], ["n0", "n1", "n2"]);
        let mut c = Cluster::default();
        for (what, p, n) in steps {
            match what {
                0 => { c.apply_node(node(nodes[n], "z")); }
                1 => { c.remove_node(nodes[n]); }
                2 => { c.apply_pod(pod(pods[p], Some(nodes[n]))); }
                3 => { c.remove_pod(pods[p]); }
                _ => if let Some(id) = c.find(nodes[n]) && !c.is_placed(pods[p]) { c.assume(pod(pods[p], None), id); },
            }
            for slot in c.slots.iter().filter(|s| s.used) {
                prop_assert_eq!(slot.info.requested().milli_cpu, 1000 * slot.info.pods().len() as i64);
            }
            let on_nodes: usize = c.slots.iter().filter(|s| s.used).map(|s| s.info.pods().len()).sum();
            prop_assert_eq!(on_nodes, c.placed.len());
            let grouped: i64 = c.groups.values().flat_map(HashMap::values).sum();
            prop_assert_eq!(grouped as usize, c.placed.len());
            prop_assert!(c.slots.len() <= 3);
        }
    }
}
