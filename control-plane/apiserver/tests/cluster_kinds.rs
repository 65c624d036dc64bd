//! Every kind of `objects/*.yaml` from creation to deletion, as a client sees it.

use anyhow::{Context, Result, ensure};
use kelp_apiserver::{ApiServer, Config, TlsFiles, UserInfo};
use kelp_store::{EmbeddedStore, StoreOptions};
use kube::Client;
use serde::Deserialize;
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

async fn call(
    client: &Client,
    method: &str,
    path: &str,
    media: &str,
    body: &Value,
) -> Result<Value, kube::Error> {
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let request = http::Request::builder().method(method).uri(path).header("Content-Type", media).body(body);
    client.request(request.map_err(kube::Error::HttpError)?).await
}

/// What of `want` is missing or different in `got`.
fn missing(want: &Value, got: &Value, path: &str, out: &mut Vec<String>) {
    match (want, got) {
        (Value::Object(w), Value::Object(g)) => {
            for (key, value) in w {
                missing(value, g.get(key).unwrap_or(&Value::Null), &format!("{path}.{key}"), out);
            }
        }
        (Value::Array(w), Value::Array(g)) if w.len() == g.len() => {
            for (i, (w, g)) in w.iter().zip(g).enumerate() {
                missing(w, g, &format!("{path}[{i}]"), out);
            }
        }
        _ if want == got => {}
        _ => out.push(format!("{path}: sent {want}, got {got}")),
    }
}

/// Where the resources of a version are.
fn version_path(api_version: &str) -> String {
    let root = if api_version.contains('/') { "apis" } else { "api" };
    format!("/{root}/{api_version}")
}

/// Plural names by apiVersion and kind, from discovery.
async fn resources(client: &Client, api_version: &str) -> Result<Vec<(String, String, bool)>> {
    let list = call(client, "GET", &version_path(api_version), "application/json", &Value::Null).await?;
    let resources = list["resources"].as_array().context("resources")?;
    let text = |r: &Value, field: &str| r[field].as_str().unwrap_or_default().to_owned();
    Ok(resources.iter().map(|r| (text(r, "kind"), text(r, "name"), r["namespaced"] == true)).collect())
}

