//! A cluster in one process: store in memory, API server, controllers, and a stand-in for scheduler and node agents.

#![allow(dead_code, clippy::allow_attributes, reason = "each test binary uses its own part of this module")]

use std::collections::HashSet;
use std::fmt::Debug;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Binding, Namespace, Node, Pod};
use kelp_apiserver::{ApiServer, TlsFiles, UserInfo};
use kelp_controllers::Config;
use kelp_store::EmbeddedStore;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longest time anything in these tests may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// Annotation that tells the stand-in what becomes of a pod: `running` (not ready), `pending`, `succeed`, `fail=CODE`;
/// with `,hold` its deletion is not finished.
pub const BEHAVIOUR: &str = "test/kubelet";

/// The cluster.
pub struct Cluster {
    /// Administrator.
    pub client: Client,
    server: ApiServer,
    stop: CancellationToken,
    controllers: Option<(CancellationToken, JoinHandle<()>)>,
    config: Config,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Settings under which nothing happens by the passing of time.
pub fn settings() -> Config {
    Config {
        root_ca: Some("-----BEGIN CERTIFICATE-----\n".into()),
        node_monitor_grace: Duration::from_secs(3600),
        node_startup_grace: Duration::from_secs(3600),
        ..Config::default()
    }
}

impl Cluster {
    /// A cluster with the node `n1`.
    pub async fn start(config: Config) -> Result<Self> {
        Self::with_nodes(config, &["n1"]).await
    }

    /// A cluster with these nodes.
    pub async fn with_nodes(config: Config, nodes: &[&str]) -> Result<Self> {
        let stop = CancellationToken::new();
        let tls = TlsFiles { certificate: Vec::new(), key: Vec::new(), client_ca: Vec::new() };
        let settings = kelp_apiserver::Config::new(IpAddr::V4(Ipv4Addr::LOCALHOST), tls);
        let server = ApiServer::new(settings, Arc::new(EmbeddedStore::in_memory()), stop.clone())?;
        server.bootstrap().await?;
        let client = client(&server, "admin");
        let mut cluster = Self { client: client.clone(), server, stop, controllers: None, config };
        cluster.start_controllers();
        tokio::spawn(cluster.stop.clone().run_until_cancelled_owned(stand_in(client)));
        for node in nodes {
            cluster.create_node(node).await?;
        }
        Ok(cluster)
    }

    pub fn start_controllers(&mut self) {
        let stop = self.stop.child_token();
        let run = kelp_controllers::run(
            self.config.clone(),
            client(&self.server, "system:kube-controller-manager"),
            stop.clone(),
        );
        let task = tokio::spawn(async move { run.await.expect("controllers run") });
        self.controllers = Some((stop, task));
    }

    /// Stops the controllers and waits until they have.
    pub async fn stop_controllers(&mut self) -> Result<()> {
        if let Some((stop, task)) = self.controllers.take() {
            stop.cancel();
            tokio::time::timeout(PATIENCE, task).await.context("controllers did not stop")??;
        }
        Ok(())
    }

    pub async fn create_node(&self, name: &str) -> Result<()> {
        let node = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "status": {"conditions": [
                {"type": "MemoryPressure", "status": "False"}, {"type": "DiskPressure", "status": "False"},
                {"type": "PIDPressure", "status": "False"},
                {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "kubelet is posting ready status"}]},
        });
        let api: Api<Node> = Api::all(self.client.clone());
        api.create(&PostParams::default(), &serde_json::from_value(node.clone())?).await?;
        let patch = json!({"status": node["status"]});
        api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(())
    }

    pub async fn create_namespace(&self, name: &str) -> Result<()> {
        let namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
        self.all::<Namespace>().create(&PostParams::default(), &namespace).await?;
        Ok(())
    }

    pub fn all<K: Resource<DynamicType = ()>>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }

    pub fn api<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), "default")
    }

    pub async fn create<K>(&self, object: Value) -> Result<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + Serialize
            + Debug,
    {
        let object: K = serde_json::from_value(object)?;
        Ok(self.api().create(&PostParams::default(), &object).await?)
    }

    pub async fn patch<K>(&self, name: &str, patch: Value) -> Result<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
    {
        Ok(self.api().patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await?)
    }

    pub async fn list<K>(&self, labels: &str) -> Result<Vec<K>>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
    {
        Ok(self.api().list(&ListParams::default().labels(labels)).await?.items)
    }

    /// Messages of the events about an object, in order, with their reasons: `reason: message`.
    pub async fn events_about(&self, name: &str) -> Result<Vec<String>> {
        let mut events: Vec<k8s_openapi::api::core::v1::Event> = self.list("").await?;
        events.retain(|e| e.involved_object.name.as_deref() == Some(name));
        events.sort_by_key(|e| e.first_timestamp.as_ref().map(|t| t.0));
        let text = |s: &Option<String>| s.clone().unwrap_or_default();
        Ok(events.iter().map(|e| format!("{}: {}", text(&e.reason), text(&e.message))).collect())
    }
}

