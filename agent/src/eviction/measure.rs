//! What the node has left and what its pods use.

use crate::config::AgentConfig;
use crate::runtime::{ContainerState, Runtime};
use crate::server::PodIndex;
use crate::server::host::{self, disk_use};
use k8s_openapi::api::core::v1::Pod;
use kelp_model::eviction::{Candidate, ContainerUse, Layout, Observation, Observations, PodUse, Signal};
use kelp_model::pod::spec::is_terminal;
use kelp_model::quantity::{Format, Quantity};
use nix::sys::statvfs::statvfs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Looks at the host and its pods.
pub struct Measure<'a, R> {
    pub config: &'a AgentConfig,
    pub runtime: &'a R,
    pub images: &'a Path,
}

/// Whether images are on a file system of their own. What containers write is beside volumes and logs.
pub fn layout(data: &Path, images: &Path) -> Layout {
    let device = |path: &Path| path.metadata().ok().map(|m| m.dev());
    match (device(data), device(images)) {
        (Some(a), Some(b)) if a != b => Layout::SplitImageFs,
        _ => Layout::Single,
    }
}

fn quantity(amount: u64, format: Format) -> Quantity {
    Quantity::new(i64::try_from(amount).unwrap_or(i64::MAX), format)
}

fn observation(available: u64, capacity: u64, format: Format) -> Observation {
    Observation { available: quantity(available, format), capacity: quantity(capacity, format) }
}

/// Space and inodes of the file system of a path.
fn file_system(path: &Path, space: Signal, inodes: Signal, into: &mut Observations) {
    let Ok(stat) = statvfs(path) else { return };
    let size = |blocks: u64| blocks.saturating_mul(stat.fragment_size());
    into.insert(space, observation(size(stat.blocks_available()), size(stat.blocks()), Format::BinarySi));
    // Some file systems have no fixed number of them.
    if stat.files() > 0 {
        into.insert(inodes, observation(stat.files_free(), stat.files(), Format::DecimalSi));
    }
}

fn observe_host(data: &Path, images: &Path) -> Observations {
    let mut found = Observations::new();
    let node = host::usage();
    let available = node.memory_total.saturating_sub(node.working_set);
    found.insert(Signal::MemoryAvailable, observation(available, node.memory_total, Format::BinarySi));
    let (most, running) = node.pids;
    if most > 0 {
        found
            .insert(Signal::PidAvailable, observation(most.saturating_sub(running), most, Format::DecimalSi));
    }
    file_system(data, Signal::NodeFsAvailable, Signal::NodeFsInodesFree, &mut found);
    file_system(data, Signal::ContainerFsAvailable, Signal::ContainerFsInodesFree, &mut found);
    file_system(images, Signal::ImageFsAvailable, Signal::ImageFsInodesFree, &mut found);
    found
}

impl<R: Runtime> Measure<'_, R> {
    /// What is left.
    pub async fn observe(&self) -> Observations {
        let (data, images) = (self.config.data_dir.clone(), self.images.to_owned());
        let host = tokio::task::spawn_blocking(move || observe_host(&data, &images));
        let mut found = host.await.unwrap_or_default();
        if let Some(pods) = self.runtime.pods_usage().await
            && let Some(limit) = pods.memory_limit
        {
            let available = limit.saturating_sub(pods.working_set);
            found.insert(Signal::AllocatableMemoryAvailable, observation(available, limit, Format::BinarySi));
        }
        found
    }

    /// The pods that are not over, with what they use; of disks only when asked.
    pub async fn candidates(&self, pods: &PodIndex, disks: bool) -> Vec<Candidate> {
        let active: Vec<Arc<Pod>> = pods.read().values().filter(|p| !is_terminal(p)).cloned().collect();
        let mut found = Vec::new();
        for pod in active {
            let usage = self.pod(&pod, disks).await;
            found.push(Candidate { pod, usage });
        }
        found
    }

    async fn pod(&self, pod: &Pod, disks: bool) -> Option<PodUse> {
        let uid = pod.metadata.uid.as_deref()?;
        let used = self.runtime.usage(uid).await.ok().flatten()?;
        let sandbox = self.runtime.status(uid).await.ok().flatten()?;
        let running = |id: &str| {
            let own = sandbox.containers.iter().find(|c| c.id == id)?;
            matches!(own.state, ContainerState::Running { .. }).then(|| own.name.clone())
        };
        let mut containers = Vec::new();
        let mut places: Vec<(PathBuf, PathBuf)> = Vec::new();
        let logs = self.config.pod_logs(&sandbox.namespace, &sandbox.name, uid);
        for container in &used.containers {
            let Some(name) = running(&container.id) else { continue };
            places.push((container.writable.clone(), logs.join(&name)));
            containers.push(ContainerUse {
                name,
                memory: container.usage.working_set,
                ..ContainerUse::default()
            });
        }
        let mut usage = PodUse {
            memory: used.usage.working_set,
            processes: used.containers.iter().map(|c| c.usage.processes).sum(),
            containers,
            volumes: (0, 0),
        };
        if !disks {
            return Some(usage);
        }
        let volumes = self.config.pod_dir(uid).join("volumes");
        let local: Vec<PathBuf> = local_volumes(pod).map(|name| volumes.join(name)).collect();
        let measured = tokio::task::spawn_blocking(move || {
            let containers: Vec<_> =
                places.iter().map(|(written, logs)| (disk_use(written), disk_use(logs))).collect();
            let volumes: Vec<_> = local.iter().map(|dir| disk_use(dir)).collect();
            (containers, volumes)
        });
        let (of_containers, of_volumes) = measured.await.ok()?;
        for (container, (rootfs, logs)) in usage.containers.iter_mut().zip(of_containers) {
            container.rootfs = rootfs;
            container.logs = logs;
        }
        usage.volumes = of_volumes.into_iter().fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
        Some(usage)
    }
}

/// Volumes that take the node's disk: on disk, and the pod's own.
fn local_volumes(pod: &Pod) -> impl Iterator<Item = &str> {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    volumes
        .filter(|v| {
            let on_disk = |e: &k8s_openapi::api::core::v1::EmptyDirVolumeSource| {
                e.medium.as_deref().unwrap_or_default().is_empty()
            };
            v.config_map.is_some() || v.git_repo.is_some() || v.empty_dir.as_ref().is_some_and(on_disk)
        })
        .map(|v| v.name.as_str())
}
