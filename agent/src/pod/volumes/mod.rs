//! Volumes of a pod: emptyDir, hostPath, configMap, secret, downwardAPI, projected (with service account tokens), claims
//! (of hostPath and local volumes and of CSI drivers), CSI drivers in the Pod itself, and images.
//!
//! A volume is a directory (or a file, for hostPath, or a device) on the host that containers bind-mount. Setting up is
//! idempotent and is repeated when a referenced object changes. A volume that is somebody's data is used where it is: nothing
//! of it is ever below the pod's directory, which is removed with all in it.

pub mod atomic;
pub mod claims;
pub mod image;
pub mod local;
pub mod mountinfo;
mod node;
mod owner;
mod plugin;
mod project;

use crate::csi::volumes::Wanted;
use crate::pod::objects::{Data, Key, Kind, Objects};
use atomic::Files;
use claims::{Claimed, Known};
use k8s_openapi::api::core::v1::{Pod, Volume, VolumeMount};
use kelp_model::pod::quantity;
use kelp_model::pod::resources::pod_limits;
use nix::mount::{MsFlags, mount};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::Notify;

pub use image::ImageVolumes;
pub use node::NodeVolumes;
pub use plugin::{operated, plugin};
pub use project::Downward;

/// Where each volume of a pod is on the host.
pub type Paths = BTreeMap<String, PathBuf>;

/// Containers must not write to it: its contents are the agent's, an image's, or the pod only reads them.
pub fn is_read_only(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
        || volume.image.is_some()
        || volume.csi.as_ref().is_some_and(|c| c.read_only == Some(true))
        || volume.persistent_volume_claim.as_ref().is_some_and(|c| c.read_only == Some(true))
}

/// A volume that cannot be set up, in upstream's words.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct VolumeError(String);

impl VolumeError {
    /// A step for a volume failed.
    fn of(step: &str, volume: &str, why: &str) -> Self {
        Self(format!("{step} for volume {volume:?} : {why}"))
    }

    fn set_up(volume: &str, why: &str) -> Self {
        Self::of("MountVolume.SetUp failed", volume, why)
    }

    /// Volumes of which it is not known yet what they are, and why.
    fn unknown(failed: &[(String, String)]) -> Self {
        let mut names: Vec<&str> = failed.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        let names = names.join(" ");
        let why: Vec<&str> = failed.iter().map(|(_, why)| why.as_str()).collect();
        Self(format!(
            "Unable to attach or mount volumes: unmounted volumes=[{names}], unattached volumes=[], failed to process \
             volumes=[{names}]: {}",
            why.join("; ")
        ))
    }
}

/// The ConfigMaps and Secrets that a pod refers to, in volumes and environment.
pub fn references(pod: &Pod) -> BTreeSet<Key> {
    let mut keys = BTreeSet::new();
    let Some(spec) = &pod.spec else { return keys };
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let mut add = |kind: Kind, name: &str| {
        if !name.is_empty() {
            keys.insert(Key { kind, namespace: namespace.clone(), name: name.to_owned() });
        }
    };
    for volume in spec.volumes.iter().flatten() {
        if let Some(source) = &volume.config_map {
            add(Kind::ConfigMap, &source.name);
        }
        if let Some(source) = &volume.secret {
            add(Kind::Secret, source.secret_name.as_deref().unwrap_or_default());
        }
        for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            if let Some(map) = &source.config_map {
                add(Kind::ConfigMap, &map.name);
            }
            if let Some(secret) = &source.secret {
                add(Kind::Secret, &secret.name);
            }
        }
    }
    for (_, container) in kelp_model::pod::spec::containers(spec) {
        for from in container.env_from.iter().flatten() {
            if let Some(map) = &from.config_map_ref {
                add(Kind::ConfigMap, &map.name);
            }
            if let Some(secret) = &from.secret_ref {
                add(Kind::Secret, &secret.name);
            }
        }
        for source in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
            if let Some(map) = &source.config_map_key_ref {
                add(Kind::ConfigMap, &map.name);
            }
            if let Some(secret) = &source.secret_key_ref {
                add(Kind::Secret, &secret.name);
            }
        }
    }
    keys
}

/// What a volume is made of, gathered before anything is written.
enum Source {
    Empty {
        memory: bool,
        limit: Option<i64>,
    },
    Host {
        path: PathBuf,
        kind: String,
    },
    /// A device with a file system, and whether the pod's group gets what is on it.
    Device {
        device: local::Device,
        give: bool,
    },
    /// A directory that holds a volume, and whether the pod's group gets it.
    Local {
        path: PathBuf,
        give: bool,
    },
    /// Files, in memory or on disk.
    Files(Files, bool),
}

