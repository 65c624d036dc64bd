//! Static pods in the manager: workers from manifests, mirrors at the API server.

use super::{Manager, name_of};
use crate::metrics;
use crate::network::PodNetwork;
use crate::pod::mirror;
use crate::pod::static_pods::StaticPods;
use crate::pod::worker::Slot;
use crate::runtime::Runtime;
use k8s_openapi::api::core::v1::{Node, Pod};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

/// Pause after a mirror that could not be made or removed.
const PAUSE: Duration = Duration::from_secs(1);

/// What is to be done about a mirror.
pub(super) enum Step {
    Create(Arc<Pod>, Arc<Node>),
    Delete(Arc<Pod>),
}

impl<R: Runtime, N: PodNetwork> Manager<R, N> {
    /// The manifests are these now.
    pub(super) fn take_statics(&mut self, set: StaticPods) {
        for uid in self.statics.keys().filter(|uid| !set.contains_key(*uid)) {
            if let Some(worker) = self.workers.get(uid) {
                worker.slot.send_modify(|slot| slot.gone = true);
            }
        }
        self.statics = set;
        self.start_statics();
    }

    /// Starts the static pods that have no worker yet. One whose name another still has waits for its end.
    pub(super) fn start_statics(&mut self) {
        let waiting: Vec<(String, Arc<Pod>)> = self
            .statics
            .iter()
            .filter(|(uid, _)| !self.workers.contains_key(*uid) && !self.rejected.contains(*uid))
            .map(|(uid, pod)| (uid.clone(), pod.clone()))
            .collect();
        for (uid, pod) in waiting {
            if self.workers.values().any(|w| name_of(&w.slot.borrow().pod) == name_of(&pod)) {
                continue;
            }
            if let Err(rejection) = self.admit(&uid, &pod) {
                self.reject(uid, &pod, &rejection);
                continue;
            }
            let mirror = self.mirrors.get(&uid).cloned();
            self.pods.write().entry(name_of(&pod)).or_insert_with(|| pod.clone());
            self.start(uid, Slot { pod, gone: false, mirror });
        }
    }

    /// A mirror is new or changed.
    pub(super) fn take_mirror(&mut self, pod: Pod) {
        let Some(uid) = mirror::original(&pod).cloned() else { return };
        self.pods.write().insert(name_of(&pod), Arc::new(mirror::as_static(&pod)));
        let pod = Arc::new(pod);
        self.mirrors.insert(uid.clone(), pod.clone());
        metrics::MIRROR_PODS.set(&[], self.mirrors.len() as f64);
        if let Some(worker) = self.workers.get(&uid) {
            worker.slot.send_modify(|slot| slot.mirror = Some(pod));
        }
    }

    /// A mirror is not there any more.
    pub(super) fn forget_mirror(&mut self, pod: &Pod) {
        let Some(uid) = mirror::original(pod) else { return };
        if self.mirrors.get(uid).is_some_and(|known| known.metadata.uid == pod.metadata.uid) {
            self.mirrors.remove(uid);
            metrics::MIRROR_PODS.set(&[], self.mirrors.len() as f64);
            if let Some(worker) = self.workers.get(uid) {
                worker.slot.send_modify(|slot| slot.mirror = None);
            }
        }
    }

    /// Mirrors that a complete list does not have are gone.
    pub(super) fn retain_mirrors(&mut self, listed: &HashSet<String>) {
        let gone: Vec<Arc<Pod>> = self
            .mirrors
            .values()
            .filter(|m| m.metadata.uid.as_ref().is_none_or(|uid| !listed.contains(uid)))
            .cloned()
            .collect();
        for mirror in gone {
            self.forget_mirror(&mirror);
        }
    }

    /// The next thing there is to do about mirrors.
    pub(super) fn next_step(&self) -> Option<Step> {
        // Before the first list it is not known which mirrors there are.
        if !*self.synced.borrow() {
            return None;
        }
        for (uid, mirror) in &self.mirrors {
            let alive = self.statics.contains_key(uid);
            let ending = self.workers.contains_key(uid);
            // The last status of a pod that ends is shown before its mirror goes.
            if mirror.metadata.deletion_timestamp.is_some() && alive || !alive && !ending {
                return Some(Step::Delete(mirror.clone()));
            }
        }
        let node = self.context.node.borrow().clone()?;
        let missing = |(uid, pod): &(&String, &Arc<Pod>)| {
            let taken = self.mirrors.values().any(|m| name_of(m) == name_of(pod));
            !self.mirrors.contains_key(*uid) && !taken && self.workers.contains_key(*uid)
        };
        let (_, pod) = self.statics.iter().find(missing)?;
        Some(Step::Create(pod.clone(), node))
    }
}

impl Step {
    /// Does it. The watch tells what came of it, before this ends.
    pub(super) async fn carry_out(self, client: kube::Client) {
        match self {
            Self::Create(pod, node) => mirror::create(client, &pod, &node).await,
            Self::Delete(pod) => mirror::delete(client, &pod).await,
        }
        tokio::time::sleep(PAUSE).await;
    }
}
