//! Volumes: claims that are bound, or will be, to what the node can reach.

use crate::cluster::Cluster;
use crate::framework::*;
use futures::FutureExt;
use futures::future::{BoxFuture, try_join_all};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kelp_model::scheduling::volumes::{Assumed, Decision, PodClaims, Storage};
use kelp_model::scheduling::{NodeInfo, PodInfo};
use kelp_model::volume::{SELECTED_NODE, bind_volume, is_fully_bound};
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::wait::conditions::is_deleted;
use kube::runtime::wait::{Condition, await_condition};
use kube::{Client, ResourceExt};
use parking_lot::Mutex;
use serde_json::json;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Longest wait for volumes to be bound or made, upstream's.
const BIND_TIMEOUT: Duration = Duration::from_secs(600);

/// What a cycle knows of the pod's volumes. The decisions are made by the filter, node by node.
#[derive(Clone)]
struct Cycle {
    storage: Arc<Storage>,
    claims: Arc<PodClaims>,
    decisions: Arc<Mutex<HashMap<Arc<str>, Decision>>>,
}

/// Chooses nodes by the volumes they reach, and has volumes bound or made for the chosen node before the pod is.
#[derive(Default)]
pub struct VolumeBinding {
    assumed: Mutex<Assumed>,
    /// Decisions of pods that are being bound, by UID.
    reserved: Mutex<HashMap<Arc<str>, Decision>>,
}

impl Plugin for VolumeBinding {
    fn name(&self) -> &'static str {
        "VolumeBinding"
    }
}

impl PreFilter for VolumeBinding {
    fn pre_filter(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        cluster: &Cluster,
    ) -> Result<PreFiltered, Rejection> {
        if pod.claims.is_empty() {
            return Ok(PreFiltered::Skip);
        }
        let storage = cluster.storage().clone();
        let claims = Arc::new(storage.claims_of(pod).map_err(Rejection::unresolvable)?);
        self.assumed.lock().prune(&storage);
        state.put(Cycle { storage, claims, decisions: Arc::default() });
        Ok(PreFiltered::Continue)
    }
}

impl Filter for VolumeBinding {
    fn filter(&self, state: &CycleState, _: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        let Some(cycle) = state.get::<Cycle>() else { return Ok(()) };
        match cycle.storage.decide(&cycle.claims, node, &self.assumed.lock()) {
            Ok(decision) => {
                if !cycle.claims.delayed.is_empty() {
                    cycle.decisions.lock().insert(node.name.clone(), decision);
                }
                Ok(())
            }
            Err(reasons) => {
                Err(Rejection { reasons: reasons.into_iter().map(Into::into).collect(), resolvable: false })
            }
        }
    }
}

impl Reserve for VolumeBinding {
    fn reserve(&self, state: &mut CycleState, pod: &PodInfo, node: &str) -> Result<(), Rejection> {
        let Some(cycle) = state.get::<Cycle>() else { return Ok(()) };
        let decision = cycle.decisions.lock().remove(node);
        // The objects are not held on to while the pod is being bound.
        state.put(Cycle { storage: Arc::default(), claims: Arc::default(), decisions: Arc::default() });
        if let Some(decision) = decision {
            self.assumed.lock().add(&decision, node);
            self.reserved.lock().insert(pod.uid.clone(), decision);
        }
        Ok(())
    }

    fn unreserve(&self, _: &mut CycleState, pod: &PodInfo, _: &str) {
        if let Some(decision) = self.reserved.lock().remove(&pod.uid) {
            self.assumed.lock().remove(&decision);
        }
    }
}

impl PreBind for VolumeBinding {
    fn pre_bind<'a>(
        &'a self,
        client: &'a Client,
        pod: &'a PodInfo,
        node: &'a str,
    ) -> BoxFuture<'a, Result<(), BindError>> {
        async move {
            let Some(decision) = self.reserved.lock().get(&pod.uid).cloned() else { return Ok(()) };
            write(client, &decision, node).await?;
            let waits = decision.bindings.iter().map(|(_, claim)| claim).chain(&decision.provisions);
            let bound = try_join_all(waits.map(|claim| bound(client, claim, node, &decision)));
            let pods = Api::<Pod>::namespaced(client.clone(), &pod.namespace);
            let gone = await_condition(pods, &pod.name, is_deleted(&pod.uid));
            tokio::select! {
                result = tokio::time::timeout(BIND_TIMEOUT, bound) => match result {
                    Ok(result) => drop(result?),
                    Err(_) => return Err("binding volumes: context deadline exceeded".into()),
                },
                _ = gone => return Err("binding volumes: pod does not exist any more".into()),
            }
            // The assumption stays until the watches have shown the volumes as they are now.
            self.reserved.lock().remove(&pod.uid);
            Ok(())
        }
        .boxed()
    }
}

