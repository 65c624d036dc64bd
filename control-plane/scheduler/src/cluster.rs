//! The cluster as the scheduler believes it to be.
//!
//! Nodes with their pods, including pods whose binding is decided but not written yet ("assumed"). Owned by the
//! scheduling loop and changed in place.

mod storage;

pub use storage::{StorageKind, StorageObject};

use crate::framework::NodeChange;
use kelp_model::scheduling::interpod::Namespaces;
use kelp_model::scheduling::volumes::Storage;
use kelp_model::scheduling::{LabelMap, NodeInfo, PodInfo};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// A node's place; good until the node is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub(crate) usize);

#[derive(Debug, Default)]
struct Slot {
    info: NodeInfo,
    /// There is such a node; otherwise only pods that name it.
    exists: bool,
    used: bool,
}

#[derive(Debug)]
struct Placed {
    pod: Arc<PodInfo>,
    node: NodeId,
    assumed: bool,
}

/// The cluster's nodes, placed pods and namespaces.
#[derive(Debug, Default)]
pub struct Cluster {
    slots: Vec<Slot>,
    free: Vec<usize>,
    by_name: HashMap<Arc<str>, NodeId>,
    /// Nodes in the order they are tried: one of each zone in turn.
    order: Vec<NodeId>,
    placed: HashMap<Arc<str>, Placed>,
    namespaces: Namespaces,
    images: HashMap<Box<str>, usize>,
    /// Pods, by UID, for which room is being made, by node.
    nominated: HashMap<Arc<str>, Vec<Arc<PodInfo>>>,
    /// Pods that stay, by set and node.
    groups: HashMap<Arc<str>, HashMap<NodeId, i64>>,
    /// Pods with required anti-affinity, counted so that a cluster without any needs no scan.
    anti_affinity_pods: usize,
    affinity_pods: usize,
    /// Shared with cycles that look at it; copied when it changes under one.
    storage: Arc<Storage>,
}

impl Cluster {
    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether there is no node.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// The nodes in the order they are to be tried, from `start` round to the one before it.
    pub fn ids_from(&self, start: usize) -> impl Iterator<Item = NodeId> {
        let start = start.checked_rem(self.order.len()).unwrap_or(0);
        let (before, after) = self.order.split_at(start);
        after.iter().chain(before).copied()
    }