/// Sets up all volumes of a pod below `dir` but its images, and returns their paths. `changed` is notified when one is to be
/// set up again because of its age.
///
/// # Errors
/// The first volume that cannot be set up.
pub async fn set_up(
    pod: &Pod,
    dir: &Path,
    objects: &Objects,
    node: &NodeVolumes,
    downward: &Downward<'_>,
    changed: &Arc<Notify>,
) -> Result<Paths, VolumeError> {
    let mut paths = Paths::new();
    let Some(spec) = &pod.spec else { return Ok(paths) };
    let security = spec.security_context.as_ref();
    let group = Group {
        id: security.and_then(|s| s.fs_group).and_then(|g| u32::try_from(g).ok()),
        // As upstream: what the pod may use, else the whole node.
        most: pod_limits(pod).memory.filter(|m| *m > 0).unwrap_or(i64::MAX).min(downward.node_memory),
        root_decides: security.and_then(|s| s.fs_group_change_policy.as_deref()) == Some("OnRootMismatch"),
    };
    let known = find_claims(pod, dir, node).await?;
    for volume in spec.volumes.iter().flatten().filter(|v| v.image.is_none()) {
        let begin = Instant::now();
        let claimed = known.get(&volume.name);
        let made = set_up_one(pod, dir, objects, node, downward, changed, group, (volume, claimed)).await;
        operated(plugin(volume, claimed), "volume_mount", begin, made.is_ok());
        paths.insert(volume.name.clone(), made?);
    }
    Ok(paths)
}

/// Sets up one volume, with what its claim is bound to.
#[expect(clippy::too_many_arguments, reason = "it is the body of a loop over them")]
async fn set_up_one(
    pod: &Pod,
    dir: &Path,
    objects: &Objects,
    node: &NodeVolumes,
    downward: &Downward<'_>,
    changed: &Arc<Notify>,
    group: Group,
    (volume, claimed): (&Volume, Option<&Claimed>),
) -> Result<PathBuf, VolumeError> {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    // A volume behind a claim goes by its own name.
    let name = claimed.map_or(volume.name.as_str(), Claimed::name);
    if let Some(claimed) = claimed {
        node.take(claimed, uid).map_err(|why| VolumeError::set_up(name, &why))?;
        check_reachable(claimed, node)?;
    }
    let served = match (claimed, &volume.csi) {
        (Some(claimed), _) => Wanted::persistent(&claimed.volume, claimed.read_only),
        (None, Some(source)) => Some(Wanted::inline(pod, &volume.name, source)),
        (None, None) => None,
    };
    if let Some(wanted) = served {
        return by_driver(pod, dir, node, &wanted, name, group, changed).await;
    }
    let source = match claimed {
        Some(claimed) => persistent(claimed, dir)?,
        None => gather(pod, volume, objects, downward, changed)
            .await
            .map_err(|why| VolumeError::set_up(name, &why))?,
    };
    let (own, dir) = (volume.name.clone(), dir.to_owned());
    let made = tokio::task::spawn_blocking(move || make(&dir, &own, source, group)).await;
    let made = made.map_err(|e| e.to_string()).and_then(|made| made);
    made.map_err(|why| VolumeError::set_up(name, &why))
}

/// Which group a pod's volumes belong to, and how much memory they may take.
#[derive(Debug, Clone, Copy)]
struct Group {
    id: Option<u32>,
    /// Bytes that a volume in memory holds at most, whatever it asks for.
    most: i64,
    /// A volume whose root is the group's is taken to be so altogether.
    root_decides: bool,
}

/// What the pod's claims are bound to; what is new is noted in the pod's directory.
async fn find_claims(pod: &Pod, dir: &Path, node: &NodeVolumes) -> Result<Known, VolumeError> {
    let mut known = claims::load(dir);
    let (mut failed, mut fresh) = (Vec::new(), false);
    for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
        if known.contains_key(&volume.name) {
            continue;
        }
        match claims::find(node.client.as_ref(), pod, volume).await {
            Ok(None) => {}
            Ok(Some(claimed)) => {
                known.insert(volume.name.clone(), claimed);
                fresh = true;
            }
            Err(why) => failed.push((volume.name.clone(), why)),
        }
    }
    if fresh {
        claims::save(dir, &known)
            .map_err(|e| VolumeError(format!("cannot write below {}: {e}", dir.display())))?;
    }
    if failed.is_empty() { Ok(known) } else { Err(VolumeError::unknown(&failed)) }
}

