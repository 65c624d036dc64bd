//! The scheduler without IO: what happened goes in, what is to be done comes out.

use crate::cluster::{Cluster, NodeId, StorageKind, StorageObject};
use crate::framework::{
    BindError, Change, CycleState, Diagnosis, NodeChange, PluginId, PluginSet, PostFiltered, Profile,
    Rejection,
};
use crate::plugins::preemption::filter_with_nominated;
use crate::queue::{Depth, Queue, Queued};
use kelp_model::scheduling::interpod::Namespaces;
use kelp_model::scheduling::{LabelMap, NodeInfo, PodInfo, nodes_to_find};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Something that happened.
pub enum Event {
    /// The nodes there are, at the start of a watch.
    NodesReplaced(Vec<NodeInfo>),
    /// A node came or changed.
    NodeApplied(Box<NodeInfo>),
    /// A node went.
    NodeRemoved(Arc<str>),
    /// The pods there are, at the start of a watch.
    PodsReplaced(Vec<Arc<PodInfo>>),
    /// A pod came or changed.
    PodApplied(Arc<PodInfo>),
    /// A pod went, by UID.
    PodRemoved(Arc<str>),
    /// The namespaces there are, at the start of a watch.
    NamespacesReplaced(Namespaces),
    /// A namespace came or changed (`None`: went).
    Namespace(Arc<str>, Option<LabelMap>),
    /// The objects of a storage kind there are, at the start of a watch.
    StorageReplaced(StorageKind, Vec<StorageObject>),
    /// An object about storage came or changed.
    StorageApplied(StorageObject),
    /// An object about storage went: claims by `namespace/name`, the others by name.
    StorageRemoved(StorageKind, String),
    /// A pod could not be bound.
    BindFailed(Box<Placement>, BindError),
}

/// A decision to be carried out.
pub struct Placement {
    /// The pod with its history.
    pub queued: Queued,
    /// The node.
    pub node: Arc<str>,
    /// The plugins that bind.
    pub profile: Arc<Profile>,
    /// How long to wait for permission before binding.
    pub wait: Option<Duration>,
    state: CycleState,
}

/// Why a pod stays pending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// No node fits.
    Unschedulable,
    /// Something went wrong.
    SchedulerError,
}

/// What is to be done.
pub enum Outcome {
    /// Bind a pod; answer with [`Event::BindFailed`] if it cannot be (the watch tells if it was).
    Bind(Box<Placement>),
    /// Tell that a pod stays pending.
    Failed {
        /// The pod.
        pod: Arc<PodInfo>,
        /// The kind of failure.
        reason: Reason,
        /// The condition's and event's text.
        message: String,
        /// Node on which room is being made.
        nominated: Option<Arc<str>>,
    },
    /// Evict pods of lower priority.
    Preempt {
        /// The pod they make room for.
        pod: Arc<PodInfo>,
        /// Their node.
        node: Arc<str>,
        /// The pods.
        victims: Vec<Arc<PodInfo>>,
    },
    /// No room is being made for a pod any more.
    ClearNomination(Arc<PodInfo>),
}

/// The scheduler's state.
pub struct Core {
    profiles: HashMap<Arc<str>, Arc<Profile>>,
    percentage: u32,
    cluster: Cluster,
    queue: Queue,
    /// Every pod of these profiles that is not seen bound, by UID; also those being tried or bound.
    pending: HashMap<Arc<str>, Arc<PodInfo>>,
    outcomes: VecDeque<Outcome>,
    next_start: usize,
    random: StdRng,
    has_nodes: bool,
    has_pods: bool,
    has_namespaces: bool,
    /// Storage kinds whose objects are known.
    has_storage: HashSet<StorageKind>,
}

impl Core {
    /// A scheduler for pods that name one of `profiles`. `percentage` of the nodes are looked at (0: adaptive, see
    /// [`nodes_to_find`]); `seed` decides among equally good nodes.
    pub fn new(profiles: HashMap<Arc<str>, Arc<Profile>>, percentage: u32, seed: u64) -> Self {
        Self {
            profiles,
            percentage,
            cluster: Cluster::default(),
            queue: Queue::default(),
            pending: HashMap::new(),
            outcomes: VecDeque::new(),
            next_start: 0,
            random: StdRng::seed_from_u64(seed),
            has_nodes: false,
            has_pods: false,
            has_namespaces: false,
            has_storage: HashSet::new(),
        }
    }

    /// The cluster as it is believed to be.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Number of waiting pods.
    pub fn depth(&self) -> Depth {
        self.queue.depth()
    }

