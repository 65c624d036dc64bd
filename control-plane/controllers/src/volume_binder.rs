//! Binds claims to volumes and says what becomes of the volumes afterwards.
//!
//! Both kinds go through one queue and one worker: a binding writes to a volume and a claim, and two at once could take
//! the same volume. A write is bound to the version that was decided on, so an outdated cache costs a retry and no more.

mod claim;
mod reclaim;
mod volume;

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeStatus, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kelp_model::volume::{claim_class, is_complete, pods::claim_of, volume_class, volume_name};
use kube::ResourceExt;
use kube::api::Api;

use crate::context::Context;
use crate::error::Result;
use crate::events::Recorder;
use crate::informer::{Change, Informer, key_of};
use crate::queue::Queue;
use crate::write;

/// Index of claims that have no volume yet, by class.
const UNBOUND: &str = "unbound";
/// Index of pods that have no node yet, by the claims they use.
const WAITING: &str = "waiting";

struct Binder {
    context: Arc<Context>,
    volumes: Arc<Informer<PersistentVolume>>,
    claims: Arc<Informer<PersistentVolumeClaim>>,
    classes: Arc<Informer<StorageClass>>,
    pods: Arc<Informer<Pod>>,
    events: Recorder,
    queue: Queue,
}

/// What a key of the queue names.
#[derive(Debug, PartialEq, Eq)]
enum Object<'a> {
    Claim(&'a str),
    Volume(&'a str),
}

fn claim_key(key: &str) -> String {
    format!("claim {key}")
}

fn volume_key(name: &str) -> String {
    format!("volume {name}")
}

fn object(key: &str) -> Option<Object<'_>> {
    let (kind, key) = key.split_once(' ')?;
    Some(if kind == "claim" { Object::Claim(key) } else { Object::Volume(key) })
}

/// The claims of a pod that no node has been found for.
fn waits_for(pod: &Pod) -> Vec<String> {
    let Some(spec) = pod.spec.as_ref().filter(|s| s.node_name.as_deref().is_none_or(str::is_empty)) else {
        return Vec::new();
    };
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let claims = spec.volumes.iter().flatten().filter_map(|v| claim_of(&pod.name_any(), v));
    claims.map(|(name, _)| format!("{namespace}/{name}")).collect()
}

/// Starts the controller. Reads PersistentVolumes, PersistentVolumeClaims, StorageClasses and Pods; writes PersistentVolumes,
/// PersistentVolumeClaims and events about both.
pub fn start(context: &Arc<Context>) -> Result<()> {
    let binder = Arc::new(Binder {
        context: context.clone(),
        volumes: context.informer(),
        claims: context.informer(),
        classes: context.informer(),
        pods: context.informer(),
        events: context.recorder("persistentvolume-controller"),
        queue: Queue::new(),
    });
    binder.claims.add_index(UNBOUND, |claim| {
        if is_complete(claim) { Vec::new() } else { vec![claim_class(claim).to_owned()] }
    });
    binder.pods.add_index(WAITING, waits_for);
    binder.clone().follow();
    let queue = binder.queue.clone();
    context.workers("persistentvolume-binder", &queue, 1, move |key| {
        let binder = binder.clone();
        async move {
            match object(&key) {
                Some(Object::Claim(key)) => binder.sync_claim(key).await,
                Some(Object::Volume(name)) => binder.sync_volume(name).await,
                None => Ok(()),
            }
        }
    });
    Ok(())
}

impl Binder {
    fn follow(self: Arc<Self>) {
        let this = self.clone();
        self.claims.on_change(move |change| {
            let claim = change.object();
            match change {
                Change::Deleted(_) => {
                    if !volume_name(claim).is_empty() {
                        this.queue.add(volume_key(volume_name(claim)));
                    }
                }
                _ => this.queue.add(claim_key(&key_of(&claim.metadata))),
            }
        });
        let this = self.clone();
        self.volumes.on_change(move |change| {
            let volume = change.object();
            if !matches!(change, Change::Deleted(_)) {
                this.queue.add(volume_key(&volume.name_any()));
            }
            match volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()) {
                Some(reference) => {
                    let text = |s: &Option<String>| s.clone().unwrap_or_default();
                    let key = format!("{}/{}", text(&reference.namespace), text(&reference.name));
                    this.queue.add(claim_key(&key));
                }
                // Anybody's: the claims that wait for one of its class are looked at again.
                None if !matches!(change, Change::Deleted(_)) => this.retry_claims(volume_class(volume)),
                None => {}
            }
        });
        let this = self.clone();
        self.classes.on_change(move |change| {
            if matches!(change, Change::Deleted(_)) {
                return;
            }
            this.retry_claims(&change.object().name_any());
            // It may be the default class now, which claims without an opinion get.
            this.retry_claims("");
        });
        let this = self.clone();
        self.pods.on_change(move |change| {
            // What a claim waits for is told in its events.
            if let Change::Added(pod) = change {
                waits_for(pod).iter().for_each(|key| this.queue.add(claim_key(key)));
            }
        });
    }

    fn retry_claims(&self, class: &str) {
        for claim in self.claims.by_index(UNBOUND, class) {
            self.queue.add(claim_key(&key_of(&claim.metadata)));
        }
    }

    fn volumes_api(&self) -> Api<PersistentVolume> {
        Api::all(self.context.client.clone())
    }

    fn claims_api(&self, claim: &PersistentVolumeClaim) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.context.client.clone(), &claim.namespace().unwrap_or_default())
    }

    /// Sets a volume's phase; whether it changed.
    async fn set_phase(&self, volume: &PersistentVolume, phase: &str, message: &str) -> Result<bool> {
        let mut wanted = volume.clone();
        let status: &mut PersistentVolumeStatus = wanted.status.get_or_insert_default();
        if status.phase.as_deref() == Some(phase) {
            return Ok(false);
        }
        status.phase = Some(phase.to_owned());
        status.message = Some(message.to_owned()).filter(|m| !m.is_empty());
        write::update_status(&self.volumes_api(), volume, &wanted).await?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_name_their_kind() {
        assert_eq!(object(&claim_key("ns/a")), Some(Object::Claim("ns/a")));
        assert_eq!(object(&volume_key("v")), Some(Object::Volume("v")));
    }
}