/// Has a driver publish a volume.
async fn by_driver(
    pod: &Pod,
    dir: &Path,
    node: &NodeVolumes,
    wanted: &Wanted,
    name: &str,
    group: Group,
    changed: &Arc<Notify>,
) -> Result<PathBuf, VolumeError> {
    let Some(csi) = node.csi() else {
        return Err(VolumeError::set_up(name, "this node has no CSI drivers"));
    };
    let published = csi.set_up(pod, dir, wanted, group.id, changed).await;
    let (path, give) = published.map_err(|(step, why)| VolumeError::of(step, name, &why))?;
    if let (Some(id), true) = (group.id, give) {
        let at = path.clone();
        let given = tokio::task::spawn_blocking(move || owner::give(&at, id, group.root_decides)).await;
        given.map_err(|e| e.to_string()).and_then(|given| given.map_err(|e| e.to_string())).map_err(
            |why| VolumeError::set_up(name, &format!("applyFSGroup failed for vol {name}: {why}")),
        )?;
    }
    Ok(path)
}

fn check_reachable(claimed: &Claimed, node: &NodeVolumes) -> Result<(), VolumeError> {
    let present = node.node.borrow().clone();
    if present.is_some_and(|node| !claimed.is_reachable(&node)) {
        let step = "MountVolume.NodeAffinity check failed";
        return Err(VolumeError::of(step, claimed.name(), "no matching NodeSelectorTerms"));
    }
    Ok(())
}

/// How a volume behind a claim is had that no driver serves.
fn persistent(claimed: &Claimed, dir: &Path) -> Result<Source, VolumeError> {
    let name = claimed.name();
    let Some(spec) = &claimed.volume.spec else {
        return Err(VolumeError::set_up(name, "the volume has no spec"));
    };
    if let Some(host) = &spec.host_path {
        if spec.mount_options.as_ref().is_some_and(|o| !o.is_empty()) {
            let step = "MountVolume.MountOptionSupport check failed";
            return Err(VolumeError::of(step, name, "Mount options are not supported for this volume type"));
        }
        let kind = host.type_.clone().unwrap_or_default();
        return Ok(Source::Host { path: host.path.clone().into(), kind });
    }
    let Some(local) = &spec.local else {
        return Err(VolumeError::set_up(name, "this kind of volume is not supported"));
    };
    let path = PathBuf::from(&local.path);
    let found = fs::metadata(&path).map_err(|_| {
        let step = "MountVolume.NewMounter initialization failed";
        VolumeError::of(step, name, &format!("path {:?} does not exist", local.path))
    })?;
    match (claimed.is_block(), found.file_type().is_block_device(), found.is_dir()) {
        (true, true, _) => Ok(Source::Host { path, kind: "BlockDevice".into() }),
        (true, false, _) => {
            let why = format!("{} is not a block device", path.display());
            Err(VolumeError::of("MapVolume.MapPodDevice failed", name, &why))
        }
        (false, _, true) => Ok(Source::Local { path, give: !claimed.read_only }),
        (false, true, _) => match local::Device::of(dir, name, spec) {
            Some(device) => Ok(Source::Device { device, give: !claimed.read_only }),
            None => Err(VolumeError::of("MountVolume.MountDevice failed", name, "the device is gone")),
        },
        (false, ..) => {
            let why = format!("{} is neither a directory nor a block device", path.display());
            Err(VolumeError::set_up(name, &why))
        }
    }
}

async fn fetch(objects: &Objects, kind: Kind, pod: &Pod, name: &str, optional: bool) -> Result<Data, String> {
    let key =
        Key { kind, namespace: pod.metadata.namespace.clone().unwrap_or_default(), name: name.to_owned() };
    match objects.get(&key).await? {
        Some(data) => Ok((*data).clone()),
        None if optional => Ok(Data::new()),
        None => Err(match kind {
            Kind::ConfigMap => format!("configmap {name:?} not found"),
            Kind::Secret => format!("secret {name:?} not found"),
        }),
    }
}