    /// Takes in what happened.
    pub fn handle(&mut self, event: Event, now: Instant) {
        match event {
            Event::NodesReplaced(nodes) => {
                let kept = nodes.iter().map(|node| node.name.clone()).collect::<HashSet<_>>();
                for name in self.cluster.node_names() {
                    if !kept.contains(&name) {
                        self.remove_node(&name, now);
                    }
                }
                nodes.into_iter().for_each(|node| self.apply_node(node, now));
                self.has_nodes = true;
            }
            Event::NodeApplied(node) => self.apply_node(*node, now),
            Event::NodeRemoved(name) => self.remove_node(&name, now),
            Event::PodsReplaced(pods) => {
                let kept = pods.iter().map(|pod| pod.uid.clone()).collect::<HashSet<_>>();
                let known = self.cluster.bound_uids().into_iter().chain(self.pending.keys().cloned());
                let gone = known.filter(|uid| !kept.contains(uid)).collect::<Vec<_>>();
                gone.iter().for_each(|uid| self.remove_pod(uid, now));
                pods.into_iter().for_each(|pod| self.apply_pod(pod, now));
                self.has_pods = true;
            }
            Event::PodApplied(pod) => self.apply_pod(pod, now),
            Event::PodRemoved(uid) => self.remove_pod(&uid, now),
            Event::NamespacesReplaced(all) => {
                self.cluster.replace_namespaces(all);
                self.has_namespaces = true;
                self.retry_after(Change::Namespace, now);
            }
            Event::Namespace(name, labels) => {
                if self.cluster.apply_namespace(name, labels) {
                    self.retry_after(Change::Namespace, now);
                }
            }
            Event::StorageReplaced(kind, objects) => {
                self.has_storage.insert(kind);
                for object in self.cluster.replace_storage(kind, objects) {
                    self.storage_changed(&object, now);
                }
            }
            Event::StorageApplied(object) => {
                if self.cluster.apply_storage(object.clone()) {
                    self.storage_changed(&object, now);
                }
            }
            Event::StorageRemoved(kind, key) => self.cluster.remove_storage(kind, &key),
            Event::BindFailed(placement, error) => self.bind_failed(*placement, &error, now),
        }
    }

    fn apply_node(&mut self, node: NodeInfo, now: Instant) {
        let name = node.name.clone();
        let what = self.cluster.apply_node(node);
        if let Some(id) = self.cluster.find(&name).filter(|_| what.any()) {
            self.retry_after_node(id, what, now);
        }
    }

    fn remove_node(&mut self, name: &str, now: Instant) {
        if self.cluster.remove_node(name) {
            self.retry_after(Change::NodeRemoved, now);
        }
    }

    fn apply_pod(&mut self, pod: Arc<PodInfo>, now: Instant) {
        if pod.finished {
            return self.remove_pod(&pod.uid, now);
        }
        if pod.node_name.is_some() {
            self.pending.remove(&pod.uid);
            self.queue.remove(&pod.uid);
            self.cluster.nominate(&pod, None);
            let was_assumed = self.cluster.is_assumed(&pod.uid);
            match self.cluster.apply_pod(pod.clone()) {
                Some(old) if !was_assumed => {
                    if old.labels != pod.labels || old.requests != pod.requests {
                        self.retry_after(Change::PodChanged { old: &old, new: &pod }, now);
                    }
                }
                _ => self.retry_after(Change::PodPlaced(&pod), now),
            }
            return;
        }
        let Some(profile) = self.profiles.get(&pod.scheduler_name).cloned() else { return };
        let old = self.pending.insert(pod.uid.clone(), pod.clone());
        if pod.terminating {
            // It goes on its own; placing it would be in vain.
            self.queue.remove(&pod.uid);
            self.cluster.nominate(&pod, None);
            return;
        }
        if self.cluster.is_assumed(&pod.uid) {
            return;
        }
        if let Some(node) = self.cluster.nomination(&pod.uid).or(pod.nominated_node.as_ref()).cloned() {
            self.cluster.nominate(&pod, Some(&node));
        }
        let gated = profile.run_pre_enqueue(&pod).is_err();
        let rank = profile.rank(&pod);
        let retry = old.is_none_or(|old| may_matter(&old, &pod));
        if !self.queue.update(pod.clone(), rank, gated, retry, now) {
            self.queue.add(pod, rank, gated, now);
        }
    }

    fn remove_pod(&mut self, uid: &str, now: Instant) {
        self.queue.remove(uid);
        if let Some(pod) = self.pending.remove(uid) {
            self.cluster.nominate(&pod, None);
        }
        // An assumed pod's binding fails now, and that is when it is forgotten.
        if !self.cluster.is_assumed(uid)
            && let Some(pod) = self.cluster.remove_pod(uid)
        {
            self.retry_after(Change::PodRemoved(&pod), now);
        }
    }