    /// All nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeInfo> + Clone {
        self.order.iter().map(|id| self.node(*id))
    }

    /// A node.
    ///
    /// # Panics
    /// If the ID is not of this cluster.
    pub fn node(&self, id: NodeId) -> &NodeInfo {
        &self.slots[id.0].info
    }

    /// The node of a name, if there is one.
    pub fn find(&self, name: &str) -> Option<NodeId> {
        self.by_name.get(name).copied().filter(|id| self.slots[id.0].exists)
    }

    /// Labels of the namespaces.
    pub fn namespaces(&self) -> &Namespaces {
        &self.namespaces
    }

    /// Number of nodes that have an image.
    pub fn nodes_with_image(&self, image: &str) -> usize {
        self.images.get(image).copied().unwrap_or(0)
    }

    /// Whether any placed pod must not be near others.
    pub fn has_anti_affinity(&self) -> bool {
        self.anti_affinity_pods > 0
    }

    /// Whether any placed pod has a wish or rule about other pods.
    pub fn has_affinity(&self) -> bool {
        self.affinity_pods > 0
    }

    fn slot(&mut self, name: &Arc<str>) -> NodeId {
        if let Some(id) = self.by_name.get(name) {
            return *id;
        }
        let mut info = NodeInfo::default();
        info.name = name.clone();
        let fresh = Slot { info, exists: false, used: true };
        let at = match self.free.pop() {
            Some(at) => {
                self.slots[at] = fresh;
                at
            }
            None => {
                self.slots.push(fresh);
                self.slots.len() - 1
            }
        };
        self.by_name.insert(name.clone(), NodeId(at));
        NodeId(at)
    }

    fn release_if_unused(&mut self, id: NodeId) {
        let slot = &mut self.slots[id.0];
        if !slot.exists && slot.info.pods().is_empty() && slot.used {
            slot.used = false;
            self.by_name.remove(&slot.info.name);
            self.free.push(id.0);
        }
    }

    /// Takes in a node's present state; says what changed.
    pub fn apply_node(&mut self, node: NodeInfo) -> NodeChange {
        let id = self.slot(&node.name);
        let slot = &mut self.slots[id.0];
        let existed = std::mem::replace(&mut slot.exists, true);
        let change = if existed { NodeChange::between(&slot.info, &node) } else { NodeChange::ADDED };
        if existed {
            for image in slot.info.images.keys() {
                count(&mut self.images, image, -1);
            }
        }
        for image in node.images.keys() {
            count(&mut self.images, image, 1);
        }
        slot.info.update(node);
        if !existed || change.labels {
            self.reorder();
        }
        change
    }

    /// Removes a node; `false` if it was not there. Its pods stay known until they go too.
    pub fn remove_node(&mut self, name: &str) -> bool {
        let Some(id) = self.find(name) else { return false };
        let slot = &mut self.slots[id.0];
        slot.exists = false;
        for image in slot.info.images.keys() {
            count(&mut self.images, image, -1);
        }
        self.reorder();
        self.release_if_unused(id);
        true
    }

    /// Names of the nodes.
    pub fn node_names(&self) -> Vec<Arc<str>> {
        self.nodes().map(|node| node.name.clone()).collect()
    }

    /// One node of each zone in turn, so that a sample has nodes of all zones.
    fn reorder(&mut self) {
        let mut zones = BTreeMap::<_, Vec<NodeId>>::new();
        for (at, slot) in self.slots.iter().enumerate().filter(|(_, slot)| slot.exists && slot.used) {
            let (region, zone) = slot.info.zone();
            zones.entry((region.cloned(), zone.cloned())).or_default().push(NodeId(at));
        }
        let longest = zones.values().map(Vec::len).max().unwrap_or(0);
        self.order.clear();
        for turn in 0..longest {
            self.order.extend(zones.values().filter_map(|zone| zone.get(turn)));
        }
    }

    /// Puts a pod on the node it is decided for, before the decision is written.
    pub fn assume(&mut self, pod: Arc<PodInfo>, node: NodeId) {
        self.place(pod, node, true);
    }

    fn count_in_group(&mut self, pod: &PodInfo, node: NodeId, by: i64) {
        let Some(group) = pod.group.as_ref().filter(|_| !pod.terminating) else { return };
        let nodes = self.groups.entry(group.clone()).or_default();
        let count = nodes.entry(node).or_default();
        *count += by;
        if *count == 0 {
            nodes.remove(&node);
            if nodes.is_empty() {
                self.groups.remove(group);
            }
        }
    }

    /// The nodes that have pods of a set that stay, with their number.
    pub fn group(&self, group: &str) -> impl Iterator<Item = (&NodeInfo, i64)> {
        let nodes = self.groups.get(group).into_iter().flatten();
        nodes.filter(|(id, _)| self.slots[id.0].exists).map(|(id, count)| (self.node(*id), *count))
    }

    fn place(&mut self, pod: Arc<PodInfo>, node: NodeId, assumed: bool) {
        self.count_in_group(&pod, node, 1);
        self.anti_affinity_pods += usize::from(!pod.anti_affinity.is_empty());
        self.affinity_pods += usize::from(pod.has_affinity());
        self.slots[node.0].info.add_pod(pod.clone());
        self.placed.insert(pod.uid.clone(), Placed { pod, node, assumed });
    }

    /// Takes in the present state of a pod that is bound; gives back the earlier one if it was known.
    pub fn apply_pod(&mut self, pod: Arc<PodInfo>) -> Option<Arc<PodInfo>> {
        let name = pod.node_name.clone()?;
        let old = self.remove_pod(&pod.uid);
        let node = self.slot(&name);
        self.place(pod, node, false);
        old
    }

    /// Takes a placed pod away.
    pub fn remove_pod(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let Placed { pod, node, .. } = self.placed.remove(uid)?;
        self.slots[node.0].info.remove_pod(uid);
        self.count_in_group(&pod, node, -1);
        self.anti_affinity_pods -= usize::from(!pod.anti_affinity.is_empty());
        self.affinity_pods -= usize::from(pod.has_affinity());
        self.release_if_unused(node);
        Some(pod)
    }

    /// Takes an assumed pod away whose binding failed; `None` if it was bound after all or is gone.
    pub fn forget(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        if self.is_assumed(uid) { self.remove_pod(uid) } else { None }
    }

    /// Whether a pod's binding is decided and not yet seen.
    pub fn is_assumed(&self, uid: &str) -> bool {
        self.placed.get(uid).is_some_and(|placed| placed.assumed)
    }

    /// Whether a pod is placed, assumed or seen.
    pub fn is_placed(&self, uid: &str) -> bool {
        self.placed.contains_key(uid)
    }

    /// UIDs of the pods seen bound.
    pub fn bound_uids(&self) -> Vec<Arc<str>> {
        self.placed.iter().filter(|(_, placed)| !placed.assumed).map(|(uid, _)| uid.clone()).collect()
    }

    /// Sets a namespace's labels (`None`: it is gone); says whether they changed.
    pub fn apply_namespace(&mut self, name: Arc<str>, labels: Option<LabelMap>) -> bool {
        match labels {
            Some(labels) if self.namespaces.get(&name) == Some(&labels) => false,
            Some(labels) => {
                self.namespaces.insert(name, labels);
                true
            }
            None => self.namespaces.remove(&name).is_some(),
        }
    }

    /// Replaces all namespaces.
    pub fn replace_namespaces(&mut self, all: Namespaces) {
        self.namespaces = all;
    }

    /// Notes on which node room is being made for a pod; `None` forgets it.
    pub fn nominate(&mut self, pod: &Arc<PodInfo>, node: Option<&Arc<str>>) {
        self.nominated.retain(|_, pods| {
            pods.retain(|other| other.uid != pod.uid);
            !pods.is_empty()
        });
        if let Some(node) = node {
            self.nominated.entry(node.clone()).or_default().push(pod.clone());
        }
    }

    /// Pods for which room is being made on a node.
    pub fn nominated(&self, node: &str) -> &[Arc<PodInfo>] {
        self.nominated.get(node).map_or(&[], Vec::as_slice)
    }

    /// Node on which room is being made for a pod.
    pub fn nomination(&self, uid: &str) -> Option<&Arc<str>> {
        self.nominated.iter().find(|(_, pods)| pods.iter().any(|pod| *pod.uid == *uid)).map(|(node, _)| node)
    }

    /// Whether room is being made for any pod.
    pub fn has_nominations(&self) -> bool {
        !self.nominated.is_empty()
    }
}

fn count(images: &mut HashMap<Box<str>, usize>, image: &str, by: isize) {
    let count = images.entry(image.into()).or_default();
    *count = count.saturating_add_signed(by);
    if *count == 0 {
        images.remove(image);
    }
}

#[cfg(test)]
mod tests;
