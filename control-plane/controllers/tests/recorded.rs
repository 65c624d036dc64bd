//! Recorded cases of the upstream controllers, replayed against these.
//!
//! `KELP_RECORDINGS` names the directory with `controller-cases.json`; `KELP_CASES` picks cases by a part of their name.

mod harness;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use harness::{Cluster, conditions, settings};
use kube::api::{
    Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, PropagationPolicy,
};
use kube::core::ApiResource;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

const AREAS: [&str; 10] = [
    "deployment",
    "replicaset",
    "replicationcontroller",
    "endpoints",
    "garbage-collection",
    "node-lifecycle",
    "serviceaccount",
    "pod-gc",
    "quota",
    "volumes",
];

/// Cases left out, and why.
const LEFT_OUT: [(&str, &str); 3] = [
    ("sa-token-secret", "no controller for these Secrets yet"),
    ("ep-slicing", "only the slices of a set of 130 pods were recorded"),
    (
        "ep-finished-pods",
        "upstream leaves ended pods in the older Endpoints object as not ready; they are left out here",
    ),
];

/// Kinds whose final state is compared, and how they are reached.
fn resource(kind: &str) -> Option<(ApiResource, bool)> {
    let (group, plural, namespaced) = match kind {
        "Deployment" => ("apps", "deployments", true),
        "ReplicaSet" => ("apps", "replicasets", true),
        "ReplicationController" => ("", "replicationcontrollers", true),
        "EndpointSlice" => ("discovery.k8s.io", "endpointslices", true),
        "Pod" => ("", "pods", true),
        "Service" => ("", "services", true),
        "Endpoints" => ("", "endpoints", true),
        "ConfigMap" => ("", "configmaps", true),
        "Secret" => ("", "secrets", true),
        "ServiceAccount" => ("", "serviceaccounts", true),
        "Node" => ("", "nodes", false),
        "ResourceQuota" => ("", "resourcequotas", true),
        "PersistentVolume" => ("", "persistentvolumes", false),
        "PersistentVolumeClaim" => ("", "persistentvolumeclaims", true),
        _ => return None,
    };
    let api_version = if group.is_empty() { "v1".to_owned() } else { format!("{group}/v1") };
    let resource = ApiResource {
        group: group.into(),
        version: "v1".into(),
        api_version,
        kind: kind.into(),
        plural: plural.into(),
    };
    Some((resource, namespaced))
}

fn api(client: &Client, kind: &str) -> Result<Api<DynamicObject>> {
    let (resource, namespaced) = resource(kind).with_context(|| format!("kind {kind} is not served"))?;
    Ok(if namespaced {
        Api::namespaced_with(client.clone(), "default", &resource)
    } else {
        Api::all_with(client.clone(), &resource)
    })
}

/// Objects in the order in which a watch first showed them, and every state of them.
#[derive(Default)]
struct Log {
    order: Vec<Value>,
    seen: BTreeSet<String>,
    /// Of each ReplicaSet, the sizes asked for.
    sizes: BTreeMap<String, Vec<i64>>,
    /// When something last changed.
    changed: Option<Instant>,
}

/// Waits until nothing has changed for a while: later actions of a case build on the effects of earlier ones.
async fn quiet(log: &Mutex<Log>) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        let changed = log.lock().expect("lock").changed;
        if changed.is_none_or(|at| at.elapsed() > Duration::from_millis(600)) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn record(client: Client, kind: &'static str, log: Arc<Mutex<Log>>) {
    let Ok(api) = api(&client, kind) else { return };
    let mut stream =
        std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff().applied_objects());
    while let Some(object) = stream.next().await {
        let Ok(object) = object.map_err(|_| ()).and_then(|o| serde_json::to_value(o).map_err(|_| ())) else {
            continue;
        };
        let mut log = log.lock().expect("lock");
        log.changed = Some(Instant::now());
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        if kind == "ReplicaSet" {
            let sizes = log
                .sizes
                .entry(object["metadata"]["name"].as_str().unwrap_or_default().to_owned())
                .or_default();
            let size = object["spec"]["replicas"].as_i64().unwrap_or(1);
            // A set made in the middle of a rollout may start at 0: that depends on the moment.
            if sizes.last() != Some(&size) && !(sizes.is_empty() && size == 0) {
                sizes.push(size);
            }
        }
        if log.seen.insert(uid) {
            log.order.push(object);
        }
    }
}

