//! Volumes of drivers: staged once a node, published for each pod, and both undone.
//!
//! ```text
//! pods/<uid>/volumes/kubernetes.io~csi/<name>/vol_data.json   what was published, from before it was until after
//!                                            /mount           where the driver mounts it
//! plugins/kubernetes.io/csi/<driver>/<hash>/vol_data.json     what was staged
//!                                          /globalmount       where
//! ```

use super::Csi;
use super::client::{AccessMode, Capabilities, Driver, Map, Volume};
use super::grpc::Failure;
use crate::pod::volumes::mountinfo;
use k8s_openapi::api::core::v1::{CSIVolumeSource, PersistentVolume, Pod, Secret, SecretReference};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use kelp_model::volume::attachment;
use kube::Api;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// Directory of published volumes below a pod's volumes, upstream's.
const PLUGIN: &str = "kubernetes.io~csi";
const DATA: &str = "vol_data.json";
/// How often a driver that wants it is asked to publish again.
const REPUBLISH: Duration = Duration::from_secs(60);

/// What is on the disk about a volume, in upstream's form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    driver_name: String,
    volume_handle: String,
    #[serde(default, rename = "specVolID", skip_serializing_if = "String::is_empty")]
    spec_vol_id: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    volume_lifecycle_mode: String,
    /// The volume had to be attached.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    attached: bool,
}

/// A volume of a pod that a driver serves.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// Name of the PersistentVolume, or of the pod's volume.
    name: String,
    driver: String,
    handle: String,
    fs_type: String,
    options: Vec<String>,
    modes: Vec<String>,
    attributes: Map,
    read_only: bool,
    stage_secret: Option<SecretReference>,
    publish_secret: Option<SecretReference>,
    /// It is the pod's alone and is made by publishing it.
    inline: bool,
}

fn hash(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
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
        })
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
            handle: format!("csi-{}", hash(&format!("{uid}{volume}"))),
            fs_type: source.fs_type.clone().unwrap_or_default(),
            options: Vec::new(),
            modes: vec!["ReadWriteOnce".to_owned()],
            attributes: source.volume_attributes.clone().unwrap_or_default(),
            read_only: source.read_only == Some(true),
            stage_secret: None,
            publish_secret: secret,
            inline: true,
        }
    }

    fn lifecycle(&self) -> &'static str {
        if self.inline { "Ephemeral" } else { "Persistent" }
    }
}

/// A step that failed: upstream's name of it, and why.
pub type StepError = (&'static str, String);

const SET_UP: &str = "MountVolume.SetUp failed";
const STAGE: &str = "MountVolume.MountDevice failed";
const ATTACH: &str = "MountVolume.WaitForAttach failed";

fn set_up_error(why: impl std::fmt::Display) -> StepError {
    (SET_UP, why.to_string())
}

fn write(path: &Path, data: &Data) -> io::Result<()> {
    use std::io::Write;
    let temporary = path.with_extension("tmp");
    let mut file = fs::File::create(&temporary)?;
    file.write_all(&serde_json::to_vec(data)?)?;
    file.sync_data()?;
    fs::rename(temporary, path)
}

fn read(path: &Path) -> Option<Data> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Removes a volume's directory with its record last; what is mounted there is not touched.
fn remove(dir: &Path, mount: &str) -> io::Result<()> {
    let absent = |result: io::Result<()>| match result {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    };
    let at = dir.join(mount);
    if !mountinfo::below(&at)?.is_empty() {
        let text = format!("{} is still mounted", at.display());
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
    }
    // Never recursively: what the driver left there is not ours.
    match fs::symlink_metadata(&at) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir(&at)?,
        Ok(_) => fs::remove_file(&at)?,
        Err(_) => {}
    }
    absent(fs::remove_file(dir.join(DATA)))?;
    absent(fs::remove_file(dir.join(DATA).with_extension("tmp")))?;
    absent(fs::remove_dir(dir))
}

impl Csi {
    fn staging(&self, driver: &str, handle: &str) -> PathBuf {
        self.inner.data_dir.join("plugins/kubernetes.io/csi").join(driver).join(hash(handle))
    }

    async fn object(&self, driver: &str) -> Result<Option<CSIDriver>, String> {
        let api: Api<CSIDriver> = Api::all(self.inner.client.clone());
        api.get_opt(driver).await.map_err(|e| e.to_string())
    }

