//! Whole stories through the API: what a user does, and what the controllers make of it.

mod harness;

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use futures::StreamExt;
use harness::{BEHAVIOUR, Cluster, conditions, eventually, settings};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::{Value, json};

fn deployment(name: &str, replicas: i32, image: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "c", "image": image}], "terminationGracePeriodSeconds": 1},
            },
        },
    })
}

fn image_patch(image: &str) -> Value {
    json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}})
}

/// Waits until a deployment reports that it is fully rolled out.
async fn rolled_out(cluster: &Cluster, name: &str, replicas: i32) -> Result<Deployment> {
    eventually("rollout", || async {
        let d: Deployment = cluster.api().get(name).await?;
        let status = d.status.clone().unwrap_or_default();
        let done = status.observed_generation == d.metadata.generation
            && [status.replicas, status.updated_replicas, status.ready_replicas, status.available_replicas]
                .iter()
                .all(|n| n.unwrap_or(0) == replicas);
        let progressed = status
            .conditions
            .iter()
            .flatten()
            .any(|c| c.type_ == "Progressing" && c.reason.as_deref() == Some("NewReplicaSetAvailable"));
        Ok((done && progressed).then_some(d))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_comes_up_rolls_and_goes() -> Result<()> {
    let cluster = Cluster::start(settings()).await?;
    cluster.create::<Deployment>(deployment("w", 3, "app:1")).await?;
    let d = rolled_out(&cluster, "w", 3).await?;
    assert_eq!(d.annotations()["deployment.kubernetes.io/revision"], "1");

    let sets: Vec<ReplicaSet> = cluster.list("app=w").await?;
    assert_eq!(sets.len(), 1);
    let hash = sets[0].labels()["pod-template-hash"].clone();
    assert_eq!(sets[0].name_any(), format!("w-{hash}"));
    let pods: Vec<Pod> = cluster.list(&format!("pod-template-hash={hash}")).await?;
    assert_eq!(pods.len(), 3);
    for pod in &pods {
        assert!(pod.name_any().starts_with(&format!("w-{hash}-")), "{}", pod.name_any());
        let owner = &pod.owner_references()[0];
        assert_eq!((owner.kind.as_str(), owner.controller), ("ReplicaSet", Some(true)));
    }
    let scaled = format!("ScalingReplicaSet: Scaled up replica set w-{hash} from 0 to 3");
    eventually("events", || async {
        let about_pods = cluster.events_about(&format!("w-{hash}")).await?;
        let created = about_pods.iter().filter(|e| e.starts_with("SuccessfulCreate: Created pod: ")).count();
        Ok((created == 3 && cluster.events_about("w").await? == [scaled.clone()]).then_some(()))
    })
    .await?;

    cluster.patch::<Deployment>("w", image_patch("app:2")).await?;
    let d = rolled_out(&cluster, "w", 3).await?;
    assert_eq!(d.annotations()["deployment.kubernetes.io/revision"], "2");
    let mut pods: Vec<Pod> = cluster.list("app=w").await?;
    pods.retain(|p| p.metadata.deletion_timestamp.is_none());
    assert!(pods.iter().all(|p| p.spec.as_ref().unwrap().containers[0].image.as_deref() == Some("app:2")));

    // Back again: the first set is used anew and remembers that it was revision 1.
    cluster.patch::<Deployment>("w", image_patch("app:1")).await?;
    rolled_out(&cluster, "w", 3).await?;
    let first: ReplicaSet = cluster.api().get(&format!("w-{hash}")).await?;
    assert_eq!(first.annotations()["deployment.kubernetes.io/revision"], "3");
    assert_eq!(first.annotations()["deployment.kubernetes.io/revision-history"], "1");

    cluster.api::<Deployment>().delete("w", &DeleteParams::background()).await?;
    eventually("everything of the deployment is gone", || async {
        let sets: Vec<ReplicaSet> = cluster.list("app=w").await?;
        let pods: Vec<Pod> = cluster.list("app=w").await?;
        Ok((sets.is_empty() && pods.is_empty()).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_update_keeps_to_its_bounds() -> Result<()> {
    let cluster = Cluster::start(settings()).await?;
    let mut d = deployment("w", 4, "app:1");
    d["spec"]["strategy"] = json!({"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}});
    cluster.create::<Deployment>(d).await?;
    rolled_out(&cluster, "w", 4).await?;

    let watch = watcher(cluster.api::<Pod>(), watcher::Config::default().labels("app=w").streaming_lists());
    let mut watch = std::pin::pin!(watch.default_backoff());
    let roll = async {
        cluster.patch::<Deployment>("w", image_patch("app:2")).await?;
        rolled_out(&cluster, "w", 4).await
    };
    let mut pods = std::collections::HashMap::new();
    let observe = async {
        while let Some(event) = watch.next().await {
            match event? {
                watcher::Event::Apply(pod) | watcher::Event::InitApply(pod) => {
                    pods.insert(pod.name_any(), pod);
                    // The first list is complete at four pods.
                    if pods.len() < 4 {
                        continue;
                    }
                }
                watcher::Event::Delete(pod) => {
                    pods.remove(&pod.name_any());
                }
                _ => continue,
            }
            let active = || pods.values().filter(|p| p.metadata.deletion_timestamp.is_none());
            let ready = active().filter(|p| kelp_model::controllers::pods::is_ready(p)).count();
            ensure!(active().count() <= 5, "more pods than replicas and surge");
            ensure!(ready >= 3, "fewer ready pods than allowed: {ready}");
        }
        Ok(())
    };
    tokio::select! {
        done = roll => { done?; }
        broken = observe => { broken?; }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_rollout_waits_and_scaling_during_one_is_shared() -> Result<()> {
    let cluster = Cluster::start(settings()).await?;
    cluster.create::<Deployment>(deployment("w", 2, "app:1")).await?;
    rolled_out(&cluster, "w", 2).await?;
    cluster.patch::<Deployment>("w", json!({"spec": {"paused": true}})).await?;
    cluster.patch::<Deployment>("w", image_patch("app:2")).await?;
    cluster.patch::<Deployment>("w", json!({"spec": {"replicas": 4}})).await?;
    eventually("the old set follows the size", || async {
        let d: Deployment = cluster.api().get("w").await?;
        let status = d.status.unwrap_or_default();
        let paused =
            status.conditions.iter().flatten().any(|c| c.reason.as_deref() == Some("DeploymentPaused"));
        Ok((paused && status.ready_replicas == Some(4) && status.updated_replicas.is_none()).then_some(()))
    })
    .await?;
    let sets: Vec<ReplicaSet> = cluster.list("app=w").await?;
    assert_eq!(sets.len(), 1, "no set for the new template yet");
    cluster.patch::<Deployment>("w", json!({"spec": {"paused": false}})).await?;
    rolled_out(&cluster, "w", 4).await?;
    assert_eq!(cluster.list::<ReplicaSet>("app=w").await?.len(), 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn recreate_starts_new_pods_when_old_ones_are_gone() -> Result<()> {
    let cluster = Cluster::start(settings()).await?;
    let mut d = deployment("w", 2, "app:1");
    d["spec"]["strategy"] = json!({"type": "Recreate"});
    d["spec"]["template"]["metadata"]["annotations"] = json!({BEHAVIOUR: "ready,hold"});
    cluster.create::<Deployment>(d).await?;
    rolled_out(&cluster, "w", 2).await?;
    let old: Vec<String> = cluster.list::<Pod>("app=w").await?.iter().map(|p| p.name_any()).collect();
    let mut patch = image_patch("app:2");
    patch["spec"]["template"]["metadata"] = json!({"annotations": {BEHAVIOUR: "ready"}});
    cluster.patch::<Deployment>("w", patch).await?;
    eventually("old pods are told to go", || async {
        let pods: Vec<Pod> = cluster.list("app=w").await?;
        Ok(pods.iter().all(|p| p.metadata.deletion_timestamp.is_some()).then_some(()))
    })
    .await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(cluster.list::<Pod>("app=w").await?.len(), 2, "no new pod beside an old one");
    for name in &old {
        cluster.api::<Pod>().delete(name, &DeleteParams::default().grace_period(0)).await?;
    }
    rolled_out(&cluster, "w", 2).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_follow_readiness_and_deletion() -> Result<()> {
    let cluster = Cluster::start(settings()).await?;
    let pod = |name: &str, behaviour: &str| {
        json!({"metadata": {"name": name, "labels": {"app": "w"}, "annotations": {BEHAVIOUR: behaviour}},
               "spec": {"containers": [{"name": "c", "image": "app:1", "ports": [{"name": "web", "containerPort": 8080}]}]}})
    };
    let service = json!({"metadata": {"name": "s", "labels": {"team": "x"}},
                         "spec": {"selector": {"app": "w"}, "ports": [{"port": 80, "targetPort": "web"}]}});
    cluster.create::<Service>(service).await?;
    cluster.create::<Pod>(pod("a", "ready,hold")).await?;
    cluster.create::<Pod>(pod("b", "running")).await?;
    // Of each endpoint: pod, ready, serving, terminating.
    let state = || async {
        let slices: Vec<EndpointSlice> = cluster.list("kubernetes.io/service-name=s").await?;
        ensure!(slices.len() <= 1, "one slice is enough");
        let mut state = BTreeSet::new();
        for endpoint in slices.iter().flat_map(|s| s.endpoints.iter().flatten()) {
            let c = endpoint.conditions.clone().unwrap_or_default();
            let name = endpoint.target_ref.as_ref().and_then(|r| r.name.clone()).unwrap_or_default();
            state.insert((name, c.ready == Some(true), c.serving == Some(true), c.terminating == Some(true)));
        }
        Ok(state)
    };
    let becomes = |wanted: &'static [(&'static str, bool, bool, bool)]| async move {
        let wanted: BTreeSet<_> = wanted.iter().map(|(n, r, s, t)| ((*n).to_owned(), *r, *s, *t)).collect();
        eventually(&format!("endpoints {wanted:?}"), || async {
            Ok((state().await? == wanted).then_some(()))
        })
        .await
    };
    becomes(&[("a", true, true, false), ("b", false, false, false)]).await?;
    let ready = json!({"status": {"conditions": conditions(true)}});
    cluster.api::<Pod>().patch_status("b", &PatchParams::default(), &Patch::Strategic(&ready)).await?;
    becomes(&[("a", true, true, false), ("b", true, true, false)]).await?;
    cluster.api::<Pod>().delete("a", &DeleteParams::default().grace_period(30)).await?;
    becomes(&[("a", false, true, true), ("b", true, true, false)]).await?;
    let slice: EndpointSlice = cluster.list("kubernetes.io/service-name=s").await?.remove(0);
    assert_eq!(slice.ports.as_ref().unwrap()[0].port, Some(8080));
    assert_eq!(slice.labels()["team"], "x");
    assert_eq!(slice.labels()["endpointslice.kubernetes.io/managed-by"], "endpointslice-controller.k8s.io");
    eventually("a pod being deleted is not in the older object", || async {
        let endpoints: Endpoints = cluster.api().get("s").await?;
        let addresses = endpoints.subsets.iter().flatten().flat_map(|s| s.addresses.iter().flatten());
        Ok((addresses.count() == 1).then_some(()))
    })
    .await?;
    cluster.api::<Pod>().delete("a", &DeleteParams::default().grace_period(0)).await?;
    becomes(&[("b", true, true, false)]).await?;

    cluster.api::<Service>().delete("s", &DeleteParams::default()).await?;
    eventually("slices and endpoints go with the service", || async {
        let slices: Vec<EndpointSlice> = cluster.list("kubernetes.io/service-name=s").await?;
        let endpoints = cluster.api::<Endpoints>().get_opt("s").await?;
        Ok((slices.is_empty() && endpoints.is_none()).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_gets_its_defaults_and_goes_with_all_it_holds() -> Result<()> {
    let cluster = Cluster::start(settings()).await?;
    cluster.create_namespace("team").await?;
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), "team");
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), "team");
    let ca = || async {
        let map = maps.get_opt("kube-root-ca.crt").await?;
        Ok(map.and_then(|m| m.data?.get("ca.crt").cloned()).filter(|ca| ca.starts_with("-----BEGIN")))
    };
    eventually("the CA is published", ca).await?;
    eventually("the account is made", || async { Ok(accounts.get_opt("default").await?) }).await?;
    accounts.delete("default", &DeleteParams::default()).await?;
    eventually("the account comes back", || async { Ok(accounts.get_opt("default").await?) }).await?;
    let edit = Patch::Merge(json!({"data": {"ca.crt": "changed", "more": "x"}}));
    maps.patch("kube-root-ca.crt", &PatchParams::default(), &edit).await?;
    eventually("an edited CA is restored", ca).await?;

    let d: Deployment = serde_json::from_value(deployment("w", 2, "app:1"))?;
    let deployments: Api<Deployment> = Api::namespaced(cluster.client.clone(), "team");
    deployments.create(&PostParams::default(), &d).await?;
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), "team");
    eventually("pods run", || async {
        Ok((pods.list(&Default::default()).await?.items.len() == 2).then_some(()))
    })
    .await?;
    cluster.all::<Namespace>().delete("team", &DeleteParams::default()).await?;
    eventually("the namespace is gone", || async {
        Ok(cluster.all::<Namespace>().get_opt("team").await?.is_none().then_some(()))
    })
    .await?;
    assert!(pods.list(&Default::default()).await?.items.is_empty());
    assert!(maps.list(&Default::default()).await?.items.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_deleted_in_the_foreground_wait_and_orphans_stay() -> Result<()> {
    let cluster = Cluster::start(settings()).await?;
    let set = |name: &str, behaviour: &str| {
        json!({"metadata": {"name": name}, "spec": {"replicas": 2, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}, "annotations": {BEHAVIOUR: behaviour}},
                         "spec": {"containers": [{"name": "c", "image": "app:1"}]}}}})
    };
    let ready = |name: &'static str| {
        let cluster = &cluster;
        async move {
            eventually("pods are ready", || async {
                let set: ReplicaSet = cluster.api().get(name).await?;
                Ok((set.status.and_then(|s| s.ready_replicas) == Some(2)).then_some(()))
            })
            .await
        }
    };
    cluster.create::<ReplicaSet>(set("slow", "ready,hold")).await?;
    ready("slow").await?;
    cluster.api::<ReplicaSet>().delete("slow", &DeleteParams::foreground()).await?;
    let pods = eventually("its pods are told to go", || async {
        let pods: Vec<Pod> = cluster.list("app=slow").await?;
        Ok((pods.len() == 2 && pods.iter().all(|p| p.metadata.deletion_timestamp.is_some())).then_some(pods))
    })
    .await?;
    let waiting: ReplicaSet = cluster.api().get("slow").await?;
    assert_eq!(waiting.finalizers(), ["foregroundDeletion"]);
    for pod in pods {
        cluster.api::<Pod>().delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await?;
    }
    eventually("the set goes after its pods", || async {
        Ok(cluster.api::<ReplicaSet>().get_opt("slow").await?.is_none().then_some(()))
    })
    .await?;

    cluster.create::<ReplicaSet>(set("kept", "ready")).await?;
    ready("kept").await?;
    cluster.api::<ReplicaSet>().delete("kept", &DeleteParams::orphan()).await?;
    eventually("the set is gone and its pods are nobody's", || async {
        let pods: Vec<Pod> = cluster.list("app=kept").await?;
        let gone = cluster.api::<ReplicaSet>().get_opt("kept").await?.is_none();
        Ok((gone && pods.len() == 2 && pods.iter().all(|p| p.owner_references().is_empty())).then_some(()))
    })
    .await?;
    // A new set of the same selector takes them in instead of making its own.
    let names = |pods: Vec<Pod>| pods.iter().map(|p| p.name_any()).collect::<BTreeSet<_>>();
    let before = names(cluster.list("app=kept").await?);
    cluster.create::<ReplicaSet>(set("kept", "ready")).await?;
    ready("kept").await?;
    assert_eq!(names(cluster.list("app=kept").await?), before);

    // An object whose owner never existed goes.
    let map = json!({"metadata": {"name": "lost", "ownerReferences": [
        {"apiVersion": "v1", "kind": "ConfigMap", "name": "nobody", "uid": "00000000-0000-0000-0000-000000000000"}]}});
    cluster.create::<ConfigMap>(map).await?;
    eventually("the child of nobody is gone", || async {
        Ok(cluster.api::<ConfigMap>().get_opt("lost").await?.is_none().then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_node_loses_its_pods_and_each_node_has_its_own_range() -> Result<()> {
    let config = kelp_controllers::Config {
        node_monitor_grace: Duration::from_millis(800),
        node_startup_grace: Duration::from_millis(800),
        ..settings()
    };
    let cluster = Cluster::start(config).await?;
    cluster.create_node("n2").await?;
    let nodes = cluster.all::<Node>();
    let range = |name: &'static str| {
        let nodes = nodes.clone();
        async move {
            eventually("a pod range", || async { Ok(nodes.get(name).await?.spec.and_then(|s| s.pod_cidr)) })
                .await
        }
    };
    assert_ne!(range("n1").await?, range("n2").await?);
    let pod = json!({"metadata": {"name": "p"}, "spec": {
        "nodeName": "n1", "containers": [{"name": "c", "image": "app:1"}],
        "tolerations": [{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute",
                         "tolerationSeconds": 1}]}});
    cluster.create::<Pod>(pod).await?;
    // n2 goes on renewing its lease, n1 does not.
    let leases: Api<k8s_openapi::api::coordination::v1::Lease> =
        Api::namespaced(cluster.client.clone(), "kube-node-lease");
    let renew = async {
        loop {
            let now = format!("{:.6}", k8s_openapi::jiff::Timestamp::now());
            let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "n2"},
                               "spec": {"holderIdentity": "n2", "renewTime": now}});
            match leases.patch("n2", &PatchParams::default(), &Patch::Merge(&lease)).await {
                Err(kube::Error::Api(status)) if status.code == 404 => {
                    leases.create(&PostParams::default(), &serde_json::from_value(lease)?).await?;
                }
                other => drop(other?),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let story = async {
        let silent = eventually("n1 is unreachable", || async {
            let node = nodes.get("n1").await?;
            let taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
            let execute =
                taints.into_iter().any(|t| t.key.ends_with("/unreachable") && t.effect == "NoExecute");
            Ok(execute.then_some(node))
        })
        .await?;
        let ready =
            silent.status.iter().flat_map(|s| s.conditions.iter().flatten()).find(|c| c.type_ == "Ready");
        assert_eq!(
            ready.map(|c| (c.status.as_str(), c.reason.as_deref())),
            Some(("Unknown", Some("NodeStatusUnknown")))
        );
        eventually("its pod is evicted", || async {
            Ok(cluster.api::<Pod>().get_opt("p").await?.is_none().then_some(()))
        })
        .await?;
        let well = nodes.get("n2").await?;
        assert_eq!(well.spec.and_then(|s| s.taints), None, "n2 is well");
        Ok(())
    };
    tokio::select! {
        done = story => done,
        failed = renew => { let never: Result<std::convert::Infallible> = failed; never.map(|_| ()) }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_controllers_changes_nothing_and_forgets_nothing() -> Result<()> {
    let mut cluster = Cluster::start(settings()).await?;
    cluster.create::<Deployment>(deployment("w", 3, "app:1")).await?;
    rolled_out(&cluster, "w", 3).await?;
    let snapshot = |pods: Vec<Pod>| -> BTreeSet<(String, Option<String>)> {
        pods.iter().map(|p| (p.name_any(), p.resource_version())).collect()
    };
    cluster.stop_controllers().await?;
    let before = snapshot(cluster.list("app=w").await?);
    let set_before: ReplicaSet = cluster.list("app=w").await?.remove(0);
    cluster.start_controllers();
    // The new run has seen everything once it has acted on something made after its start.
    cluster.create::<Deployment>(deployment("other", 1, "app:1")).await?;
    rolled_out(&cluster, "other", 1).await?;
    assert_eq!(snapshot(cluster.list("app=w").await?), before);
    let set_after: ReplicaSet = cluster.list("app=w").await?.remove(0);
    assert_eq!(set_after.resource_version(), set_before.resource_version(), "no needless write");

    // What happens while they are away is made up for.
    cluster.stop_controllers().await?;
    let (name, _) = before.first().cloned().unwrap_or_default();
    cluster.api::<Pod>().delete(&name, &DeleteParams::default().grace_period(0)).await?;
    cluster.patch::<Deployment>("w", json!({"spec": {"replicas": 5}})).await?;
    cluster.start_controllers();
    rolled_out(&cluster, "w", 5).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_are_refused_are_reported_and_made_once_they_may_be() -> Result<()> {
    let cluster = Cluster::start(settings()).await?;
    let mut d = deployment("w", 2, "app:1");
    d["spec"]["template"]["spec"]["serviceAccountName"] = json!("later");
    cluster.create::<Deployment>(d).await?;
    let failure = eventually("the failure is on the deployment", || async {
        let d: Deployment = cluster.api().get("w").await?;
        let conditions = d.status.unwrap_or_default().conditions.unwrap_or_default();
        Ok(conditions.into_iter().find(|c| c.type_ == "ReplicaFailure"))
    })
    .await?;
    assert_eq!((failure.status.as_str(), failure.reason.as_deref()), ("True", Some("FailedCreate")));
    let message = failure.message.unwrap_or_default();
    assert!(message.contains("serviceaccount \"later\" not found"), "{message}");
    let set: ReplicaSet = cluster.list("app=w").await?.remove(0);
    eventually("an event says so", || async {
        let events = cluster.events_about(&set.name_any()).await?;
        let prefix = "FailedCreate: Error creating: pods \"";
        Ok(events.iter().any(|e| e.starts_with(prefix) && e.contains("is forbidden")).then_some(()))
    })
    .await?;
    cluster.create::<ServiceAccount>(json!({"metadata": {"name": "later"}})).await?;
    let d = rolled_out(&cluster, "w", 2).await?;
    let failed =
        d.status.iter().flat_map(|s| s.conditions.iter().flatten()).any(|c| c.type_ == "ReplicaFailure");
    assert!(!failed, "the condition goes with its cause");
    Ok(())
}