/// Pairs of actual text and placeholder.
fn placeholders(log: &Log) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    let mut hashes: Vec<String> = Vec::new();
    let mut suffixes: BTreeMap<String, usize> = BTreeMap::new();
    for object in &log.order {
        let meta = &object["metadata"];
        let name = meta["name"].as_str().unwrap_or_default();
        if let Some(hash) = meta["labels"]["pod-template-hash"].as_str()
            && !hashes.iter().any(|h| h == hash)
            && name.contains(hash)
        {
            hashes.push(hash.to_owned());
        }
        if let Some(prefix) = meta["generateName"].as_str()
            && let Some(suffix) = name.strip_prefix(prefix)
        {
            let n = suffixes.entry(prefix.to_owned()).or_default();
            *n += 1;
            pairs.push((format!("{prefix}{suffix}"), format!("{prefix}<s{n}>")));
        }
    }
    // Names first, then the hashes inside them.
    for (i, hash) in hashes.iter().enumerate() {
        pairs.push((hash.clone(), format!("<hash{}>", i + 1)));
    }
    pairs
}

fn to_placeholders(text: &str, pairs: &[(String, String)]) -> String {
    let mut text = text.to_owned();
    for (actual, placeholder) in pairs {
        text = text.replace(actual, placeholder);
    }
    // Names of pods that were refused: none of these was ever seen.
    let mut parts = text.split("<hash");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str("<hash");
        match part.split_once(">-") {
            Some((number, rest))
                if rest.len() > 5
                    && rest.is_char_boundary(5)
                    && rest[5..].trim_start_matches('\\').starts_with("\" is forbidden") =>
            {
                out.push_str(&format!("{number}>-<rand>{}", &rest[5..]));
            }
            _ => out.push_str(part),
        }
    }
    out
}

/// The actual name behind a recorded one.
fn actual_name(name: &str, pairs: &[(String, String)]) -> Result<String> {
    if !name.contains('<') {
        return Ok(name.to_owned());
    }
    let found = pairs.iter().find(|(actual, _)| to_placeholders(actual, pairs) == name);
    Ok(found.with_context(|| format!("no object {name} yet"))?.0.clone())
}

