//! A node with the pods on it.

use super::{LabelMap, PodInfo, Resources, Taint, UsedPorts, image};
use k8s_openapi::api::core::v1 as api;
use std::collections::HashMap;
use std::sync::Arc;

/// Label of a node's zone.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// Label of a node's region.
pub const REGION_LABEL: &str = "topology.kubernetes.io/region";

/// A node and what its pods take of it, updated in place.
#[derive(Debug, Clone, Default)]
pub struct NodeInfo {
    /// Name.
    pub name: Arc<str>,
    /// Unique for all time.
    pub uid: Arc<str>,
    /// Labels.
    pub labels: LabelMap,
    /// Taints.
    pub taints: Vec<Taint>,
    /// Marked with `spec.unschedulable`.
    pub unschedulable: bool,
    /// What it offers pods.
    pub allocatable: Resources,
    /// How many pods it runs at most.
    pub allowed_pods: i64,
    /// Names (as [`image::normalized`] gives them) and sizes in bytes of the images it has.
    pub images: HashMap<Box<str>, i64>,
    requested: Resources,
    non_zero: (i64, i64),
    ports: UsedPorts,
    pods: Vec<Arc<PodInfo>>,
    with_affinity: usize,
    with_anti_affinity: usize,
}

impl NodeInfo {
    /// Reads an API object; there are no pods on it yet.
    pub fn from_api(node: &api::Node) -> Self {
        let spec = node.spec.as_ref();
        let status = node.status.as_ref();
        let allocatable = status.and_then(|s| s.allocatable.as_ref());
        let images = status.and_then(|s| s.images.as_ref()).into_iter().flatten().flat_map(|i| {
            let size = i.size_bytes.unwrap_or(0);
            i.names.iter().flatten().map(move |name| (image::normalized(name).into(), size))
        });
        Self {
            name: node.metadata.name.as_deref().unwrap_or_default().into(),
            uid: node.metadata.uid.as_deref().unwrap_or_default().into(),
            labels: LabelMap::from_api(node.metadata.labels.as_ref()),
            taints: spec.and_then(|s| s.taints.as_ref()).into_iter().flatten().map(Taint::from).collect(),
            unschedulable: spec.and_then(|s| s.unschedulable).unwrap_or(false),
            allocatable: Resources::from_list(allocatable),
            allowed_pods: allocatable
                .and_then(|a| a.get("pods"))
                .and_then(|q| crate::quantity::Quantity::parse(&q.0).ok())
                .map_or(0, |q| q.value()),
            images: images.collect(),
            ..Self::default()
        }
    }

    /// Takes over the node's own facts and keeps the pods.
    pub fn update(&mut self, node: Self) {
        let Self { name, uid, labels, taints, unschedulable, allocatable, allowed_pods, images, .. } = node;
        (self.name, self.uid, self.labels, self.taints) = (name, uid, labels, taints);
        (self.unschedulable, self.allocatable) = (unschedulable, allocatable);
        (self.allowed_pods, self.images) = (allowed_pods, images);
    }

    /// Puts a pod on the node.
    pub fn add_pod(&mut self, pod: Arc<PodInfo>) {
        self.requested.add(&pod.requests);
        self.non_zero.0 = self.non_zero.0.saturating_add(pod.non_zero_milli_cpu);
        self.non_zero.1 = self.non_zero.1.saturating_add(pod.non_zero_memory);
        self.ports.add(&pod.ports);
        self.with_affinity += usize::from(pod.has_affinity());
        self.with_anti_affinity += usize::from(!pod.anti_affinity.is_empty());
        self.pods.push(pod);
    }

    /// Takes a pod off the node; `None` if it was not there.
    pub fn remove_pod(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let at = self.pods.iter().position(|pod| *pod.uid == *uid)?;
        let pod = self.pods.swap_remove(at);
        self.requested.sub(&pod.requests);
        self.non_zero.0 = self.non_zero.0.saturating_sub(pod.non_zero_milli_cpu);
        self.non_zero.1 = self.non_zero.1.saturating_sub(pod.non_zero_memory);
        self.ports.remove(&pod.ports);
        self.with_affinity -= usize::from(pod.has_affinity());
        self.with_anti_affinity -= usize::from(!pod.anti_affinity.is_empty());
        Some(pod)
    }

