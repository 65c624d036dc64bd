//! Mirror pods: how the API server shows a static pod.
//!
//! A mirror is made from the static pod and follows it: it is made again when somebody deletes it, and removed with the
//! static pod. Its deletion stops nothing on the node.

use super::static_pods::{HASH, MIRROR};
use crate::pod::reference::PodRef;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Api;
use kube::api::{DeleteParams, PostParams, Preconditions};

/// A pod of the API server is the mirror of a static pod.
pub fn is_mirror(pod: &Pod) -> bool {
    pod.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(MIRROR))
}

/// UID of the static pod that a mirror shows.
pub fn original(mirror: &Pod) -> Option<&String> {
    mirror.metadata.annotations.as_ref()?.get(MIRROR)
}

/// A mirror as those on the node see it, who know the static pod by its own UID.
pub fn as_static(mirror: &Pod) -> Pod {
    let mut pod = mirror.clone();
    pod.metadata.uid = original(mirror).cloned();
    pod
}

/// The object to make for a static pod.
fn of(pod: &Pod, node: &Node) -> Pod {
    let mut mirror = pod.clone();
    let meta = &mut mirror.metadata;
    let annotations = meta.annotations.get_or_insert_default();
    if let Some(hash) = annotations.get(HASH).cloned() {
        annotations.insert(MIRROR.into(), hash);
    }
    meta.uid = None;
    meta.resource_version = None;
    meta.owner_references = Some(vec![OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: node.metadata.name.clone().unwrap_or_default(),
        uid: node.metadata.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: None,
    }]);
    mirror
}

/// Makes the mirror of a static pod. One of this name that is there already is seen by the watch.
pub async fn create(client: kube::Client, pod: &Pod, node: &Node) {
    let reference = PodRef::from(pod);
    let api: Api<Pod> = Api::namespaced(client, &reference.namespace);
    match api.create(&PostParams::default(), &of(pod, node)).await {
        Ok(_) => tracing::info!(pod = %reference, "mirror pod made"),
        Err(kube::Error::Api(error)) if error.code == 409 => {}
        Err(error) => tracing::warn!(pod = %reference, %error, "mirror pod not made"),
    }
}

/// Removes a mirror at once.
pub async fn delete(client: kube::Client, mirror: &Pod) {
    let reference = PodRef::from(mirror);
    let api: Api<Pod> = Api::namespaced(client, &reference.namespace);
    let how = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions { uid: Some(reference.uid.clone()), resource_version: None }),
        ..DeleteParams::default()
    };
    match api.delete(&reference.name, &how).await {
        Ok(_) => {}
        Err(kube::Error::Api(error)) if error.code == 404 || error.code == 409 => {}
        Err(error) => tracing::warn!(pod = %reference, %error, "mirror pod not removed"),
    }
}
