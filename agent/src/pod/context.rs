//! What every pod worker shares.

use crate::config::AgentConfig;
use crate::cpus::Cpus;
use crate::device::Devices;
use crate::image::{ImageConfig, ImageError, ImageStore};
use crate::node::state::States;
use crate::pod::classes::Classes;
use crate::pod::events::Recorder;
use crate::pod::objects::Objects;
use crate::pod::pulls::Pulls;
use crate::pod::services::Services;
use crate::pod::status_manager::StatusManager;
use crate::pod::users::UserNamespaces;
use crate::pod::volumes::NodeVolumes;
use crate::server::PodIndex;
use k8s_openapi::api::core::v1::{Container, Node, Pod};
use kelp_model::pod::resources::{Limits, Swap, container_limits, swap_limit};
use std::sync::Arc;
use tokio::sync::watch;

/// An image of the store, as far as pods need it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolvedImage {
    /// Id, `sha256:…`.
    pub id: String,
    /// What to run, and how.
    pub config: ImageConfig,
}

type Resolve = dyn Fn(&str) -> Result<Option<ResolvedImage>, ImageError> + Send + Sync;

/// Finds images by reference.
#[derive(Clone)]
pub struct Images {
    resolve: Arc<Resolve>,
    pulls: Option<Pulls>,
}

impl Images {
    /// Images found by a function.
    pub fn new(
        resolve: impl Fn(&str) -> Result<Option<ResolvedImage>, ImageError> + Send + Sync + 'static,
    ) -> Self {
        Self { resolve: Arc::new(resolve), pulls: None }
    }

    /// The image, `None` when it is not on this node.
    ///
    /// # Errors
    /// The reference is malformed or the store cannot be read.
    pub fn resolve(&self, reference: &str) -> Result<Option<ResolvedImage>, ImageError> {
        (self.resolve)(reference)
    }

    /// With a way to get images that are not there.
    #[must_use]
    pub fn pulling(self, pulls: Pulls) -> Self {
        Self { pulls: Some(pulls), ..self }
    }

    /// How to get images that are not there.
    pub fn pulls(&self) -> Option<&Pulls> {
        self.pulls.as_ref()
    }
}

impl From<ImageStore> for Images {
    fn from(store: ImageStore) -> Self {
        Self::new(move |reference| {
            Ok(store.resolve(reference)?.map(|image| ResolvedImage { id: image.id, config: image.config }))
        })
    }
}

/// What every pod worker shares.
pub struct Context<R, N> {
    /// The node's configuration.
    pub config: AgentConfig,
    /// Containers.
    pub runtime: R,
    /// Addresses and devices.
    pub network: N,
    /// Images.
    pub images: Images,
    /// ConfigMaps and Secrets.
    pub objects: Objects,
    /// Claims and images as volumes.
    pub volumes: NodeVolumes,
    /// Services.
    pub services: Services,
    /// Writer of pod status.
    pub status: StatusManager,
    /// Writer of events.
    pub events: Recorder,
    /// The node's pods as the API server has them.
    pub pods: PodIndex,
    /// The newest Node; `None` until it is known.
    pub node: watch::Receiver<Option<Arc<Node>>>,
    /// Devices of plugins.
    pub devices: Devices,
    /// CPUs of containers alone.
    pub cpus: Cpus,
    /// What the node is short of, and whether it shuts down.
    pub states: States,
    /// Handlers of RuntimeClasses.
    pub classes: Classes,
    /// Ids of pods with user namespaces.
    pub users: UserNamespaces,
    /// CPUs of the node, thousandths.
    pub node_milli_cpu: i64,
    /// Memory of the node, bytes.
    pub node_memory: u64,
    /// Swap for containers; `None`: the kernel does not account for it.
    pub swap: Option<Swap>,
}

impl<R, N> Context<R, N> {
    /// Whether the CPU time of a container, or of the pod as a whole, is limited where it has a limit.
    pub fn limits_time(&self, uid: &str, container: Option<&str>) -> bool {
        self.config.kubelet.settings.cpu_cfs_quota && !self.cpus.has_own(uid, container)
    }

    /// cgroup values of a container.
    pub fn container_limits(&self, pod: &Pod, container: &Container) -> Limits {
        let swap = self.swap.map(|swap| swap_limit(pod, container, swap, self.node_memory));
        Limits { swap, ..container_limits(pod, container, self.node_memory) }
    }
}
