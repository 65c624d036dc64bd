//! Caches of controllers through the death of the API server: kube's reflector and a controller of it, and an informer as
//! client-go's is (protobuf, streamed lists, a new list after 410). All hold in the end what the server holds.

mod controller;

use anyhow::{Context, Result, ensure};
use futures::{AsyncReadExt, StreamExt, TryStreamExt};
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kelp_tests::ApiServer;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Client, ResourceExt};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Name → (version, value).
type Contents = BTreeMap<String, (String, String)>;

async fn client(kubeconfig: &Path) -> Result<Client> {
    let config = Kubeconfig::read_from(kubeconfig)?;
    let config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

fn pair(map: &ConfigMap) -> (String, (String, String)) {
    let value = map.data.as_ref().and_then(|d| d.get("v").cloned()).unwrap_or_default();
    (map.name_any(), (map.resource_version().unwrap_or_default(), value))
}

/// Fields of a protobuf message: number and content of those with a length.
fn fields(mut data: &[u8]) -> Vec<(u64, &[u8])> {
    fn varint(data: &mut &[u8]) -> Option<u64> {
        let (mut value, mut shift) = (0u64, 0);
        loop {
            let (first, rest) = data.split_first()?;
            *data = rest;
            value |= u64::from(first & 0x7f) << shift;
            shift += 7;
            if first & 0x80 == 0 {
                return Some(value);
            }
        }
    }
    let mut out = Vec::new();
    while let Some(key) = varint(&mut data) {
        match key & 7 {
            0 => {
                varint(&mut data);
            }
            2 => {
                let Some(length) = varint(&mut data).and_then(|n| usize::try_from(n).ok()) else { break };
                let Some((content, rest)) = data.split_at_checked(length) else { break };
                out.push((key >> 3, content));
                data = rest;
            }
            _ => break,
        }
    }
    out
}

fn field(data: &[u8], number: u64) -> &[u8] {
    fields(data).into_iter().find(|(n, _)| *n == number).map(|(_, content)| content).unwrap_or_default()
}

fn text(data: &[u8], number: u64) -> String {
    String::from_utf8_lossy(field(data, number)).into_owned()
}

/// What an event says.
struct Event {
    kind: String,
    name: String,
    version: String,
    value: String,
    is_end_of_list: bool,
    /// The object is a Status with code 410.
    is_gone: bool,
}

/// A `meta.v1.WatchEvent` whose object is a `ConfigMap` or a `Status`.
fn event(frame: &[u8]) -> Result<Event> {
    let raw = field(field(frame, 2), 1);
    let object = raw.strip_prefix(b"k8s\0").context("the object is not protobuf")?;
    let object = field(object, 2);
    let metadata = field(object, 1);
    let entry = fields(object)
        .into_iter()
        .filter(|(number, _)| *number == 2)
        .find(|(_, entry)| field(entry, 1) == b"v")
        .map(|(_, entry)| text(entry, 2));
    let is_end_of_list = fields(metadata)
        .into_iter()
        .any(|(number, entry)| number == 12 && field(entry, 1) == b"k8s.io/initial-events-end");
    Ok(Event {
        kind: text(frame, 1),
        name: text(metadata, 1),
        version: text(metadata, 6),
        value: entry.unwrap_or_default(),
        is_end_of_list,
        is_gone: text(frame, 1) == "ERROR" && text(object, 4) == "Expired",
    })
}

/// An informer as client-go's: a streamed list, then a watch; after an error a watch from the last version, and a new
/// list when that is gone.
struct Informer {
    client: Client,
    cache: Arc<Mutex<Contents>>,
    version: Option<String>,
    /// How often the version was gone.
    gone: Arc<AtomicUsize>,
}

impl Informer {
    async fn run(mut self) {
        loop {
            if let Err(error) = self.watch().await {
                eprintln!("the informer's watch ended: {error:#}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    async fn watch(&mut self) -> Result<()> {
        let list = self.version.is_none();
        let mut path = "/api/v1/namespaces/default/configmaps?watch=true&allowWatchBookmarks=true".to_owned();
        match &self.version {
            Some(version) => path.push_str(&format!("&resourceVersion={version}")),
            None => path.push_str("&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"),
        }
        let request = http::Request::get(path)
            .header("accept", "application/vnd.kubernetes.protobuf;stream=watch")
            .body(kube::client::Body::empty())?;
        let (parts, body) = self.client.send(request).await?.into_parts();
        if parts.status == 410 {
            self.gone.fetch_add(1, Ordering::Relaxed);
            self.version = None;
            return Ok(());
        }
        ensure!(parts.status == 200, "{}", parts.status);
        let mut stream = std::pin::pin!(futures::io::BufReader::new(body_reader(body)));
        let mut fresh = Contents::new();
        loop {
            let mut length = [0u8; 4];
            stream.read_exact(&mut length).await?;
            let length = u32::from_be_bytes(length) as usize;
            ensure!(length < 1 << 20, "a frame of {length} bytes");
            let mut frame = vec![0u8; length];
            stream.read_exact(&mut frame).await?;
            let event = event(&frame)?;
            let filling = list && self.version.is_none();
            match event.kind.as_str() {
                "ADDED" | "MODIFIED" if filling => {
                    fresh.insert(event.name, (event.version, event.value));
                }
                "ADDED" | "MODIFIED" => {
                    self.version = Some(event.version.clone());
                    self.lock().insert(event.name, (event.version, event.value));
                }
                "DELETED" => {
                    self.version = Some(event.version);
                    self.lock().remove(&event.name);
                }
                "BOOKMARK" => {
                    if filling {
                        ensure!(event.is_end_of_list, "a bookmark before the list is complete");
                        *self.lock() = std::mem::take(&mut fresh);
                    }
                    self.version = Some(event.version);
                }
                _ => {
                    // Gone, or the server ends: what was seen may be too old.
                    self.gone.fetch_add(usize::from(event.is_gone), Ordering::Relaxed);
                    self.version = None;
                    return Ok(());
                }
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Contents> {
        self.cache.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn body_reader(body: kube::client::Body) -> impl futures::AsyncRead {
    body.into_data_stream().map_err(|error| std::io::Error::other(error.to_string())).into_async_read()
}

/// One change; repeated while the server is away.
async fn change(api: &Api<ConfigMap>, n: usize) -> Result<()> {
    let name = format!("c{}", n % 9);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let object: ConfigMap =
            serde_json::from_value(json!({"metadata": {"name": name}, "data": {"v": n.to_string()}}))?;
        let outcome = match n % 4 {
            0 => api.delete(&name, &DeleteParams::default()).await.map(|_| ()),
            1 => api.create(&PostParams::default(), &object).await.map(|_| ()),
            _ => {
                let patch = json!({"data": {"v": n.to_string()}});
                api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await.map(|_| ())
            }
        };
        match outcome {
            // What is there already, or not, is as good: another round changes it.
            Ok(()) | Err(kube::Error::Api(_)) => return Ok(()),
            Err(error) => ensure!(tokio::time::Instant::now() < deadline, "change {n}: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Both caches of one kind, filled by tasks.
struct Caches {
    reflected: reflector::Store<ConfigMap>,
    /// Lists that the reflector began.
    lists: Arc<AtomicUsize>,
    informed: Arc<Mutex<Contents>>,
    /// How often the informer's version was gone.
    gone: Arc<AtomicUsize>,
}

impl Caches {
    /// Starts both; `version` is where the informer goes on from.
    fn start(runtime: &tokio::runtime::Runtime, client: &Client, version: Option<&str>) -> Self {
        let api: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
        let (reflected, writer) = reflector::store();
        let lists: Arc<AtomicUsize> = Arc::default();
        let begun = lists.clone();
        let stream = watcher(api, watcher::Config::default().streaming_lists()).default_backoff();
        let counted = stream.inspect(move |event| {
            begun.fetch_add(usize::from(matches!(event, Ok(watcher::Event::Init))), Ordering::Relaxed);
        });
        runtime.spawn(counted.reflect(writer).for_each(|_| async {}));
        let informed: Arc<Mutex<Contents>> = Arc::default();
        let gone: Arc<AtomicUsize> = Arc::default();
        let informer = Informer {
            client: client.clone(),
            cache: informed.clone(),
            version: version.map(str::to_owned),
            gone: gone.clone(),
        };
        runtime.spawn(informer.run());
        runtime.spawn(controller::run(client.clone()));
        Caches { reflected, lists, informed, gone }
    }

    fn informed(&self) -> Contents {
        self.informed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    fn reflected(&self) -> Contents {
        self.reflected.state().iter().map(|map| pair(map)).collect()
    }

    /// Waits until both hold what the server holds.
    async fn exact(&self, api: &Api<ConfigMap>) -> Result<()> {
        let expected: Contents = api.list(&ListParams::default()).await?.iter().map(pair).collect();
        ensure!(!expected.is_empty());
        let exact = async {
            while self.reflected() != expected || self.informed() != expected {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(60), exact).await;
        let (reflected, informed) = (self.reflected(), self.informed());
        ensure!(waited.is_ok(), "expected {expected:?}\nreflector {reflected:?}\ninformer {informed:?}");
        Ok(())
    }
}

#[test]
fn caches_are_exact_through_the_death_of_the_server() -> Result<()> {
    let mut server = ApiServer::start("informers", "apiserver")?;
    let runtime = tokio::runtime::Runtime::new()?;
    let client = runtime.block_on(client(&server.kubeconfig()))?;
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    // A version of long ago: the watch goes on from there, or the list is asked for.
    let caches = Caches::start(&runtime, &client, Some("1"));
    for round in 0..3 {
        let changes = api.clone();
        let writing = runtime.spawn(async move {
            for n in round * 40..round * 40 + 40 {
                change(&changes, n).await?;
            }
            anyhow::Ok(())
        });
        // In the middle of the changes, at a moment that differs each time.
        runtime.block_on(async { tokio::time::sleep(Duration::from_millis(30 + 70 * round as u64)).await });
        server.kill();
        server.restart()?;
        runtime.block_on(writing)??;
    }
    runtime.block_on(caches.exact(&api))?;
    runtime.block_on(controller::done(&client))?;
    runtime.shutdown_background();
    Ok(())
}

#[test]
fn caches_are_exact_when_their_version_is_gone() -> Result<()> {
    let mut server = ApiServer::start("informers-gone", "apiserver")?;
    let runtime = tokio::runtime::Runtime::new()?;
    let here = runtime.block_on(client(&server.kubeconfig()))?;
    let api: Api<ConfigMap> = Api::namespaced(here.clone(), "default");
    for n in [1, 2, 3, 5] {
        runtime.block_on(change(&api, n))?;
    }
    let caches = Caches::start(&runtime, &here, None);
    runtime.block_on(caches.exact(&api))?;
    for round in 1..=2 {
        let (lists, gone) = (caches.lists.load(Ordering::Relaxed), caches.gone.load(Ordering::Relaxed));
        // While the caches know no server, objects come, change and go, and the history of that is forgotten.
        let port = server.restart_elsewhere()?;
        let there: Api<ConfigMap> =
            Api::namespaced(runtime.block_on(client(&server.kubeconfig()))?, "default");
        for n in round * 100..round * 100 + 30 {
            runtime.block_on(change(&there, n))?;
        }
        runtime.block_on(server.compact())?;
        server.restart_at(port)?;
        runtime.block_on(caches.exact(&api))?;
        ensure!(caches.gone.load(Ordering::Relaxed) > gone, "the informer's version was not gone");
        ensure!(caches.lists.load(Ordering::Relaxed) > lists, "the reflector made no new list");
        // And they go on from there.
        for n in round * 100 + 30..round * 100 + 40 {
            runtime.block_on(change(&api, n))?;
        }
        runtime.block_on(caches.exact(&api))?;
        runtime.block_on(controller::done(&here))?;
    }
    runtime.shutdown_background();
    Ok(())
}
