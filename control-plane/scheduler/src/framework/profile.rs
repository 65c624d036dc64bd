//! The plugins of one scheduler name, in order.

use super::*;
use std::sync::Arc;

/// The only nodes that can do, and the plugins that named them.
pub type OnlyNodes = (Vec<Arc<str>>, PluginSet);

/// A plugin within its profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PluginId(u8);

/// A set of plugins of a profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PluginSet(u64);

impl PluginSet {
    /// Adds a plugin.
    pub fn insert(&mut self, plugin: PluginId) {
        self.0 |= 1 << plugin.0;
    }

    /// Adds all of another set.
    pub fn extend(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// Whether a plugin is in it.
    pub fn contains(self, plugin: PluginId) -> bool {
        self.0 & (1 << plugin.0) != 0
    }

    /// Whether it is empty.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

type List<T> = Vec<(PluginId, Arc<T>)>;

/// The plugins of one scheduler name.
#[derive(Default)]
pub struct Profile {
    names: Vec<&'static str>,
    pre_enqueue: List<dyn PreEnqueue>,
    queue_sort: Option<Arc<dyn QueueSort>>,
    pre_filter: List<dyn PreFilter>,
    filter: List<dyn Filter>,
    post_filter: List<dyn PostFilter>,
    pre_score: List<dyn PreScore>,
    score: Vec<(PluginId, i64, Arc<dyn Score>)>,
    reserve: List<dyn Reserve>,
    permit: List<dyn Permit>,
    pre_bind: List<dyn PreBind>,
    bind: List<dyn Bind>,
    post_bind: List<dyn PostBind>,
    enqueue: List<dyn EnqueueExtensions>,
}

/// Puts a profile together, plugin by plugin.
#[derive(Default)]
pub struct ProfileBuilder(Profile);

macro_rules! point {
    ($(#[$doc:meta])* $name:ident, $trait:ident) => {
        $(#[$doc])*
        #[must_use]
        pub fn $name(mut self, plugin: &Arc<impl $trait>) -> Self {
            let id = self.id(plugin.name());
            self.0.$name.push((id, plugin.clone()));
            self
        }
    };
}

impl ProfileBuilder {
    fn id(&mut self, name: &'static str) -> PluginId {
        let at = self.0.names.iter().position(|n| *n == name).unwrap_or_else(|| {
            self.0.names.push(name);
            self.0.names.len() - 1
        });
        assert!(at < 64, "a profile has at most 64 plugins");
        PluginId(at as u8)
    }

    point!(/// Runs the plugin before pods enter the queue.
        pre_enqueue, PreEnqueue);
    point!(/// Runs the plugin at the start of a cycle.
        pre_filter, PreFilter);
    point!(/// Runs the plugin on nodes.
        filter, Filter);
    point!(/// Runs the plugin when no node fits.
        post_filter, PostFilter);
    point!(/// Runs the plugin before scoring.
        pre_score, PreScore);
    point!(/// Runs the plugin once a node is chosen.
        reserve, Reserve);
    point!(/// Runs the plugin before binding.
        permit, Permit);
    point!(/// Runs the plugin before binding.
        pre_bind, PreBind);
    point!(/// Lets the plugin bind.
        bind, Bind);
    point!(/// Tells the plugin about bindings.
        post_bind, PostBind);
    point!(/// Asks the plugin which changes help pods it rejected.
        enqueue, EnqueueExtensions);

    /// Orders the queue by the plugin.
    #[must_use]
    pub fn queue_sort(mut self, plugin: &Arc<impl QueueSort>) -> Self {
        self.0.queue_sort = Some(plugin.clone());
        self
    }

    /// Scores nodes by the plugin, times `weight`.
    #[must_use]
    pub fn score(mut self, plugin: &Arc<impl Score>, weight: i64) -> Self {
        let id = self.id(plugin.name());
        self.0.score.push((id, weight, plugin.clone()));
        self
    }

    /// The profile.
    pub fn build(self) -> Profile {
        self.0
    }
}

impl Profile {
    /// Names of a set's plugins.
    pub fn names(&self, set: PluginSet) -> Vec<&'static str> {
        let named = self.names.iter().enumerate();
        named.filter(|(at, _)| set.contains(PluginId(*at as u8))).map(|(_, name)| *name).collect()
    }

    /// Judges whether a pod may enter the queue; the first plugin that rejects it decides.
    pub fn run_pre_enqueue(&self, pod: &PodInfo) -> Result<(), (PluginId, Rejection)> {
        self.pre_enqueue.iter().try_for_each(|(id, plugin)| plugin.pre_enqueue(pod).map_err(|r| (*id, r)))
    }

    /// Rank of a pod in the queue.
    pub fn rank(&self, pod: &PodInfo) -> i64 {
        self.queue_sort.as_ref().map_or(0, |plugin| plugin.rank(pod))
    }

    /// Runs the pre-filters: the only nodes that can do (none: all), with the plugins that named them.
    pub fn run_pre_filter(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        cluster: &Cluster,
    ) -> Result<Option<OnlyNodes>, (PluginId, Rejection)> {
        let mut only: Option<OnlyNodes> = None;
        for (id, plugin) in &self.pre_filter {
            match plugin.pre_filter(state, pod, cluster).map_err(|r| (*id, r))? {
                PreFiltered::Continue => {}
                PreFiltered::Skip => state.skip_filter.insert(*id),
                PreFiltered::Only(names) => match &mut only {
                    Some((all, plugins)) => {
                        all.retain(|name| names.contains(name));
                        plugins.insert(*id);
                    }
                    None => {
                        let mut plugins = PluginSet::default();
                        plugins.insert(*id);
                        only = Some((names, plugins));
                    }
                },
            }
        }
        Ok(only)
    }

    /// Tells the plugins to act as if a pod were on a node.
    pub fn add_pod(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        other: &PodInfo,
        node: &NodeInfo,
        cluster: &Cluster,
    ) {
        for (id, plugin) in &self.pre_filter {
            if !state.skip_filter.contains(*id) {
                plugin.add_pod(state, pod, other, node, cluster);
            }
        }
    }

    /// Tells the plugins to act as if a pod were not on a node.
    pub fn remove_pod(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        other: &PodInfo,
        node: &NodeInfo,
        cluster: &Cluster,
    ) {
        for (id, plugin) in &self.pre_filter {
            if !state.skip_filter.contains(*id) {
                plugin.remove_pod(state, pod, other, node, cluster);
            }
        }
    }

    /// Runs the filters on a node; the first that rejects it decides.
    pub fn run_filter(
        &self,
        state: &CycleState,
        pod: &PodInfo,
        node: &NodeInfo,
    ) -> Result<(), (PluginId, Rejection)> {
        for (id, plugin) in &self.filter {
            if !state.skip_filter.contains(*id) {
                plugin.filter(state, pod, node).map_err(|r| (*id, r))?;
            }
        }
        Ok(())
    }

    /// Runs the post-filters until one makes room; else their messages.
    pub fn run_post_filter(
        &self,
        state: &CycleState,
        pod: &PodInfo,
        cluster: &Cluster,
        diagnosis: &Diagnosis,
    ) -> PostFiltered {
        let mut messages = Vec::new();
        let cycle = PostFilterCycle { profile: self, state, pod, cluster, diagnosis };
        for (_, plugin) in &self.post_filter {
            match plugin.post_filter(&cycle) {
                PostFiltered::Nothing(message) => messages.extend(message),
                found @ (PostFiltered::Preempt { .. } | PostFiltered::Failed(_)) => return found,
            }
        }
        PostFiltered::Nothing((!messages.is_empty()).then(|| messages.join(", ")))
    }

    /// Scores nodes: the weighted sums, in the nodes' order.
    pub fn run_score(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        cluster: &Cluster,
        nodes: &[&NodeInfo],
    ) -> Vec<i64> {
        for (id, plugin) in &self.pre_score {
            if !plugin.pre_score(state, pod, cluster, nodes) {
                state.skip_score.insert(*id);
            }
        }
        let mut sums = vec![0i64; nodes.len()];
        let mut scores = Vec::with_capacity(nodes.len());
        for (id, weight, plugin) in &self.score {
            if state.skip_score.contains(*id) {
                continue;
            }
            scores.clear();
            scores.extend(nodes.iter().map(|node| plugin.score(state, pod, node)));
            plugin.normalize(state, pod, &mut scores);
            for (sum, score) in sums.iter_mut().zip(&scores) {
                *sum += weight * score;
            }
        }
        sums
    }

    /// Reserves for a pod; undone at the first error.
    pub fn run_reserve(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        node: &str,
    ) -> Result<(), (PluginId, Rejection)> {
        for (id, plugin) in &self.reserve {
            if let Err(rejection) = plugin.reserve(state, pod, node) {
                self.run_unreserve(state, pod, node);
                return Err((*id, rejection));
            }
        }
        Ok(())
    }

    /// Gives back what was reserved, last first.
    pub fn run_unreserve(&self, state: &mut CycleState, pod: &PodInfo, node: &str) {
        for (_, plugin) in self.reserve.iter().rev() {
            plugin.unreserve(state, pod, node);
        }
    }

    /// Asks for permission: the longest wait, or the first denial.
    pub fn run_permit(&self, pod: &PodInfo, node: &str) -> Result<Option<Duration>, (PluginId, Rejection)> {
        let mut wait = None;
        for (id, plugin) in &self.permit {
            match plugin.permit(pod, node) {
                Permission::Allow => {}
                Permission::Wait(time) => wait = wait.max(Some(time)),
                Permission::Deny(rejection) => return Err((*id, rejection)),
            }
        }
        Ok(wait)
    }

    /// Does the work before the binding, and binds.
    ///
    /// # Errors
    /// The first step that failed, or that no plugin binds.
    pub async fn run_bind(&self, client: &kube::Client, pod: &PodInfo, node: &str) -> Result<(), BindError> {
        for (_, plugin) in &self.pre_bind {
            plugin.pre_bind(client, pod, node).await?;
        }
        for (_, plugin) in &self.bind {
            if plugin.bind(client, pod, node).await? {
                for (_, plugin) in &self.post_bind {
                    plugin.post_bind(pod, node);
                }
                return Ok(());
            }
        }
        Err("no plugin of the profile binds pods".into())
    }

    /// Whether a change can help a pod that `rejected_by` kept away. Plugins that do not say are helped by anything.
    pub fn may_help(
        &self,
        rejected_by: PluginSet,
        pod: &PodInfo,
        change: &Change<'_>,
        cluster: &Cluster,
    ) -> bool {
        if rejected_by.is_empty() {
            // There was no node at all.
            return matches!(change, Change::Node { what, .. } if what.added);
        }
        let mut silent = rejected_by;
        for (id, plugin) in &self.enqueue {
            if rejected_by.contains(*id) {
                silent.0 &= !(1 << id.0);
                if plugin.may_help(pod, change, cluster) {
                    return true;
                }
            }
        }
        !silent.is_empty()
    }
}
