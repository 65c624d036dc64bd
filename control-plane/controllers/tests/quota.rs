//! The status of resource quotas.

mod harness;

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use harness::{BEHAVIOUR, Cluster, eventually, settings};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{
    ConfigMap, PersistentVolumeClaim, Pod, ReplicationController, ResourceQuota, Secret, Service,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

fn amounts(of: Option<&BTreeMap<String, Quantity>>) -> Value {
    let pairs = of.into_iter().flatten().map(|(name, q)| (name.clone(), Value::from(q.0.clone())));
    pairs.collect::<serde_json::Map<_, _>>().into()
}

async fn quota(cluster: &Cluster, name: &str, spec: Value) -> Result<()> {
    cluster.create::<ResourceQuota>(json!({"metadata": {"name": name}, "spec": spec})).await?;
    Ok(())
}

/// Waits until the quota says that this is used.
async fn uses(cluster: &Cluster, name: &str, used: Value) -> Result<()> {
    let api: &Api<ResourceQuota> = &cluster.api();
    let used = &used;
    let what = format!("{name}: {used}");
    let reached = eventually(&what, || async move {
        let status = api.get(name).await?.status.unwrap_or_default();
        Ok((amounts(status.used.as_ref()) == *used).then_some(()))
    });
    if let Err(error) = reached.await {
        bail!("{error}; it says {:?}", api.get(name).await?.status);
    }
    Ok(())
}

/// Waits for the ConfigMaps that every namespace gets.
async fn published(cluster: &Cluster) -> Result<()> {
    eventually("the published authorities", || async move {
        Ok((cluster.list::<ConfigMap>("").await?.len() == 2).then_some(()))
    })
    .await
}

/// A pod that asks for CPU, if the text is not empty; `more` are further fields of its spec.
fn pod(name: &str, cpu: &str, more: Value) -> Value {
    let mut pod = json!({"metadata": {"name": name},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "c", "image": "i"}]}});
    if !cpu.is_empty() {
        pod["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": cpu}});
    }
    for (key, value) in more.as_object().into_iter().flatten() {
        pod["spec"][key] = value.clone();
    }
    pod
}

