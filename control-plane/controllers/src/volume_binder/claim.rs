//! One claim: which volume it gets, or what it waits for.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kelp_model::volume::{
    BETA_STORAGE_PROVISIONER, BOUND_BY_CONTROLLER, NO_PROVISIONER, SELECTED_NODE, STORAGE_PROVISIONER,
    bind_claim, bind_volume, bound_status, check_request, claim_class, find_volume, has_no_opinion,
    is_bound_to, is_complete, volume_name,
};
use kube::ResourceExt;

use super::{Binder, WAITING};
use crate::error::{Error, Result, ignore_not_found};
use crate::informer::key_of;
use crate::write;

const DEFAULT_CLASS: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];

fn is_default(class: &StorageClass) -> bool {
    DEFAULT_CLASS.iter().any(|key| class.annotations().get(*key).is_some_and(|v| v == "true"))
}

fn delays_binding(class: &StorageClass) -> bool {
    class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
}

impl Binder {
    pub(super) async fn sync_claim(&self, key: &str) -> Result<()> {
        let Some(claim) = self.claims.get(key) else { return Ok(()) };
        if is_complete(&claim) { self.sync_bound(&claim).await } else { self.sync_unbound(&claim).await }
    }

    /// A claim whose binding was completed once.
    async fn sync_bound(&self, claim: &PersistentVolumeClaim) -> Result<()> {
        let name = volume_name(claim);
        if name.is_empty() {
            let text = "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!";
            return self.lose(claim, "ClaimLost", text).await;
        }
        let volume = match self.volumes.get(name) {
            Some(volume) => volume,
            // The caches of claims and volumes are not of the same moment.
            None => match ignore_not_found(self.volumes_api().get(name).await)? {
                Some(volume) => Arc::new(volume),
                None => {
                    let text = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
                    return self.lose(claim, "ClaimLost", text).await;
                }
            },
        };
        let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
        if reference.is_none_or(|r| r.uid.as_deref() == claim.metadata.uid.as_deref()) {
            return self.bind(&volume, claim).await;
        }
        let text = "Two claims are bound to the same volume, this one is bound incorrectly";
        self.lose(claim, "ClaimMisbound", text).await
    }

    async fn lose(&self, claim: &PersistentVolumeClaim, reason: &'static str, text: &str) -> Result<()> {
        if self.set_claim_phase(claim, "Lost", None).await? {
            self.events.warning(claim, reason, text.to_owned());
        }
        Ok(())
    }

    async fn sync_unbound(&self, claim: &PersistentVolumeClaim) -> Result<()> {
        if volume_name(claim).is_empty() {
            self.choose(claim).await
        } else {
            self.sync_requested(claim).await
        }
    }

    /// The claim may have any volume.
    async fn choose(&self, claim: &PersistentVolumeClaim) -> Result<()> {
        let class = self.classes.get(claim_class(claim));
        let delayed = class.as_ref().is_some_and(|c| delays_binding(c));
        let volumes = self.volumes.list();
        let found = find_volume(claim, volumes.iter().map(|v| &**v), None, &BTreeSet::new(), delayed);
        if let Some(volume) = found {
            return self.bind(volume, claim).await;
        }
        if self.assign_default_class(claim).await? {
            return Ok(()); // it comes again with the class
        }
        let selected = claim.annotations().contains_key(SELECTED_NODE);
        if delayed && !selected {
            self.tell_what_it_waits_for(claim);
        } else if !claim_class(claim).is_empty() {
            return self.provision(claim, class.as_deref()).await;
        } else {
            let text = "no persistent volumes available for this claim and no storage class is set";
            self.events.normal(claim, "FailedBinding", text.to_owned());
        }
        self.set_claim_phase(claim, "Pending", None).await.map(|_| ())
    }

    /// The claim names its volume.
    async fn sync_requested(&self, claim: &PersistentVolumeClaim) -> Result<()> {
        let name = volume_name(claim);
        let Some(volume) = self.volumes.get(name) else {
            return self.set_claim_phase(claim, "Pending", None).await.map(|_| ());
        };
        if volume.spec.as_ref().is_none_or(|s| s.claim_ref.is_none()) {
            if let Err(why) = check_request(claim, &volume) {
                let text = format!("Cannot bind to requested volume {name:?}: {why}");
                self.events.warning(claim, "VolumeMismatch", text);
                return self.set_claim_phase(claim, "Pending", None).await.map(|_| ());
            }
            return self.bind(&volume, claim).await;
        }
        if is_bound_to(&volume, claim) {
            return self.bind(&volume, claim).await;
        }
        if claim.annotations().contains_key(BOUND_BY_CONTROLLER) {
            // Half of a binding that this controller began, with the volume taken by another claim meanwhile.
            let key = key_of(&claim.metadata);
            return Err(Error::Failed(format!(
                "invalid binding of claim {key:?} to volume {name:?}: volume already claimed by another"
            )));
        }
        let text = format!("volume {name:?} already bound to a different claim.");
        self.events.warning(claim, "FailedBinding", text);
        self.set_claim_phase(claim, "Pending", None).await.map(|_| ())
    }