async fn act(
    cluster: &Cluster,
    action: &Value,
    log: &Mutex<Log>,
    silent: &Mutex<BTreeSet<String>>,
) -> Result<()> {
    let client = &cluster.client;
    let pairs = placeholders(&log.lock().expect("lock"));
    let now = k8s_openapi::jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let action: &Value = &serde_json::from_str(&action.to_string().replace("<time>", &now))?;
    let what = action["do"].as_str().unwrap_or_default();
    let name = actual_name(action["name"].as_str().unwrap_or_default(), &pairs)?;
    let kind = action["kind"].as_str().unwrap_or("Pod");
    let patch_params = PatchParams::default();
    match what {
        "create" => {
            let text = action["object"].to_string().replace("<ns>", "default");
            let object: DynamicObject = serde_json::from_str(&text)?;
            let kind = object.types.as_ref().map(|t| t.kind.clone()).unwrap_or_default();
            let created = api(client, &kind)?.create(&PostParams::default(), &object).await?;
            if kind == "ResourceQuota" {
                // Until its status says what is used, a quota refuses everything.
                let (quotas, name) = (api(client, &kind)?, created.name_any());
                harness::eventually("the status of the quota", || async {
                    Ok(quotas.get(&name).await?.data["status"]["used"].is_object().then_some(()))
                })
                .await?;
            }
        }
        "patch" => {
            let patch = match action["type"].as_str() {
                Some("strategic") => Patch::Strategic(action["patch"].clone()),
                _ => Patch::Merge(action["patch"].clone()),
            };
            api(client, kind)?.patch(&name, &patch_params, &patch).await?;
        }
        "patch status" => {
            let patch = Patch::Merge(json!({"status": action["patch"]}));
            api(client, kind)?.patch_status(&name, &patch_params, &patch).await?;
        }
        "delete" => {
            let params = DeleteParams {
                grace_period_seconds: action["gracePeriodSeconds"]
                    .as_u64()
                    .map(|s| u32::try_from(s).unwrap_or(0)),
                propagation_policy: action["propagationPolicy"].as_str().map(|p| match p {
                    "Foreground" => PropagationPolicy::Foreground,
                    "Orphan" => PropagationPolicy::Orphan,
                    _ => PropagationPolicy::Background,
                }),
                ..DeleteParams::default()
            };
            api(client, kind)?.delete(&name, &params).await?;
        }
        "kubelet: finish deletion" => {
            api(client, "Pod")?.delete(&name, &DeleteParams::default().grace_period(0)).await?;
        }
        "kubelet: pod ready" | "kubelet: pod running" => {
            let patch =
                Patch::Strategic(json!({"status": {"conditions": conditions(what.ends_with("ready"))}}));
            api(client, "Pod")?.patch_status(&name, &patch_params, &patch).await?;
        }
        "kubelet: pod fail" => {
            let patch =
                Patch::Strategic(json!({"status": {"phase": "Failed", "conditions": conditions(false)}}));
            api(client, "Pod")?.patch_status(&name, &patch_params, &patch).await?;
        }
        "lease: stop renewing" => {
            silent.lock().expect("lock").insert(name);
        }
        "lease: renew again and post status" => {
            silent.lock().expect("lock").remove(&name);
            let node = api(client, "Node")?.get(&name).await?;
            let mut status = node.data["status"]["conditions"].clone();
            let now = k8s_openapi::jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            for condition in status.as_array_mut().into_iter().flatten() {
                let ready = condition["type"] == "Ready";
                let (reason, message) = match condition["type"].as_str().unwrap_or_default() {
                    "MemoryPressure" => {
                        ("KubeletHasSufficientMemory", "kubelet has sufficient memory available")
                    }
                    "DiskPressure" => ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
                    "PIDPressure" => ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
                    _ => ("KubeletReady", "kubelet is posting ready status"),
                };
                condition["status"] = json!(if ready { "True" } else { "False" });
                condition["reason"] = json!(reason);
                condition["message"] = json!(message);
                condition["lastHeartbeatTime"] = json!(now);
                condition["lastTransitionTime"] = json!(now);
            }
            let patch = Patch::Merge(json!({"status": {"conditions": status}}));
            api(client, "Node")?.patch_status(&name, &patch_params, &patch).await?;
        }
        other => bail!("unknown action {other}"),
    }
    Ok(())
}

