//! A runtime whose calls are counted and timed, by the names that the kubelet has for them.

use super::{
    ContainerSpec, ContainerStatus, ExecResult, PodUsage, Resources, Runtime, RuntimeError, RuntimeEvent,
    SandboxSpec, SandboxStatus, Session, Streams, usage,
};
use crate::metrics;
use parking_lot::Mutex;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::broadcast;

/// The runtime within, measured. Clones share what they know.
#[derive(Debug, Clone)]
pub struct Measured<R> {
    inner: R,
    /// When everything was listed last.
    listed: Arc<Mutex<Option<Instant>>>,
}

impl<R> Measured<R> {
    /// Measures the calls of a runtime.
    pub fn new(inner: R) -> Self {
        Self { inner, listed: Arc::default() }
    }
}

async fn measured<T>(
    operation: &str,
    call: impl Future<Output = Result<T, RuntimeError>> + Send,
) -> Result<T, RuntimeError> {
    let begin = Instant::now();
    metrics::RUNTIME_OPERATIONS.count(&[operation]);
    let result = call.await;
    metrics::RUNTIME_DURATION.took(&[operation], begin);
    if result.is_err() {
        metrics::RUNTIME_ERRORS.count(&[operation]);
    }
    result
}

/// What was found by looking at pods is news of now.
fn seen() {
    let now = jiff::Timestamp::now();
    metrics::PLEG_SEEN.set(&[], now.as_millisecond() as f64 / 1e3);
}

impl<R: Runtime> Runtime for Measured<R> {
    async fn create_sandbox(&self, spec: &SandboxSpec) -> Result<SandboxStatus, RuntimeError> {
        measured("run_podsandbox", self.inner.create_sandbox(spec)).await
    }

    async fn start_container(
        &self,
        sandbox: &str,
        spec: &ContainerSpec,
    ) -> Result<ContainerStatus, RuntimeError> {
        measured("start_container", self.inner.start_container(sandbox, spec)).await
    }

    async fn signal_container(
        &self,
        sandbox: &str,
        container: &str,
        signal: i32,
    ) -> Result<(), RuntimeError> {
        measured("stop_container", self.inner.signal_container(sandbox, container, signal)).await
    }

    async fn remove_container(&self, sandbox: &str, container: &str) -> Result<(), RuntimeError> {
        measured("remove_container", self.inner.remove_container(sandbox, container)).await
    }

    async fn remove_sandbox(&self, sandbox: &str) -> Result<(), RuntimeError> {
        measured("remove_podsandbox", self.inner.remove_sandbox(sandbox)).await
    }

    async fn update_resources(
        &self,
        sandbox: &str,
        container: Option<&str>,
        resources: &Resources,
    ) -> Result<(), RuntimeError> {
        let operation = if container.is_some() { "update_container" } else { "update_podsandbox_resources" };
        measured(operation, self.inner.update_resources(sandbox, container, resources)).await
    }

    async fn writable_bytes(&self, sandbox: &str, container: &str) -> Result<u64, RuntimeError> {
        measured("container_stats", self.inner.writable_bytes(sandbox, container)).await
    }

    async fn list(&self) -> Result<Vec<SandboxStatus>, RuntimeError> {
        let begin = Instant::now();
        let before = self.listed.lock().replace(begin);
        if let Some(before) = before {
            metrics::PLEG_INTERVAL.observe(&[], (begin - before).as_secs_f64());
        }
        let found = measured("list_podsandbox", self.inner.list()).await;
        metrics::PLEG_LIST.took(&[], begin);
        if found.is_ok() {
            seen();
        }
        found
    }

    async fn status(&self, sandbox: &str) -> Result<Option<SandboxStatus>, RuntimeError> {
        let begin = Instant::now();
        let found = measured("podsandbox_status", self.inner.status(sandbox)).await;
        metrics::PLEG_POD.took(&[], begin);
        if found.is_ok() {
            seen();
        }
        found
    }

    fn container_user(&self, sandbox: &str, container: &str) -> Option<(u32, u32, Vec<u32>)> {
        self.inner.container_user(sandbox, container)
    }

    async fn exec(
        &self,
        sandbox: &str,
        container: &str,
        argv: &[String],
        timeout: Duration,
    ) -> Result<ExecResult, RuntimeError> {
        measured("exec_sync", self.inner.exec(sandbox, container, argv, timeout)).await
    }

    async fn open_exec(
        &self,
        sandbox: &str,
        container: &str,
        argv: &[String],
        streams: Streams,
    ) -> Result<Session, RuntimeError> {
        measured("exec", self.inner.open_exec(sandbox, container, argv, streams)).await
    }

    async fn attach(
        &self,
        sandbox: &str,
        container: &str,
        streams: Streams,
    ) -> Result<Session, RuntimeError> {
        measured("attach", self.inner.attach(sandbox, container, streams)).await
    }

    async fn close_stdin(&self, sandbox: &str, container: &str) -> Result<(), RuntimeError> {
        self.inner.close_stdin(sandbox, container).await
    }

    async fn usage(&self, sandbox: &str) -> Result<Option<PodUsage>, RuntimeError> {
        measured("podsandbox_stats", self.inner.usage(sandbox)).await
    }

    async fn pods_usage(&self) -> Option<usage::Usage> {
        self.inner.pods_usage().await
    }

    async fn own_usage(&self) -> Option<usage::Usage> {
        self.inner.own_usage().await
    }

    async fn limit_pods(&self, resources: &Resources) -> Result<(), RuntimeError> {
        self.inner.limit_pods(resources).await
    }

    fn events(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.inner.events()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn calls_and_errors_are_counted_apart() {
        let count = |metric: &'static metrics::Metric| {
            let all = metrics::samples(|name| name == metric.name);
            let own = all.into_iter().find(|(_, s)| s.labels == [("operation_type", "test_call".to_owned())]);
            own.map_or(0, |(_, s)| s.count)
        };
        let gone = || RuntimeError::NotFound { kind: "sandbox", id: "s".into() };
        measured("test_call", async { Ok(()) }).await.unwrap();
        measured::<()>("test_call", async { Err(gone()) }).await.unwrap_err();
        assert_eq!(count(&metrics::RUNTIME_OPERATIONS), 2);
        assert_eq!(count(&metrics::RUNTIME_DURATION), 2);
        assert_eq!(count(&metrics::RUNTIME_ERRORS), 1);
    }
}
