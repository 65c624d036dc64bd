//! The cluster's Services, for the environment of containers.

use futures::StreamExt;
use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The Services; clones share them.
#[derive(Clone)]
pub struct Services {
    store: Option<Store<Service>>,
}

/// Longest wait for the first list.
const WAIT: Duration = Duration::from_secs(10);

impl Services {
    /// The services of an API server, and the task that follows them until `shutdown`.
    pub fn new(client: kube::Client, shutdown: CancellationToken) -> (Self, impl Future<Output = ()>) {
        let (store, writer) = reflector::store();
        let stream = watcher(Api::<Service>::all(client), watcher::Config::default()).default_backoff();
        let task = async move {
            let mut stream = reflector::reflector(writer, stream).boxed();
            loop {
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    event = stream.next() => match event {
                        Some(Ok(_)) => {}
                        Some(Err(error)) => tracing::debug!(%error, "watch of Services failed, trying again"),
                        None => return,
                    },
                }
            }
        };
        (Self { store: Some(store) }, task)
    }

    /// No services.
    pub fn none() -> Self {
        Self { store: None }
    }

    /// The variables a pod in `namespace` gets.
    ///
    /// # Errors
    /// The services are not known yet; try again.
    pub async fn variables(&self, namespace: &str, links: bool) -> Result<BTreeMap<String, String>, String> {
        let Some(store) = &self.store else { return Ok(BTreeMap::new()) };
        match tokio::time::timeout(WAIT, store.wait_until_ready()).await {
            Ok(Ok(())) => {}
            _ => return Err("services have not yet been read at least once, cannot construct envvars".into()),
        }
        let all = store.state();
        Ok(kelp_model::pod::env::service_variables(all.iter().map(AsRef::as_ref), namespace, links))
    }
}
