//! The server behind kube's client: informers, restarts, conflicts, limits.

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt};
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Service};
use kelp_apiserver::{ApiServer, Config, TlsFiles, UserInfo};
use kelp_store::{EmbeddedStore, StoreOptions};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchParams};
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// One life of the server over a directory.
struct Life {
    server: ApiServer,
    store: Arc<EmbeddedStore>,
    shutdown: CancellationToken,
}

impl Life {
    async fn begin(directory: &Path) -> Result<Self> {
        Self::begin_with(directory, |_| {}).await
    }

    async fn begin_with(directory: &Path, change: impl FnOnce(&mut Config)) -> Result<Self> {
        let tls = TlsFiles { certificate: Vec::new(), key: Vec::new(), client_ca: Vec::new() };
        let mut config = Config::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), tls);
        config.service_cidrs.truncate(1);
        change(&mut config);
        let store = Arc::new(EmbeddedStore::open(directory, StoreOptions::default())?);
        let shutdown = CancellationToken::new();
        let server = ApiServer::new(config, store.clone(), shutdown.clone())?;
        server.bootstrap().await?;
        Ok(Life { server, store, shutdown })
    }

    fn client(&self) -> Client {
        Client::new(self.server.client_service(UserInfo::admin("admin")), "default")
    }

    async fn end(self) {
        self.shutdown.cancel();
        self.store.close().await;
    }
}

fn config_map(name: &str, value: &str) -> Result<ConfigMap> {
    Ok(serde_json::from_value(json!({"metadata": {"name": name}, "data": {"v": value}}))?)
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait).await.with_context(|| format!("waiting for {what}"))
}

/// What an informer's cache holds, as name → (version, value).
fn contents(store: &reflector::Store<ConfigMap>) -> BTreeMap<String, (Option<String>, Option<String>)> {
    store
        .state()
        .iter()
        .map(|c| {
            let value = c.data.as_ref().and_then(|d| d.get("v").cloned());
            (c.name_any(), (c.resource_version(), value))
        })
        .collect()
}

async fn listed(client: &Client) -> Result<BTreeMap<String, (Option<String>, Option<String>)>> {
    let api: Api<ConfigMap> = Api::default_namespaced(client.clone());
    Ok(api
        .list(&ListParams::default())
        .await?
        .into_iter()
        .map(|c| {
            let value = c.data.as_ref().and_then(|d| d.get("v").cloned());
            (c.name_any(), (c.resource_version(), value))
        })
        .collect())
}

#[tokio::test]
async fn informers_hold_what_the_server_holds() -> Result<()> {
    for streaming in [false, true] {
        let directory = tempfile::tempdir()?;
        let life = Life::begin(directory.path()).await?;
        let client = life.client();
        let api: Api<ConfigMap> = Api::default_namespaced(client.clone());
        api.create(&PostParams::default(), &config_map("early", "0")?).await?;
        let (reader, writer) = reflector::store();
        let config = if streaming {
            watcher::Config::default().streaming_lists()
        } else {
            watcher::Config::default().page_size(2)
        };
        let stream = watcher(api.clone(), config).default_backoff().reflect(writer);
        let informer = tokio::spawn(async move { stream.for_each(|_| async {}).await });
        reader.wait_until_ready().await?;
        for n in 0..20 {
            let name = format!("c{}", n % 7);
            match n % 3 {
                0 | 1 => {
                    let patch = Patch::Merge(json!({"data": {"v": n.to_string()}}));
                    if api.patch(&name, &PatchParams::default(), &patch).await.is_err() {
                        api.create(&PostParams::default(), &config_map(&name, "new")?).await?;
                    }
                }
                _ => drop(api.delete(&name, &DeleteParams::default()).await),
            }
        }
        let want = listed(&client).await?;
        ensure!(want.contains_key("early"));
        eventually("the informer", || contents(&reader) == want).await?;
        informer.abort();
        life.end().await;
    }
    Ok(())
}

