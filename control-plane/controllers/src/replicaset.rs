//! ReplicaSets and ReplicationControllers: keeps the wanted number of pods.

mod kind;
mod manage;
mod status;

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kelp_model::controllers::owner::controller_of;
use kelp_model::controllers::pods;
use kube::api::Api;
use kube::{Resource, ResourceExt};

use self::kind::Replicas;
use crate::claim::Claim;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::events::Recorder;
use crate::expectations::Expectations;
use crate::informer::{Change, Informer, key_of};
use crate::queue::{Key, Queue};
use crate::write;

/// Index of pods without a controller, by namespace.
pub const ORPHANS: &str = "orphans";

/// The orphans index of a kind.
pub fn orphans<K: Resource>(object: &K) -> Vec<String> {
    match controller_of(object.meta()) {
        None => object.meta().namespace.clone().into_iter().collect(),
        Some(_) => Vec::new(),
    }
}

struct Sets<K: Replicas> {
    context: Arc<Context>,
    sets: Arc<Informer<K>>,
    pods: Arc<Informer<Pod>>,
    queue: Queue,
    expectations: Expectations,
    events: Recorder,
}

/// Starts the controller of a kind. Reads its objects and Pods; writes Pods and the status of its objects.
pub fn start<K: Replicas>(context: &Arc<Context>) -> Result<()> {
    let controller = Arc::new(Sets::<K> {
        context: context.clone(),
        sets: context.informer(),
        pods: context.informer(),
        queue: Queue::new(),
        expectations: Expectations::default(),
        events: context.recorder(K::COMPONENT),
    });
    controller.pods.add_index(ORPHANS, orphans);
    let c = controller.clone();
    controller.sets.on_change(move |change| match change {
        Change::Deleted(set) => c.expectations.forget(&key_of(set.meta())),
        other => c.queue.add(key_of(other.object().meta())),
    });
    let c = controller.clone();
    controller.pods.on_change(move |change| c.pod_changed(change));
    let (queue, c) = (controller.queue.clone(), controller);
    context.workers(K::WORKERS, &queue, 5, move |key| {
        let c = c.clone();
        async move { c.sync(&key).await }
    });
    Ok(())
}

impl<K: Replicas> Sets<K> {
    fn pod_changed(&self, change: &Change<'_, Pod>) {
        let pod = change.object();
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let owner = self.owner_key(pod);
        match change {
            Change::Added(_) => match &owner {
                Some(key) => self.expectations.creation_observed(key),
                None => self.enqueue_matching(pod),
            },
            Change::Updated { old, .. } => {
                let before = self.owner_key(old);
                if before != owner
                    && let Some(before) = before
                {
                    self.queue.add(before);
                }
                if owner.is_none()
                    && (old.metadata.labels != pod.metadata.labels || controller_of(&old.metadata).is_some())
                {
                    self.enqueue_matching(pod);
                }
            }
            Change::Deleted(_) => {}
        }
        if let Some(key) = owner {
            if pods::is_terminating(pod) || matches!(change, Change::Deleted(_)) {
                self.expectations.deletion_observed(&key, uid);
            }
            self.queue.add(key);
        }
    }

    /// The key of the set that controls a pod.
    fn owner_key(&self, pod: &Pod) -> Option<String> {
        let reference = controller_of(&pod.metadata).filter(|r| r.kind == K::kind(&()))?;
        let key = format!("{}/{}", pod.metadata.namespace.as_deref()?, reference.name);
        let set = self.sets.get(&key)?;
        (set.meta().uid.as_deref() == Some(&reference.uid)).then_some(key)
    }

    fn enqueue_matching(&self, pod: &Pod) {
        if controller_of(&pod.metadata).is_some() {
            return;
        }
        for set in self.sets.in_namespace(pod.metadata.namespace.as_deref().unwrap_or_default()) {
            if set.selector().is_some_and(|s| s.matches(&pod.metadata.labels)) {
                self.queue.add(key_of(set.meta()));
            }
        }
    }

    async fn sync(&self, key: &Key) -> Result<()> {
        let Some(set) = self.sets.get(key) else {
            self.expectations.forget(key);
            return Ok(());
        };
        let Some(selector) = set.selector() else { return Ok(()) };
        // Before the cache is read: what is seen after this point is seen.
        let settled = self.expectations.satisfied(key);
        let namespace = set.namespace().unwrap_or_default();
        let uid = set.uid().unwrap_or_default();
        let client = &self.context.client;
        let claim = Claim {
            owners: Api::namespaced(client.clone(), &namespace),
            owner: &*set,
            api: Api::<Pod>::namespaced(client.clone(), &namespace),
            reference: set.reference(),
        };
        let mut orphans = self.pods.by_index(ORPHANS, &namespace);
        orphans.retain(|p| pods::is_active(p));
        let mine =
            claim.run(self.pods.owned_by(&uid), orphans, |p| selector.matches(&p.metadata.labels)).await?;

        let active: Vec<Arc<Pod>> = mine.iter().filter(|p| pods::is_active(p)).cloned().collect();
        let managed = if settled && set.meta().deletion_timestamp.is_none() {
            self.manage(key, &set, &active).await
        } else {
            Ok(())
        };

        let now = Timestamp::now();
        let mut wanted = K::clone(&set);
        wanted.set_status(status::next(&*set, &mine, managed.as_ref().err(), now));
        write::update_status(&claim.owners, &*set, &wanted).await?;
        managed?;
        let min_ready = set.min_ready_seconds();
        let wait = active.iter().filter_map(|p| pods::availability(p, min_ready, now).err().flatten()).min();
        if let Some(wait) = wait {
            let wait = std::time::Duration::try_from(wait).unwrap_or_default();
            self.queue.add_after(key.clone(), wait + std::time::Duration::from_millis(1));
        }
        Ok(())
    }
}

/// An error to report on the set's status.
fn failure(errors: Vec<Error>) -> Result<()> {
    errors.into_iter().next().map_or(Ok(()), Err)
}
