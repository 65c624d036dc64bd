//! ReplicationControllers through the API.

mod harness;

use std::collections::BTreeSet;

use anyhow::Result;
use harness::{Cluster, eventually, settings};
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::core::v1::{Event, Pod, ReplicationController, ResourceQuota, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

/// One without a selector of its own: the labels of its template are it.
fn controller(name: &str, replicas: i32) -> Value {
    json!({"metadata": {"name": name}, "spec": {"replicas": replicas, "template": {
        "metadata": {"labels": {"app": name}},
        "spec": {"containers": [{"name": "c", "image": "app:1"}], "terminationGracePeriodSeconds": 1},
    }}})
}

/// Waits until the status says that `replicas` pods are there, ready and as the template labels them.
async fn settled(cluster: &Cluster, name: &str, replicas: i32) -> Result<ReplicationController> {
    eventually("the status of the controller", || async {
        let found: ReplicationController = cluster.api().get(name).await?;
        let status = found.status.clone().unwrap_or_default();
        let counts = [status.fully_labeled_replicas, status.ready_replicas, status.available_replicas];
        let done = status.observed_generation == found.metadata.generation
            && status.replicas == replicas
            && counts.iter().all(|n| n.unwrap_or(0) == replicas);
        Ok(done.then_some(found))
    })
    .await
}

fn owned_by(pod: &Pod, owner: &ReplicationController) -> bool {
    pod.owner_references().iter().any(|r| {
        (r.api_version.as_str(), r.kind.as_str()) == ("v1", "ReplicationController")
            && (r.controller, r.block_owner_deletion) == (Some(true), Some(true))
            && Some(&r.uid) == owner.metadata.uid.as_ref()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_adopts_releases_replaces_and_scales() -> Result<()> {
    let cluster = Cluster::start(settings()).await?;
    let loose = json!({"metadata": {"name": "loose", "labels": {"app": "w"}},
        "spec": {"containers": [{"name": "c", "image": "app:1"}], "terminationGracePeriodSeconds": 1}});
    cluster.create::<Pod>(loose).await?;
    // A controller that has not heard of the pod makes two of its own, and may then keep either. All controllers hear of pods
    // at the same place, so one that has heard of it is enough.
    let service =
        json!({"metadata": {"name": "w"}, "spec": {"selector": {"app": "w"}, "ports": [{"port": 80}]}});
    cluster.create::<Service>(service).await?;
    eventually("the pod is an endpoint", || async {
        let slices: Vec<EndpointSlice> = cluster.list("kubernetes.io/service-name=w").await?;
        Ok(slices.iter().any(|s| s.endpoints.as_ref().is_some_and(|e| !e.is_empty())).then_some(()))
    })
    .await?;
    cluster.create::<ReplicationController>(controller("w", 2)).await?;
    let rc = settled(&cluster, "w", 2).await?;
    let pods: Vec<Pod> = cluster.list("app=w").await?;
    assert_eq!(pods.len(), 2);
    assert!(pods.iter().all(|p| owned_by(p, &rc)), "the loose pod too: {pods:#?}");
    assert!(pods.iter().any(|p| p.name_any() == "loose"));
    let made = pods.iter().find(|p| p.name_any() != "loose").expect("one was made").name_any();
    assert!(made.starts_with("w-"), "{made}");
    eventually("the event of its creation", || async {
        let mut events: Vec<Event> = cluster.list("").await?;
        events.retain(|e| e.message.as_deref() == Some(&format!("Created pod: {made}")));
        Ok(events.pop())
    })
    .await
    .map(|event: Event| {
        assert_eq!(event.involved_object.kind.as_deref(), Some("ReplicationController"));
        let source = event.source.and_then(|s| s.component);
        assert_eq!(source.as_deref(), Some("replication-controller"));
    })?;

    // A pod that no longer matches is let go and replaced; nobody deletes it.
    cluster.patch::<Pod>("loose", json!({"metadata": {"labels": {"app": "other"}}})).await?;
    eventually("the pod is released and replaced", || async {
        let loose: Pod = cluster.api().get("loose").await?;
        let pods: Vec<Pod> = cluster.list("app=w").await?;
        Ok((loose.owner_references().is_empty() && pods.len() == 2).then_some(()))
    })
    .await?;

    // As `kubectl scale` does it.
    let api = cluster.api::<ReplicationController>();
    let scale: Scale = api
        .patch_scale("w", &PatchParams::default(), &Patch::Merge(json!({"spec": {"replicas": 1}})))
        .await
        .and_then(|s| serde_json::to_value(s).map_err(kube::Error::SerdeError))
        .and_then(|s| serde_json::from_value(s).map_err(kube::Error::SerdeError))?;
    assert_eq!(scale.status.and_then(|s| s.selector).as_deref(), Some("app=w"));
    settled(&cluster, "w", 1).await?;
    eventually("one pod", || async {
        let pods: Vec<Pod> = cluster.list("app=w").await?;
        Ok((pods.len() == 1).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_stay_unless_their_deletion_is_asked_for() -> Result<()> {
    let cluster = Cluster::start(settings()).await?;
    let api = cluster.api::<ReplicationController>();
    let names = || async {
        let pods: Vec<Pod> = cluster.list("app=w").await?;
        anyhow::Ok(pods.iter().map(ResourceExt::name_any).collect::<BTreeSet<_>>())
    };
    cluster.create::<ReplicationController>(controller("w", 2)).await?;
    settled(&cluster, "w", 2).await?;
    let before = names().await?;
    // This kind's deletion leaves its pods behind by default.
    api.delete("w", &DeleteParams::default()).await?;
    eventually("the controller is gone and its pods are nobody's", || async {
        let pods: Vec<Pod> = cluster.list("app=w").await?;
        let free = pods.len() == 2 && pods.iter().all(|p| p.owner_references().is_empty());
        Ok((free && api.get_opt("w").await?.is_none()).then_some(()))
    })
    .await?;
    assert_eq!(names().await?, before);

    // Another of the same selector takes them over, and takes them along.
    cluster.create::<ReplicationController>(controller("w", 2)).await?;
    let rc = settled(&cluster, "w", 2).await?;
    let pods: Vec<Pod> = cluster.list("app=w").await?;
    assert!(pods.iter().all(|p| owned_by(p, &rc)));
    assert_eq!(names().await?, before);
    api.delete("w", &DeleteParams::foreground()).await?;
    eventually("all are gone", || async {
        Ok((names().await?.is_empty() && api.get_opt("w").await?.is_none()).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_that_is_used_up_shows_in_the_status() -> Result<()> {
    let cluster = Cluster::start(settings()).await?;
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "2"}}});
    cluster.create::<ResourceQuota>(quota).await?;
    eventually("the quota is counted", || async {
        let quota: ResourceQuota = cluster.api().get("q").await?;
        Ok(quota.status.and_then(|s| s.used).filter(|used| !used.is_empty()))
    })
    .await?;
    cluster.create::<ReplicationController>(controller("w", 3)).await?;
    let failure = eventually("the failure is in the status", || async {
        let rc: ReplicationController = cluster.api().get("w").await?;
        let conditions = rc.status.and_then(|s| s.conditions).unwrap_or_default();
        Ok(conditions.into_iter().find(|c| c.type_ == "ReplicaFailure"))
    })
    .await?;
    assert_eq!((failure.status.as_str(), failure.reason.as_deref()), ("True", Some("FailedCreate")));
    assert!(failure.message.clone().unwrap_or_default().contains("exceeded quota: q"), "{failure:?}");

    let two = json!({"spec": {"replicas": 2}});
    cluster.patch::<ReplicationController>("w", two).await?;
    let rc = eventually("the condition goes with its cause", || async {
        let rc = settled(&cluster, "w", 2).await?;
        let conditions = rc.status.clone().and_then(|s| s.conditions).unwrap_or_default();
        Ok(conditions.is_empty().then_some(rc))
    })
    .await?;
    assert_eq!(rc.status.and_then(|s| s.available_replicas), Some(2));
    Ok(())
}