async fn gather(
    pod: &Pod,
    volume: &Volume,
    objects: &Objects,
    downward: &Downward<'_>,
    changed: &Arc<Notify>,
) -> Result<Source, String> {
    if let Some(empty) = &volume.empty_dir {
        let limit = empty.size_limit.as_ref().and_then(quantity::value).filter(|v| *v > 0);
        return Ok(Source::Empty {
            memory: empty.medium.as_deref() == Some("Memory"),
            limit: limit.and_then(|v| i64::try_from(v).ok()),
        });
    }
    if let Some(host) = &volume.host_path {
        return Ok(Source::Host {
            path: host.path.clone().into(),
            kind: host.type_.clone().unwrap_or_default(),
        });
    }
    let mut files = Files::new();
    if let Some(map) = &volume.config_map {
        let optional = map.optional.unwrap_or(false);
        let data = fetch(objects, Kind::ConfigMap, pod, &map.name, optional).await?;
        project::keys(
            &mut files,
            "configmap",
            "config",
            &data,
            map.items.as_deref(),
            map.default_mode,
            optional,
        )?;
    } else if let Some(secret) = &volume.secret {
        let optional = secret.optional.unwrap_or(false);
        let name = secret.secret_name.as_deref().unwrap_or_default();
        let data = fetch(objects, Kind::Secret, pod, name, optional).await?;
        project::keys(
            &mut files,
            "secret",
            "secret",
            &data,
            secret.items.as_deref(),
            secret.default_mode,
            optional,
        )?;
    } else if let Some(api) = &volume.downward_api {
        project::downward(&mut files, downward, api.items.as_deref(), api.default_mode)?;
    } else if let Some(projected) = &volume.projected {
        let mode = projected.default_mode;
        for source in projected.sources.iter().flatten() {
            if let Some(map) = &source.config_map {
                let optional = map.optional.unwrap_or(false);
                let data = fetch(objects, Kind::ConfigMap, pod, &map.name, optional).await?;
                project::keys(
                    &mut files,
                    "configmap",
                    "config",
                    &data,
                    map.items.as_deref(),
                    mode,
                    optional,
                )?;
            }
            if let Some(secret) = &source.secret {
                let optional = secret.optional.unwrap_or(false);
                let data = fetch(objects, Kind::Secret, pod, &secret.name, optional).await?;
                project::keys(
                    &mut files,
                    "secret",
                    "secret",
                    &data,
                    secret.items.as_deref(),
                    mode,
                    optional,
                )?;
            }
            if let Some(api) = &source.downward_api {
                project::downward(&mut files, downward, api.items.as_deref(), mode)?;
            }
            if let Some(projection) = &source.service_account_token {
                let token = objects.tokens.get(pod, projection, changed).await?;
                project::token(&mut files, projection, token, mode, pod);
            }
        }
    } else {
        return Err("this kind of volume is not supported".into());
    }
    // Only a ConfigMap by itself is nothing that must stay off the disk.
    Ok(Source::Files(files, volume.config_map.is_none()))
}

fn make(dir: &Path, name: &str, source: Source, of: Group) -> Result<PathBuf, String> {
    let group = of.id;
    let own = dir.join("volumes").join(name);
    let io = |action: &str, path: &Path, e: io::Error| format!("cannot {action} {}: {e}", path.display());
    match source {
        Source::Host { path, kind } => {
            host_path(&path, &kind)?;
            Ok(path)
        }
        Source::Device { device, give } => {
            device.mount()?;
            make(dir, name, Source::Local { path: device.at, give }, of)
        }
        Source::Local { path, give } => {
            if let Some(group) = group.filter(|_| give) {
                owner::give(&path, group, of.root_decides)
                    .map_err(|e| io("give the pod's group what is in", &path, e))?;
            }
            Ok(path)
        }
        Source::Empty { memory, limit } => {
            let fresh = !own.exists();
            fs::create_dir_all(&own).map_err(|e| io("create", &own, e))?;
            if memory && !mountinfo::is_mounted(&own) {
                mount_memory(&own, limit.unwrap_or(i64::MAX).min(of.most))
                    .map_err(|e| io("mount a tmpfs at", &own, e))?;
            }
            if fresh || memory {
                let sticky = if memory { 0o1000 } else { 0 };
                let mode = sticky | if group.is_some() { 0o2777 } else { 0o777 };
                std::os::unix::fs::chown(&own, None, group)
                    .map_err(|e| io("change the group of", &own, e))?;
                fs::set_permissions(&own, fs::Permissions::from_mode(mode))
                    .map_err(|e| io("set the mode of", &own, e))?;
            }
            Ok(own)
        }
        Source::Files(files, memory) => {
            fs::create_dir_all(&own).map_err(|e| io("create", &own, e))?;
            // Secrets and tokens never touch a disk.
            if memory && !mountinfo::is_mounted(&own) {
                mount_memory(&own, of.most).map_err(|e| io("mount a tmpfs at", &own, e))?;
            }
            let sticky = if memory { 0o1000 } else { 0 };
            let mode = sticky | if group.is_some() { 0o2777 } else { 0o777 };
            std::os::unix::fs::chown(&own, None, group).map_err(|e| io("change the group of", &own, e))?;
            fs::set_permissions(&own, fs::Permissions::from_mode(mode))
                .map_err(|e| io("set the mode of", &own, e))?;
            atomic::publish(&own, &files, group).map_err(|e| e.to_string())?;
            Ok(own)
        }
    }
}

