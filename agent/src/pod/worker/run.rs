//! A pod that shall run.

use super::{Phase, RETRY, Wake, Worker, after, earlier};
use crate::metrics;
use crate::network::{Bandwidth, PodNetwork, chain};
use crate::pod::container::resources;
use crate::pod::events::Kind;
use crate::pod::volumes::{self, Downward};
use crate::runtime::{Runtime, SandboxSpec};
use jiff::Timestamp;
use kelp_model::pod::actions::{Action, Plan, pod_actions};
use kelp_model::pod::hosts::{self, Resolv};
use kelp_model::pod::resources::{pod_cgroup, pod_limits};
use kelp_model::pod::spec;
use kelp_model::pod::view::{Observed, Sandbox, State};
use kelp_model::policy::PodFacts;
use kelp_model::service::ObjectName;
use std::path::Path;

/// Rounds in a row without waiting for an event: a start is followed by a look at what became of it.
const ROUNDS: usize = 64;

impl<R: Runtime, N: PodNetwork> Worker<R, N> {
    pub(super) async fn sync(&mut self) -> Result<Wake, String> {
        let mut wake = None;
        for _ in 0..ROUNDS {
            let observed = self.observe().await?;
            if self.must_end(&observed) {
                self.phase = Phase::Terminating;
                return Ok(None);
            }
            if let Err((reason, text)) = self.allocate().await {
                self.refuse(reason, text);
                return Ok(None);
            }
            self.consider_resize(&observed).await?;
            let now = Timestamp::now();
            let plan = match self.replacing && observed.sandbox == Sandbox::Lost {
                // Decided when the sandbox was lost, whatever becomes of its containers meanwhile.
                true => Plan::replace_sandbox(),
                false => pod_actions(&self.pod, Some(&self.last), &observed, &self.memories, now),
            };
            // A pod that has ended by itself is not ended once more for what it has written.
            let (too_much, measure) = match plan.finished {
                true => (false, None),
                false => self.uses_too_much(&observed).await,
            };
            if too_much {
                self.phase = Phase::Terminating;
                return Ok(None);
            }
            match self.replacing || self.is_between(&plan) {
                true => self.note(&observed, plan.finished, false),
                false => self.publish(&observed, plan.finished, false),
            }
            if plan.finished {
                self.replacing = false;
                self.phase = Phase::Terminating;
                return Ok(None);
            }
            self.tell_backoffs(&plan);
            if !plan.backoffs.is_empty() {
                self.publish(&observed, false, false);
            }
            self.watch_containers(&observed);
            self.hold_to_cpus(&observed).await;
            self.refresh_volumes(&observed).await;
            let measure = earlier(measure, self.expand_volumes().await);
            wake = earlier(measure, earlier(plan.wake_at, self.deadline()));
            let changed = self.execute(&plan, &observed, &mut wake).await?;
            if !changed {
                if !self.replacing {
                    let observed = self.observe().await?;
                    self.publish(&observed, false, false);
                }
                return Ok(wake);
            }
            // The newest word of the API server counts before the next step.
            if self.slot.has_changed().unwrap_or(true) {
                self.adopt();
            }
        }
        Ok(earlier(wake, after(RETRY)))
    }

    /// A container that was killed to be started again starts in the same breath: clients see the attempt before and the
    /// one after it, and the pod stays ready in between, as upstream.
    fn is_between(&self, plan: &Plan) -> bool {
        plan.actions.iter().any(|action| match action {
            Action::StartContainer { name, attempt, .. } => {
                let killed = self.memories.get(name).and_then(|memory| memory.killed);
                killed.is_some_and(|killed| killed + 1 == *attempt)
            }
            _ => false,
        })
    }

    /// Devices and CPUs are chosen before anything of the pod starts. An error has a reason and a message.
    async fn allocate(&self) -> Result<(), (&'static str, String)> {
        if self.context.devices.is_needed(&self.pod)
            && let Err(why) = self.context.devices.allocate(&self.pod).await
        {
            let text = format!("Allocate failed due to {why}, which is unexpected");
            return Err(("UnexpectedAdmissionError", text));
        }
        self.context.cpus.allocate(&self.pod).map_err(|refusal| (refusal.reason, refusal.message))
    }