    fn bind_failed(&mut self, placement: Placement, error: &BindError, now: Instant) {
        let Placement { mut queued, node, profile, mut state, .. } = placement;
        profile.run_unreserve(&mut state, &queued.pod, &node);
        if let Some(pod) = self.cluster.forget(&queued.pod.uid) {
            self.retry_after(Change::PodRemoved(&pod), now);
        }
        // Not if it is gone, or bound by whoever.
        let Some(pod) = self.pending.get(&queued.pod.uid).filter(|pod| !pod.terminating).cloned() else {
            return;
        };
        queued.pod = pod.clone();
        queued.rejected_by = PluginSet::default();
        self.queue.errored(queued, now);
        let message = format!("binding rejected: {error}");
        self.outcomes.push_back(Outcome::Failed {
            pod,
            reason: Reason::SchedulerError,
            message,
            nominated: None,
        });
    }

    fn storage_changed(&mut self, object: &StorageObject, now: Instant) {
        let key = object.key();
        let change = match object.kind() {
            StorageKind::Claim => Change::Claim(&key),
            StorageKind::Volume => Change::Volume,
            StorageKind::Class => Change::StorageClass,
            StorageKind::CsiNode => Change::CsiNode,
            StorageKind::CsiDriver | StorageKind::CsiCapacity => Change::Capacity,
        };
        self.retry_after(change, now);
    }

    fn retry_after(&mut self, change: Change<'_>, now: Instant) {
        let Self { queue, cluster, profiles, .. } = self;
        queue.move_if(|queued| helped(profiles, queued, &change, cluster), now);
    }

    fn retry_after_node(&mut self, id: NodeId, what: NodeChange, now: Instant) {
        let Self { queue, cluster, profiles, .. } = self;
        let change = Change::Node { node: cluster.node(id), what };
        queue.move_if(|queued| helped(profiles, queued, &change, cluster), now);
    }

    /// When to ask again if nothing happens before.
    pub fn next_wake(&self) -> Option<Instant> {
        self.queue.next_wake()
    }

    /// The next thing to be done; schedules at most one pod. `None`: nothing before [`Core::next_wake`].
    pub fn next(&mut self, now: Instant) -> Option<Outcome> {
        if let Some(outcome) = self.outcomes.pop_front() {
            return Some(outcome);
        }
        let has_storage = self.has_storage.len() == StorageKind::ALL.len();
        if !(self.has_nodes && self.has_pods && self.has_namespaces && has_storage) {
            return None;
        }
        let queued = self.queue.pop(now)?;
        // A pod is queued only with a profile, and profiles do not go.
        let profile = self.profiles.get(&queued.pod.scheduler_name)?.clone();
        Some(self.attempt(profile, queued, now))
    }

    fn attempt(&mut self, profile: Arc<Profile>, queued: Queued, now: Instant) -> Outcome {
        let mut state = CycleState::default();
        let pod = queued.pod.clone();
        let id = match self.find(&profile, &mut state, &pod) {
            Ok(id) => id,
            Err(diagnosis) => return self.no_node(&profile, &state, queued, diagnosis, now),
        };
        let node = self.cluster.node(id).name.clone();
        let permitted =
            profile.run_reserve(&mut state, &pod, &node).and_then(|()| profile.run_permit(&pod, &node));
        match permitted {
            Ok(wait) => {
                self.cluster.assume(pod.clone(), id);
                self.cluster.nominate(&pod, None);
                Outcome::Bind(Box::new(Placement { queued, node, profile, wait, state }))
            }
            Err((plugin, rejection)) => {
                profile.run_unreserve(&mut state, &pod, &node);
                let mut diagnosis = Diagnosis { nodes: self.cluster.len(), ..Diagnosis::default() };
                diagnosis.plugins.insert(plugin);
                diagnosis.rejected.push((id, rejection));
                self.fail(queued, &diagnosis, None, now)
            }
        }
    }

    fn no_node(
        &mut self,
        profile: &Profile,
        state: &CycleState,
        queued: Queued,
        mut diagnosis: Diagnosis,
        now: Instant,
    ) -> Outcome {
        if diagnosis.nodes == 0 {
            return self.fail(queued, &diagnosis, None, now);
        }
        let pod = queued.pod.clone();
        match profile.run_post_filter(state, &pod, &self.cluster, &diagnosis) {
            PostFiltered::Failed(message) => {
                diagnosis.post_filter = Some(message);
                self.fail(queued, &diagnosis, None, now)
            }
            PostFiltered::Nothing(message) => {
                diagnosis.post_filter = message;
                self.fail(queued, &diagnosis, None, now)
            }
            PostFiltered::Preempt { node, victims } => {
                let lower =
                    self.cluster.nominated(&node).iter().filter(|other| other.priority < pod.priority);
                for other in lower.cloned().collect::<Vec<_>>() {
                    self.cluster.nominate(&other, None);
                    self.outcomes.push_back(Outcome::ClearNomination(other));
                }
                self.cluster.nominate(&pod, Some(&node));
                self.outcomes.push_back(Outcome::Preempt { pod, node: node.clone(), victims });
                self.fail(queued, &diagnosis, Some(node), now)
            }
        }
    }

