//! Persistent volumes and claims: which fits which, and what a binding writes.

pub mod attachment;
mod bind;
mod find;
pub mod pods;

pub use bind::{bind_claim, bind_volume, bound_status, is_bound_to, unbind_volume};
pub use find::{check_request, find_volume, has_access_modes, matches_node, modes_differ};

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

/// On a claim and a volume: the binding was decided by the controller, not by the user.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// On a claim: the binding is complete.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// On a volume: what provisioned it.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// On a claim: the node that the scheduler chose for its first consumer.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// On a claim: what is to provision it.
pub const STORAGE_PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
/// The earlier name of [`STORAGE_PROVISIONER`], which upstream writes too.
pub const BETA_STORAGE_PROVISIONER: &str = "volume.beta.kubernetes.io/storage-provisioner";
/// The earlier way to name the class, on claims and volumes.
const BETA_STORAGE_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
/// Provisioner of classes whose volumes are made by hand.
pub const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

/// The class that a claim asks for; empty for none.
#[must_use]
pub fn claim_class(claim: &PersistentVolumeClaim) -> &str {
    let annotations = claim.metadata.annotations.as_ref();
    match annotations.and_then(|a| a.get(BETA_STORAGE_CLASS)) {
        Some(class) => class,
        None => claim.spec.as_ref().and_then(|s| s.storage_class_name.as_deref()).unwrap_or_default(),
    }
}

/// Whether a claim leaves the choice of the class to the cluster.
#[must_use]
pub fn has_no_opinion(claim: &PersistentVolumeClaim) -> bool {
    let annotated = claim.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(BETA_STORAGE_CLASS));
    !annotated && claim.spec.as_ref().is_none_or(|s| s.storage_class_name.is_none())
}

/// The class of a volume; empty for none.
#[must_use]
pub fn volume_class(volume: &PersistentVolume) -> &str {
    let annotations = volume.metadata.annotations.as_ref();
    match annotations.and_then(|a| a.get(BETA_STORAGE_CLASS)) {
        Some(class) => class,
        None => volume.spec.as_ref().and_then(|s| s.storage_class_name.as_deref()).unwrap_or_default(),
    }
}

/// Whether the binding of a claim is complete.
#[must_use]
pub fn is_complete(claim: &PersistentVolumeClaim) -> bool {
    claim.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(BIND_COMPLETED))
}

/// Whether a claim names its volume and the binding is complete.
#[must_use]
pub fn is_fully_bound(claim: &PersistentVolumeClaim) -> bool {
    !volume_name(claim).is_empty() && is_complete(claim)
}

/// The volume that a claim names; empty for none.
#[must_use]
pub fn volume_name(claim: &PersistentVolumeClaim) -> &str {
    claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
