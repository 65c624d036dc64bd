//! The claims of a pod.

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Volume};

/// Name of the claim that is made for a generic ephemeral volume.
#[must_use]
pub fn ephemeral_claim_name(pod: &str, volume: &str) -> String {
    format!("{pod}-{volume}")
}

/// The claim behind a volume of a pod, and whether it is made for the pod; `None` for other kinds of volumes.
#[must_use]
pub fn claim_of(pod: &str, volume: &Volume) -> Option<(String, bool)> {
    match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(source), _) => Some((source.claim_name.clone(), false)),
        (None, Some(_)) => Some((ephemeral_claim_name(pod, &volume.name), true)),
        (None, None) => None,
    }
}

/// Whether a claim was made for the pod of this namespace, name and UID.
///
/// # Errors
/// It was not, in upstream's words.
pub fn is_made_for(
    namespace: &str,
    pod: &str,
    uid: &str,
    claim: &PersistentVolumeClaim,
) -> Result<(), String> {
    let owners = claim.metadata.owner_references.iter().flatten();
    let mut controllers = owners.filter(|o| o.controller == Some(true));
    match controllers.any(|o| o.kind == "Pod" && o.uid == uid) {
        true => Ok(()),
        false => Err(format!(
            "PVC {}/{} was not created for pod {namespace}/{pod} (pod is not owner)",
            claim.metadata.namespace.as_deref().unwrap_or_default(),
            claim.metadata.name.as_deref().unwrap_or_default(),
        )),
    }
}