    fn fail(
        &mut self,
        mut queued: Queued,
        diagnosis: &Diagnosis,
        nominated: Option<Arc<str>>,
        now: Instant,
    ) -> Outcome {
        let pod = queued.pod.clone();
        let nominated = nominated.or_else(|| self.cluster.nomination(&pod.uid).cloned());
        queued.rejected_by = diagnosis.plugins;
        self.queue.failed(queued, now);
        Outcome::Failed { pod, reason: Reason::Unschedulable, message: diagnosis.message(), nominated }
    }

    /// Finds the best node for a pod.
    fn find(
        &mut self,
        profile: &Profile,
        state: &mut CycleState,
        pod: &PodInfo,
    ) -> Result<NodeId, Diagnosis> {
        let cluster = &self.cluster;
        let mut diagnosis = Diagnosis { nodes: cluster.len(), ..Diagnosis::default() };
        if cluster.is_empty() {
            return Err(diagnosis);
        }
        let only = match profile.run_pre_filter(state, pod, cluster) {
            Ok(only) => only,
            Err((plugin, rejection)) => {
                diagnosis.plugins.insert(plugin);
                diagnosis.pre_filter = Some(rejection.reasons.join(", "));
                return Err(diagnosis);
            }
        };
        let mut reject = |id: NodeId, (plugin, rejection): (PluginId, Rejection)| {
            diagnosis.plugins.insert(plugin);
            diagnosis.rejected.push((id, rejection));
        };
        // Where room was made for it, it goes if it can.
        if let Some(id) = cluster.nomination(&pod.uid).and_then(|name| cluster.find(name))
            && filter_with_nominated(profile, state, pod, cluster.node(id), cluster).is_ok()
        {
            return Ok(id);
        }
        let mut fit = Vec::new();
        if let Some((names, plugins)) = only {
            let ids = names.iter().filter_map(|name| cluster.find(name)).collect::<Vec<_>>();
            for id in &ids {
                match filter_with_nominated(profile, state, pod, cluster.node(*id), cluster) {
                    Ok(()) => fit.push(*id),
                    Err(rejected) => reject(*id, rejected),
                }
            }
            let reason = format!("node(s) didn't satisfy plugin(s) [{}]", profile.names(plugins).join(" "));
            if ids.len() < cluster.len() {
                diagnosis.ruled_out = Some((cluster.len() - ids.len(), reason));
            }
            diagnosis.plugins.extend(plugins);
        } else {
            let enough = nodes_to_find(cluster.len(), self.percentage);
            let mut looked_at = 0;
            for id in cluster.ids_from(self.next_start) {
                looked_at += 1;
                match filter_with_nominated(profile, state, pod, cluster.node(id), cluster) {
                    Ok(()) => fit.push(id),
                    Err(rejected) => reject(id, rejected),
                }
                if fit.len() >= enough {
                    break;
                }
            }
            self.next_start = (self.next_start + looked_at) % cluster.len();
        }
        match fit.as_slice() {
            [] => Err(diagnosis),
            [one] => Ok(*one),
            _ => {
                let nodes = fit.iter().map(|id| cluster.node(*id)).collect::<Vec<_>>();
                let scores = profile.run_score(state, pod, cluster, &nodes);
                Ok(best(&fit, &scores, &mut self.random))
            }
        }
    }
}

/// One of the nodes with the highest score, each with the same chance.
fn best(nodes: &[NodeId], scores: &[i64], random: &mut StdRng) -> NodeId {
    let max = scores.iter().max().copied().unwrap_or(0);
    let top =
        nodes.iter().zip(scores).filter(|(_, score)| **score == max).map(|(id, _)| *id).collect::<Vec<_>>();
    match top.as_slice() {
        [one] => *one,
        several => several[random.random_range(0..several.len())],
    }
}

fn helped(
    profiles: &HashMap<Arc<str>, Arc<Profile>>,
    queued: &Queued,
    change: &Change<'_>,
    cluster: &Cluster,
) -> bool {
    profiles
        .get(&queued.pod.scheduler_name)
        .is_some_and(|profile| profile.may_help(queued.rejected_by, &queued.pod, change, cluster))
}

/// Whether an update of a waiting pod may let it fit; its status does not.
fn may_matter(old: &PodInfo, new: &PodInfo) -> bool {
    old.generation != new.generation
        || old.labels != new.labels
        || old.gates != new.gates
        || old.tolerations != new.tolerations
        || old.requests != new.requests
}

#[cfg(test)]
mod tests;