#[tokio::test]
async fn a_watch_goes_on_where_it_was_before_a_restart() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let life = Life::begin(directory.path()).await?;
    let api: Api<ConfigMap> = Api::default_namespaced(life.client());
    let first = api.create(&PostParams::default(), &config_map("a", "1")?).await?;
    let version = first.resource_version().context("version")?;
    api.create(&PostParams::default(), &config_map("b", "1")?).await?;
    api.delete("a", &DeleteParams::default()).await?;
    drop(api);
    life.end().await;

    let life = Life::begin(directory.path()).await?;
    let api: Api<ConfigMap> = Api::default_namespaced(life.client());
    ensure!(api.get("b").await?.data.is_some());
    ensure!(api.get_opt("a").await?.is_none());
    let mut events = api.watch(&WatchParams::default().timeout(5), &version).await?.boxed();
    let mut seen = Vec::new();
    while let Some(event) = events.try_next().await? {
        match event {
            kube::api::WatchEvent::Added(o) => seen.push(format!("added {}", o.name_any())),
            kube::api::WatchEvent::Modified(o) => seen.push(format!("modified {}", o.name_any())),
            kube::api::WatchEvent::Deleted(o) => seen.push(format!("deleted {}", o.name_any())),
            kube::api::WatchEvent::Bookmark(_) => {}
            kube::api::WatchEvent::Error(e) => anyhow::bail!("{e:?}"),
        }
        if seen.len() == 2 {
            break;
        }
    }
    ensure!(seen == ["added b", "deleted a"], "{seen:?}");
    drop(events);
    life.end().await;
    Ok(())
}

#[tokio::test]
async fn of_writers_with_one_version_one_wins() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let life = Life::begin(directory.path()).await?;
    let api: Api<ConfigMap> = Api::default_namespaced(life.client());
    let seen = api.create(&PostParams::default(), &config_map("a", "0")?).await?;
    let writes = (1..=16).map(|n| {
        let (api, mut mine) = (api.clone(), seen.clone());
        mine.data = Some(BTreeMap::from([("v".to_owned(), n.to_string())]));
        async move { api.replace("a", &PostParams::default(), &mine).await }
    });
    let results = futures::future::join_all(writes).await;
    let won = results.iter().filter(|r| r.is_ok()).count();
    ensure!(won == 1, "{won} writers won");
    for error in results.into_iter().filter_map(Result::err) {
        ensure!(matches!(&error, kube::Error::Api(status) if status.code == 409), "{error}");
    }
    // Patches without a version never conflict: each is applied to what is there.
    let patches = (0..16).map(|n| {
        let api = api.clone();
        let patch = Patch::Merge(json!({"data": {format!("k{n}"): "x"}}));
        async move { api.patch("a", &PatchParams::default(), &patch).await }
    });
    for result in futures::future::join_all(patches).await {
        result?;
    }
    ensure!(api.get("a").await?.data.map(|d| d.len()) == Some(17));
    life.end().await;
    Ok(())
}

#[tokio::test]
async fn everybody_else_is_refused() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let life = Life::begin(directory.path()).await?;
    let bob = UserInfo::authenticated("bob", Vec::new());
    let client = Client::new(life.server.client_service(bob), "default");
    let error = Api::<Pod>::default_namespaced(client).list(&ListParams::default()).await.err();
    let Some(kube::Error::Api(status)) = error else { anyhow::bail!("{error:?}") };
    ensure!(status.code == 403 && status.reason == "Forbidden", "{status:?}");
    let node = UserInfo::authenticated("system:node:n", ["system:nodes".to_owned()]);
    let client = Client::new(life.server.client_service(node), "default");
    let nodes: Api<Node> = Api::all(client);
    let object: Node = serde_json::from_value(json!({"metadata": {"name": "n"}}))?;
    nodes.create(&PostParams::default(), &object).await?;
    life.end().await;
    Ok(())
}

#[tokio::test]
async fn large_lists_come_whole_and_in_pages() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let life = Life::begin(directory.path()).await?;
    let api: Api<ConfigMap> = Api::default_namespaced(life.client());
    let creates = (0..250).map(|n| {
        let api = api.clone();
        async move {
            api.create(&PostParams::default(), &config_map(&format!("c{n:03}"), "x")?).await?;
            anyhow::Ok(())
        }
    });
    futures::stream::iter(creates).buffer_unordered(32).try_collect::<Vec<()>>().await?;
    let whole = api.list(&ListParams::default()).await?;
    ensure!(whole.items.len() == 250);
    let mut pages = Vec::new();
    let mut params = ListParams::default().limit(99);
    loop {
        let page = api.list(&params).await?;
        let remaining = page.metadata.remaining_item_count;
        let next = page.metadata.continue_.clone();
        pages.extend(page.items.iter().map(ResourceExt::name_any));
        ensure!(remaining.unwrap_or(0) as usize == 250 - pages.len());
        match next.filter(|n| !n.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => break,
        }
    }
    let names: Vec<String> = whole.items.iter().map(ResourceExt::name_any).collect();
    ensure!(pages == names);
    life.end().await;
    Ok(())
}