    /// The node cannot have the pod after all.
    fn refuse(&mut self, reason: &'static str, text: String) {
        self.context.events.pod(&self.reference, Kind::Warning, reason, text.clone());
        self.failure = Some((reason.into(), format!("Pod was rejected: {text}")));
        self.phase = Phase::Terminating;
    }

    /// Holds running containers to the CPUs that they may run on: those that share some have others now.
    async fn hold_to_cpus(&mut self, observed: &Observed) {
        let pod = self.pod.clone();
        for (_, container) in pod.spec.iter().flat_map(spec::containers) {
            let Some(record) = observed.latest(&container.name) else { continue };
            let cpus = self.context.cpus.of(&self.reference.uid, &container.name);
            let held = self.held_cpus.get(&container.name) == Some(&(record.attempt, cpus.clone()));
            if cpus.is_none() || held || !matches!(record.state, State::Running(_)) {
                continue;
            }
            let limits = self.context.container_limits(&pod, container);
            let id = format!("{}.{}", container.name, record.attempt);
            let resources = self.held(&container.name, &limits);
            let runtime = &self.context.runtime;
            let updated = runtime.update_resources(&self.reference.uid, Some(&id), &resources).await;
            match updated {
                Ok(()) => {
                    self.held_cpus.insert(container.name.clone(), (record.attempt, cpus));
                }
                Err(error) => {
                    let error = chain(&error);
                    tracing::warn!(pod = %self.reference, container = container.name, error, "container not held to its CPUs");
                }
            }
        }
    }

    fn deadline(&self) -> Wake {
        spec::active_deadline(&self.pod, self.last.start_time.as_ref().map(|t| t.0))
    }

    /// The pod must not run (any longer).
    fn must_end(&mut self, observed: &Observed) -> bool {
        if self.gone || self.pod.metadata.deletion_timestamp.is_some() {
            self.replacing = false;
            return true;
        }
        let ended = self.last.phase.as_deref().is_some_and(spec::is_terminal_phase);
        if ended || self.evicted.is_some() || self.checkpoint().exists() {
            return true;
        }
        if self.deadline().is_some_and(|at| at <= Timestamp::now()) {
            let text = "Pod was active on the node longer than the specified deadline";
            self.context.events.pod(&self.reference, Kind::Normal, "DeadlineExceeded", text);
            self.failure = Some(("DeadlineExceeded".into(), text.into()));
            self.publish(observed, true, false);
            return true;
        }
        false
    }

    fn tell_backoffs(&mut self, plan: &Plan) {
        let now = Timestamp::now();
        self.told.retain(|(_, until)| *until > now);
        for backoff in &plan.backoffs {
            let memory = self.memories.entry(backoff.name.clone()).or_default();
            let text = format!(
                "back-off {} restarting failed container={} pod={}",
                go_seconds(backoff.seconds),
                backoff.name,
                self.reference
            );
            memory.waiting = Some(("CrashLoopBackOff".into(), text));
            if self.told.insert((backoff.name.clone(), backoff.until)) {
                let text = format!(
                    "Back-off restarting failed container {} in pod {}",
                    backoff.name, self.reference
                );
                let path = self.field_path(&backoff.name);
                self.context.events.container(&self.reference, &path, Kind::Warning, "BackOff", text);
            }
        }
    }

