//! Claims and volumes that are in use stay: their finalizers go once nothing uses them any more.

use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kelp_model::controllers::pods;
use kube::api::{Api, ListParams};
use kube::{Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::informer::{Change, key_of};
use crate::queue::Queue;
use crate::write;

const CLAIM_FINALIZER: &str = "kubernetes.io/pvc-protection";
const VOLUME_FINALIZER: &str = "kubernetes.io/pv-protection";
/// Index of pods by the claims they use.
const CLAIM: &str = "claim";

/// Keys of the claims that a pod uses. Pods that have no node use none: a node starts no pod with a claim being deleted.
fn claims_of(pod: &Pod) -> Vec<String> {
    let Some(spec) = pod.spec.as_ref().filter(|s| s.node_name.as_deref().is_some_and(|n| !n.is_empty()))
    else {
        return Vec::new();
    };
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let ended = pods::is_terminal(pod);
    let name_of = |volume: &k8s_openapi::api::core::v1::Volume| match &volume.persistent_volume_claim {
        Some(source) => Some(source.claim_name.clone()),
        None => (volume.ephemeral.is_some() && !ended).then(|| format!("{}-{}", pod.name_any(), volume.name)),
    };
    spec.volumes.iter().flatten().filter_map(name_of).map(|name| format!("{namespace}/{name}")).collect()
}

/// Whether a pod uses a claim; one that was made for another pod of the name is not its own.
fn uses(pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
    let key = key_of(&claim.metadata);
    let named = pod
        .spec
        .iter()
        .flat_map(|s| s.volumes.iter().flatten())
        .filter_map(|v| v.persistent_volume_claim.as_ref())
        .any(|source| claim.metadata.name.as_deref() == Some(source.claim_name.as_str()));
    let owned = || {
        let owners = claim.metadata.owner_references.iter().flatten();
        owners.filter(|o| o.controller == Some(true)).any(|o| Some(&o.uid) == pod.metadata.uid.as_ref())
    };
    claims_of(pod).iter().any(|k| **k == *key) && (named || owned())
}

/// Adds the finalizer to an object that is to stay, or takes it off one that may go.
async fn settle<K>(api: &Api<K>, object: &K, finalizer: &str, used: bool) -> Result<()>
where
    K: Resource + Serialize + DeserializeOwned + Clone + Debug,
{
    let deleted = object.meta().deletion_timestamp.is_some();
    let held = object.finalizers().iter().any(|f| f == finalizer);
    if held != deleted || (deleted && used) {
        return Ok(());
    }
    let mut wanted = object.clone();
    if deleted {
        wanted.finalizers_mut().retain(|f| f != finalizer);
    } else {
        wanted.finalizers_mut().push(finalizer.to_owned());
    }
    match write::update(api, object, &wanted).await {
        Err(error) if error.is_not_found() => Ok(()),
        other => other.map(|_| ()),
    }
}

/// Starts the protection of claims. Reads Pods and PersistentVolumeClaims; writes the finalizer of these.
pub fn claims(context: &Arc<Context>) -> Result<()> {
    let (pods, claims) = (context.informer::<Pod>(), context.informer::<PersistentVolumeClaim>());
    pods.add_index(CLAIM, claims_of);
    let queue = Queue::new();
    let q = queue.clone();
    claims.on_change(move |change| {
        if !matches!(change, Change::Deleted(_)) {
            q.add(key_of(&change.object().metadata));
        }
    });
    let (q, known) = (queue.clone(), claims.clone());
    pods.on_change(move |change| {
        let gone = match change {
            Change::Deleted(pod) => claims_of(pod),
            // Ended pods no longer use the claims made for them alone.
            Change::Updated { old, new } if pods::is_terminal(new) && !pods::is_terminal(old) => {
                claims_of(old)
            }
            _ => return,
        };
        let waits = |key: &String| known.get(key).is_some_and(|c| c.metadata.deletion_timestamp.is_some());
        gone.into_iter().filter(waits).for_each(|key| q.add(key));
    });
    let client = context.client.clone();
    context.workers("pvc-protection", &queue, 1, move |key| {
        let (pods, claims, client) = (pods.clone(), claims.clone(), client.clone());
        async move {
            let Some(claim) = claims.get(&key) else { return Ok(()) };
            let used = pods.by_index(CLAIM, &key).iter().any(|p| uses(p, &claim))
                || used_now(&client, &claim).await?;
            let namespace = claim.namespace().unwrap_or_default();
            settle(&Api::namespaced(client, &namespace), &*claim, CLAIM_FINALIZER, used).await
        }
    });
    Ok(())
}

/// Whether a claim being deleted is used by a pod that is not in the cache yet.
async fn used_now(client: &Client, claim: &PersistentVolumeClaim) -> Result<bool> {
    if claim.metadata.deletion_timestamp.is_none() {
        return Ok(false);
    }
    let api: Api<Pod> = Api::namespaced(client.clone(), &claim.namespace().unwrap_or_default());
    let pods = api.list(&ListParams::default()).await.map_err(Error::from)?;
    Ok(pods.iter().any(|pod| uses(pod, claim)))
}

/// Starts the protection of volumes. Reads and writes PersistentVolumes.
pub fn volumes(context: &Arc<Context>) -> Result<()> {
    let volumes = context.informer::<PersistentVolume>();
    let queue = Queue::new();
    let q = queue.clone();
    volumes.on_change(move |change| {
        if !matches!(change, Change::Deleted(_)) {
            q.add(key_of(&change.object().metadata));
        }
    });
    let client = context.client.clone();
    context.workers("pv-protection", &queue, 1, move |name| {
        let (volumes, client) = (volumes.clone(), client.clone());
        async move {
            let Some(volume) = volumes.get(&name) else { return Ok(()) };
            let phase = volume.status.as_ref().and_then(|s| s.phase.as_deref());
            settle(&Api::all(client), &*volume, VOLUME_FINALIZER, phase == Some("Bound")).await
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(change: impl Fn(&mut Value)) -> Pod {
        let mut pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "1"}, "spec": {"nodeName": "a",
            "containers": [], "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}},
                {"name": "e", "ephemeral": {}}]}, "status": {"phase": "Running"}});
        change(&mut pod);
        serde_json::from_value(pod).expect("pod")
    }

    fn claim(name: &str, owner: Option<&str>) -> PersistentVolumeClaim {
        let owners: Vec<Value> = owner
            .iter()
            .map(
                |uid| json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid, "controller": true}),
            )
            .collect();
        let metadata = json!({"name": name, "namespace": "n", "ownerReferences": owners});
        serde_json::from_value(json!({"metadata": metadata})).expect("claim")
    }

    #[test]
    fn uses_of_claims() {
        let running = pod(|_| {});
        assert_eq!(claims_of(&running), ["n/c", "n/p-e"]);
        assert!(uses(&running, &claim("c", None)));
        assert!(!uses(&running, &claim("d", None)));
        assert!(uses(&running, &claim("p-e", Some("1"))));
        assert!(!uses(&running, &claim("p-e", Some("2"))));
        let ended = pod(|p| p["status"]["phase"] = "Succeeded".into());
        assert!(uses(&ended, &claim("c", None)));
        assert!(!uses(&ended, &claim("p-e", Some("1"))));
        let pending = pod(|p| p["spec"]["nodeName"] = Value::Null);
        assert!(!uses(&pending, &claim("c", None)));
    }
}
