//! Volumes as the scheduler sees them: which nodes a pod's claims allow, and which volumes they get there.

use super::{NodeInfo, PodInfo};
use crate::quantity::Quantity;
use crate::selector::Selector;
use crate::volume::{
    NO_PROVISIONER, SELECTED_NODE, claim_class, find_volume, is_fully_bound, matches_node, pods, volume_name,
};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// No volume fits on the node, and none can be made for it.
pub const NO_VOLUME: &str = "node(s) didn't find available persistent volumes to bind";
/// A volume of the pod cannot be reached from the node.
pub const UNREACHABLE: &str = "node(s) didn't match PersistentVolume's node affinity";
/// A claim names a volume that is not there.
pub const MISSING: &str = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";
/// A volume could be made, but where the node can reach it there is too little room.
pub const NO_ROOM: &str = "node(s) did not have enough free storage";
/// Labels that tie a volume to a zone or region.
const ZONES: [&str; 4] = [
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
];

/// The objects about storage; claims by `namespace/name`, the others by name.
#[derive(Debug, Clone, Default)]
pub struct Storage {
    /// Claims.
    pub claims: HashMap<String, Arc<PersistentVolumeClaim>>,
    /// Volumes.
    pub volumes: HashMap<String, Arc<PersistentVolume>>,
    /// Classes.
    pub classes: HashMap<String, Arc<StorageClass>>,
    /// What drivers say about nodes.
    pub csi_nodes: HashMap<String, Arc<CSINode>>,
    /// Drivers.
    pub drivers: HashMap<String, Arc<CSIDriver>>,
    /// How much room drivers have where; by `namespace/name`.
    pub capacities: HashMap<String, Arc<CSIStorageCapacity>>,
}

/// A pod's claims, by what is still to be done for them.
#[derive(Debug, Clone, Default)]
pub struct PodClaims {
    /// Bound.
    pub bound: Vec<Arc<PersistentVolumeClaim>>,
    /// To be bound once the pod has a node; the smallest first.
    pub delayed: Vec<Arc<PersistentVolumeClaim>>,
}

/// What the claims of a pod get on a node.
#[derive(Debug, Clone, Default)]
pub struct Decision {
    /// Volumes to reserve.
    pub bindings: Vec<(Arc<PersistentVolume>, Arc<PersistentVolumeClaim>)>,
    /// Claims whose volume is to be made for the node.
    pub provisions: Vec<Arc<PersistentVolumeClaim>>,
}

/// Decisions of earlier pods that the watches have not shown yet.
#[derive(Debug, Clone, Default)]
pub struct Assumed {
    /// By volume: the claim's key, and the version of the volume that was decided on.
    volumes: BTreeMap<String, (String, Option<String>)>,
    /// By claim: the node, and the version of the claim that was decided on.
    claims: BTreeMap<String, (String, Option<String>)>,
}

/// Key of a claim.
#[must_use]
pub fn key(claim: &PersistentVolumeClaim) -> String {
    let text = |s: &Option<String>| s.clone().unwrap_or_default();
    format!("{}/{}", text(&claim.metadata.namespace), text(&claim.metadata.name))
}

fn name(volume: &PersistentVolume) -> &str {
    volume.metadata.name.as_deref().unwrap_or_default()
}

fn size(claim: &PersistentVolumeClaim) -> Quantity {
    let requests = claim.spec.as_ref().and_then(|s| s.resources.as_ref()).and_then(|r| r.requests.as_ref());
    let storage = requests.and_then(|r| r.get("storage"));
    storage.and_then(|q| Quantity::parse(&q.0).ok()).unwrap_or(Quantity::ZERO)
}

impl Assumed {
    /// Takes a decision in.
    pub fn add(&mut self, decision: &Decision, node: &str) {
        for (volume, claim) in &decision.bindings {
            let version = volume.metadata.resource_version.clone();
            self.volumes.insert(name(volume).to_owned(), (key(claim), version));
        }
        for claim in &decision.provisions {
            let version = claim.metadata.resource_version.clone();
            self.claims.insert(key(claim), (node.to_owned(), version));
        }
    }

    /// Takes a decision back.
    pub fn remove(&mut self, decision: &Decision) {
        for (volume, _) in &decision.bindings {
            self.volumes.remove(name(volume));
        }
        for claim in &decision.provisions {
            self.claims.remove(&key(claim));
        }
    }

    /// Forgets what the watches have shown since.
    pub fn prune(&mut self, storage: &Storage) {
        self.volumes.retain(|name, (_, version)| {
            storage.volumes.get(name).is_some_and(|v| v.metadata.resource_version == *version)
        });
        self.claims.retain(|key, (_, version)| {
            storage.claims.get(key).is_some_and(|c| c.metadata.resource_version == *version)
        });
    }

