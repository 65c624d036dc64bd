//! Claims and volumes: bound, made for pods, attached, released, and kept while they are in use.

mod harness;

use std::time::Duration;

use anyhow::Result;
use harness::{BEHAVIOUR, Cluster, eventually, settings};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{StorageClass, VolumeAttachment};
use kelp_controllers::Config;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
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
    volumes.create(&PostParams::default(), &volume("v", "1Gi", json!({}))).await?;
    cluster.create::<PersistentVolumeClaim>(classed("holder", json!({}))).await?;
    claim_phase(&cluster, "holder", "Bound").await?;
    volumes.delete("v", &DeleteParams::default()).await?;
    assert!(volumes.get("v").await?.metadata.deletion_timestamp.is_some());
    claims.delete("holder", &DeleteParams::default()).await?;
    eventually("the end of the volume", || async { Ok(volumes.get_opt("v").await?.is_none().then_some(())) })
        .await
}

fn volume(name: &str, size: &str, more: Value) -> PersistentVolume {
    let mut volume = json!({"metadata": {"name": name}, "spec": {"capacity": {"storage": size},
        "accessModes": ["ReadWriteOnce"], "storageClassName": "c", "hostPath": {"path": format!("/srv/{name}")}}});
    for (key, value) in more.as_object().into_iter().flatten() {
        volume["spec"][key] = value.clone();
    }
    serde_json::from_value(volume).expect("volume")
}

fn classed(name: &str, more: Value) -> Value {
    let mut claim = claim(name);
    claim["spec"]["storageClassName"] = "c".into();
    for (key, value) in more.as_object().into_iter().flatten() {
        claim["spec"][key] = value.clone();
    }
    claim
}

async fn claim_phase(cluster: &Cluster, name: &str, phase: &str) -> Result<PersistentVolumeClaim> {
    eventually(&format!("claim {name} {phase}"), || async {
        let claim: PersistentVolumeClaim = cluster.api().get(name).await?;
        Ok((claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some(phase)).then_some(claim))
    })
    .await
}

async fn volume_phase(cluster: &Cluster, name: &str, phase: &str) -> Result<PersistentVolume> {
    eventually(&format!("volume {name} {phase}"), || async {
        let volume: PersistentVolume = cluster.all().get(name).await?;
        Ok((volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some(phase)).then_some(volume))
    })
    .await
}

