//! Node-pressure eviction: what a node runs short of, when that is so, and which pods have to go, by upstream's rules.
//!
//! A [`Threshold`] speaks of a [`Signal`]; [`State::observe`] says which thresholds drive evictions now and which
//! conditions the node has; [`rank()`] orders the pods; [`message()`] is what an evicted pod is told.

mod message;
mod rank;
mod state;
#[cfg(test)]
mod tests;

pub use message::{Details, message};
pub use rank::{Candidate, ContainerUse, PodUse, rank};
pub use state::State;

use crate::duration::GoDuration;
use crate::pod::admission::Rejection;
use crate::pod::qos::{Qos, qos_class};
use crate::quantity::{Format, Quantity};
use crate::scheduling::{Effect, PodInfo, Taint};
use k8s_openapi::api::core::v1::Pod;
use std::collections::{BTreeMap, BTreeSet};

/// Something a node can run short of. The order is that in which shortages are dealt with: memory first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Signal {
    /// Memory of the node.
    MemoryAvailable,
    /// Memory that all pods together may use.
    AllocatableMemoryAvailable,
    /// Space of the file system of volumes and logs.
    NodeFsAvailable,
    /// Its inodes.
    NodeFsInodesFree,
    /// Space of the file system of images.
    ImageFsAvailable,
    /// Its inodes.
    ImageFsInodesFree,
    /// Space of the file system that containers write to.
    ContainerFsAvailable,
    /// Its inodes.
    ContainerFsInodesFree,
    /// Process ids.
    PidAvailable,
}

/// A condition of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Condition {
    /// Little disk is left.
    Disk,
    /// Little memory is left.
    Memory,
    /// Few process ids are left.
    Pids,
}

impl Condition {
    /// Type of the Node's condition.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Disk => "DiskPressure",
            Self::Memory => "MemoryPressure",
            Self::Pids => "PIDPressure",
        }
    }
}

const SIGNALS: [(Signal, &str); 9] = [
    (Signal::MemoryAvailable, "memory.available"),
    (Signal::AllocatableMemoryAvailable, "allocatableMemory.available"),
    (Signal::NodeFsAvailable, "nodefs.available"),
    (Signal::NodeFsInodesFree, "nodefs.inodesFree"),
    (Signal::ImageFsAvailable, "imagefs.available"),
    (Signal::ImageFsInodesFree, "imagefs.inodesFree"),
    (Signal::ContainerFsAvailable, "containerfs.available"),
    (Signal::ContainerFsInodesFree, "containerfs.inodesFree"),
    (Signal::PidAvailable, "pid.available"),
];

impl Signal {
    fn parse(text: &str) -> Result<Self, String> {
        let found = SIGNALS.iter().find(|(_, name)| *name == text);
        found.map(|(signal, _)| *signal).ok_or_else(|| format!("unsupported eviction signal {text}"))
    }

    /// Its name in configurations and metrics.
    pub fn name(self) -> &'static str {
        SIGNALS.iter().find(|(signal, _)| *signal == self).map_or("", |(_, name)| name)
    }

    /// The resource it is about, as messages call it.
    pub const fn resource(self) -> &'static str {
        match self {
            Self::MemoryAvailable | Self::AllocatableMemoryAvailable => "memory",
            Self::NodeFsAvailable | Self::ImageFsAvailable | Self::ContainerFsAvailable => {
                "ephemeral-storage"
            }
            Self::NodeFsInodesFree | Self::ImageFsInodesFree | Self::ContainerFsInodesFree => "inodes",
            Self::PidAvailable => "pids",
        }
    }

    /// The condition of a node that is short of it.
    pub const fn condition(self) -> Condition {
        match self {
            Self::MemoryAvailable | Self::AllocatableMemoryAvailable => Condition::Memory,
            Self::PidAvailable => Condition::Pids,
            _ => Condition::Disk,
        }
    }
}

/// An amount, or a part of what there is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Amount {
    /// So much.
    Quantity(Quantity),
    /// This part of the capacity, 0 to 1.
    Part(f32),
}

