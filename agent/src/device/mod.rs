//! Devices of plugins (`v1beta1` of the device plugin API), and who has them (`v1` of the pod resources API).
//!
//! Reads: plugins' sockets, pods. Writes: the checkpoint, what the node offers.
//!
//! A container's devices are chosen before its pod starts and are its own until the pod has ended. The checkpoint is
//! written before anybody is told: an agent that starts anew knows who has what.

pub mod api;
mod plugin;
mod pod_resources;
#[cfg(test)]
mod tests;

pub use plugin::serve;
pub use pod_resources::serve as serve_pod_resources;

use crate::grpc;
use crate::node::facts::Devices as Offered;
use api::{
    AllocateRequest, AllocateResponse, Allocated, DeviceIds, Empty, Preferred, PreferredRequest,
    PreferredRequests,
};
use k8s_openapi::api::core::v1::{Container, Pod};
use kelp_model::devices::{Ids, Offer, prepare};
use kelp_model::pod::spec::{Kind, containers};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How long a plugin may take to answer about a container that starts (upstream's).
const PRE_START: Duration = Duration::from_secs(30);
/// How long it may take to answer anything else.
const ANSWER: Duration = Duration::from_secs(30);
/// How long the devices of a plugin that is gone are still counted (upstream's).
const GRACE: Duration = Duration::from_secs(300);

/// The devices of this node. Clones share them.
#[derive(Clone)]
pub struct Devices(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    /// One allocation at a time: two must not choose the same device.
    allocating: tokio::sync::Mutex<()>,
    offered: watch::Sender<Vec<Offered>>,
    checkpoint: PathBuf,
}

#[derive(Default)]
struct State {
    resources: BTreeMap<String, Resource>,
    allocated: Allocations,
}

/// What is offered as one resource.
#[derive(Default)]
struct Resource {
    /// By id.
    devices: BTreeMap<String, Known>,
    /// Its plugin, while there is one.
    plugin: Option<Plugin>,
    /// Since when there is none.
    gone_since: Option<Instant>,
}

#[derive(Clone, Default)]
struct Known {
    healthy: bool,
    numa: Option<Vec<i64>>,
}

#[derive(Clone)]
struct Plugin {
    client: grpc::Client,
    options: api::Options,
    /// Distinguishes it from one that registers later.
    generation: u64,
}

/// Devices of containers: pod UID, container, resource.
type Allocations = BTreeMap<String, BTreeMap<String, BTreeMap<String, Grant>>>;

/// Devices of a container, and what it needs for them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Grant {
    /// The devices.
    pub ids: Ids,
    /// Variables.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Mounts: on the host, in the container, read-only.
    #[serde(default)]
    pub mounts: Vec<(PathBuf, PathBuf, bool)>,
    /// Device nodes: on the host, in the container, permissions.
    #[serde(default)]
    pub nodes: Vec<(PathBuf, PathBuf, String)>,
}

impl Grant {
    fn of(ids: Ids, answer: Allocated) -> Self {
        for name in answer.cdi_devices.iter().map(|d| &d.name) {
            tracing::warn!(name, "devices of the Container Device Interface are not set up here");
        }
        Self {
            ids,
            env: answer.envs.into_iter().collect(),
            mounts: answer
                .mounts
                .into_iter()
                .map(|m| (m.host_path.into(), m.container_path.into(), m.read_only))
                .collect(),
            nodes: answer
                .devices
                .into_iter()
                .map(|d| (d.host_path.into(), d.container_path.into(), d.permissions))
                .collect(),
        }
    }
}

impl Default for Devices {
    /// For nodes without plugins: nothing can be allocated.
    fn default() -> Self {
        Self::new(Path::new("/nonexistent"))
    }
}

