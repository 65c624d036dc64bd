//! Claims and volumes in use stay until they are not.

mod harness;

use anyhow::Result;
use harness::{Cluster, eventually, settings};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

fn claim(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}}})
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_used_stays() -> Result<()> {
    let cluster = Cluster::start(settings()).await?;
    let claims: Api<PersistentVolumeClaim> = cluster.api();
    let pods: Api<Pod> = cluster.api();
    cluster.create::<PersistentVolumeClaim>(claim("free")).await?;
    let used: PersistentVolumeClaim = cluster.create(claim("used")).await?;
    assert_eq!(used.finalizers(), ["kubernetes.io/pvc-protection"]);
    let pod = json!({"metadata": {"name": "p"}, "spec": {"terminationGracePeriodSeconds": 1,
        "containers": [{"name": "c", "image": "i"}],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "used"}}]}});
    cluster.create::<Pod>(pod).await?;
    eventually("a node for the pod", || async {
        Ok(pods.get("p").await?.spec.and_then(|s| s.node_name).map(|_| ()))
    })
    .await?;
    for name in ["free", "used"] {
        claims.delete(name, &DeleteParams::default()).await?;
    }
    eventually("the end of the free claim", || async {
        Ok(claims.get_opt("free").await?.is_none().then_some(()))
    })
    .await?;
    assert!(claims.get("used").await?.metadata.deletion_timestamp.is_some());
    pods.delete("p", &DeleteParams::default()).await?;
    eventually("the end of the used claim", || async {
        Ok(claims.get_opt("used").await?.is_none().then_some(()))
    })
    .await?;

    let volumes: Api<PersistentVolume> = cluster.all();
    let volume = json!({"metadata": {"name": "v"}, "spec": {"capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/tmp/v"}}});
    volumes.create(&PostParams::default(), &serde_json::from_value(volume)?).await?;
    let phase = |phase: &str| Patch::Merge(json!({"status": {"phase": phase}}));
    volumes.patch_status("v", &PatchParams::default(), &phase("Bound")).await?;
    volumes.delete("v", &DeleteParams::default()).await?;
    assert!(volumes.get("v").await?.metadata.deletion_timestamp.is_some());
    volumes.patch_status("v", &PatchParams::default(), &phase("Released")).await?;
    eventually("the end of the volume", || async { Ok(volumes.get_opt("v").await?.is_none().then_some(())) })
        .await
}