impl Amount {
    /// The amount of a capacity.
    pub fn of(self, capacity: &Quantity) -> Quantity {
        match self {
            Self::Quantity(quantity) => quantity,
            // Single precision made double: upstream's arithmetic.
            Self::Part(part) => {
                Quantity::new((capacity.value() as f64 * f64::from(part)) as i64, Format::BinarySi)
            }
        }
    }
}

/// Less than this is a shortage.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Threshold {
    /// Of what.
    pub signal: Signal,
    /// How much.
    pub value: Amount,
    /// How long it has to last; zero: a hard threshold.
    pub grace_period: GoDuration,
    /// How much more there has to be until the shortage is over.
    pub min_reclaim: Option<Amount>,
}

impl Threshold {
    /// Pods end at once.
    pub const fn is_hard(&self) -> bool {
        self.grace_period.is_zero()
    }
}

/// How much there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observation {
    /// Left.
    pub available: Quantity,
    /// In all.
    pub capacity: Quantity,
}

/// What was looked at.
pub type Observations = BTreeMap<Signal, Observation>;

/// Thresholds as they are configured: text by signal name.
#[derive(Debug, Clone, Copy)]
pub struct Config<'a> {
    /// `evictionHard`.
    pub hard: &'a BTreeMap<String, String>,
    /// `evictionSoft`.
    pub soft: &'a BTreeMap<String, String>,
    /// `evictionSoftGracePeriod`.
    pub soft_grace_period: &'a BTreeMap<String, String>,
    /// `evictionMinimumReclaim`.
    pub minimum_reclaim: &'a BTreeMap<String, String>,
}

/// Reads thresholds.
///
/// # Errors
/// One cannot be used, with upstream's text.
pub fn parse(config: &Config<'_>) -> Result<Vec<Threshold>, String> {
    let mut found = statements(config.hard)?;
    let mut grace = BTreeMap::new();
    for (name, text) in config.soft_grace_period {
        let signal = Signal::parse(name)?;
        let period: GoDuration = text.parse()?;
        if period.0 < 0 {
            return Err(format!("invalid eviction grace period specified: {text}, must be a positive value"));
        }
        grace.insert(signal, period);
    }
    for mut threshold in statements(config.soft)? {
        let name = threshold.signal.name();
        threshold.grace_period = *grace.get(&threshold.signal).ok_or_else(|| {
            format!("grace period must be specified for the soft eviction threshold {name}")
        })?;
        found.push(threshold);
    }
    for (name, text) in config.minimum_reclaim {
        let signal = Signal::parse(name)?;
        let amount = match percentage(text)? {
            Some(part) if part <= 0.0 => {
                return Err(format!("eviction percentage minimum reclaim {name} must be positive: {text}"));
            }
            Some(part) => Amount::Part(part),
            None => {
                let quantity = Quantity::parse(text).map_err(|e| e.to_string())?;
                if quantity.signum() < 0 {
                    return Err(format!("negative eviction minimum reclaim specified for {name}"));
                }
                Amount::Quantity(quantity)
            }
        };
        for threshold in found.iter_mut().filter(|t| t.signal == signal) {
            threshold.min_reclaim = Some(amount);
        }
    }
    Ok(found)
}

fn percentage(text: &str) -> Result<Option<f32>, String> {
    let Some(number) = text.strip_suffix('%') else { return Ok(None) };
    let number = number.trim_end_matches('%');
    let parsed: Result<f32, _> = number.parse();
    let value = parsed.map_err(|_| format!("strconv.ParseFloat: parsing {number:?}: invalid syntax"))?;
    Ok(Some(value / 100.0))
}