    /// Does what the plan says. `true`: look at the pod again at once.
    async fn execute(&mut self, plan: &Plan, observed: &Observed, wake: &mut Wake) -> Result<bool, String> {
        let mut changed = false;
        for action in &plan.actions {
            match action {
                Action::RemoveSandbox => {
                    if !self.replacing {
                        let text = "Pod sandbox changed, it will be killed and re-created.";
                        self.context.events.pod(&self.reference, Kind::Normal, "SandboxChanged", text);
                        self.replacing = true;
                        self.probes.clear();
                        self.kills.reset();
                    }
                    if self.kill_all(observed) {
                        return Ok(false); // an exit goes on
                    }
                    self.kills.reset();
                    self.remove_sandbox().await?;
                    self.attempts.clear();
                    changed = true;
                }
                Action::CreateSandbox => match self.create_sandbox().await {
                    Ok(()) => {
                        self.failures = 0;
                        changed = true;
                    }
                    Err(()) => {
                        self.replacing = false;
                        *wake = earlier(*wake, self.retry());
                        return Ok(false);
                    }
                },
                Action::RemoveContainer { name, attempt } => {
                    let id = format!("{name}.{attempt}");
                    let removed = self.context.runtime.remove_container(&self.reference.uid, &id).await;
                    removed.map_err(|e| chain(&e))?;
                    let _ = std::fs::remove_file(self.termination_file(name, *attempt));
                    self.messages.remove(&id);
                }
                Action::ResetContainer { name, attempt } => {
                    let id = format!("{name}.{attempt}");
                    if observed.latest(name).is_some_and(|r| matches!(r.state, State::Running(_))) {
                        let (path, text) = (self.field_path(name), format!("Stopping container {name}"));
                        self.context.events.container(&self.reference, &path, Kind::Normal, "Killing", text);
                    }
                    self.kills.ended(&id);
                    let removed = self.context.runtime.remove_container(&self.reference.uid, &id).await;
                    removed.map_err(|e| chain(&e))?;
                    let _ = std::fs::remove_file(self.termination_file(name, *attempt));
                    self.messages.remove(&id);
                    self.memories.remove(name);
                    self.attempts.remove(name);
                    changed = true;
                }
                Action::KillContainer { name, attempt, message } => {
                    self.kill_one(name, *attempt, message);
                }
                Action::StartContainer { name, attempt, after } => {
                    changed |= self.start_container(name, *attempt, *after).await;
                    self.replacing = false;
                    let retry = self.memories.get(name).and_then(|m| m.retry_at);
                    *wake = earlier(*wake, retry);
                    // A hook that started, or a pod that was deleted meanwhile, changes what comes next.
                    if self.memories.get(name).is_some_and(|m| m.in_post_start)
                        || self.slot.has_changed().unwrap_or(true)
                    {
                        return Ok(true);
                    }
                }
            }
        }
        Ok(changed)
    }