/// A tmpfs that is never swapped out where the kernel can promise that, of at most `limit` bytes.
fn mount_memory(at: &Path, limit: i64) -> io::Result<()> {
    let size = format!("size={limit},");
    for options in [format!("{size}mode=1777,noswap"), format!("{size}mode=1777")] {
        match mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())) {
            Err(nix::errno::Errno::EINVAL) => {} // noswap came with Linux 6.3
            other => return Ok(other?),
        }
    }
    Err(io::ErrorKind::InvalidInput.into())
}

fn host_path(path: &Path, kind: &str) -> Result<(), String> {
    let shown = path.display();
    let found = fs::metadata(path).ok();
    let is = |test: fn(&fs::Metadata) -> bool| found.as_ref().is_some_and(test);
    let check = |ok: bool, what: &str| {
        if ok { Ok(()) } else { Err(format!("hostPath type check failed: {shown} is not {what}")) }
    };
    match kind {
        "" if found.is_none() => {
            // Without a type the path need not exist; what is mounted then is a directory.
            fs::create_dir_all(path).map_err(|e| format!("cannot create {shown}: {e}"))
        }
        "DirectoryOrCreate" if found.is_none() => {
            let made = fs::create_dir_all(path)
                .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)));
            made.map_err(|e| format!("mkdir {shown}: {e}"))
        }
        "FileOrCreate" if found.is_none() => match fs::File::create_new(path) {
            Ok(_) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Err(format!("open {shown}: no such file or directory"))
            }
            Err(e) => Err(format!("open {shown}: {e}")),
        },
        "Directory" | "DirectoryOrCreate" => check(is(fs::Metadata::is_dir), "a directory"),
        "File" | "FileOrCreate" => check(is(fs::Metadata::is_file), "a file"),
        "Socket" => check(is(|m| m.file_type().is_socket()), "a socket file"),
        "CharDevice" => check(is(|m| m.file_type().is_char_device()), "a character device"),
        "BlockDevice" => check(is(|m| m.file_type().is_block_device()), "a block device"),
        _ => Ok(()),
    }
}

/// The host path to mount for a volume mount with a subPath: inside `volume`, whatever links are in it.
///
/// # Errors
/// The path leaves the volume or cannot be made; the text is for the container's status.
pub fn sub_path(volume: &Path, sub: &str, container: &str, mount: &VolumeMount) -> Result<PathBuf, String> {
    let refused =
        || format!("failed to prepare subPath for volumeMount {:?} of container {container:?}", mount.name);
    let relative = Path::new(sub);
    let inside = relative.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
    if !inside {
        return Err(refused());
    }
    let root = fs::canonicalize(volume).map_err(|_| refused())?;
    // What is made is as open as the volume itself.
    let mode = fs::metadata(&root).map_err(|_| refused())?.permissions().mode() & 0o777;
    let mut at = root.clone();
    for component in relative.components().filter(|c| matches!(c, Component::Normal(_))) {
        let next = at.join(component);
        if fs::symlink_metadata(&next).is_err() {
            fs::create_dir(&next)
                .and_then(|()| fs::set_permissions(&next, fs::Permissions::from_mode(mode)))
                .map_err(|_| refused())?;
        }
        at = fs::canonicalize(&next).map_err(|_| refused())?;
        if !at.starts_with(&root) {
            return Err(refused());
        }
    }
    Ok(at)
}

/// Unmounts and removes the volumes of a pod's directory; what lies elsewhere, and what was mounted there, is left alone.
///
/// # Errors
/// Something is still in use; try again.
pub fn tear_down_volumes(dir: &Path) -> io::Result<()> {
    local::release(dir)?;
    mountinfo::remove_unmounted(&dir.join("volumes"))?;
    match fs::remove_file(dir.join("claims.json")) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