/// Claims and volumes come in either order; each claim gets another volume, and what asks for more waits.
#[tokio::test(flavor = "multi_thread")]
async fn many_claims_share_no_volume() -> Result<()> {
    let cluster = Cluster::start(settings()).await?;
    let volumes: Api<PersistentVolume> = cluster.all();
    for i in 0..4 {
        cluster.create::<PersistentVolumeClaim>(classed(&format!("before{i}"), json!({}))).await?;
    }
    for i in 0..8 {
        volumes.create(&PostParams::default(), &volume(&format!("v{i}"), "1Gi", json!({}))).await?;
    }
    for i in 0..4 {
        cluster.create::<PersistentVolumeClaim>(classed(&format!("after{i}"), json!({}))).await?;
    }
    let mut names = std::collections::BTreeSet::new();
    for i in 0..4 {
        for when in ["before", "after"] {
            let bound = claim_phase(&cluster, &format!("{when}{i}"), "Bound").await?;
            names.insert(bound.spec.and_then(|s| s.volume_name).unwrap_or_default());
        }
    }
    assert_eq!(names.len(), 8, "{names:?}");
    cluster.create::<PersistentVolumeClaim>(classed("one-more", json!({}))).await?;
    claim_phase(&cluster, "one-more", "Pending").await?;
    // A volume too small for what is asked is named by its claim in vain.
    volumes.create(&PostParams::default(), &volume("small", "1Mi", json!({"storageClassName": "s"}))).await?;
    let named = classed("named", json!({"volumeName": "small", "storageClassName": "s"}));
    cluster.create::<PersistentVolumeClaim>(named).await?;
    eventually("the reason", || async {
        let wanted = "VolumeMismatch: Cannot bind to requested volume \"small\": requested PV is too small";
        Ok(cluster.events_about("named").await?.contains(&wanted.to_owned()).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_say_what_becomes_of_released_volumes() -> Result<()> {
    let cluster = Cluster::start(settings()).await?;
    let volumes: Api<PersistentVolume> = cluster.all();
    let claims: Api<PersistentVolumeClaim> = cluster.api();
    let directory = tempfile::Builder::new().prefix("kelp-volume").tempdir_in("/tmp")?;
    let path = directory.path().join("data");
    std::fs::create_dir_all(path.join("deep"))?;
    let of = |class: &str, policy: &str, path: &str| {
        volume(
            class,
            "1Gi",
            json!({"storageClassName": class, "persistentVolumeReclaimPolicy": policy, "hostPath": {"path": path}}),
        )
    };
    let deleted = path.to_str().unwrap_or_default();
    for (class, policy, path) in [
        ("retained", "Retain", "/srv/a"),
        ("deleted", "Delete", deleted),
        ("elsewhere", "Delete", "/srv/b"),
        ("scrubbed", "Recycle", "/srv/c"),
    ] {
        volumes.create(&PostParams::default(), &of(class, policy, path)).await?;
        cluster.create::<PersistentVolumeClaim>(classed(class, json!({"storageClassName": class}))).await?;
        claim_phase(&cluster, class, "Bound").await?;
        claims.delete(class, &DeleteParams::default()).await?;
    }
    volume_phase(&cluster, "retained", "Released").await?;
    let failed = volume_phase(&cluster, "elsewhere", "Failed").await?;
    let message = failed.status.and_then(|s| s.message).unwrap_or_default();
    assert_eq!(message, "host_path deleter only supports /tmp/.+ but received provided /srv/b");
    volume_phase(&cluster, "scrubbed", "Failed").await?;
    eventually("the end of the volume", || async {
        Ok(volumes.get_opt("deleted").await?.is_none().then_some(()))
    })
    .await?;
    assert!(!path.exists());
    // A person frees the retained volume by taking the reference away.
    let patch = Patch::Merge(json!({"spec": {"claimRef": null}}));
    volumes.patch("retained", &PatchParams::default(), &patch).await?;
    volume_phase(&cluster, "retained", "Available").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn classes_delay_and_provision() -> Result<()> {
    let cluster = Cluster::start(settings()).await?;
    let classes: Api<StorageClass> = cluster.all();
    let class = |name: &str, provisioner: &str, mode: &str, default: &str| {
        serde_json::from_value::<StorageClass>(json!({"metadata": {"name": name,
            "annotations": {"storageclass.kubernetes.io/is-default-class": default}},
            "provisioner": provisioner, "volumeBindingMode": mode}))
    };
    // A claim without an opinion gets the class that becomes the default later.
    cluster.create::<PersistentVolumeClaim>(claim("early")).await?;
    let external = class("c", "example.com/disk", "Immediate", "true")?;
    classes.create(&PostParams::default(), &external).await?;
    let early = eventually("the provisioner's name", || async {
        let early: PersistentVolumeClaim = cluster.api().get("early").await?;
        Ok(early.annotations().contains_key("volume.kubernetes.io/storage-provisioner").then_some(early))
    })
    .await?;
    assert_eq!(early.annotations()["volume.kubernetes.io/storage-provisioner"], "example.com/disk");
    assert_eq!(early.spec.as_ref().and_then(|s| s.storage_class_name.as_deref()), Some("c"));
    eventually("the event", || async {
        let events = cluster.events_about("early").await?;
        Ok(events.iter().any(|e| e.starts_with("ExternalProvisioning: Waiting for a volume")).then_some(()))
    })
    .await?;
    let delayed = class("late", "kubernetes.io/no-provisioner", "WaitForFirstConsumer", "false")?;
    classes.create(&PostParams::default(), &delayed).await?;
    let late = classed("late", json!({"storageClassName": "late"}));
    cluster.create::<PersistentVolumeClaim>(late).await?;
    let fitting = volume("fits", "1Gi", json!({"storageClassName": "late"}));
    cluster.all::<PersistentVolume>().create(&PostParams::default(), &fitting).await?;
    volume_phase(&cluster, "fits", "Available").await?;
    eventually("what it waits for", || async {
        let wanted = "WaitForFirstConsumer: waiting for first consumer to be created before binding";
        Ok(cluster.events_about("late").await?.contains(&wanted.to_owned()).then_some(()))
    })
    .await?;
    // The scheduler reserves the volume; the rest is done here.
    let uid = cluster.api::<PersistentVolumeClaim>().get("late").await?.metadata.uid;
    let reserve = json!({"spec": {"claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "namespace": "default", "name": "late", "uid": uid}}});
    let volumes: Api<PersistentVolume> = cluster.all();
    volumes.patch("fits", &PatchParams::default(), &Patch::Merge(reserve)).await?;
    claim_phase(&cluster, "late", "Bound").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn ephemeral_claims_belong_to_their_pods() -> Result<()> {
    let cluster = Cluster::start(settings()).await?;
    let pod = |name: &str| {
        json!({"metadata": {"name": name}, "spec": {"terminationGracePeriodSeconds": 1,
            "containers": [{"name": "c", "image": "i"}],
            "volumes": [{"name": "v", "ephemeral": {"volumeClaimTemplate": {"metadata": {"labels": {"a": "b"}},
                "spec": claim("")["spec"]}}}]}})
    };
    let made: Pod = cluster.create(pod("p")).await?;
    let claims: Api<PersistentVolumeClaim> = cluster.api();
    let claim_of_p = eventually("the claim", || async { Ok(claims.get_opt("p-v").await?) }).await?;
    let owner = &claim_of_p.owner_references()[0];
    assert_eq!((Some(&owner.uid), owner.controller), (made.metadata.uid.as_ref(), Some(true)));
    assert_eq!(claim_of_p.labels()["a"], "b");
    // Somebody's claim has the name: it is left alone.
    cluster.create::<PersistentVolumeClaim>(claim("q-v")).await?;
    cluster.create::<Pod>(pod("q")).await?;
    eventually("the conflict", || async {
        let wanted = "FailedBinding: ephemeral volume v: PVC default/q-v was not created for pod default/q (pod is not owner)";
        Ok(cluster.events_about("q").await?.contains(&wanted.to_owned()).then_some(()))
    })
    .await?;
    cluster.api::<Pod>().delete("p", &DeleteParams::default()).await?;
    eventually("the end of the claim", || async { Ok(claims.get_opt("p-v").await?.is_none().then_some(())) })
        .await
}

/// A volume that was attached for a pod which is gone, and that its node still has mounted: name of the attachment.
async fn kept_attachment(cluster: &Cluster) -> Result<String> {
    let volumes: Api<PersistentVolume> = cluster.all();
    let csi = json!({"hostPath": null, "csi": {"driver": "d.example.com", "volumeHandle": "h"}});
    volumes.create(&PostParams::default(), &volume("v", "1Gi", csi)).await?;
    cluster.create::<PersistentVolumeClaim>(classed("c", json!({}))).await?;
    claim_phase(cluster, "c", "Bound").await?;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"terminationGracePeriodSeconds": 1,
        "containers": [{"name": "c", "image": "i"}],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}});
    cluster.create::<Pod>(pod).await?;
    let attachments: Api<VolumeAttachment> = cluster.all();
    let made = eventually("the attachment", || async {
        Ok(attachments.list(&ListParams::default()).await?.items.into_iter().next())
    })
    .await?;
    assert_eq!((made.spec.attacher.as_str(), made.spec.node_name.as_str()), ("d.example.com", "n1"));
    assert!(made.name_any().starts_with("csi-") && made.name_any().len() == 68, "{}", made.name_any());
    let patch = Patch::Merge(json!({"status": {"attached": true}}));
    attachments.patch_status(&made.name_any(), &PatchParams::default(), &patch).await?;
    let nodes: Api<Node> = cluster.all();
    eventually("the node's list", || async {
        let status = nodes.get("n1").await?.status.unwrap_or_default();
        let names: Vec<String> = status.volumes_attached.into_iter().flatten().map(|v| v.name).collect();
        Ok((names == ["kubernetes.io/csi/d.example.com^h"]).then_some(()))
    })
    .await?;
    eventually("the event", || async {
        let wanted = "SuccessfulAttachVolume: AttachVolume.Attach succeeded for volume \"v\" ";
        Ok(cluster.events_about("p").await?.contains(&wanted.to_owned()).then_some(()))
    })
    .await?;
    // The node still has it mounted when the pod goes.
    let used = in_use(json!(["kubernetes.io/csi/d.example.com^h"]));
    nodes.patch_status("n1", &PatchParams::default(), &used).await?;
    cluster.api::<Pod>().delete("p", &DeleteParams::default()).await?;
    eventually("the end of the pod", || async {
        Ok(cluster.api::<Pod>().get_opt("p").await?.is_none().then_some(()))
    })
    .await?;
    assert!(attachments.get_opt(&made.name_any()).await?.is_some());
    Ok(made.name_any())
}

fn in_use(list: Value) -> Patch<Value> {
    Patch::Merge(json!({"status": {"volumesInUse": list}}))
}

async fn detached(cluster: &Cluster, name: &str) -> Result<()> {
    let attachments: Api<VolumeAttachment> = cluster.all();
    eventually("the end of the attachment", || async {
        Ok(attachments.get_opt(name).await?.is_none().then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_are_attached_for_pods_and_detached_once_unused() -> Result<()> {
    let cluster = Cluster::start(settings()).await?;
    let name = kept_attachment(&cluster).await?;
    cluster.all::<Node>().patch_status("n1", &PatchParams::default(), &in_use(json!([]))).await?;
    detached(&cluster, &name).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_out_of_service_loses_its_volumes() -> Result<()> {
    let cluster = Cluster::start(settings()).await?;
    let name = kept_attachment(&cluster).await?;
    let taint =
        json!({"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"});
    let patch = Patch::Merge(json!({"spec": {"taints": [taint]}}));
    cluster.all::<Node>().patch("n1", &PatchParams::default(), &patch).await?;
    detached(&cluster, &name).await
}

async fn set_ready(cluster: &Cluster, status: &str) -> Result<()> {
    let patch = json!({"status": {"conditions": [{"type": "Ready", "status": status}]}});
    cluster.all::<Node>().patch_status("n1", &PatchParams::default(), &Patch::Strategic(patch)).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_not_ready_for_long_loses_its_volumes() -> Result<()> {
    let config = Config { force_detach_after: Some(Duration::from_millis(100)), ..settings() };
    let cluster = Cluster::start(config).await?;
    let name = kept_attachment(&cluster).await?;
    set_ready(&cluster, "Unknown").await?;
    detached(&cluster, &name).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_not_ready_keeps_its_volumes_if_nothing_is_detached_by_time() -> Result<()> {
    let cluster = Cluster::start(Config { force_detach_after: None, ..settings() }).await?;
    let name = kept_attachment(&cluster).await?;
    set_ready(&cluster, "Unknown").await?;
    // What the controller does for this pod it does after it has seen the node's state.
    let volumes: Api<PersistentVolume> = cluster.all();
    let csi = json!({"hostPath": null, "csi": {"driver": "d.example.com", "volumeHandle": "h2"}});
    volumes.create(&PostParams::default(), &volume("v2", "1Gi", csi)).await?;
    cluster.create::<PersistentVolumeClaim>(classed("c2", json!({}))).await?;
    claim_phase(&cluster, "c2", "Bound").await?;
    let pod = json!({"metadata": {"name": "p2"}, "spec": {"containers": [{"name": "c", "image": "i"}],
        "tolerations": [{"operator": "Exists"}],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c2"}}]}});
    cluster.create::<Pod>(pod).await?;
    let attachments: Api<VolumeAttachment> = cluster.all();
    let names = eventually("the attachment of another volume", || async {
        let all = attachments.list(&ListParams::default()).await?.items;
        let names: Vec<String> = all.iter().map(ResourceExt::name_any).collect();
        Ok(names.iter().any(|n| *n != name).then_some(names))
    })
    .await?;
    assert!(names.contains(&name), "{names:?}");
    let taint =
        json!({"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"});
    let patch = Patch::Merge(json!({"spec": {"taints": [taint]}}));
    cluster.all::<Node>().patch("n1", &PatchParams::default(), &patch).await?;
    detached(&cluster, &name).await
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_a_lost_node_out_of_service_are_removed() -> Result<()> {
    let cluster = Cluster::start(settings()).await?;
    let pod = json!({"metadata": {"name": "p", "annotations": {BEHAVIOUR: "ready,hold"}},
        "spec": {"containers": [{"name": "c", "image": "i"}], "tolerations": [{"operator": "Exists"}]}});
    cluster.create::<Pod>(pod).await?;
    eventually("a running pod", || async {
        let pod: Pod = cluster.api().get("p").await?;
        Ok(pod.status.and_then(|s| s.phase).filter(|p| p == "Running"))
    })
    .await?;
    cluster.api::<Pod>().delete("p", &DeleteParams::default().grace_period(1)).await?;
    let nodes: Api<Node> = cluster.all();
    let lost = json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}});
    nodes.patch_status("n1", &PatchParams::default(), &Patch::Strategic(lost)).await?;
    let taint =
        json!({"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"});
    let tainted = Patch::Strategic(json!({"spec": {"taints": [taint]}}));
    let watched = cluster.api::<Pod>();
    assert!(watched.get_opt("p").await?.is_some(), "nobody on the node finishes its deletion");
    nodes.patch("n1", &PatchParams::default(), &tainted).await?;
    eventually("the end of the pod", || async { Ok(watched.get_opt("p").await?.is_none().then_some(())) })
        .await
}