    /// Volumes, sandbox, network. `Err`: told in an event, to be tried again.
    async fn create_sandbox(&mut self) -> Result<(), ()> {
        let failed = |worker: &Self, text: String| {
            let text = format!("Failed to create pod sandbox: {text}");
            worker.context.events.pod(&worker.reference, Kind::Warning, "FailedCreatePodSandBox", text);
        };
        self.declare();
        let uid = self.reference.uid.clone();
        let name = match hosts::hostname(&self.pod, &self.context.config.cluster_domain) {
            Ok(name) => name,
            Err(text) => {
                failed(self, text);
                return Err(());
            }
        };
        if let Err(error) = self.write_checkpoint_of_spec() {
            failed(
                self,
                format!("cannot write below {}: {error}", self.context.config.pod_dir(&uid).display()),
            );
            return Err(());
        }
        let spec = self.pod.spec.clone().unwrap_or_default();
        self.set_up_volumes().await?;
        let users = match spec.host_users {
            Some(false) => match self.context.users.allocate(&uid) {
                Ok(range) => Some(range),
                Err(text) => {
                    failed(self, text);
                    return Err(());
                }
            },
            _ => None,
        };
        let class = spec.runtime_class_name.as_deref();
        if let Err(text) = self.context.classes.handler(&uid, class).await {
            failed(self, text);
            return Err(());
        }
        let host_network = spec.host_network.unwrap_or(false);
        let hostname = if host_network { self.node_hostname() } else { name.kernel.clone() };
        let sysctls = spec.security_context.iter().flat_map(|s| s.sysctls.iter().flatten());
        let sandbox = SandboxSpec {
            id: uid.clone(),
            namespace: self.reference.namespace.clone(),
            name: self.reference.name.clone(),
            hostname,
            host_network,
            host_pid: spec.host_pid.unwrap_or(false),
            host_ipc: spec.host_ipc.unwrap_or(false),
            share_pid: spec.share_process_namespace.unwrap_or(false),
            users,
            cgroup: pod_cgroup(&self.pod).into(),
            resources: self.pod_resources(),
            log_dir: self.context.config.pod_logs(&self.reference.namespace, &self.reference.name, &uid),
            sysctls: sysctls.map(|s| (s.name.clone(), s.value.clone())).collect(),
        };
        let has_users = sandbox.users.is_some();
        let begin = std::time::Instant::now();
        let created = self.context.runtime.create_sandbox(&sandbox).await;
        metrics::RUN_SANDBOX.took(&[""], begin);
        let status = match created {
            Ok(status) => {
                metrics::STARTED_PODS.count(&[]);
                if has_users {
                    metrics::STARTED_USER_PODS.count(&[]);
                }
                status
            }
            Err(error) => {
                metrics::STARTED_PODS_ERRORS.count(&[]);
                if has_users {
                    metrics::STARTED_USER_PODS_ERRORS.count(&[]);
                }
                failed(self, chain(&error));
                return Err(());
            }
        };
        if let (false, Some(netns)) = (host_network, &status.netns) {
            let connected = match Bandwidth::of(self.pod.metadata.annotations.as_ref()) {
                Ok(bandwidth) => self.context.network.connect(&self.facts(), bandwidth, netns).await,
                Err(error) => Err(error),
            };
            match connected {
                Ok(ips) => self.pod_ips = ips,
                Err(error) => {
                    failed(self, format!("failed to setup network for sandbox {uid:?}: {}", chain(&error)));
                    return Err(());
                }
            }
            // Before anything of the pod runs: some file systems grow offline only.
            self.expand_volumes().await;
            // downwardAPI volumes may show the address.
            self.volumes = None;
            self.set_up_volumes().await?;
        }
        if let Err(error) = self.write_managed_files() {
            failed(self, format!("cannot write the pod's hosts and resolv.conf: {error}"));
            return Err(());
        }
        Ok(())
    }

    /// The pod as network policies select it.
    pub(super) fn facts(&self) -> PodFacts {
        let name = ObjectName::new(&self.reference.namespace, &self.reference.name);
        let uid = self.reference.uid.as_str().into();
        match PodFacts::of(&self.pod) {
            Some(facts) => PodFacts { uid, ..facts },
            None => PodFacts { name, uid, labels: Default::default(), ports: Vec::new() },
        }
    }

    /// Limits of the pod as a whole, with those of the node's configuration.
    fn pod_resources(&self) -> crate::runtime::Resources {
        let most = self.context.config.kubelet.settings.pod_pids_limit;
        let own = resources(&pod_limits(&self.pod));
        let cpu_quota_us = own.cpu_quota_us.filter(|_| self.context.limits_time(&self.reference.uid, None));
        let pids_limit = (most > 0).then_some(most).or(own.pids_limit);
        crate::runtime::Resources { pids_limit, cpu_quota_us, ..own }
    }

    /// Removes the sandbox and what belongs to it; afterwards nothing of the pod runs.
    pub(super) async fn remove_sandbox(&mut self) -> Result<(), String> {
        let uid = self.reference.uid.clone();
        self.context.network.disconnect(&uid).await.map_err(|e| chain(&e))?;
        self.context.runtime.remove_sandbox(&uid).await.map_err(|e| chain(&e))?;
        self.pod_ips.clear();
        Ok(())
    }

