//! Small plugins: gates, queue order, cordoned nodes, node names, the binding itself.

use crate::cluster::Cluster;
use crate::framework::*;
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Binding, ObjectReference, Pod};
use kelp_model::scheduling::{Effect, NodeInfo, PodInfo, Taint};
use kube::Api;
use kube::api::PostParams;

/// Holds back pods with scheduling gates.
pub struct SchedulingGates;

impl Plugin for SchedulingGates {
    fn name(&self) -> &'static str {
        "SchedulingGates"
    }
}

impl PreEnqueue for SchedulingGates {
    fn pre_enqueue(&self, pod: &PodInfo) -> Result<(), Rejection> {
        if pod.gates.is_empty() {
            return Ok(());
        }
        Err(Rejection::unresolvable(format!("waiting for scheduling gates: {:?}", pod.gates)))
    }
}

/// Pods of higher priority go first.
pub struct PrioritySort;

impl Plugin for PrioritySort {
    fn name(&self) -> &'static str {
        "PrioritySort"
    }
}

impl QueueSort for PrioritySort {
    fn rank(&self, pod: &PodInfo) -> i64 {
        -i64::from(pod.priority)
    }
}

/// Avoids cordoned nodes, unless the pod tolerates it.
pub struct NodeUnschedulable;

impl Plugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }
}

fn tolerates_cordon(pod: &PodInfo) -> bool {
    let taint = Taint {
        key: "node.kubernetes.io/unschedulable".into(),
        value: "".into(),
        effect: Effect::NoSchedule,
    };
    pod.tolerations.iter().any(|toleration| toleration.tolerates(&taint))
}

impl Filter for NodeUnschedulable {
    fn filter(&self, _: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        if node.unschedulable && !tolerates_cordon(pod) {
            return Err(Rejection::unresolvable("node(s) were unschedulable"));
        }
        Ok(())
    }
}

impl EnqueueExtensions for NodeUnschedulable {
    fn may_help(&self, pod: &PodInfo, change: &Change<'_>, _: &Cluster) -> bool {
        match change {
            Change::Node { node, what } => {
                what.unschedulable && (!node.unschedulable || tolerates_cordon(pod))
            }
            _ => false,
        }
    }
}

/// Keeps a pod to the node it names.
pub struct NodeName;

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }
}

impl Filter for NodeName {
    fn filter(&self, _: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        match &pod.node_name {
            Some(name) if **name != *node.name => {
                Err(Rejection::unresolvable("node(s) didn't match the requested node name"))
            }
            _ => Ok(()),
        }
    }
}

impl EnqueueExtensions for NodeName {
    fn may_help(&self, pod: &PodInfo, change: &Change<'_>, _: &Cluster) -> bool {
        matches!(change, Change::Node { node, what } if what.added && Some(&node.name) == pod.node_name.as_ref())
    }
}

/// Devices by claim. No claim can hold a device here yet, so there is none to take back for another pod.
pub struct DynamicResources;

impl Plugin for DynamicResources {
    fn name(&self) -> &'static str {
        "DynamicResources"
    }
}

impl PostFilter for DynamicResources {
    fn post_filter(&self, cycle: &PostFilterCycle<'_>) -> PostFiltered {
        // The pre-filters that can reject a pod come before this plugin's, which then has nothing to look at; upstream's
        // words for that are these.
        if cycle.diagnosis.pre_filter.is_some() {
            return PostFiltered::Failed("not found".to_owned());
        }
        PostFiltered::Nothing(Some("no new claims to deallocate".to_owned()))
    }
}

/// Binds through the API server's `pods/binding`.
pub struct DefaultBinder;

impl Plugin for DefaultBinder {
    fn name(&self) -> &'static str {
        "DefaultBinder"
    }
}

impl Bind for DefaultBinder {
    fn bind<'a>(
        &'a self,
        client: &'a kube::Client,
        pod: &'a PodInfo,
        node: &'a str,
    ) -> BoxFuture<'a, Result<bool, BindError>> {
        async move {
            let binding = Binding {
                metadata: kube::api::ObjectMeta {
                    name: Some(pod.name.to_string()),
                    namespace: Some(pod.namespace.to_string()),
                    // With the UID a pod that was deleted and made anew is not bound by an old decision.
                    uid: Some(pod.uid.to_string()),
                    ..Default::default()
                },
                target: ObjectReference {
                    kind: Some("Node".to_owned()),
                    name: Some(node.to_owned()),
                    ..ObjectReference::default()
                },
            };
            let api = Api::<Pod>::namespaced(client.clone(), &pod.namespace);
            let _: serde_json::Value =
                api.create_subresource("binding", &pod.name, &PostParams::default(), &binding).await?;
            Ok(true)
        }
        .boxed()
    }
}
