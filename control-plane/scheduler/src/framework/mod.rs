//! The scheduling framework: extension points as traits, and what passes between them.
//!
//! A plugin implements any number of the traits and is put into a [`Profile`], which runs them in order:
//! pre-enqueue → (queue sort) → pre-filter → filter → post-filter (nothing fits) → pre-score → score, normalize →
//! reserve → permit → pre-bind → bind → post-bind; unreserve when a step after reserve fails. All but permit's wait,
//! pre-bind, bind and post-bind run inside [`crate::core::Core`] and must not block.

mod change;
mod diagnosis;
mod profile;
mod state;

pub use change::{Change, NodeChange};
pub use diagnosis::{Diagnosis, histogram};
pub use profile::{PluginId, PluginSet, Profile, ProfileBuilder};
pub use state::CycleState;

use crate::cluster::Cluster;
use futures::future::BoxFuture;
use kelp_model::scheduling::{NodeInfo, PodInfo};
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

/// A part of the scheduler's policy.
pub trait Plugin: Send + Sync + 'static {
    /// Its name, as in a scheduler configuration.
    fn name(&self) -> &'static str;
}

/// Why a pod cannot go to a node, or to any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// What is told to the user, upstream's words.
    pub reasons: Vec<Cow<'static, str>>,
    /// Whether evicting other pods could help.
    pub resolvable: bool,
}

impl Rejection {
    /// One reason, which might go away with other pods.
    pub fn new(reason: impl Into<Cow<'static, str>>) -> Self {
        Self { reasons: vec![reason.into()], resolvable: true }
    }

    /// One reason, which no eviction changes.
    pub fn unresolvable(reason: impl Into<Cow<'static, str>>) -> Self {
        Self { reasons: vec![reason.into()], resolvable: false }
    }
}

/// Decides whether a pod may enter the queue at all.
pub trait PreEnqueue: Plugin {
    /// Judges a pod; a rejected one waits until it changes.
    ///
    /// # Errors
    /// The reason to hold it back.
    fn pre_enqueue(&self, pod: &PodInfo) -> Result<(), Rejection>;
}

/// Orders the queue.
pub trait QueueSort: Plugin {
    /// Rank of a pod: lower goes first, equals by the time they came.
    fn rank(&self, pod: &PodInfo) -> i64;
}

/// What a pre-filter found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PreFiltered {
    /// The filter is to run on every node.
    Continue,
    /// The plugin has nothing to say about this pod: its filter need not run.
    Skip,
    /// Only these nodes can do.
    Only(Vec<Arc<str>>),
}

/// Prepares a cycle, and rejects pods that no node can take.
pub trait PreFilter: Plugin {
    /// Looks at the pod and the cluster once a cycle.
    ///
    /// # Errors
    /// The reason no node can take the pod.
    fn pre_filter(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        cluster: &Cluster,
    ) -> Result<PreFiltered, Rejection>;

    /// What if `other` were on `node`?
    fn add_pod(&self, _: &mut CycleState, _pod: &PodInfo, _other: &PodInfo, _node: &NodeInfo, _: &Cluster) {}

    /// What if `other` were not on `node`?
    fn remove_pod(
        &self,
        _: &mut CycleState,
        _pod: &PodInfo,
        _other: &PodInfo,
        _node: &NodeInfo,
        _: &Cluster,
    ) {
    }
}

/// Rejects nodes.
pub trait Filter: Plugin {
    /// Judges a node.
    ///
    /// # Errors
    /// The reason it does not do.
    fn filter(&self, state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection>;
}

/// What a post-filter found.
#[derive(Debug, Clone)]
pub enum PostFiltered {
    /// Nothing; the text, if any, is added to the pod's message.
    Nothing(Option<String>),
    /// It cannot look; no other post-filter is asked.
    Failed(String),
    /// Room can be made on a node by evicting pods.
    Preempt {
        /// The node.
        node: Arc<str>,
        /// The pods.
        victims: Vec<Arc<PodInfo>>,
    },
}

/// Looks for a way out when no node fits.
pub trait PostFilter: Plugin {
    /// Looks at why nodes were rejected.
    fn post_filter(&self, cycle: &PostFilterCycle<'_>) -> PostFiltered;
}

/// What a post-filter works with.
pub struct PostFilterCycle<'a> {
    /// The profile whose filters are to be asked again.
    pub profile: &'a Profile,
    /// State of the failed cycle.
    pub state: &'a CycleState,
    /// The pod.
    pub pod: &'a PodInfo,
    /// The cluster.
    pub cluster: &'a Cluster,
    /// Why nodes were rejected.
    pub diagnosis: &'a Diagnosis,
}

/// Prepares scoring.
pub trait PreScore: Plugin {
    /// Looks at the nodes that fit; `false` if the plugin has nothing to say about this pod.
    fn pre_score(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        cluster: &Cluster,
        nodes: &[&NodeInfo],
    ) -> bool;
}

/// Prefers nodes.
pub trait Score: Plugin {
    /// Scores a node; 0 to 100 once normalized.
    fn score(&self, state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> i64;

    /// Brings the scores of all nodes that fit to 0 to 100.
    fn normalize(&self, _state: &CycleState, _pod: &PodInfo, _scores: &mut [i64]) {}
}

/// Keeps something for a pod before it is bound.
pub trait Reserve: Plugin {
    /// Reserves; on an error, and when a later step fails, [`Reserve::unreserve`] is called.
    ///
    /// # Errors
    /// The reason it cannot be kept.
    fn reserve(&self, state: &mut CycleState, pod: &PodInfo, node: &str) -> Result<(), Rejection>;

    /// Gives back what was reserved; may be called without a reservation.
    fn unreserve(&self, state: &mut CycleState, pod: &PodInfo, node: &str);
}

/// What a permit plugin says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Permission {
    /// Go on.
    Allow,
    /// Wait until the pod is allowed through [`crate::app::WaitingPods`], at most this long.
    Wait(Duration),
    /// Do not bind.
    Deny(Rejection),
}

/// Holds up or prevents the binding.
pub trait Permit: Plugin {
    /// Judges the placement.
    fn permit(&self, pod: &PodInfo, node: &str) -> Permission;
}

/// Failure of a step of the binding.
pub type BindError = Box<dyn std::error::Error + Send + Sync>;

/// Work to be done before the binding (volumes).
pub trait PreBind: Plugin {
    /// Does it.
    fn pre_bind<'a>(
        &'a self,
        client: &'a kube::Client,
        pod: &'a PodInfo,
        node: &'a str,
    ) -> BoxFuture<'a, Result<(), BindError>>;
}

/// Binds a pod.
pub trait Bind: Plugin {
    /// Binds, or returns `false` to leave the pod to the next plugin.
    fn bind<'a>(
        &'a self,
        client: &'a kube::Client,
        pod: &'a PodInfo,
        node: &'a str,
    ) -> BoxFuture<'a, Result<bool, BindError>>;
}

/// Told after a pod was bound.
pub trait PostBind: Plugin {
    /// The pod was bound.
    fn post_bind(&self, pod: &PodInfo, node: &str);
}

/// Knows which changes can make a pod fit that the plugin rejected.
pub trait EnqueueExtensions: Plugin {
    /// Whether to try the pod again.
    fn may_help(&self, pod: &PodInfo, change: &Change<'_>, cluster: &Cluster) -> bool;
}