async fn delete<K>(cluster: &Cluster, name: &str) -> Result<()>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + serde::de::DeserializeOwned
        + std::fmt::Debug,
{
    cluster.api::<K>().delete(name, &DeleteParams::default()).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_is_counted_and_given_back() -> Result<()> {
    let cluster = Cluster::start(settings()).await?;
    // There before the quota, and after it.
    cluster.create::<Secret>(json!({"metadata": {"name": "early"}})).await?;
    let hard = json!({"secrets": "9", "configmaps": "9", "count/configmaps": "9", "services": "9",
        "services.nodeports": "9", "replicationcontrollers": "9", "resourcequotas": "9",
        "persistentvolumeclaims": "9", "requests.storage": "10Gi", "count/replicasets.apps": "9",
        "gold.storageclass.storage.k8s.io/requests.storage": "5Gi"});
    // The server has a service of its own.
    let own = cluster.list::<Service>("").await?.len();
    // Two authorities are published in every namespace.
    let with = |changes: Value| {
        let mut used = json!({"secrets": "1", "configmaps": "2", "count/configmaps": "2", "services": own.to_string(),
            "services.nodeports": "0", "replicationcontrollers": "0", "resourcequotas": "1",
            "persistentvolumeclaims": "0", "requests.storage": "0", "count/replicasets.apps": "0",
            "gold.storageclass.storage.k8s.io/requests.storage": "0"});
        for (name, value) in changes.as_object().into_iter().flatten() {
            used[name] = value.clone();
        }
        used
    };
    published(&cluster).await?;
    quota(&cluster, "q", json!({"hard": hard})).await?;
    uses(&cluster, "q", with(json!({}))).await?;

    cluster.create::<Secret>(json!({"metadata": {"name": "late"}})).await?;
    cluster.create::<ConfigMap>(json!({"metadata": {"name": "late"}})).await?;
    let ports = json!([{"port": 1, "name": "a"}, {"port": 2, "name": "b"}]);
    cluster
        .create::<Service>(json!({"metadata": {"name": "s"}, "spec": {"type": "NodePort", "ports": ports}}))
        .await?;
    let template =
        json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let selector = json!({"a": "b"});
    let spec = json!({"replicas": 0, "selector": selector, "template": template});
    cluster.create::<ReplicationController>(json!({"metadata": {"name": "r"}, "spec": spec})).await?;
    let spec = json!({"replicas": 0, "selector": {"matchLabels": selector}, "template": template});
    cluster.create::<ReplicaSet>(json!({"metadata": {"name": "r"}, "spec": spec})).await?;
    let claim = json!({"metadata": {"name": "v"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "storageClassName": "gold", "resources": {"requests": {"storage": "1Gi"}}}});
    cluster.create::<PersistentVolumeClaim>(claim).await?;
    uses(
        &cluster,
        "q",
        with(json!({"secrets": "2", "configmaps": "3", "count/configmaps": "3", "services": (own + 1).to_string(),
            "services.nodeports": "2", "replicationcontrollers": "1", "persistentvolumeclaims": "1",
            "requests.storage": "1Gi", "count/replicasets.apps": "1",
            "gold.storageclass.storage.k8s.io/requests.storage": "1Gi"})),
    )
    .await?;

    cluster.patch::<Service>("s", json!({"spec": {"type": "ClusterIP"}})).await?;
    delete::<Secret>(&cluster, "late").await?;
    delete::<Secret>(&cluster, "early").await?;
    delete::<ConfigMap>(&cluster, "late").await?;
    delete::<ReplicationController>(&cluster, "r").await?;
    delete::<ReplicaSet>(&cluster, "r").await?;
    delete::<PersistentVolumeClaim>(&cluster, "v").await?;
    uses(&cluster, "q", with(json!({"secrets": "0", "services": (own + 1).to_string()}))).await?;
    delete::<Service>(&cluster, "s").await?;
    uses(&cluster, "q", with(json!({"secrets": "0"}))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_count_while_they_run_and_in_their_scopes() -> Result<()> {
    let cluster = Cluster::start(settings()).await?;
    cluster.create::<Pod>(pod("early", "100m", json!({}))).await?;
    quota(&cluster, "all", json!({"hard": {"pods": "3", "requests.cpu": "1", "count/pods": "9"}})).await?;
    for scope in ["BestEffort", "NotBestEffort", "Terminating", "NotTerminating"] {
        quota(&cluster, &scope.to_lowercase(), json!({"hard": {"pods": "5"}, "scopes": [scope]})).await?;
    }
    let counts = async |all: &str, cpu: &str, objects: &str, scopes: [&str; 4]| {
        uses(&cluster, "all", json!({"pods": all, "requests.cpu": cpu, "count/pods": objects})).await?;
        for (name, used) in
            ["besteffort", "notbesteffort", "terminating", "notterminating"].iter().zip(scopes)
        {
            uses(&cluster, name, json!({"pods": used})).await?;
        }
        anyhow::Ok(())
    };
    counts("1", "100m", "1", ["0", "1", "0", "1"]).await?;
    // CPU is limited, so pods have to ask for some.
    let silent = cluster.create::<Pod>(pod("silent", "", json!({}))).await;
    assert!(silent.is_err_and(|e| e.to_string().contains("must specify requests.cpu for: c")));
    cluster.create::<Pod>(pod("short", "200m", json!({"activeDeadlineSeconds": 600}))).await?;
    counts("2", "300m", "2", ["0", "2", "1", "1"]).await?;
    let mut ends = pod("ends", "300m", json!({}));
    ends["metadata"]["annotations"] = json!({BEHAVIOUR: "succeed"});
    cluster.create::<Pod>(ends).await?;
    // It ended: its object is all that counts.
    counts("2", "300m", "3", ["0", "2", "1", "1"]).await?;
    // A deadline set later moves a pod to another scope.
    cluster.patch::<Pod>("early", json!({"spec": {"activeDeadlineSeconds": 600}})).await?;
    counts("2", "300m", "3", ["0", "2", "2", "0"]).await?;
    for name in ["early", "short", "ends"] {
        delete::<Pod>(&cluster, name).await?;
    }
    counts("0", "0", "0", ["0", "0", "0", "0"]).await?;
    // There is room for what was refused before.
    for name in ["a", "b", "c"] {
        cluster.create::<Pod>(pod(name, "100m", json!({}))).await?;
    }
    let fourth = cluster.create::<Pod>(pod("d", "100m", json!({}))).await;
    assert!(fourth.is_err_and(|e| e.to_string().contains("exceeded quota: all")));
    delete::<Pod>(&cluster, "a").await?;
    counts("2", "200m", "2", ["0", "2", "0", "2"]).await?;
    cluster.create::<Pod>(pod("d", "100m", json!({}))).await?;
    counts("3", "300m", "3", ["0", "3", "0", "3"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_follow_the_spec_and_changes_while_away_are_found() -> Result<()> {
    let mut cluster = Cluster::start(settings()).await?;
    published(&cluster).await?;
    quota(&cluster, "q", json!({"hard": {"secrets": "5"}})).await?;
    uses(&cluster, "q", json!({"secrets": "0"})).await?;
    let api: Api<ResourceQuota> = cluster.api();
    let patch = Patch::Merge(json!({"spec": {"hard": {"secrets": "7", "configmaps": "8"}}}));
    api.patch("q", &PatchParams::default(), &patch).await?;
    uses(&cluster, "q", json!({"secrets": "0", "configmaps": "2"})).await?;
    // Whoever writes other limits into the status is corrected.
    let patch = Patch::Merge(json!({"status": {"hard": {"secrets": "900"}}}));
    let patched = api.patch_status("q", &PatchParams::default(), &patch).await?;
    assert_eq!(amounts(patched.status.and_then(|s| s.hard).as_ref())["secrets"], "900");
    let hard = json!({"secrets": "7", "configmaps": "8"});
    let (quotas, wanted) = (&api, &hard);
    eventually("the limits of the spec", || async move {
        let status = quotas.get("q").await?.status.unwrap_or_default();
        Ok((amounts(status.hard.as_ref()) == *wanted).then_some(()))
    })
    .await?;

    cluster.create::<Secret>(json!({"metadata": {"name": "a"}})).await?;
    cluster.create::<Secret>(json!({"metadata": {"name": "b"}})).await?;
    uses(&cluster, "q", json!({"secrets": "2", "configmaps": "2"})).await?;
    cluster.stop_controllers().await?;
    delete::<Secret>(&cluster, "a").await?;
    let status = api.get("q").await?.status.unwrap_or_default();
    if amounts(status.used.as_ref())["secrets"] != "2" {
        bail!("nobody was there to give it back: {status:?}");
    }
    cluster.start_controllers();
    uses(&cluster, "q", json!({"secrets": "1", "configmaps": "2"})).await
}
