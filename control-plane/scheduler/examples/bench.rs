//! Pods scheduled a second by the core alone: no API server, bindings succeed at once.
//!
//! `cargo run --release -p kelp-scheduler --example bench [NODES [PODS]]`

use kelp_model::scheduling::{NodeInfo, PodInfo};
use kelp_scheduler::cluster::StorageKind;
use kelp_scheduler::core::{Core, Event, Outcome};
use kelp_scheduler::plugins::default_profile;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

/// A kind of pods: its name and what its spec adds.
fn kinds() -> Vec<(&'static str, Value)> {
    let term = |key: &str| json!({"topologyKey": key, "labelSelector": {"matchLabels": {"app": "bench"}}});
    let zone = "topology.kubernetes.io/zone";
    vec![
        ("plain", json!({})),
        (
            "spread by zone",
            json!({"topologySpreadConstraints": [{"maxSkew": 5, "topologyKey": zone,
                "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "bench"}}}]}),
        ),
        (
            "preferred anti-affinity",
            json!({"affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution":
                [{"weight": 1, "podAffinityTerm": term("kubernetes.io/hostname")}]}}}),
        ),
        (
            "required anti-affinity",
            json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
                [term("kubernetes.io/hostname")]}}}),
        ),
    ]
}

fn run(nodes: usize, pods: usize, name: &str, more: &Value) {
    let profiles = HashMap::from([(Arc::from("default-scheduler"), Arc::new(default_profile()))]);
    let mut core = Core::new(profiles, 0, 1);
    let now = Instant::now();
    let node = |i: usize| {
        let labels = json!({"kubernetes.io/hostname": format!("n{i}"), "topology.kubernetes.io/zone": format!("z{}", i % 3)});
        let json = json!({"metadata": {"name": format!("n{i}"), "uid": format!("n{i}"), "labels": labels},
            "status": {"allocatable": {"cpu": "4", "memory": "32Gi", "pods": "110"}}});
        NodeInfo::from_api(&serde_json::from_value(json).unwrap_or_default())
    };
    core.handle(Event::NodesReplaced((0..nodes).map(node).collect()), now);
    core.handle(Event::NamespacesReplaced(HashMap::new()), now);
    for kind in StorageKind::ALL {
        core.handle(Event::StorageReplaced(kind, Vec::new()), now);
    }
    core.handle(Event::PodsReplaced(Vec::new()), now);
    let info = |i: usize| {
        let mut spec = json!({"containers": [{"name": "c", "image": "pause",
            "resources": {"requests": {"cpu": "100m", "memory": "500Mi"}}}]});
        if let (Value::Object(spec), Value::Object(more)) = (&mut spec, more) {
            spec.extend(more.clone());
        }
        let json = json!({"metadata": {"name": format!("p{i}"), "namespace": "default", "uid": format!("p{i}"),
            "labels": {"app": "bench"}}, "spec": spec});
        PodInfo::from_api(&serde_json::from_value(json).unwrap_or_default())
    };
    for i in 0..pods {
        core.handle(Event::PodApplied(Arc::new(info(i))), now);
    }
    let started = Instant::now();
    let (mut bound, mut failed) = (0, 0);
    while let Some(outcome) = core.next(now) {
        match outcome {
            Outcome::Bind(placement) => {
                let mut pod = PodInfo::clone(&placement.queued.pod);
                pod.node_name = Some(placement.node.clone());
                core.handle(Event::PodApplied(Arc::new(pod)), now);
                bound += 1;
            }
            _ => failed += 1,
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("{name:<26} {bound:>7} bound {failed:>6} not {:>10.0} pods/s", f64::from(bound) / seconds);
}

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|a| a.parse().ok());
    let nodes = numbers.next().unwrap_or(5000);
    let pods = numbers.next().unwrap_or(10_000);
    println!("{nodes} nodes, {pods} pods");
    for (name, more) in kinds() {
        // Every pod of this kind needs a node of its own.
        let pods = if name == "required anti-affinity" { pods.min(nodes / 5) } else { pods };
        run(nodes, pods, name, &more);
    }
}
