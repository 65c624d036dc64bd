//! What the pods of a node share about their volumes.

use super::claims::Claimed;
use super::image::ImageVolumes;
use crate::csi::Csi;
use k8s_openapi::api::core::v1::{Node, PersistentVolume};
use kube::Api;
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use tokio::sync::watch;

/// The node's side of volumes; clones share it.
#[derive(Clone)]
pub struct NodeVolumes {
    pub(super) client: Option<kube::Client>,
    pub(super) node: watch::Receiver<Option<Arc<Node>>>,
    pub(super) images: Option<ImageVolumes>,
    pub(super) csi: Option<Csi>,
    users: Arc<Mutex<HashMap<String, BTreeSet<String>>>>,
}

impl NodeVolumes {
    /// Asks this API server about claims.
    #[must_use]
    pub fn new(client: kube::Client, node: watch::Receiver<Option<Arc<Node>>>) -> Self {
        Self { client: Some(client), node, images: None, csi: None, users: Arc::default() }
    }

    /// With images to mount.
    #[must_use]
    pub fn with_images(self, images: ImageVolumes) -> Self {
        Self { images: Some(images), ..self }
    }

    /// With drivers.
    #[must_use]
    pub fn with_csi(self, csi: Csi) -> Self {
        Self { csi: Some(csi), ..self }
    }

    /// A volume as it is now.
    ///
    /// # Errors
    /// The API server does not tell.
    pub async fn newest(&self, claimed: &Claimed) -> Result<PersistentVolume, String> {
        let client = self.client.clone().ok_or("there is no API server to ask")?;
        let found = Api::<PersistentVolume>::all(client).get(claimed.name()).await;
        found.map_err(|e| super::claims::said(&e))
    }

    /// The drivers.
    #[must_use]
    pub fn csi(&self) -> Option<&Csi> {
        self.csi.as_ref()
    }

    /// The images to mount.
    #[must_use]
    pub fn images(&self) -> Option<&ImageVolumes> {
        self.images.as_ref()
    }

    /// Notes that a pod uses a volume.
    ///
    /// # Errors
    /// It is another pod's alone.
    pub(super) fn take(&self, claimed: &Claimed, pod: &str) -> Result<(), String> {
        let mut users = self.users.lock();
        let of_volume = users.entry(claimed.name().to_owned()).or_default();
        if claimed.is_exclusive() && of_volume.iter().any(|other| other != pod) {
            return Err("volume uses the ReadWriteOncePod access mode and is already in use by another pod"
                .to_owned());
        }
        of_volume.insert(pod.to_owned());
        Ok(())
    }

    /// A pod has let go of its volumes.
    pub fn forget(&self, pod: &str) {
        self.users.lock().retain(|_, pods| {
            pods.remove(pod);
            !pods.is_empty()
        });
    }
}

#[cfg(test)]
impl NodeVolumes {
    /// Without an API server, images and drivers.
    pub fn alone() -> Self {
        let node = watch::channel(None).1;
        Self { client: None, node, images: None, csi: None, users: Arc::default() }
    }
}
