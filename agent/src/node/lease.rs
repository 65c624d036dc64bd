//! The node's heartbeat.

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Namespace of the leases.
const NAMESPACE: &str = "kube-node-lease";
/// Between two attempts.
const RETRY: Duration = Duration::from_millis(500);

/// Keeps the node's Lease until `shutdown`: a node that has not renewed it for `seconds` counts as gone, so that it is
/// renewed four times in that.
pub async fn keep_lease(client: kube::Client, node_name: String, seconds: i32, shutdown: CancellationToken) {
    let mut delay = RETRY;
    let period = Duration::from_millis(u64::try_from(seconds.max(1)).unwrap_or(40) * 250);
    loop {
        let wait = match tokio::time::timeout(period, renew(&client, &node_name, seconds)).await {
            Ok(Ok(())) => {
                delay = RETRY;
                period
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "Lease not renewed, trying again");
                delay = (delay * 2).min(Duration::from_secs(7));
                delay
            }
            Err(_) => delay,
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

async fn renew(client: &kube::Client, node_name: &str, seconds: i32) -> Result<(), kube::Error> {
    let api: Api<Lease> = Api::namespaced(client.clone(), NAMESPACE);
    let now = MicroTime(jiff::Timestamp::now());
    let spec = LeaseSpec {
        holder_identity: Some(node_name.to_owned()),
        lease_duration_seconds: Some(seconds),
        renew_time: Some(now),
        ..LeaseSpec::default()
    };
    let patch = json!({"spec": spec});
    let renewed = match api.patch(node_name, &PatchParams::default(), &Patch::Merge(&patch)).await {
        Err(kube::Error::Api(error)) if error.code == 404 => None,
        other => Some(other?),
    };
    if renewed.as_ref().is_some_and(|lease| lease.metadata.owner_references.is_some()) {
        return Ok(());
    }
    // The Lease goes with its Node; it may be older than that.
    let node = Api::<Node>::all(client.clone()).get_opt(node_name).await?;
    let owner = node.and_then(|n| n.metadata.uid).map(|uid| OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: node_name.to_owned(),
        uid,
        ..OwnerReference::default()
    });
    if renewed.is_some() {
        let Some(owner) = owner else { return Ok(()) };
        let patch = json!({"metadata": {"ownerReferences": [owner]}});
        return api.patch(node_name, &PatchParams::default(), &Patch::Merge(&patch)).await.map(|_| ());
    }
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(node_name.to_owned()),
            namespace: Some(NAMESPACE.to_owned()),
            owner_references: owner.map(|o| vec![o]),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
    };
    api.create(&PostParams::default(), &lease).await.map(|_| ())
}