    /// Gives a claim without an opinion the default class that was set after it was made; whether it did.
    async fn assign_default_class(&self, claim: &PersistentVolumeClaim) -> Result<bool> {
        if !has_no_opinion(claim) {
            return Ok(false);
        }
        let mut defaults = self.classes.list();
        defaults.retain(|class| is_default(class));
        // Of several the newest counts, then the first by name.
        defaults.sort_by_key(|c| {
            (std::cmp::Reverse(c.metadata.creation_timestamp.as_ref().map(|t| t.0)), c.name_any())
        });
        let Some(class) = defaults.first() else { return Ok(false) };
        let mut wanted = claim.clone();
        wanted.spec.get_or_insert_default().storage_class_name = Some(class.name_any());
        write::update(&self.claims_api(claim), claim, &wanted).await?;
        Ok(true)
    }

    fn tell_what_it_waits_for(&self, claim: &PersistentVolumeClaim) {
        let mut pods: Vec<String> = self
            .pods
            .by_index(WAITING, &key_of(&claim.metadata))
            .iter()
            .filter(|pod| !kelp_model::controllers::pods::is_terminal(pod))
            .map(|pod| pod.name_any())
            .collect();
        pods.sort_unstable();
        let (reason, text) = match pods.as_slice() {
            [] => {
                ("WaitForFirstConsumer", "waiting for first consumer to be created before binding".to_owned())
            }
            [one] => ("WaitForPodScheduled", format!("waiting for pod {one} to be scheduled")),
            several => {
                ("WaitForPodScheduled", format!("waiting for pods {} to be scheduled", several.join(",")))
            }
        };
        self.events.normal(claim, reason, text);
    }

    /// Leaves the claim to the provisioner of its class.
    async fn provision(&self, claim: &PersistentVolumeClaim, class: Option<&StorageClass>) -> Result<()> {
        let name = claim_class(claim);
        let Some(class) = class else {
            let text = format!("storageclass.storage.k8s.io {name:?} not found");
            self.events.warning(claim, "ProvisioningFailed", text);
            return Ok(());
        };
        let provisioner = class.provisioner.as_str();
        if provisioner == NO_PROVISIONER || provisioner.starts_with("kubernetes.io/") {
            // Names below kubernetes.io are built in, and none is.
            let text = format!("no volume plugin matched name: {provisioner}");
            self.events.warning(claim, "ProvisioningFailed", text);
            return Ok(());
        }
        let mut wanted = claim.clone();
        for key in [STORAGE_PROVISIONER, BETA_STORAGE_PROVISIONER] {
            wanted.annotations_mut().insert(key.to_owned(), provisioner.to_owned());
        }
        write::update(&self.claims_api(claim), claim, &wanted).await?;
        let text = format!(
            "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the \
             system administrator. If volume creation is delayed, please verify that the provisioner is running and \
             correctly registered."
        );
        self.events.normal(claim, "ExternalProvisioning", text);
        Ok(())
    }

    /// Binds the two to each other: the volume's half, its phase, the claim's half, its phase. Each step that is done
    /// already is left out.
    async fn bind(&self, volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Result<()> {
        let wanted = bind_volume(volume, claim);
        let written = write::update(&self.volumes_api(), volume, &wanted).await?;
        let volume = written.as_ref().unwrap_or(volume);
        self.set_phase(volume, "Bound", "").await?;
        let wanted = bind_claim(claim, volume);
        let written = write::update(&self.claims_api(claim), claim, &wanted).await?;
        self.set_claim_phase(written.as_ref().unwrap_or(claim), "Bound", Some(volume)).await.map(|_| ())
    }

    /// Sets a claim's phase and what it has of its volume; whether the phase changed.
    async fn set_claim_phase(
        &self,
        claim: &PersistentVolumeClaim,
        phase: &str,
        volume: Option<&PersistentVolume>,
    ) -> Result<bool> {
        let mut wanted = claim.clone();
        wanted.status = Some(bound_status(claim, phase, volume));
        write::update_status(&self.claims_api(claim), claim, &wanted).await?;
        Ok(claim.status.as_ref().and_then(|s| s.phase.as_deref()) != Some(phase))
    }
}
