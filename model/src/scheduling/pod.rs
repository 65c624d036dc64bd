//! A pod as the scheduler sees it.

use super::interpod::AffinityTerm;
use super::resources::{pod_requests, pod_requests_non_zero};
use super::spread::SpreadConstraint;
use super::{HostPort, LabelMap, NodeSelector, NodeTerm, PreferredTerm, Resources, Toleration, image};
use crate::volume::pods::claim_of;
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as api;
use std::fmt;
use std::sync::Arc;

/// What the scheduler reads of a pod, made once when the pod changes.
#[derive(Debug, Clone, Default)]
pub struct PodInfo {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// Unique for all time.
    pub uid: Arc<str>,
    /// Version of the object.
    pub resource_version: Box<str>,
    /// Generation of the spec.
    pub generation: Option<i64>,
    /// Labels.
    pub labels: LabelMap,
    /// UID of the set of equal pods it belongs to (replica set, stateful set, replication controller).
    pub group: Option<Arc<str>>,
    /// Node it is bound to.
    pub node_name: Option<Arc<str>>,
    /// Node on which room is being made for it.
    pub nominated_node: Option<Arc<str>>,
    /// Scheduler that is to place it.
    pub scheduler_name: Arc<str>,
    /// Higher ones go first.
    pub priority: i32,
    /// Whether pods of lower priority may be evicted for it.
    pub preempts: bool,
    /// Gates that keep it from being scheduled.
    pub gates: Vec<Box<str>>,
    /// When it was created.
    pub created: Option<Timestamp>,
    /// When the node started it.
    pub started: Option<Timestamp>,
    /// Being deleted.
    pub terminating: bool,
    /// Succeeded or failed: takes nothing of its node any more.
    pub finished: bool,
    /// What it takes of a node.
    pub requests: Resources,
    /// CPU for scoring, thousandths; see [`pod_requests_non_zero`].
    pub non_zero_milli_cpu: i64,
    /// Memory for scoring, bytes.
    pub non_zero_memory: i64,
    /// Host ports.
    pub ports: Vec<HostPort>,
    /// Nodes it may go to.
    pub node_selector: NodeSelector,
    /// Nodes it would like.
    pub preferred_nodes: Vec<PreferredTerm>,
    /// Taints it tolerates.
    pub tolerations: Vec<Toleration>,
    /// Pods it must be near.
    pub affinity: Vec<AffinityTerm>,
    /// Pods it must not be near.
    pub anti_affinity: Vec<AffinityTerm>,
    /// Pods it would like to be near (positive weight) or not (negative).
    pub preferred_affinity: Vec<(i64, AffinityTerm)>,
    /// How it and its like are to be spread.
    pub spread: Vec<SpreadConstraint>,
    /// Images of its containers, as [`image::normalized`].
    pub images: Vec<Box<str>>,
    /// Claims it uses: name, and whether the claim is made for it.
    pub claims: Vec<(Box<str>, bool)>,
    /// Message of its `PodScheduled` condition if that is false as unschedulable.
    pub unschedulable_message: Option<Box<str>>,
}

