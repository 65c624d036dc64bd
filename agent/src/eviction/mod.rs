//! Keeps the node alive when it runs short of memory, disk or process ids: gives back what nobody needs, then ends pods.
//!
//! Reads: the host, the pods' use, the runtime. Writes: the node's state, unused images, orders to end pods.
//! The decisions are those of [`kelp_model::eviction`].

mod measure;
mod pressure;

use crate::config::AgentConfig;
use crate::image::ImageStore;
use crate::node::state::States;
use crate::pod::events::{Kind, Recorder};
use crate::pod::manager::Order;
use crate::pod::reference::PodRef;
use crate::pod::worker::Termination;
use crate::runtime::{ContainerState, ContainerStatus, Runtime};
use crate::server::PodIndex;
use jiff::Timestamp;
use kelp_model::eviction::{
    Candidate, Layout, Observations, Signal, State, Threshold, complete, is_critical, message, rank,
};
use measure::Measure;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// How often is looked where no event tells: upstream's monitoring period.
const PERIOD: Duration = Duration::from_secs(10);
/// How long the end of a pod is waited for before the next look.
const CLEANUP: Duration = Duration::from_secs(30);
/// How often it is looked whether an evicted pod has given back what it had.
const RECLAIMED: Duration = Duration::from_millis(200);
/// Seconds to stop in when a hard threshold is met.
const AT_ONCE: i64 = 1;

/// What the task needs.
pub struct Eviction<R> {
    /// The node's configuration.
    pub config: AgentConfig,
    /// Containers.
    pub runtime: R,
    /// The node's pods.
    pub pods: PodIndex,
    /// Images.
    pub images: ImageStore,
    /// Events.
    pub events: Recorder,
    /// State of the node.
    pub states: States,
    /// Ends pods.
    pub orders: mpsc::Sender<Order>,
}

