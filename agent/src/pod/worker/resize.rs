//! Changes of the resources of a pod that runs.
//!
//! What the pod is allowed is kept on disk: a change that the node cannot grant now must not take effect because the
//! agent started anew. Everything else of the worker sees the pod with the resources that it is allowed.

use super::Worker;
use crate::metrics;
use crate::network::{PodNetwork, chain};
use crate::pod::container::resources;
use crate::pod::events::Kind as EventKind;
use crate::runtime::{Resources, Runtime};
use k8s_openapi::api::core::v1::{Container, Pod, PodCondition, ResourceRequirements};
use kelp_model::pod::admission::lacks;
use kelp_model::pod::quantity;
use kelp_model::pod::resources::{Limits, pod_limits};
use kelp_model::pod::spec::{self, Kind, containers};
use kelp_model::pod::view::{Observed, State};
use kelp_model::scheduling::{self, NodeInfo, PodInfo};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Resources by container name; those of the pod as a whole have no name.
type Allocation = BTreeMap<String, ResourceRequirements>;

/// Where a change stands.
#[derive(Debug, Default)]
pub(super) struct Resize {
    allocation: Allocation,
    /// Conditions for the status.
    pub(super) conditions: Vec<PodCondition>,
    /// A change is being carried out.
    in_progress: bool,
    /// Containers that must start anew, with the attempt that ran before.
    restarting: Vec<(String, u32)>,
    /// The refusal that was told.
    told: Option<String>,
    /// The change waited for the node to have room.
    deferred: bool,
    /// When the change that is carried out was granted.
    begun: Option<Instant>,
}

/// A change as events show it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    resources: Option<ResourceRequirements>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    init_containers: Vec<One<'a>>,
    containers: Vec<One<'a>>,
    generation: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

#[derive(Serialize)]
struct One<'a> {
    name: &'a str,
    resources: ResourceRequirements,
}

/// Why a change has to wait.
struct Refusal {
    /// `Infeasible` or `Deferred`.
    reason: &'static str,
    /// What the event says before the change.
    word: String,
    message: String,
}

fn of(pod: &Pod) -> Allocation {
    let spec = pod.spec.iter();
    let own = spec.clone().map(|s| (String::new(), s.resources.clone().unwrap_or_default()));
    let of_containers = spec.flat_map(containers);
    own.chain(of_containers.map(|(_, c)| (c.name.clone(), c.resources.clone().unwrap_or_default()))).collect()
}

fn summary(pod: &Pod, error: Option<&str>) -> String {
    fn one(container: &Container) -> One<'_> {
        One { name: &container.name, resources: container.resources.clone().unwrap_or_default() }
    }
    let empty = Default::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let sidecars = containers(spec).filter(|(kind, _)| *kind == Kind::Sidecar).map(|(_, c)| one(c));
    let summary = Summary {
        resources: spec.resources.clone(),
        init_containers: sidecars.collect(),
        containers: spec.containers.iter().map(one).collect(),
        generation: pod.metadata.generation.unwrap_or_default(),
        error,
    };
    serde_json::to_string(&summary).unwrap_or_default()
}

/// Limits that hold back neither what ran before nor what runs after.
fn loosest(a: &Resources, b: &Resources) -> Resources {
    Resources {
        cpu_shares: a.cpu_shares.max(b.cpu_shares),
        cpu_quota_us: a.cpu_quota_us.zip(b.cpu_quota_us).map(|(a, b)| a.max(b)),
        cpu_period_us: b.cpu_period_us.or(a.cpu_period_us),
        cpus: b.cpus.clone(),
        memory_limit: a.memory_limit.zip(b.memory_limit).map(|(a, b)| a.max(b)),
        swap_limit: a.swap_limit.zip(b.swap_limit).map(|(a, b)| a.max(b)),
        pids_limit: b.pids_limit,
        oom_score_adj: b.oom_score_adj,
    }
}

/// Whether the change of a container's resources asks for its restart.
fn needs_restart(container: &Container, old: &ResourceRequirements, new: &ResourceRequirements) -> bool {
    container.resize_policy.iter().flatten().filter(|p| p.restart_policy == "RestartContainer").any(
        |policy| {
            let get = |r: &ResourceRequirements| {
                let of = |list: &Option<BTreeMap<String, _>>| {
                    list.as_ref().and_then(|l| l.get(&policy.resource_name).cloned())
                };
                (of(&r.requests), of(&r.limits))
            };
            get(old) != get(new)
        },
    )
}