impl PodInfo {
    /// Reads an API object. An object without a name, namespace or UID, which no server sends, has empty ones.
    pub fn from_api(pod: &api::Pod) -> Self {
        let meta = &pod.metadata;
        let empty = api::PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&empty);
        let status = pod.status.as_ref();
        let namespace: Arc<str> = meta.namespace.as_deref().unwrap_or_default().into();
        let labels = LabelMap::from_api(meta.labels.as_ref());
        let affinity = spec.affinity.as_ref();
        let node_affinity = affinity.and_then(|a| a.node_affinity.as_ref());
        let required_nodes =
            node_affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
        let near = affinity.and_then(|a| a.pod_affinity.as_ref());
        let far = affinity.and_then(|a| a.pod_anti_affinity.as_ref());
        let term = |t: &api::PodAffinityTerm| AffinityTerm::from_api(t, &namespace, &labels);
        let mut preferred_affinity = Vec::new();
        for w in
            near.iter().flat_map(|a| a.preferred_during_scheduling_ignored_during_execution.iter().flatten())
        {
            preferred_affinity.push((i64::from(w.weight), term(&w.pod_affinity_term)));
        }
        for w in
            far.iter().flat_map(|a| a.preferred_during_scheduling_ignored_during_execution.iter().flatten())
        {
            preferred_affinity.push((-i64::from(w.weight), term(&w.pod_affinity_term)));
        }
        let (non_zero_milli_cpu, non_zero_memory) = pod_requests_non_zero(spec);
        let all_containers = || spec.init_containers.iter().flatten().chain(&spec.containers);
        let sidecar = |c: &&api::Container| c.restart_policy.as_deref() == Some("Always");
        let with_ports = spec.init_containers.iter().flatten().filter(sidecar).chain(&spec.containers);
        let unschedulable = status
            .and_then(|s| s.conditions.as_ref())
            .and_then(|all| all.iter().find(|c| c.type_ == "PodScheduled"))
            .filter(|c| c.status == "False" && c.reason.as_deref() == Some("Unschedulable"));
        Self {
            name: meta.name.as_deref().unwrap_or_default().into(),
            uid: meta.uid.as_deref().unwrap_or_default().into(),
            resource_version: meta.resource_version.as_deref().unwrap_or_default().into(),
            generation: meta.generation,
            group: meta
                .owner_references
                .iter()
                .flatten()
                .find(|owner| owner.controller == Some(true))
                .filter(|o| matches!(o.kind.as_str(), "ReplicaSet" | "StatefulSet" | "ReplicationController"))
                .map(|owner| owner.uid.as_str().into()),
            node_name: spec.node_name.as_deref().filter(|n| !n.is_empty()).map(Into::into),
            nominated_node: status
                .and_then(|s| s.nominated_node_name.as_deref())
                .filter(|n| !n.is_empty())
                .map(Into::into),
            scheduler_name: spec.scheduler_name.as_deref().unwrap_or("default-scheduler").into(),
            priority: spec.priority.unwrap_or(0),
            preempts: spec.preemption_policy.as_deref() != Some("Never"),
            gates: spec.scheduling_gates.iter().flatten().map(|g| g.name.as_str().into()).collect(),
            created: meta.creation_timestamp.as_ref().map(|t| t.0),
            started: status.and_then(|s| s.start_time.as_ref()).map(|t| t.0),
            terminating: meta.deletion_timestamp.is_some(),
            finished: status
                .and_then(|s| s.phase.as_deref())
                .is_some_and(|phase| matches!(phase, "Succeeded" | "Failed")),
            requests: pod_requests(spec),
            non_zero_milli_cpu,
            non_zero_memory,
            ports: with_ports
                .flat_map(|c| c.ports.iter().flatten())
                .filter_map(|p| {
                    let port = p.host_port.filter(|port| *port > 0)?;
                    let (address, protocol) = (p.host_ip.as_deref(), p.protocol.as_deref());
                    Some(HostPort::new(address.unwrap_or_default(), protocol.unwrap_or_default(), port))
                })
                .collect(),
            node_selector: NodeSelector::from_api(spec.node_selector.as_ref(), required_nodes),
            preferred_nodes: node_affinity
                .iter()
                .flat_map(|a| a.preferred_during_scheduling_ignored_during_execution.iter().flatten())
                .map(|p| PreferredTerm { weight: p.weight.into(), term: NodeTerm::from_api(&p.preference) })
                .collect(),
            tolerations: spec.tolerations.iter().flatten().map(Toleration::from).collect(),
            affinity: near
                .iter()
                .flat_map(|a| a.required_during_scheduling_ignored_during_execution.iter().flatten())
                .map(term)
                .collect(),
            anti_affinity: far
                .iter()
                .flat_map(|a| a.required_during_scheduling_ignored_during_execution.iter().flatten())
                .map(term)
                .collect(),
            preferred_affinity,
            spread: spec
                .topology_spread_constraints
                .iter()
                .flatten()
                .map(|c| SpreadConstraint::from_api(c, &labels))
                .collect(),
            images: all_containers()
                .filter_map(|c| c.image.as_deref())
                .map(|name| image::normalized(name).into())
                .collect(),
            claims: spec
                .volumes
                .iter()
                .flatten()
                .filter_map(|v| claim_of(meta.name.as_deref().unwrap_or_default(), v))
                .map(|(name, made)| (name.into(), made))
                .collect(),
            unschedulable_message: unschedulable.and_then(|c| c.message.as_deref()).map(Into::into),
            namespace,
            labels,
        }
    }

    /// Key (`namespace/name`) of a claim it uses.
    pub fn claim_key(&self, claim: &str) -> String {
        format!("{}/{claim}", self.namespace)
    }

    /// Whether it has any wish or rule about other pods.
    pub fn has_affinity(&self) -> bool {
        !self.affinity.is_empty() || !self.anti_affinity.is_empty() || !self.preferred_affinity.is_empty()
    }
}

impl fmt::Display for PodInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