async fn round_trip(client: &Client, object: &Value) -> Result<()> {
    const JSON: &str = "application/json";
    let (api_version, kind) = (object["apiVersion"].as_str().context("apiVersion")?, &object["kind"]);
    let known = resources(client, api_version).await?;
    let (_, plural, namespaced) =
        known.iter().find(|(k, plural, _)| *kind == **k && !plural.contains('/')).context("in discovery")?;
    let place = if *namespaced { "/namespaces/default" } else { "" };
    let all = format!("{}{place}/{plural}", version_path(api_version));
    let one = format!("{all}/{}", object["metadata"]["name"].as_str().context("name")?);
    let strict = format!("{all}?fieldValidation=Strict");
    let created = call(client, "POST", &strict, JSON, object).await.context("create")?;
    let mut wrong = Vec::new();
    missing(object, &created, "", &mut wrong);
    ensure!(wrong.is_empty(), "{wrong:?}");
    let mut read = call(client, "GET", &one, JSON, &Value::Null).await.context("get")?;
    // The server itself looks after some kinds: those may have gone on meanwhile, which their version shows.
    let looked_after = read["metadata"]["resourceVersion"] != created["metadata"]["resourceVersion"];
    ensure!(read == created || looked_after, "got {read}\ncreated {created}");
    missing(object, &read, "", &mut wrong);
    ensure!(wrong.is_empty(), "{wrong:?}");
    let list = call(client, "GET", &all, JSON, &Value::Null).await.context("list")?;
    ensure!(
        list["items"].to_string().contains(created["metadata"]["uid"].as_str().context("uid")?),
        "{list}"
    );
    let mut same = call(client, "PUT", &one, JSON, &read).await;
    for _ in 0..5 {
        if !matches!(&same, Err(kube::Error::Api(e)) if e.code == 409) {
            break;
        }
        read = call(client, "GET", &one, JSON, &Value::Null).await.context("get")?;
        same = call(client, "PUT", &one, JSON, &read).await;
    }
    let same = same.context("update")?;
    ensure!(same == read, "an update without a change changed {read}\nto {same}");
    let patch = json!({"metadata": {"labels": {"patched": "yes"}}});
    let patched =
        call(client, "PATCH", &one, "application/merge-patch+json", &patch).await.context("patch")?;
    ensure!(patched["metadata"]["labels"]["patched"] == "yes", "{patched}");
    ensure!(patched.get("spec") == read.get("spec"), "{patched}");
    let table = http::Request::get(&all).header("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
    let table: Value = client.request(table.body(Vec::new())?).await.context("table")?;
    let width = table["columnDefinitions"].as_array().map(Vec::len);
    for row in table["rows"].as_array().context("rows")? {
        ensure!(row["cells"].as_array().map(Vec::len) == width, "{table}");
    }
    call(client, "DELETE", &one, JSON, &Value::Null).await.context("delete")?;
    if let Ok(kept) = call(client, "GET", &one, JSON, &Value::Null).await {
        // Protected, or waiting for its dependents; controllers would end that.
        let finalizers = kept["metadata"]["finalizers"].as_array().map(Vec::len).unwrap_or_default();
        ensure!(kept["metadata"]["deletionTimestamp"].is_string() && finalizers > 0, "{kept}");
        let patch = json!({"metadata": {"finalizers": null}});
        call(client, "PATCH", &one, "application/merge-patch+json", &patch).await.context("finalizers")?;
    }
    let gone = call(client, "GET", &one, JSON, &Value::Null).await;
    ensure!(matches!(&gone, Err(kube::Error::Api(e)) if e.code == 404), "{gone:?}");
    Ok(())
}

#[tokio::test]
async fn every_kind_there_and_back() -> Result<()> {
    let cluster = Cluster::begin().await?;
    let mut kinds = 0;
    let mut failures = Vec::new();
    let objects = [include_str!("objects/cluster.yaml"), include_str!("objects/workloads.yaml")];
    for document in objects.into_iter().flat_map(serde_norway::Deserializer::from_str) {
        let object = Value::deserialize(document)?;
        if let Err(error) = round_trip(&cluster.client, &object).await {
            failures.push(format!("{}: {error:#}", object["kind"]));
        }
        kinds += 1;
    }
    ensure!(failures.is_empty(), "{} of {kinds}:\n{}", failures.len(), failures.join("\n"));
    ensure!(kinds > 45, "{kinds}");
    cluster.end().await;
    Ok(())
}

/// A server over a directory of its own.
struct Cluster {
    client: Client,
    store: Arc<EmbeddedStore>,
    shutdown: CancellationToken,
    _directory: tempfile::TempDir,
}

impl Cluster {
    async fn begin() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let tls = TlsFiles { certificate: Vec::new(), key: Vec::new(), client_ca: Vec::new() };
        let config = Config::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), tls);
        let store = Arc::new(EmbeddedStore::open(directory.path(), StoreOptions::default())?);
        let shutdown = CancellationToken::new();
        let server = ApiServer::new(config, store.clone(), shutdown.clone())?;
        server.bootstrap().await?;
        let client = Client::new(server.client_service(UserInfo::admin("admin")), "default");
        let cluster = Cluster { client, store, shutdown, _directory: directory };
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
        cluster.post("/api/v1/namespaces/default/serviceaccounts", account).await?;
        Ok(cluster)
    }

    async fn get(&self, path: &str) -> Result<Value, kube::Error> {
        call(&self.client, "GET", path, "application/json", &Value::Null).await
    }

    async fn post(&self, path: &str, object: Value) -> Result<Value, kube::Error> {
        call(&self.client, "POST", path, "application/json", &object).await
    }

    async fn delete(&self, path: &str) -> Result<Value, kube::Error> {
        call(&self.client, "DELETE", path, "application/json", &Value::Null).await
    }

    /// Waits until an object is as wanted; `None` means that it is gone.
    async fn until(&self, path: &str, holds: impl Fn(Option<&Value>) -> bool) -> Result<()> {
        let wait = async {
            loop {
                let seen = self.get(path).await.ok();
                if holds(seen.as_ref()) {
                    return;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        let within = tokio::time::timeout(std::time::Duration::from_secs(20), wait).await;
        within.with_context(|| format!("{path} did not come to be as wanted"))
    }

    async fn end(self) {
        self.shutdown.cancel();
        self.store.close().await;
    }
}

/// Text of a refusal.
fn refusal(result: Result<Value, kube::Error>) -> String {
    match result {
        Err(kube::Error::Api(status)) => status.message.clone(),
        other => format!("not refused: {other:?}"),
    }
}

fn service(name: &str, ip: &str) -> Value {
    let mut spec = json!({"selector": {"a": "b"}, "ports": [{"port": 80}]});
    if !ip.is_empty() {
        spec["clusterIP"] = ip.into();
    }
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

#[tokio::test]
async fn addresses_have_objects_and_ranges_are_protected() -> Result<()> {
    const SERVICES: &str = "/api/v1/namespaces/default/services";
    const RANGES: &str = "/apis/networking.k8s.io/v1/servicecidrs";
    const ADDRESSES: &str = "/apis/networking.k8s.io/v1/ipaddresses";
    let cluster = Cluster::begin().await?;
    let first = cluster.get(&format!("{ADDRESSES}/10.96.0.1")).await?;
    ensure!(first["spec"]["parentRef"]["name"] == "kubernetes", "{first}");
    let ready = |object: Option<&Value>, status: &str| {
        object.is_some_and(|o| o["status"]["conditions"][0]["status"] == status)
    };
    let default_range = format!("{RANGES}/kubernetes");
    cluster.until(&default_range, |range| ready(range, "True")).await?;

    let made = cluster.post(SERVICES, service("auto", "")).await?;
    let ip = made["spec"]["clusterIP"].as_str().context("clusterIP")?.to_owned();
    let path = format!("{ADDRESSES}/{ip}");
    let object = cluster.get(&path).await?;
    let parent = json!({"resource": "services", "namespace": "default", "name": "auto"});
    ensure!(object["spec"]["parentRef"] == parent, "{object}");
    ensure!(object["metadata"]["labels"]["ipaddress.kubernetes.io/ip-family"] == "IPv4", "{object}");
    // What somebody removes is made again.
    cluster.delete(&path).await?;
    cluster.until(&path, |object| object.is_some_and(|o| o["spec"]["parentRef"] == parent)).await?;
    cluster.delete(&format!("{SERVICES}/auto")).await?;
    ensure!(cluster.get(&path).await.is_err(), "the object outlives its service");

    // A named address is nobody else's.
    let named = json!({"apiVersion": "networking.k8s.io/v1", "kind": "IPAddress", "metadata": {"name": "10.96.0.77"},
        "spec": {"parentRef": {"group": "example.com", "resource": "things", "name": "x"}}});
    cluster.post(ADDRESSES, named).await?;
    let message = refusal(cluster.post(SERVICES, service("named", "10.96.0.77")).await);
    ensure!(
        message.ends_with("failed to allocate IP 10.96.0.77: provided IP is already allocated"),
        "{message}"
    );
    cluster.delete(&format!("{ADDRESSES}/10.96.0.77")).await?;
    cluster.post(SERVICES, service("named", "10.96.0.77")).await?;

    let message = refusal(cluster.post(SERVICES, service("far", "192.0.2.130")).await);
    ensure!(message.ends_with("the provided network does not match the current range"), "{message}");
    let range = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "more"},
        "spec": {"cidrs": ["192.0.2.128/28"]}});
    cluster.post(RANGES, range).await?;
    let more = format!("{RANGES}/more");
    cluster.until(&more, |range| ready(range, "True")).await?;
    cluster.post(SERVICES, service("far", "192.0.2.130")).await?;
    cluster.delete(&more).await?;
    cluster.until(&more, |range| ready(range, "False")).await?;
    let message = refusal(cluster.post(SERVICES, service("late", "192.0.2.131")).await);
    ensure!(message.ends_with("the provided network does not match the current range"), "{message}");
    cluster.delete(&format!("{SERVICES}/far")).await?;
    cluster.until(&more, |range| range.is_none()).await?;

    // The configuration's own range comes back.
    cluster.delete(&default_range).await?;
    let message = refusal(cluster.post(SERVICES, service("near", "10.96.0.77")).await);
    ensure!(message.ends_with("provided IP is already allocated"), "{message}");
    cluster.end().await;
    Ok(())
}

