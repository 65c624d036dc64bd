//! Endpoints that are mirrored to EndpointSlices, through the API.

mod harness;

use std::collections::BTreeSet;

use anyhow::Result;
use harness::{Cluster, eventually, settings};
use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use kube::api::DeleteParams;
use serde_json::{Value, json};

const MANAGED: &str = "endpointslice.kubernetes.io/managed-by=endpointslicemirroring-controller.k8s.io";

fn service(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"ports": [{"name": "sql", "port": 5432}]}})
}

fn subsets(addresses: &[&str]) -> Value {
    let list: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
    json!([{"addresses": list, "ports": [{"name": "sql", "port": 5432}]}])
}

fn endpoints(name: &str, addresses: &[&str]) -> Value {
    json!({"metadata": {"name": name, "labels": {"team": "x"}}, "subsets": subsets(addresses)})
}

async fn mirrors(cluster: &Cluster, name: &str) -> Result<Vec<EndpointSlice>> {
    cluster.list(&format!("{MANAGED},kubernetes.io/service-name={name}")).await
}

fn addresses(slices: &[EndpointSlice]) -> BTreeSet<String> {
    slices.iter().flat_map(|s| s.endpoints.iter().flatten()).map(|e| e.addresses[0].clone()).collect()
}

/// Waits until exactly these addresses are mirrored.
async fn mirrored(cluster: &Cluster, name: &str, wanted: &[&str]) -> Result<Vec<EndpointSlice>> {
    let wanted: BTreeSet<String> = wanted.iter().map(|ip| (*ip).to_owned()).collect();
    eventually(&format!("{wanted:?} of {name}"), || async {
        let slices = mirrors(cluster, name).await?;
        Ok((addresses(&slices) == wanted && slices.is_empty() == wanted.is_empty()).then_some(slices))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn own_endpoints_are_mirrored_through_their_life() -> Result<()> {
    let cluster = Cluster::start(settings()).await?;
    // Both orders.
    cluster.create::<Service>(service("a")).await?;
    let written: Endpoints = cluster.create(endpoints("a", &["10.1.0.1", "fd00::1"])).await?;
    cluster.create::<Endpoints>(endpoints("b", &["10.2.0.1"])).await?;
    assert!(mirrors(&cluster, "b").await?.is_empty(), "there is no Service yet");
    cluster.create::<Service>(service("b")).await?;
    mirrored(&cluster, "b", &["10.2.0.1"]).await?;
    let slices = mirrored(&cluster, "a", &["10.1.0.1", "fd00::1"]).await?;
    let families: BTreeSet<_> = slices.iter().map(|s| s.address_type.as_str()).collect();
    assert_eq!((slices.len(), families), (2, BTreeSet::from(["IPv4", "IPv6"])));
    for slice in &slices {
        assert_eq!(slice.labels()["team"], "x");
        let owner = &slice.owner_references()[0];
        assert_eq!((owner.kind.as_str(), Some(&owner.uid)), ("Endpoints", written.metadata.uid.as_ref()));
        let port = &slice.ports.as_ref().expect("ports")[0];
        assert_eq!(
            (port.name.as_deref(), port.port, port.protocol.as_deref()),
            (Some("sql"), Some(5432), Some("TCP"))
        );
    }

    // An update is one of the slice; what somebody does to a slice is undone.
    let of = |slices: &[EndpointSlice], family: &str| {
        slices
            .iter()
            .find(|s| s.address_type == family)
            .map(ResourceExt::name_any)
            .expect("a slice of the family")
    };
    let name = of(&slices, "IPv4");
    cluster.patch::<Endpoints>("a", json!({"subsets": subsets(&["10.1.0.2", "10.1.0.3"])})).await?;
    let slices = mirrored(&cluster, "a", &["10.1.0.2", "10.1.0.3"]).await?;
    assert_eq!((slices.len(), of(&slices, "IPv4")), (1, name.clone()));
    cluster.patch::<EndpointSlice>(&name, json!({"endpoints": [{"addresses": ["10.9.9.9"]}]})).await?;
    mirrored(&cluster, "a", &["10.1.0.2", "10.1.0.3"]).await?;
    cluster.api::<EndpointSlice>().delete(&name, &DeleteParams::default()).await?;
    let slices = mirrored(&cluster, "a", &["10.1.0.2", "10.1.0.3"]).await?;
    assert_ne!(of(&slices, "IPv4"), name);

    // They go with the Endpoints, and with the Service while the Endpoints stay.
    cluster.api::<Endpoints>().delete("a", &DeleteParams::default()).await?;
    mirrored(&cluster, "a", &[]).await?;
    cluster.api::<Service>().delete("b", &DeleteParams::default()).await?;
    mirrored(&cluster, "b", &[]).await?;
    assert!(cluster.api::<Endpoints>().get_opt("b").await?.is_some(), "not the endpoints controller's");
    // And come back with either.
    cluster.create::<Service>(service("b")).await?;
    mirrored(&cluster, "b", &["10.2.0.1"]).await?;
    cluster.create::<Endpoints>(endpoints("a", &["10.1.0.4"])).await?;
    mirrored(&cluster, "a", &["10.1.0.4"]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_go_when_they_are_not_wanted_any_more() -> Result<()> {
    let cluster = Cluster::start(settings()).await?;
    for name in ["a", "b", "c"] {
        cluster.create::<Service>(service(name)).await?;
        cluster.create::<Endpoints>(endpoints(name, &["10.1.0.1"])).await?;
        mirrored(&cluster, name, &["10.1.0.1"]).await?;
    }
    // A selector: now the slices come from the pods.
    cluster
        .create::<Pod>(json!({"metadata": {"name": "p", "labels": {"app": "db"}},
            "spec": {"containers": [{"name": "c", "image": "db:1"}]}}))
        .await?;
    cluster.patch::<Service>("a", json!({"spec": {"selector": {"app": "db"}}})).await?;
    mirrored(&cluster, "a", &[]).await?;
    eventually("a slice from the pods", || async {
        let slices: Vec<EndpointSlice> = cluster.list("kubernetes.io/service-name=a").await?;
        let managers: Vec<_> =
            slices.iter().map(|s| s.labels()["endpointslice.kubernetes.io/managed-by"].clone()).collect();
        Ok((managers == ["endpointslice-controller.k8s.io"] && addresses(&slices).len() == 1).then_some(()))
    })
    .await?;

    let skip =
        |value: Value| json!({"metadata": {"labels": {"endpointslice.kubernetes.io/skip-mirror": value}}});
    cluster.patch::<Endpoints>("b", skip(json!("true"))).await?;
    mirrored(&cluster, "b", &[]).await?;
    cluster.patch::<Endpoints>("b", skip(json!(null))).await?;
    mirrored(&cluster, "b", &["10.1.0.1"]).await?;

    let leader = json!({"metadata": {"annotations": {"control-plane.alpha.kubernetes.io/leader": "{}"}}});
    cluster.patch::<Endpoints>("c", leader).await?;
    mirrored(&cluster, "c", &[]).await?;
    // The API server's own Endpoints have slices of its making.
    assert!(mirrors(&cluster, "kubernetes").await?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_mirrored_is_told() -> Result<()> {
    let cluster =
        Cluster::start(kelp_controllers::Config { mirrored_addresses_per_subset: 2, ..settings() }).await?;
    cluster.create::<Service>(service("a")).await?;
    cluster.create::<Endpoints>(endpoints("a", &["10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.4"])).await?;
    mirrored(&cluster, "a", &["10.1.0.1", "10.1.0.2"]).await?;
    let text = "TooManyAddressesToMirror: A max of 2 addresses can be mirrored to EndpointSlices per Endpoints subset. \
                2 addresses were skipped";
    eventually("an event says so", || async {
        Ok(cluster.events_about("a").await?.iter().any(|e| e == text).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changed_while_the_controllers_were_away_is_caught_up() -> Result<()> {
    let mut cluster = Cluster::start(settings()).await?;
    for name in ["a", "b"] {
        cluster.create::<Service>(service(name)).await?;
        cluster.create::<Endpoints>(endpoints(name, &["10.1.0.1"])).await?;
        mirrored(&cluster, name, &["10.1.0.1"]).await?;
    }
    cluster.stop_controllers().await?;
    cluster.patch::<Endpoints>("a", json!({"subsets": subsets(&["10.1.0.2"])})).await?;
    cluster.patch::<Service>("b", json!({"spec": {"selector": {"app": "db"}}})).await?;
    cluster.start_controllers();
    mirrored(&cluster, "a", &["10.1.0.2"]).await?;
    mirrored(&cluster, "b", &[]).await?;
    Ok(())
}
