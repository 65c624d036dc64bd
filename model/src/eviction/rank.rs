//! Which pod has to go first.

use super::{Layout, Signal};
use crate::scheduling::PodInfo;
use k8s_openapi::api::core::v1::Pod;
use std::cmp::{Ordering, Reverse};
use std::sync::Arc;

/// What a container uses. Bytes and inodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerUse {
    /// Its name.
    pub name: String,
    /// Working set, bytes.
    pub memory: u64,
    /// What it has written to its root file system.
    pub rootfs: (u64, u64),
    /// Its logs.
    pub logs: (u64, u64),
}

/// What a pod uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodUse {
    /// Working set, bytes.
    pub memory: u64,
    /// Processes.
    pub processes: u64,
    /// Its containers.
    pub containers: Vec<ContainerUse>,
    /// Local volumes: bytes and inodes.
    pub volumes: (u64, u64),
}

/// A pod that may have to go.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The pod.
    pub pod: Arc<Pod>,
    /// What it uses; `None` when that cannot be told.
    pub usage: Option<PodUse>,
}

/// What counts of a pod's use of disks.
#[derive(Debug, Clone, Copy)]
struct Counted {
    rootfs: bool,
    logs_and_volumes: bool,
}

fn counted(signal: Signal, layout: Layout) -> Counted {
    let both = |rootfs, logs_and_volumes| Counted { rootfs, logs_and_volumes };
    let of_image = matches!(signal, Signal::ImageFsAvailable | Signal::ImageFsInodesFree);
    let of_node = matches!(signal, Signal::NodeFsAvailable | Signal::NodeFsInodesFree);
    match layout {
        Layout::Single => both(true, true),
        Layout::ImageFs if of_node => both(false, true),
        Layout::ImageFs => both(true, false),
        // Images are no pod's.
        Layout::SplitImageFs if of_image => both(false, false),
        Layout::SplitImageFs => both(true, true),
    }
}

fn disk(usage: &PodUse, counted: Counted, inodes: bool) -> i128 {
    let pick = |(bytes, files): (u64, u64)| i128::from(if inodes { files } else { bytes });
    let mut sum = 0;
    for container in &usage.containers {
        if counted.rootfs {
            sum += pick(container.rootfs);
        }
        if counted.logs_and_volumes {
            sum += pick(container.logs);
        }
    }
    if counted.logs_and_volumes {
        sum += pick(usage.volumes);
    }
    sum
}

/// What the order is made of: without a measure first, then above its request, then by priority, then by use.
#[derive(Debug, PartialEq, Eq)]
struct Key {
    is_unknown: bool,
    exceeds: bool,
    priority: i32,
    above: i128,
}

impl Key {
    /// Those that go first are less. A pod that is not measured goes before all that are, whatever its priority.
    fn compare(&self, other: &Self) -> Ordering {
        let key = |k: &Self| (Reverse(k.is_unknown), Reverse(k.exceeds), k.priority, Reverse(k.above));
        key(self).cmp(&key(other))
    }
}

fn key(candidate: &Candidate, signal: Signal, layout: Layout) -> Key {
    let info = PodInfo::from_api(&candidate.pod);
    let priority = candidate.pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0);
    // Process ids are ranked by priority first, and nobody requests them.
    let ranks_by_request = signal != Signal::PidAvailable;
    let Some(usage) = &candidate.usage else {
        return Key { is_unknown: ranks_by_request, exceeds: false, priority, above: i128::MAX };
    };
    let (memory, storage) = (i128::from(info.requests.memory), i128::from(info.requests.ephemeral_storage));
    let (used, requested, compared) = match signal.resource() {
        "memory" => (i128::from(usage.memory), memory, memory),
        "pids" => (i128::from(usage.processes), i128::MAX, 0),
        // Nobody requests inodes either; upstream takes the request of bytes off their number all the same.
        "inodes" => (disk(usage, counted(signal, layout), true), 0, storage),
        _ => (disk(usage, counted(signal, layout), false), storage, storage),
    };
    Key { is_unknown: false, exceeds: used > requested, priority, above: used - compared }
}

/// Orders the pods: those that go first come first.
pub fn rank(candidates: &mut [Candidate], signal: Signal, layout: Layout) {
    candidates.sort_by(|a, b| key(a, signal, layout).compare(&key(b, signal, layout)));
}
