//! Which volume a claim gets.

use super::{claim_class, is_bound_to, volume_class};
use crate::quantity::Quantity;
use crate::scheduling::{LabelMap, NodeSelector};
use crate::selector::Selector;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use std::collections::{BTreeMap, BTreeSet};

fn requested(claim: &PersistentVolumeClaim) -> Quantity {
    let requests = claim.spec.as_ref().and_then(|s| s.resources.as_ref()).and_then(|r| r.requests.as_ref());
    let storage = requests.and_then(|r| r.get("storage"));
    storage.and_then(|q| Quantity::parse(&q.0).ok()).unwrap_or(Quantity::ZERO)
}

fn capacity(volume: &PersistentVolume) -> Quantity {
    let storage = volume.spec.as_ref().and_then(|s| s.capacity.as_ref()).and_then(|c| c.get("storage"));
    storage.and_then(|q| Quantity::parse(&q.0).ok()).unwrap_or(Quantity::ZERO)
}

/// Whether one is a file system and the other a block device.
#[must_use]
pub fn modes_differ(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let of = |mode: Option<&str>| mode.unwrap_or("Filesystem").to_owned();
    of(claim.spec.as_ref().and_then(|s| s.volume_mode.as_deref()))
        != of(volume.spec.as_ref().and_then(|s| s.volume_mode.as_deref()))
}

/// Whether the volume can be used in every way that the claim asks for.
#[must_use]
pub fn has_access_modes(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let offered = volume.spec.as_ref().and_then(|s| s.access_modes.as_deref()).unwrap_or_default();
    claim
        .spec
        .as_ref()
        .and_then(|s| s.access_modes.as_ref())
        .into_iter()
        .flatten()
        .all(|m| offered.contains(m))
}

/// Whether the volume can be reached from a node of this name and with these labels.
#[must_use]
pub fn matches_node(volume: &PersistentVolume, name: &str, labels: &LabelMap) -> bool {
    let affinity = volume.spec.as_ref().and_then(|s| s.node_affinity.as_ref());
    match affinity.and_then(|a| a.required.as_ref()) {
        Some(required) => NodeSelector::from_api(None, Some(required)).matches(name, labels),
        None => true,
    }
}

fn attributes_class(name: Option<&String>) -> &str {
    name.map(String::as_str).unwrap_or_default()
}

/// Whether the two are of the same VolumeAttributesClass.
fn attributes_match(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let wanted = claim.spec.as_ref().and_then(|s| s.volume_attributes_class_name.as_ref());
    let has = volume.spec.as_ref().and_then(|s| s.volume_attributes_class_name.as_ref());
    attributes_class(wanted) == attributes_class(has)
}

/// Whether a claim may have the volume that it names.
///
/// # Errors
/// Why not, in upstream's words.
pub fn check_request(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Result<(), String> {
    if volume.metadata.deletion_timestamp.is_some() {
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        return Err(format!("the volume is marked for deletion {name:?}"));
    }
    if capacity(volume) < requested(claim) {
        return Err("requested PV is too small".to_owned());
    }
    if claim_class(claim) != volume_class(volume) {
        return Err("storageClassName does not match".to_owned());
    }
    if modes_differ(claim, volume) {
        return Err("incompatible volumeMode".to_owned());
    }
    if !has_access_modes(claim, volume) {
        return Err("incompatible accessMode".to_owned());
    }
    if !attributes_match(claim, volume) {
        return Err("VolumeAttributesClassName does not match".to_owned());
    }
    Ok(())
}

/// The volume for a claim: one that is reserved for it, else the smallest that fits, of those with the fewest access
/// modes. `node` (name and labels) restricts the choice to volumes that the node can reach. `taken` names volumes that
/// other claims get. With `reserved_only` nothing but a reserved volume is taken.
#[must_use]
pub fn find_volume<'a>(
    claim: &PersistentVolumeClaim,
    volumes: impl Iterator<Item = &'a PersistentVolume>,
    node: Option<(&str, &LabelMap)>,
    taken: &BTreeSet<&str>,
    reserved_only: bool,
) -> Option<&'a PersistentVolume> {
    let wanted = requested(claim);
    let class = claim_class(claim);
    let selector = match claim.spec.as_ref().and_then(|s| s.selector.as_ref()) {
        // A selector that cannot be read fits nothing.
        Some(selector) => Selector::from_label_selector(Some(selector)).ok()?,
        None => Selector::everything(),
    };
    let name = |v: &'a PersistentVolume| v.metadata.name.as_deref().unwrap_or_default();
    let mut best: Option<((usize, Quantity, &str), &PersistentVolume)> = None;
    for volume in volumes {
        let Some(spec) = &volume.spec else { continue };
        let reserved = is_bound_to(volume, claim);
        if taken.contains(name(volume))
            || (spec.claim_ref.is_some() && !reserved)
            || capacity(volume) < wanted
            || modes_differ(claim, volume)
            || !attributes_match(claim, volume)
            || volume.metadata.deletion_timestamp.is_some()
            || !has_access_modes(claim, volume)
        {
            continue;
        }
        let reachable = node.is_none_or(|(name, labels)| matches_node(volume, name, labels));
        if reserved {
            return reachable.then_some(volume);
        }
        let available = volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Available");
        let none = BTreeMap::new();
        let labels = volume.metadata.labels.as_ref().unwrap_or(&none);
        if reserved_only
            || !available
            || !reachable
            || volume_class(volume) != class
            || !selector.matches(labels)
        {
            continue;
        }
        let modes = spec.access_modes.as_ref().map_or(0, Vec::len);
        let rank = (modes, capacity(volume), name(volume));
        if best.as_ref().is_none_or(|(least, _)| rank < *least) {
            best = Some((rank, volume));
        }
    }
    best.map(|(_, volume)| volume)
}
