//! Endpoints: the older form of EndpointSlices.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kelp_model::controllers::endpoints::{desired_subsets, truncate};
use kelp_model::controllers::endpointslice::HEADLESS;
use kube::ResourceExt;
use kube::api::Api;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::informer::{Informer, key_of};
use crate::queue::{Key, Queue};
use crate::service_index;
use crate::write;

/// Label that says who writes an Endpoints object.
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY`].
const CONTROLLER: &str = "endpoint-controller";
/// Annotation of an object that could not hold all addresses.
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";

struct EndpointsController {
    context: Arc<Context>,
    services: Arc<Informer<Service>>,
    pods: Arc<Informer<Pod>>,
    endpoints: Arc<Informer<Endpoints>>,
    queue: Queue,
}

/// Starts the controller. Reads Services and Pods; writes Endpoints.
pub fn start(context: &Arc<Context>) -> Result<()> {
    let controller = Arc::new(EndpointsController {
        context: context.clone(),
        services: context.informer(),
        pods: context.informer(),
        endpoints: context.informer(),
        queue: Queue::new(),
    });
    service_index::add(&controller.services);
    let c = controller.clone();
    controller.services.on_change(move |change| c.queue.add(key_of(&change.object().metadata)));
    let c = controller.clone();
    controller.endpoints.on_change(move |change| c.queue.add(key_of(&change.object().metadata)));
    let c = controller.clone();
    controller.pods.on_change(move |change| {
        service_index::affected(&c.services, change).into_iter().for_each(|key| c.queue.add(key));
    });
    let (queue, c) = (controller.queue.clone(), controller);
    context.workers("endpoints", &queue, 5, move |key| {
        let c = c.clone();
        async move { c.sync(&key).await }
    });
    Ok(())
}

impl EndpointsController {
    async fn sync(&self, key: &Key) -> Result<()> {
        let existing = self.endpoints.get(key);
        let Some(service) = self.services.get(key) else {
            // Only what this controller made goes with the Service.
            let ours = |e: &Endpoints| {
                e.metadata.labels.as_ref().and_then(|l| l.get(MANAGED_BY)).map(String::as_str)
                    == Some(CONTROLLER)
            };
            if let Some(existing) = existing.filter(|e| ours(e)) {
                let api: Api<Endpoints> =
                    Api::namespaced(self.context.client.clone(), &existing.namespace().unwrap_or_default());
                write::delete(&api, &*existing, None).await?;
            }
            return Ok(());
        };
        if service_index::selector(&service).is_none() || service.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let pods = service_index::pods_of(&self.pods, &service);
        let mut subsets = desired_subsets(&service, pods.iter().map(|p| &**p));
        let truncated = truncate(&mut subsets);
        let mut labels = service.metadata.labels.clone().unwrap_or_default();
        labels.remove(HEADLESS);
        if service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None") {
            labels.insert(HEADLESS.into(), String::new());
        }
        labels.insert(MANAGED_BY.into(), CONTROLLER.into());

        let namespace = service.namespace().unwrap_or_default();
        let api: Api<Endpoints> = Api::namespaced(self.context.client.clone(), &namespace);
        let mut wanted = existing.as_deref().cloned().unwrap_or_else(|| Endpoints {
            metadata: ObjectMeta {
                name: service.metadata.name.clone(),
                namespace: Some(namespace),
                ..ObjectMeta::default()
            },
            subsets: None,
        });
        wanted.metadata.labels = Some(labels);
        let mut annotations = wanted.metadata.annotations.take().unwrap_or_default();
        if truncated {
            annotations.insert(OVER_CAPACITY.into(), "truncated".into());
        } else {
            annotations.remove(OVER_CAPACITY);
        }
        wanted.metadata.annotations = (!annotations.is_empty()).then_some(annotations);
        wanted.subsets = (!subsets.is_empty()).then_some(subsets);
        match existing {
            Some(existing) => {
                write::update(&api, &*existing, &wanted).await?;
                Ok(())
            }
            None => match api.create(&write::post_params(), &wanted).await.map_err(Error::from) {
                Err(error) if error.is_namespace_terminating() => Ok(()),
                other => other.map(|_| ()),
            },
        }
    }
}