async fn renew(client: Client, silent: Arc<Mutex<BTreeSet<String>>>, nodes: Vec<String>) {
    let leases: Api<k8s_openapi::api::coordination::v1::Lease> = Api::namespaced(client, "kube-node-lease");
    loop {
        for node in &nodes {
            if silent.lock().expect("lock").contains(node) {
                continue;
            }
            let now = format!("{:.6}", k8s_openapi::jiff::Timestamp::now());
            let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": node},
                               "spec": {"renewTime": now}});
            if leases.patch(node, &PatchParams::default(), &Patch::Merge(&lease)).await.is_err()
                && let Ok(lease) = serde_json::from_value(lease)
            {
                let _ = leases.create(&PostParams::default(), &lease).await;
            }
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

/// Where `actual` lacks something of `expected`.
fn differences(expected: &Value, actual: &Value, path: &str, out: &mut Vec<String>) {
    match (expected, actual) {
        (Value::Object(e), Value::Object(a)) => {
            for (key, value) in e {
                // Written by the trigger time tracker, the defaulting and the recording's own cuts.
                if [
                    "spec",
                    "endpoints.kubernetes.io/last-change-trigger-time",
                    "generation",
                    "observedGeneration",
                    "uid",
                ]
                .contains(&key.as_str())
                    || value.is_null()
                {
                    continue;
                }
                differences(value, a.get(key).unwrap_or(&Value::Null), &format!("{path}.{key}"), out);
            }
            if path.ends_with("status") && !path.starts_with("Node/")
                || path.ends_with("annotations")
                || path.ends_with("labels")
            {
                let more: Vec<_> =
                    a.keys().filter(|k| !e.contains_key(*k) && *k != "observedGeneration").collect();
                if !more.is_empty() && !path.contains("Pod") {
                    out.push(format!("{path}: also {more:?}"));
                }
            }
        }
        (Value::Array(e), Value::Array(a)) if e.len() == a.len() => {
            // The order of endpoints means nothing, that of conditions depends on which states were seen.
            let sorted = |list: &[Value]| {
                let mut list = list.to_vec();
                let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
                list.sort_by_key(|v| (text(&v["targetRef"]["name"]), text(&v["type"])));
                list
            };
            let (e, a) = (sorted(e), sorted(a));
            for (i, (e, a)) in e.iter().zip(&a).enumerate() {
                differences(e, a, &format!("{path}[{i}]"), out);
            }
        }
        (Value::String(e), Value::String(_)) if e.starts_with('<') && !e.starts_with("<hash") => {}
        // An empty object of annotations is the same as none.
        (Value::Object(e), Value::Null) if e.keys().all(|k| k.ends_with("trigger-time")) => {}
        (e, a) if e == a => {}
        (e, a) => out.push(format!("{path}: expected {e}, got {a}")),
    }
}

async fn replay(case: &Value) -> Result<Vec<String>> {
    let own = case["nodes"] == "own";
    let lifecycle = case["area"] == "node-lifecycle";
    let mut config = settings();
    if lifecycle {
        config.node_monitor_grace = Duration::from_secs(9);
        config.node_startup_grace = Duration::from_secs(12);
    }
    if case["area"] == "pod-gc" {
        config.orphan_grace = Duration::from_secs(2);
    }
    let cluster = Cluster::with_nodes(config, if own { &[] } else { &["n1", "n2", "n3"] }).await?;
    // The controllers work once their caches are complete: what comes before that is not what the recording shows.
    let published = api(&cluster.client, "ConfigMap")?;
    harness::eventually("the controllers at work", || async {
        Ok(published.get_opt("kube-root-ca.crt").await?)
    })
    .await?;
    let log: Arc<Mutex<Log>> = Arc::default();
    let silent: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    let mut tasks = tokio::task::JoinSet::new();
    for kind in
        ["Deployment", "ReplicaSet", "Pod", "EndpointSlice", "PersistentVolume", "PersistentVolumeClaim"]
    {
        tasks.spawn(record(cluster.client.clone(), kind, log.clone()));
    }
    for object in case["initial"].as_array().into_iter().flatten() {
        let action = json!({"do": "create", "object": object});
        act(&cluster, &action, &log, &silent).await.context("initial object")?;
        if object["kind"] == "Node" {
            let action = json!({"do": "patch status", "kind": "Node", "name": object["metadata"]["name"], "patch": object["status"]});
            act(&cluster, &action, &log, &silent).await?;
        }
        // What comes next finds it as it stays: a claim after its volume is bound at once.
        if case["area"] == "volumes" {
            tokio::time::sleep(Duration::from_millis(700)).await;
            quiet(&log).await;
        }
    }
    let names = |v: &Value| v["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let nodes =
        case["initial"].as_array().into_iter().flatten().filter(|o| o["kind"] == "Node").map(names).collect();
    tasks.spawn(renew(cluster.client.clone(), silent.clone(), nodes));
    tokio::time::sleep(Duration::from_millis(500)).await;

    let mut before = 0.0;
    for action in case["actions"].as_array().into_iter().flatten() {
        let at = action["t"].as_f64().unwrap_or(before);
        if at - before > 0.15 {
            let longest = if lifecycle { 30.0 } else { 4.0 };
            tokio::time::sleep(Duration::from_secs_f64((at - before).clamp(0.5, longest))).await;
            quiet(&log).await;
        }
        before = at;
        if let Some(name) = action["name"].as_str().filter(|n| n.contains('<')) {
            // The recorder waited for it, too.
            harness::eventually(&format!("an object {name}"), || async {
                Ok(actual_name(name, &placeholders(&log.lock().expect("lock"))).ok())
            })
            .await?;
            quiet(&log).await;
        }
        act(&cluster, action, &log, &silent).await.with_context(|| action.to_string())?;
    }
    // Compared again and again until nothing differs: deadlines and grace periods take their time.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(15);
    tokio::time::sleep(Duration::from_secs(1)).await;
    loop {
        let differences = compare(case, &cluster, &log).await?;
        if differences.is_empty() || tokio::time::Instant::now() > deadline {
            return Ok(differences);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn compare(case: &Value, cluster: &Cluster, log: &Mutex<Log>) -> Result<Vec<String>> {
    let names = |v: &Value| v["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let mut out = Vec::new();
    let pairs = placeholders(&log.lock().expect("lock"));
    let mut actual: Vec<Value> = Vec::new();
    let kinds = [
        "Deployment",
        "ReplicaSet",
        "ReplicationController",
        "Pod",
        "EndpointSlice",
        "Endpoints",
        "ConfigMap",
        "ServiceAccount",
        "Node",
        "ResourceQuota",
        "PersistentVolume",
        "PersistentVolumeClaim",
    ];
    for kind in kinds {
        for object in api(&cluster.client, kind)?.list(&ListParams::default()).await?.items {
            let mut value: Value =
                serde_json::from_str(&to_placeholders(&serde_json::to_string(&object)?, &pairs))?;
            value["kind"] = json!(kind);
            // The server's own.
            if !names(&value).starts_with("kubernetes") {
                actual.push(value);
            }
        }
    }
    let id = |v: &Value| (v["kind"].as_str().unwrap_or_default().to_owned(), names(v));
    let expected = case["outcome"]["objects"].as_array().cloned().unwrap_or_default();
    for e in &expected {
        let (kind, name) = id(e);
        if !kinds.contains(&kind.as_str()) || kind == "Pod" {
            continue;
        }
        match actual.iter().find(|a| id(a) == id(e)) {
            None => out.push(format!("{kind}/{name} is missing")),
            Some(a) => differences(e, a, &format!("{kind}/{name}"), &mut out),
        }
    }
    if !expected.is_empty() {
        for kind in ["Deployment", "ReplicaSet", "Pod", "EndpointSlice"] {
            let count = |all: &[Value]| all.iter().filter(|v| v["kind"] == *kind).count();
            // The recording's node agent fell silent with its node; the stand-in here finishes deletions all the same.
            let silent = kind == "Pod" && case["area"] == "node-lifecycle";
            if !silent && expected.iter().any(|e| e["kind"] == *kind) && count(&expected) != count(&actual) {
                out.push(format!("{} {kind} objects, recorded {}", count(&actual), count(&expected)));
            }
        }
    }
    // The sizes each ReplicaSet was given.
    let mut recorded: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for entry in case["outcome"]["watch"].as_array().into_iter().flatten() {
        if let (Some(name), Some(want)) =
            (entry["object"].as_str().and_then(|o| o.strip_prefix("ReplicaSet/")), entry["want"].as_i64())
        {
            let sizes = recorded.entry(name.to_owned()).or_default();
            if sizes.last() != Some(&want) && !(sizes.is_empty() && want == 0) {
                sizes.push(want);
            }
        }
    }
    let sizes: BTreeMap<String, Vec<i64>> = log
        .lock()
        .expect("lock")
        .sizes
        .iter()
        .map(|(n, s)| (to_placeholders(n, &pairs), s.clone()))
        .collect();
    if sizes != recorded {
        out.push(format!("sizes {sizes:?}, recorded {recorded:?}"));
    }
    // Events of the controllers, without counts.
    let text = |e: &Value, component: &Value, object: String| {
        format!("{} {} {} {object}: {}", component, e["type"], e["reason"], e["message"])
    };
    let ours = [
        "deployment-controller",
        "replicaset-controller",
        "replication-controller",
        "taint-eviction-controller",
        "node-controller",
        "persistentvolume-controller",
    ];
    let mut want: Vec<String> = Vec::new();
    for e in case["outcome"]["events"].as_array().into_iter().flatten() {
        if ours.iter().any(|c| e["component"] == *c) && e["reason"] != "RegisteredNode" {
            let object = e["object"].as_str().unwrap_or_default().to_owned();
            want.push(text(e, &e["component"], object).replace("<ns>", "default"));
        }
    }
    let events: Api<k8s_openapi::api::core::v1::Event> = Api::all(cluster.client.clone());
    let mut got: Vec<String> = Vec::new();
    for e in events.list(&ListParams::default()).await?.items {
        let e: Value = serde_json::from_str(&to_placeholders(&serde_json::to_string(&e)?, &pairs))?;
        if ours.iter().any(|c| e["source"]["component"] == *c) && e["reason"] != "RegisteredNode" {
            let about = &e["involvedObject"];
            let object = format!(
                "{}/{}",
                about["kind"].as_str().unwrap_or_default(),
                about["name"].as_str().unwrap_or_default()
            );
            got.push(text(&e, &e["source"]["component"], object));
        }
    }
    // Which of several siblings was deleted is chance.
    let blur = |list: &mut Vec<String>| {
        for text in list.iter_mut() {
            for n in 1..20 {
                *text = text.replace(&format!("<s{n}>"), "<s>");
            }
        }
        list.sort();
        list.dedup();
    };
    blur(&mut want);
    blur(&mut got);
    let missing: Vec<_> = want.iter().filter(|w| !got.contains(w)).collect();
    let more: Vec<_> = got.iter().filter(|g| !want.contains(g)).collect();
    if !missing.is_empty() || !more.is_empty() {
        out.push(format!("events missing {missing:#?}, more {more:#?}"));
    }
    Ok(out)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the recordings: set KELP_RECORDINGS to their directory"]
async fn recorded_cases() -> Result<()> {
    let directory = std::env::var("KELP_RECORDINGS").context("set KELP_RECORDINGS")?;
    let only = std::env::var("KELP_CASES").unwrap_or_default();
    let text = std::fs::read_to_string(std::path::Path::new(&directory).join("controller-cases.json"))?;
    let all: Value = serde_json::from_str(&text)?;
    let cases: Vec<Value> = all["cases"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|c| AREAS.iter().any(|a| c["area"] == *a) && !LEFT_OUT.iter().any(|(n, _)| c["name"] == *n))
        .filter(|c| c["name"].as_str().unwrap_or_default().contains(&only))
        .cloned()
        .collect();
    let results: Vec<(String, Result<Vec<String>>)> = futures::stream::iter(cases)
        .map(|case| async move {
            let name = case["name"].as_str().unwrap_or_default().to_owned();
            let result = tokio::time::timeout(Duration::from_secs(90), replay(&case)).await;
            (name, result.unwrap_or_else(|_| Err(anyhow::anyhow!("took too long"))))
        })
        .buffer_unordered(6)
        .collect()
        .await;
    let mut failed = 0;
    for (name, result) in &results {
        match result {
            Ok(differences) if differences.is_empty() => println!("{name}: as recorded"),
            Ok(differences) => {
                failed += 1;
                println!("{name}: DIFFERS");
                differences.iter().for_each(|d| println!("    {d}"));
            }
            Err(error) => {
                failed += 1;
                println!("{name}: {error:#}");
            }
        }
    }
    anyhow::ensure!(failed == 0, "{failed} of {} cases differ", results.len());
    Ok(())
}
