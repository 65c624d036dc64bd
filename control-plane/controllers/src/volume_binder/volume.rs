//! One volume: its phase, and whether its claim is still there.

use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};
use kelp_model::volume::{PROVISIONED_BY, modes_differ, unbind_volume, volume_name};
use kube::ResourceExt;
use kube::api::Api;

use super::{Binder, claim_key};
use crate::error::{Result, ignore_not_found};
use crate::informer::key_of;
use crate::write;

impl Binder {
    pub(super) async fn sync_volume(&self, name: &str) -> Result<()> {
        let Some(volume) = self.volumes.get(name) else { return Ok(()) };
        let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
        let Some(reference) = reference.filter(|r| r.uid.as_deref().is_some_and(|uid| !uid.is_empty()))
        else {
            // Nobody's, or reserved for a claim that has not come yet.
            return self.set_phase(&volume, "Available", "").await.map(|_| ());
        };
        let Some(claim) = self.claim_of(reference).await? else { return self.release(&volume).await };
        let bound_to = volume_name(&claim);
        if bound_to == name {
            return self.set_phase(&volume, "Bound", "").await.map(|_| ());
        }
        if bound_to.is_empty() {
            if modes_differ(&claim, &volume) {
                self.tell_mismatch(&volume, &claim);
            } else {
                // The other half of the binding is the claim's to write.
                self.queue.add(claim_key(&key_of(&claim.metadata)));
            }
            return Ok(());
        }
        // The claim got another volume.
        let deletes = volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
        if volume.annotations().contains_key(PROVISIONED_BY) && deletes == Some("Delete") {
            return self.release(&volume).await;
        }
        let wanted = unbind_volume(&volume);
        let written = write::update(&self.volumes_api(), &*volume, &wanted).await?;
        self.set_phase(written.as_ref().unwrap_or(&volume), "Available", "").await.map(|_| ())
    }

    /// The very claim that a volume refers to.
    async fn claim_of(&self, reference: &ObjectReference) -> Result<Option<PersistentVolumeClaim>> {
        let text = |s: &Option<String>| s.clone().unwrap_or_default();
        let (namespace, name) = (text(&reference.namespace), text(&reference.name));
        let same = |claim: &PersistentVolumeClaim| claim.metadata.uid == reference.uid;
        if let Some(claim) = self.claims.get(&format!("{namespace}/{name}")).filter(|c| same(c)) {
            return Ok(Some(PersistentVolumeClaim::clone(&claim)));
        }
        // Giving the volume up cannot be undone: the server is asked before the cache is believed.
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.context.client.clone(), &namespace);
        Ok(ignore_not_found(api.get(&name).await)?.filter(same))
    }

    fn tell_mismatch(&self, volume: &PersistentVolume, claim: &PersistentVolumeClaim) {
        let text = format!(
            "Cannot bind PersistentVolume to requested PersistentVolumeClaim {:?} due to incompatible volumeMode.",
            claim.name_any()
        );
        self.events.warning(volume, "VolumeMismatch", text);
        let text = format!(
            "Cannot bind PersistentVolume {:?} to requested PersistentVolumeClaim due to incompatible volumeMode.",
            volume.name_any()
        );
        self.events.warning(claim, "VolumeMismatch", text);
    }

    /// The claim is gone.
    async fn release(&self, volume: &PersistentVolume) -> Result<()> {
        let phase = volume.status.as_ref().and_then(|s| s.phase.as_deref());
        if !matches!(phase, Some("Released" | "Failed")) {
            // The change of phase brings the volume here again, in the version that reclaiming is decided on.
            self.set_phase(volume, "Released", "").await?;
            return Ok(());
        }
        if phase == Some("Released") {
            return self.reclaim(volume).await;
        }
        Ok(())
    }
}
