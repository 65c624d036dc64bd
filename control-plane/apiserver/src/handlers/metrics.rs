//! The resource metrics API: each node is asked for the use of its pods (`/stats/summary`), and the answers are put
//! together. Nothing is kept between requests: the nodes know rates.

use super::{Context, Reply, connect};
use crate::cache::Filter;
use crate::error::ApiError;
use crate::object::{list_at, meta, str_at};
use crate::request::ListOptions;
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::time::Duration;

/// Nodes asked at a time.
const PARALLEL: usize = 16;
/// How long a node may take.
const ANSWER: Duration = Duration::from_secs(5);
/// Longest answer of a node, bytes.
const MAX_ANSWER: usize = 32 << 20;
/// What a node is asked.
const SUMMARY: &str = "/stats/summary?only_cpu_and_memory=true";
/// Rates of nodes are taken over at least this time.
const WINDOW: &str = "250ms";

/// Whether a resource is one of this API.
pub(super) fn is_metrics(resource: &crate::registry::Resource) -> bool {
    resource.group() == crate::registry::METRICS_GROUP
}

/// Answers `get`.
pub(super) async fn get(context: &Context) -> Result<Reply, ApiError> {
    let accepted = context.accepted()?;
    let name = context.info.name.clone();
    let found = match context.resource.plural() {
        "nodes" => {
            let objects = objects(context, &Filter::default()).await?;
            let node = objects.into_iter().find(|o| meta(o, "name") == name);
            node_metrics(context, node.into_iter().collect()).await
        }
        _ => {
            let filter = Filter { namespace: context.namespace().to_owned(), ..Filter::default() };
            let pods = objects(context, &filter).await?.into_iter().filter(|o| meta(o, "name") == name);
            pod_metrics(context, pods.collect()).await
        }
    };
    let mut object = found.into_iter().next().ok_or_else(|| context.not_found())?;
    object["kind"] = context.resource.kind().into();
    object["apiVersion"] = context.resource.api_version().into();
    Ok(Reply::value(200, &object, accepted))
}

/// Answers `list`.
pub(super) async fn list(context: &Context) -> Result<Reply, ApiError> {
    let accepted = context.accepted_list(false)?;
    let options = ListOptions::parse(&context.query, false)?;
    let filter = context.filter(&options)?;
    let objects = objects(context, &filter).await?;
    let items = match context.resource.plural() {
        "nodes" => node_metrics(context, objects).await,
        _ => pod_metrics(context, objects).await,
    };
    let list = json!({
        "kind": context.resource.list_kind(),
        "apiVersion": context.resource.api_version(),
        "metadata": {},
        "items": items,
    });
    Ok(Reply::value(200, &list, accepted))
}

/// The nodes or pods that are measured.
async fn objects(context: &Context, filter: &Filter) -> Result<Vec<Value>, ApiError> {
    let row = context.core.builtin.find("", "v1", context.resource.plural());
    let row = row.ok_or_else(ApiError::unknown_resource)?.clone();
    let cache = context.core.cache(&row);
    cache.wait_fresh().await?;
    let snapshot = cache.snapshot(filter, None);
    let chosen = snapshot.entries.into_iter().filter(|e| filter.matches(&row, e));
    Ok(chosen.map(|entry| entry.encoded.parse()).collect())
}

async fn node_metrics(context: &Context, nodes: Vec<Value>) -> Vec<Value> {
    let names: Vec<String> = nodes.iter().map(|n| meta(n, "name").to_owned()).collect();
    let summaries = summaries(context, names).await;
    let measured = nodes.iter().filter_map(|node| {
        let stats = summaries.get(meta(node, "name"))?.get("node")?;
        Some(item(node, stats, [("usage", usage(stats)?)]))
    });
    measured.collect()
}