/// Counts what a change of a pod asks for, a resource of a container at a time.
pub(super) fn count_requested(old: &Pod, new: &Pod) {
    let before = of(old);
    for (name, now) in of(new) {
        let Some(then) = before.get(&name).filter(|then| **then != now) else { continue };
        for (requirement, then, now) in
            [("requests", &then.requests, &now.requests), ("limits", &then.limits, &now.limits)]
        {
            for resource in ["cpu", "memory"] {
                let amount = |list: &Option<BTreeMap<String, _>>| {
                    list.as_ref().and_then(|l| l.get(resource)).and_then(quantity::milli)
                };
                let operation = match (amount(then), amount(now)) {
                    (None, Some(_)) => "add",
                    (Some(_), None) => "remove",
                    (Some(a), Some(b)) if b > a => "increase",
                    (Some(a), Some(b)) if b < a => "decrease",
                    _ => continue,
                };
                metrics::REQUESTED_RESIZES.count(&[resource, requirement, operation]);
            }
        }
    }
}

impl Resize {
    /// The change is done, or its pod is.
    pub(super) fn end(&mut self) {
        if std::mem::take(&mut self.in_progress) {
            metrics::RESIZES_IN_PROGRESS.add(&[], -1.0);
        }
    }

    fn count_end(&mut self, success: &str) {
        if let Some(begun) = self.begun.take() {
            metrics::RESIZE_DURATION.observe(&[success], begun.elapsed().as_secs_f64() * 1e3);
        }
    }

    /// What a pod is allowed: as noted in `file`, else what it asks for.
    pub(super) fn load(file: &Path, pod: &Pod) -> Self {
        let noted = std::fs::read(file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Self { allocation: noted.unwrap_or_else(|| of(pod)), ..Self::default() }
    }

    /// The pod with what it is allowed.
    pub(super) fn view(&self, wanted: &Arc<Pod>) -> Arc<Pod> {
        let asked = of(wanted);
        let differs =
            |(name, now): (&String, &ResourceRequirements)| asked.get(name).is_some_and(|a| a != now);
        if !self.allocation.iter().any(differs) {
            return wanted.clone();
        }
        let mut pod = wanted.as_ref().clone();
        let spec = pod.spec.get_or_insert_default();
        if let Some(allowed) = self.allocation.get("") {
            spec.resources = Some(allowed.clone()).filter(|r| *r != ResourceRequirements::default());
        }
        for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
            if let Some(allowed) = self.allocation.get(&container.name) {
                container.resources = Some(allowed.clone());
            }
        }
        Arc::new(pod)
    }
}

impl<R: Runtime, N: PodNetwork> Worker<R, N> {
    /// Grants a change of resources when the node can, and carries it out.
    pub(super) async fn consider_resize(&mut self, observed: &Observed) -> Result<(), String> {
        let asked = of(&self.wanted);
        let changed = asked.iter().any(|(name, r)| self.resize.allocation.get(name).is_some_and(|a| a != r));
        if changed {
            match self.judge() {
                Err(refusal) => self.tell_refusal(&refusal),
                Ok(()) => self.grant(asked, observed).await?,
            }
        } else if !self.resize.in_progress {
            self.resize.conditions.clear();
            self.resize.told = None;
        }
        self.finish_resize(observed);
        Ok(())
    }

    fn judge(&self) -> Result<(), Refusal> {
        let Some(node) = self.context.node.borrow().clone() else { return Ok(()) };
        let mut node = NodeInfo::from_api(&node);
        let wanted = PodInfo::from_api(&self.wanted).requests;
        let (want, have) = (&wanted, &node.allocatable);
        let enough = [("cpu", want.milli_cpu, have.milli_cpu), ("memory", want.memory, have.memory)];
        if let Some((name, requested, capacity)) = enough.iter().find(|(_, want, have)| want > have) {
            let message = format!(
                "Node didn't have enough capacity: {name}, requested: {requested}, capacity: {capacity}"
            );
            return Err(Refusal { reason: "Infeasible", word: "Infeasible".into(), message });
        }
        for other in self.context.pods.read().values() {
            if other.metadata.uid.as_ref() != Some(&self.reference.uid) && !spec::is_terminal(other) {
                node.add_pod(Arc::new(PodInfo::from_api(other)));
            }
        }
        let only =
            scheduling::Resources { milli_cpu: want.milli_cpu, memory: want.memory, ..Default::default() };
        match lacks(&only, &node).into_iter().find(|(name, _)| &**name != "pods") {
            Some((name, message)) => {
                Err(Refusal { reason: "Deferred", word: format!("OutOf{name}"), message })
            }
            None => Ok(()),
        }
    }

    fn tell_refusal(&mut self, refusal: &Refusal) {
        self.resize.conditions = vec![PodCondition {
            type_: "PodResizePending".into(),
            status: "True".into(),
            reason: Some(refusal.reason.into()),
            message: Some(refusal.message.clone()),
            ..PodCondition::default()
        }];
        let text = format!("Pod resize {}: {}", refusal.word, summary(&self.wanted, Some(&refusal.message)));
        self.resize.deferred = refusal.reason == "Deferred";
        if self.resize.told.as_ref() != Some(&text) {
            if refusal.reason == "Infeasible" {
                metrics::INFEASIBLE_RESIZES.count(&["insufficient_node_allocatable"]);
            }
            let reason = format!("Resize{}", refusal.reason);
            self.context.events.pod(&self.reference, EventKind::Warning, &reason, text.clone());
            self.resize.told = Some(text);
        }
    }

