//! EndpointSlices: the addresses behind each Service with a selector.
//!
//! A pod's change of readiness or its deletion is written at once: traffic follows these objects.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kelp_model::controllers::endpointslice::{
    CONTROLLER_NAME, TriggerTimes, annotate, desired_groups, reconcile,
};
use parking_lot::Mutex;

use crate::context::Context;
use crate::error::Result;
use crate::events::Recorder;
use crate::informer::{Change, Informer, key_of};
use crate::queue::{Key, Queue};
use crate::service_index;
use crate::slices;
use crate::tracker::Tracker;

/// Index of slices by the key of their Service.
const SERVICE: &str = "service";
/// Label with a node's zone.
const ZONE: &str = "topology.kubernetes.io/zone";

struct EndpointSlices {
    context: Arc<Context>,
    services: Arc<Informer<Service>>,
    pods: Arc<Informer<Pod>>,
    nodes: Arc<Informer<Node>>,
    slices: Arc<Informer<EndpointSlice>>,
    queue: Queue,
    tracker: Tracker,
    triggers: Mutex<TriggerTimes>,
    events: Recorder,
}

/// Starts the controller. Reads Services, Pods and Nodes; writes EndpointSlices.
pub fn start(context: &Arc<Context>) -> Result<()> {
    let controller = Arc::new(EndpointSlices {
        context: context.clone(),
        services: context.informer(),
        pods: context.informer(),
        nodes: context.informer(),
        slices: context.informer(),
        queue: Queue::new(),
        tracker: Tracker::default(),
        triggers: Mutex::default(),
        events: context.recorder("endpoint-slice-controller"),
    });
    service_index::add(&controller.services);
    controller
        .slices
        .add_index(SERVICE, |slice| slices::service_key(slice, CONTROLLER_NAME).into_iter().collect());
    let c = controller.clone();
    controller.services.on_change(move |change| c.queue.add(key_of(&change.object().metadata)));
    let c = controller.clone();
    controller.pods.on_change(move |change| {
        service_index::affected(&c.services, change).into_iter().for_each(|key| c.queue.add(key));
    });
    let c = controller.clone();
    controller.slices.on_change(move |change| {
        let keys = slices::changed(change, CONTROLLER_NAME, &c.tracker);
        keys.into_iter().for_each(|key| c.queue.add(key));
    });
    let c = controller.clone();
    controller.nodes.on_change(move |change| {
        let zone = |n: &Node| n.metadata.labels.as_ref().and_then(|l| l.get(ZONE).cloned());
        let changed = match change {
            Change::Updated { old, new } => zone(old) != zone(new),
            Change::Added(node) => zone(node).is_some(),
            Change::Deleted(_) => false,
        };
        if changed {
            c.services.list().iter().for_each(|s| c.queue.add(key_of(&s.metadata)));
        }
    });
    let (queue, c) = (controller.queue.clone(), controller);
    context.workers("endpointslice", &queue, 5, move |key| {
        let c = c.clone();
        async move { c.sync(&key).await }
    });
    Ok(())
}

impl EndpointSlices {
    async fn sync(&self, key: &Key) -> Result<()> {
        // Slices of a deleted Service go with their owner reference.
        let Some(service) = self.services.get(key) else {
            self.triggers.lock().forget(key);
            return Ok(());
        };
        if service_index::selector(&service).is_none() || service.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let cached = self.slices.by_index(SERVICE, key);
        if !self.tracker.is_current(key, cached.iter().map(|s| &s.metadata)) {
            // The cache's next change of one of these slices brings the key back.
            self.queue.add_after(key.clone(), Tracker::timeout());
            return Ok(());
        }
        let pods = service_index::pods_of(&self.pods, &service);
        let trigger = self.triggers.lock().observe(key, &service, pods.iter().map(|pod| &**pod));
        let nodes: std::collections::HashMap<String, Arc<Node>> = pods
            .iter()
            .filter_map(|p| p.spec.as_ref()?.node_name.clone())
            .filter_map(|name| self.nodes.get(&name).map(|node| (name, node)))
            .collect();
        let groups =
            desired_groups(&service, pods.iter().map(|p| &**p), |name| nodes.get(name).map(|n| &**n));
        let mut existing: Vec<EndpointSlice> = cached.iter().map(|s| EndpointSlice::clone(s)).collect();
        existing.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        let mut writes = reconcile(&service, &groups, &existing);
        for slice in writes.create.iter_mut().chain(&mut writes.update) {
            annotate(slice, trigger);
        }

        let result = slices::write(&self.context.client, &self.tracker, key, writes, &existing).await;
        if let Err(error) = &result
            && !error.is_conflict()
        {
            let message = format!("Error updating Endpoint Slices for Service {key}: {error}");
            self.events.warning(&*service, "FailedToUpdateEndpointSlices", message);
        }
        result
    }
}