    async fn secrets(&self, reference: Option<&SecretReference>) -> Result<Map, String> {
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
        let mut data = Data {
            driver_name: wanted.driver.clone(),
            volume_handle: wanted.handle.clone(),
            spec_vol_id: wanted.name.clone(),
            volume_lifecycle_mode: wanted.lifecycle().to_owned(),
            attached: false,
        };
        let dir = pod_dir.join("volumes").join(PLUGIN).join(&wanted.name);
        let target = dir.join("mount");
        let again = object.as_ref().is_some_and(|o| o.spec.requires_republish == Some(true));
        if !again && dir.join(DATA).exists() && mountinfo::is_mounted(&target) {
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
        let mut volume = Volume {
            handle: wanted.handle.clone(),
            fs_type: wanted.fs_type.clone(),
            options: wanted.options.clone(),
            group: group.filter(|_| abilities.groups),
            mode: AccessMode::of(&wanted.modes, abilities.single_writers),
            publish_context,
            context: wanted.attributes.clone(),
        };
        let staging = self.stage(&driver, wanted, &volume, abilities, &data).await?;
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
        fs::create_dir_all(&dir)
            .and_then(|()| write(&dir.join(DATA), &data))
            .map_err(|e| set_up_error(format!("cannot write below {}: {e}", dir.display())))?;
        let staged = staging.as_deref();
        driver.publish(&volume, staged, &target, wanted.read_only, &secrets).await.map_err(set_up_error)?;
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
            _ if abilities.groups || wanted.read_only => false,
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
        data: &Data,
    ) -> Result<Option<PathBuf>, StepError> {
        if wanted.inline || !abilities.stages {
            return Ok(None);
        }
        let dir = self.staging(&wanted.driver, &wanted.handle);
        let at = dir.join("globalmount");
        fs::create_dir_all(&at)
            .and_then(|()| write(&dir.join(DATA), data))
            .map_err(|e| (STAGE, format!("cannot write below {}: {e}", dir.display())))?;
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
        let all = pod_dir.join("volumes").join(PLUGIN);
        for entry in fs::read_dir(&all).into_iter().flatten().flatten() {
            let dir = entry.path();
            let Some(data) = read(&dir.join(DATA)) else {
                // Nothing was published without a record.
                remove(&dir, "mount").map_err(|e| format!("cannot remove {}: {e}", dir.display()))?;
                continue;
            };
            let _turn = self.turn(&data.volume_handle).await;
            let driver = self.driver(&data.driver_name).map_err(|why| {
                format!("UnmountVolume.TearDown failed for volume {:?} : {why}", data.spec_vol_id)
            })?;
            let target = dir.join("mount");
            gone(driver.unpublish(&data.volume_handle, &target).await).map_err(|e| {
                format!("UnmountVolume.TearDown failed for volume {:?} : {e}", data.spec_vol_id)
            })?;
            remove(&dir, "mount").map_err(|e| format!("cannot remove {}: {e}", dir.display()))?;
            if data.volume_lifecycle_mode != "Ephemeral" && !self.is_published(&data.volume_handle) {
                self.unstage(&driver, &data).await?;
            }
        }
        match fs::remove_dir(&all) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(format!("cannot remove {}: {e}", all.display()))
            }
            _ => Ok(()),
        }
    }

    async fn unstage(&self, driver: &Driver, data: &Data) -> Result<(), String> {
        let dir = self.staging(&data.driver_name, &data.volume_handle);
        if dir.join(DATA).exists() {
            let at = dir.join("globalmount");
            let failed =
                |why: String| format!("UnmountDevice failed for volume {:?} : {why}", data.spec_vol_id);
            gone(driver.unstage(&data.volume_handle, &at).await).map_err(|e| failed(e.to_string()))?;
            remove(&dir, "globalmount").map_err(|e| failed(e.to_string()))?;
        }
        let name = attachment::unique_name(&data.driver_name, &data.volume_handle);
        self.inner.in_use.send_if_modified(|names| names.remove(&name));
        Ok(())
    }

    /// Volumes that are published for pods of this node.
    fn published(&self) -> Vec<Data> {
        let pods = fs::read_dir(self.inner.data_dir.join("pods")).into_iter().flatten().flatten();
        let volumes = pods.flat_map(|pod| {
            let dir = pod.path().join("volumes").join(PLUGIN);
            fs::read_dir(dir).into_iter().flatten().flatten().map(|v| v.path().join(DATA)).collect::<Vec<_>>()
        });
        volumes.filter_map(|path| read(&path)).collect()
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
        let all = self.inner.data_dir.join("plugins/kubernetes.io/csi").join(&driver.name);
        for entry in fs::read_dir(all).into_iter().flatten().flatten() {
            let Some(data) = read(&entry.path().join(DATA)) else { continue };
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
        Err(failure) if failure.code == Failure::NOT_FOUND => Ok(()),
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