impl<R: Runtime> Eviction<R> {
    /// Looks until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let settings = &self.config.kubelet.settings;
        let layout = measure::layout(&self.config.data_dir, self.images.dir());
        let thresholds = complete(&settings.thresholds(), layout, settings.enforces_pods());
        let mut state = State::default();
        let mut trigger = pressure::Trigger::new();
        loop {
            let look = async {
                if let Some(uid) = self.look(&mut state, &thresholds, layout).await {
                    self.wait_for_end(&uid).await;
                    return; // the next look is at once
                }
                tokio::select! {
                    () = tokio::time::sleep(PERIOD) => {}
                    () = trigger.fired() => {}
                }
            };
            if shutdown.run_until_cancelled(look).await.is_none() {
                return;
            }
        }
    }

    fn measure(&self) -> Measure<'_, R> {
        Measure { config: &self.config, runtime: &self.runtime, images: self.images.dir() }
    }

    /// One look. Returns the UID of the pod that was told to end.
    async fn look(&self, state: &mut State, thresholds: &[Threshold], layout: Layout) -> Option<String> {
        let observed = self.measure().observe().await;
        let transition = self.config.kubelet.settings.eviction_pressure_transition_period;
        let driving = state.observe(thresholds, &observed, transition, Timestamp::now());
        self.states.change(|s| s.pressure.clone_from(state.conditions()));
        let first = driving.first()?;
        let resource = first.signal.resource();
        tracing::warn!(signal = first.signal.name(), "the node runs short of {resource}");
        let text = format!("Attempting to reclaim {resource}");
        self.events.node(&self.config.node_name, Kind::Warning, "EvictionThresholdMet", text);
        if reclaims_containers(first.signal, layout) {
            self.remove_dead_containers().await;
            if State::is_over(thresholds, &self.measure().observe().await) {
                return None;
            }
        }
        if reclaims_images(first.signal, layout) && self.reclaim(thresholds).await {
            return None;
        }
        let disks = first.signal.condition() == kelp_model::eviction::Condition::Disk;
        let mut candidates = self.measure().candidates(&self.pods, disks).await;
        rank(&mut candidates, first.signal, layout);
        let victim = candidates.iter().find(|c| !is_critical(&c.pod));
        if victim.is_none() {
            tracing::warn!("no pod can be ended to help the node");
        }
        self.evict(victim?, first, &driving, &observed).await
    }

    /// Removes what containers have left that ran before the ones that are there now. Their logs stay.
    async fn remove_dead_containers(&self) {
        for sandbox in self.runtime.list().await.unwrap_or_default() {
            for id in dead(&sandbox.containers) {
                match self.runtime.remove_container(&sandbox.id, &id).await {
                    Ok(()) => tracing::info!(
                        pod = sandbox.name,
                        container = id,
                        "dead container removed: the disk is full"
                    ),
                    Err(error) => {
                        tracing::warn!(pod = sandbox.name, container = id, %error, "dead container not removed")
                    }
                }
            }
        }
    }

    /// Removes images that nobody uses. `true`: that was enough.
    async fn reclaim(&self, thresholds: &[Threshold]) -> bool {
        let images = self.images.clone();
        let pruned =
            tokio::task::spawn_blocking(move || images.prune(|image| images.is_in_use(&image.id))).await;
        match pruned {
            Ok(Ok(removed)) => tracing::info!(?removed, "unused images removed: the disk is full"),
            Ok(Err(error)) => tracing::warn!(%error, "unused images not removed"),
            Err(error) => tracing::error!(%error, "unused images not removed"),
        }
        State::is_over(thresholds, &self.measure().observe().await)
    }

    async fn evict(
        &self,
        victim: &Candidate,
        why: &Threshold,
        driving: &[Threshold],
        observed: &Observations,
    ) -> Option<String> {
        let details = message(victim, why, driving, observed);
        let reference = PodRef::from(victim.pod.as_ref());
        tracing::warn!(pod = %reference, message = details.message, "pod evicted");
        self.events.annotated(
            &reference,
            Kind::Warning,
            "Evicted",
            details.message.clone(),
            details.annotations,
        );
        let most = i64::from(self.config.kubelet.settings.eviction_max_pod_grace_period);
        let order = Termination {
            reason: "Evicted".into(),
            message: details.message,
            grace: if why.is_hard() { AT_ONCE } else { most },
        };
        self.orders.send((reference.uid.clone(), order)).await.ok()?;
        crate::metrics::evicted(why.signal.name());
        Some(reference.uid)
    }

    /// Waits until a pod has given back what it had: what it wrote is gone only with its sandbox and its volumes, and until
    /// then the node is as short as before.
    async fn wait_for_end(&self, uid: &str) {
        let mut events = self.runtime.events();
        let volumes = self.config.pod_dir(uid).join("volumes");
        let end = async {
            loop {
                if matches!(self.runtime.status(uid).await, Ok(None)) && !volumes.exists() {
                    return;
                }
                // Exits are told; that a sandbox and its volumes were removed is not.
                tokio::select! {
                    Ok(_) = events.recv() => {}
                    () = tokio::time::sleep(RECLAIMED) => {}
                }
            }
        };
        if tokio::time::timeout(CLEANUP, end).await.is_err() {
            tracing::warn!(pod = uid, "an evicted pod has not ended yet");
        }
    }
}

/// Attempts that have ended and were followed by another.
fn dead(containers: &[ContainerStatus]) -> Vec<String> {
    let newer = |c: &ContainerStatus| containers.iter().any(|o| o.name == c.name && o.attempt > c.attempt);
    let ended = containers.iter().filter(|c| matches!(c.state, ContainerState::Exited(_)) && newer(c));
    ended.map(|c| c.id.clone()).collect()
}

/// Whether what containers have written takes what the signal is about.
fn reclaims_containers(signal: Signal, layout: Layout) -> bool {
    let of_images = matches!(signal, Signal::ImageFsAvailable | Signal::ImageFsInodesFree);
    let of_containers = matches!(signal, Signal::ContainerFsAvailable | Signal::ContainerFsInodesFree);
    let of_node = matches!(signal, Signal::NodeFsAvailable | Signal::NodeFsInodesFree);
    match layout {
        Layout::Single => of_images || of_containers || of_node,
        Layout::ImageFs => of_images || of_containers,
        Layout::SplitImageFs => of_containers || of_node,
    }
}

/// Whether unused images take what the signal is about.
fn reclaims_images(signal: Signal, layout: Layout) -> bool {
    let of_images = matches!(signal, Signal::ImageFsAvailable | Signal::ImageFsInodesFree);
    let of_containers = matches!(signal, Signal::ContainerFsAvailable | Signal::ContainerFsInodesFree);
    let of_node = matches!(signal, Signal::NodeFsAvailable | Signal::NodeFsInodesFree);
    match layout {
        Layout::Single => of_images || of_containers || of_node,
        Layout::ImageFs => of_images || of_containers,
        Layout::SplitImageFs => of_images,
    }
}

#[cfg(test)]
mod tests;
