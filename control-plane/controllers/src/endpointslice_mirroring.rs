//! Endpoints that somebody writes for a Service without a selector, mirrored to EndpointSlices.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Endpoints, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kelp_model::controllers::endpointslice::Writes;
use kelp_model::controllers::endpointslice::mirror::{
    CONTROLLER_NAME, has_own_endpoints, mirrored, reconcile, wants_mirror,
};

use crate::context::Context;
use crate::error::Result;
use crate::events::Recorder;
use crate::informer::{Change, Informer, key_of};
use crate::queue::{Key, Queue};
use crate::slices;
use crate::tracker::Tracker;

/// Index of the slices that mirror Endpoints by the key of these.
const MIRRORED: &str = "mirrored";

struct Mirroring {
    context: Arc<Context>,
    endpoints: Arc<Informer<Endpoints>>,
    services: Arc<Informer<Service>>,
    slices: Arc<Informer<EndpointSlice>>,
    queue: Queue,
    tracker: Tracker,
    events: Recorder,
}

/// Starts the controller. Reads Endpoints and Services; writes EndpointSlices and events about Endpoints.
pub fn start(context: &Arc<Context>) -> Result<()> {
    let controller = Arc::new(Mirroring {
        context: context.clone(),
        endpoints: context.informer(),
        services: context.informer(),
        slices: context.informer(),
        queue: Queue::new(),
        tracker: Tracker::default(),
        events: context.recorder("endpoint-slice-mirroring-controller"),
    });
    controller
        .slices
        .add_index(MIRRORED, |slice| slices::service_key(slice, CONTROLLER_NAME).into_iter().collect());
    let c = controller.clone();
    controller.endpoints.on_change(move |change| {
        let old = match change {
            Change::Updated { old, .. } => wants_mirror(old),
            Change::Added(_) | Change::Deleted(_) => false,
        };
        if old || wants_mirror(change.object()) {
            c.queue.add(key_of(&change.object().metadata));
        }
    });
    let c = controller.clone();
    controller.services.on_change(move |change| {
        let affected = match change {
            Change::Updated { old, new } => has_own_endpoints(old) != has_own_endpoints(new),
            Change::Added(service) | Change::Deleted(service) => has_own_endpoints(service),
        };
        if affected {
            c.queue.add(key_of(&change.object().metadata));
        }
    });
    let c = controller.clone();
    controller.slices.on_change(move |change| {
        for key in slices::changed(change, CONTROLLER_NAME, &c.tracker) {
            c.queue.add(key);
        }
    });
    let (queue, c) = (controller.queue.clone(), controller);
    context.workers("endpointslice-mirroring", &queue, 5, move |key| {
        let c = c.clone();
        async move { c.sync(&key).await }
    });
    Ok(())
}

impl Mirroring {
    /// The Endpoints of a key, if they are to be mirrored.
    fn to_mirror(&self, key: &str) -> Option<Arc<Endpoints>> {
        let endpoints = self.endpoints.get(key).filter(|e| wants_mirror(e))?;
        let service = self.services.get(key)?;
        has_own_endpoints(&service).then_some(endpoints)
    }

    async fn sync(&self, key: &Key) -> Result<()> {
        let cached = self.slices.by_index(MIRRORED, key);
        let existing: Vec<EndpointSlice> = cached.iter().map(|s| EndpointSlice::clone(s)).collect();
        let Some(endpoints) = self.to_mirror(key) else {
            // What the cache does not show yet brings the key back.
            self.tracker.forget(key);
            let writes = Writes { delete: existing, ..Writes::default() };
            return slices::write(&self.context.client, &self.tracker, key, writes, &[]).await;
        };
        if !self.tracker.is_current(key, cached.iter().map(|s| &s.metadata)) {
            // The cache's next change of one of these slices brings the key back.
            self.queue.add_after(key.clone(), Tracker::timeout());
            return Ok(());
        }
        let max = self.context.config.mirrored_addresses_per_subset;
        let found = mirrored(&endpoints, max);
        if found.invalid > 0 {
            let text =
                format!("Skipped {} invalid IP addresses when mirroring to EndpointSlices", found.invalid);
            self.events.warning(&*endpoints, "InvalidIPAddress", text);
        }
        if found.skipped > found.invalid {
            let text = format!(
                "A max of {max} addresses can be mirrored to EndpointSlices per Endpoints subset. {} addresses were skipped",
                found.skipped
            );
            self.events.warning(&*endpoints, "TooManyAddressesToMirror", text);
        }
        let writes = reconcile(&endpoints, &found.groups, &existing);
        slices::write(&self.context.client, &self.tracker, key, writes, &existing).await
    }
}
