use super::*;
use crate::cluster::{StorageKind, StorageObject};
use crate::plugins;
use kelp_model::scheduling::NodeInfo;
use serde_json::{Value, json};

/// A scheduler whose bindings succeed at once, and its clock.
struct World {
    core: Core,
    now: Instant,
    pods: HashMap<String, Value>,
    version: i64,
    messages: Vec<(String, String)>,
    evicted: Vec<String>,
    /// Bindings fail with this.
    refuse: Option<&'static str>,
}

fn merge(into: &mut Value, patch: &Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, patch) => *into = patch.clone(),
    }
}

impl World {
    fn new() -> Self {
        let profiles =
            HashMap::from([(Arc::from("default-scheduler"), Arc::new(plugins::default_profile()))]);
        let mut core = Core::new(profiles, 0, 7);
        let now = Instant::now();
        core.handle(Event::NodesReplaced(Vec::new()), now);
        core.handle(Event::NamespacesReplaced(Namespaces::new()), now);
        for kind in StorageKind::ALL {
            core.handle(Event::StorageReplaced(kind, Vec::new()), now);
        }
        core.handle(Event::PodsReplaced(Vec::new()), now);
        let pods = HashMap::new();
        Self { core, now, pods, version: 0, messages: Vec::new(), evicted: Vec::new(), refuse: None }
    }

    /// 4 CPU, 8 GiB, 20 GiB of disk, 110 pods, and what `more` says.
    fn node(&mut self, name: &str, more: Value) {
        let mut node = json!({"metadata": {"name": name, "uid": name, "labels": {"kubernetes.io/hostname": name}},
            "spec": {}, "status": {"allocatable":
                {"cpu": "4", "memory": "8Gi", "pods": "110", "ephemeral-storage": "20Gi"}}});
        merge(&mut node, &more);
        let node = NodeInfo::from_api(&serde_json::from_value(node).expect("node"));
        self.core.handle(Event::NodeApplied(Box::new(node)), self.now);
    }

    /// A claim, a volume or a class.
    fn storage(&mut self, object: &Value) {
        self.version += 1;
        let mut object = object.clone();
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let kind = object["kind"].clone();
        let object = match kind.as_str() {
            Some("PersistentVolumeClaim") => {
                object["metadata"]["namespace"] = "default".into();
                StorageObject::Claim(serde_json::from_value(object).expect("claim"))
            }
            Some("PersistentVolume") => {
                StorageObject::Volume(serde_json::from_value(object).expect("volume"))
            }
            Some("StorageClass") => StorageObject::Class(serde_json::from_value(object).expect("class")),
            other => panic!("{other:?}"),
        };
        self.core.handle(Event::StorageApplied(object), self.now);
    }

    fn remove_node(&mut self, name: &str) {
        self.core.handle(Event::NodeRemoved(name.into()), self.now);
    }

    /// A pod that asks for `cpu`, and what `more` says; then everything is done that can be.
    fn pod(&mut self, name: &str, cpu: &str, more: Value) {
        let mut pod = json!({"metadata": {"name": name, "namespace": "default", "uid": name},
            "spec": {"containers": [{"name": "c", "image": "app:1", "resources": {"requests": {"cpu": cpu}}}]}});
        if cpu.is_empty() {
            pod["spec"]["containers"][0]["resources"] = json!({});
        }
        merge(&mut pod, &more);
        self.pods.insert(name.to_owned(), pod);
        self.changed(name);
        self.settle();
    }

    fn change(&mut self, name: &str, patch: &Value) {
        merge(self.pods.get_mut(name).expect("pod"), patch);
        self.changed(name);
    }

    fn changed(&mut self, name: &str) {
        self.version += 1;
        let pod = self.pods.get_mut(name).expect("pod");
        pod["metadata"]["resourceVersion"] = self.version.to_string().into();
        let info = PodInfo::from_api(&serde_json::from_value(pod.clone()).expect("pod"));
        self.core.handle(Event::PodApplied(Arc::new(info)), self.now);
    }

    fn remove_pod(&mut self, name: &str) {
        self.pods.remove(name);
        self.core.handle(Event::PodRemoved(name.into()), self.now);
        self.settle();
    }

    fn wait(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.settle();
    }

