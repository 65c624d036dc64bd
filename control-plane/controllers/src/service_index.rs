//! Which Services select a pod.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use kelp_model::controllers::pods;

use crate::informer::{Change, Informer, key_of};

/// Index of Services by the first pair of their selector.
const SELECTS: &str = "selects";

fn entry(namespace: &str, key: &str, value: &str) -> String {
    format!("{namespace}/{key}={value}")
}

/// The selector of a Service that selects pods.
pub fn selector(service: &Service) -> Option<&BTreeMap<String, String>> {
    let spec = service.spec.as_ref()?;
    // An ExternalName service is an alias and has no endpoints.
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    spec.selector.as_ref().filter(|s| !s.is_empty())
}

/// Adds the index; once per informer is enough, more is harmless.
pub fn add(services: &Informer<Service>) {
    services.add_index(SELECTS, |service| {
        let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
        selector(service)
            .and_then(|s| s.first_key_value())
            .map(|(k, v)| entry(namespace, k, v))
            .into_iter()
            .collect()
    });
}

/// The pods a Service selects, oldest first.
pub fn pods_of(pods: &Informer<Pod>, service: &Service) -> Vec<Arc<Pod>> {
    let Some(selector) = selector(service) else { return Vec::new() };
    let mut found = pods.in_namespace(service.metadata.namespace.as_deref().unwrap_or_default());
    found.retain(|pod| matches(selector, pod));
    found.sort_by_cached_key(|p| {
        (p.metadata.creation_timestamp.as_ref().map(|t| t.0), p.metadata.name.clone())
    });
    found
}

fn matches(selector: &BTreeMap<String, String>, pod: &Pod) -> bool {
    let labels = pod.metadata.labels.as_ref();
    selector.iter().all(|(k, v)| labels.and_then(|l| l.get(k)) == Some(v))
}

/// Keys of the Services whose endpoints a change of a pod may change.
pub fn affected(services: &Informer<Service>, change: &Change<'_, Pod>) -> Vec<String> {
    let mut keys = match change {
        Change::Updated { old, new } if same_endpoint(old, new) => Vec::new(),
        Change::Updated { old, new } => {
            let mut keys = selecting(services, new);
            if old.metadata.labels != new.metadata.labels {
                keys.extend(selecting(services, old));
            }
            keys
        }
        Change::Added(pod) | Change::Deleted(pod) => selecting(services, pod),
    };
    keys.sort();
    keys.dedup();
    keys
}

fn selecting(services: &Informer<Service>, pod: &Pod) -> Vec<String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let labels = pod.metadata.labels.iter().flatten();
    labels
        .flat_map(|(k, v)| services.by_index(SELECTS, &entry(namespace, k, v)))
        .filter(|service| selector(service).is_some_and(|s| matches(s, pod)))
        .map(|service| key_of(&service.metadata))
        .collect()
}

/// Whether two states of a pod give the same endpoint. (Ports and host name of a pod cannot change.)
fn same_endpoint(a: &Pod, b: &Pod) -> bool {
    let node = |p: &Pod| p.spec.as_ref().and_then(|s| s.node_name.clone());
    let addresses = |p: &Pod| p.status.as_ref().map(|s| (s.pod_ip.clone(), s.pod_ips.clone()));
    a.metadata.uid == b.metadata.uid
        && a.metadata.labels == b.metadata.labels
        && pods::is_ready(a) == pods::is_ready(b)
        && pods::is_terminating(a) == pods::is_terminating(b)
        && pods::is_terminal(a) == pods::is_terminal(b)
        && node(a) == node(b)
        && addresses(a) == addresses(b)
}