fn statements(list: &BTreeMap<String, String>) -> Result<Vec<Threshold>, String> {
    let mut found = Vec::new();
    for (name, text) in list {
        let signal = Signal::parse(name)?;
        let value = match percentage(text)? {
            // Such a threshold is none.
            Some(_) if text == "0%" || text == "100%" => continue,
            Some(part) if part < 0.0 => {
                return Err(format!("eviction percentage threshold {name} must be >= 0%: {text}"));
            }
            Some(part) if part > 1.0 => {
                return Err(format!("eviction percentage threshold {name} must be <= 100%: {text}"));
            }
            Some(part) => Amount::Part(part),
            None => {
                let quantity = Quantity::parse(text).map_err(|e| e.to_string())?;
                if quantity.signum() <= 0 {
                    return Err(format!("eviction threshold {name} must be positive: {quantity}"));
                }
                Amount::Quantity(quantity)
            }
        };
        found.push(Threshold { signal, value, grace_period: GoDuration::default(), min_reclaim: None });
    }
    Ok(found)
}

/// Where images and what containers write are, beside volumes and logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// All on one file system.
    Single,
    /// Images and containers' files on another one.
    ImageFs,
    /// Only images on another one.
    SplitImageFs,
}

/// Completes thresholds: containers' file system is that of the node or that of the images, whose thresholds count for
/// it; and pods' memory as a whole is watched by the hard threshold of the node's.
pub fn complete(thresholds: &[Threshold], layout: Layout, enforces_allocatable: bool) -> Vec<Threshold> {
    let derived =
        |t: &Threshold| matches!(t.signal, Signal::ContainerFsAvailable | Signal::ContainerFsInodesFree);
    let mut all: Vec<Threshold> = thresholds.iter().filter(|t| !derived(t)).copied().collect();
    let (space, inodes) = match layout {
        Layout::ImageFs => (Signal::ImageFsAvailable, Signal::ImageFsInodesFree),
        Layout::Single | Layout::SplitImageFs => (Signal::NodeFsAvailable, Signal::NodeFsInodesFree),
    };
    let mut more = Vec::new();
    for threshold in &all {
        let signal = match threshold.signal {
            signal if signal == space => Signal::ContainerFsAvailable,
            signal if signal == inodes => Signal::ContainerFsInodesFree,
            Signal::MemoryAvailable if threshold.is_hard() && enforces_allocatable => {
                Signal::AllocatableMemoryAvailable
            }
            _ => continue,
        };
        more.push(Threshold { signal, ..*threshold });
    }
    all.append(&mut more);
    all
}

/// How much of a resource hard thresholds keep from pods.
pub fn reserved(thresholds: &[Threshold], signal: Signal, capacity: &Quantity) -> Quantity {
    let hard = thresholds.iter().find(|t| t.signal == signal && t.is_hard());
    hard.map_or(Quantity::ZERO, |t| t.value.of(capacity))
}

/// Whether a node with these conditions takes a pod.
///
/// # Errors
/// It does not.
pub fn admit(pod: &Pod, conditions: &BTreeSet<Condition>) -> Result<(), Rejection> {
    if conditions.is_empty() || is_critical(pod) {
        return Ok(());
    }
    if conditions.iter().all(|c| *c == Condition::Memory) {
        if qos_class(pod) != Qos::BestEffort {
            return Ok(());
        }
        let taint = Taint {
            key: "node.kubernetes.io/memory-pressure".into(),
            value: "".into(),
            effect: Effect::NoSchedule,
        };
        if PodInfo::from_api(pod).tolerations.iter().any(|t| t.tolerates(&taint)) {
            return Ok(());
        }
    }
    let names: Vec<&str> = conditions.iter().map(|c| c.name()).collect();
    Err(Rejection {
        reason: "Evicted".into(),
        message: format!("The node had condition: [{}]. ", names.join(" ")),
    })
}

/// Priority from which on a pod is critical.
const CRITICAL: i32 = 2_000_000_000;

/// The node does not end the pod to save itself: a static pod, or one of a system priority.
pub fn is_critical(pod: &Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    let source = annotations.and_then(|a| a.get("kubernetes.io/config.source"));
    let is_static = source.is_some_and(|s| s != "api");
    let is_mirror = annotations.is_some_and(|a| a.contains_key("kubernetes.io/config.mirror"));
    let priority = pod.spec.as_ref().and_then(|s| s.priority);
    is_static || is_mirror || priority.is_some_and(|p| p >= CRITICAL)
}
