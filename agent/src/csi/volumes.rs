//! Volumes of drivers: staged once a node, published for each pod, and both undone.
//!
//! ```text
//! pods/<uid>/volumes/kubernetes.io~csi/<name>/vol_data.json   what was published, from before it was until after
//!                                            /mount           where the driver mounts it
//! plugins/kubernetes.io/csi/<driver>/<hash>/vol_data.json     what was staged
//!                                          /globalmount       where
//!
//! pods/<uid>/volumeDevices/kubernetes.io~csi/<name>/vol_data.json   the same of a device
//! plugins/kubernetes.io/csi/volumeDevices/publish/<name>/<uid>      where the driver puts it
//!                                        /<name>/data/vol_data.json
//!                                        /staging/<name>
//! ```

use super::client::{AccessMode, Capabilities, Driver, Failure, Volume};
use super::places::{Data, Place};
use super::proto::Map;
use super::{Csi, places};
use k8s_openapi::api::core::v1::{CSIVolumeSource, PersistentVolume, Pod, Secret, SecretReference};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kelp_model::pod::quantity;
use kelp_model::volume::attachment;
use kube::Api;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// How often a driver that wants it is asked to publish again.
const REPUBLISH: Duration = Duration::from_secs(60);

/// A volume of a pod that a driver serves.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// Name of the PersistentVolume, or of the pod's volume.
    pub(super) name: String,
    pub(super) driver: String,
    pub(super) handle: String,
    fs_type: String,
    options: Vec<String>,
    modes: Vec<String>,
    attributes: Map,
    pub(super) read_only: bool,
    stage_secret: Option<SecretReference>,
    publish_secret: Option<SecretReference>,
    /// It is the pod's alone and is made by publishing it.
    inline: bool,
    /// It is a device.
    pub(super) block: bool,
    /// The claim that it is bound to: namespace and name.
    pub(super) claim: Option<(String, String)>,
    /// Space that the volume has.
    pub(super) size: Option<Quantity>,
    pub(super) expand_secret: Option<SecretReference>,
}

impl Wanted {
    /// The volume behind a claim; `None`: no driver serves it.
    #[must_use]
    pub fn persistent(volume: &PersistentVolume, read_only: bool) -> Option<Self> {
        let spec = volume.spec.as_ref()?;
        let csi = spec.csi.as_ref()?;
        Some(Self {
            name: volume.metadata.name.clone().unwrap_or_default(),
            driver: csi.driver.clone(),
            handle: csi.volume_handle.clone(),
            fs_type: csi.fs_type.clone().unwrap_or_default(),
            options: spec.mount_options.clone().unwrap_or_default(),
            modes: spec.access_modes.clone().unwrap_or_default(),
            attributes: csi.volume_attributes.clone().unwrap_or_default(),
            read_only: read_only || csi.read_only == Some(true),
            stage_secret: csi.node_stage_secret_ref.clone(),
            publish_secret: csi.node_publish_secret_ref.clone(),
            inline: false,
            block: spec.volume_mode.as_deref() == Some("Block"),
            claim: spec.claim_ref.as_ref().and_then(|r| Some((r.namespace.clone()?, r.name.clone()?))),
            size: spec.capacity.as_ref().and_then(|c| c.get("storage").cloned()),
            expand_secret: csi.node_expand_secret_ref.clone(),
        })
    }

    /// Bytes that the volume has.
    pub(super) fn capacity(&self) -> Option<i64> {
        i64::try_from(quantity::value(self.size.as_ref()?)?).ok()
    }

    /// Name of the PersistentVolume, or of the pod's volume.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A volume in the Pod itself.
    #[must_use]
    pub fn inline(pod: &Pod, volume: &str, source: &CSIVolumeSource) -> Self {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let secret = source.node_publish_secret_ref.as_ref().map(|s| SecretReference {
            name: Some(s.name.clone()),
            namespace: pod.metadata.namespace.clone(),
        });
        Self {
            name: volume.to_owned(),
            driver: source.driver.clone(),
            handle: format!("csi-{}", places::hash(&format!("{uid}{volume}"))),
            fs_type: source.fs_type.clone().unwrap_or_default(),
            options: Vec::new(),
            modes: vec!["ReadWriteOnce".to_owned()],
            attributes: source.volume_attributes.clone().unwrap_or_default(),
            read_only: source.read_only == Some(true),
            stage_secret: None,
            publish_secret: secret,
            inline: true,
            block: false,
            claim: None,
            size: None,
            expand_secret: None,
        }
    }

