//! Deployments: rolls pods from one template to the next, by resizing ReplicaSets.

mod progress;
mod revision;
mod rollout;
mod status;

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use kelp_model::controllers::deployment::{Bounds, DESIRED_REPLICAS, MAX_REPLICAS, size};
use kelp_model::controllers::owner::{controller_of, controller_reference};
use kelp_model::controllers::template_hash::same_template;
use kelp_model::selector::Selector;
use kube::ResourceExt;
use kube::api::Api;

use crate::claim::Claim;
use crate::context::Context;
use crate::error::Result;
use crate::events::Recorder;
use crate::informer::{Change, Informer, key_of};
use crate::queue::{Key, Queue};
use crate::replicaset::{ORPHANS, orphans};
use crate::write;

struct Deployments {
    context: Arc<Context>,
    deployments: Arc<Informer<Deployment>>,
    sets: Arc<Informer<ReplicaSet>>,
    pods: Arc<Informer<Pod>>,
    queue: Queue,
    events: Recorder,
}

/// Starts the controller. Reads Deployments, ReplicaSets and Pods; writes ReplicaSets and Deployments' status.
pub fn start(context: &Arc<Context>) -> Result<()> {
    let controller = Arc::new(Deployments {
        context: context.clone(),
        deployments: context.informer(),
        sets: context.informer(),
        pods: context.informer(),
        queue: Queue::new(),
        events: context.recorder("deployment-controller"),
    });
    controller.sets.add_index(ORPHANS, orphans);
    let c = controller.clone();
    controller.deployments.on_change(move |change| c.queue.add(key_of(&change.object().metadata)));
    let c = controller.clone();
    controller.sets.on_change(move |change| c.set_changed(change));
    let c = controller.clone();
    controller.pods.on_change(move |change| c.pod_changed(change));
    let (queue, c) = (controller.queue.clone(), controller);
    context.workers("deployment", &queue, 5, move |key| {
        let c = c.clone();
        async move { c.sync(&key).await }
    });
    Ok(())
}

impl Deployments {
    fn set_changed(&self, change: &Change<'_, ReplicaSet>) {
        let set = change.object();
        let owner = self.owner_key(set);
        if let Change::Updated { old, .. } = change {
            let before = self.owner_key(old);
            if before != owner
                && let Some(before) = before
            {
                self.queue.add(before);
            }
        }
        match owner {
            Some(key) => self.queue.add(key),
            None if controller_of(&set.metadata).is_none() && !matches!(change, Change::Deleted(_)) => {
                for deployment in
                    self.deployments.in_namespace(set.metadata.namespace.as_deref().unwrap_or_default())
                {
                    if selector(&deployment).is_some_and(|s| s.matches(&set.metadata.labels)) {
                        self.queue.add(key_of(&deployment.metadata));
                    }
                }
            }
            None => {}
        }
    }

    /// A Recreate rollout goes on when the last old pod has ended.
    fn pod_changed(&self, change: &Change<'_, Pod>) {
        let ended = match change {
            Change::Deleted(_) => true,
            Change::Updated { new, .. } => kelp_model::controllers::pods::is_terminal(new),
            Change::Added(_) => false,
        };
        let pod = change.object();
        let Some(owner) = controller_of(&pod.metadata).filter(|r| ended && r.kind == "ReplicaSet") else {
            return;
        };
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let Some(set) = self.sets.get(&format!("{namespace}/{}", owner.name)) else { return };
        if let Some(key) = self.owner_key(&set)
            && self.deployments.get(&key).is_some_and(|d| !Bounds::of(&d).rolling)
        {
            self.queue.add(key);
        }
    }

    fn owner_key(&self, set: &ReplicaSet) -> Option<String> {
        let reference = controller_of(&set.metadata).filter(|r| r.kind == "Deployment")?;
        let key = format!("{}/{}", set.metadata.namespace.as_deref()?, reference.name);
        let deployment = self.deployments.get(&key)?;
        (deployment.metadata.uid.as_deref() == Some(&reference.uid)).then_some(key)
    }

    async fn sync(&self, key: &Key) -> Result<()> {
        let Some(deployment) = self.deployments.get(key) else { return Ok(()) };
        let Some(selector) = selector(&deployment) else {
            self.events.warning(
                &*deployment,
                "SelectingAll",
                "This deployment is selecting all pods. A non-empty selector is required.".into(),
            );
            return Ok(());
        };
        let namespace = deployment.namespace().unwrap_or_default();
        let client = &self.context.client;
        let claim = Claim {
            owners: Api::namespaced(client.clone(), &namespace),
            owner: &*deployment,
            api: Api::<ReplicaSet>::namespaced(client.clone(), &namespace),
            reference: controller_reference("apps/v1", "Deployment", &deployment.metadata),
        };
        let owned = self.sets.owned_by(deployment.metadata.uid.as_deref().unwrap_or_default());
        let orphans = self.sets.by_index(ORPHANS, &namespace);
        let sets = claim.run(owned, orphans, |s| selector.matches(&s.metadata.labels)).await?;
        let mut round = Round::new(self, key.clone(), Deployment::clone(&deployment), sets);
        round.run().await
    }
}