/// Reserves the volumes, and has the missing ones made. Each write is bound to the version that was decided on.
async fn write(client: &Client, decision: &Decision, node: &str) -> Result<(), BindError> {
    let params = PatchParams::default();
    for (volume, claim) in &decision.bindings {
        let wanted = bind_volume(volume, claim);
        let reference = wanted.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
        let patch = json!({"metadata": {"resourceVersion": volume.metadata.resource_version,
            "uid": volume.metadata.uid, "annotations": wanted.metadata.annotations},
            "spec": {"claimRef": reference}});
        let api = Api::<PersistentVolume>::all(client.clone());
        api.patch(&volume.name_any(), &params, &Patch::Merge(patch)).await?;
    }
    for claim in &decision.provisions {
        let patch = json!({"metadata": {"resourceVersion": claim.metadata.resource_version,
            "uid": claim.metadata.uid, "annotations": {SELECTED_NODE: node}}});
        let api =
            Api::<PersistentVolumeClaim>::namespaced(client.clone(), &claim.namespace().unwrap_or_default());
        api.patch(&claim.name_any(), &params, &Patch::Merge(patch)).await?;
    }
    Ok(())
}

/// Waits until a claim is bound, or will not be.
async fn bound(
    client: &Client,
    claim: &Arc<PersistentVolumeClaim>,
    node: &str,
    decision: &Decision,
) -> Result<(), BindError> {
    let name = claim.name_any();
    let made = decision.provisions.iter().any(|c| Arc::ptr_eq(c, claim));
    let gives_up = move |claim: &PersistentVolumeClaim| {
        made && claim.annotations().get(SELECTED_NODE).is_none_or(|chosen| chosen != node)
    };
    let settled = move |c: Option<&PersistentVolumeClaim>| c.is_none_or(|c| is_fully_bound(c) || gives_up(c));
    let api = Api::namespaced(client.clone(), &claim.namespace().unwrap_or_default());
    let found = await_condition(api, &name, Settled(settled)).await?;
    match found {
        Some(found) if is_fully_bound(&found) => Ok(()),
        // A provisioner that cannot make it here takes the node's name away.
        Some(_) => Err(format!("binding volumes: provisioning failed for PVC {name:?}").into()),
        None => Err(format!("binding volumes: persistentvolumeclaim {name:?} not found").into()),
    }
}

struct Settled<F>(F);

impl<F: Fn(Option<&PersistentVolumeClaim>) -> bool> Condition<PersistentVolumeClaim> for Settled<F> {
    fn matches_object(&self, object: Option<&PersistentVolumeClaim>) -> bool {
        (self.0)(object)
    }
}

fn uses(pod: &PodInfo, claim: &str) -> bool {
    pod.claims.iter().any(|(name, _)| pod.claim_key(name) == claim)
}

impl EnqueueExtensions for VolumeBinding {
    fn may_help(&self, pod: &PodInfo, change: &Change<'_>, _: &Cluster) -> bool {
        match change {
            Change::Claim(key) => uses(pod, key),
            Change::Volume | Change::StorageClass | Change::CsiNode | Change::Capacity => true,
            Change::Node { what, .. } => what.added || what.labels,
            _ => false,
        }
    }
}

/// Keeps claims of one pod at a time from being used by two.
pub struct VolumeRestrictions;

/// The pod's exclusive claims, by key, that other pods use.
#[derive(Clone)]
struct Conflicts {
    exclusive: Vec<String>,
    users: i64,
}

impl Conflicts {
    fn count(&mut self, other: &PodInfo, by: i64) {
        let shared = self.exclusive.iter().filter(|key| uses(other, key)).count();
        self.users += by * i64::try_from(shared).unwrap_or(i64::MAX);
    }
}

impl Plugin for VolumeRestrictions {
    fn name(&self) -> &'static str {
        "VolumeRestrictions"
    }
}