    /// As the driver is told of it.
    pub(super) fn volume(&self, abilities: Capabilities, group: Option<u32>, publish_context: Map) -> Volume {
        Volume {
            handle: self.handle.clone(),
            block: self.block,
            fs_type: self.fs_type.clone(),
            options: self.options.clone(),
            group: group.filter(|_| abilities.groups && !self.block),
            mode: AccessMode::of(&self.modes, abilities.single_writers),
            publish_context,
            context: self.attributes.clone(),
        }
    }

    fn lifecycle(&self) -> &'static str {
        if self.inline { "Ephemeral" } else { "Persistent" }
    }
}

/// The bytes of a list of resources.
pub(super) fn capacity(list: Option<&BTreeMap<String, Quantity>>) -> Option<i64> {
    let bytes = quantity::value(list?.get("storage")?)?;
    i64::try_from(bytes).ok()
}

/// A step that failed: upstream's name of it, and why.
pub type StepError = (&'static str, String);

const SET_UP: &str = "MountVolume.SetUp failed";
const MAP: &str = "MapVolume.SetUpDevice failed";
const STAGE: &str = "MountVolume.MountDevice failed";
const ATTACH: &str = "MountVolume.WaitForAttach failed";

fn set_up_error(why: impl std::fmt::Display) -> StepError {
    (SET_UP, why.to_string())
}

impl Csi {
    pub(super) async fn object(&self, driver: &str) -> Result<Option<CSIDriver>, String> {
        let api: Api<CSIDriver> = Api::all(self.inner.client.clone());
        api.get_opt(driver).await.map_err(|e| e.to_string())
    }

    pub(super) async fn secrets(&self, reference: Option<&SecretReference>) -> Result<Map, String> {
        let Some(reference) = reference else { return Ok(Map::new()) };
        let text = |s: &Option<String>| s.clone().unwrap_or_default();
        let (namespace, name) = (text(&reference.namespace), text(&reference.name));
        let api: Api<Secret> = Api::namespaced(self.inner.client.clone(), &namespace);
        let secret = api.get(&name).await;
        let secret = secret.map_err(|e| format!("failed to get secret {namespace}/{name}: {e}"))?;
        let data = secret.data.into_iter().flatten();
        Ok(data.map(|(key, value)| (key, String::from_utf8_lossy(&value.0).into_owned())).collect())
    }

    /// Has a volume published for a pod, in whose directory it then is. `group` is the pod's; the second answer says whether
    /// the volume is to be given to it here. `changed` is notified when the driver is to be asked again.
    ///
    /// # Errors
    /// The step that failed.
    pub async fn set_up(
        &self,
        pod: &Pod,
        pod_dir: &Path,
        wanted: &Wanted,
        group: Option<u32>,
        changed: &Arc<Notify>,
    ) -> Result<(PathBuf, bool), StepError> {
        let _turn = self.turn(&wanted.handle).await;
        let driver = self.driver(&wanted.driver).map_err(|why| {
            let text = format!("kubernetes.io/csi: mounter.SetUpAt failed to get CSI client: {why}");
            set_up_error(text)
        })?;
        let object = self.object(&wanted.driver).await.map_err(set_up_error)?;
        self.check_lifecycle(wanted, object.as_ref())?;
        let place = Place::new(
            &self.inner.data_dir,
            pod_dir,
            wanted.block,
            &wanted.driver,
            &wanted.handle,
            &wanted.name,
        );
        let mut data = Data {
            block: wanted.block,
            driver_name: wanted.driver.clone(),
            volume_handle: wanted.handle.clone(),
            spec_vol_id: wanted.name.clone(),
            volume_lifecycle_mode: wanted.lifecycle().to_owned(),
            attached: false,
        };
        let target = place.target.clone();
        let again = object.as_ref().is_some_and(|o| o.spec.requires_republish == Some(true));
        if !again && place.is_published() {
            return Ok((target, false));
        }
        let mut publish_context = Map::new();
        if !wanted.inline && attachment::is_required(object.as_ref()) {
            data.attached = true;
            self.note_use(&wanted.driver, &wanted.handle);
            publish_context = self.attachment(wanted).await.map_err(|why| (ATTACH, why))?;
        }
        let abilities = driver.capabilities().await.map_err(set_up_error)?;
        let spec = object.as_ref().map(|o| &o.spec);
        let mut volume = wanted.volume(abilities, group, publish_context);
        let staging = self.stage(&driver, wanted, &volume, abilities, (&place, &data)).await?;
        if spec.is_some_and(|s| s.pod_info_on_mount == Some(true)) {
            volume.context.extend(pod_info(pod, wanted.inline));
        }
        let mut secrets = self.secrets(wanted.publish_secret.as_ref()).await.map_err(set_up_error)?;
        if let Some(tokens) =
            self.service_tokens(pod, object.as_ref(), changed).await.map_err(set_up_error)?
        {
            let key = "csi.storage.k8s.io/serviceAccount.tokens".to_owned();
            match spec.and_then(|s| s.service_account_token_in_secrets) {
                Some(true) => secrets.insert(key, tokens),
                _ => volume.context.insert(key, tokens),
            };
        }
        place
            .note(&data)
            .map_err(|e| set_up_error(format!("cannot write below {}: {e}", place.dir.display())))?;
        let staged = staging.as_deref();
        let published = driver.publish(&volume, staged, &target, wanted.read_only, &secrets).await;
        published.map_err(|e| (if wanted.block { MAP } else { SET_UP }, e.to_string()))?;
        if again {
            let changed = Arc::downgrade(changed);
            tokio::spawn(async move {
                tokio::time::sleep(REPUBLISH).await;
                if let Some(changed) = changed.upgrade() {
                    changed.notify_one();
                }
            });
        }
        let policy = spec.and_then(|s| s.fs_group_policy.as_deref()).unwrap_or("ReadWriteOnceWithFSType");
        let give = match policy {
            _ if abilities.groups || wanted.read_only || wanted.block => false,
            "File" => true,
            "None" => false,
            _ => !wanted.fs_type.is_empty() && wanted.modes == ["ReadWriteOnce"],
        };
        Ok((target, give))
    }

    fn check_lifecycle(&self, wanted: &Wanted, object: Option<&CSIDriver>) -> Result<(), StepError> {
        let modes = object.and_then(|o| o.spec.volume_lifecycle_modes.clone());
        let modes = modes.unwrap_or_else(|| vec!["Persistent".to_owned()]);
        if modes.iter().any(|mode| mode == wanted.lifecycle()) {
            return Ok(());
        }
        Err(set_up_error(format!(
            "kubernetes.io/csi: mounter.SetUpAt failed to check volume lifecycle mode: volume mode {:?} not supported by \
             driver {} (only supports {modes:?})",
            wanted.lifecycle(),
            wanted.driver
        )))
    }

    /// What the attacher left for the node, once the volume is attached.
    async fn attachment(&self, wanted: &Wanted) -> Result<Map, String> {
        let sum = |bytes: &[u8]| Sha256::digest(bytes).to_vec();
        let name = attachment::name(&wanted.handle, &wanted.driver, &self.inner.node_name, sum);
        let api: Api<VolumeAttachment> = Api::all(self.inner.client.clone());
        let found = api.get(&name).await.map_err(|e| {
            let why = crate::pod::volumes::claims::said(&e);
            format!("volume {} has GET error for volume attachment {name}: {why}", wanted.handle)
        })?;
        if found.metadata.deletion_timestamp.is_some() {
            return Err("volume attachment is being deleted".to_owned());
        }
        let status = found.status.unwrap_or_default();
        match (status.attached, status.attach_error.and_then(|e| e.message)) {
            (true, _) => Ok(status.attachment_metadata.unwrap_or_default()),
            (false, Some(why)) => Err(why),
            (false, None) => Err(format!("volume attachment {name} is not attached yet")),
        }
    }

    async fn stage(
        &self,
        driver: &Driver,
        wanted: &Wanted,
        volume: &Volume,
        abilities: Capabilities,
        (place, data): (&Place, &Data),
    ) -> Result<Option<PathBuf>, StepError> {
        if wanted.inline || !abilities.stages {
            return Ok(None);
        }
        let at = place.staging.clone();
        place.note_staged(data).map_err(|e| (STAGE, format!("cannot write below {}: {e}", at.display())))?;
        let secrets = self.secrets(wanted.stage_secret.as_ref()).await.map_err(|why| (STAGE, why))?;
        driver.stage(volume, &at, &secrets).await.map_err(|e| (STAGE, e.to_string()))?;
        Ok(Some(at))
    }

    /// Tokens of the pod's service account that a driver asks for, as JSON by audience.
    async fn service_tokens(
        &self,
        pod: &Pod,
        object: Option<&CSIDriver>,
        changed: &Arc<Notify>,
    ) -> Result<Option<String>, String> {
        let asked = object.and_then(|o| o.spec.token_requests.as_ref()).filter(|list| !list.is_empty());
        let Some(asked) = asked else { return Ok(None) };
        let mut tokens = BTreeMap::new();
        for request in asked {
            let projection = k8s_openapi::api::core::v1::ServiceAccountTokenProjection {
                audience: Some(request.audience.clone()),
                expiration_seconds: request.expiration_seconds,
                path: String::new(),
            };
            let (token, ends) = self.inner.tokens.get_with_end(pod, &projection, changed).await?;
            tokens.insert(
                request.audience.clone(),
                serde_json::json!({"token": token, "expirationTimestamp": ends.to_string()}),
            );
        }
        serde_json::to_string(&tokens).map(Some).map_err(|e| e.to_string())
    }

    fn note_use(&self, driver: &str, handle: &str) {
        let name = attachment::unique_name(driver, handle);
        self.inner.in_use.send_if_modified(|names| names.insert(name));
    }

    /// Has all volumes of a pod unpublished, and unstaged those that no other pod has. Every step may have been done before.
    ///
    /// # Errors
    /// A driver refused, or is not there.
    pub async fn tear_down(&self, pod_dir: &Path) -> Result<(), String> {
        for (dir, block) in places::of_pod(pod_dir) {
            let failed = |e: io::Error| format!("cannot remove {}: {e}", dir.display());
            let Some(data) = places::read(&dir) else {
                // Nothing was published without a record.
                places::remove(&dir, &dir.join("mount")).map_err(failed)?;
                continue;
            };
            let place = Place::of(&self.inner.data_dir, pod_dir, block, &data);
            let _turn = self.turn(&data.volume_handle).await;
            let step = if block { "UnmapVolume.UnmapPodDevice" } else { "UnmountVolume.TearDown" };
            let refused = |why: String| format!("{step} failed for volume {:?} : {why}", data.spec_vol_id);
            let driver = self.driver(&data.driver_name).map_err(refused)?;
            let unpublished = gone(driver.unpublish(&data.volume_handle, &place.target).await);
            unpublished.map_err(|e| refused(e.to_string()))?;
            places::remove(&dir, &place.target).map_err(failed)?;
            if data.volume_lifecycle_mode != "Ephemeral" && !self.is_published(&data.volume_handle) {
                self.unstage(&driver, &data).await?;
            }
        }
        places::remove_empty(pod_dir).map_err(|e| format!("cannot remove below {}: {e}", pod_dir.display()))
    }

    async fn unstage(&self, driver: &Driver, data: &Data) -> Result<(), String> {
        let place = Place::of(&self.inner.data_dir, Path::new(""), data.block, data);
        if place.is_staged() {
            let step = if data.block { "UnmapDevice" } else { "UnmountDevice" };
            let failed = |why: String| format!("{step} failed for volume {:?} : {why}", data.spec_vol_id);
            let unstaged = gone(driver.unstage(&data.volume_handle, &place.staging).await);
            unstaged.map_err(|e| failed(e.to_string()))?;
            place.forget_staged().map_err(|e| failed(e.to_string()))?;
        }
        let name = attachment::unique_name(&data.driver_name, &data.volume_handle);
        self.inner.in_use.send_if_modified(|names| names.remove(&name));
        Ok(())
    }

    /// Volumes that are published for pods of this node.
    fn published(&self) -> Vec<Data> {
        let pods = fs::read_dir(self.inner.data_dir.join("pods")).into_iter().flatten().flatten();
        pods.flat_map(|pod| places::of_pod(&pod.path())).filter_map(|(dir, _)| places::read(&dir)).collect()
    }

    fn is_published(&self, handle: &str) -> bool {
        self.published().iter().any(|data| data.volume_handle == handle)
    }

    /// Volumes that pods of an earlier agent use are in use.
    pub fn find_used(&self) {
        for data in self.published().iter().filter(|d| d.attached) {
            self.note_use(&data.driver_name, &data.volume_handle);
        }
    }

    /// Unstages what an agent that was killed left staged for nobody.
    pub(super) async fn sweep_staged(&self, driver: &Driver) {
        for data in places::staged(&self.inner.data_dir, &driver.name) {
            let _turn = self.turn(&data.volume_handle).await;
            if self.is_published(&data.volume_handle) {
                continue;
            }
            if let Err(error) = self.unstage(driver, &data).await {
                tracing::warn!(driver = driver.name, error, "a volume that nobody uses stays staged");
            }
        }
    }
}

/// A driver that does not know the volume (any more) has done what is asked.
fn gone(result: Result<(), Failure>) -> Result<(), Failure> {
    match result {
        Err(failure) if failure.is_not_found() => Ok(()),
        other => other,
    }
}

fn pod_info(pod: &Pod, inline: bool) -> Map {
    let text = |s: &Option<String>| s.clone().unwrap_or_default();
    let account = pod.spec.as_ref().and_then(|s| s.service_account_name.clone());
    [
        ("csi.storage.k8s.io/pod.name", text(&pod.metadata.name)),
        ("csi.storage.k8s.io/pod.namespace", text(&pod.metadata.namespace)),
        ("csi.storage.k8s.io/pod.uid", text(&pod.metadata.uid)),
        ("csi.storage.k8s.io/serviceAccount.name", account.unwrap_or_default()),
        ("csi.storage.k8s.io/ephemeral", inline.to_string()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}
