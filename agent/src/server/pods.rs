//! `/pods`: what this node is to run; `/runningpods`: what runs on it.

use super::Server;
use super::answer::{Answer, json, text};
use crate::runtime::{ContainerState, Runtime, SandboxStatus};
use http::StatusCode;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json as value};

fn list(items: Vec<Value>) -> Value {
    // Go's encoder writes a list without items as null.
    let items = if items.is_empty() { Value::Null } else { Value::Array(items) };
    value!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})
}

fn item(pod: &Pod) -> Option<Value> {
    let mut pod = serde_json::to_value(pod).ok()?;
    let fields = pod.as_object_mut()?;
    // Items of a list do not repeat what they are.
    fields.remove("kind");
    fields.remove("apiVersion");
    Some(pod)
}

/// A pod as the runtime knows it.
fn running(sandbox: &SandboxStatus) -> Value {
    let is_running = |c: &&crate::runtime::ContainerStatus| matches!(c.state, ContainerState::Running { .. });
    let containers: Vec<Value> = sandbox
        .containers
        .iter()
        .filter(is_running)
        .map(|c| value!({"name": c.name, "image": c.image_ref, "resources": {}}))
        .collect();
    value!({
        "metadata": {"name": sandbox.name, "namespace": sandbox.namespace, "uid": sandbox.id},
        "spec": {"containers": containers},
        "status": {},
    })
}

impl<R: Runtime + Clone> Server<R> {
    /// `/pods`.
    pub(super) fn pods(&self) -> Answer {
        let pods = self.pods.read();
        json(&list(pods.values().filter_map(|pod| item(pod)).collect()))
    }

    /// `/runningpods/`.
    pub(super) async fn running_pods(&self) -> Answer {
        match self.runtime.list().await {
            Ok(sandboxes) => json(&list(sandboxes.iter().filter(|s| s.ready).map(running).collect())),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }
}
