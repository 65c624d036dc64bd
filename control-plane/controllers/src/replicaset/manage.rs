//! Creating missing pods and deleting surplus ones.

use std::collections::HashMap;
use std::sync::Arc;

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kelp_model::controllers::owner::controller_of;
use kelp_model::controllers::pods;
use kelp_model::names;
use kube::ResourceExt;
use kube::api::Api;

use super::kind::Replicas;
use super::{Sets, failure};
use crate::error::{Error, Result};
use crate::queue::Key;
use crate::write;

/// Most pods created or deleted in one round.
const BURST: usize = 500;

impl<K: Replicas> Sets<K> {
    /// Makes the number of `active` pods the wanted one, or as much of it as one round may.
    pub(super) async fn manage(&self, key: &Key, set: &K, active: &[Arc<Pod>]) -> Result<()> {
        let wanted = usize::try_from(set.replicas()).unwrap_or(0);
        let api: Api<Pod> =
            Api::namespaced(self.context.client.clone(), &set.namespace().unwrap_or_default());
        if active.len() < wanted {
            self.create(key, set, &api, (wanted - active.len()).min(BURST)).await
        } else if active.len() > wanted {
            self.delete(key, set, &api, active, (active.len() - wanted).min(BURST)).await
        } else {
            Ok(())
        }
    }

    /// Creates `count` pods in batches of 1, 2, 4 …, stopping after the first batch with a failure: when creations are
    /// refused (a quota), the server is not asked hundreds of times.
    async fn create(&self, key: &Key, set: &K, api: &Api<Pod>, count: usize) -> Result<()> {
        let pod = pod_from_template(set);
        self.expectations.expect_creations(key, count);
        let (mut left, mut batch) = (count, 1);
        while left > 0 {
            let now = batch.min(left);
            let results = join_all(
                (0..now)
                    .map(|_| async { api.create(&write::post_params(), &pod).await.map_err(Error::from) }),
            )
            .await;
            left -= now;
            let mut errors = Vec::new();
            for result in results {
                match result {
                    Ok(pod) => {
                        self.events.normal(
                            set,
                            "SuccessfulCreate",
                            format!("Created pod: {}", pod.name_any()),
                        );
                    }
                    Err(error) => {
                        self.expectations.creation_observed(key);
                        if error.is_namespace_terminating() {
                            // The set goes too, with its namespace.
                            continue;
                        }
                        self.events.warning(set, "FailedCreate", format!("Error creating: {error}"));
                        errors.push(error);
                    }
                }
            }
            if !errors.is_empty() {
                self.expectations.lower_creations(key, left);
                return failure(errors);
            }
            batch *= 2;
        }
        Ok(())
    }

    async fn delete(
        &self,
        key: &Key,
        set: &K,
        api: &Api<Pod>,
        active: &[Arc<Pod>],
        count: usize,
    ) -> Result<()> {
        let mut pods: Vec<&Arc<Pod>> = active.iter().collect();
        let related = self.related_pods_by_node(set);
        pods::sort_for_deletion(&mut pods, &related, Timestamp::now());
        pods.truncate(count);
        self.expectations.expect_deletions(key, pods.iter().filter_map(|p| p.metadata.uid.clone()));
        let results = join_all(pods.iter().map(|pod| async move {
            let result = write::delete(api, &***pod, None).await;
            (pod, result)
        }))
        .await;
        let mut errors = Vec::new();
        for (pod, result) in results {
            match result {
                Ok(()) => {
                    self.events.normal(set, "SuccessfulDelete", format!("Deleted pod: {}", pod.name_any()));
                }
                Err(error) => {
                    self.expectations.deletion_observed(key, pod.metadata.uid.as_deref().unwrap_or_default());
                    self.events.warning(set, "FailedDelete", format!("Error deleting: {error}"));
                    errors.push(error);
                }
            }
        }
        failure(errors)
    }

    /// Active pods a node, over all sets of the same owner: during a rollout, pods that share a node with new ones go first.
    fn related_pods_by_node(&self, set: &K) -> HashMap<String, usize> {
        let siblings = match controller_of(set.meta()) {
            Some(owner) => self.sets.owned_by(&owner.uid),
            None => self.sets.get(&crate::informer::key_of(set.meta())).into_iter().collect(),
        };
        let mut by_node = HashMap::new();
        for sibling in siblings {
            for pod in self.pods.owned_by(sibling.meta().uid.as_deref().unwrap_or_default()) {
                if pods::is_active(&pod)
                    && let Some(node) = pod.spec.as_ref().and_then(|s| s.node_name.clone())
                {
                    *by_node.entry(node).or_default() += 1;
                }
            }
        }
        by_node
    }
}

/// A pod as the set's template describes it.
fn pod_from_template<K: Replicas>(set: &K) -> Pod {
    let template = set.template().cloned().unwrap_or_default();
    let meta = template.metadata.unwrap_or_default();
    let name = set.name_any();
    let prefix = format!("{name}-");
    // The dash is left out of a name that only fits without it.
    let prefix = if names::dns1123_subdomain(&format!("{prefix}x")).is_empty() { prefix } else { name };
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(prefix),
            namespace: set.namespace(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![set.reference()]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}
