//! The kinds that keep a number of pods: ReplicaSets, and ReplicationControllers as their older form.

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{
    PodTemplateSpec, ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kelp_model::controllers::owner::controller_reference;
use kelp_model::selector::Selector;
use kube::Resource;
use serde::Serialize;

use crate::informer::Kind;

/// A kind whose objects keep a number of pods of one template. What one controller does for all of them is written in terms
/// of a ReplicaSet's status, which has all fields that others have.
pub trait Replicas: Kind + Serialize + Resource<Scope = NamespaceResourceScope> {
    /// Name of the workers in the log.
    const WORKERS: &'static str;
    /// Source of the events.
    const COMPONENT: &'static str;
    /// Whether the status says how many pods are on their way out.
    const COUNTS_TERMINATING: bool;

    /// Which pods are its own; `None` when the selector is invalid or would take in everything.
    fn selector(&self) -> Option<Selector>;
    /// The number of pods wanted.
    fn replicas(&self) -> i32;
    /// For how many seconds a pod has to be ready to be available.
    fn min_ready_seconds(&self) -> i32;
    /// What its pods look like.
    fn template(&self) -> Option<&PodTemplateSpec>;
    /// The status as it is.
    fn status(&self) -> ReplicaSetStatus;
    /// Replaces the status.
    fn set_status(&mut self, status: ReplicaSetStatus);

    /// The reference its pods carry.
    fn reference(&self) -> OwnerReference {
        controller_reference(&Self::api_version(&()), &Self::kind(&()), self.meta())
    }
}

/// A selector that takes in everything is a mistake: it selects nothing.
fn bounded(selector: Selector) -> Option<Selector> {
    (!selector.is_everything()).then_some(selector)
}

impl Replicas for ReplicaSet {
    const WORKERS: &'static str = "replicaset";
    const COMPONENT: &'static str = "replicaset-controller";
    const COUNTS_TERMINATING: bool = true;

    fn selector(&self) -> Option<Selector> {
        bounded(Selector::from_label_selector(Some(&self.spec.as_ref()?.selector)).ok()?)
    }

    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0)
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }

    fn status(&self) -> ReplicaSetStatus {
        self.status.clone().unwrap_or_default()
    }

    fn set_status(&mut self, status: ReplicaSetStatus) {
        self.status = Some(status);
    }
}

impl Replicas for ReplicationController {
    const WORKERS: &'static str = "replicationcontroller";
    const COMPONENT: &'static str = "replication-controller";
    const COUNTS_TERMINATING: bool = false;

    fn selector(&self) -> Option<Selector> {
        // The server has put the template's labels here when the client left it out.
        bounded(Selector::from_set(self.spec.as_ref()?.selector.clone()?))
    }

    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0)
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }

    fn status(&self) -> ReplicaSetStatus {
        let status = self.status.clone().unwrap_or_default();
        let condition = |c: ReplicationControllerCondition| ReplicaSetCondition {
            last_transition_time: c.last_transition_time,
            message: c.message,
            reason: c.reason,
            status: c.status,
            type_: c.type_,
        };
        ReplicaSetStatus {
            available_replicas: status.available_replicas,
            conditions: status.conditions.map(|list| list.into_iter().map(condition).collect()),
            fully_labeled_replicas: status.fully_labeled_replicas,
            observed_generation: status.observed_generation,
            ready_replicas: status.ready_replicas,
            replicas: status.replicas,
            terminating_replicas: None,
        }
    }

    fn set_status(&mut self, status: ReplicaSetStatus) {
        let condition = |c: ReplicaSetCondition| ReplicationControllerCondition {
            last_transition_time: c.last_transition_time,
            message: c.message,
            reason: c.reason,
            status: c.status,
            type_: c.type_,
        };
        self.status = Some(ReplicationControllerStatus {
            available_replicas: status.available_replicas,
            conditions: status.conditions.map(|list| list.into_iter().map(condition).collect()),
            fully_labeled_replicas: status.fully_labeled_replicas,
            observed_generation: status.observed_generation,
            ready_replicas: status.ready_replicas,
            replicas: status.replicas,
        });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn controller(spec: Value) -> ReplicationController {
        serde_json::from_value(json!({"metadata": {"name": "w", "uid": "u"}, "spec": spec})).unwrap()
    }

    #[test]
    fn the_labels_of_a_replication_controller_select_exactly() {
        let labels = |v: Value| -> Option<std::collections::BTreeMap<String, String>> {
            serde_json::from_value(v).unwrap()
        };
        let selector = controller(json!({"selector": {"app": "w", "tier": "a"}})).selector().unwrap();
        assert!(selector.matches(&labels(json!({"app": "w", "tier": "a", "more": "1"}))));
        assert!(!selector.matches(&labels(json!({"app": "w"}))));
        assert!(controller(json!({"selector": {}})).selector().is_none(), "never everything");
        assert!(controller(json!({})).selector().is_none());
    }

    #[test]
    fn pods_refer_to_the_kind_that_made_them() {
        let reference = controller(json!({})).reference();
        assert_eq!(
            (reference.api_version.as_str(), reference.kind.as_str()),
            ("v1", "ReplicationController")
        );
        let reference = ReplicaSet::default().reference();
        assert_eq!((reference.api_version.as_str(), reference.kind.as_str()), ("apps/v1", "ReplicaSet"));
    }
}
