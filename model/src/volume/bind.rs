//! What a binding writes.
//!
//! A binding is two pointers, `claimRef` of the volume and `volumeName` of the claim, written one after the other: the
//! volume first, so that it is taken before the claim relies on it.

use super::{BIND_COMPLETED, BOUND_BY_CONTROLLER, volume_name};
use crate::quantity::Quantity;
use k8s_openapi::api::core::v1::{
    ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimStatus,
};
use std::collections::BTreeMap;

fn annotate(annotations: &mut Option<BTreeMap<String, String>>, key: &str) {
    annotations.get_or_insert_default().entry(key.to_owned()).or_insert_with(|| "yes".to_owned());
}

fn refers_to(reference: &ObjectReference, claim: &PersistentVolumeClaim) -> bool {
    reference.name == claim.metadata.name && reference.namespace == claim.metadata.namespace
}

/// Whether a volume is reserved for, or bound to, exactly this claim.
#[must_use]
pub fn is_bound_to(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    reference.is_some_and(|r| {
        let uid = r.uid.as_deref().unwrap_or_default();
        refers_to(r, claim) && (uid.is_empty() || Some(uid) == claim.metadata.uid.as_deref())
    })
}

/// The volume with its half of the binding.
#[must_use]
pub fn bind_volume(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> PersistentVolume {
    let mut bound = volume.clone();
    if !is_bound_to(volume, claim) {
        annotate(&mut bound.metadata.annotations, BOUND_BY_CONTROLLER);
    }
    let spec = bound.spec.get_or_insert_default();
    let complete =
        spec.claim_ref.as_ref().is_some_and(|r| refers_to(r, claim) && r.uid == claim.metadata.uid);
    if !complete {
        spec.claim_ref = Some(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("PersistentVolumeClaim".to_owned()),
            name: claim.metadata.name.clone(),
            namespace: claim.metadata.namespace.clone(),
            uid: claim.metadata.uid.clone(),
            resource_version: claim.metadata.resource_version.clone(),
            field_path: None,
        });
    }
    bound
}

/// The claim with its half of the binding.
#[must_use]
pub fn bind_claim(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> PersistentVolumeClaim {
    let mut bound = claim.clone();
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    if volume_name(claim) != name {
        bound.spec.get_or_insert_default().volume_name = Some(name.to_owned());
        annotate(&mut bound.metadata.annotations, BOUND_BY_CONTROLLER);
    }
    annotate(&mut bound.metadata.annotations, BIND_COMPLETED);
    bound
}

/// The status of a claim in a phase, with what it got from its volume.
#[must_use]
pub fn bound_status(
    claim: &PersistentVolumeClaim,
    phase: &str,
    volume: Option<&PersistentVolume>,
) -> PersistentVolumeClaimStatus {
    let mut status = claim.status.clone().unwrap_or_default();
    let becomes = status.phase.as_deref() != Some(phase);
    status.phase = Some(phase.to_owned());
    let Some(spec) = volume.and_then(|v| v.spec.as_ref()) else {
        (status.access_modes, status.capacity) = (None, None);
        return status;
    };
    status.access_modes = spec.access_modes.clone();
    // A claim that is bound already may rightly have another size: a resize is under way.
    if becomes {
        let amount = |list: Option<&BTreeMap<String, _>>| {
            let found: Option<&k8s_openapi::apimachinery::pkg::api::resource::Quantity> =
                list.and_then(|l| l.get("storage"));
            found.and_then(|q| Quantity::parse(&q.0).ok())
        };
        let has = amount(status.capacity.as_ref());
        if has.is_none() || has != amount(spec.capacity.as_ref()) {
            status.capacity = spec.capacity.clone();
        }
        if spec.volume_attributes_class_name.is_some() {
            status.current_volume_attributes_class_name = spec.volume_attributes_class_name.clone();
        }
    }
    status
}

/// The volume without the binding: back to everybody when the controller bound it, still reserved for the claim's name
/// when the user did.
#[must_use]
pub fn unbind_volume(volume: &PersistentVolume) -> PersistentVolume {
    let mut free = volume.clone();
    let by_controller =
        free.metadata.annotations.as_mut().and_then(|a| a.remove(BOUND_BY_CONTROLLER)).is_some();
    if let Some(spec) = &mut free.spec {
        if by_controller {
            spec.claim_ref = None;
        } else if let Some(reference) = &mut spec.claim_ref {
            reference.uid = None;
        }
    }
    free
}