async fn pod_metrics(context: &Context, pods: Vec<Value>) -> Vec<Value> {
    let mut names: Vec<String> = pods.iter().map(|p| str_at(p, &["spec", "nodeName"]).to_owned()).collect();
    names.retain(|name| !name.is_empty());
    names.sort_unstable();
    names.dedup();
    let summaries = summaries(context, names).await;
    let mut of_pods: HashMap<&str, &Value> = HashMap::new();
    for pod in summaries.values().flat_map(|s| list_at(s, &["pods"])) {
        of_pods.insert(str_at(pod, &["podRef", "uid"]), pod);
    }
    let measured = pods.iter().filter_map(|pod| {
        let stats = of_pods.get(meta(pod, "uid"))?;
        let containers: Vec<Value> = list_at(stats, &["containers"])
            .iter()
            .filter_map(|c| Some(json!({"name": str_at(c, &["name"]), "usage": usage(c)?})))
            .collect();
        (!containers.is_empty()).then(|| item(pod, stats, [("containers", Value::Array(containers))]))
    });
    measured.collect()
}

/// One object of this API, with the labels of what it is about.
fn item<const N: usize>(about: &Value, stats: &Value, more: [(&str, Value); N]) -> Value {
    let time = str_at(stats, &["cpu", "time"]);
    let mut metadata = json!({"name": meta(about, "name"), "creationTimestamp": time});
    let namespace = meta(about, "namespace");
    if !namespace.is_empty() {
        metadata["namespace"] = namespace.into();
    }
    if let Some(labels) = about.pointer("/metadata/labels") {
        metadata["labels"] = labels.clone();
    }
    let mut object = json!({"metadata": metadata, "timestamp": time, "window": WINDOW});
    for (name, value) in more {
        object[name] = value;
    }
    object
}

/// Quantities as the reference implementation writes them; `None` while there is no rate.
fn usage(stats: &Value) -> Option<Value> {
    let cpu = stats.pointer("/cpu/usageNanoCores")?.as_u64()?;
    let memory = stats.pointer("/memory/workingSetBytes")?.as_u64()?;
    Some(
        json!({"cpu": if cpu == 0 { "0".to_owned() } else { format!("{cpu}n") }, "memory": format!("{}Ki", memory / 1024)}),
    )
}

/// What each node says; those that do not answer are left out.
async fn summaries(context: &Context, nodes: Vec<String>) -> HashMap<String, Value> {
    let asked = nodes.into_iter().map(|node| async move {
        let answer = tokio::time::timeout(ANSWER, summary(context, &node)).await;
        match answer {
            Ok(Ok(summary)) => Some((node, summary)),
            Ok(Err(error)) => {
                tracing::debug!(node, %error, "a node does not tell its use");
                None
            }
            Err(_) => {
                tracing::debug!(node, "a node takes too long to tell its use");
                None
            }
        }
    });
    stream::iter(asked).buffer_unordered(PARALLEL).filter_map(|found| async { found }).collect().await
}

async fn summary(context: &Context, node: &str) -> Result<Value, ApiError> {
    let target = connect::kubelet(context, node).await?;
    let failed = |e: &dyn std::fmt::Display| {
        ApiError::internal(format!("Get \"https://{}{SUMMARY}\": {e}", target.authority()))
    };
    let stream = connect::connect_node(&target, SUMMARY).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| failed(&e))?;
    tokio::spawn(connection);
    let request = http::Request::get(SUMMARY)
        .header("Host", node)
        .body(Empty::<Bytes>::new())
        .map_err(|e| failed(&e))?;
    let response = sender.send_request(request).await.map_err(|e| failed(&e))?;
    if !response.status().is_success() {
        return Err(failed(&response.status()));
    }
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(|e| failed(&e))?;
    serde_json::from_slice(&body.to_bytes()).map_err(|e| failed(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_and_what_has_no_rate_yet() {
        let stats = json!({"cpu": {"time": "2026-01-01T00:00:00Z", "usageNanoCores": 1500000},
            "memory": {"workingSetBytes": 3_000_000}});
        assert_eq!(usage(&stats).unwrap(), json!({"cpu": "1500000n", "memory": "2929Ki"}));
        assert_eq!(usage(&json!({"cpu": {}, "memory": {"workingSetBytes": 1}})), None);
        let pod = json!({"metadata": {"name": "p", "namespace": "n", "labels": {"a": "b"}}});
        let object = item(&pod, &stats, [("containers", json!([]))]);
        assert_eq!(object["metadata"]["labels"]["a"], "b");
        assert_eq!(object["timestamp"], "2026-01-01T00:00:00Z");
    }
}