    pub(super) fn downward(&self) -> Downward<'_> {
        let config = &self.context.config;
        let own = if spec::host_network(&self.pod) { &config.node_ips } else { &self.pod_ips };
        Downward {
            pod: &self.pod,
            node_name: &config.node_name,
            host_ips: &config.node_ips,
            pod_ips: own,
            node_milli_cpu: self.context.node_milli_cpu,
            node_memory: i64::try_from(self.context.node_memory).unwrap_or(i64::MAX),
        }
    }

    async fn set_up_volumes(&mut self) -> Result<(), ()> {
        if self.volumes.is_some() {
            return Ok(());
        }
        let dir = self.context.config.pod_dir(&self.reference.uid);
        let context = self.context.clone();
        let (objects, node, changed) = (&context.objects, &context.volumes, &self.objects_changed);
        match volumes::set_up(&self.pod, &dir, objects, node, &self.downward(), changed).await {
            Ok(mut paths) => {
                paths.extend(self.image_volumes.clone());
                self.volumes = Some(paths);
                Ok(())
            }
            Err(error) => {
                self.context.events.pod(&self.reference, Kind::Warning, "FailedMount", error.to_string());
                Err(())
            }
        }
    }

    /// Brings changed objects into a pod that already runs.
    async fn refresh_volumes(&mut self, observed: &Observed) {
        if self.volumes.is_none() && observed.sandbox == Sandbox::Ready {
            let _ = self.set_up_volumes().await;
        }
    }

    fn node_hostname(&self) -> String {
        nix::unistd::gethostname().ok().and_then(|h| h.into_string().ok()).unwrap_or_default()
    }

    pub(super) fn kernel_hostname(&self) -> String {
        if spec::host_network(&self.pod) {
            return self.node_hostname();
        }
        hosts::hostname(&self.pod, &self.context.config.cluster_domain).map(|n| n.kernel).unwrap_or_default()
    }

    /// /etc/hosts, /etc/hostname and /etc/resolv.conf of the pod. Written in place: they are bind-mounted.
    pub(super) fn write_managed_files(&self) -> std::io::Result<()> {
        let config = &self.context.config;
        let dir = config.pod_dir(&self.reference.uid);
        let spec = self.pod.spec.clone().unwrap_or_default();
        let aliases = spec.host_aliases.unwrap_or_default();
        let hosts = if spec.host_network == Some(true) {
            let node = std::fs::read_to_string(&config.hosts_file).unwrap_or_default();
            hosts::host_network_hosts_file(&node, &aliases)
        } else {
            let name = hosts::hostname(&self.pod, &config.cluster_domain).map_err(std::io::Error::other)?;
            hosts::hosts_file(&self.pod_ips, &name, &aliases)
        };
        let node = Resolv::parse(&std::fs::read_to_string(&config.resolv_conf).unwrap_or_default());
        let resolv = hosts::resolv(&self.pod, &config.cluster_dns, &config.cluster_domain, &node);
        write_if_changed(&dir.join("etc-hosts"), &hosts)?;
        write_if_changed(&dir.join("hostname"), &format!("{}\n", self.kernel_hostname()))?;
        write_if_changed(&dir.join("resolv.conf"), &resolv.text())
    }

    /// Keeps the Pod on disk, so that an agent that starts when the API server has forgotten the pod can end it.
    fn write_checkpoint_of_spec(&self) -> std::io::Result<()> {
        let dir = self.context.config.pod_dir(&self.reference.uid);
        std::fs::create_dir_all(&dir)?;
        let temporary = dir.join("pod.json.tmp");
        std::fs::write(&temporary, serde_json::to_vec(self.pod.as_ref())?)?;
        std::fs::rename(temporary, dir.join("pod.json"))
    }
}

fn write_if_changed(path: &Path, text: &str) -> std::io::Result<()> {
    if std::fs::read_to_string(path).ok().as_deref() == Some(text) {
        return Ok(());
    }
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    if path.exists() {
        std::fs::write(path, text)?;
        return std::fs::set_permissions(path, mode);
    }
    // That it is there says that it is whole.
    let temporary = path.with_extension("tmp");
    std::fs::write(&temporary, text)?;
    std::fs::set_permissions(&temporary, mode)?;
    std::fs::rename(temporary, path)
}

/// Seconds as Go prints a duration: `10s`, `1m20s`, `5m0s`.
fn go_seconds(seconds: i64) -> String {
    match (seconds / 60, seconds % 60) {
        (0, s) => format!("{s}s"),
        (m, s) => format!("{m}m{s}s"),
    }
}