impl PreFilter for VolumeRestrictions {
    fn pre_filter(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        cluster: &Cluster,
    ) -> Result<PreFiltered, Rejection> {
        let exclusive = cluster.storage().exclusive(pod);
        if exclusive.is_empty() {
            return Ok(PreFiltered::Skip);
        }
        let exclusive = exclusive.into_iter().map(|name| pod.claim_key(name)).collect();
        let mut conflicts = Conflicts { exclusive, users: 0 };
        cluster.nodes().flat_map(|n| n.pods()).for_each(|other| conflicts.count(other, 1));
        state.put(conflicts);
        Ok(PreFiltered::Continue)
    }

    fn add_pod(&self, state: &mut CycleState, _: &PodInfo, other: &PodInfo, _: &NodeInfo, _: &Cluster) {
        if let Some(conflicts) = state.get_mut::<Conflicts>() {
            conflicts.count(other, 1);
        }
    }

    fn remove_pod(&self, state: &mut CycleState, _: &PodInfo, other: &PodInfo, _: &NodeInfo, _: &Cluster) {
        if let Some(conflicts) = state.get_mut::<Conflicts>() {
            conflicts.count(other, -1);
        }
    }
}

impl Filter for VolumeRestrictions {
    fn filter(&self, state: &CycleState, _: &PodInfo, _: &NodeInfo) -> Result<(), Rejection> {
        match state.get::<Conflicts>() {
            Some(conflicts) if conflicts.users > 0 => Err(Rejection::new(
                "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode",
            )),
            _ => Ok(()),
        }
    }
}

impl EnqueueExtensions for VolumeRestrictions {
    fn may_help(&self, pod: &PodInfo, change: &Change<'_>, _: &Cluster) -> bool {
        match change {
            Change::PodRemoved(gone) => pod.claims.iter().any(|(name, _)| uses(gone, &pod.claim_key(name))),
            Change::Claim(key) => uses(pod, key),
            _ => false,
        }
    }
}

/// The storage, for counting volumes.
#[derive(Clone)]
struct Look(Arc<Storage>);

/// Keeps pods in the zones of their volumes.
pub struct VolumeZone;

impl Plugin for VolumeZone {
    fn name(&self) -> &'static str {
        "VolumeZone"
    }
}

impl PreFilter for VolumeZone {
    fn pre_filter(&self, state: &mut CycleState, _: &PodInfo, _: &Cluster) -> Result<PreFiltered, Rejection> {
        let bound = state.get::<Cycle>().is_some_and(|cycle| !cycle.claims.bound.is_empty());
        Ok(if bound { PreFiltered::Continue } else { PreFiltered::Skip })
    }
}

impl Filter for VolumeZone {
    fn filter(&self, state: &CycleState, _: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        match state.get::<Cycle>() {
            Some(cycle) if !cycle.storage.is_in_zone(&cycle.claims, node) => {
                Err(Rejection::unresolvable("node(s) had no available volume zone"))
            }
            _ => Ok(()),
        }
    }
}

impl EnqueueExtensions for VolumeZone {
    fn may_help(&self, pod: &PodInfo, change: &Change<'_>, cluster: &Cluster) -> bool {
        VolumeBinding::default().may_help(pod, change, cluster)
    }
}

/// Keeps to the number of volumes that a driver serves on a node.
pub struct NodeVolumeLimits;

impl Plugin for NodeVolumeLimits {
    fn name(&self) -> &'static str {
        "NodeVolumeLimits"
    }
}

impl PreFilter for NodeVolumeLimits {
    fn pre_filter(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        cluster: &Cluster,
    ) -> Result<PreFiltered, Rejection> {
        let storage = cluster.storage();
        if pod.claims.is_empty() || storage.csi_nodes.is_empty() {
            return Ok(PreFiltered::Skip);
        }
        state.put(Look(storage.clone()));
        Ok(PreFiltered::Continue)
    }
}

impl Filter for NodeVolumeLimits {
    fn filter(&self, state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        match state.get::<Look>() {
            Some(Look(storage)) if !storage.has_room(pod, node) => {
                Err(Rejection::new("node(s) exceed max volume count"))
            }
            _ => Ok(()),
        }
    }
}

impl EnqueueExtensions for NodeVolumeLimits {
    fn may_help(&self, pod: &PodInfo, change: &Change<'_>, _: &Cluster) -> bool {
        match change {
            Change::Node { what, .. } => what.added,
            Change::PodRemoved(gone) => !gone.claims.is_empty(),
            Change::Claim(key) => uses(pod, key),
            Change::CsiNode => true,
            _ => false,
        }
    }
}
