//! What becomes of a volume whose claim is gone.

use std::path::{Component, Path};

use k8s_openapi::api::core::v1::PersistentVolume;
use kelp_model::volume::PROVISIONED_BY;
use kube::ResourceExt;

use super::Binder;
use crate::error::Result;
use crate::write;

/// What is to be done with a released volume.
#[derive(Debug, PartialEq, Eq)]
enum Reclaim<'a> {
    /// Nothing: it waits for a person, or for whoever provisioned it.
    Leave,
    /// Remove the directory, then the object.
    RemoveDirectory(&'a Path),
    /// It cannot be done: reason and message of the event.
    Fail(&'static str, String),
}

fn decide(volume: &PersistentVolume) -> Reclaim<'_> {
    let Some(spec) = &volume.spec else { return Reclaim::Leave };
    match spec.persistent_volume_reclaim_policy.as_deref() {
        // Scrubbing pods were given up long ago; the volume is kept and says so.
        Some("Recycle") => {
            Reclaim::Fail("VolumeFailedRecycle", "No recycler plugin found for the volume!".to_owned())
        }
        Some("Delete") => {
            let by = volume.annotations().get(PROVISIONED_BY);
            if by.is_some_and(|by| !by.starts_with("kubernetes.io/")) {
                return Reclaim::Leave;
            }
            match &spec.host_path {
                Some(source) if is_temporary(Path::new(&source.path)) => {
                    Reclaim::RemoveDirectory(Path::new(&source.path))
                }
                Some(source) => Reclaim::Fail(
                    "VolumeFailedDelete",
                    format!("host_path deleter only supports /tmp/.+ but received provided {}", source.path),
                ),
                None => Reclaim::Fail(
                    "VolumeFailedDelete",
                    format!(
                        "error getting deleter volume plugin for volume {:?}: no deletable volume plugin matched",
                        volume.name_any()
                    ),
                ),
            }
        }
        _ => Reclaim::Leave,
    }
}

/// Below /tmp: nothing else on a host is deleted for a volume's sake.
fn is_temporary(path: &Path) -> bool {
    let below = path.strip_prefix("/tmp").ok();
    below.is_some_and(|rest| {
        rest.components().next().is_some() && rest.components().all(|c| matches!(c, Component::Normal(_)))
    })
}

impl Binder {
    pub(super) async fn reclaim(&self, volume: &PersistentVolume) -> Result<()> {
        let failure = match decide(volume) {
            Reclaim::Leave => return Ok(()),
            Reclaim::RemoveDirectory(path) => {
                let path = path.to_owned();
                let removed = tokio::task::spawn_blocking(move || match std::fs::remove_dir_all(&path) {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
                    other => other.map_err(|e| format!("cannot remove {}: {e}", path.display())),
                });
                match removed.await.map_err(|e| e.to_string()).and_then(|r| r) {
                    Ok(()) => return write::delete(&self.volumes_api(), volume, None).await,
                    Err(text) => ("VolumeFailedDelete", text),
                }
            }
            Reclaim::Fail(reason, text) => (reason, text),
        };
        let (reason, text) = failure;
        if self.set_phase(volume, "Failed", &text).await? {
            self.events.warning(volume, reason, text);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn volume(spec: Value, annotations: Value) -> PersistentVolume {
        serde_json::from_value(json!({"metadata": {"name": "v", "annotations": annotations}, "spec": spec}))
            .expect("volume")
    }

    #[test]
    fn policies() {
        let host = |path: &str, policy: &str| {
            volume(json!({"hostPath": {"path": path}, "persistentVolumeReclaimPolicy": policy}), json!({}))
        };
        assert_eq!(decide(&host("/tmp/a", "Retain")), Reclaim::Leave);
        assert_eq!(decide(&host("/tmp/a", "Delete")), Reclaim::RemoveDirectory(Path::new("/tmp/a")));
        for path in ["/srv/a", "/tmp", "/tmp/", "/tmp/../etc", "tmp/a"] {
            assert!(
                matches!(decide(&host(path, "Delete")), Reclaim::Fail("VolumeFailedDelete", _)),
                "{path}"
            );
        }
        assert!(matches!(decide(&host("/tmp/a", "Recycle")), Reclaim::Fail("VolumeFailedRecycle", _)));
        let csi =
            json!({"csi": {"driver": "d", "volumeHandle": "h"}, "persistentVolumeReclaimPolicy": "Delete"});
        assert_eq!(
            decide(&volume(csi.clone(), json!({"pv.kubernetes.io/provisioned-by": "d"}))),
            Reclaim::Leave
        );
        assert_eq!(
            decide(&volume(csi, json!({}))),
            Reclaim::Fail(
                "VolumeFailedDelete",
                "error getting deleter volume plugin for volume \"v\": no deletable volume plugin matched"
                    .into()
            )
        );
    }
}
