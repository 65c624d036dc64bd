//! What the controllers that write EndpointSlices have in common.

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kelp_model::controllers::endpointslice::{MANAGED_BY, SERVICE_NAME, Writes};
use kube::Client;
use kube::api::Api;

use crate::error::{Error, Result};
use crate::informer::Change;
use crate::queue::Key;
use crate::tracker::Tracker;
use crate::write;

/// Key of the Service of a slice that the controller called `manager` writes.
pub fn service_key(slice: &EndpointSlice, manager: &str) -> Option<String> {
    let labels = slice.metadata.labels.as_ref()?;
    if labels.get(MANAGED_BY).map(String::as_str) != Some(manager) {
        return None;
    }
    Some(format!("{}/{}", slice.metadata.namespace.as_deref()?, labels.get(SERVICE_NAME)?))
}

/// Keys of the Services that a change of one of `manager`'s slices is about. One that is gone is waited for no more.
pub fn changed(change: &Change<'_, EndpointSlice>, manager: &str, tracker: &Tracker) -> Vec<String> {
    let mut keys: Vec<String> = service_key(change.object(), manager).into_iter().collect();
    match change {
        Change::Updated { old, .. } => keys.extend(service_key(old, manager)),
        Change::Deleted(slice) => keys.iter().for_each(|key| tracker.gone(key, &slice.metadata)),
        Change::Added(_) => {}
    }
    keys.dedup();
    keys
}

/// Carries out the writes for a Service's key; `existing` holds what is updated, as it was read.
///
/// # Errors
/// The first write that the server refuses, unless that is so because the namespace goes with all that is in it.
pub async fn write(
    client: &Client,
    tracker: &Tracker,
    key: &Key,
    writes: Writes,
    existing: &[EndpointSlice],
) -> Result<()> {
    let namespace = key.split_once('/').map_or("", |(namespace, _)| namespace);
    let api: Api<EndpointSlice> = Api::namespaced(client.clone(), namespace);
    for slice in writes.create {
        match api.create(&write::post_params(), &slice).await.map_err(Error::from) {
            Ok(created) => tracker.wrote(key, &created.metadata),
            Err(error) if error.is_namespace_terminating() => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    for slice in writes.update {
        let old = existing.iter().find(|s| s.metadata.name == slice.metadata.name);
        if let Some(old) = old
            && let Some(written) = write::update(&api, old, &slice).await?
        {
            tracker.wrote(key, &written.metadata);
        }
    }
    for slice in writes.delete {
        write::delete(&api, &slice, None).await?;
        tracker.deleted(key, &slice.metadata);
    }
    Ok(())
}