    async fn grant(&mut self, asked: Allocation, observed: &Observed) -> Result<(), String> {
        let old = self.pod.clone();
        let file = self.allocation_file();
        let text = serde_json::to_vec(&asked).map_err(|e| e.to_string())?;
        let temporary = file.with_extension("tmp");
        let written = std::fs::write(&temporary, text).and_then(|()| std::fs::rename(&temporary, &file));
        written.map_err(|e| format!("cannot write {}: {e}", file.display()))?;
        let before = std::mem::replace(&mut self.resize.allocation, asked);
        self.pod = self.view();
        self.volumes = None; // downwardAPI files may show them
        if std::mem::take(&mut self.resize.deferred) {
            // Nothing but room that another pod left makes the node change its mind.
            metrics::DEFERRED_RESIZES.count(&["pods_removed"]);
        }
        if !std::mem::replace(&mut self.resize.in_progress, true) {
            metrics::RESIZES_IN_PROGRESS.add(&[], 1.0);
        }
        self.resize.begun = Some(Instant::now());
        self.resize.told = None;
        self.resize.conditions = vec![PodCondition {
            type_: "PodResizeInProgress".into(),
            status: "True".into(),
            ..PodCondition::default()
        }];
        let text = format!("Pod resize started: {}", summary(&self.pod, None));
        self.context.events.pod(&self.reference, EventKind::Normal, "ResizeStarted", text);
        self.publish(observed, false, false);
        let done = self.carry_out(&old, &before, observed).await;
        if done.is_err() {
            self.resize.count_end("false");
        }
        done
    }

    /// Sets the limits anew, and has containers end that start anew with theirs.
    async fn carry_out(&mut self, old: &Pod, before: &Allocation, observed: &Observed) -> Result<(), String> {
        let uid = self.reference.uid.clone();
        let (was, is) = (resources(&pod_limits(old)), resources(&pod_limits(&self.pod)));
        let runtime = &self.context.runtime;
        runtime.update_resources(&uid, None, &loosest(&was, &is)).await.map_err(|e| chain(&e))?;
        let pod = self.pod.clone();
        for (_, container) in pod.spec.iter().flat_map(containers) {
            let Some(record) = observed.latest(&container.name) else { continue };
            let now = container.resources.clone().unwrap_or_default();
            let then = before.get(&container.name).cloned().unwrap_or_default();
            // One without limits of its own has those of the pod.
            let limits = self.context.container_limits(&pod, container);
            let were = old.spec.as_ref().and_then(|s| spec::find(s, &container.name));
            let were = were.map(|(_, c)| self.context.container_limits(old, c));
            if !matches!(record.state, State::Running(_)) || now == then && were.as_ref() == Some(&limits) {
                continue;
            }
            if needs_restart(container, &then, &now) {
                let memory = self.memories.entry(container.name.clone()).or_default();
                memory.unhealthy = Some(format!("Container {} resize requires restart", container.name));
                self.resize.restarting.push((container.name.clone(), record.attempt));
            } else {
                let id = format!("{}.{}", container.name, record.attempt);
                runtime
                    .update_resources(&uid, Some(&id), &self.held(&container.name, &limits))
                    .await
                    .map_err(|e| chain(&e))?;
            }
        }
        runtime.update_resources(&uid, None, &is).await.map_err(|e| chain(&e))
    }

    /// Limits of a container, and the CPUs that it may run on.
    pub(super) fn held(&self, container: &str, limits: &Limits) -> Resources {
        let cpus = self.context.cpus.of(&self.reference.uid, container);
        let mut held = Resources { cpus, ..resources(limits) };
        if !self.context.limits_time(&self.reference.uid, Some(container)) {
            held.cpu_quota_us = None;
        }
        held
    }

    fn finish_resize(&mut self, observed: &Observed) {
        if !self.resize.in_progress {
            return;
        }
        self.resize.restarting.retain(|(name, attempt)| {
            let newer = observed
                .latest(name)
                .is_some_and(|r| r.attempt > *attempt && matches!(r.state, State::Running(_)));
            !newer
        });
        if self.resize.restarting.is_empty() {
            self.resize.count_end("true");
            self.resize.end();
            self.resize.conditions.clear();
            let text = format!("Pod resize completed: {}", summary(&self.pod, None));
            self.context.events.pod(&self.reference, EventKind::Normal, "ResizeCompleted", text);
        }
    }

    /// What the pod is allowed, noted with the first change.
    pub(super) fn allocation_file(&self) -> std::path::PathBuf {
        self.context.config.pod_dir(&self.reference.uid).join("allocated.json")
    }
}