fn client(server: &ApiServer, name: &str) -> Client {
    // The controllers get no more than their identity gives them.
    let user = if name == "admin" { UserInfo::admin(name) } else { UserInfo::authenticated(name, []) };
    Client::new(server.client_service(user), "default")
}

/// Asks again on every change in the cluster's pods or after a moment, until `look` finds something.
pub async fn eventually<T, F>(what: &str, mut look: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<Option<T>>>,
{
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        if tokio::time::Instant::now() > deadline {
            bail!("{what}: did not happen within {PATIENCE:?}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Binds pods, starts them and finishes their deletion, as a scheduler and node agents would.
async fn stand_in(client: Client) {
    let started: Arc<Mutex<HashSet<String>>> = Arc::default();
    let addresses = Arc::new(AtomicU32::new(1));
    let pods = watcher(Api::<Pod>::all(client.clone()), watcher::Config::default().streaming_lists());
    let mut pods = std::pin::pin!(pods.default_backoff().applied_objects());
    while let Some(pod) = pods.next().await {
        let Ok(pod) = pod else { continue };
        let (client, started, addresses) = (client.clone(), started.clone(), addresses.clone());
        tokio::spawn(async move {
            // A pod that is gone meanwhile needs nothing.
            let _ = serve(&client, &pod, &started, &addresses).await;
        });
    }
}

async fn serve(
    client: &Client,
    pod: &Pod,
    started: &Mutex<HashSet<String>>,
    addresses: &AtomicU32,
) -> Result<(), kube::Error> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let name = pod.name_any();
    let behaviour = pod.annotations().get(BEHAVIOUR).cloned().unwrap_or_else(|| "ready".into());
    if pod.metadata.deletion_timestamp.is_some() {
        if !behaviour.contains("hold") {
            tokio::time::sleep(Duration::from_millis(20)).await;
            api.delete(&name, &DeleteParams::default().grace_period(0)).await?;
        }
        return Ok(());
    }
    let spec = pod.spec.clone().unwrap_or_default();
    if spec.node_name.is_none() {
        let wanted = spec.node_selector.and_then(|s| s.get("kubernetes.io/hostname").cloned());
        let binding: Binding = serde_json::from_value(json!({
            "metadata": {"name": name}, "target": {"kind": "Node", "name": wanted.unwrap_or_else(|| "n1".into())},
        }))
        .map_err(kube::Error::SerdeError)?;
        api.create_subresource::<_, Value>("binding", &name, &PostParams::default(), &binding).await?;
        return Ok(());
    }
    if behaviour.starts_with("pending")
        || !started.lock().expect("lock").insert(pod.uid().unwrap_or_default())
    {
        return Ok(());
    }
    let n = addresses.fetch_add(1, Ordering::Relaxed);
    let ip = Ipv4Addr::from(0x0af4_0000 + n).to_string();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let patch = json!({"status": {
        "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
        "conditions": conditions(!behaviour.starts_with("running")),
    }});
    api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
    let end = if behaviour.starts_with("succeed") {
        "Succeeded"
    } else if behaviour.starts_with("fail") {
        "Failed"
    } else {
        return Ok(());
    };
    tokio::time::sleep(Duration::from_millis(200)).await;
    let patch = json!({"status": {"phase": end, "conditions": conditions(false)}});
    api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
    Ok(())
}

/// Conditions of a started pod.
pub fn conditions(ready: bool) -> Value {
    let ready = if ready { "True" } else { "False" };
    let now = k8s_openapi::jiff::Timestamp::now().to_string();
    json!([
        {"type": "Initialized", "status": "True", "lastTransitionTime": now},
        {"type": "Ready", "status": ready, "lastTransitionTime": now},
        {"type": "ContainersReady", "status": ready, "lastTransitionTime": now},
    ])
}
