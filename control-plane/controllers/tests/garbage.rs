//! Owners and dependents that the garbage collector has to take apart.

mod harness;

use anyhow::Result;
use futures::future::try_join_all;
use harness::{Cluster, eventually, settings};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::DeleteParams;
use serde_json::json;

const NAMES: [&str; 3] = ["a", "b", "c"];

/// Three objects, each of which keeps the one before it from going, and the last is the first's owner.
async fn circle(cluster: &Cluster) -> Result<()> {
    let mut uids = Vec::new();
    for name in NAMES {
        let made: ConfigMap = cluster.create(json!({"metadata": {"name": name}})).await?;
        uids.push(made.metadata.uid.unwrap_or_default());
    }
    for (i, name) in NAMES.iter().enumerate() {
        let owner = (i + NAMES.len() - 1) % NAMES.len();
        let reference = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": NAMES[owner], "uid": uids[owner],
                               "controller": true, "blockOwnerDeletion": true});
        cluster.patch::<ConfigMap>(name, json!({"metadata": {"ownerReferences": [reference]}})).await?;
    }
    Ok(())
}

async fn all_gone(cluster: &Cluster) -> Result<()> {
    eventually("the end of the circle", || async {
        let left =
            try_join_all(NAMES.iter().map(|n| async { cluster.api::<ConfigMap>().get_opt(n).await })).await?;
        Ok(left.iter().all(Option::is_none).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_circle_of_owners_goes_with_one_of_them() -> Result<()> {
    let cluster = Cluster::start(settings()).await?;
    circle(&cluster).await?;
    cluster.api::<ConfigMap>().delete("a", &DeleteParams::foreground()).await?;
    all_gone(&cluster).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_circle_of_which_each_was_deleted_does_not_wait_for_itself() -> Result<()> {
    let mut cluster = Cluster::start(settings()).await?;
    cluster.stop_controllers().await?;
    circle(&cluster).await?;
    for name in NAMES {
        cluster.api::<ConfigMap>().delete(name, &DeleteParams::foreground()).await?;
    }
    cluster.start_controllers();
    all_gone(&cluster).await
}
