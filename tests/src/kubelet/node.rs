//! What becomes of the Node while its kubelet is away, and what is told of it.

use super::Case;
use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Event, Node};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How long the Node may take to be as it was recorded at last.
const PATIENCE: Duration = Duration::from_secs(60);

/// A Node that is watched.
#[derive(Debug)]
pub struct SeenNode {
    name: String,
    since: Timestamp,
    lines: Arc<Mutex<Vec<Value>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for SeenNode {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl SeenNode {
    /// Watches a Node from now on.
    pub async fn follow(client: &kube::Client, name: &str) -> Result<Self> {
        let api: Api<Node> = Api::all(client.clone());
        let version = api.get(name).await.context("read the Node")?.metadata.resource_version;
        let lines: Arc<Mutex<Vec<Value>>> = Arc::default();
        let (own, name) = (lines.clone(), name.to_owned());
        let params = WatchParams::default().fields(&format!("metadata.name={name}")).timeout(290);
        let stream = api.watch(&params, &version.unwrap_or_default()).await.context("watch the Node")?;
        let task = tokio::spawn(async move {
            let mut stream = stream.boxed();
            while let Ok(Some(event)) = stream.try_next().await {
                if let WatchEvent::Added(node) | WatchEvent::Modified(node) = event {
                    let line = summary(&serde_json::to_value(&node).unwrap_or_default());
                    let mut lines = own.lock().unwrap_or_else(PoisonError::into_inner);
                    if lines.last() != Some(&line) {
                        lines.push(line);
                    }
                }
            }
        });
        Ok(Self { name, since: Timestamp::now(), lines, task })
    }

    fn seen(&self) -> Vec<Value> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How the Node and its events differ from the recording, which ends with the Node as it was.
    pub async fn differences(self, client: &kube::Client, case: &Case) -> Result<Vec<String>> {
        let record = &case.record["node"];
        let lines = record["watch"].as_array().into_iter().flatten().map(recorded_summary);
        let lines: Vec<Value> = lines.collect();
        let deadline = Instant::now() + PATIENCE;
        while self.seen().last() != lines.last() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let mut wrong = Vec::new();
        let seen = self.seen();
        if seen != lines {
            let text = |lines: &[Value]| lines.iter().map(|l| format!("\n   {l}")).collect::<String>();
            wrong.push(format!("node: recorded{}\n  saw{}", text(&lines), text(&seen)));
        }
        let recorded = record["events"].as_array().into_iter().flatten();
        let recorded = distinct(recorded.map(|e| words([&e["type"], &e["reason"], &e["message"]])));
        let events: Api<Event> = Api::namespaced(client.clone(), "default");
        let fields = format!("involvedObject.kind=Node,involvedObject.name={}", self.name);
        loop {
            let mut found = events.list(&ListParams::default().fields(&fields)).await?.items;
            found.retain(|e| {
                e.last_timestamp.as_ref().is_some_and(|t| t.0.as_second() >= self.since.as_second())
            });
            let mut seen: Vec<Value> = Vec::new();
            for event in &found {
                seen.push(serde_json::to_value(event)?);
            }
            let of =
                |e: &Value| words([&e["type"], &e["reason"], &e["message"]]).replace(&self.name, "node1");
            let mut missing: BTreeMap<&String, &str> = recorded.iter().map(|e| (e, "-")).collect();
            let seen = distinct(seen.iter().map(of));
            for event in &seen {
                if missing.remove(event).is_none() {
                    missing.insert(event, "+");
                }
            }
            // Events are told after the fact.
            if missing.is_empty() || Instant::now() > deadline {
                wrong
                    .extend(missing.iter().map(|(event, sign)| format!("event of the node: {sign} {event}")));
                return Ok(wrong);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

fn words(values: [&Value; 3]) -> String {
    values.map(|v| v.as_str().unwrap_or_default()).join(" ")
}

fn distinct(all: impl Iterator<Item = String>) -> Vec<String> {
    let mut found = Vec::new();
    for one in all {
        if !found.contains(&one) {
            found.push(one);
        }
    }
    found
}

/// Conditions and taints of a Node.
fn summary(node: &Value) -> Value {
    let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
    let conditions: serde_json::Map<String, Value> = conditions
        .map(|c| {
            let name = c["type"].as_str().unwrap_or_default().to_owned();
            (name, json!([c["status"], c["reason"], c["message"]]))
        })
        .collect();
    json!({"conditions": conditions, "taints": taints(&node["spec"])})
}

fn recorded_summary(line: &Value) -> Value {
    json!({"conditions": line["conditions"], "taints": taints(&line["spec"])})
}

fn taints(spec: &Value) -> Vec<String> {
    let taints = spec["taints"].as_array().into_iter().flatten();
    taints.map(|t| words([&t["key"], &Value::Null, &t["effect"]])).collect()
}