fn pod(name: &str, spec: Value) -> Value {
    let mut object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "i"}]}});
    for (key, value) in spec.as_object().into_iter().flatten() {
        object["spec"][key] = value.clone();
    }
    object
}

#[tokio::test]
async fn classes_take_effect() -> Result<()> {
    const PODS: &str = "/api/v1/namespaces/default/pods";
    const PRIORITIES: &str = "/apis/scheduling.k8s.io/v1/priorityclasses";
    let cluster = Cluster::begin().await?;
    let system = cluster.get(&format!("{PRIORITIES}/system-node-critical")).await?;
    ensure!(system["value"] == 2_000_001_000, "{system}");
    let message = refusal(cluster.delete(&format!("{PRIORITIES}/system-node-critical")).await);
    ensure!(message.ends_with("this is a system priority class and cannot be deleted"), "{message}");
    let class = |name: &str, value: i64, default: bool| {
        json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name},
            "value": value, "globalDefault": default, "preemptionPolicy": "Never"})
    };
    cluster.post(PRIORITIES, class("high", 7, false)).await?;
    let seen = cluster.post(PODS, pod("plain", json!({}))).await?;
    ensure!(seen["spec"]["priority"] == 0 && seen["spec"].get("priorityClassName").is_none(), "{seen}");
    let seen = cluster.post(PODS, pod("high", json!({"priorityClassName": "high"}))).await?;
    ensure!(seen["spec"]["priority"] == 7 && seen["spec"]["preemptionPolicy"] == "Never", "{seen}");
    let message =
        refusal(cluster.post(PODS, pod("p", json!({"priorityClassName": "high", "priority": 8}))).await);
    ensure!(
        message.contains("the integer value of priority (8) must not be provided in pod spec"),
        "{message}"
    );
    cluster.post(PRIORITIES, class("usual", 5, true)).await?;
    let message = refusal(cluster.post(PRIORITIES, class("other", 6, true)).await);
    ensure!(
        message.ends_with("PriorityClass usual is already marked as default. Only one default can exist"),
        "{message}"
    );
    let seen = cluster.post(PODS, pod("usual", json!({}))).await?;
    ensure!(seen["spec"]["priority"] == 5 && seen["spec"]["priorityClassName"] == "usual", "{seen}");

    let marked = |mut object: Value, annotation: &str| {
        object["metadata"]["annotations"][annotation] = "true".into();
        object
    };
    let ingress = |name: &str| {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": name},
            "spec": {"defaultBackend": {"service": {"name": "s", "port": {"number": 80}}}}})
    };
    const INGRESSES: &str = "/apis/networking.k8s.io/v1/namespaces/default/ingresses";
    let seen = cluster.post(INGRESSES, ingress("before")).await?;
    ensure!(seen["spec"].get("ingressClassName").is_none(), "{seen}");
    let class = json!({"apiVersion": "networking.k8s.io/v1", "kind": "IngressClass", "metadata": {"name": "usual"},
        "spec": {"controller": "example.com/c"}});
    let class = marked(class, "ingressclass.kubernetes.io/is-default-class");
    let seen = cluster.post("/apis/networking.k8s.io/v1/ingressclasses", class).await?;
    let version = seen["metadata"]["resourceVersion"].as_str().context("version")?.to_owned();
    cluster.get(&format!("/apis/networking.k8s.io/v1/ingressclasses?resourceVersion={version}")).await?;
    let seen = cluster.post(INGRESSES, ingress("after")).await?;
    ensure!(seen["spec"]["ingressClassName"] == "usual", "{seen}");

    let schema = "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas/catch-all";
    cluster.until(schema, |s| s.is_some_and(|s| s["status"]["conditions"][0]["status"] == "False")).await?;
    let service = cluster.get("/apis/apiregistration.k8s.io/v1/apiservices/v1.apps").await?;
    ensure!(service["status"]["conditions"][0]["reason"] == "Local", "{service}");
    cluster.end().await;
    Ok(())
}
