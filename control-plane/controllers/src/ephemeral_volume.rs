//! The claims of generic ephemeral volumes: made for a pod, owned by it, gone with it.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kelp_model::controllers::pods;
use kelp_model::volume::pods::{ephemeral_claim_name, is_made_for};
use kube::ResourceExt;
use kube::api::Api;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::informer::{Change, Informer, key_of};
use crate::queue::Queue;
use crate::write;

/// Index of pods by the claims that are made for them.
const CLAIM: &str = "ephemeral-claim";

fn claims_of(pod: &Pod) -> Vec<String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()).filter(|v| v.ephemeral.is_some());
    volumes.map(|v| format!("{namespace}/{}", ephemeral_claim_name(&pod.name_any(), &v.name))).collect()
}

/// Starts the controller. Reads Pods and PersistentVolumeClaims; creates PersistentVolumeClaims.
pub fn start(context: &Arc<Context>) -> Result<()> {
    let (pods, claims) = (context.informer::<Pod>(), context.informer::<PersistentVolumeClaim>());
    pods.add_index(CLAIM, claims_of);
    let queue = Queue::new();
    let q = queue.clone();
    pods.on_change(move |change| {
        let pod = change.object();
        if !matches!(change, Change::Deleted(_)) && !claims_of(pod).is_empty() {
            q.add(key_of(&pod.metadata));
        }
    });
    let (q, known) = (queue.clone(), pods.clone());
    // A claim that was deleted is made again for a pod that still needs it.
    claims.on_change(move |change| {
        if let Change::Deleted(claim) = change {
            let users = known.by_index(CLAIM, &key_of(&claim.metadata));
            users.iter().for_each(|pod| q.add(key_of(&pod.metadata)));
        }
    });
    let c = context.clone();
    context.workers("ephemeral-volume", &queue, 2, move |key| {
        let (context, pods, claims) = (c.clone(), pods.clone(), claims.clone());
        async move {
            let Some(pod) = pods.get(&key) else { return Ok(()) };
            if pods::is_terminating(&pod) || pods::is_terminal(&pod) {
                return Ok(());
            }
            for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
                make_claim(&context, &claims, &pod, volume).await?;
            }
            Ok(())
        }
    });
    Ok(())
}

async fn make_claim(
    context: &Context,
    claims: &Informer<PersistentVolumeClaim>,
    pod: &Pod,
    volume: &Volume,
) -> Result<()> {
    let Some(template) = volume.ephemeral.as_ref().and_then(|e| e.volume_claim_template.as_ref()) else {
        return Ok(());
    };
    let recorder = context.recorder("ephemeral_volume");
    let name = ephemeral_claim_name(&pod.name_any(), &volume.name);
    let namespace = pod.namespace().unwrap_or_default();
    if let Some(claim) = claims.get(&format!("{namespace}/{name}")) {
        // Somebody else's claim of the name is not taken: the pod would write into their data.
        return match is_made_for(&namespace, &pod.name_any(), &pod.uid().unwrap_or_default(), &claim) {
            Ok(()) => Ok(()),
            Err(why) => {
                recorder.warning(pod, "FailedBinding", format!("ephemeral volume {}: {why}", volume.name));
                Err(Error::Failed(why))
            }
        };
    }
    let mut metadata = template.metadata.clone().unwrap_or_default();
    metadata.name = Some(name);
    metadata.namespace = Some(namespace.clone());
    metadata.owner_references = Some(vec![OwnerReference {
        api_version: "v1".into(),
        kind: "Pod".into(),
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }]);
    let claim = PersistentVolumeClaim { metadata, spec: Some(template.spec.clone()), status: None };
    let api: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), &namespace);
    match api.create(&write::post_params(), &claim).await.map_err(Error::from) {
        Ok(_) => Ok(()),
        Err(error) if error.is_namespace_terminating() => Ok(()),
        Err(error) => {
            let text = format!("ephemeral volume {}: create PVC {}: {error}", volume.name, claim.name_any());
            recorder.warning(pod, "FailedCreate", text);
            Err(error)
        }
    }
}