impl Devices {
    /// No devices yet, but those that containers had by the checkpoint in a directory.
    pub fn new(dir: &Path) -> Self {
        let checkpoint = dir.join("devices.json");
        let allocated = match std::fs::read(&checkpoint) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(%error, path = %checkpoint.display(), "the checkpoint of devices is damaged");
                Allocations::new()
            }),
            Err(_) => Allocations::new(),
        };
        let state = State { allocated, ..State::default() };
        Self(Arc::new(Inner {
            state: Mutex::new(state),
            allocating: tokio::sync::Mutex::default(),
            offered: watch::channel(Vec::new()).0,
            checkpoint,
        }))
    }

    /// What the node offers, and its changes.
    pub fn offered(&self) -> watch::Receiver<Vec<Offered>> {
        self.0.offered.subscribe()
    }

    /// Whether plugins offer what a container asks for, or did.
    fn asks(&self, container: &Container) -> Vec<(String, usize)> {
        let state = self.0.state.lock();
        let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
        let of = limits.into_iter().flatten().filter(|(name, _)| state.resources.contains_key(*name));
        of.filter_map(|(name, amount)| {
            let amount = kelp_model::quantity::Quantity::parse(&amount.0).ok()?.value();
            Some((name.clone(), usize::try_from(amount).ok().filter(|n| *n > 0)?))
        })
        .collect()
    }

    /// Whether a pod needs devices that it does not have yet.
    pub fn is_needed(&self, pod: &Pod) -> bool {
        let (Some(spec), Some(uid)) = (&pod.spec, &pod.metadata.uid) else { return false };
        containers(spec).any(|(_, container)| {
            let asked = self.asks(container);
            let state = self.0.state.lock();
            let has = state.allocated.get(uid).and_then(|p| p.get(&container.name));
            asked.iter().any(|(resource, _)| has.is_none_or(|has| !has.contains_key(resource)))
        })
    }

    /// Chooses devices for all containers of a pod. What they have already they keep.
    ///
    /// # Errors
    /// There are too few, or a plugin refuses; the text is upstream's.
    pub async fn allocate(&self, pod: &Pod) -> Result<(), String> {
        let (Some(spec), Some(uid)) = (&pod.spec, &pod.metadata.uid) else { return Ok(()) };
        let _one = self.0.allocating.lock().await;
        let mut reusable: BTreeMap<String, Ids> = BTreeMap::new();
        for (kind, container) in containers(spec) {
            for (resource, wanted) in self.asks(container) {
                let own = reusable.entry(resource.clone()).or_default();
                let ids = self.allocate_one(uid, container, &resource, wanted, own).await?;
                match kind {
                    // What an init container had, those after it get.
                    Kind::Init => own.extend(ids),
                    _ => own.retain(|id| !ids.contains(id)),
                }
            }
        }
        Ok(())
    }

    async fn allocate_one(
        &self,
        uid: &str,
        container: &Container,
        resource: &str,
        wanted: usize,
        reusable: &Ids,
    ) -> Result<Ids, String> {
        let (choice, plugin) = {
            let state = self.0.state.lock();
            let has =
                state.granted(uid, &container.name, resource).map(|g| g.ids.clone()).unwrap_or_default();
            if has.len() == wanted {
                return Ok(has);
            }
            let Some(known) = state.resources.get(resource) else { return Ok(Ids::new()) };
            let healthy = known.devices.iter().filter(|(_, d)| d.healthy).map(|(id, _)| id.clone()).collect();
            let offer = Offer { healthy, in_use: state.in_use(resource), reusable: reusable.clone() };
            let choice = prepare(resource, wanted, &has, &offer)?;
            let plugin =
                known.plugin.clone().ok_or_else(|| format!("endpoint {resource} has been stopped"))?;
            (choice, plugin)
        };
        let mut preferred = Vec::new();
        if plugin.options.get_preferred_allocation_available && choice.given.len() < wanted {
            let all = choice.available.union(&choice.given).cloned().collect();
            let request = PreferredRequest {
                available: all,
                must_include: choice.given.iter().cloned().collect(),
                allocation_size: i32::try_from(wanted).unwrap_or(i32::MAX),
            };
            let request = PreferredRequests { container_requests: vec![request] };
            let method = "/v1beta1.DevicePlugin/GetPreferredAllocation";
            let answer: Preferred =
                plugin.client.unary(method, request, ANSWER).await.map_err(|e| grpc::text(&e))?;
            preferred = answer.container_responses.into_iter().next().unwrap_or_default().devices_ids;
        }
        let ids = choice.with(&preferred);
        let request = AllocateRequest {
            container_requests: vec![DeviceIds { devices_ids: ids.iter().cloned().collect() }],
        };
        let method = "/v1beta1.DevicePlugin/Allocate";
        let answer: AllocateResponse =
            plugin.client.unary(method, request, ANSWER).await.map_err(|e| grpc::text(&e))?;
        let Some(answer) = answer.container_responses.into_iter().next() else {
            return Err("no containers in allocation response".into());
        };
        let mut state = self.0.state.lock();
        let of_pod = state.allocated.entry(uid.to_owned()).or_default();
        let of_container = of_pod.entry(container.name.clone()).or_default();
        of_container.insert(resource.to_owned(), Grant::of(ids.clone(), answer));
        self.write(&state.allocated)?;
        Ok(ids)
    }

    /// What a container needs for its devices. Tells the plugins that want to know that it starts.
    ///
    /// # Errors
    /// A plugin refuses.
    pub async fn start(&self, uid: &str, container: &str) -> Result<Vec<Grant>, String> {
        let granted: Vec<(Grant, Option<Plugin>)> = {
            let state = self.0.state.lock();
            let own = state.allocated.get(uid).and_then(|p| p.get(container));
            own.into_iter()
                .flatten()
                .map(|(resource, grant)| {
                    let plugin = state.resources.get(resource).and_then(|r| r.plugin.clone());
                    (grant.clone(), plugin.filter(|p| p.options.pre_start_required))
                })
                .collect()
        };
        let mut grants = Vec::new();
        for (grant, plugin) in granted {
            if let Some(plugin) = plugin {
                let request = DeviceIds { devices_ids: grant.ids.iter().cloned().collect() };
                let method = "/v1beta1.DevicePlugin/PreStartContainer";
                let told = plugin.client.unary::<_, Empty>(method, request, PRE_START).await;
                told.map_err(|e| {
                    format!("device plugin PreStartContainer rpc failed with err: {}", grpc::text(&e))
                })?;
            }
            grants.push(grant);
        }
        Ok(grants)
    }

    /// A pod has ended: its devices are free.
    pub fn release(&self, uid: &str) {
        let mut state = self.0.state.lock();
        if state.allocated.remove(uid).is_some()
            && let Err(error) = self.write(&state.allocated)
        {
            tracing::warn!(error, "the checkpoint of devices was not written");
        }
    }

    /// Pods that are not there any more have no devices.
    pub fn retain(&self, known: &HashSet<String>) {
        let gone: Vec<String> =
            self.0.state.lock().allocated.keys().filter(|uid| !known.contains(*uid)).cloned().collect();
        gone.iter().for_each(|uid| self.release(uid));
    }

    fn write(&self, allocated: &Allocations) -> Result<(), String> {
        let path = &self.0.checkpoint;
        let write = || -> std::io::Result<()> {
            let temporary = path.with_extension("tmp");
            std::fs::write(&temporary, serde_json::to_vec(allocated)?)?;
            std::fs::rename(&temporary, path)
        };
        write().map_err(|e| format!("cannot write {}: {e}", path.display()))
    }

    /// A plugin offers a resource from now on. Returns what tells it from later ones.
    fn registered(&self, resource: &str, client: grpc::Client, options: api::Options) -> u64 {
        let mut state = self.0.state.lock();
        let known = state.resources.entry(resource.to_owned()).or_default();
        let generation = known.plugin.as_ref().map_or(0, |p| p.generation) + 1;
        known.plugin = Some(Plugin { client, options, generation });
        known.gone_since = None;
        generation
    }

    /// The devices of a plugin are these now.
    fn listed(&self, resource: &str, generation: u64, devices: Vec<api::Device>) {
        self.change(resource, generation, |known| {
            let known_of = |device: api::Device| {
                let numa = device.topology.map(|t| t.nodes.iter().map(|n| n.id).collect());
                (device.id, Known { healthy: device.health == "Healthy", numa })
            };
            known.devices = devices.into_iter().map(known_of).collect();
        });
    }

    /// A plugin is gone: its devices are there, but nobody can have them.
    fn stopped(&self, resource: &str, generation: u64) {
        self.change(resource, generation, |known| {
            known.plugin = None;
            known.gone_since = Some(Instant::now());
            known.devices.values_mut().for_each(|d| d.healthy = false);
        });
        // Some time later they do not count any more.
        let this = self.clone();
        let resource = resource.to_owned();
        tokio::spawn(async move {
            tokio::time::sleep(GRACE).await;
            let mut state = this.0.state.lock();
            if let Some(known) = state.resources.get_mut(&resource)
                && known.gone_since.is_some_and(|since| since.elapsed() >= GRACE)
            {
                known.devices.clear();
                this.tell(&state);
            }
        });
    }

    fn change(&self, resource: &str, generation: u64, change: impl FnOnce(&mut Resource)) {
        let mut state = self.0.state.lock();
        let Some(known) = state.resources.get_mut(resource) else { return };
        // One that registered later has taken over.
        if known.plugin.as_ref().is_some_and(|p| p.generation == generation) {
            change(known);
            self.tell(&state);
        }
    }

    fn tell(&self, state: &State) {
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let of = |(resource, known): (&String, &Resource)| Offered {
            resource: resource.clone(),
            capacity: count(known.devices.len()),
            allocatable: count(known.devices.values().filter(|d| d.healthy).count()),
        };
        let new: Vec<Offered> = state.resources.iter().map(of).collect();
        self.0.offered.send_if_modified(|old| {
            let changed = *old != new;
            *old = new;
            changed
        });
    }
}

impl State {
    fn granted(&self, uid: &str, container: &str, resource: &str) -> Option<&Grant> {
        self.allocated.get(uid)?.get(container)?.get(resource)
    }

    fn in_use(&self, resource: &str) -> Ids {
        let grants = self.allocated.values().flat_map(BTreeMap::values).filter_map(|c| c.get(resource));
        grants.flat_map(|g| g.ids.iter().cloned()).collect()
    }
}