async fn raw(client: &Client, request: http::Request<Vec<u8>>) -> Result<(u16, Value)> {
    let response = client.send(request.map(kube::client::Body::from)).await?;
    let code = response.status().as_u16();
    let bytes = http_body_util::BodyExt::collect(response.into_body()).await?.to_bytes();
    Ok((code, serde_json::from_slice(&bytes).unwrap_or_default()))
}

#[tokio::test]
async fn bad_input_gets_the_right_status() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let life = Life::begin(directory.path()).await?;
    let client = life.client();
    let post = |body: Vec<u8>, media: &str| {
        http::Request::post("/api/v1/namespaces/default/configmaps")
            .header("content-type", media)
            .body(body)
            .context("request")
    };
    let (code, status) = raw(&client, post(vec![b'x'; 4 << 20], "application/json")?).await?;
    ensure!(code == 413 && status["reason"] == "RequestEntityTooLarge", "{code} {status}");
    let mut deep = vec![b'['; 100_000];
    deep.extend(vec![b']'; 100_000]);
    let (code, _) = raw(&client, post(deep, "application/json")?).await?;
    ensure!(code == 400, "{code}");
    let (code, _) =
        raw(&client, post(b"k8s\0\xff\xff\xff".to_vec(), "application/vnd.kubernetes.protobuf")?).await?;
    ensure!(code == 400, "{code}");
    let (code, _) = raw(&client, post(b"{}".to_vec(), "text/plain")?).await?;
    ensure!(code == 415, "{code}");
    let get = |path: &str| http::Request::get(path).body(Vec::new()).context("request");
    let (code, _) =
        raw(&client, get("/api/v1/namespaces/default/pods?resourceVersion=9223372036854775807")?).await?;
    ensure!(code == 504, "{code}");
    let (code, _) = raw(&client, get("/api/v1/nonsense")?).await?;
    ensure!(code == 404, "{code}");
    let namespaces: Api<Namespace> = Api::all(client.clone());
    ensure!(namespaces.get("default").await.is_ok());
    life.end().await;
    Ok(())
}

