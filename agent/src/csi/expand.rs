//! Volumes that became larger: what is on them is told to grow, and the claim then says so.

use super::Csi;
use super::places::Place;
use super::proto::Map;
use super::volumes::{StepError, Wanted, capacity};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};
use std::path::Path;

/// Upstream's name of the step.
const STEP: &str = "NodeExpandVolume failed";
/// Conditions of a claim that are over with it.
const OVER: [&str; 2] = ["FileSystemResizePending", "Resizing"];

/// What a claim's status says once it has `size`.
fn grown(claim: &PersistentVolumeClaim, size: &Quantity) -> Value {
    let status = claim.status.clone().unwrap_or_default();
    let mut capacity = status.capacity.unwrap_or_default();
    capacity.insert("storage".into(), size.clone());
    let left = status.conditions.into_iter().flatten().filter(|c| !OVER.contains(&c.type_.as_str()));
    let left: Vec<_> = left.collect();
    let mut statuses = status.allocated_resource_statuses.unwrap_or_default();
    statuses.remove("storage");
    json!({
        "metadata": {"resourceVersion": claim.metadata.resource_version},
        "status": {
            "capacity": capacity,
            "conditions": if left.is_empty() { Value::Null } else { json!(left) },
            "allocatedResourceStatuses": if statuses.is_empty() { Value::Null } else { json!(statuses) },
        },
    })
}

impl Csi {
    /// Has the driver of a volume that a pod uses make what is on it larger, when the volume is larger than its claim says.
    /// Whether it did.
    ///
    /// # Errors
    /// The driver refused, or the claim cannot be read or written.
    pub async fn expand(&self, pod_dir: &Path, wanted: &Wanted) -> Result<bool, StepError> {
        let failed = |why: String| (STEP, why);
        let (Some((namespace, name)), Some(size)) = (&wanted.claim, &wanted.size) else { return Ok(false) };
        let Some(bytes) = wanted.capacity() else { return Ok(false) };
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.inner.client.clone(), namespace);
        let claim = claims.get(name).await.map_err(|e| failed(e.to_string()))?;
        let has = capacity(claim.status.as_ref().and_then(|s| s.capacity.as_ref()));
        if has.is_none_or(|has| has >= bytes) || wanted.read_only {
            return Ok(false);
        }
        let _turn = self.turn(&wanted.handle).await;
        let driver = self.driver(&wanted.driver).map_err(failed)?;
        let abilities = driver.capabilities().await.map_err(|e| failed(e.to_string()))?;
        if !abilities.expands {
            return Ok(false);
        }
        let place = Place::new(
            &self.inner.data_dir,
            pod_dir,
            wanted.block,
            &wanted.driver,
            &wanted.handle,
            &wanted.name,
        );
        let secrets = self.secrets(wanted.expand_secret.as_ref()).await.map_err(failed)?;
        let volume = wanted.volume(abilities, None, Map::new());
        let staging = if abilities.stages { place.staging.as_path() } else { Path::new("") };
        let done = driver.expand(&volume, &place.target, staging, bytes, &secrets).await;
        done.map_err(|e| failed(e.to_string()))?;
        let patch = Patch::Merge(grown(&claim, size));
        let written = claims.patch_status(name, &PatchParams::default(), &patch).await;
        written.map_err(|e| failed(format!("status of claim {namespace}/{name} not written: {e}")))?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_that_has_grown_waits_for_nothing_more() {
        let claim: PersistentVolumeClaim = serde_json::from_value(json!({
            "metadata": {"resourceVersion": "7"},
            "status": {
                "capacity": {"storage": "1Gi", "other": "2"},
                "allocatedResourceStatuses": {"storage": "NodeResizePending"},
                "conditions": [{"type": "FileSystemResizePending", "status": "True"}, {"type": "X", "status": "True"}],
            },
        }))
        .unwrap();
        let patch = grown(&claim, &Quantity("3Gi".into()));
        assert_eq!(patch["metadata"]["resourceVersion"], "7");
        assert_eq!(patch["status"]["capacity"], json!({"storage": "3Gi", "other": "2"}));
        assert_eq!(patch["status"]["conditions"].as_array().unwrap().len(), 1);
        assert_eq!(patch["status"]["allocatedResourceStatuses"], Value::Null);
    }
}
