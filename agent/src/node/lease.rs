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
/// Time after which a node that does not renew counts as gone, seconds.
const DURATION: i32 = 40;
/// Between two renewals.
const PERIOD: Duration = Duration::from_secs(10);
/// Between two attempts.
const RETRY: Duration = Duration::from_millis(500);

/// Renews the node's Lease every 10 s until `shutdown`.
pub async fn keep_lease(client: kube::Client, node_name: String, shutdown: CancellationToken) {
    let mut delay = RETRY;
    loop {
        let wait = match tokio::time::timeout(PERIOD, renew(&client, &node_name)).await {
            Ok(Ok(())) => {
                delay = RETRY;
                PERIOD
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

async fn renew(client: &kube::Client, node_name: &str) -> Result<(), kube::Error> {
    let api: Api<Lease> = Api::namespaced(client.clone(), NAMESPACE);
    let now = MicroTime(jiff::Timestamp::now());
    let spec = LeaseSpec {
        holder_identity: Some(node_name.to_owned()),
        lease_duration_seconds: Some(DURATION),
        renew_time: Some(now),
        ..LeaseSpec::default()
    };
    let patch = json!({"spec": spec});
    match api.patch(node_name, &PatchParams::default(), &Patch::Merge(&patch)).await {
        Err(kube::Error::Api(error)) if error.code == 404 => {}
        other => return other.map(|_| ()),
    }
    // The Lease goes with its Node.
    let node = Api::<Node>::all(client.clone()).get_opt(node_name).await?;
    let owner = node.and_then(|n| n.metadata.uid).map(|uid| OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: node_name.to_owned(),
        uid,
        ..OwnerReference::default()
    });
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