    /// What the pods on it request.
    pub fn requested(&self) -> &Resources {
        &self.requested
    }

    /// CPU (thousandths) and memory (bytes) of the pods on it, for scoring.
    pub fn requested_non_zero(&self) -> (i64, i64) {
        self.non_zero
    }

    /// Host ports in use.
    pub fn ports(&self) -> &UsedPorts {
        &self.ports
    }

    /// The pods on it, in no order.
    pub fn pods(&self) -> &[Arc<PodInfo>] {
        &self.pods
    }

    /// Whether any pod on it has a wish or rule about other pods.
    pub fn has_pods_with_affinity(&self) -> bool {
        self.with_affinity > 0
    }

    /// Whether any pod on it must not be near others.
    pub fn has_pods_with_anti_affinity(&self) -> bool {
        self.with_anti_affinity > 0
    }

    /// Region and zone.
    pub fn zone(&self) -> (Option<&Arc<str>>, Option<&Arc<str>>) {
        (self.labels.get(REGION_LABEL), self.labels.get(ZONE_LABEL))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub fn node(name: &str, cpu: &str, memory: &str) -> NodeInfo {
        labelled_node(name, cpu, memory, &[])
    }

    pub fn labelled_node(name: &str, cpu: &str, memory: &str, labels: &[(&str, &str)]) -> NodeInfo {
        let labels = labels.iter().copied().collect::<HashMap<_, _>>();
        let json = serde_json::json!({
            "metadata": {"name": name, "uid": name, "labels": labels},
            "status": {"allocatable": {"cpu": cpu, "memory": memory, "pods": "110"}},
        });
        NodeInfo::from_api(&serde_json::from_value(json).expect("node"))
    }

    pub fn pod_of(name: &str, spec: serde_json::Value, labels: &[(&str, &str)]) -> PodInfo {
        let labels = labels.iter().copied().collect::<HashMap<_, _>>();
        let json = serde_json::json!({
            "metadata": {"namespace": "default", "name": name, "uid": name, "labels": labels}, "spec": spec});
        PodInfo::from_api(&serde_json::from_value(json).expect("pod"))
    }

    pub fn pod(name: &str, cpu: &str, memory: &str) -> PodInfo {
        let resources = serde_json::json!({"requests": {"cpu": cpu, "memory": memory}});
        pod_of(name, serde_json::json!({"containers": [{"name": "c", "resources": resources}]}), &[])
    }

    proptest! {
        /// Whatever pods come and go, the sums are those of the pods that are there.
        #[test]
        fn sums_are_those_of_the_pods(steps in proptest::collection::vec((0usize..6, any::<bool>()), 0..40)) {
            let all = (0..6).map(|i| {
                let mut p = pod(&format!("p{i}"), &format!("{}m", i * 100), &format!("{i}Mi"));
                p.ports.push(super::super::HostPort::new("", "TCP", 80 + i));
                p.requests.scalars.push(("example.com/gpu".into(), i.into()));
                Arc::new(p)
            }).collect::<Vec<_>>();
            let mut n = node("n", "4", "4Gi");
            let mut there = [false; 6];
            for (i, come) in steps {
                if come && !there[i] {
                    n.add_pod(all[i].clone());
                } else if !come {
                    prop_assert_eq!(n.remove_pod(&all[i].uid).is_some(), there[i]);
                }
                there[i] = come;
            }
            let mut want = Resources::default();
            for (i, p) in all.iter().enumerate() {
                prop_assert_eq!(n.ports().are_free(&p.ports), !there[i]);
                if there[i] { want.add(&p.requests); }
            }
            prop_assert_eq!(n.requested().milli_cpu, want.milli_cpu);
            prop_assert_eq!(n.requested().memory, want.memory);
            prop_assert_eq!(n.requested().scalar("example.com/gpu"), want.scalar("example.com/gpu"));
            prop_assert_eq!(n.pods().len(), there.iter().filter(|t| **t).count());
        }
    }
}