/// The selector of a deployment; `None` when it is invalid or would take in everything.
fn selector(deployment: &Deployment) -> Option<Selector> {
    let selector = Selector::from_label_selector(Some(&deployment.spec.as_ref()?.selector)).ok()?;
    (!selector.is_everything()).then_some(selector)
}

/// One look at a deployment: its ReplicaSets as they were at the start, kept up to date with this round's writes.
struct Round<'a> {
    c: &'a Deployments,
    key: Key,
    deployment: Deployment,
    bounds: Bounds,
    /// The set of the current template.
    new: Option<Arc<ReplicaSet>>,
    /// All others, in order of creation.
    old: Vec<Arc<ReplicaSet>>,
    api: Api<ReplicaSet>,
    deployments: Api<Deployment>,
}

impl<'a> Round<'a> {
    fn new(c: &'a Deployments, key: Key, deployment: Deployment, mut sets: Vec<Arc<ReplicaSet>>) -> Self {
        sets.sort_by(|a, b| {
            let by = |s: &ReplicaSet| {
                (s.metadata.creation_timestamp.as_ref().map(|t| t.0), s.metadata.name.clone())
            };
            by(a).cmp(&by(b))
        });
        let template = deployment.spec.as_ref().map(|s| &s.template);
        let new = sets.iter().position(|s| {
            let of_set = s.spec.as_ref().and_then(|s| s.template.as_ref());
            template.zip(of_set).is_some_and(|(a, b)| same_template(a, b))
        });
        let new = new.map(|i| sets.remove(i));
        let namespace = deployment.namespace().unwrap_or_default();
        let client = &c.context.client;
        Self {
            bounds: Bounds::of(&deployment),
            api: Api::namespaced(client.clone(), &namespace),
            deployments: Api::namespaced(client.clone(), &namespace),
            c,
            key,
            deployment,
            new,
            old: sets,
        }
    }

    async fn run(&mut self) -> Result<()> {
        if self.deployment.metadata.deletion_timestamp.is_some() {
            return self.write_status().await;
        }
        self.note_pause().await?;
        if self.is_paused() || self.was_resized() {
            return self.resize().await;
        }
        if self.bounds.rolling { self.roll().await } else { self.recreate().await }
    }

    fn is_paused(&self) -> bool {
        self.deployment.spec.as_ref().and_then(|s| s.paused) == Some(true)
    }

    /// Whether the deployment's size changed since its sets in use were sized.
    fn was_resized(&self) -> bool {
        self.sets()
            .filter(|s| size(s) > 0)
            .any(|s| annotation(s, DESIRED_REPLICAS).is_some_and(|d| d != self.bounds.replicas))
    }

    /// All sets, the new one last.
    fn sets(&self) -> impl Iterator<Item = &Arc<ReplicaSet>> {
        self.old.iter().chain(&self.new)
    }

    /// Writes a set's size, and the annotations that say for which size of the deployment it was chosen.
    async fn write_size(&self, set: &Arc<ReplicaSet>, to: i32) -> Result<Arc<ReplicaSet>> {
        let from = size(set);
        let mut wanted = ReplicaSet::clone(set);
        if let Some(spec) = &mut wanted.spec {
            spec.replicas = Some(to);
        }
        set_size_annotations(&mut wanted, self.bounds);
        let written = write::update(&self.api, &**set, &wanted).await?;
        if from != to {
            let direction = if from < to { "up" } else { "down" };
            let message = format!("Scaled {direction} replica set {} from {from} to {to}", set.name_any());
            self.c.events.normal(&self.deployment, "ScalingReplicaSet", message);
        }
        Ok(written.map_or_else(|| set.clone(), Arc::new))
    }
}

fn annotation(set: &ReplicaSet, key: &str) -> Option<i32> {
    set.metadata.annotations.as_ref()?.get(key)?.parse().ok()
}

fn set_size_annotations(set: &mut ReplicaSet, bounds: Bounds) {
    let annotations = set.metadata.annotations.get_or_insert_default();
    annotations.insert(DESIRED_REPLICAS.into(), bounds.replicas.to_string());
    annotations.insert(MAX_REPLICAS.into(), bounds.max_total().to_string());
}