    fn volume_for(&self, claim: &str) -> Option<&str> {
        self.volumes.iter().find(|(_, (for_claim, _))| for_claim == claim).map(|(volume, _)| volume.as_str())
    }
}

impl Storage {
    /// The claims of a pod.
    ///
    /// # Errors
    /// Why no node can take the pod now, in upstream's words.
    pub fn claims_of(&self, pod: &PodInfo) -> Result<PodClaims, String> {
        let mut found = Vec::new();
        for (name, made) in &pod.claims {
            let Some(claim) = self.claims.get(&pod.claim_key(name)) else {
                return Err(match made {
                    true => format!(
                        "waiting for ephemeral volume controller to create the persistentvolumeclaim {name:?}"
                    ),
                    false => format!("persistentvolumeclaim {name:?} not found"),
                });
            };
            if claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Lost") {
                return Err(format!(
                    "persistentvolumeclaim {name:?} bound to non-existent persistentvolume {:?}",
                    volume_name(claim)
                ));
            }
            if claim.metadata.deletion_timestamp.is_some() {
                return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
            }
            if *made {
                pods::is_made_for(&pod.namespace, &pod.name, &pod.uid, claim)?;
            }
            found.push(claim.clone());
        }
        let mut claims = PodClaims::default();
        for claim in found {
            if is_fully_bound(&claim) {
                claims.bound.push(claim);
            } else if volume_name(&claim).is_empty() && self.delays(&claim) {
                claims.delayed.push(claim);
            } else {
                return Err("pod has unbound immediate PersistentVolumeClaims".to_owned());
            }
        }
        claims.delayed.sort_by_key(|claim| size(claim));
        Ok(claims)
    }

    fn delays(&self, claim: &PersistentVolumeClaim) -> bool {
        let class = self.classes.get(claim_class(claim));
        class.is_some_and(|c| c.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"))
    }

    /// What the claims get on a node.
    ///
    /// # Errors
    /// Why the node does not do.
    pub fn decide(
        &self,
        claims: &PodClaims,
        node: &NodeInfo,
        assumed: &Assumed,
    ) -> Result<Decision, Vec<&'static str>> {
        for claim in &claims.bound {
            let Some(volume) = self.volumes.get(volume_name(claim)) else { return Err(vec![MISSING]) };
            if !matches_node(volume, &node.name, &node.labels) {
                return Err(vec![UNREACHABLE]);
            }
        }
        let mut decision = Decision::default();
        let mut taken: BTreeSet<&str> = assumed.volumes.keys().map(String::as_str).collect();
        for claim in &claims.delayed {
            let key = key(claim);
            let chosen = claim.metadata.annotations.as_ref().and_then(|a| a.get(SELECTED_NODE));
            if let Some(chosen) = chosen.or(assumed.claims.get(&key).map(|(node, _)| node)) {
                if **chosen != *node.name {
                    return Err(vec![NO_VOLUME]);
                }
                decision.provisions.push(claim.clone());
                continue;
            }
            if let Some(volume) = assumed.volume_for(&key).and_then(|name| self.volumes.get(name)) {
                // Another pod with the same claim was placed a moment ago.
                if !matches_node(volume, &node.name, &node.labels) {
                    return Err(vec![NO_VOLUME]);
                }
                decision.bindings.push((volume.clone(), claim.clone()));
                continue;
            }
            let volumes = self.volumes.values().map(|v| &**v);
            let place = Some((&*node.name, &node.labels));
            match find_volume(claim, volumes, place, &taken, false).map(name) {
                Some(found) => {
                    taken.insert(found);
                    decision.bindings.extend(self.volumes.get(found).map(|v| (v.clone(), claim.clone())));
                }
                None if !self.can_provision(claim, node) => return Err(vec![NO_VOLUME]),
                None if !self.has_capacity(claim, node) => return Err(vec![NO_ROOM]),
                None => decision.provisions.push(claim.clone()),
            }
        }
        Ok(decision)
    }

    /// Whether a volume can be made for a claim where the node can reach it.
    fn can_provision(&self, claim: &PersistentVolumeClaim, node: &NodeInfo) -> bool {
        let Some(class) = self.classes.get(claim_class(claim)) else { return false };
        if class.provisioner.is_empty() || class.provisioner == NO_PROVISIONER {
            return false;
        }
        let terms = class.allowed_topologies.as_deref().unwrap_or_default();
        terms.is_empty()
            || terms.iter().any(|term| {
                term.match_label_expressions.iter().flatten().all(|e| {
                    node.labels.get(&e.key).is_some_and(|value| e.values.iter().any(|v| **v == **value))
                })
            })
    }

    /// Whether the driver of a claim's class has room for it where the node can reach it, as far as it says so.
    fn has_capacity(&self, claim: &PersistentVolumeClaim, node: &NodeInfo) -> bool {
        let name = claim_class(claim);
        let Some(driver) = self.classes.get(name).and_then(|class| self.drivers.get(&class.provisioner))
        else {
            return true;
        };
        if driver.spec.storage_capacity != Some(true) {
            return true;
        }
        let wanted = size(claim);
        self.capacities.values().filter(|c| c.storage_class_name == name).any(|capacity| {
            // The size of the largest volume says more than what is left as a whole.
            let limit = capacity.maximum_volume_size.as_ref().or(capacity.capacity.as_ref());
            let enough = limit.and_then(|q| Quantity::parse(&q.0).ok()).is_some_and(|limit| limit >= wanted);
            let topology = Selector::from_label_selector(capacity.node_topology.as_ref());
            let reaches = topology.is_ok_and(|selector| selector.matches(&node.labels));
            enough && capacity.node_topology.is_some() && reaches
        })
    }

    /// Whether a node is in the zones and regions of the pod's volumes.
    #[must_use]
    pub fn is_in_zone(&self, claims: &PodClaims, node: &NodeInfo) -> bool {
        let volumes = claims.bound.iter().filter_map(|c| self.volumes.get(volume_name(c)));
        volumes.flat_map(|v| v.metadata.labels.iter().flatten()).all(|(label, zones)| {
            if !ZONES.contains(&label.as_str()) {
                return true;
            }
            // Volumes that were labelled by the earlier names are on nodes that have the present ones.
            let present = label.replace("failure-domain.beta", "topology");
            let of_node = node.labels.get(label).or_else(|| node.labels.get(&present));
            of_node.is_some_and(|zone| zones.split("__").any(|z| z == &**zone))
        })
    }

    /// Claims of a pod that only one pod may use at a time.
    #[must_use]
    pub fn exclusive<'a>(&self, pod: &'a PodInfo) -> Vec<&'a str> {
        let exclusive = |name: &str| {
            let claim = self.claims.get(&pod.claim_key(name));
            let modes = claim.and_then(|c| c.spec.as_ref()).and_then(|s| s.access_modes.as_deref());
            modes.unwrap_or_default().iter().any(|m| m == "ReadWriteOncePod")
        };
        pod.claims.iter().map(|(name, _)| &**name).filter(|name| exclusive(name)).collect()
    }

    /// Driver and handle of a pod's volumes that a driver serves.
    fn driven<'a>(&'a self, pod: &'a PodInfo) -> impl Iterator<Item = (&'a str, &'a str)> {
        pod.claims.iter().filter_map(|(name, _)| {
            let claim = self.claims.get(&pod.claim_key(name))?;
            let csi = self.volumes.get(volume_name(claim))?.spec.as_ref()?.csi.as_ref()?;
            Some((csi.driver.as_str(), csi.volume_handle.as_str()))
        })
    }

    /// Whether a node's drivers can serve the pod's volumes beside those of the pods that are there.
    #[must_use]
    pub fn has_room(&self, pod: &PodInfo, node: &NodeInfo) -> bool {
        let mut new: HashMap<&str, HashSet<&str>> = HashMap::new();
        for (driver, handle) in self.driven(pod) {
            new.entry(driver).or_default().insert(handle);
        }
        // Claims whose volume is still to be made count for the driver of their class.
        let coming = pod.claims.iter().filter_map(|(name, _)| {
            let claim = self.claims.get(&pod.claim_key(name)).filter(|c| volume_name(c).is_empty())?;
            Some((self.classes.get(claim_class(claim))?.provisioner.as_str(), &**name))
        });
        for (driver, name) in coming {
            new.entry(driver).or_default().insert(name);
        }
        let Some(csi) = self.csi_nodes.get(&*node.name).filter(|_| !new.is_empty()) else { return true };
        csi.spec.drivers.iter().all(|driver| {
            let limit =
                driver.allocatable.as_ref().and_then(|a| a.count).and_then(|n| usize::try_from(n).ok());
            let (Some(limit), Some(handles)) = (limit, new.get(driver.name.as_str())) else { return true };
            let there = node.pods().iter().flat_map(|p| self.driven(p)).filter(|(d, _)| *d == driver.name);
            let used: HashSet<&str> = there.map(|(_, handle)| handle).collect();
            let more = handles.iter().filter(|h| !used.contains(*h)).count();
            more == 0 || used.len() + more <= limit
        })
    }
}

#[cfg(test)]
mod tests;
