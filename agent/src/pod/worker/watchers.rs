//! Probes of the pod's running containers.

use super::{Message, Worker};
use crate::network::PodNetwork;
use crate::pod::context::Context;
use crate::pod::events::Kind as EventKind;
use crate::pod::hooks::{exec_error, named_ports};
use crate::probe::{self, Exec, ExecError, Target, Verdict};
use crate::runtime::{Runtime, RuntimeError};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Probe};
use kelp_model::pod::probe::Purpose;
use kelp_model::pod::spec::{Kind, containers};
use kelp_model::pod::view::{Observed, Sandbox, State};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::AbortHandle;

/// The tasks that probe a pod; they end when they are dropped.
#[derive(Debug, Default)]
pub struct Probes {
    tasks: HashMap<(String, u32, Purpose), AbortHandle>,
    hooks: Vec<AbortHandle>,
}

impl Probes {
    /// Ends all.
    pub fn clear(&mut self) {
        self.tasks.drain().for_each(|(_, task)| task.abort());
        self.hooks.drain(..).for_each(|task| task.abort());
    }

    /// Keeps a hook's task.
    pub fn hook(&mut self, task: AbortHandle) {
        self.hooks.retain(|t| !t.is_finished());
        self.hooks.push(task);
    }

    /// Ends those that no longer apply.
    fn retain(&mut self, keep: impl Fn(&(String, u32, Purpose)) -> bool) {
        self.tasks.retain(|key, task| {
            let stays = keep(key);
            if !stays {
                task.abort();
            }
            stays
        });
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Runs probe commands through the runtime.
struct InContainer<R, N> {
    context: Arc<Context<R, N>>,
    uid: String,
    id: String,
}

impl<R: Runtime, N: PodNetwork> Exec for InContainer<R, N> {
    async fn exec(&self, argv: &[String], timeout: Duration) -> Result<Option<(i32, String)>, ExecError> {
        match self.context.runtime.exec(&self.uid, &self.id, argv, timeout).await {
            Ok(result) if result.timed_out => Err(ExecError::Timeout),
            Ok(result) => {
                let output = [result.stdout, result.stderr].concat();
                Ok(Some((result.exit_code, String::from_utf8_lossy(&output).into_owned())))
            }
            Err(RuntimeError::Start { message, .. }) => Err(ExecError::Start(exec_error(&self.id, &message))),
            Err(_) => Ok(None),
        }
    }
}

impl<R: Runtime, N: PodNetwork> Worker<R, N> {
    /// Starts and ends probe tasks as the containers came and went.
    pub(super) fn watch_containers(&mut self, observed: &Observed) {
        let pod = self.pod.clone();
        let Some(spec) = &pod.spec else { return };
        let mut wanted: HashMap<(String, u32, Purpose), (Probe, Container, Timestamp)> = HashMap::new();
        for (kind, container) in containers(spec) {
            let (Some(record), Some(memory)) =
                (observed.latest(&container.name), self.memories.get(&container.name))
            else {
                continue;
            };
            let State::Running(since) = record.state else { continue };
            if kind == Kind::Init
                || memory.in_post_start
                || memory.killing
                || observed.sandbox != Sandbox::Ready
            {
                continue;
            }
            let mut want = |purpose, probe: &Option<Probe>| {
                if let Some(probe) = probe {
                    let key = (container.name.clone(), record.attempt, purpose);
                    wanted.insert(key, (probe.clone(), container.clone(), since));
                }
            };
            if memory.started {
                want(Purpose::Liveness, &container.liveness_probe);
                want(Purpose::Readiness, &container.readiness_probe);
            } else {
                want(Purpose::Startup, &container.startup_probe);
            }
        }
        self.probes.retain(|key| wanted.contains_key(key));
        for (key, (probe, container, since)) in wanted {
            if self.probes.tasks.contains_key(&key) {
                continue;
            }
            let (name, attempt, purpose) = key.clone();
            let ready = self.memories.get(&name).is_some_and(|m| m.ready);
            let initially = (purpose == Purpose::Readiness).then_some(ready);
            let target = Target {
                container: name.clone(),
                attempt,
                pod: [&self.reference.namespace, &self.reference.name, &self.reference.uid]
                    .map(String::clone),
                ports: named_ports(&container),
                ip: self.downward().pod_ips.first().copied(),
                exec: Arc::new(InContainer {
                    context: self.context.clone(),
                    uid: self.reference.uid.clone(),
                    id: format!("{name}.{attempt}"),
                }),
            };
            let running = Timestamp::now().duration_since(since).try_into().unwrap_or(Duration::ZERO);
            let (verdicts, mut results) = tokio::sync::mpsc::channel(1);
            let sender = self.sender.clone();
            let task = tokio::spawn(async move {
                let probing = probe::run(probe, purpose, target, running, initially, verdicts);
                let forwarding = async {
                    while let Some(verdict) = results.recv().await {
                        if sender.send(Message::Probe(verdict)).await.is_err() {
                            return;
                        }
                    }
                };
                tokio::join!(probing, forwarding);
            });
            self.probes.tasks.insert(key, task.abort_handle());
        }
    }

    pub(super) fn take_verdict(&mut self, verdict: Verdict) {
        if self.attempts.get(&verdict.container) != Some(&verdict.attempt) {
            return;
        }
        let path = self.field_path(&verdict.container);
        if let Some(text) = &verdict.event {
            let reason = if verdict.warning { "ProbeWarning" } else { "Unhealthy" };
            self.context.events.container(&self.reference, &path, EventKind::Warning, reason, text.clone());
        }
        let Some(memory) = self.memories.get_mut(&verdict.container) else { return };
        match (verdict.purpose, verdict.passed) {
            (Purpose::Startup, Some(true)) => memory.started = true,
            (Purpose::Readiness, Some(passed)) => memory.ready = passed,
            (Purpose::Startup, Some(false)) => {
                memory.unhealthy = Some(format!("Container {} failed startup probe", verdict.container));
            }
            (Purpose::Liveness, Some(false)) => {
                memory.unhealthy = Some(format!("Container {} failed liveness probe", verdict.container));
            }
            (Purpose::Liveness, Some(true)) | (_, None) => {}
        }
    }
}
