//! A controller of kube-rs: it keeps a Secret with the value of every ConfigMap.

use anyhow::{Result, ensure};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::runtime::controller::Action;
use kube::runtime::{Controller, watcher};
use kube::{Client, Resource, ResourceExt};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Name → value.
type Values = BTreeMap<String, String>;

async fn reconcile(map: Arc<ConfigMap>, client: Arc<Client>) -> Result<Action, kube::Error> {
    let value = map.data.as_ref().and_then(|data| data.get("v")).cloned().unwrap_or_default();
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "stringData": {"v": value},
        "metadata": {"name": map.name_any(), "ownerReferences": [map.controller_owner_ref(&())]}});
    let secrets: Api<Secret> = Api::namespaced((*client).clone(), "default");
    secrets.patch(&map.name_any(), &PatchParams::apply("copier").force(), &Patch::Apply(secret)).await?;
    Ok(Action::await_change())
}

/// Runs the controller until the runtime ends.
pub(crate) async fn run(client: Client) {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "default");
    let again = |_, _: &kube::Error, _| Action::requeue(Duration::from_millis(200));
    Controller::new(maps, watcher::Config::default().streaming_lists())
        .owns(secrets, watcher::Config::default())
        .run(reconcile, again, Arc::new(client))
        .for_each(|_| async {})
        .await;
}

async fn values(client: &Client) -> Result<(Values, Values)> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "default");
    let wanted = maps.list(&ListParams::default()).await?.into_iter().map(|map| {
        let value = map.data.as_ref().and_then(|data| data.get("v")).cloned().unwrap_or_default();
        (map.name_any(), value)
    });
    let mut made: Values = secrets
        .list(&ListParams::default())
        .await?
        .into_iter()
        .map(|secret| {
            let value = secret.data.as_ref().and_then(|data| data.get("v")).cloned().unwrap_or_default();
            (secret.name_any(), String::from_utf8_lossy(&value.0).into_owned())
        })
        .collect();
    let wanted: Values = wanted.collect();
    // There is no garbage collector here: copies of what is gone stay.
    made.retain(|name, _| wanted.contains_key(name));
    Ok((wanted, made))
}

/// Waits until every ConfigMap has its copy.
pub(crate) async fn done(client: &Client) -> Result<()> {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let (wanted, made) = values(client).await?;
        if wanted == made {
            return Ok(());
        }
        ensure!(tokio::time::Instant::now() < deadline, "expected {wanted:?}\nthe controller made {made:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