#[tokio::test]
async fn overload_is_shed() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let life = Life::begin_with(directory.path(), |config| {
        (config.max_read_requests, config.max_write_requests) = (1, 0);
    })
    .await?;
    let admin = life.client();
    let level = json!({"apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "PriorityLevelConfiguration",
        "metadata": {"name": "narrow"}, "spec": {"type": "Limited",
            "limited": {"nominalConcurrencyShares": 1, "borrowingLimitPercent": 0,
                "limitResponse": {"type": "Reject"}}}});
    let everything = json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": true,
        "namespaces": ["*"]});
    let schema = json!({"apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema",
        "metadata": {"name": "narrow"}, "spec": {"priorityLevelConfiguration": {"name": "narrow"},
            "matchingPrecedence": 2, "rules": [{"resourceRules": [everything],
                "subjects": [{"kind": "User", "user": {"name": "system:kube-scheduler"}}]}]}});
    let mut uids = Vec::new();
    for (plural, object) in [("prioritylevelconfigurations", level), ("flowschemas", schema)] {
        let path = format!("/apis/flowcontrol.apiserver.k8s.io/v1/{plural}");
        let request = http::Request::post(path)
            .header("content-type", "application/json")
            .body(object.to_string().into_bytes())?;
        let created: Value = admin.request(request).await?;
        uids.push(created["metadata"]["uid"].as_str().context("uid")?.to_owned());
    }
    let user = UserInfo::authenticated("system:kube-scheduler", []);
    let scheduler = Client::new(life.server.client_service(user), "default");
    let get = async |path: &str| {
        let request = http::Request::get(path).body(kube::client::Body::empty())?;
        anyhow::Ok(scheduler.send(request).await?)
    };
    let header = |response: &http::Response<_>, name: &str| {
        response.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned()
    };
    let applied = async {
        loop {
            let response = get("/api/v1/pods").await?;
            let level = header(&response, "x-kubernetes-pf-prioritylevel-uid");
            if uids.first() == Some(&level) {
                return anyhow::Ok(header(&response, "x-kubernetes-pf-flowschema-uid"));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let schema = tokio::time::timeout(Duration::from_secs(10), applied).await??;
    ensure!(uids.last() == Some(&schema), "{schema}");
    // One waits for a revision that does not come, in the only seat; the other finds none.
    let future = "/api/v1/pods?resourceVersion=999999";
    let (one, other) = tokio::join!(get(future), get(future));
    let mut responses = [one?, other?];
    responses.sort_by_key(|response| response.status().as_u16());
    let codes: Vec<u16> = responses.iter().map(|response| response.status().as_u16()).collect();
    ensure!(codes == [429, 504], "{codes:?}");
    let rejected = responses.first().context("rejected")?;
    ensure!(header(rejected, "retry-after") == "1");
    ensure!(uids.first() == Some(&header(rejected, "x-kubernetes-pf-prioritylevel-uid")));
    // The seat comes before rights: who may not ask finds none either, and learns that when there is one.
    let forbidden = "/api/v1/secrets";
    let request = http::Request::get(future).body(kube::client::Body::empty())?;
    let holder = scheduler.clone();
    let holds = tokio::spawn(async move { holder.send(request).await });
    while get("/api/v1/pods").await?.status() != 429 {
        ensure!(!holds.is_finished(), "it never had the seat");
    }
    ensure!(get(forbidden).await?.status() == 429);
    ensure!(holds.await??.status() == 504);
    let refused = get(forbidden).await?;
    ensure!(
        refused.status() == 403
            && uids.first() == Some(&header(&refused, "x-kubernetes-pf-prioritylevel-uid"))
    );
    // A watch keeps its seat until it has handed over what it begins with, and no longer.
    let mut watch = get("/api/v1/pods?watch=1").await?.into_body();
    ensure!(get("/api/v1/pods").await?.status() == 429);
    let first = tokio::spawn(async move { watch.frame().await });
    let served = async {
        while get("/api/v1/pods").await?.status() == 429 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(Duration::from_secs(5), served).await??;
    ensure!(!first.is_finished(), "there are no pods to show");
    first.abort();
    // Others are not concerned, and administrators always have a seat.
    let api: Api<ConfigMap> = Api::default_namespaced(admin.clone());
    api.create(&PostParams::default(), &config_map("a", "1")?).await?;
    life.end().await;
    Ok(())
}

#[tokio::test]
async fn a_thousand_watchers_see_every_event_once() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let life = Life::begin(directory.path()).await?;
    let api: Api<ConfigMap> = Api::default_namespaced(life.client());
    let version = api.list(&ListParams::default()).await?.metadata.resource_version.context("version")?;
    let mut watchers = Vec::new();
    for _ in 0..1000 {
        let stream = api.watch(&WatchParams::default().timeout(60), &version).await?.boxed();
        watchers.push(tokio::spawn(async move {
            let events = stream.take(20).try_collect::<Vec<_>>().await?;
            let names = events.into_iter().map(|event| match event {
                kube::api::WatchEvent::Added(o) => Ok(o.name_any()),
                other => Err(anyhow::anyhow!("{other:?}")),
            });
            names.collect::<Result<Vec<String>>>()
        }));
    }
    let mut want = Vec::new();
    for n in 0..20 {
        let name = format!("c{n:02}");
        api.create(&PostParams::default(), &config_map(&name, "1")?).await?;
        want.push(name);
    }
    for watcher in watchers {
        let seen = tokio::time::timeout(Duration::from_secs(30), watcher).await???;
        ensure!(seen == want, "{seen:?}");
    }
    life.end().await;
    Ok(())
}

#[tokio::test]
async fn services_created_at_once_get_different_addresses() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let life = Life::begin(directory.path()).await?;
    let api: Api<Service> = Api::default_namespaced(life.client());
    let service = |n: usize| -> Result<Service> {
        Ok(serde_json::from_value(json!({"metadata": {"name": format!("s{n}")},
            "spec": {"type": "NodePort", "ports": [{"port": 80}], "selector": {"a": "b"}}}))?)
    };
    let creates = (0..64).map(|n| {
        let api = api.clone();
        async move { anyhow::Ok(api.create(&PostParams::default(), &service(n)?).await?) }
    });
    let made: Vec<Service> = futures::stream::iter(creates).buffer_unordered(64).try_collect().await?;
    let numbers = |made: &[Service]| -> (HashSet<String>, HashSet<i32>) {
        let specs = made.iter().filter_map(|s| s.spec.as_ref());
        specs
            .map(|s| {
                let port = s.ports.iter().flatten().next().and_then(|p| p.node_port).unwrap_or_default();
                (s.cluster_ip.clone().unwrap_or_default(), port)
            })
            .unzip()
    };
    let (addresses, ports) = numbers(&made);
    ensure!(addresses.len() == 64 && ports.len() == 64, "{addresses:?} {ports:?}");
    life.end().await;
    // After a restart nothing that is in use is given out again.
    let life = Life::begin(directory.path()).await?;
    let api: Api<Service> = Api::default_namespaced(life.client());
    let more = api.create(&PostParams::default(), &service(100)?).await?;
    let (address, port) = numbers(&[more]);
    ensure!(addresses.is_disjoint(&address) && ports.is_disjoint(&port), "{address:?} {port:?}");
    life.end().await;
    Ok(())
}

/// The status code and the body of a raw request.
async fn fetched(client: &Client, path: &str) -> Result<(u16, Value)> {
    use http_body_util::BodyExt;
    let response = client.send(http::Request::get(path).body(kube::client::Body::empty())?).await?;
    let code = response.status().as_u16();
    let body = response.into_body().collect().await?.to_bytes();
    Ok((code, serde_json::from_slice(&body)?))
}

#[tokio::test]
async fn what_was_compacted_away_is_expired() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let life = Life::begin(directory.path()).await?;
    let client = life.client();
    let api: Api<ConfigMap> = Api::default_namespaced(client.clone());
    for name in ["a", "b", "c", "d"] {
        api.create(&PostParams::default(), &config_map(name, "1")?).await?;
    }
    let maps = "/api/v1/namespaces/default/configmaps";
    let (code, page) = fetched(&client, &format!("{maps}?limit=1")).await?;
    ensure!(code == 200 && page["metadata"]["remainingItemCount"].as_i64() >= Some(3), "{page}");
    let token = page["metadata"]["continue"].as_str().context("continue")?;
    let old = page["metadata"]["resourceVersion"].as_str().context("resourceVersion")?;
    // Served although the objects have changed meanwhile.
    api.delete("d", &DeleteParams::default()).await?;
    let last = api.create(&PostParams::default(), &config_map("e", "1")?).await?;
    let names = |list: &Value| -> Vec<String> {
        list["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|item| item["metadata"]["name"].as_str().map(str::to_owned))
            .filter(|name| name.len() == 1)
            .collect()
    };
    let (_, rest) = fetched(&client, &format!("{maps}?continue={token}")).await?;
    ensure!(names(&rest) == ["b", "c", "d"], "{rest}");
    let (code, exact) =
        fetched(&client, &format!("{maps}?resourceVersion={old}&resourceVersionMatch=Exact")).await?;
    ensure!(code == 200 && names(&exact) == ["a", "b", "c", "d"], "{exact}");

    let newest: i64 = last.resource_version().context("version")?.parse()?;
    kelp_store::Store::compact(&*life.store, newest).await?;
    let (code, gone) = fetched(&client, &format!("{maps}?continue={token}")).await?;
    ensure!(code == 410 && gone["reason"] == "Expired", "{gone}");
    // The token in the error goes on with what is there now.
    let token = gone["metadata"]["continue"].as_str().context("another token")?;
    let (code, rest) = fetched(&client, &format!("{maps}?continue={token}")).await?;
    ensure!(code == 200 && names(&rest) == ["b", "c", "e"], "{rest}");
    let (code, gone) =
        fetched(&client, &format!("{maps}?resourceVersion={old}&resourceVersionMatch=Exact")).await?;
    ensure!(
        code == 410 && gone["message"] == "The resourceVersion for the provided list is too old.",
        "{gone}"
    );
    let (code, event) = fetched(&client, &format!("{maps}?watch=1&resourceVersion={old}")).await?;
    ensure!(code == 200 && event["type"] == "ERROR" && event["object"]["code"] == 410, "{event}");
    ensure!(event["object"]["message"] == format!("too old resource version: {old} ({newest})"), "{event}");
    let (code, list) =
        fetched(&client, &format!("{maps}?resourceVersion={newest}&resourceVersionMatch=Exact")).await?;
    ensure!(code == 200 && names(&list) == ["a", "b", "c", "e"], "{list}");
    life.end().await;
    Ok(())
}