    fn settle(&mut self) {
        for _ in 0..1000 {
            let Some(outcome) = self.core.next(self.now) else { return };
            match outcome {
                Outcome::Bind(placement) => {
                    let (name, node) = (placement.queued.pod.name.to_string(), placement.node.to_string());
                    match self.refuse {
                        Some(why) => self.core.handle(Event::BindFailed(placement, why.into()), self.now),
                        None => self.change(&name, &json!({"spec": {"nodeName": node}})),
                    }
                }
                Outcome::Failed { pod, message, nominated, .. } => {
                    self.messages.push((pod.name.to_string(), message.clone()));
                    let mut status = json!({"conditions": [{"type": "PodScheduled", "status": "False",
                        "reason": "Unschedulable", "message": message}]});
                    if let Some(node) = nominated {
                        status["nominatedNodeName"] = (*node).into();
                    }
                    self.change(&pod.name, &json!({"status": status}));
                }
                Outcome::Preempt { victims, .. } => {
                    for victim in victims {
                        self.evicted.push(victim.name.to_string());
                        self.change(
                            &victim.name,
                            &json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
                        );
                    }
                }
                Outcome::ClearNomination(pod) => {
                    self.change(&pod.name, &json!({"status": {"nominatedNodeName": null}}));
                }
            }
        }
        panic!("does not settle");
    }

    fn node_of(&self, pod: &str) -> Option<&str> {
        self.pods[pod]["spec"]["nodeName"].as_str()
    }

    fn last_message(&self, pod: &str) -> &str {
        &self.messages.iter().rfind(|(name, _)| name == pod).expect("a message").1
    }
}

mod recorded;

const NOTHING: &str = "no new claims to deallocate, preemption:";

fn zone(zone: &str) -> Value {
    json!({"metadata": {"labels": {"zone": zone}}})
}

#[test]
fn no_node_and_then_one() {
    let mut w = World::new();
    w.pod("p", "1", json!({}));
    assert_eq!(w.last_message("p"), "no nodes available to schedule pods");
    w.wait(60);
    w.node("n1", json!({}));
    w.wait(0);
    assert_eq!(w.node_of("p"), Some("n1"));
}

#[test]
fn messages_of_single_reasons() {
    let unhelpful = |nodes: usize| {
        format!("{NOTHING} 0/{nodes} nodes are available: {nodes} Preemption is not helpful for scheduling.")
    };
    let taint = json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]);
    let gpu = json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"example.com/gpu": "1", "ephemeral-storage": "30Gi"}}}]}});
    let affinity = |terms: Value| {
        json!({"spec": {"affinity": {"nodeAffinity":
        {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [terms]}}}}})
    };
    let named =
        affinity(json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["absent"]}]}));
    let large = affinity(json!({"matchExpressions": [{"key": "size", "operator": "Gt", "values": ["5"]}]}));
    let near = json!({"spec": {"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
        [{"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "none"}}}]}}}});
    for (nodes, pod, want) in [
        (vec![json!({"spec": {"unschedulable": true}})], json!({}), "1 node(s) were unschedulable."),
        (vec![json!({"spec": {"taints": taint}})], json!({}), "1 node(s) had untolerated taint(s)."),
        (
            vec![json!({}), json!({})],
            json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "8"}}}]}}),
            "2 Insufficient cpu.",
        ),
        (
            vec![json!({}), json!({"status": {"allocatable": {"ephemeral-storage": "40Gi"}}})],
            gpu,
            "1 Insufficient ephemeral-storage, 2 Insufficient example.com/gpu.",
        ),
        (vec![json!({}), json!({})], large, "2 node(s) didn't match Pod's node affinity/selector."),
        (vec![json!({}), json!({})], named, "2 node(s) didn't satisfy plugin(s) [NodeAffinity]."),
        (vec![json!({}), json!({})], near, "2 node(s) didn't match pod affinity rules."),
    ] {
        let mut w = World::new();
        for (at, node) in nodes.iter().enumerate() {
            w.node(&format!("n{at}"), node.clone());
        }
        w.pod("p", "", pod);
        let nodes = nodes.len();
        assert_eq!(
            w.last_message("p"),
            format!("0/{nodes} nodes are available: {want} {}", unhelpful(nodes))
        );
    }
}

#[test]
fn every_node_refuses_for_another_reason() {
    let mut w = World::new();
    w.node("n1", json!({"spec": {"unschedulable": true}}));
    w.node("n2", json!({"spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}}));
    w.node("n3", json!({"metadata": {"labels": {"disk": "ssd"}}, "status": {"allocatable": {"cpu": "1"}}}));
    w.node("n4", json!({}));
    w.node(
        "n5",
        json!({"metadata": {"labels": {"disk": "ssd"}}, "status": {"allocatable": {"memory": "1Gi"}}}),
    );
    w.pod(
        "p",
        "2",
        json!({"spec": {"nodeSelector": {"disk": "ssd"},
        "containers": [{"name": "c", "resources": {"requests": {"cpu": "2", "memory": "2Gi"}}}]}}),
    );
    assert_eq!(
        w.last_message("p"),
        "0/5 nodes are available: 1 Insufficient cpu, 1 Insufficient memory, 1 node(s) didn't match Pod's node \
         affinity/selector, 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable. no new claims to \
         deallocate, preemption: 0/5 nodes are available: 5 Preemption is not helpful for scheduling."
    );
}

#[test]
fn places_that_other_pods_take() {
    let victims = |nodes: usize| {
        format!(
            "{NOTHING} 0/{nodes} nodes are available: {nodes} No preemption victims found for incoming pod."
        )
    };
    let mut w = World::new();
    w.node("n1", json!({"status": {"allocatable": {"pods": "1"}}}));
    w.pod("a", "", json!({}));
    w.pod("p", "", json!({}));
    assert_eq!(w.node_of("a"), Some("n1"));
    assert_eq!(w.last_message("p"), format!("0/1 nodes are available: 1 Too many pods. {}", victims(1)));

    let port = |protocol: &str| {
        json!({"spec": {"containers": [{"name": "c", "ports":
        [{"containerPort": 80, "hostPort": 8080, "protocol": protocol}]}]}})
    };
    let mut w = World::new();
    w.node("n1", json!({}));
    w.pod("a", "", port("TCP"));
    w.pod("p", "", port("TCP"));
    w.pod("u", "", port("UDP"));
    assert_eq!((w.node_of("a"), w.node_of("u")), (Some("n1"), Some("n1")));
    let ports = "1 node(s) didn't have free ports for the requested pod ports.";
    assert_eq!(w.last_message("p"), format!("0/1 nodes are available: {ports} {}", victims(1)));
    w.wait(30);
    w.remove_pod("u");
    assert_eq!(w.node_of("p"), None, "the port of another protocol does not help");
    w.remove_pod("a");
    assert_eq!(w.node_of("p"), Some("n1"));

    let mut w = World::new();
    w.node("n1", zone("a"));
    w.node("n2", zone("a"));
    w.pod(
        "guard",
        "",
        json!({"spec": {"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
        [{"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "x"}}}]}}}}),
    );
    w.pod("p", "", json!({"metadata": {"labels": {"app": "x"}}}));
    let guarded = "2 node(s) didn't satisfy existing pods anti-affinity rules.";
    assert_eq!(w.last_message("p"), format!("0/2 nodes are available: {guarded} {}", victims(2)));
    w.wait(30);
    w.remove_pod("guard");
    assert!(w.node_of("p").is_some());
}

#[test]
fn min_domains() {
    let spread = json!({"metadata": {"labels": {"app": "x"}}, "spec": {"topologySpreadConstraints": [{"maxSkew": 1,
        "minDomains": 3, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "x"}}}]}});
    let mut w = World::new();
    w.node("n1", zone("a"));
    w.node("n2", zone("b"));
    for name in ["p1", "p2", "p3"] {
        w.pod(name, "", spread.clone());
    }
    assert_ne!(w.node_of("p1"), w.node_of("p2"));
    assert_eq!(w.node_of("p3"), None);
    w.wait(30);
    w.node("n3", zone("c"));
    w.wait(0);
    assert_eq!(w.node_of("p3"), Some("n3"));
}

#[test]
fn gates() {
    let mut w = World::new();
    w.node("n1", json!({}));
    w.pod("p", "1", json!({"spec": {"schedulingGates": [{"name": "a"}, {"name": "b"}]}}));
    w.change("p", &json!({"spec": {"schedulingGates": [{"name": "b"}]}}));
    w.wait(600);
    assert_eq!((w.node_of("p"), w.messages.len()), (None, 0));
    w.change("p", &json!({"spec": {"schedulingGates": []}}));
    w.settle();
    assert_eq!(w.node_of("p"), Some("n1"));
}

#[test]
fn other_schedulers_pods_are_left_alone_and_counted() {
    let mut w = World::new();
    w.node("n1", json!({}));
    w.pod("other", "3", json!({"spec": {"schedulerName": "mine"}}));
    w.wait(600);
    assert_eq!(w.node_of("other"), None);
    w.change("other", &json!({"spec": {"nodeName": "n1"}}));
    w.pod("p", "2", json!({}));
    assert_eq!(w.node_of("p"), None);
}

#[test]
fn preemption_takes_the_least_important() {
    let priority = |priority: i32| json!({"spec": {"priority": priority}});
    let mut w = World::new();
    for node in ["n1", "n2", "n3"] {
        w.node(node, json!({}));
    }
    for (name, cpu, p, node) in
        [("a", "3", 100, "n1"), ("b", "3", 10, "n2"), ("c1", "2", 10, "n3"), ("c2", "2", 10, "n3")]
    {
        let mut pod = priority(p);
        pod["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": node});
        w.pod(name, cpu, pod);
    }
    w.pod("p", "3", priority(1000));
    assert_eq!(w.last_message("p"), "0/3 nodes are available: 3 Insufficient cpu.");
    assert_eq!(w.evicted, ["b"]);
    assert_eq!(w.pods["p"]["status"]["nominatedNodeName"], "n2");
    // While the victim goes, a lesser pod does not get the room, and nobody else is evicted.
    w.remove_pod("b");
    w.pod("late", "2", priority(0));
    assert_eq!(w.node_of("late"), None);
    w.wait(2);
    assert_eq!((w.node_of("p"), w.evicted.len()), (Some("n2"), 1));
    assert_eq!(w.node_of("late"), None);
}

#[test]
fn preemption_spares_who_may_stay_and_asks_the_policy() {
    let mut w = World::new();
    w.node("n1", json!({}));
    w.pod("small", "1", json!({"spec": {"priority": 5}}));
    w.pod("large", "3", json!({"spec": {"priority": 5}}));
    w.pod("never", "3", json!({"spec": {"priority": 10, "preemptionPolicy": "Never"}}));
    assert_eq!(
        w.last_message("never"),
        format!(
            "0/1 nodes are available: 1 Insufficient cpu. {NOTHING} not eligible due to preemptionPolicy=Never."
        )
    );
    w.remove_pod("never");
    w.pod("p", "3", json!({"spec": {"priority": 10}}));
    assert_eq!(w.evicted, ["large"]);
    w.pod("equal", "3", json!({"spec": {"priority": 5}}));
    assert_eq!(w.evicted, ["large"]);
}

#[test]
fn scores_choose() {
    // Use stays balanced.
    let mut w = World::new();
    w.node("n1", json!({}));
    w.node("n2", json!({}));
    let on = |node: &str, memory: &str, cpu: &str| {
        json!({"spec": {"nodeSelector": {"kubernetes.io/hostname": node},
        "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}}]}})
    };
    w.pod("a", "", on("n1", "1Gi", "2"));
    w.pod("b", "", on("n2", "5Gi", "0"));
    w.pod("p", "1", json!({}));
    assert_eq!(w.node_of("p"), Some("n2"));

    // A large image that is there.
    let mut w = World::new();
    for n in ["n1", "n2", "n3", "n4"] {
        let images =
            if n == "n3" { json!([{"names": ["app:1"], "sizeBytes": 900_000_000}]) } else { json!([]) };
        w.node(n, json!({"status": {"images": images}}));
    }
    w.pod("p", "1", json!({}));
    assert_eq!(w.node_of("p"), Some("n3"));

    // Wishes about nodes add up.
    let mut w = World::new();
    for n in ["n1", "n2", "n3"] {
        w.node(n, json!({}));
    }
    let wish = |weight: i32, node: &str| {
        json!({"weight": weight, "preference": {"matchExpressions":
        [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}})
    };
    w.pod(
        "p",
        "1",
        json!({"spec": {"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution":
        [wish(10, "n1"), wish(80, "n2"), wish(30, "n3"), wish(40, "n3")]}}}}),
    );
    assert_eq!(w.node_of("p"), Some("n2"));
}

#[test]
fn replicas_of_one_kind_go_to_emptier_nodes() {
    let mut w = World::new();
    for n in ["n1", "n2", "n3"] {
        w.node(n, json!({}));
    }
    for i in 0..9 {
        w.pod(&format!("p{i}"), "500m", json!({}));
    }
    for n in ["n1", "n2", "n3"] {
        assert_eq!((0..9).filter(|i| w.node_of(&format!("p{i}")) == Some(n)).count(), 3, "{n}");
    }
}

#[test]
fn pods_of_a_set_are_spread_over_hosts() {
    let mut w = World::new();
    w.node("n1", json!({"status": {"allocatable": {"cpu": "64", "memory": "256Gi"}}}));
    w.node("n2", json!({"status": {"allocatable": {"cpu": "64", "memory": "256Gi"}}}));
    for i in 0..8 {
        // So small that the nodes' scores by resources are equal.
        w.pod(
            &format!("p{i}"),
            "1m",
            json!({"metadata": {"ownerReferences": [{"apiVersion": "apps/v1",
            "kind": "ReplicaSet", "name": "r", "uid": "set", "controller": true}]}}),
        );
        let on = |n: &str| (0..=i).filter(|p| w.node_of(&format!("p{p}")) == Some(n)).count();
        assert!(on("n1").abs_diff(on("n2")) <= 1, "after {i}");
    }
}

#[test]
fn a_failed_binding_is_tried_again_after_a_wait_and_takes_nothing_meanwhile() {
    let mut w = World::new();
    w.node("n1", json!({}));
    w.refuse = Some("Internal error");
    w.pod("p", "3", json!({}));
    assert_eq!(w.last_message("p"), "binding rejected: Internal error");
    w.refuse = None;
    w.pod("q", "3", json!({}));
    assert_eq!((w.node_of("p"), w.node_of("q")), (None, Some("n1")));
    w.remove_pod("q");
    assert_eq!(w.node_of("p"), None);
    w.wait(1);
    assert_eq!(w.node_of("p"), Some("n1"));
}

#[test]
fn priorities_go_first_and_nothing_is_scheduled_before_everything_is_known() {
    let mut w = World::new();
    for (name, priority) in [("zero", 0), ("low", 10), ("high", 1000)] {
        w.pod(name, "3", json!({"spec": {"priority": priority}}));
    }
    w.wait(60);
    w.node("n1", json!({}));
    w.wait(0);
    assert_eq!((w.node_of("high"), w.node_of("low"), w.node_of("zero")), (Some("n1"), None, None));

    let profiles = HashMap::from([(Arc::from("default-scheduler"), Arc::new(plugins::default_profile()))]);
    let mut core = Core::new(profiles, 0, 1);
    core.handle(
        Event::PodsReplaced(vec![Arc::new(PodInfo {
            uid: "p".into(),
            scheduler_name: "default-scheduler".into(),
            ..PodInfo::default()
        })]),
        w.now,
    );
    core.handle(Event::NodesReplaced(Vec::new()), w.now);
    assert!(core.next(w.now).is_none());
    core.handle(Event::NamespacesReplaced(Namespaces::new()), w.now);
    assert!(core.next(w.now).is_none());
    for kind in StorageKind::ALL {
        core.handle(Event::StorageReplaced(kind, Vec::new()), w.now);
    }
    assert!(core.next(w.now).is_some());
}

#[test]
fn a_new_list_replaces_what_was_known() {
    let mut w = World::new();
    w.node("n1", json!({}));
    w.node("gone", json!({}));
    w.pod("p", "3", json!({"spec": {"nodeSelector": {"kubernetes.io/hostname": "n1"}}}));
    w.pod("waits", "3", json!({"spec": {"nodeSelector": {"kubernetes.io/hostname": "n1"}}}));
    w.wait(60);
    let json = json!({"metadata": {"name": "n1", "uid": "n1", "labels": {"kubernetes.io/hostname": "n1"}},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}}});
    let node = NodeInfo::from_api(&serde_json::from_value(json).expect("node"));
    w.core.handle(Event::NodesReplaced(vec![node]), w.now);
    assert_eq!(w.core.cluster().len(), 1);
    let waits = PodInfo::from_api(&serde_json::from_value(w.pods["waits"].clone()).expect("pod"));
    w.core.handle(Event::PodsReplaced(vec![Arc::new(waits)]), w.now);
    w.settle();
    assert_eq!(w.node_of("waits"), Some("n1"), "the place of the pod that is gone is free");
    w.remove_node("n1");
    assert!(w.core.cluster().is_empty());
}

#[test]
fn node_heartbeats_wake_nobody() {
    let mut w = World::new();
    w.node("n1", json!({}));
    w.pod("p", "5", json!({}));
    w.wait(30);
    let told = w.messages.len();
    w.node("n1", json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}}));
    w.wait(30);
    assert_eq!(w.messages.len(), told);
    w.node("n1", json!({"status": {"allocatable": {"cpu": "6"}}}));
    w.wait(0);
    assert_eq!(w.node_of("p"), Some("n1"));
}

fn with_claim(name: &str) -> Value {
    json!({"spec": {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": name}}]}})
}

#[test]
fn pods_follow_their_volumes_and_one_pod_at_a_time_uses_an_exclusive_claim() {
    let mut w = World::new();
    w.node("n1", json!({}));
    w.node("n2", json!({}));
    let claim = |name: &str, mode: &str, volume: &str| {
        json!({"kind": "PersistentVolumeClaim", "metadata": {"name": name, "uid": name,
            "annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
            "spec": {"accessModes": [mode], "storageClassName": "", "volumeName": volume}})
    };
    let volume = |name: &str, host: &str| {
        let terms = json!([{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [host]}]}]);
        json!({"kind": "PersistentVolume", "metadata": {"name": name}, "spec": {"nodeAffinity":
            {"required": {"nodeSelectorTerms": terms}}, "local": {"path": "/x"}}})
    };
    w.storage(&volume("v", "n2"));
    w.storage(&claim("c", "ReadWriteOncePod", "v"));
    w.pod("p", "1", with_claim("c"));
    assert_eq!(w.node_of("p"), Some("n2"));
    w.pod("q", "1", with_claim("c"));
    assert_eq!(w.node_of("q"), None);
    let (_, message) = w.messages.last().expect("message");
    assert!(message.contains("with the same name and ReadWriteOncePod access mode"), "{message}");
    w.remove_pod("p");
    w.wait(30);
    assert_eq!(w.node_of("q"), Some("n2"));
    // A claim that comes after its pod lets it go on.
    w.pod("r", "1", with_claim("late"));
    assert_eq!(w.node_of("r"), None);
    w.storage(&volume("u", "n1"));
    w.storage(&claim("late", "ReadWriteOnce", "u"));
    w.wait(30);
    assert_eq!(w.node_of("r"), Some("n1"));
}

#[test]
fn a_volume_is_reserved_for_one_pod_and_given_back_when_the_binding_fails() {
    let mut w = World::new();
    w.node("n1", json!({}));
    w.storage(&json!({"kind": "StorageClass", "metadata": {"name": "late"}, "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer"}));
    w.storage(&json!({"kind": "PersistentVolume", "metadata": {"name": "v"}, "status": {"phase": "Available"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "storageClassName": "late", "capacity": {"storage": "1Gi"}}}));
    for name in ["a", "b"] {
        w.storage(&json!({"kind": "PersistentVolumeClaim", "metadata": {"name": name, "uid": name}, "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": "late", "resources": {"requests": {"storage": "1Gi"}}}}));
    }
    w.refuse = Some("no");
    w.pod("p", "1", with_claim("a"));
    assert_eq!(w.node_of("p"), None);
    w.remove_pod("p");
    w.refuse = None;
    w.pod("q", "1", with_claim("b"));
    assert_eq!(w.node_of("q"), Some("n1"));
    // The reservation is not seen yet; it counts all the same.
    w.pod("r", "1", with_claim("a"));
    assert_eq!(w.node_of("r"), None);
    let (_, message) = w.messages.last().expect("message");
    assert!(message.contains("node(s) didn't find available persistent volumes to bind"), "{message}");
}
